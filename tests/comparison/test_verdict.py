"""Words from intervals and margins, and policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from souping.comparison.row_verdict import Limits, Margin, Policy, decide, read_policy, verdict_of
from souping.core.types import UserError


@pytest.mark.parametrize(
    ("low", "high", "margin", "word"),
    [
        (0.1, 2.0, 1.0, "better"),
        (0.1, 2.0, None, "better"),
        (-5.0, -1.5, 1.0, "much-worse"),
        (-5.0, -1.5, None, "worse"),
        (-5.0, -0.5, 1.0, "worse"),
        (-0.9, -0.1, 1.0, "no-worse"),  # a loss, but none that matters
        (-0.9, 3.0, 1.0, "no-worse"),
        (-1.0, 3.0, 1.0, "undecided"),
        (-0.9, 3.0, None, "undecided"),
        (-5.0, 0.0, 1.0, "undecided"),
    ],
)
def test_the_first_word_that_holds(
    low: float, high: float, margin: float | None, word: str
) -> None:
    assert verdict_of([(low, high)], margin) == (word, "")


@pytest.mark.parametrize(
    ("cases", "margin", "word"),
    [
        ([(0.5, 2), (0.2, 2), (3, 5)], None, "better"),
        ([(0.5, 2), (-0.2, 2), (3, 5)], None, "undecided"),
        ([(-3, -0.5), (-2, 0.1), (-5, -2)], 1.0, "undecided"),
        ([(-3, -0.5), (-2, -0.1), (-5, -2)], 1.0, "worse"),
        ([(-3, -0.5), (-0.9, -0.1), (-5, -2)], 1.0, "worse"),
        ([(-5, -2), (-3, -0.5), (-6, -3)], 1.0, "worse"),
        ([(0.5, 2), (-0.5, 1), (1, 3)], 1.0, "no-worse"),
        ([(-0.5, 1), (0.5, 2), (-0.9, 0.5)], 1.0, "no-worse"),
        ([(-0.5, 1), (0.5, 2), (-1.9, 0.5)], 1.0, "undecided"),
    ],
)
def test_a_word_holds_with_missing_answers_for_and_against(
    cases: Sequence[Limits], margin: float | None, word: str
) -> None:
    assert verdict_of(cases, margin) == (word, "missing answers" if word == "undecided" else "")


def decided(**highs: Sequence[float]) -> dict[str, tuple[str, str]]:
    """Rows whose intervals at one, two, .. tests end at these values."""
    margins = dict.fromkeys(highs, 1.0)

    def limits(name: str, tests: float) -> list[tuple[float, float]]:
        return [(-9.0, highs[name][round(tests) - 1])]

    return dict(decide(margins, limits))


def test_rows_that_fail_when_any_does_are_held_to_holms_levels() -> None:
    assert decided(a=[-0.1]) == {"a": ("worse", "")}
    both = decided(a=[-0.1, 0.1], b=[-0.3, 0.2])
    assert [word for word, _ in both.values()] == ["undecided", "undecided"]
    assert all("Holm" in why for _, why in both.values())
    step = decided(a=[-0.1, 0.1], b=[-3.0, -2.0])  # b holds at half the level, which frees a
    assert step == {"a": ("worse", ""), "b": ("much-worse", "")}
    open_ended = decided(a=[0.1, 0.2], b=[-3.0, -2.0])
    assert open_ended == {"a": ("undecided", ""), "b": ("much-worse", "")}


def test_a_row_without_a_margin_counts_for_much_worse_so_that_much_worse_implies_worse() -> None:
    highs = {"a": [-2.0, 0.1], "b": [0.1, 0.2]}
    verdicts = decide(
        {"a": 1.0, "b": None}, lambda name, tests: [(-9.0, highs[name][int(tests) - 1])]
    )
    assert [word for word, _ in verdicts.values()] == ["undecided", "undecided"]


def test_passing_needs_no_correction() -> None:
    words = decide(
        dict.fromkeys("abc", 1.0), lambda name, tests: [(-0.5 * tests, 0.5 * tests)]
    ).values()
    assert {word for word, _ in words} == {"no-worse"}


def test_a_policy_has_a_margin_a_task_and_required_tasks(tmp_path: Path) -> None:
    file = tmp_path / "gate.toml"
    file.write_text(
        'margin = 1.5\n[tasks.gsm8k]\nrequired = true\nmargin = 3\n[tasks.tokens]\nmargin = "10%"\n'
    )
    policy = read_policy(file)
    assert policy.margin_of("average", 0.5, is_mean=True) == pytest.approx(0.015)
    assert policy.margin_of("gsm8k", 0.5, is_mean=True) == pytest.approx(0.03)
    assert policy.margin_of("tokens", 200.0, is_mean=False) == pytest.approx(20.0)
    assert policy.margin_of("perplexity", 9.0, is_mean=False) is None
    assert policy.required == {"gsm8k"}
    assert read_policy(file, Margin(amount=2)).margin == Margin(amount=2)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("margin = ", "TOML"),
        ("margins = 1", "margins"),
        ("margin = -1", "margin=-1"),
        ('margin = "a lot"', "margin=a lot"),
        ("margin = true", "margin=True"),
        ("margin = inf", "margin=inf"),
        ("margin = nan", "margin=nan"),
        ("tasks = 1", "tasks"),
        ("[tasks.a]\nrequred = true", "required"),
        ('[tasks.a]\nrequired = "yes"', "tasks.a.required"),
        ("[tasks.a]\nmargin = 0", "tasks.a.margin"),
    ],
)
def test_a_wrong_policy_is_one_line(tmp_path: Path, text: str, key: str) -> None:
    file = tmp_path / "gate.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=key) as error:
        read_policy(file)
    assert "\n" not in str(error.value)


def test_of_several_unknown_tasks_the_first_by_name_is_refused() -> None:
    names = frozenset("hgfedcba")
    with pytest.raises(UserError, match="task=a "):
        Policy(required=names).check(["gsm8k"])
