"""Several models at once: their differences to the baseline, and those among which the best is.

All models meet the same sign patterns of the groups, so the correction for several tests knows how
their differences hang together.

Shape legend: D sign patterns, G groups, H strata, I items, M models, R runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from souping.analysis.grouped import distinct
from souping.analysis.max_t import critical_value, equivalent_tests, t_statistics
from souping.analysis.nested import ZERO_DIFFERENCE
from souping.analysis.sign_flip import ALPHA
from souping.analysis.sign_patterns import SIGN_DRAWS, drawn_sums, draws_for
from souping.comparison.estimate import contrast, has_missing, has_runs
from souping.comparison.pooled import BEST, SCORE, WORST, PooledScores, finite
from souping.core.types import FloatArray, Names


def joint_tests(
    pooled: PooledScores,
    models: Sequence[str],
    alpha: float,
    draws: int = SIGN_DRAWS,
    seed: int = 0,
) -> tuple[list[float], Names]:
    """(the number of tests that each model but the first is corrected for, models that may be the best).

    Sign flips do not show how far the runs of a model differ. If a model has several runs, each two
    models have their own interval, and the corrections are those of Holm and Bonferroni.
    """
    if has_runs(pooled):
        return _holm_tests(pooled, models, alpha), _unbeaten(pooled, models, alpha)
    draws = draws_for(alpha, draws)
    flips = JointFlips.of(pooled, models, draws, seed)
    return step_down(flips, alpha), best_models(pooled, models, alpha, flips, draws, seed)


# ---------------------------------------------------------------- one run per model


@dataclass(frozen=True, kw_only=True)
class JointFlips:
    """Sums of the groups of all models in the same sign patterns, the pattern seen first.

    Each model has one run.
    """

    sums: FloatArray  # [D, H, M]
    squares: FloatArray  # [H, M, M] the groups' squared differences of two models
    sizes: FloatArray  # [H]

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
        differences = [pooled.paired(runs[0], scores[0][0]) for runs in scores]
        stratum = differences[0].stratum
        sizes = differences[0].sizes
        pulls = np.stack([scores.pulls for scores in differences], axis=1)  # [G, M]

        # The sums in the pattern seen, and in drawn ones.
        unit = np.abs(pulls).max() or 1.0
        rows, row_stratum, number = distinct(pulls / unit, stratum)
        drawn = drawn_sums(rows, number, row_stratum, len(sizes), draws, seed) * unit
        seen = [np.bincount(stratum, column, len(sizes)) for column in pulls.T]
        sums = np.concatenate([np.stack(seen, axis=1)[None], drawn])

        squares = []
        for h in range(len(sizes)):
            in_stratum = pulls[stratum == h]
            squared = (in_stratum[:, :, None] - in_stratum[:, None, :]) ** 2
            squares.append(squared.sum(axis=0))
        return cls(sums=sums, squares=np.stack(squares), sizes=sizes)

    def t(self, first: int, second: int) -> FloatArray:
        """Studentised difference of two models in every pattern, [D]."""
        difference = self.sums[:, :, first] - self.sums[:, :, second]
        squares = self.squares[:, first, second]
        least = 1e-12 * max(squares.sum(), 1e-30)
        return t_statistics(difference, squares, self.sizes, least)


def step_down(flips: JointFlips, alpha: float) -> list[float]:
    """The number of independent tests whose correction each model but the first needs.

    The first is the baseline. This is the max-T step-down over shared sign patterns (Westfall and
    Young 1993): the model with the largest difference is held to the largest of all, the next one
    to the largest of the others. From the first that is not shown on, all have the same correction.
    """
    models = flips.sums.shape[2]
    statistics = np.stack([np.abs(flips.t(model, 0)) for model in range(1, models)])  # [M - 1, D]
    seen = statistics[:, 0]
    needed = np.ones(len(statistics))
    order = np.argsort(-seen, kind="stable")
    for rank, model in enumerate(order):
        unsettled = order[rank:]
        largest = statistics[unsettled, 1:].max(axis=0)
        critical = critical_value(largest, alpha, len(unsettled))
        tests = equivalent_tests(critical, alpha, len(unsettled))
        if seen[model] < critical:
            needed[unsettled] = tests
            break
        needed[model] = tests
    return needed.tolist()


def best_models(
    pooled: PooledScores,
    models: Sequence[str],
    alpha: float,
    flips: JointFlips,
    draws: int = SIGN_DRAWS,
    seed: int = 0,
) -> Names:
    """Models that may be the best one; each is favoured in turn where answers are missing.

    `flips` are those of all models, none of them favoured.
    """
    gaps = [model for model in models if has_missing(pooled, model, model)]
    complete = [model for model in models if model not in gaps]
    if gaps and complete:
        # Whichever of the complete ones is favoured, the scores are the same.
        flips = JointFlips.of(pooled, models, draws, seed, favoured=complete[0])
    best = []
    for number, model in enumerate(models):
        favouring = flips
        if model in gaps:
            favouring = JointFlips.of(pooled, models, draws, seed, favoured=model)
        if may_be_best(favouring, number, alpha):
            best.append(model)
    return tuple(best)


def may_be_best(flips: JointFlips, model: int, alpha: float) -> bool:
    """Whether a model may be the best one: no other is above it by more than chance among all others.

    In 1 - alpha of comparisons this holds of the truly best (multiple comparisons with the best,
    Hsu 1981).
    """
    others = [other for other in range(flips.sums.shape[2]) if other != model]
    largest = np.max([flips.t(other, model) for other in others], axis=0)
    as_large = largest[1:] >= largest[0] - ZERO_DIFFERENCE
    return bool((1 + as_large.sum()) / (1 + len(as_large)) > alpha)


# ---------------------------------------------------------------- several runs


def _holm_tests(pooled: PooledScores, models: Sequence[str], alpha: float) -> list[float]:
    """The number of tests that each model but the first needs, by Holm's steps.

    From the first model that is not shown to differ on, all have the same correction.
    """
    baseline, *others = models
    p_values = np.array([contrast(pooled, model, baseline).p_value for model in others])
    tests = np.ones(len(others))
    order = np.argsort(p_values, kind="stable")
    for rank, model in enumerate(order):
        unsettled = order[rank:]
        tests[unsettled] = len(unsettled)
        if p_values[model] >= alpha / len(unsettled):
            break
    return tests.tolist()


def _unbeaten(pooled: PooledScores, models: Sequence[str], alpha: float) -> Names:
    """Models that no other is shown to be above, each at level alpha / (M - 1) on one side.

    The best model is left out only if one of M - 1 others is wrongly shown to be above it.
    """
    tests = (len(models) - 1) / 2 * ALPHA / alpha
    beaten = set()
    for a, b in combinations(models, 2):
        comparison = contrast(pooled, a, b, tests=tests, tested=False)
        if comparison.low > 0:
            beaten.add(b)
        if comparison.high < 0:
            beaten.add(a)
    return tuple(model for model in models if model not in beaten)
