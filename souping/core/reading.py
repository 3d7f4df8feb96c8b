"""Lenient reading of JSON as dataclasses, and writing: a value that does not fit becomes the default.

An annotation says what a field takes: `str`, `bool`, `int | None`, `float | None`, a dataclass, `tuple[X, ...]`,
`Mapping[str, X]`, each of them `| None`, or `Any` for JSON of any form. `fields.fits` says which value fits. One that
does not becomes the default of its field. A field without a default gets None if the annotation allows it, otherwise an
empty value. Reading never raises. A class may refuse values with a ValueError, but not its empty ones: what it refuses
does not fit.

`to_json` leaves out a field whose default is None or an empty tuple while it has that default, and writes all others.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType, UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np

from souping.core.fields import Hint, fits, hints_of
from souping.core.parsing import MAX_DEPTH
from souping.core.types import Json, T

NULL = MappingProxyType({"null": True})
"""Metadata of a field that is written even while it has an empty default."""
REST = MappingProxyType({"rest": True})
"""Metadata of the field that keeps keys which the class does not know."""
LARGEST_FLOAT = sys.float_info.max


def rest() -> Any:
    """The field that keeps keys which the class does not know."""
    return dataclasses.field(default_factory=dict, metadata=REST)


def read(kind: type[T], value: Json) -> T:
    """A dataclass from a mapping, in which `to_json` may still have to make values plain. Else an empty one."""
    result: T = _fit(kind, to_json(value))
    return result


def to_json(value: Any, levels: int = MAX_DEPTH) -> Json:
    """`value` as JSON: numpy values become plain ones, and a number that is not finite as a float becomes null.

    Lists and objects nested deeper than `levels` become null too.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist(), levels)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = _table(value)

    if isinstance(value, Mapping | list | tuple) and levels < 0:
        return None
    if isinstance(value, Mapping):
        return {str(key): to_json(inner, levels - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner, levels - 1) for inner in value]
    if isinstance(value, int | float):
        # False for NaN.
        finite = -LARGEST_FLOAT <= value <= LARGEST_FLOAT
        return value if finite else None
    return str(value)


def _table(value: Any) -> dict[str, Any]:
    """{key: value} of a dataclass, with the unknown keys; an empty default only if the field's metadata is NULL."""
    table = dict[str, Any]()
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if "rest" in field.metadata:
            # A known key wins, wherever this field stands.
            table = {**inner, **table}
        elif "null" in field.metadata or not _is_left_out(field.default, inner):
            table[field.name] = inner
    return table


def _is_left_out(default: Any, value: Json) -> bool:
    """Whether a field has a default of None or () and that value."""
    return (default is None and value is None) or (default == () and value == ())


# ---------------------------------------------------------------- reading


def _fit(hint: Hint, value: Json) -> Any:
    """`value` if it fits the annotation, otherwise an empty value."""
    fitting = _match(hint, value)
    if fitting is None:
        return _empty(hint)
    return fitting


def _match(hint: Hint, value: Json) -> Any:
    """`value` if it fits the annotation, with objects as dataclasses and lists as tuples; None if it does not."""
    origin = get_origin(hint)
    arguments = get_args(hint)
    if origin in (Union, UnionType):
        # X | None
        return _match(arguments[0], value)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _object(hint, value)
    if origin is tuple and isinstance(value, list):
        return _elements(arguments[0], value)
    if origin is Mapping and isinstance(value, dict):
        return {key: _fit(arguments[1], inner) for key, inner in value.items()}
    # JSON writes a count as 4.0 too. A float field keeps an int, to be written as it was read.
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if fits(value, hint) else None


def _elements(hint: Hint, values: Sequence[Json]) -> tuple[Any, ...]:
    """The elements of a list that fit the annotation.

    Objects that do not fit are dropped. Numbers and texts that do not fit become empty and keep their place, so that
    two lists still belong together.
    """
    if not dataclasses.is_dataclass(hint):
        return tuple(_fit(hint, value) for value in values)
    objects = [_match(hint, value) for value in values]
    return tuple(entry for entry in objects if entry is not None)


def _object(kind: Hint, table: Mapping[str, Json]) -> Any:
    """A dataclass with the values of `table`, or None if the class refuses them."""
    hints = hints_of(kind)
    values = dict[str, Any]()
    for field in dataclasses.fields(kind):
        if "rest" in field.metadata:
            known = hints.keys() - {field.name}
            values[field.name] = {k: inner for k, inner in table.items() if k not in known}
            continue
        value = _match(hints[field.name], table.get(field.name))
        if value is not None:
            values[field.name] = value
        # The field has no default.
        elif dataclasses.MISSING is field.default is field.default_factory:
            values[field.name] = _empty(hints[field.name])
    try:
        return kind(**values)
    except ValueError:
        return None


def _empty(hint: Hint) -> Any:
    """The value of a field that was given none: an empty object, tuple, text or mapping, false, else None."""
    if dataclasses.is_dataclass(hint):
        return _object(hint, {})
    origin = get_origin(hint) or hint
    if origin in (tuple, str, bool):
        return origin()
    return {} if origin is Mapping else None
