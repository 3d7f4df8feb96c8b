"""How a soup reaches an evaluator: poured into one live module, or as a complete folder."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from souping.core import Recipe, UserError
from souping.protocols import Evaluator, Served

SHARED_MEMORY = Path("/dev/shm")
"""A file system in memory: what is written there is read at the speed of memory."""
PREFIX, LOCK = "souping-soup-", ".in-use"


@dataclass
class Table:
    """A model on the table, ready to be evaluated."""

    module: Any
    tokenizer: Any
    folder: Path | None = None


class Hob:
    """One live module that soups are poured into. It is loaded at the first soup that somebody evaluates."""

    def __init__(
        self, load: Callable[[Any], Any], live: Callable[[Any], Any], tokenizer: Callable[[Recipe], Any]
    ) -> None:
        self._load, self._live, self._tokenizer = load, live, tokenizer
        self._setup: tuple[Any, ...] = ()
        self._table: Table | None = None
        self._poured: Any = None
        self._served = ""

    def serve(self, evaluator: Any, recipe: Recipe) -> Table:
        """The soup, poured. Evaluators that want the module alike (device, dtype) share it; else it is loaded anew."""
        table = self._ready(evaluator)
        if self._served != recipe.fingerprint:
            self._poured.pour(recipe)
            table.tokenizer = self._tokenizer(recipe)
            self._served = recipe.fingerprint
        return table

    def tokenizer(self, recipe: Recipe) -> Any:
        """The soup's tokenizer."""
        return self._tokenizer(recipe)

    def _ready(self, evaluator: Any) -> Table:
        setup = tuple(getattr(evaluator, name, None) for name in ("resolved_device", "dtype", "trust_remote_code"))
        if self._table is None or setup != self._setup:
            self._table = self._poured = None  # two modules at once might not fit
            module = self._load(evaluator)
            self._table, self._poured = Table(module=module, tokenizer=None), self._live(module)
            self._setup, self._served = setup, ""
        return self._table


class Shelf:
    """One soup as a folder, in shared memory where it fits; the next soup takes its place, `close` removes it.

    What a killed run left there is removed before the next soup is written.
    """

    def __init__(self, write: Callable[[Recipe, Path], Path], own: Callable[[Recipe], Path | None], size: int) -> None:
        self._write, self._own, self._size = write, own, size
        self._root: Path | None = None
        self._lock: IO[str] | None = None
        self._served = ""

    def serve(self, evaluator: Any, recipe: Recipe) -> Table:
        """The soup's folder: a candidate's own, or a temporary one."""
        own = self._own(recipe)
        if own is not None:
            return Table(module=None, tokenizer=None, folder=own)
        if self._served != recipe.fingerprint:
            self.close()
            sweep()
            self._root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place(self._size)))
            self._lock = hold(self._root)
            if not (self._write(recipe, self._root / recipe.id) / "config.json").is_file():
                raise UserError("an adapter alone cannot be evaluated as a folder: set merge.adapters=merge")
            self._served = recipe.fingerprint
        assert self._root is not None
        return Table(module=None, tokenizer=None, folder=self._root / recipe.id)

    def close(self) -> None:
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
        self._root, self._lock, self._served = None, None, ""


class Either:
    """A soup that is poured or written only when it is asked for, by an engine that knows which it needs.

    `soup` identifies it, and `home` is a complete folder of a model like it.
    """

    def __init__(self, hob: Hob, shelf: Shelf, stage: Any, recipe: Recipe, home: Path) -> None:
        self._hob, self._shelf, self._stage, self._recipe = hob, shelf, stage, recipe
        self.soup, self.home = recipe.fingerprint, home

    @property
    def tokenizer(self) -> Any:
        return self._hob.tokenizer(self._recipe)

    @property
    def module(self) -> Any:
        """The live module with the soup in it."""
        return self._hob.serve(self._stage, self._recipe).module

    @property
    def folder(self) -> Path | None:
        """The soup as a complete folder."""
        return self._shelf.serve(self._stage, self._recipe).folder


def hold(root: Path) -> IO[str]:
    """Mark a folder as in use until the file is closed or this process is gone, however it goes."""
    new = root / f"{LOCK}.new"
    file = new.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    new.rename(root / LOCK)  # under this name once it is held
    return file


def sweep() -> None:
    """Remove the soups of runs that were killed: nobody holds their lock."""
    for above in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        for lock in above.glob(f"{PREFIX}*/{LOCK}"):
            with suppress(OSError), lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)


def place(size: int) -> Path:
    """Where `size` bytes of a passing soup go: shared memory if half of what is free there holds them, else the
    temporary folder.

    Raises:
        UserError: neither has the room.
    """
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size:
        return SHARED_MEMORY
    temporary = Path(tempfile.gettempdir())
    free = shutil.disk_usage(temporary).free
    if free < size:
        raise UserError(
            f"{temporary} has {free / 1e9:.1f} GB free, a soup that is evaluated as a folder takes {size / 1e9:.1f}: "
            "set TMPDIR to a place with room"
        )
    return temporary


def serving(hob: Hob, shelf: Shelf, evaluator: Evaluator, home: Path) -> Callable[[Recipe], Served]:
    """What serves soups to this evaluator, as it `wants` them; `home` is a folder of the pool's architecture."""
    stage: Any = getattr(evaluator, "stage", None) or evaluator
    ways: Mapping[str, Callable[[Recipe], Served]] = {
        "module": lambda recipe: hob.serve(stage, recipe),
        "folder": lambda recipe: shelf.serve(stage, recipe),
        "either": lambda recipe: Either(hob, shelf, stage, recipe, home),
    }
    return ways[getattr(evaluator, "wants", "module")]
