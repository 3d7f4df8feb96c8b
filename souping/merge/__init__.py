"""Merging of checkpoints. Here: base classes of the pools that backends open, of plans, and of live modules.

That of backends is in `backend.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from souping.checkpoints.folder import model_class
from souping.checkpoints.views import Float32
from souping.core.protocols import AdapterShape, Component, WeightStream
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

    @property
    def loader(self) -> str:
        """The class of transformers that loads the pool's soups."""
        return model_class(self.architecture_folder)

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
