"""Protocols of executors: where soups are made and asked, and what a worker does for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from souping.core.types import Answered, BlockTask, Missing


class Worker(Protocol):
    """Pool and evaluators in one process, which make a soup and ask it."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """{side: fingerprint of its evaluator}, as this process sees it."""
        ...

    def answer(self, task: BlockTask) -> Answered: ...

    def close(self) -> None: ...


class Workers(Protocol):
    """Running workers: up to `slots` tasks are worth putting at once; what is done first is taken first."""

    @property
    def slots(self) -> int: ...

    def put(self, task: BlockTask) -> None: ...

    def take(self) -> tuple[BlockTask, Answered]:
        """The next task that is done, waited for. Tasks of a worker that was lost go to another."""
        ...

    def close(self) -> None: ...


class Executor(Protocol):
    """Settings of where soups are made and asked. The driver alone writes to the store, whatever the choice."""

    def needs(self) -> list[Missing]:
        """Packages that are not here."""
        return []

    def start(self, here: Worker, elsewhere: Callable[[], Worker]) -> Workers:
        """Workers: the one in this process, or some that `elsewhere`, which can be pickled, makes in theirs."""
        ...
