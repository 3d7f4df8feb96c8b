"""A server's process: its own group, its log file, and an end that is certain."""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
GRACE = 10.0
"""Seconds that a server gets to end by itself."""


class Process:
    """A command in a process group of its own, which ends with `stop`, with this interpreter, or when this process is
    killed, whichever comes first (see `guard`). Its output goes to `log`, nothing goes to the terminal, and a Ctrl-C
    there reaches the run alone.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self._begin = out.tell()  # what stands before is of an earlier server
            self._guard = subprocess.Popen(
                [sys.executable, str(GUARD), str(GRACE), *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        self._over = False
        atexit.register(self.stop)

    @property
    def group(self) -> int:
        """The process group that holds the server and all that it starts."""
        return self._guard.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs. One that has ended is left unreaped until `stop`: its group's number stays ours."""
        if self._over:
            return False
        return os.waitid(os.P_PID, self._guard.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def stop(self) -> None:
        """End the whole group; returns when it is gone."""
        if self._over:
            return
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            _ended(self._guard.pid, GRACE + 5)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._guard.pid, signal.SIGKILL)  # what is left, if the guard itself was killed
            self._guard.wait()
            self._over = True
            atexit.unregister(self.stop)

    def said(self) -> str:
        """What this process wrote to its log."""
        try:
            return self.log.read_bytes()[self._begin :].decode("utf-8", errors="replace")
        except OSError:
            return ""

    def reason(self) -> str:
        """The line of the log that tells most: the last that names an error, else the last."""
        lines = [line.strip(" │|") for line in self.said().splitlines()]
        lines = [line for line in lines if line and not re.fullmatch(r"[─╭╰╮╯=\-]+", line)]
        errors = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b.*:|(?i:error):|^usage:", line)]
        return (errors or lines or ["it said nothing"])[-1][:300]


def _ended(pid: int, seconds: float) -> bool:
    """Wait for a child's end without reaping it; whether it came."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.02)
    return False
