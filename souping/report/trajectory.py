"""The report's sections on a training run: its checkpoints, the chosen average, and averages of other windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from souping.core.types import FloatArray, elements, entries, number, part, texts
from souping.core.unit import unit
from souping.report.format import KINDS, clean, count, level, limits, p_of, points, score, weight
from souping.report.plots import COLOURS, FAINT, INK, Drawing, canvas
from souping.report.tables import (
    Report,
    Row,
    Section,
    TableGrid,
    difference,
    grid,
    losses,
    nonempty,
    table,
    whiskers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OTHERS = ("last", "best_single", "trainer_best", "trainer_average", "decayed", "scrambled")
"""Kinds of the rows that an average of checkpoints is compared with, in this order."""
SHAPES: Mapping[str, tuple[str, str, str]] = {
    "uniform": ("equal weights", "o-", COLOURS["soup"]),
    "minus_sqrt": ("minus-sqrt", "^", COLOURS["uniform_selected"]),
    "ema": ("moving average of all", "s", COLOURS["uniform_topk"]),
}
"""{kind of a window: (its name, its mark, its colour)}"""
SIDES = {"last": "minus the last checkpoint", "members_mean": "minus the mean of its members"}


def sections(report: Report) -> tuple[Section, ...]:
    """Nothing if the candidates are no checkpoints of a training run."""
    data = part(report, "trajectory")
    windows, members = entries(data, "windows"), entries(data, "members")
    if not members:
        return ()
    folded = nonempty(
        (
            table("Every checkpoint", _members(members)),
            table("By category", losses({"losses": data})),
        )
    )
    tried = f"{count(len(windows))} averages on the search fold, which chose one of them: its score here is optimistic."
    line = f"{tried} Bands and whiskers hold for all averages at once."
    numbers = nonempty((table("The averages in numbers", _windows(windows)),))
    shown = (Section("Averages by window", (line,), "windows", folded=numbers),) if windows else ()
    rows = (_rows(report, data),)
    return Section(
        "The training run", tuple(_lines(report, data)), "trajectory", grids=rows, folded=folded
    ), *shown


def _lines(report: Report, data: Row) -> list[str]:
    lines, spread, runs = texts(data, "sentences"), part(data, "spread"), part(data, "runs")
    for last in [pair for pair in entries(report, "comparisons") if pair.get("kind") == "last"]:
        lines.append(
            f"For this run, on the report fold: chosen average minus last checkpoint {_claimed(last)}."
        )
    if number(spread.get("report")) is not None:
        apart = f"a standard deviation of {points(spread.get('report'))}"
        lines.append(f"The last {count(spread.get('checkpoints'))} checkpoints differ by {apart}.")
    if further := [score(value, sign=True) for value in elements(runs, "differences")]:
        claim = part(runs, "claim")
        recipe = (
            f"With the run as the unit: {_claimed(claim)}."
            if claim
            else "A claim on the recipe takes two."
        )
        lines.append(
            f"The same weights on {len(further)} more training run(s): {', '.join(further)}. {recipe}"
        )
    return lines


def _claimed(pair: Row) -> str:
    return f"{points(pair.get('difference'), sign=True)} ({limits(pair)}, p {p_of(pair)})"


def _rows(report: Report, data: Row) -> TableGrid:
    """The chosen average minus each of what it is compared with, beside the spread of the last checkpoints."""
    order, labels = (
        {kind: n for n, kind in enumerate(OTHERS)},
        {**KINDS, "members_mean": "mean of its members' scores"},
    )
    found = [pair for pair in entries(report, "comparisons") if pair.get("kind") in order]
    found.sort(key=lambda pair: order[str(pair.get("kind"))])
    spread = score(part(data, "spread").get("report"))
    lines = [
        (
            labels[str(pair.get("kind"))],
            clean(pair.get("b")),
            difference(pair),
            whiskers(pair),
            p_of(pair),
            spread,
        )
        for pair in [*found, {**part(data, "members_mean"), "kind": "members_mean", "b": ""}]
    ]
    around = f"{level(next(iter(found), {}))} interval"
    header = (
        "average minus",
        "checkpoint",
        f"difference, {unit().name}",
        around,
        "p",
        "SD of the last checkpoints",
    )
    return grid(header, lines, left=(0, 1))


def _members(members: Sequence[Row]) -> TableGrid:
    show = {
        "step": count,
        "tokens": count,
        "rate": weight,
        "search": score,
        "report": score,
        "weight": weight,
    }
    lines = [
        (clean(one.get("name")), *(shown(one.get(key)) for key, shown in show.items()))
        for one in members
    ]
    scores = [unit().heading(fold) for fold in ("search", "report")]
    return grid(("checkpoint", "step", "tokens", "learning rate", *scores, "weight"), lines)


def _windows(found: Sequence[Row]) -> TableGrid:
    lines = [
        (
            SHAPES[str(one.get("kind"))][0]
            + (f", alpha {weight(one['alpha'])}" if one.get("alpha") else ""),
            *(count(one.get(key)) for key in ("checkpoints", "steps", "tokens")),
            score(one.get("objective")),
            *(show(part(one, side)) for side in SIDES for show in (difference, whiskers)),
        )
        for one in found
    ]
    sides = [text for side in SIDES.values() for text in (side, "interval")]
    return grid(
        ("average", "checkpoints", "steps", "tokens", unit().heading("score"), *sides), lines
    )


# ------------------------------------------------------------ pictures


def _column(rows: Sequence[Row], key: str, factor: float = 1.0) -> FloatArray:
    values = [number(row.get(key)) for row in rows]
    return factor * np.array([np.nan if value is None else value for value in values])


def trajectory(report: Report) -> Drawing | None:
    """Scores of the checkpoints, their learning rate, and the weights of the average over the steps of training."""
    from matplotlib.figure import Figure

    members = entries(part(report, "trajectory"), "members")
    if len(members) < 2:
        return None
    steps, scale = _column(members, "step"), unit().scale
    with canvas():
        figure = Figure(figsize=(7.6, 5.4))
        scores, rate, weights = figure.subplots(3, 1, sharex=True, height_ratios=(3.0, 1.2, 1.2))
        scores.plot(
            steps,
            _column(members, "report", scale),
            "o-",
            color=COLOURS["best_single"],
            label="checkpoints",
        )
        for row in [
            row for row in entries(report, "rows") if row.get("kind") in ("soup", "decayed")
        ]:
            kind, height = (
                str(row.get("kind")),
                scale * (number(part(row, "objective").get("mean")) or 0.0),
            )
            line = {"color": COLOURS.get(kind, INK), "linestyle": "-" if kind == "soup" else "--"}
            scores.axhline(
                height, label="chosen average" if kind == "soup" else KINDS[kind], **line
            )
        scores.legend()
        rate.plot(steps, _column(members, "rate"), "o-", color=INK, markersize=3, linewidth=1.0)
        rate.set_ylim(bottom=0)
        weights.bar(
            steps,
            _column(members, "weight"),
            width=0.6 * np.diff(steps).min(),
            color=COLOURS["soup"],
        )
        weights.set_xlabel("training step")
        for axes, label in zip(
            figure.axes, (unit().symbol, "learning rate", "weight"), strict=True
        ):
            axes.set_ylabel(label)
        figure.align_ylabels()
    alt = f"Scores, learning rate and weights of {len(members)} checkpoints over {count(steps[-1])} training steps."
    return Drawing(
        "trajectory", figure, alt, "On the report fold. Bars: the weights of the chosen average."
    )


def window_bands(report: Report) -> Drawing | None:
    """The averages of each window minus the last checkpoint, and minus the mean of their members, by window length."""
    from matplotlib.figure import Figure

    data = part(report, "trajectory")
    found, spread = entries(data, "windows"), number(part(data, "spread").get("search"))
    if not found:
        return None
    with canvas():
        figure = Figure(figsize=(8.6, 3.4))
        for axes, (side, title) in zip(figure.subplots(1, 2), SIDES.items(), strict=True):
            axes.axhline(0, color=INK, linewidth=0.8)
            for kind in SHAPES:
                _band(axes, kind, [one for one in found if one.get("kind") == kind], side)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("steps from the oldest to the newest")
            axes.set_ylabel(f"difference, {unit().name}")
        if spread is not None:
            reach, label = unit().scale * spread, "SD of the last checkpoints"
            figure.axes[0].axhspan(
                -reach, reach, color=FAINT, alpha=0.5, linewidth=0, zorder=0, label=label
            )
        figure.tight_layout()
        marks = figure.axes[0].get_legend_handles_labels()
        figure.legend(*marks, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    alt = f"Differences of {len(found)} averages to the last checkpoint and to the mean of their members."
    better = "Above" if unit().higher_is_better else "Below"
    return Drawing("windows", figure, alt, f"On the search fold. {better} 0 is better.")


def _band(axes: Axes, kind: str, rows: Sequence[Row], side: str) -> None:
    """Points with whiskers; those of equal weights are joined to a band."""
    label, mark, colour = SHAPES[kind]
    steps, pairs = _column(rows, "steps"), [part(one, side) for one in rows]
    middle, low, high = (_column(pairs, key, unit().scale) for key in ("difference", "low", "high"))
    if kind == "uniform":
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    # all of one length
    across = steps * (1.02 + 0.02 * np.arange(len(rows))) if kind == "ema" else steps
    reach = np.abs(np.stack([middle - low, high - middle]))
    axes.errorbar(
        across, middle, reach, fmt=mark, color=colour, markersize=4, elinewidth=0.8, label=label
    )
