"""Evidence of a run: losses, missing answers, variance, looks; expected scores; extra benchmarks."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from souping.cli.extra_benchmarks import HARNESS, benchmark_node
from souping.core.reading import to_json
from souping.core.scores import Mean
from souping.core.types import FloatArray, Item, ItemScores, Recipe, Result, Trial, UserError
from souping.core.unit import BITS_PER_BYTE, POINTS, Unit
from souping.report import tables
from souping.report.analysis_results import read_content
from souping.report.content import ExtraResult, Report
from souping.report.format import p_value
from souping.report.report_page import markdown, report_table
from souping.report.sections import endings, losses
from souping.runs import evidence
from souping.runs.evidence import ContenderScores, VerdictTerms
from souping.runs.expected import FALSE_ALARM, check_expected
from souping.runs.settings import Expectation, expectations
from souping.runs.state import Contender, ContenderKind, ExtraBenchmark
from souping.search.loop import SearchResult
from souping.statistics.score_table import ItemTable, ScoreTable
from tests.conftest import Cli, FakeEvaluator, make_items, pool_of, recipe
from tests.support.family import answers
from tests.support.flips import compare
from tests.support.lm_eval_tasks import CHOICE, put, rows

ITEMS = tuple(make_items(150, ("w", "x", "y", "z")))
SINGLES = {name: recipe(*weights) for name, weights in {"a": (1.0, 0.0), "b": (0.0, 1.0)}.items()}
SOUP = recipe(0.5, 0.5)


def table_of(value: Any) -> dict[str, Any]:
    """What the report's file has of a value."""
    table = to_json(value)
    assert isinstance(table, dict)
    return table


def gather(
    contenders: Sequence[Contender],
    measured: Mapping[str, ItemScores],
    *,
    unit: Unit = POINTS,
    selected: Sequence[str] = ("a", "b"),
    look: int = 1,
    margin: float = 0.01,
) -> dict[str, Any]:
    """What the report's file has of the evidence."""
    *others, soup = contenders
    models = ContenderScores(
        unit=unit, soup=soup, others=others, scores=measured, objective=Mean(), look=look
    )
    terms = VerdictTerms(selected=selected, margin=margin, length_key="evaluator.max_new_tokens")
    return table_of(evidence.gather_evidence(Report(name="run", unit=unit), models, terms))


def by_category(unit: Unit, pairs: Sequence[evidence.Pair]) -> list[dict[str, Any]]:
    """Rows of what the soup lost or gained in each category."""
    return [table_of(difference) for difference in evidence.by_category(unit, pairs)]


def by_category_of(
    items: Sequence[Item], soup: FloatArray, other: FloatArray, *, same_model: bool = False
) -> list[dict[str, Any]]:
    """As `by_category`, of scores on items that are a group each."""
    table = ItemTable.of([replace(item, group=item.id) for item in items], Mean())
    scores = ScoreTable.complete(table, {"s": soup, "a": other})
    return by_category(
        POINTS, [evidence.Pair(soup="s", other="a", scores=scores, same_model=same_model)]
    )


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


def gathered(
    soup: ItemScores, *, a: ItemScores | None = None, look: int = 1, margin: float = 0.01
) -> dict[str, Any]:
    """What a report says of a soup, beside the ingredients a, which is the best candidate, and b."""
    rows = [Contender(name=name, kind="ingredient", recipe=own) for name, own in SINGLES.items()]
    rows.append(Contender(name="a", kind="best_candidate", recipe=SINGLES["a"]))
    rows.append(Contender(name="soup", kind="soup", recipe=SOUP))
    measured = {
        SINGLES["a"].id: a or scores(level(0.6)),
        SINGLES["b"].id: scores(level(0.3)),
        SOUP.id: soup,
    }
    return gather(rows, measured, look=look, margin=margin)


def test_what_was_lost_is_said_under_the_headline() -> None:
    found = gathered(scores(level(0.8, z=0.3, y=0.6)))
    told = found["losses"]
    assert (told["against"], told["above"], told["below"], told["same"]) == ("a", 2, 1, 1)
    by_name = {table["category"]: table for table in told["categories"]}
    assert by_name["z"]["verdict"] == "lower"
    assert by_name["y"]["verdict"] == "no difference shown"
    assert all(
        (t["low"] > 0 or t["high"] < 0) == (t["verdict"] != "no difference shown")
        for t in by_name.values()
    )
    assert all(0 < t["least"] < 0.3 for t in by_name.values())
    assert f"Next ({found['verdict']['claim']}): " in markdown(read_content(found), [])
    (line,) = losses(read_content(found))
    assert line in markdown(read_content(found), [])
    assert str(report_table(read_content(found)).caption).endswith(line)


def test_a_row_has_the_rate_of_each_category_and_the_objective() -> None:
    found = gathered(scores(level(0.8, z=0.3)))
    rows = {row["name"]: row for row in found["rows"]}
    assert [row["name"] for row in found["rows"]] == ["a", "b", "a", "soup"]
    soup = rows["soup"]
    assert (soup["kind"], soup["recipe_id"]) == ("soup", SOUP.id)
    means = {name: score["mean"] for name, score in soup["scores"].items()}
    assert means == pytest.approx({"w": 0.8, "x": 0.8, "y": 0.8, "z": 0.3})
    assert soup["objective"]["mean"] == pytest.approx((3 * 0.8 + 0.3) / 4)
    for score in (soup["objective"], *soup["scores"].values()):
        assert score["low"] < score["mean"] < score["high"]


def test_a_soup_that_is_the_best_candidate_lost_nothing() -> None:
    rows = [
        Contender(name="a", kind=kind, recipe=SINGLES["a"])
        for kind in ("ingredient", "best_candidate", "soup")
    ]
    found = gather(rows, {SINGLES["a"].id: scores(level(0.6))})
    assert found.get("losses") is None
    assert losses(read_content(found)) == []
    assert {pair["test"] for pair in found["comparisons"]} == {"same model"}
    assert found["verdict"]["claim"] == "keep_candidate"


def ends(truncated: float = 0.0, unanswered: float = 0.0, **reasons: int) -> dict[str, Any]:
    size = len(ITEMS)
    return {
        "truncated": np.full(size, truncated),
        "unanswered": np.full(size, unanswered),
        "reasons": reasons,
    }


@pytest.mark.parametrize("whose", ["soup", "a"])
def test_nothing_is_claimed_over_answers_that_are_missing(whose: str) -> None:
    cut = ends(0.15, 0.1, too_long=60)
    soup = scores(level(0.9), **(cut if whose == "soup" else {}))
    found = gathered(soup, a=scores(level(0.6), **(cut if whose == "a" else {})))
    assert found["verdict"]["claim"] == "not_measured"
    assert "evaluator.max_new_tokens" in found["verdict"]["sentence"]
    own = found["outcomes"][whose]
    assert (own["items"], own["truncated"], own["unanswered"]) == (
        600,
        pytest.approx(0.15),
        pytest.approx(0.1),
    )
    assert own["categories"]["w"] == {
        "items": 150,
        "truncated": pytest.approx(0.15),
        "unanswered": pytest.approx(0.1),
    }
    assert own["reasons"] == {"too_long": 60}
    assert f"{whose} 25.0 %" in endings(read_content(found))[0]
    text = markdown(read_content(found), [])
    assert "too_long (60)" in text
    assert "Next (" not in text
    assert losses(read_content(found)) == []


def test_answers_that_the_candidates_lack_make_no_soup_better() -> None:
    """Of equal models: 15 % of the candidates' answers were never received and count as wrong."""
    lost = np.arange(len(ITEMS)) % 7 == 0
    whole = scores(level(0.6))
    lacking = replace(whole, values=np.where(lost, 0.0, whole.values), unanswered=lost * 1.0)
    result = gathered(whole, a=lacking)
    assert result["verdict"]["claim"] not in (
        "better_than_every_candidate",
        "better_than_best_candidate",
    )
    against_a = next(c for c in result["comparisons"] if c["b"] == "a")
    assert against_a["difference"] > 0.05
    assert against_a["low"] <= 0 < against_a["high"]
    assert against_a["p_value"] == 1
    counted = gathered(whole, a=replace(lacking, unanswered=0.0 * lost))
    assert next(c for c in counted["comparisons"] if c["b"] == "a")["p_value"] < 0.001


def test_cut_answers_count_as_they_are_scored_and_a_line_says_what_they_could_change() -> None:
    cut = (np.arange(len(ITEMS)) % 20 == 0) * 1.0
    plain = gathered(scores(level(0.8)))
    result = gathered(replace(scores(level(0.8)), truncated=cut))
    assert "sensitivity" not in plain["verdict"]
    assert "soup minus a" in result["verdict"]["sensitivity"]
    assert result["comparisons"] == plain["comparisons"]
    assert any("limit of tokens" in line for line in endings(read_content(result)))


def test_categories_have_p_values_of_max_t_and_not_of_a_normal_quantile() -> None:
    """One category of few discordant items, alone in its family: its p-value is that of its own flips."""
    items = make_items(40, ("w",))
    values = np.zeros(40)
    values[[0, 10, 20]] = 1.0
    pair = evidence.Pair(
        soup="soup",
        other="a",
        scores=ScoreTable.complete(
            ItemTable.of(items, Mean()), {"soup": values, "a": np.zeros(40)}
        ),
    )
    (table,) = by_category(POINTS, [pair])
    # Two signs of eight give 0.25. That none of the 20 groups was lost bounds p by 2 (1 - 3 / 40)^20.
    assert table["p_value"] == pytest.approx(2 * (1 - 3 / 40) ** 20, rel=1e-3)


def test_the_variance_is_split_between_items_and_answers() -> None:
    """Items of one rate and k answers each: all that varies is the draw of the answers."""
    rng = np.random.default_rng(1)
    size = len(ITEMS)
    k = 4
    answers = rng.random((size, k)) < 0.5
    noise: FloatArray = answers.var(axis=1, ddof=1) / k
    alone = tuple(
        Item(id=item.id, category=item.category, prompt=item.id, answer="") for item in ITEMS
    )
    drawn = ItemScores(items=alone, values=answers.mean(axis=1), noise=noise)
    apart = scores(level(0.6))
    split = gathered(drawn)["variance"]
    assert set(split) == {"soup"}
    assert split["soup"]["objective"] == pytest.approx(
        split["soup"]["items"] + split["soup"]["answers"]
    )
    assert split["soup"]["answers"] == pytest.approx(0.25 / k / size, rel=0.1)
    assert split["soup"]["items"] < 0.2 * split["soup"]["answers"]
    assert split["soup"]["flips"] == np.mean(noise > 0)
    assert gathered(apart)["variance"] == {}
    assert "of the variance by answers %" in markdown(read_content(gathered(drawn)), [])


def test_one_soup_under_two_names_is_one_test_of_holms() -> None:
    uniform = recipe(0.4, 0.6)
    soup = Contender(name="soup", kind="soup", recipe=SOUP)
    kinds: tuple[ContenderKind, ...] = ("ingredient", "best_candidate")
    singles = [Contender(name="a", kind=kind, recipe=SINGLES["a"]) for kind in kinds]
    names: tuple[ContenderKind, ...] = ("uniform_all", "uniform_topk")
    rows = [Contender(name=name, kind=name, recipe=uniform) for name in names]
    measured = {
        SINGLES["a"].id: scores(level(0.6)),
        uniform.id: scores(level(0.62), seed=5),
        SOUP.id: scores(level(0.7), seed=6),
    }
    compared = gather([*singles, *rows, soup], measured, selected=("a",))["comparisons"]
    baselines = [c for c in compared if c["kind"] in names]
    assert [c["p_holm"] for c in baselines] == [c["p_look"] for c in baselines]
    assert [c["p_holm"] for c in compared if c["kind"] in kinds] == [None, None]


@pytest.mark.parametrize("look", [1, 3])
def test_p_values_of_the_baselines_are_corrected_for_looks_and_by_holm(look: int) -> None:
    """The k-th look costs the factor k (k + 1); of two p-values the smaller is doubled."""
    all_models = recipe(0.4, 0.6)
    top_models = recipe(0.7, 0.3)
    rows = [
        Contender(name="a", kind="ingredient", recipe=SINGLES["a"]),
        Contender(name="a", kind="best_candidate", recipe=SINGLES["a"]),
        Contender(name="uniform_all", kind="uniform_all", recipe=all_models),
        Contender(name="uniform_topk", kind="uniform_topk", recipe=top_models),
        Contender(name="soup", kind="soup", recipe=SOUP),
    ]
    measured = {
        SINGLES["a"].id: scores(level(0.3)),
        all_models.id: scores(level(0.57), seed=5),
        top_models.id: scores(level(0.61), seed=5),
        SOUP.id: scores(level(0.7), seed=6),
    }
    found = gather(rows, measured, selected=("a",), look=look)["comparisons"]
    p_values = {row["kind"]: row["p_value"] for row in found}
    assert 0 < p_values["uniform_all"] < p_values["uniform_topk"] < 1 / 12
    factor = look * (look + 1) if look > 1 else 1
    smaller = min(1.0, 2 * factor * p_values["uniform_all"])
    larger = max(smaller, min(1.0, factor * p_values["uniform_topk"]))
    corrected = {row["kind"]: row["p_holm"] for row in found}
    assert corrected["uniform_all"] == pytest.approx(smaller)
    assert corrected["uniform_topk"] == pytest.approx(larger)


def test_a_later_look_is_wider_and_corrected() -> None:
    soup = scores(level(0.66), seed=3)
    first = gathered(soup, look=1)
    fifth = gathered(soup, look=5)
    for once, later in zip(first["comparisons"], fifth["comparisons"], strict=True):
        assert later["high"] - later["low"] > once["high"] - once["low"]
        assert (once["level"], later["level"]) == pytest.approx((0.95, 1 - 0.05 / 30))
        assert later["p_look"] == pytest.approx(min(1.0, 30 * later["p_value"]))
        assert once["p_look"] == once["p_value"]
    assert fifth["verdict"]["look"] == 5
    text = markdown(read_content(fifth), [])
    assert "99.83 % interval" in text
    assert "p (look 5)" in text


def test_a_soup_that_may_have_been_picked_is_corrected_for_those_with_it() -> None:
    """The models of earlier looks: nine with scores, and two whose answers are gone, each a test of its own."""
    known = evidence.KnownScores(
        scores=np.array([scores(level(0.6), seed=n).values for n in range(9)]), missing=2
    )
    rows = [Contender(name=n, kind="ingredient", recipe=r) for n, r in SINGLES.items()]
    soup = Contender(name="soup", kind="soup", recipe=SOUP)
    measured = {
        SINGLES["a"].id: scores(level(0.6), seed=20),
        SOUP.id: scores(level(0.7), seed=21),
    }
    models = ContenderScores(
        unit=POINTS,
        soup=soup,
        others=rows[:1],
        scores=measured,
        objective=Mean(),
        look=1,
        known=known,
    )
    (first,) = models.pairs
    (second,) = replace(models, look=2, known=None).pairs
    (picked,) = replace(models, look=2).pairs
    assert (first.level.tests, second.level.tests) == (1.0, 1.0)
    # The nine and the soup are 1 to 10 tests, as they depend on each other.
    assert 2 + 1 < picked.level.tests <= 2 + 10
    without_missing = evidence.KnownScores(scores=known.scores)
    (answered,) = replace(models, look=2, known=without_missing).pairs
    assert picked.level.tests == pytest.approx(answered.level.tests + 2)
    before = second.compare()
    after = picked.compare()
    assert (before.level, after.level) == (second.level, picked.level)
    # Both p-values count drawn patterns, the smaller one a dozen.
    assert after.p_family == pytest.approx(picked.level.tests * before.p_family, rel=0.6)
    assert after.high - after.low > before.high - before.low


def test_the_margin_decides_what_is_kept() -> None:
    soup = scores(level(0.6), seed=7)
    found = gathered(soup)
    assert (found["verdict"]["claim"], found["verdict"]["min_gain"]) == (
        "no_difference_shown",
        0.01,
    )
    assert "A true gain of 1 point takes" in found["verdict"]["sentence"]
    assert gathered(soup, margin=0.5)["verdict"]["claim"] == "keep_candidate"
    assert gathered(scores(level(0.3)))["verdict"]["sentence"].startswith(
        "Keep a, what the search would have chosen"
    )


def test_losses_have_limits_that_hold_at_once() -> None:
    soup = scores(level(0.8, z=0.3, y=0.6), seed=1)
    single = scores(level(0.6))
    found = gathered(soup, a=single)["losses"]["categories"]
    for told in found:
        mask = np.array([item.category == told["category"] for item in ITEMS])
        groups = np.unique([item.group for item in ITEMS], return_inverse=True)[1][mask]
        zeros = np.zeros(mask.sum(), dtype=np.int64)
        alone = compare("s", "a", soup.values[mask], single.values[mask], zeros, groups, np.ones(1))
        assert told["low"] < alone.low < alone.high < told["high"]
        assert told["p_value"] >= alone.p_alone
        assert (told["p_value"] < 0.05) == (told["low"] > 0 or told["high"] < 0)
    later = gathered(soup, a=single, look=2)["losses"]["categories"]
    assert all(
        b["high"] - b["low"] > a["high"] - a["low"] for a, b in zip(found, later, strict=True)
    )


def test_a_small_category_cannot_show_a_small_loss() -> None:
    items = tuple(make_items(70, ("w", "x", "y", "z")))
    values = np.zeros(280)
    values[:2] = 1.0  # 2 of 70 items of w
    found = by_category_of(items, values, np.zeros(280))
    assert {told["verdict"] for told in found} == {"no difference shown"}
    assert all(0.02 < told["least"] < 0.15 for told in found)
    assert by_category_of(items, values, values, same_model=True) == []


def test_a_single_that_the_search_keeps_is_shown_with_the_best_mixture() -> None:
    kept = scores(level(0.6)).values
    mixture = scores(level(0.5), seed=2).values
    partial = np.where(np.arange(len(ITEMS)) % 2, np.nan, mixture)
    other = recipe(0.3, 0.7)
    trials = [
        Trial(
            number=n,
            recipe=r,
            weights=r.weights,
            result=Result(objective=0.5, categories={}, items=i, values=v),
        )
        for n, (r, v, i) in enumerate(
            [(SINGLES["a"], kept, 600), (SOUP, partial, 300), (other, mixture, 200)]
        )
    ]
    single = SearchResult(recipe=SINGLES["a"], result=trials[0].result, trials=tuple(trials))
    found = evidence.best_mixture(single, ITEMS, Mean())
    assert found is not None
    assert (found.n, found.b) == (300, "a")
    assert found.low < found.difference == pytest.approx(np.nanmean(partial - kept), abs=0.02)
    assert evidence.best_mixture(replace(single, recipe=SOUP), ITEMS, Mean()) is None
    assert evidence.best_mixture(replace(single, trials=tuple(trials[:1])), ITEMS, Mean()) is None


def test_a_category_of_two_items_hides_no_loss_of_the_others() -> None:
    """All of its few groups lie on one side in half of the patterns, where they have no standard error."""
    items = tuple(make_items(80, ("w", "x"))) + tuple(make_items(2, ("y",)))
    ours = np.array(
        [item.category == "w" or number % 2 == 0 for number, item in enumerate(items)], dtype=float
    )
    theirs = np.array(
        [item.category != "w" and number % 2 == 0 for number, item in enumerate(items)], dtype=float
    )
    found = by_category_of(items, ours, theirs)
    assert [told["verdict"] for told in found] == [
        "higher",
        "no difference shown",
        "no difference shown",
    ]
    assert found[0]["p_value"] < 0.05


def test_a_lower_loss_is_better_wherever_a_report_says_so() -> None:
    """The soup's losses are lower by 0.09 bits per byte except in category z: claims, signs, words, the page."""
    draw = np.random.default_rng(0)
    base = 1.0 + 0.2 * draw.random(len(ITEMS))
    shift = np.array([0.15 if item.category == "z" else -0.09 for item in ITEMS])
    losses_of = {
        SINGLES["a"].id: base,
        SINGLES["b"].id: base + 0.4,
        SOUP.id: base + shift + 0.01 * draw.standard_normal(len(ITEMS)),
    }
    measured = {
        key: ItemScores(items=ITEMS, values=BITS_PER_BYTE.inner(own))
        for key, own in losses_of.items()
    }
    rows = [Contender(name=name, kind="ingredient", recipe=own) for name, own in SINGLES.items()]
    rows.append(Contender(name="a", kind="best_candidate", recipe=SINGLES["a"]))
    rows.append(Contender(name="soup", kind="soup", recipe=SOUP))
    found = gather(rows, measured, unit=BITS_PER_BYTE)
    page = markdown(read_content(found), [])
    means = {row["name"]: row["objective"]["mean"] for row in found["rows"]}
    assert means == pytest.approx({"a": 1.1, "b": 1.5, "soup": 1.07}, abs=0.02)
    pair = next(one for one in found["comparisons"] if one["b"] == "a")
    assert pair["difference"] == pytest.approx(means["soup"] - means["a"])
    assert pair["low"] < pair["difference"] < pair["high"] < 0
    assert found["verdict"]["claim"] == "better_than_every_candidate"
    assert found["verdict"]["min_gain"] == pytest.approx(0.005)
    assert "−0.03" in found["verdict"]["sentence"]
    words = {one["category"]: one["verdict"] for one in found["losses"]["categories"]}
    assert words == {"w": "higher", "x": "higher", "y": "higher", "z": "lower"}
    assert (found["losses"]["above"], found["losses"]["below"]) == (3, 1)
    assert "bits per byte" in page
    assert "in 3 and behind in 1. One category is worse: z, +0.15" in page
    assert "%" not in page.split("## ")[0].replace("95 %", "")


OWN = {"_target_": "x", "dtype": "bfloat16", "device": "cpu", "threads": 1}


def test_entries_are_tasks_or_files(tmp_path: Path) -> None:
    task = {**OWN, "_target_": HARNESS, "tasks": ["hellaswag"]}
    assert benchmark_node("hellaswag", "extra_benchmarks[0]", OWN) == (
        "hellaswag",
        "evaluator",
        task,
    )
    changes = {"tasks": ["a", "b"], "num_fewshot": 3, "dtype": "float32"}
    assert benchmark_node(changes, "extra_benchmarks[0]", OWN) == (
        "a+b",
        "evaluator",
        {**task, **changes},
    )
    path = tmp_path / "side.jsonl"
    path.write_text('{"id": "1", "category": "c", "prompt": "p", "answer": "a"}\n')
    benchmark = {"_target_": "souping.evaluate.benchmark.Benchmark", "path": str(path)}
    assert benchmark_node(str(path), "extra_benchmarks[0]", OWN) == ("side", "benchmark", benchmark)
    data_set = {"path": "hf://org/side@v2:test", "columns": {"prompt": "question"}}
    assert benchmark_node(data_set, "extra_benchmarks[0]", OWN) == (
        "side",
        "benchmark",
        {**benchmark, **data_set},
    )
    with pytest.raises(UserError, match=r"no such file; did you mean side.jsonl\?"):
        benchmark_node(str(tmp_path / "sde.jsonl"), "extra_benchmarks[0]", OWN)


def side_result(look: int = 1) -> ExtraResult:
    """A soup that lost one category of another benchmark, and gained on one of its two ingredients."""
    items = tuple(make_items(60))
    skill = {"soup": (20, 50), "a": (45, 50), "b": (5, 5)}
    recipes = {name: recipe(1.0, names=(name,)) for name in skill}

    def scores(asked: Recipe) -> ItemScores:
        limits = dict(zip(("w", "x"), skill[asked.ingredients[0]], strict=True))
        return ItemScores(
            items=items,
            values=np.array([float(int(str(i.answer)) < limits[i.category]) for i in items]),
        )

    side = ExtraBenchmark(name="other", evaluator=FakeEvaluator(skill={}), items=items)
    ingredients = {name: recipes[name] for name in ("a", "b")}
    measured = {r.id: scores(r) for r in recipes.values()}
    return evidence.compare_on(side, recipes["soup"], ingredients, measured, look=look)


def test_a_soup_that_lost_one_category_and_gained_on_one_ingredient() -> None:
    entry = side_result()
    assert [row.name for row in entry.rows] == ["a", "b", "soup"]
    assert (entry.items, entry.groups) == (120, 60)
    assert [pair.b for pair in entry.comparisons] == ["a", "b"]
    differences = [pair.difference for pair in entry.comparisons]
    # Of 60 items in each category the soup has 20 and 50 right, a 45 and 50, b 5 and 5.
    assert differences == pytest.approx([-25 / 60 / 2, (15 + 45) / 60 / 2])
    assert [pair.verdict for pair in entry.comparisons] == ["lower", "higher"]
    for pair in entry.comparisons:
        assert pair.p_value is not None
        assert pair.p_holm is not None
        assert pair.p_value <= pair.p_holm
    found = {(pair.category, pair.b): pair.verdict for pair in entry.categories}
    assert (found["w", "a"], found["x", "a"], found["x", "b"]) == (
        "lower",
        "no difference shown",
        "higher",
    )


def test_another_benchmark_shows_the_level_and_the_p_values_of_its_look() -> None:
    """A fifth look costs the factor 30, in a level of 0.05 / 30 and in every p-value."""
    entry = side_result(look=5)
    assert entry.comparisons[0].verdict == "lower"
    lost = next(tables.sentences(Report(name="run", extra_benchmarks=(entry,))))
    assert "99.83 % interval" in lost
    table = tables.differences(entry)
    assert table.header[3:5] == ("99.83 % interval", "p (look 5)")
    assert entry.categories
    for row, pair in zip(table.rows, (*entry.comparisons, *entry.categories), strict=True):
        assert pair.p_value is not None
        assert row[4].text == p_value(min(1.0, 30 * pair.p_value))


@pytest.fixture(scope="module")
def side(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("side") / "side.jsonl"
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()][::2]
    path.write_text("".join(json.dumps({**row, "id": f"side-{row['id']}"}) + "\n" for row in rows))
    return path


def settings(family: Path) -> list[str]:
    return [
        *pool_of(family),
        "selector=topk",
        "selector.k=2",
        "optimiser=uniform",
        "store=store.sqlite",
    ]


@pytest.mark.slow
def test_soup_and_ingredients_on_all_items(
    family: Path, side: Path, souping: Cli, tmp_path: Path
) -> None:
    souping(*settings(family), "hydra.run.dir=plain").ok()
    before = answers_in(tmp_path / "store.sqlite")
    souping(*settings(family), f"extra_benchmarks=[{side}]", "hydra.run.dir=out").ok()
    # the soup and its two ingredients, nothing else
    assert answers_in(tmp_path / "store.sqlite") == before + 3 * 90
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (entry,) = report["extra_benchmarks"]
    assert [row["kind"] for row in entry["rows"]] == ["ingredient", "ingredient", "soup"]
    assert (
        entry["items"]
        == entry["shared"]
        == sum(s["n"] for s in entry["rows"][0]["scores"].values())
        == 90
    )
    assert {c["b"] for c in entry["comparisons"]} == set(report["selection"]["ingredients"])
    assert len(entry["categories"]) == 2 * 3
    assert (
        "90 of its 90 prompts stand in the run's own benchmark too"
        in (tmp_path / "out/report.md").read_text()
    )
    apart = (
        "extra_benchmarks",
        "cost",
        "provenance",
        "rebuild",
        "warnings",
    )  # the last are of the extra benchmark too
    first = json.loads((tmp_path / "plain" / "report.json").read_text())
    same = []
    for content in (first, report):
        same.append({key: value for key, value in content.items() if key not in apart})
    assert same[0] == same[1]  # nothing was chosen on it
    souping(*settings(family), f"extra_benchmarks=[{side}]", "hydra.run.dir=again").ok()
    assert (
        json.loads((tmp_path / "again" / "report.json").read_text())["cost"]["evaluated_items"] == 0
    )
    guard = ("guard={side: 90}", f"guard_baseline={report['selection']['ingredients'][0]}")
    souping(*settings(family), f"extra_benchmarks=[{side}]", *guard, "hydra.run.dir=guarded").ok()
    guarded = json.loads((tmp_path / "guarded" / "report.json").read_text())
    (check,) = guarded["analyses"]["guards"]["checks"]
    assert (
        0 < check["items"] == guarded["extra_benchmarks"][0]["items"] < 90
    )  # the guard chose on the others
    assert check["outcome"] == "not measured"  # all answers are truncated


def test_wrong_entries_are_refused_before_work(
    family: Path, side: Path, souping: Cli, tmp_path: Path
) -> None:
    for entry, needle in (
        ("nowhere.jsonl", "extra_benchmarks[0]=nowhere.jsonl"),
        ("{path: SIDE, nane: x}", "did you mean name?"),
        ("{name: x}", "must be a file of items"),
        ("{tasks: [a], max_gen_tokens: 2}", "extra_benchmarks[0].evaluator.max_gen_tokens"),
    ):
        souping(
            *settings(family), f"extra_benchmarks=[{entry.replace('SIDE', str(side))}]"
        ).refused(needle)
        assert (
            not (tmp_path / "store.sqlite").exists() or answers_in(tmp_path / "store.sqlite") == 0
        )


@pytest.mark.slow
def test_a_task_of_lm_eval(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    put(tmp_path, "letters", rows(40, 0), CHOICE)
    entry = (
        "{"
        + f"tasks: [letters], name: letters, include_path: {tmp_path}, args: {{include_defaults: false}}"
        + "}"
    )
    souping(*settings(family), f"extra_benchmarks=[{entry}]", "hydra.run.dir=out").ok()
    (found,) = json.loads((tmp_path / "out" / "report.json").read_text())["extra_benchmarks"]
    assert (found["name"], found["evaluator"], found["items"]) == ("letters", "lm_eval", 40)
    assert [row["name"] for row in found["rows"]][-1] == "soup"


def test_expected_scores_are_percent_as_soon_as_one_is_above_1() -> None:
    def read(expected: Any) -> list[tuple[str, str | None, float]]:
        return [(one.candidate, one.category, one.score) for one in expectations(expected)]

    assert read({"a": 72.0, "b": {"w": 0.5}}) == [("a", None, 0.72), ("b", "w", 0.005)]
    assert read({"a": 0.72, "b": 1}) == [("a", None, 0.72), ("b", None, 1.0)]
    assert read(None) == []


def right_below(right: int) -> ItemScores:
    items = make_items(per_category=100)
    return ItemScores(
        items=tuple(items), values=np.array([float(int(str(i.answer)) < right) for i in items])
    )


def test_near_is_as_expected_and_far_is_not() -> None:
    found = expectations({"a": 70, "b": 90, "c": 40, "d": {"w": 72, "x": 20}})
    measured = dict.fromkeys("abcd", right_below(70))
    expected_check = check_expected(POINTS, found, measured, Mean(), "error", "select")
    verdicts = [check.verdict for check in expected_check.checks]
    assert verdicts == ["as expected", "too low", "too high", "as expected", "too high"]
    assert [check.n for check in expected_check.checks] == [200, 200, 200, 100, 100]
    assert not expected_check.passed


def test_right_setups_pass() -> None:
    """False alarms over seeded draws of six singles, three categories each: at most what is promised, and some."""
    rng = np.random.default_rng(3)
    alarms = 0
    draws = 200
    items = tuple(make_items(per_category=60, categories=("w", "x", "y")))
    truth = dict(zip("abcdef", (0.05, 0.3, 0.5, 0.72, 0.9, 0.98), strict=True))
    found = [Expectation(candidate=n, category="w", score=p) for n, p in truth.items()]
    for _ in range(draws):
        group = rng.random((len(truth), len(items)))
        measured = {
            n: ItemScores(items=items, values=(row < p).astype(float))
            for (n, p), row in zip(truth.items(), group, strict=True)
        }
        alarms += not check_expected(POINTS, found, measured, Mean(), "error", "select").passed
    assert alarms <= draws * FALSE_ALARM + 3 * (draws * FALSE_ALARM) ** 0.5


RIGHT = "{% for m in messages %}{{ m.content }}{% endfor %}"
WRONG = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


@pytest.fixture(scope="module")
def echo(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items that ant gets right (but for empty answers); two pools, with the right chat template and a wrong one."""
    folder = tmp_path_factory.mktemp("echo")
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    said = answers(family / "ant", [row["prompt"] for row in rows])
    for row, answer in zip(rows, said, strict=True):
        row |= {"prompt": [{"role": "user", "content": row["prompt"]}], "answer": answer or "?"}
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for pool, template in (("right", RIGHT), ("wrong", WRONG)):
        for name in ("ant", "bee", "cat"):
            shutil.copytree(family / name, folder / pool / name)
            (folder / pool / name / "chat_template.jinja").write_text(template)
    return folder


def arguments(echo: Path, pool: str = "right") -> list[str]:
    search = ["selector=topk", "selector.k=2", "optimiser=uniform"]
    return [
        *pool_of(echo / pool, "ant", "bee", "cat"),
        f"benchmark.path={echo / 'items.jsonl'}",
        *search,
    ]


def answers_in(path: Path) -> int:
    return int(sqlite3.connect(path).execute("SELECT COUNT(*) FROM scores").fetchone()[0])


def test_a_right_run_passes_and_says_so(echo: Path, souping: Cli, tmp_path: Path) -> None:
    done = souping(*arguments(echo), "expected={ant:97,bee:{red:20}}", "hydra.run.dir=out").ok()
    assert "2 scores as expected on the select split" in done.out
    summary = json.loads((tmp_path / "out" / "report.json").read_text())["expected_check"]
    assert (summary["passed"], summary["split"], summary["mode"]) == (True, "select", "error")
    assert [(c["candidate"], c["category"]) for c in summary["checks"]] == [
        ("ant", None),
        ("bee", "red"),
    ]
    assert summary["checks"][0]["measured"] > 0.9


@pytest.mark.parametrize("wrong", ["template", pytest.param("length", marks=pytest.mark.slow)])
def test_wrong_settings_are_caught_before_the_search(
    echo: Path, souping: Cli, tmp_path: Path, wrong: str
) -> None:
    call = (
        arguments(echo, "wrong")
        if wrong == "template"
        else [*arguments(echo), "evaluator.max_new_tokens=1"]
    )
    done = souping(*call, "expected={ant:97}", "store=store.sqlite", "out=out")
    done.refused("ant: not as expected on the select split: check the chat template")
    assert "too low" in done.out
    assert "selected" not in done.out
    assert {path.name for path in tmp_path.iterdir()} <= {
        "store.sqlite",
        "store.sqlite-wal",
        "store.sqlite-shm",
    }
    kept = answers_in(tmp_path / "store.sqlite")
    assert 15 < kept < 60  # ant alone, on the select split alone: and it stays
    assert souping(*call, "expected={ant:97}", "store=store.sqlite").code == 2
    assert answers_in(tmp_path / "store.sqlite") == kept


def test_unknown_names_are_refused_before_work(echo: Path, souping: Cli, tmp_path: Path) -> None:
    for setting, needles in (
        ("expected={antt:9}", ["expected: candidate=antt", "did you mean ant?"]),
        ("expected={ant:{gren:9}}", ["expected.ant: category=gren", "did you mean green?"]),
        ("expected={ant:lots}", ["expected.ant='lots'"]),
        ("expected_mismatch=wran", ["expected_mismatch='wran'", "did you mean warn?"]),
    ):
        souping(*arguments(echo), setting).refused(*needles)
        assert not list(tmp_path.glob("outputs/*/*"))


def test_a_warning_names_the_worst_model_and_its_most_frequent_reason() -> None:
    """2 % of the answers of a, 30 % and 4 % of b's, and 1 % of c's, which is below the level."""
    lost = {
        "a": scores(level(0.5), **ends(0.02)),
        "b": scores(level(0.5), **ends(0.3, 0.04, late=3, long=1200)),
        "c": scores(level(0.5), **ends(0.01)),
    }
    (line,) = evidence.lost_answers(lost, "search", "evaluator.max_new_tokens")
    assert line.startswith("search: answers of 2 of 3 models")
    assert "b 30.0 % truncated, 4.0 % missing (long: 1,200): " in line
    assert "(evaluator.max_new_tokens)" in line
    assert " and " in line.partition("1,200")[2]
    (other,) = evidence.lost_answers({"a": lost["a"]}, "search")
    assert "a 2.0 % truncated: " in other
    assert "()" not in other
    assert evidence.lost_answers({"c": lost["c"]}, "search") == []
    (gone,) = evidence.lost_answers({"m": scores(level(0.5), **ends(0.0, 0.5))}, "search")
    assert "m 50.0 % missing: " in gone
    assert "truncated," not in gone


@pytest.mark.parametrize(("share", "told"), [(0.2, False), (0.21, True)])
def test_nothing_is_claimed_above_a_fifth_of_lost_answers(share: float, told: bool) -> None:
    table = ItemTable.of(ITEMS, Mean())
    worst = evidence.outcomes(scores(level(0.5), **ends(share / 2, share / 2)), table)
    fine = evidence.outcomes(scores(level(0.5)), table)
    sentence = evidence.unmeasured({"fine": fine, "worst": worst}, "evaluator.max_new_tokens")
    assert bool(sentence) == told
    if told:
        assert sentence.startswith("worst 10.5 % truncated, 10.5 % missing; ")
        assert "20 %" in sentence
