"""Parsing of calls: every accepted form, and everything else refused quietly."""

from __future__ import annotations

import gzip
import json
import random

import pytest
from hypothesis import example, given, settings, strategies as st

from souping.evaluate.scoring.calls import (
    CALL_LANGUAGES,
    Call,
    Unparsable,
    is_attempt,
    parse_calls,
    plain_value,
)
from tests.support.main_job import KEPT

JUNK = [
    "(" * 5000,
    "f(" * 3900,
    "f(a=" + "-" * 7000,
    "[" * 7000,
    "f(a='" * 1500,
    "a." * 3900,
    "\x00f()",
    "f(a=9" * 3,
    '"\\' * 3900,
    "f(a=" + "-->" * 2600 + ")",
    "f(/'/, " + "[" * 3000 + "]" * 3000 + ", /'/)",
]


def shapes(text: str, language: str = "python") -> list[tuple[str, dict[str, object]]]:
    """(function, {argument: plain value}) of every call in a text."""
    named = list[tuple[str, dict[str, object]]]()
    for call in parse_calls(text, language):
        arguments = dict[str, object]()
        for name, value in call.arguments.items():
            arguments[name] = plain_value(value)
        named.append((call.name, arguments))
    return named


@pytest.mark.parametrize(
    "text",
    [
        "f(a=1), g(b='x')",
        "[f(a=1), g(b='x')]",
        "f(a=1)\ng(b='x')",
        "f(a=1); g(b='x')",
        "f(a=1),\ng(b='x')",
        "```f(a=1)\ng(b='x')```",
        "  [f(a=1),\n   g(b='x')]  ",
    ],
)
@pytest.mark.parametrize("language", CALL_LANGUAGES)
def test_several_calls_in_every_form(text: str, language: str) -> None:
    text = text.replace("'", '"') if language == "java" else text
    assert shapes(text, language) == [("f", {"a": 1}), ("g", {"b": "x"})]


def test_values_of_python_are_read_as_python_has_them() -> None:
    text = "m.f(a=[1, -2.5], b={'k': (True, None)}, c=2 * 3 + 1, d=Paris, e=g(x=1), h=a.b, i='a' 'b', j=2 ** 10)"
    expected = {
        "a": [1, -2.5], "b": {"k": (True, None)}, "c": 7, "d": "Paris", "e": {"g": {"x": 1}}, "h": "a.b", "i": "ab",
        "j": 1024,
    }  # fmt: skip
    assert shapes(text) == [("m.f", expected)]


JAVA = [
    ("42L", 42), ("-7", -7), ("2.5f", 2.5), ("true", True), ("null", None), ('"a\\"b"', 'a"b'), ("'c'", "c"),
    ("new int[]{1, 2}", [1, 2]), ("new ArrayList<>(Arrays.asList(1, 2))", [1, 2]),
    ("new ArrayList<String>() {{ add(\"x\"); }}", ["x"]), ('Map.of("k", 1)', {"k": 1}), ("new HashMap<>()", {}),
    ('new HashMap<String, Object>() {{ put("k", "v") }}', {"k": "v"}),
    ('new HashMap<String, Integer>() {{ put("k", 1); put("m", 2); }}', {"k": 1, "m": 2}), ("Mode.FAST", "Mode.FAST"),
]  # fmt: skip
JAVASCRIPT = [
    ("7n", 7), ("-1.5", -1.5), ("undefined", None), ("'it\\'s'", "it's"), ("[1, 'a', [true]]", [1, "a", [True]]),
    ("new Array(1, 2)", [1, 2]), ("{k: 1, 'm': {n: [2]}}", {"k": 1, "m": {"n": [2]}}), ("(a) => a + 1", "(a) => a + 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("language", "source", "value"),
    [("java", *row) for row in JAVA] + [("javascript", *row) for row in JAVASCRIPT],
)
def test_values_of_java_and_javascript_are_read_by_their_spelling(
    language: str, source: str, value: object
) -> None:
    assert shapes(f"Tool.run(x={source}, y=1)", language) == [("Tool.run", {"x": value, "y": 1})]


@pytest.mark.parametrize(
    "text",
    ["f(a=1", "f(a=1) and then", "Sure! f(a=1)", "x = f(a=1)", "f(a=1, a=2)", "f(**{'a': 1})", "[[f(a=1)]]",
     "f(a=lambda: 1)",
     "f(a=9 ** 9 ** 9)", "f(a=1/0)", "f(a=not 'x')", "f()()", "'f(a=1)'", "```python\nf(a=1)```"],
)  # fmt: skip
def test_not_a_python_call(text: str) -> None:
    with pytest.raises(Unparsable):
        parse_calls(text)


@pytest.mark.parametrize("language", ["java", "javascript"])
@pytest.mark.parametrize(
    "text", ["f(a=1", "Sure! f(a=1)", "int x = 3", "f(a=1, a=2)", "new f(a=1)", "f(a=)", "f(a=1)) "]
)
def test_not_a_call_elsewhere(text: str, language: str) -> None:
    with pytest.raises(Unparsable):
        parse_calls(text, language)


@pytest.mark.parametrize(
    ("text", "attempt"),
    [("f(a=1)", True), ("[f(a=1", True), ("a.b.c(", True), ("No function fits.", False), ("", False), ("[]", False),
     ("I cannot do this (sorry)", False), ("No function(s) fit", False), ("Here:\nf(a=1)", True)],
)  # fmt: skip
def test_text_that_begins_a_call_is_an_attempt(text: str, attempt: bool) -> None:
    assert is_attempt(text) is attempt


@pytest.mark.parametrize("language", ["java", "javascript"])
def test_nesting_beyond_the_recursion_limit_is_refused_wherever_the_limit_is_met(
    language: str,
) -> None:
    text = "f(/'/, " + "[" * 3000 + "]" * 3000 + ", /'/)"

    def parse_below(frames: int) -> None:
        if frames:
            parse_below(frames - 1)
        else:
            parse_calls(text, language)

    # One level of nesting takes four frames.
    for frames in range(8):
        with pytest.raises(Unparsable):
            parse_below(frames)


@pytest.mark.parametrize("language", CALL_LANGUAGES)
@pytest.mark.parametrize("text", JUNK)
def test_garbage_is_refused(text: str, language: str) -> None:
    """A parser that is exponential on any of these would hang here."""
    with pytest.raises(Unparsable):
        parse_calls(text, language)


@pytest.mark.parametrize("language", ["java", "javascript"])
def test_a_parse_that_takes_too_many_steps_is_refused(
    language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "f(a=" + "1+" * 3900 + "1)"
    assert parse_calls(text, language)
    monkeypatch.setattr("souping.evaluate.scoring.call_reader.MOST_CHECKS", 100)
    with pytest.raises(Unparsable):
        parse_calls(text, language)
    assert parse_calls("f(a=1)", language)


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.text(), st.text("f(a=1,'\"[]{}\\;\n -*.)")), st.sampled_from(CALL_LANGUAGES))
@example("f(a=\ud800)", "java")
def test_nothing_but_unparsable_is_raised(text: str, language: str) -> None:
    try:
        assert isinstance(parse_calls(text, language), list)
    except Unparsable:
        assert is_attempt(text, language) in (True, False)


SIGNS = "abLfn_$019.,;:'\"()[]{}=+-*/<>!?&|\\ \n#%^~`\u00e9"


def mutated(dice: random.Random, text: str) -> str:
    """The text with one to three characters dropped, added, replaced or exchanged."""
    signs = list(text)
    for _ in range(dice.randint(1, 3)):
        place = dice.randrange(len(signs))
        kind = dice.randrange(4)
        if kind == 3 and place:
            signs[place - 1 : place + 1] = reversed(signs[place - 1 : place + 1])
        else:
            signs[place : place + (kind != 1)] = (
                [] if kind == 0 and len(signs) > 1 else [dice.choice(SIGNS)]
            )
    return "".join(signs)


def outcome(text: str, language: str) -> list[Call] | None:
    try:
        return parse_calls(text, language)
    except Unparsable:
        return None


@pytest.mark.slow
def test_mutated_answers_are_read_or_refused_and_the_answers_are_read() -> None:
    """Every answer of the main job in Java and JavaScript, and 10,000 mutations of them."""
    with gzip.open(KEPT / "calls.jsonl.gz", "rt") as lines:
        answers = [json.loads(line) for line in lines]
    assert [outcome(text, language) for language, text in answers].count(None) == 4
    dice = random.Random(0)
    chosen = [dice.choice(answers) for _ in range(10_000)]
    refused = [outcome(mutated(dice, text), language) for language, text in chosen].count(None)
    assert 3000 < refused < 8000
