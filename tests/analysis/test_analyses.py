"""The analyses' numbers: against counting by hand, against games and populations whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from math import comb
from typing import Any

import numpy as np
import pytest

from souping.analysis import NotEstimableError, RunScores
from souping.analysis.consistency import Consistency
from souping.analysis.shapley import Shapley
from souping.analysis.wins import Parents, Wins
from souping.core.types import FloatArray, Item, Recipe, Record, UserError
from tests.support.analyses import NAMES, recipe_of, run_of, skills, voting


def mixed(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
    """Exactly the mixture of the parents' scores: a soup that has nothing of its own."""
    table = skills(items)
    whole = sum(w * table[n] for n, w in zip(recipe.ingredients, recipe.weights, strict=True))
    return np.asarray(whole / sum(recipe.weights))


def means(run: RunScores, recipe: Recipe) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in run.search[recipe.id].by_category().items()}


def test_parents_are_counted_as_by_hand() -> None:
    run = run_of()
    data: dict[str, Any] = Parents().analyse(run)
    everyone = at_least_one = 0
    for row, soup in zip(data["soups"], run.trials, strict=True):
        own, parents = means(run, soup), [means(run, run.single(name)) for name in soup.ingredients]
        above = [sum(own[c] > parent[c] + 1e-12 for parent in parents) for c in own]
        assert row["beats_all"] == sum(n == len(parents) for n in above)
        assert row["beats_one"] == sum(n > 0 for n in above)
        everyone, at_least_one = everyone + row["beats_all"], at_least_one + row["beats_one"]
    cells = 4 * len(run.trials)
    assert data["beats_all"]["share"] == pytest.approx(everyone / cells)
    assert data["beats_one"]["share"] == pytest.approx(at_least_one / cells)
    assert data["beats_all"]["low"] <= data["beats_all"]["share"] <= data["beats_all"]["high"]


def test_a_mixture_beats_one_parent_and_never_all() -> None:
    data: dict[str, Any] = Parents(draws=10).analyse(run_of(2, answer=mixed))
    assert data["beats_all"]["share"] == 0
    assert data["beats_one"]["share"] == 1
    assert len(data["soups"]) == 9
    assert (data["beats_all"]["chance"], data["beats_one"]["chance"]) == pytest.approx((1 / 3, 2 / 3))


def test_equals_are_won_by_chance() -> None:
    """Soups that are as good as their parents, by answers of their own, win as often as chance says."""
    shares: dict[str, list[float]] = {"beats_all": [], "beats_one": []}
    for seed in range(25):

        def equal(recipe: Recipe, items: tuple[Item, ...], seed: int = seed) -> FloatArray:
            rng = np.random.default_rng([seed, int(recipe.id, 16)])
            return (rng.random(len(items)) < 0.5).astype(float)

        data: dict[str, Any] = Parents(draws=2).analyse(run_of(2, answer=equal))
        for key, found in shares.items():
            found.append(data[key]["share"] - data[key]["chance"])
            assert data[key]["chance"] < {"beats_all": 1 / 3, "beats_one": 2 / 3}[key] + 1e-9  # ties make both rarer
    assert abs(np.mean(shares["beats_all"])) < 0.04
    assert abs(np.mean(shares["beats_one"])) < 0.04


def test_soups_that_only_mix_are_within_the_null_and_those_of_one_factor_are_above() -> None:
    def mixture(recipe: Recipe, items: tuple[Item, ...], seed: int) -> FloatArray:
        """Group by group the answers of a parent drawn by weight, as the nulls have it."""
        table, order = skills(items), {g: n for n, g in enumerate(dict.fromkeys(i.group for i in items))}
        edges = np.cumsum(recipe.weights) / sum(recipe.weights)
        places = np.searchsorted(edges, np.random.default_rng(seed).random(len(order)))
        picks = [min(int(places[order[item.group]]), len(edges) - 1) for item in items]
        return np.array([table[recipe.ingredients[p]][n] for n, p in enumerate(picks)])

    def drawn(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
        return mixture(recipe, items, 5)

    def apart(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
        return mixture(recipe, items, int(recipe.id, 16) % 2**32)

    def together(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
        """All categories rise and fall with one number of the soup's."""
        if len(recipe.ingredients) == 1:
            return np.asarray(skills(items)[recipe.ingredients[0]])
        skill = int(recipe.id, 16) % 25
        return np.array([float(int(str(item.answer)) < skill + 3) for item in items])

    quick = Consistency(draws=40, mixtures=100)
    shared: dict[str, Any] = quick.analyse(run_of(answer=drawn))
    assert shared["nulls"]["shared"]["low"] <= shared["after"]["mean"] <= shared["nulls"]["shared"]["high"]
    exact: dict[str, Any] = quick.analyse(run_of(answer=mixed))
    assert exact["nulls"]["exact"]["mean"] == pytest.approx(exact["after"]["mean"])
    alone: dict[str, Any] = quick.analyse(run_of(answer=apart))
    assert alone["nulls"]["independent"]["low"] <= alone["after"]["mean"] <= alone["nulls"]["independent"]["high"]
    for data in (shared, exact, alone):  # the answers of the soups do not enter the nulls
        assert data["nulls"]["independent"]["mean"] < data["nulls"]["shared"]["mean"] < data["nulls"]["exact"]["mean"]
        assert data["nulls"]["exact"] == exact["nulls"]["exact"]
    factor: dict[str, Any] = quick.analyse(run_of(answer=together))
    assert factor["after"]["mean"] == pytest.approx(1.0)
    assert factor["after"]["mean"] > factor["nulls"]["shared"]["high"]
    assert factor["before"]["mean"] == shared["before"]["mean"]
    assert "selector=greedy" in factor["before"]["note"]  # four candidates: what to do instead


def test_the_intervals_do_not_depend_on_the_order_of_soups_and_candidates() -> None:
    run = run_of(answer=mixed)
    names = reversed(run.soups.candidates)
    soups = replace(run.soups, candidates={name: run.soups.candidates[name] for name in names})
    shuffled = replace(run, trials=run.trials[::-1], soups=soups)
    quick = Consistency(draws=20, mixtures=20)
    assert quick.analyse(shuffled) == quick.analyse(run)


def test_too_few_soups_are_reported_with_what_gives_more() -> None:
    with pytest.raises(NotEstimableError, match=r"2 soups .* takes 6.* optimiser=grid"):
        Consistency().analyse(run_of(trials=2, answer=mixed))


def test_a_category_without_spread_is_left_out_and_named() -> None:
    def flat(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
        return np.where([item.category == "y" for item in items], 1.0, voting(recipe, items))

    data: dict[str, Any] = Consistency(draws=10, mixtures=10).analyse(run_of(answer=flat))
    assert data["left_out"] == ["y"]
    assert all(value is None for value in data["after"]["matrix"][2])


def test_wins_are_counted_as_by_hand() -> None:
    run = run_of(weights=(0.5, 0.3, 0.2))
    soup = run.report[run.soups.soup.id].values
    singles = [run.report[run.single(name).id].values for name in NAMES[:3]]
    data: dict[str, Any] = Wins().analyse(run)
    fails = 3 - np.sum(singles, axis=0)
    for row in data["by_failures"]:
        where = fails == row["fail"]
        assert row["items"] == where.sum()
        assert row["share"] == pytest.approx(soup[where].mean())
        assert row["low"] <= row["share"] <= row["high"]
    for row, single in zip(data["kept"], singles, strict=True):
        assert row["kept"]["share"] == pytest.approx(soup[single == 1].mean())
        assert row["gained"]["share"] == pytest.approx(soup[single == 0].mean())


def test_examples_follow_the_rule() -> None:
    run = run_of(weights=(0.5, 0.3, 0.2))
    data: dict[str, Any] = Wins(examples=3).analyse(run)
    kinds = [example["kind"] for example in data["examples"]]
    assert kinds == sorted(kinds, key=kinds.index)
    for example in data["examples"]:
        scores = {name: answer["score"] for name, answer in example["answers"].items()}
        right = sum(score for name, score in scores.items() if name != "soup")
        assert (scores["soup"], right) in ((1, 0), (0, 3), (1, 2))
    same = [e["category"] for e in data["examples"] if e["kind"] == kinds[-1]]
    assert len(set(same)) == len(same)  # there are four categories and three examples


def test_a_corpus_metric_solves_no_item_and_graded_scores_count_from_a_threshold() -> None:
    def shifted(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
        return voting(recipe, items) * 31.4

    with pytest.raises(NotEstimableError, match="corpus metric"):
        Wins().analyse(run_of(answer=shifted))
    counted = replace(run_of(), read=lambda r, f: {"s-w-0": Record(item="s-w-0", score=0.5, statistics=(1.0, 2.0))})
    with pytest.raises(NotEstimableError, match="corpus metric"):
        Wins().analyse(counted)
    graded: dict[str, Any] = Wins(solved=0.6).analyse(run_of(answer=lambda r, i: 0.2 + 0.5 * voting(r, i)))
    plain: dict[str, Any] = Wins().analyse(run_of())
    assert graded["by_failures"] == plain["by_failures"]


def brute(run: RunScores, players: list[frozenset[str]], objective: Any) -> dict[frozenset[str], float]:
    """Shapley values by going through all orders of the players."""

    def value(coalition: tuple[frozenset[str], ...]) -> float:
        union = sorted(frozenset[str]().union(*coalition))
        return objective(run, recipe_of(dict.fromkeys(union, 1 / len(union)))) if union else 0.0

    out, orders = dict.fromkeys(players, 0.0), list(permutations(players))
    for order in orders:
        for place, player in enumerate(order):
            out[player] += (value(order[: place + 1]) - value(order[:place])) / len(orders)
    return out


def mean_objective(run: RunScores, recipe: Recipe) -> float:
    return float(np.mean(list(means(run, recipe).values())))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.slow
def test_shapley_values_are_those_of_all_orders_and_sum_to_the_whole(size: int) -> None:
    run = run_of(size, asked=Shapley().asks)
    data: dict[str, Any] = Shapley().analyse(run)
    for level in data["levels"]:
        assert len(level["players"]) == comb(size, level["size"])
        assert level["efficiency_gap"] < 1e-12
        assert sum(row["value"] for row in level["players"]) == pytest.approx(data["whole"])
        players = [frozenset(members) for members in combinations(NAMES[:size], level["size"])]
        if len(players) <= 6:
            expected = brute(run, players, mean_objective)
            for row in level["players"]:
                assert row["value"] == pytest.approx(expected[frozenset(row["members"])])
                assert row["low"] <= row["value"] <= row["high"]
                assert np.mean(list(row["categories"].values())) == pytest.approx(row["value"])


def random_game(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
    """Scores that have nothing to do with those of any other coalition."""
    return np.random.default_rng(int(recipe.id, 16)).random(len(items))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_a_random_games_shapley_values_are_those_of_all_orders(size: int) -> None:
    names = "abcde"[:size]
    run = run_of(size, asked=Shapley().asks, answer=random_game, pool=names, trials=1)
    data: dict[str, Any] = Shapley().analyse(run)
    expected = brute(run, [frozenset(name) for name in names], mean_objective)
    level = data["levels"][0]
    assert level["method"] == "all coalitions"
    assert {row["members"][0]: row["value"] for row in level["players"]} == pytest.approx(
        {name: expected[frozenset(name)] for name in names}
    )


@pytest.mark.slow
def test_ten_players_drawn_orders_lie_within_their_errors_of_the_exact_values() -> None:
    """A root mean square of 1 standard error is what is expected of 10 players; 0.5 to 1.6 hold it in 99.8 %."""
    names, exact, drawn = "abcdefghij", Shapley(exact=10), Shapley(permutations=200)
    told: list[dict[str, Any]] = []
    for shapley in (exact, drawn):
        run = run_of(10, asked=shapley.asks, answer=random_game, pool=names, trials=1, categories=("w",))
        told.append(dict(shapley.analyse(run)))
    assert [data["levels"][0]["method"] for data in told] == ["all coalitions", "permutations"]
    off = [
        (a["value"] - b["value"]) / b["standard_error"]
        for a, b in zip(*(data["levels"][0]["players"] for data in told), strict=True)
    ]
    assert 0.5 < np.sqrt(np.mean(np.square(off))) < 1.6
    assert max(map(abs, off)) < 4


def test_three_ingredients_ask_for_four_soups_at_most_beside_the_singles() -> None:
    asked = Shapley().asks(run_of(3).soups)
    assert sorted(len(recipe.ingredients) for recipe in asked) == [1, 1, 1, 2, 2, 2, 3]
    assert len(Shapley(players="candidates", exact=4).asks(run_of(3).soups)) == 15


def test_interactions_vanish_where_values_add_up() -> None:
    def adding(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
        return np.full(len(items), 0.1 * len(recipe.ingredients))

    data: dict[str, Any] = Shapley().analyse(run_of(4, answer=adding, asked=Shapley().asks))
    assert {len(row["members"]) for row in data["interactions"]} == {2, 3}
    assert all(abs(row["value"]) < 1e-12 for row in data["interactions"])
    assert all(row["value"] == pytest.approx(0.1) for row in data["levels"][0]["players"])


@pytest.mark.slow
def test_drawn_orders_come_near_and_say_how_near() -> None:
    exact, drawn = Shapley(exact=4), Shapley(exact=2, permutations=400)
    known: dict[str, Any] = exact.analyse(run_of(4, asked=exact.asks))
    told: dict[str, Any] = drawn.analyse(run_of(4, asked=drawn.asks))
    assert told["levels"][0]["method"] == "permutations"
    assert told["interactions"] == []
    for a, b in zip(known["levels"][0]["players"], told["levels"][0]["players"], strict=True):
        assert 0 < b["standard_error"] < 0.02
        assert abs(a["value"] - b["value"]) < 4 * b["standard_error"]
    assert told["levels"][0]["efficiency_gap"] < 1e-12
    assert len(Shapley(exact=2, permutations=2).asks(run_of(4).soups)) < 15


def test_too_many_players_for_all_coalitions_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(exact=13"):
        Shapley(exact=13)
