"""Model of the harness around the live module, and the harness's own loop on chosen documents of loaded tasks."""

from __future__ import annotations

import copy
import io
import json
import logging
import random
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from souping.core.protocols import LoadedModel
from souping.core.text import first_line
from souping.core.types import OUTCOMES, Item, Json, Record, UserError
from souping.evaluate.engines import Answer
from souping.evaluate.lm_eval.errors import silence, stopped
from souping.evaluate.lm_eval.generation import CUT, Asking, answer_requests
from souping.evaluate.lm_eval.settings import HarnessSettings
from souping.evaluate.lm_eval.tasks import Document, Loaded, seed
from souping.evaluate.templates import apply_chat_template

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
Tokenised = tuple[tuple[str, str], list[int], list[int]]
"""(context and continuation, and their token ids), as HFLM makes it."""
HFLM_KEYS = (
    "backend",
    "truncation",
    "logits_cache",
    "max_length",
    "softmax_dtype",
    "mixed_precision_dtype",
    "batch_size",
    "max_batch_size",
    "add_bos_token",
    "prefix_token_id",
    "think_end_token",
    "enable_thinking",
    "chat_template_args",
)
"""Arguments of HFLM that the evaluator passes on; the others load a checkpoint, which is done already."""
SHORTENED = "some prompts of %s are longer than the model's context of %d tokens and are cut on the left"


class TaskSubset:
    """Task as the harness's loop sees it: its own prompts, filters and metrics, on the documents it is asked for.

    Three things differ from the task itself. Documents are at hand, where the harness would read and process them anew
    at each call; few-shot examples are those that were drawn at loading; and nothing is aggregated, for souping does.
    """

    def __init__(self, loaded: Loaded, lm: HFLM, evaluator: HarnessSettings) -> None:
        self._loaded, self._task, self._lm, self._evaluator = loaded, loaded.task, lm, evaluator
        self.eval_docs = loaded.docs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)  # lm_eval's

    def doc_iterator(
        self, *, rank: int = 0, limit: int | None = None, world_size: int = 1, samples: list[int] | None = None
    ) -> Iterator[tuple[int, Document]]:
        """(position, document), as the harness numbers chosen documents."""
        return enumerate(self._loaded.docs[number] for number in samples or [])

    def build_all_requests(
        self,
        *,
        limit: int | None = None,
        samples: list[int] | None = None,
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
        """Requests of the chosen documents."""
        task, instances = self._task, []
        for position, number in enumerate(samples or []):
            doc = self._loaded.docs[number]
            self._set_out(doc, number)
            context = task.fewshot_context(
                doc,
                num_fewshot=task.config.num_fewshot or 0,
                system_instruction=system_instruction,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=fewshot_as_multiturn,
                chat_template=chat_template,
                gen_prefix=task.doc_to_prefix(doc),
            )
            made = task.construct_requests(
                doc=doc,
                ctx=context,
                metadata=(self._loaded.name, position, task.config.repeats),
                apply_chat_template=apply_chat_template,
                chat_template=chat_template,
            )
            instances += made if isinstance(made, list) else [made]
        task._instances = instances

    def _set_out(self, doc: Document, number: int) -> None:
        """The document's few-shot examples, and its tool schemas for the chat template."""
        shots = self._loaded.shots[number]
        if shots:
            self._task.sampler = FixedSampler(shots)
        elif not hasattr(self._task, "sampler"):  # lm_eval's: a task in Python draws for itself
            seed = self._evaluator.fewshot_random_seed
            self._task.fewshot_rnd = random.Random(None if seed is None else f"{seed} {number}")
        self._lm.tools = _tools(doc, self._evaluator.tools, f"{self._loaded.name}/{number}")

    def aggregation(self) -> Mapping[str, Callable[[Sequence[float]], int]]:
        """The loop wants a number for every metric; how many values there are never fails."""
        return defaultdict(lambda: len)


class FixedSampler:
    """Sampler whose draw is known."""

    def __init__(self, shots: Sequence[Document]) -> None:
        self._shots = list(shots)

    def sample(self, n: int, eval_doc: Document | None = None, df: None = None) -> list[Document]:
        return self._shots


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


def run(
    lm: HFLM, loaded: Mapping[str, Loaded], asked: Mapping[str, Sequence[int]], evaluator: HarnessSettings
) -> dict[str, Record]:
    """{item id: record} of the asked documents, `asked` by task.

    Raises:
        UserError: the task's own code fails on an answer, or a prompt does not fit the model.
    """
    from lm_eval.evaluator import evaluate

    _seed(evaluator)
    ids = {name: sorted(numbers) for name, numbers in asked.items()}
    tasks = {name: TaskSubset(loaded[name], lm, evaluator) for name in ids}
    lm.answers = {}
    try:
        with silence(), _hushed(evaluator.batch_size):
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
    except UserError:
        raise
    except Exception as error:  # a task may run any code
        raise UserError(stopped(list(ids), error)) from error
    answers: Mapping[tuple[str, int], list[Answer]] = lm.answers
    if not lm.told and any(answer.reason == CUT.format(lm.max_length) for own in answers.values() for answer in own):
        lm.told = True  # once a model: it is so for every soup
        log.warning(SHORTENED, ", ".join(ids)[:100], lm.max_length)
    given = {(name, number): answers.get((name, place), []) for name in ids for place, number in enumerate(ids[name])}
    samples = results["samples"]
    return {r.item: r for name in ids for r in _records(loaded[name], samples[name], given)}


def _hushed(batch_size: int | str) -> AbstractContextManager[io.StringIO | None]:
    """HFLM prints how it finds a batch size."""
    return redirect_stdout(io.StringIO()) if isinstance(batch_size, str) else nullcontext()


def _seed(evaluator: HarnessSettings) -> None:
    """As simple_evaluate does before each run: tasks that sample answers draw from torch's generator."""
    import torch

    seed(evaluator)
    if evaluator.torch_random_seed is not None:
        torch.manual_seed(evaluator.torch_random_seed)


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
        yield Record(
            item=item,
            score=0.0 if worst.outcome == "unanswered" else score,
            output=_output(loaded, sample),
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
    """What the task's filter makes of (document, what the model wrote).

    Raises:
        UserError: the filter fails.
    """
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
    try:
        for ensemble in loaded.task._filters:
            if ensemble.name == loaded.metric.filter:
                ensemble.apply(instances)
    except Exception as error:  # the task's own code
        raise UserError(stopped([loaded.name], error)) from error
    return [str(instance.filtered_resps.get(loaded.metric.filter, instance.resps)) for instance in instances]


class HarnessModelCache:
    """Holds the harness's model of the module that was served last.

    It keeps no answer: HFLM's cache of logits lives within one call, and its request cache is never opened. Weights
    that are poured into the same module are therefore seen at the next call. Between calls it does not hold the module
    either, or whoever lets go of one to load another would have both in memory.
    """

    def __init__(self) -> None:
        self._module: Callable[[], torch.nn.Module | None] = lambda: None
        self._tokenizer: Callable[[], PreTrainedTokenizerBase | None] = lambda: None
        self._model: HFLM | None = None

    @contextmanager
    def model(
        self, served: LoadedModel, evaluator: HarnessSettings, items: Mapping[tuple[str, int], Item], replicate: int
    ) -> Iterator[HFLM]:
        """The harness's model of what is served, asked for the n-th answers to these items (by task and place).

        A new one is made only for another module or tokenizer.
        """
        module, tokenizer = served.module, served.tokenizer
        if self._model is None or self._module() is not module or self._tokenizer() is not tokenizer:
            self._model = build(module, tokenizer, evaluator)
            self._module, self._tokenizer = weakref.ref(module), weakref.ref(tokenizer)
        self._model._model = self._model.pretrained = module
        self._model.asking = Asking(evaluator=evaluator, replicate=replicate, ends=served.ends, items=items)
        if isinstance(evaluator.batch_size, int):
            self._model.batch_size_per_gpu = evaluator.batch_of(replicate)
        try:
            yield self._model
        finally:
            self._model._model = self._model.pretrained = None

    def close(self) -> None:
        """Let go of the model."""
        self._model = None


def build(module: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, evaluator: HarnessSettings) -> HFLM:
    """HFLM around a live module.

    Raises:
        UserError: HFLM refuses the settings, or the model is of a kind that it does not know.
    """
    if tokenizer.pad_token_id is None:
        tokenizer = copy.deepcopy(tokenizer)  # HFLM gives it a padding token, and others use it too
    arguments = {key: getattr(evaluator, key) for key in HFLM_KEYS}
    try:
        with silence():
            model = live_class()(pretrained=module, tokenizer=tokenizer, device=str(module.device), **arguments)
    except (ValueError, TypeError, AssertionError, AttributeError, KeyError) as error:
        raise UserError(f"evaluator=lm_eval cannot take this model: {first_line(error)}") from error
    if isinstance(evaluator.apply_chat_template, str):
        model.chat_template_args = {**model.chat_template_args, "chat_template": evaluator.apply_chat_template}
    return model


@cache
def live_class() -> type[HFLM]:
    """HFLM that tells how answers end, without progress bars, with tool schemas in the chat template."""
    from lm_eval.models.huggingface import HFLM

    class Live(HFLM):  # type: ignore[misc]
        tools: list[Json] | None = None
        chat_template_args: dict[str, Any]
        told = False
        asking: Asking
        answers: dict[tuple[str, int], list[Answer]]  # by task and place of the document; likelihoods have no text
        _scored: list[Instance] | None = None

        def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            self._scored = requests
            try:
                return list(super().loglikelihood(requests, disable_tqdm=True))
            finally:
                self._scored = None

        def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
            return list(super().loglikelihood_rolling(requests, disable_tqdm=True))

        def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
            given = answer_requests(self, requests)
            self.keep(requests, given)
            return [answer.text for answer in given]

        def keep(self, requests: Sequence[Instance], answers: Sequence[Answer]) -> None:
            """Remember how the requests were answered."""
            for request, answer in zip(requests, answers, strict=True):
                self.answers.setdefault((request.task_name, request.doc_id), []).append(answer)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            options = dict(self.chat_template_args)
            if self.tools is not None:
                options["tools"] = self.tools
            tokenizer = SimpleNamespace(
                apply_chat_template=lambda chat, **own: apply_chat_template(self.tokenizer, chat, own)
            )
            standin = SimpleNamespace(tokenizer=tokenizer, chat_template_args=options)
            return str(HFLM.apply_chat_template(standin, chat_history, add_generation_prompt))

        def _loglikelihood_tokens(
            self, requests: list[Tokenised], disable_tqdm: bool = True, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            if self._scored is not None and len(self._scored) == len(requests):
                self.keep(self._scored, [scored(self, context, rest) for _, context, rest in requests])
            return list(super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs))

    return Live


def scored(lm: HFLM, context: Sequence[int], continuation: Sequence[int]) -> Answer:
    """A likelihood as an answer: truncated where HFLM cuts the context on the left."""
    length = len(context) + len(continuation) - 1 if lm.backend == "causal" else len(context)
    cut = length > lm.max_length
    return Answer(
        outcome="truncated" if cut else "finished",
        reason=CUT.format(lm.max_length) if cut else "",
        prompt_tokens=len(context),
    )
