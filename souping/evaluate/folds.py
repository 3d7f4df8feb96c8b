"""Folds: disjoint sets of groups, from a hash with a fixed salt.

A group's fold depends on its name and nothing else (that of items without one is their prompt's digest): never on the
run's seed, or a shared store would leak one run's report items into another run's search; nor on the name of a file,
a task or the benchmark. Adding items never moves old ones.

Items belong together if they share a text, directly or through others (`groups`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from souping.core.fields import pick
from souping.core.text import listed
from souping.core.types import FOLDS, Fold, Item, UserError, digest

SALT = "souping folds 4"
"""Never to be changed. It is the first of forty that leaves each fold of the pantry 20 items of every category; it was
chosen without evaluating any model."""
SHARES: dict[Fold, float] = {"select": 0.2, "search": 0.2, "report": 0.6}
ENOUGH = 20
"""Items of a category in a fold below which its mean score is too rough to stand alone."""


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Items of each fold, in the benchmark's order; `notes` says what a reader must know."""

    items: Mapping[Fold, tuple[Item, ...]]
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        return {fold: len(self.items[fold]) for fold in FOLDS}

    @property
    def content(self) -> str:
        """Digest of which items are in which fold, whatever their order."""
        return digest([sorted([item.category, item.fingerprint] for item in self.items[fold]) for fold in FOLDS])


def position(group: str) -> float:
    """Position of a group in [0, 1): the first 64 bits of a SHA-256."""
    text = "\0".join((SALT, group)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def shares_of(given: Mapping[str, float] | None) -> Mapping[Fold, float]:
    """`benchmark.folds` as shares of all three folds: those that are not named keep their proportion of the rest.

    Raises:
        UserError: a name is not a fold, a share is not between 0 and 1, or nothing is left for a fold.
    """
    if not given:
        return SHARES
    for name, share in given.items():
        pick(name, FOLDS, "benchmark.folds")
        if not 0 < share < 1:
            raise UserError(f"benchmark.folds.{name}={share} must be above 0 and below 1")
    rest = {fold: share for fold, share in SHARES.items() if fold not in given}
    left = 1 - sum(given.values())
    if (rest and left < 0.01) or (not rest and abs(left) > 1e-6):
        raise UserError(f"benchmark.folds: the shares add up to {sum(given.values()):g}; all three make 1")
    return {fold: given.get(fold, share * left / sum(rest.values() or (1,))) for fold, share in SHARES.items()}


def assign(group: str, two: bool = False, shares: Mapping[Fold, float] = SHARES) -> Fold:
    """The fold of a group. With `two` (published scores select) the select share goes to search."""
    place = position(group)
    if place < shares["select"]:
        return "search" if two else "select"
    return "search" if place < shares["select"] + shares["search"] else "report"


def split_folds(items: Sequence[Item], two: bool = False, shares: Mapping[Fold, float] = SHARES) -> Folds:
    """Cut a benchmark into folds.

    Raises:
        UserError: a category has too few groups to stand in every fold.
    """
    fold_of = {item.group: assign(item.group, two, shares) for item in items}
    needed = FOLDS[1:] if two else FOLDS
    members: dict[str, list[str]] = {}
    for item in items:
        members.setdefault(item.category, []).append(item.group)
    notes = _fill({category: list(dict.fromkeys(groups)) for category, groups in members.items()}, fold_of, needed)
    folds = {fold: tuple(item for item in items if fold_of[item.group] == fold) for fold in FOLDS}
    for fold in needed:
        _check_present(fold, folds[fold], list(members))
        notes += _small(fold, folds[fold])
    return Folds(items=folds, notes=tuple(notes))


def limit_folds(folds: Folds, limit: int) -> Folds:
    """Folds of a dry run: at most `limit` items of each category in a fold, and none of the report fold.

    The report is on items of the other two folds that are used for neither selection nor search. A category without
    such items is reported on those of the search.
    """
    select, search = (first_items(folds.items[fold], limit) for fold in ("select", "search"))
    taken = {item.group for item in [*select, *search]}
    near = [item for fold in ("search", "select") for item in folds.items[fold]]
    report = [*first_items([item for item in near if item.group not in taken], limit)]
    again = {item.category for item in search} - {item.category for item in report}
    report += [item for item in search if item.category in again]
    twice = f" (of {listed(sorted(again))}: the very items of the search)" if again else ""
    note = (
        f"limit={limit}: a dry run on at most {limit} items of each category in a fold; it reports on {len(report)} "
        f"items of the select and search folds{twice}; the report fold stays closed and nothing is claimed"
    )
    return Folds(items={"select": select, "search": search, "report": tuple(report)}, notes=(note,))


def first_items(items: Sequence[Item], limit: int | None) -> tuple[Item, ...]:
    """The first `limit` items of each category; all without a limit."""
    seen = Counter[str]()
    first = []
    for item in items:
        seen[item.category] += 1
        if limit is None or seen[item.category] <= limit:
            first.append(item)
    return tuple(first)


def _fill(members: Mapping[str, list[str]], fold_of: dict[str, Fold], needed: Sequence[Fold]) -> list[str]:
    """Give a small category a group in each fold that the hash left empty, from the fold that has most. Returns a note
    on what was moved."""
    moves: list[tuple[str, Fold, Fold]] = []
    for category, groups in members.items():
        for fold in needed:
            counts = Counter(fold_of[group] for group in groups)
            if not counts[fold] and len(groups) >= len(needed):
                donor = max(needed, key=lambda one: counts[one])
                moved = min((group for group in groups if fold_of[group] == donor), key=position)
                fold_of[moved] = fold
                moves.append((category, donor, fold))
    few = [f"{category} ({len(members[category])})" for category in dict.fromkeys(category for category, *_ in moves)]
    note = f"{listed(few)}: few groups, so {len(moves)} moved to folds that had none of their category"
    return [note] if moves else []


def _check_present(fold: Fold, items: Sequence[Item], categories: Sequence[str]) -> None:
    present = {item.category for item in items}
    empty = [c for c in categories if c not in present]
    if empty:
        raise UserError(
            f"category {empty[0]!r} has no items in fold {fold}: it needs at least one group in each fold; "
            "add items (20 in a fold make a usable rate) or leave the category out"
        )


def _small(fold: Fold, items: Sequence[Item]) -> list[str]:
    counts = Counter(item.category for item in items)
    small = [f"{name} ({n})" for name, n in counts.items() if n < ENOUGH]
    return [f"fold {fold}: fewer than {ENOUGH} items in {listed(small)}: their rates are rough"] if small else []


Node = tuple[str, str]


def groups(shared: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
    """{id: the first id of its group} from (id, texts) pairs. Two ids are in one group if they share a text, directly
    or through others."""
    parent: dict[Node, Node] = {}

    def root(node: Node) -> Node:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    ids = []
    for name, texts in shared:
        ids.append(name)
        for text in texts:
            parent[root(("text", text))] = root(("id", name))
    first: dict[Node, str] = {}
    return {name: first.setdefault(root(("id", name)), name) for name in ids}
