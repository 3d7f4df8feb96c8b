"""From settings to results: a run, with all that it writes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.files import error_text, nearby, write_atomically
from souping.core.reading import to_json
from souping.core.text import safe
from souping.core.types import LateError, Trial, UserError, frozen
from souping.report.analysis_results import analysis_sections
from souping.report.cells import nonempty
from souping.report.content import Report, RouterFile
from souping.report.render import output_console, show_sheet
from souping.report.report_page import also_table, report_table
from souping.runs.settings import RunSettings
from souping.soups.merge_only import free_target, show_files, soup_in
from souping.soups.upload import check_target, send

if TYPE_CHECKING:
    from souping.analysis.front import FrontPoint
    from souping.runs.asking import Waiting
    from souping.runs.run import Run
    from souping.runs.state import Reported, Searched, Selected


@frozen
class RunOutcome:
    """What came of a run: the report as far as the run went, the trials of its search, the winner's `objective` in the
    evaluator's unit, None if nothing was searched, the points of its front, and the `router`, None without a test.

    A run that is `waiting` for soups has nothing else yet.
    """

    report: Report
    waiting: Waiting | None = None
    trials: tuple[Trial, ...] = ()
    objective: float | None = None
    front: tuple[FrontPoint, ...] = ()
    router: RouterFile | None = None


def execute(settings: RunSettings) -> RunOutcome:
    """Run, then print the results, where everything is, and what to do next."""
    if settings.benchmark.banner:
        print(settings.benchmark.banner, flush=True)
    check_settings(settings)
    goal = settings.upload
    if goal is not None:
        check_target(goal, settings.out)  # who may not write to the Hub learns it before the run
    outcome = perform(settings)
    if outcome.waiting is not None:
        # Its arguments are lines for the user.
        print(safe("\n".join(outcome.waiting.args)))
        return outcome
    report = outcome.report
    soup = written_soup(settings, report)
    _show_end(settings, report, soup)
    if goal is None:
        return outcome
    if soup is not None:
        send(settings, goal, soup)
    else:
        # One candidate was the expert for everything.
        print(f"  {'upload':16} nothing to send: there is no soup")
    return outcome


def _show_end(settings: RunSettings, report: Report, soup: Path | None) -> None:
    """Print the results of a run, and where its files are."""
    out = output_console()
    out.print(report_table(report))
    # A run that stopped before the test has no rows and no page: its analyses are printed here.
    if report.rows is None:
        show_sheet(nonempty(analysis_sections(report)), out)
    if report.extra_benchmarks:
        out.print(also_table(report))
    show_files(settings, soup)


def written_soup(settings: RunSettings, report: Report) -> Path | None:
    """The folder of a run's soup, None if it wrote none: only a run that wrote one reports how to rebuild it."""
    return settings.out if report.rebuild is not None and settings.out.exists() else None


def check_settings(settings: RunSettings) -> None:
    """Refuse a target that is in use and settings that contradict each other (UserError)."""
    # A run that is continued may find its soup, which is verified once the search is over.
    if soup_in(settings.out) is None:
        free_target(settings.out)
    from souping.runs.asking import check_executor

    check_executor(settings)
    upload = settings.upload
    if upload is not None and settings.stop_after:
        raise UserError(
            f"upload={upload.repo} needs a finished soup: leave stop_after={settings.stop_after} out"
        )
    if upload is not None and settings.dry_run is not None:
        raise UserError(
            f"dry_run={settings.dry_run} is a dry run, whose soup is not for the Hub: leave upload out"
        )
    if settings.evaluator.prompts.brings_items and not settings.benchmark.from_evaluator:
        name = type(settings.evaluator).__name__
        raise UserError(f"evaluator={name} brings its own items: add benchmark=evaluator")


def perform(settings: RunSettings) -> RunOutcome:
    """Take the steps of a run and write what came of them."""
    from souping.answers.store import Store
    from souping.report.progress import Progress
    from souping.runs.asking import Waiting
    from souping.runs.open_soups import ORDER_FILE
    from souping.runs.run import Run
    from souping.runs.samples_file import write_samples
    from souping.runs.state import Frozen
    from souping.trackers import GuardedTracker

    if settings.selects_from_table:
        return RunOutcome(report=_select_from_table(settings))
    # As far as the run got: `finish_tracker` reads both at the end, also after an error.
    report: Report | None = None
    soup: Path | None = None
    with ExitStack() as stack:
        for component in settings.open_parts:
            # Servers and ranks wait for the next soup until then.
            stack.callback(component.close)
        # A run may end and go on many times: its first process prints the notes, its last one has the report.
        tracker = GuardedTracker(settings.tracker, held=not settings.executor.evaluates_here)
        settings = replace(settings.with_items(), tracker=tracker)
        goes_on = (settings.run_dir / ORDER_FILE).exists()
        progress = stack.enter_context(Progress(quiet=goes_on))
        store = stack.enter_context(Store(settings.store_path))
        run = Run(settings, store, progress)

        def finish_tracker() -> None:
            content = None if report is None else report.to_json()
            settings.tracker.finish(content, settings.run_dir, soup)

        stack.callback(finish_tracker)
        stack.callback(run.close)
        settings.tracker.start(settings.config, settings.run_dir)
        try:
            choices = run.choose()
            if not isinstance(choices, Frozen):
                return _stop(run, choices)
            soup = choices.soup_folder
            state = run.measure(choices)
            write_samples(run, state)
            report = run.finish(state)
            return _write(run, state, report)
        except Waiting as waiting:
            # The process that ends the run records it.
            tracker.forget()
            return RunOutcome(report=Report(name=settings.name), waiting=waiting)
        except (UserError, OSError) as error:
            if soup is None:
                raise
            raise LateError(f"{error_text(error)}\nthe soup is written: {nearby(soup)}") from error


def _select_from_table(settings: RunSettings) -> Report:
    """Select by published scores alone, and report that. Candidates are names: no folder is opened."""
    from souping.report.progress import Progress
    from souping.runs.checks import flat_categories, not_measured, refusals
    from souping.runs.run import choose_ingredients
    from souping.runs.run_report import stopped_report

    for error in refusals(settings, {}, ()):
        raise error
    with Progress() as progress:
        names = [candidate.name for candidate in settings.pool.resolve()]
        scores = settings.scores.matrix(names, not_measured)
        for warning in flat_categories(settings.evaluator.unit, scores):
            progress.say(f"note: {warning}")
        return stopped_report(settings, choose_ingredients(settings, scores, progress), scores)


def _write(run: Run, state: Reported, report: Report) -> RunOutcome:
    """Write the trials and the report of a run, and put its numbers on the soup's card."""
    from souping.report.run_files import as_json, trial_rows, write_report, write_trials
    from souping.runs.run_report import replace_card, router_file

    run_dir = run.settings.run_dir
    winner = state.searched.winner
    trials = trial_rows(run.unit, winner.trials, state.searched.selected.selection)
    write_trials(trials, report, run_dir / "trials.csv")
    write_report(report, trials, run_dir)
    router = router_file(run, state)
    write_atomically(run_dir / "router.json", as_json(router).encode())
    soup = state.frozen.soup_folder
    if soup is not None and soup.is_dir():
        replace_card(soup, state.frozen.card, report, run.pool.merge_pool)
    return replace(_outcome(run, state.searched, report), router=router)


def _outcome(run: Run, searched: Searched, report: Report) -> RunOutcome:
    """What came of a run that searched."""
    winner = searched.winner
    return RunOutcome(
        report=report,
        trials=winner.trials,
        objective=run.unit.raw(winner.result.objective),
        front=searched.front.points if searched.front else (),
    )


def _stop(run: Run, state: Selected | Searched) -> RunOutcome:
    """Write what a run knows that ends after selection or search, before the test split."""
    from souping.report.run_files import as_json, trial_rows, write_trials
    from souping.runs.run_report import stopped_report
    from souping.runs.samples_file import write_samples
    from souping.runs.state import Searched

    write_samples(run, state)
    settings = run.settings
    if not isinstance(state, Searched):
        return RunOutcome(report=stopped_report(settings, state.selection, state.scores))
    winner = state.winner
    selection = state.selected.selection
    report = stopped_report(settings, selection, recipe=winner.recipe, analyses=state.analyses)
    if state.analyses:
        content = as_json(to_json(state.analyses)).encode()
        write_atomically(settings.run_dir / "analyses.json", content)
    trials = trial_rows(run.unit, winner.trials, selection)
    write_trials(trials, report, settings.run_dir / "trials.csv")
    recipe = as_json(winner.recipe.as_dict()).encode()
    write_atomically(settings.run_dir / "recipe.json", recipe)
    return _outcome(run, state, report)
