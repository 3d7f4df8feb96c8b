"""The constant that sets how sure a search says it is, fitted leaving one family of truth tables out.

    python benchmarks/search_constants.py [--seeds 60] [--share 0.25] [--rough 100 200 300 600]

`ROUGH` (souping/search/running.py) is the number of items a category of the population that a pick is for. For each
value every table is searched by `optimiser.adaptive` on folds that search.py does not draw; the value of a family is
the one under which, on the *other* families, the stated probability of being within a point of the best lies nearest to
the share of picks that are. The table of pantry_other takes no part in any choice: its line is that of the value chosen
on all others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import search_methods as ways
from search_tables import Simulation, TruthTable

from souping.search import running
from souping.search.adaptive import Adaptive

TABLES = Path(__file__).parent / "tables"
FAMILIES = {"pantry": ("pantry3", "pantry4"), "digits": ("digits",), "pantry_other": ("pantry_other",)}
APART = "pantry_other"
FIRST = 2000
"""Seed of the first fold."""


def belief(family: str, rough: int, share: float, seeds: int) -> tuple[float, float]:
    """(stated, realised) share of picks within a point of the best, over a family's tables."""
    running.ROUGH = rough
    search, rows = ways.adaptive(Adaptive(stop="never", guide="none")), []
    for table in (TruthTable.read(TABLES / f"{name}.npz") for name in FAMILIES[family]):
        for seed in range(FIRST, FIRST + seeds):
            sim = Simulation(table, seed, 232)
            found = search(sim, int(share * sim.full))
            rows.append((found.within, sim.regret(found.pick) <= 1))
    stated, realised = np.array(rows, dtype=float).mean(0)
    return float(stated), float(realised)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--rough", type=int, nargs="+", default=(100, 200, 300, 600))
    given = parser.parse_args()
    told: dict[int, dict[str, tuple[float, float]]] = {}
    for rough in given.rough:
        told[rough] = {family: belief(family, rough, given.share, given.seeds) for family in FAMILIES}
        line = ", ".join(f"{family} {s:.2f}/{r:.2f}" for family, (s, r) in told[rough].items())
        print(f"ROUGH = {rough}: stated/realised {line}", flush=True)
    for left_out in FAMILIES:
        used = [family for family in FAMILIES if family not in (left_out, APART)]
        error = {rough: abs(np.mean([rows[f][0] - rows[f][1] for f in used])) for rough, rows in told.items()}
        best = min(error, key=lambda rough: error[rough])
        stated, realised = told[best][left_out]
        print(f"{left_out} left out: ROUGH = {best}, stated {stated:.2f}, realised {realised:.2f}", flush=True)


if __name__ == "__main__":
    main()
