"""Ledger of the report fold: what was claimed and shown on its items, and on which items searches chose.

It is part of the results store and identifies everything by its content: items by what the model sees
(`Item.identity`), models by their weights. Other names, files, groups or settings do not reset it.

The table `written` counts the rows of `looks`, `shown` and `searches` separately, so that deleted rows are noticed.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from souping.analysis.significance import penalty
from souping.core.protocols import Objective
from souping.core.types import Item, Json, Recipe, digest
from souping.pipeline.store import Mixture, Store, parts_of, row_number

NEAR = 0.05
"""Two soups are one to the ledger if no weight differs by more."""
DEEP = 20
"""Levels of soups of soups that are followed. An edited recipe.json may contain itself."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a report is about to claim of a frozen soup. `candidates` are fingerprints, `margin` is in the unit of the
    scores."""

    soup: Recipe
    candidates: tuple[str, ...]
    evaluator: str
    objective: Objective
    margin: float
    items: tuple[Item, ...]

    @property
    def fingerprint(self) -> str:
        """Digest of everything that the claim is about, without names and order.

        An item counts with its weight in the objective, which covers the coefficients whatever the categories are
        called. The soup's weights are rounded, because a change in the last digits does not make another soup.
        """
        soup, names = self.soup, list(dict.fromkeys(item.category for item in self.items))
        sizes = Counter(item.category for item in self.items)
        share = dict(zip(names, self.objective.coefficients(names).tolist(), strict=True))
        items = [
            (i.identity, i.scoring, round(share[i.category] / sizes[i.category], 12))
            for i in self.items
        ]
        mixed = sorted(
            (name, round(weight, 3))
            for name, weight in zip(soup.fingerprints, soup.weights, strict=True)
        )
        other = [] if self.objective.linear else [self.objective.name]
        content: list[Json] = [mixed, soup.dtype, soup.method, dict(soup.settings)]
        return digest(
            [content, sorted(self.candidates), self.evaluator, self.margin, sorted(items), *other]
        )


@dataclass(frozen=True)
class Look:
    """A claim's look: its number k, and whether this run is the first to make the claim.

    `shown` is the number of soups whose scores on these items were known before the claim, if the claim's own soup was
    one of them and therefore pays for all; otherwise 0.
    """

    number: int
    shown: int
    first: bool

    def sentence(self) -> str:
        """Why it is not the first look, and what that costs."""
        what = (
            f"this soup was one of {self.shown} whose scores on the report items were known before"
        )
        if not self.shown:
            what = f"these items were reported on {_times(self.number - 1)} before"
        return f"{what}: this is look {self.number}, {_price(self.number)}"


class Ledger:
    """Record of claims, shown soups, searches and views in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # ------------------------------------------------------------ looks

    def open_report(self, claim: Claim) -> Look:
        """Write a claim to the ledger before the report fold opens, and return its look.

        The number is fixed when the claim is first written, so that a repeated run keeps its look. It is one more than
        the largest number of other claims on any of the items. A soup that was picked among soups with known scores
        pays for all of them, and deleted rows count as claims.
        """
        return self._open(
            claim.fingerprint, [item.identity for item in claim.items], parts_of(claim.soup)
        )

    def open_comparison(self, claim: str, identities: Iterable[str]) -> Look:
        """Write a comparison of runs to the ledger, and return its look: one more than the claims on any of its items.
        `claim` is a digest of what is compared; repeated, it keeps its look."""
        return self._open(claim, identities, None)

    def _open(self, claim: str, identities: Iterable[str], soup: Mixture | None) -> Look:
        with self._store.writing() as db:
            row = db.execute("SELECT number, shown FROM looks WHERE claim = ?", (claim,)).fetchone()
            if row:
                return Look(int(row[0]), int(row[1]), first=False)
            item_set = _item_set(db, identities)
            claims, shown = _claims(db, item_set), 0
            if soup is not None:
                shown = _Mixtures(db).shown_beside(soup, item_set)
            number = 1 + max(claims, shown) + _deleted(db)
            shown = shown if shown > claims else 0
            _insert(db, "looks", claim, number, shown, item_set)
            return Look(number, shown, first=True)

    def claims(self, items: Sequence[Item]) -> int:
        """The largest number of claims on one of these items."""
        with self._store.writing() as db:
            return _claims(db, _item_set(db, [item.identity for item in items]))

    def announcement(self, items: Sequence[Item]) -> str:
        """What a report on these items will cost if there were others before; empty if it is the first."""
        if not (count := self.claims(items)):
            return ""
        what = f"the items of the report fold were reported on {_times(count)} before"
        return f"{what}: a report that is not one of those is look {count + 1} or later, {_price(count + 1)}"

    def note_shown(self, recipes: Iterable[Recipe], items: Sequence[Item]) -> None:
        """Note that the scores of these soups on these items were shown. Single models do not matter."""
        with self._store.writing() as db:
            mixtures, item_set = _Mixtures(db), _item_set(db, [item.identity for item in items])
            for parts in map(parts_of, recipes):
                if len(mixtures.of(parts)) > 1:
                    _insert(db, "shown", json.dumps(parts, sort_keys=True), item_set)

    def deleted(self) -> int:
        """Number of rows that somebody deleted."""
        with self._store.reading() as db:
            return _deleted(db)

    # ------------------------------------------------------------ searches

    def note_search(self, candidates: Iterable[str], items: Sequence[Item]) -> None:
        """Note that a run chose among these candidates (fingerprints), or mixtures of them, on these items."""
        with self._store.writing() as db:
            item_set = _item_set(db, [item.identity for item in items])
            _insert(db, "searches", json.dumps(sorted(set(candidates))), item_set)

    def chosen_on(self, recipe: Recipe) -> set[str]:
        """Identities of the items on which any run chose among models with an ingredient of this recipe.

        Weights, order, dtype and companion files do not matter: how a mixture of A and B does on an item tells how its
        neighbours do.
        """
        query = "SELECT fingerprint FROM contents JOIN members ON content = contents.id WHERE item_set = ?"
        with self._store.reading() as db:
            mixtures = _Mixtures(db)
            own = mixtures.of(parts_of(recipe)).keys()
            searches = db.execute("SELECT item_set, ingredients FROM searches").fetchall()
            sets = {
                n
                for n, names in searches
                if own & mixtures.of(dict.fromkeys(json.loads(names), 1.0)).keys()
            }
            return {str(name) for number in sets for (name,) in db.execute(query, (number,))}

    # ------------------------------------------------------------ views

    def note_view(self, recipe: str, identities: Iterable[str]) -> None:
        """Note that somebody read the answers to these items in the report of a frozen recipe (its id)."""
        with self._store.writing() as db:
            shown = _item_set(db, identities)
            db.execute("INSERT OR IGNORE INTO views VALUES (?, ?)", (recipe, shown))

    def viewed(self, recipe: str, items: Sequence[Item]) -> int:
        """Number of these items whose answers somebody read in the report of another recipe than this one (its id)."""
        query = (
            "SELECT DISTINCT fingerprint FROM contents JOIN members ON content = contents.id "
            "JOIN views USING (item_set) WHERE views.recipe != ?"
        )
        with self._store.reading() as db:
            seen = {str(name) for (name,) in db.execute(query, (recipe,))}
        return sum(item.identity in seen for item in items)


class _Mixtures:
    """Models as mixtures of ingredients, which are identified by their weights alone.

    Rows hold fingerprints as recipes have them. They are replaced by digests of weights on reading, because the store
    may meet an ingredient after a soup of it. A candidate that is a soup stands for its own ingredients.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        rows = db.execute("SELECT fingerprint, weights, soup FROM folders")
        self._db, self._known = (
            db,
            {str(name): (str(weights), str(soup)) for name, weights, soup in rows},
        )

    def of(self, parts: Mixture, depth: int = DEEP) -> Mixture:
        """{ingredient: share} of {fingerprint: weight}; the shares sum to 1."""
        mixed: Mixture = {}
        total = math.fsum(parts.values()) or 1.0
        for name, weight in parts.items():
            weights, soup = self._known.get(name, ("", ""))
            inner = (
                self.of(json.loads(soup), depth - 1) if soup and depth else {weights or name: 1.0}
            )
            for ingredient, share in inner.items():
                mixed[ingredient] = mixed.get(ingredient, 0.0) + share * weight / total
        return {name: share for name, share in mixed.items() if share}

    def shown_beside(self, parts: Mixture, item_set: int) -> int:
        """Number of different soups that were shown on one of these items, if this one is near one of them; else 0."""
        query = (
            f"SELECT DISTINCT soup FROM shown WHERE item_set IN (SELECT other.item_set {_SHARED})"
        )
        shown = [self.of(json.loads(text)) for (text,) in self._db.execute(query, (item_set,))]
        own = self.of(parts)
        if not any(_near(own, soup) for soup in shown):
            return 0
        return len(
            {
                tuple(sorted((name, round(share, 3)) for name, share in soup.items()))
                for soup in shown
            }
        )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _price(look: int) -> str:
    free = "compare settings with stop_after=search, which leaves the report fold closed"
    return f"so its p-values are multiplied by {penalty(look):,} (k (k + 1) for look k); {free}"


def _near(a: Mixture, b: Mixture) -> bool:
    """Whether no weight differs by more than NEAR."""
    return all(round(abs(a.get(name, 0.0) - b.get(name, 0.0)), 9) <= NEAR for name in a | b)


_SHARED = "FROM members AS own JOIN members AS other USING (content) WHERE own.item_set = ?"
"""Sets that share an item with this one, a row for each shared item."""


def _claims(db: sqlite3.Connection, item_set: int) -> int:
    """The most claims that were made on one item of the set."""
    joined = _SHARED.replace("WHERE", "JOIN looks ON looks.item_set = other.item_set WHERE")
    query = f"SELECT MAX(claims) FROM (SELECT COUNT(*) AS claims {joined} GROUP BY content)"
    return int(db.execute(query, (item_set,)).fetchone()[0] or 0)


def _deleted(db: sqlite3.Connection) -> int:
    """Rows that were written to the ledger and are no longer there."""
    written = db.execute("SELECT ledger, rows FROM written").fetchall()
    return sum(
        rows - int(db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
        for table, rows in written
    )


def _insert(db: sqlite3.Connection, table: str, *values: str | int) -> None:
    """Write a row unless one with its key exists, and count it."""
    if db.execute(
        f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(values))})", values
    ).rowcount:
        db.execute(
            "INSERT INTO written VALUES (?, 1) ON CONFLICT DO UPDATE SET rows = rows + 1", (table,)
        )


def _item_set(db: sqlite3.Connection, identities: Iterable[str]) -> int:
    """The row number of a set of items, which is written if it is new."""
    members = sorted(set(identities))
    number = row_number(digest(members))
    db.executemany(
        "INSERT OR IGNORE INTO contents VALUES (?, ?)",
        [(row_number(name), name) for name in members],
    )
    db.executemany(
        "INSERT OR IGNORE INTO members VALUES (?, ?)",
        [(number, row_number(name)) for name in members],
    )
    return number
