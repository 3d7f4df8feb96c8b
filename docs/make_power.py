"""Print the table of docs/reading-a-report.md: `python docs/make_power.py`.

It says how many items show a gain with 80 % power, as a run prints it, for the candidates and items of the demo, and if
these candidates were equal on average. Their scores on the select split are those of the run that the tests keep.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from souping.core.scores import Mean
from souping.core.types import Item, ItemScores
from souping.demo import path
from souping.evaluate.benchmark import Benchmark, make_splits
from souping.statistics.power import measured_power
from souping.statistics.score_table import ItemTable

KEPT = Path(__file__).resolve().parents[1] / "tests" / "data" / "main_job"
GAINS = (10.0, 5.0, 3.0, 2.0, 1.0)
"""Gains in points, beside the one that the demo shows."""


def table() -> str:
    items = Benchmark(path=str(path("items"))).items()
    splits = make_splits(items).items
    scores = select_scores(splits["select"])
    equal = equal_scores(scores)
    shown = measured_power(scores, splits["test"], Mean(), 0.01)
    assert shown is not None
    rows = []
    for gain in sorted([*GAINS, 100 * shown.gain], reverse=True):
        needed = []
        for candidates in (scores, equal):
            power = measured_power(candidates, splits["test"], Mean(), gain / 100)
            assert power is not None
            needed.append(power.needed)
        in_all = int(float(f"{needed[0] * len(items) / shown.items:.2g}"))
        label = f"{gain:g}"
        if gain not in GAINS:
            label = f"{gain:.1f} (the demo)"
            needed[0] = shown.items
            in_all = len(items)
        rows.append(f"| {label} | {needed[0]:,} | {in_all:,} | {needed[1]:,} |")
    return "\n".join(rows) + "\n"


def equal_scores(scores: Mapping[str, ItemScores]) -> dict[str, ItemScores]:
    """The scores of each candidate less its own mean over the categories."""
    table = ItemTable.of(next(iter(scores.values())).items, Mean())
    equal = {}
    for name, candidate in scores.items():
        values = candidate.values - table.score(candidate.values)
        equal[name] = replace(candidate, values=values)
    return equal


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
