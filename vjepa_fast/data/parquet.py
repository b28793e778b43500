"""A table as a Parquet file: a manifest in a ninth of the bytes that CSV takes."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from vjepa_fast.errors import UserError


def write_parquet(file: IO[bytes], columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table; None is a missing value. Raises UserError for text that is not UTF-8."""
    arrow, parquet = _library()
    try:
        values = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
        parquet.write_table(arrow.table(values), file)
    except UnicodeEncodeError as error:
        raise UserError(
            f"found a file name that is not UTF-8 ({error.object!r}), expected one for Parquet, "
            "rename it, or write the manifest as .csv"
        ) from None


def read_parquet(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns and the rows of a table; a missing value is "", as in CSV. Raises UserError
    for a file that is no such table.
    """
    arrow, parquet = _library()
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowInvalid, OSError) as error:
        raise UserError(
            f"found {path} unreadable as Parquet ({error}), expected a manifest, index again"
        ) from None
    rows = table.to_pylist()
    for row in rows:
        row.update({name: "" for name, value in row.items() if value is None})
    return table.column_names, rows


def _library() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow  # large, and CSV manifests do without
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"found that pyarrow cannot be imported ({error}), expected it for a .parquet "
            "manifest, install it, or use a .csv manifest"
        ) from None
    return pyarrow, pyarrow.parquet
