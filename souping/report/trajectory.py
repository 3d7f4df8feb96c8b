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


def trajectory_sections(report: Report) -> tuple[Section, ...]:
    """Nothing if the candidates are not checkpoints of a training run."""
    result = report.trajectory
    if result is None or not result.checkpoints:
        return ()
    unit = report.unit
    folded = nonempty(
        (
            table("Every checkpoint", _members(unit, result.checkpoints)),
            table("By category", loss_table(unit, result.categories)),
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
        f"{count(len(result.windows))} averages on the search split, which chose one of them: "
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
                "For this run, on the test split: "
                f"chosen average minus last checkpoint {difference}."
            )
        if pair.kind == "trainer_average":
            difference = f"{_claimed(unit, pair)}: {_outcome(unit, pair)}"
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
    limits = unit.limits(pair.low, pair.high, pair.level)
    return f"{unit.points(pair.difference, sign=True)} ({limits}, p {p_value(pair.p_shown)})"


def _outcome(unit: Unit, pair: LookDifference) -> str:
    """The verdict of an interval on the chosen average."""
    limits = (unit.gain(pair.low), unit.gain(pair.high))
    if min(limits) > 0:
        return "better"
    return "worse" if max(limits) < 0 else "no difference shown"


def _rows(report: Report, result: TrajectoryResult) -> TableGrid:
    """The chosen average minus each of what it is compared with, beside the spread of the last checkpoints."""
    unit = report.unit
    spread = unit.score(result.spread.test)
    pairs = [pair for pair in report.comparisons or () if pair.kind in OTHERS]
    pairs.sort(key=lambda pair: OTHERS.index(pair.kind))

    def line(label: str, name: str, pair: LookDifference) -> tuple[str, ...]:
        difference = unit.score(pair.difference, sign=True)
        return label, name, difference, whiskers(unit, pair), p_value(pair.p_shown), spread

    lines = [line(ROW_KINDS[pair.kind], clean(pair.b), pair) for pair in pairs]
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


def _members(unit: Unit, members: Sequence[CheckpointRow]) -> TableGrid:
    lines = []
    for member in members:
        training = (count(member.step), count(member.tokens), four_digits(member.rate))
        scores = (unit.score(member.search), unit.score(member.test))
        lines.append((clean(member.name), *training, *scores, four_digits(member.weight)))
    scores_of = [unit.heading(split) for split in ("search", "test")]
    header = ("checkpoint", "step", "tokens", "learning rate", *scores_of, "weight")
    return grid(header, lines)


def _windows(unit: Unit, windows: Sequence[WindowRow]) -> TableGrid:
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
        for pair in (window.last, window.checkpoints_mean):
            line += [unit.score(pair.difference, sign=True), whiskers(unit, pair)]
        lines.append(line)
    header = ["average", "checkpoints", "steps", "tokens", unit.heading("score")]
    for side in SIDES.values():
        header += (side, "interval")
    return grid(header, lines)
