"""Base class of merge backends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from souping.checkpoints.checkpoint import Checkpoint, Checkpoints
from souping.checkpoints.fingerprints import Cache
from souping.checkpoints.folder import Like
from souping.checkpoints.layouts import rules_of
from souping.core.protocols import Component
from souping.core.text import parse_size
from souping.core.types import Folders, JsonObject, Recipe, UserError, Weights
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
from souping.merge.alignment import Alignment
from souping.merge.weight_samples import WeightedSum

if TYPE_CHECKING:
    import torch


class MergeBackend(Component, ABC):
    """Mixer of models: the settings that other parts read, how full models are mixed, and `open`, which opens pools.

    A backend is a component; a setting for which it has no key has the value below. `adapters` is `keep` or `merge`, or
    None if only full models can be mixed; `tokenizer_from` names the ingredient whose config and tokenizer the soup
    gets.
    """

    by: ClassVar[str | None] = None
    """What the recipes of this backend have for `settings.by`; None for those without it."""
    method: str = "linear"
    base_model: str | None = None
    """Folder or Hub name of the base model, where there is one."""
    dtype: str | None = None
    """The soup's dtype by torch's name; None for the ingredients' own."""
    vocab: Vocab = "error"
    nonfinite: Nonfinite = "error"
    allow_pickle: bool = False
    adapters: Adapters | None = None
    rank: int | None = None
    """Rank of a soup that stays an adapter, at most; None for the sum of its adapters' ranks."""
    max_shard_size: str | int = "5GB"
    tensor_weights: Mapping[str, Sequence[float]] | None = None
    tokenizer_from: str | None = None
    format: Format = "hf"
    """Layout of the soup: a Hugging Face folder, or that of the newest ingredient."""
    name_rules: str | None = None
    """File of rules for the tensor names of sharded checkpoints, or `show`."""

    @cached_property
    def shard_bytes(self) -> int:
        """`max_shard_size` in bytes (UserError if it is no size)."""
        return parse_size(self.max_shard_size, "merge.max_shard_size")

    @property
    def hashes_while_reading(self) -> bool:
        """Whether soups of full models can be written before the ingredients are hashed."""
        return False

    @property
    def streams(self) -> bool:
        """Whether soups of full models can also come in chunks."""
        return False

    def with_settings(self, settings: Mapping[str, str | int | float | None]) -> Self:
        # For mypy: all backends are components.
        assert is_dataclass(self)
        known = {field.name for field in fields(self) if field.init}
        return replace(self, **{key: value for key, value in settings.items() if key in known})

    def open_checkpoint(self, path: Path, home: Path | None) -> Checkpoint:
        """A checkpoint by these settings; a sharded one has the config and tokenizer of `home`."""
        like = Like(home, rules_of(self.name_rules), stored=self.format == "same")
        return Checkpoint.open(path, self.allow_pickle, like)

    def align(self, checkpoints: Checkpoints) -> Alignment:
        """The candidates and the base model, if there is one, side by side."""
        base = None
        if self.base_model:
            # A sharded base model gets its config and tokenizer from where sharded candidates have theirs.
            homes = (checkpoint.like for checkpoint in checkpoints.values())
            home = next(filter(None, homes), None)
            base = self.open_checkpoint(Path(self.base_model), home)
        return Alignment(checkpoints, base)

    def recipe(
        self,
        ingredients: Sequence[str],
        weights: Weights,
        checkpoints: Checkpoints,
        fingerprints: Mapping[str, str],
        base: str | None = None,
    ) -> Recipe:
        """The recipe of these weights with all settings that decide the soup's numbers.

        `checkpoints` is the whole pool in its order, which is also that of the lists in `tensor_weights`; `base` is the
        base model's fingerprint, taken from its folder by default. A single ingredient is that model itself, whatever
        the method. Settings that change nothing are left out, so that equal soups have equal ids.

        Raises:
            UserError: a list in `tensor_weights` has another length than the pool.
        """
        used = [name for name, weight in zip(ingredients, weights, strict=True) if weight != 0]
        # One ingredient alone is copied.
        method = "linear"
        settings: JsonObject = {}
        if len(used) != 1:
            method = self.method
            settings = self.settings_of(used, checkpoints, base)
        return Recipe(
            ingredients=tuple(ingredients),
            fingerprints=tuple(fingerprints[name] for name in ingredients),
            weights=tuple(float(weight) for weight in weights),
            dtype=self.dtype or common_dtype(checkpoints[name] for name in used),
            method=method,
            settings=settings,
        )

    @abstractmethod
    def settings_of(self, used: Sequence[str], pool: Checkpoints, base: str | None) -> JsonObject:
        """Settings of a recipe of several ingredients (`used`) of the pool.

        `base` is the base model's fingerprint; None: that of its folder.
        """

    def weighted_sum(self, weights: Weights) -> WeightedSum | None:
        """The soup by these weights as one sum over the models and the base; None if it is not such a sum."""
        return None

    @abstractmethod
    def plan(self, recipe: Recipe, models: Alignment) -> SoupPlan:
        """The recipe of these models worked out."""

    @abstractmethod
    def write_soup(
        self,
        recipe: Recipe,
        models: Alignment,
        out: Path,
        progress: OptionalProgress = None,
        extra_files: Extra = None,
    ) -> Path:
        """The soup as a folder, which appears whole or not at all."""

    @abstractmethod
    def live(self, models: Alignment, module: torch.nn.Module) -> LoadableModel:
        """A module that becomes one soup of these models after another."""

    @abstractmethod
    def open(
        self, folders: Folders, cache: Cache = None, like: Like | None = None
    ) -> CandidatePool:
        """The pool of these candidates; `cache` keeps digests, `like` has what sharded checkpoints lack."""


def check_adapter_settings(merge: MergeBackend) -> None:
    """Refuse settings that have no meaning for adapters.

    Raises:
        UserError: the first of them, by name.
    """
    if merge.adapters is None:
        raise UserError("this merge backend does not soup adapters: use merge=local")
    if merge.method != "linear":
        raise UserError(
            f"merge.method={merge.method} is for full models: adapters are souped with merge.method=linear"
        )
    if merge.rank is not None and merge.adapters == "merge":
        raise UserError(
            "merge.rank is for a soup that stays an adapter: leave it out, or set merge.adapters=keep"
        )
    if merge.tensor_weights:
        raise UserError(
            "merge.tensor_weights is for full models: a soup of adapters has one weight an adapter"
        )


def common_dtype(checkpoints: Iterable[Checkpoint]) -> str:
    """The dtype of the checkpoints' soup by torch's name; several joined by `+` if a model itself mixes dtypes."""
    stored = list(dict.fromkeys(checkpoint.dtype for checkpoint in checkpoints))
    if len(stored) == 1:
        return stored[0]
    # Two 16-bit formats meet in fp32, as any dtype with fp32.
    if not any("+" in name for name in stored):
        return "float32"
    return "+".join(sorted(set("+".join(stored).split("+"))))
