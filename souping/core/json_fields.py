"""Values inside JSON objects from logs and checkpoints. What is missing or odd reads as an empty value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import SupportsFloat

from souping.core.types import Json, JsonObject


def part(table: JsonObject, key: str) -> JsonObject:
    """The object at a key of a JSON object; empty if the value is missing or not an object."""
    value = table.get(key)
    return value if isinstance(value, Mapping) else {}


def list_at(table: JsonObject, key: str) -> list[Json]:
    """The list at a key of a JSON object; empty if the value is missing or not a list."""
    value = table.get(key)
    if isinstance(value, str) or not isinstance(value, Sequence):
        return []
    return list(value)


def entries(table: JsonObject, key: str) -> list[JsonObject]:
    """The list at a key of a JSON object, without the elements that are not objects."""
    return [entry for entry in list_at(table, key) if isinstance(entry, Mapping)]


def texts(table: JsonObject, key: str) -> list[str]:
    """The list at a key of a JSON object, each element as text."""
    return [str(value) for value in list_at(table, key)]


def finite_number(value: Json) -> float | None:
    """A finite float, else None: what is missing, NaN or infinite is shown as a dash and stored as null."""
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    if not math.isfinite(result):
        return None
    return result
