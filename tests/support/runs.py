"""The folder of a finished run, written by hand: its samples and its report."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[int, dict[str, Any]], None]
"""Changes the line of the n-th item."""


def write_run(folder: Path, *, step: int, change: Change | None = None) -> Path:
    """What a run leaves of one soup that solves every `step`-th of 60 items."""
    folder.mkdir()
    lines = [_line(number, float(number % step == 0)) for number in range(60)]
    if change is not None:
        for number, line in enumerate(lines):
            change(number, line)
    with gzip.open(folder / "samples.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    mean = sum(line["models"]["soup"]["score"] for line in lines) / len(lines)
    rows = [{"name": "soup", "recipe_id": folder.name, "scores": {"c": {"mean": mean}}}]
    (folder / "report.json").write_text(json.dumps({"schema": 1, "rows": rows}))
    return folder


def _line(number: int, score: float) -> dict[str, Any]:
    doc = {"id": f"i{number}", "group": "", "scorer": "helpful"}
    model = {"score": score, "outcome": "finished", "resps": [["x"]]}
    return {
        "split": "test", "category": "c", "item": f"i{number}", "doc": doc, "arguments": [["p", {}]],
        "prompt_hash": f"p{number}", "target_hash": "t", "models": {"soup": model},
    }  # fmt: skip


def answered(*, best: bool) -> Change:
    """Four answers to each item, one of them wrong in every second item."""

    def change(number: int, line: dict[str, Any]) -> None:
        scores = [1.0, float(number % 2), 1.0, 1.0]
        score = max(scores) if best else sum(scores) / 4
        answers = {"scores": scores, "outcomes": ["finished"] * 4, "resps": [["x"] * 4]}
        line["models"]["soup"].update(answers, score=score)

    return change
