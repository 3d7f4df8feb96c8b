"""Loss on texts: how many bits a model needs for each byte of a text, or of an answer after its prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.fields import Count, component
from souping.core.protocols import LoadedModel, Prompts, Sampling
from souping.core.types import TEXT, Item, Items, JsonObject, Record, UserError, frozen
from souping.core.unit import BITS_PER_BYTE
from souping.evaluate.engines.base import Passage, prompt_key
from souping.evaluate.engines.transformers import load_tokenizer
from souping.evaluate.generate import EngineEvaluator, EnginePrompts
from souping.evaluate.machine import cut_by_length
from souping.evaluate.templates import as_seen, encode, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOSS_EVALUATOR_VERSION = 1
"""Raise when the same settings would give other scores."""


@frozen
class LossPrompts(EnginePrompts):
    """Texts that a model reads. `trust_remote_code` lets their tokenizer run its own code."""

    trust_remote_code: bool

    def banner(self) -> str:
        return "scores are bits per byte: lower is better, and nothing is generated"

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse items without a text to score (UserError)."""
        EnginePrompts.check_tokenizer(self, folder, items)
        for item in items:
            scored_text(item)

    def prompt_notes(self, folder: Path, items: Sequence[Item]) -> list[str]:
        """A note if the tokenizer does not know some characters: one token then stands for any number of bytes."""
        tokenizer = load_tokenizer(folder, self.trust_remote_code)
        unknown = tokenizer.unk_token_id
        if unknown is None:
            return []
        count = sum(unknown in encode(tokenizer, scored_text(item)) for item in items)
        if not count:
            return []
        what = f"{count} of {len(items)} texts have characters that the tokenizer does not know"
        return [f"{what}: their bits per byte are too low"]


@component
class LossEvaluator(EngineEvaluator):
    """Bits per byte, from the log-likelihood of an item's text by `engine`; lower is better.

    An item with a `text` is scored from its first token on, which follows the tokenizer's BOS token (EOS if it has
    none). Of any other item the answer is scored, after its prompt. A text that is longer than the model's context is
    read in windows: each after the first scores `stride` further tokens (default: the context), after as much of the
    text before them as fits. The end of a text is not scored.

    A category's score is the mean over its items, so that each text counts alike; it is not the bits per byte of all
    texts together. The store keeps both numbers of every item, its bits and its bytes.
    """

    unit = BITS_PER_BYTE

    batch_size: Count = 16
    stride: Count | None = None

    @property
    def settings(self) -> JsonObject:
        return self.settings_of("loss", LOSS_EVALUATOR_VERSION, {"stride": self.stride})

    @property
    def prompts(self) -> Prompts:
        return LossPrompts(trust_remote_code=self.trust_remote_code)

    @property
    def sampling(self) -> Sampling:
        return Sampling(full_batch=self.batch_size, answer_tokens=0)

    def batches(self, items: Sequence[Item], repeat: int = 0) -> list[Items]:
        # A model reads the prompt and the answer.
        return cut_by_length(
            items, lambda item: len(item.text) + len(str(item.answer)), self.batch_size
        )

    def evaluate(self, model: LoadedModel, items: Sequence[Item], repeat: int = 0) -> list[Record]:
        """Bits per byte of every item, in order.

        Raises:
            UserError: an item has no text to score, or the engine cannot run.
        """
        passages = [passage(model.tokenizer, item) for item in items]
        likelihoods = self.engine.likelihoods(self.machine, model, passages, self.stride)
        return [
            _record(model, item, tokens, likelihood)
            for item, tokens, likelihood in zip(items, passages, likelihoods, strict=True)
        ]


def _record(model: LoadedModel, item: Item, tokens: Passage, likelihood: float) -> Record:
    """Record of an item: bits per byte, and (bits, bytes) as statistics. `likelihood` is a logarithm, in nats."""
    bits = -likelihood / math.log(2)
    nbytes = len(scored_text(item).encode())
    token_ids = (*tokens.before, *tokens.scored)
    key = prompt_key(token_ids)
    return Record(
        item=item.id,
        score=bits / nbytes,
        statistics=(bits, float(nbytes)),
        prompt_tokens=len(token_ids),
        prompt_key=key,
        prompt=as_seen(model.tokenizer, item, key),
    )


def scored_text(item: Item) -> str:
    """The text whose bits are counted: the item's `text`, or its answer (UserError if the answer is no text)."""
    text = item.prompt if item.scorer == TEXT else item.answer
    if not isinstance(text, str) or not text:
        raise UserError(
            f"item {item.id}: evaluator=loss needs a `text`, or an answer that is a text, not {text!r:.40}"
        )
    return text


def passage(tokenizer: PreTrainedTokenizerBase, item: Item) -> Passage:
    """The tokens of an item that are scored, and the tokens before them.

    An answer is tokenised together with its prompt, and scored from the first token that differs from the prompt's.
    A text is scored from its first token on, which follows a BOS token (EOS if the tokenizer has none).

    Raises:
        UserError: there is no token to score, or none that a text's first token could follow.
    """
    prompt = prompt_text(tokenizer, item)
    answer = scored_text(item)
    tokens = encode(tokenizer, prompt)
    # Number of tokens before the first one that is scored.
    shared = 0
    if item.scorer != TEXT:
        prompt_tokens = tokens
        tokens = encode(tokenizer, prompt + answer)
        shared = _shared_prefix(prompt_tokens, tokens)
    if len(tokens) == shared:
        raise UserError(f"item {item.id}: the tokenizer has no token of the text")
    # A chat prompt begins as its template says, so no BOS token is added.
    if not isinstance(item.prompt, str) and shared:
        return Passage(before=tuple(tokens[:shared]), scored=tuple(tokens[shared:]))
    begin = tokenizer.bos_token_id
    if begin is None:
        begin = tokenizer.eos_token_id
    if begin is None:
        raise UserError(
            f"item {item.id}: the tokenizer has no BOS or EOS token, which the first token follows"
        )
    return Passage(before=(begin, *tokens[:shared]), scored=tuple(tokens[shared:]))


def _shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens at the beginning two sequences have in common."""
    count = 0
    # The longer one may go on after the other ends.
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
