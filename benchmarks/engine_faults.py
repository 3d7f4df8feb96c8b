"""Planted faults while a soup is loaded into a vLLM engine or a live module, and how many of them are found.

    python -m benchmarks.engine_faults [--engine vllm|transformers] [--ranks 2] [--faults 20] [--change 0.005]

Three models in bfloat16 are a base, whose weights have a standard deviation of 0.05, plus noise of their own with the
standard deviation `--change`. Each fault is planted into the loading of one soup of all three: a tensor that is left
out, two tensors whose names are swapped, a tensor whose second half is missing. It is found if the soup is refused with
the name of a tensor that is wrong. With vLLM, the prefix cache of the soup before is kept too: openly, which has to be
refused, and in silence, after which the answers have to be those of an empty cache. No soup without a fault may be
refused. Also printed is the time that the check takes.

Faults of every load are planted too (`FAULTS_OF_A_RUN`): the three models and then a soup of them are loaded as a run
loads them. Such a fault is found if the run is refused before the soup is complete, with the name of the tensor.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from benchmarks.random_llama import random_llama, start_vllm
from souping.core.protocols import (
    Evaluator,
    LoadedModel,
    ModuleSettings,
    WeightChunk,
    WeightStream,
)
from souping.core.types import JsonObject, Recipe, UserError
from souping.evaluate.engines import transformers
from souping.evaluate.engines.transformers import load_module
from souping.evaluate.engines.vllm import Vllm, VllmEngine, sampling_arguments
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.templates import Decoding
from souping.merge import CandidatePool
from souping.merge.live import LiveModule
from souping.merge.loaded_weights import LoadedWeights, sample_weights
from souping.merge.local import LocalMerge
from souping.soups.serving import SoupServer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAMES = ("a", "b", "c")
FAULTS_OF_A_RUN = (
    "nothing loaded",
    "one matrix never loaded",
    "one matrix never loaded, nor at the start",
    "one matrix never loaded, and one file read for all by the check",
    "soups but one matrix",
)
NO_FAULT = "none"
SOUPS = 5
TOKENS = 140
"""Tokens of a prompt: more than a block of vLLM's prefix cache."""
PROMPTS = [[1, *range(first, first + 3 * TOKENS, 3)] for first in (5, 12)]
Tensor = tuple[str, str, tuple[int, ...], int]
Load = Callable[[WeightStream], None]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", help="default: all")
    parser.add_argument("--change", type=float, default=0.005)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder), options.hidden, options.layers, options.change)
        pool = LocalMerge().open({name: Path(folder) / name for name in NAMES})
        engine = Transformers(pool) if options.engine == "transformers" else Engine(pool, options)
        with closing(engine):
            missed = report(engine, pool, options.kinds or engine.kinds, options.faults)
            missed += report_runs(engine, pool, options.kinds or FAULTS_OF_A_RUN, options.faults)
    return min(missed, 1)


def save_models(folder: Path, hidden: int, layers: int, change: float) -> None:
    """A base's weights with noise, for each name."""
    torch.manual_seed(0)
    model = random_llama(hidden, layers)
    base = {name: weights.clone() for name, weights in model.state_dict().items()}
    for name in NAMES:
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                tensor.copy_(base[key] + change * torch.randn(tensor.shape))
        model.bfloat16().save_pretrained(folder / name)
        model.float()


class Engine:
    """A running vLLM that takes soups in chunks, and the values of the candidates in it."""

    kinds = ("dropped", "swapped", "half-written", "cache kept openly", "cache kept in silence")

    def __init__(self, pool: CandidatePool, options: argparse.Namespace) -> None:
        self._vllm = start_vllm(pool.architecture_folder, options.ranks)
        self._pool = pool
        self._weights = LoadedWeights()
        self.load = self._vllm.load_soup
        for name in NAMES:
            recipe = pool.recipe({name: 1.0})
            folder = pool.candidate_folder(recipe)
            assert folder is not None
            self._vllm.reload(folder)
            self._weights.check(recipe, self._vllm.sample_weights(), stored=True)

    def check(self, weights: dict[str, float]) -> None:
        self._weights.check(self._pool.recipe(weights), self._vllm.sample_weights(), stored=False)

    def answers_to_kept_cache(self, stream: WeightStream, soup: str, openly: bool) -> bool:
        """Load a soup while vLLM does not empty its cache; whether that is refused, or does no harm."""
        llm = self._vllm._llm
        reset = llm.reset_prefix_cache
        llm.reset_prefix_cache = lambda: not openly
        self.answers("the soup before")
        try:
            self._vllm.load_soup(stream)
        except RuntimeError as error:
            return openly and "prefix cache" in str(error)
        finally:
            llm.reset_prefix_cache = reset
        answers = self.answers(soup)
        assert reset()
        return not openly and answers == self.answers(soup)

    def answers(self, soup: str) -> list[tuple[list[int], str]]:
        arguments = sampling_arguments(8, (), Decoding(), 0, ())
        arguments = {**arguments, "ignore_eos": True, "detokenize": False}
        return self._vllm.generate(PROMPTS, [arguments] * len(PROMPTS), soup)

    def run(self, fault: str, name: str) -> None:
        """Load the models and a soup as a run does, with this fault (UserError if it is found)."""
        engine = VllmEngine()
        # Each run starts this one anew: it takes the folder's weights.
        started = StartedVllm(self._vllm, fault, name, self._pool.architecture_folder)
        settings = LocalEvaluator(max_new_tokens=1, engine=engine)
        with mock.patch("souping.evaluate.engines.vllm.Vllm", started.start):
            serve_run(
                self._pool, settings, fault, lambda m: engine._engine_with(m, settings.machine)
            )

    def close(self) -> None:
        self._vllm.close()


class StartedVllm:
    """A running vLLM in place of a new one, whose loads have a fault: tensors that keep the first folder's values."""

    in_place = True

    def __init__(self, vllm: Vllm, fault: str, name: str, first: Path) -> None:
        self._vllm = vllm
        self._fault = fault
        self._name = name
        self._kept = load_file(first / "model.safetensors")[name]
        if fault.endswith("nor at the start"):
            self._kept = self._kept.flip(0)
        self.sample_weights = vllm.sample_weights

    def start(self, folder: Path, arguments: JsonObject) -> StartedVllm:
        self._take(folder, self._fault.endswith("nor at the start"))
        return self

    def reload(self, folder: Path) -> None:
        if self._fault != "nothing loaded":
            self._take(folder, self._fault.startswith("one matrix"))

    def _take(self, folder: Path, faulty: bool) -> None:
        """Reload a folder; if this is `faulty`, a copy with the values that the tensor keeps."""
        if not faulty:
            self._vllm.reload(folder)
            return
        with tempfile.TemporaryDirectory() as place:
            copy = shutil.copytree(folder, Path(place) / "model")
            tensors = load_file(copy / "model.safetensors")
            save_file({**tensors, self._name: self._kept}, copy / "model.safetensors")
            self._vllm.reload(copy)

    def load_soup(self, stream: WeightStream) -> None:
        if self._fault == "nothing loaded":
            return
        if self._fault != NO_FAULT:
            chunks = partial(with_fault, stream, "dropped", [self._name])
            stream = replace(stream, chunks=chunks)
        self._vllm.load_soup(stream)

    def close(self) -> None:
        return None


class Transformers:
    """A live module, filled tensor by tensor."""

    kinds = ("dropped", "swapped", "half-written")

    def __init__(self, pool: CandidatePool) -> None:
        self._pool = pool
        self._weights = LoadedWeights()
        self._module = load_module(pool.architecture_folder, ModuleSettings())
        live = pool.live(self._module)
        for name in NAMES:
            recipe = pool.recipe({name: 1.0})
            live.load_soup(recipe)
            samples = sample_weights(self._module.state_dict().items())
            self._weights.check(recipe, samples, stored=True)

    def load(self, stream: WeightStream) -> None:
        state = self._module.state_dict()
        for chunk in stream.chunks():
            memory = bytearray(chunk.nbytes)
            chunk.fill(memoryview(memory))
            for name, dtype, shape, offset in chunk.tensors:
                count = state[name].numel()
                flat = torch.frombuffer(
                    memory, dtype=getattr(torch, dtype), count=count, offset=offset
                )
                state[name].copy_(flat.view(shape))

    def check(self, weights: dict[str, float]) -> None:
        samples = sample_weights(self._module.state_dict().items())
        self._weights.check(self._pool.recipe(weights), samples, stored=False)

    def run(self, fault: str, name: str) -> None:
        """Load the models and a soup as a run does, with this fault (UserError if it is found)."""
        load = LiveModule.load_soup
        plain = transformers.load_module

        def load_but(live: LiveModule, recipe: Recipe) -> None:
            """Load nothing, or all but one matrix; a fault of `soups` spares candidates."""
            if fault == "nothing loaded":
                return
            place = live._module.state_dict()[name]
            before = place.clone()
            load(live, recipe)
            in_soups = fault.startswith("soups") and len(recipe.ingredients) > 1
            if fault.startswith("one matrix") or in_soups:
                place.copy_(before)

        def start(folder: Path, settings: ModuleSettings) -> PreTrainedModel:
            module = plain(folder, settings)
            if fault.endswith("nor at the start"):
                module.state_dict()[name].copy_(module.state_dict()[name].flip(0))
            return module

        with (
            mock.patch.object(LiveModule, "load_soup", load_but),
            mock.patch.object(transformers, "load_module", start),
        ):
            serve_run(
                self._pool, LocalEvaluator(max_new_tokens=1), fault, lambda model: model.module
            )

    def close(self) -> None:
        return None


def serve_run(
    pool: CandidatePool, evaluator: Evaluator, fault: str, load: Callable[[LoadedModel], object]
) -> None:
    """Load each model and then a soup of all."""
    first = pool.stored_values(NAMES[0], update=False)
    one_file = mock.patch.object(type(pool), "stored_values", return_value=first)
    with one_file if fault.endswith("one file read for all by the check") else nullcontext():
        server = SoupServer(pool)
        for weights in (*({name: 1.0} for name in NAMES), dict.fromkeys(NAMES, 1 / len(NAMES))):
            load(server.serve(evaluator, pool.recipe(weights)))
        server.close()


def shapes_of(stream: WeightStream) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for chunk in stream.chunks():
        for name, _, shape, _ in chunk.tensors:
            shapes[name] = tuple(shape)
    return shapes


def report_runs(
    engine: Engine | Transformers, pool: CandidatePool, kinds: Sequence[str], count: int
) -> int:
    """Print how many faults of every load are found, and the number of those that are not."""
    random = Random(1)
    stream = stream_of(pool, random_weights(random))
    shapes = shapes_of(stream)
    matrices = sorted(name for name, shape in shapes.items() if len(shape) > 1)
    missed = 0
    for kind in (kind for kind in kinds if kind in FAULTS_OF_A_RUN):
        found = 0
        for _ in range(count):
            name = random.choice(matrices)
            error = ""
            try:
                engine.run(kind, name)
            except UserError as refused:
                error = str(refused)
            # An error names ten tensors at most.
            named = (name, module_of(name)) if kind != "nothing loaded" else ("weights in",)
            found += any(word in error for word in named)
        missed += count - found
        print(f"{kind}: {found} of {count} found", flush=True)
    # Raises an error if a run without a fault is refused.
    engine.run(NO_FAULT, matrices[0])
    return missed


def report(
    engine: Engine | Transformers, pool: CandidatePool, kinds: Sequence[str], count: int
) -> int:
    """Print the table; the number of faults that were missed and of soups that were refused without one."""
    random = Random(0)
    seconds = list[float]()
    refused = 0
    for _ in range(SOUPS):
        weights = random_weights(random)
        engine.load(stream_of(pool, weights))
        start = time.perf_counter()
        refused += error_of(engine, weights) is not None
        seconds.append(time.perf_counter() - start)
    print(f"{refused} of {SOUPS} soups without a fault are refused")
    print(
        f"the check takes {1000 * statistics.median(seconds):.0f} ms (at most {1000 * max(seconds):.0f})"
    )
    wrong = refused
    for kind in (kind for kind in kinds if kind in engine.kinds):
        found = 0
        for _ in range(count):
            found += is_found(engine, pool, kind, random)
        wrong += count - found
        print(f"{kind}: {found} of {count} found", flush=True)
    return wrong


def random_weights(random: Random) -> dict[str, float]:
    shares = [random.uniform(0.2, 1) for _ in NAMES]
    return {name: share / sum(shares) for name, share in zip(NAMES, shares, strict=True)}


def stream_of(pool: CandidatePool, weights: dict[str, float]) -> WeightStream:
    stream = pool.stream(pool.recipe(weights))
    assert stream is not None
    return stream


def error_of(engine: Engine | Transformers, weights: dict[str, float]) -> str | None:
    try:
        engine.check(weights)
    except UserError as error:
        return str(error)
    return None


def is_found(engine: Engine | Transformers, pool: CandidatePool, kind: str, random: Random) -> bool:
    """Whether a soup with a fault is refused, with the name of what is wrong. Each soup has other weights."""
    weights = random_weights(random)
    stream = stream_of(pool, weights)
    if kind.startswith("cache"):
        assert isinstance(engine, Engine)
        soup = pool.recipe(weights).fingerprint
        return engine.answers_to_kept_cache(stream, soup, kind == "cache kept openly")
    names = faulty_names(stream, kind, random)
    engine.load(replace(stream, chunks=lambda: with_fault(stream, kind, names)))
    error = error_of(engine, weights)
    return error is not None and any(name in error or module_of(name) in error for name in names)


def faulty_names(stream: WeightStream, kind: str, random: Random) -> list[str]:
    """A tensor at random; with another of its shape to swap it with."""
    shapes = shapes_of(stream)
    first = random.choice(sorted(shapes))
    if kind != "swapped":
        return [first]
    others = [name for name in sorted(shapes) if shapes[name] == shapes[first] and name != first]
    return [first, random.choice(others)]


def with_fault(stream: WeightStream, kind: str, names: Sequence[str]) -> Iterator[WeightChunk]:
    for chunk in stream.chunks():
        yield replace(
            chunk,
            tensors=[tensor for tensor in map(renamed(kind, names), chunk.tensors) if tensor],
            fill=halved(chunk, names[0]) if kind == "half-written" else chunk.fill,
        )


def renamed(kind: str, names: Sequence[str]) -> Callable[[Tensor], Tensor | None]:
    """What becomes of a tensor of a chunk: itself, another name, or nothing."""

    def change(tensor: Tensor) -> Tensor | None:
        name, dtype, shape, offset = tensor
        if kind == "dropped" and name == names[0]:
            return None
        if kind == "swapped" and name in names:
            return names[1 - names.index(name)], dtype, shape, offset
        return tensor

    return change


def halved(chunk: WeightChunk, name: str) -> Callable[[memoryview], None]:
    """Fill the chunk, but the second half of one tensor with zeros."""

    def fill(memory: memoryview) -> None:
        chunk.fill(memory)
        for tensor, dtype, shape, offset in chunk.tensors:
            if tensor == name:
                size = torch.Size(shape).numel() * getattr(torch, dtype).itemsize
                memory[offset + size // 2 : offset + size] = bytes(size - size // 2)

    return fill


FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
FUSED |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}


def module_of(name: str) -> str:
    """The tensor's module, or the one that vLLM fuses it into."""
    parent, _, module = name.removesuffix(".weight").rpartition(".")
    return f"{parent}.{FUSED.get(module, module)}".removeprefix(".")


if __name__ == "__main__":
    sys.exit(main())
