"""The report's sections on a training run: its checkpoints, the chosen average, and averages of other windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from souping.core.unit import Unit
from souping.report.cells import Section, TableGrid, grid, nonempty, table
from souping.report.content import (
    CheckpointRow,
    LookDifference,
    Report,
    TrajectoryResult,
    WindowRow,
)
from souping.report.format import ROW_KINDS, clean, count, four_digits, p_value
from souping.report.tables import confidence_of, loss_table, whiskers

OTHERS = ("last", "best_candidate", "trainer_best", "trainer_average", "decayed", "shuffled")
"""Kinds of the rows that an average of checkpoints is compared with, in this order."""
WINDOW_NAMES: Mapping[str, str] = {
    "uniform": "equal weights",
    "minus_sqrt": "minus-sqrt",
    "ema": "moving average of all",
}
"""{kind of a window: its name}"""
SIDES = {"last": "minus the last checkpoint", "checkpoints_mean": "minus the mean of its members"}
"""{field of a `WindowRow`: title of its difference}"""


def of_checkpoints(report: Report) -> tuple[Section, ...]:
    """The sections on a training run; empty if the candidates are not checkpoints of one."""
    result = report.trajectory
    if result is None or not result.checkpoints:
        return ()
    unit = report.unit
    folded = nonempty(
        (
            table("Every checkpoint", _checkpoint_table(unit, result.checkpoints)),
            table("By category", loss_table(report, result.categories)),
        )
    )
    training = Section(
        "The training run",
        tuple(_lines(report, result)),
        picture="trajectory",
        grids=(_comparison_table(report, result),),
        folded=folded,
    )
    if not result.windows:
        return (training,)
    tried = (
        f"{count(len(result.windows))} averages on the search split, which chose one of them: "
        "its score here is optimistic."
    )
    line = f"{tried} Bands and whiskers hold for all averages at once."
    numbers = nonempty((table("The averages in numbers", _window_table(unit, result.windows)),))
    return training, Section("Averages by window", (line,), picture="windows", folded=numbers)


def versus_last(report: Report) -> str:
    """A sentence on the soup of a training run's checkpoints against the last one; empty if it was not compared, or is
    the best candidate, of which the verdict speaks."""
    last = report.against("last")
    best = report.against("best_candidate")
    if report.trajectory is None or last is None or report.dry_run:
        return ""
    if best is not None and best.b == last.b:
        return ""
    return f"Soup minus {clean(last.b)}, the last checkpoint: {_claimed(report.unit, last)}."


def _lines(report: Report, result: TrajectoryResult) -> list[str]:
    """Sentences on the chosen average: its gain over the last checkpoint, and what that is to be compared with."""
    unit = report.unit
    lines = [*result.sentences]
    for pair in report.comparisons or ():
        if pair.kind == "last":
            difference = _claimed(unit, pair)
            lines.append(
                "For this run, on the test split: "
                f"chosen average minus last checkpoint {difference}."
            )
        if pair.kind == "trainer_average":
            difference = f"{_claimed(unit, pair)}: {_better_or_worse(unit, pair)}"
            lines.append(f"Average minus the trainer's own, {clean(pair.b)}: {difference}.")
    spread = result.spread
    if spread.test is not None:
        deviation = f"a standard deviation of {unit.points(spread.test)}"
        lines.append(f"The last {count(spread.count)} checkpoints differ by {deviation}.")
    further = [unit.score(difference, sign=True) for difference in result.runs.differences]
    if further:
        recipe = "A claim on the recipe takes two."
        if result.runs.claim is not None:
            recipe = f"With the run as the unit: {_claimed(unit, result.runs.claim)}."
        runs = f"The same weights on {len(further)} more training run(s)"
        lines.append(f"{runs}: {', '.join(further)}. {recipe}")
    return lines


def _claimed(unit: Unit, pair: LookDifference) -> str:
    """`+1.2 points (95 % interval +0.4 to +2.0, p 0.012)`"""
    limits = unit.limits(pair.low, pair.high, pair.level)
    return f"{unit.points(pair.difference, sign=True)} ({limits}, p {p_value(pair.p_shown)})"


def _better_or_worse(unit: Unit, pair: LookDifference) -> str:
    """Whether the chosen average is better or worse: on which side of 0 the whole interval is."""
    limits = (unit.gain(pair.low), unit.gain(pair.high))
    if min(limits) > 0:
        return "better"
    return "worse" if max(limits) < 0 else "no difference shown"


def _comparison_table(report: Report, result: TrajectoryResult) -> TableGrid:
    """The chosen average minus each model that it is compared with, beside the last checkpoints' deviation."""
    unit = report.unit
    spread = unit.score(result.spread.test)
    pairs = [pair for pair in report.comparisons or () if pair.kind in OTHERS]
    pairs.sort(key=lambda pair: OTHERS.index(pair.kind))

    def line(label: str, name: str, pair: LookDifference) -> tuple[str, ...]:
        difference = unit.score(pair.difference, sign=True)
        return label, name, difference, whiskers(unit, pair), p_value(pair.p_shown), spread

    lines = [line(ROW_KINDS[pair.kind], clean(pair.b), pair) for pair in pairs]
    # A mean of scores, not a checkpoint, so it has no name.
    lines.append(line("mean of its members' scores", "", result.checkpoints_mean))
    header = (
        "average minus",
        "checkpoint",
        f"difference, {unit.name}",
        f"{confidence_of(pairs)} interval",
        "p",
        "SD of the last checkpoints",
    )
    return grid(header, lines, left=(0, 1))


def _checkpoint_table(unit: Unit, checkpoints: Sequence[CheckpointRow]) -> TableGrid:
    """One line per checkpoint: where in training it is, its scores, and its weight in the average."""
    lines = []
    for row in checkpoints:
        training = (count(row.step), count(row.tokens), four_digits(row.rate))
        scores = (unit.score(row.search), unit.score(row.test))
        lines.append((clean(row.name), *training, *scores, four_digits(row.weight)))
    splits = (unit.heading("search"), unit.heading("test"))
    header = ("checkpoint", "step", "tokens", "learning rate", *splits, "weight")
    return grid(header, lines)


def _window_table(unit: Unit, windows: Sequence[WindowRow]) -> TableGrid:
    """One line per average: its length, its score, and its differences with their intervals."""
    lines = []
    for window in windows:
        name = WINDOW_NAMES.get(window.kind, clean(window.kind))
        if window.alpha:
            name = f"{name}, alpha {four_digits(window.alpha)}"
        line = [
            name,
            count(window.count),
            count(window.steps),
            count(window.tokens),
            unit.score(window.objective),
        ]
        # In the order of `SIDES`.
        for pair in (window.last, window.checkpoints_mean):
            line += [unit.score(pair.difference, sign=True), whiskers(unit, pair)]
        lines.append(line)
    header = ["average", "checkpoints", "steps", "tokens", unit.heading("score")]
    for side in SIDES.values():
        header += (side, "interval")
    return grid(header, lines)
