"""Choice of the ingredients."""

from __future__ import annotations

from dataclasses import replace

from souping.analysis.correlation import few_models
from souping.core.types import ScoreMatrix, Selection
from souping.pipeline.settings import RunSettings
from souping.report.files import selection_summary, write_selection
from souping.report.progress import Progress


def choose(settings: RunSettings, scores: ScoreMatrix, progress: Progress) -> Selection:
    """Pick the ingredients, print them with what a reader must know of the choice, and write selection.json."""
    progress.stage("select: ingredients")
    selection = settings.selector.select_checked(scores)
    few = few_models(len(scores.models)) if selection.correlations is not None else ""
    selection = replace(selection, notes=(*selection.notes, few) if few else selection.notes)
    progress.say(f"selected {', '.join(selection.ingredients)}")
    for note in selection.notes:
        progress.say(f"note: {note}")
    unit = settings.evaluator.unit
    summary = selection_summary(unit, selection, scores)
    write_selection(unit, summary, settings.limit, settings.run_dir / "selection.json")
    return selection
