"""Plan as sections for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from souping.core.types import Json
from souping.merge.plan import human
from souping.planning.plan import FETCH, POUR, has_report, power, seconds
from souping.planning.workload import PlannedStage
from souping.report import format
from souping.report.tables import Section, TableGrid, grid

if TYPE_CHECKING:
    from souping.planning.plan import Plan


def as_dict(plan: Plan) -> dict[str, Json]:
    """Content of plan.json."""
    shown = power(plan)
    return {
        "experiment": plan.run.name,
        "can_go_on": not plan.reasons,
        "reasons": list(plan.reasons),
        "notes": list(plan.notes),
        "machine": asdict(plan.machine),
        "models": [asdict(model) for model in plan.models],
        "selection": plan.choice.as_dict(),
        "outlined": plan.outlined,
        "folds": {fold: len(items) for fold, items in plan.folds.items()},
        "stages": [asdict(stage) for stage in plan.stages],
        "evaluations": {"asked": _sum(plan.stages, "asked"), "todo": _sum(plan.stages, "todo")},
        "speeds": {name or "benchmark": asdict(speed) for name, speed in plan.speeds.items()},
        "seconds": seconds(plan),
        "power": asdict(shown) if shown else None,
        "rooms": [requirement.as_dict() for requirement in plan.requirements],
        "missing": [asdict(one) for one in plan.missing],
    }


def sections(plan: Plan) -> list[Section]:
    """The plan's sections in reading order."""
    built = [
        _selection(plan),
        work_section(plan),
        time_section(plan),
        _report(plan),
        _models(plan),
        _room(plan),
        _missing(plan),
    ]
    return [section for section in built if section is not None]


def _selection(plan: Plan) -> Section:
    choice, selector = plan.choice, plan.run.selector.label
    if choice.selection is None:
        known = "; ".join(
            t for t in (choice.trouble, f"{selector} picks from {choice.basis}" if choice.basis else "") if t
        )
        sizes = f": {_span(choice.sizes[0], choice.sizes[-1])} ingredients" if choice.sizes else ""
        return Section("Selection", (f"{known}{sizes}.",))
    selection = choice.selection
    lines = [f"{selector} picks {format.in_words(selection.ingredients)}, from {choice.basis}."]
    if selection.threshold is not None:
        lines.append(
            f"Low-correlation categories ({selection.metric}, threshold {selection.threshold:g}): "
            f"{format.in_words(selection.low_correlation)}."
        )
    if choice.steady is not None:
        low, high = choice.steady
        lines.append(f"The same ingredients come out for every threshold from {low:g} to {high:g}.")
    lines += selection.notes
    experts = [(category, name) for category, name in selection.experts.items()]
    grids = (grid(("category", "expert"), experts, left=(0, 1)),) if experts else ()
    return Section("Selection", tuple(lines), grids=grids)


def work_section(plan: Plan) -> Section | None:
    """Evaluations of each stage: in all, known by then, to do."""
    if not plan.stages:
        return None
    rows = [_stage(stage) for stage in plan.stages]
    asked, todo = _sum(plan.stages, "asked"), _sum(plan.stages, "todo")
    totals = (_span(*asked), _span(*_stored(plan.stages)), _span(*todo)) if plan.folds else (format.DASH,) * 3
    rows.append(("all", "", "", *totals))
    header = ("stage", "models", "items each", "evaluations", "known by then", "to do")
    made = grid(header, rows)
    folds = ", ".join(f"{fold} {len(items):,}" for fold, items in plan.folds.items() if items)
    lines = [f"Items: {folds}." if folds else "The items cannot be counted here: see what is missing."]
    if plan.outlined:
        lines.append("The items cannot be read here: they are counted by the benchmark's published sizes, about right.")
        if len({item.group for fold in plan.folds.values() for item in fold}) == sum(map(len, plan.folds.values())):
            lines.append("Every item counts as its own group: if the data groups them, the report shows less.")
    if len(plan.choice.sizes) > 1:
        lines.append("The number of ingredients is open, so least and most are given.")
    if any(stage.in_parts for stage in plan.stages):
        lines.append("A search in parts evaluates most soups on some of the items; its row counts whole folds.")
        if any(stage.in_parts and stage.asked[0] < stage.asked[1] for stage in plan.stages):
            lines.append(
                "Its first figure is expected and the second is hardly ever exceeded: in tests, most searches took "
                "between two thirds of the first and one and a half times as much."
            )
    return Section(
        "Work", tuple(lines), grids=(TableGrid(made.header, made.rows, frozenset({len(rows) - 1}), made.left),)
    )


def _stage(stage: PlannedStage) -> tuple[str, ...]:
    stored = (stage.asked[0] - stage.todo[0], stage.asked[1] - stage.todo[1])
    return (
        stage.name,
        f"{_span(*stage.models)} folds" if stage.in_parts else _span(*stage.models),
        *(
            (f"{stage.items:,}", _span(*stage.asked), _span(min(stored), max(stored)), _span(*stage.todo))
            if stage.items
            else (format.DASH,) * 4
        ),
    )


def _sum(stages: Sequence[PlannedStage], key: Literal["asked", "todo"]) -> tuple[int, int]:
    pairs = [stage.asked if key == "asked" else stage.todo for stage in stages]
    return sum(least for least, _ in pairs), sum(most for _, most in pairs)


def _stored(stages: Sequence[PlannedStage]) -> tuple[int, int]:
    asked, todo = _sum(stages, "asked"), _sum(stages, "todo")
    return min(asked[0] - todo[0], asked[1] - todo[1]), max(asked[0] - todo[0], asked[1] - todo[1])


def time_section(plan: Plan) -> Section | None:
    """How long the run takes, and at which rates."""
    times = seconds(plan)
    if times is None:
        line = "Not known: neither the items nor a rate can be had here; state one with throughput=ITEMS_PER_SECOND."
        return Section("Time", (line,)) if plan.stages else None
    total = (sum(pair[0] for pair in times.values()), sum(pair[1] for pair in times.values()))
    rows = [(what, _hours(*pair)) for what, pair in times.items() if pair[1] > 0] + [("all", _hours(*total))]
    lines = [f"{name or 'The benchmark'}: {speed.reason}." for name, speed in plan.speeds.items()]
    lines.append(
        f"Assumed: weights are read at {POUR / 1e9:g} GB/s for each soup, the Hub sends {FETCH / 1e6:g} MB/s. "
        "Loading the first model and starting servers come on top."
    )
    if not plan.folds:
        lines.append("How long the evaluations take is not known: their items cannot be counted here.")
    return Section("Time", tuple(lines), grids=(grid(("what", "time"), rows),))


def _report(plan: Plan) -> Section | None:
    if not has_report(plan):
        return None
    shown = power(plan)
    line = (
        f"{shown.sentence()}." if shown else "Known after selection, from the candidates' answers on the select fold."
    )
    return Section("What the report can show", (line,))


def _models(plan: Plan) -> Section:
    rows = [
        (
            model.name,
            human(model.nbytes) if model.nbytes else "unknown",
            {"name": "a guess by its name", "unknown": ""}.get(model.basis, model.basis),
            human(model.download) if model.download else "here" if model.basis == "headers" else "unknown",
        )
        for model in plan.models
    ]
    return Section("Candidates", grids=(grid(("candidate", "weights", "known from", "to fetch"), rows, left=(0, 2)),))


def _room(plan: Plan) -> Section:
    words: Mapping[bool, str] = {True: "fits", False: "too small"}
    rows = [
        (
            requirement.where,
            human(requirement.need),
            human(requirement.have),
            "fits if others make room" if requirement.tight else words[requirement.fits],
            ", ".join(requirement.parts),
        )
        for requirement in plan.requirements
    ]
    if not rows:
        return Section("Room", (_hardware(plan), "What is needed is not known: no candidate's size is."))
    made = grid(("where", "needed", "there", "verdict", "made of"), rows, left=(0, 3, 4))
    small = frozenset(i for i, requirement in enumerate(plan.requirements) if not requirement.fits)
    return Section("Room", (_hardware(plan),), grids=(TableGrid(made.header, made.rows, small, made.left),))


def _hardware(plan: Plan) -> str:
    gpus = ", ".join(f"{gpu.name} {human(gpu.total)}" for gpu in plan.machine.gpus) or "no GPU"
    return f"This machine: {plan.machine.cores} cores, {human(plan.machine.memory)} of memory, {gpus}."


def _missing(plan: Plan) -> Section | None:
    notes = tuple(plan.notes)
    if not plan.missing:
        return Section("Notes", notes) if notes else None
    rows = [(one.what, one.mends or format.DASH) for one in plan.missing]
    return Section("Missing on this machine", notes, grids=(grid(("what", "command"), rows, left=(0, 1)),))


def _span(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _hours(least: float, most: float) -> str:
    a, b = _time_text(least), _time_text(most)
    return a if a == b else f"{a} to {b}"


def _time_text(value: float) -> str:
    return format.seconds(value) if value < 3600 * 100 else f"{value / 3600:,.0f} h"
