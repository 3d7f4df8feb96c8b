"""Answers to the harness's generation requests: batches as HFLM cuts them, decoding by the settings alone.

HFLM's own loop fills what a task leaves open from the model's generation_config, lets a batch's neighbours decide how
long a row goes on, and does not tell how an answer ended. Prompts, order, batches and texts are the same here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from souping.core.fields import pick
from souping.core.types import Item, UserError
from souping.evaluate.decoding import PENALTIES, SAMPLING, Decoding, check_sampling
from souping.evaluate.engines import Answer, prompt_key, room
from souping.evaluate.engines.transformers import draws, left_padded, neutral_config
from souping.evaluate.lm_eval.settings import HarnessSettings

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerBase

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
KNOWN = ("until", *LENGTHS, *SAMPLING, *PENALTIES)
"""What a task's generation_kwargs may say; transformers would take more, a program to generate with among it."""
STEP = 0x9E3779B97F4A7C15
"""Apart from each other by so much are the seeds of several answers that a task asks for at once."""
CUT = "the prompt was cut on the left to fit the context of {} tokens"


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Way in which a block is asked: the evaluator's settings, for the n-th answer to these items by task and place."""

    evaluator: HarnessSettings
    replicate: int = 0
    ends: tuple[int, ...] = ()
    items: Mapping[tuple[str, int], Item] = field(default_factory=dict)

    def seed(self, job: Job) -> int:
        """Seed of one answer, from its item, replicate and place in the task's own requests."""
        request = job.request
        item = self.items[str(request.task_name), int(request.doc_id or 0)]
        place = int(request.idx) + (job.clone << 16)
        return (job.decoding.seed_of(item, self.replicate) + place * STEP) % 2**63


def decoding_of(kwargs: Mapping[str, Any], evaluator: HarnessSettings) -> Decoding:
    """What a task's generation_kwargs ask for, with what the evaluator's settings say over it."""
    own = float(kwargs.get("temperature") or (1.0 if kwargs.get("do_sample") and "temperature" not in kwargs else 0.0))
    if kwargs.get("do_sample") is False:
        own = 0.0
    top_p, top_k = evaluator.top_p, evaluator.top_k
    return Decoding(
        temperature=own if evaluator.temperature is None else evaluator.temperature,
        top_p=float(kwargs.get("top_p") or 1.0) if top_p is None else top_p,
        top_k=int(kwargs.get("top_k") or 0) if top_k is None else top_k,
        min_p=float(kwargs.get("min_p") or 0.0),
        seed=evaluator.sampling_seed,
        penalties={key: kwargs[key] for key in PENALTIES if kwargs.get(key) is not None},
    )


def check_sampling_of(name: str, kwargs: Mapping[str, Any] | None, evaluator: HarnessSettings) -> None:
    """Refuse answers that a task cannot give; `kwargs` are its generation_kwargs, None where it compares likelihoods.

    Raises:
        UserError: the message names the task and the key.
    """
    where = f"evaluator.tasks: {name}"
    if kwargs is None:
        if evaluator.temperature or evaluator.drawn > 1:
            key = f"temperature={evaluator.temperature}" if evaluator.temperature else f"samples={evaluator.drawn}"
            raise UserError(f"{where} compares likelihoods, there is nothing to sample: leave out evaluator.{key}")
        return
    for key in kwargs:
        pick(key, KNOWN, f"{where}: generation_kwargs")
    try:
        decoding = decoding_of(kwargs, evaluator)
        check_sampling(decoding.temperature, evaluator.drawn, evaluator.replicates)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    beams = decoding.penalties.get("num_beams", 1)
    if decoding.samples and beams != 1:
        raise UserError(f"{where}: its generation_kwargs say num_beams={beams}, which goes with greedy answers alone")


@dataclass(kw_only=True)
class Job:
    """One answer that is asked for: a request, its prompt as the model sees it, and how it is decoded.

    `clone` numbers the answers to a request that a task repeats; `cut` says whether tokens of the prompt were left out.
    """

    request: Instance
    clone: int
    prompt: list[int]
    cut: bool
    until: tuple[str, ...]
    new: int
    decoding: Decoding

    @property
    def together(self) -> tuple[tuple[str, ...], int, str]:
        """What the jobs of a batch have in common."""
        return self.until, self.new, json.dumps(self.request.args[1], sort_keys=True, default=str)


def answer_requests(lm: HFLM, requests: Sequence[Instance]) -> list[Answer]:
    """Answers in the requests' order; a greedy one that a task repeats is asked once."""
    asked: dict[tuple[int, int], Job] = {}
    keys, told = [], Counter[int]()
    for request in requests:
        key = id(request), told[id(request)]
        first = asked.get((id(request), 0))
        if first is not None and not first.decoding.samples:
            key = id(request), 0
        elif key not in asked:
            asked[key] = _job(lm, request, key[1])
        told[id(request)] += 1
        keys.append(key)
    answers = {id(job): Answer.none([], room([], 1, None)[1]) for job in asked.values() if not job.prompt}
    for batch in _batches(lm, [job for job in asked.values() if job.prompt]):
        rows, stopped = _generate(lm, batch)
        for job, row, end in zip(batch, rows, stopped, strict=True):
            answers[id(job)] = _answer(lm, job, row, end)
    return [answers[id(asked[key])] for key in keys]


def _job(lm: HFLM, request: Instance, clone: int) -> Job:
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    text, own = request.args[:2]
    kwargs = normalize_gen_kwargs(own, lm.max_gen_toks)
    new = int(kwargs["max_gen_toks"])
    eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False) if lm.eot_token_id is not None else None
    prompt, cut = prompt_of(lm, text, new)
    return Job(
        request=request,
        clone=clone,
        prompt=prompt,
        cut=cut,
        until=tuple(stop for stop in handle_stop_sequences(list(kwargs["until"]), eos=eos) if stop),
        new=new,
        decoding=decoding_of(own, lm.asking.evaluator),
    )


def prompt_of(lm: HFLM, text: str, new: int) -> tuple[list[int], bool]:
    """(tokens of a prompt that leaves room for `new`, whether it was cut).

    Raises:
        UserError: an answer alone fills the context.
    """
    from lm_eval.models.utils import has_bos_prefix

    causal = lm.backend == "causal"
    limit = lm.max_length - new if causal else lm.max_length
    if limit < 1:
        raise UserError(
            f"evaluator=lm_eval: answers of {new} tokens do not fit the model's context of {lm.max_length}\n"
            "set evaluator.gen_kwargs={max_gen_toks: N} or evaluator.max_length"
        )
    special = {} if lm.add_bos_token is None or not causal else {"add_special_tokens": lm.add_bos_token}
    if causal and has_bos_prefix(text, lm.tokenizer.bos_token):
        special = {"add_special_tokens": False}
    tokens = list(lm.tokenizer(text, **special)["input_ids"])
    whole = len(tokens)
    if lm.truncation and whole > lm.tokenizer.model_max_length:
        tokens = list(lm.tokenizer(text, truncation=True, **special)["input_ids"])
    return tokens[-limit:], whole > min(limit, len(tokens))


def _batches(lm: HFLM, jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs of equal settings together, longest prompts first."""
    size = lm._detect_batch_size() if lm.batch_size == "auto" else int(lm.batch_size)
    groups: dict[tuple[tuple[str, ...], int, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.together, []).append(job)
    for group in groups.values():
        group.sort(key=lambda job: (-len(job.prompt), job.request.args[0]))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _generate(lm: HFLM, jobs: Sequence[Job]) -> tuple[list[list[int]], list[int | None]]:
    """(generated ids of each row, how many it had when a stop text was there)."""
    import torch
    from transformers import StoppingCriteriaList

    pad = lm.tokenizer.pad_token_id
    ids, mask = left_padded([job.prompt for job in jobs], pad)
    start = ids.shape[1] if lm.backend == "causal" else 1
    stops = StopTexts(lm.tokenizer, jobs[0].until, start, len(jobs))
    decoding = jobs[0].decoding
    seeds = [lm.asking.seed(job) for job in jobs] if decoding.samples else []
    mixed = lm.mixed_precision_dtype
    with torch.inference_mode(), torch.autocast(lm.device.type, dtype=mixed, enabled=mixed is not None):
        out = lm.model.generate(
            input_ids=ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            generation_config=neutral_config(lm.model, decoding, pad, _ends(lm), jobs[0].new),
            logits_processor=draws(decoding, seeds, start),
            stopping_criteria=StoppingCriteriaList([stops]),
        )
    return out[:, start:].tolist(), stops.ended


def _ends(lm: HFLM) -> tuple[int, ...]:
    """Tokens that end an answer: of a soup, those of all its ingredients."""
    own = () if lm.eot_token_id is None else (int(lm.eot_token_id),)
    return tuple(lm.asking.ends) or own


class StopTexts:
    """Criterion that ends a row, and no other, once one of the texts stands in it. `ended` counts its tokens then."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], start: int, rows: int) -> None:
        self._tokenizer, self._texts, self._start = tokenizer, texts, start
        self._window = max((len(text.encode()) for text in texts), default=0) + 2
        self.ended: list[int | None] = [None] * rows

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        if len(ids) == len(self.ended) and self._texts:  # beams are more rows than answers, and change places
            going = [row for row, end in enumerate(self.ended) if end is None]
            last = ids[going, max(self._start, ids.shape[1] - self._window) :].tolist()
            for row, text in zip(going, self._tokenizer.batch_decode(last), strict=True):
                if any(stop in text for stop in self._texts):
                    self.ended[row] = ids.shape[1] - self._start
        done = [end is not None for end in self.ended] if len(ids) == len(self.ended) else [False] * len(ids)
        return torch.tensor(done, device=ids.device)


def _answer(lm: HFLM, job: Job, row: list[int], stopped: int | None) -> Answer:
    """One row of generated ids as an answer: to its first end token or stop text."""
    from lm_eval.models.utils import postprocess_generated_text

    ends = _ends(lm)
    tokens = row if stopped is None else row[:stopped]
    end = next((n for n, token in enumerate(tokens) if token in ends), None)
    said = tokens if end is None else tokens[:end]
    think = lm.think_end_token
    if isinstance(think, int) and think in said:
        said = said[len(said) - said[::-1].index(think) :]
    text = str(lm.tok_decode(said))
    text = text.lstrip() if isinstance(think, int) else text
    short = postprocess_generated_text(text, list(job.until), think if isinstance(think, str) else None)
    finished = end is not None or stopped is not None or any(stop in text for stop in job.until)
    return Answer(
        text=short,
        outcome="finished" if finished and not job.cut else "truncated",
        reason=CUT.format(lm.max_length) if job.cut else "",
        tokens=tuple(tokens if end is None else tokens[: end + 1]),
        prompt_tokens=len(job.prompt),
        prompt_key=prompt_key(job.prompt),
    )
