"""What a comparison found: plain data with a JSON form, and its pages on a terminal, as Markdown and as HTML.

The fields of the dataclasses are the schema of `compare.json`. Whatever comes from logs is escaped on a page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

from souping.comparison.estimate import VarianceParts
from souping.comparison.verdict import Word
from souping.core.text import minus
from souping.report.format import clean, escape_html, escape_markdown, p_value

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console

SCHEMA = 1
LONGEST = 1500
"""Characters of a prompt or an answer that are shown."""
Kind = Literal["average", "group", "task", "metric", "length", "cut"]


@dataclass(frozen=True, kw_only=True)
class RowVerdict:
    """A model minus the baseline in one row: the headline, a task, another metric, output length or cut answers.

    Means, differences and margins of scores from 0 to 1 are fractions; others have the unit of their metric.
    `difference` is the model's mean minus the baseline's, whatever the direction of the metric.
    """

    model: str = field(metadata={"doc": "name of the model"})
    baseline: str = field(metadata={"doc": "name of the baseline"})
    name: str = field(metadata={"doc": "`average`, the task or group, `tokens`, `characters` or `cut`"})
    kind: Kind = field(metadata={"doc": "`average` is the headline"})
    metric: str = field(metadata={"doc": "metric of the task"})
    higher_is_better: bool = field(metadata={"doc": "direction of the metric"})
    fraction: bool = field(metadata={"doc": "whether means, differences and the margin are fractions of 1"})
    weight: float = field(metadata={"doc": "share of the headline, 0 for rows that are not averaged"})
    items: int = field(metadata={"doc": "items that are compared"})
    groups: int = field(metadata={"doc": "groups of items"})
    base: float = field(metadata={"doc": "mean of the baseline"})
    mean: float = field(metadata={"doc": "mean of the model"})
    difference: float = field(metadata={"doc": "model minus baseline"})
    low: float = field(metadata={"doc": "lower limit of the interval"})
    high: float = field(metadata={"doc": "upper limit of the interval"})
    level: float = field(metadata={"doc": "level of the interval, after the correction for looks and rows"})
    p_value: float = field(metadata={"doc": "two-sided p-value of no difference, after the same correction"})
    test: str = field(metadata={"doc": "name of the test"})
    discordant: float = field(metadata={"doc": "share of items with different scores"})
    verdict: Word | Literal[""] = field(metadata={"doc": "empty for length and cut answers without a policy"})
    reason: str = field(metadata={"doc": "why it is undecided, if the interval alone does not say so"})
    margin: float | None = field(metadata={"doc": "loss that does not matter"})
    decides: bool = field(metadata={"doc": "whether the exit status depends on it"})
    detectable: float = field(metadata={"doc": "smallest true difference with 80 % power"})
    items_needed: int | None = field(metadata={"doc": "items with which a difference of the margin has 80 % power"})
    missing: int = field(metadata={"doc": "answers of both models that were requested and not scored"})


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The headline difference of two models, without any correction."""

    model: str = field(metadata={"doc": "name of the first model"})
    other: str = field(metadata={"doc": "name of the second model"})
    difference: float = field(metadata={"doc": "first minus second"})
    low: float = field(metadata={"doc": "lower limit"})
    high: float = field(metadata={"doc": "upper limit"})


@dataclass(frozen=True, kw_only=True)
class Flip:
    """An item on which a model and the baseline score differently. Texts are empty if the log has none."""

    model: str = field(metadata={"doc": "name of the model"})
    task: str = field(metadata={"doc": "task of the item"})
    item: str = field(metadata={"doc": "identity of the item within its task"})
    base: float = field(metadata={"doc": "score of the baseline"})
    score: float = field(metadata={"doc": "score of the model"})
    prompt: str = field(default="", metadata={"doc": "prompt"})
    base_output: str = field(default="", metadata={"doc": "answer of the baseline"})
    output: str = field(default="", metadata={"doc": "answer of the model"})


def _finite(value: Any) -> Any:
    """JSON has no infinity: a limit that is unknown becomes null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """A comparison of evaluation logs with a baseline."""

    baseline: str = field(metadata={"doc": "name of the baseline"})
    models: tuple[str, ...] = field(metadata={"doc": "all models, the baseline first"})
    average: str = field(metadata={"doc": "how tasks are averaged"})
    looks: int = field(metadata={"doc": "looks at these items, this one included"})
    status: int = field(metadata={"doc": "exit status: 1 if a deciding row has a verdict of `--fail-on`, else 0"})
    verdicts: tuple[RowVerdict, ...] = field(metadata={"doc": "rows of every model but the baseline"})
    variance: Mapping[str, VarianceParts] = field(metadata={"doc": "{model: variance of its headline difference}"})
    best: tuple[str, ...] = field(metadata={"doc": "models among which the best one is in 95 % of comparisons"})
    pairs: tuple[PairedDifference, ...] = field(metadata={"doc": "each two models, if there are three or more"})
    flips: tuple[Flip, ...] = field(metadata={"doc": "items with different scores, the largest differences first"})
    warnings: tuple[str, ...] = field(metadata={"doc": "what a reader should know"})
    schema: int = field(default=SCHEMA, metadata={"doc": "version of this schema"})

    def rows(self, model: str) -> list[RowVerdict]:
        return [row for row in self.verdicts if row.model == model]

    def headline(self, model: str) -> RowVerdict:
        return self.rows(model)[0]

    def to_json(self, flips: int | None = None) -> str:
        """The content of `compare.json`, with at most so many flips of each model."""
        table: dict[str, Any] = asdict(self)
        kept = self.flips if flips is None else [flip for name in self.models for flip in self.flips_of(name)[:flips]]
        return json.dumps(_finite({**table, "flips": [asdict(flip) for flip in kept]}), indent=1) + "\n"

    def flips_of(self, model: str) -> Sequence[Flip]:
        return [flip for flip in self.flips if flip.model == model]

    def frame(self) -> DataFrame:
        """The verdicts as a pandas DataFrame."""
        from pandas import DataFrame

        return DataFrame([asdict(row) for row in self.verdicts])

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return tables_html(self)


# Pages


@dataclass(frozen=True)
class TextTable:
    """A table of plain text; the first column is a name. Rows of `strong` are those that decide."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: frozenset[int] = frozenset()


def is_left(header: str) -> bool:
    """Whether a column holds words."""
    return header in ("", "metric", "verdict")


def amount(row: RowVerdict, value: float | None, sign: bool = False) -> str:
    if value is None:
        return ""
    plus = "+" if sign else ""
    return minus(f"{round(100 * value, 1) + 0.0:{plus}.1f}" if row.fraction else f"{value:{plus}.4g}")


def limits(row: RowVerdict) -> str:
    """Limits of the interval, with more digits if it would seem to touch 0."""
    scale = 100 if row.fraction else 1
    near = any(0 < abs(scale * value) < 0.05 for value in (row.low, row.high)) and row.fraction
    low, high = (f"{scale * value:+.2g}" if near else amount(row, value, True) for value in (row.low, row.high))
    return minus(f"[{low}, {high}]")


def sentence(row: RowVerdict) -> str:
    """The headline in words."""
    margin = f"{amount(row, row.margin)} points"
    said = {
        "better": f"{row.model} is better than {row.baseline}",
        "much-worse": f"{row.model} is much worse than {row.baseline}, by more than {margin}",
        "worse": f"{row.model} is worse than {row.baseline}",
        "no-worse": f"{row.model} is no worse than {row.baseline}: a loss of {margin} is ruled out",
        "undecided": f"{row.model} against {row.baseline}: undecided" + (f" ({row.reason})" if row.reason else ""),
    }[row.verdict or "undecided"]
    interval = f"{100 * row.level:.4g} % interval {amount(row, row.low, True)} to {amount(row, row.high, True)}"
    return f"{said}. Difference {amount(row, row.difference, True)} points ({interval}, p {_p(row)})."


def power_sentence(row: RowVerdict) -> str:
    """What this comparison can show."""
    least = f"{amount(row, row.detectable)} points"
    if row.margin is None:
        return f"A true difference of {least} has 80 % power here, and so has a margin of {least} if both are equal."
    needed = f"about {row.items_needed:,}" if row.items_needed and row.items_needed <= 100_000 else "more than 100,000"
    return (
        f"A true difference of {least} has 80 % power here. The margin of {amount(row, row.margin)} points needs "
        f"{needed} items; there are {row.items:,}."
    )


def _p(row: RowVerdict) -> str:
    text = p_value(row.p_value)
    return text if text.startswith("<") else f"= {text}"


def tables(result: CompareResult) -> Iterator[TextTable]:
    """A table for each model, then all pairs of models."""
    for model in result.models[1:]:
        rows = result.rows(model)
        cells = [_cells(row) for row in rows]
        shown = [name for name in cells[0] if any(row[name] for row in cells)]
        titles = {"base": result.baseline, "mean": model, "name": ""}
        yield TextTable(
            title=f"{model} minus {result.baseline}",
            header=tuple(titles.get(name, name) for name in shown),
            rows=tuple(tuple(row[name] for name in shown) for row in cells),
            strong=frozenset(place for place, row in enumerate(rows) if row.decides),
        )
    if result.pairs:
        pairs = {(pair.model, pair.other): pair for pair in result.pairs}
        rows_of_pairs = [
            (one, *(_pair_cell(pairs.get((one, other))) for other in result.models[1:])) for one in result.models[:-1]
        ]
        title = "Row minus column, points, without correction"
        yield TextTable(title=title, header=("", *result.models[1:]), rows=tuple(rows_of_pairs))


def _cells(row: RowVerdict) -> dict[str, str]:
    metric = row.metric if row.kind == "task" and row.metric != "score" else ""
    return {
        "name": row.name,
        "metric": metric if row.higher_is_better or not metric else f"{metric} (lower is better)",
        "weight": f"{100 * row.weight:.3g} %" if 0 < row.weight < 1 else "",
        "items": f"{row.items:,}",
        "base": amount(row, row.base),
        "mean": amount(row, row.mean),
        "difference": amount(row, row.difference, True),
        "interval": limits(row),
        "p": p_value(row.p_value),
        "margin": amount(row, row.margin),
        "verdict": row.verdict + (f": {row.reason}" if row.reason else ""),
    }


def _pair_cell(pair: PairedDifference | None) -> str:
    if pair is None:
        return ""
    return minus(f"{100 * pair.difference:+.1f} [{100 * pair.low:+.1f}, {100 * pair.high:+.1f}]")


def lines(result: CompareResult) -> list[str]:
    """The sentences below the tables."""
    found = []
    for model in result.models[1:]:
        found += [sentence(result.headline(model)), power_sentence(result.headline(model))]
    if result.best:
        found.append(f"The best model is among {', '.join(result.best)} (95 %).")
    for model, part in result.variance.items():
        known = {"items": part.items, "their answers": part.answers, "training runs": part.runs}
        shares = [f"{100 * v / part.total:.0f} % {name}" for name, v in known.items() if v is not None and part.total]
        if len(shares) > 1:
            found.append(f"Variance of {model} minus {result.baseline}: {', '.join(shares)}.")
    if result.looks > 1:
        found.append(f"This is look {result.looks} at these items: p-values and intervals are corrected for it.")
    return found


# Terminal


def show(result: CompareResult, console: Console, flips: int = 0) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    for one in tables(result):
        made = Table(
            title=Text(clean(one.title), style="bold"), box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0)
        )
        for place, name in enumerate(one.header):
            side: Literal["left", "right"] = "left" if is_left(name) else "right"
            made.add_column(Text(clean(name)), justify=side, no_wrap=place > 0, overflow="fold")
        for number, row in enumerate(one.rows):
            made.add_row(*(Text(clean(cell)) for cell in row), style="bold" if number in one.strong else None)
        console.print(made)
    for place, line in enumerate(lines(result)):
        console.print(Text(clean(line), style="" if place else "bold"))
    for line in result.warnings:
        console.print(Text(f"note: {clean(line)}", style="dim"))
    for flip in shown_flips(result, flips):
        console.print(Text(f"\n{clean(_flip_title(flip))}", style="bold"))
        for name, text in _texts(flip, result.baseline):
            console.print(Text(f"  {name}: {clean(text)}"))


def as_text(result: CompareResult, width: int = 120) -> str:
    from rich.console import Console

    out = StringIO()
    show(result, Console(file=out, width=width, highlight=False))
    return out.getvalue()


def shown_flips(result: CompareResult, flips: int) -> list[Flip]:
    return [flip for model in result.models[1:] for flip in result.flips_of(model)[:flips]]


def _flip_title(flip: Flip) -> str:
    return minus(f"{flip.model}: {flip.task} {flip.item}: {flip.base:.3g} before, {flip.score:.3g} now")


def _texts(flip: Flip, baseline: str) -> list[tuple[str, str]]:
    parts = (("prompt", flip.prompt), (baseline, flip.base_output), (flip.model, flip.output))
    return [(name, text[:LONGEST] + "..." * (len(text) > LONGEST)) for name, text in parts if text]


# Markdown and HTML


def markdown(result: CompareResult, flips: int = 0) -> str:
    """A section for a pull request or a job summary."""
    blocks = ["## " + escape_markdown(" against ".join((", ".join(result.models[1:]), result.baseline)))]
    blocks += [escape_markdown(line) for line in lines(result)]
    for one in tables(result):
        marks = ["---" if is_left(name) else "---:" for name in one.header]
        rows = [[escape_markdown(cell) for cell in row] for row in (one.header, *one.rows)]
        for number in one.strong:
            rows[number + 1][0] = f"**{rows[number + 1][0]}**"
        text = [f"| {' | '.join(row)} |" for row in (rows[0], marks, *rows[1:])]
        blocks += [f"**{escape_markdown(one.title)}**", "\n".join(text)]
    blocks += [f"> {escape_markdown(line)}" for line in result.warnings]
    for flip in shown_flips(result, flips):
        texts = [f"{escape_markdown(name)}: {escape_markdown(text)}" for name, text in _texts(flip, result.baseline)]
        blocks += [f"**{escape_markdown(_flip_title(flip))}**", *texts]
    return "\n\n".join(blocks) + "\n"


def tables_html(result: CompareResult) -> str:
    return "\n".join(_html_table(one) for one in tables(result))


def _html_table(one: TextTable) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        sides = [' class="left"' if is_left(name) else "" for name in one.header]
        return "".join(f"<{tag}{side}>{escape_html(cell)}</{tag}>" for side, cell in zip(sides, row, strict=True))

    marks = [' class="strong"' if number in one.strong else "" for number in range(len(one.rows))]
    rows = "\n".join(f"<tr{mark}>{cells(row, 'td')}</tr>" for mark, row in zip(marks, one.rows, strict=True))
    head = f"<thead><tr>{cells(one.header, 'th')}</tr></thead>"
    title = f"<h2>{escape_html(one.title)}</h2>"
    return f'{title}<div class="scroll"><table>{head}<tbody>\n{rows}</tbody></table></div>'


def page(result: CompareResult, flips: int = 0) -> str:
    """One HTML file without scripts and without anything from elsewhere."""
    title = escape_html(" against ".join((", ".join(result.models[1:]), result.baseline)))
    style = files("souping.report").joinpath("style.css").read_text("utf-8")
    body = [f"<h1>{title}</h1>", *(f"<p>{escape_html(line)}</p>" for line in lines(result))]
    body += [chart([row for row in result.rows(model) if row.fraction]) for model in result.models[1:]]
    body.append(tables_html(result))
    if result.warnings:
        notes = "".join(f"<li>{escape_html(line)}</li>" for line in result.warnings)
        body.append(f'<div class="warnings"><ul>{notes}</ul></div>')
    for flip in shown_flips(result, flips):
        texts = "".join(
            f"<p>{escape_html(name)}</p><pre>{_escaped_lines(text)}</pre>"
            for name, text in _texts(flip, result.baseline)
        )
        body.append(f"<details><summary>{escape_html(_flip_title(flip))}</summary>{texts}</details>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    inner = "\n".join([f"<head>{head}<style>{style}</style></head><body><main>", *body, "</main></body>"])
    return f"<!doctype html><html lang=en>{inner}</html>\n"


def _escaped_lines(text: str) -> str:
    return "\n".join(escape_html(line) for line in text.splitlines())


def chart(rows: Sequence[RowVerdict], width: int = 720, height: int = 24) -> str:
    """Differences with their intervals as SVG, in points; a dashed line is the margin."""
    ends = [0.0, *(100 * value for row in rows for value in (row.low, row.high, -(row.margin or 0.0)))]
    low, high = min(ends), max(ends)
    left, span = 190, max(high - low, 1e-6)
    deep = height * len(rows) + 30

    def x(value: float) -> float:
        return left + (value - low) / span * (width - left - 20)

    def text(place: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{place:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape_html(words)}</text>'

    def line(x1: float, x2: float, y1: float, y2: float, more: str = "") -> str:
        return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="currentColor"{more}/>'

    parts = [line(x(0), x(0), 0, deep - 26), *(_mark(row, n, height, x, text, line) for n, row in enumerate(rows))]
    parts += [text(x(value), deep - 10, minus(f"{value:+.1f}") if value else "0") for value in sorted({low, 0.0, high})]
    label = f"{rows[0].model} minus {rows[0].baseline}, points"
    return (
        f'<figure><svg viewBox="0 0 {width} {deep}" style="max-width:{width}px" font-size="12" fill="currentColor" '
        f'role="img" aria-label="{escape_html(label)}">{"".join(parts)}</svg>'
        f"<figcaption>{escape_html(label)}; dashed: the margin</figcaption></figure>"
    )


def _mark(
    row: RowVerdict,
    number: int,
    height: int,
    x: Callable[[float], float],
    text: Callable[..., str],
    line: Callable[..., str],
) -> str:
    y = height * (number + 0.5)
    name = row.name if len(row.name) <= 28 else row.name[:27] + "\N{HORIZONTAL ELLIPSIS}"
    parts = [text(180, y + 4, name, "end"), line(x(100 * row.low), x(100 * row.high), y, y, ' stroke-width="2"')]
    parts.append(f'<circle cx="{x(100 * row.difference):.1f}" cy="{y:.1f}" r="4"/>')
    if row.margin is not None:
        place = x(-100 * row.margin)
        parts.append(line(place, place, y - height / 2, y + height / 2, ' stroke-dasharray="3 3"'))
    return "".join(parts)
