"""Results store: every item of every soup ever evaluated, in one SQLite file.

A row's key is content: the soup's fingerprint, the evaluator's fingerprint and the item's. A batch is one transaction,
so a killed run loses at most the batch in flight. Other processes may share the file (WAL, first writer wins; equal
keys hold equal results).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from souping.core.types import Item, Recipe, Record, UserError

SCHEMA = """
CREATE TABLE IF NOT EXISTS soups (id INTEGER PRIMARY KEY, fingerprint TEXT UNIQUE NOT NULL, recipe TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS evaluators (id INTEGER PRIMARY KEY, fingerprint TEXT UNIQUE NOT NULL,
    settings TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, fingerprint TEXT UNIQUE NOT NULL, name TEXT NOT NULL,
    category TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scores (soup INTEGER NOT NULL, evaluator INTEGER NOT NULL, item INTEGER NOT NULL,
    score REAL NOT NULL, output TEXT NOT NULL, statistics TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (soup, evaluator, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger (number INTEGER PRIMARY KEY, benchmark TEXT NOT NULL, evaluator TEXT NOT NULL,
    recipe TEXT NOT NULL, UNIQUE (benchmark, evaluator, recipe));
CREATE TABLE IF NOT EXISTS folders (fingerprint TEXT PRIMARY KEY, path TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS adoptions (soup TEXT NOT NULL, evaluator TEXT NOT NULL, origin TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS speeds (soup TEXT NOT NULL, evaluator TEXT NOT NULL, items INTEGER NOT NULL,
    seconds REAL NOT NULL, PRIMARY KEY (soup, evaluator)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hashes (file TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
"""
VERSION = 2
UPGRADES = {1: "ALTER TABLE scores ADD COLUMN statistics TEXT NOT NULL DEFAULT ''"}
"""What brings a file of an older layout up by one."""


class ContentMemory(Protocol):
    """Memory of contents: digests of files, and where a checkpoint of a content was seen."""

    @property
    def hashes(self) -> MutableMapping[str, str]: ...

    def remember_folder(self, fingerprint: str, path: Path) -> None: ...


class Store:
    """Open a store with `Store(path)`; close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"store.path={path}: cannot open the results store: {error}") from error

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        layout = self._db.execute("PRAGMA user_version").fetchone()[0]
        if layout > VERSION:
            raise UserError(
                f"store.path={self.path} has layout {layout}, this version reads {VERSION}: use another file"
            )
        if 0 < layout < VERSION:
            self._upgrade()
        self._db.executescript(SCHEMA)
        self._db.execute(f"PRAGMA user_version={VERSION}")

    def _upgrade(self) -> None:
        """Bring an older file up in one transaction; of two processes the later finds it done."""
        self._db.execute("BEGIN IMMEDIATE")
        layout = self._db.execute("PRAGMA user_version").fetchone()[0]
        for step in range(layout, VERSION):
            self._db.execute(UPGRADES[step])
        self._db.execute(f"PRAGMA user_version={VERSION}")
        self._db.execute("COMMIT")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction; a full disk or a lock that lasts is the user's to mend."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise UserError(f"store.path={self.path}: cannot write to the results store: {error}") from error
        finally:  # whatever stopped the body: the next writer finds no half transaction
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def load(self, soup: str, evaluator: str) -> dict[str, Record]:
        """{item fingerprint: record} of everything this soup was ever asked under this evaluator."""
        rows = self._db.execute(
            "SELECT items.fingerprint, items.name, score, output, statistics FROM scores JOIN items ON items.id = item "
            "JOIN soups ON soups.id = soup JOIN evaluators ON evaluators.id = evaluator "
            "WHERE soups.fingerprint = ? AND evaluators.fingerprint = ?",
            (soup, evaluator),
        )
        return {key: _record(*rest) for key, *rest in rows}

    def add(
        self,
        recipe: Recipe,
        evaluator: str,
        settings: Mapping[str, Any],
        items: Sequence[Item],
        records: Iterable[Record],
    ) -> None:
        """Commit one batch."""
        with self._write() as db:
            soup = _intern(db, "soups", "recipe", recipe.fingerprint, json.dumps(recipe.as_dict()))
            judge = _intern(db, "evaluators", "settings", evaluator, json.dumps(settings, sort_keys=True))
            rows = []
            for item, record in zip(items, records, strict=True):
                key = _intern(db, "items", "name, category", item.fingerprint, item.id, item.category)
                counts = json.dumps(record.statistics) if record.statistics else ""
                rows.append((soup, judge, key, record.score, record.output, counts))
            db.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?)", rows)

    def note_adoption(self, soup: str, evaluator: str, origin: Mapping[str, Any]) -> None:
        """Remember that rows of this soup were measured elsewhere: where from, and which differences were accepted."""
        with self._write() as db:
            db.execute("INSERT INTO adoptions VALUES (?, ?, ?)", (soup, evaluator, json.dumps(origin, sort_keys=True)))

    def adoptions(self, soup: str, evaluator: str) -> list[dict[str, Any]]:
        """The origins of this soup's adopted rows under an evaluator, oldest first."""
        query = "SELECT origin FROM adoptions WHERE soup = ? AND evaluator = ? ORDER BY rowid"
        return [json.loads(origin) for (origin,) in self._db.execute(query, (soup, evaluator))]

    def add_timing(self, soup: str, evaluator: str, items: int, seconds: float) -> None:
        """Remember how long a batch took, for plans of later runs."""
        with self._write() as db:
            db.execute(
                "INSERT INTO speeds VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "items = items + excluded.items, seconds = seconds + excluded.seconds",
                (soup, evaluator, items, seconds),
            )

    def throughput(self, soups: Iterable[str], evaluator: str) -> float | None:
        """Items a second that these soups were evaluated at under this evaluator; None if they never were."""
        query = "SELECT items, seconds FROM speeds WHERE soup = ? AND evaluator = ?"
        rows = [row for soup in soups for row in self._db.execute(query, (soup, evaluator))]
        seconds = sum(row[1] for row in rows)
        return sum(row[0] for row in rows) / seconds if seconds > 0 else None

    def open_report(self, benchmark: str, evaluator: str, recipe: str) -> int:
        """Write a frozen recipe to the ledger of the report fold; how many recipes were ever opened there.

        Looking twice at one recipe is one look, and so is looking with other settings of the evaluator.
        """
        with self._write() as db:
            row = (benchmark, evaluator, recipe)
            db.execute("INSERT OR IGNORE INTO ledger (benchmark, evaluator, recipe) VALUES (?, ?, ?)", row)
        query = "SELECT COUNT(DISTINCT recipe) FROM ledger WHERE benchmark = ?"
        return int(self._db.execute(query, (benchmark,)).fetchone()[0])

    def remember_folder(self, fingerprint: str, path: Path) -> None:
        """Remember where a checkpoint of this content lies, so that a recipe finds its ingredients again."""
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO folders VALUES (?, ?)", (fingerprint, str(path.resolve())))

    def folder_of(self, fingerprint: str) -> str | None:
        """Where a checkpoint of this content was seen last."""
        row = self._db.execute("SELECT path FROM folders WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return str(row[0]) if row else None

    @property
    def hashes(self) -> MutableMapping[str, str]:
        """File digests, so that a checkpoint's bytes are read once and not at every run."""
        return _Hashes(self)


def _record(name: str, score: float, output: str, counts: str) -> Record:
    return Record(item=name, score=score, output=output, statistics=tuple(json.loads(counts)) if counts else ())


def _intern(db: sqlite3.Connection, table: str, columns: str, fingerprint: str, *values: str) -> int:
    """The row number of a fingerprint, written if it is new."""
    row = db.execute(f"SELECT id FROM {table} WHERE fingerprint = ?", (fingerprint,)).fetchone()
    if row:
        return int(row[0])
    marks = ", ".join("?" * (len(values) + 1))
    cursor = db.execute(f"INSERT INTO {table} (fingerprint, {columns}) VALUES ({marks})", (fingerprint, *values))
    return int(cursor.lastrowid or 0)


class _Hashes(MutableMapping[str, str]):
    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, file: str) -> str:
        row = self._store._db.execute("SELECT digest FROM hashes WHERE file = ?", (file,)).fetchone()
        if row is None:
            raise KeyError(file)
        return str(row[0])

    def __setitem__(self, file: str, digest: str) -> None:
        with self._store._write() as db:
            db.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?)", (file, digest))

    def __delitem__(self, file: str) -> None:
        with self._store._write() as db:
            db.execute("DELETE FROM hashes WHERE file = ?", (file,))

    def __iter__(self) -> Iterator[str]:
        return (str(row[0]) for row in self._store._db.execute("SELECT file FROM hashes").fetchall())

    def __len__(self) -> int:
        return int(self._store._db.execute("SELECT COUNT(*) FROM hashes").fetchone()[0])
