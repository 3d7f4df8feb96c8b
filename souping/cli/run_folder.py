"""Folder of a run: claimed when it starts, and removed again if the run is refused."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from souping.core.folders import discard, missing_folders, numbered_folders
from souping.core.types import LateError
from souping.report.progress import EARLY

CLAIM = ".running"
_MADE: set[Path] = set()
"""Folders that were not there before this process: those of its runs, and the folders above them."""


def claim(run_dir: Path) -> Path:
    """Make and mark an empty folder as this run's own: `run_dir`, or if that is not empty the first free of `_2`, `_3`
    and so on."""
    for path in numbered_folders(run_dir):
        note_missing(path)
        path.mkdir(parents=True, exist_ok=True)
        # Another process may claim it at the same time: only one can create the mark.
        with suppress(FileExistsError):
            (path / CLAIM).touch(exist_ok=False)
            if {file.name for file in path.iterdir()} == {CLAIM}:
                break
            (path / CLAIM).unlink()
    if path != run_dir:
        print(f"note: {run_dir} is not empty: this run is in {path}", file=sys.stderr)
    return path


def note_missing(path: Path) -> None:
    """Remember which folders of a path are not there yet: only those are this process's to remove."""
    _MADE.update(missing_folders(path))


def discard_refused(run_dir: Path, error: Exception) -> None:
    """Remove the folder of a run that was refused, if it holds only files that runs write before they have results.

    Empty folders above it go too if this process made them. Results, a store, a traceback and the user's folders stay.
    """
    # A late error comes after results.
    if not isinstance(error, LateError):
        discard(run_dir, _MADE, (CLAIM, *EARLY))
