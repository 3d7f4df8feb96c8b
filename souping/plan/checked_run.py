"""Check of a run (`souping check`): a few items are answered, scored and timed, and shown."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from souping.answers.evaluation import batches_of, records_of, score_missing
from souping.answers.store import IN_MEMORY, Store
from souping.core.files import dated_path, nearby, write_atomically
from souping.core.protocols import Evaluator, LoadedModel, evaluator_fingerprint
from souping.core.reading import read
from souping.core.text import one_line
from souping.core.types import OWN_BENCHMARK, Item, Record, Split, UserError
from souping.core.unit import Unit
from souping.evaluate.benchmark import first_items
from souping.evaluate.scoring import user_scores
from souping.plan.page import time_section, work_section
from souping.plan.plan_content import Plan, as_dict, total_range
from souping.plan.planner import checked_plan, open_unhashed
from souping.plan.speed import Speed
from souping.report import format
from souping.report.cells import Section, grid, nonempty
from souping.report.render import output_console, show_sheet
from souping.report.run_files import as_json
from souping.report.samples import Sample, show_sample
from souping.report.tables import similarity
from souping.runs.samples_file import sample
from souping.runs.settings import RunSettings

CHECKED_ITEMS = 5
"""Items of each category that a check answers."""
LEAST = 0.05
"""Least share of a check's time that counts as its items': the measured time of a call varies."""


def check_run(run: RunSettings) -> None:
    """Check a run as its plan does, answer a few items, say how long the run would take, and save what was measured.

    Raises:
        UserError: the run cannot start here, or its items cannot be answered.
    """
    if run.selects_from_table:
        raise UserError(
            "check needs items; stop_after=select with published scores has none: use `plan`"
        )
    plan = checked_plan(run)
    for note in plan.notes:
        print(f"note: {one_line(note)}")
    if plan.reasons:
        # The first three reasons are shown.
        further = "".join(f"\nand: {reason.sentence()}" for reason in plan.reasons[1:3])
        first = plan.reasons[0]
        raise UserError(f"this run cannot start here: {first.sentence()}{further}", fix=first.fix)
    print(
        "settings, items, models, space and packages are in order (`plan` shows them)",
        flush=True,
    )
    split: Split = "search" if run.scores.published else "select"
    items = first_items(plan.splits[split], CHECKED_ITEMS)
    records, prompts, speed = answer_few(plan, items)
    timed = replace(plan, speeds={**plan.speeds, OWN_BENCHMARK: speed})
    show_check(timed, split, items, records, prompts)


def answer_few(plan: Plan, items: Sequence[Item]) -> tuple[list[Record], Mapping[str, str], Speed]:
    """(the first candidate's answers to a few items, {item id: prompt}, their speed once the model was loaded).

    The answers are in the items' order, and have their item's id as the key of their prompt.

    Raises:
        UserError: a candidate is not on this disk, or an item cannot be answered or scored.
    """
    run = plan.run.with_items()
    if absent := [model.name for model in plan.models if model.download]:
        raise UserError(f"the candidates are not here yet: {absent[0]} has to be downloaded")
    with ExitStack() as stack:
        for component in run.open_parts:
            stack.callback(component.close)
        store = stack.enter_context(Store(Path(IN_MEMORY)))
        pool = open_unhashed(run, store)
        stack.callback(pool.close)
        recipe = pool.recipe({pool.names[0]: 1.0})
        evaluator = pool.bound(run.evaluator).for_recipe(recipe)
        if banner := evaluator.prompts.banner():
            print(banner, flush=True)
        began = time.monotonic()
        model = pool.serving(evaluator)(recipe)
        # Engines and servers take minutes to start at their first item, and any code is slower the first time.
        _, cold_seconds = _timed(evaluator, model, items[:1])
        loading = time.monotonic() - began
        _, warm_seconds = _timed(evaluator, model, items[:1])
        answers, seconds = _timed(evaluator, model, items)
        speed = _measured(evaluator, items, warm_seconds, seconds)
        # An engine or a server starts for each model. Times vary: no start takes less than nothing.
        if evaluator.hosting.host is not None:
            speed = replace(speed, per_model=max(0.0, cold_seconds - warm_seconds))
    records = [replace(answers[item.id], prompt_key=item.id) for item in items]
    # No scores are known before; the new ones are put into `records`.
    error = score_missing(items, records, user_scores, lambda unscored: {})
    if error is not None:
        raise error
    prompts = {record.item: record.prompt for record in records}
    took = f"{len(items)} items with {pool.names[0]} (loading took {format.seconds_text(loading)})"
    return records, prompts, replace(speed, reason=f"{speed.reason}, measured just now on {took}")


def _timed(
    evaluator: Evaluator, model: LoadedModel, items: Sequence[Item]
) -> tuple[dict[str, Record], float]:
    """({item id: one answer}, the seconds that the answers took)"""
    answers = {}
    began = time.monotonic()
    for block in batches_of(evaluator, items):
        for record in records_of(evaluator, block, evaluator.evaluate(model, block)):
            answers[record.item] = record
        # A check stores nothing: logs that were kept for the store may go.
        evaluator.hosting.release(model.soup, block)
    return answers, time.monotonic() - began


def _measured(evaluator: Evaluator, items: Sequence[Item], single: float, seconds: float) -> Speed:
    """The speed by the seconds of a `single` item and the `seconds` of all items.

    seconds = calls * per_call + items * per_item. As single = per_call + per_item,
    per_item = (seconds - calls * single) / (items - calls).
    """
    batch = evaluator.sampling.full_batch
    size = len(items)
    # All items go into one call: 0 stands for a batch without a limit.
    if batch == 1 and len(evaluator.batches(items)) == 1:
        batch = 0
    calls = -(-size // (batch or size))
    mean = seconds / size
    per_item = mean
    if size > calls:
        slope = (seconds - calls * single) / (size - calls)
        per_item = min(max(slope, LEAST * mean), mean)
    per_call = (seconds - size * per_item) / calls
    # A clock may see no time pass.
    rate = 1 / max(per_item, 1e-9)
    call = "batch" if batch else "command"
    return Speed(
        items_per_second=rate,
        per_call=per_call,
        batch=batch,
        basis="measured",
        reason=f"{rate:.3g} items/s and {format.seconds_text(per_call)} to start each {call}",
    )


def show_check(
    timed: Plan,
    split: Split,
    items: Sequence[Item],
    records: Sequence[Record],
    prompts: Mapping[str, str],
) -> None:
    """Print one item of each category in full, all of them in a table, and the run's time; save what was measured.

    `timed` is the plan with the measured speed, `records` are the first candidate's answers to the items, in their
    order, and `prompts` {`prompt_key` of a record: text}.
    """
    name = timed.run.pool.resolve()[0].name
    unit = timed.run.evaluator.unit
    samples = list[dict[str, Any]]()
    # {category: its first sample}
    firsts = dict[str, dict[str, Any]]()
    for place, (item, record) in enumerate(zip(items, records, strict=True)):
        line = sample(place, split, item, {name: [record]}, {name: record.score}, prompts)
        line["models"][name] |= {
            "prompt_tokens": record.prompt_tokens,
            "tokens": len(record.tokens),
        }
        samples.append(line)
        firsts.setdefault(item.category, line)
    print()
    for line in firsts.values():
        show_sample(unit, output_console(120), read(Sample, line), [name])
    answers = _answers(unit, name, split, items, records)
    show_sheet(
        nonempty((answers, similarity(timed.similarity), work_section(timed), time_section(timed)))
    )
    table = {**as_dict(timed), "candidate": name, "split": split, "samples": samples}
    table["evaluator"] = evaluator_fingerprint(timed.run.evaluator)
    table["items_per_second"] = timed.speeds[OWN_BENCHMARK].items_per_second
    file = write_atomically(dated_path(timed.run.name, "check"), as_json(table).encode())
    print(f"saved: {nearby(file)}")
    if cut := sum(record.outcome != "finished" for record in records):
        print(f"{cut} of {len(records)} answers were truncated or are missing: look at them first")
    takes = "seconds, as its answers are stored"
    times = timed.seconds()
    # None if no stage has anything to evaluate.
    if times is not None:
        _, most = total_range(times.values())
        if most >= 1:
            takes = f"at most about {format.seconds_text(most)}"
    print(f"This run can start and takes {takes}: repeat the command without `check`.")


def _answers(
    unit: Unit, name: str, split: Split, items: Sequence[Item], records: Sequence[Record]
) -> Section:
    """A row for each item with its answer, and the mean score of the model of this name."""
    rows = []
    for item, record in zip(items, records, strict=True):
        row = (
            format.short(item.id),
            format.clean(item.category),
            # A digit less than a mean has: most items score 0 or 1.
            unit.score(record.score, more=-1),
            # 0 means that nobody counted.
            format.count(record.prompt_tokens or None),
            format.count(len(record.tokens) or None),
            record.outcome,
            format.short(record.output or record.reason, 40),
        )
        rows.append(row)
    header = (
        "item",
        "category",
        unit.heading("score"),
        "prompt tokens",
        "answer tokens",
        "ended",
        "answer",
    )
    mean = unit.level(fmean(record.score for record in records))
    line = f"{name} scores {mean} on {len(rows)} items of the {split} split."
    return Section("Check", (line,), grids=(grid(header, rows, left=(0, 1, 5, 6)),))
