"""Answers measured elsewhere: a candidate to hold files against, the files, what they hold and how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from souping.core.types import Json, Record


@dataclass(frozen=True, kw_only=True)
class CandidateFacts:
    """Candidate as far as old files can be held against it.

    `hub` is its name on the Hub and `commit` the revision that lies in `path`, where it came from there. `parameters`
    are the counts that a framework may give of its weights (tied tensors counted once or twice), empty if unknown;
    `dtype` is what they are stored in.
    `written` is when its newest weight file was last written (seconds since the epoch), None where that says nothing.
    """

    name: str
    path: Path
    hub: str | None = None
    commit: str | None = None
    parameters: frozenset[int] = frozenset()
    dtype: str | None = None
    written: float | None = None


class ResultFiles(Protocol):
    """Files of one measurement of one model; `model` is what they call it, empty where they do not say."""

    @property
    def path(self) -> Path: ...

    @property
    def model(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Setting about which the files and the run disagree.

    A `mild` one leaves the question as it is and shifts logits in their last digits at most (batch size, device,
    library versions), or stands for something that only the user can know; `--accept KEY` takes the answers anyway.
    Any other makes them answers to another question.
    """

    key: str
    in_files: Json
    in_run: Json
    mild: bool = False

    @property
    def sentence(self) -> str:
        return f"{self.key} is {_short(self.in_files)} in the files, {_short(self.in_run)} in the run"


@dataclass(frozen=True, kw_only=True)
class ImportedAnswers:
    """Answers of one candidate in one file of one task (or category).

    `records` are the answers by item id. `skipped` counts, by reason, answers that the run has no use for or that the
    files do not have. `unchecked` names what the files cannot prove.
    """

    task: str
    source: Path
    records: Mapping[str, Record] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    unchecked: tuple[str, ...] = ()


def compare(key: str, in_files: Json, in_run: Json, mild: bool = False) -> list[Difference]:
    """A difference, or none."""
    return [] if in_files == in_run else [Difference(key=key, in_files=in_files, in_run=in_run, mild=mild)]


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
