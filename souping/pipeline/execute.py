"""From settings to results: a merge, a run, or analyses of a finished run, and what is printed at the end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from souping.core.files import error_text, nearby
from souping.core.text import safe
from souping.core.types import LateError, UserError
from souping.pipeline.merge_only import merge, rebuild, soup_in, written_soup
from souping.pipeline.models import free_target
from souping.pipeline.settings import MergeSettings, RunSettings
from souping.pipeline.upload import check, push

if TYPE_CHECKING:
    from souping.search.loop import SearchResult

SHOWN = (
    "report.html",
    "report.md",
    "report.json",
    "selection.json",
    "trials.csv",
    "samples.jsonl.gz",
    "recipe.json",
    "plan.json",
    "config.yaml",
)


def execute(settings: MergeSettings) -> float | None:
    """Run, merge or rebuild, then print where everything is; the objective on the search fold if there was a search.

    A merge loads none of what a search needs.
    """
    if isinstance(settings, RunSettings) and settings.benchmark.banner:
        print(settings.benchmark.banner, flush=True)
    check_settings(settings)
    goal = None if settings.plan else settings.upload
    if goal is not None:
        check(goal)  # who may not write to the Hub learns it before the run
    objective: float | None = None
    if isinstance(settings, RunSettings):
        outcome, winner = perform(settings)
        objective = None if winner is None else winner.result.objective
    else:
        with ExitStack() as parts:
            parts.callback(settings.merge.close)
            outcome = {"soup": rebuild(settings, settings.recipe) if settings.recipe else merge(settings)}
    soup: Path | None = None
    with _results_stay():
        try:
            soup = written_soup(settings, outcome)
        finally:  # also if another soup is in the way
            _show(settings, outcome, soup)
        if goal is not None and soup is None:  # one expert for everything
            print(f"  {'upload':16} nothing to send: there is no soup")
        elif goal is not None and soup is not None:
            url = push(goal, soup, settings.run_dir / "report.json", settings.store_path)
            print(f"  {'upload':16} {url}")
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
        raise UserError(f"upload={upload.repo} needs a finished soup: leave stop_after={settings.stop_after} out")
    if upload is not None and settings.limit is not None:
        raise UserError(f"limit={settings.limit} is a dry run, whose soup is not for the Hub: leave upload out")
    if settings.evaluator.brings_items and not isinstance(settings.benchmark, OwnBenchmark):
        name = type(settings.evaluator).__name__
        raise UserError(f"evaluator={name} brings its own items: add benchmark=own")


def perform(settings: RunSettings) -> tuple[dict[str, Any], SearchResult | None]:
    """Take the steps of a run and write what came of them: the content of its report, and the search's result."""
    from souping.pipeline.results import write_samples, write_search
    from souping.pipeline.run import Run
    from souping.pipeline.store import Store
    from souping.report.files import selection_dict, write_report, write_trials
    from souping.report.progress import Progress
    from souping.trackers import GuardedTracker

    if settings.selects_from_table:
        return select_from_table(settings), None
    report: dict[str, Any] | None = None
    with ExitStack() as parts:
        for part in settings.open_parts:
            parts.callback(part.close)  # servers and ranks wait for the next soup until then
        settings = replace(settings.with_items(), tracker=GuardedTracker(settings.tracker))
        progress, store = parts.enter_context(Progress()), parts.enter_context(Store(settings.store_path))
        run = Run(settings, store, progress)
        parts.callback(lambda: settings.tracker.finish(report, settings.run_dir, run.frozen))
        parts.callback(run.close)
        settings.tracker.start(settings.config, settings.run_dir)
        try:
            run.walk()
            if run.winner is None or settings.stop_after == "search":
                write_samples(run)
                assert run.selection is not None
                if run.winner is None:
                    return {"selection": selection_dict(run.selection, run.scores)}, None
                return write_search(run, run.winner), run.winner
            report, trials = run.whole_report()
            write_trials(trials, report, settings.run_dir / "trials.csv")
            write_report(report, trials, settings.run_dir, settings.made)
            write_samples(run)
            run.replace_card(report)
            return report, run.winner
        except (UserError, OSError) as error:
            if run.frozen is None:
                raise
            raise LateError(f"{error_text(error)}\nthe soup is written: {nearby(run.frozen)}") from error


def select_from_table(settings: RunSettings) -> dict[str, Any]:
    """Published scores alone: candidates are names, no folder is opened."""
    from souping.pipeline.checks import flat_categories, not_measured, refusals
    from souping.pipeline.run import select
    from souping.report.files import selection_dict
    from souping.report.progress import Progress

    for error in refusals(settings, {}, ()):
        raise error
    with Progress() as progress:
        scores = settings.scores.matrix([c.name for c in settings.pool.resolve()], not_measured)
        for warning in flat_categories(scores):
            progress.say(f"note: {warning}")
        return {"selection": selection_dict(select(settings, scores, progress), scores)}


@contextmanager
def _results_stay() -> Iterator[None]:
    """What goes wrong once everything is written (a closed pipe, the Hub) takes none of it away."""
    try:
        yield
    except LateError:
        raise
    except (UserError, OSError) as error:
        raise LateError(error_text(error)) from error


def _show(settings: MergeSettings, outcome: dict[str, Any], soup: Path | None) -> None:
    """The end of a run on standard output: the rows, where everything is, and what to do next."""
    run_dir = settings.run_dir
    if "soup" not in outcome:
        _tables(outcome)
    for name in SHOWN:
        if (run_dir / name).exists():
            print(f"  {name:16} {safe(nearby(run_dir / name))}")
    if soup is not None:
        print(f"  {'soup':16} {safe(nearby(soup))}")
        if (soup / "recipe.json").exists():
            _command("rebuild", settings.rebuild_command)
    if settings.tracker.hint:
        print(f"  {'tracker':16} {safe(settings.tracker.hint)}")
    stopped = isinstance(settings, RunSettings) and settings.stop_after == "search"
    if stopped and settings.command and not settings.sweep:
        _command("finish", settings.finish_command)
    elif not stopped and (run_dir / "report.html").exists():
        print(f"open {safe(shlex.quote(nearby(run_dir / 'report.html')))}")


def _command(what: str, command: str) -> None:
    print(f"  {what:16} {safe(command)}")


def _tables(outcome: dict[str, Any]) -> None:
    from souping.report.terminal import also_table, output_console, report_table

    out = output_console()
    out.print(report_table(outcome))
    if outcome.get("also"):
        out.print(also_table(outcome))
