"""Several models against one baseline: the correction for their number, and which of them may be the best.

Shape legend: D sign patterns, M models.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from souping.core.types import Names
from souping.statistics.comparison import contrast
from souping.statistics.corrections import Level
from souping.statistics.flips import SIGN_DRAWS, draws_for
from souping.statistics.joint import JointFlips
from souping.statistics.score_table import ScoreTable


def joint_tests(
    scores: ScoreTable, models: Sequence[str], level: Level
) -> tuple[list[float], Names]:
    """(number of tests that each model after the first is corrected for; models that may be the best).

    Sign flips do not show how far the runs of a model differ. If a model has several runs, each two
    models have their own interval, and the correction is Bonferroni's.
    """
    if scores.has_runs:
        comparisons = len(models) - 1
        return [float(comparisons)] * comparisons, _unbeaten(scores, models, level)
    flips = flips_of(scores.scored, models, level.alpha)
    # Pairs of indices: each model minus the first.
    to_baseline = [(model, 0) for model in range(1, len(models))]
    best = best_models(scores, models, level.alpha, flips)
    return flips.step_down(to_baseline, level.alpha), best


# ---------------------------------------------------------------- one run per model


def flips_of(scores: ScoreTable, models: Sequence[str], alpha: float) -> JointFlips:
    """Joint sign flips of the differences of all models to the first, with as many draws as a test at `alpha` needs."""
    differences = [scores.difference(model, models[0]) for model in models]
    return JointFlips.of_models(differences, draws_for(alpha, SIGN_DRAWS))


def best_models(
    scores: ScoreTable,
    models: Sequence[str],
    alpha: float,
    flips: JointFlips,
) -> Names:
    """Models that may be the best one. In its own test, each model is favoured where answers are missing.

    `flips` are the joint sign flips of the scores as they were counted, which are used if no answer is missing.
    """
    complete = [model for model in models if not scores.missing(model)]
    if complete and scores.missing(*models):
        # To favour any of the complete models gives the same scores: one set of flips serves them all.
        flips = flips_of(scores.favouring(complete[0]), models, alpha)
    best = []
    for number, model in enumerate(models):
        favouring = flips
        if scores.missing(model):
            favouring = flips_of(scores.favouring(model), models, alpha)
        if favouring.may_be_best(number, alpha):
            best.append(model)
    return tuple(best)


# ---------------------------------------------------------------- several runs


def _unbeaten(scores: ScoreTable, models: Sequence[str], level: Level) -> Names:
    """Models that no other model is shown to beat, each by M - 1 one-sided tests at Bonferroni's level.

    The best model is left out only if one of the M - 1 others is wrongly shown to be better.
    """
    # A one-sided test at alpha is a two-sided one at 2 alpha: half as many tests.
    level = level.among((len(models) - 1) / 2)
    beaten = set()
    for a, b in combinations(models, 2):
        comparison = contrast(scores, a, b, level, tested=False)
        if comparison.low > 0:
            beaten.add(b)
        if comparison.high < 0:
            beaten.add(a)
    return tuple(model for model in models if model not in beaten)
