"""The report's sections on a training run: its checkpoints, the chosen average, and averages of other windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from souping.core.types import FloatArray, elements, entries, number, part, texts
from souping.core.unit import unit
from souping.report.format import KINDS, clean, count, interval, level, limits, p_of, points, score, weight
from souping.report.plots import COLOURS, FAINT, INK, Drawing, canvas
from souping.report.tables import Report, Row, Section, TableGrid, grid, nonempty, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OTHERS = ("last", "best_single", "trainer_best", "trainer_average", "decayed", "scrambled")
"""Kinds of the rows that an average of checkpoints is compared with, in this order."""
SHAPES: Mapping[str, tuple[str, str]] = {"uniform": ("equal weights", "o"), "minus_sqrt": ("minus-sqrt", "^")}
SHAPES = {**SHAPES, "ema": ("moving average of all", "s")}
"""{kind of a window: (its name, its mark)}"""


def sections(report: Report) -> tuple[Section, ...]:
    """Nothing if the candidates are no checkpoints of a training run."""
    data = part(report, "trajectory")
    if not data:
        return ()
    rows = _rows(report)
    folded = nonempty(
        (
            table("Every checkpoint", _members(data)),
            table("By category: the average minus the last checkpoint", _categories(data)),
        )
    )
    run = Section("The training run", tuple(_lines(report, data)), "trajectory", grids=(rows,), folded=folded)
    return run, *_windows(data)


def _lines(report: Report, data: Row) -> list[str]:
    against = {str(pair.get("kind")): pair for pair in entries(report, "comparisons")}
    lines = texts(data, "sentences")
    if last := against.get("last"):
        difference = points(last.get("difference"), sign=True)
        lines.append(
            f"For this run, the chosen average minus the last checkpoint is {difference} on the report fold "
            f"({limits(last)}, p {p_of(last)})."
        )
    spread = part(data, "spread")
    if number(spread.get("report")) is not None:
        lines.append(
            f"The last {count(spread.get('checkpoints'))} checkpoints differ among themselves by a standard deviation "
            f"of {points(spread.get('report'))}."
        )
    return [*lines, *_further_runs(data)]


def _further_runs(data: Row) -> list[str]:
    """The same weights on further runs: a statement on the recipe if there are at least two."""
    runs = part(data, "runs")
    shown = [score(value, sign=True) for value in elements(runs, "differences")]
    if not shown:
        return []
    line = f"The same weights on {len(shown)} more training runs, average minus last checkpoint: {', '.join(shown)}."
    claim = part(runs, "claim")
    if not claim:
        return [f"{line} A statement on the recipe takes two or more of them."]
    mean = points(claim.get("difference"), sign=True)
    return [f"{line} With the run as the unit: {mean} ({limits(claim)}, p {p_of(claim)})."]


def _rows(report: Report) -> TableGrid:
    """The chosen average minus each of what it is compared with, beside the spread of the last checkpoints."""
    data = part(report, "trajectory")
    spread = score(part(data, "spread").get("report"))
    pairs = [pair for kind in OTHERS for pair in entries(report, "comparisons") if pair.get("kind") == kind]
    mean: Row = {**part(data, "members_mean"), "kind": "members_mean"}
    labels = {**KINDS, "members_mean": "mean of its members' scores"}
    lines = [
        (
            labels[str(pair.get("kind"))],
            "" if pair.get("b") in (pair.get("kind"), mean.get("b")) else clean(pair.get("b")),
            score(pair.get("difference"), sign=True),
            interval(pair.get("low"), pair.get("high"), sign=True),
            p_of(pair),
            spread,
        )
        for pair in [*pairs, *([mean] if mean.get("b") else [])]
    ]
    around = f"{level(next(iter(pairs), {}))} interval"
    header = ("average minus", "checkpoint", f"difference, {unit().name}", around, "p", "SD of the last checkpoints")
    return grid(header, lines, left=(0, 1))


def _members(data: Row) -> TableGrid:
    members = entries(data, "members")
    tokens = any(number(one.get("tokens")) is not None for one in members)
    lines = [
        (
            clean(one.get("name")),
            count(one.get("step")),
            *((count(one.get("tokens")),) if tokens else ()),
            weight(one.get("rate")),
            score(one.get("search")),
            score(one.get("report")),
            weight(one.get("weight")),
        )
        for one in members
    ]
    heads = ("checkpoint", "step", *(("tokens",) if tokens else ()), "learning rate")
    return grid((*heads, unit().heading("search"), unit().heading("report"), "weight"), lines)


def _categories(data: Row) -> TableGrid:
    found = entries(data, "categories")
    lines = [
        (
            clean(one.get("category")),
            count(one.get("n")),
            score(one.get("score")),
            score(one.get("difference"), sign=True),
            interval(one.get("low"), one.get("high"), sign=True),
        )
        for one in found
    ]
    around = f"{level(next(iter(found), {}))} interval, all at once"
    return grid(("category", "items", unit().heading("average"), "difference", around), lines)


def _windows(data: Row) -> tuple[Section, ...]:
    found = entries(data, "windows")
    if not found:
        return ()
    line = (
        f"{count(len(found))} averages on the search fold. One of them was chosen here, so its numbers are optimistic; "
        "the report fold has the fair ones. Bands and whiskers hold for all averages at once."
    )
    tokens = any(number(one.get("tokens")) is not None for one in found)
    lines = [
        (
            _named(one),
            count(one.get("checkpoints")),
            count(one.get("steps")),
            *((count(one.get("tokens")),) if tokens else ()),
            score(one.get("objective")),
            *(
                text
                for key in ("last", "members_mean")
                for text in (
                    score(part(one, key).get("difference"), sign=True),
                    interval(part(one, key).get("low"), part(one, key).get("high"), sign=True),
                )
            ),
        )
        for one in found
    ]
    heads = ("average", "checkpoints", "steps", *(("tokens",) if tokens else ()), unit().heading("score"))
    header = (*heads, "minus the last", "interval", "minus its members' mean", "interval")
    return (
        Section("Averages by window", (line,), "windows", folded=nonempty((table("In numbers", grid(header, lines)),))),
    )


def _named(window: Row) -> str:
    name = SHAPES.get(str(window.get("kind")), (clean(window.get("kind")), ""))[0]
    return f"{name}, alpha {weight(window.get('alpha'))}" if number(window.get("alpha")) is not None else name


# ------------------------------------------------------------ pictures


def _column(rows: Sequence[Row], key: str, inner: str = "", factor: float = 1.0) -> FloatArray:
    values = [number((part(row, inner) if inner else row).get(key)) for row in rows]
    return factor * np.array([np.nan if value is None else value for value in values])


def trajectory(report: Report) -> Drawing | None:
    """Scores of the checkpoints, their learning rate, and the weights of the average over the steps of training."""
    from matplotlib.figure import Figure

    members = entries(part(report, "trajectory"), "members")
    if len(members) < 2:
        return None
    steps, rates = _column(members, "step"), _column(members, "rate")
    heights = [3.0, 1.2, 1.2] if np.isfinite(rates).any() else [3.0, 1.2]
    with canvas():
        made = Figure(figsize=(7.6, 1.0 * sum(heights)))
        panels: list[Axes] = list(made.subplots(len(heights), 1, sharex=True, height_ratios=heights))
        _scores(panels[0], report, members, steps)
        if len(panels) > 2:
            panels[1].plot(steps, rates, "o-", color=INK, markersize=3, linewidth=1.0)
            panels[1].set_ylim(0, 1.15 * float(np.nanmax(rates)) or 1.0)
            panels[1].set_ylabel("learning rate")
        width = 0.6 * float(np.diff(steps).min())
        panels[-1].bar(steps, _column(members, "weight"), width=width, color=COLOURS["soup"])
        panels[-1].set_ylabel("weight")
        panels[-1].set_xlabel("training step")
        made.align_ylabels(panels)
    alt = f"Scores, learning rate and weights of {len(members)} checkpoints over {count(steps[-1])} training steps."
    return Drawing("trajectory", made, alt, "On the report fold. Bars: the weights of the chosen average.")


def _scores(axes: Axes, report: Report, members: Sequence[Row], steps: FloatArray) -> None:
    scale = unit().scale
    axes.plot(
        steps, _column(members, "report", factor=scale), "o-", color=COLOURS["best_single"], markersize=5,
        linewidth=1.0, label="checkpoints",
    )  # fmt: skip
    for kind, label, style in (("soup", "chosen average", "-"), ("decayed", "decayed branch", "--")):
        for row in [row for row in entries(report, "rows") if row.get("kind") == kind]:
            value = number(part(row, "objective").get("mean"))
            if value is not None:
                axes.axhline(scale * value, color=COLOURS.get(kind, INK), linestyle=style, linewidth=1.4, label=label)
    axes.set_ylabel(unit().symbol)
    axes.legend()


def window_bands(report: Report) -> Drawing | None:
    """The averages of each window minus the last checkpoint, and minus the mean of their members, by window length."""
    from matplotlib.figure import Figure

    data = part(report, "trajectory")
    found = entries(data, "windows")
    if not found:
        return None
    titles = {"last": "minus the last checkpoint", "members_mean": "minus the mean of its members"}
    with canvas():
        made = Figure(figsize=(8.6, 3.4))
        for axes, (key, title) in zip(made.subplots(1, 2), titles.items(), strict=True):
            _band(axes, found, key)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("steps from the oldest to the newest")
            axes.set_ylabel(f"difference, {unit().name}")
        spread = number(part(data, "spread").get("search"))
        if spread is not None:
            reach = unit().scale * spread
            made.axes[0].axhspan(
                -reach, reach, color=FAINT, alpha=0.5, linewidth=0, zorder=0, label="SD of the last checkpoints"
            )
        made.tight_layout()
        made.legend(*made.axes[0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    alt = f"Differences of {len(found)} averages to the last checkpoint and to the mean of their members."
    return Drawing(
        "windows", made, alt, f"On the search fold. {'Below' if unit().factor < 0 else 'Above'} 0 is better."
    )


def _band(axes: Axes, found: Sequence[Row], key: str) -> None:
    """Equal weights as a line in a band, the other averages as marks with whiskers."""
    axes.axhline(0, color=INK, linewidth=0.8)
    for shift, (kind, (label, mark)) in enumerate(SHAPES.items()):
        rows = [one for one in found if one.get("kind") == kind]
        if not rows:
            continue
        middle, low, high = (_column(rows, name, key, unit().scale) for name in ("difference", "low", "high"))
        steps, colour = _column(rows, "steps"), list(COLOURS.values())[shift]
        if kind == "uniform":
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(steps, middle, f"{mark}-", color=colour, markersize=4, linewidth=1.2, label=label)
        else:
            across = steps * (1 + 0.02 * np.arange(len(rows))) if kind == "ema" else steps
            reach = np.abs(np.stack([middle - low, high - middle]))
            axes.errorbar(across, middle, yerr=reach, fmt=mark, color=colour, markersize=4, elinewidth=0.8, label=label)
