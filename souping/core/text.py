"""Texts for people: names safe to print, lists of them, near misses, checked arguments of command lines."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, options: Iterable[str]) -> str:
    """`; did you mean NAME?` for the end of an error's line, nothing where no option is near."""
    near = get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def shown(name: str) -> str:
    """A name from a file, safe to print: control characters escaped, long ones cut."""
    text = name.encode("unicode_escape", "backslashreplace").decode("ascii")
    return text if len(text) <= 120 else text[:117] + "..."


def listed(names: Iterable[str], limit: int = 10) -> str:
    """At most ten names, then a count."""
    every = [shown(name) for name in names]
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more


def first_line(error: BaseException) -> str:
    """The first line of a message that says something, with the one that it announces; the error's name without one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not re.match(r"(\d{3} |For more|Make sure|Please)", line)] or lines
    first = " ".join(useful[:2]) if useful and useful[0].endswith(":") else "".join(useful[:1])
    return (first or type(error).__name__).rstrip(".")[:300]


def positive(text: str) -> int:
    """An integer of at least 1, for `argparse`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
