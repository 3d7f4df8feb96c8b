"""The harness's model around the live module, and the harness's own loop on chosen documents of loaded tasks.

Only `HFLM._model_generate` decodes in another way than the harness: the harness fills what a task leaves open from the
model's generation_config, and a row goes on until the last of its batch ends. Prompts, order and batches are its own.
"""

from __future__ import annotations

import copy
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import chain
from types import MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from souping.core.protocols import LoadedModel
from souping.core.text import first_line
from souping.core.types import OUTCOMES, Item, Record, UserError, digest
from souping.evaluate.engines.base import Answer
from souping.evaluate.engines.transformers import answer_of, neutral_config, sampling_processor
from souping.evaluate.lm_eval.tasks import (
    LENGTH_KEYS,
    Document,
    HarnessSettings,
    Loaded,
    decoding_of,
    quiet_harness,
    refused_arguments,
    seed,
)
from souping.evaluate.templates import (
    SEED_STEP,
    Decoding,
    TemplateStoppedError,
    apply_chat_template,
)

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM, HFLM as Base
    from transformers import PreTrainedTokenizerBase
else:
    Base = object  # lm_eval is imported when the model is made

PROMPT_CUT = "the prompt was cut on the left to fit the context of {} tokens"
EMPTY = "the tokenizer makes no token of the prompt"


class TaskSubset:
    """Task as the harness's loop sees it: its own prompts, filters and metrics, on chosen documents.

    Three things differ from the task itself. The documents are loaded already, while the harness would process them
    anew at each call; the few-shot examples are those that were drawn at loading; and nothing is aggregated.
    """

    def __init__(self, loaded: Loaded, seed: int | None) -> None:
        self._loaded = loaded
        self._task = loaded.task
        self._seed = seed
        self.eval_docs = loaded.docs
        # The task's own method, which then calls the methods below instead of the task's.
        self.build_all_requests = MethodType(type(loaded.task).build_all_requests, self)

    def __getattr__(self, name: str) -> Any:
        """Whatever is not defined here is the task's."""
        return getattr(self._task, name)

    @property
    def _instances(self) -> list[Instance]:
        """The requests. They are the task's, because its own methods filter and score them."""
        return list(self._task._instances)

    @_instances.setter
    def _instances(self, requests: list[Instance]) -> None:
        self._task._instances = requests

    def doc_iterator(
        self,
        *,
        rank: int = 0,
        limit: int | None = None,
        world_size: int = 1,
        samples: Sequence[int] = (),
    ) -> Iterator[tuple[int, Document]]:
        """(place among the chosen documents, document); `samples` are the documents' numbers in the task.

        The numbers are kept for `doc_to_prefix`, which the harness calls once per document in the same order.
        """
        self._numbers = iter(samples)
        return enumerate(self._loaded.docs[number] for number in samples)

    def doc_to_prefix(self, doc: Document) -> Any:
        """The text with which an answer begins.

        The harness calls this just before it builds the document's prompt, so the prompt's few-shot examples are set
        here.
        """
        task = self._task
        number = next(self._numbers)
        if shots := self._loaded.shots[number]:
            task.sampler = SimpleNamespace(sample=lambda **_: list(shots))
        # A task that is written in Python draws examples itself: here from a seed of the document.
        elif not hasattr(task, "sampler"):
            task.fewshot_rnd = random.Random(f"{self._seed} {number}")
        return task.doc_to_prefix(doc)

    def aggregation(self) -> Mapping[str, Callable[[Sequence[float]], int]]:
        """{metric: function of its values}. The loop aggregates every metric; the number of values cannot fail."""
        return defaultdict(lambda: len)


# The harness's loop


def run_harness(
    lm: HFLM,
    loaded: Mapping[str, Loaded],
    documents: Mapping[str, Sequence[int]],
    evaluator: HarnessSettings,
) -> dict[str, Record]:
    """{item id: record} of `documents`, {task: numbers of documents, in ascending order}.

    Raises:
        UserError: a document's value for a metric or its tools cannot be used, or a template fails.
    """
    import torch
    from lm_eval.evaluator import evaluate

    # As simple_evaluate does before each run: tasks may draw at random.
    seed(evaluator)
    arguments = evaluator.arguments
    with refused_arguments():
        torch.manual_seed(arguments["torch_random_seed"])
    fewshot_seed = arguments["fewshot_random_seed"]
    tasks = {name: TaskSubset(loaded[name], fewshot_seed) for name in documents}
    try:
        results = evaluate(
            lm=lm,
            task_dict={"tasks": tasks, "groups": {}},
            samples={name: list(numbers) for name, numbers in documents.items()},
            bootstrap_iters=0,
            log_samples=True,
            system_instruction=arguments["system_instruction"],
            apply_chat_template=evaluator.apply_chat_template,
            fewshot_as_multiturn=arguments["fewshot_as_multiturn"],
            confirm_run_unsafe_code=evaluator.confirm_run_unsafe_code,
        )
    except TemplateStoppedError as error:
        raise UserError(
            f"evaluator=lm_eval: a template stops {', '.join(documents):.100}: {first_line(error)}"
        ) from error
    # {(task, place among its chosen documents): answers}
    answers: Mapping[tuple[str, int], list[Answer]] = lm.answers
    records = list[Record]()
    for name, numbers in documents.items():
        answers_of = {
            number: answers.get((name, place), []) for place, number in enumerate(numbers)
        }
        records += _records(loaded[name], results["samples"][name], answers_of)
    return {record.item: record for record in records}


def _records(
    loaded: Loaded, samples: Sequence[Mapping[str, Any]], answers_of: Mapping[int, Sequence[Answer]]
) -> Iterator[Record]:
    """A record for each document of a task, from the harness's logged samples.

    `answers_of` is {number of a document: the answers to its requests}; the worst says how the item was answered.
    """
    for sample in samples:
        # There is a sample per document and filter.
        if sample["filter"] != loaded.metric.filter:
            continue
        item = f"{loaded.name}/{sample['doc_id']}"
        score, statistics = loaded.metric.take(sample, f"item {item}")
        answers = answers_of[sample["doc_id"]]
        worst = max(answers, key=lambda answer: OUTCOMES.index(answer.outcome), default=Answer())
        only = answers[0] if len(answers) == 1 else Answer()
        unanswered = worst.outcome == "unanswered"
        prompt = _prompt(sample)
        yield Record(
            item=item,
            score=0.0 if unanswered else score,
            output="" if unanswered else _output(loaded, sample),
            statistics=statistics,
            outcome=worst.outcome,
            reason=worst.reason,
            tokens=only.tokens,
            prompt_tokens=max((answer.prompt_tokens for answer in answers), default=0),
            # Several requests, such as the choices of a question, have no token ids of their own.
            prompt_key=only.prompt_key or digest(prompt),
            prompt=prompt,
        )


def _prompt(sample: Mapping[str, Any]) -> str:
    """The texts of a sample's requests, a line each, equal ones once: a context, and any continuation to be scored."""
    requests = []
    for request in sample["arguments"]:
        requests.append("".join(text for text in request if isinstance(text, str)))
    return "\n".join(dict.fromkeys(requests))


def _output(loaded: Loaded, sample: Mapping[str, Any]) -> str:
    """The text that the model wrote, or a JSON list of several texts or of the choices' log-likelihoods."""
    answers = list(chain.from_iterable(sample["resps"]))
    if not loaded.generates:
        # An answer is (log-likelihood, whether greedy decoding gives this text), or a log-likelihood alone.
        likelihoods = [
            answer[0] if isinstance(answer, list | tuple) else answer for answer in answers
        ]
        return json.dumps([round(float(value), 4) for value in likelihoods])
    if len(answers) == 1:
        return str(answers[0])
    return json.dumps([str(answer) for answer in answers])


# The harness's model


class PromptText(str):
    """Prompt that keeps its request while the harness passes it on as a text.

    `number` counts the prompts of one request, from 0 on: a task may repeat a request.
    """

    request: Instance
    number: int

    @classmethod
    def of(cls, request: Instance, number: int) -> PromptText:
        """The prompt of a request; `number` counts the prompts of this request."""
        prompt = cls(request.args[0])
        prompt.request = request
        prompt.number = number
        return prompt


def harness_model(
    served: LoadedModel,
    evaluator: HarnessSettings,
    items: Mapping[tuple[str, int], Item],
    repeat: int,
    batch_size: int,
) -> HFLM:
    """HFLM around the live module, for one answer to each of `items`.

    `items` is {(task, place among its chosen documents): item}, and `repeat` counts the answers to an item, from 0 on.
    The model is made for one call of `run_harness`.
    """
    module = served.module
    tokenizer = served.tokenizer
    # HFLM sets a padding token in a tokenizer without one.
    if tokenizer.pad_token_id is None:
        tokenizer = _copy(tokenizer)
    quiet_harness()
    with refused_arguments():
        model = live_class()(
            pretrained=module,
            tokenizer=tokenizer,
            device=str(module.device),
            batch_size=batch_size,
            **evaluator.model_arguments,
        )
    model.evaluator = evaluator
    model.items = items
    model.repeat = repeat
    model.answers = {}
    model.eos_token_ids = served.eos_token_ids
    # If no ingredient defines end tokens, answers end at the tokenizer's.
    if not served.eos_token_ids and model.eot_token_id is not None:
        model.eos_token_ids = (int(model.eot_token_id),)
    # A text names one of the tokenizer's several templates.
    if isinstance(evaluator.apply_chat_template, str):
        model.chat_template_args = {
            **model.chat_template_args,
            "chat_template": evaluator.apply_chat_template,
        }
    return model


@lru_cache(maxsize=2)
def _copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that HFLM may change, because other code uses the original."""
    return copy.deepcopy(tokenizer)


class HarnessModel(Base):  # type: ignore[misc]
    """HFLM that decodes by the settings alone, notes how answers end, and shows no progress."""

    chat_template_args: dict[str, Any]
    evaluator: HarnessSettings
    # {(task, place among its chosen documents): item}, and below the answers so far
    items: Mapping[tuple[str, int], Item]
    answers: dict[tuple[str, int], list[Answer]]
    repeat: int
    eos_token_ids: Sequence[int]
    # Prompts of the present batch, and their token ids before any cut: from `tok_batch_encode` for `_model_generate`.
    _prompts: Sequence[PromptText] = ()
    _ids: Sequence[Sequence[int]] = ()
    # Requests for the likelihood of a continuation that are being answered.
    _scored: list[Instance] | None = None

    def _seed(self, prompt: PromptText, decoding: Decoding) -> int:
        """Seed of one answer, from its item, its repeat, and its place among the requests for the item."""
        request = prompt.request
        item = self.items[str(request.task_name), int(request.doc_id or 0)]
        # The bits above the request's index count its repeats.
        place = int(request.idx) + (prompt.number << 16)
        return (decoding.seed_of(item, self.repeat) + place * SEED_STEP) % 2**63

    def _note(self, request: Instance, answer: Answer) -> None:
        """Add an answer to the answers to the request's document."""
        self.answers.setdefault((request.task_name, request.doc_id), []).append(answer)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Like HFLM's. The requests are kept for `_loglikelihood_tokens`, which gets only their tokens."""
        self._scored = requests
        try:
            return list(super().loglikelihood(requests, disable_tqdm=True))
        finally:
            self._scored = None

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Like HFLM's; also notes whether a prompt is longer than the context. Each request is (texts, token ids of the
        context, token ids of the continuation).
        """
        # Without `_scored` these are windows of a rolling likelihood, which are never cut. Otherwise HFLM has encoded
        # the requests of `_scored` in their order.
        if self._scored is not None:
            for request, (_, context, continuation) in zip(self._scored, requests, strict=True):
                length = len(context)
                # A decoder also reads the continuation, except for its last token.
                if self.backend == "causal":
                    length += len(continuation) - 1
                answer = Answer(prompt_tokens=len(context))
                if length > self.max_length:
                    reason = PROMPT_CUT.format(self.max_length)
                    answer = replace(answer, outcome="truncated", reason=reason)
                self._note(request, answer)
        return list(
            super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        )

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Like HFLM's, without a progress bar."""
        return list(super().loglikelihood_rolling(requests, disable_tqdm=True))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Like HFLM's, on requests with a `PromptText` as prompt, and only the settings of how answers end."""
        # The harness repeats a request by listing the same object several times.
        counts = Counter[int]()
        prompts = []
        for request in requests:
            kwargs = request.args[1]
            ending = {key: kwargs[key] for key in ("until", *LENGTH_KEYS) if key in kwargs}
            # HFLM batches requests with equal settings: `group` stands for all settings of the request.
            group = json.dumps(kwargs, sort_keys=True, default=str)
            prompt = PromptText.of(request, counts[id(request)])
            prompts.append(SimpleNamespace(args=(prompt, {**ending, "group": group})))
            counts[id(request)] += 1
        return list(super().generate_until(prompts, disable_tqdm=True))

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [R, T] and mask of the prompts of a batch, as HFLM makes them.

        HFLM calls this for each batch just before `_model_generate`, which needs the prompts and their lengths before
        any cut. So the prompts are first encoded whole and noted. Only then are they cut: by the tokenizer if
        `truncation` is set, and here to the last `left_truncate_len` tokens.
        """
        texts = [str(string) for string in strings]
        ids, mask = super().tok_batch_encode(texts, padding_side)
        self._prompts = [string for string in strings if isinstance(string, PromptText)]
        self._ids = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
        if truncation:
            ids, mask = super().tok_batch_encode(texts, padding_side, truncation=truncation)
        # The module needs a token, even if no prompt has one.
        if not ids.shape[1]:
            ids = ids.new_full((len(ids), 1), self.tokenizer.pad_token_id)
            mask = mask.new_ones((len(mask), 1))
        # Without a length, the whole prompt: -0 is 0.
        begin = -(left_truncate_len or 0)
        return ids[:, begin:], mask[:, begin:]

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
        """Token ids [R, T] of the prompts `context` and their answers, whose endings are noted.

        All requests of a batch have the same generation settings (`group`), and the first says which. `do_sample` and
        `temperature` are not used: HFLM passes them.
        """
        import torch

        # A decoder with an encoder begins with one token, not with the prompt.
        start = context.shape[1] if self.backend == "causal" else 1
        decoding = decoding_of(self._prompts[0].request.args[1], self.evaluator)
        seeds = []
        if decoding.temperature:
            seeds = [self._seed(prompt, decoding) for prompt in self._prompts]
        stops = [text for text in stop if text]
        pad = self.tokenizer.pad_token_id
        max_new = max_length - context.shape[1]
        dtype = self.mixed_precision_dtype
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None),
        ):
            out = self.model.generate(
                input_ids=context,
                attention_mask=attention_mask,
                generation_config=neutral_config(
                    self.model, decoding, pad, self.eos_token_ids, max_new, stops
                ),
                logits_processor=sampling_processor(decoding, seeds, start),
                tokenizer=self.tokenizer,
            )
        rows: torch.Tensor = out.clone()
        end_token = pad if self.eot_token_id is None else self.eot_token_id
        for row, prompt in enumerate(self._prompts):
            prompt_ids = context[row, attention_mask[row].bool()].tolist()
            ids = rows[row, start:].tolist()
            answer = answer_of(
                self.tokenizer, stops, prompt_ids, ids, self.eos_token_ids, pad, max_new
            )
            # The harness cuts texts only at the end token of its tokenizer. A row may end with another ingredient's end
            # token, which is therefore replaced.
            if answer.tokens and answer.tokens[-1] in self.eos_token_ids:
                rows[row, start + len(answer.tokens) - 1 :] = end_token
            self._note(prompt.request, self._ending(row, answer))
        return rows

    def _ending(self, row: int, answer: Answer) -> Answer:
        """The `answer` to the prompt in a row of the batch, as truncated if the prompt was cut.

        It has no text, because the harness makes its own from the token ids.
        """
        if not self._ids[row]:
            return Answer.none([], EMPTY)
        answer = replace(answer, text="")
        if len(self._ids[row]) <= answer.prompt_tokens:
            return answer
        return replace(answer, outcome="truncated", reason=PROMPT_CUT.format(self.max_length))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Like HFLM's, called with a stand-in for the model, whose templates a child process renders."""
        from lm_eval.models.huggingface import HFLM

        tokenizer = SimpleNamespace(
            apply_chat_template=lambda chat, **options: apply_chat_template(
                self.tokenizer, chat, options
            )
        )
        model = SimpleNamespace(tokenizer=tokenizer, chat_template_args=self.chat_template_args)
        return str(HFLM.apply_chat_template(model, chat_history, add_generation_prompt))


@cache
def live_class() -> type[HFLM]:
    """HFLM with the methods of `HarnessModel`; a function, because importing lm_eval takes long."""
    from lm_eval.models.huggingface import HFLM

    return type("LiveHFLM", (HarnessModel, HFLM), {})
