"""Logs of evaluations by any harness, read into one shape (`records`), and matched item by item (`match`)."""

from __future__ import annotations

import gc
from collections.abc import Collection
from pathlib import Path

from souping.core.files import expanded, regular
from souping.core.types import UserError
from souping.logs.bfcl import read_bfcl
from souping.logs.inspect import is_inspect, read_inspect
from souping.logs.lm_eval import read_lm_eval, results_of
from souping.logs.records import Log
from souping.logs.runs import read_run
from souping.logs.tables import Frame, is_table, read_frame, read_table

LOG_KINDS = (
    "lm_eval's output folder, a BFCL project, an inspect_ai log, a run, "
    "or CSV or JSONL with item, category, score"
)


def read(
    source: str | Path | Frame, *, group: str = "", lower: Collection[str] | None = ()
) -> tuple[Log, ...]:
    """The logs at a path, or in a data frame: one, or several training runs where a table has a column `run`.

    `PATH:MODEL` names one of several models. `group` is the field of the documents (or the column) that says which
    items belong together. Of a table, lower is better in the tasks of `lower`;
    with None its scores may be in any range.

    Raises:
        UserError: what is there is no log, or a damaged one.
    """
    enabled = gc.isenabled()
    # many small objects that all stay: to look for circles among them takes a third of the time
    gc.disable()
    try:
        logs = _read(source, group, lower)
    finally:
        if enabled:
            gc.enable()
    metrics = (
        metric for log in logs for task in log.tasks.values() for metric in task.metrics.values()
    )
    if group and not any(answer.group for metric in metrics for answer in metric.answers):
        raise UserError(f"{logs[0].path}: no item has a field {group!r} to group by")
    return logs


def _read(source: str | Path | Frame, group: str, lower: Collection[str] | None) -> tuple[Log, ...]:
    if not isinstance(source, str | Path):
        return read_frame(source, group, lower)
    path = expanded(str(source))
    name = ""
    heads = [str(path)[:place] for place, letter in enumerate(str(path)) if letter == ":"]
    if not path.exists() and (known := [head for head in heads if Path(head).exists()]):
        path, name = Path(known[-1]), str(path)[len(known[-1]) + 1 :]
    if not path.exists():
        raise UserError(f"{source}: no such file or folder")
    if is_table(regular(path)):
        return read_table(path, group, lower)
    if lower:
        raise UserError(f"{path}: --lower-is-better is for tables, this log has its own direction")
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    if (path / "report.json").is_file():
        return (read_run(path, name, group),)
    if (path / "result").is_dir() or (path / "score").is_dir():
        return (read_bfcl(path, name),)
    if any(map(is_inspect, files)):
        return (read_inspect(path, name, group),)
    if path.suffix == ".json" or (path.is_dir() and results_of(path, name)):
        return (read_lm_eval(path, name, group),)
    raise UserError(f"{path}: not a log: give {LOG_KINDS}")
