"""A plan for people, on the terminal and in plan.md: its sections."""

from __future__ import annotations

from itertools import chain

from souping.analysis.guards import planned
from souping.core.text import DASH, human
from souping.plan.plan_content import Plan, Range, total_range
from souping.plan.speed import HUB_SPEED, READ_SPEED, IntRange, PlannedStage
from souping.report import format
from souping.report.cells import Section, grid
from souping.report.tables import similarity
from souping.runs.verdict import power_in_words


def plan_sections(plan: Plan) -> list[Section]:
    """The plan's sections in reading order."""
    content = (
        _selection(plan),
        work_section(plan),
        time_section(plan),
        _report(plan),
        planned(plan.guards),
        _models(plan),
        similarity(plan.similarity),
        _space(plan),
        _missing(plan),
        plan.upload,
    )
    return [section for section in content if section is not None]


def _selection(plan: Plan) -> Section:
    """The ingredients and experts or, before these are known, the source of the scores and the possible numbers."""
    selection = plan.selection
    label = plan.run.selector.label
    if selection is None:
        line = f"{label} picks from {plan.basis or 'scores that cannot be had'}"
        if plan.sizes:
            line += f": {_span((min(plan.sizes), max(plan.sizes)))} ingredients"
        return Section("Selection", (f"{line}.",))
    lines = [f"{label} picks {format.in_words(selection.ingredients)}, from {plan.basis}."]
    if selection.threshold is not None:
        rule = f"{selection.metric}, threshold {selection.threshold:g}"
        low = format.in_words(selection.low_correlation)
        lines.append(f"Low-correlation categories ({rule}): {low}.")
    lines += selection.notes
    if not selection.experts:
        return Section("Selection", tuple(lines))
    experts = grid(("category", "expert"), selection.experts.items(), left=(0, 1))
    return Section("Selection", tuple(lines), grids=(experts,))


def work_section(plan: Plan) -> Section | None:
    """Evaluations of each step: in total, stored by then, and to do."""
    if not plan.stages:
        return None
    rows = [_stage(stage) for stage in plan.stages]
    asked = plan.sum("asked")
    todo = plan.sum("todo")
    # Without splits the number of items is not known.
    totals = [DASH] * 3
    if plan.splits:
        totals = [_span(asked), _span(_stored(asked, todo)), _span(todo)]
    rows.append(("total", "", "", *totals))
    header = ("step", "models", "items each", "evaluations", "stored by then", "to do")
    table = grid(header, rows, strong=[len(rows) - 1])
    return Section("Work", tuple(_work_lines(plan)), grids=(table,))


def _work_lines(plan: Plan) -> list[str]:
    """Sentences on the items, and on how the rows of stages are to be read."""
    splits = ", ".join(f"{split} {len(items):,}" for split, items in plan.splits.items() if items)
    lines = ["The items cannot be counted here: see what is missing."]
    if splits:
        lines = [f"Items: {splits}."]
    if plan.outlined:
        lines.append(
            "The items cannot be read here: their numbers are the benchmark's published sizes."
        )
        items = [*chain.from_iterable(plan.splits.values())]
        if len({item.group for item in items}) == len(items):
            lines.append(
                "Every item counts as its own group: if the data groups them, the report shows less."
            )
    if len(plan.sizes) > 1:
        lines.append("The number of ingredients is not known yet, so least and most are given.")
    if any(stage.in_parts for stage in plan.stages):
        lines.append(
            "The search evaluates soups on parts of the split: its row gives expected and most whole splits."
        )
    return lines


def _stage(stage: PlannedStage) -> tuple[str, ...]:
    """The row of a stage, with dashes where the number of items is not known."""
    models = _span(stage.models)
    if stage.in_parts:
        models += " splits"
    if not stage.items:
        return (stage.name, models, *(DASH,) * 4)
    stored = _span(_stored(stage.asked, stage.todo))
    return stage.name, models, f"{stage.items:,}", _span(stage.asked), stored, _span(stage.todo)


def _stored(asked: IntRange, todo: IntRange) -> IntRange:
    """(least, most) evaluations that are stored when a stage begins."""
    # Where more is requested, more may be to do, and less stored.
    ends = sorted((asked[0] - todo[0], asked[1] - todo[1]))
    return ends[0], ends[1]


def time_section(plan: Plan) -> Section | None:
    """How long the run takes, and at which rates."""
    times = plan.seconds()
    # A plan that has no stages, as for published scores, evaluates nothing.
    if times is None and not plan.stages:
        return None
    if times is None:
        line = "Not known: neither items nor a rate are available; set one with throughput=ITEMS_PER_SECOND."
        return Section("Time", (line,))
    rows = [(what, _duration(pair)) for what, pair in times.items() if pair[1] > 0]
    rows.append(("total", _duration(total_range(times.values()))))
    lines = [f"{name or 'The benchmark'}: {speed.reason}." for name, speed in plan.speeds.items()]
    lines.append(
        f"Assumed: weights are read at {READ_SPEED / 1e9:g} GB/s, the Hub sends {HUB_SPEED / 1e6:g} MB/s."
    )
    lines.append(
        "Not counted: loading the first model, and starting servers unless a check measured it."
    )
    if not plan.splits:
        lines.append(
            "The time of the evaluations is not known: their items cannot be counted here."
        )
    return Section("Time", tuple(lines), grids=(grid(("what", "time"), rows),))


def _report(plan: Plan) -> Section | None:
    """The power of the test, as far as it is known; None if nothing is tested or no formula holds."""
    if not plan.has_report or not plan.run.objective.linear:
        return None
    line = "Known after selection, from the candidates' answers on the select split."
    power = plan.power()
    if power is not None:
        line = f"{power_in_words(power, plan.run.evaluator.unit)}."
    return Section("What the report can show", (line,))


def _models(plan: Plan) -> Section:
    """Sizes of the candidates with their sources, and of the downloads."""
    bases = {"name": "a guess by its name", "unknown": ""}
    rows = []
    for model in plan.models:
        weights = human(model.nbytes) if model.nbytes else "unknown"
        download = "unknown"
        if model.download:
            download = human(model.download)
        elif model.basis == "headers":
            download = "here"
        rows.append((model.name, weights, bases.get(model.basis, model.basis), download))
    table = grid(("candidate", "weights", "known from", "to fetch"), rows, left=(0, 2))
    return Section("Candidates", grids=(table,))


def _space(plan: Plan) -> Section:
    """This machine, and each requirement beside what it has."""
    machine = plan.machine
    gpus = ", ".join(f"{gpu.name} {human(gpu.total)}" for gpu in machine.gpus) or "no GPU"
    hardware = f"This machine: {machine.cores} cores, {human(machine.memory)} of memory, {gpus}."
    if not plan.requirements:
        return Section(
            "Space", (hardware, "What the run needs is not known: no candidate's size is.")
        )
    rows = []
    too_small = []
    for number, requirement in enumerate(plan.requirements):
        verdict = "fits"
        if not requirement.fits:
            verdict = "too small"
            too_small.append(number)
        sizes = (human(requirement.need), human(requirement.have))
        rows.append((requirement.where, *sizes, verdict, ", ".join(requirement.parts)))
    header = ("where", "needed", "available", "verdict", "made of")
    table = grid(header, rows, left=(0, 3, 4), strong=too_small)
    return Section("Space", (hardware,), grids=(table,))


def _missing(plan: Plan) -> Section | None:
    """What is missing with the command that installs it, and the notes; None if there are neither."""
    notes = tuple(plan.notes)
    if plan.missing:
        rows = [(lack.what, lack.fix or DASH) for lack in plan.missing]
        table = grid(("what", "command"), rows, left=(0, 1))
        return Section("Missing on this machine", notes, grids=(table,))
    if notes:
        return Section("Notes", notes)
    return None


def _span(pair: IntRange) -> str:
    return _ends(f"{pair[0]:,}", f"{pair[1]:,}")


def _duration(pair: Range) -> str:
    return _ends(_hours(pair[0]), _hours(pair[1]))


def _hours(seconds: float) -> str:
    """A duration; from 100 hours on, in whole hours."""
    if seconds < 3600 * 100:
        return format.seconds_text(seconds)
    return f"{seconds / 3600:,.0f} h"


def _ends(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"
