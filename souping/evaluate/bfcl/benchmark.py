"""BFCL's items, read from the data files of an installed bfcl-eval.

An item's category is its file. Items are in one group if they share content, directly or through others: single-turn
items a function document, in whatever files; multi-turn items a scenario (the four files tell each in a variant).
Groups are taken over all files, whatever categories are evaluated, so that they never move.

BFCL's categories are those of v3, and its overall accuracy is that of the leaderboard of 2025: linear in the accuracies
of the categories, so an objective like any other. bfcl-eval's own "Overall Acc" counts a category that was not
evaluated as 0; here the categories that are there share the weight of their group. What v4 adds (memory, web search) is
not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from souping.core.fields import component, pick
from souping.core.parsing import read_json
from souping.core.protocols import BenchmarkItems, Objective
from souping.core.text import listed
from souping.core.types import FloatArray, Item, Items, Json, JsonObject, Names, UserError, frozen
from souping.evaluate.benchmark import groups_of

FILE_LANGUAGES = {"simple_java": "java", "simple_javascript": "javascript"}
WITHOUT_ANSWERS = {"irrelevance": [], "live_irrelevance": [], "live_relevance": "any"}
"""Categories without a file of answers: no call may be made, or any call must."""


@frozen
class BfclBenchmark(BenchmarkItems):
    """Items of some categories, all of them or those whose ids are named; `data` is the folder of bfcl-eval's files."""

    data: Path
    categories: Names
    ids: tuple[str, ...] = ()
    limit: int | None = None
    title: str = "bfcl"

    def items(self) -> Items:
        """In the order of the categories and of their files, or in that of `ids`.

        Raises:
            UserError: an id is not one of these categories'.
        """
        groups = _groups(self.data)
        items = list[Item]()
        for name in self.categories:
            items += _read(self.data, name, groups)[: self.limit]
        if not self.ids:
            return tuple(items)
        known = {item.id: item for item in items}
        for name in self.ids:
            pick(name, known, "evaluator.ids")
        return tuple(known[name] for name in dict.fromkeys(self.ids))


def chosen(names: Sequence[str] | None) -> Names:
    """Categories by their names and the names of collections, in BFCL's order; all of them if none is named.

    Raises:
        UserError: there is no such category.
    """
    if names is None:
        return tuple(FILE_ITEMS)
    named = set()
    for name in names:
        pick(name, [*FILE_ITEMS, *COLLECTIONS], "evaluator.categories")
        named |= set(COLLECTIONS.get(name, (name,)))
    if not named:
        raise UserError(
            "evaluator.categories is empty: name categories, or single_turn, live, multi_turn ..."
        )
    return tuple(name for name in FILE_ITEMS if name in named)


def needs_full(categories: Sequence[str]) -> list[str]:
    """The categories that the minimal environment cannot evaluate."""
    return [name for name in categories if name not in SINGLE_TURN]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from (read_json(line) for line in lines if line.strip())


def _read(data: Path, category: str, groups: Mapping[str, str]) -> list[Item]:
    rows = list(_lines(data / f"BFCL_v4_{category}.json"))
    if category in WITHOUT_ANSWERS:
        answers = [WITHOUT_ANSWERS[category]] * len(rows)
    else:
        lines = _lines(data / "possible_answer" / f"BFCL_v4_{category}.json")
        answers = [line["ground_truth"] for line in lines]
    return [_item(category, row, answer, groups) for row, answer in zip(rows, answers, strict=True)]


def _item(category: str, row: Mapping[str, Any], answer: Json, groups: Mapping[str, str]) -> Item:
    messages = [
        {"role": message["role"], "content": message["content"]}
        for message in chain.from_iterable(row["question"])
    ]
    if category in SINGLE_TURN:
        scorer = "call"
        reference: JsonObject = {"calls": answer, "functions": row["function"]}
    else:
        scorer = "bfcl"
        states = ("initial_config", "involved_classes", "missed_function")
        reference = {"turns": answer, **{key: row[key] for key in states if key in row}}
    return Item(
        id=row["id"],
        category=category,
        prompt=tuple(messages),
        answer=reference,
        scorer=scorer,
        group=groups[row["id"]],
        language=FILE_LANGUAGES.get(category, "python"),
    )


@lru_cache(maxsize=4)
def _groups(data: Path) -> Mapping[str, str]:
    """{id in its file: group}."""
    return groups_of(_contents(data))


def _contents(data: Path) -> Iterator[tuple[str, Iterator[str]]]:
    """(id, what it may share with others) of all items."""
    for name in FILE_ITEMS:
        for row in _lines(data / f"BFCL_v4_{name}.json"):
            yield row["id"], _shared(name, row)


def _shared(name: str, row: Mapping[str, Any]) -> Iterator[str]:
    """What an item has that others may have too, as texts."""
    if name in SINGLE_TURN:
        yield from (f"function {json.dumps(doc, sort_keys=True)}" for doc in row["function"])
    else:  # one number is one scenario in all four files
        yield f"story {row['id'].rsplit('_', 1)[1]}"
        yield f"state {json.dumps(row['initial_config'], sort_keys=True)}"
        yield f"question {json.dumps(row['question'][0], sort_keys=True)}"


NON_LIVE = {
    "simple_python": 400, "simple_java": 100, "simple_javascript": 50, "multiple": 200, "parallel": 200,
    "parallel_multiple": 200, "irrelevance": 240,
}  # fmt: skip
LIVE_ITEMS = {
    "live_simple": 258, "live_multiple": 1053, "live_parallel": 16, "live_parallel_multiple": 24,
    "live_irrelevance": 884, "live_relevance": 16,
}  # fmt: skip
"""Items of each file, as bfcl-eval 2026.3.23 has them. BFCL's live accuracy is over items, not over files."""
MULTI_TURN = (
    "multi_turn_base",
    "multi_turn_miss_func",
    "multi_turn_miss_param",
    "multi_turn_long_context",
)
SINGLE_TURN = (*NON_LIVE, *LIVE_ITEMS)
FILE_ITEMS: Mapping[str, int] = {**NON_LIVE, **LIVE_ITEMS, **dict.fromkeys(MULTI_TURN, 200)}
"""Items of the 17 files, 4,441 together."""
COLLECTIONS: Mapping[str, Names] = {
    "non_live": tuple(NON_LIVE),
    "live": tuple(LIVE_ITEMS),
    "single_turn": SINGLE_TURN,
    "multi_turn": MULTI_TURN,
}

Node = str | tuple[tuple[float, "Node"], ...]
"""A category, or parts with their weights: a node's value is the weighted mean of its parts."""


def _mean(*parts: Node) -> Node:
    return tuple((1.0, part) for part in parts)


_SIMPLE = _mean("simple_python", "simple_java", "simple_javascript")
TREE = _mean(
    _mean(_SIMPLE, "multiple", "parallel", "parallel_multiple", "irrelevance"),
    tuple((float(size), name) for name, size in LIVE_ITEMS.items()),
    _mean(*MULTI_TURN),
)


@component
class Bfcl(Objective):
    """BFCL's overall accuracy: the mean of non-live, live and multi-turn.

    Of the categories that the benchmark lacks, the weight goes to their siblings; a group that is missing as a whole
    leaves its weight to the other groups.
    """

    def coefficients(self, categories: Sequence[str]) -> FloatArray:
        for name in categories:
            pick(name, FILE_ITEMS, "objective=bfcl: category")
        shares = _shares(TREE, frozenset(categories))
        return np.array([shares[name] for name in categories])

    def notes(self, categories: Sequence[str]) -> list[str]:
        """A note if categories are missing: the overall is then not the leaderboard's."""
        lacking = [name for name in FILE_ITEMS if name not in categories]
        if not lacking:
            return []
        return [
            f"BFCL's overall without {listed(lacking)}: their weight went to the others of their group; "
            "do not compare it with the leaderboard's"
        ]


def _shares(node: Node, there: frozenset[str]) -> dict[str, float]:
    """{category: coefficient} of a node over the categories that are there; empty if none is."""
    if isinstance(node, str):
        return {node: 1.0} if node in there else {}
    parts = [(weight, _shares(child, there)) for weight, child in node]
    total = sum(weight for weight, shares in parts if shares)
    coefficients = dict[str, float]()
    for weight, shares in parts:
        for name, share in shares.items():
            coefficients[name] = weight / total * share
    return coefficients
