"""Record of the looks at test items, kept in the results store: how many there were, and what each of them showed.

It is part of the results store and identifies everything by its content: items by what the model sees
(`Item.prompt_digest`), models by their weights. Other names, files, groups or settings do not reset it.

A *look* is a report, an extra benchmark or a comparison that showed numbers. It has a row in `counted_looks` (its
claim, its items, and what else was known then), which is committed before the first of its numbers can be read outside
the process, and rows in `shown` (its soups, by rounded weights). `measured` has how a claim was measured, in order,
`choices` what else the first report of a claim chose, and `pairs` the level at which a report showed two models.

An item set is a row number, by which `members` has its items (`contents`): a digest of them. Deleted rows are noticed:
`written` counts the rows of the other tables, and a set that lacks items no longer has their digest for its number.
`views` only serves notes and is not counted.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from souping.answers.claims import (
    Claim,
    KnownModels,
    Look,
    Measurement,
    items_to_report,
    look_penalty_text,
    times,
)
from souping.answers.store import Mixture, Store, parts_of, row_number
from souping.core.protocols import Objective
from souping.core.types import FloatArray, Item, Recipe, digest
from souping.statistics.corrections import Level

DEEP = 20
"""Levels of soups of soups that are followed. An edited recipe.json may contain itself."""


class CountedLooks:
    """Record of claims, shown soups, searches and views in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # ------------------------------------------------------------ looks

    def items_of(self, claim: Claim) -> tuple[Item, ...]:
        """The items to report a claim on: those on which it was shown before or, for a new claim, `new_items`."""
        with self._store.reading() as db:
            rows = db.execute(
                "SELECT fingerprint FROM counted_looks JOIN members USING (item_set) "
                "JOIN contents ON content = contents.id WHERE claim = ?",
                (claim.fingerprint,),
            )
            shown = {str(prompt_digest) for (prompt_digest,) in rows}
        if not shown:
            return self.new_items(claim.items, claim.objective)
        return tuple(item for item in claim.items if item.prompt_digest in shown)

    def new_items(self, items: Sequence[Item], objective: Objective) -> tuple[Item, ...]:
        """The items that a report on a new claim would be on."""
        with self._store.reading() as db:
            earlier_looks = _earlier_looks(db, _prompt_digests(items))
            deleted = _deleted(db)
        return items_to_report(items, earlier_looks, objective, deleted)

    def announcement(self, items: Sequence[Item]) -> str:
        """What a report on these items will cost because of earlier reports; empty if there are none."""
        with self._store.reading() as db:
            earlier_looks = _earlier_looks(db, _prompt_digests(items))
            # Each deleted row counts as a report on every item.
            count = max(earlier_looks.values(), default=0) + _deleted(db)
        if not count:
            return ""
        what = f"the items of the test split were reported on {times(count)} before"
        return f"{what}: a report that is not one of those is look {count + 1} or later, {look_penalty_text(count + 1)}"

    def show_report(
        self,
        claim: Claim,
        items: Sequence[Item],
        models: Sequence[Recipe],
        measurement: Measurement,
        guards: str = "",
        choices: str = "",
    ) -> Look:
        """Write that a claim's numbers on these items are about to be shown, and return its look.

        `models` are the rows of the report, and `choices` what it chose (`Choices.to_row`), if anything. The number of
        a look is fixed when the claim is first shown: one more than the largest number of looks, at any of the items,
        that showed other claims. Deleted rows count as looks. A repeated claim keeps its number, its known models, its
        guards and its choices, and gains a measurement.
        """
        questions = [item.answer_digest for item in items]
        key = claim.fingerprint
        with self._store.writing() as db:
            look = _write_look(db, key, _prompt_digests(items), questions, models, guards)
            _insert_counted(db, "measured", key, json.dumps(measurement, sort_keys=True))
            if choices:
                _insert_counted(db, "choices", key, choices)
            return replace(look, measurements=_measurements(db, key))

    def choices(self, claim: Claim) -> str:
        """What the first report of a claim chose (`Choices.to_row`); empty for a new claim."""
        query = "SELECT choices FROM choices WHERE claim = ?"
        with self._store.reading() as db:
            row = db.execute(query, (claim.fingerprint,)).fetchone()
        return str(row[0]) if row else ""

    def show_comparison(
        self, claim: str, identities: Sequence[str], questions: Sequence[str]
    ) -> Look:
        """Write that a comparison of runs on these items is about to be shown, and return its look.

        `claim` is a digest of what is compared; `identities` are the items' prompt digests, `questions` their answer
        digests.
        """
        with self._store.writing() as db:
            return _write_look(db, claim, identities, questions)

    def number_of(self, claim: str, identities: Sequence[str]) -> int:
        """The look that a comparison of runs would be, or was; arguments as of `show_comparison`."""
        with self._store.reading() as db:
            return _number(db, claim, identities)

    def note_pairs(self, pairs: Mapping[str, Level]) -> None:
        """Note that a report showed these pairs of models, {digest: level}."""
        with self._store.writing() as db:
            for pair, level in pairs.items():
                _insert_counted(db, "pairs", pair, level.looks, level.tests)

    def level_of(self, pair: str) -> Level | None:
        """The level at which a report showed a pair of models; None if none did."""
        query = "SELECT looks, tests FROM pairs WHERE pair = ?"
        with self._store.reading() as db:
            row = db.execute(query, (pair,)).fetchone()
        if row is None:
            return None
        looks, tests = row
        return Level(int(looks), float(tests))

    def scores_of(self, known: KnownModels, questions: Sequence[str]) -> FloatArray:
        """Stored scores [M, I] of known models on these questions (answer digests), nan where there is none.

        One row per soup and evaluator that answered one of them: the mean over its answers.
        """
        places = {row_number(question): place for place, question in enumerate(questions)}
        query = (
            "SELECT evaluator, item, AVG(score) FROM grades WHERE soup = ? GROUP BY evaluator, item"
        )
        # {(soup, evaluator): scores [I]}
        rows: dict[tuple[str, int], FloatArray] = {}
        with self._store.reading() as db:
            for soup in known.soups:
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
            item_set = _item_set(db, _prompt_digests(items))
            _insert_counted(db, "searches", json.dumps(sorted(set(candidates))), item_set)

    def chosen_on(self, recipe: Recipe) -> set[str]:
        """Prompt digests of the items on which any run chose among models with an ingredient of this recipe.

        Weights, order, dtype and companion files do not matter: how a mixture of A and B does on an item tells how its
        neighbours do.
        """
        query = "SELECT fingerprint FROM contents JOIN members ON content = contents.id WHERE item_set = ?"
        with self._store.reading() as db:
            mixtures = _Mixtures(db)
            ingredients = mixtures.ingredients(parts_of(recipe))
            searches = db.execute("SELECT item_set, ingredients FROM searches").fetchall()
            item_sets = set()
            for item_set, candidates in searches:
                if ingredients & mixtures.ingredients(json.loads(candidates)):
                    item_sets.add(item_set)
            prompt_digests = set()
            for item_set in item_sets:
                prompt_digests |= {str(content) for (content,) in db.execute(query, (item_set,))}
            return prompt_digests

    # ------------------------------------------------------------ views

    def note_view(self, recipe: str, identities: Iterable[str]) -> None:
        """Note that somebody read the answers to items (prompt digests) in the report of a frozen recipe (its id)."""
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
            viewed = {str(prompt_digest) for (prompt_digest,) in db.execute(query, (recipe,))}
        return sum(item.prompt_digest in viewed for item in items)


class _Mixtures:
    """Ingredients of models, which are identified by their weights alone.

    Rows hold fingerprints as recipes have them. They are replaced by digests of weights on reading, because the store
    may meet an ingredient after a soup of it. A candidate that is a soup stands for its own ingredients.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        # {fingerprint: (digest of the weights, mixture as JSON)}
        self._known: dict[str, tuple[str, str]] = {}
        for name, weights, soup in db.execute("SELECT fingerprint, weights, soup FROM folders"):
            self._known[str(name)] = (str(weights), str(soup))

    def ingredients(self, parts: Iterable[str], depth: int = DEEP) -> set[str]:
        """Digests of the weights of a model's ingredients, by the fingerprints of its parts.

        A part that is a soup is replaced by its own parts, down to `depth` levels. Parts whose folder was never seen
        keep their fingerprints.
        """
        ingredients = set[str]()
        for fingerprint in parts:
            weights_digest, soup_parts = self._known.get(fingerprint, ("", ""))
            if soup_parts and depth:
                ingredients |= self.ingredients(json.loads(soup_parts), depth - 1)
            else:
                ingredients.add(weights_digest or fingerprint)
        return ingredients


def _prompt_digests(items: Iterable[Item]) -> list[str]:
    return [item.prompt_digest for item in items]


def _measurements(db: sqlite3.Connection, claim: str) -> tuple[Measurement, ...]:
    """The measurements of a claim (its fingerprint), the first one first."""
    query = "SELECT measurement FROM measured WHERE claim = ? ORDER BY rowid"
    measurements = []
    for (text,) in db.execute(query, (claim,)):
        evaluator, ids, answers, models = json.loads(text)
        measurements.append(Measurement(evaluator, tuple(ids), answers, models))
    return tuple(measurements)


def _write_look(
    db: sqlite3.Connection,
    claim: str,
    identities: Sequence[str],
    questions: Sequence[str],
    models: Sequence[Recipe] = (),
    guards: str = "",
) -> Look:
    """Write and return the look of a claim (its fingerprint) at items, given by their prompt and answer digests.

    Also writes that the soups among the report's `models` were shown. A comparison of runs has no models of its own. A
    claim that was shown before keeps its row.
    """
    item_set = _item_set(db, identities)
    query = "SELECT number, family, guards FROM counted_looks WHERE claim = ?"
    first = db.execute(query, (claim,)).fetchone() is None
    if first:
        number = _number(db, claim, identities)
        known = KnownModels() if number == 1 else _family(db, item_set, questions, models)
        _insert_counted(db, "counted_looks", claim, number, item_set, json.dumps(known), guards)
    mixtures = _Mixtures(db)
    for parts in map(parts_of, models):
        # A model of one ingredient is no soup.
        if len(mixtures.ingredients(parts)) > 1:
            _insert_counted(db, "shown", _rounded(parts), item_set)
    number, known, declared = db.execute(query, (claim,)).fetchone()
    soups, missing = json.loads(known)
    return Look(int(number), first, KnownModels(tuple(soups), missing), declared)


def _number(db: sqlite3.Connection, claim: str, identities: Sequence[str]) -> int:
    """The look of a claim (its fingerprint) at items (prompt digests), or what it would be."""
    row = db.execute("SELECT number FROM counted_looks WHERE claim = ?", (claim,)).fetchone()
    if row:
        return int(row[0])
    return 1 + max(_earlier_looks(db, identities).values(), default=0) + _deleted(db)


def _earlier_looks(db: sqlite3.Connection, identities: Iterable[str]) -> dict[str, int]:
    """{prompt digest: number of looks that showed numbers of this item}"""
    query = (
        "SELECT content, COUNT(*) FROM members JOIN counted_looks USING (item_set) GROUP BY content"
    )
    counts = dict(db.execute(query))
    return {name: counts.get(row_number(name), 0) for name in identities}


def _family(
    db: sqlite3.Connection, item_set: int, questions: Iterable[str], models: Sequence[Recipe]
) -> KnownModels:
    """Models whose scores on these items may be known: all that answered an item, and soups that were shown on one.

    `models` are those of the report, none for a comparison of runs. A report claims something of a soup, so single
    models are not among them. The report's own soups are, if they were shown before.
    """
    mixtures = _Mixtures(db)
    shown_query = (
        "SELECT DISTINCT soup FROM shown WHERE item_set IN (SELECT other.item_set FROM members "
        "AS own JOIN members AS other USING (content) WHERE own.item_set = ?)"
    )
    # {fingerprint: weight} as JSON, of soups that were shown on a set with an item of this one.
    shown_mixtures = {
        _rounded(json.loads(parts)) for (parts,) in db.execute(shown_query, (item_set,))
    }
    # Row numbers of the models that answered a question.
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
        text = _rounded(parts)
        stored.add(text)
        in_family = not models or len(mixtures.ingredients(parts)) > 1
        if in_family and (text in shown_mixtures or recipe.fingerprint not in reported):
            soups.append(recipe.fingerprint)
    # Shown soups without an answer in the store are only counted.
    return KnownModels(tuple(soups), missing=len(shown_mixtures - stored))


def _rounded(parts: Mixture) -> str:
    """{fingerprint: weight} as JSON, with weights rounded as in a claim: repeats of a claim show no other soup."""
    return json.dumps({name: round(weight, 3) for name, weight in parts.items()}, sort_keys=True)


def _deleted(db: sqlite3.Connection) -> int:
    """Number of rows that were written and are no longer there, and of looks and searches that lack items of theirs."""
    deleted = 0
    for table, written in db.execute("SELECT ledger, rows FROM written").fetchall():
        (count,) = db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
        deleted += int(written - count)
    # {item set: prompt digests of the items that it still has}
    members = dict[int, list[str]]()
    query = "SELECT item_set, fingerprint FROM members JOIN contents ON content = contents.id"
    for item_set, prompt_digest in db.execute(query):
        members.setdefault(item_set, []).append(prompt_digest)
    whole = {item_set for item_set, digests in members.items() if _set_number(digests) == item_set}
    whole.add(_set_number(()))
    query = "SELECT item_set FROM counted_looks UNION ALL SELECT item_set FROM searches"
    return deleted + sum(item_set not in whole for (item_set,) in db.execute(query))


def _insert_counted(db: sqlite3.Connection, table: str, *values: str | float) -> None:
    """Write a row unless one with its key exists, and count it."""
    places = ", ".join("?" * len(values))
    if db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", values).rowcount:
        db.execute(
            "INSERT INTO written VALUES (?, 1) ON CONFLICT DO UPDATE SET rows = rows + 1", (table,)
        )


def _item_set(db: sqlite3.Connection, identities: Iterable[str]) -> int:
    """The row number of a set of items, which is written if it is new."""
    members = set(identities)
    number = _set_number(members)
    db.executemany(
        "INSERT OR IGNORE INTO contents VALUES (?, ?)",
        [(row_number(name), name) for name in members],
    )
    db.executemany(
        "INSERT OR IGNORE INTO members VALUES (?, ?)",
        [(number, row_number(name)) for name in members],
    )
    return number


def _set_number(members: Iterable[str]) -> int:
    """The row number of a set of items, given by their prompt digests."""
    return row_number(digest(sorted(members)))
