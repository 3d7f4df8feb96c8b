"""The state of a run: each step returns it, and opening a pool does no step's work."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from souping.analysis import Analysis, RunScores, RunSoups
from souping.core.types import Candidate, Recipe
from souping.merge.local import LocalMerge
from souping.report.analysis_results import UserResult
from souping.runs.settings import StopAfter
from souping.runs.state import Reported, Searched, Selected, State
from souping.soups.models import FetchedCandidates, RunPool
from tests.support.steps import NAMES, NamedSteps, named_steps, run_settings


class AsksNothing(Analysis):
    """An analysis of the answers that the run has."""

    title: ClassVar[str] = "asks nothing"

    def asks(self, soups: RunSoups) -> tuple[Recipe, ...]:
        return ()

    def analyse(self, run: RunScores) -> UserResult:
        raise AssertionError("the steps analyse nothing")


def steps(stop_after: StopAfter | None) -> NamedSteps:
    analyses = {"first": AsksNothing(), "second": AsksNothing()}
    return named_steps(run_settings(stop_after=stop_after, analyses=analyses))


@pytest.mark.parametrize(
    ("stop_after", "kind"), [("select", Selected), ("search", Searched), (None, Reported)]
)
def test_a_run_ends_in_the_state_of_its_last_step(
    stop_after: StopAfter | None, kind: type[State]
) -> None:
    assert type(steps(stop_after).walk()) is kind


def test_the_last_state_has_what_every_step_made() -> None:
    state = steps(None).walk()
    assert isinstance(state, Reported)
    assert state.searched.selected.selection.ingredients == NAMES[:2]
    assert state.searched.winner.recipe == state.contenders[-1].recipe
    assert state.frozen.choices.best == "a"
    assert [*state.analyses] == ["first", "second"]


def test_a_pool_is_opened_before_it_is_hashed(family: Path) -> None:
    models = tuple(Candidate(name=name, path=family / name) for name in ("ant", "bee"))
    digests = dict[str, str]()
    opened = RunPool(FetchedCandidates(models=models, count=1, merge=LocalMerge()), digests)
    assert not digests
    opened.take_fingerprints()
    assert digests
    assert opened.names == ("ant",)
    assert len({model.fingerprint for model in opened.models}) == 2
    opened.close()
