"""Mamba checkpoints of state-spaces/mamba and of transformers: their configuration and key tables, in both directions."""

import json
import math
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from dna_mamba.alphabet import NUM_TOKENS, VOCABULARY_SIZE, A, N
from dna_mamba.errors import InputError, check_regular, nearest
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.formats import MAMBA_SSM, TRANSFORMERS
from dna_mamba.model.checkpoints.native import check_size, copy_tensors, unshared_tensors
from dna_mamba.model.config import LETTERS, MAX_LAYERS, BackboneConfig, MambaConfig
from dna_mamba.values import Json

EMBEDDING = {MAMBA_SSM: "backbone.embedding.weight", TRANSFORMERS: "backbone.embeddings.weight"}
"""The one name that differs; ours are those of state-spaces/mamba."""
HEAD = "lm_head.weight"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SIDE_FILE = "dna_mamba.json"
"""Written beside an exported checkpoint: what its own format has no place for."""
MAMBA_SSM_KEYS = {
    *("d_model", "d_intermediate", "n_layer", "vocab_size", "ssm_cfg", "attn_layer_idx", "attn_cfg", "rms_norm"),
    *("residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple", "tie_embeddings", "norm_epsilon", "model_type"),
    *("architectures", "initializer_cfg", "dtype", "torch_dtype", "transformers_version", "_name_or_path"),
}
SSM_KEYS = {
    *("layer", "d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor"),
    *("conv_bias", "bias", "use_fast_path"),
}
TRANSFORMERS_KEYS = {
    # read, or compared with what this model family has
    *(
        "architectures",
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "state_size",
        "conv_kernel",
        "expand",
    ),
    *("intermediate_size", "time_step_rank", "layer_norm_epsilon", "use_bias", "use_conv_bias", "hidden_act"),
    *("tie_word_embeddings", "d_inner", "d_model", "n_layer", "rms_norm", "ssm_cfg"),
    # of initialisation, precision and speed
    *("initializer_range", "rescale_prenorm_residual", "residual_in_fp32", "time_step_floor", "time_step_init_scheme"),
    *("time_step_max", "time_step_min", "time_step_scale", "use_associative_scan", "use_cache", "use_mambapy"),
    *("fused_add_norm", "pad_vocab_size_multiple", "dtype", "torch_dtype", "use_bfloat16"),
    # of the library, of tokenizers, and of generation, which older versions wrote here
    *("_name_or_path", "transformers_version", "tokenizer_class", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("sep_token_id", "decoder_start_token_id", "unk_token_id", "id2label", "label2id", "num_labels", "problem_type"),
    *("return_dict", "output_attentions", "output_hidden_states", "is_encoder_decoder", "is_decoder", "torchscript"),
    *("add_cross_attention", "cross_attention_hidden_size", "chunk_size_feed_forward", "finetuning_task", "prefix"),
    *("pruned_heads", "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "bad_words_ids", "do_sample"),
    *("begin_suppress_tokens", "diversity_penalty", "early_stopping", "encoder_no_repeat_ngram_size", "length_penalty"),
    *("exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "max_length", "min_length"),
    *("no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "temperature"),
    *("remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "top_k", "top_p"),
    *("typical_p",),
}
OFF = {"bidirectional": False, "rcps": False}
"""Keys that other programs write for models of other kinds; read where they say that it is none."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A model from elsewhere."""

    model: DnaMamba
    format: str
    vocabulary_size: int
    """Of the checkpoint; the model has 16."""
    tensors: dict[str, Tensor]
    """Of the checkpoint, float32, by the names of state-spaces/mamba."""


def _differs(where: str, key: str, value: object, expected: object) -> InputError:
    return InputError(
        f"{where}: {key} is {value!r}; this model family has {expected!r}, so the checkpoint cannot be read"
    )


def _check_keys(config: dict[str, object], known: set[str], where: str, name: str = "") -> None:
    """Refuse keys that we do not know: one that changes the model must not be passed over."""
    for key, value in config.items():
        if key in known or value is None or (key in OFF and value == OFF[key]):
            continue
        full = f"{name}.{key}" if name else key
        raise InputError(
            f"{where}: {full} is {str(value)[:60]!r}, a setting that is not known here and may change the model, so the "
            f"checkpoint is not read{nearest(key, known)}; take it out if it does not"
        )


def _integer(config: dict[str, object], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if type(value) is not int or not 1 <= value <= 2**31:
        raise InputError(f"{where}: {key} is {value!r}, expected a whole number from 1 up")
    return value


def _epsilon(config: dict[str, object], key: str, where: str) -> float:
    eps = config.get(key, 1e-5)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise InputError(f"{where}: {key} is {eps!r}, expected a small number")
    return eps


def _of_mamba_ssm(config: dict[str, object], where: str) -> tuple[BackboneConfig, int]:
    """Read the configuration of `MambaLMHeadModel`. Source: mamba_ssm/models/config_mamba.py and mixer_seq_simple.py."""
    inner = config.get("ssm_cfg") or {}
    if not isinstance(inner, dict):
        raise InputError(f"{where}: ssm_cfg is {inner!r}, expected a table")
    if config.get("model_type") not in (None, "mamba", "mamba_ssm"):
        raise _differs(where, "model_type", config["model_type"], "mamba_ssm")
    if config.get("architectures") not in (None, ["MambaLMHeadModel"]):
        raise _differs(where, "architectures", config["architectures"], ["MambaLMHeadModel"])
    _check_keys(config, MAMBA_SSM_KEYS, where)
    _check_keys(inner, SSM_KEYS, where, "ssm_cfg")
    for key, expected in (("rms_norm", True), ("tie_embeddings", True), ("d_intermediate", 0)):
        if config.get(key, expected) != expected:
            raise _differs(where, key, config[key], expected)
    if config.get("attn_layer_idx"):
        raise _differs(where, "attn_layer_idx", config["attn_layer_idx"], [])
    if inner.get("layer", "Mamba1") != "Mamba1":
        raise _differs(where, "ssm_cfg.layer", inner["layer"], "Mamba1")
    for key, expected in (("conv_bias", True), ("bias", False)):
        if inner.get(key, expected) != expected:
            raise _differs(where, f"ssm_cfg.{key}", inner[key], expected)
    width = _integer(config, "d_model", where)
    rank = inner.get("dt_rank", "auto")
    if rank not in ("auto", math.ceil(width / 16)):
        raise _differs(where, "ssm_cfg.dt_rank", rank, math.ceil(width / 16))
    mamba = MambaConfig(
        num_states=_integer(inner, "d_state", where, 16),
        expansion=_integer(inner, "expand", where, 2),
        num_taps=_integer(inner, "d_conv", where, 4),
    )
    layers, vocabulary = _integer(config, "n_layer", where), _integer(config, "vocab_size", where)
    multiple = _integer(config, "pad_vocab_size_multiple", where, 8)
    rows = -(-vocabulary // multiple) * multiple
    eps = _epsilon(config, "norm_epsilon", where)
    return BackboneConfig(width=width, pattern="M" * min(layers, MAX_LAYERS + 1), mamba=mamba, norm_eps=eps), rows


def _of_transformers(config: Json, where: str) -> tuple[BackboneConfig, int]:
    """Read the configuration of `MambaForCausalLM`. Source: transformers/models/mamba/configuration_mamba.py."""
    if any(name not in ("MambaForCausalLM", "MambaModel") for name in config.get("architectures") or ()):
        raise _differs(where, "architectures", config["architectures"], ["MambaForCausalLM"])
    _check_keys(config, TRANSFORMERS_KEYS, where)
    settled: tuple[tuple[str, Any], ...] = (
        *(("use_bias", False), ("use_conv_bias", True), ("hidden_act", "silu"), ("rms_norm", True), ("ssm_cfg", {})),
        *(("d_model", config.get("hidden_size")), ("n_layer", config.get("num_hidden_layers"))),
        ("d_inner", config.get("intermediate_size", config.get("d_inner"))),
    )
    for key, expected in settled:
        if config.get(key, expected) != expected:
            raise _differs(where, key, config[key], expected)
    if config.get("tie_word_embeddings", True) is not True:
        raise _differs(where, "tie_word_embeddings", False, True)
    width, expansion = _integer(config, "hidden_size", where), _integer(config, "expand", where, 2)
    if config.get("intermediate_size", expansion * width) != expansion * width:
        raise _differs(where, "intermediate_size", config["intermediate_size"], expansion * width)
    rank = config.get("time_step_rank", "auto")
    if rank not in ("auto", math.ceil(width / 16)):
        raise _differs(where, "time_step_rank", rank, math.ceil(width / 16))
    eps = _epsilon(config, "layer_norm_epsilon", where)
    mamba = MambaConfig(
        num_states=_integer(config, "state_size", where, 16),
        expansion=expansion,
        num_taps=_integer(config, "conv_kernel", where, 4),
    )
    layers = _integer(config, "num_hidden_layers", where)
    pattern = BackboneConfig(width=width, pattern="M" * min(layers, MAX_LAYERS + 1), mamba=mamba, norm_eps=eps)
    return pattern, _integer(config, "vocab_size", where)


def read_config(path: Path) -> tuple[str, Json, BackboneConfig, int]:
    """Read config.json of a checkpoint.

    Returns:
        Which of the two formats it is, its values, our configuration with 16 tokens, and rows of its embedding.

    Raises:
        InputError: There is none, it is neither of the two, or the model differs from ours.
    """
    file = path / "config.json"
    check_regular(file, "JSON")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is no checkpoint directory: it has no config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    where = str(file)
    try:
        if isinstance(config, dict) and config.get("model_type") == "mamba":
            return TRANSFORMERS, config, *_of_transformers(config, where)
        if isinstance(config, dict) and "d_model" in config and "n_layer" in config:
            return MAMBA_SSM, config, *_of_mamba_ssm(config, where)
    except InputError as error:
        raise InputError(str(error) if where in str(error) else f"{where}: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    words = f"model_type is {kind!r}" if kind else "it names no model_type and no d_model"
    raise InputError(
        f"{file}: {words}; expected transformers' 'mamba', or d_model and n_layer as state-spaces/mamba writes"
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read model.safetensors, or pytorch_model.bin with weights_only: nothing in it is executed; or all the shards of either.

    Returns:
        The tensors by name, without what data parallelism, torch.compile or a module around the model put before the names, and
        with backbone. before those of a bare MambaModel.

    Raises:
        InputError: There is neither, or it is damaged, or it holds more than tensors.
    """
    found = _read_files(path)
    last = next((name for name in found if name.endswith("norm_f.weight")), "")
    prefix = last.removesuffix("norm_f.weight").removesuffix("backbone.")
    if prefix and all(name.startswith(prefix) for name in found):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    if found and not any(name.startswith("backbone.") for name in found) and "norm_f.weight" in found:
        found = {name if name == HEAD else f"backbone.{name}": tensor for name, tensor in found.items()}
    return found


def _read_files(path: Path) -> dict[str, Tensor]:
    for name in WEIGHTS:
        index = path / f"{name}.index.json"
        if index.exists() and (path / name).exists():
            raise InputError(
                f"{path} holds both {name} and {index.name}, which names shards; move away the one that is old"
            )
        if index.exists():
            return _read_shards(path, index)
    return _read_one(path, WEIGHTS)


def _read_shards(path: Path, index: Path) -> dict[str, Tensor]:
    check_regular(index, "JSON")
    try:
        of_tensor = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(of_tensor.values()))
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("a shard lies elsewhere")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{index} does not say which shard holds which tensor: {error}") from error
    found: dict[str, Tensor] = {}
    for name in names:
        if not (path / name).is_file():
            raise InputError(f"{path} lacks the shard {name!r} that {index.name} names; copy it too")
        found |= _read_one(path, (name,))
    if missing := sorted(set(of_tensor) - set(found)):
        raise InputError(f"{path}: no shard holds the tensor {missing[0]!r} that {index.name} names")
    return found


def _read_one(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    for name in names:
        file = path / name
        check_regular(file, "a file of weights")
        if not file.is_file():
            continue
        try:
            if name.endswith(".safetensors"):
                return load_safetensors(file.read_bytes())
            _check_zip(file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch.load(file, map_location="cpu", weights_only=True)
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from error
        except SafetensorError as error:
            raise InputError(f"{file} is damaged, or no safetensors file: {error}") from error
        except Exception as error:  # the unpickler raises whatever a damaged file leads it to
            raise InputError(
                f"{file} is damaged, or holds more than tensors, which is not loaded; take its model.safetensors"
            ) from error
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise InputError(f"{file} holds no table of tensors")
        return found
    raise InputError(f"{path} has no {' or '.join(names)}")


def _check_zip(file: Path) -> None:
    """Refuse packed members: torch writes none, and a few hundred bytes could unfold into gigabytes."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as members:
            if any(one.compress_type != zipfile.ZIP_STORED for one in members.infolist()):
                raise InputError(f"{file} holds packed members, as no checkpoint of torch does; it is not unpacked")


def import_checkpoint(path: Path, token_ids: tuple[int, ...] | None = None) -> Imported:
    """Read a checkpoint of state-spaces/mamba or transformers.

    Args:
        path: Directory with config.json and model.safetensors or pytorch_model.bin.
        token_ids: Its ids of A, C, G, T and N, whose rows become ours; without them it must have up to 16 tokens with ours (A
            7, C 8, G 9, T 10, N 11), as HyenaDNA's vocabulary has.

    Returns:
        The model on the CPU, in float32 and in evaluation mode.

    Raises:
        InputError: It cannot be read, differs from our model, or a tensor is missing, extra or misshapen.
    """
    kind, _, backbone, rows = read_config(path)
    loaded = read_tensors(path)
    check_size(backbone, loaded, str(path))
    for name, tensor in loaded.items():
        if not tensor.is_floating_point():
            raise InputError(
                f"{path}: {name!r} holds {tensor.dtype}, expected floating-point numbers; a quantized checkpoint must be "
                f"written out in full first"
            )
    tensors = {name: tensor.float() for name, tensor in loaded.items()}
    foreign = {(EMBEDDING[MAMBA_SSM] if name == EMBEDDING[kind] else name): value for name, value in tensors.items()}
    name = EMBEDDING[kind]
    if name not in tensors:
        raise InputError(f"{path} lacks the tensor {name!r}")
    embedding_VD = tensors.pop(name)
    if embedding_VD.shape != (rows, backbone.width):
        raise InputError(f"{path}: {name!r} is {tuple(embedding_VD.shape)}, expected {(rows, backbone.width)}")
    head = tensors.pop(HEAD, embedding_VD)
    if not torch.equal(head, embedding_VD):
        raise InputError(f"{path}: {HEAD!r} differs from the embedding, but in this model family the two are one")
    own_VD = _own_rows(embedding_VD, token_ids, path)
    model = DnaMamba(backbone)
    copy_tensors(model, {**tensors, EMBEDDING[MAMBA_SSM]: own_VD}, str(path))
    return Imported(model=model.eval(), format=kind, vocabulary_size=rows, tensors=foreign)


def _own_rows(embedding_VD: Tensor, token_ids: tuple[int, ...] | None, path: Path) -> Tensor:
    """Put the rows of a foreign vocabulary in the places of our tokens; those of tokens it lacks are 0."""
    rows, width = embedding_VD.shape
    own_VD = torch.zeros(VOCABULARY_SIZE, width)
    if token_ids is not None:
        if len(token_ids) != 5 or len(set(token_ids)) != 5 or not all(0 <= one < rows for one in token_ids):
            raise InputError(
                f"--token-ids {token_ids}: expected five different ids from 0 to {rows - 1}, of A, C, G, T and N"
            )
        own_VD[A : N + 1] = embedding_VD[list(token_ids)]
        return own_VD
    if rows > VOCABULARY_SIZE:
        raise InputError(
            f"{path} has {rows:,} tokens, ours are {VOCABULARY_SIZE}; say which of them are A, C, G, T and N, as in "
            "--token-ids 7 8 9 10 11"
        )
    if rows < NUM_TOKENS:
        raise InputError(
            f"{path} has {rows} tokens, fewer than our {NUM_TOKENS}; say which are A, C, G, T and N with --token-ids"
        )
    own_VD[:rows] = embedding_VD
    return own_VD


def tensors_for(model: DnaMamba, kind: str) -> dict[str, Tensor]:
    """Give the tensors of a model by the names of a format."""
    own = unshared_tensors(model)
    embedding = own.pop(EMBEDDING[MAMBA_SSM])
    tensors = {EMBEDDING[kind]: embedding, **own}
    return {**tensors, HEAD: embedding.clone()} if kind == MAMBA_SSM else tensors


def config_for(model: DnaMamba, kind: str) -> Json:
    """Give the configuration of a model as a format writes it.

    Raises:
        InputError: The model has something that the format cannot say.
    """
    config, mamba = model.config, model.config.mamba
    if other := sorted(set(config.pattern) - {"M"}):
        raise InputError(
            f"the pattern {config.pattern!r} has layers {other[0]} ({LETTERS[other[0]].name}), and the format {kind} has a "
            f"place for Mamba layers alone; keep the model directory, which dna-mamba itself reads"
        )
    if kind == MAMBA_SSM:
        if config.norm_eps != 1e-5:
            raise InputError(f"norm_eps {config.norm_eps} cannot be written for mamba_ssm, which always takes 1e-5")
        inner = {"d_state": mamba.num_states, "d_conv": mamba.num_taps, "expand": mamba.expansion}
        return {
            "d_model": config.width, "d_intermediate": 0, "n_layer": len(config.pattern),
            "vocab_size": config.vocabulary_size, "ssm_cfg": {"layer": "Mamba1", **inner}, "attn_layer_idx": [],
            "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
            "pad_vocab_size_multiple": 8, "tie_embeddings": True,
        }  # fmt: skip
    return {
        "architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": config.width,
        "num_hidden_layers": len(config.pattern), "vocab_size": config.vocabulary_size, "state_size": mamba.num_states,
        "conv_kernel": mamba.num_taps, "expand": mamba.expansion, "intermediate_size": mamba.expansion * config.width,
        "time_step_rank": math.ceil(config.width / 16), "layer_norm_epsilon": config.norm_eps, "use_bias": False,
        "use_conv_bias": True, "hidden_act": "silu", "residual_in_fp32": True, "tie_word_embeddings": True,
        "pad_token_id": 4, "bos_token_id": 2, "eos_token_id": 1, "dtype": "float32",
    }  # fmt: skip
