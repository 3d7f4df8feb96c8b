"""Values of the configuration against the annotations of what they feed, and bounds that hold everywhere."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from annotated_types import Interval

from souping.core.text import nearest
from souping.core.types import Json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Hint: TypeAlias = type
"""An annotation, as the type that it mostly is."""
LARGEST = 2**53
"""No setting is larger than this: up to here a float is exact."""
UNIONS = (Union, UnionType)
PLAIN = {int: (int,), float: (int, float), str: (str,), bool: (bool,), type(None): (type(None),)}
"""Types of the values that a plain annotation takes."""


def is_callable(hint: Any) -> bool:
    return get_origin(hint) is Callable or hint is Callable


def is_part(hint: Hint) -> bool:
    """Whether a part is wanted, and no plain value."""
    inner = [arg for arg in get_args(hint) if arg is not type(None)] if get_origin(hint) in UNIONS else [hint]
    return any(is_callable(arg) or (inspect.isclass(arg) and arg.__module__.startswith("souping.")) for arg in inner)


def mismatch(value: Json, hint: Hint) -> str | None:
    """What is wrong with a value, or None: its type, a bound that its part states, or one that holds everywhere."""
    if get_origin(hint) is Literal and value not in get_args(hint):
        choices = [str(c) for c in get_args(hint)]
        return f"must be one of {', '.join(choices)}{nearest(str(value), choices)}"
    if is_part(hint):
        return None if value is None and type(None) in get_args(hint) else "must be one of its group's choices"
    if not _fits(value, hint):
        return f"must be {_words(hint)}"
    return "is empty (an unset shell variable?): leave it out, or say what it is" if value == "" else unsound(value)


def _fits(value: Json, hint: Hint) -> bool:
    """Whether a value is of a type, strictly; plain types are looked at here, since pydantic takes long to load."""
    if hint is Any or hint in PLAIN:
        return hint is Any or type(value) in PLAIN[hint]
    if get_origin(hint) in UNIONS:
        return any(_fits(value, arg) for arg in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (list, Sequence):
        return isinstance(value, list) and all(_fits(one, get_args(hint)[0]) for one in value)
    if get_origin(hint) in (dict, Mapping) and get_args(hint)[0] is str:
        key, kind = get_args(hint)
        return isinstance(value, dict) and all(_fits(k, key) and _fits(one, kind) for k, one in value.items())
    if get_origin(hint) is Annotated:
        kind, *bounds = get_args(hint)
        if all(isinstance(bound, Interval) for bound in bounds):
            return _fits(value, kind) and all(_within(value, bound) for bound in bounds)
    from pydantic import ValidationError

    try:
        _adapter(hint).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _within(value: Json, bound: Interval) -> bool:
    if not isinstance(value, int | float):
        return True
    sides = ((operator.ge, bound.ge), (operator.gt, bound.gt), (operator.le, bound.le), (operator.lt, bound.lt))
    return all(limit is None or compare(value, limit) for compare, limit in sides)


@cache
def _adapter(hint: Hint) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

    for config in (None, ConfigDict(arbitrary_types_allowed=True)):
        with suppress(PydanticUserError, PydanticUndefinedAnnotation):
            return TypeAdapter(hint, config=config)
    return TypeAdapter(Any)  # a hint of somebody else's that says nothing here


def unsound(value: Json) -> str | None:
    """What no setting can be, at any depth: a number that is not finite or beyond all use, a part among values."""
    if isinstance(value, int | float) and not abs(value) <= LARGEST:
        return f"must be a finite number within {LARGEST:g}"
    if isinstance(value, Mapping) and "_target_" in value:
        return "holds a _target_, which only a group's choice has"
    inner = [*value.values(), *value] if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((found for one in inner if (found := unsound(one))), None)


def _words(hint: Hint) -> str:
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return " ".join([_words(arguments[0]), *map(_bound, arguments[1:])])
    if get_origin(hint) in (list, Sequence):
        return f"a list, each {_words(arguments[0])}"
    if get_origin(hint) in (dict, Mapping):
        return f"a mapping whose values are each {_words(arguments[1])}"
    name = str(getattr(hint, "__name__", hint))  # Python's: unions have none
    return " or ".join(_words(a) for a in arguments) if arguments else name


def _bound(bound: Interval) -> str:
    sides = {"at least": bound.ge, "above": bound.gt, "at most": bound.le, "below": bound.lt}
    return " and ".join(f"{word} {limit}" for word, limit in sides.items() if limit is not None)
