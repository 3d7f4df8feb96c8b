"""Three pictures for docs/evidence.md, drawn from the families' values and from the gains of published soups."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.soup_families.inference import sample
from benchmarks.soup_families.report import MARGIN
from benchmarks.soup_families.study import Families
from souping.core.types import FloatArray
from souping.report.plots import COLOURS, FAINT, INK, PAPER, Drawing, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PUBLISHED_GAINS = Path(__file__).parents[1] / "results" / "published-soups-gains.csv"
SIZE = (6.4, 3.4)
"""Inches, to be readable on a phone."""
WIDEST = 12.0
"""Points; families beyond are drawn at the edge."""
WAYS = {
    "router - best": ("router by category", "router"),
    "greedy - best": ("greedy soup", "uniform_topk"),
    "default - best": ("SoCE, weights searched", "soup"),
    "experts - best": ("SoCE, equal weights", "uniform_selected"),
    "all - best": ("all eight, equal weights", "uniform_all"),
}
"""{value of a family: its words, and whose colour it has}"""
PUBLISHED = {
    "best": ("best of nine weights", "soup"),
    "half": ("weight .5", "uniform_selected"),
    "router": ("router", "router"),
}


def drawings(families: Families) -> list[Drawing]:
    """The pictures, for the confirmatory families."""
    with canvas():
        return [gains(families), reported(families), published()]


def gains(families: Families) -> Drawing:
    """Every family's gain over its best candidate, by way of making a model; the mean has a 95 % interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    labels = []
    for place, (name, (words, kind)) in enumerate(WAYS.items()):
        values = families[name]
        strip(axes, place, values, COLOURS[kind])
        below = int((values < -MARGIN).sum())
        labels.append(f"{words}\nworse in {below} of {len(values)}")
    axes.set_xlim(-7.5, WIDEST + 0.5)
    finish(axes, labels, "points above the best candidate, on items that chose nothing")
    return Drawing("gains", figure, "")


def strip(axes: Axes, place: int, values: FloatArray, colour: str) -> None:
    """A row of dots with their mean and its interval; dots beyond the edge are triangles at it."""
    beyond = values > WIDEST
    heights = place + 0.18 + 0.16 * np.linspace(-1, 1, len(values))
    for shown, marker in ((~beyond, "o"), (beyond, ">")):
        axes.plot(
            np.minimum(values[shown], WIDEST),
            heights[shown],
            marker,
            color=colour,
            alpha=0.45,
            markersize=4.5,
            markeredgewidth=0,
        )
    found = sample(values)
    height = place - 0.18
    axes.plot([found.low, min(found.high, WIDEST)], [height, height], color=colour, linewidth=2.6)
    axes.plot([found.mean], [height], "o", color=colour, markersize=8, markeredgecolor=PAPER)


def finish(axes: Axes, labels: list[str], below: str) -> None:
    """Rows from the top with their labels, and a line at zero."""
    axes.axvline(0, color=INK, linewidth=1.0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(below)


def reported(families: Families) -> Drawing:
    """What is reported if the items that choose also score, against the gain on new items."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = families["reported gain"]
    true = families["true gain"]
    low = float(min(shown.min(), true.min())) - 0.5
    high = float(max(shown.max(), true.max())) + 0.5
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1.4)
    axes.axhline(0, color=INK, linewidth=1.0)
    axes.plot(shown, true, "o", color=COLOURS["soup"], alpha=0.6, markersize=6.5, markeredgewidth=0)
    axes.text(
        high,
        high,
        "gain as reported  ",
        ha="right",
        va="bottom",
        rotation=45,
        color=INK,
        rotation_mode="anchor",
    )
    axes.set_xlabel("reported gain: the same 250 items choose and score")
    axes.set_ylabel("gain on 3,000 new items")
    axes.set_aspect("equal")
    return Drawing("reported", figure, "")


def published() -> Drawing:
    """Soups of two Llama-2-7B models, minus the better one, by domain and method."""
    from matplotlib.figure import Figure

    with PUBLISHED_GAINS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ladders = list(dict.fromkeys(row["ladder"] for row in rows))
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for number, (column, (words, kind)) in enumerate(PUBLISHED.items()):
        for place, ladder in enumerate(ladders):
            own = np.array([float(row[column]) for row in rows if row["ladder"] == ladder])
            height = place + 0.24 * (number - 1)
            axes.plot(
                own,
                np.full(len(own), height),
                "o",
                color=COLOURS[kind],
                alpha=0.55,
                markersize=5,
                markeredgewidth=0,
                label=words if place == 0 else None,
            )
    axes.legend(loc="lower right", frameon=False)
    labels = [ladder.replace(", ", ",\n") for ladder in ladders]
    finish(axes, labels, "points above the better of two models (7B)")
    return Drawing("published", figure, "")
