"""The verdict: which claim, in which order, in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from souping.analysis.significance import Comparison, Verdict, verdict
from souping.core.text import minus

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
    assert "not shown to be better than every candidate: cow +1.0 points" in claimed.sentence


def test_the_best_single_is_the_search_folds() -> None:
    doubtful = {**FAR, "cow": (0.01, 0.3)}
    assert say(doubtful, best_single="cow").claim == "no_difference_shown"
    assert "No difference shown: the soup against cow" in say(doubtful, best_single="cow").sentence


@pytest.mark.parametrize("difference", [-0.03, -0.015])
def test_the_searchs_candidate_is_kept_where_a_gain_of_the_margin_is_ruled_out(difference: float) -> None:
    claimed = say({**FAR, "ace": (difference, 0.1)})
    assert (claimed.claim, claimed.p_value) == ("keep_single", None)
    assert claimed.sentence.startswith("Keep ace, what the search would have chosen: a soup better by 1 point is ruled")
    assert f"{minus(f'{100 * difference:+.1f}')} points (95 % interval" in claimed.sentence


@pytest.mark.parametrize("difference", [-0.005, 0.0, 0.005])
def test_a_gain_of_the_margin_that_is_not_ruled_out_keeps_nobody(difference: float) -> None:
    claimed = say({**FAR, "ace": (difference, 0.6)})
    assert (claimed.claim, claimed.p_value) == ("no_difference_shown", 0.6)
    assert "report items (80 % power); there are 600" in claimed.sentence
    assert say({**FAR, "ace": (difference, 0.6)}, margin=0.05).claim == "keep_single"


def test_no_candidate_but_the_searchs_is_kept() -> None:
    """Whoever is best on the report fold was picked by its luck there."""
    claimed = say({"ace": (0.001, 0.9), "bit": (-0.05, 0.001), "cow": (-0.04, 0.01)})
    assert claimed.claim == "no_difference_shown"
    assert "against ace" in claimed.sentence
    assert say({"ace": (0.03, 0.01), "bit": (-0.05, 0.001), "cow": (0.04, 0.01)}).claim == "better_than_best_single"


def test_answers_that_are_missing_forbid_every_claim() -> None:
    claimed = say(FAR, unmeasured="ace 34.0 % cut off.")
    assert (claimed.claim, claimed.p_value) == ("not_measured", None)
    assert claimed.sentence == "Not measured: ace 34.0 % cut off."
    assert say(FAR, recipe=("bit",), unmeasured="x").claim == "not_measured"


def test_a_single_model_recipe_is_kept() -> None:
    claimed = say(FAR, recipe=("bit",))
    assert (claimed.claim, claimed.p_value) == ("keep_single", None)
    assert claimed.sentence.startswith("Keep bit, do not soup: the search found no mixture above it")


def test_one_ingredient_is_nothing_to_soup() -> None:
    claimed = say(FAR, selected=("cow",), recipe=("cow",))
    assert (claimed.claim, claimed.p_value) == ("nothing_to_soup", None)
    assert "cow" in claimed.sentence


def test_later_looks_weaken_the_claim() -> None:
    nearly = {name: (difference, p / 10) for name, (difference, p) in FAR.items()}
    assert say(nearly, opened=2).p_value == pytest.approx(0.012)
    assert say(nearly, opened=5).claim == "better_than_best_single"
    claimed = say(nearly, opened=20)
    assert claimed.claim == "no_difference_shown"
    assert "p = 0.420, corrected for 20 looks at these items" in claimed.sentence


def test_a_missing_candidate_is_no_victory() -> None:
    with pytest.raises(ValueError, match="compared with cow"):
        say({k: v for k, v in FAR.items() if k != "cow"})


def test_small_numbers_read_well() -> None:
    claimed = say({**FAR, "ace": (-0.00001, 0.5)}, best_single="ace")
    assert "-0.0" not in claimed.sentence
    assert say(dict.fromkeys(FAR, (0.04, 4e-05))).sentence.count("p < 0.0001") == 1
