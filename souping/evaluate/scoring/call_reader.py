"""Reader of calls in Java and JavaScript. It reads literals; every other expression stays text.

A level of brackets becomes a row of letters, one for each token and one for each bracket with all that it holds. A
regular expression says whether operands and operators alternate in it; then the brackets are read in the same way.
Precedence does not matter, since nothing is evaluated. Bodies of functions and classes are not checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, TypeAlias

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


class Token(NamedTuple):
    """`letter` says what it is: s string, n number, w word, N `new`, T type arguments, r a word that is not a value,
    = and A assignments, a arrow, u `++`, o operator between operands, - sign, ! operator before one, else the token
    itself.
    """

    letter: str
    text: str
    start: int
    end: int


_D = r"\d(?:_?\d)*"
_HEX = r"0[xX][\da-fA-F](?:_?[\da-fA-F])*"
_BIT = r"0[bB][01](?:_?[01])*"
_EXP = rf"[eE][+-]?{_D}"
_ESCAPE = r"\\(?:[^xu0-7]|[0-7]{1,3}|x[\da-fA-F]{2}|u[\da-fA-F]{4}|u\{[\da-fA-F]+\})"
_TOKEN = (
    r"(?P<space>\s+|//[^\n]*|/\*(?s:.*?)\*/)|(?P<s>%s)|(?P<n>%s|`[^`]*`)|(?P<N>new\b(?!\$))|(?P<w>[^\W\d][\w$]*|\$[\w$]*)"
    r"|(?P<T><[\w\s.,?&<>\[\]]*>(?=\s*[(\[]))|(?P<u>\+\+|--)|(?P<a>=>|->)|(?P<B>\{)|(?P<P>\()|(?P<L>\[)"
    r"|(?P<A>(?:>>>|\*\*|<<|>>|&&|\|\||\?\?|[-+*/%%&|^])=(?!=))|(?P<o>[=!]==?|[<>]=|>{2,3}|<<|&&|\|\||\?\?|\*\*|[*/%%&|^<>])"
    r"|(?P<dots>\.\.\.|::|\?\.(?!\d))|(?P<sign>[-+])|(?P<not>[!~])|(?P<other>[=)\]},;.:?])"
)
_TOKENS = {
    "java": re.compile(
        _TOKEN
        % (
            rf'"(?:[^"\\]|{_ESCAPE})*"' + r"|'(?:[^'\\\n]|\\.|\\\n)+'",
            rf"(?:{_HEX}|{_BIT})[lL]?|(?:{_D}\.(?:{_D})?(?:{_EXP})?|\.{_D}(?:{_EXP})?|{_D}{_EXP})[fFdD]?|{_D}[fFdD]|0[oO]?[0-7](?:_?[0-7])*[lL]?|(?:0|[1-9](?:_*\d)*)[lL]?",
        )
    ),
    "javascript": re.compile(
        _TOKEN
        % (
            rf'"(?:[^"\\\n\r]|{_ESCAPE})*+\s*+"|' + rf"'(?:[^'\\\n\r]|{_ESCAPE})*+\s*+'",
            rf"(?:{_HEX}|{_BIT}|0[oO][0-7](?:_?[0-7])*)n?|{_D}n"
            rf"|(?:0|0?[1-9](?:_?\d)*)(?:\.(?:{_D})?(?:{_EXP})?|{_EXP})|\.{_D}(?:{_EXP})?|{_D}",
        )
    ),
}
_ABSENT = {
    "java": "switch => === !== ** ?? **= &&= ||= ??= ... ?.",
    "javascript": "-> :: break case catch class const continue debugger default do else export extends finally for if "
    "import return switch throw try var while with",
}
"""What is not a token of the language, and words that are not names where a value is due."""
_SPECIAL = {
    language: dict.fromkeys(words.split(), "r") | {"instanceof": "o"}
    for language, words in _ABSENT.items()
}
_SPECIAL["javascript"] |= dict.fromkeys(("typeof", "void", "delete", "await"), "!") | {"in": "o"}
_LETTERS = {"sign": "-", "not": "!", "::": ".", "?.": ".", "...": "d"}
_OPERAND = {
    "java": r"(?:[-!u]|[wP]a|P(?=[snwNP!]))*+(?:[snwP]|(?<=a)B|Nw(?:\.w)*T?(?:PB?|E+B|[EL]+))(?:\.[ws]|(?<=w)P|L|u)*",
    "javascript": r"(?:[-!u]|w?[wP]a)*+(?:[snwPLEB]|Nw(?:\.w)*P?)(?:\.w|\.?PB?|\.?L|u)*",
}
_ASSIGNED = r"(?:(?<=w)|(?<=[wPL]L))[=A]"
_EXPRESSIONS = {
    language: re.compile(f"d?{operand}(?:(?:[o?:-]|{_ASSIGNED}){operand})*")
    for language, operand in _OPERAND.items()
}
# possessive: linear on garbage
QUOTED = re.compile(r"\"(?:[^\"\\\n]|\\.)*+\"?|'(?:[^'\\\n]|\\.)*+'?")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_LISTS = ("Arrays.asList", "List.of", "Set.of", "Array.of")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}
_CONSTANTS = {
    "true": ("bool", True),
    "false": ("bool", False),
    "null": ("null", None),
    "undefined": ("null", None),
}
Span = tuple[int, int]
"""Places of the first token and of the one behind the last."""


def _tokens(source: str, language: str) -> list[Token]:
    tokens = list[Token]()
    place = 0
    while place < len(source):
        match = _TOKENS[language].match(source, place)
        if match is None:
            raise ValueError(f"no token of {language}: {source[place]!r}")
        text = match[0]
        kind = str(match.lastgroup)
        letter = _LETTERS.get(kind, text if kind == "other" else _LETTERS.get(text, kind))
        is_member = kind in ("w", "N") and bool(tokens) and tokens[-1].letter == "."
        letter = "w" if is_member else _SPECIAL[language].get(text, letter)
        if kind != "space":
            tokens.append(Token(letter, text, place, match.end()))
        place = match.end()
    return tokens


def _pairs(tokens: Sequence[Token]) -> dict[int, int]:
    """{place of a bracket that opens: place of the one that closes it}."""
    pairs = dict[int, int]()
    waiting = list[int]()
    for place, token in enumerate(tokens):
        if token.text in _CLOSING:
            waiting.append(place)
        elif token.text in _CLOSING.values():
            if not waiting or _CLOSING[tokens[waiting[-1]].text] != token.text:
                raise ValueError("brackets do not match")
            pairs[waiting.pop()] = place
    if waiting:
        raise ValueError("a bracket is not closed")
    return pairs


class CallReader:
    """Reader of the one call that a source is."""

    def __init__(self, source: str, language: str) -> None:
        self._source = source
        self._language = language
        self._java = language == "java"
        self._tokens = _tokens(source, language)
        self._pairs = _pairs(self._tokens)

    def read(self) -> tuple[str, dict[str, Literal], tuple[Literal, ...]]:
        """(name, named arguments, positional ones).

        Raises:
            ValueError: the source is something else.
        """
        span = (0, len(self._tokens))
        row, places = self._row(span)
        if row[-1:] != "P" or not re.fullmatch(
            rf"(?![-!u]|.a|N[^P]*P$){_OPERAND[self._language]}", row
        ):
            raise ValueError("not a single call")
        self._expression((0, places[-1]))
        named = dict[str, Literal]()
        positional = list[Literal]()
        for argument in self._split(places[-1]):
            row, inner = self._row(argument)
            match = re.match(
                r"w(?:\.w|[PL])*(?=[=A])" if self._java else r"w(?:\.w|[PL])*(?==)", row
            )
            if not match:
                positional.append(self._expression(argument))
                continue
            equals = match.end()
            name = self._text((argument[0], inner[equals]))
            if name in named:
                raise ValueError(f"argument {name} is given twice")
            named[name] = self._expression((inner[equals] + 1, argument[1]))
        return self._name((0, places[-1])), named, tuple(positional)

    def _text(self, span: Span) -> str:
        if span[0] >= span[1]:
            return ""
        return self._source[self._tokens[span[0]].start : self._tokens[span[1] - 1].end]

    def _name(self, span: Span) -> str:
        text = self._text(span)
        owner, _, method = text.rpartition(".")
        if not owner or not self._java:
            return text
        return f"{owner.rstrip()}.{method.lstrip()}"

    def _row(self, span: Span) -> tuple[str, list[int]]:
        """The letters of a span, and the place of each."""
        row = ""
        places = list[int]()
        place = span[0]
        while place < span[1]:
            letter = self._tokens[place].letter
            row += "E" if letter == "L" and self._pairs[place] == place + 1 else letter
            places.append(place)
            place = self._pairs.get(place, place) + 1
        return row, places

    def _split(
        self, opening: int, trailing: bool = False, holes: bool = True, comma: str = ","
    ) -> list[Span]:
        """What stands between the commas of a bracket; JavaScript may leave values out of lists and calls."""
        spans = list[Span]()
        first = opening + 1
        end = self._pairs[opening]
        row, places = self._row((first, end))
        commas = [place for letter, place in zip(row, places, strict=True) if letter == comma]
        for place in (*commas, end):
            spans.append((first, place))
            first = place + 1
        if holes and not self._java:
            return [span for span in spans if span[0] < span[1]]
        # Nothing stands behind the last comma, or in the bracket.
        if spans[-1][0] == end and (len(spans) == 1 or trailing):
            return spans[:-1]
        return spans

    def _expression(self, span: Span) -> Literal:
        row, places = self._row(span)
        if not _EXPRESSIONS[self._language].fullmatch(row) or row.count("?") != row.count(":"):
            raise ValueError(f"not an expression: {self._text(span)[:40]}")
        inner = []
        for nth, (letter, place) in enumerate(zip(row, places, strict=True)):
            if letter in "PLB":
                inner = self._bracket(letter, place, row[nth - 1 : nth], row[nth + 1 : nth + 2])
        text = self._text(span)
        if row == "s":
            return Literal("string", unescape(text[1:-1]), text[1:-1])
        if text in _CONSTANTS:
            return Literal(*_CONSTANTS[text], text)
        if row == "B" and not self._java:
            return self._object(places[0])
        plain = Literal("code", text, text)
        return number(text) or self._collection(row, places, inner, text) or plain

    def _bracket(self, letter: str, place: int, before: str, after: str) -> list[Literal]:
        """The values in a bracket that stands between these letters."""
        array = letter == "B" and self._java and before in ("E", "L")
        if after == "a" or (letter == "B" and not array):
            return []
        follows = before in ("w", "P", "L", "B", "T", "s", ".")
        several = array or (letter == "P") == follows
        spans = self._split(place, array, several)
        if not several and (not spans or (self._java and len(spans) > 1)):
            raise ValueError("one value is needed in brackets")
        return [self._element(span) if array else self._expression(span) for span in spans]

    def _element(self, span: Span) -> Literal:
        """A value of a Java array, which may be an array without `new`."""
        if self._row(span)[0] == "B":
            return Literal("list", self._bracket("B", span[0], "E", ""), self._text(span))
        return self._expression(span)

    def _object(self, place: int) -> Literal:
        """A JavaScript object; its text if it holds anything but `key: value`."""
        pairs = dict[str, Literal]()
        text = self._text((place, self._pairs[place] + 1))
        code = Literal("code", text, text)
        for span in self._split(place):
            if not re.match(r"[swn]:", self._row(span)[0]):
                self._expression(span)
                return code
            key = self._expression((span[0], span[0] + 1))
            name = str(key.value) if key.kind == "string" else key.text
            pairs[name] = self._expression((span[0] + 2, span[1]))
        return Literal("dict", pairs, text)

    def _collection(
        self, row: str, places: list[int], inner: list[Literal], text: str
    ) -> Literal | None:
        """`[1]`, `new int[]{1}`, `List.of(1)`, `new Array(1, 2)`, `new ArrayList<>(List.of(1))`, maps."""
        if row in ("L", "E") or (self._java and re.fullmatch(r"Nw(?:\.w)*T?E+B", row)):
            return Literal("list", inner, text)
        if re.fullmatch(r"w(?:\.w)*P", row):
            return _made(self._name((places[0], places[-1])), inner, text)
        match = re.fullmatch(r"N(w(?:\.w)*)T?P(B?)", row)
        if not match:
            return None
        kind = self._text((places[1], places[match.end(1) - 1] + 1))
        if not self._java:
            return Literal("list", inner, text) if kind == "Array" else None
        if not kind.endswith(("Map", "List", "Set")):
            return None
        empty = Literal("dict", {}, text) if kind.endswith("Map") else Literal("list", [], text)
        if match[2]:
            return self._filled(places[-1], empty)
        if not inner:
            return empty
        same = len(inner) == 1 and inner[0].kind == empty.kind
        return Literal(empty.kind, inner[0].value, text) if same else None

    def _filled(self, body: int, empty: Literal) -> Literal | None:
        """The double-brace idiom: the `put` or `add` calls of an instance initialiser."""
        method = "put" if empty.kind == "dict" else "add"
        count = 2 if empty.kind == "dict" else 1
        calls = list[list[Literal]]()
        if self._tokens[body + 1].text != "{" or self._pairs[body + 1] != self._pairs[body] - 1:
            return None
        for span in self._split(body + 1, trailing=True, comma=";"):
            row, places = self._row(span)
            self._expression(span)
            if row != "wP" or self._tokens[span[0]].text != method:
                return None
            values = [self._expression(argument) for argument in self._split(places[-1])]
            if len(values) != count:
                return None
            calls.append(values)
        if empty.kind == "dict":
            return Literal("dict", {str(key.value): value for key, value in calls}, empty.text)
        return Literal("list", [value for (value,) in calls], empty.text)


def _made(name: str, values: Sequence[Literal], text: str) -> Literal | None:
    """What `List.of(...)`, `Map.of(...)` and their like make."""
    if name == "Map.of" and len(values) % 2 == 0:
        pairs = zip(values[::2], values[1::2], strict=True)
        return Literal("dict", {str(key.value): value for key, value in pairs}, text)
    return Literal("list", values, text) if name in _LISTS else None


def unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text)


def number(text: str) -> Literal | None:
    """Numbers by their spelling: 3, 3L, 3n, 3.5, 3.5f; a sign may stand before them."""
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
    """Cut Java or JavaScript into single calls at the separators that stand outside brackets and quotes."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    hidden = QUOTED.sub(lambda match: "_" * len(match[0]), text)
    cuts = [-1]
    depth = 0
    for place, sign in enumerate(hidden):
        if sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif sign in ",;\n" and depth == 0:
            cuts.append(place)
    pieces = [text[a + 1 : b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [piece for piece in pieces if piece]


def closed(text: str) -> str:
    """A list that lacks its first or its last bracket gets it, as BFCL's decoder does."""
    if text.startswith("[") and not text.endswith("]"):
        return f"{text}]"
    if text.endswith("]") and not text.startswith("["):
        return f"[{text}"
    return text


def depth(text: str) -> int:
    """Deepest nesting of brackets outside quotes."""
    signs = re.sub(r"[^()\[\]{}]", "", QUOTED.sub("", text))
    return max(accumulate((1 if sign in "([{" else -1 for sign in signs), initial=0))
