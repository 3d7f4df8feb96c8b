"""Workers whose answers take time, for tests of executors; they leave a file a task, named by their process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from souping.core.executor_protocols import Worker
from souping.core.types import Answered, BlockTask, Record, UserError
from tests.conftest import make_items, recipe


@dataclass
class Busy(Worker):
    """Computes for some seconds of one thread, then every answer is the soup's first weight."""

    folder: Path
    seconds: float = 0.0
    mark: str = "same"
    refuses: str = ""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        return {"": self.mark}

    def answer(self, task: BlockTask) -> Answered:
        if self.refuses:
            raise UserError(self.refuses)
        (self.folder / f"{os.getpid()}-{task.number}").touch()
        end, number = time.process_time() + self.seconds, 1
        while time.process_time() < end:
            number = number * 31 % 1000003
        return Answered(
            records=tuple(Record(item=item.id, score=task.recipe.weights[0]) for item in task.items),
            seconds=self.seconds,
        )

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Makes:
    """What an actor makes its worker of."""

    folder: Path
    seconds: float = 0.0
    mark: str = "same"
    refuses: str = ""

    def __call__(self) -> Busy:
        return Busy(self.folder, self.seconds, self.mark, self.refuses)


def tasks(number: int) -> list[BlockTask]:
    """One task a soup."""
    items = tuple(make_items(2, categories=("c",)))
    return [
        BlockTask(number=n, recipe=recipe((n + 1) / (number + 1), 1 - (n + 1) / (number + 1)), items=items)
        for n in range(number)
    ]
