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
from souping.evaluate.decoding import IDS, Decoding, sampler
from souping.evaluate.engines import Answer, Asked, Engine, prompt_key, room
from souping.evaluate.templates import check_length, guard_templates, time_limit

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TransformersEngine(Engine):
    """Batched decoding with a KV cache. Its settings are the evaluator's: dtype, device, threads, workers."""

    def answer(self, asked: Asked, model: Served, items: Sequence[Item], replicate: int) -> list[Answer]:
        """The n-th answers, in the items' order; `asked.workers` threads share the items."""
        shares = [items[i :: asked.workers] for i in range(min(asked.workers, len(items)))]
        if len(shares) < 2:
            return _share(asked, model, items, replicate)
        with ThreadPoolExecutor(len(shares), thread_name_prefix="souping-evaluate") as pool:
            parts = list(pool.map(lambda share: _share(asked, model, share, replicate), shares))
        return [parts[i % len(parts)][i // len(parts)] for i in range(len(items))]


def _share(asked: Asked, model: Served, items: Sequence[Item], replicate: int) -> list[Answer]:
    """Answers of one worker. A prompt that leaves less room than `max_new_tokens` is asked by itself; where that is
    open, prompts that leave the same are asked together."""
    import torch

    torch.set_num_threads(asked.resolved_threads)  # counts for the calling thread alone
    prompts = [render(model.tokenizer, item) for item in items]
    limit = getattr(model.module.config, "max_position_embeddings", None)  # transformers'
    answers: dict[int, Answer] = {}
    together: dict[tuple[int, int | None], list[int]] = {}
    for number, prompt in enumerate(prompts):
        free, reason = room(prompt, asked.max_new_tokens, limit)
        if reason:
            answers[number] = Answer.none(prompt, reason)
        else:
            alone = asked.max_new_tokens is not None and free < asked.max_new_tokens
            together.setdefault((free, number if alone else None), []).append(number)
    with torch.inference_mode():
        for (free, _), numbers in together.items():
            asked_now = [prompts[n] for n in numbers], [items[n] for n in numbers]
            answers |= dict(zip(numbers, _generate(asked, model, *asked_now, replicate, free), strict=True))
    return [answers[number] for number in range(len(items))]


def _generate(
    asked: Asked, model: Served, prompts: Sequence[list[int]], items: Sequence[Item], replicate: int, new: int
) -> list[Answer]:
    import torch

    width, pad = max(len(p) for p in prompts), _pad_id(model)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # left padding: every row ends where its answer begins
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    device = next(model.module.parameters()).device
    seq2seq = bool(model.module.config.is_encoder_decoder)
    ends = model.ends or _own_end(model)
    seeds = [asked.decoding.seed_of(item, replicate) for item in items]
    out = model.module.generate(  # type: ignore[operator]  # of its mixin
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=neutral_config(model.module, asked.decoding, pad, ends, new, asked.stop),
        logits_processor=draws(asked.decoding, seeds, 1 if seq2seq else width),
        **({"tokenizer": model.tokenizer} if asked.stop else {}),
    )
    rows = (out[:, 1:] if seq2seq else out[:, width:]).tolist()
    return [_answer(asked, model, prompt, row, ends, pad, new) for prompt, row in zip(prompts, rows, strict=True)]


def _answer(
    asked: Asked, model: Served, prompt: list[int], row: list[int], ends: Sequence[int], pad: int, new: int
) -> Answer:
    """One row of generated ids as an answer: to its first end token, without the padding behind a stop text."""
    end = next((n for n, token in enumerate(row) if token in ends), None)
    tokens = row[: end + 1] if end is not None else row
    if (end is None and len(row) < new) or asked.stop:
        while end is None and tokens and tokens[-1] == pad:
            tokens.pop()
    said = tokens[:-1] if end is not None else tokens
    text = str(model.tokenizer.decode(said, skip_special_tokens=True))
    short = cut(text, asked.stop)
    finished = end is not None or len(short) < len(text) or len(tokens) < new
    return Answer(
        text=short,
        outcome="finished" if finished else "truncated",
        tokens=tuple(tokens),
        prompt_tokens=len(prompt),
        prompt_key=prompt_key(prompt),
    )


def draws(decoding: Decoding, seeds: Sequence[int], width: int) -> LogitsProcessorList | None:
    """What makes answers with these seeds, one a row, the arg max; None where decoding is greedy."""
    if not decoding.samples:
        return None
    from transformers import LogitsProcessorList

    return LogitsProcessorList([sampler(decoding, seeds, width)])  # type: ignore[list-item]  # any callable


def _own_end(model: Served) -> tuple[int, ...]:
    end = model.tokenizer.eos_token_id
    return (int(end),) if isinstance(end, int) else ()


def neutral_config(
    module: PreTrainedModel, decoding: Decoding, pad: int, ends: Sequence[int], new: int, stop: Sequence[str] = ()
) -> GenerationConfig:
    """This decoding and nothing else: `load_module` left only ids in the module's own config."""
    from transformers import GenerationConfig

    own = module.generation_config
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        **{"num_beams": 1, **decoding.penalties},
        max_new_tokens=new,
        pad_token_id=pad,
        eos_token_id=list(ends) or None,
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
        stop_strings=list(stop) or None,
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
    guard_templates()
    try:
        with time_limit():
            text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)  # type: ignore[arg-type]  # a list of dictionaries
        check_length(str(text))
    except Exception as error:  # a template is code of the candidate's
        raise UserError(f"item {item.id}: the chat template refuses its messages: {first_line(error)}") from error
    return str(text)


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
    module.generation_config = _neutral(module)
    return module.eval().to(device)  # type: ignore[arg-type,no-any-return]  # wrapped in transformers


def _neutral(module: PreTrainedModel) -> GenerationConfig:
    """The module's generation config without anything but ids: transformers fills what a call leaves open from it."""
    from transformers import GenerationConfig

    own = module.generation_config
    ids = {key: getattr(own, key, None) for key in IDS}  # transformers'
    return GenerationConfig(**ids)  # type: ignore[no-untyped-call]


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
