"""How many independent tests a comparison stands for if its models may have been picked by known scores.

The largest |T| / se of all pairs that may have been picked, under the same flips of the groups, decides (max-T;
Westfall and Young 1993).

Shape legend: I items, G groups, M models, D sign patterns, H strata.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from souping.analysis.grouped import design, distinct
from souping.analysis.intervals import ItemTable
from souping.analysis.max_t import critical_value, equivalent_tests, t_statistics
from souping.analysis.sign_patterns import SIGN_DRAWS, drawn_sums, draws_for
from souping.core.types import FloatArray


def picked_tests(
    scores: FloatArray,
    pairs: Iterable[tuple[int, int]],
    table: ItemTable,
    alpha: float,
    draws: int = SIGN_DRAWS,
) -> float:
    """Number of independent tests whose correction the largest difference of these pairs needs at level alpha.

    `scores` [M, I] are nan where a model did not answer; it then counts as the mean of the others.
    """
    pairs = list(pairs)
    if len(pairs) < 2:
        return 1.0

    # What each group adds to the objective of each model [G, M], in units of the largest.
    answered = np.isfinite(scores)
    means = np.nan_to_num(scores).sum(axis=0) / np.maximum(answered.sum(axis=0), 1)
    centred = np.where(answered, scores - means, 0.0)
    grouped = [design(row, table.categories, table.groups, table.coefficients) for row in centred]
    pulls = np.stack([model.pulls for model in grouped], axis=1)  # [G, M]
    pulls = pulls / (np.abs(pulls).max() or 1.0)
    stratum = grouped[0].stratum
    sizes = grouped[0].sizes

    # Sums of the models in each pattern, and the largest |T| / se of all pairs.
    rows, row_stratum, number = distinct(pulls, stratum)
    patterns = draws_for(alpha, draws)
    totals = drawn_sums(rows, number, row_stratum, len(sizes), patterns, seed=0)  # [D, H, M]
    largest = np.zeros(patterns)
    for i, j in pairs:
        squared = (pulls[:, i] - pulls[:, j]) ** 2
        squares = np.bincount(stratum, squared, len(sizes)).astype(float)
        least_variance = max(1e-12 * squares.sum(), 1e-30)
        difference = totals[:, :, i] - totals[:, :, j]
        t = t_statistics(difference, squares, sizes, least_variance)
        largest = np.maximum(largest, np.abs(t))
    critical = critical_value(largest, alpha, len(pairs))
    return equivalent_tests(critical, alpha, len(pairs))
