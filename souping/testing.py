"""Conformance checks for your own components: each raises an `AssertionError` that names the component and its file.

They are the suites that the shipped components pass. Call them from a test, with settings of your own choice:

    def test_mine():
        check_selector(MySelector(k=2))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from souping.checkpoints.layouts import read_rules
from souping.checkpoints.trainers import Trainer, folders_in, step_pattern, weight_files
from souping.core.protocols import (
    Correlation,
    Evaluator,
    LoadedModel,
    Objective,
    Optimiser,
    Search,
    Selector,
    Tracker,
)
from souping.core.scores import value
from souping.core.text import named
from souping.core.types import (
    Item,
    JsonObject,
    Names,
    Query,
    Recipe,
    Result,
    ScoreMatrix,
    SearchSpace,
    Trial,
    UserError,
    Weights,
)
from souping.logs.layouts import LogLayout, rows_by_column
from souping.logs.records import LogRow

INGREDIENTS = ("a", "b", "c")
BEST_WEIGHTS = (0.5, 0.3, 0.2)
EACH = 12
"""Items in each of the two categories of `search_space`."""


def score_matrix() -> ScoreMatrix:
    """Four candidates and another model, on two pairs of categories that move together."""
    values = np.array(
        [[0.9, 0.8, 0.5, 0.6], [0.7, 0.6, 0.2, 0.1], [0.3, 0.2, 0.8, 0.9], [0.5, 0.5, 0.4, 0.5]]
    )
    # A model that is no candidate and better than all.
    values = np.vstack([values, [1.0, 0.99, 0.98, 1.0]])
    return ScoreMatrix(
        models=("a", "b", "c", "d", "star"),
        categories=("w", "x", "y", "z"),
        values=values,
        candidates=("a", "b", "c", "d"),
    )


def check_selector(selector: Selector, scores: ScoreMatrix | None = None) -> None:
    """Ingredients are distinct candidates in pool order, equal for equal scores, and their number is one of `sizes`."""
    expect = partial(_expect, selector)
    scores = scores or score_matrix()
    expect(isinstance(selector, Selector), "must subclass Selector")
    selection = selector.select_checked(scores)
    in_order = tuple(name for name in scores.candidates if name in selection.ingredients)
    expect(
        selection.ingredients == in_order,
        f"ingredients {selection.ingredients} are not in pool order",
    )
    expect(
        selector.select_checked(scores).ingredients == in_order,
        "gives two selections for the same scores",
    )
    expect(selection.selector == selector.label, "selection.selector must be its label")
    # `sizes` are the possible numbers of ingredients if there are `count` candidates.
    for count in (1, 2, len(scores.candidates)):
        sizes = list(selector.sizes(count))
        ordered = (
            bool(sizes) and sizes == sorted(set(sizes)) and 1 <= sizes[0] <= sizes[-1] <= count
        )
        expect(ordered, f"sizes({count}) = {sizes} must be ascending numbers from 1 to {count}")
    expect(
        len(in_order) in selector.sizes(len(scores.candidates)), "picks a number that sizes() lacks"
    )
    # Selectors without a threshold stay as they are.
    expected = None if selector.deciding_threshold is None else 0.5
    expect(
        selector.with_threshold(0.5).deciding_threshold == expected,
        "with_threshold(0.5) must move its cut, if any",
    )


def check_objective(objective: Objective, categories: Sequence[str]) -> None:
    """Coefficients are one non-negative weight per category, sum to one, and do not depend on the order."""
    expect = partial(_expect, objective)
    expect(isinstance(objective, Objective), "must subclass Objective")
    coefficients = objective.coefficients(categories)
    shape = np.shape(coefficients)
    expect(shape == (len(categories),), f"coefficients have shape {shape}")
    weights = bool((coefficients >= 0).all() and np.isclose(coefficients.sum(), 1))
    expect(weights, "coefficients must sum to one")
    reordered = objective.coefficients(categories[::-1])[::-1]
    equal = np.allclose(coefficients, reordered)
    expect(equal, "the order of the categories must not matter")
    expect(
        bool(np.isclose(value(objective, dict.fromkeys(categories, 0.7)), 0.7)),
        "must be a weighted mean",
    )


def check_correlation(correlation: Correlation) -> None:
    """Correlations are symmetric with ones on the diagonal, inside their intervals, and the same for percent."""
    expect = partial(_expect, correlation)
    scores = score_matrix().values
    estimate = correlation(scores)
    rho = estimate.rho
    low = estimate.low
    high = estimate.high
    categories = scores.shape[1]
    shapes = {np.shape(rho), np.shape(low), np.shape(high)}
    expect(shapes == {(categories, categories)}, "rho, low, high must be [C, C]")
    expect(np.allclose(rho, rho.T), "rho must be symmetric")
    expect(np.allclose(np.diag(rho), 1), "rho must be 1 on the diagonal")
    # Without enough models, an interval is nan.
    known = ~np.isnan(low)
    in_interval = (low <= rho)[known].all() and (rho <= high)[known].all()
    expect(bool(in_interval), "rho must lie between low and high")
    percent = correlation(100 * scores).rho
    expect(np.allclose(percent, rho), "percent must give the same rho")


def score_of(weights: Weights) -> Result:
    """The result of a soup: 1 minus its squared distance from `BEST_WEIGHTS`."""
    total = 1 - sum((w - t) ** 2 for w, t in zip(weights, BEST_WEIGHTS, strict=True))
    return Result(objective=total, categories={}, items=2 * EACH)


def answer(query: Query) -> Result:
    """The result of a query, with the soup's score at each requested item; a query without items requests all."""
    count = 2 * EACH if query.items is None else len(query.items)
    result = score_of(query.weights)
    return replace(result, items=count, values=np.full(count, result.objective))


def search_space(ingredients: Names = INGREDIENTS) -> SearchSpace:
    """What a search is tried on: two categories of items, three candidates, and the selected ingredients."""
    return SearchSpace(
        ingredients=ingredients,
        candidates=INGREDIENTS,
        categories=("even", "odd") * EACH,
        groups=tuple(f"g{n}" for n in range(2 * EACH)),
        coefficients={"even": 0.5, "odd": 0.5},
    )


def run_search(
    optimiser: Optimiser, seed: int = 0, limit: int = 60
) -> tuple[list[Weights], Search]:
    """(weights in the order in which they were requested, the search) of an optimiser that gets the results of
    `answer`, for `limit` requests at most."""
    running = optimiser.start(search_space(), seed)
    requested = list[Weights]()
    while len(requested) < min(limit, optimiser.max_trials or limit):
        query = running.ask()
        if query is None:
            break
        requested.append(query.weights)
        running.tell(query, answer(query))
    return requested, running


def check_optimiser(optimiser: Optimiser) -> None:
    """Soups are points of the simplex, one seed gives one search, results may come in any order, the best one wins."""
    expect = partial(_expect, optimiser)
    expect(isinstance(optimiser, Optimiser), "must subclass Optimiser")
    requested, running = run_search(optimiser, seed=3)
    expect(isinstance(running, Search), "start() must give a Search")
    expect(bool(requested), "requests no soup")
    points = all(len(w) == 3 and min(w) >= 0 and abs(sum(w) - 1) < 1e-6 for w in requested)
    expect(points, "weights must not be negative and must sum to one")
    best = max(score_of(w).objective for w in requested)
    expect(
        score_of(running.best()).objective == best,
        "best() must be the soup with the highest result",
    )
    expect(run_search(optimiser, seed=3)[0] == requested, "the same seed must give the same search")
    count = optimiser.count(3)
    expect(
        count is None or len(set(requested)) <= count,
        f"count(3) = {count}, but it requests more soups",
    )
    known = optimiser.known_points(3)
    distinct = list(dict.fromkeys(requested))
    expect(
        known is None or list(known)[: len(distinct)] == distinct,
        "known_points(3) must be what it requests",
    )
    expect(bool(optimiser.describe(3)), "describe(3) must say what it does")
    # Several open requests, whose results come in reverse order.
    running = optimiser.start(search_space(), 0)
    queries = list[Query]()
    for _ in range(5):
        query = running.ask()
        if query is not None:
            queries.append(query)
    for query in reversed(queries):
        running.tell(query, answer(query))
    expect(
        running.best() in [query.weights for query in queries],
        "results must be welcome in any order",
    )
    # `best` leaves the block by the error that is expected.
    with suppress(UserError):
        optimiser.start(search_space(), 0).best()
        expect(False, "best() without a result must raise a UserError")


def check_evaluator(evaluator: Evaluator, model: LoadedModel, items: Sequence[Item]) -> None:
    """Settings are plain data, batches cut all items by a fixed rule, and each item gets a record, in order, twice."""
    expect = partial(_expect, evaluator)
    expect(isinstance(evaluator, Evaluator), "must subclass Evaluator")
    settings = evaluator.settings
    expect(json.loads(json.dumps(settings)) == settings, "settings must be plain JSON data")
    batches = evaluator.batches(items)
    in_batches = sorted(item.id for item in chain.from_iterable(batches))
    once = in_batches == sorted(item.id for item in items)
    expect(once, "batches must hold each item once")
    expect(batches == evaluator.batches(items), "batches must follow a fixed rule")
    records = evaluator.evaluate(model, items)
    expect(
        [record.item for record in records] == [item.id for item in items],
        "a record for each item, in order",
    )
    scores = all(0 <= record.score <= 1 for record in records)
    expect(scores or not evaluator.unit.fractions, "scores must be fractions of 1")
    expect(evaluator.evaluate(model, items) == records, "the same items must get the same records")
    values = evaluator.scoring.item_scores(items, [[record] for record in records])
    expect(values.shape == (len(items),), "item_scores must give one value per item")


def check_tracker(tracker: Tracker, folder: Path) -> None:
    """A tracker follows two runs in turn, and calls out of order and a failed run do not raise. `folder` is empty."""
    _expect(tracker, isinstance(tracker, Tracker), "must subclass Tracker")
    recipe = Recipe(
        ingredients=("a", "b"), fingerprints=("1", "2"), weights=(0.25, 0.75), dtype="float32"
    )
    result = Result(objective=0.5, categories={"x": 0.5, "y z/ü": 0.0}, items=4)
    trial = Trial(number=1, recipe=recipe, weights=recipe.weights, result=result)
    # Before the first run is started.
    tracker.log(trial)
    tracker.finish({}, folder)
    # The second run has no report, as after an error.
    reports: dict[str, JsonObject | None] = {
        "first": {"rows": [], "comparisons": [], "verdict": None},
        "second": None,
    }
    for name, report in reports.items():
        (folder / name).mkdir()
        tracker.start({"a": {"b": [1, None, "x"]}}, folder / name)
        # Trials may arrive in any order, and a run may be finished twice.
        tracker.log(replace(trial, number=2))
        tracker.log(trial)
        tracker.finish(report, folder / name)
        tracker.finish(None, folder / name)
    tracker.summarise(
        [{"job": 0, "overrides": ["seed=1"], "objective": 0.5, "run_dir": "0"}], folder
    )
    tracker.close()


def check_log_layout(layout: LogLayout, rows: Sequence[LogRow]) -> None:
    """Each row of a log gets an item, and a number or None as its score; some score is a number."""
    expect = partial(_expect, layout)
    columns = list(rows_by_column(Path("rows"), rows, layout, {}))
    expect(len(columns) == len(rows), "must give columns for each row")
    scores = [row["score"] for row in columns if row["score"] is not None]
    expect(bool(scores), "must give a score")
    expect(all(isinstance(score, int | float) for score in scores), "scores are numbers")


def check_trainer(trainer: Trainer, run: Path) -> None:
    """Its rules can be read, and some folder in `run`, a training run, is one of its checkpoints with weights."""
    read_rules(trainer.rules)
    pattern = step_pattern(trainer)
    folders = [folder for folder in folders_in(run) if pattern.fullmatch(folder.name)]
    _expect(trainer, bool(folders), f"`folders` fit none of those in {run}")
    found = False
    for place in ("", *trainer.models, *trainer.weights):
        found |= any(weight_files(folder / place) for folder in folders)
    _expect(trainer, found, "`weights` and `models` hold no weights in any")


def _expect(component: object, holds: bool, requirement: str) -> None:
    """Raise an AssertionError that names the component unless the requirement holds."""
    if not holds:
        raise AssertionError(f"{named(component)}: {requirement}")
