"""Folders that appear whole or not at all, and folders that go when their holder is gone.

A folder is written beside its place, flushed to the disk, then renamed. A lock file shows whether a living process
holds a folder.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import IO

from souping.core.text import first_line, shown
from souping.core.types import UserError

LOCK_FILE = ".lock"
STAGING_MARK = ".souping"
"""File that marks a staging folder of ours, so that a user's folder of that name is never removed."""


def expanded(path: str | Path, key: str = "") -> Path:
    """The path with its `~` written out.

    Raises:
        UserError: nobody of that name has a home here; `key` is where the path was given.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        where = f"{key}={shown(str(path))}" if key else shown(str(path))
        raise UserError(
            f"{where}: there is no home folder here for that ~: write the whole path"
        ) from None


def regular(path: Path) -> Path:
    """The path of a file to read.

    Raises:
        UserError: there is a pipe, a device or a socket, from which reading may never end.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(
            f"{path} is a pipe, a device or a socket: write its content to a file first"
        )
    return path


def folder_at(text: str | None) -> Path | None:
    """The folder that a text from somebody else names, resolved; None for any other text, whatever it holds."""
    # Links in a circle are a RuntimeError before Python 3.13.
    with suppress(UserError, OSError, RuntimeError):
        return expanded(text).resolve() if text and expanded(text).is_dir() else None
    return None


def near_folder(path: str | Path) -> str:
    """`; did you mean FOLDER?` if a folder with nearly this name is beside the one that is missing."""
    missing = Path(path)
    with suppress(OSError, UserError):
        names = [folder.name for folder in expanded(missing).parent.iterdir() if folder.is_dir()]
        near = get_close_matches(missing.name, names, n=1)
        return f"; did you mean {missing.with_name(near[0])}?" if near else ""
    return ""


def error_text(error: Exception) -> str:
    """The message of an error; for an error of the file system, with the file's name."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{str(error.filename or 'file system')[:1000]}: {error.strerror or first_line(error)}"


def seen_from(run_dir: Path, path: Path) -> Path | None:
    """The file that a run's configuration names, from here or from a folder above the run's."""
    places = [path, *(folder / path for folder in run_dir.absolute().parents)]
    return next((place for place in places if place.is_file()), None)


def nearby(path: Path) -> str:
    """A path as it is shortest from here."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)


def disk_space(path: str | Path) -> tuple[int, int]:
    """(bytes free where `path` is or will be, number of that file system)."""
    place = expanded(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free, place.stat().st_dev


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into; it becomes `out` when the block ends well, else nothing is left.

    `out` must be absent or an empty folder: a soup never replaces anything. One run at a time writes it; the lock is
    beside the stage and is held until the stage has become `out`. Stages of killed runs are removed first.

    Raises:
        UserError: `out` is not empty, another run writes it, its parent cannot be written, or the disk is full.
    """
    out = Path(os.path.abspath(expanded(out)))
    if (
        out.is_symlink()
        or (out.exists() and not out.is_dir())
        or (out.is_dir() and any(out.iterdir()))
    ):
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
            error.filename = str(out)  # the stage is gone, and a full disk names no file
        raise


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Be the one who writes `out`."""
    place = out.with_name(f".{out.name}{LOCK_FILE}")
    with place.open("a") as file:
        try:
            lock(file.fileno(), wait=False)
            # its holder has just ended, another began
            if os.fstat(file.fileno()).st_ino != place.stat().st_ino:
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            raise UserError(
                f"{out}: another run is writing there: choose another place, or wait for its end"
            ) from None
        if os.fstat(file.fileno()).st_size:
            raise UserError(
                f"{place} is not souping's lock: choose another place for the soup, or move that file"
            )
        try:
            yield
        finally:
            with suppress(OSError):
                place.unlink()


def write_files(stage: Path, files: Mapping[str, str | bytes]) -> None:
    """Small files into the staging folder; names may have one level of folders."""
    for name, content in files.items():
        path = stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def missing_folders(folder: Path) -> list[Path]:
    """A path and the folders above it that do not exist yet, deepest first: what is made there is the caller's."""
    folder = folder.absolute()
    return [path for path in (folder, *folder.parents) if not path.exists()]


def discard(folder: Path, new_folders: Collection[Path], early: Collection[str] = ()) -> None:
    """Remove what a refused run made: its folder while only files of these names are in it, then the folders above that
    are empty. A folder is the run's where it, or one above it, is among those `new_folders`; all others stay."""
    folder = folder.absolute()
    with suppress(OSError):
        inside = list(folder.iterdir()) if folder.is_dir() else []
        if any(path.name not in early or not path.is_file() for path in inside):
            return
        for path in inside:
            path.unlink()
        for path in (folder, *folder.parents):
            if not {path, *path.parents}.intersection(new_folders):
                return
            with suppress(FileNotFoundError):
                path.rmdir()


def hold_folder(folder: Path) -> IO[str]:
    """Mark a folder as in use until the file is closed or this process is gone, however it goes."""
    new = folder / f"{LOCK_FILE}.new"
    file = new.open("w")
    lock(file.fileno())
    new.rename(folder / LOCK_FILE)  # under this name once it is held
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


def remove_abandoned(folders: Iterable[Path]) -> None:
    """Remove folders that nobody holds: their writers were killed."""
    for folder in folders:
        with suppress(OSError), (folder / LOCK_FILE).open("a") as file:
            lock(file.fileno(), wait=False)
            shutil.rmtree(folder, ignore_errors=True)


def _finish(stage: Path, out: Path) -> None:
    folders = [stage, *(path for path in stage.rglob("*") if path.is_dir())]
    for path in [*(path for path in stage.rglob("*") if path.is_file()), *folders]:
        _sync(path)
    (stage / STAGING_MARK).unlink()
    os.rename(stage, out)
    with suppress(OSError):  # the soup is there, even if the folder above cannot be flushed
        _sync(out.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> Path:
    """Write beside, then rename: a reader or a killed run never sees half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        error.filename = str(path)
        raise
    return path


# ------------------------------------------------------------ open files
# macOS lacks `posix_fallocate`, `posix_fadvise` and `preadv`.

UNABLE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def lock(descriptor: int, wait: bool = True) -> None:
    """Lock an open file until it is closed or its process ends.

    Raises:
        BlockingIOError: without `wait`, if another process holds it.
    """
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Read into `view` from an offset of the file; the number of bytes."""
    if hasattr(os, "preadv"):  # the system's
        return os.preadv(descriptor, [view], offset)
    piece = os.pread(descriptor, len(view), offset)
    view[: len(piece)] = piece
    return len(piece)


def write_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of `view` at an offset of the file."""
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset = offset + count


def reserve(descriptor: int, size: int) -> None:
    """Give a file its size. If the disk is too full, this fails early on systems that can reserve space.

    Raises:
        OSError: no space, or no permission to write.
    """
    try:
        if hasattr(os, "posix_fallocate"):  # the system's
            os.posix_fallocate(descriptor, 0, size)
            return
    except OSError as error:
        if error.errno not in UNABLE:
            raise
    os.ftruncate(descriptor, size)


def start_writing(descriptor: int, offset: int, size: int) -> None:
    """Start writing part of a file to the disk, so that the last flush is short.

    `POSIX_FADV_DONTNEED` on dirty pages starts their writing; they stay in the cache until then.
    """
    if offset >= 0 and hasattr(os, "posix_fadvise"):  # the system's
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)
