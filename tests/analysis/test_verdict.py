"""The verdict: which claim, in which order, in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from souping.analysis.significance import Comparison, Verdict, verdict

CANDIDATES = ("ace", "bit", "cow")


def say(figures: dict[str, tuple[float, float]], **change: Any) -> Verdict:
    """The verdict on {candidate: (difference, p)}; two ingredients unless changed."""
    counts = {"n": 600, "groups": 300, "discordant": 0.1}
    comparisons = [
        Comparison(a="soup", b=b, difference=d, low=d - 0.02, high=d + 0.02, p_value=p, test="", **counts)
        for b, (d, p) in figures.items()
    ]
    setting = {"candidates": CANDIDATES, "best_single": "ace", "selected": ("ace", "bit"), "recipe": ("ace", "bit")}
    return verdict("soup", comparisons, **{**setting, **change})


FAR = {"ace": (0.03, 0.01), "bit": (0.05, 0.001), "cow": (0.04, 0.02)}


def test_better_than_every_candidate() -> None:
    claimed = say(FAR)
    assert (claimed.claim, claimed.p_value) == ("better_than_every_candidate", 0.02)
    assert claimed.sentence == (
        "The soup is better than every candidate; the closest call is cow, "
        "+4.0 points (95 % interval +2.0 to +6.0, p = 0.020)."
    )
    assert json.loads(json.dumps(claimed.as_dict())) == claimed.as_dict()


def test_one_doubtful_candidate_forbids_it() -> None:
    claimed = say({**FAR, "cow": (0.01, 0.3)})
    assert (claimed.claim, claimed.p_value) == ("better_than_best_single", 0.01)
    assert "better than ace, the model you would have deployed, +3.0 points" in claimed.sentence
    assert "not shown to be better than every candidate (cow: p = 0.300)" in claimed.sentence


def test_the_best_single_is_the_search_folds() -> None:
    doubtful = {**FAR, "cow": (0.01, 0.3)}
    assert say(doubtful, best_single="cow").claim == "no_difference_shown"
    assert "No difference shown: the soup against cow" in say(doubtful, best_single="cow").sentence


@pytest.mark.parametrize(("difference", "word"), [(-0.01, "below"), (0.0, "level with")])
def test_a_candidate_that_is_not_beaten_is_kept(difference: float, word: str) -> None:
    claimed = say({**FAR, "bit": (difference, 0.6)})
    assert (claimed.claim, claimed.p_value) == ("keep_single", 0.6)
    assert claimed.sentence.startswith(f"Keep bit, do not soup: on the report fold the soup is {word} it, ")


def test_among_equals_the_best_single_is_kept() -> None:
    claimed = say({"ace": (-0.01, 0.6), "bit": (-0.01, 0.5), "cow": (0.1, 0.01)}, best_single="bit")
    assert claimed.sentence.startswith("Keep bit")
    assert say({"ace": (-0.01, 0.6), "bit": (-0.02, 0.5), "cow": (0.1, 0.01)}).sentence.startswith("Keep bit")


def test_a_single_model_recipe_is_kept() -> None:
    claimed = say(FAR, recipe=("bit",))
    assert (claimed.claim, claimed.p_value) == ("keep_single", None)
    assert claimed.sentence.startswith("Keep bit, do not soup")


def test_one_ingredient_is_nothing_to_soup() -> None:
    claimed = say(FAR, selected=("cow",), recipe=("cow",))
    assert (claimed.claim, claimed.p_value) == ("nothing_to_soup", None)
    assert "cow" in claimed.sentence


def test_an_open_ledger_weakens_the_claim() -> None:
    assert say(FAR, opened=2).p_value == pytest.approx(0.04)
    assert say(FAR, opened=3).claim == "better_than_best_single"
    claimed = say(FAR, opened=20)
    assert claimed.claim == "no_difference_shown"
    assert "p = 0.200, corrected for 20 recipes scored on this fold" in claimed.sentence


def test_a_missing_candidate_is_no_victory() -> None:
    with pytest.raises(ValueError, match="compared with cow"):
        say({k: v for k, v in FAR.items() if k != "cow"})


def test_small_numbers_read_well() -> None:
    claimed = say({**FAR, "ace": (0.00001, 0.0001)}, best_single="ace")
    assert "-0.0" not in claimed.sentence
    assert say({**FAR, "ace": (-0.00001, 0.00004)}).sentence.count("p < 0.0001") == 1
