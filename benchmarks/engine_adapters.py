"""Soups of LoRA adapters in a running vLLM, compared with the folders of full models that they stand for.

    python -m benchmarks.engine_adapters [--ranks 2] [--soups 5] [--prompts 100] [--faults 20]

Three random adapters of rank 8 on every linear layer of a random Llama in float32 with heads of 64. Each soup is taken
once as an adapter and once as a folder of the full model: greedy answers of 16 tokens, log-probabilities of prompts,
and seconds until the engine can answer. Then soups that are cut to a lower rank, faults in loading an adapter (a module
without its factors, an adapter that is not loaded at all), and the answers to four soups in one batch compared with one
soup after another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.random_llama import random_llama, start_vllm
from souping.core.types import UserError
from souping.evaluate.engines.vllm import Vllm, sampling_arguments
from souping.evaluate.templates import Decoding
from souping.merge import CandidatePool
from souping.merge.loaded_weights import LoadedWeights
from souping.merge.local import LocalMerge

NAMES = ("a", "b", "c")
RANK = 8
MODULES = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
TOKENS = 16
TOGETHER = 4
"""Soups in one batch."""
Answers = list[tuple[list[int], str]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--soups", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        place = Path(folder)
        save_models(place, options.hidden, options.layers)
        random = Random(0)
        soups = [random_weights(random) for _ in range(options.soups)]
        prompts = list[list[int]]()
        for _ in range(options.prompts):
            prompts.append([random.randrange(5, 4000) for _ in range(24)])
        with closing(start_vllm(place / "base", options.ranks, "float32")) as engine:
            expected = as_folders(engine, place, soups, prompts)
        shape = pool_of(place).adapter_shape
        with closing(start_vllm(place / "base", options.ranks, "float32", shape)) as engine:
            wrong = as_adapters(engine, place, soups, prompts, expected)
            truncated(place, soups[0])
            wrong += faults(engine, place, options.faults)
        together = start_vllm(place / "base", options.ranks, "float32", shape, TOGETHER)
        with closing(together) as engine:
            in_one_batch(engine, place, prompts)
    return min(wrong, 1)


def save_models(place: Path, hidden: int, layers: int) -> None:
    torch.manual_seed(0)
    model = random_llama(hidden, layers)
    model.save_pretrained(place / "base")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in NAMES:
        save_adapter(place / name, place / "base", shapes)


def save_adapter(folder: Path, base: Path, shapes: dict[str, torch.Size]) -> None:
    """As PEFT writes it, about a tenth of the weights' size."""
    factors = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in (*MODULES["self_attn"], *MODULES["mlp"]):
            key = f"base_model.model.{module}"
            factors[f"{key}.lora_A.weight"] = 0.05 * torch.randn(RANK, shape[1])
            factors[f"{key}.lora_B.weight"] = 0.04 * torch.randn(shape[0], RANK)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none",
        "base_model_name_or_path": str(base), "task_type": "CAUSAL_LM",
        "target_modules": [*MODULES["self_attn"], *MODULES["mlp"]],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def pool_of(place: Path, **settings: Any) -> CandidatePool:
    return LocalMerge(**settings).open({name: place / name for name in NAMES})


def random_weights(random: Random) -> dict[str, float]:
    shares = [random.uniform(0.2, 1) for _ in NAMES]
    return {name: share / sum(shares) for name, share in zip(NAMES, shares, strict=True)}


def answers(engine: Vllm, prompts: Sequence[list[int]], soup: str) -> Answers:
    arguments = sampling_arguments(TOKENS, (), Decoding(), 0, ())
    arguments = {**arguments, "ignore_eos": True, "detokenize": False}
    return engine.generate(prompts, [arguments] * len(prompts), soup)


def as_folders(
    engine: Vllm, place: Path, soups: Sequence[dict[str, float]], prompts: Sequence[list[int]]
) -> list[tuple[Answers, list[list[float]]]]:
    """Answers and log-probabilities of each soup as a full model."""
    pool = pool_of(place, adapters="merge")
    seconds = list[float]()
    results = []
    for number, weights in enumerate(soups):
        start = time.perf_counter()
        folder = pool.write(pool.recipe(weights), place / f"full-{number}")
        engine.reload(folder)
        seconds.append(time.perf_counter() - start)
        soup = f"full {number}"
        results.append((answers(engine, prompts, soup), engine.logprobs(prompts, soup)))
    print(f"full models: {described(seconds)} until the engine can answer", flush=True)
    return results


def as_adapters(
    engine: Vllm,
    place: Path,
    soups: Sequence[dict[str, float]],
    prompts: Sequence[list[int]],
    expected: Sequence[tuple[Answers, list[list[float]]]],
) -> int:
    """Print how adapters compare with full models; the number of soups that a check refuses."""
    pool = pool_of(place)
    for name in NAMES:
        pool.write(pool.recipe({name: 1.0}), place / f"alone-{name}")
    known = with_candidates(engine, pool, place)
    seconds = list[float]()
    checks = list[float]()
    equal = 0
    largest = 0.0
    refused = 0
    for number, weights in enumerate(soups):
        recipe = pool.recipe(weights)
        start = time.perf_counter()
        engine.take_adapter(pool.write(recipe, place / f"soup-{number}"), recipe.id)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        refused += error_of(known, pool, weights, engine) is not None
        checks.append(time.perf_counter() - start)
        full_answers, full_logprobs = expected[number]
        equal += sum(map(same, answers(engine, prompts, recipe.id), full_answers))
        for row, full_row in zip(engine.logprobs(prompts, recipe.id), full_logprobs, strict=True):
            largest = max(largest, *(abs(a - b) for a, b in zip(row, full_row, strict=True)))
    total = len(soups) * len(prompts)
    print(
        f"adapters: {described(seconds)} until the engine can answer; check {1000 * max(checks):.0f} ms at most, "
        f"{refused} of {len(soups)} refused"
    )
    print(
        f"{equal} of {total} greedy answers equal, log-probabilities within {largest:.1e}",
        flush=True,
    )
    return refused


def with_candidates(engine: Vllm, pool: CandidatePool, place: Path) -> LoadedWeights:
    """A checker that knows each candidate's values: it keeps those of a model that the engine holds alone."""
    known = LoadedWeights()
    for name in NAMES:
        engine.take_adapter(place / f"alone-{name}", name)
        known.check(pool.recipe({name: 1.0}), engine.sample_weights(), stored=False)
    return known


def same(a: tuple[list[int], str], b: tuple[list[int], str]) -> bool:
    return a == b


def described(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def error_of(
    known: LoadedWeights, pool: CandidatePool, weights: dict[str, float], engine: Vllm
) -> str | None:
    """What the checker says against the soup of these weights; None if the engine holds it."""
    try:
        known.check(pool.recipe(weights), engine.sample_weights(), stored=False)
    except UserError as error:
        return str(error)
    return None


def truncated(place: Path, weights: dict[str, float]) -> None:
    for rank in (16, 8, 4):
        similarity = pool_of(place, rank=rank).similarity(weights)
        assert similarity is not None
        assert similarity.truncation is not None
        print(
            f"merge.rank={rank}: moves the soup by {100 * similarity.truncation:.1f} % of its update"
        )


def faults(engine: Vllm, place: Path, count: int) -> int:
    """Print how many faults are refused by the name of a module; the number of those that are not."""
    pool = pool_of(place)
    known = with_candidates(engine, pool, place)
    random = Random(1)
    missed = 0
    for kind, fault in (("a module without factors", without_module), ("not loaded", not_loaded)):
        found = 0
        for number in range(count):
            weights = random_weights(random)
            folder = pool.write(pool.recipe(weights), place / f"{kind} {number}")
            layer = fault(engine, folder, random)
            error = error_of(known, pool, weights, engine)
            found += error is not None and layer in error
        missed += count - found
        print(f"{kind}: {found} of {count} found", flush=True)
    return missed


def without_module(engine: Vllm, folder: Path, random: Random) -> str:
    """Load the adapter without the factor B of a module; the layer that it is in."""
    path = folder / "adapter_model.safetensors"
    factors = load_file(path)
    key = random.choice(sorted(name for name in factors if "lora_B" in name))
    factors[key] = torch.zeros_like(factors[key])
    save_file(factors, path)
    engine.take_adapter(folder, folder.name)
    return ".".join(key.split(".")[2:5])


def not_loaded(engine: Vllm, folder: Path, random: Random) -> str:
    """Take the adapter while vLLM loads nothing and says that it did."""
    inner = engine._llm.llm_engine
    load = inner.add_lora
    inner.add_lora = lambda request: True
    try:
        engine.take_adapter(folder, folder.name)
    finally:
        inner.add_lora = load
    return "layers.0"


def in_one_batch(engine: Vllm, place: Path, prompts: Sequence[list[int]]) -> None:
    """Print the seconds of four soups one after another, and together."""
    from vllm.lora.request import LoRARequest

    pool = pool_of(place)
    random = Random(2)
    requests = []
    for number in range(TOGETHER):
        recipe = pool.recipe(random_weights(random))
        folder = pool.write(recipe, place / f"batch-{number}")
        requests.append(LoRARequest(recipe.id, 100 + number, str(folder)))
    sampling = engine._sampling(
        max_tokens=TOKENS, temperature=0.0, ignore_eos=True, detokenize=False
    )

    def ask(chosen: Sequence[Any], rows: Sequence[list[int]]) -> list[list[int]]:
        inputs = [
            {"prompt_token_ids": row, "cache_salt": request.lora_name}
            for row, request in zip(rows, chosen, strict=True)
        ]
        outputs = engine._llm.generate(inputs, sampling, use_tqdm=False, lora_request=list(chosen))
        return [list(output.outputs[0].token_ids) for output in outputs]

    def one_by_one(rows: list[list[int]]) -> list[list[int]]:
        answers = []
        for request in requests:
            answers += ask([request] * len(rows), rows)
        return answers

    def together(rows: list[list[int]]) -> list[list[int]]:
        return ask([request for request in requests for _ in rows], rows * TOGETHER)

    for items in (len(prompts), len(prompts) // 4):
        rows = list(prompts[:items])
        one_by_one(rows)
        apart_seconds, apart = timed(engine, one_by_one, rows)
        batch_seconds, batch = timed(engine, together, rows)
        equal = sum(a == b for a, b in zip(apart, batch, strict=True))
        print(
            f"{TOGETHER} soups, {items} items each: one by one {apart_seconds:.2f} s, in one batch "
            f"{batch_seconds:.2f} s; {equal} of {len(apart)} answers equal",
            flush=True,
        )


def timed(
    engine: Vllm,
    work: Callable[[list[list[int]]], list[list[int]]],
    rows: list[list[int]],
    repeats: int = 3,
) -> tuple[float, list[list[int]]]:
    """The median of some runs with an empty prefix cache."""
    seconds = list[float]()
    found: list[list[int]] = []
    for _ in range(repeats):
        engine._llm.reset_prefix_cache()
        start = time.perf_counter()
        found = work(rows)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), found


if __name__ == "__main__":
    sys.exit(main())
