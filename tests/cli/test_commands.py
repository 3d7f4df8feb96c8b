"""Subcommands: a word before Hydra, its errors in a line, and the help that lists it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

from souping.cli.config import folder
from souping.cli.help import COMMANDS, Command, dispatch
from souping.core.types import UserError
from tests.conftest import Cli


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_lists_every_command(name: str, souping: Cli) -> None:
    lines = [line.split(maxsplit=1) for line in souping("--help").out.splitlines()]
    assert [name, COMMANDS[name].does] in lines


def test_each_command_is_a_module_or_a_run() -> None:
    assert [name for name, command in COMMANDS.items() if bool(command.module) == bool(command.overrides)] == []
    assert (folder() / "config.yaml").is_file()


def test_a_word_that_is_no_command_is_refused(souping: Cli) -> None:
    souping("shows").refused("shows is no command; did you mean show?", "KEY=VALUE")


def test_overrides_and_flags_are_no_commands() -> None:
    for words in (["pool.candidates=[a]"], ["+experiment=bfcl"], ["--help"], ["-m", "seed=1,2"], []):
        assert dispatch(words) == (None, words)


def test_a_run_gets_its_overrides_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "half", Command("half of it", overrides=("stop_after=search",)))  # type: ignore[misc]
    assert dispatch(["half", "seed=1"]) == (None, ["seed=1", "stop_after=search"])


@pytest.mark.parametrize(("status", "error"), [(0, None), (2, None), (2, UserError("no such run"))])
def test_a_module_gets_the_rest_and_says_the_status(
    souping: Cli, monkeypatch: pytest.MonkeyPatch, status: int, error: UserError | None
) -> None:
    given: list[str] = []

    def main(arguments: Sequence[str]) -> int:
        given.extend(arguments)
        if error:
            raise error
        return status

    module = ModuleType("a_command")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_command", module)
    monkeypatch.setitem(COMMANDS, "own", Command("something", "a_command"))  # type: ignore[misc]
    done = souping("own", "DIR", "--flag")
    assert (done.code, given) == (status, ["DIR", "--flag"])
    assert done.err == (f"{error}\n" if error else "")
