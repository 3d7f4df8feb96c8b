"""Logs: tables that tests write, the recorded ones, and logs of one task as they are read."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

from souping.logs.match import Matched, matched
from souping.logs.records import Log, LoggedAnswer, LoggedMetric, Task
from tests.conftest import ROOT

DATA = ROOT / "tests" / "data" / "logs"
PYTHON = DATA / "lm_eval" / "tuned_python"


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


ROWS = [{"item": f"i{n}", "category": "ab"[n % 2], "score": n % 3 / 2} for n in range(6)]


class Frame:
    """What is read of a pandas DataFrame."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.columns = list(rows[0]) if rows else []

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return self.rows


def log(name: str, answers: dict[str, float] | None = None, **changes: Any) -> Log:
    """A log of one task `t` with these scores, or four of them."""
    scores = answers or {f"i{n}": n % 2 for n in range(4)}
    found = tuple(
        LoggedAnswer(item=item, score=score, prompt_hash=item) for item, score in scores.items()
    )
    metric = LoggedMetric(name="acc", higher_is_better=True, is_mean=True, answers=found)
    task = Task(name="t", metrics={"acc": metric}, settings={"number of shots": "0"})
    whole = Log(path=Path(name), harness="lm_eval", model=name, tasks={"t": task}, requested=("t",))
    return replace(whole, **changes)


def task(own: Log, **changes: Any) -> Log:
    return replace(own, tasks={"t": replace(own.tasks["t"], **changes)})


def metric(own: Log, **changes: Any) -> Log:
    return task(own, metrics={"acc": replace(own.tasks["t"].metrics["acc"], **changes)})


def match(*logs: Log, **settings: Any) -> Matched:
    return matched({f"m{n}": [one] for n, one in enumerate(logs)}, **settings)
