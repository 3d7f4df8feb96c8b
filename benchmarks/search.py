"""Searches beside each other on truth tables: what a search picks, scored on items that it never saw.

    python -m benchmarks.search [--table FILE.npz ..] [--budget 0.05 0.1 0.25] [--seeds 90] [--items 232]
        [--parts 3] [--methods NAME ..] [--search FILE.py:NAME] [--open N] [--min-items N ..] [--keep FOLDER]
        [--out FILE.md]

A table holds `ok` [S, I] (right or wrong), `w` [S, K] (soups' weights), `cat` [I] and `group` [I].
In place of `ok` it may hold `bits` [W, I, S / 8]: answers in W worlds, each with other models behind the same weights.

Seed after seed draws a search split of `--items` items by groups from the next of the table's worlds, and every method
searches it. **Regret** is the objective (plain mean of the categories' means) of the best soup minus that of the pick,
in points, both on the items *outside* the split. The best soup is the best on those items, its luck included, so even
a pick that is truly the best has some regret where the items are few. **Cost** counts the items that were generated,
single models excepted, over those of the full grid. `stop` is a search that ends by itself. A large table is dealt
into `--parts` populations of at least 1,000 items, which share the soups and nothing else, each a world.

`--search FILE.py:NAME` adds a search of your own: NAME(points, space, seed, auto, budget) returns an object with `ask`,
`tell`, `best` and `summary` as in `souping.core.protocols.Search`.

`--open N` adds the adaptive search with N open soups, and a table of its regret beside the search with one.
`--min-items N ..` adds the same for requests of N items or more, or of the whole split.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import search_methods as ways, search_open
from benchmarks.search_tables import Simulation, TruthTable
from souping.core.types import UserError
from souping.search.adaptive import Adaptive

BUDGETS = (0.05, 0.1, 0.25)
TABLES = Path(__file__).parent / "tables"
LEAST = 1000
MANY = 10
"""Items of a part at least; worlds from which errors are those of the means of worlds."""
METHODS: dict[str, ways.Method] = {
    "grid on fewer items": ways.grid_on_fewer,
    "random soups": ways.random_soups,
    "Nevergrad NGOpt": ways.nevergrad,
    "Optuna TPE": ways.tpe,
    "GLM": ways.glm,
    "halving": ways.halving,
    "adaptive": ways.adaptive(Adaptive()),
}
STOPS = ("adaptive",)
"""Methods that can end by themselves; so must a search of `--search`."""
COLUMNS = ("regret", "cost", "seconds", "within", "expected", "pick", "requests")


@dataclass(frozen=True)
class TableWorlds:
    """One table: its worlds, and the searches on it so far, by (method, share)."""

    name: str
    worlds: Sequence[TruthTable]
    given: argparse.Namespace

    def sims(self) -> list[Simulation]:
        return [self.sim(seed) for seed in range(self.given.seeds)]

    def sim(self, seed: int) -> Simulation:
        return Simulation(self.worlds[seed % len(self.worlds)], seed, self.given.items)

    def grid(self) -> np.ndarray:
        """Regret of the full grid [seeds]."""
        return np.array([sim.regret(int(np.argmax(sim.grid))) for sim in self.sims()])

    def searches(
        self, name: str, method: ways.Method, share: float | None
    ) -> dict[str, np.ndarray]:
        """{column: [seeds]}; read again from `--keep` where they were made before."""
        given = self.given
        label = f"{self.name} {len(self.worlds)} {name} {share or 'stop'} {given.items} {given.seeds}.npy"
        kept = given.keep / label.replace("/", "_") if given.keep else None
        if kept and kept.exists():
            rows = np.asarray(np.load(kept))
        else:
            rows = np.array(
                [self._one(seed, method, share) for seed in range(given.seeds)], dtype=float
            )
            if kept:
                np.save(kept, rows)
        return dict(zip(COLUMNS, rows.T, strict=True))

    def _one(self, seed: int, method: ways.Method, share: float | None) -> list[float]:
        """COLUMNS of one search with this share of the full grid's items, or until it stops by itself."""
        sim = self.sim(seed)
        started = time.process_time()
        found = method(sim, int(share * sim.full) if share else 0)  # 0: no budget
        seconds = time.process_time() - started
        cost = sim.spent / sim.full
        regret = sim.regret(found.pick)
        return [regret, cost, seconds, found.within, found.regret, found.pick, sim.requests]

    def error(self, values: np.ndarray) -> float:
        """Standard error of the mean of values [seeds]: over worlds where there are many, else over splits, which
        leaves out that all splits share the luck of a world."""
        values = self.independent(values)
        return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")

    def independent(self, values: np.ndarray) -> np.ndarray:
        """Means over worlds where there are many, else the values [seeds] themselves."""
        count = len(self.worlds)
        if not MANY <= count <= len(values):
            return values
        return np.array([values[n::count].mean() for n in range(count)])


def report(table: TableWorlds) -> tuple[list[str], str | None, dict[str, search_open.Differences]]:
    """Lines of one table, its line in the summary, and the differences of the searches of `variants`."""
    given = table.given
    grid = table.grid()
    probe = table.sim(0)
    rise = np.array([world.rise for world in table.worlds])
    lines = [
        f"## {table.name}: K = {probe.table.w.shape[1]}, {len(probe.table.ok)} soups, {len(table.worlds)} worlds of "
        f"{len(probe.table.cat)} items, splits of {len(probe.split)}, scored on about {len(probe.outside)} others",
        "",
        f"Soups lie {rise.mean():.1f} points ({rise.min():.1f} to {rise.max():.1f}) above the plane through their "
        "parents (per 1 - sum of squared weights).",
        "",
        f"Full grid, 100 % of the cost: {figures(grid)} ({table.error(grid):.2f}) (regret in points: mean/median/90 % "
        f"quantile over {given.seeds} splits, with the standard error of the mean; in the queries the same and the "
        "difference of the mean to the full grid on the same splits with its error).",
        "",
        "| | " + " | ".join(f"{100 * b:g} %" for b in given.budget) + " | stops by itself |",
        "|---|" + "---|" * (len(given.budget) + 1),
    ]
    notes: list[str] = []
    brief = None
    regrets: dict[str, dict[float | None, np.ndarray]] = {}
    for name, method in methods(given):
        queries = []
        for share in (*given.budget, None):
            if share is None and name in METHODS and name not in STOPS:
                queries.append("-")
                continue
            try:
                found = table.searches(name, method, share)
            except UserError as error:
                queries.append(f"- ({error})")
                continue
            queries.append(f"{figures(found['regret'])} {beside(table, found, grid)}")
            notes += note(table, name, share, found)
            regrets.setdefault(name, {})[share] = found["regret"]
            if share is None and name == (given.search or "adaptive"):
                brief = summary(table, queries, found, grid)
        lines.append(f"| {name} | " + " | ".join(queries) + " |")
        print(lines[-1], flush=True)
    differences: dict[str, search_open.Differences] = {}
    for name in variants(given):
        differences[name] = {
            share: table.independent(regret - regrets["adaptive"][share])
            for share, regret in regrets[name].items()
        }
    return [*lines, "", *notes, ""], brief, differences


def figures(regret: np.ndarray) -> str:
    return f"{regret.mean():.2f}/{np.median(regret):.2f}/{np.quantile(regret, 0.9):.2f}"


def beside(table: TableWorlds, found: dict[str, np.ndarray], grid: np.ndarray) -> str:
    """Difference to the full grid, with its standard error."""
    change = found["regret"] - grid
    return f"{change.mean():+.2f} ({table.error(change):.2f})"


def summary(
    table: TableWorlds, queries: Sequence[str], found: dict[str, np.ndarray], grid: np.ndarray
) -> str:
    """The row of a table in the summary, with the picks within a point of the best as they are and as stated."""
    near = (found["regret"] <= 1).astype(float)
    stated = f"{found['within'].mean():.2f} / " if np.isfinite(found["within"]).all() else ""
    changes = [query.split(" ", 1)[1] for query in queries]
    return (
        f"| {table.name} | {grid.mean():.2f} | {' | '.join(changes)} | {100 * found['cost'].mean():.1f} % "
        f"| {stated}{near.mean():.2f} ({table.error(near - (found['within'] if stated else 0)):.2f}) |"
    )


def methods(given: argparse.Namespace) -> list[tuple[str, ways.Method]]:
    """Rows of a table: names and methods."""
    own = [(given.search, ways.from_file(given.search))] if given.search else []
    own.extend(variants(given).items())
    return [*(row for row in METHODS.items() if not given.methods or row[0] in given.methods), *own]


def variants(given: argparse.Namespace) -> dict[str, ways.Method]:
    """Rows that are compared with the row adaptive."""
    searches: dict[str, ways.Method] = {}
    if given.open > 1:
        searches[f"adaptive with {given.open} open"] = ways.adaptive(Adaptive(), given.open)
    for size in given.min_items:
        name = f"adaptive, requests of {size} items or more"
        searches[name] = ways.adaptive(Adaptive(), min_items=size)
    return searches


def note(
    table: TableWorlds, name: str, share: float | None, found: dict[str, np.ndarray]
) -> list[str]:
    """How often a pick is near the best, how sure of that the search was where it says so, and its time."""
    near = (found["regret"] <= 1).astype(float)
    stated = ""
    if np.isfinite(found["within"]).all():
        stated = (
            f", stated {found['within'].mean():.2f} (error of the difference "
            f"{table.error(near - found['within']):.2f}); expected regret stated {found['expected'].mean():.2f}"
        )
    early = ""
    if share is None:
        below = 100 * (found["cost"] < 0.25).mean()
        early = f" (below 25 % in {below:.0f} % of searches)"
    where = f"at {100 * share:g} %" if share else "where it stops"
    return [
        f"- {name} {where}: cost {100 * found['cost'].mean():.1f} %{early}; {100 * near.mean():.0f} % of the picks "
        f"within 1 point of the best{stated}; {found['requests'].mean():.1f} requests and "
        f"{np.median(found['seconds']):.3f} s a search"
    ]


def opened(given: argparse.Namespace) -> list[TableWorlds]:
    """The tables, each with its worlds."""
    tables = []
    for path in given.table:
        worlds = TruthTable.read(path)
        if len(worlds) == 1:
            (world,) = worlds
            most_parts = len(world.cat) // LEAST
            worlds = world.parts(max(min(given.parts, most_parts), 1))
        tables.append(TableWorlds(path.stem, worlds, given))
    return tables


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--table", type=Path, nargs="+", default=sorted(TABLES.glob("*.npz")), help="default: all"
    )
    parser.add_argument(
        "--budget", type=float, nargs="*", default=BUDGETS, help="shares of the full grid's items"
    )
    parser.add_argument("--seeds", type=int, default=90, help="splits a table, dealt to its worlds")
    parser.add_argument("--items", type=int, default=232, help="items of a search split")
    parser.add_argument(
        "--parts", type=int, default=3, help="populations that a large table is dealt into"
    )
    parser.add_argument("--methods", nargs="*", default=[], help="names of rows; default: all")
    parser.add_argument(
        "--search", metavar="FILE.py:NAME", help="a search of your own as one more row"
    )
    parser.add_argument(
        "--open", type=int, default=1, help="open soups of one more row of the adaptive search"
    )
    parser.add_argument(
        "--min-items",
        type=int,
        nargs="*",
        default=[],
        help="one more row of the adaptive search for each of these least numbers of items of a request",
    )
    parser.add_argument(
        "--keep", type=Path, help="folder of results so far: what is there is not run again"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if (
        min(given.budget, default=1) <= 0
        or min(given.seeds, given.items, given.parts, given.open) < 1
    ):
        raise SystemExit("error: --budget, --seeds, --items, --parts and --open must be above 0")
    if variants(given) and given.methods and "adaptive" not in given.methods:
        raise SystemExit(
            "error: --open and --min-items are compared with the row adaptive: add it to --methods"
        )
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    return given


def main() -> None:
    given = arguments()
    try:
        tables = opened(given)
        found = [report(table) for table in tables]
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    shares = " | ".join(f"{100 * share:g} %" for share in given.budget)
    lines = [
        f"# Searches on truth tables, {datetime.date.today()}",
        "",
        f"`{given.search or 'adaptive'}` beside the full grid: regret of the full grid on items outside the split, and "
        "the difference of the search to it (standard error).",
        "",
        f"| table | full grid | {shares} | stops by itself | its cost | picks within 1 point there (stated /) |",
        "|---|" + "---|" * (len(given.budget) + 4),
        *(brief for _, brief, _ in found if brief is not None),
        "",
        *(line for lines, _, _ in found for line in lines),
    ]
    for name in variants(given):
        differences = {
            table.name: rows[name] for table, (_, _, rows) in zip(tables, found, strict=True)
        }
        lines += search_open.report(name, differences)
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
