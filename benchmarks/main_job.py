"""The main job with the adaptive search beside the paper's grid: time of the search stage, and the two winners on the
test split.

    python benchmarks/main_job.py [--rounds 3]

Each run has a store of its own, so that everything is answered; runs take turns. The search stage is from its first
line on the terminal to the soup's; single models on the search split and the winner's plain confirmation are in it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from souping.statistics.comparison import contrast
from souping.statistics.score_table import ItemTable, ScoreTable

SEARCHES = ("adaptive", "grid")


def run(search: str, folder: Path, settings: Sequence[str] = ()) -> dict[str, float]:
    """Seconds of a run: the whole command, its search stage, answering in it."""
    words = [
        "+experiment=bfcl",
        f"optimiser={search}",
        f"hydra.run.dir={folder}",
        f"store={folder}.sqlite",
        *settings,
    ]
    begun = time.monotonic()
    command = [sys.executable, "-u", "-m", "souping", *words]
    environment = {**os.environ, "WANDB_MODE": "offline"}
    marks: dict[str, float] = {}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as job:
        assert job.stdout is not None
        lines = []
        for line in job.stdout:
            lines.append(line)
            for mark, start in (("search", "search: "), ("soup", "write: the soup")):
                if line.startswith(start):
                    marks.setdefault(mark, time.monotonic())
    if job.returncode or len(marks) < 2:
        raise SystemExit("".join(lines[-20:]))
    spent = report(folder)["cost"]["search"]
    return {
        "whole": time.monotonic() - begun,
        "stage": marks["soup"] - marks["search"],
        "answering": spent["seconds"],
        "items": spent["items"],
    }


def report(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return table


def answers(folder: Path) -> dict[str, dict[str, Any]]:
    """{item: its line} of the test split."""
    with gzip.open(folder / "samples.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return {line["item"]: line for line in lines if line["split"] == "test"}


def paired(adaptive: Path, grid: Path) -> str:
    """The winner of the adaptive search minus the grid's on the test split, category by category weighed alike."""
    one = answers(adaptive)
    other = answers(grid)
    items = sorted(one)
    if items != sorted(other):
        raise SystemExit("the two runs reported on different items")
    names = sorted({one[item]["category"] for item in items})
    a = np.array([one[item]["models"]["soup"]["score"] for item in items])
    b = np.array([other[item]["models"]["soup"]["score"] for item in items])
    categories = np.array([names.index(one[item]["category"]) for item in items])
    groups = np.unique([one[item]["doc"]["group"] for item in items], return_inverse=True)[1]
    weights = np.full(len(names), 1 / len(names))
    table = ItemTable(
        names=tuple(names), categories=categories, groups=groups, coefficients=weights
    )
    scores = ScoreTable.complete(table, {"adaptive": a, "grid": b})
    difference = contrast(scores, "adaptive", "grid")
    return (
        f"{100 * difference.difference:+.2f} points, 95 % interval {100 * difference.low:+.2f} to "
        f"{100 * difference.high:+.2f}, p = {difference.p_alone:.2f}, {difference.n} items"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    costs: dict[str, list[dict[str, float]]] = {search: [] for search in SEARCHES}
    print(
        "| round | search | search stage, s | of it answering, s | items | whole run, s |\n|---|---|---|---|---|---|"
    )
    for number in range(given.rounds):
        for search in SEARCHES if number % 2 == 0 else SEARCHES[::-1]:
            cost = run(search, place / f"{search}{number}")
            costs[search].append(cost)
            row = f"{cost['stage']:.1f} | {cost['answering']:.1f} | {cost['items']:.0f} | {cost['whole']:.1f}"
            print(f"| {number + 1} | {search} | {row} |", flush=True)
    pairs = list(zip(*costs.values(), strict=True))
    stage = statistics.median(adaptive["stage"] / grid["stage"] for adaptive, grid in pairs)
    whole = statistics.median(adaptive["whole"] / grid["whole"] for adaptive, grid in pairs)
    print(
        f"\nSearch stage, adaptive / grid: {stage:.2f} (median of the rounds); whole run {whole:.2f}."
    )
    for search in SEARCHES:
        print(f"Winner of {search}: {report(place / f'{search}0')['recipe']['weights']}")
    print(f"Test split, adaptive minus grid: {paired(place / 'adaptive0', place / 'grid0')}.")


if __name__ == "__main__":
    main()
