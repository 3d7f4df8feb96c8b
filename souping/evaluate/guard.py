"""Guard of processes that must not outlive the one which started them.

`python guard.py GRACE run COMMAND...` runs a command, `python guard.py GRACE watch PID...` watches processes that are
there already. The starter holds the other end of the guard's standard input. When that closes, on purpose or because
the starter is gone (an exception, Ctrl-C, `kill -9`), they are asked to end, and after GRACE seconds made to: the whole
process group of a command, processes by their numbers with all that they started. This file runs by itself: standard
library only, and psutil to watch.
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
"""Seconds that processes get to end by themselves."""


class PidGuard:
    """Guard that ends the processes of these numbers and their children once this one is gone, or told to `stop`."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(GRACE), "watch", *map(str, pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C on the terminal is for the run
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it knows their children: from here nothing is lost

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
    """Ask the whole group to end, then make it, this process included."""
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
    """Wait until the starter is gone, then end these processes. One that was closed properly is gone by then."""
    import psutil

    roots: list[Process] = []
    children: list[Process] = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            roots.append(psutil.Process(pid))
            children += roots[-1].children(recursive=True)  # they are nobody's children once it is gone
    print("watching", flush=True)
    while os.read(0, 1):
        pass
    _end_each([*roots, *children], grace)


def _end_each(processes: Sequence[Process], grace: float) -> None:
    """Ask each to end, then make it; psutil refuses where the number is another process's by now."""
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, grace)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _stay(number: int, frame: FrameType | None) -> None:
    """Neither Ctrl-C nor a polite signal ends the guard before those that it guards."""


if __name__ == "__main__":
    main()
