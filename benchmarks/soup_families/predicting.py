"""What is said of a gain before the test: the paper's procedure, and what may predict the gain."""

from __future__ import annotations

import numpy as np

from benchmarks.soup_families.choices import means
from benchmarks.soup_families.design import TUNES
from benchmarks.soup_families.view import View, points
from souping.analysis.correlation import pearson

PREDICTORS = (
    "lead of the best candidate",
    "score of the best candidate",
    "spread of the candidates",
    "router - best candidate",
    "correlation of answers",
)


def same_items(view: View) -> dict[str, float]:
    """The paper's procedure: ingredients, weights and the reported gain, all on the items for selection."""
    matrix = view.matrix
    subset = matrix.facts.experts
    answers = matrix.searched(subset)
    place = int(points(answers[:, view.selecting]).argmax())
    shown = points(view.tunes[:, view.selecting])
    best = int(shown.argmax())
    reported = float(points(answers[[place]][:, view.selecting])[0] - shown[best])
    true = float(view.test(answers[[place]])[0]) - view.score((best,))
    return {"reported gain": reported, "true gain": true}


def predictors(view: View) -> dict[str, float]:
    """What may predict the gain, from the items to choose with alone."""
    known = view.choosing
    tunes = points(view.tunes[:, known])
    by_category = means(view.tunes[:, known], view.category[known])
    ranked = np.sort(tunes)
    agreement = pearson(view.tunes[:, known].T.astype(float)).rho[np.triu_indices(TUNES, 1)]
    values = (
        ranked[-1] - ranked[-2],
        ranked[-1],
        np.ptp(tunes),
        100 * by_category.max(axis=0).mean() - ranked[-1],
        agreement.mean(),
    )
    return dict(zip(PREDICTORS, map(float, values), strict=True))


def lead_on_test(view: View) -> float:
    """The trap: the lead of the best candidate on the very items that score the gain."""
    ranked = np.sort(view.uniform[:TUNES])
    return float(ranked[-1] - ranked[-2])
