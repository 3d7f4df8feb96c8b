"""Settings of a run without models, and its steps without answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from souping.analysis import Analysis
from souping.answers.evaluation import LocalExecutor
from souping.checkpoints.pool import Pool
from souping.core.protocols import Objective
from souping.core.scores import Mean, MeasuredScores
from souping.core.types import Item, ItemScores, Recipe, Result, Selection, Split
from souping.evaluate.benchmark import Benchmark
from souping.merge.local import LocalMerge
from souping.plan.counting import PlannedPool
from souping.report.analysis_results import UserResult
from souping.runs.settings import RunSettings, StopAfter
from souping.runs.state import Reported, Searched, Selected
from souping.runs.steps import Stage, Steps
from souping.search.adaptive import Adaptive
from souping.search.loop import SearchResult
from souping.selection import All
from souping.trackers import NoTracker
from tests.conftest import FakeEvaluator

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


def run_settings(
    *,
    candidates: Sequence[str] = NAMES,
    objective: Objective | None = None,
    stop_after: StopAfter | None = None,
    analyses: Mapping[str, Analysis] | None = None,
) -> RunSettings:
    """Settings of a run whose models and items nobody opens."""
    return RunSettings(
        pool=Pool(candidates=list(candidates)),
        benchmark=Benchmark(path="items.jsonl"),
        evaluator=FakeEvaluator(skill={}),
        merge=LocalMerge(),
        tracker=NoTracker(),
        executor=LocalExecutor(),
        out=Path("soup"),
        store_path=Path("store.sqlite"),
        run_dir=Path("run"),
        config={},
        name="named",
        seed=0,
        stop_after=stop_after,
        scores=MeasuredScores(),
        selector=All(),
        objective=objective or Mean(),
        optimiser=Adaptive(),
        analyses=analyses or {},
    )


def named_steps(
    settings: RunSettings,
    *,
    splits: Mapping[Split, tuple[Item, ...]] | None = None,
    extra: Mapping[str, tuple[Item, ...]] | None = None,
) -> NamedSteps:
    pool = PlannedPool(candidates=settings.pool.resolve())
    return NamedSteps(settings, pool, splits or {}, extra or {})
