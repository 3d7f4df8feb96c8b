"""A soup into a running vLLM engine: its weights in chunks compared with a folder that the workers read.

    python -m benchmarks.vllm_soups [--ranks 2] [--soups 5] [--hidden 1024 --layers 12]

Two random Llamas in bfloat16 are mixed with other weights for each soup. Each soup reaches one engine both ways, and
its greedy answers have to be equal. The folder is written where a run writes it: in shared memory if it fits.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from benchmarks.random_llama import random_llama, start_vllm
from souping.evaluate.engines.vllm import Vllm, sampling_arguments
from souping.evaluate.templates import Decoding
from souping.merge import CandidatePool
from souping.merge.local import LocalMerge
from souping.soups.serving import ScratchFolder

NAMES = ("0", "1")
PROMPTS = [[1, 5 + n, 70, 9 + 3 * n] for n in range(8)]
TOKENS = 16
VOCABULARY = 32_000


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--soups", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            save(Path(folder) / name, given.hidden, given.layers, int(name))
        pool = LocalMerge().open({name: Path(folder) / name for name in NAMES})
        engine = start_vllm(Path(folder) / "0", given.ranks)
        try:
            different = compare(engine, pool, given.soups, given.ranks)
        finally:
            engine.close()
    return min(different, 1)


def save(folder: Path, hidden: int, layers: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = random_llama(hidden, layers, hidden * 11 // 4, VOCABULARY)
    model.bfloat16().save_pretrained(folder)


def compare(engine: Vllm, pool: CandidatePool, soups: int, ranks: int) -> int:
    """Print seconds of both ways; the number of soups whose answers differ."""
    chunks = list[float]()
    folders = list[float]()
    different = 0
    largest = 0
    all_answers = list[object]()
    with closing(ScratchFolder(pool)) as scratch:
        # The first soup warms files and threads up.
        for number in range(soups + 1):
            weight = 0.2 + 0.6 * number / soups
            recipe = pool.recipe({"0": weight, "1": 1 - weight})
            start = time.perf_counter()
            stream = pool.stream(recipe)
            assert stream is not None
            engine.load_soup(stream)
            chunks.append(time.perf_counter() - start)
            loaded = answers(engine, recipe.id)
            largest = max(largest, *(chunk.nbytes for chunk in stream.chunks()))
            # Other weights between the two ways, or equal answers would show nothing.
            engine.reload(pool.architecture_folder)
            start = time.perf_counter()
            engine.reload(scratch.write(recipe))
            folders.append(time.perf_counter() - start)
            different += answers(engine, f"{recipe.id} as a folder") != loaded
            all_answers.append(loaded)
    assert all(a != b for a, b in itertools.pairwise(all_answers)), "the soups are alike"
    gigabytes = pool.soup_bytes / 1e9
    print(
        f"{ranks} rank(s), soups of {gigabytes:.2f} GB: chunks {described(chunks[1:])}, largest chunk "
        f"{largest / 1e9:.2f} GB; folder {described(folders[1:])}; answers differ for {different} of {soups + 1}"
    )
    return different


def described(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def answers(engine: Vllm, soup: str) -> list[tuple[list[int], str]]:
    arguments = sampling_arguments(TOKENS, (), Decoding(), 0, ())
    arguments = {**arguments, "ignore_eos": True, "detokenize": False}
    return engine.generate(PROMPTS, [arguments] * len(PROMPTS), soup)


if __name__ == "__main__":
    sys.exit(main())
