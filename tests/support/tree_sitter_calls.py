"""Calls in Java and JavaScript as tree-sitter reads them: what the package's own reader is compared with."""

from __future__ import annotations

import importlib
from functools import cache

import tree_sitter
from tree_sitter import Node, Parser

from souping.evaluate.scoring.call_reader import Literal, number, unescape

_CALLS = {"java": "method_invocation", "javascript": "call_expression"}


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
        return _name(node, self._language), *_arguments(
            node.child_by_field_name("arguments"), self._language
        )


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
    return number(text) or _list(node, language) or Literal("code", text, text)


def _list(node: Node, language: str) -> Literal | None:
    """An array; other collections are in no answer of the main job, and have tests of their own."""
    array = node.child_by_field_name("value") if node.type == "array_creation_expression" else node
    if array is None or array.type not in ("array", "array_initializer"):
        assert node.type not in (
            "object",
            "object_creation_expression",
            "new_expression",
            *_CALLS.values(),
        )
        return None
    children = [
        literal(child, language) for child in array.named_children if "comment" not in child.type
    ]
    return Literal("list", children, _text(node))
