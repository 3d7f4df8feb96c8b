"""Log of a run, so that it can be retraced: what ran where, and what the terminal said, with times."""

from __future__ import annotations

import io
import os
import platform
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from souping.core.system import cores
from souping.core.text import safe
from souping.core.versions import commit, versions

LOG = "run.log"
EARLY = ("config.yaml", "selection.json", LOG)
"""Files that a run writes before it has results: one that is refused takes them with it."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
REDRAWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]")
"""What moves the cursor: a display that is drawn again and again is no line of a log."""


def command_line() -> str:
    """The command as it was typed, for a shell."""
    return shlex.join(["python", "-m", "souping", *sys.argv[1:]])


class Copy(io.TextIOBase):
    """Standard stream that also writes its finished lines to a log, each with its time."""

    def __init__(self, stream: TextIO, log: TextIO, lock: threading.Lock) -> None:
        self._stream, self._log, self._lock, self._line = stream, log, lock, ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        """The stream stays open, and may be closed before this is forgotten, when a flush would fail."""

    def write(self, text: str) -> int:
        self._stream.write(text)
        with self._lock, suppress(OSError, ValueError):  # a full disk, a log that is closed
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                plain = COLOUR.sub("", line).rsplit("\r", 1)[-1].rstrip()
                if plain and not REDRAWN.search(plain):
                    self._log.write(f"{time.strftime('%H:%M:%S')} {safe(plain)}\n")
        return len(text)


@contextmanager
def logged(run_dir: Path, command: str, overrides: str = "") -> Iterator[None]:
    """Write `run.log` in a run's directory while the block runs; the terminal shows what it always did.

    `command` is what was typed or called, `overrides` what a multirun made of it.
    """
    before = sys.stdout, sys.stderr
    with (run_dir / LOG).open("w", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
        log.write("\n".join(_head(command, overrides)) + "\n\n")
        lock = threading.Lock()
        sys.stdout, sys.stderr = (Copy(stream, log, lock) for stream in before)
        begun = time.monotonic()
        try:
            yield
        except BaseException as error:
            log.write(f"{time.strftime('%H:%M:%S')} ended by {type(error).__name__}: {safe(str(error))}\n")
            raise
        finally:
            log.write(f"{time.strftime('%H:%M:%S')} {time.monotonic() - begun:.1f} s\n")
            sys.stdout, sys.stderr = before


def _head(command: str, overrides: str) -> Iterator[str]:
    yield f"date       {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
    yield f"command    {safe(command)}"
    if overrides:
        yield f"overrides  {safe(overrides)}"
    yield f"folder     {safe(os.getcwd())}"
    yield f"host       {platform.node()}, {platform.system()} {platform.machine()}, {cores()} cores"
    if found := commit():
        yield f"commit     {found}"
    yield f"versions   {', '.join(f'{name} {number}' for name, number in versions().items())}"
