"""Standard streams that cannot end a run: full, closed, or read by somebody who has seen enough."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from typing import Any, TextIO

from souping.core.text import fitted

LOST: list[str] = []
"""What could not be written to the end."""


class StandardStream(io.FileIO):
    """Standard output or error: where it is full or closed, that is said once and the run goes on without it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if error.errno != errno.EPIPE and self.fileno() == 1:  # a reader that has seen enough needs no word
                LOST.append("standard output")
                print(f"standard output: {error.strerror}; the run goes on without it", file=sys.stderr)
            return memoryview(data).nbytes


class WordStream(io.TextIOWrapper):
    """Text to a stream; on a terminal its lines end between words. What moves a cursor is left alone."""

    def write(self, text: str) -> int:
        if "\x1b" in text or not self.isatty():
            return super().write(text)
        super().write(fitted(text, shutil.get_terminal_size().columns))
        return len(text)


def open_streams() -> None:
    """Make the standard streams safe: a closed one is the null device, so that no file of the run takes its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _safe(1, sys.stdout, sys.__stdout__)
    sys.stderr = _safe(2, sys.stderr, sys.__stderr__)


def _safe(number: int, stream: TextIO | None, first: TextIO | None) -> TextIO:
    if stream is not None and (stream is not first or not isinstance(stream, io.TextIOWrapper)):
        return stream  # somebody else's: a test's, a notebook's
    known = stream if isinstance(stream, io.TextIOWrapper) else None
    return WordStream(
        io.BufferedWriter(StandardStream(number, "w", closefd=False)),
        encoding=known.encoding if known else "utf-8",
        errors=known.errors if known else "backslashreplace",
        line_buffering=known.line_buffering if known else True,
        write_through=known.write_through if known else False,
    )


def stop(message: str, code: int) -> None:
    """End the process with a word on standard error."""
    sys.stdout.flush()
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)
