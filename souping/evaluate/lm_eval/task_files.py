"""Task files: the harness's index of them, and the code that they name, which does not run unless it is allowed.

A YAML file may name Python (`!function`), an unknown metric (the name of a script) or a data set that is a program.
Files of the installed harness and of this package may do so; any other file is refused before anything of it has run.
Templates always run in a sandbox, in a process whose time and memory are limited.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from souping.core.files import expanded
from souping.core.text import first_line
from souping.core.types import Json, JsonObject, UserError
from souping.evaluate.templates import render_task

if TYPE_CHECKING:
    from lm_eval.tasks._index import Entry
    from yaml.nodes import Node

Spec = str | dict[str, Json]
"""A task as it may be named: by name, pattern or file, or as a mapping."""
PAPER_TASKS = Path(__file__).resolve().parents[2] / "paper" / "tasks"
YAML_TAG = "tag:yaml.org,2002:"
BUILDERS = ("generator", "iceberg", "pandas", "spark")
"""Loaders of `datasets` that take pickles, classes by name, or functions."""
OFF = ("false", "no", "off", "null", "~", "", "0")
"""Spellings of a switch that is off; the library takes anything else for true."""
ESCAPE = "{{ ''.__class__.__mro__ }}"
"""A template that reaches Python's classes, which a sandbox refuses."""
UNSUITABLE = (
    "evaluator=lm_eval cannot check the task files of this version of lm_eval: install 0.4.13"
)


class TaskFiles:
    """The harness's index of tasks, and a check of each file before the harness loads it.

    `allowed` lists the code that `evaluator.allow_task_code` has let through.
    """

    def __init__(
        self,
        tasks: Sequence[Spec],
        include_path: Sequence[str],
        include_defaults: bool | None,
        metadata: dict[str, Any] | None,
        allow_task_code: bool,
    ) -> None:
        """Index the task files in `include_path` for these tasks, the entries of `evaluator.tasks`.

        If `include_defaults` is None, the harness's own 14,000 tasks are only indexed if `tasks` need them: this takes
        some twenty seconds. `metadata` is what the harness adds to each task.
        """
        from lm_eval.tasks import TaskManager

        folders = [expanded(path) for path in include_path]
        self._folders = list(map(Path, folders))
        for folder in self._folders:
            if not folder.is_dir():
                raise UserError(
                    f"evaluator.include_path={folder} is not a folder: give the one with your task files"
                )
        self._allow = allow_task_code
        self.allowed = list[str]()
        self.manager = TaskManager(
            include_path=folders or None,
            include_defaults=include_defaults is True,
            metadata=metadata,
        )
        if include_defaults is None and not _is_complete(self.manager.task_index, tasks):
            self.manager = TaskManager(
                include_path=folders or None, include_defaults=True, metadata=metadata
            )
        self._check_at_loading()
        sandbox()

    def _check_at_loading(self) -> None:
        """Wrap the function of the harness that loads a task file, so that the file is checked before."""
        try:
            factory = self.manager._factory
            load = factory._load_full_config
        except AttributeError as error:
            raise UserError(UNSUITABLE) from error

        def checked(entry: Entry, overrides: dict[str, Json] | None = None) -> JsonObject:
            if entry.yaml_path:
                self._check(Path(entry.yaml_path))
            config: dict[str, Json] = load(entry, overrides)
            return config

        factory._load_full_config = checked

    def check_readable(self, name: str) -> None:
        """Refuse a file that is named like this unknown task and is not YAML (UserError): the index skips those."""
        for folder in self._folders:
            for path in folder.rglob(f"{name}.yaml"):
                _root(path)

    def _check(self, path: Path) -> None:
        """Refuse a task file that names code, or note the code if it is allowed."""
        lines = list(code_in_task_file(path))
        if lines and not self._allow:
            raise UserError(
                f"{lines[0]}: it would run Python on this machine\n"
                "set evaluator.allow_task_code=true if you trust whoever wrote this file"
            )
        self.allowed += [line for line in lines if line not in self.allowed]


def _is_complete(
    index: Mapping[str, Entry], names: Sequence[Spec], groups: frozenset[str] = frozenset()
) -> bool:
    """Whether every name is in the index, matches a name there or is a file, and so are the members of a named group.

    `groups` are the groups that contain `names`. They are not looked at again, as groups may form a circle.
    """
    for name in names:
        if isinstance(name, dict) or name in groups:
            continue
        if name not in index:
            if not expanded(name).is_file() and not fnmatch.filter(index, name):
                return False
            continue
        tasks = (index[name].cfg or {}).get("task")
        members = list[str]()
        if isinstance(tasks, list):
            members = [task for task in tasks if isinstance(task, str)]
        if not _is_complete(index, members, groups | {name}):
            return False
    return True


def code_in_task_file(path: Path, seen: frozenset[Path] = frozenset()) -> Iterator[str]:
    """A line `FILE: KEY: CODE` for each piece of code that a task file, or a file that it includes, names.

    Files of the harness and of this package give no line. Nor do files that were `seen`, as includes may form a circle.

    Raises:
        UserError: a file is not YAML.
    """
    # Not `resolve`, which fails at links in a circle before Python 3.13.
    path = Path(os.path.realpath(expanded(path)))
    if path in seen or _is_exempt(path):
        return
    root = _root(path)
    for key, node in _nodes(root):
        if code := _code_of(key, node):
            yield f"{path}: {code}"
    for name in _includes(root):
        yield from code_in_task_file(path.parent / name, seen | {path})


def _is_exempt(path: Path) -> bool:
    """Whether a file is part of the installed harness or of this package."""
    import lm_eval.tasks

    harness = Path(str(lm_eval.tasks.__file__)).resolve().parent
    return path.is_relative_to(harness) or path.is_relative_to(PAPER_TASKS)


def _root(path: Path) -> Node | None:
    """The parsed YAML of a file, whose tags are not resolved; None for an empty file (UserError for anything else)."""
    import yaml

    try:
        if not path.is_file():  # an endless device, or a pipe
            raise UserError(f"{path}: is not a file")
        with path.open("rb") as file:
            return yaml.compose(file, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {first_line(error)}") from error


def _nodes(root: Node | None) -> Iterator[tuple[str, Node]]:
    """(nearest key above the node, node) of all nodes below the root, keys among them.

    An alias is its anchor's node, so a node may be below several keys.
    """
    from yaml.nodes import MappingNode, SequenceNode

    waiting = [("", root)] if root is not None else []
    seen = set()
    while waiting:
        key, node = waiting.pop()
        # An anchor may contain its own alias.
        if (key, id(node)) in seen:
            continue
        seen.add((key, id(node)))
        yield key, node
        if isinstance(node, MappingNode):
            for name, value in node.value:
                inner_key = str(name.value) if isinstance(name.value, str) else key
                waiting += [(inner_key, value), (key, name)]
        elif isinstance(node, SequenceNode):
            waiting += [(key, value) for value in node.value]


def _includes(root: Node | None) -> Iterator[str]:
    """Files that the key `include` of a task file names: one, or a list."""
    from yaml.nodes import MappingNode

    if not isinstance(root, MappingNode):
        return
    for name, value in root.value:
        if name.value == "include":
            files = value.value if isinstance(value.value, list) else [value]
            for file in files:
                yield str(file.value)


def _code_of(key: str, node: Node) -> str:
    """`KEY: CODE` if a node below this key names code; empty if it is data."""
    value = node.value if isinstance(node.value, str) else ""
    # A tag such as `!function` or `!!python/object` makes an object.
    if not node.tag.startswith(YAML_TAG) or node.tag.startswith(f"{YAML_TAG}python"):
        return f"{key or 'key'}: {node.tag} {value}".rstrip()
    # The class of a task that is written in Python.
    if key == "class":
        return f"class: {value}"
    if key == "metric" and value and not _is_metric(value):
        return f"metric: {value}, which is not one of lm_eval's and may be a script"
    if key == "dataset_path" and (value in BUILDERS or value.endswith(".py") or _has_script(value)):
        return f"dataset_path: {value}, which may be a program"
    # `hf_evaluate` loads a metric that is a script.
    if key in ("hf_evaluate", "trust_remote_code") and value.lower() not in OFF:
        return f"{key}: {value}"
    # An included task of the harness may run what documents hold; this switch would hide it.
    if key == "unsafe_code" and value.lower() not in ("true", "yes", "on"):
        return f"unsafe_code: {value}"
    return ""


def _is_metric(name: str) -> bool:
    """Whether the harness itself has a metric of this name; any other may be a script that it would load."""
    from lm_eval.api import registry

    import_module("lm_eval.api.metrics")  # fills the registry
    return name in registry.METRIC_REGISTRY


def _has_script(value: str) -> bool:
    """Whether a data set's path is a folder with Python files, of which `datasets` may run one."""
    try:
        return bool(value) and any(expanded(value).glob("*.py"))
    except (OSError, RuntimeError, ValueError):
        return False


@cache
def sandbox() -> None:
    """Make the harness render its templates by `render_task`: in jinja's sandbox, in a process with limited time and
    memory. This is for the rest of the process, because the harness has one function for all templates.

    Raises:
        UserError: a template of this version of the harness still reaches Python, or may use filters of its own.
    """
    from jinja2 import TemplateError
    from jinja2.filters import FILTERS
    from lm_eval import utils
    from lm_eval.api import task

    utils.apply_template = render_task
    # Our sandbox has jinja's filters and this one.
    added_filters = set(utils.env.filters) - set(FILTERS) - {"regex_replace"}
    if not added_filters:
        try:
            task.utils.apply_template(ESCAPE, {})
        except TemplateError:
            # The template was refused, so the tasks' templates are rendered in the sandbox.
            return
    raise UserError(UNSUITABLE)
