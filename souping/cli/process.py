"""The process of the command line: its signals, and standard streams that cannot end a run."""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn, TextIO

ENDING = (signal.SIGTERM, signal.SIGHUP)
EXIT_STATUSES: list[int] = []
"""Exit statuses of what failed without ending the process: a job of a multirun, an output that is full."""
DEBUG = "SOUPING_DEBUG"
"""Environment variable with which errors show their traceback."""
REPLACE = "souping-replace"
"""Name of the handler of characters that a standard stream cannot show."""


class Ended(KeyboardInterrupt):
    """End by a signal, which cleans up as an interrupt does. Arguments: a description, the exit status."""


def interrupts_raise() -> None:
    """From here on, an interrupt raises a `KeyboardInterrupt`, and so do SIGTERM and SIGHUP unless they are ignored."""
    # Only the main thread may set handlers.
    if threading.current_thread() is not threading.main_thread():
        return
    # Until a job begins, Ctrl-C ends the process at once, without a traceback of imports.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def end(signum: int, frame: FrameType | None) -> None:
    """Handler of signals: end the process through all clean-ups, and ignore further signals, which would stop those."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise Ended(f"ended by {signal.Signals(signum).name}", 128 + signum)


class StandardStream(io.FileIO):
    """Standard output or error. If it is full or closed, one message says so and the run goes on."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # From here on, everything goes to the null device.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            # A reader that closed the pipe (`| head`) needs no message. One about standard error has nowhere to go.
            if error.errno != errno.EPIPE and self.fileno() == 1:
                EXIT_STATUSES.append(2)
                print(
                    f"standard output: {error.strerror}; the run goes on without it",
                    file=sys.stderr,
                )
            return memoryview(data).nbytes


def open_streams() -> None:
    """Make the standard streams safe: a closed one becomes the null device, so that no file of the run replaces it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _safe(1, sys.stdout, sys.__stdout__)
    sys.stderr = _safe(2, sys.stderr, sys.__stderr__)


def _safe(number: int, stream: TextIO | None, first: TextIO | None) -> TextIO:
    """A stream of this file descriptor that no error of writing ends; `first` is the one that Python opened.

    A stream that somebody put in its place is returned as it is.
    """
    if stream is not None and (stream is not first or not isinstance(stream, io.TextIOWrapper)):
        return stream  # a test's or a notebook's
    encoding = stream.encoding if stream else "utf-8"
    # Whatever handler PYTHONIOENCODING names: most of them raise an error.
    errors = REPLACE if number == 1 else "backslashreplace"
    raw = io.BufferedWriter(StandardStream(number, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding=encoding, errors=errors, line_buffering=True)


def replace(error: UnicodeError) -> tuple[str, int]:
    """Handler of encoding errors: (a plain hyphen per minus sign and a question mark per other character, where to go
    on)."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].replace("\N{MINUS SIGN}", "-")
    return re.sub("[^-]", "?", text), error.end


codecs.register_error(REPLACE, replace)


def stop(message: str, code: int) -> NoReturn:
    """End the process with a message on standard error."""
    sys.stdout.flush()
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)
