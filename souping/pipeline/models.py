"""Candidates of a run: fetched, opened and checked; recipes of them, and their soups as evaluators want them.

Folders are taken as they are, models of the Hub are fetched once cheap checks passed. A soup reaches an evaluator
poured into one live module, or as a complete folder.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from souping.checkpoints import hub
from souping.checkpoints.checkpoint import Checkpoint, small
from souping.checkpoints.compatibility import check_tokenizer, preflight
from souping.checkpoints.lora import is_adapter, read_settings, weights_digest
from souping.core.fields import pick
from souping.core.files import LOCK, expanded, folder_at, hold, near_folder, sweep
from souping.core.merge_protocols import CandidatePool, MergeBackend, Pourable
from souping.core.protocols import (
    Evaluator,
    ModuleSettings,
    Progress,
    Served,
)
from souping.core.system import SHARED_MEMORY
from souping.core.text import read_json
from souping.core.types import Candidate, Recipe, UserError
from souping.merge.digests import Late, StandIns
from souping.merge.plan import MAX_RECIPE, recipe_from_dict
from souping.pipeline.ledger import parts_of
from souping.pipeline.store import ContentMemory
from souping.report.progress import Throughput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Aside = Callable[[], AbstractContextManager[None]]
"""Makes room on the terminal while something else is shown there."""
PREFIX = "souping-soup-"


class OpenPool:
    """Candidates of a run, opened (headers only) and checked against each other.

    No weight is loaded before the first `serve`: a run that finds all its results in the store loads none, nor torch.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        merge: MergeBackend,
        store: ContentMemory,
        aside: Aside = nullcontext,
        tokenizers: bool = True,
        with_base: bool = False,
        late: bool = False,
    ) -> None:
        """Fetch what is named by the Hub, open every candidate's headers, check them against each other, then take
        their fingerprints. `aside` makes room on the terminal for a download's bar. `with_base` opens the base model
        beside full models, so that recipes may name it (`base_name`). With `late`, files that nobody has hashed wait
        for `write_late`, where the backend can do that.

        Raises:
            UserError: a folder is absent or broken, a model cannot be had, or the candidates do not fit each other.
        """
        _check_carry(merge, [c.name for c in candidates])
        supplied = fetch_candidates(candidates, merge, aside, tokenizers=tokenizers)
        self.base, self.folders = supplied.merge.base, {c.name: c.path for c in supplied.candidates}
        self.base_name, beside = _beside(self.folders, self.base) if with_base else ("", {})
        late = late and supplied.merge.hashes_while_reading and not any(map(is_adapter, self.folders.values()))
        self._store, self._hashes = store, StandIns(store.hashes) if late else store.hashes
        self.pool = supplied.merge.open({**self.folders, **beside}, self._hashes)
        warnings, fingerprints = self.pool.warnings, self.pool.fingerprints
        self.candidates = tuple(replace(c, fingerprint=fingerprints[c.name]) for c in supplied.candidates)
        self.late = late and isinstance(self._hashes, StandIns) and self._hashes.pending
        self.warnings = [*warnings, *supplied.notes, *_twins({c.name: c.fingerprint for c in self.candidates})]
        self._pickles = supplied.merge.allow_pickle
        if not self.late:
            self._remember(self.pool.seen)
        self._live = LiveModel(self.pool)
        self._scratch = ScratchCheckpoint(self.pool)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.candidates)

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of named weights, ingredients in the pool's order."""
        recipe = self.pool.recipe(weights)
        sources = {c.name: c.source for c in self.candidates if c.source and weights.get(c.name)}
        return replace(recipe, sources=sources) if sources else recipe

    def uniform(self, names: tuple[str, ...]) -> Recipe:
        return self.recipe({name: 1.0 / len(names) for name in names})

    def ends(self, recipe: Recipe) -> tuple[int, ...]:
        """Tokens that end the soup's answers."""
        return self.pool.ends(recipe)

    def bound(self, evaluator: Evaluator) -> Evaluator:
        """The evaluator with what it takes from the candidates' files."""
        return evaluator.for_pool(self.pool.home, self.folders)

    def serving(self, evaluator: Evaluator) -> Callable[[Recipe], Served]:
        """What serves this pool's soups to an evaluator: a live module, or a folder where it `wants` one."""
        if evaluator.wants == "folder":
            return self._scratch.serve
        settings = evaluator.module_settings()
        if evaluator.wants == "module":
            return lambda recipe: self._live.serve(settings, recipe)
        return lambda recipe: LazyModel(self.pool, self._live, self._scratch, settings, recipe)

    def close(self) -> None:
        """Remove the soup that was last written for an evaluator, and end the ranks that wrote soups."""
        self._scratch.close()
        self.pool.close()

    def write(
        self, recipe: Recipe, out: Path, extra_files: Mapping[str, str], progress: Progress | None = None
    ) -> Path:
        """The soup as a folder; `progress(bytes written, bytes in all)`."""
        return self.pool.write(recipe, out, extra_files=extra_files, progress=progress)

    def write_late(
        self, recipe: Recipe, out: Path, files: Callable[[Recipe], Mapping[str, str]], progress: Progress | None = None
    ) -> tuple[Path, list[str]]:
        """The soup as a folder, its ingredients hashed as they are read, and what that told of them."""
        from souping.merge.plan import MergePlan
        from souping.merge.writer import write_checkpoint

        plan = self.pool.plan(recipe)
        assert isinstance(plan, MergePlan)
        made: list[Recipe] = []

        def final(known: Recipe) -> Mapping[str, str]:
            made.append(known)
            return files(known)

        written = write_checkpoint(plan, out, progress=progress, late=Late(self._store.hashes, final))
        prints = dict(zip(made[-1].ingredients, made[-1].fingerprints, strict=True))
        self._remember({content: self.folders[name] for name, content in prints.items()})
        return written, _twins(prints)

    def _remember(self, seen: Mapping[str, Path]) -> None:
        """Tell the store where checkpoints {fingerprint: folder} are, and what they are made of."""
        for content, folder in seen.items():
            weights = weights_digest(folder, self._store.hashes, self._pickles)
            self._store.remember_folder(content, folder, weights, _mixture(folder))


def _mixture(folder: Path) -> str:
    """{fingerprint of an ingredient: weight} as JSON of a folder with a soup's recipe.json; else empty."""
    try:
        parts = parts_of(recipe_from_dict(read_json(small(folder / "recipe.json", MAX_RECIPE))))
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return ""
    return json.dumps(parts) if all(map(math.isfinite, parts.values())) else ""


def _beside(folders: Mapping[str, Path], base: str | None) -> tuple[str, dict[str, Path]]:
    """(name of the base model in recipes, its folder where it is no candidate). Adapters alone are none of its kind."""
    if base is None or any(is_adapter(folder) for folder in folders.values()):
        return "", {}
    place = expanded(base, "merge.base")
    known = [name for name, folder in folders.items() if folder.resolve() == place.resolve()]
    if known:
        return known[0], {}
    name = place.name if place.name not in folders else f"{place.name} (base)"
    return name, {name: place}


def _check_carry(merge: MergeBackend, names: Sequence[str]) -> None:
    if merge.carry is not None:
        pick(merge.carry, names, "merge.carry")


def _twins(prints: Mapping[str, str]) -> list[str]:
    first: dict[str, str] = {}
    for name, content in prints.items():
        first.setdefault(content, name)
    pairs = [(first[content], name) for name, content in prints.items() if first[content] != name]
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


@dataclass(frozen=True, kw_only=True)
class FetchedPool:
    """Candidates whose paths are folders, a merge backend whose base is one, and notes for the report."""

    candidates: tuple[Candidate, ...]
    merge: MergeBackend
    notes: tuple[str, ...] = ()


def fetch_candidates(
    candidates: Sequence[Candidate], merge: MergeBackend, aside: Aside = nullcontext, tokenizers: bool = False
) -> FetchedPool:
    """Fetch what is named by the Hub; with `tokenizers`, a model that has none is refused before its weights travel.

    Raises:
        UserError: a candidate is neither a folder nor a model that can be had, they do not fit each other by their
            headers, or the disk is too small; nothing large was fetched then.
    """
    names = {c.name: name for c in candidates if (name := hub.parse(c.path))}
    for c in candidates:
        if c.name not in names and not c.path.is_dir():
            raise UserError(
                f"candidate {c.name}: {c.path} is not a folder: give the path of a saved Hugging Face model or org/name"
                f"{near_folder(c.path)}"
            )
    fetched: Mapping[str, hub.Fetched] = {}
    if names:
        with aside(), Throughput("download") as report:
            fetched = hub.fetch(names, merge.allow_pickle, _judge(candidates, merge, tokenizers), report)
    here = tuple(_placed(c, fetched.get(c.name)) for c in candidates)
    notes = tuple(f.note for f in fetched.values() if f.note)
    return FetchedPool(candidates=here, merge=with_base(merge, [c.path for c in here], aside), notes=notes)


def with_base(merge: MergeBackend, folders: Sequence[Path], aside: Aside = nullcontext) -> MergeBackend:
    """The merge backend with its base model on this disk: `merge.base`, or the one that adapters in `folders` name."""
    base = merge.base
    name = hub.parse(base) if base else _base_of_adapters(folders)
    if name is None:
        home = base is not None and base.startswith("~")
        return merge.with_settings({"base": str(expanded(str(base), "merge.base"))}) if home else merge
    try:
        folder = folder_of(name, merge.allow_pickle, aside)
    except UserError as error:
        whose = f"merge.base={base}" if base else f"the adapters' base model {name}"
        raise UserError(f"{whose} is not a folder here: set merge.base=FOLDER to where it lies\n{error}") from error
    return merge.with_settings({"base": str(folder)})


def folder_of(name: hub.HubName | str, allow_pickle: bool = False, aside: Aside = nullcontext) -> Path:
    """The folder of one model: fetched where it is named by the Hub, else the path that it is."""
    parsed = hub.parse(str(name))
    if parsed is None:
        return Path(str(name))
    with aside(), Throughput(f"download of {parsed.name}") as report:
        return hub.fetch_one(parsed, allow_pickle, report).folder


def _placed(candidate: Candidate, fetched: hub.Fetched | None) -> Candidate:
    return candidate if fetched is None else replace(candidate, path=fetched.folder, source=str(fetched.name))


def _judge(
    candidates: Sequence[Candidate], merge: MergeBackend, tokenizers: bool
) -> Callable[[Mapping[str, Path]], None]:
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
    if settings.base is None or folder_at(settings.base) is not None:
        return None
    return hub.parse(f"{settings.base}@{settings.revision or 'main'}")


class ServedModel(Served):
    """Soup ready to be evaluated: in a live module with its tokenizer, or as a folder. It has what was asked for."""

    def __init__(
        self,
        soup: str = "",
        home: Path = Path(),
        *,
        module: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        folder: Path | None = None,
        ends: tuple[int, ...] = (),
    ) -> None:
        self.soup, self.home, self.ends = soup, home, ends
        self._module, self._tokenizer, self._folder = module, tokenizer, folder

    @property
    def module(self) -> PreTrainedModel:
        return _had(self._module, "poured into a module")

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return _had(self._tokenizer, "given a tokenizer")

    @property
    def folder(self) -> Path:
        return _had(self._folder, "written to a folder")


T = TypeVar("T")


def _had(part: T | None, what: str) -> T:
    if part is None:
        raise LookupError(f"this soup was not {what}: its evaluator wants another form")
    return part


class LiveModel:
    """One live module that soups are poured into. It is loaded at the first soup that somebody evaluates."""

    def __init__(self, pool: CandidatePool) -> None:
        self._pool = pool
        self._settings: ModuleSettings | None = None
        self._loaded: tuple[PreTrainedModel, Pourable] | None = None
        self._served: ServedModel | None = None

    def serve(self, settings: ModuleSettings, recipe: Recipe) -> ServedModel:
        """The soup, poured. Evaluators that want the module alike (device, dtype) share it; else it is loaded anew."""
        if self._loaded is None or settings != self._settings:
            self._loaded = self._served = None  # two modules at once might not fit
            self._loaded, self._settings = self._load(settings), settings
        if self._served is None or self._served.soup != recipe.fingerprint:
            self._served = None
            module, live = self._loaded
            live.pour(recipe)
            tokenizer, ends = self.tokenizer(settings, recipe), self._pool.ends(recipe)
            if ends:  # for whoever generates with the module's own config
                module.generation_config.eos_token_id = list(ends)
            self._served = ServedModel(
                recipe.fingerprint, self._pool.home, module=module, tokenizer=tokenizer, ends=ends
            )
        return self._served

    def tokenizer(self, settings: ModuleSettings, recipe: Recipe) -> PreTrainedTokenizerBase:
        """The soup's tokenizer."""
        from souping.evaluate.engines.transformers import load_tokenizer

        return load_tokenizer(self._pool.tokenizer_folder(recipe), settings.trust_remote_code)

    def _load(self, settings: ModuleSettings) -> tuple[PreTrainedModel, Pourable]:
        from souping.evaluate.engines.transformers import load_module

        module = load_module(self._pool.home, settings)
        return module, self._pool.live(module)


class ScratchCheckpoint:
    """One soup as a folder, in shared memory where it fits; the next soup takes its place, `close` removes it.

    What a killed run left there is removed before the next soup is written.
    """

    def __init__(self, pool: CandidatePool) -> None:
        self._pool = pool
        self._root: Path | None = None
        self._lock: IO[str] | None = None
        self._served = ""

    def serve(self, recipe: Recipe) -> ServedModel:
        """The soup's folder: a temporary one, or a candidate's own where nothing in it decodes by itself."""
        from souping.evaluate.decoding import wishes

        own, ends = self._pool.own_folder(recipe), self._pool.ends(recipe)
        if own is None or wishes(own):
            own = self._made(recipe, own, ends)
        return ServedModel(recipe.fingerprint, self._pool.home, folder=own, ends=ends)

    def _made(self, recipe: Recipe, own: Path | None, ends: tuple[int, ...]) -> Path:
        """The soup written, or a view of a candidate's own folder, with a generation_config that holds ids alone."""
        if self._root is None or self._served != recipe.fingerprint:
            self.close()
            above = (SHARED_MEMORY, Path(tempfile.gettempdir()))
            sweep(lock.parent for place in above for lock in place.glob(f"{PREFIX}*/{LOCK}"))
            size = self._pool.soup_bytes if own is None else 0
            place = scratch_place(size)
            check_space(place, size)
            self._root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
            self._lock = hold(self._root)
            folder = self._root / recipe.id
            if own is not None:
                _view(own, folder)
            elif not (self._pool.write(recipe, folder) / "config.json").is_file():
                raise UserError("an adapter alone cannot be evaluated as a folder: set merge.adapters=merge")
            from souping.evaluate.decoding import write_neutral

            write_neutral(folder, own or folder, ends)
            self._served = recipe.fingerprint
        return self._root / recipe.id

    def close(self) -> None:
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
        self._root, self._lock, self._served = None, None, ""


def _view(folder: Path, view: Path) -> None:
    """A folder whose entries are links to those of another, but for its generation_config."""
    view.mkdir()
    for path in folder.iterdir():
        if path.name != "generation_config.json":
            (view / path.name).symlink_to(path.resolve())


class LazyModel(Served):
    """Soup that is poured or written only when it is asked for, by an engine that knows which it needs."""

    def __init__(
        self, pool: CandidatePool, live: LiveModel, scratch: ScratchCheckpoint, settings: ModuleSettings, recipe: Recipe
    ) -> None:
        self.soup, self.home, self.ends = recipe.fingerprint, pool.home, pool.ends(recipe)
        self._live, self._scratch, self._settings, self._recipe = live, scratch, settings, recipe

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._live.tokenizer(self._settings, self._recipe)

    @property
    def module(self) -> PreTrainedModel:
        """The live module with the soup in it."""
        return self._live.serve(self._settings, self._recipe).module

    @property
    def folder(self) -> Path:
        """The soup as a complete folder."""
        return self._scratch.serve(self._recipe).folder


def scratch_place(size: int) -> Path:
    """Where `size` bytes of a passing soup go: shared memory if half of what is free there holds them, else the
    temporary folder."""
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size
    return SHARED_MEMORY if roomy else Path(tempfile.gettempdir())


def check_space(place: Path, size: int) -> None:
    """Refuse, before it is written, a passing soup that its place cannot hold."""
    free = shutil.disk_usage(place).free
    if free < size:
        raise UserError(f"{place} has {free / 1e9:.1f} GB free, a soup takes {size / 1e9:.1f}: set TMPDIR")
