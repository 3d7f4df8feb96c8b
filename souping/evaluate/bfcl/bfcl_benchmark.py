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

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from souping.core.fields import component, pick
from souping.core.groups import groups_of
from souping.core.parsing import read_json
from souping.core.protocols import BenchmarkItems, Objective
from souping.core.text import listed
from souping.core.types import FloatArray, Item, Items, Json, JsonObject, Names, UserError, frozen
from souping.logs.bfcl_average import coefficients_of, overall
from souping.logs.bfcl_items import (
    FILE_ITEMS,
    LIVE_ITEMS,
    MULTI_TURN,
    NON_LIVE,
    SINGLE_TURN,
    shared_content,
)

FILE_LANGUAGES = {"simple_java": "java", "simple_javascript": "javascript"}
WITHOUT_ANSWERS = {"irrelevance": [], "live_irrelevance": [], "live_relevance": "any"}
"""Categories without a file of answers: no call may be made, or any call must."""


@frozen
class BfclBenchmark(BenchmarkItems):
    """BFCL's items of these categories; `data` is the folder of bfcl-eval's files."""

    data: Path
    categories: Names
    title: str = "bfcl"

    def items(self) -> Items:
        """The items in the order of the categories and of their files."""
        groups = _groups(self.data)
        items = list[Item]()
        for name in self.categories:
            items += _category_items(self.data, name, groups)
        return tuple(items)


def chosen_categories(names: Sequence[str] | None) -> Names:
    """The categories that are named, directly or by a collection, in BFCL's order; all of them for None.

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
    """The categories among these that need bfcl-eval's full environment."""
    return [name for name in categories if name not in SINGLE_TURN]


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a JSON Lines file."""
    with path.open(encoding="utf-8") as lines:
        yield from (read_json(line) for line in lines if line.strip())


def _category_items(data: Path, category: str, groups: Mapping[str, str]) -> list[Item]:
    """The items of a category's two files, of questions and of answers; `groups` is {item id: group}."""
    entries = list(_entries(data / f"BFCL_v4_{category}.json"))
    if category in WITHOUT_ANSWERS:
        answers = [WITHOUT_ANSWERS[category]] * len(entries)
    else:
        references = _entries(data / "possible_answer" / f"BFCL_v4_{category}.json")
        answers = [reference["ground_truth"] for reference in references]
    pairs = zip(entries, answers, strict=True)
    return [_item(category, entry, answer, groups) for entry, answer in pairs]


def _item(category: str, entry: Mapping[str, Any], answer: Json, groups: Mapping[str, str]) -> Item:
    """The item of an entry of a category's file.

    Single-turn items have the scorer `call`. Only bfcl-eval itself can score items of several turns.
    """
    # One list of messages per turn.
    messages = [
        {"role": message["role"], "content": message["content"]}
        for message in chain.from_iterable(entry["question"])
    ]
    if category in SINGLE_TURN:
        scorer = "call"
        reference: JsonObject = {"calls": answer, "functions": entry["function"]}
    else:
        scorer = "bfcl"
        state_keys = ("initial_config", "involved_classes", "missed_function")
        reference = {"turns": answer, **{key: entry[key] for key in state_keys if key in entry}}
    return Item(
        id=entry["id"],
        category=category,
        prompt=tuple(messages),
        answer=reference,
        scorer=scorer,
        group=groups[entry["id"]],
        language=FILE_LANGUAGES.get(category, "python"),
    )


@lru_cache(maxsize=4)
def _groups(data: Path) -> Mapping[str, str]:
    """{item id: group} of all of BFCL's items in the folder `data`."""
    return groups_of(_contents(data))


def _contents(data: Path) -> Iterator[tuple[str, Iterator[str]]]:
    """(item id, contents by which it is in one group with other items) of all of BFCL's items."""
    for name in FILE_ITEMS:
        for entry in _entries(data / f"BFCL_v4_{name}.json"):
            yield entry["id"], shared_content(entry["id"], entry)


COLLECTIONS: Mapping[str, Names] = {
    "non_live": tuple(NON_LIVE),
    "live": tuple(LIVE_ITEMS),
    "single_turn": SINGLE_TURN,
    "multi_turn": MULTI_TURN,
}
"""{collection: its categories}"""


@component
class Bfcl(Objective):
    """BFCL's overall accuracy: the mean of non-live, live and multi-turn.

    The weight of a category that the benchmark lacks goes to the others of its group. The weight of a group that is
    missing as a whole goes to the other groups.
    """

    def coefficients(self, categories: Sequence[str]) -> FloatArray:
        """Weights [C] of the categories' accuracies (UserError if one is not BFCL's)."""
        for name in categories:
            pick(name, FILE_ITEMS, "objective=bfcl: category")
        shares = coefficients_of(overall(), categories)
        return np.array([shares[name] for name in categories])

    def notes(self, categories: Sequence[str]) -> list[str]:
        """A note if the benchmark lacks categories: the overall accuracy is then not the leaderboard's."""
        lacking = [name for name in FILE_ITEMS if name not in categories]
        if not lacking:
            return []
        return [
            f"BFCL's overall without {listed(lacking)}: their weight went to the others of their group; "
            "do not compare it with the leaderboard's"
        ]
