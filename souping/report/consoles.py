"""Where progress goes: beside the results on a terminal, among them in a log, so that errors stand alone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def side_console() -> Console:
    """Standard error where it is a terminal (a live display may be drawn there), else standard output."""
    from rich.console import Console

    return Console(stderr=sys.stderr.isatty(), highlight=False)
