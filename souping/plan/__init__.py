"""What a plan holds: stages with their counts, how long the run takes, and what its report can show; and its page.

A plan is shown to people as tables, on the terminal and in plan.md, and kept for programs as plan.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from souping.analysis.guards import planned
from souping.analysis.significance import Power, power_of
from souping.core.files import nearby, write_atomically
from souping.core.reading import read
from souping.core.text import DASH
from souping.core.types import (
    Fold,
    Item,
    Items,
    JsonObject,
    Missing,
    Record,
    ScoreMatrix,
    Selection,
    frozen,
)
from souping.core.unit import unit
from souping.evaluate.benchmark import slices_of
from souping.merge.plan import human
from souping.pipeline.checks import on_gpu
from souping.pipeline.execute import sample
from souping.report import format
from souping.report.files import as_json, selection_dict
from souping.report.render import Sample, output_console, show_sample, show_sheet
from souping.report.tables import Section, grid
from souping.search.adaptive import MOST_SAMPLES

if TYPE_CHECKING:
    from souping.checkpoints.pool import ModelSize
    from souping.core.protocols import Evaluator
    from souping.pipeline.checks import Machine, Requirement
    from souping.pipeline.settings import RunSettings

IntRange = tuple[int, int]
Range = tuple[float, float]
# What is assumed where nothing was measured

CORE_OPERATIONS = 2e10  # useful operations per second
GPU_OPERATIONS = 5e13  # decoding in batches
CHARACTERS_PER_TOKEN = 4
ANSWER_TOKENS = 64  # if the evaluator states no limit
OVERHEAD = 0.005  # seconds per item beside the arithmetic: what small models spend their time on
READ_SPEED = 2e9  # bytes per second
HUB_SPEED = 5e7  # bytes per second


@frozen
class PlannedStage:
    """Item evaluations: `asked` in all, `todo` of them not in the store; (least, most) if the selection is open.

    With `in_parts` the search decides which soups answer how many items: the pairs are (expected, most), and `models`
    are the whole folds that the items would fill.
    """

    name: str
    models: IntRange
    items: int
    asked: IntRange
    todo: IntRange
    benchmark: str = ""
    in_parts: bool = False


@frozen
class Speed:
    """Items per second: stated by the user, measured in this store or by a check, or assumed as `reason` spells out.

    A check also measures the seconds that start a model (in an engine or a server), and those that start a call for
    `batch` items (0: for all of a stage).
    """

    items_per_second: float
    per_model: float = 0.0
    per_call: float = 0.0
    batch: int = 0
    basis: Literal["stated", "measured", "assumed"]
    reason: str

    def seconds(self, stage: PlannedStage, end: int) -> float:
        """How long the answers of a stage take, the least (0) or most (1) of them."""
        # A search requests a fold in samples.
        together = -(-stage.items // MOST_SAMPLES) if stage.in_parts else stage.items
        calls = -(-stage.todo[end] // min(self.batch or together, together))
        return stage.todo[end] / self.items_per_second + calls * self.per_call


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
    folds: Mapping[Fold, Items] = field(default_factory=dict)
    outlined: bool = False
    notes: list[str] = field(default_factory=list)
    guards: Sequence[Mapping[str, Any]] = ()
    stages: Sequence[PlannedStage] = ()
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    requirements: Sequence[Requirement] = ()
    missing: Sequence[Missing] = ()
    reasons: list[Missing] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def sum(self, key: Literal["asked", "todo"]) -> IntRange:
        """(least, most) evaluations of all stages."""
        pairs = [stage.asked if key == "asked" else stage.todo for stage in self.stages]
        return sum(least for least, _ in pairs), sum(most for _, most in pairs)

    def seconds(self) -> dict[str, Range] | None:
        """{what: (least, most) seconds}, None if no rate is known."""
        if "" not in self.speeds or not self.stages:
            return None
        times = {}
        if self.folds:
            size = sum(model.nbytes for model in self.models) / len(self.models)
            answering = [0.0, 0.0]
            reading = [0.0, 0.0]
            for end, count in ((0, min(self.sizes)), (1, max(self.sizes))):
                for stage in (stage for stage in self.stages if stage.items):
                    speed = self.speeds.get(stage.benchmark, self.speeds[""])
                    # A model with something to answer is loaded once per stage.
                    loads = -(-stage.todo[end] // stage.items)
                    answering[end] += speed.seconds(stage, end) + loads * speed.per_model
                    reading[end] += loads * size * count / READ_SPEED
            times = {
                "evaluate": (answering[0], answering[1]),
                "read weights": (reading[0], reading[1]),
            }
        fetch = sum(model.download for model in self.models) / HUB_SPEED
        return {**times, "download": (fetch, fetch)}

    @property
    def has_report(self) -> bool:
        """Whether the planned run will end in a report that claims something."""
        return bool(self.folds.get("report")) and not (
            self.run.stop_after or self.run.limit or self.faults
        )

    def powers(self) -> list[Power]:
        """What a report on each slice can show; empty if there is none, or if that is known after selection only."""
        if self.scores is None or not self.has_report:
            return []
        run = self.run
        slices = slices_of(self.folds["report"], run.slices)
        powers = [power_of(self.scores, part, run.objective, run.inner_margin) for part in slices]
        return [power for power in powers if power is not None]


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
        return Speed(
            items_per_second=stated, basis="stated", reason=f"throughput={stated:g} items/s"
        )
    if measured is not None:
        reason = f"{measured:.3g} items/s, measured when these candidates answered before"
        return Speed(items_per_second=measured, basis="measured", reason=reason)
    if not items or not parameters:
        return None
    # Two operations per parameter and token (Kaplan et al. 2020, section 2.1), prompt and answer alike.
    host = evaluator.host
    ways = max(1, host.gpus) if host else 1
    gpu = bool(host and host.gpus) or on_gpu(evaluator, machine)
    pace, number = (GPU_OPERATIONS, ways) if gpu else (CORE_OPERATIONS, machine.cores)
    limit = evaluator.answer_tokens
    answer = ANSWER_TOKENS if limit is None else min(limit, 8 * ANSWER_TOKENS)
    read = [
        f"{item.prompt}{'' if limit else item.answer}" if limit == 0 else str(item.prompt)
        for item in items
    ]
    tokens = sum(map(len, read)) / len(items) / CHARACTERS_PER_TOKEN + answer
    rate = 1 / (2 * parameters * tokens / (pace * number) + OVERHEAD)
    where = f"{number} {'GPU' if gpu else 'core'}{'s' if number > 1 else ''} at {pace:.0e}"
    basis = f"{tokens:.0f} tokens per item, {where} operations/s, 5 ms per item"
    reason = f"{rate:.3g} items/s, assumed ({basis}); set your own with throughput=ITEMS_PER_SECOND"
    return Speed(items_per_second=rate, basis="assumed", reason=reason)


# ------------------------------------------------------------ page


def as_dict(plan: Plan) -> JsonObject:
    """Content of plan.json."""
    powers = [power.as_dict() for power in plan.powers()]
    selection = selection_dict(plan.selection, plan.scores) if plan.selection else None
    return {
        "experiment": plan.run.name,
        "can_go_on": not plan.reasons,
        "reasons": [reason.sentence() for reason in plan.reasons],
        "notes": list(plan.notes),
        "machine": asdict(plan.machine),
        "models": [asdict(model) for model in plan.models],
        "selection": {"basis": plan.basis, "sizes": list(plan.sizes), "selection": selection},
        "outlined": plan.outlined,
        "folds": {fold: len(items) for fold, items in plan.folds.items()},
        "stages": [asdict(stage) for stage in plan.stages],
        "evaluations": {"asked": plan.sum("asked"), "todo": plan.sum("todo")},
        "speeds": {name or "benchmark": asdict(speed) for name, speed in plan.speeds.items()},
        "seconds": plan.seconds(),
        "power": powers[0] if powers else None,
        **({"slices": powers} if len(powers) > 1 else {}),
        "guards": list(plan.guards),
        "rooms": [requirement.as_dict() for requirement in plan.requirements],
        "missing": [asdict(one) for one in plan.missing],
    }


def sections(plan: Plan) -> list[Section]:
    """The plan's sections in reading order."""
    first = (_selection(plan), _work(plan), _time(plan), _report(plan), planned(plan.guards))
    made = (*first, _models(plan), _space(plan), _missing(plan))
    return [section for section in made if section is not None]


def _selection(plan: Plan) -> Section:
    selection = plan.selection
    label = plan.run.selector.label
    if selection is None:
        sizes = f": {_span((min(plan.sizes), max(plan.sizes)))} ingredients" if plan.sizes else ""
        return Section(
            "Selection",
            (f"{label} picks from {plan.basis or 'scores that cannot be had'}{sizes}.",),
        )
    lines = [f"{label} picks {format.in_words(selection.ingredients)}, from {plan.basis}."]
    if selection.threshold is not None:
        by = f"{selection.metric}, threshold {selection.threshold:g}"
        low = format.in_words(selection.low_correlation)
        lines.append(f"Low-correlation categories ({by}): {low}.")
    experts = list(selection.experts.items())
    grids = (grid(("category", "expert"), experts, left=(0, 1)),) if experts else ()
    return Section("Selection", (*lines, *selection.notes), grids=grids)


def _work(plan: Plan) -> Section | None:
    """Evaluations of each stage: in total, stored by then, and to do."""
    if not plan.stages:
        return None
    rows = [_stage(stage) for stage in plan.stages]
    asked = plan.sum("asked")
    todo = plan.sum("todo")
    totals = (_span(asked), _span(_stored(asked, todo)), _span(todo)) if plan.folds else (DASH,) * 3
    rows.append(("total", "", "", *totals))
    header = ("stage", "models", "items each", "evaluations", "stored by then", "to do")
    table = grid(header, rows, strong=[len(rows) - 1])
    return Section("Work", tuple(_work_lines(plan)), grids=(table,))


def _work_lines(plan: Plan) -> list[str]:
    folds = ", ".join(f"{fold} {len(items):,}" for fold, items in plan.folds.items() if items)
    lines = [
        f"Items: {folds}." if folds else "The items cannot be counted here: see what is missing."
    ]
    if plan.outlined:
        lines.append(
            "The items cannot be read here: their numbers are the benchmark's published sizes."
        )
        items = [item for fold in plan.folds.values() for item in fold]
        if len({item.group for item in items}) == len(items):
            lines.append(
                "Every item counts as its own group: if the data groups them, the report shows less."
            )
    if len(plan.sizes) > 1:
        lines.append("The number of ingredients is not known yet, so least and most are given.")
    if any(stage.in_parts for stage in plan.stages):
        lines.append(
            "The search evaluates soups on parts of the fold: its row gives expected and most whole folds."
        )
    return lines


def _stage(stage: PlannedStage) -> tuple[str, ...]:
    models = f"{_span(stage.models)} folds" if stage.in_parts else _span(stage.models)
    if not stage.items:
        return (stage.name, models, *(DASH,) * 4)
    stored = _span(_stored(stage.asked, stage.todo))
    return stage.name, models, f"{stage.items:,}", _span(stage.asked), stored, _span(stage.todo)


def _stored(asked: IntRange, todo: IntRange) -> IntRange:
    ends = sorted((asked[0] - todo[0], asked[1] - todo[1]))
    return ends[0], ends[1]


def _time(plan: Plan) -> Section | None:
    """How long the run takes, and at which rates."""
    times = plan.seconds()
    if times is None:
        line = "Not known: neither items nor a rate are available; set one with throughput=ITEMS_PER_SECOND."
        return Section("Time", (line,)) if plan.stages else None
    rows = [(what, _duration(pair)) for what, pair in times.items() if pair[1] > 0]
    rows.append(("total", _duration(_total(times.values()))))
    lines = [f"{name or 'The benchmark'}: {speed.reason}." for name, speed in plan.speeds.items()]
    lines.append(
        f"Assumed: weights are read at {READ_SPEED / 1e9:g} GB/s, the Hub sends {HUB_SPEED / 1e6:g} MB/s."
    )
    lines.append(
        "Not counted: loading the first model, and starting servers unless a check measured it."
    )
    if not plan.folds:
        lines.append(
            "The time of the evaluations is not known: their items cannot be counted here."
        )
    return Section("Time", tuple(lines), grids=(grid(("what", "time"), rows),))


def _report(plan: Plan) -> Section | None:
    if not plan.has_report or not plan.run.objective.linear:
        return None
    lines = [f"{power.sentence()}." for power in plan.powers()]
    if len(lines) > 1:
        lines = [f"Slice {number}: {line}" for number, line in enumerate(lines, start=1)]
    later = ["Known after selection, from the candidates' answers on the select fold."]
    return Section("What the report can show", tuple(lines or later))


def _models(plan: Plan) -> Section:
    bases = {"name": "a guess by its name", "unknown": ""}
    rows = [
        (
            model.name,
            human(model.nbytes) if model.nbytes else "unknown",
            bases.get(model.basis, model.basis),
            human(model.download)
            if model.download
            else "here"
            if model.basis == "headers"
            else "unknown",
        )
        for model in plan.models
    ]
    return Section(
        "Candidates",
        grids=(grid(("candidate", "weights", "known from", "to fetch"), rows, left=(0, 2)),),
    )


def _space(plan: Plan) -> Section:
    machine = plan.machine
    gpus = ", ".join(f"{gpu.name} {human(gpu.total)}" for gpu in machine.gpus) or "no GPU"
    hardware = f"This machine: {machine.cores} cores, {human(machine.memory)} of memory, {gpus}."
    if not plan.requirements:
        return Section(
            "Space", (hardware, "What the run needs is not known: no candidate's size is.")
        )
    rows = [
        (
            one.where,
            human(one.need),
            human(one.have),
            "fits" if one.fits else "too small",
            ", ".join(one.parts),
        )
        for one in plan.requirements
    ]
    small = [place for place, one in enumerate(plan.requirements) if not one.fits]
    made = grid(
        ("where", "needed", "available", "verdict", "made of"), rows, left=(0, 3, 4), strong=small
    )
    return Section("Space", (hardware,), grids=(made,))


def _missing(plan: Plan) -> Section | None:
    notes = tuple(plan.notes)
    if not plan.missing:
        return Section("Notes", notes) if notes else None
    rows = [(one.what, one.fix or DASH) for one in plan.missing]
    return Section(
        "Missing on this machine", notes, grids=(grid(("what", "command"), rows, left=(0, 1)),)
    )


def _span(pair: IntRange) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} to {pair[1]:,}"


def _total(ranges: Iterable[Range]) -> Range:
    least, most = zip(*ranges, strict=True)
    return sum(least), sum(most)


def _duration(pair: Range) -> str:
    ends = [
        format.seconds(value) if value < 3600 * 100 else f"{value / 3600:,.0f} h" for value in pair
    ]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def show_rehearsal(
    timed: Plan,
    fold: Fold,
    items: Sequence[Item],
    records: Sequence[Record],
    prompts: Mapping[str, str],
) -> None:
    """Print one item of each category in full, all of them in a table, and the time of the run; save check.json."""
    name = timed.run.pool.resolve()[0].name
    samples = list[dict[str, Any]]()
    firsts = dict[str, dict[str, Any]]()
    for place, (item, record) in enumerate(zip(items, records, strict=True)):
        line = sample(place, fold, item, {name: [record]}, {name: record.score}, prompts)
        line["models"][name] |= {
            "prompt_tokens": record.prompt_tokens,
            "tokens": len(record.tokens),
        }
        samples.append(line)
        firsts.setdefault(item.category, line)
    print()
    for line in firsts.values():
        show_sample(output_console(120), read(Sample, line), [name])
    show_sheet(
        [
            s
            for s in (_answers(name, fold, items, records), _work(timed), _time(timed))
            if s is not None
        ]
    )
    table = {**as_dict(timed), "candidate": name, "fold": fold, "samples": samples}
    table["items_per_second"] = timed.speeds[""].items_per_second
    write_atomically(timed.run.run_dir / "check.json", as_json(table).encode())
    print(f"saved as check.json in {nearby(timed.run.run_dir)}")
    if cut := sum(record.outcome != "finished" for record in records):
        print(f"{cut} of {len(records)} answers were cut off or are missing: look at them first")
    most = _total((timed.seconds() or {"": (0.0, 0.0)}).values())[1]
    print(
        f"This run can start and takes at most about {format.seconds(most)}: repeat the command without `check`."
    )


def _answers(name: str, fold: Fold, items: Sequence[Item], records: Sequence[Record]) -> Section:
    rows = [
        (
            format.short(item.id),
            format.clean(item.category),
            format.score(record.score, more=-1),
            format.count(record.prompt_tokens) if record.prompt_tokens else DASH,
            format.count(len(record.tokens)) if record.tokens else DASH,
            record.outcome,
            format.short(record.output or record.reason, 40),
        )
        for item, record in zip(items, records, strict=True)
    ]
    header = (
        "item",
        "category",
        unit().heading("score"),
        "prompt tokens",
        "answer tokens",
        "ended",
        "answer",
    )
    mean = unit().level(fmean(record.score for record in records))
    line = f"{name} scores {mean} on {len(rows)} items of the {fold} fold."
    return Section("Rehearsal", (line,), grids=(grid(header, rows, left=(0, 1, 5, 6)),))
