"""The published weights as points of the grid, and what the published totals say beside the printed gains.

    python sweeps/paper/weights.py [--markdown]

Source: arXiv 2511.13254v1; figures in souping/examples/paper, printed gains in gains.csv beside this file. A gain has
two readings, points (a difference of percentages) and relative (percent of the baseline); both are shown.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from itertools import product

import numpy as np
from tables import HERE, Found, published, show

from souping.core import simplex

ROUNDING = 0.02
"""How far a gain may lie from the printed one: totals and gains are printed to 0.01, some totals to 0.1."""
BASELINES = ("best candidate", "uniform_all", "uniform_selected")


def totals(benchmark: str, scale: str) -> dict[str, float]:
    """{row: percent} of a benchmark in results.csv, and `best candidate`."""
    rows = [r for r in published("results.csv") if (r["benchmark"], r["scale"]) == (benchmark, scale)]
    found = {r["row"]: float(r["score"]) for r in rows}
    single = [float(r["score"]) for r in rows if r["role"] in ("ingredient", "candidate")]
    return {**found, "best candidate": max(single)}


def benchmarks() -> list[tuple[str, str]]:
    return list(dict.fromkeys((r["benchmark"], r["scale"]) for r in published("results.csv")))


def recipes() -> dict[str, dict[str, float]]:
    """{experiment: {model: weight}} as published."""
    found: dict[str, dict[str, float]] = {}
    for row in published("recipes.csv"):
        found.setdefault(row["experiment"], {})[row["model"]] = float(row["weight"])
    return found


def on_grid(weights: Sequence[float]) -> int:
    """Which point of the paper's grid these weights are, from 1; 0 when none."""
    points = [np.round(point, 9).tolist() for point in simplex.grid(len(weights))]
    wanted = np.round(weights, 9).tolist()
    return points.index(wanted) + 1 if wanted in points else 0


def weights_found() -> Found:
    """The published weights on the grid of 0.1 steps."""
    lines, says = [], []
    for name, recipe in recipes().items():
        values, size = list(recipe.values()), len(recipe)
        place, count = on_grid(values), len(simplex.grid(size))
        uniform = float(np.abs(np.array(values) - 1 / size).sum())
        given = ",".join(f"{w:g}" for w in values)
        mix = ", ".join(f"{w:g} {m}" for m, w in recipe.items())
        lines.append([name, mix, f"{place} of {count}", f"{uniform:.2f}"])
        says.append(
            f"{name} again, on these {size} models: `selector=all optimiser=fixed optimiser.weights='[{given}]'`"
        )
    columns = ("recipe", "weights", "point of the grid", "distance to uniform (sum of |w - 1/K|)")
    return Found(title="Published weights", columns=columns, rows=tuple(lines), says=tuple(says))


def gains_found() -> Found:
    """SoCE over each baseline, in points and relative."""
    lines, says = [], []
    for benchmark, scale in benchmarks():
        found = totals(benchmark, scale)
        soup = found["soce"]
        gains = [f"{soup - found[b]:+.2f} / {100 * (soup / found[b] - 1):+.2f} %" for b in BASELINES]
        lines.append([f"{benchmark} {scale}", f"{soup:.2f}", *gains])
        lost = [b for b in BASELINES[1:] if found[b] < found["best candidate"]]
        if lost:
            below = ", ".join(f"{b} by {found['best candidate'] - found[b]:.2f}" for b in lost)
            says.append(f"{benchmark} {scale}: below the best candidate (points): {below}.")
    columns = ("benchmark", "SoCE", *(f"over {b}: points / relative" for b in BASELINES))
    return Found(title="Gains from the published totals", columns=columns, rows=tuple(lines), says=tuple(says))


def readings(benchmark: str, scale: str) -> dict[str, float]:
    """{"SoCE over uniform_selected, points": gain} for every two rows and both readings."""
    found, gains = totals(benchmark, scale), {}
    for better, base in product(("soce", "uniform_selected"), BASELINES):
        if better != base:
            name = f"{'SoCE' if better == 'soce' else better} over {base}"
            gains[f"{name}, points"] = found[better] - found[base]
            gains[f"{name}, relative"] = 100 * (found[better] / found[base] - 1)
    return gains


def printed() -> list[dict[str, str]]:
    with (HERE / "gains.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def printed_found() -> Found:
    """Each printed gain, and which two published totals give it."""
    lines = []
    for row in printed():
        gains = readings(row["benchmark"], row["scale"])
        value = float(row["printed"])
        hits = [name for name, gain in gains.items() if abs(gain - value) <= ROUNDING]
        near = min(gains, key=lambda name: abs(gains[name] - value))
        given = "; ".join(hits) if hits else f"none; the nearest is {gains[near]:.2f} ({near})"
        lines.append([f"{row['benchmark']} {row['scale']}", f"{row['printed']} %", row["what"], given])
    columns = ("benchmark", "printed", "what", f"given by the totals, within {ROUNDING:g}")
    return Found(title="Printed gains", columns=columns, rows=tuple(lines), says=tuple(remarks()))


def remarks() -> list[str]:
    """Where figures of the paper and of its sources differ."""
    (soup,) = published("mgsm_soce.csv")
    mean = float(np.mean([float(v) for k, v in soup.items() if k != "model"]))
    table = totals("mgsm", "7b")["soce"]
    says = [f"MGSM: the soup's ten languages (Figure 3b) average {mean:.2f}, Table 2a prints {table:g}."]
    flores = [(float(r["eng_spa"]), float(r["spa_eng"])) for r in published("flores36.csv")]
    if all(a == b for a, b in flores):
        says.append("FLORES: eng_spa repeats spa_eng for every candidate: the column is corrupt and not used here.")
    return says


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="print Markdown, not a drawn table")
    show([weights_found(), gains_found(), printed_found()], parser.parse_args(arguments).markdown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
