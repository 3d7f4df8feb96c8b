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
    faults,
    groups,
    installed_choices,
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

    Raises:
        UserError: there is no such command, group or choice.
    """
    if name in COMMANDS:
        yield from _command(name)
        return
    group, _, choice = name.partition("=")
    pick(group, [*groups(), *COMMANDS], "help: group or command")
    files = {path.stem: path for path in sorted((conf_folder() / group).glob("*.yaml"))}
    brought = installed_choices(group)
    if choice:
        pick(choice, [*files, *(each.name for each in brought)], f"help: {group}")
    for each, path in files.items():
        if choice in ("", each):
            yield from _choice(f"{group}={each}", path)
    for installed in brought:
        if choice in ("", installed.name):
            yield f"# of the package {installed.package}"
            try:
                check_choice(group, installed)
            except UserError as error:
                yield f"# refused: {error}\n"
            else:
                yield from _choice(f"{group}={installed.name}", installed.file)
    yield from faults()


def _choice(word: str, file: Path) -> Iterator[str]:
    """Lines of help on a choice: what to type, and its keys."""
    yield f"{'+' * word.startswith('experiment=')}{word}"
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
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
