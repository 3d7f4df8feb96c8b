"""Benchmarks: items with categories, from a file, a data set, a list, or the evaluator, and their splits.

Splits are disjoint sets of groups, from a hash with a fixed salt. A group's split depends on its name and nothing else
(that of items without one is their prompt's digest): never on the run's seed, or a shared store would leak one run's
test items into another run's search; nor on the name of a file, a task or the benchmark. Adding items never moves old
ones. Items belong together if they share a text, directly or through others (`groups`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from souping.core.fields import Count, Name, component, mismatch, pick
from souping.core.files import expanded
from souping.core.protocols import BenchmarkItems, Prompts
from souping.core.text import listed
from souping.core.types import (
    SPLITS,
    TEXT,
    Item,
    Items,
    Json,
    JsonObject,
    Split,
    UserError,
    UserScorer,
    digest,
    frozen,
)
from souping.evaluate.data_sets import DataSet, data_set_title, is_data_set, load_data_set
from souping.evaluate.questions import file_rows, keyed_rows, numbered_rows

REQUIRED = ("category", "prompt", "answer")
TEXT_KEYS = ("id", "category", "scorer", "group", "language")
FORMS: Mapping[str, Any] = {
    "id": Name | int,
    "category": Name | int,
    "source": Name | int,
    "text": str,
    "scorer": str | int,
    "group": str | int,
    "language": str | int,
    "prompt": str | list[dict[str, Any]],
    "tools": list[dict[str, Any]],
}
"""Annotations of an item's keys; an answer may be any JSON."""
KEYS = (*FORMS, "answer", "messages")
SPLIT_SALT = "souping folds 4"
"""Never to be changed. It is the first of forty that leaves each split of the demo 20 items of every category; it was
chosen without evaluating any model."""
SPLIT_SHARES: dict[Split, float] = {"select": 0.2, "search": 0.2, "test": 0.6}
ENOUGH_ITEMS = 20
"""Items of a category in a split below which its mean score is too rough to stand alone."""


@component
class Benchmark(BenchmarkItems):
    """Items of a file or data set: `id, category, prompt | messages, answer`, and `scorer, group, language, tools`.

    `path` is a JSON Lines, CSV or parquet file, or the address of a data set (`data_sets`); `columns` are {key: its
    column there}. For evaluator=loss a row may be `id, source, text`, and `source` may stand for the category in any
    row.

    `name` (default: the file's stem) is its name in reports; items of the categories in `exclude` are not used, and of
    the others the first `limit` items of each. `scorers` are your own scorers, {name: module.function}; `splits` are
    shares of the splits, {select: 0.2, ...}.
    """

    path: str | None = None
    columns: Mapping[str, str] | None = None
    name: str | None = None
    exclude: Sequence[str] = ()
    limit: Count | None = None
    scorers: Mapping[str, str] | None = None
    splits: Mapping[str, float] | None = None

    @property
    def title(self) -> str:
        return self.name or items_title(self.path or "")

    @property
    def note(self) -> str:
        return self._data_set.note if is_data_set(self.path or "") else ""

    @cached_property
    def _data_set(self) -> DataSet:
        return load_data_set(self.path or "")

    def items(self) -> Items:
        """All items, checked.

        Raises:
            UserError: a row is not a valid item (with its place), or an id appears twice.
        """
        if not self.path:
            raise UserError(
                "benchmark.path is not set: try +experiment=bfcl, or benchmark.path=items.jsonl"
            )
        from souping.evaluate.scoring import load_scorers

        columns = self.columns or {}
        for key in columns:
            pick(key, KEYS, "benchmark.columns")
        rows: Iterable[tuple[str, Mapping[str, Json]]]
        if is_data_set(self.path):
            rows = keyed_rows(numbered_rows(self.path, self._data_set.rows), columns)
        else:
            path = expanded(self.path, "benchmark.path")
            if not path.exists():
                raise UserError(
                    f"benchmark.path={self.path} is neither a file nor a folder here; a data set of the Hub is "
                    "hf://ORG/NAME"
                )
            rows = file_rows(path, columns)
        scorers = load_scorers(self.scorers or {})
        items = ((where, _item(row, where, scorers)) for where, row in rows)
        unique = _unique(items, f"benchmark.path={self.path}: it")
        return included_items(unique, self.exclude, self.limit)


@frozen
class ListedItems(BenchmarkItems):
    """Items in a list: `Item`s, or mappings with the keys of a line of the file."""

    listed: Sequence[Item | JsonObject]

    title = "items"

    def items(self) -> Items:
        """All items, checked.

        Raises:
            UserError: one is not valid (with its place), or an id appears twice.
        """
        places = ((f"items[{number}]", entry) for number, entry in enumerate(self.listed))
        items = ((where, _listed_item(entry, where)) for where, entry in places)
        return _unique(items, "items: the list")


@component
class EvaluatorBenchmark(BenchmarkItems):
    """Items of the evaluator (`evaluator=lm_eval`, `evaluator=bfcl`), chosen by the same settings as items of a file.

    It holds the settings alone: a run replaces it by a `PartOfBenchmark` of the evaluator's own items.
    """

    name: str | None = None
    exclude: Sequence[str] = ()
    limit: Count | None = None
    splits: Mapping[str, float] | None = None

    title = ""
    from_evaluator = True

    def brought_by(self, prompts: Prompts) -> BenchmarkItems:
        """The evaluator's items, chosen by these settings; this benchmark itself if the evaluator brings no items."""
        whole = prompts.benchmark
        if whole is None:
            return self
        return PartOfBenchmark(whole=whole, choice=self, splits=self.splits)

    def outline(self, prompts: Prompts) -> Items:
        # Unlike `included_items`, this refuses no name: an outline may lack a category that the items have.
        included = [item for item in prompts.outline() if item.category not in self.exclude]
        return first_items(included, self.limit)

    def items(self) -> Items:
        # Only called if the evaluator has no items of its own.
        raise UserError(
            "benchmark=evaluator: this evaluator brings no items; give benchmark.path=items.jsonl"
        )


@frozen
class PartOfBenchmark(BenchmarkItems):
    """Some of the evaluator's items: `whole` holds all of them, and the user's `choice` says which are included.

    `splits` are shares of the splits.
    """

    whole: BenchmarkItems
    choice: EvaluatorBenchmark
    splits: Mapping[str, float] | None = None

    @property
    def title(self) -> str:
        return self.choice.name or self.whole.title

    def items(self) -> Items:
        return included_items(self.whole.items(), self.choice.exclude, self.choice.limit)


def items_title(path: str) -> str:
    """The stem of a file, or the name of a data set."""
    return data_set_title(path) if is_data_set(path) else Path(path).stem


def included_items(items: Items, exclude: Sequence[str], limit: int | None = None) -> Items:
    """The first `limit` items of each category that is not excluded.

    Raises:
        UserError: there is no such category, or nothing would be left.
    """
    categories = list(dict.fromkeys(item.category for item in items))
    for name in exclude:
        pick(name, categories, "benchmark.exclude")
    included = tuple(item for item in items if item.category not in exclude)
    if exclude and not included:
        raise UserError("benchmark.exclude leaves no category: leave one in")
    return first_items(included, limit)


def outline_items(sizes: Mapping[str, int], shared: Collection[str]) -> Items:
    """Items without content, to plan with. `sizes` is {category: number of items}.

    In the categories of `shared`, items of the same number are a group.
    """
    items = list[Item]()
    for name, size in sizes.items():
        for number in range(size):
            group = f"shared {number}" if name in shared else ""
            items.append(
                Item(id=f"{name}/{number}", category=name, prompt="", answer="", group=group)
            )
    return tuple(items)


def _unique(placed: Iterable[tuple[str, Item]], source: str) -> Items:
    """The items of (place, item) pairs, in order, checked (UserError if there is none, or an id appears twice).

    An item without an id gets the digest of its prompt, numbered where it repeats. So other items keep their ids, and
    with them their answers, if one is inserted. `source` names the file or list in errors.
    """
    items = dict[str, Item]()
    repeats = Counter[str]()
    for where, item in placed:
        if not item.id:
            name = item.prompt_digest[:16]
            repeats[name] += 1
            if repeats[name] > 1:
                name = f"{name}-{repeats[name]}"
            item = replace(item, id=name)
        if item.id in items:
            raise UserError(f"{where}: id {item.id!r} appears twice; ids must be unique")
        items[item.id] = _checked(item, where)
    if not items:
        raise UserError(f"{source} holds no items")
    return tuple(items.values())


def _listed_item(entry: object, where: str) -> Item:
    """The item of an entry of `ListedItems`; `where` is its place."""
    if isinstance(entry, Item):
        return entry
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{where}: an item is a souping.Item or a dict (id, category, prompt, answer), not {entry!r:.60}"
        )
    # Only the configuration of a file names scorers of the user's.
    return _item(entry, where, scorers={})


def _item(row: JsonObject, where: str, scorers: Mapping[str, UserScorer]) -> Item:
    """The item of a row at `where` of a file; `scorers` are the user's, {name: scorer}.

    Its id is empty if the row has none.
    """
    # Two keys have other names as well.
    values: dict[str, Any] = {"prompt": row.get("messages"), "category": row.get("source"), **row}
    # {required key: its name in error messages, None for the key itself}
    names = dict.fromkeys(REQUIRED)
    # A line for evaluator=loss has no prompt and no answer.
    if row.get("text") is not None:
        values |= {"prompt": row["text"], "answer": "", "scorer": TEXT}
        names |= {"category": "source", "prompt": "text"}
    for key, name in names.items():
        if values.get(key) is None:
            raise UserError(
                f"{where}: `{name or key}` is missing or empty (it has {listed(row) or 'nothing'}): "
                f"add it, or name its column, benchmark.columns={{{name or key}: COLUMN}}"
            )
    for key, hint in FORMS.items():
        if values.get(key) is not None and (wrong := mismatch(values[key], hint)):
            raise UserError(f"{where}: `{key}` {wrong}, not {values[key]!r:.60}")
    prompt = values["prompt"]
    tools = values.get("tools") or []
    if isinstance(prompt, str) and tools:
        raise UserError(
            f"{where}: `tools` are shown by the chat template: write the prompt as messages"
        )
    if not prompt:
        raise UserError(f"{where}: `{names['prompt'] or 'prompt'}` is empty")
    if not isinstance(prompt, str):
        prompt = tuple(_message(message, where) for message in prompt)
    # The others have the defaults of `Item`.
    texts = {key: str(values[key]) for key in TEXT_KEYS if values.get(key) is not None}
    return Item(
        **{"id": "", **texts},
        prompt=prompt,
        answer=values["answer"],
        user_scorer=scorers.get(texts.get("scorer", "")),
        tools=tuple(tools),
    )


def _checked(item: Item, where: str) -> Item:
    """The item, if its scorer can score it (UserError with its place, `where`)."""
    from souping.evaluate.scoring import check_item

    try:
        check_item(item)
    except UserError as error:
        raise error.at(where) from error
    return item


def _message(message: JsonObject, where: str) -> JsonObject:
    """A message for the chat template, with what it holds beside role and content (tool calls, names)."""
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(message.get("role"), str) or not isinstance(content, str):
        raise UserError(
            f"{where}: a chat message has a `role` and a `content`, both texts, not {message!r:.60}"
        )
    return {**message, "content": content}


# Splits


@frozen
class Splits:
    """Items of each split, in the benchmark's order; `notes` are for the reader of the report."""

    items: Mapping[Split, Items]
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """{split: number of items}"""
        return {split: len(self.items[split]) for split in SPLITS}

    @property
    def content(self) -> str:
        """Digest of which items are in which split, whatever their order."""
        contents = list[Json]()
        for split in SPLITS:
            contents.append(sorted([item.category, item.fingerprint] for item in self.items[split]))
        return digest(contents)


def position(group: str) -> float:
    """Position of a group in [0, 1): the first 64 bits of a SHA-256."""
    text = "\0".join((SPLIT_SALT, group)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def shares_of(setting: Mapping[str, float] | None) -> Mapping[Split, float]:
    """`benchmark.splits` as shares of all three splits: those that are not named keep their proportion of the rest.

    Raises:
        UserError: a name is not a split, a share is not between 0 and 1, or nothing is left for a split.
    """
    if not setting:
        return SPLIT_SHARES
    for name, share in setting.items():
        pick(name, SPLITS, "benchmark.splits")
        if not 0 < share < 1:
            raise UserError(f"benchmark.splits.{name}={share} must be above 0 and below 1")
    defaults = {split: share for split, share in SPLIT_SHARES.items() if split not in setting}
    remainder = 1 - sum(setting.values())
    # Splits that are not named need at least 1 % together; three named ones make 1, apart from rounding.
    if (defaults and remainder < 0.01) or (not defaults and abs(remainder) > 1e-6):
        raise UserError(
            f"benchmark.splits: the shares add up to {sum(setting.values()):g}; all three make 1"
        )
    shares = dict[Split, float]()
    for split in SPLITS:
        if split in setting:
            shares[split] = setting[split]
        else:
            shares[split] = defaults[split] * remainder / sum(defaults.values())
    return shares


def assign(group: str, two: bool = False, shares: Mapping[Split, float] = SPLIT_SHARES) -> Split:
    """The split of a group. With only `two` splits, search and test, search also gets the share of select."""
    place = position(group)
    if place < shares["select"]:
        return "search" if two else "select"
    return "search" if place < shares["select"] + shares["search"] else "test"


def make_splits(
    items: Sequence[Item], two: bool = False, shares: Mapping[Split, float] = SPLIT_SHARES
) -> Splits:
    """Cut a benchmark into splits, only search and test if `two`.

    Raises:
        UserError: a category has too few groups to stand in every split.
    """
    split_of = {item.group: assign(item.group, two, shares) for item in items}
    # With two splits there is no select: published scores take its place.
    needed = SPLITS[1:] if two else SPLITS
    members: dict[str, list[str]] = {}
    for item in items:
        members.setdefault(item.category, []).append(item.group)
    # {category: its groups, each once}
    groups = {category: list(dict.fromkeys(names)) for category, names in members.items()}
    # This also changes `split_of`.
    notes = _fill(groups, split_of, needed)
    splits: dict[Split, list[Item]] = {split: [] for split in SPLITS}
    for item in items:
        splits[split_of[item.group]].append(item)
    for split in needed:
        _check_present(split, splits[split], list(members))
        notes += _small_categories(split, splits[split])
    return Splits(
        items={split: tuple(chosen) for split, chosen in splits.items()}, notes=tuple(notes)
    )


def two_splits(items: Sequence[Item]) -> Mapping[Split, Items]:
    """A benchmark cut into what a search may see and what it may not (UserError: a category is too small)."""
    return make_splits(items, two=True).items


def limit_splits(splits: Splits, limit: int) -> Splits:
    """Splits of a dry run: at most `limit` items of each category in a split, and none of the test split of `splits`.

    The test is on items of the other two splits whose groups are used for neither selection nor search. A category
    without such items is tested on those of the search.

    A later run with other shares may have some of these items in its test split. The store remembers that something was
    chosen on them.
    """
    select = first_items(splits.items["select"], limit)
    search = first_items(splits.items["search"], limit)
    taken = {item.group for item in [*select, *search]}
    others = [*splits.items["search"], *splits.items["select"]]
    test = [*first_items([item for item in others if item.group not in taken], limit)]
    untested = {item.category for item in search} - {item.category for item in test}
    test += [item for item in search if item.category in untested]
    warning = f" (of {listed(sorted(untested))}: the very items of the search)" if untested else ""
    note = (
        f"dry_run={limit}: a dry run on at most {limit} items of each category in a split; it tests on {len(test)} "
        f"items of the select and search splits{warning}; the test split stays closed and nothing is claimed"
    )
    return Splits(items={"select": select, "search": search, "test": tuple(test)}, notes=(note,))


def first_items(items: Sequence[Item], limit: int | None) -> Items:
    """The first `limit` items of each category; all without a limit."""
    seen = Counter[str]()
    first = []
    for item in items:
        seen[item.category] += 1
        if limit is None or seen[item.category] <= limit:
            first.append(item)
    return tuple(first)


def _fill(
    members: Mapping[str, list[str]], split_of: dict[str, Split], needed: Sequence[Split]
) -> list[str]:
    """Give a small category a group in each of the `needed` splits that the hash left empty, from the split with the
    most groups. Changes `split_of`, {group: split}, and returns a note if a group was moved. `members` is {category:
    its groups, each once}.
    """
    moves: list[tuple[str, Split, Split]] = []
    for category, groups in members.items():
        for split in needed:
            counts = Counter(split_of[group] for group in groups)
            # A category with fewer groups than splits is refused later.
            if not counts[split] and len(groups) >= len(needed):
                donor = max(needed, key=lambda name: counts[name])
                # By the hash again, so that the order of the items does not matter.
                moved = min((group for group in groups if split_of[group] == donor), key=position)
                split_of[moved] = split
                moves.append((category, donor, split))
    if not moves:
        return []
    moved_categories = dict.fromkeys(category for category, _, _ in moves)
    few = [f"{category} ({len(members[category])})" for category in moved_categories]
    return [
        f"{listed(few)}: few groups, so {len(moves)} moved to splits that had none of their category"
    ]


def _check_present(split: Split, items: Sequence[Item], categories: Sequence[str]) -> None:
    """Refuse a split without items of one of the categories (UserError)."""
    present = {item.category for item in items}
    empty = [category for category in categories if category not in present]
    if empty:
        raise UserError(
            f"category {empty[0]!r} has no items in split {split}: it needs at least one group in each split; "
            "add items (20 in a split make a usable rate) or leave the category out"
        )


def _small_categories(split: Split, items: Sequence[Item]) -> list[str]:
    """A note on the categories of a split that have few items; empty if no category has few."""
    counts = Counter(item.category for item in items)
    small = [f"{name} ({n})" for name, n in counts.items() if n < ENOUGH_ITEMS]
    if not small:
        return []
    return [
        f"split {split}: fewer than {ENOUGH_ITEMS} items in {listed(small)}: their rates are rough"
    ]
