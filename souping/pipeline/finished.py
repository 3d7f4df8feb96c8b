"""A finished run, opened again for more analyses: its report and trials from its folder, its answers from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from souping.core.files import locked, nearby
from souping.core.types import Json, Recipe, Result, Selection, Trial, UserError, elements, entries, number, part, texts
from souping.pipeline.run import Run
from souping.pipeline.settings import RunSettings
from souping.pipeline.store import Store
from souping.report.files import read_report, read_trials, write_report
from souping.report.progress import Progress
from souping.search.loop import SearchResult

Rows = Sequence[Mapping[str, Json]]


def add_analyses(settings: RunSettings) -> list[Path]:
    """Make the analyses of `settings` on the run in its `run_dir` and add them to its report; the files.

    The soup is left alone and no look at the report fold is counted; only models that an analysis needs are evaluated.
    With `plan` their cost is printed, and nothing is evaluated or written.

    Raises:
        UserError: the run has no report, or the items, candidates or store are not those of the run.
    """
    report, trials = read_finished(settings.run_dir)
    if not settings.store_path.is_file():
        raise UserError(
            f"store.path={settings.store_path} does not exist: start in the folder where the run was started, or name "
            "its store"
        )
    with ExitStack() as parts:
        for one in settings.open_parts:
            parts.callback(one.close)
        progress, store = parts.enter_context(Progress()), parts.enter_context(Store(settings.store_path))
        run = parts.enter_context(closing(Run(settings.with_items(), store, progress)))
        _resume(run, report, trials)
        assert run.selection is not None
        assert run.winner is not None
        soups = run.soups(run.selection.ingredients, run.winner)
        for name, analysis in settings.analyses.items():
            stage = run.analysis_stage(name, analysis, soups, run.winner.handler)
            if settings.plan:
                run.lacking(stage)
            else:
                run.analyse(name, stage)
    if settings.plan:
        return []
    with locked(settings.run_dir):  # another process may have added analyses meanwhile
        report, trials = read_finished(settings.run_dir)
        whole = {**report, "analyses": {**part(report, "analyses"), **run.analyses}}
        return write_report(whole, trials, settings.run_dir)


def read_finished(run_dir: Path) -> tuple[Mapping[str, Json], Rows]:
    """(report, trials) of a run that ended with a report.

    Raises:
        UserError: there is none.
    """
    for name in ("report.json", "trials.csv"):
        if not (run_dir / name).is_file():
            raise UserError(f"run={run_dir} has no {name}: name the folder of a finished run")
    report = read_report(run_dir / "report.json")
    if not part(report, "recipe") or not entries(report, "rows"):
        raise UserError(f"run={run_dir}: its report.json is not of a whole run: name the folder of a finished run")
    return report, read_trials(run_dir / "trials.csv")


def _resume(run: Run, report: Mapping[str, Json], trials: Rows) -> None:
    """Bring a run to where its last step left it.

    Raises:
        UserError: items or candidates are not those of the run: its numbers would be of other ones.
    """
    if report.get("items") != run.cut.content:
        raise UserError(
            f"{nearby(run.settings.run_dir)}: the items are not those of the run: some were added, removed or changed; "
            "restore them"
        )
    recipe = part(report, "recipe")
    shares = map(number, elements(recipe, "weights"))
    soup = _recipe(run, dict(zip(texts(recipe, "ingredients"), shares, strict=False)), recipe.get("id"))
    tried = tuple(_trial(run, place, row) for place, row in enumerate(trials))
    handler = next((trial.handler for trial in tried if trial.recipe.id == soup.id), "")
    selection = part(report, "selection")
    run.selection = Selection(
        ingredients=tuple(texts(selection, "ingredients")), metric=str(selection.get("metric") or "")
    )
    result = Result(objective=0.0, categories={}, items=0)
    run.winner = SearchResult(recipe=soup, weights=soup.weights, result=result, trials=tried, handler=handler)
    ids = {row.get("recipe_id") for row in entries(report, "rows")}
    models = [("uniform_all", run.uniform(run.pool.names)), ("soup", soup)]
    models += [(name, run.single(name)) for name in run.pool.names]
    run.rows = tuple((name, model) for name, model in models if model.id in ids)
    run.reported = run.unseen(soup)


def _recipe(run: Run, weights: Mapping[str, float | None], expected: Json) -> Recipe:
    """The recipe of a run's weights.

    Raises:
        UserError: the candidates or merge settings are not those of the run.
    """
    used = {name: weight for name, weight in weights.items() if weight}
    absent = [name for name in used if name not in run.pool.names]
    recipe = None if absent else run.single(run.pool.names[0]) if not used else run.pool.recipe(used)
    if recipe is None or recipe.id != expected:
        found = f"{absent[0]} is not in the pool" if absent else f"soup {expected} is now {recipe.id if recipe else ''}"
        raise UserError(
            f"{nearby(run.settings.run_dir)}: the candidates or merge settings are not those of the run: {found}"
        )
    return recipe


def _trial(run: Run, place: int, row: Mapping[str, Json]) -> Trial:
    weights = {name: number(value) for name, value in part(row, "weights").items()}
    recipe = _recipe(run, weights, row.get("recipe_id"))
    result = Result(objective=0.0, categories={}, items=int(number(row.get("items")) or 0))
    handler = str(row.get("handler") or "")
    return Trial(number=place, recipe=recipe, weights=recipe.weights, result=result, handler=handler)
