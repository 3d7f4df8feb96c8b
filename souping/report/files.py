"""Writes a run's report files. Each appears whole or not at all; none holds a date, and report.json no NaN."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from souping.core import UserError
from souping.report import landscape, plots
from souping.report.drawing import Drawing
from souping.report.markdown import markdown
from souping.report.page import page
from souping.report.tables import Report, ingredients, part


def write(report: Report, trials: Sequence[Mapping[str, Any]], run_dir: Path) -> list[Path]:
    """Write report.json, report.md, report.html and plots/*.png into `run_dir`; the paths, in that order.

    Raises:
        UserError: the directory cannot be written.
    """
    drawings = draw(report, trials)
    texts = {
        "report.json": as_json(report),
        "report.md": markdown(report, trials),
        "report.html": page(report, trials, drawings),
    }
    paths = [put(run_dir / name, text.encode()) for name, text in texts.items()]
    return paths + [put(run_dir / "plots" / f"{drawing.name}.png", drawing.png()) for drawing in drawings]


def draw(report: Report, trials: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    """The pictures that this report has the numbers for."""
    made = [plots.forest(report), plots.bars(report), plots.heatmap(report), landscape.landscape(report, trials)]
    return [drawing for drawing in made if drawing is not None]


def as_json(value: Any) -> str:
    """JSON with sorted keys; floats round-trip, NaN and infinities become null, numpy values plain ones."""
    return json.dumps(plain(value), sort_keys=True, indent=2, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """`value` as JSON knows it."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def write_trials(trials: Sequence[Mapping[str, Any]], report: Report, path: Path) -> Path:
    """trials.csv: a line a trial with objective, weights (`weight:NAME`), categories (`score:NAME`) and item counts."""
    names = ingredients(report, trials)
    categories = list(dict.fromkeys(name for trial in trials for name in part(trial, "categories")))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    counts = ("items", "reused", *(["handler"] if any("handler" in trial for trial in trials) else []))
    head = ["number", "recipe_id", "objective", *(f"weight:{n}" for n in names), *(f"score:{c}" for c in categories)]
    writer.writerow([*head, *counts])
    for trial in trials:
        line = [trial.get("number"), trial.get("recipe_id"), trial.get("objective")]
        line += [part(trial, "weights").get(name, 0.0) for name in names]
        line += [part(trial, "categories").get(name) for name in categories]
        writer.writerow([_csv(value) for value in [*line, *(trial.get(key) for key in counts)]])
    return put(path, stream.getvalue().encode("utf-8", "replace"))


def _csv(value: Any) -> Any:
    found = plain(value)
    return "" if found is None else repr(found) if isinstance(found, float) else found


def write_selection(selection: Mapping[str, Any], path: Path) -> Path:
    """selection.json: `ingredients`, `experts`, `low_correlation`, `metric`, `threshold`, `correlation`, and extras."""
    empty: dict[str, Any] = {
        "ingredients": [],
        "experts": {},
        "low_correlation": [],
        "metric": "",
        "threshold": None,
        "correlation": {"categories": [], "matrix": []},
    }
    return put(path, as_json({**empty, **selection}).encode())


def put(path: Path, content: bytes) -> Path:
    """Write beside, then rename: a reader or a killed run never sees half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path
