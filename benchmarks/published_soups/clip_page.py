"""Tables of the results page on the CLIP fine-tunes."""

from __future__ import annotations

import numpy as np

from benchmarks.published_soups.clip_soups import CHOSEN_ON, KINDS, SCALES, TESTS, ClipSoups
from benchmarks.published_soups.gains_page import points, table
from souping.core.types import FloatArray


def accuracy_table(clip: ClipSoups) -> str:
    """Models, router and soups on each test set."""
    named = {
        f"best model on {CHOSEN_ON}": clip.best,
        "best model on the tests (chosen there)": clip.best_on_tests,
        "router, best model of each test (chosen there)": clip.router,
        f"greedy soup, chosen on {CHOSEN_ON}": clip.soups["greedy"],
        f"uniform soup of all {len(clip.models)}": clip.soups["uniform"],
    }
    rows = [[name, *_accuracies(clip, row)] for name, row in named.items()]
    return table(["", *TESTS, "mean", "minus best model"], rows)


def _accuracies(clip: ClipSoups, row: FloatArray) -> list[str]:
    cells = [f"{accuracy:.1f}" for accuracy in row]
    return [*cells, f"{row.mean():.1f}", points(clip.minus_best(row))]


def control_table(clip: ClipSoups) -> str:
    """Shrunk and stretched soups, and soups whose weights come from random models."""
    rows = []
    for scale in sorted((*SCALES, 1.0)):
        cells = [points(clip.minus_best(clip.scaled(scale, kind))) for kind in KINDS.values()]
        rows.append([f"{scale:g}", *cells])
    return table(["distance from `model_0`", *KINDS], rows)


def top_k_table(clip: ClipSoups) -> str:
    """Uniform and random soups of the k best models, on ImageNet."""
    best = clip.best[list(TESTS).index("ImageNet")]
    rows = [
        [str(each.count), points(each.uniform - best), points(each.random - best)]
        for each in clip.top_k
    ]
    return table(["models", "uniform", "each weight from a random model"], rows)


def models_above(clip: ClipSoups, soup: str) -> int:
    """How many models have a higher mean over the tests than a soup."""
    return int(np.sum(clip.models.mean(axis=1) > clip.soups[soup].mean()))
