"""Ledger: on which items a recipe was reported, and on which the search that found it chose.

It lies in the results store and goes by what an item shows the model (`Item.identity`): neither the name of a file or a
group nor other settings of a run begin it anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from souping.core.types import Item, digest
from souping.pipeline.store import Store, intern


class Ledger:
    """Record of looks and searches in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def note_search(self, recipes: Iterable[str], items: Sequence[Item]) -> None:
        """Remember that these recipes were found by choosing on these items."""
        with self._store.writing() as db:
            chosen_on = _item_set(db, [item.identity for item in items])
            db.executemany("INSERT OR IGNORE INTO searches VALUES (?, ?)", [(recipe, chosen_on) for recipe in recipes])

    def searched(self, recipe: str) -> set[str]:
        """Identities of the items that this recipe, or a search that found it, was ever chosen on."""
        query = (
            "SELECT fingerprint FROM contents WHERE id IN "
            "(SELECT content FROM members JOIN searches USING (item_set) WHERE recipe = ?)"
        )
        with self._store.reading() as db:
            return {str(name) for (name,) in db.execute(query, (recipe,))}

    def open_report(self, recipe: str, evaluator: str, items: Sequence[Item]) -> int:
        """Write a frozen recipe to the ledger of these items; its number of looks.

        That is the largest number, over the items, of pairs of a recipe and an evaluator that were ever reported on
        one: looking twice with one pair is one look, under whatever file, name or order.
        """
        with self._store.writing() as db:
            shown = _item_set(db, [item.identity for item in items])
            db.execute("INSERT OR IGNORE INTO looks VALUES (?, ?, ?)", (recipe, evaluator, shown))
        return max(1, self.looks(items))

    def note_view(self, recipe: str, identities: Iterable[str]) -> None:
        """Remember that somebody looked at the answers to these items of the report of a frozen recipe (its id)."""
        with self._store.writing() as db:
            shown = _item_set(db, identities)
            db.execute("INSERT OR IGNORE INTO views VALUES (?, ?)", (recipe, shown))

    def viewed(self, recipe: str, items: Sequence[Item]) -> int:
        """Number of these items whose answers were looked at in the report of another recipe, before this one was
        frozen: none where this one was reported already."""
        query = (
            "SELECT DISTINCT fingerprint FROM contents JOIN members ON content = contents.id "
            "JOIN views USING (item_set) WHERE views.recipe != ?"
        )
        with self._store.reading() as db:
            if db.execute("SELECT 1 FROM looks WHERE recipe = ? LIMIT 1", (recipe,)).fetchone():
                return 0
            seen = {str(name) for (name,) in db.execute(query, (recipe[:12],))}
        return sum(item.identity in seen for item in items)

    def looks(self, items: Sequence[Item]) -> int:
        """The largest number of pairs of recipe and evaluator that were reported on one of these items."""
        with self._store.reading() as db:
            db.execute("CREATE TEMP TABLE IF NOT EXISTS asked (fingerprint TEXT PRIMARY KEY) WITHOUT ROWID")
            db.execute("DELETE FROM asked")
            db.executemany("INSERT OR IGNORE INTO asked VALUES (?)", [(item.identity,) for item in items])
            row = db.execute(
                "SELECT MAX(pairs) FROM (SELECT COUNT(DISTINCT recipe || ' ' || evaluator) AS pairs FROM asked "
                "JOIN contents USING (fingerprint) JOIN members ON content = contents.id JOIN looks USING (item_set) "
                "GROUP BY content)"
            ).fetchone()
            return int(row[0] or 0)


def _item_set(db: sqlite3.Connection, shown: Iterable[str]) -> int:
    """The row number of a set of items, by what they show the model."""
    identities = sorted(set(shown))
    fingerprint = digest(list(identities))
    row = db.execute("SELECT id FROM item_sets WHERE fingerprint = ?", (fingerprint,)).fetchone()
    if row:
        return int(row[0])
    number = intern(db, "item_sets", "", fingerprint)
    db.executemany("INSERT OR IGNORE INTO contents (fingerprint) VALUES (?)", [(name,) for name in identities])
    db.executemany(
        "INSERT OR IGNORE INTO members SELECT ?, id FROM contents WHERE fingerprint = ?",
        [(number, name) for name in identities],
    )
    return number
