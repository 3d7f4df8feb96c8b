"""Help, version and commands, which are answered before Hydra is loaded.

A command is the first word on the command line: a module with `main(arguments) -> exit status`, or a run with some
overrides added. Errors of its `main` are reported as those of a run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from souping.core.text import nearest
from souping.core.types import UserError
from souping.core.versions import __version__

FLAGS = ("--help", "-h")


@dataclass(frozen=True)
class Command:
    """What a word does, in a line for the help; `module` is what runs, without one it is a run with `overrides`."""

    does: str
    module: str = ""
    overrides: tuple[str, ...] = ()


COMMANDS: Mapping[str, Command] = {
    "check": Command("check a run as its plan does, and try it on five items per category", overrides=("check=true",)),
    "show": Command("show answers of a run side by side: what the soup fixed, what it broke", "souping.cli.show"),
}
"""A row a command; `conf/config.yaml` lists them in its help."""


RUN = re.compile(r"\+{0,2}run=(.*)", re.DOTALL)
"""Override that names a finished run."""


def finished_run(words: Sequence[str]) -> str | None:
    """The folder of a finished run that `run=` names, the last of several."""
    return next((match[1] for word in reversed(words) if (match := RUN.fullmatch(word))), None)


def folder() -> Path:
    """Where the YAML files lie: in the installed package, or beside it in a checkout."""
    packaged = Path(__file__).resolve().parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "conf"


def answered(words: Sequence[str]) -> bool:
    """Print what `--version`, `help`, `--help` or `help NAME...` ask for; False where the words are something else.

    Raises:
        UserError: there is no such group or command, or a person types what a shell asks for.
    """
    if "COMP_LINE" not in os.environ and any(
        word.startswith("query=") for word in words if {*words} & {"-sc", "--shell-completion"}
    ):
        raise UserError('-sc query=SHELL is for the shell alone: type eval "$(souping -sc install=bash)" once')
    if "--version" in words:
        print(f"souping {__version__}")
        return True
    asked = [word for word in words if word not in FLAGS][words[:1] == ["help"] :]
    if len(asked) == len(words) or not all(word.isidentifier() for word in asked):
        return False
    if asked and (command := COMMANDS.get(asked[0])) and command.module:
        import_module(command.module).main([FLAGS[0]])
    print("\n".join(line for name in asked for line in keys(name)) if asked else overview())
    return True


def overview() -> str:
    """The help of `conf/config.yaml`, with the groups and their choices."""
    import yaml

    text = str(yaml.safe_load((folder() / "config.yaml").read_text())["hydra"]["help"]["template"])
    lines = "\n".join(f"{name}: {', '.join(choices(name))}" for name in groups())
    return text.replace("$APP_CONFIG_GROUPS", lines).rstrip()


def groups() -> list[str]:
    return sorted(path.name for path in folder().iterdir() if path.is_dir() and not path.name.startswith("_"))


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (folder() / group).glob("*.yaml"))


def keys(group: str) -> Iterator[str]:
    """The choices of a group, and their keys with defaults and remarks as files have them; or what a command does."""
    if group in COMMANDS:
        yield f"usage: python -m souping {group} OVERRIDE...\n\n{COMMANDS[group].does}"
        return
    if group not in groups():
        known = [*groups(), *COMMANDS]
        raise UserError(f"help {group}: no such group or command{nearest(group, known)} ({', '.join(known)})")
    sign = "+" if group == "experiment" else ""
    for name in choices(group):
        yield f"{sign}{group}={name}"
        text = (folder() / group / f"{name}.yaml").read_text()
        yield from (f"  {line}" for line in text.splitlines() if not line.strip().startswith(("_", "# @")))
        yield ""


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
            raise UserError(f"{first} is no command{nearest(first, COMMANDS)} ({known}; overrides: KEY=VALUE)")
        return None, list(arguments)
    if command.module:
        return int(import_module(command.module).main(rest)), []
    return None, [*rest, *command.overrides]
