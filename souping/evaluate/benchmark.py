"""Benchmarks: items with categories, read from a JSON Lines file; none; the evaluator's own."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from souping.core.fields import component, pick
from souping.core.files import expanded
from souping.core.protocols import BenchmarkItems
from souping.core.text import check_pointer, read_json
from souping.core.types import Item, Json, OwnScorer, UserError


@component
class Benchmark(BenchmarkItems):
    """Items of a JSON Lines file: `id, category, prompt | messages, answer`, and `scorer, group, language, tools`.

    `name` (default: the file's stem) is what reports call it; items of the categories in `exclude` are not used.
    `scorers` are scorers of your own, {name: module.function}; `folds` are shares of the folds, {select: 0.2, ...}.
    """

    path: str | None = None
    name: str | None = None
    exclude: Sequence[str] = ()
    scorers: Mapping[str, str] | None = None
    folds: Mapping[str, float] | None = None

    @property
    def title(self) -> str:
        """Name in reports."""
        return self.name or Path(self.path or "").stem

    def items(self) -> tuple[Item, ...]:
        """All items, checked.

        Raises:
            UserError: the file is absent, a line is not a valid item (file and line named), or an id stands twice.
        """
        if not self.path:
            raise UserError("benchmark.path is not set: try +experiment=bfcl, or benchmark.path=items.jsonl")
        from souping.evaluate.scoring import SCORERS
        from souping.evaluate.scoring.own import load

        path = expanded(self.path, "benchmark.path")
        own = load(self.scorers or {}, SCORERS)
        lines = ((f"{path}:{number}", line) for number, line in enumerate(_lines(path), start=1) if line.strip())
        items = _unique((where, _item(_row(line, where), where, own)) for where, line in lines)
        if not items:
            raise UserError(f"benchmark.path={path}: the file holds no items")
        return kept(items, self.exclude)


@dataclass(frozen=True, kw_only=True)
class ListedItems(BenchmarkItems):
    """Items that are at hand: `Item`s, or mappings with the keys of a line of the file."""

    listed: Sequence[Item | Mapping[str, Json]]

    title = "items"

    def items(self) -> tuple[Item, ...]:
        """All items, checked.

        Raises:
            UserError: one is not valid (its place named), or an id stands twice.
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
    """Items that the evaluator brings itself (`evaluator=lm_eval`, `evaluator=bfcl`), but for some categories."""

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
        UserError: a category is not there (nearest named), or nothing would be left.
    """
    categories = list(dict.fromkeys(item.category for item in items))
    for name in exclude:
        pick(name, categories, "benchmark.exclude")
    left = tuple(item for item in items if item.category not in exclude)
    if exclude and not left:
        raise UserError("benchmark.exclude leaves no category: leave one in")
    return left


def outline_items(sizes: Mapping[str, int], limit: float | None, shared: Collection[str]) -> tuple[Item, ...]:
    """Items without content: `sizes` of each category, an integer `limit` of them at most; in the categories of
    `shared`, items of one number are a group.
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


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON may hold U+2028
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: cannot read the items: it is not UTF-8 text, save it as such") from error


def _unique(found: Iterable[tuple[str, Item]]) -> tuple[Item, ...]:
    """The items of {where: item}.

    Raises:
        UserError: an id stands twice.
    """
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
        hint = "; the file holds one object per line, and no list around them" if line.lstrip()[:1] == "[" else ""
        if "{" not in line and re.search("[,;\t]", line):
            hint = "; this looks like CSV: write one JSON object per line, with id, category, prompt and answer"
        raise UserError(f"{where}: not a JSON object: {error}{hint}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: an item is a JSON object on a line of its own, not {type(row).__name__}")
    return row


def _listed(one: object, where: str) -> Item:
    if isinstance(one, Item):
        return _checked(one, where)
    if not isinstance(one, Mapping):
        raise UserError(f"{where}: an item is a souping.Item or a dict (id, category, prompt, answer), not {one!r:.60}")
    return _item(one, where, {})


def _item(row: Mapping[str, Json], where: str, own: Mapping[str, OwnScorer]) -> Item:
    scorer = _text(row, "scorer", where, default="exact")
    item = Item(
        id=_text(row, "id", where),
        category=_text(row, "category", where),
        prompt=_prompt(row, where),
        answer=_answer(row, where),
        scorer=scorer,
        own=own.get(scorer),
        group=_text(row, "group", where, default=""),
        language=_text(row, "language", where, default="python"),
        tools=_tools(row, where),
    )
    return _checked(item, where)


def _checked(item: Item, where: str) -> Item:
    """The item, if its scorer can score it."""
    from souping.evaluate.scoring import check

    try:
        check(item)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return item


def _text(row: Mapping[str, Json], key: str, where: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if value is None and default is None:
        raise UserError(f"{where}: `{key}` is missing")
    if value is None and default is not None:
        return default
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise UserError(f"{where}: `{key}` must be a non-empty text, not {value!r:.60}")
    return value


def _answer(row: Mapping[str, Json], where: str) -> Json:
    if row.get("answer") is None:
        raise UserError(f"{where}: `answer` is missing")
    return row["answer"]


def _prompt(row: Mapping[str, Json], where: str) -> str | tuple[Mapping[str, Json], ...]:
    """`prompt` as text or messages; `messages` is read the same way."""
    value = row.get("prompt", row.get("messages"))
    if value is None:
        raise UserError(f"{where}: `prompt` is missing")
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: `prompt` must be a text or chat messages [{{role, content}}], not {value!r:.60}")
    return tuple(_message(message, where) for message in value)


def _message(value: Json, where: str) -> Mapping[str, Json]:
    """A message for the chat template: what it holds beside role and content (tool calls, names) goes there too."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise UserError(f"{where}: a chat message is an object with `role` and `content`, not {value!r:.60}")
    content = value.get("content")
    if isinstance(content, list):
        raise UserError(f"{where}: a message's `content` must be one text: images and parts are not read")
    if not isinstance(content, str) and not (content is None and value.get("tool_calls")):
        raise UserError(f"{where}: a message's `content` must be a text (or absent beside `tool_calls`)")
    return {**value, "content": content or ""}


def _tools(row: Mapping[str, Json], where: str) -> tuple[Mapping[str, Json], ...]:
    value = row.get("tools") or []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UserError(f"{where}: `tools` must be a list of JSON schemas of functions, not {value!r:.60}")
    if value and isinstance(row.get("prompt"), str):
        raise UserError(f"{where}: `tools` are shown by the chat template: write the prompt as messages")
    return tuple(value)
