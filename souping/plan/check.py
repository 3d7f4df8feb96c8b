"""`check=true`: the plan's checks, then one candidate answers a few items per category before a night on GPUs.

Only check.json is kept: no answer, score or speed enters the store.
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

from souping.core.files import nearby, write_atomically
from souping.core.types import Fold, Item, Record, UserError
from souping.evaluate.folds import first_items
from souping.evaluate.scoring.own import grades
from souping.pipeline.evaluation import batches_of, records_of
from souping.pipeline.execute import check_settings
from souping.pipeline.results import sample_of
from souping.pipeline.settings import RunSettings
from souping.pipeline.store import Store
from souping.plan.plan import Plan, Speed, seconds, total_seconds
from souping.plan.planner import make, open_unhashed
from souping.plan.summary import as_dict, time_section, work_section
from souping.report import format
from souping.report.files import as_json
from souping.report.tables import Section, grid
from souping.report.terminal import output_console, show_sheet

if TYPE_CHECKING:
    from rich.console import Console

ITEMS = 5
"""Items of each category that are answered."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Answers of one candidate to a few items, and how fast they came once the model was loaded."""

    candidate: str
    fold: Fold
    items: tuple[Item, ...]
    records: tuple[Record, ...]
    speed: Speed


def check_run(run: RunSettings) -> None:
    """Check a run as its plan does, rehearse it, say how long the whole would take, and save `check.json`.

    Raises:
        UserError: the run cannot start here, or its items cannot be answered.
    """
    console = output_console(120)
    if run.benchmark.banner:
        print(run.benchmark.banner, flush=True)
    check_settings(run)
    if run.selects_from_table:
        raise UserError(
            "check=true evaluates a few items; stop_after=select with published scores has none: use plan=true"
        )
    whole = make(run)
    for note in whole.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if whole.reasons:
        more = "".join(f"\nand: {reason}" for reason in whole.reasons[1:3])
        raise UserError(f"this run cannot start here: {whole.reasons[0]}{more}")
    print("settings, items, models, space and packages are in order (plan=true shows them)", flush=True)
    _show(console, whole, rehearse(whole))


def rehearse(whole: Plan) -> Rehearsal:
    """The first candidate answers a few items of each category, none of the report fold."""
    run = whole.run.with_items()
    fold: Fold = "search" if run.scores.published else "select"
    items = first_items(whole.folds[fold], ITEMS)
    with ExitStack() as parts:
        for part in run.open_parts:
            parts.callback(part.close)
        store = parts.enter_context(Store(Path(":memory:")))
        if absent := [model.name for model in whole.models if model.download]:
            raise UserError(f"the candidates are not here yet: {absent[0]} has to be downloaded")
        pool = open_unhashed(run, store)
        parts.callback(pool.close)
        evaluator = pool.bound(run.evaluator)
        if banner := evaluator.banner(pool.pool.architecture_folder, items):
            print(banner, flush=True)
        began = time.monotonic()
        model = pool.serving(evaluator)(pool.recipe({pool.names[0]: 1.0}))
        if evaluator.host is not None:
            evaluator.evaluate(model, items[:1])  # engines and servers take minutes to start at their first item
        loaded = time.monotonic()
        blocks = [(block, evaluator.evaluate(model, block)) for block in batches_of(evaluator, items)]
        done = time.monotonic()
    answers = {r.item: r for block, given in blocks for r in records_of(evaluator, block, given)}
    rate = len(items) / max(done - loaded, 1e-9)
    reason = (
        f"{rate:.3g} items/s, measured just now on {len(items)} items with {pool.names[0]} "
        f"(loading took {format.seconds(loaded - began)}); larger batches are faster"
    )
    return Rehearsal(
        candidate=pool.names[0],
        fold=fold,
        items=items,
        records=tuple(_graded(items, [answers[item.id] for item in items])),
        speed=Speed(items_per_second=rate, basis="measured", reason=reason),
    )


def _graded(items: Sequence[Item], records: Sequence[Record]) -> list[Record]:
    """Records with the scores of the user's scorers, which a run adds when it stores an answer."""
    waiting = [number for number, record in enumerate(records) if math.isnan(record.score)]
    scores, error = grades([items[n] for n in waiting], [records[n].output for n in waiting], {})
    if error is not None:
        raise error
    graded = dict(zip(waiting, scores, strict=True))
    return [replace(r, score=graded[n]) if n in graded else r for n, r in enumerate(records)]


def _show(console: Console, whole: Plan, rehearsal: Rehearsal) -> None:
    """Print one item of each category in full, all of them in a table, and the time of the run; save check.json."""
    from souping.report.terminal import show_sample

    samples = [
        sample_of(number, rehearsal.fold, item, rehearsal.candidate, record)
        for number, (item, record) in enumerate(zip(rehearsal.items, rehearsal.records, strict=True))
    ]
    print()
    firsts = {item.category: sample for item, sample in zip(reversed(rehearsal.items), reversed(samples), strict=True)}
    for sample in reversed(firsts.values()):
        show_sample(console, sample, [rehearsal.candidate])
    timed = replace(whole, speeds={**whole.speeds, "": rehearsal.speed})
    show_sheet([s for s in (_answers(rehearsal), work_section(timed), time_section(timed)) if s is not None])
    table = {**as_dict(timed), "candidate": rehearsal.candidate, "fold": rehearsal.fold, "samples": samples}
    table["items_per_second"] = rehearsal.speed.items_per_second
    write_atomically(whole.run.run_dir / "check.json", as_json(table).encode())
    print(f"saved as check.json in {nearby(whole.run.run_dir)}")
    if cut := sum(record.outcome != "finished" for record in rehearsal.records):
        print(f"{cut} of {len(rehearsal.records)} answers were cut off or are missing: look at them first")
    most = total_seconds(seconds(timed) or {})[1]
    print(f"This run can start and takes at most about {format.seconds(most)}: repeat the command without `check`.")


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
    cut, missing = (sum(r.outcome == how for r in rehearsal.records) for how in ("truncated", "unanswered"))
    line = (
        f"{rehearsal.candidate} scores {format.percent(mean)} % on {len(rows)} items of the {rehearsal.fold} fold; "
        f"{cut} answers were cut off, {missing} are missing."
    )
    return Section("Rehearsal", (line,), grids=(grid(header, rows, left=(0, 1, 5, 6)),))
