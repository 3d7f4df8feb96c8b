"""Evaluators by an engine: what they share, and generation that is scored item by item."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from souping.checkpoints.compatibility import chat_template
from souping.core.fields import (
    Count,
    Device,
    Precision,
    Seed,
    Share,
    Temperature,
    Threads,
    component,
)
from souping.core.protocols import (
    AdapterShape,
    Evaluator,
    Hosting,
    LoadedModel,
    ModuleSettings,
    Prompts,
    Sampling,
    Scoring,
)
from souping.core.system import installed
from souping.core.types import (
    TEXT,
    Folders,
    Item,
    Items,
    Json,
    JsonObject,
    Missing,
    Outcome,
    Record,
    frozen,
)
from souping.evaluate.engines.base import DEFAULT_NEW_TOKENS, Answer, Engine, GenerationSettings
from souping.evaluate.engines.transformers import TransformersEngine, check_reads_text
from souping.evaluate.machine import (
    MachineSettings,
    are_small,
    cut_by_length,
    dtype_of,
    repeat_size,
)
from souping.evaluate.scoring import SCORERS, score
from souping.evaluate.templates import PROCESS, Decoding, as_seen, generation_notes, no_template

LOCAL_EVALUATOR_VERSION = 2
"""Raise when the same settings would give other answers or scores: old rows in stores are then left alone."""


@frozen
class LiveHosting(Hosting):
    """Hosting of a live module by the settings of a `machine`, or as the evaluator's `engine` needs it, if any."""

    machine: MachineSettings
    engine: Engine | None = None

    def module_settings(self) -> ModuleSettings:
        """How to load the live module, as the engine says."""
        if self.engine is None:
            return self.machine.module_settings()
        return self.engine.module_settings(self.machine)

    def check_adapters(self, shape: AdapterShape) -> None:
        if self.engine is not None:
            self.engine.check_adapters(shape)

    @property
    def engine_version(self) -> str:
        return installed(*(self.engine.packages if self.engine else TransformersEngine.packages))


@component
class MachineEvaluator(Evaluator):
    """Evaluator of a live module."""

    batch_size: Count = 64
    dtype: Precision | None = None
    device: Device = "auto"
    threads: Threads | None = None
    trust_remote_code: bool = False

    @property
    def machine(self) -> MachineSettings:
        return MachineSettings(
            batch_size=self.batch_size,
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            trust_remote_code=self.trust_remote_code,
        )

    @property
    def hosting(self) -> Hosting:
        return LiveHosting(device=self.device, machine=self.machine)

    def for_pool(self, architecture_folder: Path, folders: Folders) -> Self:
        """A copy with open settings set for the candidates: their own dtype, and one thread if they are small.

        Raises:
            UserError: a live module of them would not read texts.
        """
        if self.hosting.model_form == "module":
            check_reads_text(architecture_folder)
        threads = self.threads
        if threads is None and are_small(architecture_folder):
            threads = 1
        dtype = self.dtype
        # On a CPU the default is float32, whatever the checkpoint's dtype.
        if dtype is None and self.machine.resolved_device != "cpu":
            dtype = dtype_of(architecture_folder)
        return replace(self, dtype=dtype, threads=threads)


@frozen
class EnginePrompts(Prompts):
    """Prompts that go through the tokenizer's chat template if they are messages."""

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse chat messages if the tokenizer has no chat template (UserError, with the first such item)."""
        chat_item = next((item for item in items if not isinstance(item.prompt, str)), None)
        if chat_item is not None and not chat_template(folder):
            raise no_template(chat_item)


@component
class EngineEvaluator(MachineEvaluator):
    """Evaluator by an engine.

    `workers` threads share the work of `engine=transformers`. An engine in other processes has its own device and
    threads, and no `workers`.
    """

    workers: Threads = 1
    engine: Engine = field(default_factory=TransformersEngine)

    def settings_of(self, name: str, version: int, particular: JsonObject) -> JsonObject:
        """What a score of an evaluator with this name depends on besides the model and the item.

        These are its `particular` settings, those that all evaluators have, and those of the engine or of the machine.
        """
        common: dict[str, Json] = {
            "name": name,
            "version": version,
            "batch_size": self.batch_size,
            "trust_remote_code": self.trust_remote_code,
            **particular,
        }
        engine = self.engine.settings
        # An engine with settings has its own device and threads.
        if engine is not None:
            return {**common, "engine": {**engine, "dtype": self.dtype or "auto"}}
        machine = self.machine
        return {
            **common,
            "dtype": machine.resolved_dtype,
            "device": machine.resolved_device,
            "threads": machine.resolved_threads,
            "workers": self.workers,
        }

    def for_pool(self, architecture_folder: Path, folders: Folders) -> Self:
        """A copy in which open settings are set for the candidates.

        The dtype stays open for an engine in other processes, which has settings of its own: it finds the dtype itself.
        """
        resolved = super().for_pool(architecture_folder, folders)
        if self.engine.settings is None:
            return resolved
        return replace(resolved, dtype=self.dtype)

    @property
    def machine(self) -> MachineSettings:
        return replace(super().machine, workers=self.workers)

    @property
    def hosting(self) -> Hosting:
        # An engine does not know the evaluator's dtype.
        host = self.engine.host
        if host is not None:
            host = replace(host, dtype=self.dtype or "auto")
        return LiveHosting(
            model_form=self.engine.model_form,
            device=self.device,
            host=host,
            machine=self.machine,
            engine=self.engine,
        )

    def needs(self) -> list[Missing]:
        return self.engine.needs()

    def close(self) -> None:
        """Close the engine and the process that renders templates."""
        self.engine.close()
        PROCESS.close()


@frozen
class LocalPrompts(EnginePrompts):
    """Prompts of answers that have at most `max_new_tokens`."""

    max_new_tokens: int | None

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse texts without an answer, unknown scorers, and chat messages without a template (UserError)."""
        EnginePrompts.check_tokenizer(self, folder, items)
        for item in items:
            if item.scorer == TEXT or (item.user_scorer is None and item.scorer not in SCORERS):
                # Raises the error of this scorer, whatever the output.
                score(item, "")

    def banner(self) -> str:
        """How long an answer may be."""
        tokens = self.max_new_tokens or DEFAULT_NEW_TOKENS
        context = "" if self.max_new_tokens else ", or what the context leaves"
        return f"answers have at most {tokens:,} new tokens{context} ({LOCAL_LENGTH_KEY})"

    def pool_notes(self, folders: Folders) -> list[str]:
        return generation_notes(folders)

    def prompt_notes(self, folder: Path, items: Sequence[Item]) -> list[str]:
        """A note if prompts are plain texts, while the tokenizer in `folder` has a chat template."""
        plain_texts = sum(isinstance(item.prompt, str) for item in items)
        if not plain_texts or not chat_template(folder):
            return []
        return [
            f"{plain_texts} of {len(items)} prompts are plain texts and bypass the tokenizer's chat template: "
            'chat models need messages, "prompt": [{"role": "user", "content": "..."}]'
        ]


class AnswerScoring(Scoring):
    """Scoring of each answer by its item's scorer."""

    def rescore(self, item: Item, answer: Record) -> Record:
        """A stored answer with the score that the item's present scorer gives it, NaN for a scorer of the user's."""
        return replace(answer, score=_score(item, answer.output, answer.outcome))


LOCAL_LENGTH_KEY = "evaluator.max_new_tokens"


@component
class LocalEvaluator(EngineEvaluator):
    """Answers by greedy decoding or sampling, in batches that `engine` generates.

    A text prompt is tokenised as it is; chat messages go through the tokenizer's chat template. An answer ends at an
    end token of the model (for a soup, of any ingredient), at the first text of `stop`, or after `max_new_tokens`
    (default: 1,024, or what the context leaves).

    `temperature` 0 is greedy. Above it, `repeats` answers per item are drawn, each from (`seed`, item, number of the
    answer), and `aggregate` combines their scores: their `mean`, or `pass` (the best). Greedy answers are repeated in
    batches of another size, which shows how often rounding changes an answer.

    With `engine=transformers`, `dtype` is what the module computes in, whatever the soup is stored in (default: the
    checkpoint's own on a GPU, float32 on a CPU), and `workers` share a batch, each generating for every n-th item with
    `threads` torch threads: small models gain from a second worker, not from a second thread.
    """

    seed: Seed = 0
    repeats: Count = 1
    aggregate: Literal["mean", "pass"] = "mean"
    max_new_tokens: Count | None = None
    stop: list[str] = field(default_factory=list)
    temperature: Temperature = 0.0
    top_p: Share = 1.0
    top_k: Count | None = None

    @property
    def settings(self) -> JsonObject:
        # Greedy answers depend on no other setting of the decoding.
        decoding: dict[str, Json] = {"temperature": 0.0}
        if self.temperature:
            decoding = asdict(self.decoding)
        particular = {
            "max_new_tokens": self.max_new_tokens,
            "stop": list(self.stop),
            "decoding": decoding,
        }
        return self.settings_of("local", LOCAL_EVALUATOR_VERSION, particular)

    @cached_property
    def decoding(self) -> Decoding:
        return Decoding(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or 0,
            seed=self.seed,
        )

    @property
    def generation(self) -> GenerationSettings:
        """The settings of answers, for the engine."""
        return GenerationSettings(
            machine=self.machine,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            decoding=self.decoding,
        )

    @property
    def prompts(self) -> Prompts:
        return LocalPrompts(max_new_tokens=self.max_new_tokens)

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            answers_per_item=self.repeats,
            full_batch=self.batch_size,
            answer_tokens=self.max_new_tokens or DEFAULT_NEW_TOKENS,
            length_key=LOCAL_LENGTH_KEY,
        )

    @property
    def scoring(self) -> Scoring:
        return AnswerScoring(aggregate=self.aggregate)

    def batches(self, items: Sequence[Item], repeat: int = 0) -> list[Items]:
        size = repeat_size(self.batch_size, sampled=self.temperature > 0, repeat=repeat)
        return cut_by_length(items, lambda item: len(item.text), size)

    def evaluate(self, model: LoadedModel, items: Sequence[Item], repeat: int = 0) -> list[Record]:
        """One answer to each item, in order; `repeat` counts the answers to an item, from 0 on.

        Raises:
            UserError: an item needs a chat template and there is none, or the engine cannot run.
        """
        answers = self.engine.generate(self.generation, model, items, repeat)
        return [
            _record(model, item, answer, repeat)
            for item, answer in zip(items, answers, strict=True)
        ]


def _record(model: LoadedModel, item: Item, answer: Answer, repeat: int) -> Record:
    """The scored answer, with the prompt as the model sees it."""
    return Record(
        item=item.id,
        score=_score(item, answer.text, answer.outcome),
        output=answer.text,
        outcome=answer.outcome,
        reason=answer.reason,
        repeat=repeat,
        tokens=answer.tokens,
        prompt_tokens=answer.prompt_tokens,
        prompt_key=answer.prompt_key,
        prompt=as_seen(model.tokenizer, item, answer.prompt_key),
    )


def _score(item: Item, output: str, outcome: Outcome) -> float:
    """Score of an output, 0 if there is no answer, NaN for an item with a scorer of the user's.

    The user's scorers are called later, by the process that has the store, which may know the score already.
    """
    if outcome == "unanswered":
        return 0.0
    if item.user_scorer is not None:
        return math.nan
    return SCORERS[item.scorer].score(item, output)
