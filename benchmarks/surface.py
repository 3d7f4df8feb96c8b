"""Coverage of the response surface's bands on truth tables: how often they hold the whole truth of the grid.

    python benchmarks/surface.py --table FILE.npz [FILE.npz ..] [--seeds 200] [--items 232] [--asked 1.0]
        [--out benchmarks/results/surface-DATE.md]

Tables are those of `search.py`, with weights. Every seed draws a search fold by groups and fits the surface to the
answers of all soups, or of a share `--asked` of them, each on a random part of the fold, as a search leaves them.
Covered is a seed in which the band of the objective, less the uniform soup's, holds the truth at every point at once.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import numpy as np
from search_tables import TruthTable

from souping.analysis.surface_fit import fit_surface
from souping.core.types import UserError


def fold(table: TruthTable, rng: np.random.Generator, items: int) -> np.ndarray:
    """Items of whole groups, drawn until there are enough."""
    sizes = np.bincount(table.group)
    order = rng.permutation(len(sizes))
    taken = order[: int(np.searchsorted(np.cumsum(sizes[order]), items)) + 1]
    return np.flatnonzero(np.isin(table.group, taken))


def uniform(table: TruthTable) -> int:
    """Row of the uniform soup."""
    weights = np.array(table.points)
    rows = np.flatnonzero(np.abs(weights - 1 / weights.shape[1]).max(1) < 1e-3)
    if table.w is None or not len(rows):
        raise UserError(f"{table.name}: a surface needs weights `w`, the uniform soup among them")
    return int(rows[0])


def one(table: TruthTable, seed: int, items: int, asked: float) -> tuple[bool, float, list[bool]] | None:
    """(objective covered, mean width, categories covered) of one search; None where nothing can be fitted."""
    rng, zero = np.random.default_rng(seed), uniform(table)
    drawn = fold(table, rng, items)
    values = table.ok[:, drawn].copy()
    if asked < 1:
        left_out = rng.random(len(values)) > asked
        left_out[zero] = False
        values[left_out] = np.nan
        values[rng.random(values.shape) > rng.random((len(values), 1))] = np.nan
    groups = np.unique(table.group[drawn], return_inverse=True)[1]
    count = int(table.cat.max()) + 1
    fit = fit_surface(np.array(table.points), values, table.cat[drawn], groups, np.full(count, 1 / count))
    if fit is None:
        return None
    truth = np.array([table.ok[:, table.cat == c].mean(1) for c in range(count)])
    truth -= truth[:, zero : zero + 1]
    bands = [fit.objective, *fit.categories]
    held = [bool(((t >= b.low) & (t <= b.high)).all()) for t, b in zip([truth.mean(0), *truth], bands, strict=True)]
    return held[0], float((fit.objective.high - fit.objective.low).mean()), held[1:]


def row(table: TruthTable, given: argparse.Namespace) -> str:
    found = [one(table, seed, given.items, given.asked) for seed in range(given.seeds)]
    fits = [fit for fit in found if fit is not None]
    if not fits:
        return f"| {table.name} | 0 of {len(found)} | | | |"
    covered, widths, categories = zip(*fits, strict=True)
    return (
        f"| {table.name} | {len(fits)} of {len(found)} | {100 * np.mean(covered):.1f} | {100 * np.mean(widths):.1f} "
        f"| {100 * np.mean(categories):.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--items", type=int, default=232)
    parser.add_argument("--asked", type=float, default=1.0, help="share of the soups that answered, each a part")
    parser.add_argument("--date", default=str(datetime.date.today()))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = [
        f"# Coverage of the response surface, {given.date}",
        "",
        f"{given.seeds} searches a table, folds of {given.items} items, {100 * given.asked:g} % of the soups asked.",
        "",
        "| table | fitted | objective covered % | mean width, points | categories covered % |",
        "|---|---|---|---|---|",
        *(row(TruthTable.read(path), given) for path in given.table),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
