"""Command line; here, its first moment: until a job begins, an interrupt ends the process at once and in one line."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


def leave(signum: int, frame: FrameType | None) -> None:
    """End the process: nothing was begun, and imports that are cut short would say so in thirty lines."""
    try:
        os.write(2, b"interrupted: nothing was begun\n")
    finally:
        os._exit(130)


def interrupts_end() -> None:
    """Leave at an interrupt; one that the caller ignores stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def interrupts_raise() -> None:
    """From here an interrupt is a `KeyboardInterrupt` again."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
