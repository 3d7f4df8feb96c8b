"""Documents of loaded tasks as items, and the content that their answers depend on."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from souping.core.text import nearest
from souping.core.types import Item, Json, UserError, digest
from souping.evaluate.lm_eval.tasks import NEUTRAL, Document, Loaded

if TYPE_CHECKING:
    from lm_eval.api.task import Task

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
