"""The state of a run: each step returns it, and opening a pool does no step's work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from souping.checkpoints import pool
from souping.core.scores import Mean, MeasuredScores
from souping.core.types import Candidate, ItemScores, Recipe, Result, Selection
from souping.merge.local import LocalMerge
from souping.plan.counting import PlannedPool
from souping.report.analysis_results import UserResult
from souping.runs.settings import RunSettings, StopAfter
from souping.runs.state import Reported, Searched, Selected, State
from souping.runs.steps import Stage, Steps
from souping.search.adaptive import Adaptive
from souping.search.loop import SearchResult
from souping.selection import All
from souping.soups.models import FetchedCandidates, RunPool

NAMES = ("a", "b", "c")


class NamedSteps(Steps):
    """Steps of two ingredients in equal parts, without answers."""

    def evaluate_stage(self, stage: Stage) -> dict[str, ItemScores]:
        return {}

    def select(self, stage: Stage | None) -> Selected:
        return Selected(selection=Selection(ingredients=NAMES[:2]))

    def uniform_best(self, selected: Selected) -> Recipe:
        return self.uniform(NAMES[1:])

    def search(self, selected: Selected) -> Searched:
        soup = self.uniform(selected.selection.ingredients)
        result = Result(objective=0.5, categories={}, items=0)
        winner = SearchResult(recipe=soup, result=result, trials=())
        return Searched(selected=selected, winner=winner)

    def analyse(self, state: Reported, name: str, stage: Stage) -> Reported:
        return replace(state, analyses={**state.analyses, name: UserResult(title=name)})


class AsksNothing:
    def asks(self, soups: Any) -> tuple[()]:
        return ()


def steps(stop_after: StopAfter | None) -> NamedSteps:
    absent: Any = None
    analysis: Any = AsksNothing()
    settings = RunSettings(
        pool=pool.Pool(candidates=list(NAMES)),
        benchmark=absent,
        evaluator=absent,
        merge=LocalMerge(),
        tracker=absent,
        executor=absent,
        out=absent,
        store_path=absent,
        run_dir=absent,
        config={},
        name="named",
        seed=0,
        stop_after=stop_after,
        scores=MeasuredScores(),
        selector=All(),
        objective=Mean(),
        optimiser=Adaptive(),
        analyses={"first": analysis, "second": analysis},
    )
    return NamedSteps(settings, PlannedPool(candidates=settings.pool.resolve()), {}, {})


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
