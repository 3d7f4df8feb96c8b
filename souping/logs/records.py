"""Answers of a model to the items of evaluation tasks, as any harness logged them.

A `Log` is what one evaluation of one model left behind: its tasks, and one `LoggedAnswer` per item, metric and
repeat. All readers give this shape, and all that compares, selects or stores takes it. Below are the functions that
the readers share.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from souping.core.json_fields import finite_number
from souping.core.parsing import nests_deeply
from souping.core.text import first_line, listed, shown
from souping.core.types import Json, JsonObject, Names, UserError, frozen

LogRow = Mapping[str, Any]
LARGEST_FIGURE = 1e50
"""No score, figure or count of a log is larger: sums of squares of such numbers are finite."""


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
    repeat: int = 0
    missing: bool = False
    # whether the answer stopped at the limit of tokens; None: the log does not say
    truncated: bool | None = None
    tokens: float | None = None
    characters: int | None = None
    prompt_hash: str = ""  # of the prompt as it was sent, empty where the log does not say
    identity: str = (
        ""  # hash of the item's prompt by which its store counts looks, for runs of souping
    )
    prompt: str = ""  # what the model was shown and what it answered, where the log has them
    output: str = ""


@frozen
class LoggedMetric:
    """Answers of one model by one metric (with its filter) of one task."""

    name: str
    higher_is_better: bool
    # the harness's figure is a mean of scores within 0..1; other metrics are only averaged with those of their `unit`
    is_mean: bool
    answers: tuple[LoggedAnswer, ...]
    unit: str = ""  # of scores that are not fractions of 1, empty if not known
    reported: float | None = None  # the harness's own figure, if the log has it


@frozen
class Task:
    """One task of a log. `settings` must agree between logs that are compared: version, shots, judge, scorer. Those
    that a log does not say are empty."""

    name: str
    # the first one stands for the task in an average over tasks
    metrics: Mapping[str, LoggedMetric]
    settings: Mapping[str, str] = field(default_factory=dict)


@frozen
class Group:
    """A group of tasks or groups, aggregated as its harness does: a plain mean, or weighted by size."""

    name: str
    members: Names
    weight_by_size: bool | None  # None: this log cannot tell, as its tasks score alike


@frozen
class Log:
    """One evaluation of one model (one run): its tasks and groups by name.

    `requested` holds the tasks and groups that the harness's command line named: the mean over them is the average row.
    """

    path: Path
    harness: str
    model: str
    model_id: str = ""  # of the model in the store, for runs of souping
    tasks: Mapping[str, Task]
    groups: Mapping[str, Group] = field(default_factory=dict)
    requested: Names = ()
    notes: tuple[str, ...] = ()  # sentences for the reader: which of several files was read
    # texts of each item's content; items of all logs that share one belong to one group
    shared: Mapping[str, Names] = field(default_factory=dict)

    def answers(self) -> Iterator[LoggedAnswer]:
        """The answers to all items of all tasks, by every metric."""
        for task in self.tasks.values():
            for metric in task.metrics.values():
                yield from metric.answers


# For readers


def json_lines(
    path: Path,
    lines: Iterable[str | bytes],
    constant: Callable[[str], Any] | None = None,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """The objects in the lines of a JSONL file, empty lines left out.

    `constant` converts the words NaN and Infinity, `pairs` the (key, value) pairs of an object, as in `json.loads`.

    Raises:
        UserError: a line is not a JSON object, or is nested too deeply; the error has its number.
    """
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=constant, object_pairs_hook=pairs)
        except (ValueError, RecursionError) as error:
            # A ValueError of `pairs` or `constant` says what is wrong; JSON's own is a subclass.
            what = ""
            if type(error) is not ValueError:
                what = "not JSON, or cut off: "
            raise UserError(f"{path}:{place}: {what}{first_line(error)}") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}:{place}: not a JSON object")
        if nests_deeply(value):
            key = next(key for key, inner in value.items() if nests_deeply([inner]))
            raise UserError(f"{path}:{place}: {shown(key)} is nested too deeply")
        yield value


def pick_model(path: Path, names: Sequence[str], name: str) -> str:
    """The one of `names` that is called `name`; without a name, the only one (UserError that lists them).

    `path` is the log of these models.
    """
    if name in names:
        return name
    if len(names) == 1 and not name:
        return names[0]
    what = "has answers of several models: name one as PATH:MODEL"
    if name:
        what = f"has no answers of {name}"
    raise UserError(f"{path}: {what} ({listed(sorted(names))})")


def metrics_of(
    path: Path,
    answers: Iterable[tuple[str, LoggedAnswer]],
    reported: JsonObject = MappingProxyType({}),
    lower: Collection[str] = (),
) -> dict[str, LoggedMetric]:
    """{name: metric} from the (metric, answer) pairs of a file; metrics that are means come first.

    `reported` are {metric: the harness's figure}, and `lower` the metrics of which lower is better. A metric whose mean
    is not what the harness reported is a corpus metric: its items have no scores. So is one with scores too large for a
    mean.

    Raises:
        UserError: an item has two scores.
    """
    answers_of: dict[str, list[LoggedAnswer]] = {}
    for name, answer in answers:
        answers_of.setdefault(name, []).append(answer)
    metrics = []
    for name, metric_answers in answers_of.items():
        higher_is_better = name not in lower
        metrics.append(_metric(path, name, metric_answers, reported.get(name), higher_is_better))
    metrics.sort(key=lambda metric: not metric.is_mean)
    return {metric.name: metric for metric in metrics}


def _metric(
    path: Path, name: str, answers: list[LoggedAnswer], reported: Json, higher_is_better: bool
) -> LoggedMetric:
    """A metric of these answers. Their scores become nan if they are too large for a mean, or if their mean is not the
    harness's `reported` figure.
    """
    _check_answers(path, name, answers)
    scores = np.array([answer.score for answer in answers])
    scores = scores[~np.isnan(scores)]
    is_mean = bool(scores.size and scores.min() >= 0 and scores.max() <= 1)
    mean = np.nan
    if scores.size and np.abs(scores).max() <= LARGEST_FIGURE:
        mean = scores.mean()

    figure = finite_number(reported)
    agrees = figure is not None and np.isclose(mean, figure, rtol=1e-6, atol=1e-6)
    if (reported is not None and not agrees) or (scores.size and np.isnan(mean)):
        is_mean = False
        answers = [replace(answer, score=np.nan) for answer in answers]
    return LoggedMetric(
        name=name,
        higher_is_better=higher_is_better,
        is_mean=is_mean,
        answers=tuple(answers),
        reported=figure,
    )


def _check_answers(path: Path, name: str, answers: Sequence[LoggedAnswer]) -> None:
    """Refuse two scores of one answer, and numbers of tokens that are not counts (UserError)."""
    scored = Counter((answer.item, answer.repeat) for answer in answers)
    for (item, _), count in scored.most_common(1):
        if count > 1:
            raise UserError(
                f"{path}: item {item} has two scores of {name}: remove one, or number them in a column `repeat`, "
                "or in one that `compare --repeat COLUMN` names"
            )
    for answer in answers:
        if answer.tokens is not None and not 0 <= answer.tokens <= LARGEST_FIGURE:
            tokens = shown(str(answer.tokens))
            raise UserError(f"{path}: item {answer.item}: tokens={tokens} is not a count")
