"""Ends an engine's processes when the run that started them is gone: `python watch.py PID...`.

The run holds the other end of this process's standard input, which closes with the run, even if that is killed. An
engine that was closed properly has no process left by then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

GRACE = 10.0
"""Seconds that the processes get to end by themselves."""


class Watch:
    """A process that ends `pids` and their children when this one is gone, or when it is told to `stop`."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *map(str, pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C on the terminal is for the run
        )

    def stop(self) -> None:
        """End them now; returns when they are gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    import psutil

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    roots = []
    for pid in sys.argv[1:]:
        with suppress(psutil.NoSuchProcess):
            roots.append(psutil.Process(int(pid)))
    known: list[Any] = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            known += root.children(recursive=True)  # they are nobody's children once it is gone
    while os.read(0, 1):
        pass
    _end([*roots, *known])


def _end(processes: Sequence[Any]) -> None:
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()  # refuses where the number is another process's by now
    _, alive = psutil.wait_procs(processes, GRACE)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    main()
