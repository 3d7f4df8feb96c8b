"""Protocols of the exchangeable parts: every member that anybody asks for, with defaults where a part has no opinion.

A part subclasses its protocol and gets the defaults; methods without one (they end in `...`) it has to bring. A field
of a part must not be named like a member below unless it has a default of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from souping.core.text import listed, named
from souping.core.types import (
    Cell,
    Correlations,
    FloatArray,
    Item,
    Json,
    Missing,
    Recipe,
    Record,
    Result,
    ScoreMatrix,
    SearchSpace,
    Selection,
    Trial,
    UserError,
    Weights,
    digest,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Wants = Literal["module", "folder", "either"]
Progress = Callable[[int, int], None]
"""progress(bytes done, bytes in all)"""
Correlation = Callable[[FloatArray], Correlations]
"""scores [M, C] -> correlations [C, C] with intervals."""


class Part(Protocol):
    """Part that may lack something here, and may hold something between two soups."""

    def needs(self) -> list[Missing]:
        """Packages, environments and services that this part uses and that are not here. Loads and starts nothing."""
        return []

    def close(self) -> None:
        """Let go of processes, files and memory that are held."""
        return None


class Selector(Protocol):
    """Rule that picks ingredients from scores. Of the score matrix's rows only `candidates` may be picked.

    Categories of `drop` have no part in the selection; they stay in the objective.
    """

    drop: Sequence[str] = ()

    @property
    def label(self) -> str:
        """Name in `selection.json` and plans."""
        return type(self).__name__.lower()

    def select(self, scores: ScoreMatrix) -> Selection: ...

    def chosen(self, scores: ScoreMatrix) -> Selection:
        """What `select`, which may be the user's, makes of these scores, looked at.

        Raises:
            UserError: it cannot select; or gave no selection, an empty one, something that is no candidate or no
                category, or one ingredient twice.
        """
        selection, name = self.select(scores), named(self)
        if not isinstance(selection, Selection):
            raise UserError(f"selector {name} gave a {type(selection).__name__}, not a Selection")
        for one in (*selection.ingredients, *selection.experts.values()):
            if one not in scores.candidates:
                raise UserError(f"selector {name} chose {one!r}, which is no candidate: {listed(scores.candidates)}")
        for one in (*selection.low_correlation, *selection.experts):
            if one not in scores.categories:
                raise UserError(f"selector {name} named {one!r}, which is no category: {listed(scores.categories)}")
        if not selection.ingredients or len(set(selection.ingredients)) < len(selection.ingredients):
            raise UserError(f"selector {name} chose {listed(selection.ingredients) or 'nothing'}: each ingredient once")
        return selection

    def check(self, models: int, candidates: int, categories: int) -> None:
        """Refuse, before anything is evaluated, what so many rows, candidates and categories cannot give (UserError).

        `models` counts the rows of the score matrix, `candidates` those of them that may be picked.
        """
        return None

    def sizes(self, candidates: int) -> tuple[int, ...]:
        """Numbers of ingredients that may be picked of so many candidates, ascending."""
        return tuple(range(1, candidates + 1))

    @property
    def cut(self) -> float | None:
        """Threshold that decides what is picked, if there is one."""
        return None

    def with_cut(self, threshold: float) -> Selector:
        """This selector with another threshold."""
        return self

    @property
    def measure(self) -> Correlation | None:
        """Correlation that decides what is picked, if there is one."""
        return None


class Optimiser(Protocol):
    """Running weight search. Several cells may be open; results come back in any order.

    What it asks follows from the seed and from what it was told, not from its limits, so that a larger budget goes on
    where a smaller one ended. `ask` gives None when it wants a result first, and at the end when none is open.
    """

    def ask(self) -> Cell | None: ...

    def tell(self, cell: Cell, result: Result) -> None: ...

    def best(self) -> Weights: ...

    def summary(self) -> Mapping[str, Json]:
        """What the search says of itself, for `report.json` and readers."""
        return {}


class Strategy(Protocol):
    """Settings of an optimiser, checked at composition; `start` opens a search over the ingredients.

    `trials` limits soups, `budget` items that are answered, `tokens` those generated, `seconds` the time of answering.
    """

    trials: int | None = None
    budget: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def start(self, space: SearchSpace, seed: int) -> Optimiser: ...

    def count(self, size: int) -> int | None: ...

    def describe(self, size: int) -> str: ...

    def known_points(self, size: int) -> Sequence[Weights] | None:
        """All weights that will be asked for, where they are known beforehand."""
        return None

    @property
    def uses_singles(self) -> bool:
        """Whether the ingredients' own scores are wanted before the search begins."""
        return False

    def workload(self, size: int, items: int) -> tuple[int, int] | None:
        """(expected, most) items answered of a search that asks parts of a fold of so many; None for whole folds."""
        return None


class Objective(Protocol):
    """Linear functional of category means: `coefficients` gives w_c in the order of `categories`; they sum to one."""

    @property
    def name(self) -> str:
        """Name in `report.json`."""
        return type(self).__name__.lower()

    def coefficients(self, categories: Sequence[str]) -> FloatArray: ...

    def notes(self, categories: Sequence[str]) -> list[str]:
        """Remarks on these categories under this objective, for readers of the report."""
        return []


class BenchmarkItems(Protocol):
    """Source of items. `title` is its name, `label` and `note` are what reports show; `folds` are shares of the folds
    that are not the usual ones.
    """

    folds: Mapping[str, float] | None = None

    @property
    def title(self) -> str: ...

    def items(self) -> tuple[Item, ...]: ...

    @property
    def label(self) -> str:
        return self.title

    @property
    def note(self) -> str:
        return ""

    @property
    def opening(self) -> str:
        """First line of a run on these items, where there is one."""
        return ""


class ScoreSource(Protocol):
    """Source of the scores that selection sees: measured ones, or a published table."""

    published: bool = False

    def matrix(self, candidates: Sequence[str], measure: Callable[[], ScoreMatrix]) -> ScoreMatrix:
        """Score matrix of the candidates; `measure` evaluates them where they have to be measured."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModuleSettings:
    """Settings of the live module that soups are poured into. Evaluators with equal settings share one module."""

    device: str = "cpu"
    dtype: str | None = "float32"
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelHost:
    """Engine or server that holds the model in processes of its own, as far as plans and checks ask.

    `gpus` is how many it spreads a model over, 0 where it runs without one too; it takes `fraction` of each one's
    memory. `url` is that of a server that somebody else runs.
    """

    dtype: str | None = None
    gpus: int = 0
    fraction: float = 1.0
    url: str | None = None


class LoadedModel(Protocol):
    """Model ready to be evaluated, as a live module with its tokenizer or as a folder: whichever an evaluator takes.

    `soup` identifies the model, `home` is a complete folder of its architecture. `ends` are the tokens that end an
    answer: those of all ingredients, none if they name none.
    """

    soup: str
    home: Path
    ends: tuple[int, ...]

    @property
    def module(self) -> PreTrainedModel: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def folder(self) -> Path: ...


class Evaluator(Part, Protocol):
    """Judge of a model on items, with a record for every item.

    `batches` cuts a whole fold by a fixed rule into blocks; a block is what is asked together and the unit of commit.
    `settings` is everything an answer or score depends on beside the model, the item and its block.
    """

    device: str = "cpu"
    """Where the live module stands, as it was set: cpu, cuda, cuda:N, mps, or auto."""
    brings_items: bool = False
    """Whether it has items of its own and asks no others."""
    blocks_matter: bool = True
    """Whether an answer depends, in the last digits, on the items that are asked with it."""
    aggregate: str = ""
    """How the scores of several answers become an item's, where there is a choice."""
    fractions: bool = True
    """Whether scores are fractions of 1; where a tool says what they are they may be anything."""
    length_key: str = ""
    """Setting that bounds the tokens of an answer, as it is typed: what to raise where answers are cut off."""

    @property
    def settings(self) -> Mapping[str, Json]: ...

    @property
    def fingerprint(self) -> str:
        settings = self.settings
        try:
            return digest(dict(settings))
        except TypeError as error:
            plain = "a dict of texts, numbers, lists and dicts"
            raise UserError(f"evaluator {named(self)}: settings are {plain}: {error}") from None

    @property
    def title(self) -> str:
        """Name in reports and messages."""
        return str(self.settings.get("evaluator") or self.settings.get("name") or type(self).__name__)

    def batches(self, items: Sequence[Item], replicate: int = 0) -> list[tuple[Item, ...]]: ...

    def evaluate(self, model: LoadedModel, items: Sequence[Item], replicate: int = 0) -> list[Record]: ...

    @property
    def answers(self) -> int:
        """Answers to an item: replicates 0, 1, .. are asked."""
        return 1

    @property
    def block(self) -> int:
        """Items that it asks together; fewer at a time are slow. 1 where that does not matter."""
        return 1

    @property
    def whole_folds(self) -> bool:
        """Whether only whole folds give an item's score (corpus metrics)."""
        return False

    @property
    def look(self) -> str:
        """What counts as one way of looking at a fold: the settings, and how answers become an item's score."""
        return digest([self.fingerprint, self.answers, *([self.aggregate] if self.aggregate else [])])

    def for_pool(self, home: Path, folders: Mapping[str, Path]) -> Evaluator:
        """This evaluator with what its settings leave to the candidates' files; `home` is a folder of the architecture.

        Raises:
            UserError: the files disagree, or cannot be read.
        """
        return self

    def opening(self, home: Path, items: Sequence[Item]) -> str:
        """Line in which a run says how these items are asked, where that is worth a line."""
        return ""

    def pool_notes(self, folders: Mapping[str, Path]) -> list[str]:
        """What a reader of the report must know of how these candidates are asked."""
        return []

    def prompt_notes(self, folder: Path, items: Sequence[Item]) -> list[str]:
        """What is likely wrong with how the tokenizer in `folder` shows these items to a model."""
        return []

    def rescore(self, item: Item, answer: Record) -> Record | None:
        """The score of an answer that was given before; None where only asking anew gives one."""
        return None

    @property
    def wants(self) -> Wants:
        """How soups come: poured into a live module, as a folder, or either way when asked for."""
        return "module"

    def module_settings(self) -> ModuleSettings:
        """How the live module is loaded."""
        return ModuleSettings()

    @property
    def benchmark(self) -> BenchmarkItems | None:
        """Its own items (UserError where they cannot be had here)."""
        return None

    def outline(self) -> tuple[Item, ...]:
        """Items without content, as many as its benchmark's published sizes say; none where those are not known."""
        return ()

    def check(self, candidates: Sequence[str]) -> None:
        """Refuse, before any work, settings that do not fit these candidates or this machine (UserError)."""
        return None

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse, before any work, items that the tokenizer in `folder` cannot ask (UserError)."""
        return None

    def choices(self, recipe: Recipe) -> tuple[str, ...]:
        """Handlers by which this model may be asked, the default first; one empty name where there is no choice."""
        return ("",)

    def by(self, handler: str) -> Evaluator:
        """This evaluator, asking by one of its handlers."""
        return self

    def for_recipe(self, recipe: Recipe) -> Evaluator:
        """This evaluator with what it knows of one model, and the same fingerprint."""
        return self

    def item_scores(self, items: Sequence[Item], records: Sequence[Sequence[Record]]) -> FloatArray:
        """[I] values whose mean over a category's items is the category's score; `records` are each item's answers."""
        return np.array([np.mean([record.score for record in answers]) for answers in records])

    @property
    def host(self) -> ModelHost | None:
        """What holds the model in processes of its own, if anything does."""
        return None

    @property
    def answer_tokens(self) -> int | None:
        """Tokens of an answer at most, where the settings say so."""
        return None


class Tracker(Part, Protocol):
    """Follower of a run elsewhere. A tracker that fails warns; it never stops the run."""

    @property
    def hint(self) -> str:
        """Command that sends or shows what was recorded, for the end of the run; empty where there is none."""
        return ""

    def start(self, config: Mapping[str, Json], run_dir: Path) -> None: ...

    def log(self, trial: Trial) -> None: ...

    def finish(self, report: Mapping[str, Json] | None, run_dir: Path, soup: Path | None = None) -> None:
        """End of the run; `soup` is the folder of the winner, where one was written."""
        return None

    def summarise(self, jobs: Sequence[Mapping[str, Json]], run_dir: Path) -> None:
        """Follow the end of a multirun: its jobs, once."""
        return None
