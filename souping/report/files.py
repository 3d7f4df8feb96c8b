"""Files of a run and of a multirun, with the JSON forms of a selection and of trials that they hold.

Each file appears whole or not at all. A date is only in the `provenance` of report.json and at the foot of the page.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from souping.core.fields import load
from souping.core.files import write_atomically
from souping.core.reading import read, to_json
from souping.core.text import first_line
from souping.core.types import (
    Json,
    JsonObject,
    Result,
    ScoreMatrix,
    Selection,
    Trial,
    UserError,
    number,
    texts,
)
from souping.core.unit import unit, unit_of
from souping.report.analyses import drawings, typed
from souping.report.content import Report, TrialRow
from souping.report.format import clean
from souping.report.plots import Drawing, categories, forest, heatmap, landscape
from souping.report.render import markdown, page
from souping.report.tables import JsonRow, ingredients
from souping.report.trajectory import trajectory, window_bands

JOB = "job.json"
OTHER_SCORES = re.compile(
    r"^\+*(experiment|benchmark|objective|evaluator(=|\.tasks))", re.MULTILINE
)
"""Overrides after which a score means something else."""
FORMULA = ("=", "+", "-", "@")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def write_report(report: Report | JsonRow, trials: Sequence[TrialRow], run_dir: Path) -> list[Path]:
    """Write report.json, report.md, report.html and plots/*.png into `run_dir`; the paths, in that order.

    Raises:
        UserError: the directory cannot be written.
    """
    pictures = draw(report, trials)
    pages = {
        "report.json": as_json(report),
        "report.md": markdown(report, trials),
        "report.html": page(report, trials, pictures),
    }
    paths = [write_atomically(run_dir / name, text.encode()) for name, text in pages.items()]
    return paths + [
        write_atomically(run_dir / "plots" / f"{drawing.name}.png", drawing.png())
        for drawing in pictures
    ]


def draw(report: Report | JsonRow, trials: Sequence[TrialRow]) -> list[Drawing]:
    """The pictures that this report has the numbers for."""
    report = typed(report)
    made = [forest(report), categories(report), heatmap(report), landscape(report, trials)]
    made += [trajectory(report), window_bands(report)]
    return [*(drawing for drawing in made if drawing is not None), *drawings(report)]


def as_json(value: Json | Report) -> str:
    """JSON with sorted keys; floats round-trip, NaN and infinities become null, numpy values plain ones."""
    return json.dumps(to_json(value), sort_keys=True, indent=2, allow_nan=False) + "\n"


def write_trials(trials: Sequence[TrialRow], report: Report | JsonRow, path: Path) -> Path:
    """trials.csv: one line per trial with objective, weights (`weight:NAME`), categories (`score:NAME`) and counts."""
    names = ingredients(typed(report), trials)
    scored = list(dict.fromkeys(name for trial in trials for name in trial.categories))
    columns = [*(f"weight:{name}" for name in names), *(f"score:{name}" for name in scored)]
    table: list[list[Json]] = [["number", "recipe_id", "objective", *columns, "items", "reused"]]
    for trial in trials:
        values = [trial.weights.get(name, 0.0) for name in names]
        values += [trial.categories.get(name) for name in scored]
        head = (trial.number, trial.recipe_id, trial.objective)
        table.append([*head, *values, trial.items, trial.reused])
    return _write_csv(path, table)


def _write_csv(path: Path, table: Sequence[Sequence[Json]]) -> Path:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(
        [csv_cell(value) for value in line] for line in table
    )
    return write_atomically(path, stream.getvalue().encode("utf-8", "replace"))


def read_report(path: Path) -> JsonObject:
    """A report.json.

    Raises:
        UserError: it is none, or cannot be read.
    """
    report: dict[str, Json] = load(path, dict[str, Any])
    return report


def read_trials(path: Path) -> list[TrialRow]:
    """The rows of a trials.csv, as `write_trials` got them.

    Raises:
        UserError: it is no such table; a spreadsheet may have saved it in another form.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *lines = csv.reader(file, strict=True)
        if "recipe_id" not in head:
            raise ValueError("it has no column recipe_id")
        return [_trial_row(dict(zip(head, line, strict=True))) for line in lines]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not the table that a run wrote: {first_line(error)}") from error


def _trial_row(line: Mapping[str, str]) -> TrialRow:
    """A row of {column: cell}: numbers are numbers again, columns of a kind (`weight:NAME`) an object again."""
    row: dict[str, Json] = {"recipe_id": line["recipe_id"]}
    parts = {"weight": dict[str, Json](), "score": dict[str, Json]()}
    for column, cell in line.items():
        kind, colon, name = column.removeprefix("'").partition(":")
        if colon and kind in parts:
            parts[kind][name] = float(cell) if cell else None
        elif column != "recipe_id":
            row[column] = float(cell) if cell else cell
    return read(TrialRow, {**row, "weights": parts["weight"], "categories": parts["score"]})


def csv_cell(value: Json) -> Json:
    """A value as a cell: floats round-trip, texts are one line that no spreadsheet takes for a formula."""
    known = to_json(value)
    if isinstance(known, str):
        text = clean(known)
        return f"'{text}" if text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text
    return "" if known is None else repr(known) if isinstance(known, float) else known


def write_selection(selection: JsonRow, path: Path) -> Path:
    """selection.json, from `selection_dict`."""
    return write_atomically(path, as_json({**selection, "unit": asdict(unit())}).encode())


def write_job(run_dir: Path, job: JsonRow) -> None:
    """Write one job's line of the sweep's table; a file, since jobs may run in other processes."""
    line = {**job, "run_dir": run_dir.name, "unit": asdict(unit())}
    write_atomically(run_dir / JOB, as_json(line).encode())


def read_jobs(sweep_dir: Path) -> list[JsonRow]:
    """The jobs that ended, by number; `refused` says why one has no outcome."""
    jobs: list[JsonRow] = [json.loads(path.read_text()) for path in sweep_dir.glob(f"*/{JOB}")]
    return sorted(jobs, key=lambda job: number(job["job"]) or 0)


def write_sweep(sweep_dir: Path, jobs: Sequence[JsonRow]) -> Path:
    """sweep.csv, one line per job; dry runs have their `limit` in a column of its own."""
    return _write_csv(sweep_dir / "sweep.csv", job_table(jobs))


def job_table(jobs: Sequence[JsonRow]) -> list[list[Json]]:
    """The header and a row per job."""
    columns = ["job", "objective", "overrides", "run_dir", "refused"]
    columns += ["limit"] if any(job.get("limit") for job in jobs) else []
    table: list[list[Json]] = [[*columns]]
    for job in jobs:
        overrides = " ".join(texts(job, "overrides"))
        row = {"refused": "", **job, "job": str(job["job"]), "overrides": overrides}
        table.append([row.get(column) for column in columns])
    return table


def _varied(jobs: Sequence[JsonRow]) -> list[list[str]]:
    """The overrides of each job that not all jobs have."""
    overrides = [texts(job, "overrides") for job in jobs]
    common = set.intersection(*map(set, overrides))
    return [[word for word in words if word not in common] for words in overrides]


def best_jobs(jobs: Sequence[JsonRow]) -> list[JsonRow]:
    """The job with the best objective and those that tie with it; none if the objectives do not compare.

    They do not in a dry run, or if the jobs have several units, items or objectives.
    """
    scored = [job for job in jobs if number(job["objective"]) is not None]
    dry = any(job.get("limit") for job in scored)
    units = {unit_of(job) for job in scored}
    varied = "\n".join(map("\n".join, _varied(jobs)))
    if dry or len(units) != 1 or OTHER_SCORES.search(varied):
        return []
    best = max(map(_merit, scored))
    return [job for job in scored if _merit(job) == best]


def _merit(job: JsonRow) -> float:
    return round(unit_of(job).inner(number(job["objective"]) or 0.0), 12)


def sweep_lines(jobs: Sequence[JsonRow]) -> list[str]:
    """One line per job: what it reached, the overrides that differ between jobs, and whether it is the best."""
    best = best_jobs(jobs)
    mark = "  <- best" if len(best) == 1 else "  <- best (tie)"
    lines = []
    for job, words in zip(jobs, _varied(jobs), strict=True):
        value = number(job["objective"])
        shown = (
            "refused"
            if job["refused"]
            else ""
            if value is None
            else unit_of(job).text(value, more=1)
        )
        dry = f" (dry run, limit={job['limit']})" if job.get("limit") else ""
        lines.append(f"  {shown:>15} {clean(' '.join(words))}{dry}{mark if job in best else ''}")
    return lines


def selection_dict(selection: Selection, scores: ScoreMatrix | None = None) -> dict[str, Json]:
    """The JSON form of a selection, in `selection.json` and `report.json`."""
    table = dict(vars(selection))
    rho = table.pop("correlations")
    names = table.pop("categories")
    if not table["clusters"]:
        del table["clusters"]
    correlation: Json = None
    if rho is not None:
        correlation = {
            "categories": names,
            "matrix": rho.rho.tolist(),
            "low": rho.low.tolist(),
            "high": rho.high.tolist(),
        }
    table |= {key: table[key] or None for key in ("metric", "sign", "ties")}
    whole = {
        **table,
        "correlation": correlation,
        **({} if scores is None else _scores_seen(scores)),
    }
    return {key: to_json(inner) for key, inner in whole.items()}


def _scores_seen(scores: ScoreMatrix) -> JsonObject:
    """The scores that selection saw, whole."""
    rows = zip(scores.models, unit().raw(scores.values).tolist(), strict=True)
    return {
        "published": scores.published,
        "candidates": list(scores.candidates),
        "scores": {name: dict(zip(scores.categories, row, strict=True)) for name, row in rows},
    }


def raw_result(result: Result) -> Result:
    """A result in the unit of its scores."""
    categories = {name: unit().raw(score) for name, score in result.categories.items()}
    return replace(result, objective=unit().raw(result.objective), categories=categories)


def trial_rows(trials: Sequence[Trial], selection: Selection) -> list[TrialRow]:
    """The trials as `trials.csv` and the plots have them.

    One that was dropped early has no score: the means of a few items are not to be compared with those of all.
    """
    rows = []
    for trial in trials:
        result = raw_result(trial.result)
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
