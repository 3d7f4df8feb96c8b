"""Files of a run, with the selection and the trials that they hold.

Each file appears whole or not at all. A date is only in the `provenance` of report.json and at the foot of the page.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from souping.core.fields import MOST_RUN_FILE_BYTES, checked, load_json
from souping.core.files import sized, write_atomically
from souping.core.parsing import read_yaml
from souping.core.reading import read, to_json
from souping.core.text import first_line
from souping.core.types import (
    Json,
    JsonObject,
    Names,
    Result,
    ScoreMatrix,
    SearchEnd,
    Selection,
    StopReason,
    Trial,
    UserError,
)
from souping.core.unit import Unit
from souping.report.analysis_results import NO_RESULTS, AnalysisResult, drawings, read_content
from souping.report.checkpoint_plots import checkpoint_scores, window_bands
from souping.report.content import (
    SCHEMA,
    CorrelationTable,
    Report,
    RouterFile,
    SearchSummary,
    SelectionFile,
    SelectionSummary,
    TrialRow,
)
from souping.report.format import clean
from souping.report.plots import Drawing, category_gains, forest, heatmap, landscape
from souping.report.report_page import markdown, page
from souping.report.tables import ingredients

FORMULA = ("=", "+", "-", "@")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
LONGEST_CONFIG_BYTES = 200_000
"""Bytes of a configuration: more takes YAML longer than anybody waits."""


class RunConfig(TypedDict, total=False):
    """What is read of a config.yaml before its components are built."""

    store: str
    analysis: dict[str, Any]


def write_report(report: Report, trials: Sequence[TrialRow], run_dir: Path) -> list[Path]:
    """Write report.json, report.md, report.html and plots/*.png into `run_dir`; the paths, in that order.

    Raises:
        OSError: the folder cannot be written.
    """
    pictures = draw(report, trials)
    pages = {
        "report.json": as_json(report),
        "report.md": markdown(report, trials),
        "report.html": page(report, trials, pictures),
    }
    paths = [write_atomically(run_dir / name, text.encode()) for name, text in pages.items()]
    for drawing in pictures:
        path = run_dir / "plots" / f"{drawing.name}.png"
        paths.append(write_atomically(path, drawing.png()))
    return paths


def draw(report: Report, trials: Sequence[TrialRow]) -> list[Drawing]:
    """The pictures that this report has the numbers for."""
    pictures = [
        forest(report),
        category_gains(report),
        heatmap(report),
        landscape(report, trials),
        checkpoint_scores(report),
        window_bands(report),
        *drawings(report),
    ]
    return [picture for picture in pictures if picture is not None]


def as_json(value: Json | Report | RouterFile | SelectionFile) -> str:
    """JSON with sorted keys; floats round-trip, NaN and infinities become null, numpy values plain ones."""
    return json.dumps(to_json(value), sort_keys=True, indent=2, allow_nan=False) + "\n"


def write_trials(trials: Sequence[TrialRow], report: Report, path: Path) -> Path:
    """trials.csv: one line per trial with objective, weights (`weight:NAME`), categories (`score:NAME`) and counts."""
    names = ingredients(report, trials)
    # A dict keeps the order in which categories are first scored.
    categories = dict[str, None]()
    for trial in trials:
        categories |= dict.fromkeys(trial.categories)
    columns = [f"weight:{name}" for name in names]
    columns += [f"score:{name}" for name in categories]
    table: list[list[Json]] = [["number", "recipe_id", "objective", *columns, "items", "reused"]]
    for trial in trials:
        values = [trial.weights.get(name, 0.0) for name in names]
        values += map(trial.categories.get, categories)
        head = (trial.number, trial.recipe_id, trial.objective)
        table.append([*head, *values, trial.items, trial.reused])
    return write_csv(path, table)


def write_csv(path: Path, table: Sequence[Sequence[Json]]) -> Path:
    """Write the lines of a table, the header first, as CSV; the path."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for line in table:
        writer.writerow(map(csv_cell, line))
    return write_atomically(path, stream.getvalue().encode("utf-8", "replace"))


def read_report(path: Path, results: Mapping[str, type[AnalysisResult]] = NO_RESULTS) -> Report:
    """A report.json. `results` are {analysis: class of its result}, as `read_content` takes them.

    Raises:
        UserError: it is not a report, or another version wrote it.
        OSError: it cannot be read.
    """
    table = load_json(path, dict[str, Any], most_bytes=MOST_RUN_FILE_BYTES)
    if table.get("schema") != SCHEMA:
        provenance = read(Report, table).provenance
        raise of_another_version(path, provenance.command if provenance else "")
    return read_content(table, results)


def of_another_version(path: Path, command: str) -> UserError:
    """The error of a run's file that another version of souping wrote; `command` made the run, if it is known."""
    return UserError(
        f"{path}: another version of souping wrote it; repeat the run, whose stored answers are found",
        fix=clean(command),
    )


def read_run_config(path: Path) -> RunConfig:
    """A run's config.yaml as plain data.

    Raises:
        UserError: it cannot be read.
    """
    try:
        value = read_yaml(sized(path, LONGEST_CONFIG_BYTES).read_bytes())
    except (ImportError, UserError):
        # Something is not installed, or the message is complete.
        raise
    except Exception as error:  # PyYAML's constructors raise whatever int() and others do
        raise UserError(f"{path}: not the configuration of a run: {first_line(error)}") from error
    config: RunConfig = checked(value, RunConfig, str(path))
    return config


def read_selection(path: Path) -> SelectionFile:
    """A selection.json (UserError if it is no object of JSON, OSError if it cannot be read)."""
    return read(SelectionFile, load_json(path, dict[str, Any], most_bytes=MOST_RUN_FILE_BYTES))


def read_trials(path: Path) -> list[TrialRow]:
    """The rows of a trials.csv that `write_trials` wrote.

    Raises:
        UserError: it is not such a table; a spreadsheet may have saved it in another form.
    """
    try:
        with sized(path, MOST_RUN_FILE_BYTES).open(newline="", encoding="utf-8") as file:
            # An empty file has no header: a ValueError too.
            header, *lines = csv.reader(file, strict=True)
        if "recipe_id" not in header:
            raise ValueError("it has no column recipe_id")
        for number, line in enumerate(lines, start=2):
            if len(line) != len(header):
                raise ValueError(
                    f"line {number} has {len(line)} cells, and the header {len(header)}"
                )
        return [_trial_row(dict(zip(header, line, strict=True))) for line in lines]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not the table that a run wrote: {first_line(error)}") from error


def _trial_row(cells: dict[str, str]) -> TrialRow:
    """A row from {column: cell}; the columns `weight:NAME` become `weights`, and `score:NAME` `categories`.

    Raises:
        ValueError: a cell is not a number.
    """
    row: dict[str, Json] = {"recipe_id": cells.pop("recipe_id")}
    named_numbers: dict[str, dict[str, Json]] = {"weight": {}, "score": {}}
    for column, cell in cells.items():
        # `csv_cell` puts an apostrophe before a text that looks like a formula.
        kind, colon, name = column.removeprefix("'").partition(":")
        value = float(cell) if cell else None
        if colon and kind in named_numbers:
            named_numbers[kind][name] = value
        else:
            row[column] = value
    row |= {"weights": named_numbers["weight"], "categories": named_numbers["score"]}
    return read(TrialRow, row)


def csv_cell(value: Json) -> Json:
    """A value as a cell: floats round-trip, texts are one line that no spreadsheet takes for a formula."""
    plain = to_json(value)
    if plain is None:
        return ""
    if isinstance(plain, float):
        return repr(plain)
    if not isinstance(plain, str):
        return plain
    text = clean(plain)
    if text.startswith(FORMULA) and not NUMBER.fullmatch(text):
        # Spreadsheets show what follows an apostrophe as text.
        return f"'{text}"
    return text


def write_selection(
    unit: Unit, selection: SelectionSummary, dry_run: int | None, path: Path
) -> Path:
    """Write selection.json; its path. `dry_run` is None in a real run."""
    # The file has all fields of the summary, which are copied through JSON, and two more.
    file = replace(read(SelectionFile, to_json(selection)), dry_run=dry_run, unit=unit)
    return write_atomically(path, as_json(file).encode())


def selection_summary(
    unit: Unit, selection: Selection, scores: ScoreMatrix | None = None
) -> SelectionSummary:
    """The content of selection.json: a selection, and the `scores` that it saw (None: not known), in `unit`."""
    published = False
    candidates: Names = ()
    raw_scores: Mapping[str, Mapping[str, float]] = {}
    if scores is not None:
        published = scores.published
        candidates = scores.candidates
        raw_scores = _raw_scores(unit, scores)
    return SelectionSummary(
        ingredients=selection.ingredients,
        experts=selection.experts,
        low_correlation=selection.low_correlation,
        low_by_chance=selection.low_by_chance,
        selector=selection.selector,
        metric=selection.metric or None,
        threshold=selection.threshold,
        sign=selection.sign or None,
        ties=selection.ties or None,
        tied=selection.tied,
        correlation=_correlation_table(selection),
        clusters=selection.clusters or None,
        notes=selection.notes,
        published=published,
        candidates=candidates,
        scores=raw_scores,
    )


def _correlation_table(selection: Selection) -> CorrelationTable | None:
    """The correlations of a selection as plain lists, None if it used none."""
    correlations = selection.correlations
    if correlations is None:
        return None
    return CorrelationTable(
        categories=selection.categories,
        matrix=correlations.rho.tolist(),
        low=correlations.low.tolist(),
        high=correlations.high.tolist(),
    )


def _raw_scores(unit: Unit, scores: ScoreMatrix) -> dict[str, dict[str, float]]:
    """{model: {category: score in `unit`}}, where `scores` holds inner ones (higher is better)."""
    raw_scores = {}
    for name, row in zip(scores.models, unit.raw(scores.values).tolist(), strict=True):
        raw_scores[name] = dict(zip(scores.categories, row, strict=True))
    return raw_scores


def raw_result(unit: Unit, result: Result) -> Result:
    """A result whose inner scores (higher is better) are turned into scores in `unit`."""
    categories = {name: unit.raw(score) for name, score in result.categories.items()}
    return replace(result, objective=unit.raw(result.objective), categories=categories)


def search_summary(unit: Unit, end: SearchEnd | JsonObject) -> SearchSummary:
    """What an optimiser says about its search, in the unit of the scores."""
    if not isinstance(end, SearchEnd):
        # A user's optimiser says it as JSON.
        return read(SearchSummary, end)
    without_guards = None
    if end.without_guards is not None:
        without_guards = unit.raw(end.without_guards)
    return SearchSummary(
        stopped=_stop_text(unit, end.stopped),
        indistinguishable=end.indistinguishable,
        indistinguishable_count=end.indistinguishable_count,
        # A number to be shown, for example in points.
        finishing_gain=round(unit.scale * unit.size(end.finishing_gain), 3),
        without_guards=without_guards,
    )


def _stop_text(unit: Unit, stop: StopReason) -> str:
    """Why the search stopped; if the reason ends in a gain, with this gain in `unit`."""
    if stop.gain is None:
        return stop.reason
    return f"{stop.reason} {unit.text(unit.size(stop.gain), more=1)} {unit.name}"


def trial_rows(unit: Unit, trials: Sequence[Trial], selection: Selection) -> list[TrialRow]:
    """The trials as rows of `trials.csv`. `trial.weights` are aligned with the ingredients of the selection.

    A trial that did not answer all items has no score: a mean over a few items is not comparable with one over all.
    """
    rows = []
    for trial in trials:
        result = raw_result(unit, trial.result)
        rows.append(
            TrialRow(
                number=trial.number,
                recipe_id=trial.recipe.id,
                weights=dict(zip(selection.ingredients, trial.weights, strict=True)),
                objective=result.objective if trial.whole else None,
                categories=result.categories if trial.whole else {},
                items=result.items,
                reused=trial.reused,
            )
        )
    return rows
