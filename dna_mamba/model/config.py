"""What a backbone is made of."""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dna_mamba.alphabet import NUM_TOKENS, VOCABULARY_SIZE
from dna_mamba.errors import InputError

if TYPE_CHECKING:  # settings are read, and refused, without loading torch
    from dna_mamba.model.mixers.attention import Attention
    from dna_mamba.model.mixers.mamba import MambaMixer
    from dna_mamba.model.mixers.mamba2 import Mamba2Mixer
    from dna_mamba.model.mixers.mixer import Mixer
    from dna_mamba.model.mixers.mlp import MLP

MAX_WIDTH, MAX_LAYERS = 65_536, 4096
POOLINGS = ("last", "mean", "max")
"""How a classifier makes one vector of a sequence."""


class MixerConfig(Protocol):
    """Sizes of a layer: hashable, and able to make it."""

    def __hash__(self) -> int:
        """Equal sizes have one hash."""

    def build(self, width: int) -> "Mixer":
        """Make a layer for this model width."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MambaConfig:
    """Sizes of a Mamba layer; the defaults are the paper's."""

    num_states: int = 16
    expansion: int = 2
    """Inner width over model width."""
    num_taps: int = 4
    """Length of the causal convolution in bases."""
    delta_min: float = 1e-3
    delta_max: float = 0.1
    """The step sizes are initialised log-uniform between these two."""

    def __post_init__(self) -> None:
        if not (1 <= self.num_states <= 1024 and 1 <= self.expansion <= 64 and 2 <= self.num_taps <= 64):
            raise InputError("mamba: num_states must lie in 1 to 1024, expansion in 1 to 64 and num_taps in 2 to 64")
        if not 0 < self.delta_min <= self.delta_max < math.inf:
            raise InputError(f"mamba: delta_min {self.delta_min} and delta_max {self.delta_max} must be 0 < min <= max")

    def build(self, width: int) -> "MambaMixer":
        """Make a layer for this model width."""
        from dna_mamba.model.mixers.mamba import MambaMixer

        return MambaMixer(width, self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mamba2Config:
    """Sizes of a Mamba-2 layer; the defaults are those of state-spaces/mamba, but for half as many states."""

    num_states: int = 64
    expansion: int = 2
    """Inner width over model width."""
    head_width: int = 64
    """Channels that share a decay; narrower where this does not divide the inner width (their greatest common divisor)."""
    num_groups: int = 1
    """Sets of input and output weights; neighbouring heads share one, and the norm is taken over the channels of each."""
    num_taps: int = 4
    """Length of the causal convolution in bases."""
    delta_min: float = 1e-3
    delta_max: float = 0.1
    """The step sizes are initialised log-uniform between these two."""
    decay_min: float = 1.0
    decay_max: float = 16.0
    """The decays -A are initialised uniformly between these two."""
    delta_limit_low: float = 0.0
    delta_limit_high: float = math.inf
    """Step sizes are held between these two in every pass."""
    gate_first: bool = True
    """Gate before the norm; false gates what is normalised."""
    skip_a_channel: bool = False
    """A skip weight a channel, not a head."""

    def __post_init__(self) -> None:
        if not (1 <= self.num_states <= 1024 and 1 <= self.expansion <= 64 and 2 <= self.num_taps <= 64):
            raise InputError("mamba2: num_states must lie in 1 to 1024, expansion in 1 to 64 and num_taps in 2 to 64")
        if not (1 <= self.head_width <= 1024 and 1 <= self.num_groups <= 1024):
            raise InputError("mamba2: head_width and num_groups must lie in 1 to 1024")
        for low, high, name in (
            (self.delta_min, self.delta_max, "delta"),
            (self.decay_min, self.decay_max, "decay"),
        ):
            if not 0 < low <= high < math.inf:
                raise InputError(f"mamba2: {name}_min {low} and {name}_max {high} must be 0 < min <= max")
        if not 0 <= self.delta_limit_low <= self.delta_limit_high or self.delta_limit_high == 0:
            raise InputError(
                f"mamba2: delta_limit_low {self.delta_limit_low} and delta_limit_high {self.delta_limit_high} must be "
                f"0 <= low <= high, and high above 0"
            )

    @property
    def delta_limit(self) -> tuple[float, float]:
        """Both limits of the step sizes."""
        return self.delta_limit_low, self.delta_limit_high

    def head_width_of(self, width: int) -> int:
        """Give the channels of a head at a model width."""
        return math.gcd(self.head_width, self.expansion * width)

    def check(self, width: int) -> None:
        """Raise an InputError if these sizes do not go with this model width."""
        num_heads = self.expansion * width // self.head_width_of(width)
        if num_heads % self.num_groups:
            raise InputError(
                f"mamba2: num_groups {self.num_groups} must divide the {num_heads} heads of width {width}; take fewer groups "
                f"or narrower heads (head_width)"
            )

    def build(self, width: int) -> "Mamba2Mixer":
        """Make a layer for this model width."""
        self.check(width)
        from dna_mamba.model.mixers.mamba2 import Mamba2Mixer

        return Mamba2Mixer(width, self)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig:
    """Sizes of an attention layer."""

    num_heads: int | None = None
    """Of queries; by default as many as fill the model width."""
    head_width: int | None = None
    """Channels of a head; by default 32 below model width 256 and 64 from there on, or what divides the width."""
    num_kv_heads: int | None = None
    """Of keys and values, which neighbouring heads of queries share; by default one for each of them."""
    rotary: float = 0.0
    """Part of a head that is rotated by its position; 0 knows no positions but by what other layers say of them."""
    rotary_base: float = 10_000.0
    window: int | None = None
    """So many bases are looked at, the present one included; by default all."""
    num_taps: int = 0
    """Length of a causal convolution over queries, keys and values, without activation; 0 has none."""

    def __post_init__(self) -> None:
        sizes = [self.num_heads, self.head_width, self.num_kv_heads, self.window]
        if any(size is not None and size < 1 for size in sizes):
            raise InputError("attention: num_heads, head_width, num_kv_heads and window must be at least 1")
        if not 0 <= self.rotary <= 1 or not 1 < self.rotary_base < math.inf:
            raise InputError(
                f"attention: rotary {self.rotary} must lie in 0 to 1 and rotary_base {self.rotary_base} above 1"
            )
        if not self.rotary and self.rotary_base != 10_000.0:
            raise InputError(f"attention: rotary_base {self.rotary_base} does nothing without rotary; set that too")
        if self.num_taps != 0 and not 2 <= self.num_taps <= 64:
            raise InputError(f"attention: num_taps {self.num_taps} must be 0 (no convolution) or lie in 2 to 64")

    def head_width_of(self, width: int) -> int:
        """Give the channels of a head at a model width."""
        if self.head_width is not None:
            return self.head_width
        if self.num_heads is not None and width % self.num_heads == 0:
            return width // self.num_heads
        return math.gcd(width, 32 if width < 256 else 64)

    def num_heads_of(self, width: int) -> int:
        """Give the heads of queries at a model width."""
        return self.num_heads or max(1, width // self.head_width_of(width))

    def rotary_width(self, width: int) -> int:
        """Give the channels of a head that are rotated, an even number."""
        return 2 * int(self.rotary * self.head_width_of(width) / 2)

    def check(self, width: int) -> None:
        """Raise an InputError if these sizes do not go with this model width."""
        num_heads = self.num_heads_of(width)
        if num_heads % (self.num_kv_heads or 1):
            raise InputError(
                f"attention: num_kv_heads {self.num_kv_heads} must divide the {num_heads} heads of width {width}"
            )
        if self.rotary and not self.rotary_width(width):
            raise InputError(
                f"attention: rotary {self.rotary} of a head of {self.head_width_of(width)} channels is less than two of them"
            )

    def build(self, width: int) -> "Attention":
        """Make a layer for this model width."""
        self.check(width)
        from dna_mamba.model.mixers.attention import Attention

        return Attention(width, self)


ACTIVATIONS = ("gelu", "relu2", "swiglu")
GATED = ("swiglu",)
"""Of these, those with a gate, and so with two projections up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPConfig:
    """Sizes of a channel MLP."""

    activation: str = "gelu"
    """gelu (exact), relu2 or swiglu."""
    expansion: float = 4.0
    """Hidden width over model width; 8/3 gives a gated MLP the weights of a plain one at 4."""
    round_to: int = 1
    """The hidden width is rounded up to a multiple of this."""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise InputError(f"mlp: activation {self.activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        if not 0 < self.expansion <= 64 or not 1 <= self.round_to <= 65_536:
            raise InputError(
                f"mlp: expansion {self.expansion} must lie in 0 to 64 and round_to {self.round_to} in 1 to 65,536"
            )

    def hidden_width(self, width: int) -> int:
        """Give the hidden width at a model width, at least 1."""
        whole = max(1, math.floor(self.expansion * width + 1e-9))  # 8/3 of 96 is 256, not 255
        return -(-whole // self.round_to) * self.round_to

    def build(self, width: int) -> "MLP":
        """Make a layer for this model width."""
        from dna_mamba.model.mixers.mlp import MLP

        return MLP(width, self)


class Letter(NamedTuple):
    """A kind of layer, as patterns name it."""

    name: str
    config: Callable[["BackboneConfig"], MixerConfig]
    """Finds its sizes among those of the backbone."""


LETTERS: dict[str, Letter] = {
    "M": Letter("Mamba", lambda backbone: backbone.mamba),
    "S": Letter("Mamba-2", lambda backbone: backbone.mamba2),
    "*": Letter("attention", lambda backbone: backbone.attention),
    "-": Letter("MLP", lambda backbone: backbone.mlp),
}
"""A new layer is its file in mixers/, its config and section here, and a line in this table."""


@lru_cache(maxsize=256)
def layer_of(config: MixerConfig, width: int) -> "Mixer":
    """Make a layer without memory for its numbers (on torch's meta device), to ask what it needs and can."""
    import torch

    with torch.device("meta"):
        return config.build(width)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Layers, width and vocabulary of a model."""

    vocabulary_size: int = VOCABULARY_SIZE
    """Rows of the embedding; the 12 token ids are padded to 16."""
    width: int = 128
    pattern: str = "M" * 12
    """One letter a layer, from input to output: M is Mamba (S6), S Mamba-2 (SSD), * attention and - an MLP."""
    mamba: MambaConfig = field(default_factory=MambaConfig)
    mamba2: Mamba2Config = field(default_factory=Mamba2Config)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    mlp: MLPConfig = field(default_factory=MLPConfig)
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if not 1 <= self.width <= MAX_WIDTH or not NUM_TOKENS <= self.vocabulary_size <= MAX_WIDTH:
            raise InputError(
                f"width {self.width} must lie between 1 and {MAX_WIDTH:,}, "
                f"vocabulary_size {self.vocabulary_size} between {NUM_TOKENS} and {MAX_WIDTH:,}"
            )
        if len(self.pattern) > MAX_LAYERS:
            raise InputError(f"the pattern has {len(self.pattern):,} layers; take at most {MAX_LAYERS:,}")
        if not 0 < self.norm_eps < 1:
            raise InputError(f"norm_eps {self.norm_eps} must lie between 0 and 1")
        for layer in self.layers():  # a typo fails here, not an hour into the run
            if hasattr(layer, "check"):  # sizes that must go with the width
                layer.check(self.width)

    def layers(self) -> list[MixerConfig]:
        """Give the config of every layer, in order."""
        unknown = sorted(set(self.pattern) - set(LETTERS))
        if unknown or not self.pattern:
            problem = f"has the unknown letter {unknown[0]!r}" if unknown else "is empty"
            known = ", ".join(f"{letter} ({LETTERS[letter].name})" for letter in LETTERS)
            raise InputError(f"pattern {self.pattern!r} {problem}; a layer is one of: {known}, as in 'MMMM' for four")
        return [LETTERS[letter].config(self) for letter in self.pattern]

    def idle_sections(self) -> list[str]:
        """Name the sections of layers that the pattern has none of."""
        used = [id(layer) for layer in self.layers()]
        sections = [one.name for one in fields(self) if hasattr(getattr(self, one.name), "build")]
        return [name for name in sections if id(getattr(self, name)) not in used]

    def as_dict(self) -> dict[str, object]:
        """Give plain values, without the sections of layers that are not there: a model stays what it is as letters come."""
        values = asdict(self)
        for name in self.idle_sections():
            del values[name]
        return values

    def mixers(self) -> list["Mixer"]:
        """Give every layer, in order, without memory for its numbers; equal ones are one."""
        return [layer_of(layer, self.width) for layer in self.layers()]

    @property
    def causal(self) -> bool:
        """Whether no vector depends on a later base."""
        return all(mixer.causal for mixer in self.mixers())

    @property
    def num_parameters(self) -> int:
        """Parameters of a language model of this configuration, counted without making it."""
        of_layer: dict[int, int] = {}
        total = self.vocabulary_size * self.width + self.width  # embedding and head are one; the last norm
        for mixer in self.mixers():
            if id(mixer) not in of_layer:
                of_layer[id(mixer)] = sum(parameter.numel() for parameter in mixer.parameters())
            total += of_layer[id(mixer)] + self.width
        return total

    @property
    def size(self) -> str:
        """Blocks x width, as in '12x128'; layers of other kinds than Mamba are spelt out, as in 'M*Mx128'."""
        return f"{self.pattern if set(self.pattern) - {'M'} else len(self.pattern)}x{self.width}"

    @property
    def title(self) -> str:
        """Name a model of it in tables and pictures."""
        kinds = dict.fromkeys(LETTERS[letter].name for letter in self.pattern)
        return f"{' and '.join(kinds)} {self.size}"


def parse_size(text: str) -> tuple[str, int]:
    """Read blocks x width, such as '12x128', into a pattern of Mamba layers and a width."""
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,4})", text.strip().lower())
    if match is None:
        raise InputError(f"model {text!r} is not blocks x width, such as 4x64, 12x128 or 16x256")
    return "M" * int(match[1]), int(match[2])
