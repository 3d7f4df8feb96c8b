"""Models as evaluators get them, held by a test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.protocols import Evaluator, LoadedModel
from souping.core.types import Item

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class HeldModel(LoadedModel):
    """A live module with its tokenizer, or a folder; what a test leaves out, its evaluator must not read."""

    def __init__(
        self,
        *,
        soup: str = "",
        eos_token_ids: tuple[int, ...] = (),
        module: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        folder: Path | None = None,
    ) -> None:
        self.soup = soup
        self.eos_token_ids = eos_token_ids
        self._module = module
        self._tokenizer = tokenizer
        self._folder = folder

    def ending_at(self, *token_ids: int) -> HeldModel:
        """This model with other end tokens."""
        return HeldModel(
            soup=self.soup,
            eos_token_ids=token_ids,
            module=self._module,
            tokenizer=self._tokenizer,
            folder=self._folder,
        )

    @property
    def module(self) -> PreTrainedModel:
        assert self._module is not None
        return self._module

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def folder(self) -> Path:
        assert self._folder is not None
        return self._folder


def own_items(evaluator: Evaluator) -> tuple[Item, ...]:
    """The items of an evaluator that brings them."""
    benchmark = evaluator.prompts.benchmark
    assert benchmark is not None
    return benchmark.items()
