"""Protocols of asking soups: the evaluator with a memory, executors, and what a worker does for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from souping.core.protocols import Part
from souping.core.types import Answered, BlockTask, Inquiry, Item, ItemScores, Recipe, Reply


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

    # workers that died during the run and were replaced
    lost: int = 0

    def put(self, task: BlockTask) -> None: ...

    def take(self) -> tuple[BlockTask, Answered]:
        """A task that is done, waited for. Tasks of a worker that was lost go to another."""
        ...

    def close(self) -> None: ...


class Executor(Part, Protocol):
    """Settings of where soups are made and asked. The driver alone writes to the store, whatever the choice."""

    def start(self, here: Worker, elsewhere: Callable[[], Worker]) -> Workers:
        """Workers: the one in this process, or some that `elsewhere`, which can be pickled, makes in theirs."""
        ...


class RecipeEvaluator(Protocol):
    """Evaluator with a memory: scores soups by their recipes, and answers nothing twice. `reused` counts items.

    Up to `slots` inquiries may be open; replies come in any order.
    """

    reused: int
    block: int
    """Items that are asked together; fewer at a time are slow."""

    @property
    def slots(self) -> int: ...

    @property
    def whole_folds(self) -> bool:
        """Whether only whole folds give an item's score."""
        ...

    def handlers(self, recipe: Recipe) -> tuple[str, ...]:
        """The ways in which this soup may be asked, the default first."""
        ...

    def scores(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> ItemScores: ...

    def all_scores(self, asks: Sequence[tuple[Recipe, str]], items: Sequence[Item]) -> list[ItemScores]:
        """Scores of several soups on the same items, each by a handler."""
        ...

    def submit(self, inquiry: Inquiry) -> None: ...

    def collect(self) -> tuple[Inquiry, Reply]:
        """The next inquiry that is answered, waited for."""
        ...
