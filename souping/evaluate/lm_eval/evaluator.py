"""`evaluator=lm_eval`: tasks of lm-evaluation-harness on the live poured module, their documents as items."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from souping.checkpoints.compatibility import has_template
from souping.core.imported import CandidateFacts, ImportedAnswers, ResultFiles
from souping.core.protocols import BenchmarkItems, Evaluator, ModuleSettings, Served
from souping.core.text import Count, Seed, Threads, TokenId, nearest
from souping.core.types import FloatArray, Item, Json, Missing, Record, UserError, digest
from souping.evaluate.benchmark import outline_items
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.lm_eval.errors import harness_version
from souping.evaluate.lm_eval.import_results import HarnessFiles, find_samples, read_samples
from souping.evaluate.lm_eval.model import HarnessModelCache, run
from souping.evaluate.lm_eval.tasks import NEUTRAL, Document, Loaded, load, pseudo_values, published_sizes

if TYPE_CHECKING:
    from lm_eval.api.task import Task

VERSION = 1
"""Raise when the same settings would give other answers or scores: old rows in stores are then left alone."""
CUT = 8
"""A commit holds so many batches' worth of items: HFLM sorts them by length, and few are lost with a killed run."""
AUTO = re.compile(r"auto(:\d+(\.\d+)?)?")
LONGEST = 80
"""Characters of a category or group as it stands in a column; a longer group goes by its hash."""
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


@dataclass(frozen=True, kw_only=True)
class HarnessEvaluator(Evaluator):
    """Evaluator of a live module by any tasks of lm-evaluation-harness, a record for every document.

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
    batch_size: Count | str = 16
    max_batch_size: Count | None = 64
    max_length: Count | None = None
    truncation: bool = False
    logits_cache: bool = True
    add_bos_token: bool | None = None
    prefix_token_id: TokenId | None = None
    backend: Literal["default", "causal", "seq2seq"] = "default"
    softmax_dtype: str | None = None
    mixed_precision_dtype: str | None = None
    think_end_token: str | TokenId | None = None
    enable_thinking: bool | None = None
    chat_template_args: dict[str, Any] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    threads: Threads | None = None
    trust_remote_code: bool = False
    confirm_run_unsafe_code: bool = False
    random_seed: Seed = 0
    numpy_random_seed: Seed = 1234
    torch_random_seed: Seed = 1234
    fewshot_random_seed: Seed = 1234
    _model: HarnessModelCache = field(default_factory=HarnessModelCache, init=False, repr=False, compare=False)

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
        trust = self.trust_remote_code
        return LocalEvaluator(dtype=self.dtype, device=self.device, threads=self.threads, trust_remote_code=trust)

    def module_settings(self) -> ModuleSettings:
        """How the module is loaded."""
        return self._machine.module_settings()

    def needs(self) -> list[Missing]:
        there = find_spec("lm_eval") is not None
        return [] if there else [Missing(what="the package lm_eval", mends='pip install "souping[lm-eval]"')]

    @cached_property
    def loaded(self) -> dict[str, Loaded]:
        """The tasks, read once."""
        return load(self)

    @property
    def brings_items(self) -> bool:
        return True

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
        machine: dict[str, Json] = {"threads": self._machine.resolved_threads, "device": self._machine.resolved_device}
        return {**known, **machine, "evaluator": "lm_eval", "version": VERSION, "lm_eval": harness_version()}

    def batches(self, items: Sequence[Item], replicate: int = 0) -> list[tuple[Item, ...]]:
        """Items of like length together, in an order that only the items decide."""
        order = sorted(items, key=lambda item: (len(item.prompt), item.id))
        size = CUT * (self.batch_size if isinstance(self.batch_size, int) else self.max_batch_size or 64)
        return [tuple(order[i : i + size]) for i in range(0, len(order), size)]

    def evaluate(self, model: Served, items: Sequence[Item], replicate: int = 0) -> list[Record]:
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
        with self._model.model(model, self) as lm:
            records = run(lm, self.loaded, asked, self)
        return [records[item.id] for item in items]

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse a tokenizer without chat template where prompts go through one (UserError)."""
        if self.apply_chat_template and not has_template(folder):
            raise UserError(f"evaluator.apply_chat_template: the tokenizer in {folder} has no chat template")

    def item_scores(self, items: Sequence[Item], records: Sequence[Sequence[Record]]) -> FloatArray:
        """[I] values whose mean over a category's items is its score: influence values of a corpus metric.

        Raises:
            UserError: a category holds items of a corpus metric together with others.
        """
        values = np.array([np.mean([record.score for record in answers]) for answers in records])
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
            values[numbers] = pseudo_values(kinds.pop(), [records[n][0].statistics for n in numbers])
        return values

    @property
    def reads_results(self) -> bool:
        return True

    def find_results(self, paths: Sequence[Path]) -> list[HarnessFiles]:
        return find_samples(paths)

    def read_results(
        self, files: ResultFiles, items: Sequence[Item], candidate: CandidateFacts, tokenizer: Path
    ) -> Iterator[ImportedAnswers]:
        """What one run of the harness holds, task by task, its prompts rendered anew with the tokenizer."""
        assert isinstance(files, HarnessFiles)
        return read_samples(files, self, items, candidate, tokenizer)

    def _kind(self, item: Item) -> str:
        assert isinstance(item, HarnessItem)
        return self.loaded[item.task].metric.kind


@dataclass(frozen=True, kw_only=True)
class HarnessItem(Item):
    """Document of a task. `content` is what its score depends on: neither its category nor its group is in it."""

    task: str
    doc: int
    content: str

    @property
    def question(self) -> str:  # type: ignore[override]  # a cached property there
        return self.content

    @property
    def scoring(self) -> str:  # type: ignore[override]  # in its content
        return ""

    @property
    def fingerprint(self) -> str:
        return self.content


def items_of(loaded: Mapping[str, Loaded], category: str, group: str) -> tuple[Item, ...]:
    """An item for every document in use, `TASK/DOC`.

    `category` is `task` (the leaf task), `entry` (the name in `evaluator.tasks`) or `column:NAME` (a column of the
    documents); `group` is `item`, `doc` (the same document number in all tasks) or `column:NAME`.
    """
    items = tuple(item for one in loaded.values() for item in _of_task(one, category, group))
    if not items:
        raise UserError("evaluator.tasks: no documents are left: look at evaluator.samples and evaluator.limit")
    return items


def _of_task(loaded: Loaded, category: str, group: str) -> Iterator[Item]:
    base = digest([_settings(loaded.task), loaded.metric.scorer, _plain(loaded.metric.settings), _filters(loaded)])
    names = {"task": loaded.name, "entry": loaded.entry}
    for number in loaded.ids:
        doc, name = loaded.docs[number], f"{loaded.name}/{number}"
        groups = {"item": name, "doc": f"doc {number}"}
        yield HarnessItem(
            id=name,
            category=names.get(category) or _column(doc, category, name, "category"),
            group=groups.get(group) or _column(doc, group, name, "group"),
            prompt=_shown(loaded.task.doc_to_text, doc, name),
            answer=_shown(loaded.task.doc_to_target, doc, name),
            scorer=loaded.metric.scorer,
            task=loaded.name,
            doc=number,
            content=_hash([name, base, doc, loaded.shots[number]]),
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
