"""Candidates of a run: fetched, opened and checked; recipes of them, and their soups as evaluators want them.

Folders are used as they are; models of the Hub are fetched once cheap checks have passed. A soup reaches an evaluator
poured into one live module, or as a complete folder.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from souping.checkpoints import hub, remote
from souping.checkpoints.archives import is_checkpoint
from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.compatibility import check_tokenizer, preflight
from souping.checkpoints.end_tokens import eos_token_ids
from souping.checkpoints.fingerprints import weights_of
from souping.checkpoints.folder import Like
from souping.checkpoints.header import MAX_RECIPE, small
from souping.checkpoints.layouts import rules_of
from souping.checkpoints.lora import is_adapter, opened, read_settings
from souping.checkpoints.pool import Trajectory
from souping.checkpoints.trajectory import TrainingRun
from souping.core.fields import pick
from souping.core.files import expanded, folder_at, near_folder
from souping.core.folders import LOCK_FILE, hold_folder, remove_abandoned
from souping.core.parsing import read_json
from souping.core.protocols import Evaluator, LoadedModel, ModuleSettings
from souping.core.system import SHARED_MEMORY
from souping.core.types import (
    Candidate,
    Folders,
    Names,
    ProgressCallback,
    Recipe,
    TokenIds,
    UserError,
    frozen,
)
from souping.merge import CandidatePool, MergeBackend, Pourable
from souping.merge.digests import Late, StandIns
from souping.merge.similarity import PoolSimilarity
from souping.pipeline.store import Store, parts_of
from souping.report.progress import Throughput, say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Aside = Callable[[], AbstractContextManager[None]]
"""Makes room on the terminal for another display, such as a download's bar."""
STORED_SOUP_PREFIX = "souping-soup-"


@frozen
class FetchedPool:
    """Candidates in folders here, the first `count` of them the pool's own; the backend with its base model in one."""

    models: tuple[Candidate, ...]
    count: int
    merge: MergeBackend
    notes: Names = ()


class OpenPool:
    """Candidates of a run, opened (headers only) and checked against each other.

    No weight is loaded before the first `serve`: a run that finds all its results in the store loads none, nor torch.
    """

    @classmethod
    def fetch(
        cls,
        candidates: Sequence[Candidate],
        merge: MergeBackend,
        store: Store | None = None,
        hashes: MutableMapping[str, str] | None = None,
        aside: Aside = nullcontext,
        tokenizers: bool = True,
        late: bool = False,
        stream: bool = False,
        more: Sequence[Candidate] = (),
    ) -> OpenPool:
        """Fetch the Hub's models and, unless their weights `stream`, those of buckets, open and check them, then take
        their fingerprints.

        `store` remembers where they are; digests of files are its own, or those of `hashes`. With `late`,
        files without a known digest are hashed by `write_late`, if the backend can do that. `more` are models that can
        be evaluated like the candidates, but are none.

        Raises:
            UserError: a folder is absent or broken, a model cannot be fetched, or the candidates do not fit each other.
        """
        if merge.carry is not None:
            pick(merge.carry, [c.name for c in candidates], "merge.carry")
        here = [from_bucket(c, merge.allow_pickle, stream, aside) for c in (*candidates, *more)]
        fetched = fetch_candidates(here, merge, aside, tokenizers=tokenizers)
        if hashes is None:
            hashes = {} if store is None else store.hashes
        pool = cls(replace(fetched, count=len(candidates)), hashes, store, late)
        pool.take_fingerprints()
        return pool

    def __init__(
        self,
        fetched: FetchedPool,
        hashes: MutableMapping[str, str],
        store: Store | None = None,
        late: bool = False,
    ) -> None:
        """Open every candidate's headers and check them against each other (UserError)."""
        merge = fetched.merge
        self.base = merge.base
        self.folders = {c.name: c.path for c in fetched.models}
        adapters = any(map(is_adapter, self.folders.values()))
        reads_late = late and merge.hashes_while_reading and not adapters
        self._fetched = fetched
        self._hashes = hashes
        self._stand_ins = StandIns(hashes) if reads_late else None
        self._like = Like(like_of(fetched.models), rules_of(merge.names), merge.format == "same")
        used = hashes if self._stand_ins is None else self._stand_ins
        self.merge_pool = merge.open(self.folders, used, self._like)
        self._notes = [*self.merge_pool.warnings, *fetched.notes]
        self._store = store
        self._server = SoupServer(self.merge_pool)

    def take_fingerprints(self) -> None:
        """Hash the candidates, unless that comes late, and let the store remember where they are."""
        if self.models and not self.late:
            self._note(self.merge_pool.known_folders)

    @cached_property
    def models(self) -> tuple[Candidate, ...]:
        """The candidates, then the models that are evaluated like them."""
        prints = self.merge_pool.fingerprints
        return tuple(replace(c, fingerprint=prints[c.name]) for c in self._fetched.models)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return self.models[: self._fetched.count]

    @cached_property
    def late(self) -> bool:
        """Whether `write_late` has to hash files."""
        return self._stand_ins is not None and self._stand_ins.pending

    @cached_property
    def similarity(self) -> PoolSimilarity | None:
        """How similar the weights of the candidates are."""
        candidates = self._fetched.models[: self._fetched.count]
        return self.merge_pool.similarity(tuple(c.name for c in candidates))

    @property
    def warnings(self) -> list[str]:
        copies = _copies({c.name: c.fingerprint for c in self.candidates})
        unrelated = self.similarity.warning if self.similarity else None
        return [*self._notes, *copies, *filter(None, [unrelated])]

    @property
    def names(self) -> Names:
        return tuple(c.name for c in self.candidates)

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of named weights, ingredients in the pool's order."""
        recipe = self.merge_pool.recipe(weights)
        sources = {c.name: c.source for c in self.candidates if c.source and weights.get(c.name)}
        return replace(recipe, sources=sources) if sources else recipe

    def uniform(self, names: Names) -> Recipe:
        return self.recipe({name: 1.0 / len(names) for name in names})

    def eos_token_ids(self, recipe: Recipe) -> TokenIds:
        """Tokens that end the soup's answers."""
        return self.merge_pool.eos_token_ids(recipe)

    def bound(self, evaluator: Evaluator) -> Evaluator:
        """The evaluator with what it takes from the candidates' files."""
        homes = {c.name: c.home for c in self._fetched.models}
        return evaluator.for_pool(self.merge_pool.architecture_folder, homes)

    def serving(self, evaluator: Evaluator) -> Callable[[Recipe], LoadedModel]:
        """Function that makes this pool's soups ready for an evaluator, in its `model_form`."""
        return partial(self._server.serve, evaluator)

    def close(self) -> None:
        """Remove the soup that was last written for an evaluator, and close the merge backend."""
        self._server.close()
        self.merge_pool.close()

    def write_late(
        self,
        recipe: Recipe,
        out: Path,
        files: Callable[[Recipe], Mapping[str, str]],
        progress: ProgressCallback | None = None,
    ) -> tuple[Path, list[str]]:
        """The soup as a folder, with its ingredients hashed as they are read, and notes on their content."""
        from souping.merge.plan import MergePlan
        from souping.merge.writer import write_checkpoint

        plan = self.merge_pool.plan(recipe)
        assert isinstance(plan, MergePlan)
        final = []

        def extra_files(known: Recipe) -> Mapping[str, str]:
            final.append(known)
            return files(known)

        written = write_checkpoint(
            plan, out, progress=progress, late=Late(self._hashes, extra_files)
        )
        prints = dict(zip(final[-1].ingredients, final[-1].fingerprints, strict=True))
        self._note({content: self.folders[name] for name, content in prints.items()})
        return written, _copies(prints)

    def _note(self, seen: Folders) -> None:
        """Note in the store where checkpoints {fingerprint: folder} are, and what they are made of."""
        if self._store is None:
            return
        for content, folder in seen.items():
            self._store.remember_folder(content, folder, self._weights_in(folder), _mixture(folder))

    def _weights_in(self, folder: Path) -> str:
        """Digest of the weights alone."""
        return weights_of(
            opened(folder, self._fetched.merge.allow_pickle, self._like), self._hashes
        )

    def check_runs(self, trajectory: Trajectory) -> None:
        """Refuse training runs that share a checkpoint, by its weights: they are not independent runs (UserError).

        Their first one may be their common start.
        """
        owners: dict[str, TrainingRun] = {}
        for run, models in zip(trajectory.runs, [self.candidates, *trajectory.others], strict=True):
            for model in models[1:] or models:
                owner = owners.setdefault(self._weights_in(model.path), run)
                if owner is not run:
                    raise UserError(
                        f"pool.path: {owner.folder} and {run.folder} share the weights of {model.path.name}: "
                        "give each training run once"
                    )


def like_of(candidates: Iterable[Candidate]) -> Path | None:
    """The folder that sharded candidates have their config and tokenizer from."""
    return next((candidate.like for candidate in candidates if candidate.like is not None), None)


def _mixture(folder: Path) -> str:
    """{fingerprint of an ingredient: weight} as JSON of a folder with a soup's recipe.json; else empty."""
    try:
        parts = parts_of(Recipe.from_dict(read_json(small(folder / "recipe.json", MAX_RECIPE))))
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return ""
    return json.dumps(parts) if all(map(math.isfinite, parts.values())) else ""


def _copies(prints: Mapping[str, str]) -> list[str]:
    first: dict[str, str] = {}
    for name, content in prints.items():
        first.setdefault(content, name)
    pairs = [(first[content], name) for name, content in prints.items() if first[content] != name]
    return [
        f"{a} and {b} hold the same bytes: they are one model under two names" for a, b in pairs
    ]


def free_target(out: Path) -> None:
    """Refuse, before any work, a target that is not empty or cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"out={out} exists and is not an empty folder: choose another, or move it away"
        )
    parent = next(p for p in out.absolute().parents if p.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".souping-", dir=parent))
    except OSError as error:
        raise UserError(
            f"out={out}: cannot write below {parent}: {error.strerror}; choose another place"
        ) from error


# ------------------------------------------------------------ fetching


def fetch_candidates(
    candidates: Sequence[Candidate],
    merge: MergeBackend,
    aside: Aside = nullcontext,
    tokenizers: bool = False,
) -> FetchedPool:
    """The candidates as folders, with notes for the report.

    The Hub's models are fetched; with `tokenizers`, one without a tokenizer is refused before its weights travel.

    Raises:
        UserError: a candidate is neither a folder nor a model that can be fetched, they do not fit each other by their
            headers, or the disk is too small; nothing large was fetched then.
    """
    names = {c.name: name for c in candidates if (name := hub.parse(c.path))}
    for c in candidates:
        if c.name not in names and not is_checkpoint(c.path):
            raise UserError(
                f"candidate {c.name}: {c.path} is not a folder: give the path of a saved Hugging Face model or org/name"
                f"{near_folder(c.path)}"
            )

    like = like_of(candidates)
    if like is not None:
        like = folder_of(str(like), merge.allow_pickle, aside)

    def check(folders: Folders) -> None:
        """Check what headers, configs and tokenizers show of the whole pool, before its weights travel."""
        pool = {c.name: folders.get(c.name, c.path) for c in candidates}
        if not any(is_adapter(folder) for folder in pool.values()):
            lent = Like(like, rules_of(merge.names))
            models = {
                name: Checkpoint.open(folder, merge.allow_pickle, lent)
                for name, folder in pool.items()
            }
            preflight(models, merge.vocab, merge.carry)
            for name, checkpoint in models.items() if tokenizers else ():
                check_tokenizer(name, checkpoint.home)

    fetched: Mapping[str, hub.Fetched] = {}
    if names:
        with aside(), Throughput("download") as report:
            fetched = hub.fetch(names, merge.allow_pickle, check, report)
    here = tuple(
        replace(c, path=fetched[c.name].folder, source=str(fetched[c.name].name), like=like)
        if c.name in fetched
        else replace(c, like=like)
        for c in candidates
    )
    notes = tuple(model.note for model in fetched.values() if model.note)
    merge = with_base(merge, [c.path for c in here], aside)
    return FetchedPool(models=here, count=len(here), merge=merge, notes=notes)


def from_bucket(
    candidate: Candidate, allow_pickle: bool, stream: bool, aside: Aside = nullcontext
) -> Candidate:
    """The candidate in a folder here if it is in a bucket, with its weights unless they `stream`."""
    url = remote.parse(candidate.path)
    if url is None:
        return candidate
    with aside():
        say(f"{url}: {'reading headers' if stream else 'fetching'}")
        return replace(candidate, path=remote.folder_of(url, allow_pickle, not stream), source=url)


def with_base(
    merge: MergeBackend, folders: Sequence[Path], aside: Aside = nullcontext
) -> MergeBackend:
    """The backend with its base model on this disk: `merge.base`, or the one that adapters in `folders` name."""
    base = merge.base
    if base and (url := remote.parse(base)):
        return merge.with_settings(
            {"base": str(remote.folder_of(url, merge.allow_pickle, weights=True))}
        )
    name = hub.parse(base) if base else _base_of_adapters(folders)
    if name is None:
        local = base is not None and base.startswith("~")
        return (
            merge.with_settings({"base": str(expanded(str(base), "merge.base"))})
            if local
            else merge
        )
    try:
        folder = folder_of(name, merge.allow_pickle, aside)
    except UserError as error:
        what = f"merge.base={base}" if base else f"the adapters' base model {name}"
        raise UserError(f"{what} is not a folder here: set merge.base=FOLDER\n{error}") from error
    return merge.with_settings({"base": str(folder)})


def folder_of(
    name: hub.HubName | str, allow_pickle: bool = False, aside: Aside = nullcontext
) -> Path:
    """The folder of one model, which is fetched if the Hub's name is given."""
    if url := remote.parse(str(name)):
        return remote.folder_of(url, allow_pickle)
    parsed = hub.parse(str(name))
    if parsed is None:
        return Path(str(name))
    with aside(), Throughput(f"download of {parsed.name}") as report:
        return hub.fetch_one(parsed, allow_pickle, report).folder


def _base_of_adapters(folders: Sequence[Path]) -> hub.HubName | None:
    """The Hub name of the base that the first adapter was trained on, unless a folder of that name is here."""
    first = next((folder for folder in folders if is_adapter(folder)), None)
    settings = read_settings(first) if first is not None else None
    if settings is None or settings.base is None or folder_at(settings.base) is not None:
        return None
    return hub.parse(f"{settings.base}@{settings.revision or 'main'}")


# ------------------------------------------------------------ serving


class SoupServer:
    """Makes the soups of a pool ready for evaluators, one at a time."""

    def __init__(self, pool: CandidatePool) -> None:
        self._pool = pool
        self._module = SharedModule(pool)
        self._scratch = ScratchFolder(pool)

    def serve(self, evaluator: Evaluator, recipe: Recipe) -> LoadedModel:
        settings = evaluator.hosting.module_settings()
        model = LoadedSoup(self._pool, self._module, self._scratch, settings, recipe)
        # The soup is made here, by reading the property, and not on demand: evaluation is timed without it.
        _ = model.folder if evaluator.hosting.model_form == "folder" else model.module
        return model

    def close(self) -> None:
        self._scratch.close()


class LoadedSoup(LoadedModel):
    """Soup that is poured or written as soon as an evaluator takes the one or the other."""

    def __init__(
        self,
        pool: CandidatePool,
        module: SharedModule,
        scratch: ScratchFolder,
        settings: ModuleSettings,
        recipe: Recipe,
    ) -> None:
        self.soup = recipe.fingerprint
        self.eos_token_ids = pool.eos_token_ids(recipe)
        self._pool = pool
        self._module = module
        self._scratch = scratch
        self._settings = settings
        self._recipe = recipe

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from souping.evaluate.engines.transformers import load_tokenizer

        return load_tokenizer(
            self._pool.tokenizer_folder(self._recipe), self._settings.trust_remote_code
        )

    @cached_property
    def module(self) -> PreTrainedModel:
        return self._module.pour(self._settings, self._recipe)

    @cached_property
    def folder(self) -> Path:
        return self._scratch.write(self._recipe)


class SharedModule:
    """One live module, loaded for the first soup, that all soups are poured into."""

    def __init__(self, pool: CandidatePool) -> None:
        self._pool = pool
        self._settings: ModuleSettings | None = None
        self._loaded: tuple[PreTrainedModel, Pourable] | None = None
        # what the model's class ends at if no file names a token
        self._class_ends: int | list[int] | None = None
        self._soup = ""

    def pour(self, settings: ModuleSettings, recipe: Recipe) -> PreTrainedModel:
        """The module with this soup in it. It is loaded again for an evaluator with another device or dtype."""
        if self._loaded is None or settings != self._settings:
            from souping.evaluate.engines.transformers import load_module

            self._loaded, self._soup = None, ""  # two modules at once might not fit
            folder = self._pool.architecture_folder
            loaded = load_module(folder, settings)
            self._loaded = (loaded, self._pool.live(loaded))
            self._settings = settings
            self._class_ends = (
                None if eos_token_ids(folder) else loaded.generation_config.eos_token_id
            )
        module, live = self._loaded
        if self._soup != recipe.fingerprint:
            self._soup = ""
            live.pour(recipe)
            # for evaluators that generate with the module's own config
            ends = list(self._pool.eos_token_ids(recipe))
            module.generation_config.eos_token_id = ends or self._class_ends
            self._soup = recipe.fingerprint
        return module


class ScratchFolder:
    """One soup as a folder, in shared memory if it fits there. The next soup takes its place, `close` removes it.

    What a killed run left is removed before the next soup is written.
    """

    def __init__(self, pool: CandidatePool) -> None:
        self._pool = pool
        self._root: Path | None = None
        self._lock: IO[str] | None = None
        self._soup = ""

    def write(self, recipe: Recipe) -> Path:
        """The soup's folder: a temporary one, or a candidate's own if its generation_config holds nothing but ids."""
        from souping.evaluate.templates import generation_overrides, write_neutral

        own = self._pool.candidate_folder(recipe)
        if own is not None and not generation_overrides(own):
            return own
        if self._root is None or self._soup != recipe.fingerprint:
            size = self._pool.soup_bytes if own is None else 0
            folder = self._make_root(size) / recipe.id
            if own is not None:
                _link(own, folder)
            elif not (self._pool.write(recipe, folder) / "config.json").is_file():
                raise UserError(
                    "neither an adapter alone nor a trainer's layout can be evaluated as a folder: set "
                    "merge.adapters=merge, or merge.format=hf"
                )
            write_neutral(folder, own or folder, self._pool.eos_token_ids(recipe))
            self._soup = recipe.fingerprint
        assert self._root is not None
        return self._root / recipe.id

    def _make_root(self, size: int) -> Path:
        self.close()
        above = (SHARED_MEMORY, Path(tempfile.gettempdir()))
        remove_abandoned(
            lock.parent
            for place in above
            for lock in place.glob(f"{STORED_SOUP_PREFIX}*/{LOCK_FILE}")
        )
        place = scratch_place(size)
        check_space(place, size)
        self._root = Path(tempfile.mkdtemp(prefix=STORED_SOUP_PREFIX, dir=place))
        self._lock = hold_folder(self._root)
        return self._root

    def close(self) -> None:
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
        self._root = None
        self._lock = None
        self._soup = ""


def _link(folder: Path, copy: Path) -> None:
    """Make a folder of links to everything in another but its generation_config."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.name != "generation_config.json":
            (copy / path.name).symlink_to(path.resolve())


def scratch_place(size: int) -> Path:
    """Where a temporary soup of `size` bytes goes: shared memory if half of what is free there holds it, else the
    temporary folder."""
    fits = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size
    return SHARED_MEMORY if fits else Path(tempfile.gettempdir())


def check_space(place: Path, size: int) -> None:
    """Refuse a temporary soup that its place cannot hold, before it is written."""
    free = shutil.disk_usage(place).free
    if free < size:
        raise UserError(
            f"{place} has {free / 1e9:.1f} GB free, a soup takes {size / 1e9:.1f}: set TMPDIR"
        )
