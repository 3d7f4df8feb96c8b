"""What `lm_eval --log_samples --output_path DIR` leaves: a results file, and a file of samples for each task."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from souping.core import UserError

DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
RESULTS = re.compile(rf"(?:.+_)?(?P<date>{DATE})\.json")
SAMPLES = re.compile(rf"samples_(?P<task>.+)_(?P<date>{DATE})\.jsonl")


@dataclass(frozen=True, kw_only=True)
class HarnessFiles:
    """One run of lm-evaluation-harness: its results, and {task: file of samples}."""

    path: Path
    results: Mapping[str, Any]
    samples: Mapping[str, Path]

    @property
    def model(self) -> str:
        """What the harness called the model: a path, or a name on the Hub."""
        return str(self.results.get("model_name") or "")

    @property
    def config(self) -> Mapping[str, Any]:
        found = self.results.get("config")
        return found if isinstance(found, Mapping) else {}

    @property
    def arguments(self) -> dict[str, Any]:
        """`--model_args`, which older versions keep as one text."""
        given = self.config.get("model_args") or {}
        if isinstance(given, Mapping):
            return dict(given)
        pairs = (part.partition("=") for part in str(given).split(",") if part)
        return {key: value for key, _, value in pairs}

    def rows(self, task: str) -> list[dict[str, Any]]:
        """The samples of a task: one a document and filter.

        Raises:
            UserError: the file cannot be read, or a line is no sample of the harness.
        """
        path = self.samples[task]
        rows = []
        for number, line in enumerate(_text(path).split("\n"), start=1):  # not splitlines: answers hold U+2028
            if line.strip():
                rows.append(_row(line, f"{path}:{number}"))
        return rows


def find(paths: Sequence[Path]) -> list[HarnessFiles]:
    """The runs below these files and folders, newest first: of two measurements the later counts.

    Raises:
        UserError: samples without the results file of their run (its settings are in there), or a broken file.
    """
    names = {path.resolve() for given in paths for path in _below(given)}
    found: dict[Path, dict[str, Path]] = {}
    for path in sorted(names):
        sample = SAMPLES.fullmatch(path.name)
        if sample:
            found.setdefault(_results_beside(path, sample["date"]), {})[sample["task"]] = path
        elif RESULTS.fullmatch(path.name):
            found.setdefault(path, {}).update(_samples_beside(path))
    runs = [HarnessFiles(path=path, results=_results(path), samples=samples) for path, samples in found.items()]
    runs = [run for run in runs if "configs" in run.results and run.samples]
    return sorted(runs, key=lambda run: float(run.results.get("date") or 0), reverse=True)


def _below(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (p for p in path.rglob("*.json*") if p.is_file())
    elif path.is_file():
        yield path
    else:
        raise UserError(f"{path}: there is no such file or folder")


def _date(path: Path) -> str:
    found = RESULTS.fullmatch(path.name)
    return found["date"] if found else ""


def _results_beside(path: Path, date: str) -> Path:
    for other in sorted(path.parent.glob(f"*{date}.json")):
        if RESULTS.fullmatch(other.name):
            return other
    raise UserError(
        f"{path}: its results file (results_{date}.json) is not beside it: the settings of the measurement are in there"
    )


def _samples_beside(path: Path) -> dict[str, Path]:
    matches = [(SAMPLES.fullmatch(other.name), other) for other in path.parent.glob(f"samples_*_{_date(path)}.jsonl")]
    return {found["task"]: other for found, other in matches if found}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error


def _results(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not a results file of lm_eval: {error}") from error
    return found if isinstance(found, dict) else {}


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not a line of JSON, the file may be cut off: {error}") from error
    absent = [key for key in ("doc_id", "doc_hash", "arguments", "resps", "filter") if key not in row]
    if absent:
        raise UserError(f"{where}: no sample of lm_eval: it has no {absent[0]}")
    if not isinstance(row["arguments"], dict):  # a list of lists before 0.4.3
        row["arguments"] = {
            f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(parts)}
            for i, parts in enumerate(row["arguments"])
        }
    row["doc_id"] = int(row["doc_id"])
    return {key: value for key, value in row.items() if key != "doc"}  # which may be a book; its hash is enough
