"""Near misses: what somebody may have meant by a name that is not there.

Types of command-line arguments that several of the package's own commands take.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def nearest(name: str, options: Iterable[Any]) -> str:
    """`; did you mean NAME?` for the end of an error's line, nothing where no option is near."""
    near = get_close_matches(name, [str(option) for option in options], n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def positive(text: str) -> int:
    """An integer of at least 1, for `argparse`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
