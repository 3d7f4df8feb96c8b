"""Calls in Java and JavaScript as tree-sitter reads them: what the package's own reader is compared with."""

from __future__ import annotations

import importlib
from functools import cache

import tree_sitter
from tree_sitter import Node, Parser

from souping.evaluate.scoring.call_reader import Literal, number, unescape

_CALLS = {"java": "method_invocation", "javascript": "call_expression"}
_LISTS = ("Arrays.asList", "List.of", "Set.of", "Array.of")


@cache
def _parser(language: str) -> Parser:
    grammar = importlib.import_module(f"tree_sitter_{language}")
    return tree_sitter.Parser(tree_sitter.Language(grammar.language()))


class TreeSitterReader:
    """What stands in for `CallReader`."""

    def __init__(self, source: str, language: str) -> None:
        self._source, self._language = source, language

    def read(self) -> tuple[str, dict[str, Literal], tuple[Literal, ...]]:
        root = _parser(self._language).parse(f"{self._source};".encode()).root_node
        statements = [node for node in root.named_children if "comment" not in node.type]
        if root.has_error or len(statements) != 1 or statements[0].type != "expression_statement":
            raise ValueError("not a single call")
        node = statements[0].named_children[0]
        if node.type != _CALLS[self._language]:
            raise ValueError("not a call")
        return _name(node, self._language), *_arguments(node.child_by_field_name("arguments"), self._language)


def _text(node: Node | None) -> str:
    return "" if node is None or node.text is None else node.text.decode()


def _name(node: Node, language: str) -> str:
    if language == "javascript":
        return _text(node.child_by_field_name("function"))
    owner, name = _text(node.child_by_field_name("object")), _text(node.child_by_field_name("name"))
    return f"{owner}.{name}" if owner else name


def _arguments(node: Node | None, language: str) -> tuple[dict[str, Literal], tuple[Literal, ...]]:
    if node is None or node.type not in ("argument_list", "arguments"):
        raise ValueError("a call without arguments in parentheses")
    named: dict[str, Literal] = {}
    positional = []
    for child in node.named_children:
        if child.type != "assignment_expression":
            positional.append(literal(child, language))
            continue
        name = _text(child.child_by_field_name("left"))
        if name in named:
            raise ValueError(f"argument {name} is given twice")
        value = child.child_by_field_name("right")
        if value is None:
            raise ValueError(f"argument {name} has no value")
        named[name] = literal(value, language)
    return named, tuple(positional)


def literal(node: Node, language: str) -> Literal:
    """The value of a node; what is no literal stays `code`, whose value is its text."""
    text = _text(node)
    if node.type in ("string_literal", "character_literal", "string"):
        inner = text[1:-1]
        return Literal("string", unescape(inner), inner)
    if text in ("true", "false"):
        return Literal("bool", text == "true", text)
    if text in ("null", "undefined"):
        return Literal("null", None, text)
    return number(text) or _collection(node, language) or Literal("code", text, text)


def _collection(node: Node, language: str) -> Literal | None:
    text = _text(node)
    if node.type in ("array", "array_initializer"):
        return _list(node, language, text)
    if node.type == "array_creation_expression":
        value = node.child_by_field_name("value")
        return None if value is None else _list(value, language, text)
    if node.type == "object":
        return _object(node, text)
    if node.type in ("object_creation_expression", "new_expression"):
        return _created(node, language, text)
    if node.type in _CALLS.values():
        return _factory(node, language, text)
    return None


def _list(node: Node | None, language: str, text: str) -> Literal:
    children = [] if node is None else node.named_children
    return Literal("list", [literal(child, language) for child in children if "comment" not in child.type], text)


def _object(node: Node, text: str) -> Literal | None:
    pairs: dict[str, Literal] = {}
    for child in node.named_children:
        key, value = child.child_by_field_name("key"), child.child_by_field_name("value")
        if child.type != "pair" or key is None or value is None:
            return None
        name = literal(key, "javascript")
        pairs[str(name.value) if name.kind == "string" else name.text] = literal(value, "javascript")
    return Literal("dict", pairs, text)


def _factory(node: Node, language: str, text: str) -> Literal | None:
    name = _name(node, language)
    arguments = node.child_by_field_name("arguments")
    if name in _LISTS:
        return _list(arguments, language, text)
    if name == "Map.of" and arguments is not None and len(arguments.named_children) % 2 == 0:
        values = [literal(child, language) for child in arguments.named_children]
        return Literal("dict", {str(k.value): v for k, v in zip(values[::2], values[1::2], strict=True)}, text)
    return None


def _created(node: Node, language: str, text: str) -> Literal | None:
    """`new Array(1, 2)`, `new ArrayList<>(Arrays.asList(1, 2))`, `new ArrayList<>() {{ add(1); }}`, and maps."""
    kind = _text(node.child_by_field_name("type") or node.child_by_field_name("constructor")).split("<")[0]
    arguments = node.child_by_field_name("arguments")
    if language == "javascript":
        return _list(arguments, language, text) if kind == "Array" else None
    is_map, is_list = kind.endswith("Map"), kind.endswith(("List", "Set"))
    if not (is_map or is_list):
        return None
    body = next((child for child in node.named_children if child.type == "class_body"), None)
    if body is not None:
        return _filled(body, text, is_map)
    inner = [] if arguments is None else [literal(child, language) for child in arguments.named_children]
    if not inner:
        return Literal("dict", {}, text) if is_map else Literal("list", [], text)
    same = inner[0].kind == ("dict" if is_map else "list") and len(inner) == 1
    return Literal(inner[0].kind, inner[0].value, text) if same else None


def _filled(body: Node, text: str, is_map: bool) -> Literal | None:
    """The double-brace idiom: the `put` or `add` calls of an instance initialiser."""
    blocks = [child for child in body.named_children if child.type == "block"]
    steps = [step.named_children[0] for block in blocks for step in block.named_children if step.named_children]
    calls = [(_name(step, "java"), _arguments(step.child_by_field_name("arguments"), "java")[1])
             for step in steps if step.type == "method_invocation"]  # fmt: skip
    expected = ("put", 2) if is_map else ("add", 1)
    if len(calls) != len(steps) or any((name, len(values)) != expected for name, values in calls):
        return None
    if is_map:
        return Literal("dict", {str(key.value): value for _, (key, value) in calls}, text)
    return Literal("list", [values[0] for _, values in calls], text)
