"""Searches beside each other on truth tables: regret against all items of the table, for a share of the grid's items.

    python benchmarks/search.py --table FILE.npz [FILE.npz ..] [--budget 0.05 0.1 0.25 0.5] [--seeds 200]
        [--items 232] [--parts 1] [--methods NAME ..] [--keep FOLDER] [--out benchmarks/results/search-DATE.md]

A table holds `ok` [S, I] (right or wrong), `w` [S, K] (soups' weights), `cat` [I] and `group` [I].

Every seed draws a search fold of `--items` items by groups and searches it by every method. Regret is the objective
(plain mean of the categories' means over all items) of the best soup minus that of the pick, in points. Cost counts the
items that were generated, single models excepted, over those of the full grid. `stop` is adaptive that ends by itself.
"""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path

import numpy as np
import search_methods as ways
from search_tables import Simulation, TruthTable

from souping.core.types import UserError
from souping.search.adaptive import Adaptive

Rows = np.ndarray
BUDGETS = (0.05, 0.1, 0.15, 0.25, 0.5)
METHODS: dict[str, ways.Method] = {
    "grid on fewer items": ways.grid_on_fewer,
    "random soups": ways.random_soups,
    "Nevergrad NGOpt": ways.nevergrad,
    "Optuna TPE": ways.tpe,
    "GLM": ways.glm,
    "halving": ways.halving,
    "adaptive": ways.adaptive(Adaptive(stop="never")),
}


def simulate(table: TruthTable, name: str, method: ways.Method, share: float | None, given: argparse.Namespace) -> Rows:
    """[seeds, 5]: regret, cost, seconds, stated probability, stated regret; read again from `--keep` where they were
    made before."""
    kept = given.keep / f"{table.name} {name} {share or 'stop'} {given.items} {given.seeds}.npy" if given.keep else None
    if kept and kept.exists():
        return np.asarray(np.load(kept))
    rows = []
    for seed in range(given.seeds):
        sim = Simulation(table, seed, given.items)
        started = time.process_time()
        found = method(sim, int(share * sim.full) if share else 0)
        seconds = time.process_time() - started
        cost = sim.spent / sim.full
        rows.append([sim.regret(found.pick), cost, seconds, found.within, found.regret])
    if kept:
        np.save(kept, np.array(rows, dtype=float))
    return np.array(rows, dtype=float)


def full_grid(table: TruthTable, seeds: int, items: int) -> np.ndarray:
    sims = [Simulation(table, seed, items) for seed in range(seeds)]
    return np.array([sim.regret(int(np.argmax(sim.grid))) for sim in sims])


def figures(regret: np.ndarray) -> str:
    return f"{regret.mean():.2f}/{np.median(regret):.2f}/{np.quantile(regret, 0.9):.2f}"


def report(table: TruthTable, given: argparse.Namespace) -> list[str]:
    """Lines of one table."""
    probe = Simulation(table, 0, given.items)
    lines = [
        f"## {table.name}: K = {table.w.shape[1]}, {len(table.ok)} soups x {len(table.cat)} items, "
        f"folds of {len(probe.fold)}",
        "",
        f"Full grid, 100 % of the cost: {figures(full_grid(table, given.seeds, given.items))} "
        f"(regret in points: mean/median/90 % quantile over {given.seeds} folds).",
        "",
        "| | " + " | ".join(f"{100 * b:g} %" for b in given.budget) + " |",
        "|---|" + "---|" * len(given.budget),
    ]
    notes: list[str] = []
    for name in (name for name in METHODS if not given.methods or name in given.methods):
        cells = []
        for share in given.budget:
            try:
                found = simulate(table, name, METHODS[name], share, given)
            except UserError as error:
                cells.append(f"- ({error})")
                continue
            cells.append(figures(found[:, 0]))
            notes += _note(name, share, found)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return [*lines, "", *notes, _stop(table, given), ""]


def _note(name: str, share: float, found: np.ndarray) -> list[str]:
    if not np.isfinite(found[:, 3]).all():
        return []
    return [
        f"- {name} at {100 * share:g} %: cost {100 * found[:, 1].mean():.1f} %, within 1 point stated "
        f"{found[:, 3].mean():.2f}, realised {(found[:, 0] <= 1).mean():.2f}; expected regret stated "
        f"{found[:, 4].mean():.2f}, realised {found[:, 0].mean():.2f}; {np.median(found[:, 2]):.3f} s a search"
    ]


def _stop(table: TruthTable, given: argparse.Namespace) -> str:
    """What `stop=auto` costs and gives."""
    found = simulate(table, "stop", ways.adaptive(Adaptive()), None, given)
    early = (found[:, 1] < 0.25).mean()
    return (
        f"- stop=auto: cost {100 * found[:, 1].mean():.1f} % (below 25 % in {100 * early:.0f} % of "
        f"searches), regret {figures(found[:, 0])}, within 1 point stated {found[:, 3].mean():.2f}, realised "
        f"{(found[:, 0] <= 1).mean():.2f}; {np.median(found[:, 2]):.3f} s a search"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, nargs="+", required=True)
    parser.add_argument("--budget", type=float, nargs="+", default=BUDGETS, help="shares of the full grid's items")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--items", type=int, default=232, help="items of a search fold")
    parser.add_argument("--parts", type=int, default=1, help="populations of its own that each table is dealt into")
    parser.add_argument("--methods", nargs="*", default=[], help="names of rows; default: all")
    parser.add_argument("--keep", type=Path, help="folder of results so far: what is there is not run again")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    try:
        tables = [TruthTable.read(path) for path in given.table]
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    if min(given.budget) <= 0 or min(given.seeds, given.items, given.parts) < 1:
        raise SystemExit("error: --budget, --seeds, --items and --parts must be above 0")
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    lines = [f"# Searches on truth tables, {datetime.date.today()}", ""]
    for table in (part for whole in tables for part in whole.parts(given.parts)):
        lines += report(table, given)
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
