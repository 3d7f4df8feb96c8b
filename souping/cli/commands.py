"""Subcommands: words that stand first on the command line and are taken before Hydra reads it.

A command is a module with `main(arguments) -> exit status`, or a run with some overrides added. What its `main` raises
is told as a run's errors are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from souping.core.text import nearest
from souping.core.types import UserError


@dataclass(frozen=True)
class Command:
    """What a word does, in a line for the help; `module` is what runs, without one it is a run with `overrides`."""

    does: str
    module: str = ""
    overrides: tuple[str, ...] = ()


COMMANDS: Mapping[str, Command] = {
    "analyse": Command("make analyses of a finished run and add them to its report", "souping.cli.analyse"),
    "check": Command(
        "check a run as its plan does, and rehearse it on five items a category", overrides=("check=true",)
    ),
    "show": Command("show answers of a run side by side: what the soup fixed, what it broke", "souping.cli.show"),
}
"""A row a command; `conf/config.yaml` lists them in its help."""


def dispatch(arguments: Sequence[str]) -> tuple[int | None, list[str]]:
    """(exit status of the command that stands first, arguments for Hydra where a run shall follow).

    Raises:
        UserError: the first word is a bare one, and no command.
    """
    first, rest = "".join(arguments[:1]), list(arguments[1:])
    command = COMMANDS.get(first)
    if command is None:
        if re.fullmatch(r"[a-z][a-z_-]*", first):
            known = ", ".join(COMMANDS)
            raise UserError(
                f"{first} is no command{nearest(first, COMMANDS)} (commands: {known}; overrides: KEY=VALUE)"
            )
        return None, list(arguments)
    if command.module:
        return int(import_module(command.module).main(rest)), []
    return None, [*rest, *command.overrides]
