"""A pool of adapters over one base, with the verbs that the pipeline asks of a merge backend."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from souping.checkpoints.checkpoint import TORCH_NAMES, Checkpoint, fingerprint, inside, small
from souping.checkpoints.compatibility import listed
from souping.checkpoints.header import BITS, Tensor, shown
from souping.checkpoints.lora import CONFIG, WEIGHTS, Adapter, is_adapter
from souping.core.files import staged, write_files
from souping.core.types import Recipe, UserError, Weights
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
from souping.merge.plan import Source
from souping.merge.planner import base_name
from souping.merge.writer import Progress, companion_files


@dataclass(frozen=True)
class AdapterPlan:
    """A recipe over adapters that were opened: `carrier` is the one whose tokenizer the soup gets, if it has one."""

    recipe: Recipe
    carrier: str
    notes: tuple[str, ...] = ()


class AdapterPool:
    """Adapters and their base, opened (headers only) and checked against each other.

    `merge` holds the settings of the merge group. `warnings` are for the report, `fingerprints` cover each adapter's
    weights, config and tokenizer and the base's content, `model_folder` is the base.
    """

    def __init__(self, folders: Mapping[str, Path], merge: Any, cache: MutableMapping[str, str] | None = None) -> None:
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
        self.warnings = [*note_base(self.adapters, self.base), *compare_with_base(self.adapters, self.base)]
        self.warnings += note_targets(self.adapters)
        self.base_fingerprint = fingerprint(self.base.folder, cache, merge.allow_pickle)
        self.fingerprints = {n: a.fingerprint(self.base_fingerprint, cache) for n, a in self.adapters.items()}
        self._base_name = base_name(folders)
        self._opened = {**{n: a.checkpoint for n, a in self.adapters.items()}, self._base_name: self.base}

    @property
    def model_folder(self) -> Path:
        return self.base.folder

    def tokenizer_folder(self, recipe: Recipe) -> Path:
        """Where the soup's tokenizer comes from: the carrying adapter, or the base where that has none."""
        carrier = self.adapters[self._carrier(recipe)]
        return carrier.folder if carrier.has_tokenizer else self.base.folder

    def recipe(
        self,
        ingredients: Sequence[str],
        weights: Weights,
        checkpoints: Mapping[str, Any] | None = None,
        fingerprints: Mapping[str, str] | None = None,
        cache: MutableMapping[str, str] | None = None,
    ) -> Recipe:
        """The recipe of these weights (the last three arguments are a merge backend's; the pool has its own)."""
        merged = self._merge.adapters == "merge"
        return Recipe(
            ingredients=tuple(ingredients),
            fingerprints=tuple(self.fingerprints[name] for name in ingredients),
            weights=tuple(float(weight) for weight in weights),
            dtype=self._merge.dtype or (self.base.dtype if merged else "float32"),
            settings={"adapters": self._merge.adapters, "base": self.base_fingerprint},
        )

    def plan(self, recipe: Recipe, folders: Mapping[str, Path] | None = None) -> AdapterPlan:
        """Raises UserError for a recipe without ingredients, or with one that is not in the pool."""
        unknown = [name for name in recipe.ingredients if name not in self.adapters]
        if unknown or not recipe.ingredients:
            what = f"ingredient {unknown[0]} is not in the pool" if unknown else "the recipe has no ingredient"
            raise UserError(f"{what}: the adapters are {', '.join(self.adapters)}")
        return AdapterPlan(recipe, self._carrier(recipe), tuple(self.warnings))

    def write(
        self, plan: AdapterPlan, out: Path, progress: Any = None, extra_files: Mapping[str, str] | None = None
    ) -> Path:
        """The soup as an adapter folder, or with `merge.adapters=merge` a full model; whole or not at all.

        Raises:
            UserError: `out` is there already, a file has changed or is broken, a value is not finite, or the disk is
                full.
        """
        merged = plan.recipe.settings["adapters"] == "merge"
        guard = Guard(self._opened, self._merge.nonfinite)
        with FileReader(self._opened) as read, staged(out) as stage:
            files = (self._write_model if merged else self._write_adapter)(plan, stage, read, guard, progress)
            files |= _side(self.adapters[plan.carrier])
            for name, text in (extra_files or {}).items():
                if name in files or (stage / name).exists():
                    raise UserError(f"the extra file {name} would replace a file of the model")
                files[name] = text.encode()
            write_files(stage, files)
        return Path(out)

    def _write_adapter(
        self, plan: AdapterPlan, stage: Path, read: Read, guard: Guard, progress: Progress | None
    ) -> dict[str, str | bytes]:
        shares = self.shares(plan.recipe)
        write_weights(stage / WEIGHTS, shares, TORCH_NAMES[plan.recipe.dtype], read, guard, progress)
        used = {name: self.adapters[name] for name in plan.recipe.ingredients}
        return {CONFIG: config_text(shares, used, self.base), "recipe.json": _recipe_text(plan)}

    def _write_model(
        self, plan: AdapterPlan, stage: Path, read: Read, guard: Guard, progress: Progress | None
    ) -> dict[str, str | bytes]:
        size, nonfinite = self._merge.max_shard_size, self._merge.nonfinite
        full = base_plan(plan.recipe, self._base_name, self.base, size, nonfinite)
        write_model(full, stage, self.sites, self.shares(plan.recipe), read, guard, progress)
        return {**companion_files(full), "recipe.json": _recipe_text(plan, max_shard_size=full.max_shard_size)}

    def live(self, checkpoints: Mapping[str, Any], module: Any) -> AdapterLive:
        """The base's live module (of this pool's `model_folder`), ready to be poured into."""
        if self._merge.adapters == "merge" and self._merge.dtype not in (None, self.base.dtype):
            alone = Recipe(ingredients=("base",), fingerprints=("",), weights=(1.0,), dtype=self._merge.dtype)
            LiveModule({"base": self.base}, module, nonfinite=self._merge.nonfinite).pour(alone)
        larder = WeightFiles(self._opened, self._merge.resident)
        return AdapterLive(
            module,
            self.sites,
            base=self._base_name,
            read=lambda name, tensor, start, count: _row(larder, name, self._opened[name], tensor, start, count),
            guard=Guard(self._opened, self._merge.nonfinite),
            shares_of=self.shares,
            factor_dtype=lambda recipe: FULL if _merged(recipe) else TORCH_NAMES[recipe.dtype],
            stored=lambda site, recipe: _stored(site, recipe) if _merged(recipe) else None,
        )

    def shares(self, recipe: Recipe) -> dict[str, list[Share]]:
        """{module: [(adapter, part, weight)]} in the recipe's order; weights of zero are dropped by the recipe."""
        found: dict[str, list[Share]] = {}
        for name, weight in zip(recipe.ingredients, recipe.weights, strict=True):
            for module, part in self.adapters[name].parts.items():
                found.setdefault(module, []).append((name, part, weight))
        return found

    def _carrier(self, recipe: Recipe) -> str:
        carry = self._merge.carry
        return carry if carry in recipe.ingredients else recipe.ingredients[0]


def open_adapters(
    folders: Mapping[str, Path], merge: Any, cache: MutableMapping[str, str] | None = None
) -> AdapterPool | None:
    """The pool of adapters in these folders, or None where none of them is an adapter.

    Raises:
        UserError: adapters and full models are mixed, or as AdapterPool.
    """
    kinds = {name: is_adapter(folder) for name, folder in folders.items()}
    if not any(kinds.values()):
        return None
    full = [name for name, adapter in kinds.items() if not adapter]
    if full:
        lone = [name for name, adapter in kinds.items() if adapter]
        raise UserError(
            f"the pool mixes adapters ({listed(lone)}) and others ({listed(full)}): soup adapters with adapters, or "
            "merge them into full models first"
        )
    return AdapterPool(folders, merge, cache)


def content(folder: Path, base: object, cache: MutableMapping[str, str] | None = None) -> str:
    """The fingerprint of a candidate: of an adapter over the base of fingerprint `base`, or of a full model.

    Raises:
        UserError: as AdapterPool, or as Checkpoint.open.
    """
    return Adapter.open(folder).fingerprint(str(base), cache) if is_adapter(folder) else fingerprint(folder, cache)


def _recipe_text(plan: AdapterPlan, max_shard_size: int | None = None) -> str:
    """recipe.json, with what else decides the bytes of the folder."""
    table = {**plan.recipe.as_dict(), "carried_from": plan.carrier}
    if max_shard_size is not None:
        table["max_shard_size"] = max_shard_size
    return json.dumps(table, indent=2) + "\n"


def _merged(recipe: Recipe) -> bool:
    return recipe.settings.get("adapters") == "merge"


def _stored(site: Site, recipe: Recipe) -> str:
    return TORCH_NAMES.get(recipe.dtype) or site.tensor.dtype


def _row(larder: WeightFiles, name: str, checkpoint: Checkpoint, tensor: Tensor, start: int, count: int) -> Raw:
    offset = tensor.offset + start * BITS[tensor.dtype] // 8
    source = Source(0, checkpoint.files.index(tensor.file), offset, tensor.dtype)
    row = larder.row([name], source, count)
    if len(row) != count * BITS[tensor.dtype] // 8:
        raise UserError(f"{checkpoint.folder / tensor.file}, tensor {shown(tensor.name)}: the file ends early")
    return row


def _side(adapter: Adapter) -> dict[str, bytes]:
    """The adapter's own tokenizer and chat template, where it has a tokenizer."""
    names = adapter.checkpoint.side if adapter.has_tokenizer else ()
    return {name: small(inside(adapter.folder, name)) for name in names}


__all__ = ["AdapterPlan", "AdapterPool", "content", "open_adapters"]
