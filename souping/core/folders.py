"""Folders that appear whole or not at all, and folders that go when their holder is gone.

A folder is written beside its place, flushed to the disk, then renamed. A lock file shows whether a living process
holds a folder.
"""

from __future__ import annotations

import glob
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

from souping.core.files import expanded
from souping.core.open_files import lock
from souping.core.types import UserError

LOCK_FILE = ".lock"
STAGING_MARK = ".souping"
"""File that marks a staging folder of ours, so that a user's folder of that name is never removed."""


def numbered_folders(path: Path) -> Iterator[Path]:
    """A path, then `path_2`, `path_3`, ... A path without a name (`.` or `/`) raises UserError at the second."""
    yield path
    if not path.name:
        raise UserError(f"out={path} is not empty: name a new folder")
    yield from (path.with_name(f"{path.name}_{number}") for number in count(2))


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into; it becomes `out` when the block ends well, else nothing is left.

    `out` must be absent or an empty folder: a soup never replaces anything. One run at a time writes it; the lock is
    beside the stage and is held until the stage has become `out`. Stages of killed runs are removed first.

    Raises:
        UserError: `out` is not empty, or another run writes it.
        OSError: its parent cannot be written, or the disk is full.
    """
    out = Path(os.path.abspath(expanded(out)))
    occupied = out.is_symlink() or (out.exists() and not out.is_dir())
    if occupied or (out.is_dir() and any(out.iterdir())):
        raise UserError(
            f"{out} exists and is not an empty folder: choose another place, or remove it first"
        )
    new_folders = missing_folders(out.parent)
    stage = out.parent / f".{out.name}.part-{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            for mark in out.parent.glob(f".{glob.escape(out.name)}.part-*/{STAGING_MARK}"):
                shutil.rmtree(mark.parent, ignore_errors=True)
            stage.mkdir()
            (stage / STAGING_MARK).touch()
            try:
                yield stage
                _finish(stage, out)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
    except BaseException as error:
        discard(out.parent, new_folders)
        if isinstance(error, OSError) and (
            error.filename is None or str(stage) in str(error.filename)
        ):
            # The stage is gone, and a full disk names no file.
            error.filename = str(out)
        raise


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the lock of `out` during the block, so that one process writes it (UserError if another one does)."""
    lock_file = out.with_name(f".{out.name}{LOCK_FILE}")
    with lock_file.open("a") as file:
        try:
            lock(file.fileno(), wait=False)
            # If its holder has just ended, it removed this file, and another one may hold a new file.
            if os.fstat(file.fileno()).st_ino != lock_file.stat().st_ino:
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            raise UserError(
                f"{out}: another run is writing there: choose another place, or wait for its end"
            ) from None
        # souping's lock files are empty.
        if os.fstat(file.fileno()).st_size:
            raise UserError(
                f"{lock_file} is not souping's lock: choose another place for the soup, or move that file"
            )
        try:
            yield
        finally:
            with suppress(OSError):  # an empty lock file that stays does no harm
                lock_file.unlink()


def _finish(stage: Path, out: Path) -> None:
    """Flush all files of the stage, then its folders, and rename it."""
    paths = [*stage.rglob("*")]
    for path in paths:
        if path.is_file():
            _sync(path)
    for path in (stage, *paths):
        if path.is_dir():
            _sync(path)
    (stage / STAGING_MARK).unlink()
    os.rename(stage, out)
    # The soup is there, even if the folder above cannot be flushed.
    with suppress(OSError):
        _sync(out.parent)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_files(stage: Path, files: Mapping[str, str | bytes]) -> None:
    """Write {name: content} into the staging folder; a name may have folders in it."""
    for name, content in files.items():
        path = stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def missing_folders(folder: Path) -> list[Path]:
    """Which of a folder and the folders above it do not exist yet, the deepest first, for `discard`."""
    folder = folder.absolute()
    return [path for path in (folder, *folder.parents) if not path.exists()]


def discard(folder: Path, new_folders: Collection[Path], early: Collection[str] = ()) -> None:
    """Remove what a refused run made: its files, which have names in `early`, its folder, and empty folders above it.

    Nothing is removed if the folder holds anything else. A folder stays unless it, or one above it, is among the
    `new_folders`, which the run made.
    """
    folder = folder.absolute()
    # A folder that holds more cannot be removed, and an error here must not hide the one that refused the run.
    with suppress(OSError):
        content = list(folder.iterdir()) if folder.is_dir() else []
        if any(path.name not in early or not path.is_file() for path in content):
            return
        for path in content:
            path.unlink()
        for path in (folder, *folder.parents):
            if not {path, *path.parents}.intersection(new_folders):
                return
            with suppress(FileNotFoundError):  # the run was refused before it made this one
                path.rmdir()


def hold_folder(folder: Path) -> IO[str]:
    """Mark a folder as in use until the returned file is closed or this process has ended, even if it was killed."""
    new = folder / f"{LOCK_FILE}.new"
    file = new.open("w")
    lock(file.fileno())
    # The file gets its name once it is locked, so that no process finds it unlocked.
    new.rename(folder / LOCK_FILE)
    return file


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that lock this folder waiting until the end of the block."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def check_unlinked(run_dir: Path) -> None:
    """Refuse a run's folder that has links, pipes or devices (UserError): to write there would change other files.

    The logs and models of soups that others evaluate may be links: they are only read, and removed.
    """
    for pattern in ("*", "asked/*", "asked/*/*"):
        for name in glob.glob(pattern, root_dir=run_dir, include_hidden=True):
            # Another process may just have renamed it.
            with suppress(FileNotFoundError):
                status = (run_dir / name).lstat()
                is_single = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
                if not is_single and not stat.S_ISDIR(status.st_mode):
                    raise UserError(
                        f"{run_dir / name} is a link, a pipe or a device: put a copy of what it leads to in its place"
                    )


def remove_abandoned(folders: Iterable[Path]) -> None:
    """Remove folders that nobody holds: their writers were killed."""
    for folder in folders:
        with suppress(OSError), (folder / LOCK_FILE).open("a") as file:
            # Raises OSError if a process holds the folder, which then stays.
            lock(file.fileno(), wait=False)
            shutil.rmtree(folder, ignore_errors=True)
