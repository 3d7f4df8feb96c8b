"""Evidence: every contender on the report fold, with intervals, paired differences and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from souping.analysis.intervals import objective_interval, rate
from souping.analysis.significance import Comparison, compare, holm, verdict
from souping.core.protocols import Objective
from souping.core.types import FloatArray, Item, ItemScores, Recipe

Kind = Literal["ingredient", "candidate", "best_single", "uniform_all", "uniform_selected", "uniform_topk", "soup"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Row of the report: a recipe and the role it plays. A model that plays two roles is two contenders."""

    name: str
    kind: Kind
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class ItemTable:
    """Items of a fold as arrays: category and group number of each item [I], objective weights [C]."""

    names: tuple[str, ...]
    categories: NDArray[np.int64]
    groups: NDArray[np.int64]
    coefficients: FloatArray

    @classmethod
    def of(cls, items: Sequence[Item], objective: Objective) -> ItemTable:
        names = tuple(dict.fromkeys(item.category for item in items))
        _, groups = np.unique([item.group for item in items], return_inverse=True)
        return cls(
            names=names,
            categories=np.array([names.index(item.category) for item in items]),
            groups=groups.astype(np.int64),
            coefficients=objective.coefficients(names),
        )


def row(contender: Contender, scores: ItemScores, design: ItemTable) -> dict[str, Any]:
    """One row of `report.json`: rates of each category and the objective, with 95 % intervals."""
    values = scores.values
    by_category = {}
    for number, name in enumerate(design.names):
        mask = design.categories == number
        by_category[name] = rate(values[mask], design.groups[mask]).as_dict()
    total = objective_interval(values, design.categories, design.groups, design.coefficients)
    return {
        "name": contender.name,
        "kind": contender.kind,
        "recipe_id": contender.recipe.id,
        "scores": by_category,
        "objective": total.as_dict(),
    }


def against(
    soup: Contender, others: Sequence[Contender], scores: Mapping[str, ItemScores], design: ItemTable
) -> list[tuple[Contender, Comparison]]:
    """The soup's paired difference to each contender; `scores` by recipe id."""
    pairs = []
    for other in others:
        comparison = compare(
            soup.name,
            other.name,
            scores[soup.recipe.id].values,
            scores[other.recipe.id].values,
            design.categories,
            design.groups,
            design.coefficients,
            same_model=soup.recipe.id == other.recipe.id,
        )
        pairs.append((other, comparison))
    return pairs


def gather(
    contenders: Sequence[Contender],
    scores: Mapping[str, ItemScores],
    objective: Objective,
    selected: Sequence[str],
    opened: int,
) -> dict[str, Any]:
    """`rows`, `comparisons` and `verdict` of the report. The soup is the last contender."""
    soup, others = contenders[-1], contenders[:-1]
    design = ItemTable.of(scores[soup.recipe.id].items, objective)
    pairs = against(soup, others, scores, design)
    candidates = [(c, p) for c, p in pairs if c.kind in ("ingredient", "candidate")]
    result = verdict(
        soup.name,
        [p for _, p in candidates],
        candidates=[c.name for c, _ in candidates],
        best_single=next(c.name for c in others if c.kind == "best_single"),
        selected=selected,
        recipe=soup.recipe.ingredients,
        opened=opened,
    )
    return {
        "rows": [row(c, scores[c.recipe.id], design) for c in contenders],
        "comparisons": _with_holm(pairs),
        "verdict": {**result.as_dict(), "opened": opened},
    }


def _with_holm(pairs: Sequence[tuple[Contender, Comparison]]) -> list[dict[str, Any]]:
    """Comparisons as JSON. The candidates' p-values serve the intersection-union claim and need no correction; those
    with the baselines are secondary and carry Holm's."""
    baselines = [number for number, (c, _) in enumerate(pairs) if c.kind.startswith("uniform")]
    adjusted = dict(zip(baselines, holm([pairs[n][1].p_value for n in baselines]), strict=True))
    return [{**p.as_dict(), "kind": c.kind, "p_holm": adjusted.get(n)} for n, (c, p) in enumerate(pairs)]
