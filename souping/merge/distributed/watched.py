"""Launcher of ranks that ends with the process that started it: `python -m ... PARENT MODULE ARGUMENTS...`.

Neither can rely on a pipe: ranks inherit the launcher's ends, and read nothing before they have met.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

LAUNCHER = "SOUPING_LAUNCHER"
"""Variable that tells the ranks the launcher's process number."""
BEAT = 0.3
GRACE = 5.0


def end_with(parent: int) -> None:
    """Make this process end once its parent is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(BEAT)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher ends its ranks, and clears up
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    os.environ[LAUNCHER] = str(os.getpid())
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
