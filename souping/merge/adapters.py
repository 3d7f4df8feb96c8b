"""Pool of LoRA adapters over one base model, and the live base model that they are added to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from souping.checkpoints.compatibility import check_tokenizer, compare_tokenizers
from souping.checkpoints.end_tokens import GENERATION, eos_token_ids
from souping.checkpoints.fingerprints import Cache, fingerprint_of
from souping.checkpoints.header import TORCH_NAMES, inside, small
from souping.checkpoints.hub import cached_name, parse_name
from souping.checkpoints.lora import ADAPTER_WEIGHTS, CONFIG, FULL_MODEL, Adapter, is_adapter
from souping.checkpoints.views import Float32
from souping.core.folders import staged
from souping.core.protocols import AdapterShape
from souping.core.text import listed, shown
from souping.core.types import FloatArray, Folders, Json, Names, Recipe, TokenIds, UserError
from souping.core.weight_similarity import PoolSimilarity
from souping.merge import (
    CandidatePool,
    Extra,
    LoadableModel,
    OptionalProgress,
    SoupPlan,
    adapter_files,
    factors,
)
from souping.merge.alignment import Alignment, lone_recipe
from souping.merge.backend import MergeBackend, check_adapter_settings
from souping.merge.changes import DORA, FACTORS, Change, Changes, Update, changes_of
from souping.merge.live import LiveModule
from souping.merge.methods import torch_dtype
from souping.merge.parameters import with_targets
from souping.merge.plan import base_name, tokenizer_source
from souping.merge.sites import Site, find_base, sites
from souping.merge.soup_files import (
    RECIPE,
    companion_files,
    recipe_text,
    with_extra,
    write_soup_files,
)
from souping.merge.weight_samples import FEWEST_BLOCKS, update_similarity

if TYPE_CHECKING:
    import torch

UPDATE_ROWS = 8
"""Rows in the middle of an adapter's B that are compared in a module, at most."""


@dataclass(frozen=True)
class AdapterPlan(SoupPlan):
    """Recipe of adapters. The soup gets the tokenizer of the adapter `tokenizer_source`, if that has one."""

    recipe: Recipe
    tokenizer_source: str

    def describe(self) -> str:
        pairs = zip(self.recipe.weights, self.recipe.ingredients, strict=True)
        what = "merged into a full model" if _merged(self.recipe) else "kept an adapter"
        weights = " + ".join(f"{weight:.6g} x {name}" for weight, name in pairs)
        return f"soup {self.recipe.id} of adapters: {weights}\n{what}, {self.recipe.dtype}"


class AdapterPool(CandidatePool):
    """Adapters and their base, opened (headers only) and checked against each other.

    `merge` holds the settings of the merge group. `fingerprints` cover each adapter's weights, config and tokenizer and
    the base's content.
    """

    def __init__(self, folders: Folders, merge: MergeBackend, cache: Cache = None) -> None:
        """Open and check.

        Raises:
            UserError: an adapter is broken or no plain LoRA, they have no common base, or do not fit it, or a merge
                setting makes no sense for adapters.
        """
        check_adapter_settings(merge)
        self._merge = merge
        self.adapters = dict[str, Adapter]()
        for name, folder in folders.items():
            opened = Adapter.open if is_adapter(folder) else Adapter.of_model
            self.adapters[name] = opened(folder, merge.allow_pickle)
        self.base = find_base(self.adapters, merge.base_model, merge.allow_pickle)
        if self.base.assembly is not None:
            raise UserError(
                f"the base {self.base.folder} is sharded or FP8: write it in a float dtype first"
            )
        for name, adapter in self.adapters.items():
            self.adapters[name] = with_targets(self.base, name, adapter)
        self.sites = sites(self.base, self.adapters)
        # What all adapters together change.
        self._all_changes = self.changes(dict.fromkeys(self.adapters, 1.0))
        why_full = _not_kept(self._all_changes)
        self._merged = merge.adapters == "merge" or bool(why_full)
        if self._merged:
            # Not with merge.adapters=merge, for which `check_adapter_settings` has refused a rank.
            if merge.rank is not None:
                raise UserError(f"{why_full}: leave merge.rank out, which is for adapters")
            adapter_files.refuse_shared(self.sites.values(), why_full)
        self.base_fingerprint = fingerprint_of(self.base, cache)
        self._fingerprints = dict[str, str]()
        for name, adapter in self.adapters.items():
            self._fingerprints[name] = adapter.fingerprint(self.base_fingerprint, cache)
        self._eos_token_ids = eos_token_ids(self.base.folder)
        self._folders = dict(folders)
        self._similarities = dict[Names, PoolSimilarity | None]()
        self.base_name = base_name(folders)
        self._warnings = self._notes(why_full)
        # {name: checkpoint} of the adapters and the base.
        self._opened = {name: adapter.checkpoint for name, adapter in self.adapters.items()}
        self._opened[self.base_name] = self.base

    def _notes(self, why_full: str) -> list[str]:
        """Warnings for the user of the pool; `why_full` says why soups cannot stay adapters, empty if they can."""
        notes = self._compare_tokenizers()
        if why_full and self._merge.adapters == "keep":
            notes.append(f"{why_full}: soups are full models, as with merge.adapters=merge")
        # Settings that do not say in which order the experts' factors are.
        unsaid = []
        for name, adapter in self.adapters.items():
            if adapter.settings.parameters and not adapter.settings.packed:
                unsaid.append(name)
        if unsaid:
            notes.append(
                f"experts in {listed(unsaid)} are read in PEFT's order. Unsloth had another one before September "
                "2026: merge adapters by it with Unsloth"
            )
        return notes

    @property
    def names(self) -> Names:
        return tuple(self.adapters)

    @property
    def warnings(self) -> Sequence[str]:
        return self._warnings

    @property
    def fingerprints(self) -> Mapping[str, str]:
        return self._fingerprints

    @property
    def known_folders(self) -> Folders:
        adapters = {self._fingerprints[name]: folder for name, folder in self._folders.items()}
        return {self.base_fingerprint: self.base.folder} | adapters

    @property
    def architecture_folder(self) -> Path:
        """The base model."""
        return self.base.folder

    def similarity(self, weights: Mapping[str, float]) -> PoolSimilarity | None:
        """How similar the adapters' updates are, and with `merge.rank` what truncating their soup loses."""
        names = tuple(weights)
        if names not in self._similarities:
            # Weights do not matter: what adapters add is compared, and no soup of them is rounded.
            self._similarities[names] = update_similarity(names, self._updates(names))
        similarity = self._similarities[names]
        if self._merge.rank is None:
            return similarity
        if similarity is None:
            # Updates that cannot be compared are truncated all the same.
            similarity = PoolSimilarity(models={}, groups=(), lowest=None, blocks=0)
        used = {name: weight for name, weight in weights.items() if weight}
        reader = factors.TensorReader(self._opened)
        shares = adapter_files.factor_shares(self.changes(used))
        error = factors.truncation_error(reader, shares, self._merge.rank)
        return replace(similarity, truncation=error)

    def stored_values(self, name: str, update: bool) -> Mapping[str, Float32]:
        """As `CandidatePool.stored_values`: rows in the middle of every weight that an adapter of the pool changes."""
        reader = factors.TensorReader(self._opened)
        changes = self.changes({name: 1.0})
        values = dict[str, Float32]()
        for parameter, site in self.sites.items():
            # Its tensor may also be another module's, and a row of fused experts is a whole expert.
            if site.shared or site.absent or len(site.tensor.shape) == 3:
                continue
            soup = Update(changes.get(parameter, Change(site)), reader, self.base_name)
            middle = site.tensor.shape[0] // 2
            rows = soup.base_rows(middle, min(UPDATE_ROWS, middle))
            if update:
                rows = np.zeros_like(rows)
            values[site.tensor.name] = soup.added(rows, middle).reshape(-1)
        return values

    def _updates(self, names: Names) -> Iterator[FloatArray]:
        """Blocks [M, elements] of the updates scaling * B A of M adapters, of a few parameters that all of them change.

        Factors alone do not compare: (B R) (R^-1 A) is the same update. A block is some rows in the middle.
        """
        parts = {name: self.adapters[name].parts for name in names}
        parameters = sorted(set.intersection(*map(set, parts.values())))
        # Values that are not finite are for a merge to refuse.
        reader = factors.TensorReader(self._opened)
        count = min(FEWEST_BLOCKS, len(parameters))
        for number in range(count):
            parameter = parameters[number * len(parameters) // count]
            updates = []
            for name in names:
                pair = parts[name][parameter]
                middle = pair.b.shape[0] // 2
                rows = reader.rows(name, pair.b, middle, min(UPDATE_ROWS, middle))
                a, b = factors.unpacked(pair, reader.rows(name, pair.a), rows)
                updates.append((pair.scaling * b @ a).ravel())
            yield np.stack(updates, dtype=np.float64)

    def check_tokenizers(self, texts: Sequence[str] = ()) -> None:
        for name, adapter in self.adapters.items():
            check_tokenizer(name, self._tokenizer_of(adapter))
        self._compare_tokenizers(texts)

    def _compare_tokenizers(self, texts: Sequence[str] = ()) -> list[str]:
        """Warnings about tokenizers that adapters bring (UserError: one encodes a text as the base does not)."""
        pool = {self.base_name: self.base}
        for name, adapter in self.adapters.items():
            if adapter.has_tokenizer:
                pool[name] = adapter.checkpoint
        return compare_tokenizers(pool, "error", self._merge.tokenizer_from, texts)

    def tokenizer_folder(self, recipe: Recipe) -> Path:
        """The folder of the adapter whose tokenizer the soup gets, or of the base if that adapter has none."""
        return self._tokenizer_of(self.adapters[self._tokenizer_source(recipe)])

    def eos_token_ids(self, recipe: Recipe) -> TokenIds:
        """The end tokens of the base, which adapters have too, and of full models."""
        tokens = set(self._eos_token_ids)
        for name in recipe.ingredients:
            if self.adapters[name].full:
                tokens.update(eos_token_ids(self.adapters[name].folder))
        return tuple(sorted(tokens))

    def _tokenizer_of(self, adapter: Adapter) -> Path:
        return adapter.folder if adapter.has_tokenizer else self.base.folder

    def _tokenizer_files(self, adapter: Adapter) -> dict[str, bytes]:
        """The tokenizer and chat template that soups with the tokenizer of this adapter are evaluated with."""
        owner = adapter.checkpoint if adapter.has_tokenizer else self.base
        names = set(owner.side) - {"config.json", GENERATION}
        return {name: small(inside(owner.folder, name)) for name in sorted(names)}

    @property
    def base_repo(self) -> str:
        """`org/name` of the base, by its folder in the Hub's cache, else the adapters, else its config; or empty."""
        names = [cached_name(self.base.folder.resolve())]
        names += [adapter.settings.base for adapter in self.adapters.values()]
        names.append(self.base.config.get("_name_or_path"))
        for name in names:
            on_hub = parse_name(name) if isinstance(name, str) else None
            if on_hub is not None:
                return on_hub.repo
        return ""

    @property
    def adapter_shape(self) -> AdapterShape | None:
        """The shape of a soup of all adapters, which is the largest; None if soups are full models."""
        if self._merged:
            return None
        shares = adapter_files.factor_shares(self._all_changes)
        settings = set[str]()
        for change in self._all_changes.values():
            settings.update(change.kinds)
        settings.discard(FACTORS)
        return AdapterShape(
            base=self.base.folder,
            rank=factors.soup_rank(shares, self._merge.rank),
            modules=tuple(sorted({module.rpartition(".")[2] for module in shares})),
            settings=tuple(sorted(settings)),
        )

    @property
    def soup_bytes(self) -> int:
        """The factors of the soup, or the base's weights in its dtype; and the files beside them."""
        shape = self.adapter_shape
        if shape is not None:
            # A [rank, in] and B [out, rank], in fp32 at most.
            elements = 0
            for change in self._all_changes.values():
                if change.pairs:
                    pair = change.pairs[0][1]
                    elements += shape.rank * (pair.a.count + pair.b.count) // pair.rank
                else:
                    rows, *others = change.site.tensor.shape
                    elements += math.prod((len(change.rows) or rows, *others))
            return 4 * elements + self.base.side_bytes
        return self.base.size_in(self._merge.dtype) + self.base.side_bytes

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of {adapter: weight}; its settings are those that decide the soup's numbers. Zeros are dropped."""
        chosen = [name for name in self.adapters if weights.get(name)]
        merged = self._merged
        settings: dict[str, Json] = {
            "adapters": "merge" if merged else "keep",
            "base": self.base_fingerprint,
        }
        if self._merge.rank is not None:
            settings["rank"] = self._merge.rank
        return Recipe(
            ingredients=tuple(chosen),
            fingerprints=tuple(self._fingerprints[name] for name in chosen),
            weights=tuple(float(weights[name]) for name in chosen),
            dtype=self._merge.dtype or (self.base.dtype if merged else "float32"),
            settings=settings,
        )

    def plan(self, recipe: Recipe) -> AdapterPlan:
        return AdapterPlan(recipe, self._tokenizer_source(recipe))

    def write(
        self,
        recipe: Recipe,
        out: Path,
        *,
        extra_files: Extra = None,
        progress: OptionalProgress = None,
    ) -> Path:
        """The soup as an adapter folder, or with `merge.adapters=merge` a full model; whole or not at all.

        Raises:
            UserError: `out` is there already, a file has changed or is broken, a value is not finite, or the disk is
                full.
        """
        plan = self.plan(recipe)
        with staged(out) as stage:
            files = self._write_weights(plan, stage, progress)
            files |= self._tokenizer_files(self.adapters[plan.tokenizer_source])
            weights = [path.name for path in stage.iterdir()]
            write_soup_files(stage, with_extra(files, weights, extra_files))
            self.check_unchanged(recipe)
        return Path(out)

    def _write_weights(
        self, plan: AdapterPlan, stage: Path, progress: OptionalProgress
    ) -> dict[str, str | bytes]:
        """Write the weights; returns {name: content} of the files that describe them: configs, recipe and index."""
        recipe = plan.recipe
        nonfinite = self._merge.nonfinite
        reader = self.reader()
        changes = self.changes(recipe.shares)
        if _merged(recipe):
            full = adapter_files.base_plan(
                recipe, self.base_name, self.base, self._merge.shard_bytes, nonfinite
            )
            adapter_files.write_model(full, stage, changes, reader, progress)
            text = recipe_text(recipe, plan.tokenizer_source, nonfinite, full.max_shard_size)
            return {**companion_files(full), RECIPE: text}
        rank = factors.soup_rank(adapter_files.factor_shares(changes), _rank_limit(recipe))
        dtype = TORCH_NAMES[recipe.dtype]
        path = stage / ADAPTER_WEIGHTS
        adapter_files.write_weights(path, changes, reader, self.base_name, dtype, rank, progress)
        used = {name: self.adapters[name] for name in recipe.ingredients}
        text = recipe_text(recipe, plan.tokenizer_source, nonfinite)
        return {
            CONFIG: adapter_files.adapter_config_text(changes, rank, used, self.base.folder),
            RECIPE: text,
        }

    def live(self, module: torch.nn.Module) -> AdapterLive:
        """The base's live module (loaded from `architecture_folder`), ready to take soups.

        If soups are full models of another dtype, all of the base is rounded to it here, as in the written model.
        """
        dtype = self._merge.dtype
        if self._merged and dtype is not None and dtype != self.base.dtype:
            models = Alignment({"base": self.base})
            rounded = LiveModule(models, module, nonfinite=self._merge.nonfinite)
            rounded.load_soup(lone_recipe("base", dtype))
        return AdapterLive(self, module)

    def reader(self) -> factors.TensorReader:
        """A reader of the adapters and the base."""
        return factors.TensorReader(self._opened, self._merge.nonfinite)

    def check_unchanged(self, recipe: Recipe) -> None:
        """Raises UserError if a file of the recipe's adapters or of the base is not the one that was opened."""
        for name in (*recipe.ingredients, self.base_name):
            self._opened[name].check_unchanged()

    def changes(self, weights: Mapping[str, float]) -> dict[str, Change]:
        """{parameter: what the adapters with a weight make of it}"""
        return changes_of(self.sites, self.adapters, weights)

    def close(self) -> None:
        """Close the backend, as a pool of full models does."""
        self._merge.close()

    def _tokenizer_source(self, recipe: Recipe) -> str:
        """The adapter whose tokenizer the soup gets: that of `merge.tokenizer_from`, else the recipe's first."""
        return tokenizer_source(self._merge.tokenizer_from, recipe) or recipe.ingredients[0]


def _not_kept(changes: Changes) -> str:
    """Why a soup of all adapters cannot stay an adapter; empty if it can."""
    biased = any("lora_bias" in change.kinds for change in changes.values())
    # PEFT names the factors of a module's parameters `experts`, `experts.base_layer`, .. (see `parameters`). In the
    # soup, such a name has to be of one parameter, and a parameter has to have one name.
    seen = set[str]()
    for change in changes.values():
        what = shown(change.site.parameter)
        wraps = {pair.module for _, pair, _ in change.pairs}
        if len(wraps) > 1 or wraps & seen:
            return f"adapters target other parameters beside {what}"
        seen |= wraps
        if biased and any(pair.embedding or pair.target for _, pair, _ in change.pairs):
            return f"PEFT has no lora_bias for embeddings and parameters ({what})"
        if FULL_MODEL in change.kinds:
            return "some candidates are full models"
        if DORA in change.kinds:
            return f"DoRA ({what}) is not linear in its adapters"
        if len(change.kinds) > 1:
            return f"adapters change {what} in different ways ({listed(change.kinds)})"
    return ""


def _merged(recipe: Recipe) -> bool:
    """Whether the soup is a full model, not an adapter."""
    return recipe.settings.get("adapters") == "merge"


def _rank_limit(recipe: Recipe) -> int | None:
    """The largest rank (`merge.rank`) of a recipe's soup; None for any."""
    rank = recipe.settings.get("rank")
    return None if rank is None else int(rank)


class AdapterLive(LoadableModel):
    """Live base model that `load_soup` makes base + sum_i w_i s_i B_i A_i of a recipe, again and again.

    Only the weights that some adapter of the pool changes are touched.
    """

    def __init__(self, pool: AdapterPool, module: torch.nn.Module) -> None:
        self._pool = pool
        self._reader = pool.reader()
        # {parameter that some adapter changes: live submodule with it}
        self._owners = {name: _owner(module, site) for name, site in pool.sites.items()}
        _untie(module, [site for site in pool.sites.values() if site.shared])
        # Parameters whose values are not the base's now.
        self._changed: set[str] = set()

    def load_soup(self, recipe: Recipe) -> None:
        """Put the recipe's soup into the module, in place. What only other adapters change gets the base's values back.

        Raises:
            UserError: a file has changed, or a value is not finite (the module then holds a part of the soup).
        """
        self._pool.check_unchanged(recipe)
        changes = self._pool.changes(recipe.shares)
        for name in sorted(self._changed | set(changes)):
            self._fill(name, changes.get(name, Change(self._pool.sites[name])), recipe)
        self._changed = set(changes)

    def _fill(self, name: str, change: Change, recipe: Recipe) -> None:
        """Fill one parameter with the base's values and their change, if there is one.

        The numbers are those of the written soup. An adapter has tensors in the soup's dtype. A full model ("merged")
        is made of fp32 tensors, and only the sum is rounded to the soup's dtype.
        """
        import torch

        tensor = change.site.tensor
        target = self._owners[name].get_parameter(name.rpartition(".")[2])
        merged = _merged(recipe)
        dtype = factors.FULL if merged else TORCH_NAMES[recipe.dtype]
        soup = Update(change, self._reader, self._pool.base_name, dtype, _rank_limit(recipe))
        with torch.no_grad():
            for first, block in soup.blocks():
                sums = torch.tensor(block)
                if merged:
                    # A soup of several dtypes has each tensor in the base's own.
                    sums = sums.to(torch_dtype(TORCH_NAMES.get(recipe.dtype) or tensor.dtype))
                self._reader.check_soup(sums.float().cpu().numpy(), tensor.name)
                target[first : first + len(block)].copy_(sums)


def _owner(module: torch.nn.Module, site: Site) -> torch.nn.Module:
    """The live submodule that owns the changed parameter. A bias that is absent is made.

    Raises:
        UserError: the module has none of that name and shape.
    """
    import torch

    # The adapters may have been trained on the model with or without its head.
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    last = site.parameter.rpartition(".")[2]
    for name in (site.module, prefix + site.module, site.module.removeprefix(prefix)):
        with suppress(AttributeError):  # no submodule of that name
            owner = module.get_submodule(name)
            parameters = dict(owner.named_parameters(recurse=False))
            if site.absent and last not in parameters:
                zeros = parameters["weight"].new_zeros(site.tensor.shape)
                parameters[last] = torch.nn.Parameter(zeros)
                owner.register_parameter(last, parameters[last])
            if last in parameters and tuple(parameters[last].shape) == site.tensor.shape:
                return owner
    raise UserError(
        f"the adapters change {shown(site.module)}, which the loaded base model does not have"
    )


def _untie(module: torch.nn.Module, shared: Sequence[Site]) -> None:
    """Give weights that are tied to another module's a storage of their own: adapters change only one of the two."""
    import torch

    for site in shared:
        owner = _owner(module, site)
        weight = owner.get_parameter("weight").detach().clone()
        owner.register_parameter("weight", torch.nn.Parameter(weight, requires_grad=False))
