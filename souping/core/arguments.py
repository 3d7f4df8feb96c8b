"""Types of arguments of commands, for `argparse`."""

from __future__ import annotations

import argparse

LONGEST_TIMEOUT_S = 1e7


def positive(text: str) -> int:
    """An integer of at least 1, for `argparse`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def seconds(text: str) -> float:
    """A number of seconds above 0, for `argparse`."""
    value = float(text)
    if not 0 < value <= LONGEST_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {LONGEST_TIMEOUT_S:g}")
    return value
