"""cook(): pool, score, select, search, write, report. One run from candidates to evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from souping import pantry
from souping import report as reporting
from souping.core import Selection, Trial
from souping.kitchen import free_target
from souping.scores import ScoreMatrix
from souping.search import Found
from souping.session import Run, Session
from souping.store import Store

__all__ = ["Run", "cook"]


def cook(run: Run) -> float | None:
    """Select, search, soup and prove. Returns the objective on the search fold, None after `stop_after=select`."""
    free_target(run.out)
    with reporting.Progress() as progress:
        if run.stop_after == "select" and run.scores.published:
            return _select_from_table(run, progress)
        with Store(run.store_path) as store:
            session = Session.open(run, store, progress)
            run.tracker.start(run.config, run.run_dir)
            report: dict[str, Any] | None = None
            try:
                scores = session.score()
                selection = _select(run, scores, progress)
                if run.stop_after == "select":
                    return None
                found = session.search(selection)
                reporting.write_trials(trial_rows(found.trials, selection), run.run_dir)
                if run.stop_after != "search":
                    report = serve(session, scores, selection, found)
                return found.result.objective
            finally:
                run.tracker.finish(report, run.run_dir)
                progress.end(report, run.run_dir)


def serve(session: Session, scores: ScoreMatrix, selection: Selection, found: Found) -> dict[str, Any]:
    """Write the soup, then open the report fold for it and write the evidence down."""
    run, trials = session.run, trial_rows(found.trials, selection)
    parts = {
        "experiment": run.name,
        "benchmark": {"name": run.benchmark.title, "note": _note(run)},
        "objective": session.objective(found),
        "selection": selection_dict(selection, scores),
        "recipe": found.recipe.as_dict(),
        "folds": session.folds.counts(),
        "warnings": session.warnings(scores),
    }
    if len(selection.ingredients) > 1:
        session.write(found, reporting.card(parts, trials))
    evidence = session.evidence(scores, selection, found)
    report = {**parts, **evidence, "stability": session.stability(scores), "cost": session.cost(len(trials))}
    reporting.write(report, trials, run.run_dir)
    return report


def selection_dict(selection: Selection, scores: ScoreMatrix) -> dict[str, Any]:
    """The JSON form of a selection, in `selection.json` and `report.json`."""
    rho = selection.correlations
    correlation = None
    if rho is not None:
        tables = {"matrix": rho.rho, "low": rho.low, "high": rho.high}
        correlation = {"categories": list(selection.categories), **{k: v.tolist() for k, v in tables.items()}}
    return {
        "ingredients": list(selection.ingredients),
        "experts": dict(selection.experts),
        "low_correlation": list(selection.low_correlation),
        "metric": selection.metric or None,
        "threshold": selection.threshold,
        "correlation": correlation,
        "notes": list(selection.notes),
        "published": scores.published,
        "candidates": list(scores.candidates),
        "scores": {
            name: dict(zip(scores.categories, row, strict=True))
            for name, row in zip(scores.models, scores.values.tolist(), strict=True)
        },
    }


def trial_rows(trials: Sequence[Trial], selection: Selection) -> list[dict[str, Any]]:
    """The JSON form of the trials, in `trials.csv` and the plots."""
    return [
        {
            "number": trial.number,
            "recipe_id": trial.recipe.id,
            "weights": dict(zip(selection.ingredients, trial.weights, strict=True)),
            "objective": trial.result.objective,
            "categories": dict(trial.result.categories),
            "items": trial.result.items,
            "reused": trial.reused,
        }
        for trial in trials
    ]


def _select(run: Run, scores: ScoreMatrix, progress: reporting.Progress) -> Selection:
    selection = run.selector.select(scores)
    progress.say(f"selected {', '.join(selection.ingredients)}")
    reporting.write_selection(selection_dict(selection, scores), run.run_dir)
    return selection


def _select_from_table(run: Run, progress: reporting.Progress) -> None:
    """Published scores alone: candidates are names, no folder is opened."""
    scores = run.scores.matrix([c.name for c in run.pool.resolve()], _no_scores)
    _select(run, scores, progress)
    progress.end(None, run.run_dir)


def _no_scores() -> ScoreMatrix:
    raise AssertionError("a published table needs no evaluation")


def _note(run: Run) -> str:
    """The pantry's items say everywhere what they are not."""
    path = Path(run.benchmark.path or "")
    return pantry.NOTE if path.resolve().parent == Path(pantry.__file__).parent else ""
