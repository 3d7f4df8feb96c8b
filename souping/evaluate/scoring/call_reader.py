"""Reader of calls in Java and JavaScript, by tree-sitter's grammars. It reads literals; other expressions stay text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from itertools import accumulate, count, pairwise
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from tree_sitter import Language, Node

Value: TypeAlias = (
    "Literal | Mapping[str, Value] | Mapping[Value, Value] | Sequence[Value] "
    "| str | bytes | float | complex | None"
)
"""A value in a call, of Python or as written in another language; texts are sequences too, so narrow by `str` first."""


@dataclass(frozen=True)
class Literal:
    """Value as written, since these languages tell types by the spelling (`42L`, `1.5f`, `7n`).

    `text` is the source, without the quotes of a string. Kinds: int, long, float, double, bool, string, null, list,
    dict, code.
    """

    kind: str
    value: Value
    text: str


MOST_CHECKS = 2_000
"""Hundreds of steps of the parser, after which it gives up; a call of 8,000 characters takes 500."""
# The possessive `*+` keeps the time linear on garbage.
QUOTED = re.compile(r"\"(?:[^\"\\\n]|\\.)*+\"?|'(?:[^'\\\n]|\\.)*+'?")
_CALLS = {"java": "method_invocation", "javascript": "call_expression"}
# As BFCL reads it: a statement may lack its semicolon.
_FAULT = re.compile(r'ERROR|MISSING (?!";")')
# Types of the grammars' nodes, and functions that make lists.
_STRINGS = ("string", "string_literal", "character_literal")
_LISTS = ("Arrays.asList", "List.of", "Set.of", "Array.of")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}
_CONSTANTS = {
    "true": ("bool", True),
    "false": ("bool", False),
    "null": ("null", None),
    "undefined": ("null", None),
}
"""{source: kind and value of the literal}"""


@cache
def _grammar(language: str) -> Language:
    """tree-sitter's grammar of a language, from the package of its name."""
    from tree_sitter import Language

    return Language(import_module(f"tree_sitter_{language}").language())


def _parse(source: str, language: str) -> Node:
    """The root of the syntax tree of a source (ValueError if the parser takes more than `MOST_CHECKS`)."""
    from tree_sitter import Parser

    # The semicolon makes a call a statement. It has a line of its own, as the source may end with a comment.
    code = f"{source}\n;".encode()
    checks = count(1)
    parser = Parser(_grammar(language))
    # Only a parser that reads through a function can be stopped; it then raises a ValueError.
    parser.parse(
        lambda offset, point: code[offset:],
        progress_callback=lambda offset, has_error: next(checks) > MOST_CHECKS,
    )
    # Nodes of that tree would call the function for their text, and crash if it raises a RecursionError.
    return parser.parse(code).root_node


def read_call(source: str, language: str) -> tuple[str, dict[str, Literal], tuple[Literal, ...]]:
    """(name, {name of an argument: its value}, positional arguments) of the one call that a source is.

    Raises:
        ValueError: the source is something else.
    """
    root = _parse(source, language)
    statements = _children(root)
    is_faulty = root.has_error and _FAULT.search(str(root))
    if is_faulty or len(statements) != 1:
        raise ValueError("not a single call")
    call = _called(statements[0], language)
    # JavaScript's call with a template string has no brackets.
    if call is None or not _text(call, "arguments").startswith("("):
        raise ValueError("not a call")
    named = dict[str, Literal]()
    positional = list[Literal]()
    for argument in _children(call.child_by_field_name("arguments")):
        value = argument.child_by_field_name("right")
        # A named argument is written as an assignment, `name = value`.
        if argument.type != "assignment_expression" or value is None:
            positional.append(_literal(argument))
            continue
        name = _text(argument, "left")
        if name in named:
            raise ValueError(f"argument {name} is given twice")
        named[name] = _literal(value)
        # Java's values are compared as BFCL writes them out.
        if language == "java" and named[name].kind != "string":
            named[name] = replace(named[name], text=_joined(value))
    return _name(call), named, tuple(positional)


def _called(statement: Node, language: str) -> Node | None:
    """The call that a statement makes, None if it makes none.

    As in BFCL, a JavaScript statement is the call itself, and the first call in a Java statement counts, such as that
    of `var x = f();`.
    """
    if language == "java":
        nodes = list(_leaves(statement, [_CALLS["java"]]))
    else:
        nodes = _children(statement)[:1] if statement.type == "expression_statement" else []
    return next((node for node in nodes if node.type == _CALLS[language]), None)


def _leaves(node: Node, whole: Sequence[str]) -> Iterator[Node]:
    """The nodes in which a tree ends, in the order of the source; nodes of a type in `whole` are not entered."""
    # Not by recursion: a tree may be thousands of nodes deep.
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.type in whole or not node.children:
            yield node
        else:
            waiting += reversed(node.children)


def _joined(node: Node) -> str:
    """The source of a Java value with no more than a space between its tokens. As in BFCL, calls stay as written."""
    text = ""
    end = node.start_byte
    for leaf in _leaves(node, (*_STRINGS, _CALLS["java"])):
        text += " " * (leaf.start_byte > end) + _text(leaf)
        end = leaf.end_byte
    return text


def _children(node: Node | None) -> list[Node]:
    """The nodes below a node, without comments and punctuation; an empty list for None."""
    if node is None:
        return []
    return [child for child in node.named_children if "comment" not in child.type]


def _text(node: Node | None, field: str = "") -> str:
    """The source of a node, or with `field` of the node's child in that field; empty if there is no such node."""
    if node is not None and field:
        node = node.child_by_field_name(field)
    return "" if node is None else (node.text or b"").decode()


def _name(call: Node) -> str:
    """The name of a called function with its object, such as `List.of`."""
    owner = _text(call, "object")
    name = _text(call, "name") or _text(call, "function")
    return f"{owner}.{name}" if owner else name


def _literal(node: Node) -> Literal:
    """An argument as a literal; any other expression is one of kind `code`, whose value is its source."""
    text = _text(node)
    if node.type in _STRINGS:
        return Literal("string", unescape(text[1:-1]), text[1:-1])
    if text in _CONSTANTS:
        return Literal(*_CONSTANTS[text], text)
    return number(text) or _collection(node, text) or Literal("code", text, text)


def _literals(node: Node | None) -> list[Literal]:
    """The nodes below a node as literals."""
    return [_literal(child) for child in _children(node)]


def _collection(node: Node, text: str) -> Literal | None:
    """A list or dict that a node writes; None for any other node. `text` is its source.

    For example `[1]`, `new int[]{1}`, `List.of(1)`, `new Array(1, 2)`, `new ArrayList<>(List.of(1))`, a map, an object.
    """
    if node.type in ("array", "array_initializer"):
        return Literal("list", _literals(node), text)
    if node.type == "array_creation_expression":
        elements = node.child_by_field_name("value")
        # `new int[3]` has no elements.
        return None if elements is None else Literal("list", _literals(elements), text)
    arguments = node.child_by_field_name("arguments")
    if node.type in _CALLS.values():
        return _factory_collection(_name(node), _literals(arguments), text)
    if node.type == "new_expression":
        is_array = _text(node, "constructor") == "Array" and arguments is not None
        return Literal("list", _literals(arguments), text) if is_array else None
    if node.type == "object_creation_expression":
        return _java_collection(node, _literals(arguments), text)
    if node.type == "object":
        return _object(node, text)
    return None


def _factory_collection(name: str, values: Sequence[Literal], text: str) -> Literal | None:
    """What a call such as `List.of(...)` or `Map.of(...)` makes of its arguments; None for any other function."""
    # The arguments of `Map.of` are key, value, key, value and so on. Keys become texts, as in JSON.
    if name == "Map.of" and len(values) % 2 == 0:
        pairs = zip(values[::2], values[1::2], strict=True)
        return Literal("dict", {str(key.value): value for key, value in pairs}, text)
    return Literal("list", values, text) if name in _LISTS else None


def _java_collection(node: Node, values: Sequence[Literal], text: str) -> Literal | None:
    """The collection that `new` makes of a Java class with these arguments; None if it cannot be read as one.

    A collection is empty, a copy of its argument, or filled in double braces.
    """
    name = _text(node, "type").partition("<")[0].rstrip()
    if not name.endswith(("Map", "List", "Set")):
        return None
    empty = Literal("list", [], text)
    if name.endswith("Map"):
        empty = Literal("dict", {}, text)
    for child in _children(node):
        if child.type == "class_body":
            return _filled(child, empty)
    if not values:
        return empty
    # A single argument may also be a capacity.
    is_copy = len(values) == 1 and values[0].kind == empty.kind
    return Literal(empty.kind, values[0].value, text) if is_copy else None


def _filled(body: Node, empty: Literal) -> Literal | None:
    """The `empty` collection with what the `put` or `add` calls in a class body (double braces) put into it.

    None if the body holds anything else.
    """
    method = "put" if empty.kind == "dict" else "add"
    width = 2 if empty.kind == "dict" else 1
    # The arguments of each call.
    calls = list[list[Literal]]()
    blocks = _children(body)
    if [block.type for block in blocks] != ["block"]:
        return None
    for statement in _children(blocks[0]):
        # Of `put(key, value);`
        call = statement.named_child(0)
        if statement.type != "expression_statement" or call is None or _name(call) != method:
            return None
        values = _literals(call.child_by_field_name("arguments"))
        if len(values) != width:
            return None
        calls.append(values)
    if empty.kind == "dict":
        return Literal("dict", {str(key.value): value for key, value in calls}, empty.text)
    return Literal("list", [value for (value,) in calls], empty.text)


def _object(node: Node, text: str) -> Literal | None:
    """A JavaScript object; None if it holds anything but `key: value`."""
    pairs = dict[str, Literal]()
    for pair in _children(node):
        key = pair.child_by_field_name("key")
        value = pair.child_by_field_name("value")
        if key is None or value is None or key.type == "computed_property_name":
            return None
        # In quotes or not.
        name = _literal(key)
        pairs[str(name.value) if name.kind == "string" else name.text] = _literal(value)
    return Literal("dict", pairs, text)


def unescape(text: str) -> str:
    """A string with the characters that its backslashes stand for."""
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text)


def number(text: str) -> Literal | None:
    """A number as a literal of the kind that its spelling says (3, 3L, 3n, 3.5, 3.5f); None for any other text.

    A sign may stand before it. More than about 300 digits do not count as a number, so that garbage takes little time.
    """
    match = re.fullmatch(r"([+-]?)\s*(\d[\d_]{0,300})([lLn]?)", text)
    if match:
        value = int(match[1] + match[2].replace("_", ""))
        return Literal("long" if match[3] else "int", value, text)
    match = re.fullmatch(
        r"([+-]?\s*(?:\d{1,300}\.?\d{0,300}|\.\d{1,300})(?:[eE][+-]?\d{1,4})?)([fFdD]?)", text
    )
    if match:
        number = float(re.sub(r"\s", "", match[1]))
        return Literal("float" if match[2] in ("f", "F") else "double", number, text)
    return None


def pieces(text: str) -> list[str]:
    """Single calls of a text in Java or JavaScript, cut at the separators that are outside brackets and quotes."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    # Quotes are hidden by text of the same length, so that places agree.
    hidden = QUOTED.sub(lambda match: "_" * len(match[0]), text)
    # The first piece begins at place 0, as if there were a separator before it.
    separators = [-1]
    open_brackets = 0
    for place, sign in enumerate(hidden):
        if sign in "([{":
            open_brackets += 1
        elif sign in ")]}":
            open_brackets -= 1
        elif sign in ",;\n" and open_brackets == 0:
            separators.append(place)
    spans = pairwise([*separators, len(text)])
    calls = [text[before + 1 : after].strip() for before, after in spans]
    return [call for call in calls if call]


def closed(text: str) -> str:
    """A text with its first or its last square bracket added if it only has the other, as BFCL's decoder does."""
    if text.startswith("[") and not text.endswith("]"):
        return f"{text}]"
    if text.endswith("]") and not text.startswith("["):
        return f"[{text}"
    return text


def depth(text: str) -> int:
    """Deepest nesting of brackets outside quotes."""
    signs = re.sub(r"[^()\[\]{}]", "", QUOTED.sub("", text))
    return max(accumulate((1 if sign in "([{" else -1 for sign in signs), initial=0))
