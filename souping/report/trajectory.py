"""The report's sections on a training run: its checkpoints, the chosen average, and averages of other windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from souping.core.types import FloatArray
from souping.core.unit import Unit
from souping.report.content import (
    CheckpointRow,
    LookDifference,
    Report,
    TrajectoryResult,
    WindowRow,
)
from souping.report.format import ROW_KINDS, clean, count, p_value, weight
from souping.report.plots import COLOURS, FAINT, INK, Drawing, canvas
from souping.report.tables import (
    Section,
    TableGrid,
    confidence_of,
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
WINDOW_STYLES: Mapping[str, tuple[str, str, str]] = {
    "uniform": ("equal weights", "o-", COLOURS["soup"]),
    "minus_sqrt": ("minus-sqrt", "^", COLOURS["uniform_selected"]),
    "ema": ("moving average of all", "s", COLOURS["uniform_topk"]),
}
"""{kind of a window: (its name, its mark, its colour)}"""
SIDES = {"last": "minus the last checkpoint", "members_mean": "minus the mean of its members"}


def sections(report: Report) -> tuple[Section, ...]:
    """Nothing if the candidates are not checkpoints of a training run."""
    result = report.trajectory
    if result is None or not result.members:
        return ()
    unit = report.unit
    folded = nonempty(
        (
            table("Every checkpoint", _members(unit, result.members)),
            table("By category", losses(unit, result.categories)),
        )
    )
    training = Section(
        "The training run",
        tuple(_lines(report, result)),
        "trajectory",
        grids=(_rows(report, result),),
        folded=folded,
    )
    if not result.windows:
        return (training,)
    tried = (
        f"{count(len(result.windows))} averages on the search fold, which chose one of them: "
        "its score here is optimistic."
    )
    line = f"{tried} Bands and whiskers hold for all averages at once."
    numbers = nonempty((table("The averages in numbers", _windows(unit, result.windows)),))
    return training, Section("Averages by window", (line,), "windows", folded=numbers)


def _lines(report: Report, result: TrajectoryResult) -> list[str]:
    unit = report.unit
    lines = [*result.sentences]
    for pair in report.comparisons or ():
        if pair.kind == "last":
            difference = _claimed(unit, pair)
            lines.append(
                "For this run, on the report fold: "
                f"chosen average minus last checkpoint {difference}."
            )
    spread = result.spread
    if spread.report is not None:
        deviation = f"a standard deviation of {unit.points(spread.report)}"
        lines.append(f"The last {count(spread.checkpoints)} checkpoints differ by {deviation}.")
    further = [unit.score(difference, sign=True) for difference in result.runs.differences]
    if further:
        recipe = "A claim on the recipe takes two."
        if result.runs.claim is not None:
            recipe = f"With the run as the unit: {_claimed(unit, result.runs.claim)}."
        runs = f"The same weights on {len(further)} more training run(s)"
        lines.append(f"{runs}: {', '.join(further)}. {recipe}")
    return lines


def _claimed(unit: Unit, pair: LookDifference) -> str:
    limits = unit.limits(pair.low, pair.high, pair.level)
    return f"{unit.points(pair.difference, sign=True)} ({limits}, p {p_value(pair.p_shown)})"


def _rows(report: Report, result: TrajectoryResult) -> TableGrid:
    """The chosen average minus each of what it is compared with, beside the spread of the last checkpoints."""
    unit = report.unit
    spread = unit.score(result.spread.report)
    pairs = [pair for pair in report.comparisons or () if pair.kind in OTHERS]
    pairs.sort(key=lambda pair: OTHERS.index(pair.kind))

    def line(label: str, name: str, pair: LookDifference) -> tuple[str, ...]:
        difference = unit.score(pair.difference, sign=True)
        return label, name, difference, whiskers(unit, pair), p_value(pair.p_shown), spread

    lines = [line(ROW_KINDS[pair.kind], clean(pair.b), pair) for pair in pairs]
    lines.append(line("mean of its members' scores", "", result.members_mean))
    header = (
        "average minus",
        "checkpoint",
        f"difference, {unit.name}",
        f"{confidence_of(pairs)} interval",
        "p",
        "SD of the last checkpoints",
    )
    return grid(header, lines, left=(0, 1))


def _members(unit: Unit, members: Sequence[CheckpointRow]) -> TableGrid:
    lines = []
    for member in members:
        training = (count(member.step), count(member.tokens), weight(member.rate))
        scores = (unit.score(member.search), unit.score(member.report))
        lines.append((clean(member.name), *training, *scores, weight(member.weight)))
    scores_of = [unit.heading(fold) for fold in ("search", "report")]
    header = ("checkpoint", "step", "tokens", "learning rate", *scores_of, "weight")
    return grid(header, lines)


def _windows(unit: Unit, windows: Sequence[WindowRow]) -> TableGrid:
    lines = []
    for window in windows:
        name = WINDOW_STYLES[window.kind][0] if window.kind in WINDOW_STYLES else clean(window.kind)
        if window.alpha:
            name = f"{name}, alpha {weight(window.alpha)}"
        lengths = (count(window.checkpoints), count(window.steps), count(window.tokens))
        line = [name, *lengths, unit.score(window.objective)]
        for pair in (window.last, window.members_mean):
            line += [unit.score(pair.difference, sign=True), whiskers(unit, pair)]
        lines.append(line)
    sides = [text for side in SIDES.values() for text in (side, "interval")]
    header = ("average", "checkpoints", "steps", "tokens", unit.heading("score"), *sides)
    return grid(header, lines)


# ------------------------------------------------------------ pictures


def _column(values: Iterable[float | None], factor: float = 1.0) -> FloatArray:
    known = [np.nan if value is None else value for value in values]
    return factor * np.array(known)


def trajectory(report: Report) -> Drawing | None:
    """Scores of the checkpoints, their learning rate, and the weights of the average over the steps of training."""
    from matplotlib.figure import Figure

    members = report.trajectory.members if report.trajectory else ()
    if len(members) < 2:
        return None
    scale = report.unit.scale
    steps = _column(member.step for member in members)
    with canvas():
        figure = Figure(figsize=(7.6, 5.4))
        scores, rate, weights = figure.subplots(3, 1, sharex=True, height_ratios=(3.0, 1.2, 1.2))
        scores.plot(
            steps,
            _column((member.report for member in members), scale),
            "o-",
            color=COLOURS["best_single"],
            label="checkpoints",
        )
        for row in report.rows or ():
            if row.kind not in ("soup", "decayed"):
                continue
            label = "chosen average" if row.kind == "soup" else ROW_KINDS[row.kind]
            scores.axhline(
                scale * (row.objective.mean or 0.0),
                label=label,
                color=COLOURS.get(row.kind, INK),
                linestyle="-" if row.kind == "soup" else "--",
            )
        scores.legend()
        rates = _column(member.rate for member in members)
        rate.plot(steps, rates, "o-", color=INK, markersize=3, linewidth=1.0)
        rate.set_ylim(bottom=0)
        weights.bar(
            steps,
            _column(member.weight for member in members),
            width=0.6 * np.diff(steps).min(),
            color=COLOURS["soup"],
        )
        weights.set_xlabel("training step")
        for axes, label in zip(
            figure.axes, (report.unit.symbol, "learning rate", "weight"), strict=True
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

    unit = report.unit
    result = report.trajectory
    if result is None or not result.windows:
        return None
    with canvas():
        figure = Figure(figsize=(8.6, 3.4))
        for axes, (side, title) in zip(figure.subplots(1, 2), SIDES.items(), strict=True):
            axes.axhline(0, color=INK, linewidth=0.8)
            for kind in WINDOW_STYLES:
                windows = [window for window in result.windows if window.kind == kind]
                differences = [
                    window.last if side == "last" else window.members_mean for window in windows
                ]
                steps = _column(window.steps for window in windows)
                _band(axes, kind, steps, differences, unit.scale)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("steps from the oldest to the newest")
            axes.set_ylabel(f"difference, {unit.name}")
        spread = result.spread.search
        if spread is not None:
            reach, label = unit.scale * spread, "SD of the last checkpoints"
            figure.axes[0].axhspan(
                -reach, reach, color=FAINT, alpha=0.5, linewidth=0, zorder=0, label=label
            )
        figure.tight_layout()
        marks = figure.axes[0].get_legend_handles_labels()
        figure.legend(*marks, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    alt = f"Differences of {len(result.windows)} averages to the last checkpoint and to the mean of their members."
    better = "Above" if unit.higher_is_better else "Below"
    return Drawing("windows", figure, alt, f"On the search fold. {better} 0 is better.")


def _band(
    axes: Axes, kind: str, steps: FloatArray, pairs: Sequence[LookDifference], scale: float
) -> None:
    """Points with whiskers; those of equal weights are joined to a band."""
    label, mark, colour = WINDOW_STYLES[kind]
    middle = _column((pair.difference for pair in pairs), scale)
    low = _column((pair.low for pair in pairs), scale)
    high = _column((pair.high for pair in pairs), scale)
    if kind == "uniform":
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    # Moving averages are all of one length.
    across = steps * (1.02 + 0.02 * np.arange(len(pairs))) if kind == "ema" else steps
    reach = np.abs(np.stack([middle - low, high - middle]))
    axes.errorbar(
        across, middle, reach, fmt=mark, color=colour, markersize=4, elinewidth=0.8, label=label
    )
