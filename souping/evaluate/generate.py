"""Greedy generation by an engine, scored item by item."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from souping.checkpoints.compatibility import has_template
from souping.core.protocols import Evaluator, ModelHost, ModuleSettings, Served, Wants
from souping.core.types import Item, Json, Missing, Record, UserError
from souping.evaluate.engines import Engine
from souping.evaluate.engines.transformers import TransformersEngine, no_template
from souping.evaluate.scoring import score

VERSION = 1
"""Raise when the same settings would give other answers or scores: old rows in stores are then left alone."""
MACHINE = ("dtype", "device", "threads", "workers")
"""Settings of this process, which an engine that computes elsewhere has no use for."""


@dataclass(frozen=True, kw_only=True)
class LocalEvaluator(Evaluator):
    """Answers by greedy decoding, in batches that `engine` generates.

    A text prompt is tokenised as it stands; chat messages go through the tokenizer's chat template. An answer ends at
    the model's end of sequence, at the first of `stop`, or after `max_new_tokens`. With `engine=transformers`, `dtype`
    is what the module computes in, whatever the soup is stored in, and `workers` share a batch, each generating for
    every n-th item with `threads` torch threads: small models gain from a second worker, not from a second thread.
    Batch size, dtype, threads, workers and device are part of the fingerprint: other batches shift logits in the last
    digits. Another engine has settings of its own in place of the last four.
    """

    batch_size: int = 64
    max_new_tokens: int = 64
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    threads: int | None = None
    workers: int = 1
    stop: list[str] = field(default_factory=list)
    trust_remote_code: bool = False
    engine: Engine = field(default_factory=TransformersEngine)

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_new_tokens", "threads", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"evaluator.{name}={value} must be at least 1")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise UserError(f"evaluator.device={self.device} must be auto, cpu, cuda, cuda:N or mps")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"evaluator.dtype={self.dtype} must be float32, bfloat16 or float16")

    @property
    def settings(self) -> dict[str, Json]:
        """Everything a score depends on beside the model and the item."""
        own = self.engine.settings
        known: dict[str, Json] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "engine"}
        if own is not None:
            known = {key: value for key, value in known.items() if key not in MACHINE}
            return {"name": "local", "version": VERSION, **known, "engine": dict(own)}
        resolved: dict[str, Json] = {"threads": self.resolved_threads, "device": self.resolved_device}
        return {"name": "local", "version": VERSION, **known, **resolved}

    @property
    def wants(self) -> Wants:
        """How the engine takes its soups."""
        return self.engine.wants

    def module_settings(self) -> ModuleSettings:
        """How the module is loaded, as far as the engine leaves that to the evaluator."""
        device, trust = self.resolved_device, self.trust_remote_code
        return self.engine.module_settings(ModuleSettings(device=device, dtype=self.dtype, trust_remote_code=trust))

    @property
    def host(self) -> ModelHost | None:
        return self.engine.host

    @property
    def answer_tokens(self) -> int:
        return self.max_new_tokens

    def needs(self) -> list[Missing]:
        return self.engine.needs()

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse chat messages where the tokenizer has no chat template.

        Raises:
            UserError: the message names the first such item.
        """
        chat = next((item for item in items if not isinstance(item.prompt, str)), None)
        if chat is not None and not has_template(folder):
            raise no_template(chat)

    @property
    def resolved_threads(self) -> int:
        return self.threads or min(os.cpu_count() or 1, 8)

    @property
    def resolved_device(self) -> str:
        """`auto` is the GPU where there is one; torch is asked only where a driver is, for a run may need no torch."""
        if self.device != "auto":
            return self.device
        if not Path("/dev/nvidiactl").exists():
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def batches(self, items: Sequence[Item]) -> list[tuple[Item, ...]]:
        """Items of like length together (little padding), in an order that only the items decide."""
        order = sorted(items, key=lambda item: (_length(item), item.id))
        return [tuple(order[i : i + self.batch_size]) for i in range(0, len(order), self.batch_size)]

    def evaluate(self, model: Served, items: Sequence[Item]) -> list[Record]:
        """A record for every item, in order.

        Raises:
            UserError: a prompt does not fit the model's context, or needs a chat template that is not there.
        """
        texts = self.engine.answer(self, model, items)
        return [
            Record(item=item.id, score=score(item, text), output=text) for item, text in zip(items, texts, strict=True)
        ]

    def close(self) -> None:
        """Let go of what the engine holds."""
        self.engine.close()


def _length(item: Item) -> int:
    if isinstance(item.prompt, str):
        return len(item.prompt)
    return sum(len(str(m["content"])) for m in item.prompt) + len(str(item.tools or ""))
