"""What a comparison found: plain data with a JSON form, and its pages on a terminal, as Markdown and as HTML.

The fields of the dataclasses are the schema of `compare.json`. Whatever comes from logs is escaped on a page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, replace
from functools import cached_property
from io import StringIO
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

from souping.comparison.row_verdict import MISSING, TRUNCATED, Word
from souping.core.reading import to_json
from souping.core.text import confidence, listed, minus
from souping.core.types import Names, UserError, frozen
from souping.core.unit import POINTS
from souping.report.cells import Section, TableCell, grid, nonempty
from souping.report.format import escape_html, p_value, short
from souping.report.render import document, section_html, show_sheet
from souping.statistics.comparison import VarianceParts
from souping.statistics.power import items_in_words

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA_VERSION = 1
Difference = tuple[float, float, float]
"""Difference, lower and upper limit."""
SHOWN_TEXT_CHARS = 1500
"""Characters of a prompt or an answer that are shown."""
ROW = 38
"""Height of a chart's row: the name and, below it, the interval."""
AmountKind = Literal["average", "group", "task", "metric", "length", "cut"]


@frozen
class RowVerdict:
    """A model minus the baseline in one row: the average row, a task, another metric, output length or cut answers.

    Means, differences and margins of scores from 0 to 1 are fractions; others have the unit of their metric.
    `difference` is the model's mean minus the baseline's, whatever the direction of the metric.
    """

    model: str
    """name of the model"""
    baseline: str
    """name of the baseline"""
    name: str
    """`average`, the task or group, `tokens`, `characters` or `cut`"""
    kind: AmountKind
    """`average` is the average row"""
    metric: str
    """metric of the task"""
    higher_is_better: bool
    """direction of the metric"""
    fraction: bool
    """whether means, differences and the margin are fractions of 1"""
    weight: float
    """share of the average row, 0 for rows that are not averaged"""
    items: int
    """items that are compared"""
    groups: int
    """groups of items"""
    baseline_mean: float
    """mean of the baseline"""
    mean: float
    """mean of the model"""
    difference: float
    """model minus baseline"""
    low: float
    """lower limit of the interval"""
    high: float
    """upper limit of the interval"""
    level: float
    """level of the interval, after the correction for looks and rows"""
    p_value: float
    """two-sided p-value of no difference, after the same correction"""
    test: str
    """name of the test"""
    discordant: float
    """share of items with different scores"""
    verdict: Word | Literal[""]
    """empty for length and cut answers without a policy"""
    reason: str
    """why it is undecided, if the interval alone does not say so"""
    margin: float | None
    """loss that does not matter"""
    required: bool
    """whether the exit status depends on it"""
    detectable: float
    """smallest true difference with 80 % power"""
    detectable_one_more_run: float | None
    """the same with one more run of each model; null if there is one run per model"""
    detectable_twice_items: float | None
    """the same on twice as many items; null if there is one run per model"""
    items_needed: int | None
    """items with which a difference of the margin has 80 % power; null if more runs are needed instead"""
    missing: int
    """items of both models with an answer that was requested and not scored"""


@frozen
class RunNoise:
    """How much several runs of one model differ among themselves: the noise floor of its differences."""

    model: str
    """name of the model"""
    runs: int
    """number of its runs"""
    flipped: float
    """share of items with different scores in two of its runs, the mean over pairs of runs"""
    spread: float
    """largest difference of its average between two runs"""
    difference: float | None
    """difference of its average to the baseline's, null for the baseline"""


@frozen
class Flip:
    """An item on which a model and the baseline score differently. Texts are empty if the log has none."""

    model: str
    """name of the model"""
    task: str
    """task of the item"""
    item: str
    """identity of the item within its task"""
    baseline_score: float
    """score of the baseline"""
    score: float
    """score of the model"""
    prompt: str = ""
    """prompt"""
    baseline_output: str = ""
    """answer of the baseline"""
    output: str = ""
    """answer of the model"""


@frozen
class CompareResult:
    """A comparison of evaluation logs with a baseline."""

    baseline: str
    """name of the baseline"""
    models: Names
    """all models, the baseline first"""
    average: str
    """how tasks are averaged"""
    look: int
    """number of the look at these items"""
    look_note: str
    """what it costs, or that looks are not counted; empty for a first look"""
    status: int
    """exit status: 1 if a required row has a verdict of `--fail-on`, else 0"""
    fail_on: tuple[Word, ...]
    """verdicts of required rows that make `status` 1"""
    verdicts: tuple[RowVerdict, ...]
    """rows of every model but the baseline"""
    variance: Mapping[str, VarianceParts]
    """{model: variance of its difference in the average row}"""
    runs: tuple[RunNoise, ...]
    """models with several runs"""
    best: Names
    """models among which the best one is in 95 % of comparisons; empty of two models, or if too much is truncated"""
    pairs: Mapping[str, Mapping[str, Difference]]
    """{model: {other: [difference, low, high]}} of the average row, without correction"""
    flips: tuple[Flip, ...]
    """items with different scores, the largest differences first"""
    warnings: tuple[str, ...]
    """what a reader should know"""
    pages: Mapping[str, str] = field(default_factory=dict)
    """{page beside this file: its SHA-256}, by which `--out` knows its own files"""
    schema: int = SCHEMA_VERSION
    """version of this schema"""

    def rows(self, model: str) -> list[RowVerdict]:
        """The rows of a model, the average row first."""
        return [row for row in self.verdicts if row.model == model]

    def average_row(self, model: str) -> RowVerdict:
        return self.rows(model)[0]

    def to_json(self, flips: int | None = None) -> str:
        """The content of `compare.json`, with at most this many flips of each model; None: with all."""
        largest: list[Flip] = []
        for model in self.models:
            largest.extend(self.flips_of[model][:flips])
        return json.dumps(to_json(asdict(replace(self, flips=tuple(largest)))), indent=1) + "\n"

    @cached_property
    def flips_of(self) -> dict[str, list[Flip]]:
        """{model: its flips, the largest differences first}"""
        flips_of: dict[str, list[Flip]] = {model: [] for model in self.models}
        for flip in self.flips:
            flips_of[flip.model].append(flip)
        return flips_of

    def frame(self) -> DataFrame:
        """The verdicts as a pandas DataFrame."""
        try:
            from pandas import DataFrame
        except ImportError:
            raise UserError("frame() needs pandas", fix="pip install pandas") from None
        return DataFrame([asdict(row) for row in self.verdicts])

    def __repr__(self) -> str:
        from rich.console import Console

        out = StringIO()
        show_sheet(comparison_sections(self), Console(file=out, width=120, highlight=False))
        return out.getvalue()

    def _repr_html_(self) -> str:
        # Notebooks show this.
        return "\n".join(map(section_html, comparison_sections(self)))


# Pages


def comparison_sections(result: CompareResult, flips: int = 0) -> list[Section]:
    """What every page shows: a section per model, all pairs of models, notes, and at most `flips` flips per model.

    The first model is the baseline, which the others are compared with.
    """
    models = result.models[1:]
    sections: list[Section | None] = [_model(result, model) for model in models]
    if result.runs:
        lines = tuple(_run_noise(result, noise) for noise in result.runs)
        sections.append(Section("Runs of one model", lines))
    if result.pairs:
        sections.append(_pairs(result))
    sections.append(Section("Notes", result.warnings))
    flipped: list[Section] = []
    for model in models:
        flipped.extend(map(_flip, result.flips_of[model][:flips]))
    sections.append(Section("Items that flipped", folded=tuple(flipped)))
    return list(nonempty(sections))


def _model(result: CompareResult, model: str) -> Section:
    """The section of a model: its verdict, what the comparison can show, and a table of its rows."""
    rows = result.rows(model)
    lines = [sentence(rows[0]), next_step(rows[0]), power_sentence(rows[0])]
    failed = [row for row in rows if row.required and row.verdict in result.fail_on]
    if failed:
        words = listed(f"{row.name} is {row.verdict}" for row in failed)
        lines.insert(0, f"Failed: {words} (exit status 1, --fail-on).")
    shares = _variance_shares(result.variance[model])
    if len(shares) > 1:
        lines.append(f"Variance of the difference: {', '.join(shares)}.")
    if result.look_note:
        lines.append(result.look_note)

    cells = [_cells(row) for row in rows]
    # A metric that all rows share is said once, above the table.
    metrics = {line["metric"] for line in cells} - {""}
    if len(metrics) == 1:
        lines.append(f"Metric: {metrics.pop()}.")
        for line in cells:
            line["metric"] = ""
    # Empty columns are left out.
    columns = [name for name in cells[0] if any(map(itemgetter(name), cells))]
    headings = {"baseline_mean": result.baseline, "mean": model, "name": ""}
    table = grid(
        [headings.get(name, name) for name in columns],
        [list(map(line.__getitem__, columns)) for line in cells],
        left=[place for place, name in enumerate(columns) if name in ("name", "metric", "verdict")],
        strong=[place for place, row in enumerate(rows) if row.required],
    )
    return Section(f"{model} minus {result.baseline}", tuple(lines), grids=(table,))


def _variance_shares(variance: VarianceParts) -> list[str]:
    """`80 % items` and the like: the parts of a difference's variance that the logs can tell apart."""
    if not variance.total:
        return []
    shares = []
    for name, part in (
        ("items", variance.items),
        ("their answers", variance.answers),
        ("runs", variance.runs),
    ):
        if part is not None:
            shares.append(f"{100 * part / variance.total:.0f} % {name}")
    return shares


def _run_noise(result: CompareResult, noise: RunNoise) -> str:
    """A sentence on how far the runs of a model differ, beside the model's difference to the baseline."""
    # For the unit, which all models share.
    average_row = result.verdicts[0]
    text = (
        f"{noise.model}: {noise.runs} runs. Two of them differ in {100 * noise.flipped:.1f} % of the items, "
        f"and their averages by up to {_points(average_row, noise.spread)}"
    )
    # The baseline itself.
    if noise.difference is None:
        return f"{text}."
    difference = _points(average_row, noise.difference, sign=True)
    return f"{text}; the difference to {result.baseline} is {difference}."


def _pairs(result: CompareResult) -> Section:
    """The section on the differences of each two of three or more models."""
    # For the unit, which all models share.
    average_row = result.verdicts[0]
    line = f"Row minus column, in {_unit(average_row)}:"
    if result.best:
        best = f"The best model is among {', '.join(result.best)} (in 95 % of comparisons)."
        line = f"{best} {line}"
    columns = result.models[1:]
    rows = []
    for model, differences in result.pairs.items():
        cells = [model]
        for column in columns:
            # Each pair stands once, above the diagonal.
            cell = ""
            if column in differences:
                difference, low, high = differences[column]
                shown = _difference(average_row, difference, low, high)
                cell = f"{shown} [{_limits(average_row, low, high)}]"
            cells.append(cell)
        rows.append(cells)
    return Section("All pairs, without correction", (line,), grids=(grid(["", *columns], rows),))


def _flip(flip: Flip) -> Section:
    """The section of an item: its prompt and both answers, as far as the logs have them."""
    lines = []
    texts = (("prompt", flip.prompt), ("baseline", flip.baseline_output), (flip.model, flip.output))
    for name, text in texts:
        if text:
            ellipsis = "..." if len(text) > SHOWN_TEXT_CHARS else ""
            lines.append(f"{name}: {text[:SHOWN_TEXT_CHARS]}{ellipsis}")
    title = f"{flip.model}: {flip.task} {flip.item}: {flip.baseline_score:.3g} before, {flip.score:.3g} now"
    return Section(title, tuple(lines))


def _cells(row: RowVerdict) -> dict[str, str | TableCell]:
    """{column: cell} of a row. The metric is empty if the row's name or kind says it."""
    metric = row.metric
    in_name = metric == "score" or row.name.endswith(f" {metric}")
    if in_name or row.kind in ("average", "length", "cut"):
        metric = ""
    elif metric and not row.higher_is_better:
        metric = f"{metric} (lower is better)"
    return {
        "name": row.name,
        "metric": metric,
        "weight": f"{100 * row.weight:.3g} %" if 0 < row.weight < 1 else "",
        "items": f"{row.items:,}",
        "baseline_mean": amount(row, row.baseline_mean),
        "mean": amount(row, row.mean),
        "difference": TableCell(
            _difference(row, row.difference, row.low, row.high), _limits(row, row.low, row.high)
        ),
        "p": p_value(row.p_value),
        "margin": amount(row, row.margin),
        "verdict": f"{row.verdict}: {row.reason}" if row.reason else row.verdict,
    }


def amount(row: RowVerdict, value: float | None, sign: bool = False) -> str:
    """A mean or a difference in the unit of the row (`78.1` for a fraction), with `sign` `+1.2`; empty for None."""
    if value is None:
        return ""
    if row.fraction:
        return POINTS.score(value, sign)
    spec = "+.4g" if sign else ".4g"
    return minus(format(value + 0.0, spec))  # never -0


def _limits(row: RowVerdict, low: float, high: float, middle: str = ", ") -> str:
    """Limits of a difference; in points they show on which side of 0 they are, however near."""
    if row.fraction:
        return f"{POINTS.end(low, sign=True)}{middle}{POINTS.end(high, sign=True)}"
    return f"{_difference(row, low, low, high)}{middle}{_difference(row, high, low, high)}"


def _difference(row: RowVerdict, value: float, low: float, high: float) -> str:
    """A difference, or a limit of it, with a sign. In other units than points it has as many decimals as the first
    two digits of the interval's width."""
    width = high - low
    if row.fraction or not 0 < width < math.inf:
        return amount(row, value, sign=True)
    digits = max(0, 1 - math.floor(math.log10(width)))
    return minus(format(value + 0.0, f"+.{digits}f"))


def _unit(row: RowVerdict) -> str:
    """Unit of a row's differences: points, or the name of its metric."""
    return "points" if row.fraction else row.metric


def _points(row: RowVerdict, value: float | None, sign: bool = False) -> str:
    """`1.2 points`, or the amount in the row's other unit."""
    return f"{amount(row, value, sign)} {_unit(row)}"


def verdict_in_words(row: RowVerdict) -> str:
    """`cand is better than base`: the verdict on a row without its numbers, but for the margin."""
    margin = _points(row, row.margin)
    reason = f" ({row.reason})" if row.reason else ""
    verdicts = {
        "better": f"{row.model} is better than {row.baseline}",
        "much-worse": f"{row.model} is much worse than {row.baseline}, by more than {margin}",
        "worse": f"{row.model} is worse than {row.baseline}",
        "no-worse": f"{row.model} is no worse than {row.baseline}: a loss of {margin} is ruled out",
    }
    undecided = f"{row.model} against {row.baseline}: undecided{reason}"
    return verdicts.get(row.verdict, undecided)


def next_step(row: RowVerdict) -> str:
    """What to do with the verdict on the average row."""
    steps = {
        "better": f"use {row.model} if no loss in the table matters",
        "no-worse": f"use {row.model} if it has other advantages and no loss in the table matters",
        "worse": f"keep {row.baseline}",
        "much-worse": f"keep {row.baseline}",
    }
    undecided = f"add items or runs, or keep {row.baseline}"
    if row.margin is None:
        undecided = f"name the loss that does not matter (--margin), or {undecided}"
    if row.reason in (MISSING, TRUNCATED):
        undecided = "evaluate again, so that no answer is missing or truncated"
    return f"Next: {steps.get(row.verdict, undecided)}."


def sentence(row: RowVerdict) -> str:
    """The verdict on a row in words, with the difference, its interval and p-value."""
    p = p_value(row.p_value)
    equals = "" if p.startswith("<") else "= "
    interval = f"{confidence(row.level)} interval {_limits(row, row.low, row.high, ' to ')}"
    difference = f"{_difference(row, row.difference, row.low, row.high)} {_unit(row)}"
    return f"{verdict_in_words(row)}. Difference {difference} ({interval}, p {equals}{p})."


def power_sentence(row: RowVerdict) -> str:
    """Sentences on the power of the comparison: the difference that it can show, and items that the margin needs."""
    if row.fraction and row.detectable >= 1:
        return f"{row.items:,} items cannot show any difference with 80 % power."
    least = _points(row, row.detectable)
    power = f"A true difference of {least} has 80 % power here"
    if row.detectable_one_more_run is not None:
        more_run = _points(row, row.detectable_one_more_run)
        more_items = _points(row, row.detectable_twice_items)
        power = (
            f"{power} ({more_run} with one more run of each model, {more_items} on twice the items)"
        )
    if row.margin is None:
        return f"{power}, and so has a margin of {least} if both are equal."
    margin = _points(row, row.margin)
    if row.items_needed is None:
        return f"{power}. No number of items is enough for the margin of {margin}: add runs."
    needed = items_in_words(row.items_needed)
    return f"{power}. The margin of {margin} needs {needed} items; there are {row.items:,}."


def comparison_title(result: CompareResult) -> str:
    """The verdict on each model, in one line."""
    return "; ".join(verdict_in_words(result.average_row(model)) for model in result.models[1:])


def comparison_page(result: CompareResult, flips: int = 0) -> str:
    """The comparison as one HTML file without scripts or links to other files, with at most `flips` flips per model."""
    body = [f"<h1>{escape_html(comparison_title(result))}</h1>"]
    charts = []
    for model in result.models[1:]:
        # Rows that can share an axis: other metrics have other units.
        rows = []
        for row in result.rows(model):
            if row.fraction or row.kind in ("average", "group", "task"):
                rows.append(row)
        charts.append(chart(rows))
    body.append(f'<div class="row">{"".join(charts)}</div>')
    body.extend(map(section_html, comparison_sections(result, flips)))
    return document(comparison_title(result), body)


def chart(rows: Sequence[RowVerdict]) -> str:
    """Differences with their intervals as SVG; a dashed line is the margin."""
    # The margin is a loss: on which side of 0 it is.
    loss = -1 if rows[0].higher_is_better else 1
    # Everything that is drawn lies between `low` and `high`.
    values = [0.0]
    for row in rows:
        margin = loss * (row.margin or 0.0)
        values += [row.low, row.high, margin]
    low = min(values)
    high = max(values)
    bottom = ROW * len(rows)

    # Horizontal place of a value: the chart has 420 units of 480, and its numbers need the others.
    def x(value: float) -> str:
        return f"{30 + (value - low) / max(high - low, 1e-8) * 420:.1f}"

    marks = [f'<path d="M{x(0)} 0V{bottom + 4}"/>']
    for place, row in enumerate(rows):
        y = ROW * place + 28
        name = escape_html(short(row.name))
        outline = 'stroke="var(--page)" stroke-width="4" paint-order="stroke"'
        marks.append(f'<text x="6" y="{y - 12}" {outline}>{name}</text>')
        interval = f"M{x(row.low)} {y}H{x(row.high)}"
        marks.append(f'<path d="{interval}" stroke-width="2"/>')
        marks.append(f'<circle cx="{x(row.difference)}" cy="{y}" r="4"/>')
        if row.margin is not None:
            tick = f"M{x(loss * row.margin)} {y - 8}v16"
            marks.append(f'<path d="{tick}" stroke-dasharray="3 3"/>')
    for value in sorted({low, 0.0, high}):
        number = amount(rows[0], value, sign=True)
        marks.append(f'<text x="{x(value)}" y="{bottom + 20}" text-anchor="middle">{number}</text>')
    return _figure(rows, bottom + 30, "".join(marks))


def _figure(rows: Sequence[RowVerdict], height: int, marks: str) -> str:
    """An HTML figure of SVG `marks` with a caption that names the models and the unit."""
    dashed = "; dashed: the margin" if any(row.margin is not None for row in rows) else ""
    label = escape_html(f"{rows[0].model} minus {rows[0].baseline}, {_unit(rows[0])}{dashed}")
    # The text has 12 pixels, on a phone 9.
    style = 'style="max-width:480px;min-width:360px" font-size="12" fill="currentColor"'
    # Lines take the colour of the page's text.
    drawing = marks.replace("<path", '<path stroke="currentColor"')
    svg = f'<svg viewBox="0 0 480 {height}" {style} role="img" aria-label="{label}">{drawing}</svg>'
    box = f'<div class="scroll" tabindex="0">{svg}</div>'
    return f"<figure>{box}<figcaption>{label}</figcaption></figure>"
