"""Base classes of the exchangeable components: every member that is used, with defaults.

A component subclasses one of them, implements its abstract methods, and inherits the rest. A field of a
component must not be named like a member below unless it has a default of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal

import numpy as np

from souping.core.text import listed, named
from souping.core.types import (
    Cell,
    Correlations,
    FloatArray,
    Item,
    Json,
    Missing,
    Names,
    Recipe,
    Record,
    Request,
    Response,
    Result,
    ScoreMatrix,
    SearchEnd,
    SearchSpace,
    Selection,
    Trial,
    UserError,
    Weights,
    digest,
    frozen,
)
from souping.core.unit import POINTS, Unit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ModelForm = Literal["module", "folder"]
Correlation = Callable[[FloatArray], Correlations]
"""scores [M, C] -> correlations [C, C] with intervals."""


class Component:
    """Component that may have dependencies, and may hold processes or memory between two soups."""

    def needs(self) -> list[Missing]:
        """Packages, environments and services that are missing on this machine. Loads and starts nothing."""
        return []

    def close(self) -> None:
        """Release processes, files and memory."""
        return None


class Selector(ABC):
    """Rule that picks ingredients from scores. Only the matrix's `candidates` may be picked.

    The selection ignores the categories in `drop`; the objective keeps them.
    """

    drop: Sequence[str] = ()

    @property
    def label(self) -> str:
        """Name in `selection.json` and plans."""
        return type(self).__name__.lower()

    @abstractmethod
    def select(self, scores: ScoreMatrix) -> Selection: ...

    def select_checked(self, scores: ScoreMatrix) -> Selection:
        """The result of `select`, which may be user code, checked.

        Raises:
            UserError: there is no selection, or it is empty, names no candidate or category, or repeats an ingredient.
        """
        selection = self.select(scores)
        name = named(self)
        if not isinstance(selection, Selection):
            raise UserError(f"selector {name} gave a {type(selection).__name__}, not a Selection")
        for candidate in (*selection.ingredients, *selection.experts.values()):
            if candidate not in scores.candidates:
                raise UserError(
                    f"selector {name} chose {candidate!r}, which is not a candidate: {listed(scores.candidates)}"
                )
        for category in (*selection.low_correlation, *selection.experts):
            if category not in scores.categories:
                raise UserError(
                    f"selector {name} named {category!r}, which is not a category: {listed(scores.categories)}"
                )
        if not selection.ingredients or len(set(selection.ingredients)) < len(
            selection.ingredients
        ):
            raise UserError(
                f"selector {name} chose {listed(selection.ingredients) or 'nothing'}: each ingredient once"
            )
        return selection

    def check(self, models: int, candidates: int, categories: int) -> None:
        """Refuse settings that cannot work with a matrix of this size, before anything is evaluated (UserError).

        `models` counts the rows of the score matrix, `candidates` the rows that may be picked.
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


class Optimiser(ABC):
    """Running weight search, which a `Strategy` has started. Several cells may be open; results come in any order.

    The cells depend on the seed and the results, not on the limits, so that a larger budget continues where a smaller
    one ended. `ask` returns None if it needs a result first, and at the end if no cell is open.
    """

    @abstractmethod
    def ask(self) -> Cell | None: ...

    @abstractmethod
    def tell(self, cell: Cell, result: Result) -> None: ...

    @abstractmethod
    def best(self) -> Weights: ...

    def summary(self) -> SearchEnd | Mapping[str, Json]:
        """Facts about the search for `report.json`."""
        return {}


class Strategy(ABC):
    """Choice of `optimiser`: the settings of a weight search, whose `start` makes the `Optimiser` that runs it.

    `trials` limits soups, `budget` items that are answered. Weights may also sum to one of the `scales`, around a base
    model.
    """

    trials: int | None = None
    budget: int | None = None
    scales: Sequence[float] = ()

    @abstractmethod
    def start(self, space: SearchSpace, seed: int) -> Optimiser: ...

    @abstractmethod
    def count(self, size: int) -> int | None: ...

    @abstractmethod
    def describe(self, size: int) -> str: ...

    def known_points(self, size: int) -> Sequence[Weights] | None:
        """All weights that the search will evaluate, if they are known beforehand."""
        return None

    @property
    def uses_singles(self) -> bool:
        """Whether the search needs the ingredients' own scores before it begins."""
        return False

    def workload(self, size: int, items: int) -> tuple[int, int] | None:
        """(expected, most) items of a fold of this size that the search evaluates; None for whole folds."""
        return None


class Objective(ABC):
    """Number of category means: `coefficients` gives w_c in the order of `categories`; they sum to one.

    Where that is not `linear`, `value` says what is maximised and the coefficients only what an item counts for.
    """

    linear: bool = True

    @property
    def name(self) -> str:
        """Name in `report.json`."""
        return type(self).__name__.lower()

    @abstractmethod
    def coefficients(self, categories: Sequence[str]) -> FloatArray: ...

    def value(self, means: FloatArray, categories: Sequence[str]) -> FloatArray:
        """Objective of category means [..., C]."""
        return np.asarray(means @ self.coefficients(categories))

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """{name of a group: its categories}, where it has any."""
        return {}

    def notes(self, categories: Sequence[str]) -> list[str]:
        """Remarks on these categories under this objective, for readers of the report."""
        return []


class BenchmarkItems(ABC):
    """Source of items. `title` is its name, `label` and `note` are what reports show; `folds` are shares of the folds
    that are not the usual ones, and each report opens one of `slices` of the report fold.
    """

    folds: Mapping[str, float] | None = None
    slices: int = 1

    @property
    @abstractmethod
    def title(self) -> str: ...

    @abstractmethod
    def items(self) -> tuple[Item, ...]: ...

    @property
    def label(self) -> str:
        return self.title

    @property
    def note(self) -> str:
        return ""

    @property
    def banner(self) -> str:
        """First line of a run on these items, where there is one."""
        return ""


class ScoreSource(ABC):
    """Source of the scores that selection sees: measured ones, or a published table."""

    published: bool = False

    @property
    def models(self) -> Names:
        """The models that published scores are of; none if candidates have to be measured."""
        return ()

    @abstractmethod
    def matrix(self, candidates: Sequence[str], measure: Callable[[], ScoreMatrix]) -> ScoreMatrix:
        """Score matrix of the candidates; `measure` evaluates them where they have to be measured."""


@frozen
class ModuleSettings:
    """Settings of the live module that soups are poured into. Evaluators with equal settings share one module."""

    device: str = "cpu"
    dtype: str | None = "float32"
    trust_remote_code: bool = False


@frozen
class ModelHost:
    """Engine or server that holds the model in processes of its own.

    It spreads a model over so many `gpus` (0 if it also runs without one) and takes `fraction` of their memory. `url`
    is set if somebody else runs the server.
    """

    dtype: str | None = None
    gpus: int = 0
    fraction: float = 1.0
    url: str | None = None


class LoadedModel(ABC):
    """Model ready to be evaluated, as a live module with its tokenizer or as a folder.

    `soup` identifies the model. `eos_token_ids` are the tokens that end an answer: those of all ingredients, none if
    they name none.
    """

    soup: str
    eos_token_ids: tuple[int, ...]

    @property
    @abstractmethod
    def module(self) -> PreTrainedModel: ...

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    @abstractmethod
    def folder(self) -> Path: ...


@frozen
class Hosting:
    """Form in which an evaluator takes soups, a live module or a folder, and what holds them.

    `device` is where the live module stands, as it was set: cpu, cuda, cuda:N, mps, or auto. `host` holds the model in
    processes of its own, if anything does.
    """

    model_form: ModelForm = "module"
    device: str = "cpu"
    host: ModelHost | None = None

    def module_settings(self) -> ModuleSettings:
        """How the live module is loaded."""
        return ModuleSettings()

    def stored(self, soup: str, items: Sequence[Item]) -> None:
        """The records of these items are in the store: what was kept until then may go."""
        return None


class Prompts:
    """How an evaluator shows items to a model, and the items that it has of its own."""

    brings_items: bool = False
    """Whether there are items of its own; no others are then accepted."""

    @property
    def benchmark(self) -> BenchmarkItems | None:
        """Its own items (UserError if they are not available)."""
        return None

    def outline(self) -> tuple[Item, ...]:
        """Items without content, as many as its benchmark has by its published sizes; none if those are unknown."""
        return ()

    def banner(self) -> str:
        """Line about how items are prompted, for the start of a run."""
        return ""

    def check(self, candidates: Sequence[str]) -> None:
        """Refuse, before any work, settings that do not fit these candidates or this machine (UserError)."""
        return None

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse, before any work, items that the tokenizer in `folder` cannot encode (UserError)."""
        return None

    def pool_notes(self, folders: Mapping[str, Path]) -> list[str]:
        """Notes for the report on how these candidates are prompted."""
        return []

    def prompt_notes(self, folder: Path, items: Sequence[Item]) -> list[str]:
        """Likely mistakes in how the tokenizer in `folder` shows these items to a model."""
        return []


@frozen
class Sampling:
    """How items are answered.

    An item has so many answers, its replicates 0, 1, ...; fewer items at a time than a `full_batch` are slow.
    `blocks_matter` if an answer depends, in the last digits, on the other items of its block. `length_key` is the
    setting that bounds the tokens of an answer, as it is typed; `answer_tokens` is its value, if there is one.
    """

    answers_per_item: int = 1
    full_batch: int = 1
    blocks_matter: bool = True
    answer_tokens: int | None = None
    length_key: str = ""


@frozen
class Scoring:
    """How answers become scores.

    `aggregate` says how the scores of several answers become an item's, where there is a choice: `mean`, or `pass` (the
    best). `scored_by` is what decides the score of an answer, such as the version of a harness.
    """

    aggregate: str = ""
    scored_by: Json = None

    @property
    def whole_folds(self) -> bool:
        """Whether only whole folds give an item's score (corpus metrics)."""
        return False

    def item_scores(self, items: Sequence[Item], records: Sequence[Sequence[Record]]) -> FloatArray:
        """[I] values whose mean over a category's items is the category's score; `records` are each item's answers."""
        joined = max if self.aggregate == "pass" else fmean
        scores = []
        for answers in records:
            scores.append(joined([record.score for record in answers]))
        return np.array(scores)

    def scorer_digest(self, item: Item) -> str:
        """Digest of what scores the item's answers, but for its reference: scores by another one do not compare."""
        code = item.user_scorer.digest if item.user_scorer else ""
        return digest([item.scorer, code, self.scored_by])

    def rescore(self, item: Item, answer: Record) -> Record | None:
        """A stored answer with its score; None if the model has to answer again."""
        return None


EVALUATOR_PARTS = {"prompts": Prompts, "sampling": Sampling, "scoring": Scoring, "hosting": Hosting}


class Evaluator(Component, ABC):
    """Evaluates a model on items, with a record for every item.

    `batches` cuts a whole fold by a fixed rule into blocks; the items of a block are answered and stored together.
    `settings` is everything that an answer or score depends on besides the model, the item and its block. What else may
    be known of an evaluator is in the parts that it holds: `prompts`, `sampling`, `scoring`, `hosting`.
    """

    def __init_subclass__(cls) -> None:
        """Refuse a class that has a part's member, which nothing would read; a field may have its name (UserError)."""
        super().__init_subclass__()
        for name, part in EVALUATOR_PARTS.items():
            members = {member for member in vars(part) if not member.startswith("_")}
            lost = sorted(members & vars(cls).keys() - cls.__annotations__.keys())
            if lost:
                raise UserError(
                    f"{cls.__name__}.{lost[0]} is a member of its `{name}`: {part.__name__}"
                )

    @property
    def unit(self) -> Unit:
        """Unit and direction of its scores, and whether they are fractions of 1. An external tool's may be anything."""
        return POINTS

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Json]: ...

    @abstractmethod
    def batches(self, items: Sequence[Item], replicate: int = 0) -> list[tuple[Item, ...]]: ...

    @abstractmethod
    def evaluate(
        self, model: LoadedModel, items: Sequence[Item], replicate: int = 0
    ) -> list[Record]: ...

    def for_pool(self, architecture_folder: Path, folders: Mapping[str, Path]) -> Evaluator:
        """This evaluator with what its settings leave to the candidates' files.

        Raises:
            UserError: the files disagree, or cannot be read.
        """
        return self

    def for_recipe(self, recipe: Recipe) -> Evaluator:
        """This evaluator with its settings for one model. Its fingerprint keys that model's answers in the store."""
        return self

    @property
    def prompts(self) -> Prompts:
        return Prompts()

    @property
    def sampling(self) -> Sampling:
        return Sampling()

    @property
    def scoring(self) -> Scoring:
        return Scoring()

    @property
    def hosting(self) -> Hosting:
        return Hosting()


class Tracker(Component, ABC):
    """Sends a run's results elsewhere. A tracker that fails warns; it never stops the run."""

    @property
    def hint(self) -> str:
        """Command that sends or shows what was recorded, for the end of the run; empty where there is none."""
        return ""

    @abstractmethod
    def start(self, config: Mapping[str, Json], run_dir: Path) -> None: ...

    @abstractmethod
    def log(self, trial: Trial) -> None: ...

    def finish(
        self, report: Mapping[str, Json] | None, run_dir: Path, soup: Path | None = None
    ) -> None:
        """End of the run; `report` is the content of report.json, None without one, and `soup` the folder of the
        winner, where one was written."""
        return None

    def summarise(self, jobs: Sequence[Mapping[str, Json]], run_dir: Path) -> None:
        """Follow the end of a multirun: its jobs, once."""
        return None


class Workers(ABC):
    """Pool and evaluators, in this process or in others, which make soups and evaluate them.

    Up to `slots` requests are worth sending at once.
    """

    lost: int = 0
    """Workers that died during the run and were replaced."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """{name of a benchmark: fingerprint of its evaluator}, as this process sees it."""
        return {}

    @property
    def slots(self) -> int:
        return 1

    @abstractmethod
    def put(self, request: Request) -> Response | None:
        """Send a request. A worker in this process answers at once, the others when `take` returns."""

    def take(self) -> tuple[Request, Response]:
        """Wait for one of the requests that were sent; what is answered first comes first."""
        raise LookupError("no request is open")

    def close(self) -> None:
        return None


class Executor(Component, ABC):
    """Settings of where soups are made and evaluated. The driver alone writes to the store, whatever the choice.

    Unless it `evaluates_here`, on machines of the run, this machine does not need what evaluators need.
    """

    evaluates_here: bool = True

    @abstractmethod
    def start(self, here: Workers, elsewhere: Callable[[], Workers]) -> Workers:
        """The worker `here`, or workers in other processes, each of which calls `elsewhere` once."""
