"""`souping list`: the runs in a folder, and the newest of them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from souping.cli.commands import parser_of
from souping.core.files import OUTPUTS, expanded, near_folder
from souping.core.system import program
from souping.core.text import DASH, one_line
from souping.core.types import UserError
from souping.report.cells import grid
from souping.report.format import short
from souping.report.render import output_console, plain_table
from souping.report.run_files import read_report

RUN_MARK = "config.yaml"
RUN_REPORT = "report.json"


def list_runs(arguments: Sequence[str]) -> None:
    """Print the runs below a folder, the newest last: name, date, verdict, look, size on disk."""
    parser = parser_of("list", "The newest is the last.")
    parser.add_argument("folder", nargs="?", default=str(OUTPUTS), metavar="FOLDER")
    folder = expanded(parser.parse_args(arguments).folder)
    header = ("run", "date", "verdict", "look", "MB")
    rows = [(str(run.relative_to(folder)), *_row(run)) for run in runs_below(folder)]
    output_console(width=120).print(plain_table(grid(header, rows, left=(0, 1, 2))))


def runs_below(folder: Path = OUTPUTS) -> list[Path]:
    """Folders with the configuration of a run, the newest last. Links are not followed, nor folders inside a run.

    Raises:
        UserError: there are none.
    """
    runs = _runs_in(folder)
    if not runs:
        near = (
            near_folder(folder)
            or f": start one, `{program()} +experiment=bfcl`, or name its folder"
        )
        raise UserError(f"{one_line(str(folder))}: no run below it{near}")
    return runs


def named_runs(word: str) -> list[Path]:
    """The runs in the folder that a word names, the newest last; without any, that folder alone (UserError: none)."""
    folder = named_folder(word)
    return _runs_in(folder) or [folder]


def named_folder(word: str) -> Path:
    """The folder of a run by its path, or by its name in `souping list`, which is its path below `outputs/`.

    Raises:
        UserError: there is no such folder.
    """
    path = expanded(word)
    for folder in (path, OUTPUTS / path):
        if folder.exists():
            return folder
    near = near_folder(path) or near_folder(OUTPUTS / path)
    raise UserError(
        f"{one_line(word)}: no such folder here or below {OUTPUTS}/{near or f': `{program()} list` shows the runs'}"
    )


def _runs_in(folder: Path) -> list[Path]:
    """A folder with the configuration of a run, or all such folders below it, the newest last."""
    runs = list[Path]()
    for place, folders, files in os.walk(folder):
        if RUN_MARK in files:
            # `os.walk` then goes no deeper.
            folders.clear()
            runs.append(Path(place))
    return sorted(runs, key=_started)


def _started(run: Path) -> tuple[float, str]:
    """(when the configuration of a run was written, which happens once; the run's path), to order runs by."""
    return (run / RUN_MARK).lstat().st_mtime, str(run)


def _row(run: Path) -> tuple[str, str, str, str]:
    """(date, verdict, look, size in MB) of a run, as short texts, whatever its files hold."""
    date = DASH
    # Only somebody else's run has a time that is no date.
    with suppress(OverflowError, ValueError, OSError):
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(_started(run)[0]))
    verdict = "no verdict"
    look = DASH
    try:
        shown = read_report(run / RUN_REPORT).verdict
        if shown is not None:
            verdict = shown.claim.replace("_", " ")
            look = str(shown.look or DASH)
    except FileNotFoundError:
        verdict = "no report"
    except (UserError, OSError):
        verdict = "of another version, or damaged"
    return date, short(verdict, 40), short(look, 12), f"{_bytes_of(run) / 1e6:,.0f}"


def _bytes_of(folder: Path) -> int:
    """Size of all files below a folder, but for those that cannot be seen, or that a run removes meanwhile."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
