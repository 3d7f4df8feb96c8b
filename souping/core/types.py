"""Data types that components exchange.

From an item to a line of the report (down on the left, up on the right):

    optimiser   Query      weights, items of the split   Trial       a soup with all of its items: a line of trials.csv
                  |                                      ^
    search        |                                    Result      objective and category means, which `tell` gets
                  v                                      ^
    evaluation  Request   recipe, items                ItemScores  [I] of one model: a row of the report has their means
                  v                                      ^
    worker      Request   what the store lacks of a    Response    records of the block, stored before anything else
                  |       block of these items           ^
    engine        +-----> Answer  a text, its end ---> Record      the answer with its score

Standard library and numpy only. Shape legend: M models, C categories, I items, K ingredients.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, dataclass_transform

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Weights = tuple[float, ...]
Names = tuple[str, ...]
TokenIds = tuple[int, ...]
Folders = Mapping[str, Path]
"""{name: folder}"""
ProgressCallback = Callable[[int, int], None]
"""progress(bytes done, bytes in all)"""
Split = Literal["select", "search", "test"]
Outcome = Literal["finished", "truncated", "unanswered"]
"""How an answer ended: by the model or a stop text; by the limit of tokens; or there is no answer, for a reason."""
TOLERANCE = 1e-5
"""Tolerance on the sum of user-supplied weights."""
CONSTANT = 1e-9
"""Spread of scores (fractions of 1) up to which models count as equal."""
TEXT = "loss"
"""Scorer of an item that is a text without an answer: `evaluator=loss` scores the text itself."""
OUTCOMES: tuple[Outcome, ...] = ("finished", "truncated", "unanswered")
SPLITS: tuple[Split, ...] = ("select", "search", "test")
Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"
"""Value of JSON; texts are sequences too, so narrow by `str` first."""
JsonObject: TypeAlias = Mapping[str, "Json"]
"""Object of JSON, to read."""

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only dataclass: plain data."""
    return dataclass(frozen=True, kw_only=True)(cls)


class UserError(Exception):
    """Error that the user can fix. The message says what is wrong, where, and what to do, in one or two lines.

    `fix` is the remedy if the error knows one, mostly a command. The message is `what: fix` and then `more`; if `what`
    has the remedy inside a sentence, it stays where it is.
    """

    def __init__(self, what: str = "", *, fix: str = "", more: str = "") -> None:
        appended = f": {fix}" if fix and fix not in what else ""
        super().__init__(f"{what}{appended}{more}")
        self.what = what
        self.fix = fix
        self.more = more

    def at(self, where: str) -> UserError:
        """The same error with the place at which it was met in front."""
        return UserError(f"{where}: {self.what}", fix=self.fix, more=self.more)


class LateError(UserError):
    """A `UserError` after the run's results were written: they stay."""


def digest(value: Json) -> str:
    """SHA-256 (hex) of a JSON-like value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@frozen
class Missing:
    """Something that stops a run here; `fix` is its remedy, mostly a command, or empty."""

    what: str
    fix: str = ""

    @classmethod
    def from_error(cls, error: UserError) -> Missing:
        """The first line of what an error says, and its remedy."""
        return cls(what=error.what.partition("\n")[0], fix=error.fix)

    def error(self) -> UserError:
        """The error that refuses a run because of this."""
        return UserError(self.what, fix=self.fix)

    def sentence(self) -> str:
        """`what: fix`"""
        return str(self.error())


def refuse_start(reasons: Sequence[Missing]) -> None:
    """End a plan that found reasons why its run or merge cannot start here; do nothing without reasons.

    Raises:
        LateError: the plan was shown before, and what it wrote stays.
    """
    if not reasons:
        return
    further = ""
    if len(reasons) > 1:
        further = f" (and {len(reasons) - 1} more, see above)"
    raise LateError(f"this run cannot start here: {reasons[0].sentence()}{further}")


@frozen
class UserScorer:
    """Scorer of the user's: `function(item, output)` gives a fraction of 1, and `digest` is what decides it.

    `threads` is how many threads may call it at once.
    """

    name: str
    function: Callable[[Item, str], float] = field(compare=False, repr=False)
    digest: str
    threads: int = 1

    def __getstate__(self) -> dict[str, Any]:
        """The state to pickle: all but the function, since workers in other processes answer and do not score."""
        return {**vars(self), "function": None}


@frozen
class Item:
    """One example of a benchmark.

    `prompt` is a text, or chat messages (`{"role": ..., "content": ...}`); `tools` are the JSON schemas of functions,
    which the chat template shows the model. `answer` is what `scorer` compares with, `user_scorer` is set if that
    scorer is user code.
    Items that share content share a `group`: splits, bootstraps and permutations act on groups. Without one, items of
    equal prompts are a group.
    """

    id: str
    category: str
    prompt: str | tuple[Mapping[str, Any], ...]
    answer: Json
    scorer: str = "exact"
    group: str = ""
    language: str = "python"
    tools: tuple[Mapping[str, Any], ...] = ()
    user_scorer: UserScorer | None = None

    def __post_init__(self) -> None:
        """Derive the group from the prompt, or from the id if there is no prompt, unless one is given."""
        if self.group:
            return
        group = self.id
        if self.prompt:
            group = f"prompt {self.prompt_digest[:16]}"
        object.__setattr__(self, "group", group)

    @cached_property
    def prompt_digest(self) -> str:
        """Digest of what the model is shown; equal for the same item under another id, file or group."""
        prompt: Json
        if isinstance(self.prompt, str):
            prompt = self.prompt
        else:
            prompt = [dict(message) for message in self.prompt]
        return digest([prompt, [dict(tool) for tool in self.tools]])

    @property
    def text(self) -> str:
        """The prompt as one text, without what a chat template adds; the tools come last."""
        if isinstance(self.prompt, str):
            return self.prompt
        messages = [str(message.get("content") or "") for message in self.prompt]
        return "\n".join([*messages, str(self.tools or "")])

    @cached_property
    def answer_digest(self) -> str:
        """Digest of what an answer depends on, by which answers are stored."""
        return digest([self.id, self.prompt_digest])

    @cached_property
    def scorer_digest(self) -> str:
        """Digest of what the score of an answer depends on besides the answer."""
        inputs = [self.answer, self.scorer, self.language]
        if self.user_scorer:
            inputs.append(self.user_scorer.digest)
        return digest(inputs)

    @property
    def fingerprint(self) -> str:
        """Content of the item as far as a score depends on it."""
        return digest([self.answer_digest, self.scorer_digest])


Items = tuple[Item, ...]


@frozen
class Record:
    """Answer of one model to one item, and its score.

    `score` is a fraction of 1, `statistics` what a corpus metric sums (BLEU). `outcome` is how the answer ended,
    `reason` why there is none. `repeat` numbers the answers to one item. `tokens` are the answer's ids with its end,
    `prompt_tokens` counts the prompt's tokens, `prompt_key` is the digest of their ids and `prompt` the decoded text,
    if known. `seconds` is the answer's share of the time that its batch took.
    """

    item: str
    score: float
    output: str = ""
    statistics: tuple[float, ...] = ()
    outcome: Outcome = "finished"
    reason: str = ""
    repeat: int = 0
    tokens: TokenIds = ()
    prompt_tokens: int = 0
    prompt_key: str = ""
    prompt: str = ""
    seconds: float = 0.0


@frozen
class ItemScores:
    """Scores of one model on items, in the items' order; all arrays are [I].

    `truncated` and `unanswered` are shares of an item's answers, `noise` is the variance of an item's score over the
    draw of its answers (nan for a single answer), `lengths` are the mean numbers of tokens of an item's answers (0 if
    tokens are not counted), `reasons` is {why there is no answer: number of answers}. The answers cost `seconds` and
    numbers of `generated` and `prefilled` tokens when they were computed; `reused` answers came from the store.
    """

    items: Items
    values: FloatArray
    truncated: FloatArray = field(default_factory=lambda: np.zeros(0))
    unanswered: FloatArray = field(default_factory=lambda: np.zeros(0))
    noise: FloatArray = field(default_factory=lambda: np.zeros(0))
    lengths: FloatArray = field(default_factory=lambda: np.zeros(0))
    reasons: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    generated: int = 0
    prefilled: int = 0
    reused: int = 0

    def __post_init__(self) -> None:
        """Fill the arrays that were left out."""
        defaults = {"truncated": 0.0, "unanswered": 0.0, "noise": np.nan, "lengths": 0.0}
        for name, value in defaults.items():
            if not len(vars(self)[name]):
                object.__setattr__(self, name, np.full(len(self.values), value))

    def by_category(self) -> dict[str, FloatArray]:
        """{category: scores}, categories in order of first appearance."""
        names = np.array([item.category for item in self.items])
        return {name: self.values[names == name] for name in dict.fromkeys(names.tolist())}


@frozen
class ScoreMatrix:
    """Scores of models on categories, fractions of 1.

    `values` is [M, C]. `candidates` are the models that may become ingredients (all, if none are named); further models
    (of a leaderboard) only inform the correlations. `items` are {model: its item scores}, if they are known.
    """

    models: Names
    categories: Names
    values: FloatArray
    candidates: Names = ()
    items: Mapping[str, ItemScores] | None = None
    published: bool = False

    def __post_init__(self) -> None:
        if not self.candidates:
            object.__setattr__(self, "candidates", self.models)
        if self.values.shape != (len(self.models), len(self.categories)):
            raise ValueError(
                f"values {self.values.shape} must be [{len(self.models)}, {len(self.categories)}]"
            )

    def rows(self, models: Sequence[str]) -> FloatArray:
        """[len(models), C] scores of the named models, in that order."""
        place = {name: row for row, name in enumerate(self.models)}
        return self.values[[place[name] for name in models]]

    @property
    def constant(self) -> Names:
        """Categories in which all models have the same score, so that the category cannot rank them."""
        spread = np.ptp(self.values, axis=0)
        return tuple(
            name for name, width in zip(self.categories, spread, strict=True) if width <= CONSTANT
        )

    def without(self, names: Collection[str]) -> ScoreMatrix:
        """This matrix without some categories, and without item scores, which are of all categories."""
        columns = [number for number, name in enumerate(self.categories) if name not in names]
        return replace(
            self,
            categories=tuple(self.categories[n] for n in columns),
            values=self.values[:, columns],
            items=None,
        )

    @classmethod
    def from_items(cls, scores: Mapping[str, ItemScores]) -> ScoreMatrix:
        """Category means of per-item scores; the categories are in the order of their first items."""
        tables = {name: score.by_category() for name, score in scores.items()}
        categories = tuple(next(iter(tables.values())))
        values = np.zeros((len(tables), len(categories)))
        for m, table in enumerate(tables.values()):
            values[m] = [table[name].mean() for name in categories]
        return cls(models=tuple(scores), categories=categories, values=values, items=dict(scores))


EMA_KEY = "#ema"
"""End of a path FOLDER#ema: the average of the weights that a trainer keeps in the optimiser state of a checkpoint."""


@frozen
class Candidate:
    """Checkpoint in the pool: a folder, FOLDER#ema or a name on the Hub; `fingerprint` is the content of its weights,
    config and tokenizer, `source` its name on the Hub at its commit, `like` the folder or model of the Hub that has the
    config and tokenizer of a sharded checkpoint."""

    name: str
    path: Path
    fingerprint: str = ""
    source: str = ""
    like: Path | None = None

    @property
    def home(self) -> Path:
        """The folder, or Hub name, that has the candidate's config and tokenizer."""
        folder = Path(str(self.path).removesuffix(EMA_KEY))
        if self.like is None or (folder / "config.json").is_file():
            return folder
        return self.like


@frozen
class Recipe:
    """Ingredients + weights + method: everything that decides a soup's bytes.

    Ingredients with weight zero are dropped, so that a vertex of the simplex *is* that candidate: candidates,
    baselines, subsets and grid points that are the same soup have the same `id` and share their evaluations.
    `sources` is {ingredient: org/name@commit} of those that came from the Hub, no part of the `id`.
    """

    ingredients: Names
    fingerprints: tuple[str, ...]
    weights: Weights
    dtype: str
    method: str = "linear"
    settings: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Drop the ingredients without weight."""
        places = [place for place, weight in enumerate(self.weights) if weight != 0]
        for name in ("ingredients", "fingerprints", "weights"):
            values = vars(self)[name]
            object.__setattr__(self, name, tuple(values[place] for place in places))

    @property
    def fingerprint(self) -> str:
        """Digest of the content alone: the same soup under other names or paths has the same fingerprint."""
        settings = dict(self.settings)
        return digest(
            [list(self.fingerprints), list(self.weights), self.dtype, self.method, settings]
        )

    @property
    def id(self) -> str:
        """Short form of the fingerprint."""
        return self.fingerprint[:12]

    @property
    def shares(self) -> dict[str, float]:
        """{ingredient: weight}"""
        return dict(zip(self.ingredients, self.weights, strict=True))

    def as_dict(self) -> dict[str, Json]:
        """The JSON form, which `report.json`, the model card and `recipe.json` show."""
        sources = {name: self.sources[name] for name in self.ingredients if name in self.sources}
        table: dict[str, Json] = {
            "id": self.id,
            "ingredients": list(self.ingredients),
            "weights": list(self.weights),
            "method": self.method,
            "dtype": self.dtype,
            "settings": dict(self.settings),
            "fingerprints": list(self.fingerprints),
        }
        if sources:
            table["sources"] = sources
        return table

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Recipe:
        """A recipe from its JSON form; its `id` is computed again, and other keys are ignored."""
        return cls(
            ingredients=tuple(str(name) for name in table["ingredients"]),
            fingerprints=tuple(str(value) for value in table["fingerprints"]),
            weights=tuple(float(weight) for weight in table["weights"]),
            dtype=str(table["dtype"]),
            method=str(table.get("method", "linear")),
            settings=dict(table.get("settings", {})),
            sources={
                str(name): str(source) for name, source in (table.get("sources") or {}).items()
            },
        )


@frozen
class Correlations:
    """Correlation of every two categories over models with its 95 % interval; each array is [C, C]."""

    rho: FloatArray
    low: FloatArray
    high: FloatArray


@frozen
class Selection:
    """Ingredients, and why.

    `experts` maps each low-correlation category to its best candidate. `tied` maps each of them in which several
    candidates are equally good to all of these, the preferred one first. `clusters` are categories that share an
    expert. `categories` are those that counted, with their `correlations` by the coefficient `metric`. `threshold`,
    `sign` and `ties` are settings of the `selector`.
    `low_by_chance` is how many low-correlation categories there are on average if each category's scores are dealt to
    the models at random.
    """

    ingredients: Names
    selector: str = ""
    experts: Mapping[str, str] = field(default_factory=dict)
    clusters: tuple[Names, ...] = ()
    low_correlation: Names = ()
    low_by_chance: float | None = None
    metric: str = ""
    threshold: float | None = None
    sign: str = ""
    ties: str = ""
    tied: Mapping[str, Names] = field(default_factory=dict)
    categories: Names = ()
    correlations: Correlations | None = None
    notes: tuple[str, ...] = ()


@frozen
class Query:
    """Soup on items of the search split, by their positions in it; None stands for the whole split."""

    weights: Weights
    items: tuple[int, ...] | None = None


@frozen
class Result:
    """Result of a query: the objective and its parts (fractions of 1), and what the answers cost.

    `values` are the items' scores, and `lengths` the tokens of their answers. `tell` gets them in the query's order. In
    a trial they are those of the whole split, nan for an item without an answer. `objective` is nan if a category has
    no item here. `seconds` and `tokens` (generated) were measured when the answers were first given.
    """

    objective: float
    categories: Mapping[str, float]
    items: int
    values: FloatArray = field(default_factory=lambda: np.zeros(0), compare=False)
    lengths: FloatArray = field(default_factory=lambda: np.zeros(0), compare=False)
    seconds: float = 0.0
    tokens: int = 0


@frozen
class Bound:
    """Largest loss that a soup may have: `margin` on the mean of inner scores over some `categories`, or over all if
    none is named. With `lengths`, the margin is the share by which answers may get longer."""

    name: str
    margin: float
    categories: Names = ()
    lengths: bool = False

    def covers(self, categories: Sequence[str]) -> BoolArray:
        """Which items [I] the bound is about, by the items' categories; all if the bound names no categories."""
        return np.array(
            [not self.categories or name in self.categories for name in categories], dtype=bool
        )


@frozen
class SearchBounds:
    """Bounds on what a soup may lose to the model `against`, whose scores on the search split are the `reference`."""

    bounds: tuple[Bound, ...]
    against: str
    reference: ItemScores


@frozen
class SearchSpace:
    """Domain of a weight search: ingredients [K], and the search split item by item [I].

    `candidates` are all models of the pool, `categories` and `groups` those of each item [I].
    The `objective` of category means [..., C] is their mean weighted by `coefficients`, or `value` if it is not linear.
    `singles` [K, I] are the ingredients' own scores, if they are known, `lengths` [K, I] the tokens of their answers.
    Fewer than `full_batch` items at a time are slow; a request of `min_items` or more, or of a whole split, is worth
    its cost; with `whole` only whole splits may be evaluated (corpus metrics).
    """

    ingredients: Names
    candidates: Names = ()
    categories: Names = ()
    groups: Names = ()
    coefficients: Mapping[str, float] = field(default_factory=dict)
    value: Callable[[FloatArray], FloatArray] | None = None
    singles: FloatArray | None = None
    lengths: FloatArray | None = None
    bounds: SearchBounds | None = None
    full_batch: int = 1
    min_items: int = 1
    whole: bool = False

    def objective(self, means: FloatArray) -> FloatArray:
        """The objective of category means [..., C]."""
        if self.value:
            return np.asarray(self.value(means))
        return np.asarray(means @ np.array([*self.coefficients.values()]))


OWN_BENCHMARK = ""
"""Key of the run's own benchmark in mappings that have the extra benchmarks under their names."""


@frozen
class Request:
    """Items that a soup answers.

    Workers get one batch, with the number of the answer to each item (`repeat`) and the name of the `benchmark` whose
    evaluator computes it. `number` identifies open requests.
    """

    recipe: Recipe
    items: Items
    repeat: int = 0
    benchmark: str = OWN_BENCHMARK
    number: int = field(default=0, compare=False)


@frozen
class Response:
    """Records of a request in its items' order, and the seconds that they took without making the soup."""

    records: tuple[Record, ...]
    seconds: float


@frozen
class Trial:
    """One recipe evaluated inside a run.

    A trial that is not `whole` was dropped before it had answered all items: do not compare its means with others.
    `best` is the best objective up to this trial, which trackers get.
    """

    number: int
    recipe: Recipe
    weights: Weights
    result: Result
    reused: int = 0
    whole: bool = True
    best: float | None = None


@frozen
class StopReason:
    """Why a search stopped. If more answers promised too little, `gain` is what they promised (inner scores)."""

    reason: str
    gain: float | None = None


@frozen
class SearchEnd:
    """How a search ended, in inner scores.

    `indistinguishable` are soups that may be as good as the winner, the best first: not all of them if there are many.
    `finishing_gain` is what more answers would gain, `without_guards` the expected score of the best soup if there were
    no guards; None in a search without guards.
    """

    stopped: StopReason
    indistinguishable: tuple[Weights, ...]
    indistinguishable_count: int
    finishing_gain: float
    without_guards: float | None = None
