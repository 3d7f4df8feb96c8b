"""Rehearsal: the plan's checks, then one candidate answers a few items a category before a night on GPUs.

Nothing is kept of it but its page: neither an answer, nor a score, nor a speed enters the store.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from souping.core.files import nearby, put
from souping.core.types import Fold, Item, Record, UserError
from souping.evaluate.folds import first_items
from souping.evaluate.scoring.own import grades
from souping.pipeline.executors import batches_of, records_of
from souping.pipeline.run import check_settings
from souping.pipeline.samples import sample_of
from souping.pipeline.settings import RunSettings
from souping.pipeline.store import Store
from souping.planning.plan import Plan, Speed, seconds
from souping.planning.planner import make
from souping.planning.sheet import as_dict, time_section, work_section
from souping.planning.workload import open_what_is_here
from souping.report import format
from souping.report.files import as_json
from souping.report.tables import Section, grid
from souping.report.terminal import output_console, show_sheet

if TYPE_CHECKING:
    from rich.console import Console

ITEMS = 5
"""Items of each category that are asked."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Answers of one candidate: items with their records, seconds to load the model and to answer."""

    candidate: str
    fold: Fold
    items: tuple[Item, ...]
    records: tuple[Record, ...]
    loading: float
    answering: float

    @property
    def rate(self) -> float:
        """Items a second, once the model is loaded."""
        return len(self.items) / max(self.answering, 1e-9)


def check_run(run: RunSettings) -> None:
    """Check a run as its plan does, rehearse it, say what the whole would take, and save `check.json`.

    Raises:
        UserError: the run cannot go on here, or its items cannot be asked.
    """
    console = output_console(120)
    if run.benchmark.opening:
        print(run.benchmark.opening, flush=True)
    check_settings(run)
    if run.selects_from_table:
        raise UserError("check rehearses answers, and stop_after=select with published scores asks none: use plan=true")
    whole = make(run)
    for note in whole.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if whole.reasons:
        more = "".join(f"\nand: {reason}" for reason in whole.reasons[1:3])
        raise UserError(f"this run cannot go on here: {whole.reasons[0]}{more}")
    print("the plan's checks pass: settings, items, models, room and packages (plan=true shows them)", flush=True)
    rehearsal = rehearse(whole)
    show(console, whole, rehearsal)


def rehearse(whole: Plan) -> Rehearsal:
    """The first candidate answers a few items of each category, none of the report fold."""
    run = whole.run.with_items()
    fold: Fold = "search" if run.scores.published else "select"
    items = first_items(whole.folds[fold], ITEMS)
    with ExitStack() as parts:
        parts.callback(run.evaluator.close)
        parts.callback(run.merge.close)
        store = parts.enter_context(Store(Path(":memory:")))
        pool = open_what_is_here(run, whole.models, store, [(run.evaluator, items)]).opened
        if pool is None:
            raise UserError(f"the candidates are not here yet: {whole.models[0].name} has to be fetched")
        parts.callback(pool.close)
        name = pool.names[0]
        evaluator = pool.bound(run.evaluator)
        if words := evaluator.opening(pool.pool.home, items):
            print(words, flush=True)
        began = time.monotonic()
        model = pool.serving(evaluator)(pool.recipe({name: 1.0}))
        if evaluator.host is not None:
            evaluator.evaluate(model, items[:1])  # engines and servers start, for minutes, when they are first asked
        loaded = time.monotonic()
        blocks = [(block, evaluator.evaluate(model, block)) for block in batches_of(evaluator, items)]
        done = time.monotonic()
    answers = {r.item: r for block, given in blocks for r in records_of(evaluator, block, given)}
    records = _graded(items, [answers[item.id] for item in items])
    return Rehearsal(
        candidate=name,
        fold=fold,
        items=items,
        records=tuple(records),
        loading=loaded - began,
        answering=done - loaded,
    )


def _graded(items: Sequence[Item], records: Sequence[Record]) -> list[Record]:
    """Records with the scores of scorers of the user's, which the evaluator leaves to whoever keeps a store."""
    waiting = [number for number, record in enumerate(records) if math.isnan(record.score)]
    scores, error = grades([items[n] for n in waiting], [records[n].output for n in waiting], {})
    if error is not None:
        raise error
    graded = dict(zip(waiting, scores, strict=True))
    return [replace(r, score=graded[n]) if n in graded else r for n, r in enumerate(records)]


def show(console: Console, whole: Plan, rehearsal: Rehearsal) -> None:
    """Print one item of each category whole, all of them in a table, and the time of the run; save check.json."""
    from souping.report.terminal import show_sample

    samples = [
        sample_of(number, rehearsal.fold, item, rehearsal.candidate, record)
        for number, (item, record) in enumerate(zip(rehearsal.items, rehearsal.records, strict=True))
    ]
    print()
    seen: set[str] = set()
    for item, sample in zip(rehearsal.items, samples, strict=True):
        if item.category not in seen:
            seen.add(item.category)
            show_sample(console, sample, [rehearsal.candidate])
    rate = Speed(
        items_per_second=rehearsal.rate,
        basis="measured",
        reason=(
            f"{rehearsal.rate:.3g} items/s, as {rehearsal.candidate} answered {len(rehearsal.items)} items just now "
            f"(loading took {format.seconds(rehearsal.loading)}); larger batches are faster"
        ),
    )
    timed = replace(whole, speeds={**whole.speeds, "": rate})
    show_sheet([s for s in (_answers(rehearsal), work_section(timed), time_section(timed)) if s is not None])
    table = {**as_dict(timed), "candidate": rehearsal.candidate, "fold": rehearsal.fold, "samples": samples}
    put(whole.run.run_dir / "check.json", as_json({**table, "items_per_second": rehearsal.rate}).encode())
    print(f"saved as check.json in {nearby(whole.run.run_dir)}")
    print(_verdict(timed, rehearsal))


def _verdict(timed: Plan, rehearsal: Rehearsal) -> str:
    times = seconds(timed)
    total = sum(most for _, most in times.values()) if times else 0.0
    cut = sum(record.outcome != "finished" for record in rehearsal.records)
    hint = f"{cut} of {len(rehearsal.records)} answers were cut or are missing: look at them first\n" if cut else ""
    return f"{hint}this run can go on, in at most about {format.seconds(total)}: leave check out"


def _answers(rehearsal: Rehearsal) -> Section:
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
        for item, record in zip(rehearsal.items, rehearsal.records, strict=True)
    ]
    header = ("item", "category", "score %", "prompt tokens", "answer tokens", "ended", "answer")
    mean = fmean(record.score for record in rehearsal.records)
    cut = sum(record.outcome == "truncated" for record in rehearsal.records)
    missing = sum(record.outcome == "unanswered" for record in rehearsal.records)
    line = (
        f"{rehearsal.candidate} scores {format.percent(mean)} % of {len(rows)} items of the {rehearsal.fold} fold; "
        f"{cut} answers were cut off, {missing} are missing."
    )
    return Section("Rehearsal", (line,), grids=(grid(header, rows, left=(0, 1, 5, 6)),))
