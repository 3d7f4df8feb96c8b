"""What a plan holds: stages with their counts, how long the run takes, and what its report can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from souping.analysis.significance import Power, power_of
from souping.core.types import Fold, Item, Missing, ScoreMatrix, Selection
from souping.pipeline.checks import on_gpu

if TYPE_CHECKING:
    from souping.checkpoints.pool import ModelSize
    from souping.core.protocols import Evaluator
    from souping.pipeline.checks import Machine, Requirement
    from souping.pipeline.settings import RunSettings

Pair = tuple[int, int]
Range = tuple[float, float]
CORE, GPU = 2e10, 5e13
"""Assumed useful operations per second: of a core, and of a GPU that decodes in batches."""
CHARACTERS, ANSWER = 4, 64
"""Assumed characters per token of a prompt, and tokens of an answer if the evaluator states no limit."""
OVERHEAD = 0.005
"""Assumed seconds per item beside the arithmetic: what small models spend their time on."""
READ, FETCH = 2e9, 5e7
"""Assumed bytes per second at which ingredients are read for a soup, and at which the Hub sends."""


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """Item evaluations: `asked` in all, `todo` of them not in the store; (least, most) if the selection is open.

    With `in_parts` the search decides which soups answer how many items: the pairs are (expected, most), and `models`
    are the whole folds that the items would fill.
    """

    name: str
    models: Pair
    items: int
    asked: Pair
    todo: Pair
    benchmark: str = ""
    in_parts: bool = False


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Items per second: stated by the user, measured in this store, or assumed as `reason` spells out."""

    items_per_second: float
    basis: Literal["stated", "measured", "assumed"]
    reason: str


@dataclass(kw_only=True)
class Plan:
    """All that is known of a run before it starts. `reasons` say why it cannot run here; empty: it can.

    Those that hold on any machine are `faults` too. `selection` is None if the candidates must be measured first;
    `basis` is the source of its scores, `sizes` are the possible numbers of ingredients. With `outlined`, items have no
    content: their numbers are the benchmark's published sizes.
    """

    run: RunSettings
    machine: Machine
    models: Sequence[ModelSize] = ()
    basis: str = ""
    sizes: Sequence[int] = ()
    selection: Selection | None = None
    scores: ScoreMatrix | None = None
    folds: Mapping[Fold, tuple[Item, ...]] = field(default_factory=dict)
    outlined: bool = False
    notes: list[str] = field(default_factory=list)
    stages: Sequence[PlannedStage] = ()
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    requirements: Sequence[Requirement] = ()
    missing: Sequence[Missing] = ()
    reasons: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def sum(self, key: Literal["asked", "todo"]) -> Pair:
        """(least, most) evaluations of all stages."""
        pairs = [stage.asked if key == "asked" else stage.todo for stage in self.stages]
        return sum(least for least, _ in pairs), sum(most for _, most in pairs)

    def seconds(self) -> dict[str, Range] | None:
        """{what: (least, most) seconds}, None if no rate is known."""
        if "" not in self.speeds or not self.stages:
            return None
        rate = {stage.name: self.speeds.get(stage.benchmark, self.speeds[""]).items_per_second for stage in self.stages}
        times: dict[str, Range] = {}
        if self.folds:
            size = sum(model.nbytes for model in self.models) / len(self.models)
            answering, reading = ([0.0, 0.0], [0.0, 0.0])
            for end, count in ((0, min(self.sizes)), (1, max(self.sizes))):
                answering[end] = sum(stage.todo[end] / rate[stage.name] for stage in self.stages)
                # A model with something to answer is loaded once per stage.
                loads = sum(-(-stage.todo[end] // stage.items) for stage in self.stages if stage.items)
                reading[end] = loads * size * count / READ
            times = {"evaluate": (answering[0], answering[1]), "read weights": (reading[0], reading[1])}
        fetch = sum(model.download for model in self.models) / FETCH
        return {**times, "download": (fetch, fetch)}

    @property
    def has_report(self) -> bool:
        """Whether the planned run will end in a report that claims something."""
        return bool(self.folds.get("report")) and not (self.run.stop_after or self.run.limit or self.faults)

    def power(self) -> Power | None:
        """What the report can show; None if there is none, or if that is known after selection only."""
        if self.scores is None or not self.has_report:
            return None
        return power_of(self.scores, self.folds["report"], self.run.objective, self.run.margin / 100)


def speed(
    stated: float | None,
    measured: float | None,
    evaluator: Evaluator,
    items: Sequence[Item],
    parameters: int,
    machine: Machine,
) -> Speed | None:
    """The rate of one evaluator; None if nothing is known of the model or the items."""
    if stated is not None:
        return Speed(items_per_second=stated, basis="stated", reason=f"throughput={stated:g} items/s")
    if measured is not None:
        reason = f"{measured:.3g} items/s, measured when these candidates answered before"
        return Speed(items_per_second=measured, basis="measured", reason=reason)
    if not items or not parameters:
        return None
    # Two operations per parameter and token (Kaplan et al. 2020, section 2.1), prompt and answer alike.
    host = evaluator.host
    ways = max(1, host.gpus) if host else 1
    gpu = bool(host and host.gpus) or on_gpu(evaluator, machine)
    operations = GPU * ways if gpu else CORE * machine.cores
    answer = min(evaluator.answer_tokens or ANSWER, 8 * ANSWER)
    tokens = sum(len(str(item.prompt)) for item in items) / len(items) / CHARACTERS + answer
    rate = 1 / (2 * parameters * tokens / operations + OVERHEAD)
    where = f"{ways} GPU{'s' if ways > 1 else ''} at {GPU:.0e}" if gpu else f"{machine.cores} cores at {CORE:.0e}"
    reason = (
        f"{rate:.3g} items/s, assumed: {tokens:.0f} tokens per item, 2 operations per parameter and token, "
        f"{where} operations/s, and 5 ms per item; set your own with throughput=ITEMS_PER_SECOND"
    )
    return Speed(items_per_second=rate, basis="assumed", reason=reason)
