"""A manifest's table as a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from vjepa_fast.errors import UserError


def write_parquet(file: IO[bytes], columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table; None is a missing value. Raises UserError for a name that is not UTF-8."""
    arrow, parquet = _library()
    try:
        values = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
        parquet.write_table(arrow.table(values), file)
    except UnicodeEncodeError as error:
        raise UserError(
            f"found a file name that is not UTF-8 ({error.object!r}), expected UTF-8 names in a "
            "Parquet manifest; rename the file, or write the manifest as .csv"
        ) from None


def read_parquet(
    path: Path, count: int
) -> tuple[list[str], Iterator[tuple[range, list[list[Any]]]]]:
    """The columns of a table, and its blocks of rows: their numbers, from 1 on, and for each column
    the values; a missing one is "", as in CSV.

    Raises:
        UserError: no Parquet file; raised here or while the blocks are read.
    """
    arrow, parquet = _library()

    def blocks() -> Iterator[tuple[range, list[list[Any]]]]:
        first = 1
        with _readable(path, arrow), parquet.ParquetFile(path) as file:
            for block in file.iter_batches(count):
                values = [column.to_pylist() for column in block.columns]
                values = [["" if v is None else v for v in column] for column in values]
                yield range(first, first + block.num_rows), values
                first += block.num_rows

    with _readable(path, arrow), parquet.ParquetFile(path) as file:
        return file.schema_arrow.names, blocks()


@contextmanager
def _readable(path: Path, arrow: ModuleType) -> Iterator[None]:
    try:
        yield
    except (arrow.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: found a file unreadable as Parquet ({error}), expected a manifest; index "
            "again"
        ) from None


def _library() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow  # a large import that CSV manifests do not need
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"found that pyarrow cannot be imported ({error}), expected pyarrow for a .parquet "
            "manifest; install it, or use a .csv manifest"
        ) from None
    return pyarrow, pyarrow.parquet
