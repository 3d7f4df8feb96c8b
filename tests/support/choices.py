"""Parameters of tests: rows of a conformance suite, held against the choices of a group in `conf/`; slow cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import pytest

from tests.conftest import ROOT

Row = TypeVar("Row")


def targets(group: str) -> dict[str, str]:
    """{choice: the class or function that it names} of `conf/GROUP`."""
    files = sorted((ROOT / "conf" / group).glob("*.yaml"))
    return {
        file.stem: re.findall(r"^ *_target_: (\S+)$", file.read_text(), re.MULTILINE)[0]
        for file in files
    }


def dotted(thing: type | Callable[..., object]) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def each(rows: Mapping[str, Sequence[Row]]) -> list[object]:
    """The rows as parameters, named after their choice."""
    return [
        pytest.param(row, id=f"{name}-{i}")
        for name, some in rows.items()
        for i, row in enumerate(some)
    ]


def differing(group: str, rows: Mapping[str, Sequence[object]]) -> dict[str, object]:
    """Choices without a row, and rows that are of another class than their choice names; empty where all is well."""
    shipped = targets(group)
    known = {}
    for name, of_choice in rows.items():
        known[name] = {dotted(type(row)) for row in of_choice}
    return {
        name: (shipped.get(name), known.get(name))
        for name in {*shipped, *known}
        if known.get(name) != {shipped.get(name)}
    }


def slow_unless(quick: Collection[str], names: Iterable[str]) -> list[object]:
    """Parameters of a test: the names, where those that are not `quick` are slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]
