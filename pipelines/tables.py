"""Tables of rows as text or Parquet: the ending of the file says which, and the schema is one whatever the rows are."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from dna_mamba.data.unpack import printable_text
from dna_mamba.files import write_rows_as_text

FORMATS = (".tsv", ".parquet")
ROWS_AT_ONCE = 1 << 16


def write_rows(path: Path, kinds: Mapping[str, type], rows: Iterable[Sequence[object]]) -> None:
    """Write rows in memory for a piece of them.

    Args:
        path: Ends in .parquet, or is written as text with tabs.
        kinds: str, int or float by name of the column, in their order.
        rows: Values of all columns; none where there is no value.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, kinds, rows)
        return
    cells = (
        ["." if cell is None else f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row] for row in rows
    )
    write_rows_as_text(path, kinds, cells)


def _write_parquet(path: Path, kinds: Mapping[str, type], rows: Iterable[Sequence[object]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, arrow[kind]) for name, kind in kinds.items()])
    rows = iter(rows)
    # opened here: Arrow takes names in UTF-8 alone
    with open(path, "wb") as raw, parquet.ParquetWriter(raw, schema) as file:
        while some := list(islice(rows, ROWS_AT_ONCE)):
            arrays = [
                pa.array([printable_text(cell) if isinstance(cell, str) else cell for cell in column], field.type)
                for column, field in zip(zip(*some, strict=True), schema, strict=True)
            ]
            file.write_table(pa.Table.from_arrays(arrays, schema=schema))
