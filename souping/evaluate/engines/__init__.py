"""Engines of `evaluator=local`, which turn prompts into texts: `engine={transformers,vllm}`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from souping.core.protocols import Component, LoadedModel, ModelForm, ModelHost, ModuleSettings
from souping.core.types import Item, Json, Outcome
from souping.evaluate.decoding import Decoding


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Text from an engine, how it ended, its token ids with the end token, and the prompt's length and digest."""

    text: str = ""
    outcome: Outcome = "finished"
    reason: str = ""
    tokens: tuple[int, ...] = ()
    prompt_tokens: int = 0
    prompt_key: str = ""

    @classmethod
    def none(cls, prompt: Sequence[int], reason: str) -> Answer:
        return cls(outcome="unanswered", reason=reason, prompt_tokens=len(prompt), prompt_key=prompt_key(prompt))


def prompt_key(prompt: Sequence[int]) -> str:
    """Digest of a prompt's token ids."""
    return hashlib.sha256(np.array(prompt, "<i4").tobytes()).hexdigest()


NEW = 1024
"""Tokens that an answer may have by default."""


def context(model: LoadedModel) -> int | None:
    """Length of a live model's context in tokens, if its config says so; of its text part if it has several."""
    config = model.module.config.get_text_config(decoder=True)
    known = getattr(config, "max_position_embeddings", None)  # transformers'
    return known if isinstance(known, int) and known > 0 else None


def room(prompt: Sequence[int], new: int | None, limit: int | None) -> tuple[int, str]:
    """(tokens that an answer may have in a context of `limit`, why it can have none).

    If `new` is None, that is `NEW` or what the context leaves.
    """
    if not prompt:
        return 0, "the tokenizer makes no token of the prompt"
    if limit and len(prompt) >= limit:
        return 0, f"the prompt does not fit the context of {limit} tokens"
    if new is not None or not limit:
        most = NEW if new is None else new
        return min(most, limit - len(prompt)) if limit else most, ""
    return min(NEW, left_by(limit, len(prompt))), ""


def left_by(limit: int, prompt: int) -> int:
    """Tokens that a context leaves for the answer to a prompt, rounded down to four binary digits."""
    free = max(0, limit - prompt)
    # rounded, so that prompts of similar length have the same limit and fit into one batch
    step = 1 << max(0, free.bit_length() - 4)
    return free // step * step


class GenerationSettings(Protocol):
    """Settings of an evaluator that an engine uses: answers end at a text of `stop` or after `max_new_tokens`."""

    @property
    def max_new_tokens(self) -> int | None: ...

    @property
    def stop(self) -> list[str]: ...

    @property
    def decoding(self) -> Decoding: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def workers(self) -> int: ...

    @property
    def resolved_threads(self) -> int: ...

    @property
    def trust_remote_code(self) -> bool: ...


class Engine(Component, Protocol):
    """Settings of an engine. It may hold processes or a model between two soups, which `close` ends."""

    model_form: ModelForm = "module"
    """Form of the soups: poured into a module that the engine generates with, or `either` form, on demand."""

    def answer(
        self, settings: GenerationSettings, model: LoadedModel, items: Sequence[Item], replicate: int
    ) -> list[Answer]:
        """The n-th answers, in the items' order (UserError where the engine cannot run)."""
        ...

    @property
    def settings(self) -> Mapping[str, Json] | None:
        """What answers depend on beside the evaluator's settings. None if those are all; otherwise the evaluator's
        settings of the machine (dtype, device, threads, workers) are not used."""
        return None

    def module_settings(self, default: ModuleSettings) -> ModuleSettings:
        """How the live module is loaded; `default` is how the evaluator would load it."""
        return default

    @property
    def host(self) -> ModelHost | None:
        """Processes that hold the model, if there are any."""
        return None


def answer_of(
    settings: GenerationSettings,
    model: LoadedModel,
    prompt: list[int],
    row: list[int],
    ends: Sequence[int],
    pad: int,
    new: int,
) -> Answer:
    """One row of generated ids as an answer: up to its first end token, without the padding after a stop text."""
    end = next((n for n, token in enumerate(row) if token in ends), None)
    tokens = row[: end + 1] if end is not None else row
    if (end is None and len(row) < new) or settings.stop:
        while end is None and tokens and tokens[-1] == pad:
            tokens.pop()
    text = str(model.tokenizer.decode(tokens[:-1] if end is not None else tokens, skip_special_tokens=True))
    short = cut(text, settings.stop)
    finished = end is not None or len(short) < len(text) or len(tokens) < new
    return Answer(
        text=short,
        outcome="finished" if finished else "truncated",
        tokens=tuple(tokens),
        prompt_tokens=len(prompt),
        prompt_key=prompt_key(prompt),
    )


def eos_token_ids(model: LoadedModel) -> tuple[int, ...]:
    """Tokens that end answers: the soup's, else its tokenizer's, else those of the module's own config."""
    own = (model.tokenizer.eos_token_id, model.module.generation_config.eos_token_id)
    end = next((end for end in own if end is not None), ())
    return model.eos_token_ids or ((end,) if isinstance(end, int) else tuple(end))


def pad_id(model: LoadedModel) -> int:
    for value in (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, model.module.config.eos_token_id):
        if isinstance(value, list):
            value = value[0]
        if value is not None:
            return int(value)
    return 0


def cut(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    ends = [text.find(end) for end in stop if end in text]
    return text[: min(ends)] if ends else text
