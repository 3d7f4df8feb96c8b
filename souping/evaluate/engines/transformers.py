"""`engine=transformers`: transformers' own generation, with the poured module, in this process.

Below it is what every engine does alike: modules and tokenizers loaded from a folder, items made into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.protocols import ModuleSettings, Served
from souping.core.text import first_line
from souping.core.types import Item, UserError
from souping.evaluate.engines import Asked, Engine

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TransformersEngine(Engine):
    """Batched greedy decoding with a KV cache. Its settings are the evaluator's: dtype, device, threads, workers."""

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
    limit = getattr(model.module.config, "max_position_embeddings", None)  # transformers'
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
    out = model.module.generate(  # type: ignore[operator]  # of its mixin
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=_decoding(asked, model, pad),
        **({"tokenizer": model.tokenizer} if asked.stop else {}),
    )
    new = out[:, width:] if not model.module.config.is_encoder_decoder else out[:, 1:]
    texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [cut(text, asked.stop) for text in texts]


def _decoding(asked: Asked, model: Served, pad: int) -> GenerationConfig:
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


def render(tokenizer: PreTrainedTokenizerBase, item: Item) -> list[int]:
    """The prompt's tokens: a text as it stands, chat messages through the tokenizer's chat template.

    Raises:
        UserError: there is no chat template, or it refuses the messages.
    """
    if isinstance(item.prompt, str):
        return list(tokenizer(item.prompt)["input_ids"])
    return list(tokenizer(_chat(tokenizer, item), add_special_tokens=False)["input_ids"])


def no_template(item: Item) -> UserError:
    """Error of an item whose messages nothing can write out."""
    return UserError(f"item {item.id}: chat messages need a chat template, and the tokenizer has none")


def _chat(tokenizer: PreTrainedTokenizerBase, item: Item) -> str:
    """The item's messages and tools as the tokenizer's chat template writes them."""
    template = tokenizer.chat_template
    if not template:
        raise no_template(item)
    if item.tools and "tools" not in str(template):
        raise UserError(f"item {item.id}: the tokenizer's chat template shows no tools; put them into a message")
    messages = [dict(message) for message in item.prompt if not isinstance(message, str)]
    tools = [dict(tool) for tool in item.tools] or None
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)  # type: ignore[arg-type]  # a list of dictionaries
    except Exception as error:  # a template is code of the candidate's
        raise UserError(f"item {item.id}: the chat template refuses its messages: {first_line(error)}") from error
    return str(text)


def check_context(items: Sequence[Item], prompts: Sequence[Sequence[int]], new: int, limit: int | None) -> None:
    """Refuse a prompt that leaves no room for `new` tokens in a context of `limit`, or that is empty.

    Raises:
        UserError: the message names the item.
    """
    for item, prompt in zip(items, prompts, strict=True):
        if not prompt:
            raise UserError(f"item {item.id}: the tokenizer makes no token of its prompt")
        if limit and len(prompt) + new > limit:
            raise UserError(
                f"item {item.id}: {len(prompt)} prompt tokens and evaluator.max_new_tokens={new} "
                f"exceed the model's context of {limit}"
            )


def cut(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    ends = [text.find(end) for end in stop if end in text]
    return text[: min(ends)] if ends else text


def quiet() -> None:
    """No progress bars or advice from transformers: the run has one display of its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_module(folder: Path, settings: ModuleSettings) -> PreTrainedModel:
    """The architecture of `folder` as a live module in the compute dtype of the settings, on their device.

    dtype `auto` is the folder's own.

    Raises:
        UserError: transformers cannot build this architecture (its own reason is given).
    """
    import torch
    import transformers

    quiet()
    device, trust = settings.device, settings.trust_remote_code
    if device.startswith("cuda") and int(device[5:] or 0) >= torch.cuda.device_count():
        raise UserError(f"evaluator.device={device}: this machine has {torch.cuda.device_count()} GPUs torch can use")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        own = settings.dtype in (None, "auto")
        dtype = "auto" if own else getattr(torch, str(settings.dtype))  # torch's
        module = auto.from_pretrained(folder, dtype=dtype, trust_remote_code=trust)
    except Exception as error:  # configurations, weights and code of others, refused in classes of their own
        raise UserError(f"{folder}: transformers cannot load this model: {first_line(error)}") from error
    return module.eval().to(device)  # type: ignore[arg-type,no-any-return]  # wrapped in transformers


@lru_cache(maxsize=64)
def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer.

    Raises:
        UserError: there is none, or transformers cannot read it.
    """
    import transformers

    quiet()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare ones for a file of a newer release
        raise UserError(f"{folder}: transformers cannot load the tokenizer: {first_line(error)}") from error
