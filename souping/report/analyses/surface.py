"""How the analysis `surface` is shown: objective over the weights with its bands, and surface.csv, surface.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from souping.core.text import minus
from souping.core.types import FloatArray, elements, number, part, texts
from souping.report.drawing import COLOURS, FAINT, INK, Drawing, canvas, colour_bar, figure, scale
from souping.report.format import clean, count, in_words, percent, short, weight
from souping.report.plots import CORNERS, ring
from souping.report.registry import register
from souping.report.tables import Row, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def section(data: Row) -> Section:
    low, high = _row(part(data, "objective"), "low"), _row(part(data, "objective"), "high")
    above, below = int((low > 0).sum()), int((high < 0).sum())
    lines = [
        f"What the search's model says of the objective at {count(len(low))} points of the weights, less that of the "
        f"uniform soup: {count(above)} are above it and {count(below)} below it with 95 % confidence, at all points at "
        f"once; the bands are {percent(data.get('width'))} points wide on average.",
        f"Fitted on {count(data.get('soups'))} soups of the search and {count(data.get('fold_items'))} items of the "
        "search fold; the report fold was not touched. All points are in surface.csv and surface.json.",
    ]
    return Section("Response surface", tuple(lines), "surface")


def _row(band: Row, key: str) -> FloatArray:
    return np.array([number(value) or 0.0 for value in elements(band, key)])


def _weights(data: Row) -> FloatArray:
    rows = [row for row in elements(data, "weights") if isinstance(row, Sequence) and not isinstance(row, str)]
    return np.array([[number(value) or 0.0 for value in row] for row in rows])


def draw(data: Row) -> Drawing | None:
    """Two ingredients: a curve in its band; three: a triangle; more: the points in their order."""
    points, band = _weights(data), part(data, "objective")
    value, low, high = (100 * _row(band, key) for key in ("difference", "low", "high"))
    if len(points) < 2:
        return None
    names = texts(data, "ingredients")
    with canvas():
        if len(names) == 3:
            made = _triangle(names, points, value, (low > 0) | (high < 0), _shares(data))
        else:
            made = _band(names, points, value, low, high)
            _ring(made.axes[0], names, points, value, _shares(data))
    best = int(value.argmax())
    least, most = (minus(f"{end:.1f}") for end in (value.min(), value.max()))
    top = " / ".join(weight(w) for w in points[best])
    alt = (
        f"Objective over the weights of {in_words(names)}, less the uniform soup's: from {least} to {most} points, "
        f"most at {top}."
    )
    caption = "Ring: the chosen weights." + (" Dark rim: the band leaves 0 out." if len(names) == 3 else "")
    return Drawing("surface", made, alt, caption)


def _band(names: Sequence[str], points: FloatArray, value: FloatArray, low: FloatArray, high: FloatArray) -> Figure:
    made, axes = figure(7.6, 3.2)
    order = np.argsort(points[:, 0] if len(names) == 2 else value, kind="stable")
    across = points[order, 0] if len(names) == 2 else np.arange(1, len(order) + 1)
    axes.fill_between(across, low[order], high[order], color=FAINT, linewidth=0)
    axes.plot(across, value[order], "o-", color=COLOURS["soup"], markersize=3, linewidth=1.2)
    axes.axhline(0, color=INK, linewidth=0.8)
    told = (
        f"weight of {short(names[0], 40)} (the rest: {short(names[1], 40)})" if len(names) == 2 else "points, in order"
    )
    axes.set_xlabel(told)
    axes.set_ylabel("over the uniform soup, points")
    return made


def _shares(data: Row) -> FloatArray:
    """The chosen weights."""
    return np.array([number(share) or 0.0 for share in elements(data, "chosen")])


def _ring(axes: Axes, names: Sequence[str], points: FloatArray, value: FloatArray, chosen: FloatArray) -> None:
    """Mark the point of the band that is nearest to the chosen weights."""
    if len(chosen) == len(names):
        near = int(np.abs(points - chosen).sum(axis=1).argmin())
        order = np.argsort(points[:, 0] if len(names) == 2 else value, kind="stable")
        x = points[near, 0] if len(names) == 2 else float(np.flatnonzero(order == near)[0]) + 1
        ring(axes, x, value[near], 6.5)


def _triangle(
    names: Sequence[str], points: FloatArray, value: FloatArray, sure: NDArray[np.bool_], chosen: FloatArray
) -> Figure:
    made, axes = figure(7.6, 4.6)
    spots = points @ CORNERS
    reach = max(float(np.abs(value).max()), 1e-9)
    shades = scale(-reach, reach, "RdBu")
    loop = np.vstack([CORNERS, CORNERS[:1]])
    axes.plot(loop[:, 0], loop[:, 1], color=INK, linewidth=1.0, zorder=0)
    for edge, some in ((FAINT, ~sure), (INK, sure)):
        colours = shades.to_rgba(value[some])
        axes.scatter(spots[some, 0], spots[some, 1], c=colours, s=110, edgecolors=edge, linewidths=1.3, zorder=2)
    if len(chosen) == len(names):
        x, y = chosen @ CORNERS
        ring(axes, x, y, 10)
    for name, (x, y), shift in zip(names, CORNERS, ((0, -0.07), (0, -0.07), (0, 0.05)), strict=True):
        axes.text(x, y + shift[1], short(name, 30), ha="center", va="center", fontsize=10, fontweight="bold")
    axes.set_aspect("equal")
    axes.set_axis_off()
    colour_bar(made, axes, shades, "over the uniform soup, points")
    return made


def files(data: Row) -> Mapping[str, str]:
    """surface.csv, a line a point, and surface.json."""
    names, points = texts(data, "ingredients"), _weights(data)
    band, by_category = part(data, "objective"), part(data, "categories")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = [*(f"objective:{key}" for key in band), *(f"{name}:difference" for name in by_category)]
    writer.writerow([*(f"weight:{clean(name)}" for name in names), "items", *map(clean, head)])
    columns = [*(elements(band, key) for key in band), *(elements(by_category, name) for name in by_category)]
    for place, (row, items) in enumerate(zip(points, elements(data, "items"), strict=True)):
        writer.writerow([*(repr(float(w)) for w in row), items, *(column[place] for column in columns)])
    return {"surface.csv": stream.getvalue(), "surface.json": json.dumps(data, sort_keys=True, indent=2) + "\n"}


register("surface", section, draw, files, folded=True, within="landscape")
