"""Coverage of the response surface's bands on truth tables: how often they hold the whole truth of the grid.

    python -m benchmarks.surface --table FILE.npz [FILE.npz ..] [--seeds 200] [--items 232]
        [--asked 1 0.25 search] [--out benchmarks/results/surface-DATE.md]

Tables are those of `search.py`, with weights. Every seed draws a search split by groups and fits the surface to the
answers of all soups, of a share of them, each on a random part of the split, or to what the default search asked.
Covered is a seed in which the band of the objective, less the uniform soup's, holds the truth at every point at once.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import numpy as np

from benchmarks.search_tables import Simulation, TruthTable
from souping.analysis.surface import band
from souping.core.types import UserError
from souping.search.adaptive import Adaptive

SEARCH = "search"


def split(table: TruthTable, rng: np.random.Generator, items: int) -> np.ndarray:
    """Items of whole groups, drawn until there are enough."""
    sizes = np.bincount(table.group)
    order = rng.permutation(len(sizes))
    taken = order[: int(np.searchsorted(np.cumsum(sizes[order]), items)) + 1]
    return np.flatnonzero(np.isin(table.group, taken))


def uniform(table: TruthTable) -> int:
    """Row of the uniform soup."""
    weights = np.array(table.points)
    rows = np.flatnonzero(np.abs(weights - 1 / weights.shape[1]).max(1) < 1e-3)
    if not len(rows):
        raise UserError(f"{table.name}: a surface needs the uniform soup")
    return int(rows[0])


def at_random(
    table: TruthTable, seed: int, items: int, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """(split [I], answers [S, I], nan where not asked): a share of all soups, single models too, each on a random part;
    the uniform soup always. With share 1 all are whole."""
    rng = np.random.default_rng(seed)
    zero = uniform(table)
    drawn = split(table, rng, items)
    values = table.ok[:, drawn].copy()
    if share < 1:
        left_out = rng.random(len(values)) > share
        left_out[zero] = False
        values[left_out] = np.nan
        values[rng.random(values.shape) > rng.random((len(values), 1))] = np.nan
    return drawn, values


def by_search(table: TruthTable, seed: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """The same as `optimiser=adaptive` leaves it in a run: single models and the winner whole."""
    sim = Simulation(table, seed, items)
    values = np.full((len(table.ok), len(sim.split)), np.nan)
    optimiser = Adaptive().over(table.points, sim.space, seed)
    while (query := optimiser.ask()) is not None:
        optimiser.tell(query, sim.answer(query))
        own = slice(None) if query.items is None else list(query.items)
        values[sim.rows[query.weights], own] = table.ok[sim.rows[query.weights], sim.split[own]]
    whole = [*table.singles, sim.rows[optimiser.best()]]
    values[whole] = table.ok[np.ix_(np.array(whole), sim.split)]
    return sim.split, values


def one(table: TruthTable, seed: int, items: int, asked: str) -> tuple[bool, float, int]:
    """(covered, mean width, soups asked) of one search.

    Covered: every true difference to the uniform soup lies in its band.
    """
    zero = uniform(table)
    if asked == SEARCH:
        drawn, values = by_search(table, seed, items)
    else:
        drawn, values = at_random(table, seed, items, float(asked))
    count = int(table.cat.max()) + 1
    order = np.array([zero, *(s for s in range(len(values)) if s != zero)])
    found, _ = band(
        np.array(table.points)[order], values[order], table.cat[drawn], np.full(count, 1 / count)
    )
    truth = table.truth[order] - table.truth[zero]
    covered = bool(((truth >= found.low) & (truth <= found.high)).all())
    return (
        covered,
        float((found.high - found.low).mean()),
        int(np.isfinite(values).any(axis=1).sum()),
    )


def row(worlds: list[TruthTable], asked: str, given: argparse.Namespace) -> str:
    """A row of the page: all searches of one table, `asked` as on the command line."""
    found = [
        one(worlds[seed % len(worlds)], seed, given.items, asked) for seed in range(given.seeds)
    ]
    covered, widths, soups = zip(*found, strict=True)
    how = "by a search" if asked == SEARCH else f"{100 * float(asked):g} %"
    written = (
        f"| {worlds[0].name} | {how} | {np.mean(soups):.0f} of {len(worlds[0].ok)} | {100 * np.mean(covered):.1f} "
        f"| {100 * np.mean(widths):.1f} |"
    )
    print(written, flush=True)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--items", type=int, default=232)
    parser.add_argument(
        "--asked", nargs="+", default=["1", "0.25", SEARCH], help="shares of the soups, or 'search'"
    )
    parser.add_argument("--date", default=str(datetime.date.today()))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = list[str]()
    for asked in given.asked:
        rows += [row(TruthTable.read(path), asked, given) for path in given.table]
    lines = [
        f"# Coverage of the response surface, {given.date}",
        "",
        f"{given.seeds} searches a table, splits of {given.items} items.",
        "",
        "| table | asked | soups | covered % | mean width, points |",
        "|---|---|---|---|---|",
        *rows,
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
