"""A plan's figures: how long it takes, and what its report can show."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from souping.analysis.power import minimal_detectable
from souping.core import Item
from souping.planning.speed import FETCH, POUR

if TYPE_CHECKING:
    from souping.planning.planner import Plan

DISCORDANCE = 0.1
"""Share of items on which two models differ: what a difference is judged against before anything is known."""
Range = tuple[float, float]


def seconds(plan: Plan) -> dict[str, Range] | None:
    """{what: (least, most) seconds}, None where no rate is known."""
    if "" not in plan.speeds or not plan.stages:
        return None
    rate = {stage.name: plan.speeds.get(stage.side, plan.speeds[""]).items_per_second for stage in plan.stages}
    found: dict[str, Range] = {}
    if plan.folds:
        size = sum(model.nbytes for model in plan.models) / len(plan.models)
        sizes = (min(plan.choice.sizes), max(plan.choice.sizes))
        found["evaluate"] = _pair(*(sum(s.todo[i] / rate[s.name] for s in plan.stages) for i in (0, 1)))
        found["read weights"] = _pair(*(_pours(plan, i) * size * sizes[i] / POUR for i in (0, 1)))
    fetch = sum(model.download for model in plan.models) / FETCH
    found["download"] = (fetch, fetch)
    return found


def _pours(plan: Plan, end: int) -> int:
    """Models that have something to answer: each is poured once a stage."""
    return sum(-(-stage.todo[end] // stage.items) for stage in plan.stages if stage.items)


def _pair(least: float, most: float) -> Range:
    return least, most


def detectable(plan: Plan) -> dict[str, Any] | None:
    """The smallest difference that the report fold shows with 80 % power, by the objective's own weights."""
    items = plan.folds.get("report", ())
    if not items or plan.run.stop_after:
        return None
    return {
        "items": len(items),
        "groups": len({item.group for item in items}),
        "worth": worth(items, plan.run.objective, by_group=False),
        "worth_groups": worth(items, plan.run.objective, by_group=True),
        "difference": minimal_detectable(max(1, int(worth(items, plan.run.objective, by_group=False))), DISCORDANCE),
        "difference_groups": minimal_detectable(
            max(1, int(worth(items, plan.run.objective, by_group=True))), DISCORDANCE
        ),
    }


def worth(items: Sequence[Item], objective: Any, by_group: bool) -> float:
    """Independent items of equal weight that would tell as much of the objective.

    1 / sum_u (sum of w_c / n_c over the items of u)^2, with n_c items in category c; the units u are items, or groups
    as if the items of a group always answered alike.
    """
    sizes = Counter(item.category for item in items)
    weights = dict(zip(sizes, objective.coefficients(list(sizes)), strict=True))
    pull: dict[str, float] = defaultdict(float)
    for item in items:
        pull[item.group if by_group else item.id] += float(weights[item.category]) / sizes[item.category]
    return 1 / sum(value**2 for value in pull.values())
