"""Errors of parts that users bring: they name the part and its file, wherever it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import Cli, pool_of

SEARCH = """
from dataclasses import dataclass
from souping.core.protocols import Strategy
from souping.search.points import Search

@dataclass(frozen=True, kw_only=True)
class Mine(Strategy):
    trials: int | None = None
    budget: int | None = None

    def start(self, *space):
        {start}

    def count(self, size):
        return 3

    def describe(self, size):
        return "mine"
"""


@pytest.fixture
def own(family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Runs with an optimiser whose `start` is this line, or whose module is this text."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(start: str = "", text: str = "") -> str:
        (tmp_path / "mine_search.py").write_text(text or SEARCH.format(start=start))
        sys.modules.pop("mine_search", None)
        done = souping(*pool_of(family), "~optimiser", "+optimiser._target_=mine_search.Mine")
        assert done.code in (1, 2)
        assert "Traceback" not in done.err
        assert "compose" not in done.err
        return done.err

    return run


def test_a_type_error_names_the_part_its_file_and_line(own: Cli, tmp_path: Path) -> None:
    said = str(own("return 1 + 'a'"))
    assert f"mine_search.Mine ({tmp_path}/mine_search.py:6), line 12: TypeError: unsupported operand" in said
    assert "this part is not souping's" in said


def test_a_part_that_gives_rubbish_is_named(own: Cli) -> None:
    said = str(own("return 7"))
    assert "a fault in souping, or in what it got from mine_search.Mine (" in said


def test_a_module_that_cannot_be_imported_names_file_and_line(own: Cli, tmp_path: Path) -> None:
    said = str(own(text="x = 1\nimport absent_module\n"))
    assert f"{tmp_path}/mine_search.py:2: ModuleNotFoundError: No module named 'absent_module'" in said
