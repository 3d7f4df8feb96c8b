"""A plan for people (tables on the terminal, plan.md) and for programs (plan.json), and `check=true`.

`check=true` makes the plan, then one candidate answers a few items per category before a night on GPUs. Only check.json
is kept: no answer, score or speed enters the store.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from souping.core.files import nearby, write_atomically
from souping.core.text import safe
from souping.core.types import Fold, Item, Json, LateError, Record, UserError
from souping.evaluate.folds import first_items
from souping.merge.plan import human
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.execute import check_settings, sample
from souping.pipeline.settings import RunSettings
from souping.pipeline.store import MEMORY, Store
from souping.plan import FETCH, READ, Pair, Plan, PlannedStage, Range, Speed
from souping.plan.planner import make, open_unhashed
from souping.report import format
from souping.report.files import as_json, selection_dict
from souping.report.render import output_console, sheet_markdown, show_sample, show_sheet
from souping.report.tables import Section, TableGrid, grid

ITEMS = 5
"""Items of each category that a check answers."""


def plan(run: RunSettings) -> None:
    """Print and save the plan of a run, `plan.json` and `plan.md` in its directory.

    Raises:
        LateError: the run cannot go on anywhere as it is configured; the plan is saved all the same.
    """
    whole = _planned(run)
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


def _planned(run: RunSettings) -> Plan:
    if run.benchmark.banner:
        print(run.benchmark.banner, flush=True)
    check_settings(run)
    return make(run)


def as_dict(plan: Plan) -> dict[str, Json]:
    """Content of plan.json."""
    shown = plan.power()
    selection = selection_dict(plan.selection, plan.scores) if plan.selection else None
    return {
        "experiment": plan.run.name,
        "can_go_on": not plan.reasons,
        "reasons": list(plan.reasons),
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
        "power": asdict(shown) if shown else None,
        "rooms": [requirement.as_dict() for requirement in plan.requirements],
        "missing": [asdict(one) for one in plan.missing],
    }


def sections(plan: Plan) -> list[Section]:
    """The plan's sections in reading order."""
    made = (_selection(plan), _work(plan), _time(plan), _report(plan), _models(plan), _space(plan), _missing(plan))
    return [section for section in made if section is not None]


def _selection(plan: Plan) -> Section:
    selection, label = plan.selection, plan.run.selector.label
    if selection is None:
        sizes = f": {_span((min(plan.sizes), max(plan.sizes)))} ingredients" if plan.sizes else ""
        return Section("Selection", (f"{label} picks from {plan.basis or 'scores that cannot be had'}{sizes}.",))
    lines = [f"{label} picks {format.in_words(selection.ingredients)}, from {plan.basis}."]
    if selection.threshold is not None:
        lines.append(
            f"Low-correlation categories ({selection.metric}, threshold {selection.threshold:g}): "
            f"{format.in_words(selection.low_correlation)}."
        )
    experts = list(selection.experts.items())
    grids = (grid(("category", "expert"), experts, left=(0, 1)),) if experts else ()
    return Section("Selection", (*lines, *selection.notes), grids=grids)


def _work(plan: Plan) -> Section | None:
    """Evaluations of each stage: in total, stored by then, and to do."""
    if not plan.stages:
        return None
    rows = [_stage(stage) for stage in plan.stages]
    asked, todo = plan.sum("asked"), plan.sum("todo")
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
    if len(plan.sizes) > 1:
        lines.append("The number of ingredients is not known yet, so least and most are given.")
    if any(stage.in_parts for stage in plan.stages):
        lines.append(
            "The search evaluates most soups on some of the items; its row counts whole folds. Of two figures the "
            "first is expected, the second hardly ever exceeded."
        )
    return lines


def _stage(stage: PlannedStage) -> tuple[str, ...]:
    models = f"{_span(stage.models)} folds" if stage.in_parts else _span(stage.models)
    if not stage.items:
        return (stage.name, models, *(format.DASH,) * 4)
    stored = _span(_stored(stage.asked, stage.todo))
    return stage.name, models, f"{stage.items:,}", _span(stage.asked), stored, _span(stage.todo)


def _stored(asked: Pair, todo: Pair) -> Pair:
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
        f"Assumed: weights are read at {READ / 1e9:g} GB/s for each soup, the Hub sends {FETCH / 1e6:g} MB/s. "
        "Loading the first model and starting servers come on top."
    )
    if not plan.folds:
        lines.append("The time of the evaluations is not known: their items cannot be counted here.")
    return Section("Time", tuple(lines), grids=(grid(("what", "time"), rows),))


def _report(plan: Plan) -> Section | None:
    if not plan.has_report:
        return None
    shown = plan.power()
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
    if not plan.requirements:
        return Section("Space", (hardware, "What the run needs is not known: no candidate's size is."))
    rows = [
        (one.where, human(one.need), human(one.have), "fits" if one.fits else "too small", ", ".join(one.parts))
        for one in plan.requirements
    ]
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


def _total(ranges: Iterable[Range]) -> Range:
    least, most = zip(*ranges, strict=True)
    return sum(least), sum(most)


def _duration(pair: Range) -> str:
    ends = [format.seconds(value) if value < 3600 * 100 else f"{value / 3600:,.0f} h" for value in pair]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


# ------------------------------------------------------------ check=true


def check_run(run: RunSettings) -> None:
    """Check a run as its plan does, rehearse it, say how long the whole would take, and save `check.json`.

    Raises:
        UserError: the run cannot start here, or its items cannot be answered.
    """
    if run.selects_from_table:
        raise UserError(
            "check=true evaluates a few items; stop_after=select with published scores has none: use plan=true"
        )
    whole = _planned(run)
    for note in whole.notes:
        print(f"note: {safe(note)}")
    if whole.reasons:
        more = "".join(f"\nand: {reason}" for reason in whole.reasons[1:3])
        raise UserError(f"this run cannot start here: {whole.reasons[0]}{more}")
    print("settings, items, models, space and packages are in order (plan=true shows them)", flush=True)
    fold: Fold = "search" if run.scores.published else "select"
    items = first_items(whole.folds[fold], ITEMS)
    records, prompts, speed = rehearse(whole, items)
    timed = replace(whole, speeds={**whole.speeds, "": speed})
    _show(timed, fold, items, records, prompts)


def rehearse(whole: Plan, items: Sequence[Item]) -> tuple[list[Record], Mapping[str, str], Speed]:
    """The first candidate's answers to a few items, the prompts by their keys, and how fast the answers came once the
    model was loaded."""
    run = whole.run.with_items()
    if absent := [model.name for model in whole.models if model.download]:
        raise UserError(f"the candidates are not here yet: {absent[0]} has to be downloaded")
    with ExitStack() as parts:
        for part in run.open_parts:
            parts.callback(part.close)
        store = parts.enter_context(Store(Path(MEMORY)))
        pool = open_unhashed(run, store)
        parts.callback(pool.close)
        evaluator = pool.bound(run.evaluator)
        if banner := evaluator.banner(pool.pool.architecture_folder, items):
            print(banner, flush=True)
        recipe, began = pool.recipe({pool.names[0]: 1.0}), time.monotonic()
        model = pool.serving(evaluator)(recipe)
        if evaluator.host is not None:
            evaluator.evaluate(model, items[:1])  # engines and servers take minutes to start at their first item
        loaded = time.monotonic()
        Evaluation(store, evaluator, lambda soup: model, pool.eos_token_ids, lambda count: None).scores(recipe, items)
        rate = len(items) / max(time.monotonic() - loaded, 1e-9)
        stored = store.load(recipe.fingerprint, evaluator.fingerprint)
        records = [record for item in items if (record := stored.first(item)) is not None]
        prompts = store.prompts({record.prompt_key for record in records})
    reason = (
        f"{rate:.3g} items/s, measured just now on {len(items)} items with {pool.names[0]} "
        f"(loading took {format.seconds(loaded - began)}); larger batches are faster"
    )
    return records, prompts, Speed(items_per_second=rate, basis="measured", reason=reason)


def _show(
    timed: Plan, fold: Fold, items: Sequence[Item], records: Sequence[Record], prompts: Mapping[str, str]
) -> None:
    """Print one item of each category in full, all of them in a table, and the time of the run; save check.json."""
    name = timed.run.pool.resolve()[0].name
    samples, firsts = list[dict[str, Any]](), dict[str, dict[str, Any]]()
    for place, (item, record) in enumerate(zip(items, records, strict=True)):
        line = sample(place, fold, item, {name: [record]}, {name: record.score}, prompts)
        line["models"][name] |= {"prompt_tokens": record.prompt_tokens, "tokens": len(record.tokens)}
        samples.append(line)
        firsts.setdefault(item.category, line)
    print()
    for line in firsts.values():
        show_sample(output_console(120), line, [name])
    show_sheet([s for s in (_answers(name, fold, items, records), _work(timed), _time(timed)) if s is not None])
    table = {**as_dict(timed), "candidate": name, "fold": fold, "samples": samples}
    table["items_per_second"] = timed.speeds[""].items_per_second
    write_atomically(timed.run.run_dir / "check.json", as_json(table).encode())
    print(f"saved as check.json in {nearby(timed.run.run_dir)}")
    if cut := sum(record.outcome != "finished" for record in records):
        print(f"{cut} of {len(records)} answers were cut off or are missing: look at them first")
    most = _total((timed.seconds() or {"": (0.0, 0.0)}).values())[1]
    print(f"This run can start and takes at most about {format.seconds(most)}: repeat the command without `check`.")


def _answers(name: str, fold: Fold, items: Sequence[Item], records: Sequence[Record]) -> Section:
    rows: list[tuple[str, ...]] = [
        (
            format.short(item.id),
            format.clean(item.category),
            format.percent(record.score, 0),
            format.count(record.prompt_tokens) if record.prompt_tokens else format.DASH,
            format.count(len(record.tokens)) if record.tokens else format.DASH,
            record.outcome,
            format.short(record.output or record.reason, 40),
        )
        for item, record in zip(items, records, strict=True)
    ]
    header = ("item", "category", "score %", "prompt tokens", "answer tokens", "ended", "answer")
    mean = format.percent(fmean(record.score for record in records))
    line = f"{name} scores {mean} % on {len(rows)} items of the {fold} fold."
    return Section("Rehearsal", (line,), grids=(grid(header, rows, left=(0, 1, 5, 6)),))
