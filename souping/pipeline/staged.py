"""Run with stages, from candidates to evidence: walk the schedule, then write down what it came to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from souping.core.files import nearby, put
from souping.core.types import LateError, Selection, UserError
from souping.pipeline.checks import complaints, flat_categories, not_measured
from souping.pipeline.samples import write_samples
from souping.pipeline.settings import RunSettings, said
from souping.pipeline.stages import RunStages, select
from souping.pipeline.store import Store
from souping.report.files import as_json, selection_dict, trial_rows, write_report, write_trials
from souping.report.progress import Progress
from souping.search.loop import SearchResult
from souping.trackers import GuardedTracker


def perform(run: RunSettings) -> tuple[dict[str, Any], SearchResult | None]:
    """What the run came to: the parts of its report, and the search's outcome where there was one."""
    if run.selects_from_table:
        return _select_from_table(run), None
    run = replace(run.with_items(), tracker=GuardedTracker(run.tracker))
    run.pool.resolve()
    with Progress() as progress, Store(run.store_path) as store:
        return _walk(RunStages.open(run, store, progress))


def _walk(stages: RunStages) -> tuple[dict[str, Any], SearchResult | None]:
    run = stages.run
    run.tracker.start(run.config, run.run_dir)
    report: dict[str, Any] | None = None
    try:
        stages.schedule.walk(stages)
        assert stages.selection is not None
        if stages.outcome is None:
            write_samples(stages)
            return {"selection": selection_dict(stages.selection, stages.scores)}, None
        if run.stop_after == "search":
            write_samples(stages)
            return write_search(run, stages.outcome, stages.selection), stages.outcome
        report, trials = stages.whole_report()
        write_trials(trials, report, run.run_dir / "trials.csv")
        write_report(report, trials, run.run_dir, run.made)
        write_samples(stages)
        stages.replace_card(report)
        return report, stages.outcome
    except (UserError, OSError) as error:
        if stages.frozen is None:
            raise
        raise LateError(f"{said(error)}\nthe soup is written: {nearby(stages.frozen)}") from error
    finally:
        stages.workers.close()
        stages.pool.close()
        run.tracker.finish(report, run.run_dir, stages.frozen)


def write_search(run: RunSettings, outcome: SearchResult, selection: Selection) -> dict[str, Any]:
    """What a run that stops after its search leaves: the trials and the recipe."""
    parts = {"selection": selection_dict(selection), "recipe": outcome.recipe.as_dict()}
    write_trials(trial_rows(outcome.trials, selection), parts, run.run_dir / "trials.csv")
    put(run.run_dir / "recipe.json", as_json(parts["recipe"]).encode())
    return parts


def _select_from_table(run: RunSettings) -> dict[str, Any]:
    """Published scores alone: candidates are names, no folder is opened."""
    for complaint in complaints(run, {}, ()):
        raise complaint
    with Progress() as progress:
        scores = run.scores.matrix([c.name for c in run.pool.resolve()], not_measured)
        for warning in flat_categories(scores):
            progress.say(f"note: {warning}")
        return {"selection": selection_dict(select(run, scores, progress), scores)}
