"""From a model's output to the calls it holds: a real parser for each language, and nothing is ever executed.

Python is read with `ast`, Java and JavaScript with tree-sitter. Accepted: one call, several calls separated by a
newline, `;` or `,`, and a list of calls in brackets; code fences of bare backticks around them are dropped.

Calls in Java and JavaScript, read with tree-sitter.

A literal keeps its kind beside its value, because the types of these languages are told by how a value is written
(`42L`, `1.5f`, `7n`); `text` is the source, without the quotes of a string.
"""

from __future__ import annotations

import ast
import importlib
import operator
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

from souping.core.fields import pick

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

LANGUAGES = ("python", "java", "javascript")
LONGEST = 8_000
"""Characters of an output above which it is not read (and so is wrong): time stays bounded on garbage."""
DEEPEST = 40
"""Nesting of brackets above which an output is not read."""
Value: TypeAlias = (
    "Literal | Mapping[str, Value] | Mapping[Value, Value] | Sequence[Value] | str | bytes | float | complex | None"
)
"""A value in a call, of Python or as written in another language; texts are sequences too, so narrow by `str` first."""
_ATTEMPT = re.compile(r"^[ \t`\[(]*[A-Za-z_$][\w$]*(?:\.[A-Za-z_$][\w$]*)*\(", re.MULTILINE)
_QUOTED = re.compile(r"\"(?:[^\"\\\n]|\\.)*+\"?|'(?:[^'\\\n]|\\.)*+'?")  # possessive: linear on garbage
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip


class Unparsable(ValueError):
    """The text is not a call, or a list of calls, of its language."""


@dataclass(frozen=True)
class Call:
    """`name(argument=value, ...)`. Values are Python values, or `Literal` for Java and JavaScript."""

    name: str
    arguments: Mapping[str, Value]
    positional: tuple[Value, ...] = field(default=())


def parse(text: str, language: str = "python") -> list[Call]:
    """The calls in `text`, in its order; `[]` and a blank text hold none.

    Raises:
        Unparsable: for anything else; no other error, whatever the text.
        UserError: the language is not known.
    """
    pick(language, LANGUAGES, "language")
    body = _closed(text.strip("` \t\r\n"))
    if len(body) > LONGEST or _depth(body) > DEEPEST:
        raise Unparsable("too long or too deeply nested to be a call")
    if not body:
        return []
    try:
        if language == "python":
            return _python(body)
        return [call(piece, language) for piece in _pieces(body)]
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise Unparsable(str(error)) from error


def is_attempt(text: str, language: str = "python") -> bool:
    """Whether the text tries to call something, well-formed or not: a line that opens with `name(`, or calls."""
    if _ATTEMPT.search(text[:LONGEST]):
        return True
    try:
        return bool(parse(text, language))
    except Unparsable:
        return False


def _closed(text: str) -> str:
    """A list that lacks its first or its last bracket gets it, as BFCL's decoder does."""
    if text.startswith("[") and not text.endswith("]"):
        return f"{text}]"
    return f"[{text}" if text.endswith("]") and not text.startswith("[") else text


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside quotes."""
    deepest = depth = 0
    for sign in re.sub(r"[^()\[\]{}]", "", _QUOTED.sub("", text)):
        depth += 1 if sign in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


def _python(text: str) -> list[Call]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            nodes = [_expression(node) for node in ast.parse(textwrap.dedent(text)).body]
        except SyntaxError:
            nodes = [ast.parse(f"[{text}\n]", mode="eval").body]
    calls: list[ast.expr] = []
    for node in nodes:
        calls += node.elts if isinstance(node, ast.List | ast.Tuple) else [node]
    return [_python_call(node) for node in calls]


def _expression(node: ast.stmt) -> ast.expr:
    if not isinstance(node, ast.Expr):
        raise Unparsable("a statement, not a call")
    return node.value


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise Unparsable("not a call")
    arguments: dict[str, Value] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise Unparsable("`**` in a call")
        if keyword.arg in arguments:
            raise Unparsable(f"argument {keyword.arg} is given twice")
        arguments[keyword.arg] = _value(keyword.value)
    return Call(_dotted(node.func), arguments, tuple(_value(argument) for argument in node.args))


def _dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise Unparsable("the function has no plain name")
    return ".".join([node.id, *reversed(parts)])


def _value(node: ast.expr) -> Value:
    """A Python value; names and expressions that only code could resolve stay text, as in BFCL."""
    if isinstance(node, ast.Constant):
        return "..." if node.value is ... else node.value
    if isinstance(node, ast.List):
        return [_value(element) for element in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(element) for element in node.elts)
    if isinstance(node, ast.Dict):
        return _dict(node)
    if isinstance(node, ast.UnaryOp):
        return _unary(node)
    if isinstance(node, ast.BinOp):
        return _binary(node)
    if isinstance(node, ast.Call) and node.keywords:
        call = _python_call(node)
        return {call.name: {**call.arguments}}
    if isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript):
        return ast.unparse(node)
    raise Unparsable(f"an argument that is no value ({type(node).__name__})")


def _dict(node: ast.Dict) -> dict[Value, Value]:
    if None in node.keys:
        raise Unparsable("`**` in a dictionary")
    pairs = zip(node.keys, node.values, strict=True)
    return {_value(key): _value(value) for key, value in pairs if key is not None}


def _unary(node: ast.UnaryOp) -> Value:
    value = _value(node.operand)
    if isinstance(node.op, ast.Not) and isinstance(value, bool):
        return not value
    if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(node.op, ast.USub | ast.UAdd):
        raise Unparsable("an operator on something that is no number")
    return -value if isinstance(node.op, ast.USub) else value


def _binary(node: ast.BinOp) -> Value:
    """Arithmetic on numbers (with a bounded power) and joining of texts or lists; BFCL evaluates these too."""
    left, right = _value(node.left), _value(node.right)
    if _is_number(left) and _is_number(right):
        if isinstance(node.op, ast.Pow) and abs(right) <= 64 and abs(left) <= 10**6:
            return operator.pow(left, right)  # type: ignore[no-any-return]  # complex for a root of a negative number
        if type(node.op) in _ARITHMETIC:
            return _ARITHMETIC[type(node.op)](left, right)
    if isinstance(node.op, ast.Add) and all(isinstance(n, ast.Constant | ast.List) for n in (node.left, node.right)):
        if isinstance(left, str) and isinstance(right, str):
            return left + right
        if isinstance(left, list) and isinstance(right, list):
            return [*left, *right]
    raise Unparsable("an expression that only code could resolve")


def _is_number(value: Value) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pieces(text: str) -> list[str]:
    """Cut Java or JavaScript into single calls at the separators that stand outside brackets and quotes."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    hidden = _QUOTED.sub(lambda match: "_" * len(match[0]), text)
    cuts, depth = [-1], 0
    for place, sign in enumerate(hidden):
        if sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif sign in ",;\n" and depth == 0:
            cuts.append(place)
    pieces = [text[a + 1 : b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [piece for piece in pieces if piece]


_CALLS = {"java": "method_invocation", "javascript": "call_expression"}
_LISTS = ("Arrays.asList", "List.of", "Set.of", "Array.of")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}


@dataclass(frozen=True)
class Literal:
    """Value as written. Kinds: int, long, float, double, bool, string, null, list, dict, code."""

    kind: str
    value: Value
    text: str


@cache
def _parser(language: str) -> Parser:
    import tree_sitter

    grammar = importlib.import_module(f"tree_sitter_{language}")
    return tree_sitter.Parser(tree_sitter.Language(grammar.language()))


def call(source: str, language: str) -> Call:
    """The one call that `source` is.

    Raises:
        ValueError: it is something else.
    """
    root = _parser(language).parse(f"{source};".encode()).root_node
    statements = [node for node in root.named_children if "comment" not in node.type]
    if root.has_error or len(statements) != 1 or statements[0].type != "expression_statement":
        raise ValueError("not a single call")
    node = statements[0].named_children[0]
    if node.type != _CALLS[language]:
        raise ValueError("not a call")
    return Call(_name(node, language), *_arguments(node.child_by_field_name("arguments"), language))


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
        return Literal("string", _unescape(inner), inner)
    if text in ("true", "false"):
        return Literal("bool", text == "true", text)
    if text in ("null", "undefined"):
        return Literal("null", None, text)
    return _number(text) or _collection(node, language) or Literal("code", text, text)


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text) if "\\" in text else text


def _number(text: str) -> Literal | None:
    """Numbers by their spelling: 3, 3L, 3n, 3.5, 3.5f; a sign may stand before them."""
    match = re.fullmatch(r"([+-]?)\s*(\d[\d_]{0,300})([lLn]?)", text)
    if match:
        value = int(match[1] + match[2].replace("_", ""))
        return Literal("long" if match[3] else "int", value, text)
    match = re.fullmatch(r"([+-]?\s*(?:\d{1,300}\.?\d{0,300}|\.\d{1,300})(?:[eE][+-]?\d{1,4})?)([fFdD]?)", text)
    if match:
        number = float(re.sub(r"\s", "", match[1]))
        return Literal("float" if match[2] in ("f", "F") else "double", number, text)
    return None


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
