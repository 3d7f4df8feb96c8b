"""Scorers of texts: regex, contains, choice, f1; and math, by its library."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from souping.core.types import Item, UserError
from souping.evaluate.scoring import SCORERS, check, chosen, reading, score


def item(scorer: str, answer: Any) -> Item:
    return Item(id="1", category="c", prompt="p", answer=answer, scorer=scorer)


def right(scorer: str, answer: Any, output: str) -> bool:
    check(item(scorer, answer))
    return score(item(scorer, answer), output) == 1.0


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"), ("(c)", "C"), ("d)", "D"), ("The answer is (B).", "B"), ("the correct answer is b.", "B"),
        ("Answer: **B**", "B"), ("Final answer:\n\nB", "B"), ("**B** is right", "B"),
        ("A dog barks. So the answer is: D", "D"),
        (r"so \boxed{A}, not B", "A"),
        (r"\boxed{\text{(E)}}", "E"),
        ("B. Paris", "B"),
        ("C) because A is small", "C"),
        ("Option A is wrong. The correct option is B", "B"),
        ("A is wrong, B is wrong, so it must be C.", "C"),
        ("I think it is C", "C"),
        ("the answer is a cat", ""), ("I am not sure", ""), ("none of them", ""), ("", ""),
    ],
)  # fmt: skip
def test_the_letter_that_an_output_settles_on(output: str, letter: str) -> None:
    assert chosen(output) == letter
    assert score(item("choice", "(B)"), output) == float(letter == "B")
    assert reading(item("choice", "B"), output) == letter


@pytest.mark.parametrize(
    ("scorer", "answer", "output", "expected"),
    [
        ("contains", "Paris", "It is  PARIS, of course", True),
        ("contains", ["Rome", "Paris"], "Paris", True),
        ("contains", "New York", "in new\nyork", True),
        ("contains", "Paris", "It is Rome", False),
        ("regex", r"\b4[02]\b", "so 42 it is", True),
        ("regex", ["x", "(?i)yes"], "YES", True),
        ("regex", r"^42$", "so 42 it is", False),
        ("regex", "(a+)+$", "a" * 60 + "b", False),  # without a limit it would take for ever
    ],
)
def test_texts_and_patterns(scorer: str, answer: Any, output: str, expected: bool) -> None:
    assert right(scorer, answer, output) is expected


def test_f1_is_squads() -> None:
    assert score(item("f1", "the Eiffel Tower"), "Eiffel tower!") == 1.0
    assert score(item("f1", "the Eiffel Tower"), "the tower of Paris") == pytest.approx(0.4)
    assert score(item("f1", ["cat", "a black dog"]), "black dog") == 1.0
    assert score(item("f1", "cat"), "") == 0.0


@pytest.mark.parametrize("scorer", ["contains", "regex", "choice", "f1"])
def test_answers_of_another_kind_are_refused(scorer: str) -> None:
    bad = {"regex": ["("], "choice": ["Paris"]}
    for answer in (None, True, [], {"a": 1}, "  ", *bad.get(scorer, [])):
        with pytest.raises(UserError, match="item 1: "):
            check(item(scorer, answer))


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
    assert right("math", answer, output) is equal


def test_a_math_answer_is_an_expression() -> None:
    pytest.importorskip("math_verify")
    with pytest.raises(UserError, match="a `math` answer is a number or an expression"):
        check(item("math", "no idea"))


def test_without_the_library_the_line_that_adds_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("souping.evaluate.scoring.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*math"):
        check(item("math", 1))


@given(st.text(max_size=200))
def test_no_output_makes_a_scorer_raise(output: str) -> None:
    for scorer in SCORERS.keys() - {"math", "call"}:
        answer = 1 if scorer == "number" else "A"
        assert 0.0 <= score(item(scorer, answer), output) <= 1.0
        assert isinstance(reading(item(scorer, answer), output), str)
