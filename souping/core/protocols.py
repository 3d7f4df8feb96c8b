"""Base classes of the exchangeable components. They declare every member that souping uses, with a default if possible.

A component subclasses one of these classes, implements the abstract methods and inherits the rest. If a field of a
component has the name of a member below, the field needs a default of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from souping.core.text import listed, named
from souping.core.types import (
    Correlations,
    FloatArray,
    Item,
    Json,
    Missing,
    Names,
    Query,
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

ModelForm = Literal["module", "folder", "chunks"]
Correlation = Callable[[FloatArray], Correlations]
"""scores [M, C] -> correlations [C, C] with intervals."""


class Component:
    """Component with optional dependencies. It may keep processes or memory alive between soups."""

    def needs(self) -> list[Missing]:
        """Packages, environments and services that are missing on this machine. Must not load or start anything."""
        return []

    def close(self) -> None:
        """Release processes, files and memory."""
        return None


class Selector(ABC):
    """Rule that picks the ingredients by their scores, among the `candidates` of the score matrix.

    The categories in `exclude` do not count for the selection, but they do count for the objective.
    """

    exclude: Sequence[str] = ()

    @property
    def label(self) -> str:
        """Name of the rule in `selection.json` and in plans."""
        return type(self).__name__.lower()

    @abstractmethod
    def select(self, scores: ScoreMatrix) -> Selection:
        """The ingredients, and why. `select_checked` calls it."""

    def select_checked(self, scores: ScoreMatrix) -> Selection:
        """Call `select`, which may be user code, and check its result.

        Raises:
            UserError: the result is not a selection, is empty, repeats an ingredient, or names an unknown candidate or
                category.
        """
        selection = self.select(scores)
        name = named(self)  # for the messages
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
        """Reject settings that cannot work with a score matrix of this size (UserError). Called before any evaluation.

        `models` is the number of rows of the matrix, `candidates` the number of rows that may be picked.
        """
        return None

    def sizes(self, candidates: int) -> tuple[int, ...]:
        """Possible numbers of ingredients for this many candidates, in ascending order."""
        return tuple(range(1, candidates + 1))

    @property
    def picks_best(self) -> bool:
        """Whether the ingredients are the candidates with the best objective."""
        return False

    @property
    def deciding_threshold(self) -> float | None:
        """The threshold that decides what is picked, if the rule has one."""
        return None

    def with_threshold(self, threshold: float) -> Selector:
        """A copy of this selector with another threshold."""
        return self

    @property
    def deciding_correlation(self) -> Correlation | None:
        """The correlation that decides what is picked, if the rule uses one."""
        return None


class Search(ABC):
    """A weight search in progress, started by an `Optimiser`.

    Several queries may be open at once, and their results may arrive in any order. Queries depend on the seed and on
    earlier results but not on the limits, so a run with a larger budget continues where a smaller one stopped. `ask`
    returns None while it waits for a result. If no query is open, None means that the search has ended.
    """

    @abstractmethod
    def ask(self) -> Query | None:
        """The next query; None if it waits for a result or has ended."""

    @abstractmethod
    def tell(self, query: Query, result: Result) -> None:
        """Take in the result of a query that `ask` returned."""

    @abstractmethod
    def best(self) -> Weights:
        """The weights of the soup to choose, by the results so far (UserError if there are none)."""

    def summary(self) -> SearchEnd | Mapping[str, Json]:
        """Facts about the finished search, for `report.json`."""
        return {}


class Optimiser(ABC):
    """Settings of a weight search, a choice of the group `optimiser`. `start` returns the `Search` that runs it.

    `max_trials` limits the number of soups, and `max_items` the number of evaluated items. With a base model, the
    weights may also sum to one of the `scales`.
    """

    max_trials: int | None = None
    max_items: int | None = None
    scales: Sequence[float] = ()

    @abstractmethod
    def start(self, space: SearchSpace, seed: int) -> Search:
        """A search over the weights of the ingredients of this space."""

    @abstractmethod
    def count(self, size: int) -> int | None:
        """Largest number of soups that it evaluates for `size` ingredients; None if it has no such number."""

    @abstractmethod
    def describe(self, size: int) -> str:
        """The search over `size` ingredients in a few words, for the terminal."""

    def known_points(self, size: int) -> Sequence[Weights] | None:
        """All weights that the search will evaluate, if they are known in advance."""
        return None

    def predicted_points(self, size: int) -> Sequence[Weights] | None:
        """All weights whose scores the search predicts, evaluated or not; None if it predicts none."""
        return None

    @property
    def extrapolates(self) -> bool:
        """Whether it gives weights below 0, which only a merge takes."""
        return False

    @property
    def uses_singles(self) -> bool:
        """Whether the search needs the scores of the single ingredients before it starts."""
        return False

    def workload(self, size: int, items: int) -> tuple[int, int] | None:
        """Expected and maximum number of items that the search evaluates, on a split of this size.

        None if the search evaluates whole splits.
        """
        return None


class Objective(ABC):
    """What a search maximises, as one number computed from the category means.

    `coefficients` returns the weight w_c of each category in the order of `categories`; the weights sum to one. If the
    objective is not `linear`, `value` defines what is maximised, and the coefficients only say how much an item counts.
    """

    linear: bool = True

    @property
    def name(self) -> str:
        """Name of the objective in `report.json`."""
        return type(self).__name__.lower()

    @abstractmethod
    def coefficients(self, categories: Sequence[str]) -> FloatArray:
        """The weights w_c, [C]."""

    def value(self, means: FloatArray, categories: Sequence[str]) -> FloatArray:
        """The objective for category means of shape [..., C]."""
        return np.asarray(means @ self.coefficients(categories))

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """{group: its categories}; empty if the objective has no groups."""
        return {}

    def notes(self, categories: Sequence[str]) -> list[str]:
        """Remarks for the report on how this objective treats these categories."""
        return []


class BenchmarkItems(ABC):
    """Source of items.

    `title` is its name. Reports show `label` and `note`. `splits` overrides the default shares of the splits.
    """

    splits: Mapping[str, float] | None = None
    from_evaluator: bool = False
    """Whether the items are chosen from those that the evaluator brings, which `brought_by` opens."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Name of the benchmark."""

    @abstractmethod
    def items(self) -> tuple[Item, ...]:
        """All items (UserError if they cannot be read)."""

    @property
    def label(self) -> str:
        """Name that reports show."""
        return self.title

    @property
    def note(self) -> str:
        """Remark that reports show beside the name; empty for none."""
        return ""

    @property
    def banner(self) -> str:
        """Line to print at the start of a run on these items; empty for none."""
        return ""

    def brought_by(self, prompts: Prompts) -> BenchmarkItems:
        """The items of a run with an evaluator of these `prompts` (UserError if they are not available here)."""
        return self

    def outline(self, prompts: Prompts) -> tuple[Item, ...]:
        """Items without content, to plan with if `brought_by` has none here; empty if their numbers are unknown."""
        return ()


class ScoreSource(ABC):
    """Source of the scores for the selection: an evaluation of the candidates, or a published table."""

    published: bool = False

    @property
    def models(self) -> Names:
        """The models that have published scores; empty if the candidates are evaluated."""
        return ()

    @abstractmethod
    def matrix(self, candidates: Sequence[str], measure: Callable[[], ScoreMatrix]) -> ScoreMatrix:
        """Score matrix of the candidates. `measure` evaluates them, if there are no published scores."""


@frozen
class ModuleSettings:
    """Settings of the live module that takes on each soup. Evaluators with equal settings share one module."""

    device: str = "cpu"
    dtype: str | None = "float32"
    trust_remote_code: bool = False


@frozen
class ModelHost:
    """Engine or server that runs the model in separate processes.

    It spreads the model over `gpus` GPUs (0: no GPU is required) and uses `fraction` of their memory. `url` is set if
    the server is not started by souping.
    """

    dtype: str | None = None
    gpus: int = 0
    fraction: float = 1.0
    url: str | None = None


@frozen
class WeightChunk:
    """Consecutive tensors of a model in `nbytes` bytes; `fill` mixes them into memory of that size."""

    # (name, dtype by torch's name, shape, first byte in the chunk) of each tensor
    tensors: Sequence[tuple[str, str, tuple[int, ...], int]]
    nbytes: int
    fill: Callable[[memoryview], None]


@frozen
class WeightStream:
    """Weights for an engine that runs a model with this config.json. A chunk is only in memory once it is filled."""

    config: str
    chunks: Callable[[], Iterator[WeightChunk]]


@frozen
class WeightSamples:
    """Values at fixed positions of an engine's tensors, after it fused, split and packed them.

    `unchecked` names the tensors that the engine holds in a form without the checkpoint's values. `adapters` if the
    values are those of an adapter alone, without its base.
    """

    tensors: tuple[tuple[str, str, int], ...]
    """(name, dtype by torch's name, number of values) of each tensor, in the order of `values`"""
    values: NDArray[np.float32]
    unchecked: Names = ()
    adapters: bool = False


@frozen
class AdapterShape:
    """What an engine must know before it takes a pool's soups as adapters.

    `rank` is the largest rank of a soup; `modules` are the last parts of the adapted modules' names. `settings` are
    those of PEFT by which the adapters have tensors beside A and B.
    """

    base: Path
    rank: int
    modules: Names
    settings: Names = ()


@frozen
class SoupAdapter:
    """Soup that is an adapter, as a folder."""

    folder: Path
    shape: AdapterShape


class LoadedModel(ABC):
    """A model that is ready for evaluation: a live module with its tokenizer, a folder, or weights in chunks.

    A run's are `soups.serving.LoadedSoup`; a test of an evaluator brings one that holds a module or a folder to
    `souping.testing.check_evaluator`.

    `soup` identifies the model. `eos_token_ids` are the end-of-answer tokens of all ingredients; empty if no ingredient
    defines any.
    """

    soup: str
    eos_token_ids: tuple[int, ...]

    @property
    @abstractmethod
    def module(self) -> PreTrainedModel:
        """The live module with the weights of this model."""

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the live module."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Folder of the model in the format of Hugging Face."""

    @property
    def stream(self) -> WeightStream | None:
        """The weights in chunks; None where the model comes as a folder."""
        return None

    @property
    def adapter(self) -> SoupAdapter | None:
        """The soup as an adapter; None if it is a full model."""
        return None

    @property
    def ingredient_folder(self) -> Path | None:
        """Folder that an engine loads before `stream` replaces the weights; None: `folder` has to be written for it."""
        return None

    @property
    def half(self) -> LoadedModel | None:
        """The model with all weights halved, to test whether an engine that was started with this model takes new ones.

        The engine loads the halved weights, and then this model's again. None if that would show nothing.
        """
        return None

    def check_weights(self, samples: WeightSamples) -> None:
        """Compare what an engine holds after it loaded this model (UserError if that is another model)."""
        return None


@frozen
class Hosting:
    """How an evaluator receives models (those that do not come in chunks come as a folder), and where they run.

    `device` is the configured device of the live module: cpu, cuda, cuda:N, mps, or auto. `host` is the engine or
    server that runs the model in separate processes, if there is one. `command` gives the words of a command that
    anybody can run in place of `evaluate`, from the model's folder, the file of items, and the folder for the log.
    """

    model_form: ModelForm = "module"
    device: str = "cpu"
    host: ModelHost | None = None
    command: Callable[[Path, Path, Path], Sequence[str]] | None = None

    def module_settings(self) -> ModuleSettings:
        """How to load the live module."""
        return ModuleSettings()

    def check_adapters(self, shape: AdapterShape) -> None:
        """Refuse soups that stay adapters of this shape, if the engine or server cannot take them (UserError)."""
        if self.model_form == "folder":
            raise UserError(
                "soups stay adapters, and are evaluated as full models: set merge.adapters=merge"
            )

    @property
    def engine_version(self) -> str:
        """Name and version of the engine that answers, for the report; empty if it is not known."""
        return ""

    def release(self, soup: str, items: Sequence[Item]) -> None:
        """Called once the records of these items are stored, or need not be. What was kept for them may be deleted."""
        return None


class Prompts:
    """How an evaluator presents items to a model, and the items that it provides itself."""

    brings_items: bool = False
    """Whether the evaluator provides its own items. It then accepts no others."""

    @property
    def benchmark(self) -> BenchmarkItems | None:
        """The evaluator's own items (UserError if they are not available)."""
        return None

    def outline(self) -> tuple[Item, ...]:
        """Items without content, in the published numbers of the evaluator's benchmark; empty if they are unknown."""
        return ()

    def banner(self) -> str:
        """Line on how items are prompted, to print at the start of a run."""
        return ""

    def check(self, candidates: Sequence[str]) -> None:
        """Reject settings that do not fit these candidates or this machine (UserError). Called before any work."""
        return None

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Reject items that the tokenizer in `folder` cannot encode (UserError). Called before any work."""
        return None

    def pool_notes(self, folders: Mapping[str, Path]) -> list[str]:
        """Notes for the report on how these candidates are prompted."""
        return []

    def prompt_notes(self, folder: Path, items: Sequence[Item]) -> list[str]:
        """Likely mistakes in the prompts that the tokenizer in `folder` makes of these items."""
        return []


@frozen
class Sampling:
    """How a model answers items.

    Each item gets `answers_per_item` answers, its repeats 0, 1, and so on. Fewer items at a time than `full_batch`
    are slow. `blocks_matter` if an answer may depend on the rest of its batch, by rounding. `length_key` is
    the key of the setting that limits the tokens of an answer, and `answer_tokens` its value, None if it is not set.
    """

    answers_per_item: int = 1
    full_batch: int = 1
    blocks_matter: bool = True
    answer_tokens: int | None = None
    length_key: str = ""


@frozen
class Scoring:
    """How answers become scores.

    If an item has several answers, `aggregate` says how their scores are combined: `mean`, or `pass` (the best one).
    `scored_by` is what the score of an answer depends on, such as the version of a harness.
    """

    aggregate: str = ""
    scored_by: Json = None

    @property
    def whole_splits(self) -> bool:
        """Whether scores need the whole split, as corpus metrics do."""
        return False

    def item_scores(self, items: Sequence[Item], records: Sequence[Sequence[Record]]) -> FloatArray:
        """Values [I] whose mean over the items of a category is the category's score.

        `records` [I] are the answers to each item. A subclass may need the `items`.
        """
        from statistics import fmean

        joined = max if self.aggregate == "pass" else fmean
        scores = []
        for answers in records:
            scores.append(joined([record.score for record in answers]))
        return np.array(scores)

    def scorer_digest(self, item: Item) -> str:
        """Digest of what scores the item's answers, without the reference. Scores compare only under equal digests."""
        code = item.user_scorer.digest if item.user_scorer else ""
        return digest([item.scorer, code, self.scored_by])

    def rescore(self, item: Item, answer: Record) -> Record | None:
        """A stored answer with its new score; None if the model has to answer again."""
        return None


EVALUATOR_PARTS = {"prompts": Prompts, "sampling": Sampling, "scoring": Scoring, "hosting": Hosting}


class Evaluator(Component, ABC):
    """Evaluates a model on items and returns one record per item.

    All other properties of an evaluator are in its parts `prompts`, `sampling`, `scoring` and `hosting`.
    """

    def __init_subclass__(cls) -> None:
        """Reject a class that defines a member of one of its parts, because nothing would read it (UserError).

        A field may have the name of such a member.
        """
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
        """Unit and direction of the scores, and whether they are fractions of 1. External tools may use any unit."""
        return POINTS

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Json]:
        """Everything that an answer or a score depends on besides the model, the item and its batch."""

    @abstractmethod
    def batches(self, items: Sequence[Item], repeat: int = 0) -> list[tuple[Item, ...]]:
        """The items of a whole split in batches, by a fixed rule. A batch is answered and stored together."""

    @abstractmethod
    def evaluate(self, model: LoadedModel, items: Sequence[Item], repeat: int = 0) -> list[Record]:
        """Answers of a model with scores to a batch of items, in their order. `repeat` numbers an item's answers."""

    def for_pool(self, architecture_folder: Path, folders: Mapping[str, Path]) -> Evaluator:
        """A copy of this evaluator, in which settings that were left open are read from the candidates' files.

        Raises:
            UserError: the files disagree or cannot be read.
        """
        return self

    def for_recipe(self, recipe: Recipe) -> Evaluator:
        """A copy of this evaluator with its settings for one model, whose answers the store keys by its fingerprint."""
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


def evaluator_fingerprint(evaluator: Evaluator) -> str:
    """Digest of an evaluator's settings, which keys its answers in the store (UserError if they are no JSON)."""
    try:
        return digest(dict(evaluator.settings))
    except TypeError as error:
        plain = "a dict of texts, numbers, lists and dicts"
        raise UserError(f"evaluator {named(evaluator)}: settings are {plain}: {error}") from None


class Tracker(Component, ABC):
    """Sends the results of a run elsewhere. If a tracker fails, there is a warning, and the run continues."""

    @property
    def hint(self) -> str:
        """Command that uploads or shows what was recorded, to print at the end of the run; empty for none."""
        return ""

    @abstractmethod
    def start(self, config: Mapping[str, Json], run_dir: Path) -> None:
        """Begin a run with this configuration, whose files are in `run_dir`."""

    @abstractmethod
    def log(self, trial: Trial) -> None:
        """Record one evaluated soup."""

    def finish(
        self, report: Mapping[str, Json] | None, run_dir: Path, soup: Path | None = None
    ) -> None:
        """End of the run. `report` is the content of report.json, and `soup` the folder of the winner.

        Each is None if the run did not write it.
        """
        return None

    def summarise(self, jobs: Sequence[Mapping[str, Json]], run_dir: Path) -> None:
        """Called once at the end of a multirun, with its jobs."""
        return None


class Workers(ABC):
    """Pool and evaluators that make soups and evaluate them, in this process or in others.

    It is not worth sending more than `slots` requests at once.
    """

    lost: int = 0
    """Number of workers that died during the run and were replaced."""
    min_items: int = 1
    """Fewer items are not worth a request of a search, unless its split is smaller."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """{benchmark: fingerprint of its evaluator}, as computed in this process."""
        return {}

    @property
    def slots(self) -> int:
        """Requests that may be open at once."""
        return 1

    @abstractmethod
    def put(self, request: Request) -> Response | None:
        """Send a request. A worker in this process returns the response; `take` returns those of the others."""

    def take(self) -> tuple[Request, Response]:
        """Wait for the next response to one of the requests that were sent, whichever is ready first."""
        raise LookupError("no request is open")

    def close(self) -> None:
        """End the workers."""
        return None


class Executor(Component, ABC):
    """Where soups are made and evaluated. In any case, only the driver writes to the store.

    Unless it `evaluates_here`, this machine does not need what the evaluators need, and `start` is not called: soups
    are handed to jobs outside of souping, `max_open` at once, as recipes or (`write_models`) folders. A job loads a
    model, so a search gives it `min_items` items or more, or the whole split.
    """

    evaluates_here: bool = True
    max_open: int = 1
    write_models: bool = False
    min_items: int = 1

    def handing_out(self, max_open: int | None, write_models: bool) -> Executor:
        """A copy with another `max_open`, if it is given, that writes models if this one does or `write_models`."""
        return self

    @abstractmethod
    def start(self, here: Workers, elsewhere: Callable[[], Workers]) -> Workers:
        """Return `here`, the workers of this process, or start others, each of which calls `elsewhere` once."""
