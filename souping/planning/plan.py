"""A plan's figures: how long it takes, and what its report can show.

How long it will take: a rate that was stated, one that this store has seen, or an assumption that is spelt out.

Benchmarks by their published sizes, for machines where their items cannot be read: counts, no content.

Sizes: BFCL's files of bfcl-eval 2026.3.23 (v3's 17 hold 4,441 items); MGSM, 250 problems a language (Shi et al. 2022);
FLORES-200's devtest, 1,012 sentences (NLLB Team 2022); infinite-Bench's tasks (Zhang et al. 2024, table 2).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from souping.analysis.intervals import minimal_detectable
from souping.core.types import Item
from souping.evaluate.bfcl.benchmark import LIVE, MULTI_TURN
from souping.pipeline.requirements import Machine, on_gpu
from souping.pipeline.store import Store

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


CORE, GPU = 2e10, 5e13
"""Assumed useful operations a second: of a core, and of a GPU that decodes in batches."""
CHARACTERS = 4
"""Assumed characters a token of a prompt."""
OVERHEAD = 0.005
"""Assumed seconds an item beside the arithmetic: what small models spend their time on."""
ANSWER = 64
"""Assumed tokens of an answer where the evaluator states no limit."""
POUR, FETCH = 2e9, 5e7
"""Assumed bytes a second at which ingredients are read for a soup, and at which the Hub sends."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Items a second and why."""

    items_per_second: float
    basis: Literal["stated", "measured", "assumed"]
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def speed(
    run: Any,
    evaluator: Any,
    items: Sequence[Item],
    parameters: int,
    machine: Machine,
    store: Store,
    soups: Iterable[str],
) -> Speed | None:
    """The rate of one evaluator; None where nothing is known of the model or the items."""
    if run.throughput is not None:
        return Speed(items_per_second=run.throughput, basis="stated", reason=f"throughput={run.throughput:g} items/s")
    measured = store.speed(soups, evaluator.fingerprint)
    if measured is not None:
        return Speed(
            items_per_second=measured,
            basis="measured",
            reason=f"{measured:.3g} items/s, as this store has seen these candidates answer",
        )
    if not items or not parameters:
        return None
    return _assumed(evaluator, items, parameters, machine)


def _assumed(evaluator: Any, items: Sequence[Item], parameters: int, machine: Machine) -> Speed:
    """Two operations a parameter and token (Kaplan et al. 2020, section 2.1), prompt and answer alike."""
    holder = getattr(evaluator, "server", None) or getattr(evaluator, "engine", None)
    ways = int(getattr(holder, "tensor_parallel_size", 1))
    gpu = hasattr(holder, "tensor_parallel_size") or on_gpu(evaluator, machine)
    rate = GPU * ways if gpu else CORE * machine.cores
    answer = getattr(evaluator, "max_new_tokens", None) or getattr(evaluator, "max_tokens", None) or ANSWER
    tokens = sum(len(str(item.prompt)) for item in items) / len(items) / CHARACTERS + min(answer, 8 * ANSWER)
    found = 1 / (2 * parameters * tokens / rate + OVERHEAD)
    where = f"{ways} GPU{'s' if ways > 1 else ''} at {GPU:.0e}" if gpu else f"{machine.cores} cores at {CORE:.0e}"
    return Speed(
        items_per_second=found,
        basis="assumed",
        reason=(
            f"{found:.3g} items/s, assumed: {tokens:.0f} tokens an item, 2 operations a parameter and token, "
            f"{where} operations/s, 5 ms beside; state your own with throughput=ITEMS_PER_SECOND"
        ),
    )


BFCL: Mapping[str, int] = {
    "simple_python": 400,
    "simple_java": 100,
    "simple_javascript": 50,
    "multiple": 200,
    "parallel": 200,
    "parallel_multiple": 200,
    "irrelevance": 240,
    **LIVE,
    **dict.fromkeys(MULTI_TURN, 200),
}
TASKS: tuple[tuple[str, int, int], ...] = (
    (r"mgsm_\w+_[a-z]{2}", 250, 1),
    (r"flores36", 1012, 36),
    (r"infinitebench_longbook_qa_en", 351, 1),
    (r"infinitebench_longbook_choice_en", 229, 1),
    (r"infinitebench_longdialogue_qa_en", 200, 1),
)
"""(pattern of a task's name, documents of one leaf task, leaf tasks)."""


def outline(evaluator: Any) -> tuple[Item, ...]:
    """Items without content, as many as the evaluator's benchmark has; none where one of its parts is not known."""
    if type(evaluator).__name__ == "BfclEvaluator":
        sizes = _bfcl(evaluator)
        shared = set(MULTI_TURN)
    else:
        sizes = _tasks(getattr(evaluator, "tasks", []))
        shared = set(sizes) if getattr(evaluator, "group", "") == "doc" else set()
    limit = getattr(evaluator, "limit", None)
    return tuple(
        Item(
            id=f"{name}/{number}",
            category=name,
            prompt="",
            answer="",
            group=f"shared {number}" if name in shared else "",
        )
        for name, size in sizes.items()
        for number in range(min(size, limit) if isinstance(limit, int) else size)
    )


def _bfcl(evaluator: Any) -> dict[str, int]:
    from souping.evaluate.bfcl.benchmark import chosen

    names = chosen(evaluator.version, evaluator.categories)
    return {name: BFCL[name] for name in names} if set(names) <= set(BFCL) else {}


def _tasks(tasks: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for task in tasks:
        known = next((row for row in TASKS if isinstance(task, str) and re.fullmatch(row[0], task)), None)
        if known is None:
            return {}
        _, size, leaves = known
        found |= {task if leaves == 1 else f"{task} {leaf}": size for leaf in range(1, leaves + 1)}
    return found
