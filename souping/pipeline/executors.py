"""Executors: where soups are made and asked, and what a worker needs for it.

The driver cuts blocks, looks into the store and writes to it; a worker makes a soup, asks it a block and hands the
records back. `executor=local` is one worker in this process.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.executor_protocols import Executor, Worker, Workers
from souping.core.fields import component
from souping.core.protocols import Evaluator, Served
from souping.core.text import named
from souping.core.types import OUTCOMES, Answered, BlockTask, Candidate, Item, Recipe, Record, UserError
from souping.pipeline.models import OpenPool

if TYPE_CHECKING:
    from souping.core.merge_protocols import MergeBackend


ROUNDING = 1e-9
"""By which a mean of scores may leave 0 to 1."""


def batches_of(asking: Evaluator, items: Sequence[Item], replicate: int = 0) -> list[tuple[Item, ...]]:
    """The blocks that an evaluator, which may be the user's, cuts these items into, looked at.

    Raises:
        UserError: an item is in no block, or in two.
    """
    batches = [tuple(block) for block in asking.batches(items, replicate) or ()]
    cut = [item.id for block in batches for item in block]
    if sorted(cut) != sorted(item.id for item in items):
        raise UserError(f"evaluator {named(asking)}: its batches have {len(cut)} items of {len(items)}: each once")
    return batches


def records_of(asking: Evaluator, items: Sequence[Item], given: Iterable[Record]) -> list[Record]:
    """The records that an evaluator, which may be the user's, gave of a block, in the items' order, looked at.

    Raises:
        UserError: one is missing, or is none that can be kept.
    """
    name, wanted = f"evaluator {named(asking)}", {item.id for item in items}
    records = [*given] if isinstance(given, Iterable) else [given]
    for record in records:
        if not isinstance(record, Record):
            raise UserError(f"{name} gave {record!r:.60} where a Record of each item was due")
        if record.item not in wanted:
            raise UserError(f"{name} gave a record of item {record.item!r:.60}, which it was not asked")
    known = {record.item: record for record in records}
    if len(known) < len(records):
        raise UserError(f"{name} gave {len(records)} records of {len(known)} items: one of each")
    for lost in (item for item in items if item.id not in known):
        raise UserError(f"{name} gave no record of item {lost.id!r:.60} ({len(known)} of {len(items)} items)")
    return [_plain(known[item.id], name, asking.fractions) for item in items]


def _plain(record: Record, name: str, fractions: bool) -> Record:
    """A record with Python's own numbers: numpy's would be kept as bytes. nan waits for the item's scorer."""
    where = f"{name}, item {record.item!r:.60}:"
    numbers = (record.score, *record.statistics)
    if not all(isinstance(number, Real) for number in numbers):
        odd = next(number for number in numbers if not isinstance(number, Real))
        raise UserError(f"{where} {odd!r:.60} is no number")
    odd_score = not (math.isnan(record.score) or -ROUNDING <= record.score <= 1 + ROUNDING)
    if odd_score and fractions and not record.statistics:
        raise UserError(f"{where} score {float(record.score):g} is no fraction of 1")
    if not isinstance(record.output, str) or record.outcome not in OUTCOMES:
        raise UserError(f"{where} output is a text, outcome one of {', '.join(OUTCOMES)}")
    return replace(record, score=float(record.score), statistics=tuple(map(float, record.statistics)))


class EvaluatorWorker(Worker):
    """Evaluators by side, each with what serves it soups."""

    def __init__(self, sides: Mapping[str, tuple[Evaluator, Callable[[Recipe], Served]]]) -> None:
        self._sides = sides

    def answer(self, task: BlockTask) -> Answered:
        evaluator, serve = self._sides[task.side]
        asking = evaluator.by(task.handler) if task.handler else evaluator
        model, started = serve(task.recipe), time.monotonic()
        records = records_of(asking, task.items, asking.evaluate(model, task.items, task.replicate))
        return Answered(records=tuple(records), seconds=time.monotonic() - started)

    @property
    def fingerprints(self) -> dict[str, str]:
        """What keys the answers of each side in the store; it holds what this machine decides (device, threads)."""
        return {side: evaluator.fingerprint for side, (evaluator, _) in self._sides.items()}

    def close(self) -> None:
        """Let go of what the evaluators hold."""
        for evaluator, _ in self._sides.values():
            evaluator.close()


@dataclass(kw_only=True)
class KnownContents:
    """Digests of files alone, for a worker without a store, and for a plan, which leaves no trace in one."""

    hashes: MutableMapping[str, str]

    def remember_folder(self, fingerprint: str, path: Path, weights: str = "", soup: str = "") -> None:
        """The driver remembers, a plan does not."""


@dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """All that a worker in another process is made of; paths are as they are seen from `home`."""

    home: Path
    candidates: tuple[Candidate, ...]
    merge: MergeBackend
    evaluators: Mapping[str, Evaluator]
    digests: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> EvaluatorWorker:
        if self.home.is_dir():
            os.chdir(self.home)
        pool = OpenPool(self.candidates, self.merge, KnownContents(hashes=dict(self.digests)))
        return EvaluatorWorker({side: (one, pool.serving(one)) for side, one in self.evaluators.items()})


class LocalWorkers(Workers):
    """One worker, in this process: a task is answered when it is taken."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._tasks = worker, deque[BlockTask]()

    @property
    def slots(self) -> int:
        return 1

    def put(self, task: BlockTask) -> None:
        self._tasks.append(task)

    def take(self) -> tuple[BlockTask, Answered]:
        task = self._tasks.popleft()
        return task, self._worker.answer(task)

    def close(self) -> None:
        """The driver's own evaluators are closed where they were built."""


@component
class LocalExecutor(Executor):
    """Soups are made and asked in this process, one after another."""

    def start(self, here: Worker, elsewhere: Callable[[], Worker]) -> Workers:
        return LocalWorkers(here)
