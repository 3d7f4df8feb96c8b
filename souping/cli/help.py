"""Help, version and completion of the command line, without Hydra."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from souping.cli.choice_files import (
    check_choice,
    choices,
    groups,
    installed_choices,
    package_faults,
)
from souping.cli.commands import COMMANDS, PLANNED
from souping.core.fields import pick
from souping.core.system import __version__, conf_folder, program
from souping.core.text import safe
from souping.core.types import UserError


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
    # Without overrides, the command parses its own arguments, and nothing completes them.
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
    if names == ["--schema"]:
        print(settings_schema())
    elif not names:
        print(overview())
    else:
        print(safe("\n".join(chain.from_iterable(map(keys, names)))))
    return True


def overview() -> str:
    """The help of `conf/_hydra.yaml`, with the groups and their choices."""
    import yaml

    config = yaml.safe_load((conf_folder() / "_hydra.yaml").read_text())
    text = str(config["hydra"]["help"]["template"])
    lines = "\n".join(f"{name}: {', '.join(choices(name))}" for name in groups())
    return text.replace("$APP_CONFIG_GROUPS", lines).rstrip()


def settings_schema() -> str:
    """The JSON schema of settings files, which accepts what installed packages bring too."""
    schema = json.loads((conf_folder() / "settings.schema.json").read_text(encoding="utf-8"))
    for group in groups():
        if not installed_choices(group):
            continue
        # Their keys are not known without an import.
        key = "+experiment" if group == "experiment" else group
        schema["properties"][key] = {"anyOf": [schema["properties"][key], {}]}
        schema["patternProperties"][rf"^{group}\."] = {}
    return json.dumps(schema, indent=1)


def keys(name: str) -> Iterator[str]:
    """Lines of help on a name: what a command does, or each choice of a group (`GROUP=CHOICE`: one) with its keys.

    Help on a group ends with a line for each installed package whose choices cannot be found: it may bring some of
    this group.

    Raises:
        UserError: there is no such command, group or choice.
    """
    if name in COMMANDS:
        yield from _command_help(name)
        return
    group, _, choice = name.partition("=")
    pick(group, [*groups(), *COMMANDS], "help: group or command")
    shipped = choices(group)
    from_packages = installed_choices(group)
    if choice:
        names = [*shipped, *(installed.name for installed in from_packages)]
        pick(choice, names, f"help: {group}")
    for shipped_name in shipped:
        if choice in ("", shipped_name):
            file = conf_folder() / group / f"{shipped_name}.yaml"
            yield from _choice_help(f"{group}={shipped_name}", file)
    for installed in from_packages:
        if choice in ("", installed.name):
            yield f"# of the package {installed.package}"
            try:
                check_choice(group, installed)
            except UserError as error:
                yield f"# refused: {error}\n"
            else:
                yield from _choice_help(f"{group}={installed.name}", installed.file)
    yield from package_faults()


def _choice_help(word: str, file: Path) -> Iterator[str]:
    """Lines of help on a choice: what to type, and its keys."""
    yield f"{'+' * word.startswith('experiment=')}{word}"
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        # Without `_target_` and Hydra's own comments.
        if not line.strip().startswith(("_", "# @")):
            yield f"  {line}"
    yield ""


def _command_help(name: str) -> Iterator[str]:
    """Lines of help on a command: its usage, what it does, and an example."""
    command = COMMANDS[name]
    yield f"usage: {program()} {name} {command.usage}\n\n{command.does}"
    if name == "plan":
        yield f"Commands that may follow: {', '.join(PLANNED)}."
    # `merge` is also a group: that of the merge's settings.
    if name in groups():
        listed = " or ".join(f"{name}={choice}" for choice in choices(name))
        yield f"keys: {program()} help {listed}"
    yield f"example: {program()} {name} {command.example}".rstrip()
