"""Evaluators by an engine: what they share, and generation that is scored item by item."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.compatibility import chat_template
from souping.checkpoints.folder import has_weights, read_config, setting
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
from souping.core.protocols import Evaluator, LoadedModel, ModelForm, ModelHost, ModuleSettings
from souping.core.system import cores
from souping.core.types import TEXT, Folders, Item, Items, Json, JsonObject, Missing, Record
from souping.evaluate.engines.transformers import (
    DEFAULT_NEW_TOKENS,
    Answer,
    Engine,
    TransformersEngine,
)
from souping.evaluate.scoring import SCORERS, score
from souping.evaluate.templates import (
    PROCESS,
    Decoding,
    as_seen,
    check_sampling,
    generation_notes,
    no_template,
)

LOCAL_EVALUATOR_VERSION = 2
"""Raise when the same settings would give other answers or scores: old rows in stores are then left alone."""
SMALL_MODEL_PARAMETERS = 50_000_000
"""Parameters below which one thread is the default."""


@component
class MachineEvaluator(Evaluator):
    """Evaluator of a live module. Its settings are part of the fingerprint, because they change logits in the last
    digits."""

    batch_size: Count = 64
    dtype: Precision | None = None
    device: Device = "auto"
    threads: Threads | None = None
    trust_remote_code: bool = False
    _dtype: str = field(default="auto", init=False, repr=False)
    _small: bool = field(default=False, init=False, repr=False)

    @property
    def resolved_dtype(self) -> str:
        """What the module computes in; `auto` as long as the checkpoint's own dtype is not known."""
        return self.dtype or ("float32" if self.resolved_device == "cpu" else self._dtype)

    @property
    def resolved_threads(self) -> int:
        return self.threads or (1 if self._small else min(cores(), 8))

    @property
    def resolved_device(self) -> str:
        """`auto` is the GPU if there is one. torch is imported only if there is a driver: a run may need no torch."""
        if self.device != "auto":
            return self.device
        if not Path("/dev/nvidiactl").exists():
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def for_pool(self, architecture_folder: Path, folders: Folders) -> Self:
        """This evaluator with what it leaves to the candidates: their own dtype, and one thread if they are small."""
        on_cpu = self.dtype is not None or self.resolved_device == "cpu"
        dtype = "float32"
        small = False
        if has_weights(architecture_folder):
            # only headers: the pool has opened it
            model = Checkpoint.open(architecture_folder, allow_pickle=True)
            dtype = compute_dtype(model)
            small = model.parameters < SMALL_MODEL_PARAMETERS
        elif not on_cpu:
            dtype = str(setting(read_config(architecture_folder), "dtype") or "float32")
        copied = copy.copy(self)
        vars(copied).update(_dtype="float32" if on_cpu else dtype, _small=small)
        return copied

    def module_settings(self) -> ModuleSettings:
        device = self.resolved_device
        dtype = self.resolved_dtype
        trust = self.trust_remote_code
        return ModuleSettings(device=device, dtype=dtype, trust_remote_code=trust)

    @property
    def full_batch(self) -> int:
        return self.batch_size

    def batch_of(self, replicate: int) -> int:
        """Items in a batch of n-th answers."""
        return self.batch_size


@component
class RepeatedAnswers(MachineEvaluator):
    """Several answers to an item: `samples` that are drawn, or `replicates` of the greedy one."""

    samples: Count = 1
    sampling_seed: Seed = 0
    aggregate: Literal["mean", "pass"] = "mean"
    replicates: Count = 1

    @property
    def answers_per_item(self) -> int:
        return max(self.samples, self.replicates)

    def batch_of(self, replicate: int) -> int:
        """A greedy replicate is computed in batches of another size, with other neighbours."""
        if replicate and self.replicates > 1:
            return self.batch_size // 2 if self.batch_size > 1 else 2
        return self.batch_size


@component
class EngineEvaluator(MachineEvaluator):
    """Evaluator by an engine. An engine in other processes has its own dtype, device and threads, and no `workers`."""

    workers: Threads = 1
    engine: Engine = field(default_factory=TransformersEngine)

    def settings_of(self, name: str, version: int, own: JsonObject) -> JsonObject:
        """Settings of an evaluator with this name, with its `own` ones and those of the engine or the machine."""
        known = {"batch_size": self.batch_size, "trust_remote_code": self.trust_remote_code, **own}
        engine = self.engine.settings
        if engine is not None:
            return {"name": name, "version": version, **known, "engine": dict(engine)}
        machine: dict[str, Json] = {
            "dtype": self.resolved_dtype,
            "device": self.resolved_device,
            "threads": self.resolved_threads,
            "workers": self.workers,
        }
        return {"name": name, "version": version, **known, **machine}

    @property
    def model_form(self) -> ModelForm:
        return self.engine.model_form

    def module_settings(self) -> ModuleSettings:
        return self.engine.module_settings(MachineEvaluator.module_settings(self))

    @property
    def host(self) -> ModelHost | None:
        return self.engine.host

    def needs(self) -> list[Missing]:
        return self.engine.needs()

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse chat messages if the tokenizer has no chat template (UserError, with the first such item)."""
        chat = next((item for item in items if not isinstance(item.prompt, str)), None)
        if chat is not None and not chat_template(folder):
            raise no_template(chat)

    def batches(self, items: Sequence[Item], replicate: int = 0) -> list[Items]:
        """Items of similar length together (little padding), in an order that depends on the items alone."""
        order = sorted(items, key=lambda item: (self.length(item), item.id))
        size = self.batch_of(replicate)
        return [tuple(order[i : i + size]) for i in range(0, len(order), size)]

    def length(self, item: Item) -> int:
        """Characters that the model sees, without what a chat template adds."""
        return len(item.text)

    def close(self) -> None:
        """Close the engine and the process that renders templates."""
        self.engine.close()
        PROCESS.close()


@component
class LocalEvaluator(RepeatedAnswers, EngineEvaluator):
    """Answers by greedy decoding or sampling, in batches that `engine` generates.

    A text prompt is tokenised as it is; chat messages go through the tokenizer's chat template. An answer ends at an
    end token of the model (for a soup, of any ingredient), at the first text of `stop`, or after `max_new_tokens`
    (default: 1,024, or what the context leaves).

    `temperature` 0 is greedy. Above it, `samples` answers per item are drawn, each from (`sampling_seed`, item, number
    of the answer), and `aggregate` combines their scores: their `mean`, or `pass` (the best). `replicates` repeats
    greedy answers in batches of another size, which shows how often rounding changes an answer.

    With `engine=transformers`, `dtype` is what the module computes in, whatever the soup is stored in (default: the
    checkpoint's own on a GPU, float32 on a CPU), and `workers` share a batch, each generating for every n-th item with
    `threads` torch threads: small models gain from a second worker, not from a second thread.
    """

    length_key = "evaluator.max_new_tokens"

    max_new_tokens: Count | None = None
    stop: list[str] = field(default_factory=list)
    temperature: Temperature = 0.0
    top_p: Share = 1.0
    top_k: Count | None = None

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.samples, self.replicates)

    @property
    def settings(self) -> JsonObject:
        decoding: dict[str, Json] = (
            asdict(self.decoding) if self.temperature else {"temperature": 0.0}
        )
        own = {
            "max_new_tokens": self.max_new_tokens,
            "stop": list(self.stop),
            "decoding": decoding,
        }
        return self.settings_of("local", LOCAL_EVALUATOR_VERSION, own)

    @cached_property
    def decoding(self) -> Decoding:
        return Decoding(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or 0,
            seed=self.sampling_seed,
        )

    @property
    def answer_tokens(self) -> int:
        return self.max_new_tokens or DEFAULT_NEW_TOKENS

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse texts without an answer and scorers that are not known, and as every engine does (UserError)."""
        EngineEvaluator.check_tokenizer(self, folder, items)
        for item in items:
            if item.scorer == TEXT or (item.user_scorer is None and item.scorer not in SCORERS):
                score(item, "")

    def banner(self) -> str:
        """How long an answer may be."""
        rest = "" if self.max_new_tokens else ", or what the context leaves"
        return f"answers have at most {self.answer_tokens:,} new tokens{rest} ({self.length_key})"

    def pool_notes(self, folders: Folders) -> list[str]:
        return generation_notes(folders)

    def prompt_notes(self, folder: Path, items: Sequence[Item]) -> list[str]:
        if not chat_template(folder):
            return []
        plain = sum(isinstance(item.prompt, str) for item in items)
        bypass = (
            f"{plain} of {len(items)} prompts are plain texts and bypass the tokenizer's chat template: chat models "
            'need messages, "prompt": [{"role": "user", "content": "..."}]'
        )
        return [bypass] if plain else []

    def evaluate(
        self, model: LoadedModel, items: Sequence[Item], replicate: int = 0
    ) -> list[Record]:
        """The n-th answer to every item, in order.

        Raises:
            UserError: an item needs a chat template and there is none, or the engine cannot run.
        """
        answers = self.engine.generate(self, model, items, replicate)
        return [
            self._record(model, item, answer, replicate)
            for item, answer in zip(items, answers, strict=True)
        ]

    def _record(self, model: LoadedModel, item: Item, answer: Answer, replicate: int) -> Record:
        given = answer.outcome != "unanswered"
        return Record(
            item=item.id,
            score=_score(item, answer.text) if given else 0.0,
            output=answer.text,
            outcome=answer.outcome,
            reason=answer.reason,
            replicate=replicate,
            tokens=answer.tokens,
            prompt_tokens=answer.prompt_tokens,
            prompt_key=answer.prompt_key,
            prompt=as_seen(model.tokenizer, item, answer.prompt_key),
        )

    def rescore(self, item: Item, answer: Record) -> Record:
        """A stored answer, scored by the item's present scorer; nan if the user's scorer has still to be called."""
        return replace(
            answer, score=_score(item, answer.output) if answer.outcome != "unanswered" else 0.0
        )


def _score(item: Item, output: str) -> float:
    """The user's scorers are called by the process with the store, which may have the score."""
    return math.nan if item.user_scorer is not None else SCORERS[item.scorer].score(item, output)


def compute_dtype(model: Checkpoint) -> str:
    """The checkpoint's dtype by torch's name: the narrowest of several, float32 if torch computes in none of them."""
    own = [name for name in model.dtype.split("+") if name in ("float32", "bfloat16", "float16")]
    return own[-1] if own else "float32"
