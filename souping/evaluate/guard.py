"""Runs a command that cannot outlive the process which started it: `python guard.py GRACE COMMAND...`.

The starter holds the other end of this process's standard input. When that closes, on purpose or because the starter
is gone (an exception, Ctrl-C, `kill -9`), everything in this process group is asked to end, and after GRACE seconds
made to. Standard library only: this file runs by itself.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time


def main() -> None:
    grace, command = float(sys.argv[1]), sys.argv[2:]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stay)  # a function, not SIG_IGN: the command would inherit that
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", flush=True)
        sys.exit(127)
    while child.poll() is None:
        if select.select([0], [], [], 0.2)[0] and not os.read(0, 1):
            break
    _end(child, grace)


def _end(child: subprocess.Popen[bytes], grace: float) -> None:
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


def _stay(*_: object) -> None:
    """Neither Ctrl-C nor a polite signal ends the guard before its command."""


if __name__ == "__main__":
    main()
