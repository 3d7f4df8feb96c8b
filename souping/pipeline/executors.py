"""Executors: where soups are made and asked, and what a worker needs for it.

The driver cuts blocks, looks into the store and writes to it; a worker makes a soup, asks it a block and hands the
records back. `executor=local` is one worker in this process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from souping.core.protocols import Evaluator, Executor, Served, Worker, Workers
from souping.core.types import Answered, Recipe, Task


class EvaluatorWorker(Worker):
    """Evaluators by side, each with what serves it soups."""

    def __init__(self, sides: Mapping[str, tuple[Evaluator, Callable[[Recipe], Served]]]) -> None:
        self._sides = sides

    def answer(self, task: Task) -> Answered:
        evaluator, serve = self._sides[task.side]
        asking = evaluator.by(task.handler) if task.handler else evaluator
        model, started = serve(task.recipe), time.monotonic()
        records = asking.evaluate(model, task.items, task.replicate)
        return Answered(records=tuple(records), seconds=time.monotonic() - started)

    def close(self) -> None:
        """Let go of what the evaluators hold."""
        for evaluator, _ in self._sides.values():
            evaluator.close()


class LocalWorkers(Workers):
    """One worker, in this process: tasks are answered one after another, when they are taken."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._tasks = worker, deque[Task]()

    @property
    def slots(self) -> int:
        return 1

    def put(self, task: Task) -> None:
        self._tasks.append(task)

    def take(self) -> tuple[Task, Answered]:
        task = self._tasks.popleft()
        return task, self._worker.answer(task)

    def close(self) -> None:
        """The driver's own evaluators are closed where they were built."""


@dataclass(frozen=True, kw_only=True)
class LocalExecutor(Executor):
    """Soups are made and asked in this process, one after another."""

    def start(self, here: Worker, elsewhere: Callable[[], Worker]) -> Workers:
        return LocalWorkers(here)
