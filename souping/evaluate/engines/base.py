"""Base class of engines, which answer prompts and score texts; and the answers that they return.

A new engine is a subclass in a file beside this one and a choice in conf/engine.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from souping.core.protocols import (
    AdapterShape,
    Component,
    LoadedModel,
    ModelForm,
    ModelHost,
    ModuleSettings,
)
from souping.core.types import Item, JsonObject, Names, Outcome, TokenIds, frozen
from souping.evaluate.machine import MachineSettings
from souping.evaluate.templates import Decoding

DEFAULT_NEW_TOKENS = 1024
"""Tokens that an answer may have by default."""


@frozen
class GenerationSettings:
    """Settings of an evaluator that generates answers by an engine.

    Answers end at a text of `stop` or after `max_new_tokens` (None: see `answer_room`), and `decoding` picks
    their tokens. `machine` is for an engine without settings of its own.
    """

    machine: MachineSettings
    max_new_tokens: int | None
    stop: Sequence[str]
    decoding: Decoding


@frozen
class Answer:
    """Answer of an engine to a prompt.

    `outcome` is how it ended, and `reason` why there is none. `tokens` are its token ids with the end token.
    `prompt_tokens` is the length of the prompt, and `prompt_key` the digest of its token ids.
    """

    text: str = ""
    outcome: Outcome = "finished"
    reason: str = ""
    tokens: TokenIds = ()
    prompt_tokens: int = 0
    prompt_key: str = ""

    @classmethod
    def none(cls, prompt: Sequence[int], reason: str) -> Answer:
        """No answer to a prompt, for this reason."""
        return cls(
            outcome="unanswered",
            reason=reason,
            prompt_tokens=len(prompt),
            prompt_key=prompt_key(prompt),
        )


@frozen
class Passage:
    """Token ids that are scored, and the token ids `before` them, at least one."""

    before: TokenIds
    scored: TokenIds

    def windows(self, limit: int | None, stride: int | None) -> list[tuple[list[int], int]]:
        """(token ids, how many at their end are scored) of each window.

        A model reads at most `limit` tokens of a window, all but the last. The first window scores what fits after
        `before`; if that is less than half of the limit, `before` loses its beginning. Each later one scores `stride`
        tokens more (default: the limit) after as many of the tokens before them as fit.

        For `before` b, `scored` 1 to 9, limit 4 and stride 2, the windows are b1234 (scored: 1234), 23456 (56),
        45678 (78) and 56789 (9).
        """
        tokens = [*self.before, *self.scored]
        limit = limit or len(tokens)
        # Tokens up to here are scored, or need no score.
        scored_end = len(self.before)
        # A window may have a token more than the limit, as its last token is not read. At least one token is scored,
        # also if the limit is 1.
        count = max(limit + 1 - scored_end, limit // 2, 1)
        windows = list[tuple[list[int], int]]()
        while scored_end < len(tokens):
            end = min(len(tokens), scored_end + count)
            begin = max(0, end - 1 - limit)
            windows.append((tokens[begin:end], end - scored_end))
            scored_end = end
            # All later windows. None can score more tokens than the model reads.
            count = min(stride or limit, limit)
        return windows


class Engine(Component, ABC):
    """Settings of an engine. It may hold processes or a model between two soups, which `close` ends."""

    packages: ClassVar[Names] = ()
    """Packages of which the one that is installed is the engine; the report has its version."""

    @abstractmethod
    def generate(
        self,
        settings: GenerationSettings,
        model: LoadedModel,
        items: Sequence[Item],
        repeat: int,
    ) -> list[Answer]:
        """One answer to each item, in order (UserError if the engine cannot run).

        `repeat` counts the answers to an item, from 0 on.
        """

    @abstractmethod
    def likelihoods(
        self,
        machine: MachineSettings,
        model: LoadedModel,
        passages: Sequence[Passage],
        stride: int | None,
    ) -> list[float]:
        """Log-likelihoods of the passages' scored tokens, in nats (UserError if the engine cannot run).

        A passage that is longer than the context is read in windows with this `stride` (`Passage.windows`).
        """

    @property
    def settings(self) -> JsonObject | None:
        """What answers depend on besides the evaluator's settings; None for an engine in this process.

        An engine that has settings does not use those of the evaluator's machine (device, threads, workers), except for
        the dtype.
        """
        return None

    @property
    def model_form(self) -> ModelForm:
        """Form in which the engine takes soups: a live module, a folder, or chunks of weights."""
        return "module"

    def module_settings(self, machine: MachineSettings) -> ModuleSettings:
        """How the live module is loaded."""
        return machine.module_settings()

    def check_adapters(self, shape: AdapterShape) -> None:
        """Refuse soups that stay adapters of this shape, if the engine cannot serve them (UserError)."""
        return None

    @property
    def host(self) -> ModelHost | None:
        """Processes that hold the model; None if the model is in this process."""
        return None


def prompt_key(prompt: Sequence[int]) -> str:
    """Digest of a prompt's token ids."""
    return hashlib.sha256(np.array(prompt, "<i4").tobytes()).hexdigest()


def context_length(model: LoadedModel) -> int | None:
    """Length of a live model's context in tokens, if its config says so; of its text part if it has several."""
    config = model.module.config.get_text_config(decoder=True)
    known = getattr(config, "max_position_embeddings", None)
    return known if isinstance(known, int) and known > 0 else None


def answer_room(prompt: Sequence[int], max_new: int | None, limit: int | None) -> tuple[int, str]:
    """(number of tokens that an answer may have, why no answer is possible: empty if one is).

    The number is `max_new` (None: `DEFAULT_NEW_TOKENS`), or what a context of `limit` tokens (None: any) leaves if that
    is less.
    """
    if not prompt:
        return 0, "the tokenizer makes no token of the prompt"
    if limit and len(prompt) >= limit:
        return 0, f"the prompt does not fit the context of {limit} tokens"
    if not limit:
        return DEFAULT_NEW_TOKENS if max_new is None else max_new, ""
    if max_new is not None:
        return min(max_new, limit - len(prompt)), ""
    # Rounded, because 1,024 tokens bring many prompts near the limit, and equal numbers share a batch.
    return min(DEFAULT_NEW_TOKENS, left_by(limit, len(prompt))), ""


def left_by(limit: int, prompt: int) -> int:
    """Number of tokens that a context of `limit` leaves for the answer to a `prompt` of this many tokens.

    It is rounded down to four binary digits, so that prompts of similar length leave the same number.
    """
    free = max(0, limit - prompt)
    step = 1 << max(0, free.bit_length() - 4)
    return free // step * step


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop text in it; the whole text if it has none."""
    places = [text.find(end) for end in stop if end in text]
    return text[: min(places)] if places else text
