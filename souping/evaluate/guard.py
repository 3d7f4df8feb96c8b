"""Guard process: ends other processes once the process that started it is gone.

`python guard.py GRACE run COMMAND...` runs a command, `python guard.py GRACE watch PID...` watches running processes.
The starter holds the other end of the guard's standard input. When that closes, on purpose or because the starter is
gone (an exception, Ctrl-C, `kill -9`), the guard sends SIGTERM and, after GRACE seconds, SIGKILL: to the whole process
group of a command, or to the watched processes and all that they started. This file runs by itself: it needs only the
standard library, and psutil to watch.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from psutil import Process

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL."""


class PidGuard:
    """Guard that ends processes and their children once this process is gone, or at `stop`."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(GRACE), "watch", *map(str, pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C on the terminal is for the run
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # from here on it knows their children

    def stop(self) -> None:
        """End them now; returns when they are gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    grace, way, rest = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stay)  # a function, not SIG_IGN: the command would inherit that
    run(rest, grace) if way == "run" else watch([int(pid) for pid in rest], grace)


def run(command: Sequence[str], grace: float) -> None:
    """Run a command until it ends or the starter is gone."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", flush=True)
        sys.exit(127)
    while child.poll() is None:
        if select.select([0], [], [], 0.2)[0] and not os.read(0, 1):
            break
    _end_group(child, grace)


def _end_group(child: subprocess.Popen[bytes], grace: float) -> None:
    """End the whole group, this process included."""
    if child.returncode is not None:
        print(f"ended by itself with status {child.returncode}", flush=True)
    os.killpg(0, signal.SIGTERM)
    try:
        child.wait(grace)
        time.sleep(0.1)  # its own children
    except subprocess.TimeoutExpired:
        pass
    os.killpg(0, signal.SIGKILL)


def watch(pids: Sequence[int], grace: float) -> None:
    """Wait until the starter is gone, then end those of these processes that still run."""
    import psutil

    roots: list[Process] = []
    children: list[Process] = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            roots.append(psutil.Process(pid))
            children += roots[-1].children(recursive=True)  # once it is gone, they have another parent
    print("watching", flush=True)
    while os.read(0, 1):
        pass
    _end_each([*roots, *children], grace)


def _end_each(processes: Sequence[Process], grace: float) -> None:
    """End each process. psutil notices if a number belongs to another process by now."""
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, grace)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _stay(number: int, frame: FrameType | None) -> None:
    """Ctrl-C and SIGTERM do not end the guard before the processes that it guards."""


if __name__ == "__main__":
    main()
