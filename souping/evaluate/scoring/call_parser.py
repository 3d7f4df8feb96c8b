"""From a model's output to the calls that it contains. Nothing is ever executed.

Python is read with `ast`, Java and JavaScript by `call_reader`. Accepted: one call, several calls separated by
newlines, `;` or `,`, and a list of calls in brackets. Backticks around them are dropped.
"""

from __future__ import annotations

import ast
import operator
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from souping.core.fields import pick
from souping.evaluate.scoring.call_reader import CallReader, Value

LANGUAGES = ("python", "java", "javascript")
LONGEST = 8_000
"""Characters of an output above which it is not read (and so is wrong): time stays bounded on garbage."""
DEEPEST = 40
"""Nesting of brackets above which an output is not read."""
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
        return [Call(*CallReader(piece, language).read()) for piece in _pieces(body)]
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
