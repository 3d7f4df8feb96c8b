"""`evaluator=lm_eval`: tasks of lm-evaluation-harness on the live poured module."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.checkpoints.compatibility import chat_template
from souping.core.fields import component
from souping.core.protocols import BenchmarkItems, Evaluator, LoadedModel, ModuleSettings
from souping.core.text import install, nearest
from souping.core.types import FloatArray, Item, Json, Missing, Record, UserError, digest
from souping.evaluate.benchmark import outline_items
from souping.evaluate.decoding import generation_notes
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.lm_eval.metrics import pseudo_values
from souping.evaluate.lm_eval.model import CUT, build, filtered, run
from souping.evaluate.lm_eval.settings import HarnessSettings
from souping.evaluate.lm_eval.tasks import NEUTRAL, Document, Loaded, load, published_sizes, require
from souping.evaluate.templates import PROCESS

if TYPE_CHECKING:
    from lm_eval.api.task import Task

log = logging.getLogger(__name__)
SHORTENED = "some prompts of %s are longer than the model's context of %d tokens and are cut on the left"
VERSION = 2
"""Raise when the same settings would give other answers or scores: old rows in stores are then left alone."""
BATCHES = 8
"""Batches in a block of items that is stored at once: HFLM sorts them by length, and a kill loses few."""
IN_ITEMS = (
    "tasks", "include_path", "include_defaults", "metadata", "name", "limit", "samples", "metric", "filter", "category",
    "group", "num_fewshot", "gen_kwargs", "fewshot_random_seed", "confirm_run_unsafe_code", "allow_code", "dtype",
    "temperature", "top_p", "top_k", "sampling_seed", "aggregate", "replicates",
)  # fmt: skip
"""Settings that are no part of the evaluator's fingerprint by themselves: they choose and label items, are in an item's
own, are in the fingerprint under another name, or change no answer."""
LONGEST = 80
"""Characters of a category or group as it stands in a column; a longer group goes by its hash."""


@dataclass(frozen=True, kw_only=True)
class HarnessItem(Item):
    """Document of a task. `content` is what its score depends on: neither its category nor its group is in it.

    `shown` is the document and its question, whatever the metric; some tasks show the choices alone.
    """

    task: str
    doc: int
    content: str
    shown: str

    @property
    def identity(self) -> str:  # type: ignore[override]  # a cached property there
        return self.shown

    @property
    def question(self) -> str:  # type: ignore[override]  # a cached property there
        return self.content

    @property
    def scoring(self) -> str:  # type: ignore[override]  # in its content
        return ""

    @property
    def fingerprint(self) -> str:
        return self.content


@dataclass(frozen=True, kw_only=True)
class HarnessBenchmark(BenchmarkItems):
    """Documents of the tasks as a benchmark. Its title salts the folds: more tasks do not move old items."""

    evaluator: HarnessEvaluator

    @property
    def title(self) -> str:
        return self.evaluator.name

    def items(self) -> tuple[Item, ...]:
        """One item per document.

        Raises:
            UserError: the extra is absent, a task is unknown or cannot be loaded, or a column is not there.
        """
        category, group = self.evaluator.category, self.evaluator.group
        items = tuple(item for one in self.evaluator.loaded.values() for item in _items_of(one, category, group))
        if not items:
            raise UserError("evaluator.tasks: no documents are left: check evaluator.samples and evaluator.limit")
        return items


@component
class HarnessEvaluator(HarnessSettings, Evaluator):
    """Evaluator of a live module by any tasks of lm-evaluation-harness, a record for every document."""

    brings_items = True
    fractions = False  # a task's own metric may count to 100, or below 0
    length_key = "evaluator.gen_kwargs={max_gen_toks: N}"

    _warnings: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _tasks: dict[str, Loaded] = field(default_factory=dict, init=False, repr=False, compare=False)
    _errors: list[UserError] = field(default_factory=list, init=False, repr=False, compare=False)

    @cached_property
    def _machine(self) -> LocalEvaluator:
        """The settings that `evaluator=local` has too, with what they mean on this machine."""
        drawn = 1.0 if self.drawn > 1 else 0.0  # tasks may set their own, which is checked with them
        return LocalEvaluator(
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            trust_remote_code=self.trust_remote_code,
            temperature=drawn if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k,
            samples=self.drawn,
            sampling_seed=self.sampling_seed,
            aggregate=self.aggregate,
            replicates=self.replicates,
        )

    def for_pool(self, architecture_folder: Path, folders: Mapping[str, Path]) -> HarnessEvaluator:
        """This evaluator with the candidates' own dtype; the tasks are the same objects."""
        copied = copy.copy(self)
        vars(copied)["_machine"] = self._machine.for_pool(architecture_folder, folders)
        return copied

    def banner(self, architecture_folder: Path, items: Sequence[Item]) -> str:
        return self._machine.threads_line

    def pool_notes(self, folders: Mapping[str, Path]) -> list[str]:
        """What the candidates' own generation_config would have done, and the code of task files that ran."""
        code = dict.fromkeys(line for one in self.loaded.values() for line in one.code)
        ran = [f"evaluator.allow_code: ran {line}" for line in code]
        return [*ran, *generation_notes(folders)] if any(one.generates for one in self.loaded.values()) else ran

    def module_settings(self) -> ModuleSettings:
        """How the module is loaded."""
        return self._machine.module_settings()

    def needs(self) -> list[Missing]:
        there = find_spec("lm_eval") is not None
        return [] if there else [Missing(what="the package lm_eval is not installed", fix=install("lm_eval"))]

    @property
    def loaded(self) -> dict[str, Loaded]:
        """The tasks, read once; a plan asks again after they could not be loaded."""
        if self._errors:
            raise self._errors[0]
        try:
            if not self._tasks:
                self._tasks.update(load(self))
        except UserError as error:
            self._errors.append(error)
            raise
        return self._tasks

    @property
    def benchmark(self) -> HarnessBenchmark:
        """The items that the tasks bring."""
        return HarnessBenchmark(evaluator=self)

    def outline(self) -> tuple[Item, ...]:
        """Items without content, if the sizes of all tasks are published."""
        sizes = published_sizes(self.tasks)
        return outline_items(sizes, self.limit, shared=sizes if self.group == "doc" else ())

    @property
    def settings(self) -> dict[str, Json]:
        """Everything that a score depends on, apart from the model and the item."""
        known: dict[str, Json] = {
            f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in IN_ITEMS
        }
        own = self._machine
        machine: dict[str, Json] = {
            "threads": own.resolved_threads,
            "device": own.resolved_device,
            "dtype": own.resolved_dtype,
        }
        decoding: dict[str, Json] = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        if self.temperature != 0:  # a task may sample by itself
            decoding["seed"] = self.sampling_seed
        require()
        known |= {"decoding": decoding, "evaluator": "lm_eval", "version": VERSION, "lm_eval": version("lm_eval")}
        return {**known, **machine}

    def batches(self, items: Sequence[Item], replicate: int = 0) -> list[tuple[Item, ...]]:
        """Items of like length together, in an order that only the items decide.

        A greedy replicate has batches of another size, and so other neighbours.
        """
        order = sorted(items, key=lambda item: (len(item.prompt), item.id))
        size = BATCHES * self.batch_of(replicate)
        return [tuple(order[i : i + size]) for i in range(0, len(order), size)]

    def evaluate(self, model: LoadedModel, items: Sequence[Item], replicate: int = 0) -> list[Record]:
        """A record for every item, in order.

        Raises:
            UserError: an item is not of these tasks, HFLM refuses the model, or a task's own code fails.
        """
        import torch

        if not items:
            return []
        torch.set_num_threads(self._machine.resolved_threads)
        documents: dict[str, list[HarnessItem]] = {}
        for item in items:
            if not isinstance(item, HarnessItem) or item.task not in self.loaded:
                raise UserError(f"item {item.id} is no document of evaluator.tasks: leave `benchmark` as it is")
            documents.setdefault(item.task, []).append(item)
        for own in documents.values():
            own.sort(key=lambda item: item.doc)
        placed = {(task, place): item for task, own in documents.items() for place, item in enumerate(own)}
        lm = build(model, self, placed, replicate)
        records = run(lm, self.loaded, {task: [item.doc for item in own] for task, own in documents.items()}, self)
        if any(record.reason == CUT.format(lm.max_length) for record in records.values()) and not self._warnings:
            self._warnings.add(SHORTENED)  # once: it is so for every soup
            log.warning(SHORTENED, ", ".join(documents)[:100], lm.max_length)
        return [replace(records[item.id], replicate=replicate) for item in items]

    @property
    def block(self) -> int:
        return self.batch_of(0)

    @property
    def whole_folds(self) -> bool:
        """Corpus metrics are of all items of a category."""
        return any(one.metric.kind != "mean" for one in self.loaded.values())

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse a tokenizer without a chat template if prompts need one (UserError)."""
        if self.apply_chat_template and not chat_template(folder):
            raise UserError(f"evaluator.apply_chat_template: the tokenizer in {folder} has no chat template")

    def item_scores(self, items: Sequence[Item], records: Sequence[Sequence[Record]]) -> FloatArray:
        """[I] values whose mean over a category's items is its score: influence values of a corpus metric.

        Raises:
            UserError: a category holds items of a corpus metric together with others.
        """
        counted = self._counted(items, records)
        values = np.array([np.mean([record.score for record in answers]) for answers in counted])
        members: dict[str, list[int]] = {}
        for number, item in enumerate(items):
            members.setdefault(item.category, []).append(number)
        for category, numbers in members.items():
            kinds = {self.loaded[_task(items[n])].metric.kind for n in numbers}
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

    def _counted(self, items: Sequence[Item], records: Sequence[Sequence[Record]]) -> list[Sequence[Record]]:
        """Of each item's answers those that make its score: all, the best, or the one given most often."""
        if self.aggregate == "mean" or self.answers == 1:
            return list(records)
        if self.aggregate == "pass":
            return [[max(answers, key=lambda record: record.score)] for answers in records]
        counted = list[Sequence[Record]]()
        for item, answers in zip(items, records, strict=True):
            one = self.loaded[_task(item)]
            texts = filtered(one, [(int(item.id.rpartition("/")[2]), record.output) for record in answers])
            counted.append([answers[texts.index(max(texts, key=texts.count))]])
        return counted

    def close(self) -> None:
        """End the templates' process."""
        PROCESS.close()


# Items


def _task(item: Item) -> str:
    assert isinstance(item, HarnessItem)
    return item.task


def _items_of(loaded: Loaded, category: str, group: str) -> Iterator[Item]:
    """An item for every document in use, `TASK/DOC`.

    `category` is `task` (the leaf task), `entry` (the name in `evaluator.tasks`) or `column:NAME` (a column of the
    documents); `group` is `item`, `doc` (the same document number in all tasks) or `column:NAME`.
    """
    base = digest([_settings(loaded.task), loaded.metric.scorer, _plain(loaded.metric.settings), _filters(loaded)])
    names = {"task": loaded.name, "entry": loaded.entry}
    for number in loaded.ids:
        doc, name = loaded.docs[number], f"{loaded.name}/{number}"
        groups = {"item": name, "doc": f"doc {number}"}
        prompt = _shown(loaded.task.doc_to_text, doc, name)
        yield HarnessItem(
            id=name,
            category=names.get(category) or _column(doc, category, name, "category"),
            group=groups.get(group) or _column(doc, group, name, "group"),
            prompt=prompt,
            answer=_shown(loaded.task.doc_to_target, doc, name),
            scorer=loaded.metric.scorer,
            task=loaded.name,
            doc=number,
            content=_hash([name, base, doc, loaded.shots[number]]),
            shown=_hash([prompt, doc]),
        )


def _column(doc: Document, setting: str, name: str, key: str) -> str:
    column = setting.removeprefix("column:")
    if column not in doc:
        hint = nearest(column, doc) or f": its columns are {', '.join(doc)}"
        raise UserError(f"evaluator.{key}={setting}: document {name} has no such column{hint}")
    value = doc[column]
    if value is None or value == "" or isinstance(value, list | dict):
        raise UserError(f"evaluator.{key}={setting}: document {name} has {value!r:.60} there, which names no {key}")
    text = str(value)
    if len(text) <= LONGEST:
        return text
    if key == "category":
        raise UserError(f"evaluator.{key}={setting}: document {name} has a text of {len(text)} characters there")
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]  # a whole book may be what groups questions


def _shown(render: Callable[[Document], Json], doc: Document, name: str) -> str:
    try:
        return str(render(doc))
    except Exception as error:  # a template or a function of the task's own
        raise UserError(f"evaluator.tasks: the task of {name} cannot render it: {error!s:.200}") from error


def _hash(value: Any) -> str:
    """SHA-256 of JSON-like data; what JSON does not know goes in as text."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _settings(task: Task) -> dict[str, Json]:
    """A task's configuration as far as answers depend on it: its version, prompt and decoding, not its data's place."""
    known = {k: v for k, v in vars(task.config).items() if k not in NEUTRAL and v is not None}
    known["metadata"] = {k: v for k, v in (known.get("metadata") or {}).items() if k != "config_source"}
    plain: dict[str, Any] = _plain(known)
    return {**plain, "version": str(task.VERSION), "kind": type(task).__name__, "code": _code(type(task))}


def _filters(loaded: Loaded) -> Any:
    chosen = [f for f in loaded.task.get_config("filter_list") or [] if f.get("name") == loaded.metric.filter]
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
        return [getattr(value, "__qualname__", type(value).__name__), _code(value)]  # a function of the task's own
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _code(thing: Any) -> str:
    """Digest of the file that a function or class stands in; of the harness's own, its version says it already."""
    try:
        path = inspect.getsourcefile(thing)
    except TypeError:
        return ""
    if not path or (thing.__module__ or "").split(".")[0] == "lm_eval" or not Path(path).is_file():
        return ""
    return sha256(Path(path).read_bytes()).hexdigest()
