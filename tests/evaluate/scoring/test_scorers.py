"""Scorers: what is right, what is wrong, and that nothing raises on an output."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from souping.core.types import Item, Json, UserError
from souping.evaluate.scoring import SCORERS, check_item, chosen_letter, last_number, score


def item(answer: Any, scorer: str = "call", language: str = "python") -> Item:
    return Item(id="q1", category="c", prompt="p", answer=answer, scorer=scorer, language=language)


def right(answer: Any, output: str, language: str = "python") -> bool:
    return score(item(answer, "call", language), output) == 1.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 1,234.5 dollars.", 1234.5), ("-3.", -3), ("3-4", 4), ("x = -7", -7), ("\u22127", -7),
        ("$1,000", 1000),
        (".5", 0.5), ("1e3", 1000), ("5, 6", 6), ("12,3456", 3456), ("1,234,567", 1234567), ("none", None), ("", None),
        ("10%", 10), ("+4", 4), ("10 20", 20),
    ],
)  # fmt: skip
def test_the_last_number_of_a_text_is_the_answer(text: str, number: float | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("answer", "scorer", "output", "expected"),
    [
        ("a  b", "exact", " a\nb ", 1.0), ("a b", "exact", "A b", 0.0), ("a b", "exact", "ab", 0.0),
        (["x", "y"], "exact", "y", 1.0), ("1,234", "number", "so 5 and then 1234.0", 1.0),
        (-2.5, "number", "it is -2.5", 1.0), (3, "number", "no idea", 0.0), (3, "number", "3 or 4", 0.0),
    ],
)  # fmt: skip
def test_exact_compares_texts_and_number_compares_numbers(
    answer: Any, scorer: str, output: str, expected: float
) -> None:
    assert score(item(answer, scorer), output) == expected


PARALLEL = [{"f": {"a": [1, 2]}}, {"f": {"a": [1]}}, {"g": {}}]
ANSWER = [{"f": {"a": [1], "b": ["New York", "NYC", ""]}}]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("f(a=1)", True), ("f(b='new-york', a=1)", True), ("f(a=1, b=\"N.Y.C\")", True), ("[f(a=1)]", True),
        ("f(a=1, b=NYC)", True), ("f('ignored', a=1)", True),
        ("f(a='1')", False), ("f(a=True)", False), ("f(a=1.0)", False), ("f(b='NYC')", False), ("f(a=1, c=2)", False),
        ("f(1)", False), ("g(a=1)", False), ("f(a=1), f(a=1)", False), ("f(a=2)", False), ("f(a=1", False), ("", False),
        ("f(a=1, b='Boston')", False),
    ],
)  # fmt: skip
def test_a_python_call_is_right_with_these_arguments_only(output: str, expected: bool) -> None:
    assert right(ANSWER, output) is expected


@pytest.mark.parametrize(
    ("answer", "output", "expected"),
    [
        ([{"f": {"a": [2.0]}}], "f(a=2)", True), ([{"f": {"a": [2]}}], "f(a=2.0)", False),
        ([{"f": {"a": [True]}}], "f(a=1)", False), ([{"f": {"a": [["X y", 1]]}}], "f(a=['xY', 1])", True),
        ([{"f": {"a": [["x", "y"]]}}], "f(a=['y', 'x'])", False),
        ([{"f": {"a": [{"k": [1], "z": ["q", ""]}]}}], "f(a={'k': 1})", True),
        ([{"f": {"a": [{"k": [1]}]}}], "f(a={'k': 1, 'm': 2})", False),
        ([{"f": {"a": [{"k": [1]}]}}], "f(a={})", False),
        ([{"f": {"a": [[{"k": [1]}, {"k": [2]}]]}}], "f(a=[{'k': 1}, {'k': 2}])", True),
        ([{"f": {"a": [None]}}], "f(a=None)", True),
        (PARALLEL, "[g(), f(a=1), f(a=2)]", True), (PARALLEL, "f(a=2)\nf(a=1)\ng()", True),
        (PARALLEL, "[g(), f(a=2), f(a=2)]", False), (PARALLEL, "[f(a=1), f(a=2)]", False),
        ("f(1, b=2)", "f(1, b=2)", True), ("f(1, b=2)", "f(2, b=2)", False), ("f(1, b=2)", "f(b=2)", False),
        *(([], text, True) for text in ("No function fits.", "", "[]", "I would need more (much more) data")),
        *(([], text, False) for text in ("f(a=1)", "f(a=", "[f(a=1), g()]", "Well:\nf(a=1)")),
        ("any", "f()", True), ("any", "No.", False),
    ],
)  # fmt: skip
def test_values_parallel_calls_and_none(answer: Any, output: str, expected: bool) -> None:
    assert right(answer, output) is expected


@pytest.mark.parametrize(
    "answer",
    [
        "f(a=1, b=['x'])", ["f(a=1, b=['x'])"], {"name": "f", "arguments": {"a": 1, "b": ["x"]}},
        [{"name": "f", "arguments": {"a": 1, "b": ["x"]}}], [{"f": {"a": [1], "b": [["x"]]}}],
        {"calls": "f(a=1, b=['x'])"},
    ],
)  # fmt: skip
def test_every_form_of_an_answer(answer: Any) -> None:
    check_item(item(answer))
    assert right(answer, "f(b=['X'], a=1)")
    assert not right(answer, "f(a=1)")


@pytest.mark.parametrize(
    ("value", "expected"), [("42L", True), ("42", False), ('"42"', False), ("43L", False)]
)
def test_java_type_from_the_docs(value: str, expected: bool) -> None:
    docs = [
        {"name": "T.f", "parameters": {"properties": {"a": {"type": "long"}}, "required": ["a"]}}
    ]
    answer = {"calls": [{"T.f": {"a": [42]}}], "functions": docs}
    assert right(answer, f"T.f(a={value})", "java") is expected
    assert right([{"T.f": {"a": [42]}}], f"T.f(a={value})", "java") is (value in ("42L", "42"))


@pytest.mark.parametrize(
    ("kind", "allowed", "output", "expected"),
    [
        ({"type": "float"}, [5], "f(a=5.0)", True), ({"type": "float"}, [5.0], "f(a=5)", True),
        ({"type": "integer"}, [5], "f(a=5.0)", False), ({"type": "string"}, ["A b"], "f(a='a-b')", True),
        ({"type": "tuple", "items": {"type": "integer"}}, [[1, 2]], "f(a=(1, 2))", True),
        ({"type": "array", "items": {"type": "integer"}}, [[1, 2]], "f(a=(1, 2))", False),
        ({"type": "array", "items": {"type": "float"}}, [[1.0]], "f(a=[1])", False),
        ({"type": "any"}, [5], "f(a=5)", True), ({"type": "integer"}, ["n"], "f(a=n)", True),
        ({"type": "boolean"}, [True], "f(a='true')", False),
    ],
)  # fmt: skip
def test_python_types_from_the_docs(kind: Any, allowed: Any, output: str, expected: bool) -> None:
    docs = [{"name": "f", "parameters": {"properties": {"a": kind}, "required": ["a"]}}]
    assert right({"calls": [{"f": {"a": allowed}}], "functions": docs}, output) is expected


@pytest.mark.parametrize(
    ("answer", "scorer", "language", "match"),
    [
        ("x", "exakt", "python", "did you mean exact"), ("many", "number", "python", "finite number"),
        (True, "number", "python", "finite number"), ({"a": 1}, "exact", "python", "a text"),
        ([], "exact", "python", "a text"),
        ("f(a=", "call", "python", "cannot be read"), ([{"f": {"a": 1}}], "call", "python", "list of allowed"),
        ([{"f": {}, "g": {}}], "call", "python", "cannot be read"), (7, "call", "python", "cannot be read"),
        ({"calls": [{"f": {}}], "functions": [{"name": "g", "parameters": {}}]}, "call", "python", "'f' is missing"),
        ("f()", "call", "basic", "language=basic"),
    ],
)  # fmt: skip
def test_bad_items_are_user_errors(answer: Any, scorer: str, language: str, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        check_item(item(answer, scorer, language))
    assert "\n" not in str(caught.value)


DOCS = [{"name": "f", "parameters": {"properties": {"a": {"type": "dict"}}}}]
ITEMS = [
    item("x", "exact"),
    item(3, "number"),
    item(ANSWER),
    item([]),
    item("any"),
    item([{"f": {"a": [1]}}], "call", "java"),
    item({"calls": [{"f": {"a": [1]}}], "functions": DOCS}, "call", "javascript"),
]


@settings(max_examples=30, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.text("fga=1,'\"[]{}\\;\n -*.()x"),
        st.builds("f(a={})".format, st.text(max_size=20)),
    )
)
def test_scores_are_zero_or_one_on_any_output(output: str) -> None:
    assert {score(one, output) for one in ITEMS} <= {0.0, 1.0}
    for scorer in SCORERS.keys() - {"math", "call", "loss"}:
        one = item(1 if scorer == "number" else "A", scorer)
        assert 0.0 <= score(one, output) <= 1.0


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"), ("(c)", "C"), ("d)", "D"), ("The answer is (B).", "B"), ("the correct answer is b.", "B"),
        ("Answer: **B**", "B"), ("Final answer:\n\nB", "B"), ("**B** is right", "B"),
        ("A dog barks. So the answer is: D", "D"),
        (r"so \boxed{A}, not B", "A"),
        ("Option A is wrong. The correct option is B", "B"),
        ("A is wrong, B is wrong, so it must be C.", "C"),
        ("the answer is a cat", ""), ("I am not sure", ""), ("none of them", ""), ("", ""),
    ],
)  # fmt: skip
def test_the_letter_that_an_output_settles_on(output: str, letter: str) -> None:
    assert chosen_letter(output) == letter
    assert score(item("(B)", "choice"), output) == float(letter == "B")


@pytest.mark.parametrize(
    ("scorer", "answer", "output", "expected"),
    [
        ("contains", "Paris", "It is  PARIS, of course", True),
        ("contains", ["Rome", "Paris"], "Paris", True),
        ("regex", r"\b4[02]\b", "so 42 it is", True),
        ("regex", ["x", "(?i)yes"], "YES", True),
        ("regex", r"^42$", "so 42 it is", False),
        ("regex", "(a+)+$", "a" * 60 + "b", False),  # without a limit it would take for ever
    ],
)
def test_texts_patterns_and_choices_are_found_in_the_answer(
    scorer: str, answer: Any, output: str, expected: bool
) -> None:
    assert (score(item(answer, scorer), output) == 1.0) is expected


def test_f1_is_squads() -> None:
    assert score(item("the Eiffel Tower", "f1"), "Eiffel tower!") == 1.0
    assert score(item("the Eiffel Tower", "f1"), "the tower of Paris") == pytest.approx(0.4)
    assert score(item(["cat", "a black dog"], "f1"), "black dog") == 1.0
    assert score(item("cat", "f1"), "") == 0.0


@pytest.mark.parametrize("scorer", ["contains", "regex", "choice", "f1"])
def test_answers_of_another_kind_are_refused(scorer: str) -> None:
    answers: list[Json] = [None, True, [], {"a": 1}, "  "]
    if scorer == "regex":
        answers.append("(")
    if scorer == "choice":
        answers.append("Paris")
    for answer in answers:
        with pytest.raises(UserError, match="item q1: "):
            check_item(item(answer, scorer))


@pytest.mark.parametrize(
    ("answer", "output", "equal"),
    [
        (42, "the answer is 42.", True), ("1/2", r"so \boxed{\frac{1}{2}}", True), ("0.5", r"$\frac12$", True),
        ("x+1", "$1+x$", True), (["7", "8"], r"\boxed{8}", True), (10, "10 apples", True), (12, "13", False),
        (2, "no idea", False), pytest.param(3, "$9^{9^{9^{9}}}$", False, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_mathematics_is_equal_by_value(answer: Any, output: str, equal: bool) -> None:
    pytest.importorskip("math_verify")
    assert (score(item(answer, "math"), output) == 1.0) is equal
