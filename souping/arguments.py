"""Types of command-line arguments that several of the package's own commands take."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """An integer of at least 1, for `argparse`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
