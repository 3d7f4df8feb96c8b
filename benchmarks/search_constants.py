"""The constant that sets how sure a search says it is, fitted leaving each family of truth tables out in turn.

    python benchmarks/search_constants.py [--seeds 60] [--share auto 0.1 0.25] [--width 0.6 0.7 0.8 0.9 1.0]

`WIDTH` (souping/search/beliefs.py) is what the posterior's standard errors are multiplied by before a search says how
probable it is that its pick lies within a point of the best. Every table is searched on folds that search.py does not
draw, until it stops by itself (`auto`) or to a share of the grid's items. The width for a family is the one under
which, on the *other* families, stated probabilities and shares of picks within a point differ least (mean square over
families and shares); pantry_other takes no part in any choice.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from search_tables import Simulation, TruthTable

from souping.search import beliefs
from souping.search.adaptive import Adaptive

TABLES = Path(__file__).parent / "tables"
FAMILIES = {"pantry": ("pantry3", "pantry4"), "digits": ("digits",), "pantry_other": ("pantry_other",)}
APART = "pantry_other"
FIRST = 2000
"""Seed of the first fold."""


def search(table: TruthTable, seed: int, share: str, widths: Sequence[float]) -> tuple[list[float], bool]:
    """What one search states under each width, and whether its pick is within a point of the best."""
    sim = Simulation(table, seed, 232)
    settings = Adaptive() if share == "auto" else Adaptive(stop="never", budget=int(float(share) * sim.full))
    optimiser = settings.over(table.points, sim.space, seed)
    while (cell := optimiser.ask()) is not None:
        optimiser.tell(cell, sim.answer(cell))
    stated = []
    for beliefs.WIDTH in widths:
        stated.append(float(str(optimiser.summary()["within_1_point"])))
    return stated, sim.regret(sim.rows[optimiser.best()]) <= 1


def gaps(family: str, share: str, widths: Sequence[float], seeds: int) -> np.ndarray:
    """Stated probability under each width, then the share realised, means over a family's tables [W + 1]."""
    tables = [TruthTable.read(TABLES / f"{name}.npz") for name in FAMILIES[family]]
    found = [search(table, FIRST + seed, share, widths) for table in tables for seed in range(seeds)]
    return np.array([[*stated, near] for stated, near in found], dtype=float).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--share", nargs="+", default=("auto", "0.1", "0.25"))
    parser.add_argument("--width", type=float, nargs="+", default=(0.6, 0.7, 0.8, 0.9, 1.0))
    given = parser.parse_args()
    told: dict[str, np.ndarray] = {}
    for family in FAMILIES:
        told[family] = np.array([gaps(family, share, given.width, given.seeds) for share in given.share])
        for share, row in zip(given.share, told[family], strict=True):
            print(f"{family} {share}: realised {row[-1]:.2f}, stated {row[:-1].round(2).tolist()}", flush=True)
    for left_out in (*FAMILIES, "none"):
        used = [rows for family, rows in told.items() if family not in (left_out, APART)]
        error = np.mean([(rows[:, :-1] - rows[:, -1:]) ** 2 for rows in used], axis=(0, 1))
        best = int(np.argmin(error))
        own = told.get(left_out, np.zeros((0, len(error) + 1)))
        said = [f"{row[best]:.2f}/{row[-1]:.2f}" for row in own]
        print(f"{left_out} left out: WIDTH = {given.width[best]:g}; its stated/realised {said}", flush=True)


if __name__ == "__main__":
    main()
