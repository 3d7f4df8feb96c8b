"""Answers of a model to the items of evaluation tasks, as any harness logged them.

A `Log` is what one evaluation of one model left behind: its tasks, and one `LoggedAnswer` per item, metric and
replicate. All readers give this shape, and all that compares, selects or stores takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedAnswer:
    """What a model got for one item by one metric.

    `item` identifies the item within its task in any log of the same harness: its id, and a hash of its content where
    the log has one, as documents repeat. `score` is what the harness counted, nan where it left the item out of its
    mean. `missing` marks an item that was requested and not scored: an error, a refusal of the server, no response.
    `group` names what belongs together (a passage with several questions); empty for an item by itself.
    """

    item: str
    score: float
    group: str = ""
    replicate: int = 0
    missing: bool = False
    cut: bool | None = None  # whether the answer stopped at the limit of tokens; None: the log does not say
    tokens: float | None = None
    characters: int | None = None
    prompt_hash: str = ""
    prompt: str = ""  # what the model was shown and what it answered, where the log has them
    output: str = ""


@dataclass(frozen=True, kw_only=True)
class LoggedMetric:
    """Answers of one model by one metric (with its filter) of one task."""

    name: str
    higher_is_better: bool
    is_mean: bool  # the harness's figure is a mean of scores within 0..1; else a row that is never averaged with others
    answers: tuple[LoggedAnswer, ...]
    reported: float | None = None  # the harness's own figure, where it is in the log


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a log. `settings` must agree between logs that are compared: version, shots, judge, scorer."""

    name: str
    metrics: Mapping[str, LoggedMetric]  # the first one stands for the task in an average over tasks
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of tasks or groups, aggregated as its harness does: a plain mean, or weighted by size."""

    name: str
    members: tuple[str, ...]
    weight_by_size: bool


@dataclass(frozen=True, kw_only=True)
class Log:
    """One evaluation of one model (one training run): its tasks and groups by name.

    `asked` holds the tasks and groups that the harness's command line named: the mean over them is the headline.
    """

    path: Path
    harness: str
    model: str
    tasks: Mapping[str, Task]
    groups: Mapping[str, Group] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # sentences for the reader: which of several files was read
