"""Figures of a plan: how long the run takes, and what its report can show.

A rate is one that was stated, one that this store has seen, or an assumption that is spelt out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from souping.analysis.significance import Power, power_of
from souping.core.protocols import Evaluator
from souping.core.types import Item
from souping.pipeline.requirements import Machine, on_gpu
from souping.pipeline.store import Store

if TYPE_CHECKING:
    from souping.checkpoints.pool import ModelSize
    from souping.core.types import Fold, Missing
    from souping.pipeline.requirements import Requirement
    from souping.pipeline.settings import RunSettings
    from souping.planning.workload import PlannedPool, PlannedSelection, PlannedStage

Range = tuple[float, float]


@dataclass(kw_only=True)
class Plan:
    """All that is known of a run before it starts. `reasons` say why the run cannot go on here; empty: it can.

    Those that no other machine would mend are `faults` too.

    With `outlined`, the folds hold items without content, as many as the benchmark's published sizes say.
    """

    run: RunSettings
    machine: Machine
    models: Sequence[ModelSize] = ()
    opened: PlannedPool
    choice: PlannedSelection
    folds: Mapping[Fold, tuple[Item, ...]] = field(default_factory=dict)
    outlined: bool = False
    notes: list[str] = field(default_factory=list)
    stages: Sequence[PlannedStage] = ()
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    requirements: Sequence[Requirement] = ()
    missing: Sequence[Missing] = ()
    reasons: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def seconds(plan: Plan) -> dict[str, Range] | None:
    """{what: (least, most) seconds}, None where no rate is known."""
    if "" not in plan.speeds or not plan.stages:
        return None
    rate = {stage.name: plan.speeds.get(stage.side, plan.speeds[""]).items_per_second for stage in plan.stages}
    times: dict[str, Range] = {}
    if plan.folds:
        size = sum(model.nbytes for model in plan.models) / len(plan.models)
        sizes = (min(plan.choice.sizes), max(plan.choice.sizes))
        times["evaluate"] = _pair(*(sum(s.todo[i] / rate[s.name] for s in plan.stages) for i in (0, 1)))
        times["read weights"] = _pair(*(_pours(plan, i) * size * sizes[i] / POUR for i in (0, 1)))
    fetch = sum(model.download for model in plan.models) / FETCH
    times["download"] = (fetch, fetch)
    return times


def _pours(plan: Plan, end: int) -> int:
    """Models that have something to answer: each is poured once a stage."""
    return sum(-(-stage.todo[end] // stage.items) for stage in plan.stages if stage.items)


def _pair(least: float, most: float) -> Range:
    return least, most


def has_report(plan: Plan) -> bool:
    """Whether the run that is planned will end in a report that claims something."""
    return bool(plan.folds.get("report")) and not (plan.run.stop_after or plan.run.limit or plan.faults)


def power(plan: Plan) -> Power | None:
    """What the report can show; None if there is none, or if that is known after selection only."""
    if plan.choice.scores is None or not has_report(plan):
        return None
    return power_of(plan.choice.scores, plan.folds["report"], plan.run.objective, plan.run.margin / 100)


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


def speed(
    run: RunSettings,
    evaluator: Evaluator,
    items: Sequence[Item],
    parameters: int,
    machine: Machine,
    store: Store,
    soups: Iterable[str],
) -> Speed | None:
    """The rate of one evaluator; None where nothing is known of the model or the items."""
    if run.throughput is not None:
        return Speed(items_per_second=run.throughput, basis="stated", reason=f"throughput={run.throughput:g} items/s")
    measured = store.throughput(soups, evaluator.fingerprint)
    if measured is not None:
        return Speed(
            items_per_second=measured,
            basis="measured",
            reason=f"{measured:.3g} items/s, as this store has seen these candidates answer",
        )
    if not items or not parameters:
        return None
    return _assumed(evaluator, items, parameters, machine)


def _assumed(evaluator: Evaluator, items: Sequence[Item], parameters: int, machine: Machine) -> Speed:
    """Two operations a parameter and token (Kaplan et al. 2020, section 2.1), prompt and answer alike."""
    host = evaluator.host
    ways = max(1, host.gpus) if host else 1
    gpu = bool(host and host.gpus) or on_gpu(evaluator, machine)
    rate = GPU * ways if gpu else CORE * machine.cores
    answer = evaluator.answer_tokens or ANSWER
    tokens = sum(len(str(item.prompt)) for item in items) / len(items) / CHARACTERS + min(answer, 8 * ANSWER)
    rate_of_items = 1 / (2 * parameters * tokens / rate + OVERHEAD)
    where = f"{ways} GPU{'s' if ways > 1 else ''} at {GPU:.0e}" if gpu else f"{machine.cores} cores at {CORE:.0e}"
    return Speed(
        items_per_second=rate_of_items,
        basis="assumed",
        reason=(
            f"{rate_of_items:.3g} items/s, assumed: {tokens:.0f} tokens an item, 2 operations a parameter and token, "
            f"{where} operations/s, 5 ms beside; state your own with throughput=ITEMS_PER_SECOND"
        ),
    )
