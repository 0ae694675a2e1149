"""Checkpoints of others: in and out with the same logits, and every fault of one named."""

import json
import os
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dna_mamba.data.objectives import TokenPolicy
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.certificate import naive_logits
from dna_mamba.model.checkpoints.mamba_ssm import import_checkpoint
from dna_mamba.model.checkpoints.native import from_pretrained, save_pretrained
from dna_mamba.model.config import BackboneConfig
from dna_mamba.pipelines.checkpoints import ExportConfig, ImportConfig, export_model, import_model
from tests.conftest import dna_mamba

transformers = pytest.importorskip("transformers")


def theirs_of(vocab_size=16, seed=0, **more):
    torch.manual_seed(seed)
    config = transformers.MambaConfig(
        vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, state_size=8, conv_kernel=3, use_bias=False,
        layer_norm_epsilon=1e-4, **more,
    )  # fmt: skip
    return transformers.MambaForCausalLM(config).eval()


@pytest.fixture
def theirs(tmp_path):
    theirs_of().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def probe(length=70):
    return torch.randint(7, 12, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_transformers_checkpoint_gives_its_logits(theirs, tmp_path):
    result = import_model(ImportConfig(checkpoint=theirs, out=tmp_path / "ours"))
    assert result.format == "transformers" and result.largest_difference < 1e-4
    model, _ = from_pretrained(tmp_path / "ours")
    expected = theirs_of()(probe(), use_cache=False).logits
    assert torch.allclose(model.use_implementation("cpu")(probe())[0], expected, atol=1e-4)
    assert model.config.norm_eps == 1e-4 and model.config.mamba.num_taps == 3


@torch.no_grad()
@pytest.mark.parametrize("format", ["transformers", "mamba_ssm"])
def test_out_and_in_again_is_the_same_model_to_the_bit(format, tmp_path):
    torch.manual_seed(0)
    ours = DnaMamba(BackboneConfig(pattern="MM", width=32)).eval()
    save_pretrained(ours, tmp_path / "ours", {})
    result = export_model(ExportConfig(model=tmp_path / "ours", out=tmp_path / "theirs", format=format))
    assert result.largest_difference < 1e-4
    if format == "transformers":
        loaded = transformers.MambaForCausalLM.from_pretrained(tmp_path / "theirs")
        expected = loaded.eval()(probe(), use_cache=False).logits
        assert torch.allclose(ours.use_implementation("cpu")(probe())[0], expected, atol=1e-4)
    else:  # the names and the file that MambaLMHeadModel.from_pretrained asks for
        names = set(torch.load(tmp_path / "theirs" / "pytorch_model.bin", weights_only=True))
        assert {
            "backbone.embedding.weight",
            "backbone.layers.1.mixer.A_log",
            "backbone.norm_f.weight",
            "lm_head.weight",
        } < names
    import_model(ImportConfig(checkpoint=tmp_path / "theirs", out=tmp_path / "again"))
    before, after = (
        load_file(tmp_path / "ours" / "model.safetensors"),
        load_file(tmp_path / "again" / "model.safetensors"),
    )
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_another_vocabulary_is_read_by_its_ids_of_the_bases(tmp_path):
    theirs_of(vocab_size=50).save_pretrained(tmp_path / "theirs")
    with pytest.raises(InputError, match="has 50 tokens, ours are 16; say which"):
        import_model(ImportConfig(checkpoint=tmp_path / "theirs", out=tmp_path / "ours"))
    ids = (30, 3, 49, 0, 17)
    result = import_model(ImportConfig(checkpoint=tmp_path / "theirs", out=tmp_path / "ours", token_ids=ids))
    assert result.largest_difference < 1e-4
    model, _ = from_pretrained(tmp_path / "ours")
    expected = theirs_of(vocab_size=50)(torch.tensor(ids)[probe() - 7], use_cache=False).logits[..., list(ids)]
    assert torch.allclose(model.use_implementation("cpu")(probe())[0][..., 7:12], expected, atol=1e-4)
    for bad in ((1, 2, 3, 4), (1, 2, 3, 4, 50), (1, 1, 2, 3, 4)):
        with pytest.raises(InputError, match="five different ids from 0 to 49"):
            import_checkpoint(tmp_path / "theirs", bad)


class _Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def change(path, **values):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | values))


def tensors(path, edit):
    found = load_file(path / "model.safetensors")
    edit(found)
    save_file(found, path / "model.safetensors")


FAULTS = {
    "no config": (lambda p: (p / "config.json").unlink(), "it has no config.json"),
    "no json": (lambda p: (p / "config.json").write_text("{"), "cannot be read"),
    "another model": (lambda p: change(p, model_type="llama"), "model_type is 'llama'; expected"),
    "bias": (lambda p: change(p, use_bias=True), "use_bias is True; this model family has False"),
    "activation": (lambda p: change(p, hidden_act="relu"), "hidden_act is 'relu'"),
    "rank": (lambda p: change(p, time_step_rank=7), "time_step_rank is 7"),
    "text": (lambda p: change(p, hidden_size="32"), "hidden_size is '32', expected a whole number"),
    "width": (lambda p: change(p, hidden_size=64, intermediate_size=128, time_step_rank=4), "is (16, 32), expected (16, 64)"),
    "layers": (lambda p: change(p, num_hidden_layers=3), "lacks the tensor 'backbone.layers.2"),
    "missing": (lambda p: tensors(p, lambda t: t.pop("backbone.layers.0.mixer.D")), "lacks the tensor 'backbone.layers.0.mixer.D'"),
    "extra": (lambda p: tensors(p, lambda t: t.update(more=torch.zeros(2))), "unexpected tensor 'more'"),
    "misshapen": (lambda p: tensors(p, lambda t: t.update({"backbone.norm_f.weight": torch.zeros(3)})), "is (3,), expected (32,)"),
    "untied": (lambda p: tensors(p, lambda t: t.update({"lm_head.weight": torch.zeros(16, 32)})), "differs from the embedding"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "has no model.safetensors or pytorch_model.bin"),
    "cut": (lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-9]), "is damaged"),
    "pickle": (
        lambda p: ((p / "model.safetensors").unlink(), (p / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil()))),
        "damaged, or holds more than tensors",
    ),
    "torch pickle": (
        lambda p: ((p / "model.safetensors").unlink(), torch.save({"a": _Evil()}, p / "pytorch_model.bin")),
        "damaged, or holds more than tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoil, words", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_named_and_nothing_is_written_or_executed(spoil, words, theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoil(theirs)
    with pytest.raises(InputError) as error:
        import_model(ImportConfig(checkpoint=theirs, out=tmp_path / "ours"))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["theirs"]


def test_a_mamba2_checkpoint_of_state_spaces_is_refused(tmp_path):
    (tmp_path / "m").mkdir()
    for inner, words in (({"layer": "Mamba2"}, "ssm_cfg.layer is 'Mamba2'"), ({"bias": True}, "ssm_cfg.bias is True")):
        (tmp_path / "m" / "config.json").write_text(
            json.dumps({"d_model": 32, "n_layer": 2, "vocab_size": 12, "ssm_cfg": inner})
        )
        with pytest.raises(InputError, match=words):
            import_checkpoint(tmp_path / "m")


def test_the_commands_say_what_they_did(theirs, tmp_path):
    done = dna_mamba("import", theirs, "-o", tmp_path / "ours")
    assert (
        done.returncode == 0 and "from transformers" in done.stdout and "largest difference of a logit" in done.stdout
    )
    done = dna_mamba("export", tmp_path / "ours", "-o", tmp_path / "out", "--format", "mamba_ssm")
    assert done.returncode == 2 and "norm_eps 0.0001 cannot be written for mamba_ssm" in done.stderr
    done = dna_mamba("export", "human-4x64", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["largest_difference_of_logits"] < 1e-3
    again = dna_mamba("export", "human-4x64", "-o", tmp_path / "out")
    assert again.returncode == 2 and "exists; name a new directory" in again.stderr


OFFICIAL = Path(__file__).resolve().parents[1] / "data" / "official_mamba1"


@torch.no_grad()
def test_a_checkpoint_that_mamba_ssm_wrote_gives_the_logits_of_its_cuda_kernels(tmp_path):
    """Weights and logits of state-spaces/mamba 2.3.2 (Apache-2.0), made with its own package on an H100."""
    result = import_model(ImportConfig(checkpoint=OFFICIAL, out=tmp_path / "ours"))
    expected = np.load(OFFICIAL / "expected.npz")
    model, _ = from_pretrained(tmp_path / "ours")
    given = model.use_implementation("cpu")(torch.from_numpy(expected["tokens"]))[0].numpy()
    assert np.abs(given - expected["logits"]).max() < 1e-6 * np.abs(expected["logits"]).max() * 5
    assert result.largest_difference < 1e-5


@torch.no_grad()
def test_the_certificate_is_right_by_itself_and_sees_a_fault():
    tensors = torch.load(OFFICIAL / "pytorch_model.bin", map_location="cpu", weights_only=True)
    expected = np.load(OFFICIAL / "expected.npz")
    tokens_T = torch.from_numpy(expected["tokens"][0, :200])
    given = naive_logits(tensors, tokens_T, 1e-5).numpy()
    assert np.abs(given - expected["logits"][0, :200]).max() < 1e-6 * np.abs(expected["logits"]).max()
    name = "backbone.layers.1.mixer.dt_proj.bias"
    wrong = naive_logits({**tensors, name: tensors[name] + 0.1}, tokens_T, 1e-5).numpy()
    assert np.abs(wrong - given).max() > 1e-2


@pytest.mark.parametrize(
    "fault", [ValueError("Expected x.is_cuda() to be true"), ImportError("selective_scan_cuda"), AssertionError()]
)
def test_a_comparison_never_stops_an_import(fault, theirs, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise fault

    monkeypatch.setattr(transformers.MambaForCausalLM, "forward", broken)
    result = import_model(ImportConfig(checkpoint=theirs, out=tmp_path / "ours"))
    assert result.against_transformers is None and result.largest_difference < 1e-5
    assert "not compared with transformers" in result.remarks[0] and (tmp_path / "ours" / "config.json").exists()


def test_another_answer_of_transformers_is_a_remark(theirs, tmp_path, monkeypatch):
    usual = transformers.MambaForCausalLM.forward

    def louder(self, *arguments, **options):
        output = usual(self, *arguments, **options)
        output.logits = output.logits * 1.5
        return output

    monkeypatch.setattr(transformers.MambaForCausalLM, "forward", louder)
    result = import_model(ImportConfig(checkpoint=theirs, out=tmp_path / "ours"))
    assert result.against_transformers > 0.01 and result.largest_difference < 1e-5
    assert "own model of these files differs by" in result.remarks[0]


@pytest.mark.parametrize("key, value", [
    ("bidirectional", True), ("rcps", True), ("model_type", "caduceus"), ("quantization_config", {"bits": 8}), ("norm_first", False),
    ("d_inner", 8), ("architectures", ["Caduceus"]), ("ssm_cfg", {"d_stat": 8}), ("ssm_cfg", {"layer": "Mamba2"}),
], ids=str)  # fmt: skip
def test_a_key_that_may_change_the_model_is_never_passed_over(key, value, tmp_path):
    shutil.copytree(OFFICIAL, tmp_path / "c")
    change(tmp_path / "c", **{key: value})
    with pytest.raises(InputError, match=key):
        import_model(ImportConfig(checkpoint=tmp_path / "c", out=tmp_path / "ours"))
    assert not (tmp_path / "ours").exists()


def test_another_epsilon_is_obeyed_and_what_is_off_is_read(tmp_path):
    shutil.copytree(OFFICIAL, tmp_path / "c")
    change(tmp_path / "c", norm_epsilon=0.5, bidirectional=False, rcps=None, something=None)
    import_model(ImportConfig(checkpoint=tmp_path / "c", out=tmp_path / "ours"))
    assert from_pretrained(tmp_path / "ours")[0].config.norm_eps == 0.5


@pytest.mark.parametrize(
    "values", [{"fingerprints": {"a": 5}}, {"fingerprints": 3}, {"trained_on": {"a": [[1, "x"]]}}], ids=str
)
def test_a_side_file_that_says_nonsense_is_refused_before_anything_is_written(values, tmp_path):
    export_model(ExportConfig(model=Path("human-4x64"), format="transformers", out=tmp_path / "c"))
    (side,) = [path for path in (tmp_path / "c").glob("*.json") if path.name != "config.json"]
    side.write_text(json.dumps(json.loads(side.read_text()) | values))
    with pytest.raises(InputError, match=next(iter(values))):
        import_model(ImportConfig(checkpoint=tmp_path / "c", out=tmp_path / "ours"))
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "mamba.", "module.model."])
def test_names_in_a_wrapper_are_found(prefix, tmp_path):
    tensors = torch.load(OFFICIAL / "pytorch_model.bin", map_location="cpu", weights_only=True)
    (tmp_path / "c").mkdir()
    shutil.copy(OFFICIAL / "config.json", tmp_path / "c")
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "c" / "pytorch_model.bin")
    assert import_model(ImportConfig(checkpoint=tmp_path / "c", out=tmp_path / "ours")).largest_difference < 1e-5


def test_shards_are_read_and_one_that_lacks_is_named(tmp_path):
    theirs_of().save_pretrained(tmp_path / "c", max_shard_size="8KB")
    shards = sorted((tmp_path / "c").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert import_model(ImportConfig(checkpoint=tmp_path / "c", out=tmp_path / "ours")).largest_difference < 1e-5
    save_file({"x": torch.zeros(1)}, tmp_path / "c" / "model.safetensors")
    with pytest.raises(InputError, match="holds both model.safetensors and"):
        import_model(ImportConfig(checkpoint=tmp_path / "c", out=tmp_path / "other"))
    (tmp_path / "c" / "model.safetensors").unlink()
    shards[-1].unlink()
    with pytest.raises(InputError, match=f"lacks the shard '{shards[-1].name}'"):
        import_model(ImportConfig(checkpoint=tmp_path / "c", out=tmp_path / "other"))


def test_a_bare_model_of_transformers_and_a_head_stored_once_are_read(tmp_path):
    theirs_of().backbone.save_pretrained(tmp_path / "bare")
    assert import_model(ImportConfig(checkpoint=tmp_path / "bare", out=tmp_path / "a")).largest_difference < 1e-5
    shutil.copytree(OFFICIAL, tmp_path / "once")
    tensors = torch.load(OFFICIAL / "pytorch_model.bin", map_location="cpu", weights_only=True)
    del tensors["lm_head.weight"]
    torch.save(tensors, tmp_path / "once" / "pytorch_model.bin")
    result = import_model(ImportConfig(checkpoint=tmp_path / "once", out=tmp_path / "b"))
    assert result.largest_difference < 1e-5 and result.against_transformers < 1e-3


def test_integers_are_refused_before_they_are_made_floats(tmp_path):
    shutil.copytree(OFFICIAL, tmp_path / "c")
    tensors = torch.load(OFFICIAL / "pytorch_model.bin", map_location="cpu", weights_only=True)
    name = "backbone.layers.0.mixer.in_proj.weight"
    torch.save({**tensors, name: (tensors[name] * 10).to(torch.int8)}, tmp_path / "c" / "pytorch_model.bin")
    with pytest.raises(InputError, match="int8, expected floating-point"):
        import_model(ImportConfig(checkpoint=tmp_path / "c", out=tmp_path / "ours"))


@pytest.mark.parametrize("format", ["transformers", "mamba_ssm"])
def test_what_a_format_has_no_place_for_comes_back(format, tmp_path):
    policy = asdict(TokenPolicy(start_token=True, soft_mask_weight=0.1))
    ours = DnaMamba(BackboneConfig(pattern="M", width=16))
    save_pretrained(ours, tmp_path / "ours", policy, 256, {"chr1": [[5, 9]]})
    exported = export_model(ExportConfig(model=tmp_path / "ours", out=tmp_path / "theirs", format=format))
    assert any("start token" in remark for remark in exported.remarks)
    import_model(ImportConfig(checkpoint=tmp_path / "theirs", out=tmp_path / "again"))
    model, again = from_pretrained(tmp_path / "again")
    assert again == policy and model.trained_bases == 256 and model.trained_on == {"chr1": [[5, 9]]}


def test_rows_that_are_no_base_and_take_probability_are_said(tmp_path):
    theirs_of(vocab_size=5).save_pretrained(tmp_path / "v5")
    result = import_model(ImportConfig(checkpoint=tmp_path / "v5", out=tmp_path / "ours", token_ids=(0, 1, 2, 3, 4)))
    exported = export_model(ExportConfig(model=tmp_path / "ours", out=tmp_path / "back"))
    assert all(any("lies on the rows that are no base" in words for words in one.remarks) for one in (result, exported))
    shipped = export_model(ExportConfig(model=Path("human-4x64"), out=tmp_path / "shipped"))
    assert not shipped.remarks
