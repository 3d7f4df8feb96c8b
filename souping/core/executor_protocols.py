"""Protocols of evaluating soups: the evaluator with a memory, executors, and the workers that they start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from souping.core.protocols import Component
from souping.core.types import Item, ItemScores, Recipe, Request, Response


class Worker(Protocol):
    """Pool and evaluators in one process, which make a soup and evaluate it."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """{name of a benchmark: fingerprint of its evaluator}, as this process sees it."""
        ...

    def answer(self, request: Request) -> Response: ...


class Workers(Protocol):
    """Running workers, of which up to `slots` requests are worth sending at once."""

    lost: int = 0
    """Workers that died during the run and were replaced."""

    @property
    def slots(self) -> int:
        return 1

    def put(self, request: Request) -> Response | None:
        """Send a request. A worker in this process answers at once, the others when `take` returns."""
        ...

    def take(self) -> tuple[Request, Response]:
        """Wait for one of the requests that were sent; what is answered first comes first."""
        raise LookupError("no request is open")

    def close(self) -> None:
        return None


class Executor(Component, Protocol):
    """Settings of where soups are made and evaluated. The driver alone writes to the store, whatever the choice."""

    def start(self, here: Worker, elsewhere: Callable[[], Worker]) -> Workers:
        """The worker in this process, or some that `elsewhere`, which can be pickled, makes in theirs."""
        ...


class RecipeEvaluator(Protocol):
    """Evaluator with a memory, which scores soups by their recipes and computes no answer twice.

    Up to `slots` requests may be open; their scores come in any order.
    """

    reused: int
    """Answers that were in the store."""
    block: int
    """Items that are answered together; fewer at a time are slow."""

    @property
    def slots(self) -> int: ...

    @property
    def whole_folds(self) -> bool:
        """Whether only whole folds give an item's score."""
        ...

    def handlers(self, recipe: Recipe) -> tuple[str, ...]:
        """The ways in which this soup may be prompted, the default first."""
        ...

    def scores(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> ItemScores: ...

    def all_scores(self, asks: Sequence[tuple[Recipe, str]], items: Sequence[Item]) -> list[ItemScores]:
        """Scores of several soups on the same items, each by a handler."""
        ...

    def submit(self, request: Request) -> None: ...

    def collect(self) -> tuple[Request, ItemScores]:
        """Wait for the next request that is completely answered."""
        ...
