"""Tables of other tools (`LOG_LAYOUTS`): how rows of their files become rows with this package's columns.

A file of a known tool is recognised by the keys of its rows. Of any other table, `fields` names the fields. Installed
packages bring further tools (entry points `souping.logs`), whose files need not be tables (`LogLayout.rows`).

To add a tool that writes one row per answer, add a layout to `LOG_LAYOUTS`. Files of another form, such as the folder
of a harness, need a reader in a file of its own, which `logs.sources` chooses (`_reader`).
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from souping.core.fields import component
from souping.core.installed import NamedPart, installed_parts
from souping.core.text import first_line, listed, nearest
from souping.core.types import Names, UserError
from souping.logs.records import LogRow

log = logging.getLogger(__name__)
ALL = "all"
"""The category of a file that has none."""
Columns = dict[str, Any]
"""{column of this package: its value} of one row; `stop_reason` is None if the row does not say how an answer ended"""


@component
class LogLayout(NamedPart):
    """How a tool writes the answers to its items, one per row.

    Its tables are known by `keys`, which every row has, and `columns` gives a row this package's columns. If the tool
    of an installed package does not write tables, `rows` gives the rows at a path: none, if what is there is not the
    tool's. `LOG_LAYOUTS` are only asked for tables.
    """

    keys: Names = ()
    columns: Callable[[LogRow], Columns] = dict
    # the rows do not number the answers to one item
    unnumbered: bool = False
    rows: Callable[[Path], Iterable[LogRow]] | None = None


@cache
def installed_layouts() -> tuple[LogLayout, ...]:
    """The layouts of installed packages, which are imported here."""
    return installed_parts("souping.logs", LogLayout, [layout.name for layout in LOG_LAYOUTS])


def layout_of(row: LogRow, fields: Collection[str]) -> LogLayout:
    """The layout of a table with this row: that of a known tool, else that of this package's tables.

    A table of which `fields` name the item or the score is of no installed package's tool.
    """
    layout = _fitting(LOG_LAYOUTS, row)
    if layout is None and not {"item", "score"} & {*fields}:
        layout = _fitting(installed_layouts(), row)
    return layout or OWN_TABLE


def _fitting(layouts: Iterable[LogLayout], row: LogRow) -> LogLayout | None:
    """The first layout whose keys a row has."""
    fitting = (each for each in layouts if each.keys and row.keys() >= {*each.keys})
    return next(fitting, None)


def installed_rows(path: Path) -> tuple[LogLayout, list[LogRow]] | None:
    """(layout, rows) of what the tool of an installed package wrote; None if no package knows it."""
    for layout in installed_layouts():
        # Code of others, which may raise anything about a file of another tool.
        try:
            rows = list(layout.rows(path)) if layout.rows else []
        except Exception as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            log.warning(f"{path} is not read as {layout.name}: {why}: {layout.remedy}")
            continue
        if rows:
            return layout, rows
    return None


def value_at(row: LogRow, name: str) -> Any:
    """The value of a field, whose name is dotted if it is inside others (LookupError if the row lacks the field)."""
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    if not inner or not isinstance(row[outer], Mapping):
        raise LookupError(name)
    return value_at(row[outer], inner)


def check_fields(path: Path, row: LogRow, names: Iterable[str], renamed: bool = False) -> None:
    """Refuse a row without one of these fields (UserError). If fields may be `renamed`, the message says how."""
    for name in names:
        try:
            value_at(row, name)
        except LookupError:
            near = nearest(name, _names(row))
            fix = f": rename one, or name it with `compare --{name} COLUMN`" if renamed else ""
            raise UserError(
                f"{path}: no column {name}{near} (it has {listed(map(str, row))}){fix}"
            ) from None


def _names(row: LogRow) -> Iterator[str]:
    """The names of all fields; the name of a field inside another is dotted."""
    for key, value in row.items():
        yield str(key)
        if isinstance(value, Mapping):
            yield from (f"{key}.{name}" for name in _names(value))


def rows_by_column(
    path: Path, rows: Iterable[LogRow], layout: LogLayout, fields: Mapping[str, str]
) -> Iterator[Columns]:
    """The rows with this package's columns by the layout. `fields`, {column: field of the file}, replace its columns.

    A row without the field of the score is a missing answer.

    Raises:
        UserError: a row lacks another field, no row has the score's, or a row is not one of the tool's.
    """
    named = [fields[name] for name in fields if name != "score"]
    # Rows of each item so far, which number its answers.
    answered: Counter[str] = Counter()
    # Whether some row has the field that the user named for the score, if any.
    score = fields.get("score", "")
    scored = not score
    row: LogRow = {}
    for number, row in enumerate(rows, start=1):
        check_fields(path, row, _needed(layout, fields), renamed=layout is OWN_TABLE)
        check_fields(path, row, named)
        try:
            columns = dict(layout.columns(row))
        except Exception as error:  # a package's function may raise anything
            raise UserError(
                f"{path}: row {number}: not a row of {layout.name}: {first_line(error)}",
                fix=layout.remedy,
            ) from error
        for column, name in fields.items():
            columns[column] = _value(row, name)
        # A package's function may have left them out.
        if layout.package:
            check_fields(path, columns, ("item", "score"))
        scored = scored or columns["score"] is not None
        columns.setdefault("category", ALL)
        if layout.unnumbered:
            item = str(columns["item"])
            columns.setdefault("repeat", answered[item])
            answered[item] += 1
        yield columns
    # The last row stands for all of them.
    if not scored:
        check_fields(path, row, [score])


def _needed(layout: LogLayout, fields: Collection[str]) -> Names:
    """Keys that every row must have. A column that `fields` names is not needed under its own name.

    If the user names the field of the item or of the score, the table is not in this package's form, and needs no
    category.
    """
    if layout is not OWN_TABLE:
        return layout.keys
    needed = [name for name in layout.keys if name not in fields]
    if "category" in needed and {"item", "score"} & {*fields}:
        needed.remove("category")
    return tuple(needed)


def _value(row: LogRow, name: str) -> Any:
    """A field, None if the row does not have it."""
    try:
        return value_at(row, name)
    except LookupError:
        return None


def _last(values: list[dict[str, Any]]) -> dict[str, Any]:
    """The last of the objects, or an empty one."""
    return values[-1] if values else {}


# Tools


def _every_eval_ever(row: LogRow) -> Columns:
    """A line of `*_samples.jsonl`: an answer by one metric, whose direction is in another file."""
    return {
        "item": row["sample_id"],
        "category": row["evaluation_name"],
        "metric": row.get("evaluation_result_id"),
        "model": row["model_id"],
        "score": row["evaluation"]["score"],
        "repeat": _value(row, "metadata.epoch"),
        "prompt": _value(row, "input.formatted") or _value(row, "input.raw"),
        "prompt_hash": row.get("sample_hash"),
        "output": "\n".join(_value(row, "output.raw") or []),
        "tokens": _value(row, "token_usage.output_tokens"),
        "unanswered": bool(row.get("error")),
        "stop_reason": _value(row, "metadata.stop_reason") or None,
    }


def _nemo_evaluator(row: LogRow) -> Columns:
    """A line of `results.jsonl` or `trajectories.jsonl`. A request that failed has the reward 0."""
    errors = ("model_error", "scoring_details.error_category", "scoring_details.judge.error")
    category = _value(row, "metadata.category") or _value(row, "seed_metadata.category")
    return {
        "item": row["problem_idx"],
        "category": category or ALL,
        "score": row["reward"],
        "higher_is_better": True,
        "repeat": row["repeat"],
        "prompt": row["prompt"],
        "output": row.get("model_response") or _value(row, "model.content"),
        "tokens": _value(row, "model.tokens.completion"),
        "unanswered": any(_value(row, name) for name in errors),
        "stop_reason": _value(row, "model.finish_reason") or None,
    }


def _nemo_gym(row: LogRow) -> Columns:
    """A rollout. A rollout with `mask_sample` has no score."""
    prompt = row["responses_create_params"].get("input") or ""
    return {
        "item": row["_ng_task_index"],
        "category": _value(row, "agent_ref.name") or ALL,
        "score": None if row.get("mask_sample") else row["reward"],
        "higher_is_better": True,
        "repeat": row["_ng_rollout_index"],
        "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt),
        "output": "\n".join(_texts(_value(row, "response.output"))),
        "tokens": _value(row, "response.usage.output_tokens"),
        # A response that ended by itself has no details.
        "stop_reason": _value(row, "response.incomplete_details.reason") or "",
    }


def _texts(content: Any) -> Iterator[str]:
    """The texts in a response, in whatever shape an environment returns it."""
    if isinstance(content, list):
        for part in content:
            yield from _texts(part)
    elif isinstance(content, Mapping):
        yield from _texts(content.get("text") or content.get("content"))
    elif isinstance(content, str):
        yield content


def _verifiers(row: LogRow) -> Columns:
    """An episode. As in verifiers, its reward is the mean over the traces that train (all if none does), and a failed
    episode has no reward.
    """
    task = row["task"]
    traces = row["traces"]
    trained = [trace for trace in traces if trace["agent"]["trainable"]] or traces
    score = None
    if row["ok"] and trained:
        score = sum(map(_reward, trained)) / len(trained)
    trace = _last(trained)
    return {
        "item": task.get("key") or task["hash"],
        "category": task["type"],
        "score": score,
        "higher_is_better": True,
        "prompt": _value(task, "data.prompt"),
        "prompt_hash": task.get("hash"),
        "output": _value(_last(trace.get("nodes", [])), "message.content"),
        "tokens": row["num_output_tokens"] or None,
        "stop_reason": _last(trace.get("calls", [])).get("finish_reason"),
    }


def _reward(trace: LogRow) -> float:
    """The weighted sum of a trace's rewards; nan if it has no rewards, or one was not computed."""
    total = 0.0
    for reward in trace["rewards"].values():
        if reward is None:
            return math.nan
        # A text or a list times a number could be of any size.
        total += float(reward["score"]) * float(reward["weight"])
    return total if trace["rewards"] else math.nan


OWN_TABLE = LogLayout(name="table", keys=("item", "category", "score"), columns=dict)
LOG_LAYOUTS = (
    OWN_TABLE,
    LogLayout(
        name="every_eval_ever",
        keys=("schema_version", "model_id", "evaluation_name", "sample_id", "evaluation"),
        columns=_every_eval_ever,
    ),
    LogLayout(
        name="nemo_evaluator",
        keys=("problem_idx", "repeat", "reward", "prompt"),
        columns=_nemo_evaluator,
    ),
    LogLayout(
        name="nemo_gym",
        keys=("_ng_task_index", "_ng_rollout_index", "reward", "responses_create_params"),
        columns=_nemo_gym,
    ),
    LogLayout(
        name="verifiers",
        keys=("task", "traces", "ok", "num_output_tokens"),
        columns=_verifiers,
        unnumbered=True,
    ),
)
"""Layouts in the order in which they are tried on the first row of a file."""
