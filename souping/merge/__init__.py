"""Merging of checkpoints, on disk and into a live module. Here: the base classes of backends, of the pools that they
open, and of live modules that become soups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from souping.checkpoints.fingerprints import Cache
from souping.checkpoints.folder import Like
from souping.checkpoints.views import Float32
from souping.core.protocols import AdapterShape, Component, WeightStream
from souping.core.text import parse_size
from souping.core.types import Folders, Names, ProgressCallback, Recipe, TokenIds
from souping.core.weight_similarity import PoolSimilarity

if TYPE_CHECKING:
    import torch

ERROR_PREFIX = "souping.merge: error: "
WARNING_PREFIX = "souping.merge: warning: "
RANK_PREFIX = "souping.merge: rank "
"""How lines on standard error of `python -m souping.merge` begin; `merge=accelerate` reads those of its ranks."""
Vocab = Literal["error", "intersect", "union"]
Nonfinite = Literal["error", "warn"]
Format = Literal["hf", "same"]
Adapters = Literal["keep", "merge"]
OptionalProgress: TypeAlias = ProgressCallback | None
Extra: TypeAlias = Mapping[str, str] | None
"""{name: content} of files that a soup's folder gets besides its own."""


class LoadableModel(ABC):
    """Live module that becomes one soup after another."""

    @abstractmethod
    def load_soup(self, recipe: Recipe) -> None:
        """Make the module the recipe's soup, in place."""


class SoupPlan(ABC):
    """Recipe worked out: what is read, done and written."""

    @abstractmethod
    def describe(self) -> str:
        """The plan in a few lines, for people."""

    def save(self, path: Path, similarity: PoolSimilarity | None = None) -> Path | None:
        """The plan as a file that a soup can be made from, with the candidates' similarity (`weights`) if it is known.

        None if plans of this kind are not saved.
        """
        return None


class CandidatePool(Component, ABC):
    """Candidates opened (headers only), checked against each other and aligned once: full models, or adapters.

    Per recipe only weights change. `architecture_folder` is a complete folder of the pool's architecture.
    """

    @property
    @abstractmethod
    def names(self) -> Names: ...

    @property
    @abstractmethod
    def warnings(self) -> Sequence[str]:
        """What a reader of the report must know about the candidates (UserError if they do not fit each other)."""

    @property
    @abstractmethod
    def fingerprints(self) -> Mapping[str, str]: ...

    @property
    @abstractmethod
    def known_folders(self) -> Folders:
        """{content fingerprint: folder} of all that a rebuild would look for: candidates, base model."""

    @property
    @abstractmethod
    def architecture_folder(self) -> Path: ...

    def similarity(self, weights: Mapping[str, float]) -> PoolSimilarity | None:
        """How similar these candidates are, and what rounding their soup loses; None if that is not known."""
        return None

    def stored_values(self, name: str, update: bool) -> Mapping[str, Float32]:
        """{tensor: some of its values} of a candidate in its files; of an adapter's `update` alone, or with the base.

        Empty if that is not known.
        """
        return {}

    @abstractmethod
    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of named weights, ingredients in the pool's order."""

    @abstractmethod
    def plan(self, recipe: Recipe) -> SoupPlan: ...

    @abstractmethod
    def live(self, module: torch.nn.Module) -> LoadableModel: ...

    def stream(self, recipe: Recipe) -> WeightStream | None:
        """The soup's weights in chunks; None if soups of this pool can only be written."""
        return None

    @abstractmethod
    def write(
        self,
        recipe: Recipe,
        out: Path,
        *,
        extra_files: Extra = None,
        progress: OptionalProgress = None,
    ) -> Path:
        """The soup as a folder, whole or not at all."""

    @abstractmethod
    def check_tokenizers(self, texts: Sequence[str] = ()) -> None:
        """Refuse, before anything is evaluated, a candidate without a tokenizer to evaluate it with, and candidates
        that encode one of the texts differently, unless `tokenizer_from` names one of them (UserError)."""

    @abstractmethod
    def tokenizer_folder(self, recipe: Recipe) -> Path:
        """The folder of the tokenizer that the soup gets."""

    def candidate_folder(self, recipe: Recipe) -> Path | None:
        """The folder of the candidate that the soup is, unchanged; None if the soup is not one candidate."""
        return None

    @property
    def base_repo(self) -> str:
        """`org/name` on the Hub of the base model that soups stay adapters of; empty if there is none, or no name."""
        return ""

    def eos_token_ids(self, recipe: Recipe) -> TokenIds:
        """Tokens that end the soup's answers: those of all its ingredients."""
        return ()

    @property
    def adapter_shape(self) -> AdapterShape | None:
        """Base model, rank and modules of the pool's soups if they stay adapters; else None."""
        return None

    @property
    @abstractmethod
    def soup_bytes(self) -> int:
        """Bytes that a soup takes as a folder, at most."""


class MergeBackend(Component, ABC):
    """Mixer of models: the settings that other parts read, and `open`, which opens pools for it.

    `adapters` is `keep` or `merge`, or None if only full models can be mixed; `tokenizer_from` names the
    ingredient whose config and tokenizer the soup gets.
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

    @abstractmethod
    def with_settings(self, settings: Mapping[str, str | int | float | None]) -> MergeBackend:
        """This backend with other settings; settings that it does not have are left out."""

    @abstractmethod
    def open(
        self, folders: Folders, cache: Cache = None, like: Like | None = None
    ) -> CandidatePool:
        """The pool of these candidates; `cache` keeps digests, `like` has what sharded checkpoints lack."""
