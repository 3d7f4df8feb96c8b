"""List of the commands (`COMMANDS`), and the overrides of the configuration that each stands for."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from souping.core.arguments import Arguments
from souping.core.system import program
from souping.core.types import UserError, frozen


@frozen
class Command:
    """What a command does, its arguments and an example.

    A command that is composed by Hydra stands for `overrides`; the others parse their arguments.
    """

    does: str
    usage: str
    example: str
    overrides: tuple[str, ...] | None = None


COMMANDS: Mapping[str, Command] = {
    "run": Command(
        does="select, search, write and test a soup; the word `run` may be left out",
        usage="KEY=VALUE ...",
        example="+experiment=bfcl",
        overrides=(),
    ),
    "check": Command(
        does="answer five items per category with one candidate: prompts, scores, speed",
        usage="KEY=VALUE ...",
        example="+experiment=bfcl",
        overrides=("action.check=true",),
    ),
    "plan": Command(
        does="show what a run, or the command that follows, would do, cost or send",
        usage="[merge|rebuild|analyse|upload] ...",
        example="+experiment=bfcl",
        overrides=("action.plan=true",),
    ),
    "merge": Command(
        does="average checkpoints by weights that you know; nothing is evaluated",
        usage="pool.candidates=[A,B] optimiser.weights=[0.3,0.7] out=DIR",
        example="pool=demo optimiser=uniform out=merged",
        overrides=("+experiment=merge",),
    ),
    "rebuild": Command(
        does="make the soup of a recipe.json again, with the same bytes",
        usage="RECIPE out=DIR",
        example="merged/recipe.json out=again",
        overrides=("+experiment=rebuild",),
    ),
    "names": Command(
        does="list which tensor of a soup comes from which tensors of the candidates",
        usage="pool.candidates=[A,B]",
        example="pool=demo",
        overrides=("action.names=true",),
    ),
    "show": Command(
        does="show answers of a run side by side: what the soup fixed or broke",
        usage="[RUN] ...",
        example="--broke",
    ),
    "analyse": Command(
        does="add analyses to the report of a finished run",
        usage="RUN analysis=[...]",
        example="outputs/bfcl/* 'analysis=[item_wins,shapley]'",
    ),
    "upload": Command(
        does="send a finished soup to the Hugging Face Hub",
        usage="RUN|SOUP REPO",
        example="RUN me/soup --private",
    ),
    "list": Command(
        does="list the runs below outputs/: name, date, verdict, look, size on disk",
        usage="[FOLDER]",
        example="",
    ),
    "compare": Command(
        does="an honest verdict for any two evaluation logs",
        usage="NAME=LOG NAME=LOG ...",
        example="base=evals/base candidate=evals/candidate",
    ),
    "ask": Command(
        does="write the next soups of a run with executor=files, or its report",
        usage="RUN [-n N]",
        example="RUN -n 4",
    ),
    "tell": Command(
        does="take the logs of such soups, in any order",
        usage="RUN ID[=LOG] ...",
        example="RUN 3=evals/3",
    ),
}
"""{command: what it is}; `conf/_hydra.yaml` lists them in the help."""
PLANNED = ("merge", "rebuild", "analyse", "upload")
"""Commands that may follow `plan`; without one it plans a run."""
ROOTS = dict.fromkeys(("merge", "rebuild", "merge_soce_8b", "merge_soce_70b"), "merge")
"""{experiment: its root configuration in `conf/`}; that of all others is `config`."""
EXPERIMENT = re.compile(r"\+{0,2}experiment=(.*)", re.DOTALL)


TYPED: list[str] = []
"""The words of the command line, as they were typed."""


@frozen
class SettingsFile:
    """A file of settings: its path as it was typed, the overrides that stand for it, and root keys that it sets."""

    name: str
    words: tuple[str, ...]
    keys: tuple[str, ...]


SETTINGS_FILES: list[SettingsFile] = []
"""The file of settings of the command line, if there is one."""
OVERLAY = "+settings_file=values"
"""Override that stands for the values of that file."""


def has_parser(name: str) -> bool:
    """Whether this is a command that parses its arguments itself."""
    return name in COMMANDS and COMMANDS[name].overrides is None


def command_line() -> str:
    """The command as it was typed, for a shell."""
    return f"{program()} {shlex.join(TYPED or sys.argv[1:])}"


def parser_of(name: str, more: str = "") -> Arguments:
    """Parser of a command that has arguments of its own; `more` is help below what the command does."""
    command = COMMANDS[name]
    return Arguments(
        prog=f"{program()} {name}",
        description="\n\n".join(filter(None, (command.does, more))),
        epilog=f"example: {program()} {name} {command.example}",
        formatter_class=argparse.RawTextHelpFormatter,
    )


def add_overrides(parser: Arguments, more: str = "") -> None:
    """Add the arguments of a command that goes on with a run: KEY=VALUE, whose help begins with `more`, and
    --allow-code."""
    parser.add_argument(
        "overrides",
        nargs="*",
        # Without a default, argparse says that one is required.
        default=[],
        metavar="KEY=VALUE",
        help=f"{more}what differs on this machine, such as store=FILE",
    )
    parser.add_argument(
        "--allow-code", action="store_true", help="let the run's configuration name code of others"
    )


def root_of(words: Sequence[str]) -> str:
    """The root configuration that the experiments of a command line belong to.

    Raises:
        UserError: a multirun over runs and merges.
    """
    root = "config"
    for word in words:
        if match := EXPERIMENT.fullmatch(word):
            roots = {ROOTS.get(name, "config") for name in re.findall(r"\w+", match[1])}
            if len(roots) > 1:
                raise UserError(f"{word}: runs and merges are two multiruns: start one for each")
            root = next(iter(roots), root)
    return root


def as_overrides(command: str, words: Sequence[str]) -> list[str]:
    """The words after a composed command, with the overrides that it stands for.

    Raises:
        UserError: `merge` beside another experiment, or `rebuild` without a recipe.
    """
    overrides = list(COMMANDS[command].overrides or ())
    experiment = next(filter(EXPERIMENT.fullmatch, words), "")
    if command == "names" and not experiment:
        overrides += ["+experiment=merge"]
        # A merge needs weights, which do not matter for the names of tensors.
        from_file = chain.from_iterable(file.keys for file in SETTINGS_FILES)
        if not any(word.startswith("optimiser") for word in (*words, *from_file)):
            overrides += ["optimiser=uniform"]
    if command == "rebuild":
        recipe, words = _recipe(words)
        overrides += [f"action.recipe={recipe}"]
    if command in ROOTS and experiment and experiment not in overrides:
        raise UserError(f"{command} and {experiment} are two experiments: leave one of them out")
    return [*words, *(override for override in overrides if override not in words)]


def _recipe(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The recipe of `rebuild`, quoted for Hydra, and the other words (UserError if the first one is no file's name)."""
    from souping.report.format import quoted

    first = "".join(words[:1])
    if not first or first.startswith("-") or ("=" in first and not Path(first).is_file()):
        raise UserError(f"rebuild needs a recipe: {program()} rebuild soup/recipe.json out=DIR")
    return quoted(first), words[1:]


def misplaced(command: str) -> str:
    """What to do about a command that is not the first word, or is written as a key."""
    return f"{command} is a command, which comes first: {program()} {command} ..."
