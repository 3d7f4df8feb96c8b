"""What all readers of logs share: files with an error of one line, and metrics from their answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from souping.core.text import first_line, listed
from souping.core.types import UserError
from souping.logs.records import LoggedAnswer, LoggedMetric

Row = Mapping[str, Any]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file (UserError if there is none)."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON, or cut off: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def json_lines(
    path: Path, lines: Iterable[str | bytes], constant: Callable[[str], Any] | None = None
) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file's lines (UserError with the line's number if one is none).

    `constant` makes a value of NaN and Infinity.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=constant)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not JSON, or cut off: {first_line(error)}") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}:{number}: not a JSON object")
        yield value


def pick_model(path: Path, names: Sequence[str], name: str) -> str:
    """The model that is named, or the only one there is (UserError that lists them)."""
    if name in names:
        return name
    if len(names) == 1 and not name:
        return names[0]
    what = f"has no answers of {name}" if name else "has answers of several models: name one as PATH:MODEL"
    raise UserError(f"{path}: {what} ({listed(sorted(names))})")


def metric(
    path: Path, name: str, answers: Sequence[LoggedAnswer], reported: float | None = None, higher_is_better: bool = True
) -> LoggedMetric:
    """A metric of these answers in a file (UserError if an item has one twice).

    Without the mean of its items as the harness's figure it is a corpus metric: its items have no scores.
    """
    counts = Counter((answer.item, answer.replicate) for answer in answers)
    if twice := [item for (item, _), count in counts.items() if count > 1]:
        raise UserError(f"{path}: item {twice[0]} has two scores of {name}: remove one, or evaluate again")
    scores = np.array([answer.score for answer in answers])
    counted = scores[np.isfinite(scores)]
    in_range = counted.size > 0 and counted.min() >= 0 and counted.max() <= 1
    if reported is not None and (not counted.size or abs(counted.mean() - reported) > 1e-6 * max(1, abs(reported))):
        in_range = False
        answers = [replace(answer, score=np.nan) for answer in answers]
    return LoggedMetric(
        name=name,
        higher_is_better=higher_is_better,
        is_mean=bool(in_range),
        answers=tuple(answers),
        reported=reported,
    )
