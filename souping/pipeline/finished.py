"""Finished run, taken up again for more analyses: its report and trials as it left them, its answers in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from souping.core.files import locked, nearby
from souping.core.types import Json, Recipe, Result, Selection, Trial, UserError, elements, entries, number, part, texts
from souping.pipeline.schedule import Stage
from souping.pipeline.settings import RunSettings
from souping.pipeline.stages import RunStages
from souping.pipeline.store import Store
from souping.report.files import read_report, read_trials, write_report
from souping.report.progress import Progress
from souping.search.loop import SearchResult


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """Report and trials that a run left in its directory."""

    report: Mapping[str, Json]
    trials: Sequence[Mapping[str, Json]]

    @classmethod
    def read(cls, run_dir: Path) -> FinishedRun:
        """What lies there.

        Raises:
            UserError: there is no whole run.
        """
        for name in ("report.json", "trials.csv"):
            if not (run_dir / name).is_file():
                raise UserError(f"{run_dir}: no {name}: name the directory of a finished run")
        report, trials = read_report(run_dir / "report.json"), read_trials(run_dir / "trials.csv")
        if not part(report, "recipe") or not entries(report, "rows"):
            raise UserError(f"{run_dir}: its report.json is none of a whole run: name the directory of a finished one")
        return cls(report=report, trials=trials)


def analyse_again(run: RunSettings) -> list[Path]:
    """Make the run's analyses and write its report anew, those that it had before included; the files.

    With `plan` only the price is told. Soups that an analysis asks for are evaluated, and their answers stored.

    Raises:
        UserError: the run is not whole, or pool, items or store are not here, or others than the run's.
    """
    known = FinishedRun.read(run.run_dir)
    if not run.store_path.is_file():
        raise UserError(f"store.path={run.store_path} is not here: start where the run was started, or name its store")
    with ExitStack() as parts:
        parts.callback(run.evaluator.close)
        parts.callback(run.merge.close)
        progress, store = parts.enter_context(Progress()), parts.enter_context(Store(run.store_path))
        stages = RunStages.open(run.with_items(), store, progress)
        parts.callback(stages.pool.close)
        _check_items(stages, known)
        asked = _take_up(stages, known)
        if run.plan:
            return []
        for name, stage in asked.items():
            stages.analyse(name, stage)
    with locked(run.run_dir):  # another process may have added analyses meanwhile, or be about to
        known = FinishedRun.read(run.run_dir)
        report = {**known.report, "analyses": {**part(known.report, "analyses"), **stages.analyses}}
        return write_report(report, known.trials, run.run_dir)


def _check_items(stages: RunStages, known: FinishedRun) -> None:
    """Refuse items that have changed since: the run's numbers and the analyses' would be of different ones.

    Raises:
        UserError: a fold has more or fewer items than the report counts, or others.
    """
    told, where = part(known.report, "folds"), f"{nearby(stages.run.run_dir)}: the items are not those of the run:"
    for fold, here in stages.folds.counts().items():
        there = _float(told.get(fold)) + (_float(told.get("left_out")) if fold == "report" else 0)
        if here != there:
            raise UserError(f"{where} fold {fold} had {there:,.0f}, now {here:,}; put the run's items back")
    if known.report.get("items", stages.folds.content) != stages.folds.content:  # older reports only count
        raise UserError(f"{where} there are as many, but some are others; put the run's items back")


def _take_up(stages: RunStages, known: FinishedRun) -> dict[str, Stage]:
    """Put the stages where the run's end left them; {analysis: what it asks}, whose price is told."""
    ingredients = tuple(texts(part(known.report, "selection"), "ingredients"))
    recipe = part(known.report, "recipe")
    weights = dict(zip(texts(recipe, "ingredients"), map(_float, elements(recipe, "weights")), strict=False))
    soup = _recipe(stages, weights, recipe.get("id"))
    trials = tuple(_trial(stages, row) for row in known.trials)
    own = [trial for trial in trials if trial.recipe.id == soup.id]
    handler = own[0].handler if own else ""
    result = own[0].result if own else Result(objective=0.0, categories={}, items=0)
    metric = str(part(known.report, "selection").get("metric") or "")
    stages.selection = Selection(ingredients=ingredients, metric=metric)
    stages.outcome = SearchResult(
        recipe=soup, weights=tuple(weights.values()), result=result, trials=trials, handler=handler
    )
    stages.contenders, stages.on_report = _contenders(stages, known, soup), stages.unseen(stages.folds.items["report"])
    soups = stages.schedule.soups(ingredients, stages.outcome)
    asked = {
        name: stages.schedule.analysis_stage(name, analysis, soups, handler)
        for name, analysis in stages.run.analyses.items()
    }
    for stage in asked.values() if stages.run.plan else ():
        stages.tell_price(stage)
    return asked


def _recipe(stages: RunStages, weights: Mapping[str, float], expected: Json) -> Recipe:
    """The recipe of a run's weights.

    Raises:
        UserError: the candidates are others than the run's.
    """
    gone = [name for name in weights if name not in stages.pool.names]
    recipe = None if gone else stages.pool.recipe(weights)
    if recipe is None or recipe.id != expected:
        what = f"{gone[0]} is not in the pool" if gone else f"soup {expected} is {recipe.id if recipe else ''} now"
        raise UserError(f"{nearby(stages.run.run_dir)}: the candidates or merge settings are not the run's: {what}")
    return recipe


def _trial(stages: RunStages, row: Mapping[str, Json]) -> Trial:
    weights = {name: _float(value) for name, value in part(row, "weights").items()}
    used = {name: value for name, value in weights.items() if value}
    scores = {name: _float(value) for name, value in part(row, "categories").items()}
    result = Result(objective=_float(row.get("objective")), categories=scores, items=int(_float(row.get("items"))))
    return Trial(
        number=int(_float(row.get("number"))),
        recipe=_recipe(stages, used, row.get("recipe_id")),
        weights=tuple(weights.values()),
        result=result,
        handler=str(row.get("handler") or ""),
        whole=number(row.get("objective")) is not None,
    )


def _contenders(stages: RunStages, known: FinishedRun, soup: Recipe) -> tuple[Recipe, ...]:
    """The models of the report's rows, each once."""
    ids = {row.get("recipe_id") for row in entries(known.report, "rows")}
    schedule, names = stages.schedule, stages.pool.names
    able = [*(stages.pool.recipe({name: 1.0}) for name in names), schedule.uniform(names), soup]
    return tuple(recipe for recipe in {recipe.id: recipe for recipe in able}.values() if recipe.id in ids)


def _float(value: Json) -> float:
    return number(value) or 0.0
