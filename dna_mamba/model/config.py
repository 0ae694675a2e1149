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
    from dna_mamba.model.mixers.mamba import MambaMixer
    from dna_mamba.model.mixers.mixer import Mixer

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


class Letter(NamedTuple):
    """A kind of layer, as patterns name it."""

    name: str
    config: Callable[["BackboneConfig"], MixerConfig]
    """Finds its sizes among those of the backbone."""


LETTERS: dict[str, Letter] = {
    "M": Letter("Mamba", lambda backbone: backbone.mamba),
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
    """One letter a layer, from input to output; M is Mamba (S6)."""
    mamba: MambaConfig = field(default_factory=MambaConfig)
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
        self.layers()  # a typo fails here, not an hour into the run

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
