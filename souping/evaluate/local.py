"""Greedy generation with a live transformers module, scored item by item."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from souping import scorers
from souping.core import Item, Record, UserError, digest
from souping.protocols import Served

VERSION = 1
"""Raise when the same settings would give other answers or scores: old rows in stores are then left alone."""


@dataclass(frozen=True, kw_only=True)
class LocalEvaluator:
    """Answers by greedy decoding, batched, with a KV cache.

    A text prompt is tokenised as it stands; chat messages go through the tokenizer's chat template. An answer ends at
    the model's end of sequence, at the first of `stop`, or after `max_new_tokens`. `dtype` is what the module computes
    in, whatever the soup is stored in. `workers` share a batch, each generating for every n-th item with `threads`
    torch threads: small models gain from a second worker, not from a second thread. Batch size, dtype, threads,
    workers and device are part of the fingerprint: other batches shift logits in the last digits.
    """

    batch_size: int = 64
    max_new_tokens: int = 64
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    threads: int | None = None
    workers: int = 1
    stop: list[str] = field(default_factory=list)
    trust_remote_code: bool = False

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
    def settings(self) -> dict[str, Any]:
        """Everything a score depends on beside the model and the item."""
        known: Mapping[str, Any] = asdict(self)
        resolved = {"threads": self.resolved_threads, "device": self.resolved_device}
        return {"name": "local", "version": VERSION, **known, **resolved}

    @property
    def fingerprint(self) -> str:
        return digest(self.settings)

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
        shares = [items[i :: self.workers] for i in range(min(self.workers, len(items)))]
        if len(shares) < 2:
            return self._share(model, items)
        with ThreadPoolExecutor(len(shares), thread_name_prefix="souping-evaluate") as pool:
            parts = list(pool.map(lambda share: self._share(model, share), shares))
        return [parts[i % len(parts)][i // len(parts)] for i in range(len(items))]

    def _share(self, model: Served, items: Sequence[Item]) -> list[Record]:
        import torch

        torch.set_num_threads(self.resolved_threads)  # counts for the calling thread alone
        prompts = [self._render(model.tokenizer, item) for item in items]
        with torch.inference_mode():
            outputs = self._generate(model, items, prompts)
        return [
            Record(item=item.id, score=scorers.score(item, text), output=text)
            for item, text in zip(items, outputs, strict=True)
        ]

    def _render(self, tokenizer: Any, item: Item) -> list[int]:
        if isinstance(item.prompt, str):
            return list(tokenizer(item.prompt)["input_ids"])
        return list(tokenizer(_chat(tokenizer, item), add_special_tokens=False)["input_ids"])

    def _generate(self, model: Served, items: Sequence[Item], prompts: list[list[int]]) -> list[str]:
        import torch

        width = max(len(p) for p in prompts)
        self._check_context(model, items, prompts)
        pad = _pad_id(model)
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # left padding: every row ends where its answer begins
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        device = next(model.module.parameters()).device
        out = model.module.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=self._decoding(model, pad),
            **({"tokenizer": model.tokenizer} if self.stop else {}),
        )
        new = out[:, width:] if not model.module.config.is_encoder_decoder else out[:, 1:]
        texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [self._cut(text) for text in texts]

    def _decoding(self, model: Served, pad: int) -> Any:
        """Greedy, whatever sampling the checkpoint's own generation config asks for."""
        from transformers import GenerationConfig

        own = model.module.generation_config
        end = own.eos_token_id if own.eos_token_id is not None else model.tokenizer.eos_token_id
        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=pad,
            eos_token_id=end,
            bos_token_id=own.bos_token_id,
            decoder_start_token_id=own.decoder_start_token_id,
            stop_strings=self.stop or None,
            use_cache=True,
        )

    def _cut(self, text: str) -> str:
        ends = [text.find(stop) for stop in self.stop if stop in text]
        return text[: min(ends)] if ends else text

    def _check_context(self, model: Served, items: Sequence[Item], prompts: list[list[int]]) -> None:
        limit = getattr(model.module.config, "max_position_embeddings", None)
        for item, prompt in zip(items, prompts, strict=True):
            if not prompt:
                raise UserError(f"item {item.id}: the tokenizer makes no token of its prompt")
            if limit and len(prompt) + self.max_new_tokens > limit:
                raise UserError(
                    f"item {item.id}: {len(prompt)} prompt tokens and evaluator.max_new_tokens={self.max_new_tokens} "
                    f"exceed the model's context of {limit}"
                )


def _chat(tokenizer: Any, item: Item) -> str:
    """The item's messages and tools as the tokenizer's chat template writes them."""
    from jinja2 import TemplateError

    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise UserError(f"item {item.id}: chat messages need a chat template, and the tokenizer has none")
    if item.tools and "tools" not in str(template):
        raise UserError(f"item {item.id}: the tokenizer's chat template shows no tools; put them into a message")
    messages, tools = [dict(m) for m in item.prompt], [dict(tool) for tool in item.tools]  # type: ignore[arg-type]
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools or None, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise UserError(f"item {item.id}: the chat template refuses its messages: {error}") from error
    return str(text)


def _length(item: Item) -> int:
    if isinstance(item.prompt, str):
        return len(item.prompt)
    return sum(len(m["content"]) for m in item.prompt) + len(str(item.tools or ""))


def _pad_id(model: Served) -> int:
    for value in (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, model.module.config.eos_token_id):
        if isinstance(value, list):
            value = value[0]
        if value is not None:
            return int(value)
    return 0
