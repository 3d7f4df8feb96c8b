"""What the search saw: the objective over the weights. A line for K = 2, a triangle for K = 3, curves for more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from souping.core import FloatArray
from souping.report import texts
from souping.report.drawing import COLOURS, FAINT, INK, Drawing, canvas, figure
from souping.report.tables import Report, ingredients, part

HOVER_LIMIT = 600
"""Above so many trials, points carry no hover text: the page would grow by megabytes."""

Trials = Sequence[Mapping[str, Any]]


def landscape(report: Report, trials: Trials) -> Drawing | None:
    """The picture that fits K; nothing for one ingredient or fewer than two trials."""
    found = [trial for trial in trials if texts.number(trial.get("objective")) is not None]
    names = ingredients(report, found)
    if len(names) < 2 or len(found) < 2:
        return None
    weights = np.array([[texts.number(part(t, "weights").get(n)) or 0.0 for n in names] for t in found])
    values = np.array([100 * float(t["objective"]) for t in found])
    titles = {f"trial{i}": _title(t, names, w) for i, (t, w) in enumerate(zip(found, weights, strict=True))}
    draw = {2: _line, 3: _triangle}.get(len(names), _curves)
    with canvas():
        made = draw(names, weights, values)
    alt = f"Search landscape: {len(found)} trials over the weights of {texts.listed(names)}. Best: "
    best = titles[f"trial{int(np.argmax(values))}"]
    return Drawing("landscape", made, alt + best, "", titles if len(found) <= HOVER_LIMIT else {})


def _title(trial: Mapping[str, Any], names: Sequence[str], weights: FloatArray) -> str:
    shown = ", ".join(f"{texts.clean(n)} {texts.weight(w)}" for n, w in zip(names, weights, strict=True))
    return f"trial {texts.count(trial.get('number'))}: {texts.percent(trial.get('objective'), digits=2)} % ({shown})"


def _points(axes: Any, x: FloatArray, y: FloatArray, colours: Any, size: float) -> None:
    """One marker a trial, the best drawn last by its own function; each with the gid that hover text looks for."""
    for i in range(len(x)):
        axes.plot(
            [x[i]], [y[i]], "o", color=colours[i], markersize=size, markeredgecolor=INK, markeredgewidth=0.4,
            gid=f"trial{i}", clip_on=False,
        )  # fmt: skip


def _ring(axes: Any, x: float, y: float, size: float) -> None:
    axes.plot([x], [y], "o", markersize=size + 7, fillstyle="none", color=COLOURS["soup"], markeredgewidth=2.2)


def _scale(values: FloatArray) -> tuple[Any, Any]:
    """(a colour for each value, the mappable for its bar)."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = float(values.min()), float(values.max())
    mappable = ScalarMappable(Normalize(low, high if high > low else low + 1), "viridis")
    return mappable.to_rgba(values), mappable


def _line(names: Sequence[str], weights: FloatArray, values: FloatArray) -> Any:
    made, axes = figure(8.2, 3.6)
    order = np.argsort(weights[:, 0], kind="stable")
    axes.plot(weights[order, 0], values[order], color=COLOURS["ingredient"], linewidth=1.0, zorder=1)
    _points(axes, weights[:, 0], values, [COLOURS["best_single"]] * len(values), 6.5)
    best = int(np.argmax(values))
    _ring(axes, weights[best, 0], values[best], 6.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"weight of {texts.short(names[0], 40)} (the rest: {texts.short(names[1], 40)})")
    axes.set_ylabel("search objective, %")
    return made


def _triangle(names: Sequence[str], weights: FloatArray, values: FloatArray) -> Any:
    """Barycentric plot: corners are the ingredients, the colour is the objective, the ring is the best trial."""
    made, axes = figure(8.2, 5.6)
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    _frame(axes, corners)
    spots = weights @ corners / weights.sum(axis=1, keepdims=True)
    colours, mappable = _scale(values)
    size = 12.0 if len(values) <= 80 else 7.0
    _points(axes, spots[:, 0], spots[:, 1], colours, size)
    best = int(np.argmax(values))
    _ring(axes, spots[best, 0], spots[best, 1], size)
    places = [
        (-0.03, -0.06, "left", "top"),
        (1.03, -0.06, "right", "top"),
        (0.5, math.sqrt(3) / 2 + 0.05, "center", "bottom"),
    ]
    for name, (x, y, across, along) in zip(names, places, strict=True):
        axes.text(x, y, texts.short(name, 30), ha=across, va=along, fontsize=10, fontweight="bold")
    bar = made.colorbar(mappable, ax=axes, shrink=0.75, pad=0.04)
    bar.set_label("search objective, % (ring: best trial)")
    bar.outline.set_visible(False)
    return made


def _frame(axes: Any, corners: FloatArray) -> None:
    """The triangle and its lines of weight 0.2, 0.4, 0.6 and 0.8."""
    loop = np.vstack([corners, corners[:1]])
    for share in (0.2, 0.4, 0.6, 0.8):
        for i in range(3):
            a, b, c = corners[i], corners[(i + 1) % 3], corners[(i + 2) % 3]
            ends = np.array([share * a + (1 - share) * b, share * a + (1 - share) * c])
            axes.plot(ends[:, 0], ends[:, 1], color=FAINT, linewidth=0.8, zorder=0)
    axes.plot(loop[:, 0], loop[:, 1], color=INK, linewidth=1.0, zorder=0.5)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _curves(names: Sequence[str], weights: FloatArray, values: FloatArray) -> Any:
    """More than three ingredients: best so far by trial, and the objective against the distance from the best."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(9.2, 3.8))
    left, right = made.subplots(1, 2, sharey=True)
    steps = np.arange(1, len(values) + 1)
    best = int(np.argmax(values))
    distance = np.abs(weights - weights[best]).sum(axis=1) / 2
    left.plot(steps, values, "o", color=COLOURS["ingredient"], markersize=4)
    left.step(steps, np.maximum.accumulate(values), where="post", color=COLOURS["soup"], linewidth=2.0)
    left.set_xlabel("trial (line: best so far)")
    left.set_ylabel("search objective, %")
    left.xaxis.get_major_locator().set_params(integer=True)
    _points(right, distance, values, [COLOURS["best_single"]] * len(values), 5.5)
    _ring(right, 0.0, values[best], 5.5)
    right.set_xlabel(f"share of the {len(names)} weights moved from the best trial's")
    made.subplots_adjust(wspace=0.08)
    return made
