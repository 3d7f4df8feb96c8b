"""Parts of `benchmarks/merge.py` that are timed inside one process, side by side with their limits."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from souping.checkpoints.views import Raw
from souping.core.types import Recipe
from souping.merge import mixing
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan
from souping.merge.writer import fill_shards, make_shards


def recipe_of(folders: dict[str, Path], weights: Sequence[float]) -> Recipe:
    names = tuple(folders)
    return Recipe(ingredients=names, fingerprints=names, weights=tuple(weights), dtype="bfloat16")


def interleaved(rounds: int, parts: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Median seconds of each part; the first round is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):
        for name, part in parts.items():
            times[name].append(part())
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def averaging(made: MergePlan, stage: Path, rounds: int) -> dict[str, float]:
    """Reading all inputs and writing the output, warm and unflushed: with the arithmetic, and without."""
    return interleaved(
        rounds,
        {
            "raw": lambda: _phase(made, stage, arithmetic=False, cold=False),
            "averaging": lambda: _phase(made, stage, arithmetic=True, cold=False),
        },
    )


def cold(made: MergePlan, stage: Path, rounds: int) -> dict[str, float]:
    """The same from the disk to the disk: inputs dropped from the cache before, output flushed after."""
    return interleaved(
        rounds,
        {
            "raw": lambda: _phase(made, stage, arithmetic=False, cold=True),
            "averaging": lambda: _phase(made, stage, arithmetic=True, cold=True),
        },
    )


def _unmixed(
    plan: MergePlan,
    chunk: mixing.Chunk,
    rows: Sequence[Raw],
    out: Raw,
    out_dtype: str,
    warned: set[str],
) -> Raw:
    """Stands in for `mixing.mixed`: reads and writes without arithmetic."""
    return out


def _phase(made: MergePlan, stage: Path, arithmetic: bool, cold: bool) -> float:
    """Seconds of reading, averaging (with `arithmetic`) and writing; `cold`: from the disk and to the disk."""
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    os.sync()
    if cold:
        forget(
            Path(ingredient.folder) / name
            for ingredient in made.ingredients
            for name in ingredient.files
        )
    mixed = mixing.mixed
    if not arithmetic:
        mixing.mixed = _unmixed
    try:
        start = time.perf_counter()
        make_shards(made, stage)
        fill_shards(made, stage)
        if cold:
            for path in stage.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        return time.perf_counter() - start
    finally:
        mixing.mixed = mixed


def forget(paths: Iterable[Path]) -> None:
    """Drop files, and nothing else, from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loading(folders: dict[str, Path], weights: Sequence[float], rounds: int) -> dict[str, float]:
    """A soup into a live fp32 module, a plain copy of as many bytes, and whole-tensor fp32 arithmetic (two rounds)."""
    import torch

    torch.set_num_threads(1)
    recipe = recipe_of(folders, weights)
    pool = LocalMerge().open(folders)
    live = pool.live(_module(next(iter(folders.values()))))
    made = pool.plan(recipe)
    assert isinstance(made, MergePlan)
    half = (made.read_bytes + 2 * made.nbytes) // 2  # a copy reads and writes each byte
    source = np.ones(half, np.uint8)
    target = np.zeros(half, np.uint8)
    times = interleaved(
        rounds,
        {
            "copy": lambda: timed(lambda: np.copyto(target, source)),
            "load": lambda: timed(lambda: live.load_soup(recipe)),
        },
    )
    return times | {
        "whole tensors": _whole_tensors(_module(next(iter(folders.values()))), folders, weights)
    }


def _module(folder: Path) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("cpu"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), dtype=torch.float32
        )


def _whole_tensors(module: Any, folders: dict[str, Path], weights: Sequence[float]) -> float:
    import torch
    from safetensors.torch import load_file

    states: list[dict[str, Any]] = []
    for path in folders.values():
        state = dict[str, Any]()
        for file in sorted(path.glob("*.safetensors")):
            state |= load_file(file)
        states.append(state)

    def load_soup() -> None:
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                total = sum(w * s[name].float() for w, s in zip(weights, states, strict=True))
                tensor.copy_(total.to(torch.bfloat16).float())

    return min(timed(load_soup) for _ in range(2))


def timed(part: Callable[[], object]) -> float:
    start = time.perf_counter()
    part()
    return time.perf_counter() - start
