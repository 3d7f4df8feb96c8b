"""Paths and files: where they are, whether they can be read, and writes that are never seen half done."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

from souping.core.text import first_line, one_line, shown
from souping.core.types import UserError

UNPACKED_BYTES = 1 << 28
UNPACKED_RATIO = 100
OUTPUTS = Path("outputs")
"""The folder of runs, plans and checks, and of the store."""


def expanded(path: str | Path, key: str = "") -> Path:
    """The path with its `~` written out.

    Raises:
        UserError: nobody of that name has a home here, or no file can have that name; `key` is where it was given.
    """
    if "\0" in str(path):
        raise UserError(f"{key or 'path'}={shown(str(path))}: no file name holds a NUL")
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


def unpacked_limit(path: Path) -> int:
    """Bytes that the content of a compressed file may have: a few kilobytes can hold more than any memory."""
    return max(UNPACKED_BYTES, UNPACKED_RATIO * path.stat().st_size)


def sized(path: Path, most_bytes: int) -> Path:
    """The path of a file to read as a whole (UserError: it is larger than any such file, or no regular file)."""
    if regular(path).stat().st_size > most_bytes:
        raise UserError(f"{path}: larger than {most_bytes:,} bytes, which no such file is")
    return path


def folder_at(text: str | None) -> Path | None:
    """The folder that a text from somebody else names, resolved; None for any other text, whatever it holds."""
    # A text that is no path names no folder. A loop of links is a RuntimeError before Python 3.13.
    with suppress(UserError, OSError, RuntimeError):
        if text and expanded(text).is_dir():
            return expanded(text).resolve()
    return None


def near_folder(path: str | Path) -> str:
    """`; did you mean FOLDER?` if there is a folder whose path differs from the missing one in a nearly equal name.

    Empty if the folder is not missing.
    """
    # The first folder on the path that is missing, and what the path has below it.
    missing = Path(path)
    below = Path()
    # A folder that cannot be read gives no hint.
    with suppress(OSError, UserError):
        while missing.name and not expanded(missing).parent.is_dir():
            below = missing.name / below
            missing = missing.parent
        names = [folder.name for folder in expanded(missing).parent.iterdir() if folder.is_dir()]
        for name in get_close_matches(missing.name, names, n=1):
            near = missing.with_name(name) / below
            if near != missing / below and expanded(near).is_dir():
                return f"; did you mean {one_line(str(near))}?"
    return ""


def error_text(error: Exception) -> str:
    """The message of an error; for an error of the file system, with the file's name."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{str(error.filename or 'file system')[:1000]}: {error.strerror or first_line(error)}"


@contextmanager
def errors_told() -> Iterator[None]:
    """Turn errors of files into a UserError, for the functions of the library. Commands report them where they end."""
    try:
        yield
    except OSError as error:
        raise UserError(error_text(error)) from error


def nearby(path: Path) -> str:
    """A path as text, relative to the current folder if it is below that."""
    absolute = path.absolute()
    if absolute.is_relative_to(Path.cwd()):
        path = absolute.relative_to(Path.cwd())
    return str(path)


def disk_space(path: str | Path) -> tuple[int, int]:
    """(bytes free where `path` is or will be, number of that file system)."""
    place = expanded(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free, place.stat().st_dev


def dated_path(name: str, kind: str, suffix: str = ".json") -> Path:
    """`outputs/NAME/KIND_DATE_TIME.json` for what a plan or a check found, with a number if that is there already."""
    stem = f"{kind}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    path = OUTPUTS / name / f"{stem}{suffix}"
    number = 2
    while path.exists():
        path = path.with_name(f"{stem}_{number}{suffix}")
        number += 1
    return path


def write_atomically(path: Path, content: bytes) -> Path:
    """Write to a file beside the path, then rename it: no reader ever sees half a file, even if the run is killed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):  # the first error is the one to report
            beside.unlink(missing_ok=True)
        # The user knows this file, not the one beside it.
        error.filename = str(path)
        raise
    return path
