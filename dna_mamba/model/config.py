"""What a backbone is made of."""

import re
from dataclasses import dataclass, field

from dna_mamba.errors import InputError
from dna_mamba.model.mixers.mamba import MambaConfig

LETTERS = "M"
MAX_WIDTH, MAX_LAYERS = 65_536, 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Layers, width and vocabulary of a model."""

    vocabulary_size: int = 16
    """Rows of the embedding; the 12 token ids are padded to 16."""
    width: int = 128
    pattern: str = "M" * 12
    """One letter a layer, from input to output; M is Mamba (S6)."""
    mamba: MambaConfig = field(default_factory=MambaConfig)
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if not 1 <= self.width <= MAX_WIDTH or not 12 <= self.vocabulary_size <= MAX_WIDTH:
            raise InputError(
                f"width {self.width} must lie between 1 and {MAX_WIDTH:,}, "
                f"vocabulary_size {self.vocabulary_size} between 12 and {MAX_WIDTH:,}"
            )
        if len(self.pattern) > MAX_LAYERS:
            raise InputError(f"the pattern has {len(self.pattern):,} layers; take at most {MAX_LAYERS:,}")
        if not 0 < self.norm_eps < 1:
            raise InputError(f"norm_eps {self.norm_eps} must lie between 0 and 1")
        self.layers()  # a typo fails here, not an hour into the run

    def layers(self) -> list[MambaConfig]:
        """Give the config of every layer, in order."""
        unknown = sorted(set(self.pattern) - set(LETTERS))
        if unknown or not self.pattern:
            problem = f"has the unknown letter {unknown[0]!r}" if unknown else "is empty"
            raise InputError(f"pattern {self.pattern!r} {problem}; a layer is one of: M (Mamba), as in 'MMMM' for four")
        return [self.mamba for _ in self.pattern]

    @property
    def num_parameters(self) -> int:
        """Parameters of a language model of this configuration, counted without making it."""
        W, E, N, K = self.width, self.mamba.expansion * self.width, self.mamba.num_states, self.mamba.num_taps
        R = -(-W // 16)
        # norm, in_proj, conv1d, x_proj, dt_proj, A_log and D, out_proj
        layer = W + 2 * E * W + E * K + E + (R + 2 * N) * E + E * R + E + E * N + E + W * E
        return len(self.pattern) * layer + self.vocabulary_size * W + W

    @property
    def size(self) -> str:
        """Blocks x width, as in '12x128'."""
        return f"{len(self.pattern)}x{self.width}"


def parse_size(text: str) -> tuple[str, int]:
    """Read blocks x width, such as '12x128', into a pattern of Mamba layers and a width."""
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,4})", text.strip().lower())
    if match is None:
        raise InputError(f"model {text!r} is not blocks x width, such as 4x64, 12x128 or 16x256")
    return "M" * int(match[1]), int(match[2])
