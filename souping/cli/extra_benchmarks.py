"""Entries of `extra_benchmarks`: the nodes of the benchmarks that a run evaluates besides its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from souping.core.fields import pick
from souping.core.files import expanded
from souping.core.text import nearest
from souping.core.types import UserError
from souping.evaluate.benchmark import items_title
from souping.evaluate.data_sets import HUB, is_data_set
from souping.runs.settings import model_settings

HARNESS = "souping.evaluate.lm_eval.HarnessEvaluator"


class BenchmarkNode(NamedTuple):
    """Name of an entry, the `group` of the component that it configures, and that component's configuration."""

    name: str
    group: Literal["evaluator", "benchmark"]
    node: dict[str, Any]


def benchmark_node(entry: Any, where: str, evaluator: Mapping[str, Any]) -> BenchmarkNode:
    """The node of an entry; `where` is the entry's key in errors.

    `evaluator` is the run's evaluator node: lm_eval takes its dtype and device unless the entry has them. An entry that
    is a text is the path of a file or data set, or the name of an lm_eval task. A mapping has `path` and `columns`, or
    `tasks` with any other key of evaluator=lm_eval; and `name`, and `limit` (the first items of each category).

    Raises:
        UserError: the entry is neither, or a file is missing.
    """
    if isinstance(entry, str) and _is_path(entry):
        entry = {"path": entry}
    elif isinstance(entry, str) and entry.strip():
        entry = {"name": entry, "tasks": [entry]}
    is_valid = isinstance(entry, Mapping) and isinstance(entry.get("name", ""), str)
    if not is_valid or not entry.keys() & {"path", "tasks"}:
        raise UserError(
            f"{where}={entry!r:.60} must be a file of items, an lm_eval task, or a mapping with path or tasks"
        )
    if "tasks" in entry:
        return _tasks(entry, where, evaluator)
    for key in entry:
        pick(str(key), ("columns", "limit", "name", "path"), f"{where}: key")
    return _file(entry, where)


def _is_path(text: str) -> bool:
    """Whether a text is meant as the path of a file, not as the name of a task."""
    return (
        text.endswith((".jsonl", ".json", ".csv", ".parquet"))
        or text.startswith((".", "/", "~", HUB))
        or Path(text).is_file()
    )


def _file(entry: Mapping[str, Any], where: str) -> BenchmarkNode:
    """The node of a file or data set of items, which is named after that unless the entry has a name."""
    text = str(entry["path"])
    path = expanded(text, where)
    if not is_data_set(text) and not path.is_file():
        files = list[str]()
        if path.parent.is_dir():
            files += [file.name for file in path.parent.iterdir()]
        raise UserError(f"{where}={text}: there is no such file{nearest(path.name, files)}")
    node = {"_target_": "souping.evaluate.benchmark.Benchmark", "path": text}
    if "columns" in entry:
        node["columns"] = entry["columns"]
    return BenchmarkNode(entry.get("name") or items_title(text), "benchmark", node)


def _tasks(entry: Mapping[str, Any], where: str, evaluator: Mapping[str, Any]) -> BenchmarkNode:
    """The node of an entry with tasks of lm_eval."""
    tasks = entry["tasks"]
    if isinstance(tasks, str):
        tasks = [tasks]
    if not isinstance(tasks, list) or not tasks:
        raise UserError(f"{where}.tasks={tasks!r:.60} must be a list of tasks or groups of lm_eval")
    # Settings that the entry takes over from the run's evaluator unless it has them itself.
    shared = model_settings(evaluator)
    if "include_path" in evaluator:
        shared |= {"include_path": evaluator["include_path"]}
    # No settings of the harness: `_build_extra` in `parts` reads the limit, and the name is read below.
    settings = {key: value for key, value in entry.items() if key not in ("limit", "name")}
    name = str(entry.get("name") or "+".join(map(str, tasks)))
    node = {"_target_": HARNESS, **shared, **settings, "tasks": tasks}
    return BenchmarkNode(name, "evaluator", node)
