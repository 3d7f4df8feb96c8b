"""Results store: every answer of every soup, its scores, and the looks at the test split, in one SQLite file.

An answer is found by its content: the soup, the evaluator, the question, the block of items that were answered together
and the number of the answer. Scores are kept apart, so that a new scorer needs no new answer. The first writer of an
answer wins, and other processes may share the file (WAL). The view `scores` shows every score beside its answer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shlex
import sqlite3
from collections import UserDict
from collections.abc import Collection, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from souping.core.folders import missing_folders
from souping.core.types import OUTCOMES, Item, JsonObject, Outcome, Recipe, Record, UserError

KEY = "soup, evaluator, item, block, replicate"
"""Columns that identify an answer."""
STORE_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS soups (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, recipe TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS evaluators (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, settings TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, name TEXT NOT NULL,
    category TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (soup INTEGER NOT NULL, evaluator INTEGER NOT NULL, item INTEGER NOT NULL,
    block INTEGER NOT NULL, replicate INTEGER NOT NULL, output TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN {OUTCOMES}), reason TEXT NOT NULL, tokens BLOB NOT NULL,
    prompt_tokens INTEGER NOT NULL, prompt_key TEXT NOT NULL, seconds REAL NOT NULL, UNIQUE ({KEY}));
CREATE INDEX IF NOT EXISTS answers_of_item ON answers (item);
CREATE TABLE IF NOT EXISTS grades (soup INTEGER NOT NULL, evaluator INTEGER NOT NULL, item INTEGER NOT NULL,
    block INTEGER NOT NULL, replicate INTEGER NOT NULL, scorer INTEGER NOT NULL, score REAL NOT NULL,
    statistics TEXT NOT NULL, PRIMARY KEY ({KEY}, scorer)) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS scores AS SELECT {KEY}, scorer, score, statistics, output, outcome
    FROM answers JOIN grades USING ({KEY});
CREATE TABLE IF NOT EXISTS contents (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS members (item_set INTEGER NOT NULL, content INTEGER NOT NULL,
    PRIMARY KEY (content, item_set)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counted_looks (claim TEXT PRIMARY KEY, number INTEGER NOT NULL,
    item_set INTEGER NOT NULL, family TEXT NOT NULL, guards TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shown (soup TEXT, item_set INTEGER, PRIMARY KEY (soup, item_set)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS measured (claim TEXT NOT NULL, measurement TEXT NOT NULL, UNIQUE (claim, measurement));
CREATE TABLE IF NOT EXISTS choices (claim TEXT PRIMARY KEY, choices TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pairs (pair TEXT PRIMARY KEY, looks INTEGER NOT NULL, tests REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS searches (ingredients TEXT, item_set INTEGER, PRIMARY KEY (ingredients, item_set))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS written (ledger TEXT PRIMARY KEY, rows INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS views (recipe TEXT, item_set INTEGER, PRIMARY KEY (recipe, item_set)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS prompts (fingerprint TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS folders (fingerprint TEXT PRIMARY KEY, path TEXT, weights TEXT, soup TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hashes (file TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
"""
ANSWER_TYPES = (float | None, str | None, str, str, str, bytes, int, str, float)
"""Types of an answer's score, statistics, ..., seconds, which SQLite does not hold a file to."""
STORE_VERSION = 1
APPLICATION_ID = 0x534F5550
"""`application_id` of our files ("SOUP")."""
IN_MEMORY = ":memory:"
"""Path of a store that is kept in memory and ends with its process."""
ANSWER_BYTES = 500
"""Bytes of an answer in memory without its text and tokens."""
LOADED_BYTES = 64_000_000
"""Bytes of answers that are kept in memory, so that a soup's are read from the file once."""
Mixture = dict[str, float]
"""Shares of a model by ingredient; a single model is one ingredient."""

log = logging.getLogger(__name__)


def parts_of(recipe: Recipe) -> Mixture:
    """{fingerprint: weight} of a recipe's ingredients; weights of copies of one model under two names add up."""
    parts = dict.fromkeys(recipe.fingerprints, 0.0)
    for name, weight in zip(recipe.fingerprints, recipe.weights, strict=True):
        parts[name] += weight
    return parts


def row_number(*content: str | int) -> int:
    """Row number of something with this content: 64 bits of its SHA-256.

    Counted numbers would be given to something else after `.recover` lost a row, and what referred to the lost row
    would then belong to the new one.
    """
    text = "\0".join(map(str, content)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big", signed=True)


class Row(NamedTuple):
    """Answer with one of its scores, as the store keeps them."""

    score: float
    statistics: tuple[float, ...]
    output: str
    outcome: Outcome
    reason: str
    tokens: bytes
    prompt_tokens: int
    prompt_key: str
    seconds: float

    def record(self, item: Item, repeat: int, scored: bool) -> Record:
        """The item's answer number `repeat`; unless `scored`, the score is another scorer's and is left out."""
        return Record(
            item=item.id,
            score=self.score if scored else math.nan,
            output=self.output,
            statistics=self.statistics if scored else (),
            outcome=self.outcome,
            reason=self.reason,
            repeat=repeat,
            tokens=tuple(np.frombuffer(self.tokens, "<i4").tolist()),
            prompt_tokens=self.prompt_tokens,
            prompt_key=self.prompt_key,
            seconds=self.seconds,
        )


Blocks = dict[tuple[int, int], dict[int, dict[int | None, Row]]]
"""{(question, number of the answer): {block: {scorer, None without a score: answer}}}, all by row numbers."""


class StoredAnswers:
    """Answers of one soup under one evaluator."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        return sum(map(len, self._blocks.values()))

    @property
    def size(self) -> int:
        """Bytes of the answers, roughly."""
        size = 0
        for blocks in self._blocks.values():
            for rows in blocks.values():
                size += sum(
                    ANSWER_BYTES + len(row.output) + len(row.tokens) for row in rows.values()
                )
        return size

    @property
    def repeats(self) -> int:
        """Number of answers of the item that has the most, 0 without answers."""
        return 1 + max((repeat for _, repeat in self._blocks), default=-1)

    def find(self, item: Item, repeat: int, block: str) -> Record | None:
        """Answer number `repeat` of an item in a block (its key), None if there is none.

        The score is nan if the item's scorer has not scored the answer.
        """
        blocks = self._blocks.get((row_number(item.answer_digest), repeat), {})
        rows = blocks.get(row_number(block))
        if rows is None:
            return None
        scorer = row_number(item.scorer_digest)
        # Rows of other scorers hold the same answer.
        row = rows.get(scorer, next(iter(rows.values())))
        return row.record(item, repeat, scored=scorer in rows)

    def first(self, item: Item, repeat: int = 0) -> Record | None:
        """The scored answer number `repeat` from any block, always the same one of several; None if there is none."""
        blocks = self._blocks.get((row_number(item.answer_digest), repeat), {})
        scorer = row_number(item.scorer_digest)
        for block in sorted(blocks):
            if scorer in blocks[block]:
                return blocks[block][scorer].record(item, repeat, scored=True)
        return None


class Store:
    """Open a store with `Store(path)`; close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            UserError: it is another program's, damaged, of another version of souping, or not a path.
        """
        if str(path).startswith("file:"):
            raise UserError(f"store={path} is SQLite's URI notation: name the path of a file")
        self.path = path
        self._made = missing_folders(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors("open"):
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise
        self._file = self._inode()
        # {(soup, evaluator): answers} as they were read at this version of the file, with their bytes at most.
        self._loaded: dict[tuple[str, str], StoredAnswers] = {}
        self._loaded_bytes = 0
        self._loaded_version: int | None = None

    def _prepare(self) -> None:
        """Make the file a store, unless it is one. Nothing is written to another program's file."""
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (layout,) = self._db.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            has_tables = self._db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
            # A new file has neither.
            if application or has_tables:
                raise UserError(
                    f"store={self.path} is another program's SQLite file: name another file"
                )
        if layout not in (0, STORE_VERSION):
            raise UserError(
                f"store={self.path} is of another version of souping (layout {layout}): name another"
            )
        # The application's id comes first, so that a file is ours even if this run is killed now.
        if not layout:
            self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        # Without a write-ahead log, each new table waits for the disk.
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        # A store of an earlier version may lack tables.
        self._db.executescript(STORE_SCHEMA)
        if not layout:
            self._db.execute(f"PRAGMA user_version={STORE_VERSION}")

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None
    ) -> None:
        """Close the file; after an error, remove it if this process made it and nothing is in it."""
        # Another file is at the path now, or none.
        if self._inode() != self._file:
            log.warning("%s", self._removed())
        elif kind is not None and self._made:
            self._drop_empty()
        self.close()

    def _drop_empty(self) -> None:
        """Remove the file that this run made if no result is in it and nobody else has it open."""
        # An empty file that stays does no harm.
        with suppress(sqlite3.Error, OSError):
            # Do not wait for another process: it needs the file.
            self._db.execute("PRAGMA busy_timeout=0")
            query = "SELECT 1 FROM answers UNION SELECT 1 FROM counted_looks LIMIT 1"
            if self._db.execute(query).fetchone():
                return
            # SQLite changes the mode only if no other process has the file open.
            (mode,) = self._db.execute("PRAGMA journal_mode=DELETE").fetchone()
            if mode == "delete":
                # `_made` has the file itself, then the folders above it, deepest first.
                self.path.unlink()
                for folder in self._made[1:]:
                    folder.rmdir()

    def close(self) -> None:
        self._db.close()

    def _inode(self) -> tuple[int, int] | None:
        """(device, inode) of the file that is at the path now; None if there is none."""
        with suppress(OSError):
            stat = os.stat(self.path)
            return stat.st_dev, stat.st_ino
        return None

    def _removed(self) -> str:
        return f"store={self.path} was removed or replaced during the run: its results are lost"

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        """Raise errors of SQLite, damaged rows and half characters as a UserError: "cannot `verb` the results store".

        It has the command that saves the rest of a damaged file.
        """
        try:
            yield
        except (sqlite3.Error, json.JSONDecodeError, UnicodeEncodeError) as error:
            # The file is not the one that was opened.
            if verb != "open" and self._inode() != self._file:
                raise UserError(self._removed()) from error
            text = f"store={self.path}: cannot {verb} the results store: {error}"
            # SQLite's primary code is the last byte of the extended one.
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT:
                damaged = shlex.quote(str(self.path))
                saved = shlex.quote(str(self.path.with_stem(f"{self.path.stem}-saved")))
                # SQLite recovers whole pages: a file that was cut inside a page gets the rest of that page.
                rescue = (
                    f"truncate -s %4096 {damaged}; sqlite3 {damaged} .recover | sqlite3 {saved}"
                )
                text += f"\nthe file is damaged; save what can be read: {rescue}"
            raise UserError(text) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._errors("read"):
            yield self._db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, rolled back whatever interrupts it."""
        # SQLite would write on to a file that was removed.
        if self._inode() != self._file:
            raise UserError(self._removed())
        with self._errors("write to"), self._db as db:
            db.execute("BEGIN IMMEDIATE")
            yield db

    # ------------------------------------------------------------ answers

    def load(self, soup: str, evaluator: str) -> StoredAnswers:
        """All answers of this soup under this evaluator (their fingerprints).

        They are read from the file unless they were read before and nobody has written since.
        """
        with self.reading() as db:
            # It changes when another connection writes; `add` forgets what this one wrote.
            (version,) = db.execute("PRAGMA data_version").fetchone()
        if version != self._loaded_version or self._loaded_bytes > LOADED_BYTES:
            self._loaded.clear()
            self._loaded_bytes = 0
            self._loaded_version = version
        key = (soup, evaluator)
        if key not in self._loaded:
            self._loaded[key] = self._read(soup, evaluator)
            self._loaded_bytes += self._loaded[key].size
        return self._loaded[key]

    def _read(self, soup: str, evaluator: str) -> StoredAnswers:
        """The answers in the file."""
        blocks: Blocks = {}
        with self.reading() as db:
            rows = db.execute(
                "SELECT item, replicate, block, scorer, score, statistics, output, outcome, reason, tokens, "
                f"prompt_tokens, prompt_key, seconds FROM answers LEFT JOIN grades USING ({KEY}) "
                "WHERE soup = ? AND evaluator = ?",
                (row_number(soup), row_number(evaluator)),
            )
            for question, repeat, block, scorer, *values in rows:
                if not all(map(isinstance, values, ANSWER_TYPES)):
                    raise sqlite3.DataError("a value of an answer is of another type")
                score, statistics, *row = values
                counts = tuple(json.loads(statistics)) if statistics else ()
                answers = blocks.setdefault((question, repeat), {}).setdefault(block, {})
                answers[scorer] = Row(score, counts, *row)
        return StoredAnswers(blocks)

    def add(
        self,
        recipe: Recipe,
        evaluator: str,
        settings: JsonObject,
        block: str,
        items: Sequence[Item],
        records: Iterable[Record],
    ) -> None:
        """Commit the records of a block's items: the answers that are new, and the scores that are new.

        `evaluator` is a fingerprint with its `settings`, and `block` the block's key.
        """
        soup = row_number(recipe.fingerprint)
        evaluator_row = row_number(evaluator)
        batch = row_number(block)
        with self.writing() as db:
            _insert(db, "soups", soup, recipe.fingerprint, json.dumps(recipe.as_dict()))
            _insert(
                db, "evaluators", evaluator_row, evaluator, json.dumps(settings, sort_keys=True)
            )
            for item, record in zip(items, records, strict=True):
                question = row_number(item.answer_digest)
                _insert(db, "items", question, item.answer_digest, item.id, item.category)
                key = (soup, evaluator_row, question, batch, record.repeat)
                _insert(db, "answers", *key, *_columns(record))
                if record.prompt and record.prompt_key:
                    _insert(db, "prompts", record.prompt_key, _storable(record.prompt))
                # NaN waits for the item's own scorer.
                if not math.isnan(record.score):
                    counts = json.dumps(record.statistics) if record.statistics else ""
                    _insert(
                        db, "grades", *key, row_number(item.scorer_digest), record.score, counts
                    )
        self._loaded.pop((recipe.fingerprint, evaluator), None)

    def has_answers(self, recipe: str, questions: Iterable[str]) -> bool:
        """Whether a soup (the id of its recipe) answered one of these questions."""
        # A recipe's id is the beginning of its fingerprint.
        query = "SELECT DISTINCT item FROM answers JOIN soups ON soups.id = soup WHERE substr(fingerprint, 1, 12) = ?"
        with self.reading() as db:
            answered = {item for (item,) in db.execute(query, (recipe,))}
        return any(row_number(question) in answered for question in questions)

    def known_scores(self, items: Iterable[Item]) -> dict[tuple[str, str, str], float]:
        """{(question, scorer, answer's text): score} of these items by their scorers, whichever soup answered."""
        query = "SELECT output, score FROM scores WHERE item = ? AND scorer = ? AND typeof(score) = 'real'"
        known: dict[tuple[str, str, str], float] = {}
        with self.reading() as db:
            for question, scoring in sorted(
                {(item.answer_digest, item.scorer_digest) for item in items}
            ):
                key = (row_number(question), row_number(scoring))
                for output, score in db.execute(query, key):
                    known[question, scoring, output] = float(score)
        return known

    def prompts(self, keys: Collection[str]) -> dict[str, str]:
        """{key: text of a prompt} of the prompts with these keys that are known."""
        query = "SELECT fingerprint, text FROM prompts WHERE fingerprint = ?"
        texts = dict[str, str]()
        with self.reading() as db:
            for key in keys:
                texts.update(db.execute(query, (key,)))
        return texts

    def throughput(self, soups: Iterable[str], evaluator: str) -> float | None:
        """Answers per second of these soups under this evaluator; None if none is stored."""
        query = "SELECT COUNT(*), TOTAL(seconds) FROM answers WHERE soup = ? AND evaluator = ?"
        answers = 0
        seconds = 0.0
        with self.reading() as db:
            for soup in soups:
                key = (row_number(soup), row_number(evaluator))
                count, total = db.execute(query, key).fetchone()
                answers += count
                seconds += total
        return answers / seconds if seconds > 0 else None

    # ------------------------------------------------------------ checkpoints

    def remember_folder(
        self, fingerprint: str, path: Path, weights: str = "", soup: str = ""
    ) -> None:
        """Remember where a checkpoint is for rebuilds, the digest of its `weights` for looks, and what it mixes if it
        is a `soup`, {fingerprint: weight} as JSON. The first recipe stays: editing it later hides nothing."""
        with self.writing() as db:
            db.execute(
                "INSERT INTO folders VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET path = excluded.path, "
                "weights = excluded.weights, soup = CASE soup WHEN '' THEN excluded.soup ELSE soup END",
                (fingerprint, str(path.resolve()), weights, soup),
            )

    def folder_of(self, fingerprint: str) -> str | None:
        """The folder where a checkpoint with this fingerprint was seen last; None if it was never seen."""
        with self.reading() as db:
            row = db.execute(
                "SELECT path FROM folders WHERE fingerprint = ?", (fingerprint,)
            ).fetchone()
            return str(row[0]) if row else None

    @property
    def hashes(self) -> MutableMapping[str, str]:
        """File digests, so that a checkpoint's bytes are read once and not at every run."""
        return _Hashes(self)


class _Hashes(UserDict[str, str]):
    """{file: digest} as the store had them when this object was made, with this object's changes, which are written to
    the store at once."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        # A damaged or edited store may hold other types.
        with store.reading() as db:
            self.data = dict(
                db.execute("SELECT file, digest FROM hashes WHERE typeof(digest)='text'")
            )

    def __setitem__(self, file: str, digest: str) -> None:
        super().__setitem__(file, digest)
        with self._store.writing() as db:
            db.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?)", (file, digest))


def _insert(db: sqlite3.Connection, table: str, *values: str | float | bytes) -> None:
    """Write a row unless there is one with its key."""
    db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(values))})", values)


def _columns(record: Record) -> tuple[str | float | bytes, ...]:
    """The columns of `answers` from `output` on."""
    tokens = np.array(record.tokens, "<i4").tobytes()
    texts = (_storable(record.output), record.outcome, _storable(record.reason))
    return (*texts, tokens, record.prompt_tokens, record.prompt_key, record.seconds)


def _storable(text: str) -> str:
    """The text with its unpaired surrogates replaced, which SQLite does not take."""
    return text.encode("utf-8", "replace").decode()
