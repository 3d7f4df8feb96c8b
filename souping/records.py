"""The JSON forms of a selection and of trials, for `selection.json`, `report.json`, `trials.csv` and the plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from souping.core import Selection, Trial
from souping.scores import ScoreMatrix


def selection_dict(selection: Selection, scores: ScoreMatrix | None = None) -> dict[str, Any]:
    """The JSON form of a selection, in `selection.json` and `report.json`."""
    rho = selection.correlations
    correlation = None
    if rho is not None:
        tables = {"matrix": rho.rho, "low": rho.low, "high": rho.high}
        correlation = {"categories": list(selection.categories), **{k: v.tolist() for k, v in tables.items()}}
    seen = {} if scores is None else _scores_seen(scores)
    return {
        "ingredients": list(selection.ingredients),
        "selector": selection.selector,
        "experts": dict(selection.experts),
        "low_correlation": list(selection.low_correlation),
        "metric": selection.metric or None,
        "threshold": selection.threshold,
        "correlation": correlation,
        "notes": list(selection.notes),
        **seen,
    }


def _scores_seen(scores: ScoreMatrix) -> dict[str, Any]:
    """The scores that selection saw, whole."""
    rows = zip(scores.models, scores.values.tolist(), strict=True)
    return {
        "published": scores.published,
        "candidates": list(scores.candidates),
        "scores": {name: dict(zip(scores.categories, row, strict=True)) for name, row in rows},
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
            **({"handler": trial.handler} if trial.handler else {}),
        }
        for trial in trials
    ]
