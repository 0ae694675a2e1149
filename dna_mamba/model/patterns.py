"""Which layers stand where: patterns as people write them, and the architectures that the founding papers compare."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from dna_mamba.errors import InputError
from dna_mamba.model.config import LETTERS, MAX_LAYERS, AttentionConfig, BackboneConfig, Mamba2Config, MLPConfig

STYLES = ("ours", "megatron")
ALIASES = {"A": "*"}
"""A shell may put names of files in place of an unquoted star."""
MEGATRON = {"M": "S", "*": "*", "-": "-"}
"""Letters of Megatron-LM, whose M is Mamba-2."""


def parse_pattern(text: str, style: str = "ours") -> str:
    """Read a pattern: one letter a layer, parts in brackets, and repetition by x and a number, as in '(SS-)x4*' or 'Mx12'.

    Args:
        text: The pattern; blanks are passed over, A stands for an attention layer as * does.
        style: 'ours', or 'megatron', where M is Mamba-2 (our S).

    Returns:
        One of our letters a layer.

    Raises:
        InputError: A letter is unknown, a bracket stands alone, or there are too many layers.
    """
    if style not in STYLES:
        raise InputError(f"--pattern-style {style!r} is unknown; choose {' or '.join(STYLES)}")
    known = MEGATRON if style == "megatron" else {**{letter: letter for letter in LETTERS}, **ALIASES}
    parts: list[list[str]] = [[]]
    shown = text if len(text) <= 80 else f"{text[:80]}..."
    for part in re.findall(r"x\d+|\S", text):
        if part == "(":
            parts.append([])
        elif part == ")" and len(parts) > 1:
            inner = "".join(parts.pop())
            parts[-1].append(inner)
        elif re.fullmatch(r"x\d{1,9}", part) and parts[-1]:
            parts[-1][-1] = _repeated(parts[-1][-1], int(part[1:]), shown)
        elif part in known:
            parts[-1].append(known[part])
        else:
            names = ", ".join(
                f"{letter} ({LETTERS[ours].name})" for letter, ours in known.items() if letter not in ALIASES
            )
            raise InputError(
                f"pattern {shown!r}: {part!r} stands for no layer; a layer is one of: {names}, parts may stand in brackets "
                f"and be repeated, as in '(SS-)x4*'"
            )
    if len(parts) > 1:
        raise InputError(f"pattern {shown!r}: a bracket is opened and not closed")
    return _repeated("".join(parts[0]), 1, shown)


def _repeated(letters: str, times: int, shown: str) -> str:
    if len(letters) * times > MAX_LAYERS:
        raise InputError(f"pattern {shown!r} has {len(letters) * times:,} layers; take at most {MAX_LAYERS:,}")
    if not letters or not times:
        raise InputError(f"pattern {shown!r} is empty, or has a part that is; name a letter for every layer")
    return letters * times


def counts_of(pattern: str) -> str:
    """Say how many layers of each kind there are, as in '6 Mamba-2, 5 MLP, 1 attention'."""
    return ", ".join(f"{number} {LETTERS[letter].name}" for letter, number in Counter(pattern).most_common())


def allocate(num_layers: int, attention: float, mlp: float, letter: str = "S") -> str:
    """Spread attention and MLP layers evenly among others; attention is never first or last, MLPs lean to the right.

    Args:
        num_layers: Of all kinds.
        attention: Share of attention layers; their number is rounded, half to even.
        mlp: Share of MLPs.
        letter: Of the others.

    Source: the allocation of Waleffe et al. 2024 (arXiv 2406.07887), section 3; with 0.08 and 0.5 it gives their 56 layers.
    """
    layers = [letter] * num_layers
    num_attention = round(num_layers * attention)
    _spread(layers, range(num_layers), num_attention, "*", (num_layers - num_attention) / (num_attention + 1))
    rest = [place for place in range(num_layers) if layers[place] == letter]
    num_mlp = round(num_layers * mlp)
    if num_mlp:
        _spread(layers, rest, num_mlp, "-", (len(rest) - num_mlp) / num_mlp)
    return "".join(layers)


def _spread(layers: list[str], places: "range | list[int]", number: int, letter: str, section: float) -> None:
    left = section
    for place in places:
        if left < 0.5 and number:
            layers[place] = letter
            left += section
            number -= 1
        else:
            left -= 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A kind of model at any number of layers."""

    pattern: Callable[[int], str]
    """Gives the letters of so many layers."""
    sections: dict[str, object] = field(default_factory=dict)
    """Sizes that differ from their defaults."""

    def model(self, num_layers: int, width: int) -> BackboneConfig:
        """Give the model of so many layers and this width."""
        return BackboneConfig(pattern=self.pattern(num_layers), width=width, **self.sections)  # type: ignore[arg-type]


def _pairs(num_layers: int) -> str:
    if num_layers % 2:
        raise InputError(
            f"a Transformer has an attention layer and an MLP a block, and {num_layers} layers are an odd number; take "
            f"{num_layers + 1}"
        )
    return "*-" * (num_layers // 2)


ARCHITECTURES: dict[str, Architecture] = {
    # Gu and Dao 2023
    "mamba": Architecture(pattern=lambda n: "M" * n),
    # Dao and Gu 2024
    "mamba2": Architecture(pattern=lambda n: "S" * n),
    # the recipe of Llama that Gu and Dao 2023 compare with: rotary positions, gated MLPs of 8/3, no biases
    "transformer++": Architecture(
        pattern=_pairs,
        sections={
            "attention": AttentionConfig(rotary=1.0),
            "mlp": MLPConfig(activation="swiglu", expansion=8 / 3, round_to=128),
        },
    ),
    # Waleffe et al. 2024: 43 % Mamba-2, 7 % attention without positions, half MLPs
    "mamba2-hybrid": Architecture(
        pattern=lambda n: allocate(n, 0.08, 0.5),
        sections={"mamba2": Mamba2Config(), "attention": AttentionConfig(), "mlp": MLPConfig()},
    ),
    # S6 layers with one attention layer in eight
    "mamba-hybrid": Architecture(pattern=lambda n: allocate(n, 1 / 8, 0.0, "M")),
}
"""By the name of the preset that trains it."""
