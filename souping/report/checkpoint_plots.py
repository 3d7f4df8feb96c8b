"""The report's pictures of a training run: its checkpoints, and averages of its windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from souping.core.types import FloatArray
from souping.report.checkpoint_sections import SIDES, WINDOW_NAMES
from souping.report.content import LookDifference, Report
from souping.report.format import ROW_KINDS, count
from souping.report.plots import COLOURS, FAINT, INK, Drawing, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW_MARKS: Mapping[str, tuple[str, str]] = {
    "uniform": ("o-", COLOURS["soup"]),
    "minus_sqrt": ("^", COLOURS["uniform_selected"]),
    "ema": ("s", COLOURS["uniform_topk"]),
}
"""{kind of a window: (its mark, its colour)}"""


def _column(values: Iterable[float | None], factor: float = 1.0) -> FloatArray:
    """Numbers [N] times a factor; NaN, which matplotlib leaves out, for those that are not known."""
    return factor * np.array([np.nan if value is None else value for value in values])


def checkpoint_scores(report: Report) -> Drawing | None:
    """Scores, learning rates and weights in the average of the checkpoints over training steps; None if fewer than
    two."""
    from matplotlib.figure import Figure

    if report.trajectory is None or len(report.trajectory.checkpoints) < 2:
        return None
    members = report.trajectory.checkpoints
    scale = report.unit.scale
    steps = _column(member.step for member in members)
    with canvas():
        figure = Figure(figsize=(4.8, 4.6))
        scores, rate, weights = figure.subplots(3, 1, sharex=True, height_ratios=(3.0, 1.2, 1.2))
        scores.plot(
            steps,
            _column((member.test for member in members), scale),
            "o-",
            color=COLOURS["best_candidate"],
            label="checkpoints",
        )
        for row in report.rows or ():
            # A mean may be missing in an edited file.
            height = scale * (row.objective.mean or 0.0)
            if row.kind == "soup":
                scores.axhline(height, label="chosen average", color=COLOURS["soup"])
            elif row.kind == "decayed":
                scores.axhline(height, label=ROW_KINDS["decayed"], color=INK, linestyle="--")
        scores.legend()
        rates = _column(member.rate for member in members)
        rate.plot(steps, rates, "o-", color=INK, markersize=3, linewidth=1.0)
        rate.set_ylim(bottom=0)
        # Bars are narrower than the smallest step between two checkpoints.
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
        "trajectory", figure, alt, "On the test split. Bars: the weights of the chosen average."
    )


def window_bands(report: Report) -> Drawing | None:
    """The average of each window minus the last checkpoint, and minus its checkpoints' mean score, by its length."""
    from matplotlib.figure import Figure

    unit = report.unit
    result = report.trajectory
    if result is None or not result.windows:
        return None
    with canvas():
        figure = Figure(figsize=(4.8, 6.0))
        for axes, (side, title) in zip(figure.subplots(2, 1), SIDES.items(), strict=True):
            axes.axhline(0, color=INK, linewidth=0.8)
            for kind in WINDOW_MARKS:
                windows = [window for window in result.windows if window.kind == kind]
                differences = [window.last for window in windows]
                if side == "checkpoints_mean":
                    differences = [window.checkpoints_mean for window in windows]
                steps = _column(window.steps for window in windows)
                _band(axes, kind, steps, differences, unit.scale)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("steps from the oldest to the newest")
            axes.set_ylabel(f"difference, {unit.name}")
        spread = result.spread.search
        # Only beside the differences to the last checkpoint.
        if spread is not None:
            deviation = unit.scale * spread
            label = "SD of the last checkpoints"
            figure.axes[0].axhspan(
                -deviation, deviation, color=FAINT, alpha=0.5, linewidth=0, zorder=0, label=label
            )
        figure.tight_layout()
        marks = figure.axes[0].get_legend_handles_labels()
        figure.legend(*marks, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2)
    alt = f"Differences of {len(result.windows)} averages to the last checkpoint and to the mean of their members."
    better = "Above" if unit.higher_is_better else "Below"
    return Drawing("windows", figure, alt, f"On the search split. {better} 0 is better.")


def _band(
    axes: Axes, kind: str, steps: FloatArray, pairs: Sequence[LookDifference], scale: float
) -> None:
    """Draw differences, times `scale`, over `steps` [N] as points with whiskers; plain averages also get a band.

    `pairs` [N] are the differences of the windows of this `kind`.
    """
    mark, colour = WINDOW_MARKS[kind]
    middle = _column((pair.difference for pair in pairs), scale)
    low = _column((pair.low for pair in pairs), scale)
    high = _column((pair.high for pair in pairs), scale)
    if kind == "uniform":
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    if kind == "ema":
        # Moving averages are all of one length: set them beside each other.
        steps = steps * (1.02 + 0.02 * np.arange(len(pairs)))
    axes.errorbar(
        steps,
        middle,
        np.abs(np.stack([middle - low, high - middle])),
        fmt=mark,
        color=colour,
        markersize=4,
        elinewidth=0.8,
        label=WINDOW_NAMES[kind],
    )
