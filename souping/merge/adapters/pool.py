"""Pool of adapters over one base."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from souping.checkpoints.checkpoint import end_tokens, fingerprint_of, inside, small
from souping.checkpoints.compatibility import check_tokenizer
from souping.checkpoints.dtypes import TORCH_NAMES, size_of
from souping.checkpoints.header import Tensor
from souping.checkpoints.lora import CONFIG, WEIGHTS, Adapter
from souping.checkpoints.pool import largest_bytes, measured
from souping.core.files import staged, write_files
from souping.core.merge_protocols import CandidatePool, MergeBackend, SoupPlan
from souping.core.protocols import Progress
from souping.core.text import shown
from souping.core.types import Recipe, UserError
from souping.merge.adapters.base import (
    Site,
    check_settings,
    compare_with_base,
    find_base,
    note_base,
    note_targets,
    sites,
)
from souping.merge.adapters.factors import FileReader, Guard, Read, Share
from souping.merge.adapters.live import AdapterLive
from souping.merge.adapters.writer import FULL, base_plan, config_text, refuse_shared, write_model, write_weights
from souping.merge.kernels.reference import Raw
from souping.merge.live import LiveModule, WeightFiles
from souping.merge.plan import base_name, carried
from souping.merge.writer import companion_files, recipe_text, with_extra

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AdapterPlan(SoupPlan):
    """Recipe over adapters that were opened: `carrier` is the one whose tokenizer the soup gets, if it has one."""

    recipe: Recipe
    carrier: str
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        parts = zip(self.recipe.weights, self.recipe.ingredients, strict=True)
        what = "merged into a full model" if _merged(self.recipe) else "kept an adapter"
        notes = "".join(f"\nnote: {note}" for note in self.notes)
        weights = " + ".join(f"{weight:.6g} x {name}" for weight, name in parts)
        return f"soup {self.recipe.id} of adapters: {weights}\n{what}, {self.recipe.dtype}{notes}"


class AdapterPool(CandidatePool):
    """Adapters and their base, opened (headers only) and checked against each other.

    `merge` holds the settings of the merge group. `fingerprints` cover each adapter's weights, config and tokenizer and
    the base's content.
    """

    def __init__(
        self, folders: Mapping[str, Path], merge: MergeBackend, cache: MutableMapping[str, str] | None = None
    ) -> None:
        """Open and check.

        Raises:
            UserError: an adapter is broken or no plain LoRA, they have no common base, or do not fit it, or a merge
                setting makes no sense for adapters.
        """
        check_settings(merge)
        self._merge = merge
        self.adapters = {name: Adapter.open(folder, merge.allow_pickle) for name, folder in folders.items()}
        self.base = find_base(self.adapters, merge.base, merge.allow_pickle)
        self.sites = sites(self.base, self.adapters)
        if merge.adapters == "merge":
            refuse_shared(self.sites, dict.fromkeys(self.sites, ()))
        self._warnings = [*note_base(self.adapters, self.base), *compare_with_base(self.adapters, self.base)]
        self._warnings += note_targets(self.adapters)
        self.base_fingerprint = fingerprint_of(self.base, cache)
        self._fingerprints = {n: a.fingerprint(self.base_fingerprint, cache) for n, a in self.adapters.items()}
        self._ends = end_tokens(self.base.folder)
        self._folders, self._base_name = dict(folders), base_name(folders)
        self._opened = {**{n: a.checkpoint for n, a in self.adapters.items()}, self._base_name: self.base}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.adapters)

    @property
    def warnings(self) -> Sequence[str]:
        return self._warnings

    @property
    def fingerprints(self) -> Mapping[str, str]:
        return self._fingerprints

    @property
    def seen(self) -> Mapping[str, Path]:
        adapters = {self._fingerprints[name]: folder for name, folder in self._folders.items()}
        return {self.base_fingerprint: self.base.folder} | adapters

    @property
    def home(self) -> Path:
        """The base model."""
        return self.base.folder

    def check_tokenizers(self) -> None:
        for name, adapter in self.adapters.items():
            check_tokenizer(name, self._tokenizer_of(adapter))

    def tokenizer_folder(self, recipe: Recipe) -> Path:
        """Where the soup's tokenizer comes from: the carrying adapter, or the base where that has none."""
        return self._tokenizer_of(self.adapters[self._carrier(recipe)])

    def ends(self, recipe: Recipe) -> tuple[int, ...]:
        """Those of the base: adapters bring none."""
        return self._ends

    def _tokenizer_of(self, adapter: Adapter) -> Path:
        return adapter.folder if adapter.has_tokenizer else self.base.folder

    @property
    def soup_bytes(self) -> int:
        """The base's weights in the soup's dtype, and the files beside them."""
        return largest_bytes([measured("base", self.base)], self._merge.dtype) + self.base.side_bytes

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        chosen = [name for name in self.adapters if weights.get(name)]
        merged = self._merge.adapters == "merge"
        return Recipe(
            ingredients=tuple(chosen),
            fingerprints=tuple(self._fingerprints[name] for name in chosen),
            weights=tuple(float(weights[name]) for name in chosen),
            dtype=self._merge.dtype or (self.base.dtype if merged else "float32"),
            settings={"adapters": self._merge.adapters, "base": self.base_fingerprint},
        )

    def plan(self, recipe: Recipe) -> AdapterPlan:
        """Raises UserError for a recipe without ingredients, or with one that is not in the pool."""
        unknown = [name for name in recipe.ingredients if name not in self.adapters]
        if unknown or not recipe.ingredients:
            what = f"ingredient {unknown[0]} is not in the pool" if unknown else "the recipe has no ingredient"
            raise UserError(f"{what}: the adapters are {', '.join(self.adapters)}")
        return AdapterPlan(recipe, self._carrier(recipe), tuple(self._warnings))

    def write(
        self,
        recipe: Recipe,
        out: Path,
        *,
        extra_files: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """The soup as an adapter folder, or with `merge.adapters=merge` a full model; whole or not at all.

        Raises:
            UserError: `out` is there already, a file has changed or is broken, a value is not finite, or the disk is
                full.
        """
        plan, guard = self.plan(recipe), Guard(self._opened, self._merge.nonfinite)
        with FileReader(self._opened) as read, staged(out) as stage:
            files = (self._write_model if _merged(recipe) else self._write_adapter)(plan, stage, read, guard, progress)
            files |= _side(self.adapters[plan.carrier])
            write_files(stage, with_extra(files, [path.name for path in stage.iterdir()], extra_files))
            self._check_unchanged(recipe)
        return Path(out)

    def _write_adapter(
        self, plan: AdapterPlan, stage: Path, read: Read, guard: Guard, progress: Progress | None
    ) -> dict[str, str | bytes]:
        shares = self.shares(plan.recipe)
        write_weights(stage / WEIGHTS, shares, TORCH_NAMES[plan.recipe.dtype], read, guard, progress)
        used = {name: self.adapters[name] for name in plan.recipe.ingredients}
        text = recipe_text(plan.recipe, plan.carrier, self._merge.nonfinite)
        return {CONFIG: config_text(shares, used, self.base), "recipe.json": text}

    def _write_model(
        self, plan: AdapterPlan, stage: Path, read: Read, guard: Guard, progress: Progress | None
    ) -> dict[str, str | bytes]:
        size, nonfinite = self._merge.max_shard_size, self._merge.nonfinite
        full = base_plan(plan.recipe, self._base_name, self.base, size, nonfinite)
        write_model(full, stage, self.sites, self.shares(plan.recipe), read, guard, progress)
        text = recipe_text(plan.recipe, plan.carrier, nonfinite, full.max_shard_size)
        return {**companion_files(full), "recipe.json": text}

    def live(self, module: torch.nn.Module) -> AdapterLive:
        """The base's live module (loaded from `home`), ready to be poured into."""
        if self._merge.adapters == "merge" and self._merge.dtype not in (None, self.base.dtype):
            alone = Recipe(ingredients=("base",), fingerprints=("",), weights=(1.0,), dtype=str(self._merge.dtype))
            LiveModule({"base": self.base}, module, nonfinite=self._merge.nonfinite).pour(alone)
        files = WeightFiles(self._merge.resident)
        return AdapterLive(
            module,
            self.sites,
            base=self._base_name,
            read=lambda name, tensor, start, count: _row(files, self._opened[name].folder, tensor, start, count),
            guard=Guard(self._opened, self._merge.nonfinite),
            shares_of=self._unchanged_shares,
            factor_dtype=lambda recipe: FULL if _merged(recipe) else TORCH_NAMES[recipe.dtype],
            stored=lambda site, recipe: _stored(site, recipe) if _merged(recipe) else None,
        )

    def _check_unchanged(self, recipe: Recipe) -> None:
        for name in (*recipe.ingredients, self._base_name):
            self._opened[name].check_unchanged()

    def _unchanged_shares(self, recipe: Recipe) -> dict[str, list[Share]]:
        self._check_unchanged(recipe)
        return self.shares(recipe)

    def shares(self, recipe: Recipe) -> dict[str, list[Share]]:
        """{module: [(adapter, part, weight)]} in the recipe's order; weights of zero are dropped by the recipe."""
        shares: dict[str, list[Share]] = {}
        for name, weight in zip(recipe.ingredients, recipe.weights, strict=True):
            for module, part in self.adapters[name].parts.items():
                shares.setdefault(module, []).append((name, part, weight))
        return shares

    def close(self) -> None:
        """Close the backend, as a pool of full models does."""
        self._merge.close()

    def _carrier(self, recipe: Recipe) -> str:
        return carried(self._merge.carry, recipe) or recipe.ingredients[0]


def _merged(recipe: Recipe) -> bool:
    return recipe.settings.get("adapters") == "merge"


def _stored(site: Site, recipe: Recipe) -> str:
    return TORCH_NAMES.get(recipe.dtype) or site.tensor.dtype


def _row(files: WeightFiles, folder: Path, tensor: Tensor, start: int, count: int) -> Raw:
    size = size_of(tensor.dtype)
    row = files.row(folder / tensor.file, tensor.offset + start * size, count * size)
    if len(row) != count * size:
        raise UserError(f"{folder / tensor.file}, tensor {shown(tensor.name)}: the file ends early")
    return row


def _side(adapter: Adapter) -> dict[str, bytes]:
    """The adapter's own tokenizer and chat template, where it has a tokenizer."""
    names = adapter.checkpoint.side if adapter.has_tokenizer else ()
    return {name: small(inside(adapter.folder, name)) for name in names}
