"""A plan for people (tables on the terminal, plan.md) and for programs (plan.json)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from souping.core.files import nearby, write_atomically
from souping.core.types import Json, LateError
from souping.merge.plan import human
from souping.pipeline.execute import check_settings
from souping.pipeline.settings import RunSettings
from souping.plan.plan import FETCH, READ, Pair, Plan, PlannedStage, has_report, power, seconds, total_seconds
from souping.plan.planner import make
from souping.report import format
from souping.report.files import as_json, selection_dict
from souping.report.tables import Section, TableGrid, grid
from souping.report.terminal import sheet_markdown, show_sheet


def plan(run: RunSettings) -> None:
    """Print and save the plan of a run, `plan.json` and `plan.md` in its directory.

    Raises:
        LateError: the run cannot go on anywhere as it is configured; the plan is saved all the same.
    """
    if run.benchmark.banner:
        print(run.benchmark.banner, flush=True)
    check_settings(run)
    whole = make(run)
    parts = sections(whole)
    write_atomically(run.run_dir / "plan.json", as_json(as_dict(whole)).encode())
    write_atomically(run.run_dir / "plan.md", sheet_markdown(f"Plan of {run.name}", parts).encode())
    show_sheet(parts)
    print(f"saved as plan.md and plan.json in {nearby(run.run_dir)}")
    if not whole.reasons:
        print("This run can start: repeat the command without plan=true.")
        return
    first = (whole.faults or whole.reasons)[0]
    more = f" (and {len(whole.reasons) - 1} more, see above)" if len(whole.reasons) > 1 else ""
    verdict = f"this run cannot start here: {first}{more}"
    if whole.faults:
        raise LateError(verdict)
    print(verdict)


def as_dict(plan: Plan) -> dict[str, Json]:
    """Content of plan.json."""
    shown, choice = power(plan), plan.choice
    selection = selection_dict(choice.selection, choice.scores) if choice.selection else None
    return {
        "experiment": plan.run.name,
        "can_go_on": not plan.reasons,
        "reasons": list(plan.reasons),
        "notes": list(plan.notes),
        "machine": asdict(plan.machine),
        "models": [asdict(model) for model in plan.models],
        "selection": {
            "basis": choice.basis,
            "sizes": list(choice.sizes),
            "selection": selection,
            "steady": choice.steady,
        },
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
    made = [
        _selection(plan), work_section(plan), time_section(plan), _report(plan), _models(plan), _space(plan),
        _missing(plan),
    ]  # fmt: skip
    return [section for section in made if section is not None]


def _selection(plan: Plan) -> Section:
    choice, selector = plan.choice, plan.run.selector.label
    selection = choice.selection
    if selection is None:
        parts = [choice.trouble, f"{selector} picks from {choice.basis}" if choice.basis else ""]
        sizes = f": {_span((choice.sizes[0], choice.sizes[-1]))} ingredients" if choice.sizes else ""
        return Section("Selection", (f"{'; '.join(filter(None, parts))}{sizes}.",))
    lines = [f"{selector} picks {format.in_words(selection.ingredients)}, from {choice.basis}."]
    if selection.threshold is not None:
        lines.append(
            f"Low-correlation categories ({selection.metric}, threshold {selection.threshold:g}): "
            f"{format.in_words(selection.low_correlation)}."
        )
    if choice.steady is not None:
        low, high = choice.steady
        lines.append(f"Every threshold from {low:g} to {high:g} gives the same ingredients.")
    experts = list(selection.experts.items())
    grids = (grid(("category", "expert"), experts, left=(0, 1)),) if experts else ()
    return Section("Selection", (*lines, *selection.notes), grids=grids)


def work_section(plan: Plan) -> Section | None:
    """Evaluations of each stage: in total, stored by then, and to do."""
    if not plan.stages:
        return None
    rows = [_stage(stage) for stage in plan.stages]
    asked, todo = _sum(plan.stages, "asked"), _sum(plan.stages, "todo")
    totals = (_span(asked), _span(_stored(asked, todo)), _span(todo)) if plan.folds else (format.DASH,) * 3
    rows.append(("total", "", "", *totals))
    made = grid(("stage", "models", "items each", "evaluations", "stored by then", "to do"), rows)
    table = TableGrid(made.header, made.rows, frozenset({len(rows) - 1}), made.left)
    return Section("Work", tuple(_work_lines(plan)), grids=(table,))


def _work_lines(plan: Plan) -> list[str]:
    folds = ", ".join(f"{fold} {len(items):,}" for fold, items in plan.folds.items() if items)
    lines = [f"Items: {folds}." if folds else "The items cannot be counted here: see what is missing."]
    if plan.outlined:
        lines.append("The items cannot be read here: their numbers are the benchmark's published sizes.")
        items = [item for fold in plan.folds.values() for item in fold]
        if len({item.group for item in items}) == len(items):
            lines.append("Every item counts as its own group: if the data groups them, the report shows less.")
    in_parts = [stage for stage in plan.stages if stage.in_parts]
    if len(plan.choice.sizes) > 1:
        lines.append("The number of ingredients is not known yet, so least and most are given.")
    if in_parts:
        lines.append("The search evaluates most soups on some of the items; its row counts whole folds.")
    if any(stage.asked[0] < stage.asked[1] for stage in in_parts):
        lines.append(
            "The first figure of the search is expected, the second is hardly ever exceeded: in tests, most searches "
            "took between two thirds of the first and one and a half times as much."
        )
    return lines


def _stage(stage: PlannedStage) -> tuple[str, ...]:
    models = f"{_span(stage.models)} folds" if stage.in_parts else _span(stage.models)
    if not stage.items:
        return (stage.name, models, *(format.DASH,) * 4)
    stored = _span(_stored(stage.asked, stage.todo))
    return stage.name, models, f"{stage.items:,}", _span(stage.asked), stored, _span(stage.todo)


def _sum(stages: Sequence[PlannedStage], key: Literal["asked", "todo"]) -> Pair:
    pairs = [stage.asked if key == "asked" else stage.todo for stage in stages]
    return sum(least for least, _ in pairs), sum(most for _, most in pairs)


def _stored(asked: Pair, todo: Pair) -> Pair:
    ends = sorted((asked[0] - todo[0], asked[1] - todo[1]))
    return ends[0], ends[1]


def time_section(plan: Plan) -> Section | None:
    """How long the run takes, and at which rates."""
    times = seconds(plan)
    if times is None:
        line = "Not known: neither items nor a rate are available; set one with throughput=ITEMS_PER_SECOND."
        return Section("Time", (line,)) if plan.stages else None
    rows = [(what, _duration(*pair)) for what, pair in times.items() if pair[1] > 0]
    rows.append(("total", _duration(*total_seconds(times))))
    lines = [f"{name or 'The benchmark'}: {speed.reason}." for name, speed in plan.speeds.items()]
    lines.append(
        f"Assumed: weights are read at {READ / 1e9:g} GB/s for each soup, the Hub sends {FETCH / 1e6:g} MB/s. "
        "Loading the first model and starting servers come on top."
    )
    if not plan.folds:
        lines.append("The time of the evaluations is not known: their items cannot be counted here.")
    return Section("Time", tuple(lines), grids=(grid(("what", "time"), rows),))


def _report(plan: Plan) -> Section | None:
    if not has_report(plan):
        return None
    shown = power(plan)
    later = "Known after selection, from the candidates' answers on the select fold."
    return Section("What the report can show", (f"{shown.sentence()}." if shown else later,))


def _models(plan: Plan) -> Section:
    bases = {"name": "a guess by its name", "unknown": ""}
    rows = [
        (
            model.name,
            human(model.nbytes) if model.nbytes else "unknown",
            bases.get(model.basis, model.basis),
            human(model.download) if model.download else "here" if model.basis == "headers" else "unknown",
        )
        for model in plan.models
    ]
    return Section("Candidates", grids=(grid(("candidate", "weights", "known from", "to fetch"), rows, left=(0, 2)),))


def _space(plan: Plan) -> Section:
    machine = plan.machine
    gpus = ", ".join(f"{gpu.name} {human(gpu.total)}" for gpu in machine.gpus) or "no GPU"
    hardware = f"This machine: {machine.cores} cores, {human(machine.memory)} of memory, {gpus}."
    rows = [
        (
            one.where,
            human(one.need),
            human(one.have),
            "fits if others make room" if one.tight else "fits" if one.fits else "too small",
            ", ".join(one.parts),
        )
        for one in plan.requirements
    ]
    if not rows:
        return Section("Space", (hardware, "What the run needs is not known: no candidate's size is."))
    made = grid(("where", "needed", "available", "verdict", "made of"), rows, left=(0, 3, 4))
    small = frozenset(place for place, one in enumerate(plan.requirements) if not one.fits)
    return Section("Space", (hardware,), grids=(TableGrid(made.header, made.rows, small, made.left),))


def _missing(plan: Plan) -> Section | None:
    notes = tuple(plan.notes)
    if not plan.missing:
        return Section("Notes", notes) if notes else None
    rows = [(one.what, one.fix or format.DASH) for one in plan.missing]
    return Section("Missing on this machine", notes, grids=(grid(("what", "command"), rows, left=(0, 1)),))


def _span(pair: Pair) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} to {pair[1]:,}"


def _duration(least: float, most: float) -> str:
    ends = [format.seconds(value) if value < 3600 * 100 else f"{value / 3600:,.0f} h" for value in (least, most)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
