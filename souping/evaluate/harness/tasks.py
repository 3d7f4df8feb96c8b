"""Load the harness's tasks: names, groups, tags, patterns and own YAML files, with their documents at hand."""

from __future__ import annotations

import fnmatch
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from souping.core import UserError
from souping.evaluate.harness.faults import not_loaded, unknown
from souping.evaluate.harness.metrics import Metric, choose
from souping.evaluate.harness.quiet import Heard, quiet, require
from souping.names import nearest


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A leaf task, the entry of `evaluator.tasks` it came with, its documents and the metric that scores them.

    `ids` are the documents in use. `shots` holds the few-shot examples of each document, drawn for all documents in
    their order from one seed, as a complete run of the harness draws them: an item's prompt never depends on which
    other items are evaluated beside it.
    """

    name: str
    entry: str
    task: Any
    docs: Sequence[Any]
    ids: Sequence[int]
    shots: Sequence[Sequence[Any]]
    metric: Metric

    @property
    def generates(self) -> bool:
        return bool(self.task.OUTPUT_TYPE == "generate_until")


def load(evaluator: Any) -> dict[str, Loaded]:
    """{leaf task: its documents}, in the order of `evaluator.tasks`.

    Raises:
        UserError: a name is unknown (the nearest is given), a task's data is not there, or it cannot be scored here.
    """
    require()
    if not evaluator.tasks:
        raise UserError("evaluator.tasks is empty: name tasks, groups or YAML files, e.g. evaluator.tasks='[mytask]'")
    loaded: dict[str, Loaded] = {}
    with quiet() as heard:
        _seed(evaluator)
        manager = _manager(evaluator)
        for entry, spec in _expand(evaluator.tasks, manager):
            for name, task in _build(manager, spec, heard).items():
                if name in loaded:
                    raise UserError(
                        f"evaluator.tasks: {name} stands in both {loaded[name].entry} and {entry}: name it once"
                    )
                loaded[name] = _loaded(evaluator, name, entry, task)
    _check_named(evaluator, loaded)
    return loaded


def _seed(evaluator: Any) -> None:
    """As simple_evaluate does before it loads tasks, some of which draw at random while they read their data."""
    import numpy as np

    random.seed(evaluator.random_seed)
    np.random.seed(evaluator.numpy_random_seed)


def _manager(evaluator: Any) -> Any:
    """The index of tasks. The harness's own 14,000 take some twenty seconds to read: only where they are needed."""
    from lm_eval.tasks import TaskManager

    paths = [evaluator.include_path] if isinstance(evaluator.include_path, str) else evaluator.include_path or []
    folders = [Path(path).expanduser() for path in paths]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"evaluator.include_path={folder} is not a folder: give the one with your task YAML files")
    include: Any = [str(folder) for folder in folders] or None
    if evaluator.include_defaults is not True:
        manager = TaskManager(
            include_path=include, include_defaults=False, metadata=dict(evaluator.metadata or {}) or None
        )
        if evaluator.include_defaults is False or _closed(manager.task_index, evaluator.tasks):
            return manager
    return TaskManager(include_path=include, include_defaults=True, metadata=dict(evaluator.metadata or {}) or None)


def _closed(index: Mapping[str, Any], names: Sequence[Any]) -> bool:
    """Whether every name, and every name that a group of them refers to, is in the index or is a file."""
    for name in names:
        if isinstance(name, dict):
            continue
        if name not in index:
            if not Path(name).expanduser().is_file() and not fnmatch.filter(index, name):
                return False
            continue
        members = (index[name].cfg or {}).get("task")
        inner = [m for m in members if isinstance(m, str)] if isinstance(members, list) else []
        if not _closed(index, inner):
            return False
    return True


def _expand(tasks: Sequence[Any], manager: Any) -> Iterator[tuple[str, Any]]:
    """(entry, name); a pattern (`mgsm_direct_*`) stands for the tasks that it matches, groups and tags left out."""
    for spec in tasks:
        if isinstance(spec, str) and set(spec) & set("*?["):
            found = fnmatch.filter(manager.all_subtasks, spec)
            if not found:
                raise UserError(f"evaluator.tasks: no task matches {spec}")
            yield from ((spec, name) for name in found)
        else:
            yield _title(spec), spec


def _title(spec: Any) -> str:
    if isinstance(spec, dict):
        return str(spec.get("task") or spec.get("group") or "?")
    path = Path(spec)
    return path.stem if path.suffix in (".yaml", ".yml") else str(spec)


def _build(manager: Any, spec: Any, heard: Heard) -> dict[str, Any]:
    """{leaf name: task} of one entry."""
    index, title = manager.task_index, _title(spec)
    if isinstance(spec, str) and spec not in index:
        if not Path(spec).expanduser().is_file():
            raise UserError(unknown(spec, manager.all_tasks, heard.skipped))
        spec = str(Path(spec).expanduser())
    elif isinstance(spec, dict) and spec.get("task") in index:  # a known task with keys of its own
        spec = {"group": title, "task": [spec]}
    try:
        tasks: dict[str, Any] = manager.load([spec])["tasks"]
    except Exception as error:  # a task's YAML may run any code, and its data may be anywhere
        source = getattr(index.get(title), "yaml_path", None)
        raise UserError(not_loaded(title, source, error)) from error
    return tasks


def _loaded(evaluator: Any, name: str, entry: str, task: Any) -> Loaded:
    try:
        return _load(evaluator, name, entry, task)
    except UserError:
        raise
    except Exception as error:  # the task's own code and data again, and the draw of its examples
        raise UserError(not_loaded(name, None, error)) from error


def _load(evaluator: Any, name: str, entry: str, task: Any) -> Loaded:
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"evaluator.tasks: {name} needs images or sound, which souping does not give a model")
    if getattr(task, "UNSAFE_CODE", False) and not evaluator.confirm_run_unsafe_code:
        raise UserError(
            f"evaluator.tasks: {name} runs code that the model writes: "
            "allow it with evaluator.confirm_run_unsafe_code=true"
        )
    _prepare(task, evaluator)
    docs = list(task.eval_docs)
    return Loaded(
        name=name,
        entry=entry,
        task=task,
        docs=docs,
        ids=_ids(evaluator, name, len(docs)),
        shots=_shots(task, docs, evaluator.fewshot_random_seed),
        metric=choose(name, task, _of(evaluator.metric, name, entry), _of(evaluator.filter, name, entry)),
    )


def _prepare(task: Any, evaluator: Any) -> None:
    """The overrides that simple_evaluate applies: generation settings, and shots unless the task forbids them."""
    if evaluator.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(evaluator.gen_kwargs), update=True)
    own = task.get_config("num_fewshot")
    if evaluator.num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=evaluator.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)


def _ids(evaluator: Any, name: str, count: int) -> Sequence[int]:
    """The documents in use: all, the first `limit`, or those that `samples` lists."""
    if evaluator.samples is not None:
        ids = sorted(set(evaluator.samples.get(name, [])))
        if ids and not 0 <= ids[0] <= ids[-1] < count:
            raise UserError(f"evaluator.samples: {name} has documents 0 to {count - 1}, not {ids[-1]}")
        return ids
    if evaluator.limit is None:
        return range(count)
    first = math.ceil(count * evaluator.limit) if evaluator.limit < 1 else int(evaluator.limit)
    return range(min(count, first))


def _shots(task: Any, docs: Sequence[Any], seed: int | None) -> Sequence[Sequence[Any]]:
    """Few-shot examples of every document, as one pass of the harness over all documents draws them."""
    task.set_fewshot_seed(seed=seed)
    number = task.get_config("num_fewshot") or 0
    if not number or not hasattr(task, "sampler"):
        return [()] * len(docs)
    same = task.fewshot_cfg.split == task.config.test_split
    return [list(task.sampler.sample(n=number, eval_doc=doc if same else None)) for doc in docs]


def _of(setting: Any, name: str, entry: str) -> str | None:
    """A setting that is one for all tasks, or a mapping by task or entry."""
    if isinstance(setting, Mapping):
        value = setting.get(name, setting.get(entry))
        return None if value is None else str(value)
    return None if setting is None else str(setting)


def _check_named(evaluator: Any, loaded: Mapping[str, Loaded]) -> None:
    known = {*loaded, *(one.entry for one in loaded.values())}
    for key in ("metric", "filter", "samples"):
        setting = getattr(evaluator, key)
        odd = [name for name in setting if name not in known] if isinstance(setting, Mapping) else []
        if odd:
            hint = nearest(odd[0], known) or f": {', '.join(sorted(known)[:5])}"
            raise UserError(f"evaluator.{key} names {odd[0]}, which evaluator.tasks does not bring{hint}")
