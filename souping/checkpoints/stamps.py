"""Stamps of files, by which a change after they were read is noticed."""

from __future__ import annotations

import time
from pathlib import Path

from souping.core.types import UserError

# nanoseconds: within a tick of the system's clock a file may change twice at one time
CLOCK_TICK_NS = 20_000_000
Stamp = tuple[int, int, int, int]
"""(size, mtime_ns, ctime_ns, inode) of a file; programs cannot set ctime."""


def stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def stamps_in(folder: Path) -> dict[str, Stamp]:
    """The stamps of the files of a folder, to be taken before they are read."""
    return {path.name: stamp(path) for path in folder.iterdir() if path.is_file()}


def check_stamp(path: Path, known: Stamp) -> None:
    """Raises UserError where a file is not what its stamp says."""
    try:
        same = stamp(path) == known
    except OSError:
        same = False
    if not same:
        raise changed_file(path)


def changed_file(path: Path) -> UserError:
    return UserError(
        f"{path} has changed since it was opened: start again when nothing writes there"
    )


def settled(path: Path) -> Stamp:
    """The stamp of a file, at a time when another change would give it another one."""
    now = stamp(path)
    age = time.time_ns() - now[2]
    if 0 <= age < CLOCK_TICK_NS:
        time.sleep((CLOCK_TICK_NS - age) / 1e9)
        return stamp(path)
    return now
