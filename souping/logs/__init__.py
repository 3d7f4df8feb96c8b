"""Logs of evaluations by any harness, read into one shape (`records`), and matched item by item (`match`)."""

from __future__ import annotations

import gc
from pathlib import Path

from souping.core.files import expanded
from souping.core.types import UserError
from souping.logs.bfcl import read_bfcl
from souping.logs.inspect import is_inspect, read_inspect
from souping.logs.lm_eval import read_lm_eval, results_of
from souping.logs.records import Log
from souping.logs.runs import read_run
from souping.logs.tables import Frame, is_table, read_frame, read_table

KINDS = (
    "an output folder of lm_eval, a BFCL project (result/ and score/), a log of inspect_ai, a run of souping, "
    "or CSV or JSONL with item, category and score"
)


def read(source: str | Path | Frame, *, group: str = "") -> tuple[Log, ...]:
    """The logs at a path, or in a data frame: one, or several training runs where a table has a column `run`.

    `PATH:MODEL` names one of several models. `group` is the field of the documents (or the column) that says which
    items belong together.

    Raises:
        UserError: what is there is no log, or a damaged one.
    """
    enabled = gc.isenabled()
    gc.disable()  # many small objects that all stay: to look for circles among them takes a third of the time
    try:
        return _read(source, group)
    finally:
        if enabled:
            gc.enable()


def _read(source: str | Path | Frame, group: str) -> tuple[Log, ...]:
    if not isinstance(source, str | Path):
        return read_frame(source, group)
    path, name = expanded(str(source)), ""
    if not path.exists() and ":" in path.name:
        head, _, name = str(path).rpartition(":")
        path = Path(head)
    if not path.exists():
        raise UserError(f"{source}: no such file or folder")
    if is_table(path):
        return read_table(path, group)
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    if (path / "report.json").is_file():
        return (read_run(path, name, group),)
    if (path / "result").is_dir() or (path / "score").is_dir():
        return (read_bfcl(path, name, group),)
    if any(map(is_inspect, files)):
        return (read_inspect(path, name, group),)
    if path.suffix == ".json" or (path.is_dir() and results_of(path, name)):
        return (read_lm_eval(path, name, group),)
    raise UserError(f"{path}: not a log: give {KINDS}")
