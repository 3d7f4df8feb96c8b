"""Folder of a run: claimed when it starts, and removed again if the run is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

from souping.core.folders import discard, missing_folders
from souping.core.types import LateError
from souping.report.progress import EARLY

CLAIM = ".running"
_MADE: set[Path] = set()
"""Folders that were not there before this process: those of its runs, and the folders above them."""


def claim(run_dir: Path, explicit: bool) -> tuple[Path, bool]:
    """(the run's own directory, whether it is this run's to remove).

    Two runs of one second would share a directory: the later gets `_2`. A directory that the user named is taken as it
    is, unless it holds a run already, and unless it is empty it is never removed.
    """
    for path in numbered_folders(run_dir):
        note_missing(path)
        path.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (path / CLAIM).touch(exist_ok=False)
            names = {file.name for file in path.iterdir()}
            if names == {CLAIM}:
                if explicit and path != run_dir:
                    print(
                        f"note: {run_dir} holds a run already: this one is in {path}",
                        file=sys.stderr,
                    )
                return path, True
            (path / CLAIM).unlink()
            if explicit and "config.yaml" not in names:
                break
    return path, False


def note_missing(path: Path) -> None:
    """Remember which folders of a path are not there yet: only those are this process's to remove."""
    _MADE.update(missing_folders(path))


def discard_refused(run_dir: Path, owned: bool, error: Exception) -> None:
    """A refused run leaves nothing of its own, and takes nothing else with it.

    Its folder goes while only early files are in it, and the folders above that this process made. Results, a store, a
    traceback and folders of the user's stay.
    """
    if owned and not isinstance(error, LateError):
        discard(run_dir, _MADE, (CLAIM, *EARLY))


def numbered_folders(path: Path) -> Iterator[Path]:
    """A path, then `path_2`, `path_3`, ..."""
    yield path
    yield from (path.with_name(f"{path.name}_{number}") for number in count(2))
