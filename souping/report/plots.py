"""Figures of a report: differences by model and by category, correlation heatmap, search landscape. Fractions in,
percent shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from souping.core.types import FloatArray, Json, entries, number, part, texts
from souping.report.drawing import (
    COLOURS,
    DARK,
    FAINT,
    INK,
    LIGHT,
    PAPER,
    Drawing,
    canvas,
    colour_bar,
    figure,
    scale,
)
from souping.report.experts import around, at
from souping.report.format import (
    clean,
    count,
    in_words,
    interval,
    level,
    p_of,
    percent,
    rho,
    short,
    weight,
)
from souping.report.tables import Report, Row, TableCell, compared, ingredients, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOVER_LIMIT = 600
"""Above so many trials, points carry no hover text: the page would grow by megabytes."""


def forest(report: Report) -> Drawing | None:
    """Soup minus each other model: the point, its interval, and the line of no difference."""
    pairs = [pair for pair in compared(report) if number(pair.get("difference")) is not None]
    if not pairs:
        return None
    models = [part(pair, "row") for pair in pairs]
    labels = [_label(named(model)) for model in models]
    colours = [COLOURS.get(str(model.get("kind")), INK) for model in models]
    columns = {
        "score %": [_mean(model.get("objective")) for model in models],
        "difference": [percent(pair.get("difference"), sign=True) for pair in pairs],
        "p": [p_of(pair) for pair in pairs],
    }
    below = f"soup minus the other, points ({level(pairs[0])} interval)"
    height = 0.4 if any("\n" in label for label in labels) else 0.32
    made = _differences(pairs, "pair", labels, colours, below, columns, height)
    titles = {f"pair{i}": _pair_title(pair) for i, pair in enumerate(pairs)}
    alt = "Forest plot of paired differences, soup minus each other model: " + "; ".join(titles.values())
    soup = _row_of(report, "soup").get("objective")
    return Drawing("forest", made, alt, f"Right of the line the soup is better; it scores {_mean(soup)} %.", titles)


def categories(report: Report) -> Drawing | None:
    """Soup minus best single, category by category, the largest gain first; beyond chance the dot is full."""
    losses = part(report, "losses")
    pairs = [pair for pair in entries(losses, "categories") if number(pair.get("difference")) is not None]
    if not pairs:
        return None
    pairs.sort(key=lambda pair: -(number(pair.get("difference")) or 0.0))
    names, against = [str(pair.get("category")) for pair in pairs], clean(losses.get("against"))
    soup, single = (part(_row_of(report, kind), "scores") for kind in ("soup", "best_single"))
    columns = {
        "soup %": [_mean(soup.get(name)) for name in names],
        "single %": [_mean(single.get(name)) for name in names],
        "difference": [percent(pair.get("difference"), sign=True) for pair in pairs],
    }
    below, labels = f"soup minus {short(against, 40)}, points", [short(name) for name in names]
    full = [pair.get("verdict") in ("higher", "lower") for pair in pairs]
    made = _differences(pairs, "category", labels, [_winner(pair) for pair in pairs], below, columns, 0.27, full)
    titles = {f"category{i}": _pair_title(pair) for i, pair in enumerate(pairs)}
    alt = f"Differences of the soup to {against} in {len(pairs)} categories: " + "; ".join(titles.values())
    caption = (
        f"Orange: the soup is ahead; blue: {against} is. A full dot is beyond chance; "
        f"whiskers are {level(pairs[0])} intervals that hold for all categories at once."
    )
    return Drawing("categories", made, alt, caption, titles)


def _differences(
    pairs: Sequence[Row],
    gid: str,
    labels: Sequence[str],
    colours: Sequence[str],
    below: str,
    columns: Mapping[str, Sequence[str]],
    height: float,
    filled: Sequence[bool] = (),
) -> Figure:
    """A point with its interval for each pair, and columns of numbers to the right; points not `filled` are rings."""
    with canvas():
        made, axes = figure(8.6, 0.7 + height * len(pairs))
        axes.axvline(0, color=INK, linewidth=1.0)
        for y, (pair, colour) in enumerate(zip(pairs, colours, strict=True)):
            values = (number(pair.get(key)) for key in ("difference", "low", "high"))
            middle, *ends = (100 * value for value in values if value is not None)
            if len(ends) == 2:
                axes.plot(ends, [y, y], color=colour, linewidth=2.2, solid_capstyle="round", zorder=2)
            face = colour if not filled or filled[y] else PAPER
            axes.plot(
                [middle], [y], "o", color=colour, markersize=7.5, markerfacecolor=face,
                markeredgecolor=PAPER if face == colour else colour, markeredgewidth=1.4, gid=f"{gid}{y}", zorder=3,
            )  # fmt: skip
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlabel(below)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        for place, (head, column) in enumerate(columns.items()):
            for i, text in enumerate((head, *column)):
                axes.text(
                    1.1 + 0.13 * place, i - 1, text, transform=axes.get_yaxis_transform(), va="center", ha="right",
                    fontsize=8.5, fontweight="bold" if not i else "normal",
                )  # fmt: skip
    return made


def _mean(score: Json) -> str:
    return percent(score.get("mean") if isinstance(score, Mapping) else score)


def _label(cell: TableCell) -> str:
    name, roles = short(cell.text, 34), short(cell.sub, 46)
    return f"{name}\n{roles}" if roles else name


def _pair_title(pair: Row) -> str:
    around_it = interval(pair.get("low"), pair.get("high"), sign=True)
    return (
        f"{clean(pair.get('category') or pair.get('b'))}: {percent(pair.get('difference'), sign=True)} points"
        f" ({around_it or 'no interval'}), p {p_of(pair)}"
    )


def _winner(pair: Row) -> str:
    gap = round(number(pair.get("difference")) or 0.0, 12)
    return COLOURS["soup" if gap > 0 else "best_single" if gap else "ingredient"]


def _row_of(report: Report, kind: str) -> Row:
    return next((row for row in entries(report, "rows") if row.get("kind") == kind), {})


def heatmap(report: Report) -> Drawing | None:
    """Correlation of every two categories over models; low-correlation categories are marked on the axes."""
    selection = part(report, "selection")
    caption = "Bold with a dot: low-correlation categories."
    return correlations("heatmap", part(selection, "correlation"), texts(selection, "low_correlation"), caption)


def correlations(name: str, told: Row, marked: Sequence[str], caption: str) -> Drawing | None:
    """A heatmap of `categories` by their `matrix` (with `low` and `high`, where known); `marked` names stand out."""
    names, matrix = texts(told, "categories"), told.get("matrix")
    if len(names) < 2 or not matrix:
        return None
    titles: dict[str, str] = {}
    with canvas():
        side = max(2.6, 0.52 * len(names))
        made, axes = figure(side + 1.4, side)
        for i, row in enumerate(names):
            for j, column in enumerate(names):
                heat_cell(axes, (i, j), number(at(matrix, i, j)), f"cell{i}-{j}", 7.5)
                span = around(at(told.get("low"), i, j), at(told.get("high"), i, j))
                titles[f"cell{i}-{j}"] = f"{clean(row)} and {clean(column)}: rho {rho(at(matrix, i, j))}, {span}"
        labels = [f"{'● ' if name in marked else ''}{short(name, 24)}" for name in names]
        heat_axes(axes, labels)
        axes.set_yticks(range(len(names)), labels)
        _mark_low(axes, names, set(marked))
        colour_bar(made, axes, scale(-1, 1, "RdBu_r"), "correlation over models", pad=0.03, shrink=0.7)
    alt = f"Heatmap of the correlation between {len(names)} categories, with every value."
    return Drawing(name, made, alt, caption, titles)


def heat_cell(axes: Axes, place: tuple[int, int], value: float | None, gid: str, size: float) -> None:
    """A cell (row, column) of a heatmap with its correlation in letters of this size; of size 0, without."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    row, column = place
    shade = "#e9ebee" if value is None else colormaps["RdBu_r"]((value + 1) / 2)
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=shade, edgecolor=PAPER, gid=gid))
    if size:
        ink = LIGHT if value is not None and abs(value) > 0.62 else DARK
        axes.text(column, row, rho(value), ha="center", va="center", fontsize=size, color=ink)


def heat_axes(axes: Axes, labels: Sequence[str]) -> None:
    """Axes of a heatmap of so many rows and columns, with labels below."""
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _mark_low(axes: Axes, names: Sequence[str], low: set[str]) -> None:
    for name, tick_x, tick_y in zip(names, axes.get_xticklabels(), axes.get_yticklabels(), strict=True):
        if name in low:
            tick_x.set_fontweight("bold")
            tick_y.set_fontweight("bold")


def landscape(report: Report, trials: Sequence[Row]) -> Drawing | None:
    """The picture that fits K; nothing for one ingredient or fewer than two trials."""
    tried = [trial for trial in trials if number(trial.get("objective")) is not None]
    names = ingredients(report, tried)
    if len(names) < 2 or len(tried) < 2:
        return None
    weights = np.array([[number(part(t, "weights").get(n)) or 0.0 for n in names] for t in tried])
    values = np.array([100 * (number(t["objective"]) or 0.0) for t in tried])
    titles = {f"trial{i}": _title(t, names, w) for i, (t, w) in enumerate(zip(tried, weights, strict=True))}
    draw = {2: _line, 3: _triangle}.get(len(names), _curves)
    own = part(report, "recipe").get("id")
    chosen = next((i for i, t in enumerate(tried) if t.get("recipe_id") == own), int(np.argmax(values)))
    with canvas():
        made = draw(names, weights, values, chosen)
        if len(names) == 3:
            _dropped(made.axes[0], names, trials)
    alt = f"Search landscape: {len(tried)} trials over the weights of {in_words(names)}. Best: "
    best = titles[f"trial{int(np.argmax(values))}"]
    hollow = "Hollow: dropped early, no score." if len(names) == 3 and len(tried) < len(trials) else ""
    return Drawing("landscape", made, alt + best, hollow, titles if len(tried) <= HOVER_LIMIT else {})


def _title(trial: Row, names: Sequence[str], weights: FloatArray) -> str:
    shown = ", ".join(f"{clean(n)} {weight(w)}" for n, w in zip(names, weights, strict=True))
    return f"trial {count(trial.get('number'))}: {percent(trial.get('objective'), digits=2)} % ({shown})"


def _points(axes: Axes, x: FloatArray, y: FloatArray, colours: Sequence[str] | FloatArray, size: float) -> None:
    """One marker a trial, the best drawn last by its own function; each with the gid that hover text looks for."""
    for i in range(len(x)):
        axes.plot(
            [x[i]], [y[i]], "o", color=colours[i], markersize=size, markeredgecolor=INK, markeredgewidth=0.4,
            gid=f"trial{i}", clip_on=False,
        )  # fmt: skip


def ring(axes: Axes, x: float, y: float, size: float) -> None:
    """Mark the chosen soup."""
    axes.plot([x], [y], "o", markersize=size + 7, fillstyle="none", color=COLOURS["soup"], markeredgewidth=2.2)


def _line(names: Sequence[str], weights: FloatArray, values: FloatArray, chosen: int) -> Figure:
    made, axes = figure(7.6, 3.2)
    order = np.argsort(weights[:, 0], kind="stable")
    axes.plot(weights[order, 0], values[order], color=COLOURS["ingredient"], linewidth=1.0, zorder=1)
    _points(axes, weights[:, 0], values, [COLOURS["best_single"]] * len(values), 6.5)
    ring(axes, weights[chosen, 0], values[chosen], 6.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"weight of {short(names[0], 40)} (the rest: {short(names[1], 40)})")
    axes.set_ylabel("search objective, %")
    return made


CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
"""Places of the three ingredients."""


def _triangle(names: Sequence[str], weights: FloatArray, values: FloatArray, chosen: int) -> Figure:
    """Barycentric plot: corners are the ingredients, the colour is the objective, the ring is the chosen soup."""
    made, axes = figure(7.6, 4.1)
    _frame(axes, CORNERS)
    spots = weights @ CORNERS / weights.sum(axis=1, keepdims=True)
    low, high = float(values.min()), float(values.max())
    mappable = scale(low, high if high > low else low + 1, "viridis")
    size = 12.0 if len(values) <= 80 else 7.0
    _points(axes, spots[:, 0], spots[:, 1], mappable.to_rgba(values), size)
    ring(axes, spots[chosen, 0], spots[chosen, 1], size)
    places = [
        (-0.03, -0.06, "left", "top"),
        (1.03, -0.06, "right", "top"),
        (0.5, math.sqrt(3) / 2 + 0.05, "center", "bottom"),
    ]
    for name, (x, y, across, along) in zip(names, places, strict=True):
        axes.text(x, y, short(name, 30), ha=across, va=along, fontsize=10, fontweight="bold")
    colour_bar(made, axes, mappable, "search objective, % (ring: chosen soup)")
    return made


def _dropped(axes: Axes, names: Sequence[str], trials: Sequence[Row]) -> None:
    """Hollow dots where soups were dropped early: the search looked there, and they have no score."""
    for trial in (trial for trial in trials if number(trial.get("objective")) is None):
        weights = np.array([number(part(trial, "weights").get(name)) or 0.0 for name in names])
        x, y = weights @ CORNERS / weights.sum()
        axes.plot([x], [y], "o", markersize=7.0, fillstyle="none", color=INK, markeredgewidth=0.9, zorder=1)


def _frame(axes: Axes, corners: FloatArray) -> None:
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


def _curves(names: Sequence[str], weights: FloatArray, values: FloatArray, chosen: int) -> Figure:
    """More than three ingredients: best so far by trial, and the objective by distance from the chosen soup."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(9.2, 3.8))
    left, right = made.subplots(1, 2, sharey=True)
    steps = np.arange(1, len(values) + 1)
    distance = np.abs(weights - weights[chosen]).sum(axis=1) / 2
    left.plot(steps, values, "o", color=COLOURS["ingredient"], markersize=4)
    left.step(steps, np.maximum.accumulate(values), where="post", color=COLOURS["soup"], linewidth=2.0)
    left.set_xlabel("trial (line: best so far)")
    left.set_ylabel("search objective, %")
    left.xaxis.get_major_locator().set_params(integer=True)
    _points(right, distance, values, [COLOURS["best_single"]] * len(values), 5.5)
    ring(right, 0.0, values[chosen], 5.5)
    right.set_xlabel(f"share of the {len(names)} weights moved from the chosen soup's")
    made.subplots_adjust(wspace=0.08)
    return made
