"""Rows of CSV and parquet files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from souping.core.files import regular, unpacked_limit
from souping.core.text import check_pointer, first_line, human, shown
from souping.core.types import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

BATCH_ROWS = 1024
ROW_BYTES = 64
"""Bytes of an unpacked row at least."""


def table_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, or of any other as CSV, as {column: value}. Line ends inside values are kept.

    Raises:
        UserError: it is a pipe, a pointer of Git LFS, damaged or cut off, or pyarrow is not installed.
    """
    with regular(path).open("rb") as file:
        check_pointer(path, file.read(64))
    try:
        if path.suffix.lower() == ".parquet":
            yield from _parquet_rows(path)
        else:
            with path.open(newline="", encoding="utf-8-sig") as lines:
                yield from _csv_rows(path, lines)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not a table: {first_line(error)}") from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file as {column: value}, read in batches.

    Raises:
        UserError: pyarrow is not installed, or the file is damaged.
        ValueError: two columns have one name, or the file unpacks to too much.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: parquet is read by pyarrow: pip install pyarrow") from None
    limit = unpacked_limit(path)
    try:
        with ParquetFile(path) as file:
            check_column_names(file.schema_arrow.names)
            # Equal rows take no space in a file, so that its size says nothing about their number.
            if file.metadata.num_rows * ROW_BYTES > limit:
                raise _too_large(path, f"{file.metadata.num_rows:,} rows")
            # Nor do equal texts: each row of a batch may hold the largest one, and the batch must fit the limit.
            batch_rows = limit // _largest_column(file.metadata)
            for batch in file.iter_batches(max(1, min(BATCH_ROWS, batch_rows))):
                rows = batch.to_pylist()
                # In memory there are both the batch and its texts as Python's.
                limit -= batch.nbytes + sum(map(_characters, rows))
                if limit < 0:
                    raise _too_large(path, "texts")
                yield from rows
    except (ArrowException, ArithmeticError, LookupError, OSError) as error:
        raise UserError(f"{path}: not a table: {first_line(error)}") from error


def _largest_column(metadata: FileMetaData) -> int:
    """Bytes of the largest piece of a column, unpacked: no value in the parquet file is larger."""
    largest = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in range(group.num_columns):
            largest = max(largest, group.column(column).total_uncompressed_size)
    return largest


def _characters(row: Mapping[str, Any]) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str))


def _too_large(path: Path, what: str) -> ValueError:
    """The error for a file whose content no memory holds."""
    return ValueError(
        f"{human(path.stat().st_size)} unpack to too many {what}: leave columns out, or write JSONL"
    )


def check_column_names(names: Iterable[str]) -> None:
    """Refuse two columns of one name (ValueError); columns without a name may repeat."""
    unique_columns([(name, "") for name in names if name])


def unique_columns(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A row of these columns and values (ValueError if two columns have one name)."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two columns are called {shown(repeated)}: remove or rename one")
    return row


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Rows of a CSV file with a header as {column: text}, empty lines left out."""
    csv.field_size_limit(2**31 - 1)  # Python's own limit is shorter than an answer may be
    rows = filter(None, csv.reader(lines, strict=True))
    names = next(rows, [])
    check_column_names(names)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise UserError(
                f"{path}: row {number} has {len(row)} of {len(names)} columns: is the file whole?"
            )
        yield dict(zip(names, row, strict=True))
