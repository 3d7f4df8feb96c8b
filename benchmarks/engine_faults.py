"""Planted faults while a soup is loaded into a vLLM engine or a live module, and how many of them are found.

    python -m benchmarks.engine_faults [--engine vllm|transformers] [--ranks 2] [--faults 20] [--change 0.005]

Three models in bfloat16 are a base, whose weights have a standard deviation of 0.05, plus noise of their own with the
standard deviation `--change`. Each fault is planted into the loading of one soup of all three: a tensor that is left
out, two tensors whose names are swapped, a tensor whose second half is missing. It is found if the soup is refused with
the name of a tensor that is wrong. With vLLM, the prefix cache of the soup before is kept too: openly, which has to be
refused, and in silence, after which the answers have to be those of an empty cache. No soup without a fault may be
refused. Also printed is the time that the check takes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from benchmarks.random_llama import random_llama, start_vllm
from souping.core.protocols import ModuleSettings, WeightChunk, WeightStream
from souping.core.types import UserError
from souping.evaluate.engines.transformers import load_module
from souping.evaluate.engines.vllm import sampling_arguments
from souping.evaluate.templates import Decoding
from souping.merge import CandidatePool
from souping.merge.loaded_weights import LoadedWeights, sample_weights
from souping.merge.local import LocalMerge

NAMES = ("a", "b", "c")
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
            self._weights.check(recipe, self._vllm.sample_weights(), True)

    def check(self, weights: dict[str, float]) -> None:
        self._weights.check(self._pool.recipe(weights), self._vllm.sample_weights(), False)

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

    def close(self) -> None:
        self._vllm.close()


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
            self._weights.check(recipe, sample_weights(self._module.state_dict().items()), True)

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
        self._weights.check(self._pool.recipe(weights), samples, False)

    def close(self) -> None:
        return None


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
    for kind in kinds:
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
    shapes = {name: shape for chunk in stream.chunks() for name, _, shape, _ in chunk.tensors}
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
