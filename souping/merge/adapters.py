"""Pool of LoRA adapters over one base model, and the live base model that they are added to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.compatibility import check_tokenizer, compare_tokenizers, same_values, tied
from souping.checkpoints.end_tokens import GENERATION, eos_token_ids
from souping.checkpoints.fingerprints import Cache, fingerprint_of
from souping.checkpoints.folder import TIED
from souping.checkpoints.header import FLOATS, TORCH_NAMES, Tensor, inside, small
from souping.checkpoints.hub import cached_name, parse_name
from souping.checkpoints.lora import ADAPTER_WEIGHTS, CONFIG, Adapter, FactorPair
from souping.checkpoints.views import Float32
from souping.core.files import expanded, folder_at
from souping.core.folders import staged
from souping.core.protocols import AdapterShape
from souping.core.text import shown
from souping.core.types import FloatArray, Folders, Json, Names, Recipe, TokenIds, UserError
from souping.core.weight_similarity import PoolSimilarity
from souping.merge import (
    CandidatePool,
    Extra,
    LoadableModel,
    OptionalProgress,
    SoupPlan,
    factors,
)
from souping.merge.alignment import Alignment, lone_recipe
from souping.merge.backend import MergeBackend, check_adapter_settings
from souping.merge.live import LiveModule
from souping.merge.methods import torch_dtype
from souping.merge.plan import base_name, tokenizer_source
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

CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
"""Model types whose linear layers are stored [in, out] (transformers' Conv1D)."""
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
            self.adapters[name] = Adapter.open(folder, merge.allow_pickle)
        self.base = find_base(self.adapters, merge.base_model, merge.allow_pickle)
        if self.base.assembly is not None:
            raise UserError(
                f"the base {self.base.folder} is sharded or FP8: write it in a float dtype first"
            )
        self.sites = sites(self.base, self.adapters)
        # A full model cannot hold what adapters make of a tied weight.
        if merge.adapters == "merge":
            factors.refuse_shared(self.sites, modules=self.sites)
        self.base_fingerprint = fingerprint_of(self.base, cache)
        self._fingerprints = dict[str, str]()
        for name, adapter in self.adapters.items():
            self._fingerprints[name] = adapter.fingerprint(self.base_fingerprint, cache)
        self._eos_token_ids = eos_token_ids(self.base.folder)
        self._folders = dict(folders)
        self._similarities = dict[Names, PoolSimilarity | None]()
        self.base_name = base_name(folders)
        self._warnings = self._compare_tokenizers()
        # {name: checkpoint} of the adapters and the base.
        self._opened = {name: adapter.checkpoint for name, adapter in self.adapters.items()}
        self._opened[self.base_name] = self.base

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
        error = factors.truncation_error(reader, self.shares(used), self._merge.rank)
        return replace(similarity, truncation=error)

    def stored_values(self, name: str, update: bool) -> Mapping[str, Float32]:
        """As `CandidatePool.stored_values`: rows in the middle of every weight that an adapter of the pool changes."""
        reader = factors.TensorReader(self._opened)
        parts = self.adapters[name].parts
        values = dict[str, Float32]()
        for module, site in self.sites.items():
            # Its tensor may also be another module's.
            if site.shared:
                continue
            middle = site.tensor.shape[0] // 2
            rows = reader.rows(self.base_name, site.tensor, middle, min(UPDATE_ROWS, middle))
            if update:
                rows = np.zeros_like(rows)
            if module in parts:
                share = (name, parts[module], 1.0)
                product = factors.product(reader, [share], factors.FULL, site.transposed)
                rows = product.added(rows, middle)
            values[site.tensor.name] = rows.reshape(-1)
        return values

    def _updates(self, names: Names) -> Iterator[FloatArray]:
        """Blocks [M, elements] of the updates scaling * B A of M adapters, in a few modules that all of them adapt.

        Factors alone do not compare: (B R) (R^-1 A) is the same update. A block is some rows in the middle.
        """
        parts = {name: self.adapters[name].parts for name in names}
        modules = sorted(set.intersection(*map(set, parts.values())))
        # Values that are not finite are for a merge to refuse.
        reader = factors.TensorReader(self._opened)
        count = min(FEWEST_BLOCKS, len(modules))
        for number in range(count):
            module = modules[number * len(modules) // count]
            updates = []
            for name in names:
                pair = parts[name][module]
                middle = pair.b.shape[0] // 2
                b = reader.rows(name, pair.b, middle, min(UPDATE_ROWS, middle))
                updates.append((pair.scaling * b @ reader.rows(name, pair.a)).ravel())
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
        """The base's end tokens: adapters have none."""
        return self._eos_token_ids

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
        # An unknown name is the text "None" here, which is no repository.
        repos = filter(None, map(parse_name, map(str, names)))
        return next((name.repo for name in repos), "")

    @property
    def adapter_shape(self) -> AdapterShape | None:
        """The shape of a soup of all adapters, which is the largest; None if soups are full models."""
        if self._merge.adapters == "merge":
            return None
        shares = self.shares(dict.fromkeys(self.names, 1.0))
        return AdapterShape(
            base=self.base.folder,
            rank=factors.soup_rank(shares, self._merge.rank),
            modules=tuple(sorted({module.rpartition(".")[2] for module in shares})),
        )

    @property
    def soup_bytes(self) -> int:
        """The factors of the soup, or the base's weights in its dtype; and the files beside them."""
        shape = self.adapter_shape
        if shape is not None:
            # A [rank, in] and B [out, rank], in fp32 at most.
            elements = sum(sum(site.tensor.shape) for site in self.sites.values())
            return 4 * shape.rank * elements + self.base.side_bytes
        return self.base.size_in(self._merge.dtype) + self.base.side_bytes

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of {adapter: weight}; its settings are those that decide the soup's numbers. Zeros are dropped."""
        chosen = [name for name in self.adapters if weights.get(name)]
        merged = self._merge.adapters == "merge"
        settings: dict[str, Json] = {
            "adapters": self._merge.adapters,
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
        shares = self.shares(recipe.shares)
        if _merged(recipe):
            full = factors.base_plan(
                recipe, self.base_name, self.base, self._merge.shard_bytes, nonfinite
            )
            factors.write_model(full, stage, self.sites, shares, reader, progress)
            text = recipe_text(recipe, plan.tokenizer_source, nonfinite, full.max_shard_size)
            return {**companion_files(full), RECIPE: text}
        rank = factors.soup_rank(shares, _rank_limit(recipe))
        dtype = TORCH_NAMES[recipe.dtype]
        factors.write_weights(stage / ADAPTER_WEIGHTS, shares, dtype, rank, reader, progress)
        used = {name: self.adapters[name] for name in recipe.ingredients}
        text = recipe_text(recipe, plan.tokenizer_source, nonfinite)
        return {
            CONFIG: factors.adapter_config_text(shares, rank, used, self.base.folder),
            RECIPE: text,
        }

    def live(self, module: torch.nn.Module) -> AdapterLive:
        """The base's live module (loaded from `architecture_folder`), ready to take soups.

        If soups are full models of another dtype, all of the base is rounded to it here, as in the written model.
        """
        dtype = self._merge.dtype
        if self._merge.adapters == "merge" and dtype is not None and dtype != self.base.dtype:
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

    def shares(self, weights: Mapping[str, float]) -> dict[str, list[factors.AdapterShare]]:
        """{module: [(adapter, its factors, its weight)]} of all modules that adapters with a weight change."""
        shares: dict[str, list[factors.AdapterShare]] = {}
        for name, weight in weights.items():
            for module, pair in self.adapters[name].parts.items():
                shares.setdefault(module, []).append((name, pair, weight))
        return shares

    def close(self) -> None:
        """Close the backend, as a pool of full models does."""
        self._merge.close()

    def _tokenizer_source(self, recipe: Recipe) -> str:
        """The adapter whose tokenizer the soup gets: that of `merge.tokenizer_from`, else the recipe's first."""
        return tokenizer_source(self._merge.tokenizer_from, recipe) or recipe.ingredients[0]


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
        # Live submodules by the adapters' names of modules.
        self._owners = {name: _owner(module, site) for name, site in pool.sites.items()}
        _untie(module, [site for site in pool.sites.values() if site.shared])
        # Modules whose weights are not the base's now.
        self._changed: set[str] = set()

    def load_soup(self, recipe: Recipe) -> None:
        """Put the recipe's soup into the module, in place. Modules that only other adapters change get the base's
        weight back.

        Raises:
            UserError: a file has changed, or a value is not finite (the module then holds a part of the soup).
        """
        self._pool.check_unchanged(recipe)
        shares = self._pool.shares(recipe.shares)
        for name in sorted(self._changed | set(shares)):
            self._fill(name, shares.get(name, ()), recipe)
        self._changed = set(shares)

    def _fill(self, name: str, shares: Sequence[factors.AdapterShare], recipe: Recipe) -> None:
        """Fill one module's weight with the base's, plus the product of the module's `shares`, if it has any.

        The numbers are those of the written soup. An adapter has factors in the soup's dtype. A full model ("merged")
        is made of fp32 factors, and only the sum is rounded to the soup's dtype.
        """
        import torch

        site = self._pool.sites[name]
        target = self._owners[name].get_parameter("weight")
        merged = _merged(recipe)
        product: factors.Product | None = None
        if shares:
            dtype = factors.FULL if merged else TORCH_NAMES[recipe.dtype]
            limit = _rank_limit(recipe)
            product = factors.product(self._reader, shares, dtype, site.transposed, limit)
        with torch.no_grad():
            for first, count in factors.blocks_of(site.tensor.shape):
                base = self._reader.rows(self._pool.base_name, site.tensor, first, count)
                sums = torch.tensor(base if product is None else product.added(base, first))
                if merged:
                    # A soup of several dtypes has each tensor in the base's own.
                    sums = sums.to(torch_dtype(TORCH_NAMES.get(recipe.dtype) or site.tensor.dtype))
                self._reader.check_soup(sums.float().cpu().numpy(), site.tensor.name)
                target[first : first + count].copy_(sums)


def _owner(module: torch.nn.Module, site: factors.Site) -> torch.nn.Module:
    """The live submodule that owns the adapted weight.

    Raises:
        UserError: the module has none of that name and shape.
    """
    # The adapters may have been trained on the model with or without its head.
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    for name in (site.module, prefix + site.module, site.module.removeprefix(prefix)):
        with suppress(AttributeError):  # no submodule of that name
            owner = module.get_submodule(name)
            weight = dict(owner.named_parameters(recurse=False)).get("weight")
            if weight is not None and tuple(weight.shape) == site.tensor.shape:
                return owner
    raise UserError(
        f"the adapters change {shown(site.module)}, which the loaded base model does not have"
    )


def _untie(module: torch.nn.Module, shared: Sequence[factors.Site]) -> None:
    """Give weights that are tied to another module's a storage of their own: adapters change only one of the two."""
    import torch

    for site in shared:
        owner = _owner(module, site)
        weight = owner.get_parameter("weight").detach().clone()
        owner.register_parameter("weight", torch.nn.Parameter(weight, requires_grad=False))


# What adapters change in the base


def find_base(
    adapters: Mapping[str, Adapter], folder: str | None, allow_pickle: bool = False
) -> Checkpoint:
    """Open the one base of all adapters: `folder` (merge.base_model) if it is given, else the one in their configs.

    Raises:
        UserError: adapters name different bases or revisions, or the base is not a folder here.
    """
    first, *later = adapters
    settings = adapters[first].settings
    for name in later:
        _same_base(first, adapters[first], name, adapters[name])
    if folder:
        path: Path | None = expanded(folder, "merge.base_model")
        what = f"merge.base_model={folder}"
    else:
        path = folder_at(settings.base)
        what = f"the adapters' base model {shown(str(settings.base))}"
    if path is None or not path.is_dir():
        raise UserError(f"{what} is not a folder here: set merge.base_model=FOLDER")
    return Checkpoint.open(path, allow_pickle)


def _same_base(a: str, a_adapter: Adapter, b: str, b_adapter: Adapter) -> None:
    """Refuse adapters `a` and `b` whose configs name different base models. Two names may be of one folder."""
    a_settings = a_adapter.settings
    b_settings = b_adapter.settings
    a_base = shown(str(a_settings.base))
    if a_settings.base != b_settings.base:
        folder = folder_at(a_settings.base)
        if folder is None or folder != folder_at(b_settings.base):
            b_base = shown(str(b_settings.base))
            raise UserError(
                f"adapters {a} and {b} are over different base models, {a_base} and {b_base}"
            )
    if (a_settings.revision or "main") != (b_settings.revision or "main"):
        raise UserError(f"adapters {a} and {b} are over different revisions of {a_base}")


def sites(base: Checkpoint, adapters: Mapping[str, Adapter]) -> dict[str, factors.Site]:
    """{module: site} of every module that an adapter changes, sorted by name.

    Raises:
        UserError: the base has no such module, a shape does not fit, the base's weight is quantised, or full weights
            saved with the factors are not the base's.
    """
    modules = set[str]()
    for adapter in adapters.values():
        modules.update(adapter.parts)
    # The shape of a square weight does not show whether it is stored [in, out]: the configs say so.
    flagged = any(adapter.settings.transposed for adapter in adapters.values())
    square_transposed = flagged or base.config.get("model_type") in CONV1D
    by_module = {
        module: _site(base, module, adapters, square_transposed) for module in sorted(modules)
    }

    # Adapters of a whole model and of its inner one call a weight by different names.
    first_modules = dict[str, str]()
    for site in by_module.values():
        first = first_modules.setdefault(site.tensor.name, site.module)
        if first != site.module and not site.shared:
            raise UserError(
                f"adapters call {site.tensor.name} by two names, {shown(first)} and {shown(site.module)}"
            )
    for name, adapter in adapters.items():
        _full_weights_are_base(base, name, adapter)
    return by_module


def _site(
    base: Checkpoint, module: str, adapters: Mapping[str, Adapter], square_transposed: bool
) -> factors.Site:
    """The weight that the adapters' product at a module is added to (UserError: there is none that fits).

    The shape shows whether it is stored [in, out]; for a square one, `square_transposed` says it.
    """
    pairs = dict[str, FactorPair]()
    for name, adapter in adapters.items():
        if module in adapter.parts:
            pairs[name] = adapter.parts[module]
    first, first_pair = next(iter(pairs.items()))
    tensor = weight_of(base, module) or _tied_embedding(base, module)
    if tensor is None:
        raise UserError(
            f"adapter {first} adapts {shown(module)}, which the base {base.folder} does not have"
        )
    if tensor.dtype not in FLOATS:
        raise UserError(
            f"{tensor.name} of the base is {tensor.dtype}, not a float: use the base's float original"
        )
    for name, pair in pairs.items():
        if pair.embedding != first_pair.embedding or not _fits(pair, tensor):
            raise UserError(
                f"adapter {name}, {shown(module)}: A {list(pair.a.shape)} and B {list(pair.b.shape)} do not fit the "
                f"base's weight {list(tensor.shape)}"
            )
    rows = first_pair.b.shape[0]
    columns = first_pair.a.shape[1]
    transposed = first_pair.embedding or tensor.shape != (rows, columns)
    if rows == columns and square_transposed:
        transposed = True
    shared = _shared(base, module, tensor, first_pair.embedding)
    return factors.Site(module, tensor, transposed, shared)


def _fits(pair: FactorPair, tensor: Tensor) -> bool:
    """Whether a weight has the shape of B A or of its transpose; an embedding is always transposed."""
    rows = pair.b.shape[0]
    columns = pair.a.shape[1]
    if tensor.shape == (columns, rows):
        return True
    return tensor.shape == (rows, columns) and not pair.embedding


def weight_of(base: Checkpoint, module: str) -> Tensor | None:
    """The module's weight in the base: by its name, else by the only name that differs just in leading parts."""
    name = f"{module}.weight"
    if name in base.tensors:
        return base.tensors[name]
    matching = [tensor for key, tensor in base.tensors.items() if key.endswith(f".{name}")]
    _, _, shorter = name.partition(".")
    if shorter in base.tensors and shorter != "weight":
        matching.append(base.tensors[shorter])
    return matching[0] if len(matching) == 1 else None


def _tied_embedding(base: Checkpoint, module: str) -> Tensor | None:
    """The embedding whose weight a head without its own shares; None for other modules, or if it is not unique."""
    if f"{module.rpartition('.')[2]}.weight" not in TIED:
        return None
    vocab = base.config.get("vocab_size")
    matrices = [t for t in base.tensors.values() if len(t.shape) == 2 and t.shape[0] == vocab]
    embeddings = [t for t in matrices if "embed" in t.name]
    # GPT-2's name for the embedding.
    if not embeddings:
        embeddings = [t for t in base.tensors.values() if t.name.endswith("wte.weight")]
    return embeddings[0] if len(embeddings) == 1 else None


def _shared(base: Checkpoint, module: str, tensor: Tensor, embedding: bool) -> bool:
    """Whether the module's weight is also another module's: a tied head, or the embedding that a head is tied to."""
    # Without a weight of its own, the module was found by its tied embedding.
    if weight_of(base, module) is None:
        return True
    twins = [t for t in base.tensors.values() if t.shape == tensor.shape and t.name != tensor.name]
    vocabulary = tensor.shape[0] == base.config.get("vocab_size")
    if embedding and vocabulary and not twins:
        return True
    head = f"{module.rpartition('.')[2]}.weight" in TIED
    return tied(base) and (head or (embedding and vocabulary))


def _full_weights_are_base(base: Checkpoint, name: str, adapter: Adapter) -> None:
    """Refuse an adapter with full weights that are not the base's: PEFT saves embeddings, and may have trained them."""
    for module, tensor in adapter.whole.items():
        base_tensor = weight_of(base, module) or _tied_embedding(base, module)
        if base_tensor is None or not same_values(adapter.checkpoint, tensor, base, base_tensor):
            raise UserError(
                f"adapter {name} has a whole weight of {shown(module)} that is not the base's"
            )
