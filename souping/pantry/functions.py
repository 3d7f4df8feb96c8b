"""The functions of the pantry's world and calls of them, as source text in three languages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from souping.pantry.words import SLOTS, THINGS, VERBS, Slot, Value

CLASSES = ("Planner", "Kitchen", "Office", "Travel")
TYPES: dict[str, dict[str, str]] = {
    "python": {
        "string": "str", "integer": "int", "float": "float", "long": "int", "boolean": "bool", "list": "list"
    },
    "java": {
        "string": "String", "integer": "int", "float": "double", "long": "long", "boolean": "boolean",
        "list": "String[]",
    },
    "javascript": {
        "string": "String", "integer": "Number", "float": "Number", "long": "Bigint", "boolean": "Boolean",
        "list": "Array",
    },
}  # fmt: skip
CHECKED = {
    "java": {
        "string": {"type": "String"}, "integer": {"type": "integer"}, "float": {"type": "double"},
        "long": {"type": "long"}, "boolean": {"type": "boolean"},
        "list": {"type": "Array", "items": {"type": "String"}},
    },
    "javascript": {
        "string": {"type": "String"}, "integer": {"type": "integer"}, "float": {"type": "float"},
        "long": {"type": "Bigint"}, "boolean": {"type": "Boolean"},
        "list": {"type": "array", "items": {"type": "String"}},
    },
}  # fmt: skip
"""What BFCL's function docs call these types; the checker reads them for Java and JavaScript."""


@dataclass(frozen=True)
class Function:
    """A documented function. `default` is the value of the last slot, which a question then leaves out."""

    verb: str
    thing: str
    slots: tuple[Slot, ...]
    default: Value | None = None
    prefix: str = ""

    def name(self, language: str) -> str:
        if language == "python":
            return f"{self.verb}_{self.thing}"
        camel = self.verb + self.thing.capitalize()
        return f"{self.prefix}.{camel}" if language == "java" else camel

    def doc(self, language: str) -> str:
        types = TYPES[language]
        pairs = [(slot.name, types[slot.kind]) for slot in self.slots]
        parts = [f"{kind} {name}" if language == "java" else f"{name}: {kind}" for name, kind in pairs]
        if self.default is not None:
            parts[-1] += f" = {literal(self.default, self.slots[-1], language)}"
        mark = "#" if language == "python" else "//"
        return f"{self.name(language)}({', '.join(parts)}) {mark} {VERBS[self.verb][0]} {article(self.thing)}"


@dataclass(frozen=True)
class Call:
    """A function with the values that a question asks for; a defaulted slot has none."""

    function: Function
    values: tuple[Value, ...]

    def text(self, language: str) -> str:
        pairs = zip(self.function.slots, self.values, strict=False)
        inside = ", ".join(f"{slot.name}={literal(value, slot, language)}" for slot, value in pairs)
        return f"{self.function.name(language)}({inside})"

    def allowed(self, language: str) -> dict[str, Any]:
        """BFCL's possible answer: {function: {parameter: [allowed values]}}; "" means that it may be left out."""
        pairs = zip(self.function.slots, self.values, strict=False)
        arguments: dict[str, list[Any]] = {
            slot.name: [list(value) if isinstance(value, tuple) else value] for slot, value in pairs
        }
        if self.function.default is not None:
            arguments[self.function.slots[-1].name] = [self.function.default, ""]
        return {self.function.name(language): arguments}


def literal(value: Value, slot: Slot, language: str) -> str:
    """A value as source text of the language."""
    if isinstance(value, bool):
        return str(value) if language == "python" else str(value).lower()
    if isinstance(value, tuple):
        inside = ", ".join(literal(word, slot, language) for word in value)
        return f"new String[]{{{inside}}}" if language == "java" else f"[{inside}]"
    if isinstance(value, str):
        return f"'{value}'" if language == "javascript" else f'"{value}"'
    suffix = {"java": "L", "javascript": "n"}.get(language, "") if slot.kind == "long" else ""
    return f"{value}{suffix}"


def article(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def draw_function(rng: Random, verb: str = "", thing: str = "", sizes: Sequence[int] = (2, 3)) -> Function:
    """A function over 2 or 3 slots of its thing, with at most one list (they make answers long)."""
    verb, thing = verb or rng.choice(list(VERBS)), thing or rng.choice(list(THINGS))
    slots = [SLOTS[name] for name in rng.sample(THINGS[thing], rng.choice(list(sizes)))]
    return Function(verb, thing, tuple(slots), prefix=rng.choice(CLASSES))


def draw_default(rng: Random, function: Function) -> Function:
    """Sometimes the last slot gets a default, and the question says nothing about it."""
    last = function.slots[-1]
    if last.kind == "list" or rng.random() > 0.3:
        return function
    return Function(function.verb, function.thing, function.slots, rng.choice(last.values), function.prefix)


def draw_call(rng: Random, function: Function) -> Call:
    slots = function.slots if function.default is None else function.slots[:-1]
    return Call(function, tuple(draw_value(rng, slot) for slot in slots))


def draw_value(rng: Random, slot: Slot) -> Value:
    if slot.kind == "list":
        return tuple(str(word) for word in rng.sample(slot.values, 2))
    return rng.choice(slot.values)


def near(rng: Random, function: Function) -> Function:
    """Another function that is easily taken for this one: the same thing or the same verb, not both."""
    if rng.random() < 0.5:
        verb = rng.choice([v for v in VERBS if v != function.verb])
        return draw_function(rng, verb, function.thing, sizes=(1, 2))
    thing = rng.choice([t for t in THINGS if t != function.thing])
    return draw_function(rng, function.verb, thing, sizes=(1, 2))


def schema(function: Function, language: str) -> dict[str, Any]:
    """The function in BFCL's JSON form, as far as the checker needs it: types and required parameters."""
    properties = {slot.name: CHECKED[language][slot.kind] for slot in function.slots}
    parameters = {"type": "dict", "properties": properties, "required": list(properties)}
    return {"name": function.name(language), "parameters": parameters}
