"""`evaluator=lm_eval`: tasks of lm-evaluation-harness on the live poured module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from souping.checkpoints.compatibility import chat_template
from souping.core.fields import component
from souping.core.protocols import BenchmarkItems, Evaluator, LoadedModel, ModuleSettings
from souping.core.text import install
from souping.core.types import FloatArray, Item, Json, Missing, Record, UserError
from souping.evaluate.benchmark import outline_items
from souping.evaluate.decoding import generation_notes
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.lm_eval.errors import harness_version
from souping.evaluate.lm_eval.items import HarnessItem, items_of
from souping.evaluate.lm_eval.model import HarnessModelCache, filtered, run
from souping.evaluate.lm_eval.settings import HarnessSettings
from souping.evaluate.lm_eval.tasks import Loaded, load, pseudo_values, published_sizes
from souping.evaluate.templates import PROCESS

VERSION = 2
"""Raise when the same settings would give other answers or scores: old rows in stores are then left alone."""
CUT = 8
"""A commit holds so many batches' worth of items: HFLM sorts them by length, and few are lost with a killed run."""
IN_ITEMS = (
    "tasks",
    "include_path",
    "include_defaults",
    "metadata",
    "name",
    "limit",
    "samples",
    "metric",
    "filter",
    "category",
    "group",
    "num_fewshot",
    "gen_kwargs",
    "fewshot_random_seed",
    "confirm_run_unsafe_code",
    "allow_code",
    "dtype",
    "temperature",
    "top_p",
    "top_k",
    "sampling_seed",
    "aggregate",
    "replicates",
)
"""Settings that are no part of the evaluator's fingerprint by themselves: they choose and label items, are in an item's
own, are there under another name, or no single answer depends on them."""


@dataclass(frozen=True, kw_only=True)
class HarnessBenchmark(BenchmarkItems):
    """Documents of the tasks as a benchmark. Its title salts the folds: more tasks do not move old items."""

    evaluator: HarnessEvaluator

    @property
    def title(self) -> str:
        return self.evaluator.name

    def items(self) -> tuple[Item, ...]:
        """An item a document.

        Raises:
            UserError: the extra is absent, a task is unknown or cannot be loaded, or a column is not there.
        """
        return items_of(self.evaluator.loaded, self.evaluator.category, self.evaluator.group)


@component
class HarnessEvaluator(HarnessSettings, Evaluator):
    """Evaluator of a live module by any tasks of lm-evaluation-harness, a record for every document."""

    brings_items = True
    fractions = False  # a task's own metric may count to 100, or below 0
    length_key = "evaluator.gen_kwargs={max_gen_toks: N}"

    _model: HarnessModelCache = field(default_factory=HarnessModelCache, init=False, repr=False, compare=False)
    _tasks: dict[str, Loaded] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def _machine(self) -> LocalEvaluator:
        """The settings that `evaluator=local` has too, with what they mean on this machine."""
        drawn = 1.0 if self.drawn > 1 else 0.0  # where it is left to the tasks, it is checked with them
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

    def for_pool(self, home: Path, folders: Mapping[str, Path]) -> HarnessEvaluator:
        """This evaluator with the candidates' own dtype; tasks and the harness's model are the same ones."""
        twin = copy.copy(self)
        vars(twin)["_machine"] = self._machine.for_pool(home, folders)
        return twin

    def opening(self, home: Path, items: Sequence[Item]) -> str:
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
        return [] if there else [Missing(what="the package lm_eval is not installed", mends=install("lm_eval"))]

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

    def outline(self) -> tuple[Item, ...]:
        """Items without content, where all tasks are known by their published sizes."""
        sizes = published_sizes(self.tasks)
        return outline_items(sizes, self.limit, shared=sizes if self.group == "doc" else ())

    @property
    def settings(self) -> dict[str, Json]:
        """Everything a score depends on beside the model and the item."""
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
        known |= {"decoding": decoding, "evaluator": "lm_eval", "version": VERSION, "lm_eval": harness_version()}
        return {**known, **machine}

    def batches(self, items: Sequence[Item], replicate: int = 0) -> list[tuple[Item, ...]]:
        """Items of like length together, in an order that only the items decide.

        A greedy replicate is asked in batches of another size and other neighbours.
        """
        order = sorted(items, key=lambda item: (len(item.prompt), item.id))
        size = CUT * self.batch_of(replicate)
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
        asked: dict[str, list[HarnessItem]] = {}
        for item in items:
            if not isinstance(item, HarnessItem) or item.task not in self.loaded:
                raise UserError(f"item {item.id} is no document of evaluator.tasks: leave `benchmark` as it is")
            asked.setdefault(item.task, []).append(item)
        for own in asked.values():
            own.sort(key=lambda item: item.doc)
        placed = {(task, place): item for task, own in asked.items() for place, item in enumerate(own)}
        with self._model.model(model, self, placed, replicate) as lm:
            records = run(lm, self.loaded, {task: [item.doc for item in own] for task, own in asked.items()}, self)
        return [replace(records[item.id], replicate=replicate) for item in items]

    @property
    def block(self) -> int:
        return self.batch_of(0)

    @property
    def whole_folds(self) -> bool:
        """Corpus metrics are of all items of a category."""
        return any(one.metric.kind != "mean" for one in self.loaded.values())

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse a tokenizer without chat template where prompts go through one (UserError)."""
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
            kinds = {self._kind(items[n]) for n in numbers}
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
        said = self._said(items, records)
        return [[answers[own.index(max(own, key=own.count))]] for answers, own in zip(records, said, strict=True)]

    def _said(self, items: Sequence[Item], records: Sequence[Sequence[Record]]) -> list[list[str]]:
        """The answers after their task's filter, in the order of items and records."""
        told: dict[int, list[str]] = {}
        for name in dict.fromkeys(item.task for item in items if isinstance(item, HarnessItem)):
            mine = [(n, item) for n, item in enumerate(items) if isinstance(item, HarnessItem) and item.task == name]
            flat = [(item.doc, record.output) for n, item in mine for record in records[n]]
            texts = iter(filtered(self.loaded[name], flat))
            told |= {n: [next(texts) for _ in records[n]] for n, _ in mine}
        return [told[n] for n in range(len(items))]

    def close(self) -> None:
        """Let go of the harness's model, which all that this evaluator was made into share, and of the templates'
        process."""
        self._model.close()
        PROCESS.close()

    def _kind(self, item: Item) -> str:
        assert isinstance(item, HarnessItem)
        return self.loaded[item.task].metric.kind
