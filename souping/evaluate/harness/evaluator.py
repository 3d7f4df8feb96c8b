"""`evaluator=lm_eval`: tasks of lm-evaluation-harness on the live poured module."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np

from souping.core import FloatArray, Item, Record, UserError, digest
from souping.evaluate.harness import corpus
from souping.evaluate.harness.items import HarnessItem, items_of
from souping.evaluate.harness.live import Hand
from souping.evaluate.harness.quiet import harness_version
from souping.evaluate.harness.run import run
from souping.evaluate.harness.tasks import Loaded, load
from souping.evaluate.local import LocalEvaluator
from souping.protocols import Served

VERSION = 1
"""Raise when the same settings would give other answers or scores: old rows in stores are then left alone."""
CUT = 8
"""A commit holds so many batches' worth of items: HFLM sorts them by length, and few are lost with a killed run."""
AUTO = re.compile(r"auto(:\d+(\.\d+)?)?")
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
)
"""Settings that are no part of the evaluator's fingerprint: they choose and label items, or are in an item's own."""


@dataclass(frozen=True, kw_only=True)
class HarnessBenchmark:
    """The documents of the tasks as a benchmark. Its title salts the folds: more tasks do not move old items."""

    evaluator: HarnessEvaluator
    path: None = None

    @property
    def title(self) -> str:
        return self.evaluator.name

    def items(self) -> tuple[Item, ...]:
        """An item a document.

        Raises:
            UserError: the extra is absent, a task is unknown or cannot be loaded, or a column is not there.
        """
        return items_of(self.evaluator.loaded, self.evaluator.category, self.evaluator.group)


@dataclass(frozen=True, kw_only=True)
class HarnessEvaluator:
    """Scores a live module with any tasks of lm-evaluation-harness, a record for every document.

    Arguments are those of `simple_evaluate` and of its model class `HFLM`, by their own names. `docs/lm_eval.md` says
    what each of souping's own does (`metric`, `filter`, `category`, `group`, `tools`, `shared_prefix`) and which few of
    the harness's are fixed, and why.
    """

    tasks: list[str | dict[str, Any]]
    include_path: str | list[str] | None = None
    include_defaults: bool | None = None
    metadata: dict[str, Any] | None = None
    name: str = "lm_eval"
    limit: int | float | None = None
    samples: dict[str, list[int]] | None = None
    metric: str | dict[str, str] | None = None
    filter: str | dict[str, str] | None = None
    category: str = "task"
    group: str = "item"
    num_fewshot: int | None = None
    gen_kwargs: dict[str, Any] | None = None
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    tools: str | None = None
    shared_prefix: bool = False
    batch_size: int | str = 16
    max_batch_size: int | None = 64
    max_length: int | None = None
    truncation: bool = False
    logits_cache: bool = True
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    backend: Literal["default", "causal", "seq2seq"] = "default"
    softmax_dtype: str | None = None
    mixed_precision_dtype: str | None = None
    think_end_token: str | int | None = None
    enable_thinking: bool | None = None
    chat_template_args: dict[str, Any] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    threads: int | None = None
    trust_remote_code: bool = False
    confirm_run_unsafe_code: bool = False
    random_seed: int = 0
    numpy_random_seed: int = 1234
    torch_random_seed: int = 1234
    fewshot_random_seed: int = 1234
    _hand: Hand = field(default_factory=Hand, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _ = self._machine  # checks dtype, device and threads
        for key, fixed in (("category", ("task", "entry")), ("group", ("item", "doc"))):
            value = getattr(self, key)
            if value not in fixed and not value.removeprefix("column:") != value:
                raise UserError(f"evaluator.{key}={value} must be {', '.join(fixed)} or column:NAME")
        if self.limit is not None and (self.limit <= 0 or self.samples is not None):
            raise UserError(f"evaluator.limit={self.limit} must be above 0, and stand without evaluator.samples")
        if self.tools is not None and not self.apply_chat_template:
            raise UserError("evaluator.tools needs evaluator.apply_chat_template=true: schemas go through the template")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UserError(f"evaluator.num_fewshot={self.num_fewshot} must be 0 or more")
        self._check_batch()
        for key in ("softmax_dtype", "mixed_precision_dtype"):
            if getattr(self, key) not in (None, "float32", "bfloat16", "float16", "float64"):
                raise UserError(f"evaluator.{key}={getattr(self, key)} must be float32, bfloat16 or float16")

    def _check_batch(self) -> None:
        size = self.batch_size
        if (isinstance(size, int) and size < 1) or (isinstance(size, str) and not AUTO.fullmatch(size)):
            raise UserError(f"evaluator.batch_size={size} must be at least 1, or auto, or auto:N")
        if self.shared_prefix and isinstance(size, str):
            raise UserError("evaluator.shared_prefix=true needs a number as evaluator.batch_size")

    @cached_property
    def _machine(self) -> LocalEvaluator:
        """The compute settings, with what they mean on this machine."""
        return LocalEvaluator(dtype=self.dtype, device=self.device, threads=self.threads)

    @property
    def resolved_device(self) -> str:
        return self._machine.resolved_device

    @cached_property
    def loaded(self) -> dict[str, Loaded]:
        """The tasks, read once."""
        return load(self)

    @property
    def benchmark(self) -> HarnessBenchmark:
        """The items that the tasks bring."""
        return HarnessBenchmark(evaluator=self)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything a score depends on beside the model and the item."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in IN_ITEMS}
        machine = {"threads": self._machine.resolved_threads, "device": self.resolved_device}
        return {**known, **machine, "evaluator": "lm_eval", "version": VERSION, "lm_eval": harness_version()}

    @property
    def fingerprint(self) -> str:
        return digest(self.settings)

    def batches(self, items: Sequence[Item]) -> list[tuple[Item, ...]]:
        """Items of like length together, in an order that only the items decide."""
        order = sorted(items, key=lambda item: (len(item.prompt), item.id))
        size = CUT * (self.batch_size if isinstance(self.batch_size, int) else self.max_batch_size or 64)
        return [tuple(order[i : i + size]) for i in range(0, len(order), size)]

    def evaluate(self, model: Served, items: Sequence[Item]) -> list[Record]:
        """A record for every item, in order.

        Raises:
            UserError: an item is not of these tasks, HFLM refuses the model, or a task's own code fails.
        """
        import torch

        if not items:
            return []
        torch.set_num_threads(self._machine.resolved_threads)
        asked: dict[str, list[int]] = {}
        for item in items:
            if not isinstance(item, HarnessItem) or item.task not in self.loaded:
                raise UserError(f"item {item.id} is no document of evaluator.tasks: leave `benchmark` as it is")
            asked.setdefault(item.task, []).append(item.doc)
        with self._hand.model(model, self) as lm:
            records = run(lm, self.loaded, asked, self)
        return [records[item.id] for item in items]

    def aggregate(self, items: Sequence[Item], records: Sequence[Record]) -> FloatArray:
        """[I] values whose mean over a category's items is its score: influence values of a corpus metric.

        Raises:
            UserError: a category holds items of a corpus metric together with others.
        """
        values = np.array([record.score for record in records])
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
            values[numbers] = corpus.pseudo_values(kinds.pop(), [records[n].statistics for n in numbers])
        return values

    def _kind(self, item: Item) -> str:
        assert isinstance(item, HarnessItem)
        return self.loaded[item.task].metric.kind
