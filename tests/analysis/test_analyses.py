"""What every analysis of a run promises, and its numbers against counting by hand and games whose answer is known."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from itertools import combinations, permutations
from math import comb
from typing import Any

import numpy as np
import pytest

from souping.analysis import Analysis, NotEstimableError, RunScores
from souping.analysis.consistency import Consistency, ConsistencyResult
from souping.analysis.front import FrontResult
from souping.analysis.shapley import Shapley, ShapleyResult
from souping.analysis.surface import ResponseSurface, SurfaceResult
from souping.analysis.wins import CategoryWins, CategoryWinsResult, ItemWins
from souping.core.reading import read, to_json
from souping.core.types import FloatArray, Item, Json, Recipe, Record
from souping.core.unit import POINTS
from souping.report.analysis_results import drawings, read_content
from souping.report.report_page import markdown, page
from souping.report.run_files import as_json
from souping.runs.analyses import analysis_results, default_analyses
from tests.conftest import ROOT
from tests.support.analyses import NAMES, recipe_of, result_json, run_of, skills, voting
from tests.support.choices import differing, each
from tests.support.report import sample

ROWS: dict[str, list[Analysis]] = {
    "consistency": [Consistency()],
    "category_wins": [CategoryWins()],
    "item_wins": [ItemWins()],
    "surface": [ResponseSurface()],
    "shapley": [Shapley(), Shapley(over="candidates", max_models=4)],
}
FREE = {"consistency", "category_wins", "item_wins", "surface"}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("souping.analysis.consistency.POPULATION_DRAWS", 40)
    monkeypatch.setattr("souping.analysis.consistency.MIXTURES", 100)
    monkeypatch.setattr("souping.analysis.wins.WINS_DRAWS", 20)


def name_of(analysis: Analysis) -> str:
    for name, rows in ROWS.items():
        if analysis in rows:
            return name
    raise LookupError(analysis)


def test_every_choice_has_a_row_and_a_section() -> None:
    # of published figures, not of a run: tests/paper
    assert set(differing("analysis", ROWS)) == {"paper"}
    assert set(ROWS) <= set(analysis_results())


def test_analyses_that_cost_nothing_are_made_by_default() -> None:
    (line,) = [
        text
        for text in (ROOT / "conf" / "config.yaml").read_text().splitlines()
        if "- analysis:" in text
    ]
    assert set(line.split("[")[1].rstrip("]").split(", ")) == FREE
    assert default_analyses().keys() == FREE
    soups = run_of().soups
    costly = {name for name, rows in ROWS.items() for row in rows if row.asks(soups)}
    assert ROWS.keys() - costly == FREE


def test_names_of_categories_are_cut_beyond_24_characters_beside_a_heatmap() -> None:
    names = ["a" * 24, "b" * 13 + "c" * 12]
    half: Json = {"matrix": [[1.0, 0.5], [0.5, 1.0]], "models": 4, "mean": 0.5}
    result = read(ConsistencyResult, {"categories": names, "before": half, "after": half})
    (drawing,) = result.drawings(POINTS)
    labels = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
    assert labels == ["a" * 24, "b" * 11 + "\u2026" + "c" * 12]


@pytest.mark.parametrize("analysis", each(ROWS))
class TestAnalysis:
    def test_an_analysis_gives_plain_data_that_json_keeps_and_twice_the_same(
        self, analysis: Analysis
    ) -> None:
        run = run_of(asked=analysis.asks)
        data = result_json(analysis, run)
        assert data["split"] in ("search", "test")
        assert "NaN" not in as_json(data)
        assert result_json(analysis, run) == data
        assert to_json(read(analysis_results()[name_of(analysis)], data)) == data
        asked = [recipe.id for recipe in analysis.asks(run.soups)]
        assert len(asked) == len(set(asked))
        assert asked == [recipe.id for recipe in analysis.asks(run.soups)]

    def test_a_single_model_or_too_few_answers_are_not_estimable(self, analysis: Analysis) -> None:
        with pytest.raises(NotEstimableError, match=r"one|single"):
            analysis.analyse(run_of(1, pool=("ant",), asked=analysis.asks))
        run = run_of(asked=analysis.asks)
        single = {r.id: run.search[r.id] for r in run.soups.candidates.values()}
        with pytest.raises(NotEstimableError, match=r"takes|again"):
            analysis.analyse(replace(run, search=single, test={}, trials=()))

    def test_draws_that_miss_a_category_raise_no_warning(self, analysis: Analysis) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            analysis.analyse(run_of(asked=analysis.asks, per_category=4))

    @pytest.mark.parametrize("size", [2, 4])
    def test_the_page_shows_an_analysis(self, analysis: Analysis, size: int) -> None:
        name = name_of(analysis)
        result = analysis_results()[name]
        table, trials = sample()
        table["analyses"] = {name: result_json(analysis, run_of(size, asked=analysis.asks))}
        report = read_content(table, analysis_results())
        section = read(result, table["analyses"][name]).section(report.unit)
        for text in (page(report, trials, drawings(report)), markdown(report, trials)):
            assert section.title in text
            assert not section.picture or section.picture in text
        assert "nan" not in " ".join(section.lines)


def test_an_analysis_that_could_not_be_made_is_shown_with_the_reason() -> None:
    report, trials = sample()
    report["analyses"] = {
        "item_wins": {"not_estimable": "too few answers"},
        "mine": {"failed": "ZeroDivisionError: <b>"},
        "yours": {
            "sentences": ["Twelve apples."],
            "tables": [{"header": ["a", "b"], "rows": [["c", 1.5]]}],
        },
    }
    shown = read_content(report)
    text = page(shown, trials, drawings(shown))
    folded = "".join(re.findall(r"<details>.*?</details>", text, re.DOTALL))
    for title, why in (
        ("Item wins", "not estimable: too few answers"),
        ("Mine", "it failed: ZeroDivisionError: &lt;b&gt;"),
    ):
        assert title in folded
        assert why in folded
    assert "Twelve apples." in text
    assert "| c | 1.5 |" in markdown(shown, trials)


def mixed(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
    """Exactly the mixture of the parents' scores: a soup that has nothing of its own."""
    table = skills(items)
    whole = sum(w * table[n] for n, w in zip(recipe.ingredients, recipe.weights, strict=True))
    return np.asarray(whole / sum(recipe.weights))


def means(run: RunScores, recipe: Recipe) -> dict[str, float]:
    return {
        name: float(values.mean()) for name, values in run.search[recipe.id].by_category().items()
    }


def test_parents_are_counted_as_by_hand() -> None:
    run = run_of()
    data: dict[str, Any] = result_json(CategoryWins(), run)
    everyone = at_least_one = 0
    for row, soup in zip(data["soups"], run.trials, strict=True):
        own = means(run, soup)
        parents = [means(run, run.single(name)) for name in soup.ingredients]
        above = []
        for category, mean in own.items():
            beaten = [mean > parent[category] + 1e-12 for parent in parents]
            above.append(sum(beaten))
        assert row["beats_all"] == sum(n == len(parents) for n in above)
        assert row["beats_one"] == sum(n > 0 for n in above)
        everyone = everyone + row["beats_all"]
        at_least_one = at_least_one + row["beats_one"]
    cells = 4 * len(run.trials)
    assert data["beats_all"]["share"] == pytest.approx(everyone / cells)
    assert data["beats_one"]["share"] == pytest.approx(at_least_one / cells)
    assert data["beats_all"]["low"] <= data["beats_all"]["share"] <= data["beats_all"]["high"]


def test_a_mixture_beats_one_parent_and_never_all() -> None:
    data: dict[str, Any] = result_json(CategoryWins(), run_of(2, answer=mixed))
    assert data["beats_all"]["share"] == 0
    assert data["beats_one"]["share"] == 1
    assert len(data["soups"]) == 9
    assert (data["beats_all"]["chance"], data["beats_one"]["chance"]) == pytest.approx(
        (1 / 3, 2 / 3)
    )


def test_equals_are_won_by_chance() -> None:
    shares: dict[str, list[float]] = {"beats_all": [], "beats_one": []}
    for seed in range(25):

        def equal(recipe: Recipe, items: tuple[Item, ...], seed: int = seed) -> FloatArray:
            rng = np.random.default_rng([seed, int(recipe.id, 16)])
            return (rng.random(len(items)) < 0.5).astype(float)

        data: dict[str, Any] = result_json(CategoryWins(), run_of(2, answer=equal))
        for key, excess in shares.items():
            excess.append(data[key]["share"] - data[key]["chance"])
            # ties make both rarer
            assert data[key]["chance"] < {"beats_all": 1 / 3, "beats_one": 2 / 3}[key] + 1e-9
    assert abs(np.mean(shares["beats_all"])) < 0.04
    assert abs(np.mean(shares["beats_one"])) < 0.04


def test_soups_that_only_mix_are_within_the_null_and_those_of_one_factor_are_above() -> None:
    def mixture(recipe: Recipe, items: tuple[Item, ...], seed: int) -> FloatArray:
        """Group by group the answers of a parent drawn by weight, as the nulls have it."""
        table = skills(items)
        groups = dict.fromkeys(item.group for item in items)
        order = {group: n for n, group in enumerate(groups)}
        edges = np.cumsum(recipe.weights) / sum(recipe.weights)
        places = np.searchsorted(edges, np.random.default_rng(seed).random(len(order)))
        picks = [min(int(places[order[item.group]]), len(edges) - 1) for item in items]
        return np.array([table[recipe.ingredients[p]][n] for n, p in enumerate(picks)])

    def drawn(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
        """One draw for all soups, as the shared null has it."""
        return mixture(recipe, items, seed=5)

    def apart(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
        """A draw for each soup, as the independent null has it."""
        return mixture(recipe, items, seed=int(recipe.id, 16) % 2**32)

    def together(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
        """All categories rise and fall with one number of the soup's."""
        if len(recipe.ingredients) == 1:
            return np.asarray(skills(items)[recipe.ingredients[0]])
        skill = int(recipe.id, 16) % 25
        return np.array([float(int(str(item.answer)) < skill + 3) for item in items])

    quick = Consistency()
    shared: dict[str, Any] = result_json(quick, run_of(answer=drawn))
    assert (
        shared["nulls"]["shared"]["low"]
        <= shared["after"]["mean"]
        <= shared["nulls"]["shared"]["high"]
    )
    exact: dict[str, Any] = result_json(quick, run_of(answer=mixed))
    assert exact["nulls"]["exact"]["mean"] == pytest.approx(exact["after"]["mean"])
    alone: dict[str, Any] = result_json(quick, run_of(answer=apart))
    assert (
        alone["nulls"]["independent"]["low"]
        <= alone["after"]["mean"]
        <= alone["nulls"]["independent"]["high"]
    )
    for data in (shared, exact, alone):  # the answers of the soups do not enter the nulls
        assert (
            data["nulls"]["independent"]["mean"]
            < data["nulls"]["shared"]["mean"]
            < data["nulls"]["exact"]["mean"]
        )
        assert data["nulls"]["exact"] == exact["nulls"]["exact"]
    factor: dict[str, Any] = result_json(quick, run_of(answer=together))
    assert factor["after"]["mean"] == pytest.approx(1.0)
    assert factor["after"]["mean"] > factor["nulls"]["shared"]["high"]
    assert factor["before"]["mean"] == shared["before"]["mean"]
    assert "selector=greedy" in factor["before"]["note"]  # four candidates: what to do instead


def test_a_category_without_spread_is_left_out_and_named() -> None:
    def flat(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
        return np.where([item.category == "y" for item in items], 1.0, voting(recipe, items))

    data: dict[str, Any] = result_json(Consistency(), run_of(answer=flat))
    assert data["left_out"] == ["y"]
    assert all(value is None for value in data["after"]["matrix"][2])


def test_wins_are_counted_as_by_hand() -> None:
    run = run_of(weights=(0.5, 0.3, 0.2))
    soup = run.test[run.soups.soup.id].values
    singles = [run.test[run.single(name).id].values for name in NAMES[:3]]
    data: dict[str, Any] = result_json(ItemWins(), run)
    fails = 3 - np.sum(singles, axis=0)
    for row in data["by_failures"]:
        where = fails == row["fail"]
        assert row["items"] == where.sum()
        assert row["share"] == pytest.approx(soup[where].mean())
        assert row["low"] <= row["share"] <= row["high"]
    for row, single in zip(data["kept"], singles, strict=True):
        assert row["kept"]["share"] == pytest.approx(soup[single == 1].mean())
        assert row["gained"]["share"] == pytest.approx(soup[single == 0].mean())


def test_a_corpus_metric_solves_no_item_and_graded_scores_count_from_a_threshold() -> None:
    def shifted(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
        return voting(recipe, items) * 31.4

    with pytest.raises(NotEstimableError, match="corpus metric"):
        ItemWins().analyse(run_of(answer=shifted))
    counted = replace(
        run_of(),
        read=lambda r, f: {"s-w-0": Record(item="s-w-0", score=0.5, statistics=(1.0, 2.0))},
    )
    with pytest.raises(NotEstimableError, match="corpus metric"):
        ItemWins().analyse(counted)
    graded: dict[str, Any] = result_json(
        ItemWins(), run_of(answer=lambda r, i: 0.2 + 0.5 * voting(r, i))
    )
    plain: dict[str, Any] = result_json(ItemWins(), run_of())
    assert graded["by_failures"] == plain["by_failures"]


def brute(
    run: RunScores, players: list[frozenset[str]], objective: Any, nobody: float
) -> dict[frozenset[str], float]:
    """Shapley values by going through all orders of the players; the empty subset is worth `nobody`."""

    def value(subset: tuple[frozenset[str], ...]) -> float:
        union = sorted(frozenset[str]().union(*subset))
        return objective(run, recipe_of(dict.fromkeys(union, 1 / len(union)))) if union else nobody

    out = dict.fromkeys(players, 0.0)
    orders = list(permutations(players))
    for order in orders:
        for place, player in enumerate(order):
            out[player] += (value(order[: place + 1]) - value(order[:place])) / len(orders)
    return out


def mean_objective(run: RunScores, recipe: Recipe) -> float:
    return float(np.mean(list(means(run, recipe).values())))


def random_game(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
    """Scores that have nothing to do with those of any other subset."""
    return np.random.default_rng(int(recipe.id, 16)).random(len(items))


@pytest.mark.parametrize("answer", [voting, random_game])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_shapley_values_are_those_of_all_orders_and_sum_to_the_whole(
    size: int, answer: Any
) -> None:
    run = run_of(size, asked=Shapley().asks, answer=answer)
    data: dict[str, Any] = result_json(Shapley(), run)
    singles = [mean_objective(run, recipe_of({name: 1.0})) for name in NAMES[:size]]
    mean_single = float(np.mean(singles))
    assert (data["baseline"], data["baseline_score"]) == ("", pytest.approx(mean_single))
    gain = pytest.approx(data["whole"] - mean_single)
    for level in data["levels"]:
        assert len(level["models"]) == comb(size, level["size"])
        assert level["efficiency_gap"] < 1e-12
        assert sum(row["value"] for row in level["models"]) == gain
        players = [frozenset(members) for members in combinations(NAMES[:size], level["size"])]
        expected = brute(run, players, mean_objective, mean_single) if len(players) < 6 else {}
        for row in level["models"] if expected else []:
            assert row["value"] == pytest.approx(expected[frozenset(row["members"])])
            assert row["low"] <= row["value"] <= row["high"]


def test_shapley_values_are_relative_to_a_base_that_is_a_candidate_and_say_so() -> None:
    plain = run_of(2, asked=Shapley().asks)
    run = replace(plain, soups=replace(plain.soups, base=NAMES[3]))
    data: dict[str, Any] = result_json(Shapley(), run)
    base = mean_objective(run, recipe_of({NAMES[3]: 1.0}))
    assert (data["baseline"], data["baseline_score"]) == (NAMES[3], pytest.approx(base))
    (gain,) = (row["value"] for row in data["levels"][1]["models"])
    assert gain == pytest.approx(data["whole"] - base)
    shown = read(ShapleyResult, data).section(run.unit).lines[0]
    assert f"relative to the base model {NAMES[3]}" in shown
    assert (
        "relative to the mean"
        in read(ShapleyResult, result_json(Shapley(), plain)).section(run.unit).lines[0]
    )
    # A file that was edited may lack the baseline.
    edited = {key: value for key, value in data.items() if "baseline" not in key}
    assert "score of all" in read(ShapleyResult, edited).section(run.unit).lines[0]


def test_more_players_than_the_setting_are_refused_and_cost_nothing() -> None:
    run = run_of(3)
    assert Shapley(max_models=2).asks(run.soups) == ()
    assert Shapley().asks(run_of(1).soups) == ()
    with pytest.raises(NotEstimableError, match=r"7 subsets: set analysis\.shapley\.max_models=3"):
        Shapley(max_models=2).analyse(run)


def test_numbers_that_explain_the_verdict_stand_before_further_numbers() -> None:
    folded = {kind for kind in analysis_results().values() if kind.folded}
    assert folded >= {ConsistencyResult, ShapleyResult, SurfaceResult, CategoryWinsResult}
    assert FrontResult not in folded
