"""Rows of questions, from JSON Lines, CSV and parquet files and from data sets.

Equal rows become equal items, whatever file they are in. A CSV file has only texts, so a number and its text are one
answer, and messages may be written as JSON. In a parquet file, every object of a column has the keys of all of them, so
a key with null is no key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from souping.core.fields import pick, text_of
from souping.core.parsing import read_json
from souping.core.tables import table_rows
from souping.core.text import check_pointer
from souping.core.types import Json, JsonObject, UserError

OBJECTS = {"prompt": "role", "messages": "role", "tools": ""}
"""{key that may hold a list of objects: a key that each object has}"""
PLAIN = (str, bool, int, float)
PlacedRow = tuple[str, JsonObject]
"""(place for messages, row)"""


def file_rows(path: Path, columns: Mapping[str, str]) -> Iterator[PlacedRow]:
    """Rows of a file with the keys of items; `columns` as for `keyed_rows`.

    Rows of a JSON Lines file without `columns` stay exactly as they are written, because the store finds answers by
    the content of their items.
    """
    if path.suffix.lower() in (".csv", ".parquet"):
        return keyed_rows(numbered_rows(path, table_rows(path)), columns)
    lines = line_rows(path)
    return keyed_rows(lines, columns) if columns else lines


def numbered_rows(name: object, rows: Iterable[JsonObject]) -> Iterator[PlacedRow]:
    """Rows of a table that is called `name`, with their places."""
    for number, row in enumerate(rows, start=1):
        yield f"{name}: row {number}", row


def line_rows(path: Path) -> Iterator[PlacedRow]:
    """The objects in the lines of a JSON Lines file (UserError: a line is not a JSON object)."""
    text = text_of(path).removeprefix("\ufeff")  # and no splitlines: JSON may hold U+2028
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, _object(line, where)


def _object(line: str, where: str) -> JsonObject:
    """The JSON object on a line; `where` is its file and line."""
    try:
        row = read_json(line)
    except ValueError as error:
        # A Git LFS pointer has a message of its own.
        check_pointer(where, line)
        hint = "write one JSON object per line, with id, category, prompt and answer"
        raise UserError(f"{where}: not a JSON object: {error}; {hint}") from error
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: an item is a JSON object on a line of its own, not {type(row).__name__}"
        )
    return row


def keyed_rows(rows: Iterable[PlacedRow], columns: Mapping[str, str]) -> Iterator[PlacedRow]:
    """Rows of a table with the keys and values of items; `columns` are {key: column}, and no other column is read.

    Without `columns`, every column is read under its own name.

    Raises:
        UserError: no row has one of the columns, or a value is not JSON.
    """
    table = list(rows)
    names = dict.fromkeys(name for _, row in table for name in row)
    if table:
        for key, column in columns.items():
            pick(column, names, f"benchmark.columns.{key}")
    for where, row in table:
        if columns:
            row = {key: row.get(column) for key, column in columns.items()}
        values = dict[str, Any]()
        for key, value in row.items():
            values[key] = _value(key, _without_nulls(value, f"{where}: `{key}`"))
        # An empty cell of a CSV file is a null of the others.
        yield where, {key: value for key, value in values.items() if value not in (None, "")}


def _value(key: str, value: Json) -> Json:
    """The value of an item's key. An answer that is a number becomes its text.

    For the keys of `OBJECTS`, a text that is a JSON list of objects becomes this list.
    """
    if key == "answer" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if key not in OBJECTS or not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        objects = read_json(value)
    except ValueError:
        return value
    for entry in objects:
        if not isinstance(entry, dict) or (OBJECTS[key] and OBJECTS[key] not in entry):
            return value
    return _without_nulls(objects, key)


def _without_nulls(value: Any, where: str) -> Json:
    """A value without the keys of objects that are null; NaN is null (UserError: it is not JSON, such as a date)."""
    if isinstance(value, Mapping):
        kept = dict[str, Json]()
        for key, inner in value.items():
            plain = _without_nulls(inner, where)
            if plain is not None:
                kept[str(key)] = plain
        return kept
    if isinstance(value, list):
        return [_without_nulls(inner, where) for inner in value]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, PLAIN):
        raise UserError(
            f"{where} is of the type {type(value).__name__}: write it as a text, or leave the column out by "
            "benchmark.columns"
        )
    return value
