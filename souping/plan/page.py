"""A plan for people, on the terminal and in plan.md: its sections."""

from __future__ import annotations

from souping.analysis.guards import planned
from souping.core.text import DASH
from souping.merge.plan import human
from souping.plan.content import Plan, Range, total_range
from souping.plan.speed import HUB_SPEED, READ_SPEED
from souping.plan.stages import IntRange, PlannedStage
from souping.report import format
from souping.report.tables import Section, grid, similarity


def sections(plan: Plan) -> list[Section]:
    """The plan's sections in reading order."""
    first = (
        _selection(plan),
        work_section(plan),
        time_section(plan),
        _report(plan),
        planned(plan.guards),
    )
    parts = (*first, _models(plan), similarity(plan.similarity), _space(plan), _missing(plan))
    return [section for section in parts if section is not None]


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


def work_section(plan: Plan) -> Section | None:
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


def time_section(plan: Plan) -> Section | None:
    """How long the run takes, and at which rates."""
    times = plan.seconds()
    if times is None:
        line = "Not known: neither items nor a rate are available; set one with throughput=ITEMS_PER_SECOND."
        return Section("Time", (line,)) if plan.stages else None
    rows = [(what, _duration(pair)) for what, pair in times.items() if pair[1] > 0]
    rows.append(("total", _duration(total_range(times.values()))))
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
    lines = [f"{power.sentence(plan.run.evaluator.unit)}." for power in plan.powers()]
    if len(lines) > 1:
        lines = [f"Slice {number}: {line}" for number, line in enumerate(lines, start=1)]
    later = ["Known after selection, from the candidates' answers on the select fold."]
    return Section("What the report can show", tuple(lines or later))


def _models(plan: Plan) -> Section:
    bases = {"name": "a guess by its name", "unknown": ""}
    rows = []
    for model in plan.models:
        weights = human(model.nbytes) if model.nbytes else "unknown"
        download = "here" if model.basis == "headers" else "unknown"
        if model.download:
            download = human(model.download)
        rows.append((model.name, weights, bases.get(model.basis, model.basis), download))
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
            requirement.where,
            human(requirement.need),
            human(requirement.have),
            "fits" if requirement.fits else "too small",
            ", ".join(requirement.parts),
        )
        for requirement in plan.requirements
    ]
    small = [place for place, requirement in enumerate(plan.requirements) if not requirement.fits]
    table = grid(
        ("where", "needed", "available", "verdict", "made of"), rows, left=(0, 3, 4), strong=small
    )
    return Section("Space", (hardware,), grids=(table,))


def _missing(plan: Plan) -> Section | None:
    notes = tuple(plan.notes)
    if not plan.missing:
        return Section("Notes", notes) if notes else None
    rows = [(lack.what, lack.fix or DASH) for lack in plan.missing]
    return Section(
        "Missing on this machine", notes, grids=(grid(("what", "command"), rows, left=(0, 1)),)
    )


def _span(pair: IntRange) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} to {pair[1]:,}"


def _duration(pair: Range) -> str:
    ends = [
        format.seconds(value) if value < 3600 * 100 else f"{value / 3600:,.0f} h" for value in pair
    ]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
