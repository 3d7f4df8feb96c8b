"""Errors of parts that users bring: they name the part and its file, wherever it is installed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli, pool_of

SEARCH = """
from dataclasses import dataclass
from souping.core.protocols import Strategy

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
        done = souping(*pool_of(family), "selector=all", "~optimiser", "+optimiser._target_=mine_search.Mine")
        assert done.code in (1, 2)
        assert "Traceback" not in done.err
        assert "compose" not in done.err
        return done.err

    return run


def test_a_type_error_names_the_part_its_file_and_line(own: Cli, tmp_path: Path) -> None:
    said = str(own("return 1 + 'a'"))
    assert f"mine_search.Mine ({tmp_path}/mine_search.py:5), line 11: TypeError: unsupported operand" in said
    assert "this component is not part of souping" in said


def test_what_a_search_gives_is_looked_at(own: Cli) -> None:
    said = str(own("return 7"))
    assert "optimiser mine_search.Mine (" in said
    assert "started a int, which is no Optimiser: subclass it" in said


def test_a_constructor_that_fails_names_the_part_and_a_factory_its_result(own: Cli) -> None:
    said = str(own(text=SEARCH.format(start="...") + "\n    def __post_init__(self):\n        int('x')\n"))
    assert "mine_search.Mine (" in said
    assert "ValueError: invalid literal" in said
    assert "makes a int, no Strategy" in str(own(text="def Mine():\n    return 3\n"))


def test_a_module_that_cannot_be_imported_names_file_and_line(own: Cli, tmp_path: Path) -> None:
    said = str(own(text="x = 1\nimport absent_module\n"))
    assert f"{tmp_path}/mine_search.py:2: ModuleNotFoundError: No module named 'absent_module'" in said


PARTS = """
from dataclasses import dataclass
import numpy as np
from souping.core.protocols import Objective, Selector, Tracker
from souping.core.types import Correlations, Selection

@dataclass(frozen=True, kw_only=True)
class Picks(Selector):
    names: list[str]

    def select(self, scores):
        return Selection(ingredients=tuple(self.names), selector=self.label)

@dataclass(frozen=True, kw_only=True)
class Short(Objective):
    @property
    def name(self):
        return "short"

    def coefficients(self, categories):
        return np.ones(1)

def small(scores):
    return Correlations(rho=np.zeros((1, 1)), low=np.zeros((1, 1)), high=np.zeros((1, 1)))

@dataclass(frozen=True, kw_only=True)
class Falls(Tracker):
    def start(self, config, run_dir):
        raise ValueError("no room")

    def log(self, trial): ...

    def finish(self, report, run_dir, soup=None):
        raise KeyError("never asked")
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of parts of one's own, where Python finds it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_parts.py").write_text(PARTS)
    sys.modules.pop("mine_parts", None)


def swapped(group: str, target: str, *more: str) -> list[str]:
    return [f"~{group}", f"+{group}._target_=mine_parts.{target}", *more]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (swapped("selector", "Picks", "+selector.names=[nobody,ant]"), "chose 'nobody', which is no candidate: ant"),
        (swapped("objective", "Short"), "must give 3 coefficients"),
        (swapped("correlation", "small"), ": rho has shape (1, 1), not (3, 3)"),
    ],
)
def test_what_a_part_gives_is_looked_at(family: Path, souping: Cli, mine: None, words: list[str], said: str) -> None:
    done = souping(*pool_of(family), *words)
    assert done.code == 2
    assert said in done.err, done.err
    assert re.search(r"mine_parts\.\w+ \(\S*mine_parts\.py:\d+\)", done.err), done.err


def test_a_tracker_that_falls_ends_no_run(family: Path, souping: Cli, mine: None) -> None:
    done = souping(
        *pool_of(family), "selector=all", "optimiser=uniform", "stop_after=search", *swapped("tracker", "Falls")
    )
    assert done.code == 0, done.err
    assert re.search(
        r"warning: tracker mine_parts.Falls \(.*\): ValueError: no room; the run goes on without it", done.err
    )
    assert "never asked" not in done.err
