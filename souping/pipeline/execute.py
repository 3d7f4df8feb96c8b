"""From settings to results: a merge or a run, with all that it writes."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.files import error_text, nearby, write_atomically
from souping.core.reading import to_json
from souping.core.types import LateError, Trial, UserError, frozen
from souping.pipeline.ending import show_end
from souping.pipeline.merge_only import merge, rebuild, soup_in, written_soup
from souping.pipeline.models import free_target
from souping.pipeline.settings import MergeSettings, RunSettings
from souping.pipeline.upload import check, push, replace_card
from souping.report.content import Report

if TYPE_CHECKING:
    from souping.pipeline.run import Run
    from souping.pipeline.state import Reported, Selected


@frozen
class RunOutcome:
    """What came of a run: its report as far as it went, and the search with its objective, if there was one."""

    report: Report
    trials: tuple[Trial, ...] = ()
    objective: float | None = None


def execute(settings: MergeSettings) -> float | None:
    """Run, merge or rebuild, then print where everything is; the objective on the search fold if there was a search.

    A merge loads none of what a search needs.
    """
    if isinstance(settings, RunSettings) and settings.benchmark.banner:
        print(settings.benchmark.banner, flush=True)
    check_settings(settings)
    goal = None if settings.plan else settings.upload
    if goal is not None:
        check(goal, settings.out)  # who may not write to the Hub learns it before the run
    objective: float | None = None
    if isinstance(settings, RunSettings):
        outcome = perform(settings)
        report = outcome.report
        objective = outcome.objective
    else:
        with closing(settings.merge):
            recipe = settings.recipe
            folder = rebuild(settings, recipe) if recipe else merge(settings)
            report = Report(experiment=settings.name, others={"soup": str(folder)})
    soup: Path | None = None
    try:
        soup = written_soup(settings, report)
    finally:  # also if another soup is in the way
        show_end(settings, report, soup)
    if goal is not None:
        # one expert for everything
        absent = "nothing to send: there is no soup"
        print(f"  {'upload':16} {push(goal, soup, settings.store_path) if soup else absent}")
    return objective


def check_settings(settings: MergeSettings) -> None:
    """Refuse a target that is in use and settings that contradict each other (UserError).

    A run may find the soup of an earlier one in `out`; it is verified once the search is over.
    """
    if not isinstance(settings, RunSettings) or soup_in(settings.out) is None:
        free_target(settings.out)
    if not isinstance(settings, RunSettings):
        return
    from souping.evaluate.benchmark import OwnBenchmark

    upload = settings.upload
    if upload is not None and settings.stop_after:
        raise UserError(
            f"upload={upload.repo} needs a finished soup: leave stop_after={settings.stop_after} out"
        )
    if upload is not None and settings.limit is not None:
        raise UserError(
            f"limit={settings.limit} is a dry run, whose soup is not for the Hub: leave upload out"
        )
    if settings.evaluator.prompts.brings_items and not isinstance(settings.benchmark, OwnBenchmark):
        name = type(settings.evaluator).__name__
        raise UserError(f"evaluator={name} brings its own items: add benchmark=own")


def perform(settings: RunSettings) -> RunOutcome:
    """Take the steps of a run and write what came of them."""
    from souping.pipeline.run import Run
    from souping.pipeline.samples import write_samples
    from souping.pipeline.state import Frozen
    from souping.pipeline.store import Store
    from souping.report.progress import Progress
    from souping.trackers import GuardedTracker

    if settings.selects_from_table:
        from souping.pipeline.choice import select_from_table

        return RunOutcome(report=select_from_table(settings))
    report: Report | None = None
    soup: Path | None = None
    with ExitStack() as stack:
        for component in settings.open_parts:
            stack.callback(component.close)  # servers and ranks wait for the next soup until then
        settings = replace(settings.with_items(), tracker=GuardedTracker(settings.tracker))
        progress = stack.enter_context(Progress())
        store = stack.enter_context(Store(settings.store_path))
        run = Run(settings, store, progress)
        stack.callback(
            lambda: settings.tracker.finish(
                None if report is None else report.to_json(), settings.run_dir, soup
            )
        )
        stack.callback(run.close)
        settings.tracker.start(settings.config, settings.run_dir)
        state = run.choose()
        if not isinstance(state, Frozen):
            return _stop(run, state)
        soup = state.soup_folder
        try:
            reported = run.measure(state)
            write_samples(run, reported)
            report = run.finish(reported)
            return _write(run, reported, report)
        except (UserError, OSError) as error:
            if soup is None:
                raise
            raise LateError(f"{error_text(error)}\nthe soup is written: {nearby(soup)}") from error


def _write(run: Run, state: Reported, report: Report) -> RunOutcome:
    """Write the report of a run, and put its numbers on the soup's card."""
    from souping.report.files import trial_rows, write_report, write_trials

    run_dir = run.settings.run_dir
    trials = trial_rows(run.unit, state.winner.trials, state.selection)
    write_trials(trials, report, run_dir / "trials.csv")
    write_report(report, trials, run_dir)
    if state.soup_folder is not None and state.soup_folder.is_dir():
        replace_card(state.soup_folder, state.card, report)
    objective = run.unit.raw(state.winner.result.objective)
    return RunOutcome(report=report, trials=state.winner.trials, objective=objective)


def _stop(run: Run, state: Selected) -> RunOutcome:
    """Write what a run knows that ends before the report fold."""
    from souping.pipeline.run_report import stopped_report
    from souping.pipeline.samples import write_samples
    from souping.pipeline.state import Searched
    from souping.report.files import as_json, trial_rows, write_trials

    write_samples(run, state)
    settings = run.settings
    if not isinstance(state, Searched):
        return RunOutcome(report=stopped_report(settings, state.selection, state.scores))
    winner = state.winner
    report = stopped_report(settings, state.selection, None, winner.recipe, state.analyses)
    if state.analyses:
        content = as_json(to_json(state.analyses)).encode()
        write_atomically(settings.run_dir / "analyses.json", content)
    trials = trial_rows(run.unit, winner.trials, state.selection)
    write_trials(trials, report, settings.run_dir / "trials.csv")
    recipe = as_json(winner.recipe.as_dict()).encode()
    write_atomically(settings.run_dir / "recipe.json", recipe)
    objective = run.unit.raw(winner.result.objective)
    return RunOutcome(report=report, trials=winner.trials, objective=objective)
