"""Sequences as people hold them: strings, Biopython's Seq and SeqRecord, lists, arrays and columns of them."""

from collections.abc import ItemsView, Iterable, Iterator, Mapping, Set
from typing import Any

from dna_mamba.errors import InputError

Sequences = str | Iterable[object]


def text_of(sequence: object, name: str = "a sequence") -> str | None:
    """Give the letters of one sequence; none if it is no sequence but may hold some.

    A string, or what holds one under `seq`, as Biopython's SeqRecord and pyfaidx's Sequence do; or Biopython's Seq.

    Raises:
        InputError: It is neither a sequence nor can it hold some.
    """
    if isinstance(sequence, str):
        return str(sequence)
    kind = type(sequence)
    if kind.__module__.startswith("Bio.Seq") and hasattr(sequence, "reverse_complement"):
        inner = getattr(sequence, "seq", sequence)
        try:
            if inner is None:
                raise ValueError
            return str(inner)
        except ValueError as error:  # Biopython's UndefinedSequenceError is one
            raise InputError(
                f"{name} is a {kind.__name__} without letters: only its length is known, if that"
            ) from error
    if kind.__module__.startswith("pyfaidx"):
        if isinstance(getattr(sequence, "seq", None), str):
            return str(getattr(sequence, "seq"))  # noqa: B009 - its kind is known by its module alone
        if kind.__name__ in ("FastaRecord", "MutableFastaRecord"):  # it iterates over the lines of its file
            return str(sequence)
    if isinstance(sequence, bytes | bytearray | memoryview):
        raise InputError(f"{name} is {kind.__name__}, expected letters of DNA as a string: decode it first")
    return None


def texts_of(sequences: object, what: str = "sequences") -> tuple[list[str], bool]:
    """Give the letters of one sequence or of several, and whether it was one.

    Args:
        sequences: A sequence (see `text_of`), or a list, tuple, array, column or iterator of them. A table of one column is
            that column.
        what: Name in messages.

    Raises:
        InputError: One is no sequence (its place is named), or it cannot be told how many sequences there are: a table or a
            dictionary, one sequence cut into letters, or numbers.
    """
    one = text_of(sequences, what)
    if one is not None:
        return [one], True
    rows = _rows_of(sequences, what)
    texts = []
    for number, row in enumerate(rows):
        text = text_of(row, f"{what}[{number}]")
        if text is None:
            raise InputError(
                f"{what}[{number}] is {type(row).__name__}, expected a sequence as a string; take missing ones out"
            )
        texts.append(text)
    if not texts and is_used_up_by_reading(sequences):
        raise InputError(SPENT.format(X=what))
    if len(texts) > 1 and all(len(text) == 1 for text in texts):
        raise InputError(
            f"{what} are {len(texts):,} single letters: is it one sequence that was cut into its letters? Join them with "
            f"''.join(...); to take each for itself, give them one at a time"
        )
    return texts, False


def _rows_of(sequences: Any, what: str) -> list[object]:
    """Give what stands in a list, an array, a column, or a table of one column."""
    if isinstance(sequences, Mapping | ItemsView):
        raise InputError(
            f"{what} are a {type(sequences).__name__}: give its values, as in list(x.values()), and keep its keys"
        )
    if isinstance(sequences, Set):
        raise InputError(f"{what} are a {type(sequences).__name__}, which has no order; give a list")
    if hasattr(sequences, "columns"):  # a table, of pandas, polars or Arrow
        names = list(getattr(sequences, "column_names", sequences.columns))
        if len(names) != 1:
            raise InputError(
                f"{what} have the columns {', '.join(map(str, names))[:100]}; give the one that holds sequences"
            )
        sequences = sequences[names[0]]
    if type(sequences).__module__.startswith("pyarrow"):  # whose scalars are no strings
        sequences = sequences.to_pylist()
    shape = getattr(sequences, "shape", None)
    if shape == ():
        raise InputError(f"{what} are an array without a dimension; give its item, or a list")
    if not isinstance(sequences, Iterable):
        raise InputError(f"{what} are {type(sequences).__name__}, expected letters of DNA, or a list of them")
    if shape is not None and len(shape) == 2 and shape[1] == 1:
        sequences = [row[0] for row in sequences]
    return [row[0] if isinstance(row, list | tuple) and len(row) == 1 else row for row in sequences]


SPENT = "{X} gave nothing: was it read before? A generator or map gives its items once; give a list"


def is_used_up_by_reading(sequences: object) -> bool:
    """Say whether an object gives its items only once, as generators, map and open files do."""
    return isinstance(sequences, Iterator)
