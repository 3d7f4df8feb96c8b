"""`engine=transformers`: transformers' own generation, with the poured module, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from souping.core import Item
from souping.evaluate.engines import Asked, Stage
from souping.evaluate.engines.prompts import check_context, cut, render
from souping.protocols import Served


@dataclass(frozen=True, kw_only=True)
class TransformersEngine:
    """Batched greedy decoding with a KV cache. Its settings are the evaluator's: dtype, device, threads, workers."""

    @property
    def wants(self) -> Literal["module", "either"]:
        return "module"

    @property
    def settings(self) -> None:
        """The evaluator's settings say it all, so that scores in older stores stay valid."""
        return None

    def stage(self, asked: Asked) -> Stage | None:
        return None

    def close(self) -> None:
        """It holds nothing: the module is the kitchen's."""

    def answer(self, asked: Asked, model: Served, items: Sequence[Item]) -> list[str]:
        """The texts, in the items' order; `asked.workers` threads share the items."""
        shares = [items[i :: asked.workers] for i in range(min(asked.workers, len(items)))]
        if len(shares) < 2:
            return _share(asked, model, items)
        with ThreadPoolExecutor(len(shares), thread_name_prefix="souping-evaluate") as pool:
            parts = list(pool.map(lambda share: _share(asked, model, share), shares))
        return [parts[i % len(parts)][i // len(parts)] for i in range(len(items))]


def _share(asked: Asked, model: Served, items: Sequence[Item]) -> list[str]:
    import torch

    torch.set_num_threads(asked.resolved_threads)  # counts for the calling thread alone
    prompts = [render(model.tokenizer, item) for item in items]
    limit = getattr(model.module.config, "max_position_embeddings", None)
    check_context(items, prompts, asked.max_new_tokens, limit)
    with torch.inference_mode():
        return _generate(asked, model, prompts)


def _generate(asked: Asked, model: Served, prompts: Sequence[list[int]]) -> list[str]:
    import torch

    width, pad = max(len(p) for p in prompts), _pad_id(model)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # left padding: every row ends where its answer begins
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    device = next(model.module.parameters()).device
    out = model.module.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=_decoding(asked, model, pad),
        **({"tokenizer": model.tokenizer} if asked.stop else {}),
    )
    new = out[:, width:] if not model.module.config.is_encoder_decoder else out[:, 1:]
    texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [cut(text, asked.stop) for text in texts]


def _decoding(asked: Asked, model: Served, pad: int) -> Any:
    """Greedy, whatever sampling the checkpoint's own generation config asks for."""
    from transformers import GenerationConfig

    own = model.module.generation_config
    end = own.eos_token_id if own.eos_token_id is not None else model.tokenizer.eos_token_id
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        max_new_tokens=asked.max_new_tokens,
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
        stop_strings=asked.stop or None,
        use_cache=True,
    )


def _pad_id(model: Served) -> int:
    for value in (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, model.module.config.eos_token_id):
        if isinstance(value, list):
            value = value[0]
        if value is not None:
            return int(value)
    return 0
