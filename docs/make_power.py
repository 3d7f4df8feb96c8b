"""Print the table of docs/reading-a-report.md: `python docs/make_power.py`.

It says how many items show a gain with 80 % power, as a run prints it, for the candidates and items of the demo. Their
scores on the select split are those of the run that the tests keep.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from souping.core.scores import Mean
from souping.core.types import Item, ItemScores
from souping.demo import path
from souping.evaluate.benchmark import Benchmark, make_splits
from souping.statistics.power import measured_power

KEPT = Path(__file__).resolve().parents[1] / "tests" / "data" / "main_job"
GAINS = (10.0, 5.0, 3.0, 2.0, 1.0)
"""Gains in points, beside the one that the demo shows."""


def table() -> str:
    items = Benchmark(path=str(path("items"))).items()
    splits = make_splits(items).items
    scores = select_scores(splits["select"])
    rows = []
    for gain in GAINS:
        power = measured_power(scores, splits["test"], Mean(), gain / 100)
        assert power is not None
        in_all = power.needed * len(items) / power.items
        rows.append(f"| {gain:g} | {power.needed:,} | {int(float(f'{in_all:.2g}')):,} |")
    rows.insert(1, f"| {100 * power.gain:.1f} (the demo) | {power.items:,} | {len(items):,} |")
    return "\n".join(rows) + "\n"


def select_scores(items: tuple[Item, ...]) -> dict[str, ItemScores]:
    """The candidates' scores on the items of the select split."""
    report = json.loads((KEPT / "report.json").read_text(encoding="utf-8"))
    with gzip.open(KEPT / "store.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    stored = {(row["recipe"], row["item"]): row["score"] for row in rows}
    scores = {}
    for row in report["rows"]:
        if row["kind"] in ("ingredient", "candidate"):
            values = [stored[row["recipe_id"], item.id] for item in items]
            scores[row["name"]] = ItemScores(items=items, values=np.array(values))
    return scores


if __name__ == "__main__":
    print(table(), end="")
