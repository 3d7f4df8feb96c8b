"""What storing a soup loses if training moved its ingredients by small steps, on a real model.

    python benchmarks/small_updates.py --base FOLDER [--steps 10 --seeds 3 --texts 24]

`--base` is a folder in bfloat16, such as `outputs/smollm/models/base` after `python -m examples.smollm`. For each seed,
five models are trained on passages of this project's own pages: AdamW at 1e-6 with fp32 masters, stored in bfloat16.
The uniform soups of the first 2, 3 and 5 are stored in bfloat16, float16 and float32. Printed are the share of the
elements that training moved, the share of the soup's change from the base that is left (projected on the exact change,
over all elements), and the bits per byte on held-out passages with the difference to the soup in float32, paired by
passage, and its standard error. All soups are computed in float32, so that they differ in their stored weights alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from souping.core.fields import Precision
from souping.core.protocols import LoadedModel, ModuleSettings
from souping.core.types import TEXT, FloatArray, Item
from souping.evaluate.engines.transformers import load_module, load_tokenizer
from souping.evaluate.loss import LossEvaluator
from souping.merge.local import LocalMerge

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROOT = Path(__file__).resolve().parents[1]
COUNTS = (2, 3, 5)
"""Ingredients of a soup."""
DTYPES: tuple[Precision, ...] = ("bfloat16", "float16", "float32")
RATE = 1e-6
CHARACTERS = 300
"""Characters of a passage."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1, help="passages a step")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=24, help="passages to score")
    options = parser.parse_args()
    passages = passages_of(sorted((ROOT / "docs").glob("*.md")))
    held_out = passages[1::2][: options.texts]
    print(f"{options.base.name}: {options.steps} steps of {options.batch} passages, seed by seed")
    print("| seed | models | moved | dtype | kept | bits per byte | minus float32 |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            models = [Path(folder) / f"model-{number}" for number in range(max(COUNTS))]
            for number, model in enumerate(models):
                random = Random(f"{seed} {number}")
                rows = random.sample(passages[::2], options.steps * options.batch)
                train(options.base, model, rows, options.batch)
            for count in COUNTS:
                report(options.base, models[:count], held_out, seed)
    return 0


def passages_of(pages: Sequence[Path]) -> list[str]:
    """Pieces of the pages, in an order of their own."""
    passages = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        passages += [text[n : n + CHARACTERS] for n in range(0, len(text), CHARACTERS)]
    Random(0).shuffle(passages)
    return passages


def train(base: Path, out: Path, passages: Sequence[str], batch: int) -> None:
    """The base after one AdamW step for each batch, rounded to bfloat16 at the end."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for begin in range(0, len(passages), batch):
        for passage in passages[begin : begin + batch]:
            ids = torch.tensor([tokenizer(passage)["input_ids"]])
            loss = model(input_ids=ids, labels=ids).loss / batch
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.to(torch.bfloat16).save_pretrained(out)  # type: ignore[arg-type]  # wrapped in transformers
    tokenizer.save_pretrained(out)


def report(base: Path, models: Sequence[Path], texts: Sequence[str], seed: int) -> None:
    """A row for each dtype of the uniform soup."""
    names = [model.name for model in models]
    weights = dict.fromkeys(names, 1 / len(models))
    folders = dict(zip(names, models, strict=True))
    module = load_module(base, ModuleSettings())
    start = flat(module)
    moved = []
    exact = np.zeros(len(start))
    for name, folder in folders.items():
        trained = flat(load_module(folder, ModuleSettings()))
        moved.append(float(np.mean(trained != start)))
        exact += weights[name] * trained
    change = exact - start
    scores = dict[str, FloatArray]()
    kept = dict[str, float]()
    for dtype in DTYPES:
        pool = LocalMerge(dtype=dtype).open(folders)
        pool.live(module).load_soup(pool.recipe(weights))
        kept[dtype] = float((flat(module) - start) @ change / (change @ change))
        scores[dtype] = bits_per_byte(module, base, texts)
    for dtype in DTYPES:
        difference = scores[dtype] - scores["float32"]
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        print(
            f"| {seed} | {len(models)} | {np.mean(moved):.3f} | {dtype} | {kept[dtype]:.3f} "
            f"| {scores[dtype].mean():.5f} | {difference.mean():+.6f} ± {error:.6f} |",
            flush=True,
        )
    print(
        f"|  | base |  |  |  | {bits_per_byte(load_module(base, ModuleSettings()), base, texts).mean():.5f} |  |"
    )


def flat(module: PreTrainedModel) -> FloatArray:
    """All weights in fp64, tied ones once."""
    return np.concatenate([p.detach().double().numpy().ravel() for p in module.parameters()])


def bits_per_byte(module: PreTrainedModel, folder: Path, texts: Sequence[str]) -> FloatArray:
    items = [
        Item(id=str(n), category="text", prompt=text, answer="", scorer=TEXT)
        for n, text in enumerate(texts)
    ]
    model: Any = SimpleNamespace(module=module, tokenizer=load_tokenizer(folder), eos_token_ids=())
    records = LossEvaluator(device="cpu", threads=1, batch_size=4).evaluate(
        cast("LoadedModel", model), items
    )
    return np.array([record.score for record in records])


if __name__ == "__main__":
    sys.exit(main())
