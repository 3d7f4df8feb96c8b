"""`engine=transformers`: answers and likelihoods of a live module; and how modules and tokenizers are loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from souping.checkpoints.folder import has_weights, read_model_config, side_files
from souping.core.fields import component
from souping.core.protocols import LoadedModel, ModuleSettings
from souping.core.text import first_line, shown
from souping.core.types import Item, T, TokenIds, UserError
from souping.evaluate.engines.base import (
    Answer,
    Engine,
    GenerationSettings,
    Passage,
    answer_room,
    context_length,
    cut_at_stop,
    prompt_key,
)
from souping.evaluate.machine import MachineSettings
from souping.evaluate.templates import IDS, Decoding, render, sampler

if TYPE_CHECKING:
    import torch
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )


LOGITS = 1 << 27
"""Logits that a model computes at once, at most."""
SLICE = 1 << 24
"""Logits that are converted to fp32 at once, at most."""
R = TypeVar("R")


def answer_of(
    tokenizer: PreTrainedTokenizerBase,
    stop: Sequence[str],
    prompt: list[int],
    row: list[int],
    ends: Sequence[int],
    pad: int,
    max_new: int,
) -> Answer:
    """The answer that one row of generated token ids is: up to its first end token, without the padding.

    `prompt` are its token ids, `ends` end tokens, `pad` the padding token, and answers have at most `max_new` tokens.
    """
    end = next((n for n, token in enumerate(row) if token in ends), None)
    if end is not None:
        tokens = row[: end + 1]
        text_tokens = tokens[:-1]
    else:
        tokens = list(row)
        # `generate` pads a row that ended before others of its batch. With all `max_new` tokens and without stop texts,
        # a row did not end: a padding token at its end is part of the answer.
        if len(row) < max_new or stop:
            while tokens and tokens[-1] == pad:
                tokens.pop()
        text_tokens = tokens
    text = str(tokenizer.decode(text_tokens, skip_special_tokens=True))
    cut_text = cut_at_stop(text, stop)
    finished = end is not None or len(cut_text) < len(text) or len(tokens) < max_new
    return Answer(
        text=cut_text,
        outcome="finished" if finished else "truncated",
        tokens=tuple(tokens),
        prompt_tokens=len(prompt),
        prompt_key=prompt_key(prompt),
    )


def answer_end_ids(model: LoadedModel) -> TokenIds:
    """Ids of the tokens that end answers: from the soup, else from its tokenizer, else from the module's config."""
    if model.eos_token_ids:
        return model.eos_token_ids
    end = model.tokenizer.eos_token_id
    if end is None:
        end = model.module.generation_config.eos_token_id
    if end is None:
        return ()
    return (end,) if isinstance(end, int) else tuple(end)


def pad_id(model: LoadedModel) -> int:
    """Id of the padding token. Without one any token will do, because padding is masked."""
    ids = (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, *answer_end_ids(model), 0)
    return int(next(token for token in ids if token is not None))


@component
class TransformersEngine(Engine):
    """Batched decoding with a KV cache. Dtype, device, threads and workers are settings of the evaluator."""

    packages = ("transformers",)

    def generate(
        self,
        settings: GenerationSettings,
        model: LoadedModel,
        items: Sequence[Item],
        repeat: int,
    ) -> list[Answer]:
        """One answer to each item, in order; the machine's workers share the items."""
        return in_shares(
            settings.machine.workers,
            items,
            lambda share: _answers(settings, model, share, repeat),
        )

    def likelihoods(
        self,
        machine: MachineSettings,
        model: LoadedModel,
        passages: Sequence[Passage],
        stride: int | None,
    ) -> list[float]:
        """Log-likelihoods of the passages' scored tokens; the machine's workers share the passages."""
        if model.module.config.is_encoder_decoder:
            raise UserError(
                "evaluator=loss needs a model that reads on: this one has an encoder and a decoder"
            )
        return in_shares(
            machine.workers, passages, lambda share: _likelihoods(machine, model, share, stride)
        )


def in_shares(workers: int, inputs: Sequence[T], work: Callable[[Sequence[T]], list[R]]) -> list[R]:
    """Results of `work` for each input, in order. Of n `workers`, which are threads, each gets every n-th input."""
    workers = min(workers, len(inputs))
    if workers < 2:
        return work(inputs)
    shares = [inputs[worker::workers] for worker in range(workers)]
    with ThreadPoolExecutor(workers, thread_name_prefix="souping-evaluate") as pool:
        results = list(pool.map(work, shares))
    # Input number n is in share n % workers.
    return [results[n % workers][n // workers] for n in range(len(inputs))]


def _answers(
    settings: GenerationSettings, model: LoadedModel, items: Sequence[Item], repeat: int
) -> list[Answer]:
    """The answers that one worker generates, in the items' order; `repeat` counts the answers to an item.

    A prompt that leaves less room than `max_new_tokens` is a batch of its own, as few others have exactly its length.
    Without that setting, prompts that leave the same (rounded) room share a batch.
    """
    import torch

    # This is for the calling thread alone.
    torch.set_num_threads(settings.machine.resolved_threads)
    prompts = [render(model.tokenizer, item) for item in items]
    limit = context_length(model)
    answers = dict[int, Answer]()
    # {(tokens that the answers may have, number of a prompt that stays alone): numbers of the prompts}
    batches: dict[tuple[int, int | None], list[int]] = {}
    for number, prompt in enumerate(prompts):
        room, reason = answer_room(prompt, settings.max_new_tokens, limit)
        if reason:
            answers[number] = Answer.none(prompt, reason)
            continue
        alone = settings.max_new_tokens is not None and room < settings.max_new_tokens
        batches.setdefault((room, number if alone else None), []).append(number)
    with torch.inference_mode():
        for (room, _), numbers in batches.items():
            batch_prompts = [prompts[n] for n in numbers]
            batch_items = [items[n] for n in numbers]
            batch = _generate(settings, model, batch_prompts, batch_items, repeat, room)
            answers |= dict(zip(numbers, batch, strict=True))
    return [answers[number] for number in range(len(items))]


def _generate(
    settings: GenerationSettings,
    model: LoadedModel,
    prompts: Sequence[list[int]],
    items: Sequence[Item],
    repeat: int,
    max_new: int,
) -> list[Answer]:
    """The answers to prompts that are one batch, at most `max_new` tokens each. `prompts` are the items' token ids."""
    tokenizer = model.tokenizer
    module = model.module
    stop = settings.stop
    pad = pad_id(model)
    ends = answer_end_ids(model)
    ids, mask = left_padded(prompts, pad)
    device = next(module.parameters()).device
    # The decoder of an encoder-decoder begins with one token, not with the prompt.
    start = 1 if module.config.is_encoder_decoder else ids.shape[1]
    seeds = [settings.decoding.seed_of(item, repeat) for item in items]
    rows = module.generate(  # type: ignore[operator]  # of its mixin
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=neutral_config(module, settings.decoding, pad, ends, max_new, stop),
        logits_processor=sampling_processor(settings.decoding, seeds, start),
        tokenizer=tokenizer,
    )
    return [
        answer_of(tokenizer, stop, prompt, row, ends, pad, max_new)
        for prompt, row in zip(prompts, rows[:, start:].tolist(), strict=True)
    ]


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids [N, T], mask [N, T]) of prompts, padded on the left: all answers then begin in the same column."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def sampling_processor(
    decoding: Decoding, seeds: Sequence[int], width: int
) -> LogitsProcessorList | None:
    """Processor for `generate`, after which the arg max of a row of logits is a draw with the row's seed.

    Prompts are `width` tokens wide. None for greedy decoding.
    """
    if not decoding.temperature:
        return None
    from transformers import LogitsProcessorList

    return LogitsProcessorList([sampler(decoding, seeds, width)])  # type: ignore[list-item]  # any callable


def _likelihoods(
    machine: MachineSettings, model: LoadedModel, passages: Sequence[Passage], stride: int | None
) -> list[float]:
    """Log-likelihoods of one worker's passages, in nats; the model reads at most `batch_size` windows at once."""
    import torch

    torch.set_num_threads(machine.resolved_threads)
    limit = context_length(model)
    module = model.module
    windows_of = [passage.windows(limit, stride) for passage in passages]
    windows = list(chain.from_iterable(windows_of))
    vocabulary = int(module.config.get_text_config(decoder=True).vocab_size)
    longest = max(len(tokens) for tokens, _ in windows)
    # A single window may have more logits than `LOGITS`.
    size = max(1, min(machine.batch_size, LOGITS // (vocabulary * longest)))
    likelihoods = list[float]()
    with torch.inference_mode():
        for begin in range(0, len(windows), size):
            batch = windows[begin : begin + size]
            likelihoods += _window_likelihoods(module, batch, pad_id(model))
    following = iter(likelihoods)
    return [math.fsum(islice(following, len(passage_windows))) for passage_windows in windows_of]


def _window_likelihoods(
    module: PreTrainedModel, windows: Sequence[tuple[list[int], int]], pad: int
) -> list[float]:
    """Log-likelihood of the scored tokens of each window, (token ids, how many at their end are scored)."""
    import torch

    # Padded on the right, where no token before can see it. The model does not read the last token.
    width = max(len(tokens) for tokens, _ in windows) - 1
    device = next(module.parameters()).device
    ids = torch.full((len(windows), width), pad, device=device)
    mask = torch.zeros_like(ids)
    for row, (tokens, _) in enumerate(windows):
        ids[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        mask[row, : len(tokens) - 1] = 1
    logits = module(input_ids=ids, attention_mask=mask).logits
    totals = list[float]()
    step = max(1, SLICE // logits.shape[-1])
    for row, (tokens, count) in enumerate(windows):
        # The logits at a token predict the next one.
        end = len(tokens) - 1
        targets = torch.tensor(tokens[len(tokens) - count :], device=device)
        slices = zip(logits[row, end - count : end].split(step), targets.split(step), strict=True)
        logprobs = list[torch.Tensor]()
        for slice_logits, slice_targets in slices:
            all_logprobs = torch.log_softmax(slice_logits.float(), dim=-1)
            logprobs.append(all_logprobs.gather(1, slice_targets[:, None]))
        totals.append(float(torch.cat(logprobs).double().sum()))
    return totals


def neutral_config(
    module: PreTrainedModel,
    decoding: Decoding,
    pad: int,
    ends: Sequence[int],
    max_new: int,
    stop: Sequence[str] = (),
) -> GenerationConfig:
    """Generation config for `generate` with this decoding and no other setting.

    `pad` and `ends` are token ids; other special ids come from the module's own config, where `load_module` left only
    these. Sampling is greedy decoding after a `sampling_processor`.
    """
    from transformers import GenerationConfig

    ids = module.generation_config
    return GenerationConfig(
        do_sample=False,
        **{"num_beams": 1, **decoding.penalties},
        max_new_tokens=max_new,
        pad_token_id=pad,
        eos_token_id=list(ends) or None,
        bos_token_id=ids.bos_token_id,
        decoder_start_token_id=ids.decoder_start_token_id,
        stop_strings=list(stop) or None,
        use_cache=True,
    )


def quiet_transformers() -> None:
    """Turn off transformers' progress bars and advice, because a run has its own display."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_module(folder: Path, settings: ModuleSettings) -> PreTrainedModel:
    """A live module of the model in `folder`, with the dtype of the settings and on their device.

    dtype `auto` is the folder's own. Without weights in the folder, or if they are quantised, the module has the
    architecture alone: soups bring all weights.

    Raises:
        UserError: transformers cannot build this architecture (its own reason is given).
    """
    import torch
    import transformers

    quiet_transformers()
    # `cuda` or `cuda:NUMBER`
    device = settings.device
    trust = settings.trust_remote_code
    if device.startswith("cuda") and int(device[5:] or 0) >= torch.cuda.device_count():
        raise UserError(
            f"evaluator.device={device}: this machine has {torch.cuda.device_count()} GPUs torch can use"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        # Such a name makes transformers fetch compiled code from the Hub and run it.
        kernels = [name for name in _kernels(config) if "/" in name]
        if kernels and not trust:
            raise ValueError(
                f"its config.json names kernels of the Hub, {kernels}, which is for trust_remote_code"
            )
        auto = (
            transformers.AutoModelForSeq2SeqLM
            if config.is_encoder_decoder
            else transformers.AutoModelForCausalLM
        )
        is_auto = settings.dtype in (None, "auto")
        dtype = "auto" if is_auto else getattr(torch, str(settings.dtype))
        quantised = None
        if "quantization_config" in vars(config):
            quantised = config.quantization_config
            del config.quantization_config
        if has_weights(folder) and not quantised:
            module = auto.from_pretrained(folder, dtype=dtype, trust_remote_code=trust)
        else:
            # `from_config` does not know `auto`.
            config_dtype = config.dtype if is_auto else dtype
            module = auto.from_config(config, dtype=config_dtype, trust_remote_code=trust)  # type: ignore[no-untyped-call]
    except Exception as error:
        # Configurations, weights and the code of others raise any class.
        raise UserError(
            f"{folder}: transformers cannot load this model: {_load_error(error)}"
        ) from error
    module.generation_config = _neutral(module)
    return module.eval().to(device)  # type: ignore[arg-type,no-any-return]  # wrapped in transformers


def _kernels(config: PreTrainedConfig) -> Iterator[str]:
    """Names of the kernels that a config asks for, also in the configs of its parts (texts, images, sound)."""
    yield str(config._attn_implementation)
    yield str(config._experts_implementation)
    for key in config.sub_configs:
        part = getattr(config, key, None)
        if part is not None:
            yield from _kernels(part)


def check_reads_text(folder: Path) -> None:
    """Refuse a vision-language or speech model that transformers does not load as a model of texts alone (UserError).

    A model that brings its own code (`auto_map`) is let through: only that code knows what it reads.
    """
    config = read_model_config(folder)
    parts = {"vision_config", "audio_config"} & config.keys()
    processors = [name for name in side_files(folder) if name.endswith("processor_config.json")]
    if "auto_map" in config or not (parts or processors):
        return
    from transformers.models.auto import modeling_auto

    known = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if config.get("is_encoder_decoder"):
        known = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    kind = config.get("model_type")
    if kind not in known:
        raise UserError(
            f"{folder} is a vision-language or speech model ({shown(str(kind))}), which this evaluator cannot load: "
            "use evaluator=command, with a script of yours or with lm_eval's hf-multimodal or vllm-vlm"
        )


def _load_error(error: Exception) -> str:
    """The reason that an error of transformers gives, with our key if the error asks for trust_remote_code."""
    hint = (
        "; evaluator.trust_remote_code=true if you trust it"
        if "trust_remote_code" in str(error)
        else ""
    )
    return first_line(error) + hint


def _neutral(module: PreTrainedModel) -> GenerationConfig:
    """The module's generation config reduced to special token ids.

    transformers takes from it whatever a call of `generate` leaves open.
    """
    from transformers import GenerationConfig

    ids = {key: getattr(module.generation_config, key, None) for key in IDS}
    return GenerationConfig(**ids)


@lru_cache(maxsize=64)
def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The folder's tokenizer; code that it brings is refused unless it is trusted.

    Raises:
        UserError: the folder has no tokenizer, or transformers cannot read it.
    """
    import transformers

    quiet_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        # The library tokenizers raises this class for a file of a newer release.
        raise UserError(
            f"{folder}: transformers cannot load the tokenizer: {_load_error(error)}"
        ) from error
