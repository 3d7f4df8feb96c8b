"""Evaluates a folder with a model on a file of items and leaves a table: a stand-in for a lab's own harness.

python examples/ask/evaluate.py MODEL ITEMS OUT
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from souping.core.types import Item
from souping.evaluate.engines.transformers import load_module, load_tokenizer
from souping.evaluate.generate import LocalEvaluator


def main() -> None:
    folder, items_file, out = map(Path, sys.argv[1:4])
    lines = items_file.read_text(encoding="utf-8").splitlines()
    items = [Item(**json.loads(line)) for line in lines]
    evaluator = LocalEvaluator(batch_size=128, max_new_tokens=48, threads=1, device="cpu")
    model: Any = SimpleNamespace(
        module=load_module(folder, evaluator.hosting.module_settings()),
        tokenizer=load_tokenizer(folder),
        folder=folder,
        soup=str(folder),
        eos_token_ids=(),
    )
    with (out / "log.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["item", "category", "score", "output"])
        for block in evaluator.batches(items):
            records = evaluator.evaluate(model, block)
            for item, record in zip(block, records, strict=True):
                table.writerow([item.id, item.category, record.score, record.output])


if __name__ == "__main__":
    main()
