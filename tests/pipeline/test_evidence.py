"""Evidence of a run: losses by category, answers that are missing, the split of variance, looks and the margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from souping.analysis.intervals import ItemTable
from souping.analysis.significance import compare
from souping.core.scores import Mean
from souping.core.types import FloatArray, Item, ItemScores, Result, Trial
from souping.core.unit import BITS_PER_BYTE, scores_in, unit
from souping.pipeline.evidence import Contender, Pair, best_mixture, by_category, gather, lost_answers
from souping.report.render import markdown, report_table
from souping.report.sections import endings, losses
from souping.report.tables import widened
from souping.search.loop import SearchResult
from tests.conftest import make_items, recipe

ITEMS = tuple(make_items(150, ("w", "x", "y", "z")))
SINGLES = {name: recipe(*weights) for name, weights in {"a": (1.0, 0.0), "b": (0.0, 1.0)}.items()}
SOUP = recipe(0.5, 0.5)


def scores(rates: Mapping[str, float], seed: int = 0, **changes: Any) -> ItemScores:
    """Right-or-wrong scores whose category means are these; items of a seed are hard in the same order."""
    values = np.zeros(len(ITEMS))
    for category, rate in rates.items():
        where = np.flatnonzero([item.category == category for item in ITEMS])
        order = np.random.default_rng(seed).permutation(where)
        values[order[: round(rate * len(where))]] = 1.0
    return ItemScores(items=ITEMS, values=values, **changes)


def level(rate: float, **others: float) -> dict[str, float]:
    return {**dict.fromkeys("wxyz", rate), **others}


def gathered(soup: ItemScores, *, a: ItemScores | None = None, opened: int = 1, margin: float = 0.01) -> dict[str, Any]:
    """Evidence of a soup of a and b, of which search would have deployed a."""
    rows = [Contender(name=name, kind="ingredient", recipe=own) for name, own in SINGLES.items()]
    rows.append(Contender(name="a", kind="best_single", recipe=SINGLES["a"]))
    rows.append(Contender(name="soup", kind="soup", recipe=SOUP))
    measured = {SINGLES["a"].id: a or scores(level(0.6)), SINGLES["b"].id: scores(level(0.3)), SOUP.id: soup}
    return gather(rows, measured, Mean(), ("a", "b"), opened, margin, "evaluator.max_new_tokens")


def test_what_was_lost_is_said_under_the_headline() -> None:
    found = gathered(scores(level(0.8, z=0.3, y=0.6)))
    told = found["losses"]
    assert (told["against"], told["above"], told["below"], told["level"]) == ("a", 2, 1, 1)
    by_name = {table["category"]: table for table in told["categories"]}
    assert by_name["z"]["verdict"] == "lower"
    assert by_name["y"]["verdict"] == "no difference shown"
    assert all((t["low"] > 0 or t["high"] < 0) == (t["verdict"] != "no difference shown") for t in by_name.values())
    assert all(0 < t["least"] < 0.3 for t in by_name.values())
    (line,) = losses(found)
    assert line in markdown(found, [])
    assert str(report_table(found).caption).endswith(line)


def test_a_soup_that_is_the_best_single_lost_nothing() -> None:
    rows = [Contender(name="a", kind=kind, recipe=SINGLES["a"]) for kind in ("ingredient", "best_single", "soup")]
    found = gather(rows, {SINGLES["a"].id: scores(level(0.6))}, Mean(), ("a", "b"), 1)
    assert found["losses"] is None
    assert losses(found) == []
    assert {pair["test"] for pair in found["comparisons"]} == {"same model"}
    assert found["verdict"]["claim"] == "keep_single"


def ends(truncated: float = 0.0, unanswered: float = 0.0, **reasons: int) -> dict[str, Any]:
    """Shares in every item."""
    size = len(ITEMS)
    return {"truncated": np.full(size, truncated), "unanswered": np.full(size, unanswered), "reasons": reasons}


@pytest.mark.parametrize("whose", ["soup", "a"])
def test_nothing_is_claimed_over_answers_that_are_missing(whose: str) -> None:
    cut = ends(0.15, 0.1, too_long=60)
    soup = scores(level(0.9), **(cut if whose == "soup" else {}))
    found = gathered(soup, a=scores(level(0.6), **(cut if whose == "a" else {})))
    assert found["verdict"]["claim"] == "not_measured"
    assert "evaluator.max_new_tokens" in found["verdict"]["sentence"]
    own = found["outcomes"][whose]
    assert (own["items"], own["truncated"], own["unanswered"]) == (600, pytest.approx(0.15), pytest.approx(0.1))
    assert own["categories"]["w"] == {"items": 150, "truncated": pytest.approx(0.15), "unanswered": pytest.approx(0.1)}
    assert own["reasons"] == {"too_long": 60}
    assert f"{whose} 25.0 %" in endings(found)[0]
    text = markdown(found, [])
    assert "too_long (60)" in text


def test_a_warning_comes_from_two_percent_on() -> None:
    fine, cut, lost = (scores(level(0.6), **end) for end in (ends(0.019), ends(0.02), ends(0.0, 0.5, no_room=9)))
    assert lost_answers({"fine": fine}, "select") == []
    (line,) = lost_answers({"fine": fine, "cut": cut, "lost": lost}, "select")
    assert "lost 50.0 % missing (no_room: 9)" in line
    assert "evaluator.max_tokens" in lost_answers({"cut": cut}, "select", "evaluator.max_tokens")[0]
    assert gathered(cut)["verdict"]["claim"] != "not_measured"


def test_the_variance_is_split_between_items_and_answers() -> None:
    """Items of one rate and k answers each: all that varies is the draw of the answers."""
    rng, size, k = np.random.default_rng(1), len(ITEMS), 4
    answers = rng.random((size, k)) < 0.5
    noise: FloatArray = answers.var(axis=1, ddof=1) / k
    alone = tuple(Item(id=item.id, category=item.category, prompt=item.id, answer="") for item in ITEMS)
    drawn = ItemScores(items=alone, values=answers.mean(axis=1), noise=noise)
    apart = scores(level(0.6))
    split = gathered(drawn)["variance"]
    assert set(split) == {"soup"}
    assert split["soup"]["objective"] == pytest.approx(split["soup"]["items"] + split["soup"]["answers"])
    assert split["soup"]["answers"] == pytest.approx(0.25 / k / size, rel=0.1)
    assert split["soup"]["items"] < 0.2 * split["soup"]["answers"]
    assert split["soup"]["flips"] == np.mean(noise > 0)
    assert gathered(apart)["variance"] == {}
    assert "of the variance by answers %" in markdown(gathered(drawn), [])


def test_a_later_look_is_wider_and_corrected() -> None:
    soup = scores(level(0.66), seed=3)
    first, fifth = (gathered(soup, opened=k) for k in (1, 5))
    for once, later in zip(first["comparisons"], fifth["comparisons"], strict=True):
        assert later["high"] - later["low"] > once["high"] - once["low"]
        assert (once["level"], later["level"]) == pytest.approx((0.95, 1 - 0.05 / 30))
        assert later["p_look"] == pytest.approx(min(1.0, 30 * later["p_value"]))
        assert once["p_look"] == once["p_value"]
    assert fifth["verdict"]["opened"] == 5
    text = markdown(fifth, [])
    assert "99.83 % interval" in text
    assert "p (look 5)" in text


def test_the_margin_decides_what_is_kept() -> None:
    soup = scores(level(0.6), seed=7)
    found = gathered(soup)
    assert (found["verdict"]["claim"], found["verdict"]["margin"]) == ("no_difference_shown", 0.01)
    assert "A true gain of 1 point takes" in found["verdict"]["sentence"]
    assert gathered(soup, margin=0.5)["verdict"]["claim"] == "keep_single"
    assert gathered(scores(level(0.3)))["verdict"]["sentence"].startswith("Keep a, what the search would have chosen")


def test_losses_have_limits_that_hold_at_once() -> None:
    """Each interval is wider than the category's own, and excludes 0 just where its corrected p-value is small."""
    soup, single = scores(level(0.8, z=0.3, y=0.6), seed=1), scores(level(0.6))
    found = gathered(soup, a=single)["losses"]["categories"]
    for told in found:
        mask = np.array([item.category == told["category"] for item in ITEMS])
        groups = np.unique([item.group for item in ITEMS], return_inverse=True)[1][mask]
        zeros = np.zeros(mask.sum(), dtype=np.int64)
        alone = compare("s", "a", soup.values[mask], single.values[mask], zeros, groups, np.ones(1))
        assert told["low"] < alone.low < alone.high < told["high"]
        assert told["p_value"] >= alone.p_value
        assert (told["p_value"] < 0.05) == (told["low"] > 0 or told["high"] < 0)
    later = gathered(soup, a=single, opened=2)["losses"]["categories"]
    assert all(b["high"] - b["low"] > a["high"] - a["low"] for a, b in zip(found, later, strict=True))


def test_a_small_category_cannot_show_a_small_loss() -> None:
    """70 items of which one model solves two more: 10 points, as q^2 of them would have to differ."""
    items = tuple(make_items(70, ("w", "x", "y", "z")))
    values = np.zeros(280)
    values[:2] = 1.0
    table = ItemTable.of([replace(item, group=item.id) for item in items], Mean())
    found = by_category([Pair(soup="s", other="a", ours=values, theirs=np.zeros(280), table=table, same=False)])
    assert {told["verdict"] for told in found} == {"no difference shown"}
    assert all(0.02 < told["least"] < 0.15 for told in found)
    assert by_category([Pair(soup="s", other="a", ours=values, theirs=values, table=table, same=True)]) == []


def test_an_interval_that_nearly_touches_zero_is_explained() -> None:
    report = gathered(scores(level(0.8)))
    assert widened(report) == ""
    pair = report["comparisons"][0]
    pair |= {"difference": 0.037, "low": 0.001, "high": 0.073, "p_value": 0.009}
    assert pair["b"] in widened(report)
    assert widened(report) in markdown(report, [])
    assert widened(report) in str(report_table(report).caption)
    pair |= {"low": 0.01}
    assert widened(report) == ""


def test_a_single_that_the_search_keeps_is_shown_with_the_best_mixture() -> None:
    kept, mixture = scores(level(0.6)).values, scores(level(0.5), seed=2).values
    partial = np.where(np.arange(len(ITEMS)) % 2, np.nan, mixture)
    other = recipe(0.3, 0.7)
    trials = [
        Trial(number=n, recipe=r, weights=r.weights, result=Result(objective=0.5, categories={}, items=i, values=v))
        for n, (r, v, i) in enumerate([(SINGLES["a"], kept, 600), (SOUP, partial, 300), (other, mixture, 200)])
    ]
    single = SearchResult(recipe=SINGLES["a"], result=trials[0].result, trials=tuple(trials))
    found = best_mixture(single, ITEMS, Mean())
    assert found is not None
    assert (found.n, found.b) == (300, "a")
    assert found.low < found.difference == pytest.approx(np.nanmean(partial - kept), abs=0.02)
    assert best_mixture(replace(single, recipe=SOUP), ITEMS, Mean()) is None
    assert best_mixture(replace(single, trials=tuple(trials[:1])), ITEMS, Mean()) is None


def test_a_category_of_two_items_hides_no_loss_of_the_others() -> None:
    """All of its few groups lie on one side in half of the patterns, where they have no standard error."""
    items = tuple(make_items(80, ("w", "x"))) + tuple(make_items(2, ("y",)))
    table = ItemTable.of([replace(item, group=item.id) for item in items], Mean())
    ours = np.array([item.category == "w" or number % 2 == 0 for number, item in enumerate(items)], dtype=float)
    theirs = np.array([item.category != "w" and number % 2 == 0 for number, item in enumerate(items)], dtype=float)
    found = by_category([Pair(soup="s", other="a", ours=ours, theirs=theirs, table=table, same=False)])
    assert [told["verdict"] for told in found] == ["higher", "no difference shown", "no difference shown"]
    assert found[0]["p_value"] < 0.05


def test_a_lower_loss_is_better_wherever_a_report_says_so() -> None:
    """The soup's losses are lower by 0.05 bits per byte except in category z: claims, signs, words, the page."""
    draw = np.random.default_rng(0)
    base = 1.0 + 0.2 * draw.random(len(ITEMS))
    shift = np.array([0.03 if item.category == "z" else -0.05 for item in ITEMS])
    losses_of = {
        SINGLES["a"].id: base,
        SINGLES["b"].id: base + 0.4,
        SOUP.id: base + shift + 0.01 * draw.standard_normal(len(ITEMS)),
    }
    with scores_in(BITS_PER_BYTE):
        measured = {key: ItemScores(items=ITEMS, values=unit().inner(own)) for key, own in losses_of.items()}
        rows = [Contender(name=name, kind="ingredient", recipe=own) for name, own in SINGLES.items()]
        rows.append(Contender(name="a", kind="best_single", recipe=SINGLES["a"]))
        rows.append(Contender(name="soup", kind="soup", recipe=SOUP))
        found = gather(rows, measured, Mean(), ("a", "b"), 1)
        page = markdown(found, [])
    means = {row["name"]: row["objective"]["mean"] for row in found["rows"]}
    assert means == pytest.approx({"a": 1.1, "b": 1.5, "soup": 1.07}, abs=0.02)
    pair = next(one for one in found["comparisons"] if one["b"] == "a")
    assert pair["difference"] == pytest.approx(means["soup"] - means["a"])
    assert pair["low"] < pair["difference"] < pair["high"] < 0
    assert found["verdict"]["claim"] == "better_than_every_candidate"
    assert found["verdict"]["margin"] == pytest.approx(0.005)
    assert "−0.03" in found["verdict"]["sentence"]
    words = {one["category"]: one["verdict"] for one in found["losses"]["categories"]}
    assert words == {"w": "higher", "x": "higher", "y": "higher", "z": "lower"}
    assert (found["losses"]["above"], found["losses"]["below"]) == (3, 1)
    assert "bits per byte" in page
    assert "better in 3 of 4 categories, worse in 1" in page
    assert "the largest is z, +0.03" in page
    assert "%" not in page.split("## ")[0].replace("95 %", "")
