"""Command line; here, its signals: until a job begins, an interrupt ends the process at once and in one line."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)


def leave(signum: int, frame: FrameType | None) -> None:
    """End the process: nothing was begun, and imports that are cut short would say so in thirty lines."""
    try:
        os.write(2, b"interrupted: nothing was begun\n")
    finally:
        os._exit(130)


def interrupts_end() -> None:
    """Leave at an interrupt; one that the caller ignores stays ignored."""
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):
        signal.signal(signal.SIGINT, leave)


class Ended(KeyboardInterrupt):
    """End by a signal, which clears up as an interrupt does. Arguments: words for it, exit status."""


def interrupts_raise() -> None:
    """From here an interrupt is a `KeyboardInterrupt` again, and so are SIGTERM and SIGHUP that nobody ignores."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def end(signum: int, frame: FrameType | None) -> None:
    """Leave through every clean-up, once: a second signal would stop those."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise Ended(f"ended by {signal.Signals(signum).name}", 128 + signum)
