"""The verdict: which claim, in which order, in which words; and what a soup is up against."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from souping.analysis.alternatives import best_by_category, routed, with_alternatives
from souping.core.scores import Mean
from souping.core.types import Item, ItemScores, ScoreMatrix
from souping.core.unit import POINTS, Estimate
from souping.report.content import MoreAnswersSummary, Report, Router, UpperBound
from souping.runs.verdict import Verdict, power_in_words, power_summary, verdict
from souping.statistics.comparison import Comparison
from souping.statistics.corrections import Level
from souping.statistics.power import MoreAnswers, Power

CANDIDATES = ("ace", "bit", "cow")
FAR = {"ace": (0.03, 0.01), "bit": (0.05, 0.001), "cow": (0.04, 0.02)}
DOUBTFUL = {**FAR, "cow": (0.01, 0.3)}
NEARLY = {name: (difference, p / 10) for name, (difference, p) in FAR.items()}
Figures = dict[str, tuple[float, float]]


def minus(
    name: str, difference: float, p_value: float, look: int = 1, soup: str = "soup"
) -> Comparison:
    """A soup minus a model on 600 items."""
    return Comparison(
        a=soup,
        b=name,
        estimate=Estimate(difference, difference - 0.02, difference + 0.02),
        level=Level(look),
        p_alone=p_value,
        test="",
        n=600,
        groups=300,
        discordant=0.1,
    )


def say(figures: Figures, look: int = 1, **change: Any) -> Verdict:
    """The verdict on {candidate: (difference, p)}; two ingredients unless changed."""
    return told([minus(name, d, p, look) for name, (d, p) in figures.items()], **change)


def told(comparisons: list[Comparison], **change: Any) -> Verdict:
    """The verdict on these comparisons; two ingredients unless changed."""
    setting = {
        "candidates": CANDIDATES,
        "best_candidate": "ace",
        "selected": ("ace", "bit"),
        "recipe": ("ace", "bit"),
    }
    return verdict(POINTS, "soup", comparisons, **{**setting, **change})


def ace(difference: float, p_value: float) -> Figures:
    return {**FAR, "ace": (difference, p_value)}


@pytest.mark.parametrize(
    ("figures", "change", "claim", "p_value", "words"),
    [
        (FAR, {}, "better_than_every_candidate", 0.02, "the closest call is cow, +4.0 points"),
        (
            DOUBTFUL,
            {},
            "better_than_best_candidate",
            0.01,
            "not shown to be better than every candidate: cow +1.0 points",
        ),
        (
            DOUBTFUL,
            {"best_candidate": "cow"},
            "no_difference_shown",
            0.3,
            "No difference shown: the soup against cow",
        ),
        (
            ace(-0.03, 0.1),
            {},
            "keep_candidate",
            None,
            "Keep ace, what the search would have chosen: a soup better by 1 ",
        ),
        (ace(-0.015, 0.1), {}, "keep_candidate", None, "−1.5 points (95 % interval"),
        (
            ace(-0.005, 0.6),
            {},
            "no_difference_shown",
            0.6,
            "test items (80 % power); there are 600",
        ),
        (
            ace(0.005, 0.6),
            {},
            "no_difference_shown",
            0.6,
            "test items (80 % power); there are 600",
        ),
        (ace(0.005, 0.6), {"margin": 0.05}, "keep_candidate", None, "Keep ace"),
        (
            FAR,
            {"unmeasured": "ace 34.0 % truncated."},
            "not_measured",
            None,
            "Not measured: ace 34.0 % truncated.",
        ),
        (FAR, {"recipe": ("bit",), "unmeasured": "x"}, "not_measured", None, "x"),
        (
            FAR,
            {"recipe": ("bit",)},
            "keep_candidate",
            None,
            "Keep bit, do not soup: the search found no mixture above it. Its row is called soup.",
        ),
        (FAR, {"selected": ("cow",), "recipe": ("cow",)}, "nothing_to_soup", None, "cow"),
        (NEARLY, {"look": 2}, "better_than_every_candidate", 0.012, "corrected for 2 looks"),
        (NEARLY, {"look": 5}, "better_than_best_candidate", 0.03, "corrected for 5 looks"),
        (
            NEARLY,
            {"look": 20},
            "no_difference_shown",
            0.42,
            "p = 0.420, corrected for 20 looks at these items",
        ),
        (dict.fromkeys(FAR, (0.04, 4e-05)), {}, "better_than_every_candidate", 4e-05, "p < 0.001"),
    ],
)
def test_the_strongest_claim_that_holds(
    figures: Figures, change: dict[str, Any], claim: str, p_value: float | None, words: str
) -> None:
    claimed = say(figures, **change)
    assert (claimed.claim, claimed.p_value) == (
        claim,
        p_value if p_value is None else pytest.approx(p_value),
    )
    assert words in claimed.sentence
    assert json.loads(json.dumps(claimed._asdict())) == claimed._asdict()


def test_no_candidate_but_the_searchs_is_kept() -> None:
    """Whoever is best on the test split was picked by its luck there."""
    claimed = say({"ace": (0.001, 0.9), "bit": (-0.05, 0.001), "cow": (-0.04, 0.01)})
    assert claimed.claim == "no_difference_shown"
    assert "against ace" in claimed.sentence
    assert (
        say({"ace": (0.03, 0.01), "bit": (-0.05, 0.001), "cow": (0.04, 0.01)}).claim
        == "better_than_best_candidate"
    )
    assert "-0.0" not in say(ace(-0.00001, 0.5)).sentence


@pytest.mark.parametrize("level", [Level(looks=1), Level(looks=2, tests=6.0)])
def test_the_items_for_the_margin_are_those_at_the_level_of_the_interval(level: Level) -> None:
    """With a standard error of 2 points: n times ((z + 0.84) * error / margin)^2, to two digits."""
    z = NormalDist().inv_cdf(1 - level.alpha / 2)
    pairs = []
    for name in CANDIDATES:
        estimate = Estimate(0.005, 0.005 - 0.02 * z, 0.005 + 0.02 * z)
        pairs.append(replace(minus(name, 0.005, 0.6), estimate=estimate, level=level))
    needed = 600 * ((z + NormalDist().inv_cdf(0.8)) * 0.02 / 0.01) ** 2
    assert f"takes about {math.ceil(needed / 1000) * 1000:,} test items" in told(pairs).sentence


def test_comparisons_of_another_soup_make_no_claim() -> None:
    worse = [minus(name, -0.04, 0.001) for name in CANDIDATES]
    better = [minus(name, 0.04, 0.001, soup="uniform") for name in CANDIDATES]
    claims = set()
    for order in ([*worse, *better], [*better, *worse]):
        claims.add(told(order).claim)
    assert claims == {"keep_candidate"}


@pytest.mark.parametrize("assumed", [True, False])
def test_power_in_words_has_its_figures_and_their_basis(
    assumed: bool,
) -> None:
    power = Power(gain=0.064, items=480, margin=0.01, needed=32_000, assumed=assumed)
    words = power_in_words(power, POINTS)
    for figure in ("480", "6.4 points", "1 point", "32,000"):
        assert figure in words
    assert ("if candidates are equal" in words) == assumed
    summary = power_summary(power, POINTS)
    assert (summary.gain, summary.min_gain, summary.needed) == (0.064, 0.01, 32_000)


def test_power_of_sampled_answers_names_more_answers_and_more_items() -> None:
    more = MoreAnswers(repeats=4, answers_gain=0.061, items=120, items_gain=0.0572)
    power = Power(gain=0.064, items=480, margin=0.01, needed=32_000, assumed=False, more=more)
    words = power_in_words(power, POINTS)
    for figure in ("6.1 points", "120 more items", "5.7"):
        assert figure in words
    assert power_summary(power, POINTS).more == MoreAnswersSummary(
        repeats=4, answers_gain=0.061, items=120, items_gain=0.0572
    )


def test_a_missing_candidate_is_no_victory() -> None:
    with pytest.raises(ValueError, match="compared with cow"):
        say({k: v for k, v in FAR.items() if k != "cow"})


ITEMS = tuple(Item(id=str(n), category="xy"[n % 2], prompt=str(n), answer="") for n in range(4))


def scores(*values: float) -> ItemScores:
    return ItemScores(items=ITEMS, values=np.array(values))


def test_the_router_is_chosen_elsewhere_and_the_oracle_is_a_bound() -> None:
    table = ScoreMatrix(
        models=("a", "b", "c"),
        categories=("y", "x"),
        values=np.array([[0.1, 0.9], [0.8, 0.2], [1, 1]]),
    )
    # On the test split a is better in y, but b was on the select split, by the table.
    ingredients = {"a": scores(1, 1, 0, 1), "b": scores(1, 0, 1, 0)}
    routes = best_by_category(list(ingredients), table, [item.category for item in ITEMS])
    router = routed(ingredients, routes, table.models)
    report = Report(name="run")
    found = with_alternatives(report, 0.9, scores(1, 1, 1, 0), ingredients, router, Mean())
    # 0.9 on the search split, 3 of 4 on the test split.
    assert found.selection_bias == pytest.approx(0.9 - 0.75)
    assert found.router == Router(score=0.25, routes={"x": "a", "y": "b"}, models=2, answers=1)
    assert found.upper_bound == UpperBound(score=1.0, models=2, answers=2)


def test_scores_that_are_no_fractions_have_neither_router_nor_bound() -> None:
    losses = scores(31, 30, 29, 30)
    router = routed({"a": losses}, dict.fromkeys("xy", "a"), ("a",))
    report = Report(name="run")
    found = with_alternatives(report, 30.0, losses, {"a": losses}, router, Mean())
    assert found == replace(report, selection_bias=0.0)


def test_a_candidate_that_the_search_keeps_is_shown_with_its_lead() -> None:
    mixture = minus("ace", -0.02, 0.5, soup="half")
    kept = told([minus("ace", 0.0, 1.0)], recipe=("ace",), mixture=mixture)
    assert kept.claim == "keep_candidate"
    assert "half minus ace is -2.0" in kept.sentence.replace("\u2212", "-")
    assert "on 600 search items" in kept.sentence
    alone = told([minus("ace", 0.0, 1.0)], recipe=("ace",))
    assert "search items" not in alone.sentence
