"""Choice of the ingredients."""

from __future__ import annotations

from dataclasses import replace

from souping.analysis.correlation import few_models
from souping.core.types import ScoreMatrix, Selection
from souping.pipeline.checks import flat_categories, not_measured, refusals
from souping.pipeline.run_report import stopped_report
from souping.pipeline.settings import RunSettings
from souping.report.content import Report
from souping.report.files import selection_summary, write_selection
from souping.report.progress import Progress


def choose(settings: RunSettings, scores: ScoreMatrix, progress: Progress) -> Selection:
    """Pick the ingredients, print them with what a reader must know of the choice, and write selection.json."""
    progress.stage("select: ingredients")
    selection = settings.selector.select_checked(scores)
    if selection.correlations is not None and (warning := few_models(len(scores.models))):
        selection = replace(selection, notes=(*selection.notes, warning))
    progress.say(f"selected {', '.join(selection.ingredients)}")
    for note in selection.notes:
        progress.say(f"note: {note}")
    unit = settings.evaluator.unit
    summary = selection_summary(unit, selection, scores)
    write_selection(unit, summary, settings.limit, settings.run_dir / "selection.json")
    return selection


def select_from_table(settings: RunSettings) -> Report:
    """Published scores alone: candidates are names, no folder is opened."""
    for error in refusals(settings, {}, ()):
        raise error
    with Progress() as progress:
        names = [candidate.name for candidate in settings.pool.resolve()]
        scores = settings.scores.matrix(names, not_measured)
        for warning in flat_categories(settings.evaluator.unit, scores):
            progress.say(f"note: {warning}")
        return stopped_report(settings, choose(settings, scores, progress), scores)
