"""One load of a soup into a live module: median and least of 30, three ingredients, two sizes of a Llama in bfloat16.

Each load has other weights, as in a search; all ingredients count in each. What the first load does once (tensors side
by side, files opened) is not timed. Both models have 101 tensors: the small one shows what a load costs beside its
arithmetic.

    OMP_NUM_THREADS=1 python benchmarks/load_soups.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from souping.core.types import Recipe
from souping.merge import LoadableModel
from souping.merge.local import LocalMerge

SIZES = ((64, 1_000), (256, 8_000))
"""(hidden size, vocabulary)"""
NAMES = ("0", "1", "2")
LOADS = 30


def main() -> None:
    for hidden, vocab in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            models = [save(Path(folder) / name, hidden, vocab, int(name)) for name in NAMES]
            pool = LocalMerge().open({name: Path(folder) / name for name in NAMES})
            seconds = load_times(pool.live(models[-1]))
        parameters = sum(parameter.numel() for parameter in models[-1].parameters()) / 1e6
        median = 1e3 * statistics.median(seconds)
        least = 1e3 * min(seconds)
        print(f"{parameters:.2f} M parameters: median {median:.2f} ms, least {least:.2f} ms")


def save(folder: Path, hidden: int, vocab: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=11, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=vocab, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(folder)
    return model


def load_times(live: LoadableModel) -> list[float]:
    """Seconds of each load after the first."""
    seconds = []
    for number in range(LOADS + 1):
        start = time.perf_counter()
        live.load_soup(recipe(0.2 + 0.01 * number))
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def recipe(first: float) -> Recipe:
    return Recipe(
        ingredients=NAMES, fingerprints=NAMES, weights=(first, 0.3, 0.7 - first), dtype="bfloat16"
    )


if __name__ == "__main__":
    main()
