"""Parts that installed packages bring, named by their entry points. A package is imported when its part is needed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from souping.core.text import first_line
from souping.core.types import UserError, frozen

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

log = logging.getLogger(__name__)
PREFIX = "souping."
"""Beginning of the groups of entry points: `souping.conf`, `souping.logs`, `souping.layouts`."""


@frozen
class NamedPart:
    """A part with a name of its own, and the installed package that brings it; empty: souping."""

    name: str
    package: str = ""

    @property
    def remedy(self) -> str:
        """How to remove the part."""
        return f"pip uninstall {self.package}" if self.package else ""


PartT = TypeVar("PartT", bound=NamedPart)


@cache
def entry_points() -> tuple[tuple[str, EntryPoint], ...]:
    """(package, entry point of souping's), by package. Nothing of a package is imported."""
    from importlib.metadata import distributions

    found: dict[str, list[EntryPoint]] = {}
    for package in distributions():
        # Files of packages that are none of ours may hold anything.
        with suppress(TypeError, ValueError):
            if f"[{PREFIX}" in (package.read_text("entry_points.txt") or ""):
                # Of two that are called alike, Python imports the first.
                found.setdefault(package.name, list(package.entry_points))
    pairs = []
    for name in sorted(found):
        pairs += [(name, entry) for entry in found[name] if entry.group.startswith(PREFIX)]
    return tuple(pairs)


def remedy_for(module: str) -> str:
    """How to remove the package that brings parts in a module; empty if none does."""
    root = module.partition(".")[0]
    for package, entry in entry_points():
        if entry.value.partition(".")[0].partition(":")[0] == root:
            return f"pip uninstall {package}"
    return ""


def broken_entry(package: str, entry: EntryPoint, why: str) -> UserError:
    """The error of an entry point that brings nothing."""
    what = f"{entry.group} of the package {package}: {entry.name} = {entry.value}: {why}"
    return UserError(what, fix=f"pip uninstall {package}")


def installed_parts(
    group: str,
    kind: type[PartT],
    known: Collection[str],
    check: Callable[[PartT], object] | None = None,
) -> tuple[PartT, ...]:
    """The parts of a kind that installed packages bring, which are imported here.

    `known` are the names of souping's own parts, and `check` raises an error for a part that cannot be used. A part is
    left out with a warning if it is broken or another one has its name, so that all others can still be used.
    """
    parts: list[tuple[EntryPoint, PartT]] = []
    for package, entry in entry_points():
        if entry.group != group:
            continue
        # A module may do anything while it is imported.
        try:
            part = entry.load()
            if not isinstance(part, kind):
                raise TypeError(f"not a {kind.__name__}")
            if check:
                check(part)
            parts.append((entry, replace(part, package=package)))
        except (Exception, SystemExit) as error:
            log.warning(
                str(broken_entry(package, entry, f"{type(error).__name__}: {first_line(error)}"))
            )
    count = Counter([*known, *(part.name for _, part in parts)])
    for entry, part in parts:
        if count[part.name] > 1:
            owner = "souping" if part.name in known else "another package"
            log.warning(str(broken_entry(part.package, entry, f"{owner} has a {part.name} too")))
    return tuple(part for _, part in parts if count[part.name] == 1)
