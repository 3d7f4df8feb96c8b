"""Several models at once: their differences to the baseline, and those among which the best is.

All models meet the same sign patterns of the groups, so the correction for several tests knows how
their differences hang together.

Shape legend: D sign patterns, H strata, M models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from souping.analysis.grouped import distinct
from souping.analysis.max_t import critical_value, equivalent_tests, t_statistics
from souping.analysis.nested import ZERO_DIFFERENCE
from souping.analysis.sign_patterns import SIGN_DRAWS, drawn_sums
from souping.comparison.estimate import has_missing, split_variance
from souping.comparison.pooled import BEST, SCORE, WORST, PooledScores, finite
from souping.core.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class JointFlips:
    """Sums of the groups of all models in the same sign patterns, the pattern seen first."""

    sums: FloatArray  # [D, H, M]
    squares: FloatArray  # [H, M, M] the groups' squared differences of two models
    sizes: FloatArray  # [H]
    extra: FloatArray  # [M, M] variance between training runs, which sign flips do not show

    @classmethod
    def of(
        cls,
        pooled: PooledScores,
        models: Sequence[str],
        draws: int = SIGN_DRAWS,
        seed: int = 0,
        favoured: str = "",
    ) -> JointFlips:
        """Differences of all models to the first of them, and in pairs.

        If a model is `favoured`, its missing answers are right and those of the others wrong.
        """
        fill = WORST if favoured else SCORE
        pooled = pooled.at(finite(pooled.values.values(), fill))
        scores = []
        for model in models:
            scores.append(pooled.values[model][BEST if model == favoured else fill])
        means = [runs.mean(axis=0) for runs in scores]
        differences = [pooled.paired(mean, means[0]) for mean in means]
        stratum = differences[0].stratum
        sizes = differences[0].sizes
        pulls = np.stack([scores.pulls() for scores in differences], axis=1)  # [G, M]

        # The sums in the pattern seen, and in drawn ones.
        unit = np.abs(pulls).max() or 1.0
        rows, row_stratum, number = distinct(pulls / unit, stratum)
        drawn = drawn_sums(rows, number, row_stratum, len(sizes), draws, seed) * unit
        seen = [np.bincount(stratum, column, len(sizes)) for column in pulls.T]
        sums = np.concatenate([np.stack(seen, axis=1)[None], drawn])

        squared = (pulls[:, :, None] - pulls[:, None, :]) ** 2
        squares = np.stack([squared[stratum == h].sum(axis=0) for h in range(len(sizes))])

        extra = np.zeros((len(models), len(models)))
        for i, j in combinations(range(len(models)), 2):
            variance = split_variance(pooled, scores[i], scores[j])
            extra[i, j] = variance.total - variance.items
            extra[j, i] = extra[i, j]
        return cls(sums=sums, squares=squares, sizes=sizes, extra=extra)

    def t(self, first: int, second: int) -> FloatArray:
        """Studentised difference of two models in every pattern, [D]."""
        difference = self.sums[:, :, first] - self.sums[:, :, second]
        squares = self.squares[:, first, second]
        least = 1e-12 * max(squares.sum(), 1e-30)
        return t_statistics(difference, squares, self.sizes, least, self.extra[first, second])


def step_down(flips: JointFlips, alpha: float) -> list[float]:
    """The number of independent tests whose correction each model but the first needs.

    The first is the baseline. This is the max-T step-down over shared sign patterns (Westfall and
    Young 1993): the model with the largest difference is held to the largest of all, the next one
    to the largest of the rest. From the first that is not shown on, all have the same correction.
    """
    models = flips.sums.shape[2]
    statistics = np.stack([np.abs(flips.t(model, 0)) for model in range(1, models)])  # [M - 1, D]
    seen = statistics[:, 0]
    needed = np.ones(len(statistics))
    order = np.argsort(-seen, kind="stable")
    for rank, model in enumerate(order):
        rest = order[rank:]
        largest = statistics[rest, 1:].max(axis=0)
        critical = critical_value(largest, alpha, len(rest))
        tests = equivalent_tests(critical, alpha, len(rest))
        if seen[model] < critical:
            needed[rest] = tests
            break
        needed[model] = tests
    return needed.tolist()


def best_models(pooled: PooledScores, models: Sequence[str], alpha: float) -> tuple[str, ...]:
    """Models that may be the best one; each is favoured in turn where answers are missing."""
    if not any(has_missing(pooled, model, model) for model in models):
        best = best_set(JointFlips.of(pooled, models), alpha)
        return tuple(models[n] for n in best)
    favoured = {model: JointFlips.of(pooled, models, favoured=model) for model in models}
    return tuple(model for n, model in enumerate(models) if n in best_set(favoured[model], alpha))


def best_set(flips: JointFlips, alpha: float) -> list[int]:
    """Models that may be the best one.

    In 1 - alpha of comparisons the truly best is among them (multiple comparisons with the best,
    Hsu 1981). A model is left out if another is above it by more than chance among all others.
    """
    models = range(flips.sums.shape[2])
    best = []
    for model in models:
        leads = np.stack([flips.t(other, model) for other in models if other != model])
        largest = leads.max(axis=0)
        seen = largest[0]
        drawn = largest[1:]
        p_value = (1 + (drawn >= seen - ZERO_DIFFERENCE).sum()) / (1 + len(drawn))
        if p_value > alpha:
            best.append(model)
    return best
