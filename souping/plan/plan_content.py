"""What a plan holds: stages with their counts, how long the run takes, and what its report can show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from souping.checkpoints.pool import ModelSize
from souping.core.reading import to_json
from souping.core.types import (
    OWN_BENCHMARK,
    Items,
    JsonObject,
    Missing,
    ScoreMatrix,
    Selection,
    Split,
)
from souping.core.weight_similarity import PoolSimilarity
from souping.plan.speed import HUB_SPEED, READ_SPEED, IntRange, PlannedStage, Speed
from souping.report.cells import Section
from souping.report.run_files import selection_summary
from souping.runs.requirements import Machine, Requirement
from souping.runs.settings import RunSettings
from souping.runs.verdict import planned_power, power_summary
from souping.statistics.power import Power

Range = tuple[float, float]
"""(least, most)"""


@dataclass(kw_only=True)
class Plan:
    """All that is known of a run before it starts. `reasons` say why the run cannot start here; empty if it can.

    Reasons that hold on any machine are `faults` too. `selection` is None if the candidates must be measured first;
    `basis` is the source of its scores, `sizes` are the possible numbers of ingredients. With `outlined`, items have no
    content: their numbers are the benchmark's published sizes. `speeds` are {benchmark: speed}, including
    OWN_BENCHMARK, without benchmarks whose speed is not known.
    """

    run: RunSettings
    machine: Machine
    models: Sequence[ModelSize] = ()
    basis: str = ""
    sizes: Sequence[int] = ()
    selection: Selection | None = None
    scores: ScoreMatrix | None = None
    splits: Mapping[Split, Items] = field(default_factory=dict)
    outlined: bool = False
    notes: list[str] = field(default_factory=list)
    similarity: PoolSimilarity | None = None
    guards: Sequence[Mapping[str, Any]] = ()
    stages: Sequence[PlannedStage] = ()
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    requirements: Sequence[Requirement] = ()
    missing: Sequence[Missing] = ()
    reasons: list[Missing] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    upload: Section | None = None

    def sum(self, key: Literal["asked", "todo"]) -> IntRange:
        """(least, most) evaluations of all stages: all that the run takes, or those that the store lacks (`todo`)."""
        ranges = [stage.asked if key == "asked" else stage.todo for stage in self.stages]
        return sum(least for least, _ in ranges), sum(most for _, most in ranges)

    def seconds(self) -> dict[str, Range] | None:
        """{what: (least, most) seconds}; None if no speed is known, or nothing is evaluated."""
        if OWN_BENCHMARK not in self.speeds or not self.stages:
            return None
        times = dict[str, Range]()
        if self.splits:
            model_bytes = sum(model.nbytes for model in self.models) / len(self.models)
            # Seconds [least, most] of answers, and of reading the ingredients' weights.
            answering = [0.0, 0.0]
            reading = [0.0, 0.0]
            # The least (end 0), with the fewest ingredients to read for a soup, and the most (end 1).
            for end, ingredients in ((0, min(self.sizes)), (1, max(self.sizes))):
                for stage in self.stages:
                    if not stage.items:
                        continue
                    speed = self.speeds.get(stage.benchmark, self.speeds[OWN_BENCHMARK])
                    # A model with something to answer is loaded once per stage (rounded up).
                    loads = -(-stage.todo[end] // stage.items)
                    answering[end] += speed.seconds(stage, end) + loads * speed.per_model
                    reading[end] += loads * model_bytes * ingredients / READ_SPEED
            times["evaluate"] = (answering[0], answering[1])
            times["read weights"] = (reading[0], reading[1])
        fetch = sum(model.download for model in self.models) / HUB_SPEED
        return {**times, "download": (fetch, fetch)}

    @property
    def has_report(self) -> bool:
        """Whether the planned run will end in a report that claims something."""
        if self.run.stop_after or self.run.dry_run or self.faults:
            return False
        return bool(self.splits.get("test"))

    def power(self) -> Power | None:
        """What the report can show; None for a run without a report, or if that is known only after selection."""
        if self.scores is None or not self.has_report:
            return None
        return planned_power(self.run, self.scores, self.splits["test"])


def as_dict(plan: Plan) -> JsonObject:
    """Content of plan.json."""
    unit = plan.run.evaluator.unit
    power = plan.power()
    selection = None
    if plan.selection:
        selection = selection_summary(unit, plan.selection, plan.scores)
    return {
        "name": plan.run.name,
        "can_go_on": not plan.reasons,
        "reasons": [reason.sentence() for reason in plan.reasons],
        "notes": list(plan.notes),
        "machine": asdict(plan.machine),
        "models": [asdict(model) for model in plan.models],
        **({"similarity": to_json(plan.similarity)} if plan.similarity else {}),
        "selection": {
            "basis": plan.basis,
            "sizes": list(plan.sizes),
            "selection": to_json(selection),
        },
        "outlined": plan.outlined,
        "splits": {split: len(items) for split, items in plan.splits.items()},
        "steps": [asdict(stage) for stage in plan.stages],
        "evaluations": {"asked": plan.sum("asked"), "todo": plan.sum("todo")},
        "speeds": {name or "benchmark": asdict(speed) for name, speed in plan.speeds.items()},
        "seconds": plan.seconds(),
        "power": to_json(power_summary(power, unit)) if power else None,
        "guards": list(plan.guards),
        "rooms": [requirement.as_dict() for requirement in plan.requirements],
        "missing": [asdict(lack) for lack in plan.missing],
    }


def total_range(ranges: Iterable[Range]) -> Range:
    """(sum of the least, sum of the most) of one or more ranges."""
    least, most = zip(*ranges, strict=True)
    return sum(least), sum(most)
