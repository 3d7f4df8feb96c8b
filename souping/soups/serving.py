"""Soups as evaluators want them: loaded into one live module, as a complete folder, or in chunks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from souping.checkpoints.end_tokens import eos_token_ids
from souping.checkpoints.folder import has_weights
from souping.core.folders import LOCK_FILE, hold_folder, remove_abandoned
from souping.core.protocols import (
    Evaluator,
    Hosting,
    LoadedModel,
    ModuleSettings,
    SoupAdapter,
    WeightSamples,
    WeightStream,
)
from souping.core.system import SHARED_MEMORY
from souping.core.types import Recipe, UserError
from souping.merge import CandidatePool, LoadableModel
from souping.merge.loaded_weights import LoadedWeights, is_average, sample_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WriteSoup = Callable[[Recipe, Path], object]
STORED_SOUP_PREFIX = "souping-soup-"


class SoupServer:
    """Makes the soups of a pool ready for evaluators, one at a time."""

    def __init__(self, pool: CandidatePool) -> None:
        self._pool = pool
        self._weights = LoadedWeights(pool.stored_values)
        self._module = SharedModule(pool, self._weights)
        self._scratch = ScratchFolder(pool)

    def serve(self, evaluator: Evaluator, recipe: Recipe) -> LoadedModel:
        """A soup in the form that an evaluator takes. The soup before it can no longer be used."""
        hosting = evaluator.hosting
        model = LoadedSoup(self._pool, self._module, self._scratch, self._weights, hosting, recipe)
        form = hosting.model_form
        # The soup is made here, by reading the property, and not on demand: evaluation is timed without it. Chunks are
        # made as they are taken.
        if form == "module":
            _ = model.module
        # `check_adapters` has refused evaluators that take no adapters.
        elif self._pool.adapter_shape:
            _ = model.adapter
        # A candidate has no chunks (`stream`): it is loaded from its folder.
        elif form == "folder" or model.stream is None:
            _ = model.folder
        return model

    @property
    def unchecked_weights(self) -> Sequence[str]:
        return self._weights.not_checked

    def close(self) -> None:
        self._scratch.close()


class LoadedSoup(LoadedModel):
    """Soup that is loaded into a module, or written as a folder, when the property is first read."""

    def __init__(
        self,
        pool: CandidatePool,
        module: SharedModule,
        scratch: ScratchFolder,
        weights: LoadedWeights,
        hosting: Hosting,
        recipe: Recipe,
    ) -> None:
        self.soup = recipe.fingerprint
        self.eos_token_ids = pool.eos_token_ids(recipe)
        self._pool = pool
        self._module = module
        self._scratch = scratch
        self._weights = weights
        self._hosting = hosting
        self._settings = hosting.module_settings()
        self._recipe = recipe

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from souping.evaluate.engines.transformers import load_tokenizer

        return load_tokenizer(
            self._pool.tokenizer_folder(self._recipe), self._settings.trust_remote_code
        )

    @cached_property
    def module(self) -> PreTrainedModel:
        return self._module.load_soup(self._settings, self._recipe)

    @cached_property
    def folder(self) -> Path:
        return self._scratch.write(self._recipe)

    @cached_property
    def stream(self) -> WeightStream | None:
        # A candidate is read from its own folder.
        if self._pool.candidate_folder(self._recipe):
            return None
        return self._pool.stream(self._recipe)

    @cached_property
    def adapter(self) -> SoupAdapter | None:
        """The soup as an adapter's folder, None if the candidates are no adapters that are kept."""
        shape = self._pool.adapter_shape
        if shape is None:
            return None
        place = None
        if self._hosting.host is not None and self._hosting.host.url is not None:
            # Memory of this machine may be hidden from a server in a container, or on another machine.
            place = Path(tempfile.gettempdir())
        write = partial(write_adapter, self._pool)
        return SoupAdapter(folder=self._scratch.write(self._recipe, write, place), shape=shape)

    @property
    def ingredient_folder(self) -> Path | None:
        """Folder of the first ingredient, None if the ingredient cannot be loaded from a folder as it is."""
        ingredient = self._pool.recipe({self._recipe.ingredients[0]: 1.0})
        if not self._pool.candidate_folder(ingredient):
            return None
        return self._scratch.write(ingredient)

    @property
    def half(self) -> LoadedModel | None:
        half = half_of(self._pool, self._recipe)
        if half is None or self._recipe.weights != (1.0,):
            return None
        return LoadedSoup(
            self._pool, self._module, self._scratch, self._weights, self._hosting, half
        )

    def check_weights(self, samples: WeightSamples) -> None:
        stored = self._pool.candidate_folder(self._recipe) is not None
        self._weights.check(self._recipe, samples, stored)


def half_of(pool: CandidatePool, recipe: Recipe) -> Recipe | None:
    """Half of the recipe's first ingredient; None if the check of loaded weights cannot tell what that has to be."""
    half = pool.recipe({recipe.ingredients[0]: 0.5})
    return half if is_average(half) else None


class SharedModule:
    """One live module, loaded for the first soup, that all soups are loaded into."""

    def __init__(self, pool: CandidatePool, weights: LoadedWeights) -> None:
        self._pool = pool
        self._weights = weights
        self._settings: ModuleSettings | None = None
        # The module, and what loads soups into it.
        self._loaded: tuple[PreTrainedModel, LoadableModel] | None = None
        # End tokens of the model's class, if no file names any.
        self._class_ends: int | list[int] | None = None
        # Fingerprint of the soup in the module; empty while there is none, or half of one.
        self._soup = ""

    def load_soup(self, settings: ModuleSettings, recipe: Recipe) -> PreTrainedModel:
        """The module with this soup in it. A new module is loaded for an evaluator with another device or dtype."""
        if self._loaded is None or settings != self._settings:
            self._loaded = self._load(settings)
        module, live = self._loaded
        if self._soup != recipe.fingerprint:
            self._soup = ""
            live.load_soup(recipe)
            self._check(module, recipe)
            # For evaluators that generate with the module's own config.
            ends = list(self._pool.eos_token_ids(recipe))
            module.generation_config.eos_token_id = ends or self._class_ends
            self._soup = recipe.fingerprint
        return module

    def _load(self, settings: ModuleSettings) -> tuple[PreTrainedModel, LoadableModel]:
        """(a new module with the weights that transformers finds, what loads soups into it)"""
        from souping.evaluate.engines.transformers import load_module

        # Frees the old module first: two at once might not fit.
        self._loaded = None
        self._soup = ""
        folder = self._pool.architecture_folder
        module = load_module(folder, settings)
        self._settings = settings
        self._class_ends = None
        if not eos_token_ids(folder):
            self._class_ends = module.generation_config.eos_token_id
        live = self._pool.live(module)
        self._check_loading(module, live, folder)
        return module, live

    def _check_loading(
        self, module: PreTrainedModel, live: LoadableModel, architecture: Path
    ) -> None:
        """Load half of the first candidate, and compare it with the whole (UserError).

        If its folder is the architecture's, transformers itself has loaded the whole.
        """
        first = self._pool.recipe({self._pool.names[0]: 1.0})
        if self._pool.candidate_folder(first) != architecture or not has_weights(architecture):
            live.load_soup(first)
        self._check(module, first)
        half = half_of(self._pool, first)
        if half is not None:
            live.load_soup(half)
            self._check(module, half)

    def _check(self, module: PreTrainedModel, recipe: Recipe) -> None:
        stored = self._pool.candidate_folder(recipe) is not None
        self._weights.check(recipe, sample_weights(module.state_dict().items()), stored)


class ScratchFolder:
    """One soup as a folder, in shared memory if it fits there. The next soup takes its place, `close` removes it.

    What a killed run left is removed before the next soup is written.
    """

    def __init__(self, pool: CandidatePool) -> None:
        self._pool = pool
        # The temporary folder, the lock by which other processes leave it alone, and its soup's fingerprint and place.
        self._root: Path | None = None
        self._lock: IO[str] | None = None
        self._soup: tuple[str, Path | None] = ("", None)

    def write(
        self, recipe: Recipe, write: WriteSoup | None = None, place: Path | None = None
    ) -> Path:
        """The soup's folder: a temporary one, or a candidate's own if its generation_config holds nothing but ids.

        `write` writes the folder, by default as evaluators need it (`write_soup`); `place` is where the folder has to
        be.
        """
        from souping.evaluate.templates import generation_overrides

        if self._root is not None and self._soup == (recipe.fingerprint, place):
            return self._root / recipe.id
        candidate = self._pool.candidate_folder(recipe)
        if candidate is not None and not generation_overrides(candidate):
            return candidate
        # A candidate is written as links.
        size = self._pool.soup_bytes if candidate is None else 0
        folder = self._make_root(size, place or scratch_place(size)) / recipe.id
        (write or partial(write_soup, self._pool))(recipe, folder)
        self._soup = (recipe.fingerprint, place)
        return folder

    def _make_root(self, size: int, place: Path) -> Path:
        """A new temporary folder for a soup of `size` bytes in `place`; the one before it is removed.

        Raises:
            UserError: there is no space.
        """
        self.close()
        # What killed runs left.
        for parent in (SHARED_MEMORY, Path(tempfile.gettempdir())):
            locks = parent.glob(f"{STORED_SOUP_PREFIX}*/{LOCK_FILE}")
            remove_abandoned(lock.parent for lock in locks)
        check_space(place, size)
        self._root = Path(tempfile.mkdtemp(prefix=STORED_SOUP_PREFIX, dir=place))
        self._lock = hold_folder(self._root)
        return self._root

    def close(self) -> None:
        """Remove the folder, and release its lock."""
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
        self._root = None
        self._lock = None
        self._soup = ("", None)


def write_adapter(pool: CandidatePool, recipe: Recipe, folder: Path) -> None:
    """Write a soup as an adapter, with the config of its base, from which evaluators read the length of the context."""
    pool.write(recipe, folder)
    shutil.copyfile(pool.architecture_folder / "config.json", folder / "config.json")


def write_soup(pool: CandidatePool, recipe: Recipe, folder: Path) -> None:
    """Write a soup for evaluators; a candidate as links to its files. Its generation_config has nothing but ids."""
    from souping.evaluate.templates import write_neutral

    candidate = pool.candidate_folder(recipe)
    if candidate is not None:
        _link(candidate, folder)
    elif not (pool.write(recipe, folder) / "config.json").is_file():
        raise UserError(
            "neither an adapter alone nor a trainer's layout can be evaluated as a folder: set "
            "merge.adapters=merge, or merge.format=hf"
        )
    write_neutral(folder, candidate or folder, pool.eos_token_ids(recipe))


def _link(folder: Path, copy: Path) -> None:
    """Make a folder of links to everything in another but its generation_config."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.name != "generation_config.json":
            (copy / path.name).symlink_to(path.resolve())


def scratch_place(size: int) -> Path:
    """Where a temporary soup of `size` bytes goes: shared memory if half of its free space is enough, else the
    temporary folder."""
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size:
        return SHARED_MEMORY
    return Path(tempfile.gettempdir())


def check_space(place: Path, size: int) -> None:
    """Refuse a temporary soup that its place cannot hold, before it is written."""
    free = shutil.disk_usage(place).free
    if free < size:
        raise UserError(
            f"{place} has {free / 1e9:.1f} GB free, a soup takes {size / 1e9:.1f}: set TMPDIR"
        )
