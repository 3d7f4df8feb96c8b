"""Ledger of the report fold: what was claimed and shown on its items, and on which items searches chose.

It is part of the results store and identifies everything by its content: items by what the model sees
(`Item.identity`), models by their weights. Other names, files, groups or settings do not reset it.

An *occasion* is a report, an extra benchmark or a comparison that showed numbers. It has a row in `looks` (its claim
and its items), which is committed before the first of its numbers leaves the process, and rows in `shown` (its soups).
`claims` has what was known when a claim was first shown, `measurements` how it was measured. Earlier versions used
another digest of a claim, and wrote only `shown` for an extra benchmark.

The table `written` counts the rows of `looks`, `shown`, `searches` and `measurements`: deleted rows are noticed.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from souping.core.protocols import Objective
from souping.core.types import FloatArray, Item, Recipe, digest
from souping.evaluate.benchmark import slices_of
from souping.pipeline.claims import (
    Claim,
    KnownModels,
    Look,
    Measurement,
    Slice,
    items_to_report,
    price,
    times,
    times_shown,
)
from souping.pipeline.store import Mixture, Store, parts_of, row_number

DEEP = 20
"""Levels of soups of soups that are followed. An edited recipe.json may contain itself."""


class Ledger:
    """Record of claims, shown soups, searches and views in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # ------------------------------------------------------------ looks

    def items_of(self, claim: Claim) -> tuple[Item, ...]:
        """The items to report a claim on: those on which it was shown, or else what `items_to_report` says."""
        with self._store.reading() as db:
            look = _look_of(db, claim.fingerprint, claim.former)
            if not look:
                return self.new_items(claim.items, claim.objective, claim.slices)
            rows = db.execute(
                "SELECT fingerprint FROM looks JOIN members USING (item_set) "
                "JOIN contents ON content = contents.id WHERE claim = ?",
                (look,),
            )
            identities = {str(name) for (name,) in rows}
        return tuple(item for item in claim.items if item.identity in identities)

    def new_items(
        self, items: Sequence[Item], objective: Objective, slices: int
    ) -> tuple[Item, ...]:
        """The items that a report on a new claim would be on."""
        with self._store.reading() as db:
            occasions = _occasions(db, _names(items))
            deleted = _deleted(db)
        return items_to_report(items, occasions, objective, deleted, slices)

    def slice_of(self, claim: Claim, items: Sequence[Item]) -> Slice:
        """The slice that these items are of."""
        parts = slices_of(claim.items, claim.slices)
        number = next(n for n, part in enumerate(parts) if items[0] in part)
        with self._store.reading() as db:
            occasions = _occasions(db, _names(claim.items))
        other_parts = parts[:number] + parts[number + 1 :]
        unopened = sum(times_shown(part, occasions) < 0.5 for part in other_parts)
        return Slice(number + 1, claim.slices, unopened, len(parts[number]))

    def announcement(self, items: Sequence[Item]) -> str:
        """What a report on these items will cost if there were others before; empty if it is the first."""
        with self._store.reading() as db:
            count = max(_occasions(db, _names(items)).values(), default=0) + _deleted(db)
        if not count:
            return ""
        what = f"the items of the report fold were reported on {times(count)} before"
        return f"{what}: a report that is not one of those is look {count + 1} or later, {price(count + 1)}"

    def show_report(
        self,
        claim: Claim,
        items: Sequence[Item],
        models: Sequence[Recipe],
        measurement: Measurement,
        guards: str = "",
    ) -> Look:
        """Write that a claim's numbers on these items are about to be shown, and return its look.

        The number is fixed when the claim is first shown: one more than the largest number of occasions, on any of the
        items, that showed other claims. Deleted rows count as occasions. A repeated claim keeps its number, its family
        and its guards, and gains a measurement.
        """
        identities = _names(items)
        questions = [item.question for item in items]
        key = claim.fingerprint
        evaluator, ids, answers = measurement
        query = "SELECT evaluator, ids, answers FROM measurements WHERE claim = ?"
        with self._store.writing() as db:
            look = _open(db, key, claim.former, identities, questions, models, guards)
            _insert(db, "measurements", key, evaluator, json.dumps(ids), answers)
            rows = db.execute(query, (key,)).fetchall()
        measurements = tuple(Measurement(str(a), tuple(json.loads(b)), int(c)) for a, b, c in rows)
        return replace(look, measurements=measurements)

    def show_comparison(
        self, claim: str, former: str, identities: Sequence[str], questions: Sequence[str]
    ) -> Look:
        """Write that a comparison of runs on these items is about to be shown, and return its look.

        `claim` is a digest of what is compared, `former` the one that earlier versions wrote for it.
        """
        with self._store.writing() as db:
            return _open(db, claim, former, identities, questions)

    def known_scores(self, family: KnownModels, questions: Sequence[str]) -> FloatArray:
        """Stored scores [M, I] of a family on these questions, nan where there is none.

        One row per soup and evaluator that answered one of them.
        """
        places = {row_number(question): place for place, question in enumerate(questions)}
        query = (
            "SELECT evaluator, item, AVG(score) FROM grades WHERE soup = ? GROUP BY evaluator, item"
        )
        # {(soup, evaluator): scores [I]}
        rows: dict[tuple[str, int], FloatArray] = {}
        with self._store.reading() as db:
            for soup in family.soups:
                for evaluator, question, score in db.execute(query, (row_number(soup),)):
                    if question in places:
                        row = rows.setdefault((soup, evaluator), np.full(len(questions), np.nan))
                        row[places[question]] = score
        return np.array([*rows.values()]).reshape(-1, len(questions))

    def deleted(self) -> int:
        """Number of rows that somebody deleted."""
        with self._store.reading() as db:
            return _deleted(db)

    # ------------------------------------------------------------ searches

    def note_search(self, candidates: Iterable[str], items: Sequence[Item]) -> None:
        """Note that a run chose among these candidates (fingerprints), or mixtures of them, on these items."""
        with self._store.writing() as db:
            item_set = _item_set(db, _names(items))
            _insert(db, "searches", json.dumps(sorted(set(candidates))), item_set)

    def chosen_on(self, recipe: Recipe) -> set[str]:
        """Identities of the items on which any run chose among models with an ingredient of this recipe.

        Weights, order, dtype and companion files do not matter: how a mixture of A and B does on an item tells how its
        neighbours do.
        """
        query = "SELECT fingerprint FROM contents JOIN members ON content = contents.id WHERE item_set = ?"
        with self._store.reading() as db:
            mixtures = _Mixtures(db)
            ingredients = mixtures.of(parts_of(recipe)).keys()
            searches = db.execute("SELECT item_set, ingredients FROM searches").fetchall()
            item_sets = set()
            for item_set, candidates in searches:
                mixed = mixtures.of(dict.fromkeys(json.loads(candidates), 1.0))
                if ingredients & mixed.keys():
                    item_sets.add(item_set)
            identities = set()
            for item_set in item_sets:
                identities |= {str(name) for (name,) in db.execute(query, (item_set,))}
            return identities

    # ------------------------------------------------------------ views

    def note_view(self, recipe: str, identities: Iterable[str]) -> None:
        """Note that somebody read the answers to these items in the report of a frozen recipe (its id)."""
        with self._store.writing() as db:
            item_set = _item_set(db, identities)
            db.execute("INSERT OR IGNORE INTO views VALUES (?, ?)", (recipe, item_set))

    def viewed(self, recipe: str, items: Sequence[Item]) -> int:
        """Number of these items whose answers somebody read in the report of another recipe than this one (its id)."""
        query = (
            "SELECT DISTINCT fingerprint FROM contents JOIN members ON content = contents.id "
            "JOIN views USING (item_set) WHERE views.recipe != ?"
        )
        with self._store.reading() as db:
            viewed = {str(name) for (name,) in db.execute(query, (recipe,))}
        return sum(item.identity in viewed for item in items)


class _Mixtures:
    """Models as mixtures of ingredients, which are identified by their weights alone.

    Rows hold fingerprints as recipes have them. They are replaced by digests of weights on reading, because the store
    may meet an ingredient after a soup of it. A candidate that is a soup stands for its own ingredients.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        # {fingerprint: (digest of the weights, mixture as JSON)}
        self._known: dict[str, tuple[str, str]] = {}
        for name, weights, soup in db.execute("SELECT fingerprint, weights, soup FROM folders"):
            self._known[str(name)] = (str(weights), str(soup))

    def of(self, parts: Mixture, depth: int = DEEP) -> Mixture:
        """{ingredient: share} of {fingerprint: weight}; the shares sum to 1."""
        mixed: Mixture = {}
        total = math.fsum(parts.values()) or 1.0
        for name, weight in parts.items():
            weights, soup = self._known.get(name, ("", ""))
            inner = {weights or name: 1.0}
            if soup and depth:
                inner = self.of(json.loads(soup), depth - 1)
            for ingredient, share in inner.items():
                mixed[ingredient] = mixed.get(ingredient, 0.0) + share * weight / total
        return {name: share for name, share in mixed.items() if share}


def _names(items: Iterable[Item]) -> list[str]:
    return [item.identity for item in items]


def _look_of(db: sqlite3.Connection, claim: str, former: str) -> str:
    """The digest under which this claim was shown in `looks`; empty if it never was."""
    query = (
        "SELECT look FROM claims JOIN looks ON looks.claim = look WHERE claims.claim = ? "
        "UNION ALL SELECT claim FROM looks WHERE claim = ?"
    )
    row = db.execute(query, (claim, former)).fetchone()
    return str(row[0]) if row else ""


def _open(
    db: sqlite3.Connection,
    claim: str,
    former: str,
    identities: Sequence[str],
    questions: Sequence[str],
    models: Sequence[Recipe] = (),
    guards: str = "",
) -> Look:
    """Write an occasion and the soups among its `models`. A comparison of runs has none of its own."""
    item_set = _item_set(db, identities)
    look = _look_of(db, claim, former)
    if look:
        # An earlier version has shown it: what else was known then is not.
        known = (claim, look, json.dumps(KnownModels()), "unknown")
        db.execute("INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?)", known)
    else:
        number = 1 + max(_occasions(db, identities).values(), default=0) + _deleted(db)
        family = KnownModels() if number == 1 else _family(db, item_set, questions, models)
        _insert(db, "looks", claim, number, 0, item_set)
        known = (claim, claim, json.dumps(family), guards)
        db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", known)
    mixtures = _Mixtures(db)
    for parts in map(parts_of, models):
        if len(mixtures.of(parts)) > 1:
            _insert(db, "shown", json.dumps(parts, sort_keys=True), item_set)
    query = "SELECT number, family, guards FROM claims JOIN looks ON looks.claim = look WHERE claims.claim = ?"
    number, family, declared = db.execute(query, (claim,)).fetchone()
    soups, missing = json.loads(family)
    return Look(int(number), not look, KnownModels(tuple(soups), missing), declared)


def _occasions(db: sqlite3.Connection, identities: Iterable[str]) -> dict[str, int]:
    """{identity: occasions that showed numbers of it}

    Extra benchmarks of earlier versions have rows in `shown` alone: each soup was an occasion.
    """
    counts = dict(
        db.execute(
            "SELECT content, COUNT(*) FROM members JOIN (SELECT item_set FROM looks UNION ALL "
            "SELECT item_set FROM shown WHERE item_set NOT IN (SELECT item_set FROM looks)) "
            "USING (item_set) GROUP BY content"
        )
    )
    return {name: counts.get(row_number(name), 0) for name in identities}


def _family(
    db: sqlite3.Connection, item_set: int, questions: Iterable[str], models: Sequence[Recipe]
) -> KnownModels:
    """Models whose scores on these items may be known: all that answered one, and soups that were shown on one.

    A report claims something of a soup, so single models are not part of its family. Its own `models` are, if they were
    shown before.
    """
    mixtures = _Mixtures(db)
    shared = (
        "SELECT DISTINCT soup FROM shown WHERE item_set IN (SELECT other.item_set FROM members "
        "AS own JOIN members AS other USING (content) WHERE own.item_set = ?)"
    )
    shown_mixtures = {str(parts) for (parts,) in db.execute(shared, (item_set,))}
    answering: set[int] = set()
    for question in questions:
        query = "SELECT DISTINCT soup FROM answers WHERE item = ?"
        answering |= {soup for (soup,) in db.execute(query, (row_number(question),))}

    soups = []
    reported = {recipe.fingerprint for recipe in models}
    stored: set[str] = set()
    for number in sorted(answering):
        row = db.execute("SELECT recipe FROM soups WHERE id = ?", (number,)).fetchone()
        # A damaged store may have lost it.
        if row is None:
            continue
        recipe = Recipe.from_dict(json.loads(row[0]))
        parts = parts_of(recipe)
        text = json.dumps(parts, sort_keys=True)
        stored.add(text)
        in_family = not models or len(mixtures.of(parts)) > 1
        if in_family and (text in shown_mixtures or recipe.fingerprint not in reported):
            soups.append(recipe.fingerprint)
    return KnownModels(tuple(soups), missing=len(shown_mixtures - stored))


def _deleted(db: sqlite3.Connection) -> int:
    """Rows that were written to the ledger and are no longer there."""
    written = db.execute("SELECT ledger, rows FROM written").fetchall()
    return sum(
        rows - int(db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
        for table, rows in written
    )


def _insert(db: sqlite3.Connection, table: str, *values: str | int) -> None:
    """Write a row unless one with its key exists, and count it."""
    places = ", ".join("?" * len(values))
    if db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", values).rowcount:
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
