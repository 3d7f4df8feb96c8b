"""`evaluator=lm_eval`: tasks of lm-evaluation-harness on the live poured module."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, fields, is_dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.checkpoints.compatibility import chat_template
from souping.core.fields import component, pick
from souping.core.protocols import BenchmarkItems, LoadedModel
from souping.core.text import missing, nearest
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
from souping.evaluate.lm_eval.logged import LoggedModel, responses_at
from souping.evaluate.lm_eval.metrics import pseudo_values
from souping.evaluate.lm_eval.model import build, run
from souping.evaluate.lm_eval.tasks import (
    NEUTRAL_KEYS,
    Document,
    HarnessSettings,
    Loaded,
    load,
    naming_task,
    published_sizes,
    require,
)
from souping.evaluate.templates import PROCESS, generation_notes

if TYPE_CHECKING:
    from lm_eval.api.task import Task

HARNESS_EVALUATOR_VERSION = 2
"""Raise when the same settings would give other answers or scores: old rows in stores are then left alone."""
BATCHES = 8
"""Batches in a block of items that is stored at once: HFLM sorts them by length, and a kill loses few."""
IN_ITEMS = (
    "tasks", "include_path", "include_defaults", "metadata", "name", "limit", "samples", "metric", "filter", "category",
    "group", "num_fewshot", "gen_kwargs", "fewshot_random_seed", "confirm_run_unsafe_code", "allow_code", "dtype",
    "aggregate", "replicates", "logs",
)  # fmt: skip
"""Settings that are not part of the evaluator's fingerprint by themselves: they choose and label items, are in an
item's own, are in the fingerprint under another name, or do not change an answer."""
LONGEST_LABEL_CHARS = 80
"""Characters of a category or group as it stands in a column; a longer group goes by its hash."""


@frozen
class HarnessBenchmark(BenchmarkItems):
    """Documents of the tasks as a benchmark. Its title salts the folds: more tasks do not move old items."""

    evaluator: HarnessEvaluator

    @property
    def title(self) -> str:
        return self.evaluator.name

    def items(self) -> Items:
        """One item per document.

        Raises:
            UserError: the extra is absent, a task is unknown or cannot be loaded, or a column is not there.
        """
        category = self.evaluator.category
        group = self.evaluator.group
        items = tuple(
            item
            for one in self.evaluator.loaded.values()
            for item in _items_of(one, category, group)
        )
        if not items:
            raise UserError(
                "evaluator.tasks: no documents are left: check evaluator.samples and evaluator.limit"
            )
        return items


@component
class HarnessEvaluator(HarnessSettings):
    """Evaluator of a live module by any tasks of lm-evaluation-harness, a record for every document.

    `logs` is {candidate: output folder of lm_eval}: what is there for the same document and prompt is not generated
    again. The task scores it anew.
    """

    brings_items = True
    unit = Unit(fractions=False)  # a task's own metric may count to 100, or below 0
    length_key = "evaluator.gen_kwargs={max_gen_toks: N}"

    logs: dict[str, str] | None = None
    _log: str = field(default="", init=False, repr=False, compare=False)
    _tasks: dict[str, Loaded] = field(default_factory=dict, init=False, repr=False, compare=False)

    def for_recipe(self, recipe: Recipe) -> HarnessEvaluator:
        """This evaluator with the log of a candidate, if it has one."""
        path = (
            (self.logs or {}).get(recipe.ingredients[0], "") if len(recipe.ingredients) == 1 else ""
        )
        if path == self._log:
            return self
        copied = copy.copy(self)
        vars(copied)["_log"] = path
        return copied

    def check(self, candidates: Sequence[str]) -> None:
        """Refuse logs of others than the candidates, folders without any, and logs where answers are sampled."""
        for name, path in (self.logs or {}).items():
            pick(name, candidates, "evaluator.logs")
            responses_at(path)
        if self.logs and self.answers_per_item > 1:
            raise UserError(
                "evaluator.logs hold one greedy answer per item: leave evaluator.samples and replicates out"
            )

    def pool_notes(self, folders: Folders) -> list[str]:
        """What the candidates' own generation_config would have done, and the code of task files that ran."""
        code = dict.fromkeys(line for one in self.loaded.values() for line in one.code)
        ran = [f"evaluator.allow_code: ran {line}" for line in code]
        return (
            [*ran, *generation_notes(folders)]
            if any(one.generates for one in self.loaded.values())
            else ran
        )

    def needs(self) -> list[Missing]:
        return missing("lm_eval")

    @property
    def loaded(self) -> dict[str, Loaded]:
        """The tasks, read once."""
        if not self._tasks:
            self._tasks.update(load(self))
        return self._tasks

    @property
    def benchmark(self) -> HarnessBenchmark:
        """The items that the tasks bring."""
        return HarnessBenchmark(evaluator=self)

    def outline(self) -> Items:
        """Items without content, if the sizes of all tasks are published."""
        sizes = published_sizes(self.tasks)
        return outline_items(sizes, self.limit, shared=sizes if self.group == "doc" else ())

    @property
    def settings(self) -> JsonObject:
        """Everything that a score depends on, apart from the model and the item."""
        known = {
            f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in IN_ITEMS
        }
        known |= {
            "threads": self.resolved_threads,
            "device": self.resolved_device,
            "dtype": self.resolved_dtype,
        }
        require()
        own_version = {"version": HARNESS_EVALUATOR_VERSION, "lm_eval": version("lm_eval")}
        return {**known, "evaluator": "lm_eval", **own_version}

    def batches(self, items: Sequence[Item], replicate: int = 0) -> list[Items]:
        """Items of like length together, in an order that only the items decide.

        A greedy replicate has batches of another size, and so other neighbours.
        """
        order = sorted(items, key=lambda item: (len(item.prompt), item.id))
        size = BATCHES * self.batch_of(replicate)
        return [tuple(order[i : i + size]) for i in range(0, len(order), size)]

    def evaluate(
        self, model: LoadedModel, items: Sequence[Item], replicate: int = 0
    ) -> list[Record]:
        """A record for every item, in order.

        Raises:
            UserError: HFLM refuses the model, or a task's own code fails.
        """
        import torch

        torch.set_num_threads(self.resolved_threads)
        tasks: dict[str, dict[int, Item]] = {}
        for item in items:
            task, number = _document(item)
            tasks.setdefault(task, {})[number] = item
        documents = {task: sorted(own) for task, own in tasks.items()}
        placed = {
            (t, place): tasks[t][number]
            for t, own in documents.items()
            for place, number in enumerate(own)
        }
        lm = build(model, self, placed, replicate)
        lm = LoggedModel(lm, responses_at(self._log)) if self._log else lm
        records = run(lm, self.loaded, documents, self)
        return [replace(records[item.id], replicate=replicate) for item in items]

    @property
    def whole_folds(self) -> bool:
        """Corpus metrics are of all items of a category."""
        return any(one.metric.kind != "mean" for one in self.loaded.values())

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse a tokenizer without a chat template if prompts need one (UserError)."""
        if self.apply_chat_template and not chat_template(folder):
            raise UserError(
                f"evaluator.apply_chat_template: the tokenizer in {folder} has no chat template"
            )

    def item_scores(self, items: Sequence[Item], records: Sequence[Sequence[Record]]) -> FloatArray:
        """[I] values whose mean over a category's items is its score: influence values of a corpus metric.

        Raises:
            UserError: a category holds items of a corpus metric together with others.
        """
        counted: Sequence[Sequence[Record]] = records
        if self.aggregate == "pass":
            counted = [[max(answers, key=lambda record: record.score)] for answers in records]
        values = np.array([np.mean([record.score for record in answers]) for answers in counted])
        members: dict[str, list[int]] = {}
        for number, item in enumerate(items):
            members.setdefault(item.category, []).append(number)
        for category, numbers in members.items():
            kinds = {self.loaded[_document(items[n])[0]].metric.kind for n in numbers}
            if kinds == {"mean"}:
                continue
            if len(kinds) > 1:
                raise UserError(
                    f"category {category} mixes {' and '.join(sorted(kinds))}: one score needs one kind of metric; "
                    "set evaluator.metric or evaluator.category"
                )
            rows = [np.mean([record.statistics for record in counted[n]], axis=0) for n in numbers]
            values[numbers] = pseudo_values(kinds.pop(), rows)
        return values

    def scorer_digest(self, item: Item) -> str:
        """Digest of the task's metric with its filter, settings and code."""
        loaded = self.loaded[_document(item)[0]]
        process = loaded.task.get_config("process_results")
        return _hash([*map(_plain, (loaded.metric, process, type(loaded.task))), _filters(loaded)])

    def close(self) -> None:
        """End the templates' process."""
        PROCESS.close()


# Items


def _document(item: Item) -> tuple[str, int]:
    """Task and number of the document that an item is."""
    task, _, number = item.id.rpartition("/")
    return task, int(number)


def _items_of(loaded: Loaded, category: str, group: str) -> Iterator[Item]:
    """An item for every document in use, `TASK/DOC`.

    `category` is `task` (the leaf task), `entry` (the name in `evaluator.tasks`) or `column:NAME` (a column of the
    documents); `group` is `item`, `doc` (the same document number in all tasks) or `column:NAME`.
    """
    base = digest(
        [
            _settings(loaded.task),
            loaded.metric.scorer,
            _plain(loaded.metric.settings),
            _filters(loaded),
        ]
    )
    names = {"task": loaded.name, "entry": loaded.entry}
    for number in loaded.ids:
        doc = loaded.docs[number]
        name = f"{loaded.name}/{number}"
        groups = {"item": name, "doc": f"doc {number}"}
        with naming_task(name):
            prompt = str(loaded.task.doc_to_text(doc))
            answer = str(loaded.task.doc_to_target(doc))
        item = Item(
            id=name,
            category=names.get(category) or _column(doc, category, name, "category"),
            group=groups.get(group) or _column(doc, group, name, "group"),
            prompt=prompt,
            answer=answer,
            scorer=loaded.metric.scorer,
        )
        # some tasks show the choices alone, and a score depends on the task's settings and examples
        vars(item).update(
            identity=_hash([prompt, doc]),
            question=_hash([name, base, doc, loaded.shots[number]]),
            scoring="",
        )
        yield item


def _column(doc: Document, setting: str, name: str, key: str) -> str:
    column = setting.removeprefix("column:")
    value = doc.get(column)
    text = str(value)
    if (
        value in (None, "")
        or isinstance(value, list | dict)
        or (key == "category" and len(text) > LONGEST_LABEL_CHARS)
    ):
        hint = (
            "" if column in doc else nearest(column, doc) or f"; its columns are {', '.join(doc)}"
        )
        raise UserError(
            f"evaluator.{key}={setting}: document {name} has {value!r:.60} there, no {key}{hint}"
        )
    if len(text) <= LONGEST_LABEL_CHARS:
        return text
    # a whole book may be what groups questions
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _hash(value: Any) -> str:
    """SHA-256 of JSON-like data; what JSON does not know goes in as text."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _settings(task: Task) -> JsonObject:
    """A task's configuration as far as answers depend on it: its version, prompt and decoding, not its data's place."""
    known = {k: v for k, v in vars(task.config).items() if k not in NEUTRAL_KEYS and v is not None}
    known["metadata"] = {
        k: v for k, v in (known.get("metadata") or {}).items() if k != "config_source"
    }
    plain: dict[str, Any] = _plain(known)
    return {
        **plain,
        "version": str(task.VERSION),
        "kind": type(task).__name__,
        "code": _code(type(task)),
    }


def _filters(loaded: Loaded) -> Any:
    chosen = [
        f
        for f in loaded.task.get_config("filter_list") or []
        if f.get("name") == loaded.metric.filter
    ]
    return _plain(chosen)


def _plain(value: Any) -> Any:
    """JSON-like form of a task's configuration; a function is its name and the content of its file."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(vars(value))
    if isinstance(value, functools.partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if callable(value):
        # a function of the task's own
        return [getattr(value, "__qualname__", type(value).__name__), _code(value)]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _code(thing: Any) -> str:
    """Digest of the file that defines a function or class; empty for the harness's own, whose version is recorded."""
    try:
        path = inspect.getsourcefile(thing)
    except TypeError:
        return ""
    if not path or (thing.__module__ or "").split(".")[0] == "lm_eval" or not Path(path).is_file():
        return ""
    return sha256(Path(path).read_bytes()).hexdigest()
