"""Help, version and completion of the command line, without Hydra."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain

from souping.cli.commands import COMMANDS, PLANNED
from souping.core.fields import pick
from souping.core.system import __version__, conf_folder, program


def completed() -> bool:
    """Print what completes the first words for a shell; False if Hydra has to complete further ones.

    The shell passes the line in the environment variable COMP_LINE. Hydra does not know commands, so this replaces a
    command there with the overrides that it stands for.
    """
    app, _, line = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    command, space, after = line.lstrip().partition(" ")
    if not space:
        print("\n".join(name for name in (*COMMANDS, "help") if name.startswith(command)))
        # It may become an override of `run`, which Hydra completes.
        return False
    if command == "help":
        print("\n".join((*COMMANDS, *groups())))
        return True
    if command not in COMMANDS:
        # Overrides of `run`.
        return False
    # A command that parses its own arguments has none, and no completion.
    overrides = COMMANDS[command].overrides
    if overrides is not None:
        os.environ["COMP_LINE"] = " ".join([app, *overrides, after])
    return overrides is None


HELP_FLAGS = ("--help", "-h")


def answered(words: Sequence[str]) -> bool:
    """Print what `--version`, `help`, `--help` or `help NAME...` request; False if the words are something else.

    Raises:
        UserError: there is no such group or command.
    """
    if "--version" in words:
        print(f"souping {__version__}")
        return True
    names = [word for word in words if word not in HELP_FLAGS]
    if words[:1] == ["help"]:
        names = names[1:]
    # No help was requested, or not all of the words are names.
    elif len(names) == len(words) or not all(re.fullmatch(r"\w+(=\w+)?", name) for name in names):
        return False
    if not names:
        print(overview())
    else:
        print("\n".join(chain.from_iterable(map(keys, names))))
    return True


def overview() -> str:
    """The help of `conf/_hydra.yaml`, with the groups and their choices."""
    import yaml

    text = str(
        yaml.safe_load((conf_folder() / "_hydra.yaml").read_text())["hydra"]["help"]["template"]
    )
    lines = "\n".join(f"{name}: {', '.join(choices(name))}" for name in groups())
    return text.replace("$APP_CONFIG_GROUPS", lines).rstrip()


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


def keys(name: str) -> Iterator[str]:
    """Lines of help on a name: what a command does, or each choice of a group (`GROUP=CHOICE`: one) with its keys.

    Raises:
        UserError: there is no such command, group or choice.
    """
    if name in COMMANDS:
        yield from _command(name)
        return
    group, _, choice = name.partition("=")
    pick(group, [*groups(), *COMMANDS], "help: group or command")
    if choice:
        pick(choice, choices(group), f"help: {group}")
    for name in [choice] if choice else choices(group):
        yield f"{'+' * (group == 'experiment')}{group}={name}"
        text = (conf_folder() / group / f"{name}.yaml").read_text()
        for line in text.splitlines():
            # Without `_target_` and Hydra's own comments.
            if not line.strip().startswith(("_", "# @")):
                yield f"  {line}"
        yield ""


def _command(name: str) -> Iterator[str]:
    """Lines of help on a command: its usage, what it does, and an example."""
    command = COMMANDS[name]
    yield f"usage: {program()} {name} {command.usage}\n\n{command.does}"
    if name == "plan":
        yield f"Commands that may follow: {', '.join(PLANNED)}."
    # `merge` is a group too.
    if name in groups():
        listed = " or ".join(f"{name}={choice}" for choice in choices(name))
        yield f"keys: {program()} help {listed}"
    yield f"example: {program()} {name} {command.example}".rstrip()
