"""A run with several goals and an objective that is not linear: one search, one look, one point written."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import souping
from souping.analysis.guards import Admission, Guard, GuardCheck, guard_tests
from souping.answers.claims import KnownModels, Look
from souping.core.reading import to_json
from souping.core.scores import Tree
from souping.core.types import Item, ItemScores, Recipe, Trial, UserError
from souping.core.unit import POINTS
from souping.plan.counting import PlannedPool
from souping.runs.goals import (
    admitted,
    best_first,
    check_tokens,
    declared,
    failed_elsewhere,
    guard_checks,
    possible_guards,
)
from souping.runs.steps import Stage
from souping.search.loop import SearchResult, result_of
from tests.conftest import Cli, make_items, pool_of
from tests.support.steps import NamedSteps, named_steps, run_settings

ITEMS = [Item(id=str(n), category="a", group=str(n), prompt="", answer="") for n in range(200)]


def trial(name: str, lost: int) -> Trial:
    """A soup that lost some of 120 right answers of 200."""
    recipe = Recipe(ingredients=(name,), fingerprints=(name,), weights=(1.0,), dtype="F32")
    result = result_of(
        ItemScores(items=tuple(ITEMS), values=(np.arange(200) < 120.0 - lost).astype(float)),
        souping.Mean(),
    )
    return Trial(number=0, recipe=recipe, weights=(1.0,), result=result)


@pytest.mark.parametrize(
    ("lost", "chosen", "words"),
    [
        ({"worse": 60, "alike": 1, "ref": 0}, "alike", "passed"), ({"risky": 15, "alike": 1}, "ref", "failed: a"),
        ({"worse": 60, "ref": 0, "alike": 1}, "ref", "lost too much"), ({"ref": 0, "alike": 1}, "ref", "nothing"),
    ],
)  # fmt: skip
def test_the_first_soup_that_seems_to_keep_to_the_guards_is_tested(
    lost: dict[str, int], chosen: str, words: str
) -> None:
    order = [trial(name, count) for name, count in lost.items()]
    reference = trial("ref", 0)
    scores = ItemScores(items=tuple(ITEMS), values=reference.result.values)
    admission = Admission(guards=(Guard(name="a", margin=0.1),), against="ref", reference=scores)
    winner = SearchResult(recipe=order[0].recipe, result=order[0].result, trials=())
    found, guards = admitted(POINTS, winner, order, admission, reference.recipe, souping.Mean())
    assert found.recipe.ingredients == (chosen,)
    assert words in str(guards.sentence)
    assert guards.refused == (chosen == "ref" != order[0].recipe.ingredients[0])


@pytest.mark.parametrize(("unguarded", "cost"), [(0.645, 0.05), (0.5, 0.0)])
def test_guards_cost_what_the_best_soup_without_them_would_gain(
    unguarded: float, cost: float
) -> None:
    order = [trial("worse", 60), trial("alike", 1)]
    reference = trial("ref", 0)
    scores = ItemScores(items=tuple(ITEMS), values=reference.result.values)
    admission = Admission(guards=(Guard(name="a", margin=0.1),), against="ref", reference=scores)
    winner = SearchResult(recipe=order[0].recipe, result=order[0].result, trials=())
    _, guards = admitted(
        POINTS, winner, order, admission, reference.recipe, souping.Mean(), unguarded
    )
    assert guards.cost == pytest.approx(cost)  # 119 of 200 are right
    assert guards.sentence is not None
    assert ("5.0 points" in guards.sentence) == (cost > 0)


def test_of_guards_on_other_benchmarks_the_first_that_a_soup_fails_is_named() -> None:
    reference = trial("ref", 0)
    soup = trial("soup", 0)
    names = ("own", "kept", "lost", "lost too")
    guards = [Guard(name=name, margin=0.1, benchmark=name) for name in names[1:]]
    scores = ItemScores(items=tuple(ITEMS), values=reference.result.values)
    admission = Admission(
        guards=(Guard(name="own", margin=1e-6), *guards), against="ref", reference=scores
    )

    class LosingSteps(NamedSteps):
        """The soup loses one answer on `kept`, and 60 on `lost` and `lost too`."""

        def single(self, name: str) -> Recipe:
            return reference.recipe

        def guard_stage(self, guard: Guard, models: Iterable[Recipe]) -> Stage:
            return Stage(name=guard.name, models=tuple(models), items=())

        def evaluate_stage(self, stage: Stage) -> dict[str, ItemScores]:
            lost = trial("soup", 60 if stage.name.startswith("lost") else 1).result.values
            assert lost is not None
            return {reference.recipe.id: scores, soup.recipe.id: replace(scores, values=lost)}

    settings = run_settings()
    run = LosingSteps(settings, PlannedPool(candidates=settings.pool.resolve()), {}, {})
    assert failed_elsewhere(run, admission, soup.recipe) == ["lost"]
    kept = replace(admission, guards=admission.guards[:2])
    assert failed_elsewhere(run, kept, soup.recipe) == []


def test_a_guard_may_be_any_name_with_any_candidate() -> None:
    """Three categories, a group of them, an extra benchmark and the length, each with four candidates."""
    settings = run_settings(candidates="abcd", objective=Tree(tree=[{"xy": ["x", "y"]}, "z"]))
    items = tuple(make_items(per_category=1, categories=("x", "y", "z")))
    steps = named_steps(settings, splits={"search": items}, extra={"more": items})
    assert possible_guards(steps) == 24


def test_a_run_shows_its_front_and_holds_the_chosen_soup_to_its_guards(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    """The best soup of all is bee. All weight is given to red, in which ant is the best."""
    search = ["selector=all", "optimiser=adaptive", "optimiser.max_items=200"]
    goals = ["pareto={red: 1, green: 0}", "guard_baseline=bee", "guard={red: 99, green: 99}"]
    souping(*pool_of(family, "ant", "bee"), *search, *goals, "hydra.run.dir=run").ok()
    assert "Front of red and green" in (tmp_path / "run/report.md").read_text()
    report = json.loads((tmp_path / "run/report.json").read_text())
    front = report["analyses"]["front"]
    assert [goal["name"] for goal in front["goals"]] == ["red", "green"]
    assert front["chosen"]["weights"] == [1.0, 0.0]
    checks = report["analyses"]["guards"]["checks"]
    # Without guards the same soup would be chosen.
    assert report["analyses"]["guards"]["cost"] == 0
    assert [(check["name"], check["outcome"]) for check in checks] == [
        ("red", "not measured"),
        ("green", "not measured"),
    ]
    trials = [*csv.DictReader((tmp_path / "run/trials.csv").open())]
    assert [trial["number"] for trial in trials] == [str(number) for number in range(len(trials))]
    # Further soups of the front answer the whole split: they are trials too.
    confirmed = {tuple(point["weights"]) for point in front["points"] if point["confirmed"]}
    tried = {(float(trial["weight:ant"]), float(trial["weight:bee"])) for trial in trials}
    assert len(trials) > 3
    assert confirmed <= tried


def test_guards_are_corrected_for_the_models_that_were_known_and_for_names_if_they_came_later() -> (
    None
):
    reference = trial("ref", 0)
    soup = trial("soup", 4)
    scores = {
        one.recipe.id: ItemScores(items=tuple(ITEMS), values=one.result.values)
        for one in (reference, soup)
    }
    guards = tuple(Guard(name=f"{margin}", margin=margin) for margin in (0.02, 0.1))
    admission = Admission(guards=guards, against="ref", reference=scores[reference.recipe.id])
    pairs = [(scores[soup.recipe.id], scores[reference.recipe.id])] * 2

    def checks(claim: str, declared_guards: str, picked: Recipe = soup.recipe) -> list[GuardCheck]:
        known = KnownModels(("x",), missing=2)
        look = Look(number=2, first=False, known=known, guards=declared_guards)
        measured = {"": scores}
        return guard_checks(admission, picked, reference.recipe, measured, claim, look, possible=24)

    # The soup, one known model and two without answers.
    first = checks("better_than_every_candidate", declared(admission))
    assert first == guard_tests(guards, pairs, looks=2, picked=4)
    backwards = replace(admission, guards=guards[::-1])
    assert checks("keep_candidate", declared(backwards)) == first
    later = checks("keep_candidate", "")
    assert later == guard_tests(guards, pairs, looks=2, picked=4, limits=24)
    assert later[0].low is not None
    assert first[0].low is not None
    assert later[0].low < first[0].low
    assert declared(None) == ""
    for claim, outcome in (("dry_run", "dry run"), ("not_measured", "not measured")):
        assert {check.outcome for check in checks(claim, "")} == {outcome}
    assert checks("keep_candidate", "", reference.recipe) == []


@pytest.mark.slow
def test_a_run_writes_the_point_that_the_weights_of_its_goals_choose(
    family: Path, tmp_path: Path
) -> None:
    done = souping.run(
        candidates={name: family / name for name in ("ant", "bee", "cat")},
        items=family / "items.jsonl",
        selector=souping.All(),
        objective=souping.WorstCategory(),
        evaluator=souping.LocalEvaluator(max_new_tokens=4, threads=1),
        out=tmp_path / "run",
        store=tmp_path / "store.sqlite",
        pareto={"red": 1.0, "tokens": 0.0},
    )
    report = done.report.to_json()
    data = report["analyses"]["front"]
    assert to_json(done.front) == data["points"]
    assert done.front[0].goals["red"].mean is not None
    assert data["chosen"]["confirmed"]
    weights = dict(zip(data["ingredients"], data["chosen"]["weights"], strict=True))
    assert {name: share for name, share in weights.items() if share} == pytest.approx(done.weights)
    assert report["objective"]["coefficients"] == {}
    assert report["verdict"]["look"] == 1
    assert "power" not in report
    soup = report["rows"][-1]
    assert soup["objective"]["mean"] == min(score["mean"] for score in soup["scores"].values())
    for pair in report["comparisons"]:
        assert pair["p_value"] == 1 or pair["difference"] > 0
    page = (done.out / "report.html").read_text()
    assert "Front of red and tokens" in page
    assert "worst category of" in page


@pytest.mark.parametrize(
    ("guard", "pareto", "benchmark", "soups", "lengths", "refused"),
    [
        ({"tokens": 10.0}, (), "", False, 0, True), ({}, ("a", "tokens"), "", False, 0, True),
        ({"a": 3.0}, ("a", "b"), "", False, 0, False), ({"tokens": 10.0}, (), "", False, 3, False),
        ({"tokens": 10.0}, (), "mgsm", False, 0, False), ({"tokens": 10.0}, (), "", True, 0, False),
    ],
)  # fmt: skip
def test_lengths_guard_only_answers_that_have_one(
    guard: dict[str, float],
    pareto: tuple[str, ...],
    benchmark: str,
    soups: bool,
    lengths: int,
    refused: bool,
) -> None:
    """One of two models counts tokens; a stage with soups comes after the candidates were checked."""
    names = ("a", "b") if soups else ("a",)
    recipe = Recipe(ingredients=names, fingerprints=names, weights=(1.0,) * len(names), dtype="F32")
    settings: Any = SimpleNamespace(guard=guard, pareto=pareto)
    stage: Any = SimpleNamespace(benchmark=benchmark, models=[recipe])
    none = ItemScores(items=tuple(ITEMS), values=np.zeros(200), lengths=np.zeros(200))
    some = replace(none, lengths=np.full(200, lengths))
    if refused:
        with pytest.raises(UserError, match="tokens"):
            check_tokens(settings, stage, [none, some])
    else:
        check_tokens(settings, stage, [none, some])


def test_soups_are_ordered_by_their_objective_after_the_winner() -> None:
    trials = [trial("c", 40), trial("a", 10), trial("b", 20)]
    twice = replace(trial("c", 5), number=3)
    partial = replace(trial("d", 0), whole=False)
    winner = SearchResult(
        recipe=trials[2].recipe, result=trials[2].result, trials=(*trials, twice, partial)
    )
    order = best_first(winner)
    assert [found.recipe.ingredients for found in order] == [("b",), ("c",), ("a",)]
    assert order[1].number == 3
