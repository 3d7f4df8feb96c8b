"""Task files: the harness's index of them, and what they name as code, which does not run unless it is allowed.

A YAML file may name Python (`!function`), an unknown metric (the name of a script) or a data set that is a program. In
files of the installed harness and of this package that is theirs; in anybody else's it is refused before anything of
the file has run. Templates run in a sandbox, in a process that is bounded, whosever they are.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.files import expanded
from souping.core.text import first_line
from souping.core.types import Json, UserError
from souping.evaluate.lm_eval.settings import HarnessSettings, Spec
from souping.evaluate.templates import render_task

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry
    from yaml.nodes import Node

PAPER_TASKS = Path(__file__).resolve().parents[2] / "paper" / "tasks"
PLAIN = "tag:yaml.org,2002:"
BUILDERS = ("generator", "iceberg", "pandas", "spark")
"""Loaders of `datasets` that take pickles, classes by name, or functions."""
OFF = ("false", "no", "off", "null", "~", "", "0")
"""Spellings of a switch that is off; whatever else stands there, the library takes for true."""
SANDBOX = "{{ ''.__class__.__mro__ }}"


def open_index(evaluator: HarnessSettings) -> TaskManager:
    """The index of tasks. The harness's own 14,000 take some twenty seconds to read: only where they are needed."""
    from lm_eval.tasks import TaskManager

    paths = [evaluator.include_path] if isinstance(evaluator.include_path, str) else evaluator.include_path or []
    folders = [expanded(path) for path in paths]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"evaluator.include_path={folder} is not a folder: give the one with your task YAML files")
    include: list[str | Path] | None = [str(folder) for folder in folders] or None
    if evaluator.include_defaults is not True:
        manager = TaskManager(
            include_path=include, include_defaults=False, metadata=dict(evaluator.metadata or {}) or None
        )
        if evaluator.include_defaults is False or _closed(manager.task_index, evaluator.tasks):
            return manager
    return TaskManager(include_path=include, include_defaults=True, metadata=dict(evaluator.metadata or {}) or None)


def _closed(index: Mapping[str, Entry], names: Sequence[Spec], within: frozenset[str] = frozenset()) -> bool:
    """Whether every name, and every name that a group of them refers to, is in the index or is a file."""
    for name in names:
        if isinstance(name, dict) or name in within:
            continue
        if name not in index:
            if not expanded(name).is_file() and not fnmatch.filter(index, name):
                return False
            continue
        members = (index[name].cfg or {}).get("task")
        inner = [m for m in members if isinstance(m, str)] if isinstance(members, list) else []
        if not _closed(index, inner, within | {name}):
            return False
    return True


@dataclass(kw_only=True)
class Door:
    """Door that every task file goes through before the harness loads it; `passed` is the code that was let in."""

    allow: bool
    passed: list[str] = field(default_factory=list)

    def watch(self, manager: TaskManager) -> None:
        """Stand where the harness resolves what a file names.

        Raises:
            UserError: this version of the harness has no such place, or renders templates elsewhere.
        """
        try:
            factory = manager._factory
            load: Callable[[Entry, dict[str, Json] | None], dict[str, Json]] = factory._load_full_config
        except AttributeError as error:
            raise UserError("evaluator=lm_eval cannot watch this version of lm_eval: install 0.4.13") from error

        def watched(entry: Entry, overrides: dict[str, Json] | None = None) -> dict[str, Json]:
            if entry.yaml_path:
                self.check(Path(entry.yaml_path))
            return load(entry, overrides)

        factory._load_full_config = watched
        sandbox()

    def check(self, path: Path) -> None:
        """Refuse a file of others that names code, or note it where that is allowed.

        Raises:
            UserError: the message names the file, the key and the code.
        """
        for line in code_in(path):
            if not self.allow:
                raise UserError(
                    f"{line}: it would run Python on this machine\n"
                    "set evaluator.allow_code=true if you trust whoever wrote this file"
                )
            if line not in self.passed:
                self.passed.append(line)

    def take(self) -> tuple[str, ...]:
        """What was let in since the last time."""
        lines, self.passed = tuple(self.passed), []
        return lines


def code_in(path: Path, seen: frozenset[Path] = frozenset()) -> Iterator[str]:
    """`FILE: KEY: CODE` of all that a task file and those that it includes name as code, but for our own files."""
    path = expanded(path).resolve()
    if path in seen or _ours(path):
        return
    root = _root(path)
    for key, node in _nodes(root):
        reason = _reason(key, node)
        if reason:
            yield f"{path}: {reason}"
    for name in _includes(root):
        yield from code_in(path.parent / name, seen | {path})


def _ours(path: Path) -> bool:
    """Whether a file is the installed harness's, or came with this package."""
    import lm_eval.tasks

    own = Path(str(lm_eval.tasks.__file__)).resolve().parent
    return path.is_relative_to(own) or path.is_relative_to(PAPER_TASKS)


def _root(path: Path) -> Node | None:
    import yaml

    try:
        if not path.is_file():  # an endless device, or a pipe
            raise UserError(f"{path}: is no file")
        with path.open("rb") as file:
            return yaml.compose(file, Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {first_line(error)}") from error


def _nodes(root: Node | None) -> Iterator[tuple[str, Node]]:
    """(the key that it stands under, node) of all nodes, each once."""
    from yaml.nodes import MappingNode, SequenceNode

    waiting, seen = [("", root)] if root is not None else [], set()
    while waiting:
        key, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield key, node
        if isinstance(node, MappingNode):
            for name, value in node.value:
                own = str(name.value) if isinstance(name.value, str) else key
                waiting += [(own, value), (key, name)]
        elif isinstance(node, SequenceNode):
            waiting += [(key, value) for value in node.value]


def _includes(root: Node | None) -> Iterator[str]:
    from yaml.nodes import MappingNode

    pairs = root.value if isinstance(root, MappingNode) else []
    for name, value in pairs:
        if name.value == "include":
            yield from (str(one.value) for one in (value.value if isinstance(value.value, list) else [value]))


def _reason(key: str, node: Node) -> str:
    """The code that a node names, empty where it is data."""
    value = node.value if isinstance(node.value, str) else ""
    if not node.tag.startswith(PLAIN) or node.tag.startswith(f"{PLAIN}python"):
        return f"{key or 'key'}: {node.tag} {value}".rstrip()
    if key == "metric" and value and not _is_metric(value):
        return f"metric: {value}, which is none of lm_eval's and may be a script"
    if key == "dataset_path" and (value in BUILDERS or value.endswith(".py") or _has_script(value)):
        return f"dataset_path: {value}, which may be a program"
    if key in ("hf_evaluate", "trust_remote_code") and value.lower() not in OFF:
        return f"{key}: {value}"
    if key == "unsafe_code" and value.lower() not in ("true", "yes", "on"):
        return f"unsafe_code: {value}"  # over a file of the harness's that runs what documents hold
    return ""


def _is_metric(name: str) -> bool:
    from lm_eval.api import registry

    import_module("lm_eval.api.metrics")  # fills the registry
    return name in registry.METRIC_REGISTRY


def _has_script(value: str) -> bool:
    try:
        return bool(value) and any(expanded(value).glob("*.py"))
    except (OSError, RuntimeError, ValueError):
        return False


@cache
def sandbox() -> None:
    """Let the harness's templates be rendered by the process that bounds their time and memory, in jinja's sandbox.

    For this process, once: the harness has one function for all of them.

    Raises:
        UserError: a template of this version of the harness still reaches Python, or may use filters of its own.
    """
    from jinja2 import TemplateError
    from jinja2.filters import FILTERS
    from lm_eval import utils
    from lm_eval.api import task

    utils.apply_template = render_task
    if not set(utils.env.filters) - set(FILTERS) - {"regex_replace"}:
        try:
            task.utils.apply_template(SANDBOX, {})
        except TemplateError:
            return
    raise UserError("evaluator=lm_eval cannot watch the templates of this version of lm_eval: install 0.4.13")
