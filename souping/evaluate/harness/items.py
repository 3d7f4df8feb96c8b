"""The harness's documents as items: an id, a category, a group, and a fingerprint of all that its score depends on."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from souping.core import Item, UserError, digest
from souping.evaluate.harness.tasks import Loaded
from souping.names import nearest

NEUTRAL = ("task_alias", "tag", "group", "dataset_kwargs", "metric_list", "filter_list")
"""Keys of a task that change no answer by themselves: names, where the data lies, and metrics that were not chosen."""

LONGEST = 80
"""Characters of a category or group as it stands in a column; a longer group goes by its hash."""


@dataclass(frozen=True, kw_only=True)
class HarnessItem(Item):
    """A document of a task. `content` is what its score depends on: neither its category nor its group is in it."""

    task: str
    doc: int
    content: str

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


def _column(doc: Any, setting: str, name: str, key: str) -> str:
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


def _shown(render: Callable[[Any], Any], doc: Any, name: str) -> str:
    try:
        return str(render(doc))
    except Exception as error:  # a template or a function of the task's own
        raise UserError(f"evaluator.tasks: the task of {name} cannot render it: {error!s:.200}") from error


def _hash(value: Any) -> str:
    """SHA-256 of JSON-like data; what JSON does not know goes in as text."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _settings(task: Any) -> dict[str, Any]:
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
        return [getattr(value, "__qualname__", type(value).__name__), _code(value)]
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
