"""The opened pool: makes recipes of its candidates and serves the soups, in one live module or as a folder.

Candidates and base model on this disk: folders as they are, models of the Hub fetched once cheap checks passed.

How a soup reaches an evaluator: poured into one live module, or as a complete folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from souping.checkpoints import hub
from souping.checkpoints.checkpoint import Checkpoint, fingerprint
from souping.checkpoints.compatibility import preflight
from souping.checkpoints.lora import is_adapter, read_settings
from souping.core.protocols import Evaluator, Served
from souping.core.text import nearest
from souping.core.types import Candidate, Recipe, UserError
from souping.merge.adapters.pool import open_adapters
from souping.pipeline.store import Store
from souping.report.progress import Throughput


class OpenPool:
    """Candidates with their checkpoints opened (headers only) and checked against each other.

    No weight is loaded before the first `serve`: a run that finds all its results in the store loads none, nor torch.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        merge: Any,
        evaluator: Evaluator | None,
        store: Store,
        aside: Aside = nullcontext,
    ) -> None:
        """Fetch what is named by the Hub, open every candidate's headers, check them against each other, then take
        their fingerprints. `aside` makes room on the terminal for a download's bar.

        Raises:
            UserError: a folder is absent or broken, a model cannot be had, or the candidates do not fit each other.
        """
        self._evaluator, self._hashes = evaluator, store.hashes
        _check_carry(merge, [c.name for c in candidates])
        supplied = fetch_candidates(candidates, merge, aside, tokenizers=evaluator is not None)
        candidates, merge = supplied.candidates, supplied.merge
        self._adapters = open_adapters({c.name: c.path for c in candidates}, merge, store.hashes)
        self._merge = self._adapters or merge
        if self._adapters is not None:
            self._checkpoints: Mapping[str, Any] = self._adapters.adapters
            self.warnings, self._fingerprints = list(self._adapters.warnings), self._adapters.fingerprints
            store.remember_folder(self._adapters.base_fingerprint, self._adapters.model_folder)
        else:
            self._checkpoints = {c.name: Checkpoint.open(c.path, allow_pickle=merge.allow_pickle) for c in candidates}
            self.warnings = preflight(self._checkpoints, vocab=merge.vocab)
            self._fingerprints = {c.name: fingerprint(c.path, store.hashes, merge.allow_pickle) for c in candidates}
        self.candidates = tuple(replace(c, fingerprint=self._fingerprints[c.name]) for c in candidates)
        for c in self.candidates:
            store.remember_folder(c.fingerprint, c.path)
        if getattr(merge, "base", None) and self._adapters is None:
            store.remember_folder(fingerprint(Path(merge.base), store.hashes, merge.allow_pickle), Path(merge.base))
        self.warnings += [*supplied.notes, *_twins(self.candidates)]
        self._hob = LiveModel(self._load, lambda module: self._merge.live(self._checkpoints, module), self._tokenizer)
        self._shelf = ScratchCheckpoint(lambda recipe, out: self.write(recipe, out, {}), self._own_folder, self._size())

    def check_tokenizers(self) -> None:
        """Refuse, before anything is evaluated, a candidate that has no tokenizer to evaluate it with."""
        for c in self.candidates if self._adapters is None else ():
            check_tokenizer(c.name, c.path)

    @property
    def _folders(self) -> dict[str, Path]:
        return {c.name: c.path for c in self.candidates}

    @property
    def backend(self) -> Any:
        """What plans, pours and writes this pool: the merge backend, or the adapters' own."""
        return self._merge

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.candidates)

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of named weights, ingredients in the pool's order."""
        chosen = [name for name in self.names if weights.get(name)]
        recipe: Recipe = self._merge.recipe(
            chosen, tuple(weights[n] for n in chosen), self._checkpoints, self._fingerprints, self._hashes
        )
        sources = {c.name: c.source for c in self.candidates if c.source and c.name in chosen}
        return replace(recipe, sources=sources) if sources else recipe

    def uniform(self, names: tuple[str, ...]) -> Recipe:
        return self.recipe({name: 1.0 / len(names) for name in names})

    def tokenizer(self, name: str) -> Any:
        """The tokenizer that a candidate is evaluated with."""
        return self._tokenizer(self.recipe({name: 1.0}))

    def serve(self, recipe: Recipe) -> Served:
        """The soup, ready for the run's own evaluator."""
        assert self._evaluator is not None
        return self.serving(self._evaluator)(recipe)

    def serving(self, evaluator: Evaluator) -> Callable[[Recipe], Served]:
        """What serves this pool's soups to an evaluator: a live module, or a folder where it `wants` one."""
        return serving(self._hob, self._shelf, evaluator, self._home)

    def close(self) -> None:
        """Remove the soup that was last written for an evaluator."""
        self._shelf.close()

    def write(self, recipe: Recipe, out: Path, extra_files: Mapping[str, str], progress: Any = None) -> Path:
        """The soup as a folder; `progress(bytes written, bytes in all)`."""
        plan = self._merge.plan(recipe, self._folders)
        path: Path = self._merge.write(plan, out, extra_files=extra_files, progress=progress)
        return path

    def _load(self, evaluator: Evaluator) -> Any:
        from souping.evaluate.engines.transformers import load_module

        return load_module(self._home, evaluator)

    @property
    def _home(self) -> Path:
        """A complete folder of the pool's architecture."""
        home: Path = self._adapters.model_folder if self._adapters else self.candidates[0].path
        return home

    def _own_folder(self, recipe: Recipe) -> Path | None:
        """The candidate's own folder, where the recipe is that candidate as it lies there."""
        if self._adapters is not None or len(recipe.ingredients) > 1:
            return None
        name = recipe.ingredients[0]
        return self._folders[name] if recipe.dtype == self._checkpoints[name].dtype else None

    def _size(self) -> int:
        """Bytes that a soup takes as a folder, at most: the largest candidate's, twice that where it is widened."""
        folders = [self._adapters.model_folder] if self._adapters else self._folders.values()
        largest = max(sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) for folder in folders)
        narrow = self._adapters or any(c.dtype != "float32" for c in self._checkpoints.values())
        return 2 * largest if narrow and getattr(self._merge, "dtype", None) == "float32" else largest

    def _tokenizer(self, recipe: Recipe) -> Any:
        from souping.evaluate.engines.transformers import load_tokenizer

        if self._adapters:
            return load_tokenizer(self._adapters.tokenizer_folder(recipe))
        backend: Any = self._merge
        carrier = backend.plan(recipe, self._folders).carrier if backend.vocab != "error" else ""
        return load_tokenizer(self._folders[carrier or recipe.ingredients[0]])


def _check_carry(merge: Any, names: Sequence[str]) -> None:
    carry = getattr(merge, "carry", None)
    if carry is not None and carry not in names:
        raise UserError(f"merge.carry={carry} is not a candidate ({', '.join(names)}){nearest(carry, names)}")


def _twins(candidates: tuple[Candidate, ...]) -> list[str]:
    first: dict[str, str] = {}
    for c in candidates:
        first.setdefault(c.fingerprint, c.name)
    pairs = [(first[c.fingerprint], c.name) for c in candidates if first[c.fingerprint] != c.name]
    return [f"{a} and {b} hold the same bytes: they are one model under two names" for a, b in pairs]


def free_target(out: Path) -> None:
    """Refuse, before any work, a target that holds something or that cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} exists and is not an empty folder: choose another, or move it away")
    parent = next(p for p in out.absolute().parents if p.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".souping-", dir=parent))
    except OSError as error:
        raise UserError(f"out={out}: cannot write below {parent}: {error.strerror}; choose another place") from error


TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
Aside = Callable[[], AbstractContextManager[Any]]
"""Makes room on the terminal while something else is shown there."""


@dataclass(frozen=True, kw_only=True)
class FetchedPool:
    """Candidates whose paths are folders, a merge backend whose base is one, and notes for the report."""

    candidates: tuple[Candidate, ...]
    merge: Any
    notes: tuple[str, ...] = ()


def fetch_candidates(
    candidates: Sequence[Candidate], merge: Any, aside: Aside = nullcontext, tokenizers: bool = False
) -> FetchedPool:
    """Fetch what is named by the Hub; with `tokenizers`, a model that has none is refused before its weights travel.

    Raises:
        UserError: a candidate is neither a folder nor a model that can be had, they do not fit each other by their
            headers, or the disk is too small; nothing large was fetched then.
    """
    names = {c.name: found for c in candidates if (found := hub.parse(c.path))}
    for c in candidates:
        if c.name not in names and not c.path.is_dir():
            raise UserError(
                f"candidate {c.name}: {c.path} is not a folder: give the path of a saved Hugging Face model or org/name"
            )
    pickle = getattr(merge, "allow_pickle", False)
    fetched: Mapping[str, hub.Fetched] = {}
    if names:
        with aside(), Throughput("download") as report:
            fetched = hub.fetch(names, pickle, _judge(candidates, merge, tokenizers), report)
    here = tuple(_placed(c, fetched.get(c.name)) for c in candidates)
    notes = tuple(f.note for f in fetched.values() if f.note)
    return FetchedPool(candidates=here, merge=with_base(merge, [c.path for c in here], aside), notes=notes)


def with_base(merge: Any, folders: Sequence[Path], aside: Aside = nullcontext) -> Any:
    """The merge backend with its base model on this disk: `merge.base`, or the one that adapters in `folders` name."""
    base = getattr(merge, "base", None)
    name = hub.parse(base) if base else _base_of_adapters(folders)
    if name is None:
        return merge
    try:
        found = folder_of(name, getattr(merge, "allow_pickle", False), aside)
    except UserError as error:
        whose = f"merge.base={base}" if base else f"the adapters' base model {name}"
        raise UserError(f"{whose} is not a folder here: set merge.base=FOLDER to where it lies\n{error}") from error
    return replace(merge, base=str(found))


def folder_of(name: hub.HubName | str, allow_pickle: bool = False, aside: Aside = nullcontext) -> Path:
    """The folder of one model: fetched where it is named by the Hub, else the path that it is."""
    found = hub.parse(str(name))
    if found is None:
        return Path(str(name))
    with aside(), Throughput(f"download of {found.name}") as report:
        return hub.fetch_one(found, allow_pickle, report).folder


def _placed(candidate: Candidate, found: hub.Fetched | None) -> Candidate:
    return candidate if found is None else replace(candidate, path=found.folder, source=str(found.name))


def check_tokenizer(name: str, folder: Path) -> None:
    """Refuse a model that has no tokenizer to be evaluated with."""
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise UserError(f"candidate {name}: {folder} has no tokenizer: copy its base model's tokenizer files")


def _judge(candidates: Sequence[Candidate], merge: Any, tokenizers: bool) -> Callable[[Mapping[str, Path]], None]:
    """What headers, configs and tokenizers can tell of the whole pool before its weights travel."""

    def check(folders: Mapping[str, Path]) -> None:
        pool = {c.name: folders.get(c.name, c.path) for c in candidates}
        if not any(is_adapter(folder) for folder in pool.values()):
            opened = {name: Checkpoint.open(folder, merge.allow_pickle) for name, folder in pool.items()}
            preflight(opened, vocab=merge.vocab)
            for name, folder in pool.items() if tokenizers else ():
                check_tokenizer(name, folder)

    return check


def _base_of_adapters(folders: Sequence[Path]) -> hub.HubName | None:
    """The Hub name of the base that the first adapter was trained on, where no folder of that name is here."""
    first = next((folder for folder in folders if is_adapter(folder)), None)
    if first is None:
        return None
    settings = read_settings(first)
    return hub.parse(f"{settings.base}@{settings.revision or 'main'}") if not _folder(settings.base) else None


def _folder(path: str | None) -> bool:
    return path is None or "\0" in path or Path(path).expanduser().exists()


SHARED_MEMORY = Path("/dev/shm")
"""A file system in memory: what is written there is read at the speed of memory."""
PREFIX, LOCK = "souping-soup-", ".in-use"


@dataclass
class ServedModel:
    """A model on the table, ready to be evaluated."""

    module: Any
    tokenizer: Any
    folder: Path | None = None


class LiveModel:
    """One live module that soups are poured into. It is loaded at the first soup that somebody evaluates."""

    def __init__(
        self, load: Callable[[Any], Any], live: Callable[[Any], Any], tokenizer: Callable[[Recipe], Any]
    ) -> None:
        self._load, self._live, self._tokenizer = load, live, tokenizer
        self._setup: tuple[Any, ...] = ()
        self._table: ServedModel | None = None
        self._poured: Any = None
        self._served = ""

    def serve(self, evaluator: Any, recipe: Recipe) -> ServedModel:
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

    def _ready(self, evaluator: Any) -> ServedModel:
        setup = tuple(getattr(evaluator, name, None) for name in ("resolved_device", "dtype", "trust_remote_code"))
        if self._table is None or setup != self._setup:
            self._table = self._poured = None  # two modules at once might not fit
            module = self._load(evaluator)
            self._table, self._poured = ServedModel(module=module, tokenizer=None), self._live(module)
            self._setup, self._served = setup, ""
        return self._table


class ScratchCheckpoint:
    """One soup as a folder, in shared memory where it fits; the next soup takes its place, `close` removes it.

    What a killed run left there is removed before the next soup is written.
    """

    def __init__(self, write: Callable[[Recipe, Path], Path], own: Callable[[Recipe], Path | None], size: int) -> None:
        self._write, self._own, self._size = write, own, size
        self._root: Path | None = None
        self._lock: IO[str] | None = None
        self._served = ""

    def serve(self, evaluator: Any, recipe: Recipe) -> ServedModel:
        """The soup's folder: a candidate's own, or a temporary one."""
        own = self._own(recipe)
        if own is not None:
            return ServedModel(module=None, tokenizer=None, folder=own)
        if self._served != recipe.fingerprint:
            self.close()
            sweep()
            self._root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=scratch_place(self._size)))
            self._lock = hold(self._root)
            if not (self._write(recipe, self._root / recipe.id) / "config.json").is_file():
                raise UserError("an adapter alone cannot be evaluated as a folder: set merge.adapters=merge")
            self._served = recipe.fingerprint
        assert self._root is not None
        return ServedModel(module=None, tokenizer=None, folder=self._root / recipe.id)

    def close(self) -> None:
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
        self._root, self._lock, self._served = None, None, ""


class LazyModel:
    """A soup that is poured or written only when it is asked for, by an engine that knows which it needs.

    `soup` identifies it, and `home` is a complete folder of a model like it.
    """

    def __init__(self, hob: LiveModel, shelf: ScratchCheckpoint, stage: Any, recipe: Recipe, home: Path) -> None:
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


def scratch_place(size: int) -> Path:
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


def serving(hob: LiveModel, shelf: ScratchCheckpoint, evaluator: Evaluator, home: Path) -> Callable[[Recipe], Served]:
    """What serves soups to this evaluator, as it `wants` them; `home` is a folder of the pool's architecture."""
    stage: Any = getattr(evaluator, "stage", None) or evaluator
    ways: Mapping[str, Callable[[Recipe], Served]] = {
        "module": lambda recipe: hob.serve(stage, recipe),
        "folder": lambda recipe: shelf.serve(stage, recipe),
        "either": lambda recipe: LazyModel(hob, shelf, stage, recipe, home),
    }
    return ways[getattr(evaluator, "wants", "module")]
