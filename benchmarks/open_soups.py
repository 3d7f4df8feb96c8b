"""The adaptive search with several open soups beside one: regret and cost, paired on truth tables.

    python benchmarks/open_soups.py [--table FILE.npz ..] [--seeds 90] [--items 232] [--open 8] [--out FILE.md]

Tables, folds, regret and cost are those of `search.py`; each search ends by itself. `as they end`: a soup's result
comes in random order and the next soup is asked for at once. `in rounds`: all open soups are told before more are
asked for, as `ask` and `tell` by hand do. The last column is the upper 95 % limit of the mean difference in regret.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import numpy as np
from search import TABLES, TableWorlds, opened
from search_tables import Simulation

from souping.search.adaptive import Adaptive

ONE_SIDED_95 = 1.645


def searched(sim: Simulation, at_once: int, rounds: bool) -> tuple[float, float, int]:
    """(regret of the pick, cost, requests that were waited for one after another) of a search."""
    optimiser = Adaptive().over(sim.table.points, sim.space, sim.seed)
    dice = np.random.default_rng([sim.seed, 2])
    cells = []
    turns = 0
    while True:
        while len(cells) < at_once and (cell := optimiser.ask()) is not None:
            cells.append(cell)
        if not cells:
            break
        turns += 1
        for _ in range(len(cells) if rounds else 1):
            cell = cells.pop(dice.integers(len(cells)))
            optimiser.tell(cell, sim.answer(cell))
    return sim.regret(sim.rows[optimiser.best()]), sim.spent / sim.full, turns


def line(table: TableWorlds, at_once: int) -> list[str]:
    """Rows of a table: both ways beside one soup at a time."""
    sims = range(table.given.seeds)
    one = np.array([searched(table.sim(seed), 1, True) for seed in sims])
    rows = []
    for name, rounds in (("as they end", False), ("in rounds", True)):
        several = np.array([searched(table.sim(seed), at_once, rounds) for seed in sims])
        change = several[:, 0] - one[:, 0]
        error = table.error(change)
        turns = f"{one[:, 2].mean():.0f} / {several[:, 2].mean():.0f}" if rounds else "-"
        rows.append(
            f"| {table.name} | {name} | {one[:, 0].mean():.2f} | {change.mean():+.2f} ({error:.2f}) "
            f"| {100 * one[:, 1].mean():.1f} / {100 * several[:, 1].mean():.1f} | {turns} "
            f"| {change.mean() + ONE_SIDED_95 * error:+.2f} |"
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--table", type=Path, nargs="+", default=sorted(TABLES.glob("*.npz")), help="default: all")
    add("--seeds", type=int, default=90, help="folds a table, dealt to its worlds")
    add("--items", type=int, default=232, help="items of a search fold")
    add("--parts", type=int, default=3, help="populations that a large table is dealt into")
    add("--open", type=int, default=8, help="soups that are open at once")
    add("--out", type=Path)
    given = parser.parse_args()
    lines = [
        f"# {given.open} open soups beside one, {datetime.date.today()}",
        "",
        f"`python benchmarks/open_soups.py --seeds {given.seeds} --open {given.open}`; regret in points, cost in "
        "percent of the full grid; differences with the standard error.",
        "",
        f"| table | {given.open} open | regret with one | difference | cost (one / {given.open}) "
        f"| rounds (one / {given.open}) | upper 95 % limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for table in opened(given):
        lines += line(table, given.open)
    text = "\n".join(lines) + "\n"
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
