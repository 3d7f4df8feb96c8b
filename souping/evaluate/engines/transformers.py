"""`engine=transformers`: transformers' own generation, with the poured module, in this process.

Below it are the functions that load modules and tokenizers from a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.fields import component
from souping.core.protocols import LoadedModel, ModuleSettings
from souping.core.text import first_line
from souping.core.types import Item, UserError
from souping.evaluate.decoding import IDS, Decoding, sampler
from souping.evaluate.engines import Answer, Engine, GenerationSettings, answer_of, context, eos_token_ids, pad_id, room
from souping.evaluate.templates import render

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase


@component
class TransformersEngine(Engine):
    """Batched decoding with a KV cache. Dtype, device, threads and workers are settings of the evaluator."""

    def answer(
        self, settings: GenerationSettings, model: LoadedModel, items: Sequence[Item], replicate: int
    ) -> list[Answer]:
        """The n-th answers, in the items' order; each of `settings.workers` threads answers every n-th item."""
        workers = min(settings.workers, len(items))
        if workers < 2:
            return _share(settings, model, items, replicate)
        with ThreadPoolExecutor(workers, thread_name_prefix="souping-evaluate") as pool:
            shares = (items[worker::workers] for worker in range(workers))
            parts = list(pool.map(lambda share: _share(settings, model, share, replicate), shares))
        return [parts[i % workers][i // workers] for i in range(len(items))]


def _share(settings: GenerationSettings, model: LoadedModel, items: Sequence[Item], replicate: int) -> list[Answer]:
    """Answers of one worker. A prompt that leaves less room than `max_new_tokens` is a batch of its own; without that
    setting, prompts that leave the same room share a batch."""
    import torch

    torch.set_num_threads(settings.resolved_threads)  # counts for the calling thread alone
    prompts = [render(model.tokenizer, item) for item in items]
    limit = context(model)
    answers: dict[int, Answer] = {}
    together: dict[tuple[int, int | None], list[int]] = {}
    for number, prompt in enumerate(prompts):
        free, reason = room(prompt, settings.max_new_tokens, limit)
        if reason:
            answers[number] = Answer.none(prompt, reason)
        else:
            alone = settings.max_new_tokens is not None and free < settings.max_new_tokens
            together.setdefault((free, number if alone else None), []).append(number)
    with torch.inference_mode():
        for (free, _), numbers in together.items():
            batch = [prompts[n] for n in numbers], [items[n] for n in numbers]
            answers |= dict(zip(numbers, _generate(settings, model, *batch, replicate, free), strict=True))
    return [answers[number] for number in range(len(items))]


def _generate(
    settings: GenerationSettings,
    model: LoadedModel,
    prompts: Sequence[list[int]],
    items: Sequence[Item],
    replicate: int,
    new: int,
) -> list[Answer]:
    pad = pad_id(model)
    ids, mask = left_padded(prompts, pad)
    width = ids.shape[1]
    device = next(model.module.parameters()).device
    seq2seq = bool(model.module.config.is_encoder_decoder)
    ends = eos_token_ids(model)
    seeds = [settings.decoding.seed_of(item, replicate) for item in items]
    out = model.module.generate(  # type: ignore[operator]  # of its mixin
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=neutral_config(model.module, settings.decoding, pad, ends, new, settings.stop),
        logits_processor=draws(settings.decoding, seeds, 1 if seq2seq else width),
        **({"tokenizer": model.tokenizer} if settings.stop else {}),
    )
    rows = (out[:, 1:] if seq2seq else out[:, width:]).tolist()
    return [answer_of(settings, model, prompt, row, ends, pad, new) for prompt, row in zip(prompts, rows, strict=True)]


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [N, T] and their mask; every row ends where its answer begins."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def draws(decoding: Decoding, seeds: Sequence[int], width: int) -> LogitsProcessorList | None:
    """Processor after which the arg max of each row is a draw with its seed; None for greedy decoding."""
    if not decoding.samples:
        return None
    from transformers import LogitsProcessorList

    return LogitsProcessorList([sampler(decoding, seeds, width)])  # type: ignore[list-item]  # any callable


def neutral_config(
    module: PreTrainedModel, decoding: Decoding, pad: int, ends: Sequence[int], new: int, stop: Sequence[str] = ()
) -> GenerationConfig:
    """This decoding and nothing else: `load_module` left only ids in the module's own config."""
    from transformers import GenerationConfig

    own = module.generation_config
    return GenerationConfig(
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


def quiet() -> None:
    """Turn off progress bars and advice of transformers: the run has its own display."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


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
        kernels = {str(config._attn_implementation), str(config._experts_implementation)}
        if not trust and any("/" in name for name in kernels):  # compiled code, which transformers would fetch and run
            raise ValueError(f"its config.json names kernels of the Hub, {kernels}, which is for trust_remote_code")
        auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        own = settings.dtype in (None, "auto")
        dtype = "auto" if own else getattr(torch, str(settings.dtype))  # torch's
        module = auto.from_pretrained(folder, dtype=dtype, trust_remote_code=trust)
    except Exception as error:  # configurations, weights and code of others, refused in classes of their own
        raise UserError(f"{folder}: transformers cannot load this model: {_why(error)}") from error
    module.generation_config = _neutral(module)
    return module.eval().to(device)  # type: ignore[arg-type,no-any-return]  # wrapped in transformers


def _why(error: Exception) -> str:
    """The reason of an error of transformers, with our name of the setting that it may want."""
    hint = "; evaluator.trust_remote_code=true if you trust it" if "trust_remote_code" in str(error) else ""
    return first_line(error) + hint


def _neutral(module: PreTrainedModel) -> GenerationConfig:
    """The module's generation config without anything but ids: transformers fills what a call leaves open from it."""
    from transformers import GenerationConfig

    own = module.generation_config
    ids = {key: getattr(own, key, None) for key in IDS}  # transformers'
    return GenerationConfig(**ids)


@lru_cache(maxsize=64)
def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The folder's tokenizer; code that it brings is refused unless it is trusted.

    Raises:
        UserError: there is none, or transformers cannot read it.
    """
    import transformers

    quiet()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises bare ones for a file of a newer release
        raise UserError(f"{folder}: transformers cannot load the tokenizer: {_why(error)}") from error
