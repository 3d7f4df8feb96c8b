"""Extra benchmarks (`also`): what else the soup gained or lost. Nothing is ever chosen on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from souping.checkpoints.dtypes import TORCH_NAMES
from souping.core.protocols import BenchmarkItems, Evaluator, Objective
from souping.core.scores import Mean
from souping.core.types import Item, ItemScores, Recipe, UserError
from souping.evaluate.folds import first_items

SHARED = ("dtype", "device", "threads", "trust_remote_code")
"""Settings of a loaded model: evaluators that agree on them share it."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ExtraEntry:
    """Entry of `also`, built; `evaluator` or `benchmark` is None if the entry does not name one."""

    name: str
    evaluator: Evaluator | None = None
    benchmark: BenchmarkItems | None = None
    objective: Objective | None = None


@dataclass(frozen=True, kw_only=True)
class ExtraBenchmark:
    """Benchmark of which all items are answered once the recipe is frozen."""

    name: str
    evaluator: Evaluator
    items: tuple[Item, ...]
    objective: Objective


def held(own: Mapping[str, T]) -> dict[str, T]:
    """The settings of an evaluator's loaded model, if it has one in this process."""
    return {key: own[key] for key in SHARED if key in own} if own.get("dtype") in TORCH_NAMES else {}


def extra_benchmarks(
    entries: Sequence[ExtraEntry], evaluator: Evaluator, limit: int | None = None
) -> tuple[ExtraBenchmark, ...]:
    """The benchmarks with their items, at most `limit` per category.

    An entry without an evaluator uses the run's; if that brings its own items, `evaluator=local` with its defaults and
    the run's dtype and device.

    Raises:
        UserError: items cannot be had, or two entries share a name.
    """
    names = [entry.name for entry in entries]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"also[{number}]: two entries are called {name!r}: give one a name of its own")
    return tuple(_opened(entry, evaluator, limit) for entry in entries)


def _opened(entry: ExtraEntry, own: Evaluator, limit: int | None) -> ExtraBenchmark:
    from souping.evaluate.generate import LocalEvaluator

    evaluator = entry.evaluator or (own if not own.brings_items else LocalEvaluator(**held(vars(own))))
    benchmark = entry.benchmark if entry.benchmark is not None else evaluator.benchmark
    if benchmark is None:
        raise UserError(f"also: {entry.name} has an evaluator that brings no items: give it path or benchmark")
    try:
        items = benchmark.items()
    except UserError as error:
        raise UserError(f"also: {entry.name}: {error}") from error
    objective = entry.objective or Mean()
    objective.coefficients(list(dict.fromkeys(item.category for item in items)))
    return ExtraBenchmark(name=entry.name, evaluator=evaluator, items=first_items(items, limit), objective=objective)


def compare_on(
    benchmark: ExtraBenchmark, soup: Recipe, ingredients: Mapping[str, Recipe], measured: Mapping[str, ItemScores]
) -> dict[str, Any]:
    """Entry of `also` in the report: rows, and the soup's paired differences to each ingredient, also by category.

    `measured` is {recipe id: scores}.

    Holm's correction is over the ingredients for the whole benchmark; limits and p-values of single categories hold for
    all pairs of ingredient and category at once.
    """
    from souping.analysis.intervals import ItemTable
    from souping.pipeline.evidence import Contender, Pair, by_category, judged, outcomes, row

    singles = [Contender(name=name, kind="ingredient", recipe=recipe) for name, recipe in ingredients.items()]
    rows = [*singles, Contender(name="soup", kind="soup", recipe=soup)]
    design = ItemTable.of(benchmark.items, benchmark.objective)
    pairs = [Pair.of(rows[-1], c, measured, design) for c in singles]
    return {
        "name": benchmark.name,
        "evaluator": benchmark.evaluator.title,
        "items": len(benchmark.items),
        "groups": len(np.unique(design.groups)),
        "coefficients": dict(zip(design.names, design.coefficients.tolist(), strict=True)),
        "rows": [row(c, measured[c.recipe.id], design) for c in rows],
        "outcomes": {c.name: outcomes(measured[c.recipe.id], design) for c in rows},
        "comparisons": judged([pair.whole() for pair in pairs]),
        "categories": by_category(pairs),
    }
