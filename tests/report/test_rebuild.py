"""The rebuild command is one that Hydra's grammar and a shell take, whatever the folders are called."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from souping.report.format import quoted

NAMES = [
    "plain-1.2", "org/name@rev", "/a/b c", "it's", 'a"b', "x,y", "a=(b)", "{c}", "$HOME", "back\\slash", "ends in \\",
    "a:b", "[d]", "!x", "a;b", "null", "1",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_name_comes_back_out_of_the_command(name: str) -> None:
    command = f"python -m souping {shlex.quote(f'recipe={quoted(name)}')}"
    (override,) = OverridesParser.create().parse_overrides(shlex.split(command)[3:])
    value = override.value()
    assert str(value.text if hasattr(value, "text") else value if value is not None else "null") == name


def test_an_interpolation_is_escaped() -> None:
    assert quoted("a/${b}") == '"a/\\${b}"'
