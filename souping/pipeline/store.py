"""Results store: every answer of every soup ever evaluated, its scores, and the ledger of looks, in one SQLite file.

An answer's key is content: the soup, the evaluator, the question, the block in which it was asked and the number of the
answer. Scores lie apart, by scorer, so that a new scorer needs no new answer. A block is one transaction. Other
processes may share the file (WAL; the first writer wins). The view `scores` shows every score beside its answer.

The command line tool of SQLite saves what can be read of a damaged store: `sqlite3 DAMAGED .recover | sqlite3 NEW`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from souping.core.types import OUTCOMES, Item, Json, Recipe, Record, UserError
from souping.pipeline.stored_answers import StoredAnswers

SCHEMA = """
CREATE TABLE IF NOT EXISTS soups (id INTEGER PRIMARY KEY, fingerprint TEXT UNIQUE NOT NULL, recipe TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS evaluators (id INTEGER PRIMARY KEY, fingerprint TEXT UNIQUE NOT NULL,
    settings TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, fingerprint TEXT UNIQUE NOT NULL, name TEXT NOT NULL,
    category TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS blocks (id INTEGER PRIMARY KEY, fingerprint TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS scorers (id INTEGER PRIMARY KEY, fingerprint TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS answers (id INTEGER PRIMARY KEY, soup INTEGER NOT NULL, evaluator INTEGER NOT NULL,
    item INTEGER NOT NULL, block INTEGER NOT NULL, replicate INTEGER NOT NULL, output TEXT NOT NULL,
    outcome TEXT NOT NULL, reason TEXT NOT NULL, tokens BLOB NOT NULL, prompt_tokens INTEGER NOT NULL,
    prompt_key TEXT NOT NULL, UNIQUE (soup, evaluator, item, block, replicate));
CREATE INDEX IF NOT EXISTS answers_of_item ON answers (item, evaluator);
CREATE TABLE IF NOT EXISTS grades (answer INTEGER NOT NULL, scorer INTEGER NOT NULL, score REAL NOT NULL,
    statistics TEXT NOT NULL, PRIMARY KEY (answer, scorer)) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS scores AS SELECT soup, evaluator, item, block, replicate, scorer, score, statistics, output,
    outcome FROM answers JOIN grades ON answer = answers.id;
CREATE TABLE IF NOT EXISTS costs (answer INTEGER PRIMARY KEY, seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS contents (id INTEGER PRIMARY KEY, fingerprint TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS item_sets (id INTEGER PRIMARY KEY, fingerprint TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS members (item_set INTEGER NOT NULL, content INTEGER NOT NULL,
    PRIMARY KEY (content, item_set)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS looks (claim TEXT PRIMARY KEY, number INTEGER NOT NULL, shown INTEGER NOT NULL,
    item_set INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shown (soup TEXT, item_set INTEGER, PRIMARY KEY (soup, item_set)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS searches (ingredients TEXT, item_set INTEGER, PRIMARY KEY (ingredients, item_set))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS written (ledger TEXT PRIMARY KEY, rows INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS views (recipe TEXT, item_set INTEGER, PRIMARY KEY (recipe, item_set)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS prompts (fingerprint TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS folders (fingerprint TEXT PRIMARY KEY, path TEXT, weights TEXT, soup TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS speeds (soup TEXT NOT NULL, evaluator TEXT NOT NULL, items INTEGER NOT NULL,
    seconds REAL NOT NULL, PRIMARY KEY (soup, evaluator)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hashes (file TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
"""
VERSION = 4
MARK = 0x534F5550
"""`application_id` of our files ("SOUP")."""
PAGE = 4096
"""SQLite's page size in bytes."""
PARTS = {
    "answers": ("soup", "evaluator", "item", "block"),
    "grades": ("answer", "scorer"),
    "costs": ("answer",),
    "members": ("item_set", "content"),
    "looks": ("item_set",),
    "shown": ("item_set",),
    "searches": ("item_set",),
    "views": ("item_set",),
}
"""{table: columns that number rows of the table of that name with an s}."""
_log = logging.getLogger(__name__)


class ContentMemory(Protocol):
    """Memory of contents: digests of files, and where a checkpoint of a content was seen."""

    @property
    def hashes(self) -> MutableMapping[str, str]: ...

    def remember_folder(self, fingerprint: str, path: Path, weights: str = "", soup: str = "") -> None: ...


class Store:
    """Open a store with `Store(path)`; close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        if str(path).startswith("file:"):
            raise UserError(f"store.path={path} must be a file's path; SQLite's own notations are not supported")
        self.path = path
        self._made = [place for place in (path.absolute(), *path.absolute().parents) if not place.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._check_owner()
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            rebuilt = self._prepare()
            self._file = self._inode()
            if rebuilt:
                self._drop_orphans()
        except (OSError, sqlite3.Error) as error:
            raise self._failed("open", error) from error

    def _check_owner(self) -> None:
        """Look, without writing a byte, whether the file is ours and of a layout that is known here."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as db:
            mark, layout = (db.execute(f"PRAGMA {key}").fetchone()[0] for key in ("application_id", "user_version"))
            if mark != MARK and (mark or db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()):
                raise UserError(f"store.path={self.path} is another program's SQLite file: name another file")
        if 0 < layout < VERSION:
            move = f"use another file, or move this one away: {shlex.join(['mv', str(self.path), f'{self.path}.old'])}"
            raise UserError(f"store.path={self.path} was written by an earlier version (layout {layout}): {move}")
        if layout > VERSION:
            raise UserError(f"store.path={self.path} is of a later version (layout {layout}): use another file")

    def _prepare(self) -> bool:
        """Make the file a store; whether it is new, or was rebuilt by another program, which does not keep WAL mode."""
        if self._db.execute("PRAGMA application_id").fetchone() != (MARK,):
            self._db.execute(f"PRAGMA application_id={MARK}")  # before any table, so that a killed run leaves it ours
        rebuilt: bool = self._db.execute("PRAGMA journal_mode").fetchone() != ("wal",)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(SCHEMA)
        self._db.execute(f"PRAGMA user_version={VERSION}")
        return rebuilt

    def _drop_orphans(self) -> None:
        """Remove answers that a recovery left without their end, and rows that refer to rows that are lost: the numbers
        of those will be given to others."""
        with self.writing() as db:
            db.execute(f"DELETE FROM answers WHERE outcome NOT IN ({', '.join('?' * len(OUTCOMES))})", OUTCOMES)
            for table, columns in PARTS.items():
                for column in columns:
                    db.execute(f"DELETE FROM {table} WHERE {column} NOT IN (SELECT id FROM {column}s)")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is None and self._gone():
            _log.warning("%s", self._removed())
        if kind is not None and self._made:
            self._drop_empty()
        self.close()

    def _drop_empty(self) -> None:
        """Take away a file that was not there before, while no result is in it and nobody else has it open."""
        with suppress(sqlite3.Error, OSError):
            self._db.execute("PRAGMA busy_timeout=0")
            tables = ("answers", "looks")
            held = any(self._db.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in tables)
            if not held and not self._gone() and self._alone():
                self.path.unlink()
                for folder in self._made[1:]:
                    folder.rmdir()

    def _alone(self) -> bool:
        return bool(self._db.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",))

    def close(self) -> None:
        self._db.close()

    def _inode(self) -> tuple[int, int] | None:
        """What the file is to the file system; None for one in memory, or where none is."""
        try:
            stat = os.stat(self.path)
        except OSError:
            return None
        return stat.st_dev, stat.st_ino

    def _gone(self) -> bool:
        return self._inode() != self._file

    def _removed(self) -> str:
        return f"store.path={self.path}: the results store was removed or replaced during the run: its results are lost"

    def _failed(self, verb: str, error: Exception) -> UserError:
        """An error of the file in words, with what saves the rest where its content is damaged."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # sqlite3's
        damaged = code == sqlite3.SQLITE_CORRUPT or not isinstance(error, OSError | sqlite3.Error)
        closed = code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
        hint = "; name a file that can be written" if closed else ""
        told = f"store.path={self.path}: cannot {verb} the results store: {error}{hint}"
        if not damaged:
            return UserError(told)
        old, new = (shlex.quote(str(path)) for path in (self.path, self.path.with_stem(f"{self.path.stem}-saved")))
        cut = self.path.is_file() and self.path.stat().st_size % PAGE
        fill = f"truncate -s %{PAGE} {old} && " if cut else ""  # a page without its end is not read at all
        saves = f"{fill}sqlite3 {old} .recover | sqlite3 {new}"
        return UserError(f"{told}\nthe file is damaged; save what can be read: {saves}")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Rows are fetched and understood inside; a damaged file is told."""
        try:
            yield self._db
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise self._failed("read", error) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; a full disk, a lock that lasts or a file that was removed is the user's to mend."""
        if self._gone():
            raise UserError(self._removed())
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failed("write to", error) from error
        finally:  # whatever stopped the body: the next writer finds no half transaction
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def load(self, soup: str, evaluator: str) -> StoredAnswers:
        """Everything this soup was ever asked under this evaluator."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT items.fingerprint, replicate, blocks.fingerprint, items.name, output, outcome, reason, tokens, "
                "prompt_tokens, prompt_key, seconds, scorers.fingerprint, score, statistics FROM answers "
                "JOIN items ON items.id = item JOIN blocks ON blocks.id = block "
                "LEFT JOIN costs ON costs.answer = answers.id LEFT JOIN grades ON grades.answer = answers.id "
                "LEFT JOIN scorers ON scorers.id = scorer WHERE soup = (SELECT id FROM soups WHERE fingerprint = ?) "
                "AND evaluator = (SELECT id FROM evaluators WHERE fingerprint = ?)",
                (soup, evaluator),
            )
            stored = StoredAnswers()
            for row in rows:
                stored.take(*row)
            return stored

    def add(
        self,
        recipe: Recipe,
        evaluator: str,
        settings: Mapping[str, Json],
        block: str,
        items: Sequence[Item],
        records: Iterable[Record],
    ) -> None:
        """Commit one block: answers that are not there yet, and scores of them all."""
        with self.writing() as db:
            soup = intern(db, "soups", "recipe", recipe.fingerprint, json.dumps(recipe.as_dict()))
            judge = intern(db, "evaluators", "settings", evaluator, json.dumps(settings, sort_keys=True))
            together = intern(db, "blocks", "", block)
            for item, record in zip(items, records, strict=True):
                number = intern(db, "items", "name, category", item.question, item.id, item.category)
                answer = _answer(db, (soup, judge, number, together, record.replicate), record)
                if record.prompt and record.prompt_key:
                    text = record.prompt.encode("utf-8", "replace").decode()
                    db.execute("INSERT OR IGNORE INTO prompts VALUES (?, ?)", (record.prompt_key, text))
                if math.isnan(record.score):  # its scorer has still to be called
                    continue
                scorer = intern(db, "scorers", "", item.scoring)
                counts = json.dumps(record.statistics) if record.statistics else ""
                db.execute("INSERT OR IGNORE INTO grades VALUES (?, ?, ?, ?)", (answer, scorer, record.score, counts))

    def verdicts(self, items: Iterable[Item]) -> dict[tuple[str, str, str], float]:
        """{(question, scorer, answer's text): score} of these items by their scorers, whoever answered so."""
        asked = {(item.question, item.scoring) for item in items}
        with self.reading() as db:
            db.execute("CREATE TEMP TABLE IF NOT EXISTS wanted (question TEXT, scoring TEXT)")
            db.execute("DELETE FROM wanted")
            db.executemany("INSERT INTO wanted VALUES (?, ?)", sorted(asked))
            rows = db.execute(
                "SELECT question, scoring, output, score FROM wanted "
                "JOIN items ON items.fingerprint = question JOIN scorers ON scorers.fingerprint = scoring "
                "JOIN answers ON answers.item = items.id "
                "JOIN grades ON grades.answer = answers.id AND grades.scorer = scorers.id"
            )
            return {(question, scoring, output): float(score) for question, scoring, output, score in rows}

    def prompts(self, keys: Collection[str]) -> dict[str, str]:
        """{digest of a prompt's ids: the prompt in letters} of those that are known."""
        with self.reading() as db:
            rows = (db.execute("SELECT text FROM prompts WHERE fingerprint = ?", (key,)).fetchone() for key in keys)
            return {key: str(row[0]) for key, row in zip(keys, rows, strict=True) if row}

    def add_timing(self, soup: str, evaluator: str, items: int, seconds: float) -> None:
        """Remember how long a batch took, for plans of later runs."""
        with self.writing() as db:
            db.execute(
                "INSERT INTO speeds VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "items = items + excluded.items, seconds = seconds + excluded.seconds",
                (soup, evaluator, items, seconds),
            )

    def throughput(self, soups: Iterable[str], evaluator: str) -> float | None:
        """Items a second that these soups were evaluated at under this evaluator; None if they never were."""
        query = "SELECT items, seconds FROM speeds WHERE soup = ? AND evaluator = ?"
        with self.reading() as db:
            rows = [row for soup in soups for row in db.execute(query, (soup, evaluator))]
            seconds = sum(row[1] for row in rows)
            return sum(row[0] for row in rows) / seconds if seconds > 0 else None

    def remember_folder(self, fingerprint: str, path: Path, weights: str = "", soup: str = "") -> None:
        """Remember where a checkpoint is for rebuilds, the digest of its `weights` for the ledger, and what it mixes if
        it is a `soup`, {fingerprint: weight} as JSON. The first recipe stays: editing it later hides nothing."""
        with self.writing() as db:
            db.execute(
                "INSERT INTO folders VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET path = excluded.path, "
                "weights = excluded.weights, soup = CASE soup WHEN '' THEN excluded.soup ELSE soup END",
                (fingerprint, str(path.resolve()), weights, soup),
            )

    def folder_of(self, fingerprint: str) -> str | None:
        """Where a checkpoint of this content was seen last."""
        with self.reading() as db:
            row = db.execute("SELECT path FROM folders WHERE fingerprint = ?", (fingerprint,)).fetchone()
            return str(row[0]) if row else None

    @property
    def hashes(self) -> MutableMapping[str, str]:
        """File digests, so that a checkpoint's bytes are read once and not at every run."""
        return _Hashes(self)


def _answer(db: sqlite3.Connection, key: tuple[int, int, int, int, int], record: Record) -> int:
    """The row number of an answer, written if there is none of its key."""
    output, reason = (text.encode("utf-8", "replace").decode() for text in (record.output, record.reason))
    tokens = np.array(record.tokens, "<i4").tobytes()
    rest = (output, record.outcome, reason, tokens, record.prompt_tokens, record.prompt_key)
    columns = "soup, evaluator, item, block, replicate"
    written = db.execute(
        f"INSERT OR IGNORE INTO answers ({columns}, output, outcome, reason, tokens, prompt_tokens, prompt_key) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*key, *rest),
    )
    if written.rowcount:
        number = int(written.lastrowid or 0)
        db.execute("INSERT OR REPLACE INTO costs VALUES (?, ?)", (number, record.seconds))
        return number
    row = db.execute(f"SELECT id FROM answers WHERE ({columns}) = (?, ?, ?, ?, ?)", key).fetchone()
    return int(row[0])


def intern(db: sqlite3.Connection, table: str, columns: str, fingerprint: str, *values: str) -> int:
    """The row number of a fingerprint, written if it is new."""
    row = db.execute(f"SELECT id FROM {table} WHERE fingerprint = ?", (fingerprint,)).fetchone()
    if row:
        return int(row[0])
    marks, names = ", ".join("?" * (len(values) + 1)), f"fingerprint, {columns}".rstrip(", ")
    cursor = db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", (fingerprint, *values))
    return int(cursor.lastrowid or 0)


class _Hashes(MutableMapping[str, str]):
    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, file: str) -> str:
        with self._store.reading() as db:
            row = db.execute("SELECT digest FROM hashes WHERE file = ?", (file,)).fetchone()
        if row is None:
            raise KeyError(file)
        return str(row[0])

    def __setitem__(self, file: str, digest: str) -> None:
        with self._store.writing() as db:
            db.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?)", (file, digest))

    def __delitem__(self, file: str) -> None:
        with self._store.writing() as db:
            db.execute("DELETE FROM hashes WHERE file = ?", (file,))

    def __iter__(self) -> Iterator[str]:
        with self._store.reading() as db:
            return iter([str(row[0]) for row in db.execute("SELECT file FROM hashes")])

    def __len__(self) -> int:
        with self._store.reading() as db:
            return int(db.execute("SELECT COUNT(*) FROM hashes").fetchone()[0])
