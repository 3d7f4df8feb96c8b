"""The harness's model around the live module, and the harness's own loop on chosen documents of loaded tasks.

Only `HFLM._model_generate` decodes in another way than the harness: the harness fills what a task leaves open from the
model's generation_config, and a row goes on until the last of its batch ends. Prompts, order and batches are its own.
"""

from __future__ import annotations

import copy
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from souping.core.protocols import LoadedModel
from souping.core.text import first_line
from souping.core.types import OUTCOMES, Item, Json, Outcome, Record, UserError
from souping.evaluate.decoding import Decoding
from souping.evaluate.engines import Answer, prompt_key
from souping.evaluate.engines.transformers import draws, neutral_config
from souping.evaluate.lm_eval.settings import HarnessSettings
from souping.evaluate.lm_eval.tasks import LENGTHS, Document, Loaded, decoding_of, quiet, seed
from souping.evaluate.templates import TemplateStoppedError, apply_chat_template

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.huggingface import HFLM as Base
    from transformers import PreTrainedTokenizerBase
else:
    Base = object  # lm_eval is imported when the model is made

STEP = 0x9E3779B97F4A7C15
"""Distance between the seeds of several answers that a task requests at once."""
CUT = "the prompt was cut on the left to fit the context of {} tokens"
EMPTY = "the tokenizer makes no token of the prompt"
HFLM_KEYS = (
    "backend", "truncation", "logits_cache", "max_length", "softmax_dtype", "mixed_precision_dtype", "batch_size",
    "max_batch_size", "add_bos_token", "prefix_token_id", "think_end_token", "enable_thinking", "chat_template_args",
)  # fmt: skip
"""Arguments of HFLM that the evaluator passes on; the others load a checkpoint, which is loaded already."""


class TaskSubset:
    """Task as the harness's loop sees it: its own prompts, filters and metrics, on chosen documents.

    Three things differ from the task itself. The documents are loaded already, while the harness would process them
    anew at each call; the few-shot examples are those that were drawn at loading; and nothing is aggregated.
    """

    def __init__(self, loaded: Loaded, lm: HFLM, evaluator: HarnessSettings) -> None:
        self._loaded, self._task, self._lm, self._evaluator = loaded, loaded.task, lm, evaluator
        self.eval_docs = loaded.docs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)  # lm_eval's

    def doc_iterator(
        self, *, rank: int = 0, limit: int | None = None, world_size: int = 1, samples: Sequence[int] = ()
    ) -> Iterator[tuple[int, Document]]:
        """(position, document), as the harness numbers chosen documents."""
        return enumerate(self._loaded.docs[number] for number in samples)

    def build_all_requests(
        self,
        *,
        limit: int | None = None,
        samples: Sequence[int] = (),
        rank: int = 0,
        world_size: int = 1,
        cache_requests: bool = False,
        rewrite_requests_cache: bool = False,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Callable[[list[dict[str, str]]], str] | None = None,
        tokenizer_name: str = "",
    ) -> None:
        """Build the requests of the chosen documents."""
        task, instances = self._task, []
        for position, number in enumerate(samples):
            doc = self._loaded.docs[number]
            self._prepare(doc, number)
            context = task.fewshot_context(
                doc,
                num_fewshot=task.config.num_fewshot or 0,
                system_instruction=system_instruction,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=fewshot_as_multiturn,
                chat_template=chat_template,
                gen_prefix=task.doc_to_prefix(doc),
            )
            requests = task.construct_requests(
                doc=doc,
                ctx=context,
                metadata=(self._loaded.name, position, task.config.repeats),
                apply_chat_template=apply_chat_template,
                chat_template=chat_template,
            )
            instances += requests if isinstance(requests, list) else [requests]
        task._instances = instances

    def _prepare(self, doc: Document, number: int) -> None:
        """Set the document's few-shot examples, and its tool schemas for the chat template."""
        shots = self._loaded.shots[number]
        if shots:
            self._task.sampler = SimpleNamespace(sample=lambda n, eval_doc=None, df=None: list(shots))
        elif not hasattr(self._task, "sampler"):  # lm_eval's: a task in Python draws for itself
            self._task.fewshot_rnd = random.Random(f"{self._evaluator.fewshot_random_seed} {number}")
        self._lm.tools = _tools(doc, self._evaluator.tools, f"{self._loaded.name}/{number}")

    def aggregation(self) -> Mapping[str, Callable[[Sequence[float]], int]]:
        """The loop wants a number for every metric; how many values there are never fails."""
        return defaultdict(lambda: len)


def _tools(doc: Document, column: str | None, where: str) -> list[Json] | None:
    """A document's tool schemas: a list, or JSON text of one."""
    if column is None:
        return None
    if column not in doc:
        raise UserError(f"evaluator.tools={column}: document {where} has no such column")
    value = doc[column]
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UserError(f"evaluator.tools={column}: document {where} has no JSON there: {error}") from error
    if tools is not None and not isinstance(tools, list):
        raise UserError(f"evaluator.tools={column}: document {where} has {type(tools).__name__}, not a list of schemas")
    return tools or None


# The harness's loop


def run(
    lm: HFLM, loaded: Mapping[str, Loaded], documents: Mapping[str, Sequence[int]], evaluator: HarnessSettings
) -> dict[str, Record]:
    """{item id: record} of documents, which are given by task.

    Raises:
        UserError: a document's value for a metric or its tools cannot be used, or a template fails.
    """
    import torch
    from lm_eval.evaluator import evaluate

    seed(evaluator)  # as simple_evaluate does before each run; tasks may draw from torch's generator
    torch.manual_seed(evaluator.torch_random_seed)
    ids = {name: sorted(numbers) for name, numbers in documents.items()}
    tasks = {name: TaskSubset(loaded[name], lm, evaluator) for name in ids}
    try:
        # HFLM prints how it finds a batch size
        with redirect_stdout(io.StringIO()) if isinstance(evaluator.batch_size, str) else nullcontext():
            results = evaluate(
                lm=lm,
                task_dict={"tasks": tasks, "groups": {}},
                samples=ids,
                bootstrap_iters=0,
                log_samples=True,
                system_instruction=evaluator.system_instruction,
                apply_chat_template=evaluator.apply_chat_template,
                fewshot_as_multiturn=evaluator.fewshot_as_multiturn,
                confirm_run_unsafe_code=evaluator.confirm_run_unsafe_code,
            )
    except TemplateStoppedError as error:
        raise UserError(f"evaluator=lm_eval: a template stops {', '.join(ids):.100}: {first_line(error)}") from error
    answers: Mapping[tuple[str, int], list[Answer]] = lm.answers
    given = {(name, number): answers.get((name, place), []) for name in ids for place, number in enumerate(ids[name])}
    samples = results["samples"]
    return {record.item: record for name in ids for record in _records(loaded[name], samples[name], given)}


def _records(
    loaded: Loaded, samples: Sequence[Mapping[str, Any]], given: Mapping[tuple[str, int], Sequence[Answer]]
) -> Iterator[Record]:
    for sample in samples:
        if sample["filter"] != loaded.metric.filter:
            continue
        item = f"{loaded.name}/{sample['doc_id']}"
        score, statistics = loaded.metric.take(sample, f"item {item}")
        answers = given[loaded.name, sample["doc_id"]]
        worst = max(answers, key=lambda answer: OUTCOMES.index(answer.outcome), default=Answer())
        only = answers[0] if len(answers) == 1 else Answer()
        unanswered = worst.outcome == "unanswered"
        yield Record(
            item=item,
            score=0.0 if unanswered else score,
            output="" if unanswered else _output(loaded, sample),
            statistics=statistics,
            outcome=worst.outcome,
            reason=worst.reason,
            tokens=only.tokens,
            prompt_tokens=max((answer.prompt_tokens for answer in answers), default=0),
            prompt_key=only.prompt_key,
        )


def _output(loaded: Loaded, sample: Mapping[str, Any]) -> str:
    """What the model wrote, or the log-likelihoods of the choices."""
    answers = [answer for answers in sample["resps"] for answer in answers]
    if loaded.generates:
        return str(answers[0]) if len(answers) == 1 else json.dumps([str(a) for a in answers])
    first = [a[0] if isinstance(a, list | tuple) else a for a in answers]
    return json.dumps([round(float(value), 4) for value in first])


def filtered(loaded: Loaded, answers: Sequence[tuple[int, str]]) -> list[str]:
    """What the task's filter makes of (document, what the model wrote)."""
    from lm_eval.api.instance import Instance

    if not loaded.generates:
        return [text for _, text in answers]
    several = (loaded.task.get_config("repeats") or 1) > 1  # `_output` made one text of them
    instances = [
        Instance(
            request_type="generate_until",
            doc=loaded.docs[doc],
            arguments=("", {}),
            idx=0,
            resps=json.loads(text) if several else [text],
        )
        for doc, text in answers
    ]
    for ensemble in loaded.task._filters:
        if ensemble.name == loaded.metric.filter:
            ensemble.apply(instances)
    return [str(instance.filtered_resps.get(loaded.metric.filter, instance.resps)) for instance in instances]


# The harness's model


class PromptText(str):
    """Prompt with its request, and with the number of its answer if a task repeats the request."""

    request: Instance
    number: int

    @classmethod
    def of(cls, request: Instance, number: int) -> PromptText:
        prompt = cls(request.args[0])
        prompt.request, prompt.number = request, number
        return prompt


def build(
    served: LoadedModel, evaluator: HarnessSettings, items: Mapping[tuple[str, int], Item], replicate: int
) -> HFLM:
    """HFLM around the live module, for the n-th answers to items, which are given by task and place.

    It is for one call: it keeps neither the module nor an answer longer than that.
    """
    module, tokenizer = served.module, served.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer = _copy(tokenizer)
    arguments = {key: getattr(evaluator, key) for key in HFLM_KEYS}
    if isinstance(evaluator.batch_size, int):
        arguments["batch_size"] = evaluator.batch_of(replicate)
    quiet()
    model = live_class()(pretrained=module, tokenizer=tokenizer, device=str(module.device), **arguments)
    model.evaluator, model.items, model.replicate, model.answers = evaluator, items, replicate, {}
    model.eos_token_ids = served.eos_token_ids or (() if model.eot_token_id is None else (int(model.eot_token_id),))
    if isinstance(evaluator.apply_chat_template, str):
        model.chat_template_args = {**model.chat_template_args, "chat_template": evaluator.apply_chat_template}
    return model


@lru_cache(maxsize=2)
def _copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that HFLM may give a padding token, since others use the original."""
    return copy.deepcopy(tokenizer)


class HarnessModel(Base):  # type: ignore[misc]
    """HFLM that decodes by the settings alone, notes how answers end, shows no progress, and passes tool schemas on."""

    tools: list[Json] | None = None
    chat_template_args: dict[str, Any]
    evaluator: HarnessSettings
    items: Mapping[tuple[str, int], Item]
    replicate: int
    eos_token_ids: Sequence[int]
    answers: dict[tuple[str, int], list[Answer]]  # by task and place of the document
    _prompts: Sequence[PromptText] = ()  # of the batch, and the token ids of each
    _ids: Sequence[Sequence[int]] = ()
    _scored: list[Instance] | None = None

    def _seed(self, prompt: PromptText, decoding: Decoding) -> int:
        """Seed of one answer, from its item, replicate and place in the task's own requests."""
        request = prompt.request
        item = self.items[str(request.task_name), int(request.doc_id or 0)]
        place = int(request.idx) + (prompt.number << 16)
        return (decoding.seed_of(item, self.replicate) + place * STEP) % 2**63

    def _note(self, request: Instance, answer: Answer) -> None:
        self.answers.setdefault((request.task_name, request.doc_id), []).append(answer)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        self._scored = requests
        try:
            return list(super().loglikelihood(requests, disable_tqdm=True))
        finally:
            self._scored = None

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self._scored is not None:  # rolling likelihoods come in windows, which are never cut
            for request, (_, context, rest) in zip(self._scored, requests, strict=True):
                length = len(context) + (len(rest) - 1 if self.backend == "causal" else 0)
                self._note(request, self._answer(context, length > self.max_length))
        return list(super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs))

    def _answer(self, prompt: Sequence[int], cut: bool, finished: bool = True) -> Answer:
        reason = CUT.format(self.max_length) if cut else ""
        outcome: Outcome = "finished" if finished and not cut else "truncated"
        return Answer(outcome=outcome, reason=reason, prompt_tokens=len(prompt))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        return list(super().loglikelihood_rolling(requests, disable_tqdm=True))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        counts, prompts = Counter[int](), []
        for request in requests:
            kwargs = request.args[1]
            ending = {key: kwargs[key] for key in ("until", *LENGTHS) if key in kwargs}
            own = {**ending, "group": json.dumps(kwargs, sort_keys=True, default=str)}
            prompts.append(SimpleNamespace(args=(PromptText.of(request, counts[id(request)]), own)))
            counts[id(request)] += 1
        return list(super().generate_until(prompts, disable_tqdm=True))

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The harness's token ids and mask, and a note of those before anything is cut."""
        texts = [str(string) for string in strings]
        ids, mask = super().tok_batch_encode(texts, padding_side)
        self._prompts = [string for string in strings if isinstance(string, PromptText)]
        self._ids = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
        if truncation:
            ids, mask = super().tok_batch_encode(texts, padding_side, None, truncation)
        if not ids.shape[1]:  # no prompt has a token: one of padding stands in
            ids, mask = ids.new_full((len(ids), 1), self.tokenizer.pad_token_id), mask.new_ones((len(ids), 1))
        return ids[:, -(left_truncate_len or 0) :], mask[:, -(left_truncate_len or 0) :]

    def _model_generate(
        self,
        context: torch.Tensor,
        max_length: int,
        stop: list[str],
        attention_mask: torch.Tensor,
        group: str,
        do_sample: bool = False,
        temperature: float = 0.0,
    ) -> torch.Tensor:
        """Token ids of a batch whose requests have the same `group`, which are a task's own generation settings."""
        import torch
        from transformers import StoppingCriteriaList

        mask, start = attention_mask, context.shape[1] if self.backend == "causal" else 1
        decoding = decoding_of(self._prompts[0].request.args[1], self.evaluator)
        seeds = [self._seed(prompt, decoding) for prompt in self._prompts] if decoding.samples else []
        stops = StopTexts(self.tokenizer, [text for text in stop if text], start, len(context))
        pad, new = self.tokenizer.pad_token_id, max_length - context.shape[1]
        dtype = self.mixed_precision_dtype
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            out = self.model.generate(
                input_ids=context,
                attention_mask=mask,
                generation_config=neutral_config(self.model, decoding, pad, self.eos_token_ids, new),
                logits_processor=draws(decoding, seeds, start),
                stopping_criteria=StoppingCriteriaList([stops]),
            )
        return self._ended(out.clone(), start, context, mask, stops)

    def _ended(
        self,
        rows: torch.Tensor,
        start: int,
        context: torch.Tensor,
        mask: torch.Tensor,
        stops: StopTexts,
    ) -> torch.Tensor:
        """The rows without what follows an end token, after a note of each answer."""
        fill = self.tokenizer.pad_token_id if self.eot_token_id is None else self.eot_token_id
        for row, prompt in enumerate(self._prompts):
            tokens = rows[row, start:].tolist()[: stops.ended[row]]
            end = next((n for n, token in enumerate(tokens) if token in self.eos_token_ids), None)
            if end is not None:  # the harness knows the end token of one ingredient alone
                rows[row, start + end :] = fill
            finished = end is not None or any(text in self.tok_decode(tokens) for text in stops.texts)
            kept = context[row, mask[row].bool()].tolist()
            answer = self._answer(kept, len(self._ids[row]) > len(kept), finished)
            written = tuple(tokens[: None if end is None else end + 1])
            answer = replace(answer, tokens=written, prompt_key=prompt_key(kept))
            self._note(prompt.request, answer if self._ids[row] else Answer.none([], EMPTY))
        return rows

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        from lm_eval.models.huggingface import HFLM

        options = dict(self.chat_template_args)
        if self.tools is not None:
            options["tools"] = self.tools
        tokenizer = SimpleNamespace(
            apply_chat_template=lambda chat, **own: apply_chat_template(self.tokenizer, chat, own)
        )
        standin = SimpleNamespace(tokenizer=tokenizer, chat_template_args=options)
        return str(HFLM.apply_chat_template(standin, chat_history, add_generation_prompt))


@cache
def live_class() -> type[HFLM]:
    from lm_eval.models.huggingface import HFLM

    return type("LiveHFLM", (HarnessModel, HFLM), {})


class StopTexts:
    """Criterion that ends a row, and no other, once it contains one of the texts. `ended` counts its tokens then."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], start: int, rows: int) -> None:
        self._tokenizer, self.texts, self._start = tokenizer, texts, start
        self._window = max((len(text.encode()) for text in texts), default=0) + 2
        self.ended: list[int | None] = [None] * rows

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        if len(ids) == len(self.ended) and self.texts:  # beams are more rows than answers, and change places
            going = [row for row, end in enumerate(self.ended) if end is None]
            last = ids[going, max(self._start, ids.shape[1] - self._window) :].tolist()
            for row, text in zip(going, self._tokenizer.batch_decode(last), strict=True):
                if any(stop in text for stop in self.texts):
                    self.ended[row] = ids.shape[1] - self._start
        done = [end is not None for end in self.ended] if len(ids) == len(self.ended) else [False] * len(ids)
        return torch.tensor(done, device=ids.device)
