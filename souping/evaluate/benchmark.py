"""Benchmarks: items with categories, from a JSON Lines file, from a list, or from the evaluator."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from souping.core.fields import Name, component, mismatch, pick, text_of
from souping.core.files import expanded
from souping.core.protocols import BenchmarkItems
from souping.core.text import check_pointer, read_json
from souping.core.types import Item, Json, UserError, UserScorer

REQUIRED = ("id", "category", "prompt", "answer")
TEXTS = ("id", "category", "scorer", "group", "language")
FORMS: Mapping[str, Any] = {
    "id": Name | int,
    "category": Name | int,
    "scorer": str | int,
    "group": str | int,
    "language": str | int,
    "prompt": str | list[dict[str, Any]],
    "tools": list[dict[str, Any]],
}
"""Annotations of an item's keys; an answer may be any JSON."""


@component
class Benchmark(BenchmarkItems):
    """Items of a JSON Lines file: `id, category, prompt | messages, answer`, and `scorer, group, language, tools`.

    `name` (default: the file's stem) is its name in reports; items of the categories in `exclude` are not used.
    `scorers` are your own scorers, {name: module.function}; `folds` are shares of the folds, {select: 0.2, ...}.
    """

    path: str | None = None
    name: str | None = None
    exclude: Sequence[str] = ()
    scorers: Mapping[str, str] | None = None
    folds: Mapping[str, float] | None = None

    @property
    def title(self) -> str:
        return self.name or Path(self.path or "").stem

    def items(self) -> tuple[Item, ...]:
        """All items, checked.

        Raises:
            UserError: a line is not a valid item (with file and line), or an id appears twice.
        """
        if not self.path:
            raise UserError("benchmark.path is not set: try +experiment=bfcl, or benchmark.path=items.jsonl")
        from souping.evaluate.scoring import load

        path = expanded(self.path, "benchmark.path")
        own = load(self.scorers or {})
        text = text_of(path).removeprefix("\ufeff")  # and no splitlines: JSON may hold U+2028
        lines = ((f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
        items = _unique((where, _item(_row(line, where), where, own)) for where, line in lines)
        if not items:
            raise UserError(f"benchmark.path={path}: the file holds no items")
        return kept(items, self.exclude)


@dataclass(frozen=True, kw_only=True)
class ListedItems(BenchmarkItems):
    """Items in a list: `Item`s, or mappings with the keys of a line of the file."""

    listed: Sequence[Item | Mapping[str, Json]]

    title = "items"

    def items(self) -> tuple[Item, ...]:
        """All items, checked.

        Raises:
            UserError: one is not valid (with its place), or an id appears twice.
        """
        items = _unique((f"items[{n}]", _listed(one, f"items[{n}]")) for n, one in enumerate(self.listed))
        if not items:
            raise UserError("items: the list holds no items")
        return items


@component
class NoBenchmark(BenchmarkItems):
    """No items: soups are written and nothing is evaluated (`experiment=merge`, `experiment=rebuild`)."""

    title = ""

    def items(self) -> tuple[Item, ...]:
        return ()


@component
class OwnBenchmark(BenchmarkItems):
    """Items that come with the evaluator (`evaluator=lm_eval`, `evaluator=bfcl`), except some categories."""

    exclude: Sequence[str] = ()
    folds: Mapping[str, float] | None = None

    title = ""

    def items(self) -> tuple[Item, ...]:
        raise UserError("benchmark=own: this evaluator brings no items; give benchmark.path=items.jsonl")


@dataclass(frozen=True, kw_only=True)
class PartOfBenchmark(BenchmarkItems):
    """Another benchmark without some of its categories."""

    whole: BenchmarkItems
    exclude: Sequence[str]
    folds: Mapping[str, float] | None = None

    @property
    def title(self) -> str:
        return self.whole.title

    @property
    def label(self) -> str:
        return self.whole.label

    @property
    def note(self) -> str:
        return self.whole.note

    def items(self) -> tuple[Item, ...]:
        return kept(self.whole.items(), self.exclude)


def kept(items: tuple[Item, ...], exclude: Sequence[str]) -> tuple[Item, ...]:
    """Items of all other categories.

    Raises:
        UserError: there is no such category, or nothing would be left.
    """
    categories = list(dict.fromkeys(item.category for item in items))
    for name in exclude:
        pick(name, categories, "benchmark.exclude")
    left = tuple(item for item in items if item.category not in exclude)
    if exclude and not left:
        raise UserError("benchmark.exclude leaves no category: leave one in")
    return left


def outline_items(sizes: Mapping[str, int], limit: float | None, shared: Collection[str]) -> tuple[Item, ...]:
    """Items without content: `sizes` of each category, at most an integer `limit` of them. In the categories of
    `shared`, items of the same number are a group.
    """
    return tuple(
        Item(
            id=f"{name}/{number}",
            category=name,
            prompt="",
            answer="",
            group=f"shared {number}" if name in shared else "",
        )
        for name, size in sizes.items()
        for number in range(min(size, limit) if isinstance(limit, int) else size)
    )


def _unique(found: Iterable[tuple[str, Item]]) -> tuple[Item, ...]:
    items: dict[str, Item] = {}
    for where, item in found:
        if item.id in items:
            raise UserError(f"{where}: id {item.id!r} appears twice; ids must be unique")
        items[item.id] = item
    return tuple(items.values())


def _row(line: str, where: str) -> Mapping[str, Json]:
    try:
        row = read_json(line)
    except ValueError as error:
        check_pointer(where, line)
        hint = "write one JSON object per line, with id, category, prompt and answer"
        raise UserError(f"{where}: not a JSON object: {error}; {hint}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: an item is a JSON object on a line of its own, not {type(row).__name__}")
    return row


def _listed(one: object, where: str) -> Item:
    if isinstance(one, Item):
        return _checked(one, where)
    if not isinstance(one, Mapping):
        raise UserError(f"{where}: an item is a souping.Item or a dict (id, category, prompt, answer), not {one!r:.60}")
    return _item(one, where, {})


def _item(row: Mapping[str, Json], where: str, own: Mapping[str, UserScorer]) -> Item:
    values: dict[str, Any] = {"prompt": row.get("messages"), **row}
    for key in REQUIRED:
        if values.get(key) is None:
            raise UserError(f"{where}: `{key}` is missing")
    for key, hint in FORMS.items():
        if values.get(key) is not None and (wrong := mismatch(values[key], hint)):
            raise UserError(f"{where}: `{key}` {wrong}, not {values[key]!r:.60}")
    prompt, tools = values["prompt"], values.get("tools") or []
    if isinstance(prompt, str) and tools:
        raise UserError(f"{where}: `tools` are shown by the chat template: write the prompt as messages")
    if not prompt:
        raise UserError(f"{where}: `prompt` is empty")
    texts = {key: str(values[key]) for key in TEXTS if values.get(key) is not None}
    return _checked(
        Item(
            **texts,
            prompt=prompt if isinstance(prompt, str) else tuple(_message(message, where) for message in prompt),
            answer=values["answer"],
            user_scorer=own.get(texts.get("scorer", "")),
            tools=tuple(tools),
        ),
        where,
    )


def _checked(item: Item, where: str) -> Item:
    """The item, if its scorer can score it."""
    from souping.evaluate.scoring import check

    try:
        check(item)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return item


def _message(message: Mapping[str, Json], where: str) -> Mapping[str, Json]:
    """A message for the chat template, with what it holds beside role and content (tool calls, names)."""
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(message.get("role"), str) or not isinstance(content, str):
        raise UserError(f"{where}: a chat message has a `role` and a `content`, both texts, not {message!r:.60}")
    return {**message, "content": content}
