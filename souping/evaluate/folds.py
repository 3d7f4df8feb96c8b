"""Folds: disjoint sets of groups, from a hash with a fixed salt.

A group's fold depends on its name and nothing else (that of items without one is their prompt's digest): never on the
run's seed, or a shared store would leak one run's report items into another run's search; nor on the name of a file,
a task or the benchmark. Adding items never moves old ones.

Items that belong together: connected parts of the graph that links each to what it shares with others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from souping.core.fields import pick
from souping.core.text import listed, nearest
from souping.core.types import FOLDS, Fold, Item, UserError, digest

SALT = "souping folds 4"
"""Never to be changed. Of forty tried it is the first that leaves each fold of the pantry 20 items of every category;
no model was asked in choosing it."""
SHARES: dict[Fold, float] = {"select": 0.2, "search": 0.2, "report": 0.6}
ENOUGH = 20
"""Items of a category in a fold below which its rate is too rough to stand alone."""


@dataclass(frozen=True, kw_only=True)
class GroupMove:
    """Group of a category with so many `groups`, given by a fold that has most to one that had none."""

    category: str
    groups: int
    donor: Fold
    fold: Fold


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
    """Where a group stands in [0, 1): the first 64 bits of a SHA-256."""
    text = "\0".join((SALT, group)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def shares_of(given: Mapping[str, float] | None) -> Mapping[Fold, float]:
    """`benchmark.folds` as shares: what is not named keeps its proportion of the rest.

    Raises:
        UserError: a name is no fold's, a share is not between 0 and 1, or nothing is left for a fold.
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
    moves = [
        move
        for category, groups in members.items()
        for move in _fill(category, list(dict.fromkeys(groups)), fold_of, needed)
    ]
    notes = _moved(moves)
    folds = {fold: tuple(item for item in items if fold_of[item.group] == fold) for fold in FOLDS}
    for fold in needed:
        _check_present(fold, folds[fold], list(members))
        notes += _small(fold, folds[fold])
    return Folds(items=folds, notes=tuple(notes))


def limit_folds(folds: Folds, limit: int) -> Folds:
    """Folds of a dry run: at most `limit` items a category and fold, and none of the report fold.

    Its report is on items of the other folds that neither selects nor searches; a category that has none left is
    reported on what it searched.
    """
    select, search = (_first(folds.items[fold], limit) for fold in ("select", "search"))
    taken = {item.group for item in [*select, *search]}
    near = [item for fold in ("search", "select") for item in folds.items[fold]]
    report = _first([item for item in near if item.group not in taken], limit)
    again = {item.category for item in search} - {item.category for item in report}
    report += [item for item in search if item.category in again]
    twice = f" (of {listed(sorted(again))}: the very items of the search)" if again else ""
    note = (
        f"limit={limit}: a dry run on at most {limit} items a category and fold; its report is on {len(report)} items "
        f"of the select and search folds{twice}, the report fold stays closed, nothing is claimed"
    )
    return Folds(items={"select": tuple(select), "search": tuple(search), "report": tuple(report)}, notes=(note,))


def _first(items: Sequence[Item], limit: int) -> list[Item]:
    """The first items of each category."""
    seen = Counter[str]()
    kept = []
    for item in items:
        seen[item.category] += 1
        if seen[item.category] <= limit:
            kept.append(item)
    return kept


def first_items(items: Sequence[Item], limit: int | None) -> tuple[Item, ...]:
    """At most `limit` items of each category, the first; all without a limit."""
    return tuple(items if limit is None else _first(items, limit))


def _fill(category: str, groups: list[str], fold_of: dict[str, Fold], needed: Sequence[Fold]) -> list[GroupMove]:
    """Give a small category a group in each fold that the hash left empty, taken where it has most."""
    moves = []
    for fold in needed:
        counts = Counter(fold_of[g] for g in groups)
        if counts[fold] or len(groups) < len(needed):
            continue
        donor = max(needed, key=lambda f: counts[f])
        moved = min((g for g in groups if fold_of[g] == donor), key=position)
        fold_of[moved] = fold
        moves.append(GroupMove(category=category, groups=len(groups), donor=donor, fold=fold))
    return moves


def _moved(moves: Sequence[GroupMove]) -> list[str]:
    """The moves, in a line."""
    few = [f"{name} ({groups})" for name, groups in {move.category: move.groups for move in moves}.items()]
    if len(few) > 1:
        listing = f"{len(few)} categories have few groups: {listed(few)}"
        return [f"{listing}: {len(moves)} were moved to folds that had none of their category"]
    return [
        f"category {m.category} has few groups ({m.groups}): one was moved from {m.donor} to {m.fold}" for m in moves
    ]


def _check_present(fold: Fold, items: Sequence[Item], categories: Sequence[str]) -> None:
    present = {item.category for item in items}
    empty = [c for c in categories if c not in present]
    if empty:
        raise UserError(
            f"category {empty[0]!r} has no items in fold {fold}: it needs at least one group in each fold; "
            "add items (20 in a fold make a usable rate) or leave the category out"
            f"{nearest(empty[0], [name for name in categories if name != empty[0]])}"
        )


def _small(fold: Fold, items: Sequence[Item]) -> list[str]:
    counts = Counter(item.category for item in items)
    small = [f"{name} ({n})" for name, n in counts.items() if n < ENOUGH]
    return [f"fold {fold}: fewer than {ENOUGH} items in {listed(small)}: their rates are rough"] if small else []


Node = tuple[str, str]


def groups(shared: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
    """{id: the first id of its part} from (id, texts) pairs: two ids are in one part that have a text in common,
    directly or through others."""
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
