"""How many items a search takes that ends by itself, and how well the plan's figure for it holds.

    python -m benchmarks.search_sizes [--seeds 10] [--items 96 232 464] [--table FILE.npz ..] [--keep FILE.json]

A plan expects a search over K ingredients and n items to take a * K^.75 * n^.8 items (`Adaptive.workload`). Here every
table is searched on splits of several sizes until the search ends; a is the median over tables and splits, each with
the same weight. Shown for each table and split: the median of the items taken in whole splits, the share of searches
within a factor of 1.5 of the figure fitted *without* the table's family and of the one in the product, and the share
above the most that the product states.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.search_tables import Simulation, TruthTable
from souping.search.adaptive import Adaptive

TABLES = Path(__file__).parent / "tables"
FAMILIES = {
    "demo3": "demo",
    "demo4": "demo",
    "nets2": "nets",
    "nets6": "nets",
    "nets8": "nets",
}
FIRST = 7000
NEAR = 1.5
"""Seed of the first split, and the factor that counts as near."""


def sizes(path: Path, items: int, seeds: int) -> tuple[int, int, list[int]]:
    """(K, items of the split, items that each search took)."""
    worlds = TruthTable.read(path)
    taken = []
    for seed in range(seeds):
        sim = Simulation(worlds[seed % len(worlds)], FIRST + seed, items)
        optimiser = Adaptive().over(sim.table.points, sim.space, seed)
        while (query := optimiser.ask()) is not None:
            optimiser.tell(query, sim.answer(query))
        taken.append(sim.spent)
    return len(worlds[0].points[0]), len(sim.split), taken


def shape(size: int, split: int) -> float:
    return float(size**0.75 * split**0.8)


def fitted(rows: list[tuple[str, int, int, list[int]]]) -> float:
    """a: the median over rows of all searches, each row with the same weight; nan without any."""
    if not rows:
        return float("nan")
    ratios = [
        np.quantile(row[3], np.linspace(0.05, 0.95, 10)) / shape(row[1], row[2]) for row in rows
    ]
    return float(np.median(np.concatenate(ratios)))


def near(taken: list[int], expected: float) -> float:
    ratio = np.array(taken) / expected
    return float(np.mean((ratio <= NEAR) & (ratio >= 1 / NEAR)))


def report(rows: list[tuple[str, int, int, list[int]]]) -> list[str]:
    lines = [
        "| table | K | split | searches | splits' worth of items: median (least to most) | within 1.5 of the figure "
        "fitted on the other families | of the product's | above the product's most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    held = []
    for name, size, split, taken in rows:
        own = FAMILIES.get(name, name)
        a = fitted([row for row in rows if FAMILIES.get(row[0], row[0]) != own])
        planned = Adaptive().workload(size, split)
        assert planned is not None
        splits = np.array(taken) / split
        above = float(np.mean(np.array(taken) > planned[1]))
        shares = [near(taken, a * shape(size, split)), near(taken, planned[0]), above]
        held.append([*shares, len(taken)])
        told = " | ".join(f"{100 * share:.0f} %" for share in shares)
        span = f"{np.median(splits):.1f} ({splits.min():.1f} to {splits.max():.1f})"
        lines.append(f"| {name} | {size} | {split} | {len(taken)} | {span} | {told} |")
    total = np.array(held)
    mean = total[:, 3] @ total[:, :3] / total[:, 3].sum()
    told = " | ".join(f"{100 * share:.0f} %" for share in mean)
    return [
        *lines,
        f"| all | | | {total[:, 3].sum():.0f} | | {told} |",
        "",
        f"Fitted on all: a = {fitted(rows):.2f}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--table", type=Path, nargs="+", default=sorted(TABLES.glob("*.npz")), help="default: all"
    )
    parser.add_argument("--items", type=int, nargs="+", default=(96, 232, 464))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--keep", type=Path, help="file of results so far: what is there is not run again"
    )
    given = parser.parse_args()
    known = json.loads(given.keep.read_text()) if given.keep and given.keep.exists() else {}
    rows = []
    for path in given.table:
        for items in given.items:
            label = f"{path.stem} {items} {given.seeds}"
            if label not in known:
                known[label] = sizes(path, items, given.seeds)
                if given.keep:
                    given.keep.write_text(json.dumps(known))
            rows.append((path.stem, *known[label]))
    print("\n".join(report(rows)))


if __name__ == "__main__":
    main()
