"""`evaluator=lm_eval`: tasks of lm-evaluation-harness on the live module."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, is_dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from souping.checkpoints.compatibility import chat_template
from souping.core.fields import component, pick
from souping.core.protocols import BenchmarkItems, LoadedModel, Prompts, Sampling, Scoring
from souping.core.text import nearest
from souping.core.types import (
    FloatArray,
    Folders,
    Item,
    Items,
    JsonObject,
    Missing,
    Recipe,
    Record,
    UserError,
    digest,
    frozen,
)
from souping.core.unit import Unit
from souping.evaluate.benchmark import outline_items
from souping.evaluate.lm_eval.logged_responses import LoggedModel, responses_at
from souping.evaluate.lm_eval.metrics import pseudo_values
from souping.evaluate.lm_eval.model import harness_model, run_harness
from souping.evaluate.lm_eval.tasks import (
    IN_ITEMS,
    NEUTRAL_KEYS,
    Document,
    HarnessSettings,
    Loaded,
    decoding_of,
    load_documents,
    naming_task,
    published_sizes,
    require,
)
from souping.evaluate.machine import cut_by_length, repeat_size
from souping.evaluate.templates import PROCESS, generation_notes
from souping.evaluate.tool_arguments import missing_tool

if TYPE_CHECKING:
    from lm_eval.api.task import Task

HARNESS_EVALUATOR_VERSION = 2
"""Raise when the same settings would give other answers or scores: old rows in stores are then left alone."""
BATCHES = 8
"""Batches in a block of items that is stored at once: HFLM sorts them by length, and a kill loses few."""
LONGEST_LABEL_CHARS = 80
"""Characters of a category or group as it stands in a column; a longer group goes by its hash."""


@frozen
class HarnessBenchmark(BenchmarkItems):
    """Documents of the evaluator's tasks as a benchmark."""

    evaluator: HarnessEvaluator

    title = "lm_eval"

    def items(self) -> Items:
        """One item per document.

        Raises:
            UserError: the extra is absent, a task is unknown or cannot be loaded, or a column is not there.
        """
        items = list[Item]()
        for loaded in self.evaluator.loaded.values():
            items += _items_of(loaded, self.evaluator.category, self.evaluator.group)
        if not items:
            raise UserError("evaluator.tasks have no documents: check their data")
        return tuple(items)


@frozen
class HarnessItem(Item):
    """Document of a task, with the digests that `Item` computes given as fields.

    `prompt_digest` covers the document too, as the prompts of some tasks are the choices alone. `answer_digest` covers
    the task's settings and the few-shot examples. The metric is among them, so `scorer_digest` is empty.
    """

    prompt_digest: str = field()
    answer_digest: str = field()
    scorer_digest: str = field(default="")


@frozen
class HarnessPrompts(Prompts):
    """Prompts that the evaluator's tasks build from their documents."""

    brings_items = True

    evaluator: HarnessEvaluator

    @property
    def benchmark(self) -> HarnessBenchmark:
        """The items that the tasks bring."""
        return HarnessBenchmark(evaluator=self.evaluator)

    def outline(self) -> Items:
        """Items without content, if the sizes of all tasks are published; otherwise none."""
        sizes = published_sizes(self.evaluator.tasks)
        # With `doc`, documents of the same number are one group in all tasks.
        shared = sizes if self.evaluator.group == "doc" else ()
        return outline_items(sizes, shared)

    def check(self, candidates: Sequence[str]) -> None:
        """Refuse logs of models that are no candidates, folders without a log, and logs together with `repeats`."""
        logs = self.evaluator.logs or {}
        for name, path in logs.items():
            pick(name, candidates, "evaluator.logs")
            # Raises an error if there is no log.
            responses_at(path)
        if logs and self.evaluator.sampling.answers_per_item > 1:
            raise UserError(
                "evaluator.logs hold one greedy answer per item: leave evaluator.repeats out"
            )

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse a tokenizer without a chat template if prompts need one (UserError)."""
        if self.evaluator.apply_chat_template and not chat_template(folder):
            raise UserError(
                f"evaluator.apply_chat_template: the tokenizer in {folder} has no chat template"
            )

    def pool_notes(self, folders: Folders) -> list[str]:
        """Notes on the code of task files that ran, and on the candidates' generation_configs, which are not used."""
        tasks = self.evaluator.loaded.values()
        code = dict.fromkeys(chain.from_iterable(task.code for task in tasks))
        notes = [f"evaluator.allow_task_code: ran {line}" for line in code]
        if any(task.generates for task in tasks):
            notes += generation_notes(folders)
        return notes


@frozen
class HarnessScoring(Scoring):
    """Scores by the metrics of the evaluator's tasks."""

    evaluator: HarnessEvaluator

    @property
    def whole_splits(self) -> bool:
        """Whether a task has a corpus metric, which needs all items of a category."""
        return any(task.metric.kind != "mean" for task in self.evaluator.loaded.values())

    def item_scores(self, items: Sequence[Item], records: Sequence[Sequence[Record]]) -> FloatArray:
        """[I] values whose mean over a category's items is its score: for a corpus metric, influence pseudo-values.

        Raises:
            UserError: a category holds items of a corpus metric together with others.
        """
        # With `pass`, only the best answer to an item counts.
        counted: Sequence[Sequence[Record]] = records
        if self.aggregate == "pass":
            counted = [[max(answers, key=lambda record: record.score)] for answers in records]
        means = list[float]()
        for answers in counted:
            means.append(float(np.mean([record.score for record in answers])))
        values = np.array(means)

        # In categories with a corpus metric, pseudo-values replace the means.
        numbers_of: dict[str, list[int]] = {}
        for number, item in enumerate(items):
            numbers_of.setdefault(item.category, []).append(number)
        for category, numbers in numbers_of.items():
            kinds = {self._task_of(items[number]).metric.kind for number in numbers}
            if kinds == {"mean"}:
                continue
            if len(kinds) > 1:
                raise UserError(
                    f"category {category} mixes {' and '.join(sorted(kinds))}: one score needs one kind of metric; "
                    "set evaluator.metric or evaluator.category"
                )
            # Sufficient statistics of the items, [n, S], which the metric sums.
            statistics = []
            for number in numbers:
                statistics.append(
                    np.mean([record.statistics for record in counted[number]], axis=0)
                )
            values[numbers] = pseudo_values(kinds.pop(), statistics)
        return values

    def scorer_digest(self, item: Item) -> str:
        """Digest of the task's metric with its filter, settings and code."""
        loaded = self._task_of(item)
        process = loaded.task.get_config("process_results")
        described = [_plain(part) for part in (loaded.metric, process, type(loaded.task))]
        return _hash([*described, _filters(loaded)])

    def _task_of(self, item: Item) -> Loaded:
        """The task that an item is a document of."""
        task, _ = _document(item)
        return self.evaluator.loaded[task]


class HarnessSession:
    """What an evaluator keeps between calls.

    The tasks are loaded once and shared with copies of the evaluator. `log` is the path of an lm_eval log of the model
    that is evaluated; empty for none.
    """

    def __init__(self) -> None:
        self.log = ""
        # {leaf task: the task}; empty until they are needed
        self._tasks: dict[str, Loaded] = {}

    def loaded(self, evaluator: HarnessEvaluator) -> dict[str, Loaded]:
        """{leaf task: the task}, loaded by the settings of `evaluator` at the first call."""
        if not self._tasks:
            # Not a new dict: other sessions share this one.
            self._tasks.update(load_documents(evaluator))
        return self._tasks

    def share(self, session: HarnessSession, log: str) -> None:
        """Use the tasks of another session, loaded or not, and this log."""
        self.log = log
        self._tasks = session._tasks


@component
class HarnessEvaluator(HarnessSettings):
    """Evaluator of a live module by any tasks of lm-evaluation-harness, a record for every document.

    `logs` is {candidate: output folder of lm_eval}: what is there for the same document and prompt is not generated
    again. The task scores it anew.
    """

    unit = Unit(fractions=False)  # a task's own metric may count to 100, or below 0

    logs: dict[str, str] | None = None
    _session: HarnessSession = field(
        default_factory=HarnessSession, init=False, repr=False, compare=False
    )

    def for_pool(self, architecture_folder: Path, folders: Folders) -> Self:
        """As `MachineEvaluator.for_pool`; the copy shares the tasks that are loaded."""
        copy = super().for_pool(architecture_folder, folders)
        copy._session.share(self._session, self._session.log)
        return copy

    def for_recipe(self, recipe: Recipe) -> Self:
        """A copy with the log of the model, which only a candidate may have; this evaluator if it has that log."""
        log = ""
        # A recipe of one ingredient is a candidate.
        if self.logs and len(recipe.ingredients) == 1:
            log = self.logs.get(recipe.ingredients[0], "")
        if log == self._session.log:
            return self
        copy = replace(self)
        copy._session.share(self._session, log)
        return copy

    def needs(self) -> list[Missing]:
        return missing_tool("lm_eval", self.args, "evaluator.args")

    @property
    def loaded(self) -> dict[str, Loaded]:
        """{leaf task: the task}, loaded at the first access."""
        return self._session.loaded(self)

    @property
    def settings(self) -> JsonObject:
        """Everything that a score depends on, apart from the model and the item.

        Settings that choose or label items are not part of it, nor those that an item's own digest covers.
        """
        require()
        machine = self.machine
        args = {name: value for name, value in self.arguments.items() if name not in IN_ITEMS}
        return {
            **args,
            "batch_size": self.batch_size,
            "trust_remote_code": self.trust_remote_code,
            "sampling_seed": self.seed,
            "apply_chat_template": self.apply_chat_template,
            "threads": machine.resolved_threads,
            "device": machine.resolved_device,
            "dtype": machine.resolved_dtype,
            "evaluator": "lm_eval",
            "version": HARNESS_EVALUATOR_VERSION,
            "lm_eval": version("lm_eval"),
        }

    @property
    def prompts(self) -> Prompts:
        return HarnessPrompts(evaluator=self)

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            answers_per_item=self.repeats,
            full_batch=self.batch_size,
            length_key="evaluator.gen_kwargs={max_gen_toks: N}",
        )

    @property
    def scoring(self) -> Scoring:
        return HarnessScoring(aggregate=self.aggregate, evaluator=self)

    def batches(self, items: Sequence[Item], repeat: int = 0) -> list[Items]:
        """Blocks of several batches, of items of similar length."""
        size = BATCHES * self._batch_size(repeat)
        return cut_by_length(items, lambda item: len(item.prompt), size)

    def _batch_size(self, repeat: int) -> int:
        """Batch size for the answers of this `repeat`: a different one for repeated greedy answers (`repeat_size`)."""
        # The first answers need no task, which would have to be loaded.
        if not repeat:
            return self.batch_size
        tasks = self.loaded.values()
        sampled = any(decoding_of(task.generation_kwargs, self).temperature for task in tasks)
        return repeat_size(self.batch_size, sampled, repeat)

    def evaluate(self, model: LoadedModel, items: Sequence[Item], repeat: int = 0) -> list[Record]:
        """A record for every item, in order.

        Raises:
            UserError: HFLM refuses the model, or a task's own code fails.
        """
        import torch

        torch.set_num_threads(self.machine.resolved_threads)
        # {task: {number of a document: its item}}
        tasks: dict[str, dict[int, Item]] = {}
        for item in items:
            task, number = _document(item)
            tasks.setdefault(task, {})[number] = item
        documents = {task: sorted(numbers) for task, numbers in tasks.items()}
        # The harness numbers a task's chosen documents anew, from 0 on.
        item_at = dict[tuple[str, int], Item]()
        for task, numbers in documents.items():
            for place, number in enumerate(numbers):
                item_at[task, place] = tasks[task][number]
        lm = harness_model(model, self, item_at, repeat, self._batch_size(repeat))
        if self._session.log:
            lm = LoggedModel(lm, responses_at(self._session.log))
        records = run_harness(lm, self.loaded, documents, self)
        return [replace(records[item.id], repeat=repeat) for item in items]

    def close(self) -> None:
        """End the process that renders templates."""
        PROCESS.close()


# Items


def _document(item: Item) -> tuple[str, int]:
    """(task, number of the document) of an item, whose id is `TASK/NUMBER`."""
    task, _, number = item.id.rpartition("/")
    return task, int(number)


def _items_of(loaded: Loaded, category: str, group: str) -> Iterator[Item]:
    """An item for every document of a task, with the id `TASK/NUMBER`.

    `category` is `task` (the leaf task), `entry` (the name in `evaluator.tasks`) or `column:NAME` (a column of the
    documents); `group` is `item`, `doc` (the same document number in all tasks) or `column:NAME`.
    """
    task_digest = digest(
        [
            _settings(loaded.task),
            loaded.metric.scorer,
            _plain(loaded.metric.settings),
            _filters(loaded),
        ]
    )
    categories = {"task": loaded.name, "entry": loaded.entry}
    for number, doc in enumerate(loaded.docs):
        name = f"{loaded.name}/{number}"
        groups = {"item": name, "doc": f"doc {number}"}
        with naming_task(name):
            prompt = str(loaded.task.doc_to_text(doc))
            answer = str(loaded.task.doc_to_target(doc))
        yield HarnessItem(
            id=name,
            category=categories.get(category) or _column(doc, category, name, key="category"),
            group=groups.get(group) or _column(doc, group, name, key="group"),
            prompt=prompt,
            answer=answer,
            scorer=loaded.metric.scorer,
            prompt_digest=_hash([prompt, doc]),
            answer_digest=_hash([name, task_digest, doc, loaded.shots[number]]),
        )


def _column(doc: Document, setting: str, name: str, key: str) -> str:
    """The label of the document `name` by `evaluator.KEY=column:NAME` (`setting`): the text in that column.

    Raises:
        UserError: the column is absent, empty or not a text or number, or a category is too long to be shown.
    """
    column = setting.removeprefix("column:")
    value = doc.get(column)
    text = str(value)
    unusable = value in (None, "") or isinstance(value, list | dict)
    if unusable or (key == "category" and len(text) > LONGEST_LABEL_CHARS):
        hint = ""
        if column not in doc:
            hint = nearest(column, doc) or f"; its columns are {', '.join(doc)}"
        raise UserError(
            f"evaluator.{key}={setting}: document {name} has {value!r:.60} there, no {key}{hint}"
        )
    if len(text) <= LONGEST_LABEL_CHARS:
        return text
    # Questions may be grouped by a text as long as a book.
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _hash(value: Any) -> str:
    """SHA-256 of JSON-like data; an object of another type is hashed as its `str`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _settings(task: Task) -> JsonObject:
    """The part of a task's configuration on which answers depend, as JSON-like data, with its version and its code.

    Where the data is stored, and where the configuration was read from, is not part of it.
    """
    deciding = {
        key: value
        for key, value in vars(task.config).items()
        if key not in NEUTRAL_KEYS and value is not None
    }
    metadata = dict(deciding.get("metadata") or {})
    metadata.pop("config_source", None)
    plain: dict[str, Any] = _plain({**deciding, "metadata": metadata})
    return {
        **plain,
        "version": str(task.VERSION),
        "kind": type(task).__name__,
        "code": _code(type(task)),
    }


def _filters(loaded: Loaded) -> Any:
    """JSON-like form of the filters of answers after which the task's metric is computed."""
    filters = loaded.task.get_config("filter_list") or []
    return _plain([entry for entry in filters if entry.get("name") == loaded.metric.filter])


def _plain(value: Any) -> Any:
    """JSON-like form of a value of a task's configuration; a function becomes its name and the digest of its file."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    # The order of a set may be another one in each process.
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value), key=str)
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(vars(value))
    if isinstance(value, functools.partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if callable(value):
        return [getattr(value, "__qualname__", type(value).__name__), _code(value)]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _code(thing: Any) -> str:
    """Digest of the file that defines a function or class; empty for the harness's own, whose version is recorded."""
    try:
        path = inspect.getsourcefile(thing)
    # A builtin has no file.
    except TypeError:
        return ""
    if not path or (thing.__module__ or "").split(".")[0] == "lm_eval" or not Path(path).is_file():
        return ""
    return sha256(Path(path).read_bytes()).hexdigest()
