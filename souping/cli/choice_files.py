"""Choices of the groups: the YAML files of `conf/`, and those of installed packages, which are not imported for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from souping.core.system import conf_folder
from souping.core.types import UserError, frozen

SEARCH_PATH = "hydra.searchpath="


@frozen
class InstalledChoice:
    """Choice that the installed `package` brings; `searched` is the package's folder of groups."""

    name: str
    package: str
    file: Path
    searched: Path


def groups() -> list[str]:
    """Names of the groups: the folders of `conf/`."""
    return sorted(
        path.name
        for path in conf_folder().iterdir()
        if path.is_dir() and not path.name.startswith("_")
    )


def choices(group: str) -> list[str]:
    """Names of a group's choices: its files."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


@cache
def _folders() -> tuple[list[tuple[str, Path]], list[str]]:
    """((package, its folder of groups) by the entry points `souping.conf`, a line on each that names no folder)."""
    from importlib.util import find_spec

    from souping.core.installed import broken_entry, entry_points

    found = []
    faults = []
    for package, entry in entry_points():
        if entry.group != "souping.conf":
            continue
        root, *below = entry.value.split(".")
        places = list[str]()
        # The root may be no name of a module, or a module that cannot be found.
        with suppress(ImportError, ValueError):
            spec = find_spec(root)
            places = list(spec.submodule_search_locations or ()) if spec else []
        folders = [Path(place, *below) for place in places]
        searched = next(filter(Path.is_dir, folders), None)
        if searched is None:
            faults.append(str(broken_entry(package, entry, "there is no such folder of choices")))
        else:
            found.append((package, searched))
    return found, faults


def installed_choices(group: str) -> list[InstalledChoice]:
    """The choices of a group that installed packages bring."""
    found = []
    for package, searched in _folders()[0]:
        for file in sorted((searched / group).rglob("*.yaml")):
            name = file.relative_to(searched / group).with_suffix("").as_posix()
            found.append(InstalledChoice(name=name, package=package, file=file, searched=searched))
    return found


def package_faults() -> list[str]:
    """A line on each package whose choices cannot be found."""
    return _folders()[1]


def check_choice(group: str, choice: InstalledChoice) -> None:
    """Refuse an installed choice whose name souping, or another package, has too (UserError)."""
    word = f"{group}={choice.name}"
    others = [other.package for other in installed_choices(group) if other.name == choice.name]
    if choice.name in choices(group):
        others = ["souping", choice.package]
    if len(others) > 1:
        owners = " and of ".join(others)
        raise UserError(f"{word} is a choice of {owners}", fix=f"pip uninstall {others[-1]}")


def with_installed(words: Sequence[str]) -> list[str]:
    """Overrides, with Hydra's search path for the installed packages whose choices they name.

    Raises:
        UserError: souping, or another package, has a choice of that name too.
    """
    places = dict[str, None]()
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        # Without the place that Hydra lets follow: `group@place=choice`.
        group = key.partition("@")[0]
        # Packages may also bring choices of Hydra's own groups, such as `hydra/launcher`.
        if not group.startswith("hydra/") and group not in groups():
            continue
        # One name or several: a list, or the values of a multirun, with or without quotes.
        names = re.split(r"[][(),'\"\s]+", value)
        for choice in installed_choices(group):
            if choice.name in names:
                check_choice(group, choice)
                places[f'"file://{choice.searched}"'] = None
    if not places:
        return list(words)
    typed = [word.removeprefix(SEARCH_PATH) for word in words if word.startswith(SEARCH_PATH)]
    searched = ",".join(filter(None, [*(word.strip("[]") for word in typed), *places]))
    others = [word for word in words if not word.startswith(SEARCH_PATH)]
    return [*others, f"{SEARCH_PATH}[{searched}]"]
