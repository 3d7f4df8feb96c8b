"""What the parts must be able to do: protocols of one to three verbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from souping.core.types import Correlations, FloatArray, Item, Record, Result, Selection, Trial, Weights

if TYPE_CHECKING:
    from souping.core.scores import ScoreMatrix


class Selector(Protocol):
    """Picks ingredients from scores. `candidates` are the rows that may be picked (others only inform)."""

    def select(self, scores: ScoreMatrix) -> Selection: ...


Correlation = Callable[[FloatArray], Correlations]
"""scores [M, C] -> correlations [C, C] with intervals."""


class Optimiser(Protocol):
    """A running weight search. Several asks may be open; results come back in any order."""

    def ask(self) -> Weights | None: ...

    def tell(self, weights: Weights, result: Result) -> None: ...

    def best(self) -> Weights: ...


class Strategy(Protocol):
    """An optimiser's settings, checked at composition; `start` opens a search over the ingredients."""

    trials: int | None
    budget: int | None

    def start(self, ingredients: Sequence[str], candidates: Sequence[str], seed: int) -> Optimiser: ...

    def count(self, size: int) -> int | None: ...

    def describe(self, size: int) -> str: ...


class Served(Protocol):
    """A model ready to be evaluated: a live module and its tokenizer or, for an evaluator that `wants` it, a folder.

    One that wants `either` gets whichever it asks for, and `souping.pipeline.models.Either` with it.
    """

    @property
    def module(self) -> Any: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def folder(self) -> Path | None: ...


class Evaluator(Protocol):
    """Scores a model on items, with a record for every item.

    `batches` cuts a fold by a fixed rule; a batch is the unit of commit. `settings` is everything a score depends on
    beside the model and the item, `fingerprint` its digest. Optional: `wants` ("module", "folder" or "either"), `stage`
    (how the module is loaded, if not as it says itself), `benchmark` (its own items), `check(candidates)` (refuses
    before any work), `choices(recipe)` and `by(handler)` (see `Evaluation`), `close()`, and `aggregate(items,
    records)`: [I] values whose category means are the scores.
    """

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def fingerprint(self) -> str: ...

    def batches(self, items: Sequence[Item]) -> list[tuple[Item, ...]]: ...

    def evaluate(self, model: Served, items: Sequence[Item]) -> list[Record]: ...


class Tracker(Protocol):
    """Follows a run elsewhere. A tracker that fails warns; it never stops the run."""

    def start(self, config: Mapping[str, Any], run_dir: Path) -> None: ...

    def log(self, trial: Trial) -> None: ...

    def finish(self, report: Mapping[str, Any] | None, run_dir: Path) -> None: ...
