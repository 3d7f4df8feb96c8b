"""Choice of the reader for a path: the log of a harness, a run of souping, or a table (a new table: `layouts`)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from souping.core.files import expanded, near_folder, regular
from souping.core.text import listed
from souping.core.types import UserError
from souping.logs.answer_tables import (
    Frame,
    LogSource,
    TableOptions,
    is_scores,
    is_table,
    logs_of,
    read_frame,
    read_log_table,
    read_scores,
)
from souping.logs.layouts import installed_rows
from souping.logs.records import Group, Log, LoggedAnswer, LoggedMetric

LOG_KINDS = (
    "lm_eval's output folder, a BFCL project, an inspect_ai log, a run, "
    "or CSV, JSONL or parquet with item, category, score"
)
HarnessReader = Callable[[Path, str, str], Log]
"""reader(path, name of one of several models, field of the groups) of what a harness wrote"""
LOG_SUFFIXES = (".csv", ".jsonl", ".parquet", ".json", ".eval")


def read_logs(
    source: LogSource,
    *,
    group: str = "",
    category: str = "",
    item: str = "",
    score: str = "",
    repeat: str = "",
    lower: Collection[str] | None = (),
) -> tuple[Log, ...]:
    """The logs at a path, in a data frame or in an array: one, or one per run if a table has a column `run`.

    `PATH:MODEL` names one of several models. `group` and `category` are fields of the documents (or columns): which
    items belong together, and what splits the one task. `item`, `score` and `repeat` are fields of a table. Of a table,
    lower is better in the tasks of `lower`; with None its scores may be in any range.

    Raises:
        UserError: what is there is not a log, or a damaged one.
    """
    fields = {
        "item": item,
        "category": category,
        "score": score,
        "repeat": repeat,
        "group": group,
    }
    fields = {column: name for column, name in fields.items() if name}
    was_enabled = gc.isenabled()
    # The garbage collector would take a third of the time, for many small objects that are all kept.
    gc.disable()
    try:
        logs = _read(source, TableOptions(fields=fields, lower=lower))
    finally:
        if was_enabled:
            gc.enable()
    if group:
        _check_field(logs, group, "group")
    return logs


def logs_in(folder: Path) -> dict[str, str]:
    """{model: path of its log} of a folder with one log per model, which is named by its file or folder.

    Hidden files and files that cannot be logs by their suffix are left out. A BFCL project has the models of its
    result/.

    Raises:
        UserError: there is no such folder, no log in it, or two of one name; or it is the log of one model.
    """
    from souping.logs.lm_eval import RESULTS

    if not folder.is_dir():
        raise UserError(f"{folder}: no folder of logs, one per model{near_folder(folder)}")
    if (folder / "report.json").is_file() or any(folder.glob(RESULTS)):
        raise UserError(f"{folder} is the log of one model: give a folder with one per model")
    results = folder / "result"
    if results.is_dir() and (folder / "score").is_dir():
        models = sorted(entry.name for entry in results.iterdir() if entry.is_dir())
        return {name: f"{folder}:{name}" for name in models}
    logs: dict[str, str] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or not _may_be_log(entry):
            continue
        name = entry.name if entry.is_dir() else entry.stem
        if name in logs:
            raise UserError(f"{entry} and {logs[name]} are logs of one name: rename one")
        logs[name] = str(entry)
    if not logs:
        raise UserError(f"{folder}: no logs in it: one per model is needed ({LOG_KINDS})")
    return logs


def _may_be_log(entry: Path) -> bool:
    return entry.is_dir() or entry.suffix.lower() in LOG_SUFFIXES


def _check_field(logs: Sequence[Log], name: str, option: str) -> None:
    """Refuse the field `name`, the value of `option`, if no item of the logs has it (UserError).

    The logs were read with this field as that of their groups.
    """
    for log in logs:
        if any(answer.group for answer in log.answers()):
            return
    raise UserError(f"{logs[0].path}: --{option} {name}: no item has a field {name!r}")


def _by_category(log: Log, with_categories: Log) -> Log:
    """The log with its one task split into a task per category.

    `with_categories` is the same log, read so that the group of each answer is its category.
    """
    if len(log.tasks) > 1:
        raise UserError(
            f"{log.path}: --category splits one task, but there are {listed(log.tasks, 4)}"
        )
    (task,) = log.tasks.values()
    metrics_of: dict[str, dict[str, LoggedMetric]] = {}  # {category: {name: metric}}
    for name, metric in task.metrics.items():
        answers_of: dict[str, list[LoggedAnswer]] = {}
        same_answers = with_categories.tasks[task.name].metrics[name].answers
        for answer, same_answer in zip(metric.answers, same_answers, strict=True):
            answers_of.setdefault(same_answer.group, []).append(answer)
        for category, answers in answers_of.items():
            # The reported figure is of the whole task.
            split = replace(metric, answers=tuple(answers), reported=None)
            metrics_of.setdefault(category, {})[name] = split
    tasks = {}
    for category, metrics in metrics_of.items():
        tasks[category] = replace(task, name=category, metrics=metrics)
    # The mean over the task is that over its items, as before.
    group = Group(name=task.name, members=tuple(tasks), weight_by_size=True)
    return replace(log, tasks=tasks, groups={task.name: group}, requested=(task.name,))


def _read(source: LogSource, options: TableOptions) -> tuple[Log, ...]:
    """The logs in an array, a data frame, a table or a harness's files, by the reader for this kind."""
    if is_scores(source):
        return read_scores(source, options)
    if not isinstance(source, str | Path | Frame):
        kind = type(source).__name__
        raise UserError(
            f"{kind} is not a log: give {LOG_KINDS}, a data frame, or scores in one dimension"
        )
    if not isinstance(source, str | Path):
        return read_frame(source, options)
    path, model = _path_and_model(source)
    options = replace(options, model=model)
    if is_table(regular(path)):
        return read_log_table(path, options)
    reader = _reader(path, model)
    # Installed packages are asked after the known harnesses, as this imports them.
    if reader is None and (found := installed_rows(path)):
        layout, rows = found
        return logs_of(path, rows, options, layout)
    # lm_eval's results may have any name: whatever nobody else knows is left to its reader.
    if reader is None and path.suffix == ".json":
        from souping.logs.lm_eval import read_lm_eval

        reader = read_lm_eval
    if reader is None:
        raise UserError(f"{path}: not a log: give {LOG_KINDS}")
    return (_read_harness(reader, path, options),)


def _reader(path: Path, name: str) -> HarnessReader | None:
    """The reader of what a known harness wrote at a path, for the model `name` if it has several; else None."""
    # Imported here, as tables are read without them.
    from souping.logs.bfcl import read_bfcl
    from souping.logs.inspect import is_inspect, read_inspect
    from souping.logs.lm_eval import RESULTS, read_lm_eval, results_of
    from souping.logs.runs import read_run

    if (path / "report.json").is_file():
        return read_run
    if (path / "result").is_dir() or (path / "score").is_dir():
        return read_bfcl
    files = [path]
    if not path.is_file():
        files = [file for file in path.iterdir() if file.is_file()]
    if any(map(is_inspect, files)):
        return read_inspect
    if path.match(RESULTS) or (path.is_dir() and results_of(path, name)):
        return read_lm_eval
    return None


def _read_harness(reader: HarnessReader, path: Path, options: TableOptions) -> Log:
    """The log that a harness wrote. It is split by category if the options name a field of the category.

    Raises:
        UserError: an option is for tables, or the log cannot be read.
    """
    if options.lower:
        raise UserError(f"{path}: --lower-is-better is for tables, this log has its own direction")
    if {"item", "score", "repeat"} & options.fields.keys():
        raise UserError(f"{path}: --item, --score and --repeat are for tables: leave them out")
    category = options.fields.get("category", "")
    log = reader(path, options.model, options.fields.get("group", ""))
    if not category:
        return log
    # Read again, so that each answer has its category as group.
    with_categories = reader(path, options.model, category)
    _check_field([with_categories], category, "category")
    return _by_category(log, with_categories)


def _path_and_model(source: str | Path) -> tuple[Path, str]:
    """(path, model) from `PATH` or `PATH:MODEL`; the model is empty in the first.

    Both may contain colons: the path is the longest beginning that exists (UserError if none exists).
    """
    path = expanded(str(source))
    if path.exists():
        return path, ""
    text = str(path)
    for place in range(len(text) - 1, -1, -1):
        if text[place] == ":" and Path(text[:place]).exists():
            return Path(text[:place]), text[place + 1 :]
    raise UserError(f"{source}: no such file or folder")
