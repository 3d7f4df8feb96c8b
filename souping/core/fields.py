"""Checks of values by annotations (types, bounds): fields of components, configuration keys, arguments, edited JSON.

An annotation says what a value may be: a plain type, `Literal`, a container, a `TypedDict`, or `Annotated` with an
`Bounds` or a `Form`.
"""

from __future__ import annotations

import inspect
import math
import numbers
import operator
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from decimal import Decimal
from functools import cache
from itertools import chain, repeat
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeAlias,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import numpy as np

from souping.core.arguments import LONGEST_TIMEOUT_S
from souping.core.files import sized
from souping.core.parsing import read_json
from souping.core.text import first_line, listed, nearest, shown
from souping.core.types import TOLERANCE, Json, T, UserError, Weights, frozen

Hint: TypeAlias = type
"""An annotation, as the type that it mostly is."""
JSON_NAMES = {"Json": Json, "Mapping": Mapping, "Sequence": Sequence}
"""Names in the text of `Json`, which is resolved wherever it is used."""
MOST_JSON_BYTES = 512_000_000
"""Bytes of JSON that is read as a whole: objects take about ten times their text in memory."""
MOST_RUN_FILE_BYTES = 100_000_000
"""Bytes of a file of a run that is read as a whole. Somebody else may have sent it."""
LARGEST_SETTING = 2**53
"""No setting is larger than this: up to here a float is exact."""
PLAIN_TYPES: Mapping[Any, tuple[type, str]] = {
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
    bool: (bool, "true or false"),
    type(None): (type(None), "null"),
}
"""{annotation: (class of its values, its name in messages)}"""


@frozen
class Bounds:
    """Limits of a number."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None


@dataclass(frozen=True)
class Form:
    """Form of a text: a pattern that the whole text matches, and the words that describe it in messages."""

    pattern: str
    words: str


Count = Annotated[int, Bounds(ge=1, le=10**9)]
"""Setting that counts something."""
Threads = Annotated[int, Bounds(ge=1, le=1024)]
"""Setting that counts threads, processes or open requests: each takes memory."""
Seed = Annotated[int, Bounds(ge=0, lt=2**32)]
"""Seed of random numbers, as numpy takes it."""
Name = Annotated[str, Form(r"(?s).*\S.*", "a text that is not empty")]
FolderName = Annotated[
    str, Form(r"\w[\w.-]*", "letters, digits, dots, dashes or underscores: it names a folder")
]
Share = Annotated[float, Bounds(gt=0, le=1)]
Seconds = Annotated[float, Bounds(gt=0, le=LONGEST_TIMEOUT_S)]
Temperature = Annotated[float, Bounds(ge=0, le=100)]
Precision = Literal["float32", "bfloat16", "float16"]
Device = Annotated[str, Form(r"auto|cpu|mps|cuda(:\d+)?", "auto, cpu, cuda, cuda:N or mps")]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def component(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only dataclass whose fields are checked against their annotations.

    The check comes before the class's own `__post_init__`, which is for relations between fields.

    Raises:
        UserError: a value does not fit; the message names the class and the field.
    """
    relations = getattr(cls, "__post_init__", None)

    def __post_init__(self: T) -> None:
        for name, value in _checked_fields(self):
            object.__setattr__(self, name, value)
        if relations is not None:
            relations(self)

    setattr(cls, "__post_init__", __post_init__)  # noqa: B010  # mypy knows no such member of T
    return frozen(cls)


def _checked_fields(part: Any) -> Iterator[tuple[str, Any]]:
    """(name, plain value) of each field that differs from its default (UserError: a value does not fit)."""
    kind: Callable[..., Any] = type(part)
    hints = hints_of(kind)
    for setting in fields(part):
        name = setting.name
        value = getattr(part, name)
        if not setting.init or value is setting.default or name not in hints:
            continue
        value = _plain(value)
        # A path may be given where a text is expected.
        if isinstance(value, Path) and fits(str(value), hints[name]):
            value = str(value)
        if fault := mismatch(value, hints[name]):
            raise UserError(f"{kind.__name__}({name}={value!r:.60}) {fault}")
        yield name, value


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check the arguments of a call, {name: value}, against the function's annotations (UserError)."""
    for name, hint in hints_of(function).items():
        if name in arguments and (wrong := mismatch(_plain(arguments[name]), hint)):
            raise UserError(f"{name}={arguments[name]!r:.60} {wrong}")


def _plain(value: Json) -> Json:
    """Numpy's scalars and arrays as numbers and lists."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


@cache
def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """{field or argument: annotation}; empty if the annotations have names that only a type checker can resolve."""
    if inspect.isclass(target) and not is_dataclass(target):
        target = target.__init__
    try:
        return get_type_hints(target, localns=JSON_NAMES, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def mismatch(value: Json, hint: Hint) -> str | None:
    """Comparison of one value with its annotation: what is wrong, for the end of a message; None if it fits.

    A value of the right type may still be one that no setting can have (`unsound`). For keys of the configuration,
    `cli.config_keys.setting_mismatch` calls this.
    """
    if inspect.isclass(value) and not fits(value, hint):
        return f"is a class: call it, {value.__name__}(...)"
    if not fits(value, hint):
        options = list[str]()
        for inner in (hint, *get_args(hint)):
            if get_origin(inner) is Literal:
                options += map(str, get_args(inner))
        return f"must be {_words(hint)}{nearest(str(value), options)}{_correction(value, hint)}"
    return unsound(value)


def _correction(value: Json, hint: Hint) -> str:
    """What to write for a value that is nearly right, for the end of a message; empty if that is not known."""
    if isinstance(value, list):
        spaced = [each for each in value if isinstance(each, str) and " " in each.strip()]
        return f"; is a comma missing in {spaced[0]:.60}?" if spaced else ""
    # `5 items`, or 1e-3, which YAML takes for a text.
    number = re.match(r"[-+]?\d*\.?\d+(e[-+]?\d{1,2})?", str(value))
    if isinstance(value, str) and number and re.match("an? (number|integer)", _words(hint)):
        return f": write the number alone, {Decimal(number[0]):f}"
    return ""


def pick(name: str, options: Iterable[str], key: str, more: str = "") -> str:
    """The name, which has to be one of the options; if it is not, `more` ends the message.

    Raises:
        UserError: it is not among them; the message names the key and the nearest option.
    """
    known = list(options)
    if name not in known:
        hint = f"{listed(known) or 'none'}{nearest(str(name), known)}{more}"
        raise UserError(f"{key}={shown(str(name))} is not one of {hint}")
    return name


def text_of(path: Path, most_bytes: int = sys.maxsize) -> str:
    """The text of a file (UserError if it is not UTF-8, or has more than so many bytes)."""
    try:
        return sized(path, most_bytes).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from error


def load_json(path: Path, model: Hint, key: str = "", most_bytes: int = MOST_JSON_BYTES) -> Any:
    """JSON that people may have edited, held against an annotation; `key` is where the path was given.

    Raises:
        UserError: the file is not UTF-8 text, not JSON, too large, or not of this form; the message names the place
            inside.
    """
    return _parsed(text_of(path, most_bytes), model, f"{key}={path}" if key else str(path))


def load_lines(path: Path, *models: Hint) -> list[Any]:
    """The lines of a JSON Lines file, as `load_json` reads them.

    The first lines have the annotations `models`, one each, and all further lines have the last of them. A last line
    without a line end is left out: its writer was killed.
    """
    hints = chain(models, repeat(models[-1]))
    # After the last line end there is nothing, or a line that is not complete.
    lines = enumerate(text_of(path, MOST_JSON_BYTES).split("\n")[:-1], start=1)
    return [_parsed(line, next(hints), f"{path}:{number}") for number, line in lines]


def _parsed(text: str, model: Hint, where: str) -> Any:
    """The value of a JSON text, checked against an annotation (UserError); `where` is its place, for the message."""
    try:
        value = read_json(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {first_line(error)}") from error
    return checked(value, model, where)


def checked(value: Json, model: Hint, where: str) -> Any:
    """The value itself, which people may have edited (UserError if it does not fit the annotation)."""
    for place, hint, inner in _entries(value, model):
        if not fits(inner, hint):
            raise UserError(
                f"{where}: {place} must be {_words(hint)}, not {inner!r:.60}: was the file edited?"
            )
    return value


def _entries(value: Json, model: Hint, where: str = "") -> Iterator[tuple[str, Hint, Any]]:
    """(place, annotation, value) of every key that the model names, at any depth; `where` is the place of the value."""
    # No further keys, or not the object that the model expects.
    if not is_typeddict(model) or not isinstance(value, Mapping):
        hint = dict[str, Any] if is_typeddict(model) else model
        yield f"`{where}`" if where else "it", hint, value
        return
    for key, hint in get_type_hints(model, localns=JSON_NAMES, include_extras=True).items():
        # The class of a TypedDict has this attribute. A required key that is absent is checked as null.
        if key in value or key in vars(model)["__required_keys__"]:
            yield from _entries(value.get(key), hint, f"{where}.{key}" if where else key)


def fits(value: Json, hint: Hint) -> bool:
    """Whether a value is of a type, strictly: a bool is not a number, a text is not a list."""
    if isinstance(value, bool) and hint in PLAIN_TYPES:
        return hint is bool
    if hint in PLAIN_TYPES:
        accepted, _ = PLAIN_TYPES[hint]
        return isinstance(value, accepted)
    kind = get_origin(hint)
    arguments = get_args(hint)
    if kind in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if kind is Literal:
        return value in arguments
    if kind is Annotated:
        return fits(value, arguments[0]) and all(_within(value, bound) for bound in arguments[1:])
    if Callable in (kind, hint):
        return callable(value)
    if kind in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and _elements_fit(value, kind, arguments)
    if kind in (dict, Mapping):
        return (
            isinstance(value, Mapping)
            and all(map(fits, value, repeat(arguments[0])))
            and all(map(fits, value.values(), repeat(arguments[1])))
        )
    # An annotation that is no class accepts anything. The keys of a TypedDict are checked one by one, in `_entries`.
    base = kind or hint
    if base is Any or not inspect.isclass(base) or is_typeddict(base):
        return True
    # A protocol names members that are not checked here, and `isinstance` may refuse it.
    return Protocol in base.__bases__ or isinstance(value, base)


def _elements_fit(values: Sequence[Any], kind: Hint, hints: Sequence[Any]) -> bool:
    """Whether elements fit `hints`: X and Y of `tuple[X, Y]`, one by one, or the X of `list[X]` or `tuple[X, ...]`."""
    if kind is tuple and ... not in hints:
        return len(values) == len(hints) and all(map(fits, values, hints))
    return all(fits(value, hints[0]) for value in values)


def _within(value: Any, bound: Bounds | Form) -> bool:
    """Whether a value keeps to a bound: a pattern for texts, limits for numbers. Other metadata is no bound."""
    if isinstance(bound, Form):
        return re.fullmatch(bound.pattern, value) is not None
    if not isinstance(bound, Bounds):
        return True
    sides = (
        (operator.ge, bound.ge),
        (operator.gt, bound.gt),
        (operator.le, bound.le),
        (operator.lt, bound.lt),
    )
    return all(limit is None or compare(value, limit) for compare, limit in sides)


def unsound(value: Json) -> str | None:
    """What is wrong with a value whatever its type should be, at any depth; None if nothing is.

    A number is not finite or too large, or a component (a `_target_`) is where only plain values may be.
    """
    if isinstance(value, int | float) and not abs(value) <= LARGEST_SETTING:
        return f"must be a finite number within {LARGEST_SETTING:g}"
    if isinstance(value, Mapping) and "_target_" in value:
        return "holds a _target_, which only a group's choice has"
    # Keys may be unusable numbers too.
    if isinstance(value, Mapping):
        value = [*value.values(), *value]
    if isinstance(value, list | tuple):
        for inner in value:
            if fault := unsound(inner):
                return fault
    return None


def _words(hint: Hint) -> str:
    """An annotation in words, for the end of `must be ...`."""
    kind = get_origin(hint)
    arguments = get_args(hint)
    if Callable in (kind, hint):
        return "a function"
    if hint in PLAIN_TYPES:
        _, words = PLAIN_TYPES[hint]
        return words
    if kind is Literal:
        return listed(map(str, arguments))
    if kind is Annotated:
        forms = [bound.words for bound in arguments if isinstance(bound, Form)]
        bounds = [_bound(bound) for bound in arguments if isinstance(bound, Bounds)]
        return "".join(forms) or " ".join([_words(arguments[0]), *bounds])
    inner = arguments[-1] if arguments else Any
    # `tuple[str, ...]`
    if inner is ...:
        inner = arguments[0]
    # Only these elements are spelled out: others would make the message too long.
    spelled = inner in PLAIN_TYPES or get_origin(inner) is Annotated
    if kind in (list, tuple, Sequence):
        return f"a list, each {_words(inner)}" if spelled else "a list"
    if kind in (dict, Mapping):
        return f"a mapping whose values are each {_words(inner)}" if spelled else "a mapping"
    if arguments:
        options = [_words(argument) for argument in arguments]
        # `a list, each a number, or null`: the comma shows that null is no element.
        return (", or " if " each " in options[0] else " or ").join(options)
    # Not every annotation has a name.
    name = str(getattr(hint, "__name__", hint))
    article = "an" if name[0] in "AEIO" else "a"
    return f"{article} {name}"


def _bound(bound: Bounds) -> str:
    """Limits in words: `above 0 and at most 1`."""
    sides = {"at least": bound.ge, "above": bound.gt, "at most": bound.le, "below": bound.lt}
    return " and ".join(f"{word} {limit}" for word, limit in sides.items() if limit is not None)


LARGEST_WEIGHTS = 1000
"""Sum of weights without their signs, at most: fp32 then keeps a soup to 1e-4 of its ingredients."""


def check_weights(weights: Sequence[float], where: str = "optimiser.weights") -> Weights:
    """Weights given by hand, as floats; below 0 or above 1 they extrapolate.

    Raises:
        UserError: a weight is not finite, they do not sum to one within 1e-5, or they are too large for sums in fp32.
    """
    values = tuple(float(w) for w in weights)
    if not values or not all(map(math.isfinite, values)):
        raise UserError(f"{where}={list(values)} must be finite numbers")
    if sum(map(abs, values)) > LARGEST_WEIGHTS:
        raise UserError(
            f"{where}={list(values)}: without their signs, weights must sum to at most {LARGEST_WEIGHTS}"
        )
    if abs(sum(values) - 1) > TOLERANCE:
        hint = "one must be above 0"
        if abs(sum(values)) > TOLERANCE:
            scaled = ",".join(f"{value / sum(values):.6g}" for value in values)
            hint = f"give {where}='[{scaled}]'"
        raise UserError(f"{where}={list(values)} sums to {sum(values):.6g}, not 1: {hint}")
    return values
