"""Pool of adapters over one base."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from souping.checkpoints.checkpoint import eos_token_ids, fingerprint_of, inside, small
from souping.checkpoints.compatibility import check_tokenizer
from souping.checkpoints.dtypes import TORCH_NAMES
from souping.checkpoints.lora import CONFIG, WEIGHTS, Adapter
from souping.checkpoints.pool import largest_bytes, measured
from souping.core.files import staged, write_files
from souping.core.protocols import Progress
from souping.core.text import shown
from souping.core.types import Recipe, UserError
from souping.merge import CandidatePool, MergeBackend, Pourable, SoupPlan
from souping.merge.adapters.base import (
    Site,
    TensorReader,
    blocks_of,
    check_settings,
    compare_with_base,
    find_base,
    note_base,
    note_targets,
    sites,
)
from souping.merge.adapters.soup import (
    FULL,
    DeviceProduct,
    Product,
    Share,
    base_plan,
    config_text,
    product,
    refuse_shared,
    write_model,
    write_weights,
)
from souping.merge.gpu import torch_dtype
from souping.merge.live import LiveModule
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
            refuse_shared(self.sites, self.sites)
        self._warnings = [*note_base(self.adapters, self.base), *compare_with_base(self.adapters, self.base)]
        self._warnings += note_targets(self.adapters)
        self.base_fingerprint = fingerprint_of(self.base, cache)
        self._fingerprints = {n: a.fingerprint(self.base_fingerprint, cache) for n, a in self.adapters.items()}
        self._eos_token_ids = eos_token_ids(self.base.folder)
        self._folders, self.base_name = dict(folders), base_name(folders)
        self._opened = {**{n: a.checkpoint for n, a in self.adapters.items()}, self.base_name: self.base}

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
    def known_folders(self) -> Mapping[str, Path]:
        adapters = {self._fingerprints[name]: folder for name, folder in self._folders.items()}
        return {self.base_fingerprint: self.base.folder} | adapters

    @property
    def architecture_folder(self) -> Path:
        """The base model."""
        return self.base.folder

    def check_tokenizers(self) -> None:
        for name, adapter in self.adapters.items():
            check_tokenizer(name, self._tokenizer_of(adapter))

    def tokenizer_folder(self, recipe: Recipe) -> Path:
        """The folder of the soup's tokenizer: the carrying adapter, or the base if that has none."""
        return self._tokenizer_of(self.adapters[self._carrier(recipe)])

    def eos_token_ids(self, recipe: Recipe) -> tuple[int, ...]:
        """Those of the base: adapters have none."""
        return self._eos_token_ids

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
        plan = self.plan(recipe)
        with staged(out) as stage:
            files = self._write_weights(plan, stage, progress) | _side(self.adapters[plan.carrier])
            write_files(stage, with_extra(files, [path.name for path in stage.iterdir()], extra_files))
            self.check_unchanged(recipe)
        return Path(out)

    def _write_weights(self, plan: AdapterPlan, stage: Path, progress: Progress | None) -> dict[str, str | bytes]:
        """Write the weights; returns the other files of the folder."""
        recipe, nonfinite, reader = plan.recipe, self._merge.nonfinite, self.reader()
        shares = self.shares(recipe)
        if _merged(recipe):
            full = base_plan(recipe, self.base_name, self.base, self._merge.max_shard_size, nonfinite)
            write_model(full, stage, self.sites, shares, reader, progress)
            text = recipe_text(recipe, plan.carrier, nonfinite, full.max_shard_size)
            return {**companion_files(full), "recipe.json": text}
        write_weights(stage / WEIGHTS, shares, TORCH_NAMES[recipe.dtype], reader, progress)
        used = {name: self.adapters[name] for name in recipe.ingredients}
        text = recipe_text(recipe, plan.carrier, nonfinite)
        return {CONFIG: config_text(shares, used, self.base), "recipe.json": text}

    def live(self, module: torch.nn.Module) -> AdapterLive:
        """The base's live module (loaded from `architecture_folder`), ready to be poured into."""
        if self._merge.adapters == "merge" and self._merge.dtype not in (None, self.base.dtype):
            alone = Recipe(ingredients=("base",), fingerprints=("",), weights=(1.0,), dtype=str(self._merge.dtype))
            LiveModule({"base": self.base}, module, nonfinite=self._merge.nonfinite).pour(alone)
        return AdapterLive(self, module)

    def reader(self, resident: bool = False) -> TensorReader:
        """A reader of the adapters and the base; a `resident` one may keep what it read, by `merge.resident`."""
        return TensorReader(self._opened, self._merge.nonfinite, resident and self._merge.resident == "cpu")

    def check_unchanged(self, recipe: Recipe) -> None:
        """Raises UserError if a file of the recipe's adapters or of the base is not the one that was opened."""
        for name in (*recipe.ingredients, self.base_name):
            self._opened[name].check_unchanged()

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


def _side(adapter: Adapter) -> dict[str, bytes]:
    """The adapter's own tokenizer and chat template, if it has a tokenizer."""
    names = adapter.checkpoint.side if adapter.has_tokenizer else ()
    return {name: small(inside(adapter.folder, name)) for name in names}


class AdapterLive(Pourable):
    """Live base model that `pour` makes base + sum_i w_i s_i B_i A_i of a recipe, again and again.

    Only the weights that some adapter of the pool changes are touched.
    """

    def __init__(self, pool: AdapterPool, module: torch.nn.Module) -> None:
        self._pool, self._reader = pool, pool.reader(resident=True)
        self._owners = {name: _owner(module, site) for name, site in pool.sites.items()}
        _untie(module, [site for site in pool.sites.values() if site.shared])
        self._changed: set[str] = set()

    def pour(self, recipe: Recipe) -> None:
        """Put the recipe's soup into the module, in place. Modules that only other adapters change get the base's
        weight back.

        Raises:
            UserError: a file has changed, or a value is not finite (the module then holds a part of the soup).
        """
        self._pool.check_unchanged(recipe)
        shares = self._pool.shares(recipe)
        for name in sorted(self._changed | set(shares)):
            self._fill(name, shares.get(name, ()), recipe)
        self._changed = set(shares)

    def _fill(self, name: str, shares: Sequence[Share], recipe: Recipe) -> None:
        """One module's weight. A merged soup's is rounded to its dtype first, as the written model's is."""
        import torch

        site, target = self._pool.sites[name], self._owners[name].get_parameter("weight")
        merged = _merged(recipe)
        made: Product | DeviceProduct | None = None
        if shares:
            made = product(self._reader, shares, FULL if merged else TORCH_NAMES[recipe.dtype], site.transposed)
            made = DeviceProduct(made, target.device) if target.device.type == "cuda" else made
        with torch.no_grad():
            for first, count in blocks_of(site.tensor.shape):
                base = self._reader.rows(self._pool.base_name, site.tensor, first, count)
                sums = torch.tensor(base) if made is None else torch.as_tensor(made.added(base, first))
                if merged:
                    sums = sums.to(torch_dtype(TORCH_NAMES.get(recipe.dtype) or site.tensor.dtype))
                self._reader.check_soup(sums.float().cpu().numpy(), site.tensor.name)
                target[first : first + count].copy_(sums)


def _owner(module: torch.nn.Module, site: Site) -> torch.nn.Module:
    """The live submodule that owns the adapted weight.

    Raises:
        UserError: the module has none of that name and shape.
    """
    prefix = f"{getattr(module, 'base_model_prefix', '')}."  # transformers'
    for name in (site.module, prefix + site.module, site.module.removeprefix(prefix)):
        with suppress(AttributeError):
            owner = module.get_submodule(name)
            weight = dict(owner.named_parameters(recurse=False)).get("weight")
            if weight is not None and tuple(weight.shape) == site.tensor.shape:
                return owner
    raise UserError(f"the adapters change {shown(site.module)}, which the loaded base model does not have")


def _untie(module: torch.nn.Module, shared: Sequence[Site]) -> None:
    """Give an adapted weight that is tied to another module's its own storage: adapters change one of the two."""
    import torch

    for site in shared:
        owner = _owner(module, site)
        own = owner.get_parameter("weight").detach().clone()
        owner.register_parameter("weight", torch.nn.Parameter(own, requires_grad=False))
