"""The poured module as a model of the harness, built once and used for every soup that is poured into it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from souping.core import UserError
from souping.evaluate.harness import prefix
from souping.evaluate.harness.quiet import quiet
from souping.evaluate.loading import first_line
from souping.protocols import Served

HFLM_KEYS = (
    "backend",
    "truncation",
    "logits_cache",
    "max_length",
    "softmax_dtype",
    "mixed_precision_dtype",
    "batch_size",
    "max_batch_size",
    "add_bos_token",
    "prefix_token_id",
    "think_end_token",
    "enable_thinking",
    "chat_template_args",
)
"""Arguments of HFLM that the evaluator passes on; the others load a checkpoint, which the kitchen has done."""


class Hand:
    """Holds the harness's model of the module that was served last.

    It keeps no answer: HFLM's cache of logits lives within one call, and its request cache is never opened. Weights
    that are poured into the same module are therefore seen at the next call. Between calls it does not hold the module
    either, or a kitchen that lets go of one to load another would have both in memory.
    """

    def __init__(self) -> None:
        self._seen: tuple[Any, Any] = (lambda: None, lambda: None)
        self._model: Any = None

    @contextmanager
    def model(self, served: Served, evaluator: Any) -> Iterator[Any]:
        """The harness's model of what is served; a new one only for another module or tokenizer."""
        module, tokenizer = (seen() for seen in self._seen)
        if module is not served.module or tokenizer is not served.tokenizer:
            self._model = build(served, evaluator)
            self._seen = (weakref.ref(served.module), weakref.ref(served.tokenizer))
        self._model._model = self._model.pretrained = served.module
        try:
            yield self._model
        finally:
            self._model._model = self._model.pretrained = None


def build(served: Served, evaluator: Any) -> Any:
    """HFLM around a live module.

    Raises:
        UserError: HFLM refuses the settings, or the model is of a kind that it does not know.
    """
    tokenizer = served.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer = copy.deepcopy(tokenizer)  # HFLM gives it a padding token, and others use it too
    arguments = {key: getattr(evaluator, key) for key in HFLM_KEYS}
    try:
        with quiet():
            model = live_class()(
                pretrained=served.module, tokenizer=tokenizer, device=str(served.module.device), **arguments
            )
    except (ValueError, TypeError, AssertionError, AttributeError, KeyError) as error:
        raise UserError(f"evaluator=lm_eval cannot take this model: {first_line(error)}") from error
    model.shared_prefix = evaluator.shared_prefix
    if isinstance(evaluator.apply_chat_template, str):
        model.chat_template_args = {**model.chat_template_args, "chat_template": evaluator.apply_chat_template}
    return model


@cache
def live_class() -> type:
    """HFLM without progress bars, with tool schemas in the chat template, and with shared contexts on request."""
    from lm_eval.models.huggingface import HFLM

    class Live(HFLM):  # type: ignore[misc]
        shared_prefix = False
        tools: Any = None
        chat_template_args: dict[str, Any]
        prefix_fits: bool | None = None
        told = False

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
            found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
            return found

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            found: list[str] = super().generate_until(requests, disable_tqdm=True)
            return found

        def apply_chat_template(self, chat_history: list[Any], add_generation_prompt: bool = True) -> str:
            own: Any = self.chat_template_args
            if self.tools is not None:
                self.chat_template_args = {**own, "tools": self.tools}
            try:
                return str(super().apply_chat_template(chat_history, add_generation_prompt))
            finally:
                self.chat_template_args = own

        def _loglikelihood_tokens(
            self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            whole = super()._loglikelihood_tokens
            if not self.shared_prefix or not prefix.fits(self):
                return list(whole(requests, disable_tqdm=True, override_bs=override_bs))
            return prefix.score(
                self, requests, lambda rest: list(whole(rest, disable_tqdm=True, override_bs=override_bs))
            )

    return Live
