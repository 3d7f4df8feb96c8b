"""Whether the calls of an output are the calls of an answer, as BFCL's AST checker decides it.

Number of calls, names, required and optional arguments, types and values; the order of keyword arguments and of
parallel calls does not matter. Texts are compared without case, spaces and `,./-_*^`. Rules after bfcl-eval 2026.3.23
(Apache-2.0), with deliberate differences: calls are matched to answers by a perfect matching (BFCL takes the first
that fits), newline- or `;`-separated calls are read and every one of them counts (in Java and JavaScript BFCL ignores
all but the first, which would make two calls right where one is expected), and in Java and JavaScript a quoted number
is a string, strings in arrays lose their quotes and maps keep their entries (BFCL's parsers drop these).

An answer is one of
- `[{name: {parameter: [allowed, ...]}}]`, BFCL's form; "" among the allowed values: may be left out;
- a call as text or a list of such texts; `{"name": ..., "arguments": {...}}` or a list of these;
- `[]`: no call may be attempted; `"any"`: some call must be made;
- `{"calls": <any of these>, "functions": [BFCL's function docs]}`: types and required parameters come from the docs.

Nothing is ever executed: Python is read with `ast`, Java and JavaScript by tree-sitter. An output is one call,
several separated by newlines, `;` or `,`, or a list of calls in brackets; backticks around them are dropped.
"""

from __future__ import annotations

import ast
import operator
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from souping.core.fields import pick
from souping.core.types import Item, UserError
from souping.evaluate.scoring.call_reader import Literal, Value, closed, depth, pieces, read_call

ANY = "any"
Schema = Mapping[str, Any]
"""A JSON schema: of a function, or of one of its parameters."""
CALL_LANGUAGES = ("python", "java", "javascript")
LONGEST_OUTPUT_CHARS = 8_000
"""Characters of an output above which it is not read (and so is wrong): time stays bounded on garbage."""
DEEPEST = 40
"""Nesting of brackets above which an output is not read."""
# A line that begins with `name(` or `module.name(`, also after a bracket or backticks.
_ATTEMPT = re.compile(r"^[ \t`\[(]*[A-Za-z_$][\w$]*(?:\.[A-Za-z_$][\w$]*)*\(", re.MULTILINE)
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip


# Calls in a text


class Unparsable(ValueError):
    """The text is not a call, or a list of calls, of its language."""


@dataclass(frozen=True)
class Call:
    """`name(argument=value, ...)`. Values are Python values, or `Literal` for Java and JavaScript."""

    name: str
    arguments: Mapping[str, Value]
    positional: tuple[Value, ...] = ()


def parse_calls(text: str, language: str = "python") -> list[Call]:
    """The calls in `text`, in order; `[]` and a blank text hold none.

    Raises:
        Unparsable: for anything else; no other error, whatever the text.
        UserError: the language is not known.
    """
    if language not in CALL_LANGUAGES:
        pick(language, CALL_LANGUAGES, "language")
    body = closed(text.strip("` \t\r\n"))
    if len(body) > LONGEST_OUTPUT_CHARS or depth(body) > DEEPEST:
        raise Unparsable("too long or too deeply nested to be a call")
    if not body:
        return []
    try:
        if language == "python":
            return _python(body)
        return [Call(*read_call(piece, language)) for piece in pieces(body)]
    except (
        SyntaxError,
        ValueError,
        TypeError,
        ArithmeticError,
        RecursionError,
        MemoryError,
    ) as error:
        raise Unparsable(str(error)) from error


def is_attempt(text: str, language: str = "python") -> bool:
    """Whether the text tries to call something, well-formed or not: a line begins with `name(`, or it is calls."""
    try:
        return _ATTEMPT.search(text[:LONGEST_OUTPUT_CHARS]) is not None or bool(
            parse_calls(text, language)
        )
    except Unparsable:
        return False


def _python(text: str) -> list[Call]:
    """The calls in a Python text: one per statement, or several with commas between them, in brackets or not."""
    # Python warns of odd escapes in texts.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            nodes = [_expression(node) for node in ast.parse(textwrap.dedent(text)).body]
        except SyntaxError:
            # Calls that are separated by a comma and a line break are only valid in brackets.
            nodes = [ast.parse(f"[{text}\n]", mode="eval").body]
    calls = []
    for node in nodes:
        calls += node.elts if isinstance(node, ast.List | ast.Tuple) else [node]
    return [_python_call(node) for node in calls]


def _expression(node: ast.stmt) -> ast.expr:
    """The expression that a statement consists of; Unparsable for any other statement."""
    if not isinstance(node, ast.Expr):
        raise Unparsable("a statement, not a call")
    return node.value


def _python_call(node: ast.expr) -> Call:
    """The call that an expression is; Unparsable if it is not a call, or an argument is not a value."""
    if not isinstance(node, ast.Call):
        raise Unparsable("not a call")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise Unparsable("`**` in a call")
        if keyword.arg in arguments:
            raise Unparsable(f"argument {keyword.arg} is given twice")
        arguments[keyword.arg] = _value(keyword.value)
    return Call(_dotted(node.func), arguments, tuple(_value(argument) for argument in node.args))


def _dotted(node: ast.expr) -> str:
    """The name of a called function, `name` or `module.name`; Unparsable for any other expression."""
    name = ast.unparse(node)
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise Unparsable("the function has no plain name")
    return name


def _value(node: ast.expr) -> Value:
    """The Python value of an argument; Unparsable if the expression has no value.

    As in BFCL, names and other expressions that only running them could resolve stay text, and a call with keyword
    arguments is {name: arguments}.
    """
    if isinstance(node, ast.Constant):
        # JSON has no ellipsis, so an answer has it as text.
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
    raise Unparsable(f"an argument that is not a value ({type(node).__name__})")


def _dict(node: ast.Dict) -> dict[Value, Value]:
    """The value of a dictionary display."""
    # The key of `**mapping`.
    if None in node.keys:
        raise Unparsable("`**` in a dictionary")
    pairs = zip(node.keys, node.values, strict=True)
    return {_value(key): _value(value) for key, value in pairs if key is not None}


def _unary(node: ast.UnaryOp) -> Value:
    """The value of `not` before True or False, or of a sign before a number; Unparsable for others."""
    value = _value(node.operand)
    if isinstance(node.op, ast.Not) and isinstance(value, bool):
        return not value
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not isinstance(node.op, ast.USub | ast.UAdd)
    ):
        raise Unparsable("an operator on something that is not a number")
    return -value if isinstance(node.op, ast.USub) else value


def _binary(node: ast.BinOp) -> Value:
    """The value of arithmetic on numbers, or of `+` between two texts or lists; Unparsable for others.

    BFCL evaluates these too.
    """
    left = _value(node.left)
    right = _value(node.right)
    if _are_numbers(left, right):
        # A larger power could take forever.
        small = not isinstance(node.op, ast.Pow) or (abs(right) <= 64 and abs(left) <= 10**6)  # type: ignore[arg-type]
        if small and type(node.op) in _ARITHMETIC:
            result: Value = _ARITHMETIC[type(node.op)](left, right)
            return result
    # The value of a name is a text too, so only literals are joined.
    if isinstance(node.op, ast.Add) and all(
        isinstance(n, ast.Constant | ast.List) for n in (node.left, node.right)
    ):
        if isinstance(left, str) and isinstance(right, str):
            return left + right
        if isinstance(left, list) and isinstance(right, list):
            return [*left, *right]
    raise Unparsable("an expression that only code could resolve")


def _are_numbers(*values: Value) -> bool:
    """Whether all values are integers or floats, and not True or False."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


# Calls and answers


@dataclass(frozen=True)
class ExpectedCall:
    """Call that an answer expects.

    `allowed` is {argument: its allowed values}, `positional` the values of positional arguments. From the function's
    docs are `kinds`, {argument: its type} (None without docs), and the names of the `required` arguments.
    """

    name: str
    allowed: Mapping[str, Sequence[Value]]
    positional: tuple[Value, ...] = ()
    kinds: Mapping[str, Kind] | None = None
    required: tuple[str, ...] = ()


def score_calls(item: Item, output: str) -> float:
    """1.0 if the output's calls are the answer's, otherwise 0.0; unparsable outputs are wrong."""
    expected = read_answer(item)
    # No call may be attempted.
    if expected is not None and not expected:
        return float(not is_attempt(output, item.language))
    try:
        calls = parse_calls(output, item.language)
    except Unparsable:
        return 0.0
    # Any call is right.
    if expected is None:
        return float(bool(calls))
    return float(len(calls) == len(expected) and _matched(calls, expected, item.language))


def check_call_item(item: Item) -> None:
    """Refuse an answer in none of the forms, and an unknown language (UserError)."""
    pick(item.language, CALL_LANGUAGES, f"item {item.id}: language")
    read_answer(item)


def read_answer(item: Item) -> list[ExpectedCall] | None:
    """The calls that an item's answer expects; empty if no call may be made, None for `"any"`.

    Raises:
        UserError: the answer has none of the forms.
    """
    answer: Value = item.answer
    functions: Iterable[Schema] = []
    # The answer may come with the functions' docs.
    if (
        isinstance(item.answer, dict)
        and "calls" in item.answer
        and set(item.answer) <= {"calls", "functions"}
    ):
        answer = item.answer["calls"]
        functions = item.answer.get("functions", [])
    if answer == ANY:
        return None
    entries = answer if isinstance(answer, list) else [answer]
    try:
        expected = list[ExpectedCall]()
        for entry in entries:
            expected += _read_entry(entry, item.language)
        docs = {function["name"]: function["parameters"] for function in functions}
        return [_documented(call, docs, item.language) for call in expected]
    except (Unparsable, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else f"{error}"[:80]
        raise UserError(
            f"item {item.id}: the `call` answer cannot be read ({reason}); "
            "give [{name: {parameter: [allowed, ...]}}], a call as text, {name, arguments}, or [] for no call"
        ) from error


def _read_entry(entry: Any, language: str) -> list[ExpectedCall]:
    """The calls that an entry of an answer expects: a text of calls, {name, arguments}, or BFCL's form."""
    if isinstance(entry, str):
        calls = parse_calls(entry, language)
        if not calls:
            raise ValueError("a text without a call")
        return [
            ExpectedCall(
                call.name,
                _allowed_values(call.arguments),
                tuple(map(plain_value, call.positional)),
            )
            for call in calls
        ]
    if set(entry) == {"name", "arguments"} and isinstance(entry["name"], str):
        return [ExpectedCall(entry["name"], _allowed_values(entry["arguments"]))]
    # {name: {parameter: [allowed, ...]}}
    ((name, arguments),) = entry.items()
    if not all(isinstance(allowed, list) for allowed in arguments.values()):
        raise ValueError(f"every argument of {name} needs a list of allowed values")
    return [ExpectedCall(name, arguments)]


def _allowed_values(arguments: Mapping[str, Value]) -> dict[str, list[Value]]:
    """{argument: [its value]}: the allowed values of arguments that may each have one value only."""
    return {name: [_allow(plain_value(value))] for name, value in arguments.items()}


def _allow(value: Value) -> Value:
    """A plain value as an option of BFCL's, where each key of an object has a list of allowed values."""
    if isinstance(value, dict):
        return {key: [_allow(inner)] for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_allow(inner) for inner in value]
    return value


def _documented(call: ExpectedCall, docs: Mapping[str, Schema], language: str) -> ExpectedCall:
    """An expected call with what the docs, {function: schema of its parameters}, say about its arguments."""
    if not docs:
        return call
    parameters = docs[call.name]
    kinds = {name: kind_of(schema, language) for name, schema in parameters["properties"].items()}
    required = tuple(parameters.get("required", ()))
    # With docs BFCL's rules hold, which ignore positional values.
    return replace(call, positional=(), kinds=kinds, required=required)


def _matched(calls: Sequence[Call], expected: Sequence[ExpectedCall], language: str) -> bool:
    """Whether calls and answers can be paired one to one, in any order."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    # Whether a call fits, [expected, calls].
    fits = list[list[bool]]()
    for answer in expected:
        fits.append([_fits(call, answer, language) for call in calls])
    if not all(map(any, fits)):
        return False
    # The matching has -1 for a call without a partner.
    return bool((maximum_bipartite_matching(csr_matrix(fits)) >= 0).all())


def _fits(call: Call, expected: ExpectedCall, language: str) -> bool:
    """Whether a call is the expected one: its name, and each of its arguments."""
    if call.name != expected.name or any(name not in call.arguments for name in expected.required):
        return False
    if not _positional_fit(call, expected, language):
        return False
    missing = [name for name in expected.allowed if name not in call.arguments]
    # An allowed "" says that the argument may be left out.
    if any("" not in expected.allowed[name] for name in missing):
        return False
    return all(_argument_fits(name, value, expected) for name, value in call.arguments.items())


def _positional_fit(call: Call, expected: ExpectedCall, language: str) -> bool:
    """Whether a call's positional arguments are those that the answer expects. Only an answer given as text has any.

    Otherwise BFCL's rules hold: positional values are ignored, but in Java and JavaScript a name, such as a variable's,
    is an argument that was not expected.
    """
    if expected.positional:
        values = [plain_value(value) for value in call.positional]
        options = [_allow(option) for option in expected.positional]
        return _same(values, options, strict=True)
    if language == "python":
        return True
    expressions = [
        value for value in call.positional if isinstance(value, Literal) and value.kind == "code"
    ]
    return not any(re.fullmatch(r"[\w$]+", value.text) for value in expressions)


def _argument_fits(name: str, value: Value, expected: ExpectedCall) -> bool:
    """Whether the value of a keyword argument is allowed, and has the documented type if there are docs.

    A string may also be allowed as it is written. With docs, this needs a parameter whose documented type is a text.
    """
    allowed = expected.allowed.get(name)
    kinds = expected.kinds
    if allowed is None or (kinds is not None and name not in kinds):
        return False
    if kinds is None:
        return agrees(plain_value(value), allowed) or _agrees_as_written(value, allowed)
    kind = kinds[name]
    if agrees(to_kind(value, kind), allowed, kind):
        return True
    return kind.type is str and _agrees_as_written(value, allowed)


def _agrees_as_written(value: Value, allowed: Sequence[Value]) -> bool:
    """Whether a Java or JavaScript string is allowed as it is written, with its escapes.

    BFCL does not resolve escapes, so its answers have them.
    """
    if not isinstance(value, Literal) or value.kind != "string":
        return False
    return value.text != value.value and agrees(value.text, allowed)


_PYTHON = {
    "string": str, "integer": int, "float": float, "number": float, "boolean": bool, "array": list, "list": list,
    "tuple": list, "dict": dict, "object": dict, "any": str,
}  # fmt: skip
_JAVA = {
    "byte": int, "short": int, "integer": int, "long": int, "float": float, "double": float, "boolean": bool,
    "char": str, "String": str, "any": str, "Array": list, "ArrayList": list, "Set": list, "Queue": list,
    "Stack": list, "HashMap": dict, "Hashtable": dict,
}  # fmt: skip
_JAVASCRIPT = {
    "String": str, "integer": int, "float": float, "Bigint": int, "Boolean": bool, "dict": dict, "array": list,
    "any": str,
}  # fmt: skip
PARAMETER_TYPES: dict[str, dict[str, type]] = {
    "python": _PYTHON,
    "java": _JAVA,
    "javascript": _JAVASCRIPT,
}
"""{language: {type in the docs: type in Python}}"""
_SPELLINGS = {
    "byte": ("int",), "short": ("int",), "integer": ("int",), "long": ("long",), "Bigint": ("long",),
    "float": ("float",), "double": ("double", "int"), "boolean": ("bool",), "Boolean": ("bool",),
}  # fmt: skip
"""Kinds of literal that may be written for a documented type; JavaScript's float is any plain number."""


@dataclass(frozen=True)
class Kind:
    """Type of a parameter in a function's docs.

    `name` is the documented name of the type, in the item's `language`; `type` is the Python type, and `inner` the type
    of a list's elements.
    """

    name: str
    type: type
    language: str
    inner: Kind | None = None


def kind_of(schema: Schema, language: str) -> Kind:
    """The type that a parameter's JSON schema names.

    Raises:
        ValueError: BFCL has no such type in this language.
    """
    name = schema["type"]
    if name not in PARAMETER_TYPES[language]:
        raise ValueError(f"type {name!r} is not known in the item's language, {language}")
    items = schema.get("items")
    inner = None
    has_elements = name in ("array", "tuple", "Array", "ArrayList")
    if has_elements and isinstance(items, Mapping) and "type" in items:
        inner = kind_of(items, language)
    return Kind(name, PARAMETER_TYPES[language][name], language, inner)


def plain_value(value: Value) -> Value:
    """A literal of Java or JavaScript as a Python value, its type by its spelling; a Python value as it is."""
    if not isinstance(value, Literal):
        return value
    if value.kind == "code":
        return value.text
    if value.kind == "list" and isinstance(value.value, list):
        return [plain_value(element) for element in value.value]
    if value.kind == "dict" and isinstance(value.value, dict):
        return {key: plain_value(element) for key, element in value.value.items()}
    return value.value


def to_kind(value: Value, kind: Kind) -> Value:
    """A literal as a value of a documented type; a Python value as it is.

    What is not spelled like that type stays text: it is wrong, unless a variable is allowed there.
    """
    if not isinstance(value, Literal):
        return value
    if kind.type is str:
        return value.value if value.kind == "string" else value.text
    if kind.type in (list, dict):
        return _container(value, kind)
    spellings = _SPELLINGS[kind.name]
    # JavaScript has no suffix for floats.
    if kind.language != "java" and kind.name == "float":
        spellings = ("double", "int")
    if value.kind in spellings and _is_plain_number(value):
        number: Value = kind.type(value.value)
        return number
    return value.text


def _is_plain_number(value: Literal) -> bool:
    """Whether BFCL's patterns of numbers match a number as written; always for true and false.

    They know no plus sign, no underscore, no leading or trailing point and no suffix `d`.
    """
    return (
        value.kind == "bool"
        or re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?[fFlLn]?", value.text) is not None
    )


def _container(value: Literal, kind: Kind) -> Value:
    """A literal as a list or dict of the documented type, and its elements as values of their documented type.

    A literal of another type stays text.
    """
    # {documented type: how a Java literal of it begins}; literals of other types may begin in any way.
    opening = {
        "Array": r"new\s+\w+\s*\[",
        "ArrayList": r"new\s+ArrayList\b",
        "HashMap": r"new\s+HashMap\b",
    }
    if value.kind != kind.type.__name__ or not re.match(opening.get(kind.name, ""), value.text):
        return value.text
    if kind.type is list and kind.inner is not None and isinstance(value.value, list):
        return [to_kind(element, kind.inner) for element in value.value]
    return plain_value(value)


def agrees(value: Value, allowed: Sequence[Value], kind: Kind | None = None) -> bool:
    """Whether a value is one of the allowed ones, in type and content.

    Without `kind` the allowed values decide the type (an int may stand for a float). With it, the type is the
    documented one or, if a variable is allowed in its place, that of the first allowed value.
    """
    if kind is None:
        return any(_same(value, option, strict=True) for option in allowed)
    # In Python, an int may stand for a float, and a tuple is compared as the list that JSON makes of it.
    if kind.type is float and type(value) is int and kind.language == "python":
        value = float(value)
    if kind.name == "tuple" and isinstance(value, tuple):
        value = list(value)
    # "" only says that the argument may be left out.
    first_type = next((type(option) for option in allowed if option != ""), None)
    # The value can only be right as a variable, which BFCL compares exactly.
    if type(value) is not kind.type:
        return type(value) is first_type and any(_equal(value, option) for option in allowed)
    if not _elements_fit(value, allowed, kind):
        return False
    # If the allowed values are not of the documented type, BFCL compares exactly as well.
    same = _same if first_type in (None, kind.type) else _equal
    return any(same(value, option) for option in allowed)


def _elements_fit(value: Value, allowed: Sequence[Value], kind: Kind) -> bool:
    """Whether a list's elements have the documented type, or the type of the first element of one of the allowed lists.

    Like BFCL, this checks one level of nesting. Any value that is not a list passes.
    """
    if not isinstance(value, list) or kind.inner is None:
        return True
    for option in allowed:
        # As in BFCL, an option that is not a list, such as a variable's name, allows any elements.
        if not isinstance(option, list):
            return True
        types = {kind.inner.type, *(type(element) for element in option[:1])}
        if all(type(element) in types for element in value):
            return True
    return False


def standardise(text: str) -> str:
    """A text as it is compared: without spaces and `,./-_*^`, in lower case, and with double quotes only."""
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def _same(value: Value, option: Value, strict: bool = False) -> bool:
    """Whether a value is an allowed one: texts are compared standardised, lists and dicts element by element, and all
    other values by `_equal`, which gets `strict`.
    """
    if isinstance(value, str) and isinstance(option, str):
        return standardise(value) == standardise(option)
    if isinstance(value, list | tuple):
        # "" allows to leave the list out, so an empty list is right too.
        if option == "":
            return not value
        if not isinstance(option, list | tuple) or len(value) != len(option):
            return False
        return all(_same(a, b, strict) for a, b in zip(value, option, strict=True))
    if isinstance(value, dict) and isinstance(option, dict):
        return _same_dict(value, option)
    return _equal(value, option, strict)


def _equal(value: Value, option: Value, strict: bool = False) -> bool:
    """Whether two values are equal and of one type, or both numbers; if `strict`, only an int may stand for a float."""
    if type(value) is type(option):
        comparable = True
    elif strict:
        comparable = type(value) is int and isinstance(option, float)
    else:
        comparable = _are_numbers(value, option)
    return comparable and bool(value == option)


def _same_dict(value: Mapping[Value, Value], option: Mapping[str, Value]) -> bool:
    """Whether a dict has the keys and values of BFCL's `option`, {key: [allowed, ...]} or {key: allowed}.

    A key may be left out if "" is allowed.
    """
    allowed_values = dict[Value, list[Value]]()
    for name, allowed in option.items():
        allowed_values[name] = allowed if isinstance(allowed, list) else [allowed]
    for key, choices in allowed_values.items():
        if key not in value and "" not in choices:
            return False
    for key, inner in value.items():
        # BFCL does not check the types of the values in a dict.
        if not any(_same(inner, choice, strict=False) for choice in allowed_values.get(key, ())):
            return False
    return True
