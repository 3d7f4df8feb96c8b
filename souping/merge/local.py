"""Pools of full models and `merge=local`, the settings of a merge as one component."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from souping.checkpoints.archives import archive_at
from souping.checkpoints.checkpoint import Checkpoints
from souping.checkpoints.compatibility import (
    TOKENIZERS,
    check_tokenizer,
    compare_tokenizers,
    preflight,
)
from souping.checkpoints.end_tokens import eos_token_ids
from souping.checkpoints.fingerprints import Cache, fingerprint, fingerprint_of
from souping.checkpoints.folder import Like
from souping.checkpoints.layouts import common, rules_of
from souping.checkpoints.lora import is_adapter
from souping.checkpoints.views import Float32
from souping.core.fields import Count, Precision, component, pick
from souping.core.protocols import WeightStream
from souping.core.text import is_user_code
from souping.core.types import (
    Folders,
    Json,
    JsonObject,
    Names,
    Recipe,
    TokenIds,
    UserError,
    Weights,
)
from souping.core.weight_similarity import PoolSimilarity
from souping.merge import (
    Adapters,
    CandidatePool,
    Extra,
    Format,
    LoadableModel,
    Nonfinite,
    OptionalProgress,
    SoupPlan,
    Vocab,
)
from souping.merge.alignment import Alignment, Layout, check_tensor_weights, fitted
from souping.merge.backend import MergeBackend
from souping.merge.live import LiveModule, SoupMixer
from souping.merge.methods import COMPILED_METHODS, get_method
from souping.merge.plan import MergePlan, tokenizer_source
from souping.merge.weight_samples import WeightedSum, WeightSample, stored_values

if TYPE_CHECKING:
    import torch

KEEP = "keep:"
"""How a `moe_router` begins that keeps the router of one ingredient."""
CHUNK_BYTES = 1 << 28
"""Chunk of a soup that an engine takes from memory; it may hold a few at once."""


@component
class LocalMerge(MergeBackend):
    """Weighted averaging in this process.

    `dtype` is float32, bfloat16, float16, or None for the ingredients' own (the widest where they differ).
    `base_model` is the folder of the base model for task_arithmetic and model_stock, `scale` multiplies the differences
    to it. `tensor_weights` gives tensors whose names match a pattern their own weights, in the pool's order.
    `moe_router` says what becomes of the tensors that choose experts: average, or keep:NAME for those of one ingredient
    (averaged in soups without it). `name_rules` is a file of rules for the names of sharded checkpoints, or show.
    `tokenizer_from` names the ingredient whose config and tokenizer the soup gets. `format` is hf, or same for the
    layout of the newest ingredient, which has to be a sharded checkpoint. `rank` is the rank of a soup that stays an
    adapter, at most.

    Raises:
        UserError: a value is out of its range; the message names `merge.<key>`.
    """

    method: str = "linear"
    dtype: Precision | None = None
    vocab: Vocab = "error"
    nonfinite: Nonfinite = "error"
    allow_pickle: bool = False
    adapters: Adapters = "keep"
    rank: Count | None = None
    max_shard_size: str | int = "5GB"
    tensor_weights: dict[str, list[float]] | None = None
    base_model: str | None = None
    scale: float = 1.0
    tokenizer_from: str | None = None
    format: Format = "hf"
    name_rules: str | None = None
    moe_router: str = "average"

    def __post_init__(self) -> None:
        """Refuse values that cannot be used, alone or together, before anything is read."""
        method = get_method(self.method)
        _ = self.shard_bytes  # raises UserError for a wrong size, as `rules_of` for a missing file
        if not method.base and self.scale != 1:
            raise UserError(
                f"merge.scale={self.scale} needs a method with a base, as merge.method=task_arithmetic"
            )
        if method.base and not self.base_model:
            raise UserError(
                f"merge.method={self.method} needs the base model: set merge.base_model=FOLDER"
            )
        if check_tensor_weights(self.tensor_weights or {}) and self.method != "linear":
            raise UserError(
                f"merge.tensor_weights works with merge.method=linear only, not {self.method}"
            )
        rules_of(self.name_rules)
        if self.moe_router != "average" and not self.moe_router.startswith(KEEP):
            raise UserError(f"merge.moe_router={self.moe_router} is not average or {KEEP}NAME")
        if self.moe_router != "average" and self.method != "linear":
            raise UserError(
                f"merge.moe_router={self.moe_router} works with merge.method=linear only, not {self.method}"
            )

    @property
    def hashes_while_reading(self) -> bool:
        # A recipe needs the fingerprint of a base before its files are read, and `write_hashed` finishes no frame.
        return self.base_model is None and self.format == "hf"

    @property
    def streams(self) -> bool:
        return self.format == "hf"

    def settings_of(self, used: Sequence[str], pool: Checkpoints, base: str | None) -> JsonObject:
        """As `MergeBackend.settings_of`; the keys are those of recipe.json, which are not all those of this backend."""
        settings: dict[str, Json] = {}
        if self._method_digest:
            settings["source"] = self._method_digest
        if self.vocab != "error":
            settings["vocab"] = self.vocab
        # A user's pattern replaces the same pattern of a router.
        tensor_weights = router_weights(self.moe_router, pool) | (self.tensor_weights or {})
        pairs = fitted(tensor_weights, tuple(pool), used)
        if pairs:
            settings["overrides"] = pairs
        if self.base_model and get_method(self.method).base:
            settings["base"] = base or fingerprint(
                Path(self.base_model), allow_pickle=self.allow_pickle
            )
            settings["scale"] = float(self.scale)
        return settings

    @cached_property
    def _method_digest(self) -> str | None:
        return method_digest(self.method)

    def weighted_sum(self, weights: Weights) -> WeightedSum | None:
        """The sum by which this method makes its soup; None if weights depend on the tensors, or it is no sum."""
        method = get_method(self.method)
        if self.tensor_weights or method.coefficients or method.function not in COMPILED_METHODS:
            return None
        shares = np.array(weights) / sum(weights)
        of_base = 0.0
        if method.base:
            # base + scale * sum_k w_k (x_k - base)
            shares = self.scale * np.array(weights)
            of_base = 1 - float(shares.sum())
        if self.base_model:
            # The base is the last model, with weight 0 if the method has no base.
            shares = np.append(shares, of_base)
        return WeightedSum(shares, self.dtype)

    def plan(self, recipe: Recipe, models: Alignment) -> MergePlan:
        """The recipe worked out to the byte, from headers. Raises UserError as `Alignment.plan`."""
        make_plan = models.plan
        if self.format == "same":
            from souping.merge.stored import stored_plan

            make_plan = partial(stored_plan, models=models)
        return make_plan(
            recipe,
            shard_bytes=self.shard_bytes,
            nonfinite=self.nonfinite,
            tokenizer_from=tokenizer_source(self.tokenizer_from, recipe),
        )

    def write_soup(
        self,
        recipe: Recipe,
        models: Alignment,
        out: Path,
        progress: OptionalProgress = None,
        extra_files: Extra = None,
    ) -> Path:
        return self.write(self.plan(recipe, models), out, progress, extra_files)

    def write(
        self,
        plan: MergePlan,
        out: Path,
        progress: OptionalProgress = None,
        extra_files: Extra = None,
    ) -> Path:
        """The soup as a complete folder, which appears whole or not at all. Raises UserError as `write_checkpoint`."""
        from souping.merge.soup_files import soup_files
        from souping.merge.writer import write_checkpoint

        files = soup_files(plan, extra_files)
        return write_checkpoint(plan, out, files, progress=progress, fill=self.fill)

    def fill(self, plan: MergePlan, stage: Path, progress: OptionalProgress) -> None:
        """Write the weights of a soup into its shards in `stage`, which have their full size already."""
        from souping.merge.writer import fill_shards

        fill_shards(plan, stage, progress)

    def live(self, models: Alignment, module: torch.nn.Module) -> LoadableModel:
        """A module that `load_soup(recipe)` fills with soups of these models, again and again."""
        return LiveModule(models, module, nonfinite=self.nonfinite)

    def open(
        self, folders: Folders, cache: Cache = None, like: Like | None = None
    ) -> CandidatePool:
        return open_pool(self, folders, cache, like)


class FullModelPool(CandidatePool):
    """Full models of one architecture. Headers are read when it is opened; the rest is read on demand."""

    def __init__(
        self,
        folders: Folders,
        merge: MergeBackend,
        cache: Cache = None,
        like: Like | None = None,
    ) -> None:
        """Open every candidate's headers.

        Raises:
            UserError: a folder is absent or broken.
        """
        self._folders = dict(folders)
        self._merge = merge
        self._cache = cache
        self._mixer = SoupMixer()
        self._samples = dict[Names, WeightSample]()
        home = like.folder if like else None
        self._checkpoints = {
            name: merge.open_checkpoint(path, home) for name, path in folders.items()
        }

    @property
    def names(self) -> Names:
        return tuple(self._folders)

    @cached_property
    def warnings(self) -> Sequence[str]:
        notes = preflight(self._checkpoints, self._merge.vocab, self._merge.tokenizer_from)
        self._check_tokenizer_source(self._merge.tokenizer_from)
        return [*notes, *note_ends(self._ends)]

    def _check_tokenizer_source(self, tokenizer_from: str | None) -> None:
        """Refuse, before any work, a `tokenizer_from` without a tokenizer, or with one for other rows than the soup's.

        A name that is not in the pool was refused when the pool was opened.
        """
        if tokenizer_from is None or tokenizer_from not in self._checkpoints:
            return
        # If no candidate has a tokenizer, soups have none.
        owners = list[str]()
        for name, checkpoint in self._checkpoints.items():
            if set(checkpoint.side) & set(TOKENIZERS):
                owners.append(name)
        if owners and tokenizer_from not in owners:
            raise UserError(
                f"merge.tokenizer_from={tokenizer_from} has no tokenizer, nor would the soup: choose {owners[0]}"
            )
        # With vocab=error all have the same rows. The call is for its UserError alone.
        if self._merge.vocab != "error":
            Layout.of(self._checkpoints, self._merge.vocab).tokenizer_index(tokenizer_from)

    @cached_property
    def _ends(self) -> Mapping[str, TokenIds]:
        """{candidate: tokens that end its answers}; none without config and tokenizer."""
        return {
            name: eos_token_ids(checkpoint.home) if checkpoint.side else ()
            for name, checkpoint in self._checkpoints.items()
        }

    def eos_token_ids(self, recipe: Recipe) -> TokenIds:
        """Tokens that end an ingredient's answers, but for those that the soup has no vocabulary row for."""
        tokens = set[int]()
        for name in recipe.ingredients:
            tokens.update(self._ends[name])
        if self._merge.vocab != "error":
            uneven = self._alignment.weighted_layout(recipe).layout.uneven
            if uneven:
                rows = uneven[0].shape[0]
                tokens = {token for token in tokens if token < rows}
        return tuple(sorted(tokens))

    @cached_property
    def fingerprints(self) -> Mapping[str, str]:
        return {
            name: fingerprint_of(checkpoint, self._cache)
            for name, checkpoint in self._checkpoints.items()
        }

    @property
    def known_folders(self) -> Folders:
        known = {self.fingerprints[name]: folder for name, folder in self._folders.items()}
        if self._merge.base_model and self._base_content:
            known[self._base_content] = Path(self._merge.base_model)
        return known

    @property
    def architecture_folder(self) -> Path:
        return next(iter(self._checkpoints.values())).home

    @cached_property
    def _alignment(self) -> Alignment:
        return self._merge.align(self._checkpoints)

    def similarity(self, weights: Mapping[str, float]) -> PoolSimilarity | None:
        """How similar samples of the weights are, and what rounding the soup by these weights loses, if it is a sum."""
        sample = self._sampled(tuple(weights))
        similarity = sample.similarity()
        soup = self._merge.weighted_sum(tuple(weights.values()))
        if similarity is None or soup is None:
            return similarity
        return replace(similarity, rounding=sample.rounding(soup))

    def stored_values(self, name: str, update: bool) -> Mapping[str, Float32]:
        return stored_values(self._checkpoints[name])

    def _sampled(self, names: Names) -> WeightSample:
        """The sample of these candidates' weights, which is read once."""
        if names not in self._samples:
            models = {name: self._checkpoints[name] for name in names}
            self._samples[names] = WeightSample.of(models, self._alignment.base)
        return self._samples[names]

    @cached_property
    def _base_content(self) -> str | None:
        """The fingerprint of the base model, if there is one."""
        base = self._alignment.base
        return fingerprint_of(base, self._cache) if base is not None else None

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of {candidate: weight}, in the pool's order; weights of zero are dropped."""
        chosen = [name for name in self.names if weights.get(name)]
        values = tuple(weights[name] for name in chosen)
        return self._merge.recipe(
            chosen, values, self._checkpoints, self.fingerprints, self._base_content
        )

    def plan(self, recipe: Recipe) -> SoupPlan:
        return self._merge.plan(recipe, self._alignment)

    def live(self, module: torch.nn.Module) -> LoadableModel:
        return self._merge.live(self._alignment, module)

    def stream(self, recipe: Recipe) -> WeightStream | None:
        """The soup's weights in chunks of CHUNK_BYTES; None if the backend does not stream."""
        if not self._merge.streams:
            return None
        in_chunks = self._merge.with_settings({"max_shard_size": CHUNK_BYTES})
        plan = in_chunks.plan(recipe, self._alignment)
        # For mypy: backends that stream have no other plans.
        assert isinstance(plan, MergePlan)
        return self._mixer.stream(plan)

    def write(
        self,
        recipe: Recipe,
        out: Path,
        *,
        extra_files: Extra = None,
        progress: OptionalProgress = None,
    ) -> Path:
        return self._merge.write_soup(recipe, self._alignment, out, progress, extra_files)

    def check_tokenizers(self, texts: Sequence[str] = ()) -> None:
        """As `CandidatePool.check_tokenizers`; a file of `torch.save` is refused too, because it has none."""
        for name, checkpoint in self._checkpoints.items():
            if archive_at(checkpoint.source) is not None:
                raise UserError(
                    f"candidate {name}: {checkpoint.source} is a file of weights, which can be merged only: "
                    "use experiment=merge, or give a model folder"
                )
            check_tokenizer(name, checkpoint.home)
        compare_tokenizers(self._checkpoints, self._merge.vocab, self._merge.tokenizer_from, texts)

    def tokenizer_folder(self, recipe: Recipe) -> Path:
        """The folder of `merge.tokenizer_from`, else of the first ingredient.

        If vocabularies may differ, it is one whose vocabulary is the soup's.
        """
        tokenizer_from = tokenizer_source(self._merge.tokenizer_from, recipe)
        if self._merge.vocab == "error":
            return self._checkpoints[tokenizer_from or recipe.ingredients[0]].home
        layout = self._alignment.weighted_layout(recipe).layout
        return list(layout.pool.values())[layout.tokenizer_index(tokenizer_from)].home

    def candidate_folder(self, recipe: Recipe) -> Path | None:
        """The folder of a recipe's only ingredient (weight 1), if it has the soup's dtype and is not sharded or FP8."""
        name = recipe.ingredients[0]
        checkpoint = self._checkpoints[name]
        same = (
            recipe.weights == (1.0,)
            and recipe.dtype == checkpoint.dtype
            and checkpoint.assembly is None
        )
        return self._folders[name] if same else None

    @property
    def soup_bytes(self) -> int:
        models = self._checkpoints.values()
        return max(model.size_in(self._merge.dtype) + model.side_bytes for model in models)

    def close(self) -> None:
        """Close the backend: one made by `with_settings` has no other owner."""
        self._merge.close()


def open_pool(
    merge: MergeBackend, folders: Folders, cache: Cache = None, like: Like | None = None
) -> CandidatePool:
    """The pool of full models in these folders, or of adapters and maybe full models over their base."""
    kinds = {name: is_adapter(folder) for name, folder in folders.items()}
    if not any(kinds.values()):
        if merge.rank is not None:
            raise UserError(
                f"merge.rank={merge.rank} is for soups of adapters, and no candidate is one: leave it out"
            )
        return FullModelPool(folders, merge, cache, like)
    from souping.merge.adapters import AdapterPool

    return AdapterPool(folders, merge, cache)


def router_weights(router: str, pool: Checkpoints) -> dict[str, list[float]]:
    """{pattern of routers' names: weights in the pool's order}, all on the model that `router` keeps; {} for average.

    Raises:
        UserError: that model is not in the pool, or the models have no router.
    """
    if router == "average":
        return {}
    owner = pick(router.removeprefix(KEEP), pool, "merge.moe_router")
    weights = [float(name == owner) for name in pool]
    by_pattern = dict[str, list[float]]()
    for pattern in common()["routers"]:
        if any(fnmatchcase(name, pattern) for name in pool[owner].tensors):
            by_pattern[pattern] = weights
    if not by_pattern:
        raise UserError(
            f"merge.moe_router={router}: {owner} has no router, as only mixtures of experts have: leave it out"
        )
    return by_pattern


def method_digest(name: str) -> str | None:
    """SHA-256 (hex) of the file with a user's own method, whose code a soup depends on; None for this package's."""
    function = get_method(name).function
    if not is_user_code(function):
        return None
    return hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()


def note_ends(ends: Mapping[str, TokenIds]) -> list[str]:
    """One note if the models end their answers at different tokens; `ends` are {model: tokens}."""
    # Models without end tokens do not count.
    if len(set(filter(None, ends.values()))) <= 1:
        return []
    models = list[str]()
    for name, tokens in ends.items():
        models.append(f"{name} {'/'.join(map(str, tokens)) or 'none'}")
    return [f"answers end at different tokens ({', '.join(models)}): the soup's end at any of them"]
