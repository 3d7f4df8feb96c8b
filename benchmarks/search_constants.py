"""The constant that sets how sure a search says it is, fitted leaving each family of truth tables out in turn.

    python benchmarks/search_constants.py [--seeds 60] [--share auto 0.1 0.25] [--sure 1 3 10 30 100]

A search says how probable it is that its pick lies within a point of the best. For that, the posterior's variances are
scaled by how much its own answers surprised it: a mean square over all of them and over `SURE` imagined ones that were
as expected (souping/search/beliefs.py). Every table is searched on folds that search.py does not draw, until it stops
by itself (`auto`) or to a share of the grid's items. The constant for a family is the one under which, on the *other*
families, stated probabilities and shares of picks within a point differ least (mean square over families and shares).
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
FIRST = 2000
"""Seed of the first fold."""


def search(table: TruthTable, seed: int, share: str, choices: Sequence[float]) -> tuple[list[float], bool]:
    """What one search states under each constant, and whether its pick is within a point of the best."""
    sim = Simulation(table, seed, 232)
    settings = Adaptive() if share == "auto" else Adaptive(stop="never", budget=int(float(share) * sim.full))
    optimiser = settings.over(table.points, sim.space, seed)
    while (cell := optimiser.ask()) is not None:
        optimiser.tell(cell, sim.answer(cell))
    stated = []
    for beliefs.SURE in choices:
        stated.append(float(str(optimiser.summary()["within_1_point"])))
    return stated, sim.regret(sim.rows[optimiser.best()]) <= 1


def gaps(family: str, share: str, choices: Sequence[float], seeds: int) -> np.ndarray:
    """Stated probability under each constant, then the share realised, means over a family's tables [N + 1]."""
    tables = [TruthTable.read(TABLES / f"{name}.npz") for name in FAMILIES[family]]
    found = [search(table, FIRST + seed, share, choices) for table in tables for seed in range(seeds)]
    return np.array([[*stated, near] for stated, near in found], dtype=float).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--share", nargs="+", default=("auto", "0.1", "0.25"))
    parser.add_argument("--sure", type=float, nargs="+", default=(1, 3, 10, 30, 100))
    given = parser.parse_args()
    told: dict[str, np.ndarray] = {}
    for family in FAMILIES:
        told[family] = np.array([gaps(family, share, given.sure, given.seeds) for share in given.share])
        for share, row in zip(given.share, told[family], strict=True):
            print(f"{family} {share}: realised {row[-1]:.2f}, stated {row[:-1].round(2).tolist()}", flush=True)
    for left_out in (*FAMILIES, "none"):
        used = [rows for family, rows in told.items() if family != left_out]
        error = np.mean([(rows[:, :-1] - rows[:, -1:]) ** 2 for rows in used], axis=(0, 1))
        best = int(np.argmin(error))
        own = told.get(left_out, np.zeros((0, len(error) + 1)))
        said = [f"{row[best]:.2f}/{row[-1]:.2f}" for row in own]
        print(f"{left_out} left out: SURE = {given.sure[best]:g}; its stated/realised {said}", flush=True)


if __name__ == "__main__":
    main()
