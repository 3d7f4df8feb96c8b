"""Values of arguments: their types, and when one agrees with the allowed ones (rules of BFCL's checker)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from souping.syntax import Literal

_PYTHON = {
    "string": str, "integer": int, "float": float, "number": float, "boolean": bool, "array": list, "list": list,
    "tuple": list, "dict": dict, "object": dict, "any": str,
}  # fmt: skip
_JAVA = {
    "byte": int, "short": int, "integer": int, "long": int, "float": float, "double": float, "boolean": bool,
    "char": str, "String": str, "any": str, "Array": list, "ArrayList": list, "Set": set, "Queue": list,
    "Stack": list, "HashMap": dict, "Hashtable": dict,
}  # fmt: skip
_JAVASCRIPT = {
    "String": str, "integer": int, "float": float, "Bigint": int, "Boolean": bool, "dict": dict, "array": list,
    "any": str,
}  # fmt: skip
TYPES: dict[str, dict[str, type]] = {"python": _PYTHON, "java": _JAVA, "javascript": _JAVASCRIPT}
_SPELLINGS = {
    "byte": ("int",), "short": ("int",), "integer": ("int",), "long": ("long",), "Bigint": ("long",),
    "float": ("float",), "double": ("double", "int"), "boolean": ("bool",), "Boolean": ("bool",),
}  # fmt: skip
"""Kinds of literal that may be written for a documented type; JavaScript's float is any plain number."""


@dataclass(frozen=True)
class Kind:
    """A parameter's type in the docs: the name there, its Python type, and both for the elements of a list."""

    name: str
    type: type
    language: str
    inner: Kind | None = None


def kind_of(schema: Mapping[str, Any], language: str) -> Kind:
    """The type that a parameter's JSON schema names.

    Raises:
        ValueError: BFCL has no such type in this language.
    """
    name = schema["type"]
    if name not in TYPES[language]:
        raise ValueError(f"type {name!r} is not known in {language}")
    items = schema.get("items")
    nested = name in ("array", "tuple", "Array", "ArrayList") and isinstance(items, Mapping) and "type" in items
    return Kind(name, TYPES[language][name], language, kind_of(items, language) if nested and items else None)


def plain(value: Any) -> Any:
    """A Python value of a literal, its type told by its spelling; Python values stay as they are."""
    if not isinstance(value, Literal):
        return value
    if value.kind == "list":
        return [plain(element) for element in value.value]
    if value.kind == "dict":
        return {key: plain(element) for key, element in value.value.items()}
    return value.value


def to_kind(value: Any, kind: Kind) -> Any:
    """A literal read as a documented type; a spelling of another type stays text, and so is wrong or a variable."""
    if not isinstance(value, Literal):
        return value
    if kind.type is str:
        return value.value if value.kind == "string" else value.text
    if kind.type in (list, dict):
        return _container(value, kind)
    wanted = _SPELLINGS[kind.name] if kind.language == "java" or kind.name != "float" else ("double", "int")
    return kind.type(value.value) if value.kind in wanted and _bare(value) else value.text


def _bare(value: Literal) -> bool:
    """BFCL's number patterns know no plus sign, no underscore, no leading or trailing point, no `d`."""
    return value.kind == "bool" or re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?[fFlLn]?", value.text) is not None


def _container(value: Literal, kind: Kind) -> Any:
    opening = {"Array": r"new\s+\w+\s*\[", "ArrayList": r"new\s+ArrayList\b", "HashMap": r"new\s+HashMap\b"}
    if value.kind != kind.type.__name__ or not re.match(opening.get(kind.name, ""), value.text):
        return value.text
    if kind.type is list and kind.inner is not None:
        return [to_kind(element, kind.inner) for element in value.value]
    return plain(value)


def agrees(value: Any, allowed: Sequence[Any], kind: Kind | None = None) -> bool:
    """Whether a value is one of the allowed ones, in type and content.

    Without `kind` the allowed values tell the type (an int may stand for a float). With it, the type is the
    documented one or, where a variable is allowed in its place, that of the first allowed value.
    """
    if kind is None:
        return any(_same(value, option, strict=True) for option in allowed)
    if kind.type is float and type(value) is int and kind.language == "python":
        value = float(value)
    if kind.name == "tuple" and isinstance(value, tuple):
        value = list(value)
    first = next((type(option) for option in allowed if option != ""), None)
    if type(value) is kind.type:
        if not _nested(value, allowed, kind):
            return False
        variable = first is not None and first is not kind.type
    elif first is not None and type(value) is first:
        variable = True
    else:
        return False
    if variable:
        return any((type(value) is type(option) and value == option) or _number(value, option) for option in allowed)
    return any(_same(value, option, strict=False) for option in allowed)


def _number(value: Any, option: Any) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (value, option))
    return numbers and bool(value == option)


def _nested(value: Any, allowed: Sequence[Any], kind: Kind) -> bool:
    """One level of element types, as BFCL checks it: documented, or that of the allowed list's first element."""
    if kind.type is not list or kind.inner is None:
        return True
    for option in allowed:
        if not isinstance(option, list):
            return True
        types = {kind.inner.type, *(type(element) for element in option[:1])}
        if all(type(element) in types for element in value):
            return True
    return False


def standardise(text: str) -> str:
    """Text without spaces, `,./-_*^` and case, with double quotes only."""
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def _same(value: Any, option: Any, strict: bool) -> bool:
    if isinstance(value, str) and isinstance(option, str):
        return standardise(value) == standardise(option)
    if isinstance(value, list | tuple):
        return _same_list(value, option, strict)
    if isinstance(value, dict) and isinstance(option, dict):
        return _same_dict(value, option)
    if not strict:
        return bool(value == option) if type(value) is type(option) else _number(value, option)
    return _typed(value, option)


def _typed(value: Any, option: Any) -> bool:
    if isinstance(option, float) and type(value) is int:
        return bool(value == option)
    return type(value) is type(option) and bool(value == option)


def _same_list(value: Sequence[Any], option: Any, strict: bool) -> bool:
    if option == "":
        return len(value) == 0
    if not isinstance(option, list | tuple) or len(value) != len(option):
        return False
    return all(_same(a, b, strict) for a, b in zip(value, option, strict=True))


def _same_dict(value: Mapping[Any, Any], option: Mapping[str, Any]) -> bool:
    """Keys and values against BFCL's {key: [allowed, ...]}; a value that is no list stands for itself."""
    lists = {key: allowed if isinstance(allowed, list) else [allowed] for key, allowed in option.items()}
    if any(key not in value and "" not in allowed for key, allowed in lists.items()):
        return False
    return all(
        key in lists and any(_same(inner, other, strict=False) for other in lists[key]) for key, inner in value.items()
    )
