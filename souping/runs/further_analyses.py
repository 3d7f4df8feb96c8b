"""Finished runs: read back into the state that they ended in, and given further analyses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from souping.answers.report_choices import Choices
from souping.answers.store import Store
from souping.core.files import nearby
from souping.core.folders import locked
from souping.core.reading import read
from souping.core.types import Json, Recipe, Result, Selection, Trial, UserError
from souping.report.content import Report, SelectionSummary, TrialRow
from souping.report.progress import Progress
from souping.report.recipe import RecipeSummary
from souping.report.run_files import read_report, read_trials, write_report
from souping.runs.analyses import analysis_results
from souping.runs.run import Run
from souping.runs.settings import RunSettings
from souping.runs.state import Contender, Frozen, Reported, Searched, Selected
from souping.search.loop import SearchResult


def add_analyses(settings: RunSettings) -> list[Path]:
    """Make the analyses of `settings`, add them to the report of the run in `settings.run_dir`, and return the files.

    The soup is left alone and no look at the test split is counted; only models that an analysis needs are evaluated.
    With `plan` their cost is printed, and nothing is evaluated or written.

    Raises:
        UserError: the run has no report, or the items, candidates or store are not those of the run.
    """
    report, trials = read_finished(settings.run_dir)
    if not settings.store_path.is_file():
        raise UserError(
            f"store={settings.store_path} does not exist: start in the folder where the run was started, or name "
            "its store"
        )
    with ExitStack() as stack:
        for component in settings.open_parts:
            stack.callback(component.close)
        progress = stack.enter_context(Progress())
        store = stack.enter_context(Store(settings.store_path))
        run = stack.enter_context(closing(Run(settings.with_items(), store, progress)))
        state = resume(run, report, trials)
        soups = run.soups(state.searched)
        for name, analysis in settings.analyses.items():
            stage = run.analysis_stage(name, analysis, soups)
            if settings.plan:
                # Prints the cost.
                run.lacking(stage)
            else:
                state = run.analyse(state, name, stage)
    if settings.plan:
        return []
    with locked(settings.run_dir):
        # Another process may have added analyses meanwhile.
        report, trials = read_finished(settings.run_dir)
        analyses = {**(report.analyses or {}), **state.analyses}
        return write_report(replace(report, analyses=analyses), trials, settings.run_dir)


def read_finished(run_dir: Path) -> tuple[Report, Sequence[TrialRow]]:
    """(report, trials) of a run that ended with a report (UserError if there is none)."""
    for name in ("report.json", "trials.csv"):
        if not (run_dir / name).is_file():
            raise UserError(f"{run_dir} has no {name}: name the folder of a finished run")
    report = read_report(run_dir / "report.json", analysis_results())
    if report.recipe is None or not report.rows:
        raise UserError(
            f"{run_dir}: its report.json is not of a whole run: name the folder of a finished run"
        )
    return report, read_trials(run_dir / "trials.csv")


def resume(run: Run, report: Report, trials: Sequence[TrialRow]) -> Reported:
    """The state of a finished run, from its files. Scores are left empty: analyses read them from the store.

    Raises:
        UserError: items or candidates are not those that the run reported on.
    """
    if report.items != run.made_splits.content:
        raise UserError(
            f"{nearby(run.settings.run_dir)}: the items are not those of the run: some were added, removed or changed; "
            "restore them"
        )
    recipe = report.recipe or read(RecipeSummary, {})
    # The file may have been edited: `_recipe` refuses weights that do not give the recipe's id.
    weights = dict(zip(recipe.ingredients, recipe.weights, strict=False))
    soup = _recipe(run, weights, recipe.id)
    # The files lack it and the choices below, and no analysis reads them.
    unknown = Result(objective=0.0, categories={}, items=0)
    winner = SearchResult(recipe=soup, result=unknown, trials=_trials(run, trials))
    summary = report.selection or read(SelectionSummary, {})
    selection = Selection(ingredients=summary.ingredients, metric=summary.metric or "")
    searched = Searched(selected=Selected(selection=selection), winner=winner)

    claim = run.held_out.report_claim(soup, run.splits["test"])
    items = claim.items
    # A run may have left out items that earlier reports showed: the store has the items of its look. A dry run reports
    # on all of its items, and counts no look.
    if run.settings.dry_run is None:
        items = run.counted_looks.items_of(claim)
    return Reported(
        frozen=Frozen(searched=searched, report=report, choices=Choices(best="")),
        report=report,
        items=items,
        contenders=_contenders(run, report, soup),
    )


def _trials(run: Run, rows: Sequence[TrialRow]) -> tuple[Trial, ...]:
    """The soups of the search; zeros stand for their scores, which analyses read from the store."""
    trials = []
    for number, row in enumerate(rows):
        recipe = _recipe(run, row.weights, row.recipe_id)
        result = Result(objective=0.0, categories={}, items=row.items or 0)
        trials.append(Trial(number=number, recipe=recipe, weights=recipe.weights, result=result))
    return tuple(trials)


def _contenders(run: Run, report: Report, soup: Recipe) -> tuple[Contender, ...]:
    """The rows of the report whose models the pool can make."""
    uniform = run.uniform(run.pool.names)
    contenders = [Contender(name="uniform_all", kind="uniform_all", recipe=uniform)]
    contenders.append(Contender(name="soup", kind="soup", recipe=soup))
    for name in run.pool.names:
        contenders.append(Contender(name=name, kind="candidate", recipe=run.single(name)))
    ids = {row.recipe_id for row in report.rows or ()}
    return tuple(contender for contender in contenders if contender.recipe.id in ids)


def _recipe(run: Run, weights: Mapping[str, float | None], expected: Json) -> Recipe:
    """The recipe with the `weights` {candidate: weight} that a run's files have, and whose id they give as `expected`.

    Raises:
        UserError: the candidates or merge settings are not those of the run.
    """
    nonzero = {name: weight for name, weight in weights.items() if weight}
    where = nearby(run.settings.run_dir)
    changed = f"{where}: the candidates or merge settings are not those of the run"
    for name in nonzero:
        if name not in run.pool.names:
            raise UserError(f"{changed}: {name} is not in the pool")
    # Without weights, any recipe does: its id differs from the expected one.
    recipe = run.pool.recipe(nonzero or {run.pool.names[0]: 1.0})
    if recipe.id != expected:
        raise UserError(f"{changed}: soup {expected} is now {recipe.id}")
    return recipe
