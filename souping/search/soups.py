"""Surrogate of soups fitted to what they answered: its prior is estimated from the answers, its scales by evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from souping.core.types import FloatArray
from souping.search.fold import FoldAnswers, FoldLayout
from souping.search.guide import LikelihoodGuide
from souping.search.surrogate import (
    Feature,
    Kernel,
    KnownCells,
    Prior,
    Surrogate,
    agreeing,
    candidates,
    distances,
    evidence,
    with_features,
)

RISE = (0.06, 0.06)
"""How far soups rise above the plane through single models, times 1 - sum of squared weights: mean and spread."""
ROUGH = 300
"""Items a category of the population that a pick is for: its means are rough by chance, as the report fold's are."""


class SoupModel:
    """Fits a surrogate over the weights `table` [S, K] to answers; a guide may help where it predicts them."""

    def __init__(self, table: FloatArray, layout: FoldLayout, guide: LikelihoodGuide | None) -> None:
        self._table, self._layout, self._guide = table, layout, guide
        self._apart = distances(table)
        self._signals, self._log_prior = candidates(table, self._apart)
        self._inside = 1 - (table**2).sum(1)

    def fit(self, answers: FoldAnswers, believed: FloatArray | None) -> Surrogate:
        """The surrogate of all that was told, with the prior that explains it best; `believed` [C, S] are the means so
        far."""
        known, bare = answers.known(), self._prior(answers, believed)
        rise = Feature(np.repeat(self._inside[None], len(known), 0), *RISE)
        rough = bare.noise / ROUGH
        best = self._explaining(bare, known, [rise], rough)
        if self._guide is not None and self._guide.ready:
            feature = self._guide.feature(self._layout)
            other = self._explaining(bare, known, [rise, feature], rough + self._guide.spread(feature))
            best = self._guide.judge((best, other), self._layout, known, answers.depth)
        return Surrogate(best, self._layout.sizes, known)

    def _prior(self, answers: FoldAnswers, mean: FloatArray | None) -> Prior:
        """Prior from the answers' own levels and spreads; `mean` [C, S] is what is believed of the scores so far."""
        residuals = answers.residuals()
        spread = answers.deviations(residuals, mean)
        pooled = agreeing(Kernel(), self._apart, residuals)
        kernels = [agreeing(pooled, self._apart, residuals[:, items]) for items in self._layout.members]
        alike = np.stack([kernel.agreement(self._apart) for kernel in kernels]) * answers.clustering()
        level = np.repeat(answers.levels()[:, None], len(self._table), 1)
        signal = np.repeat(Kernel().signal(self._table, self._apart)[None], len(level), 0)
        return Prior(signal, spread[:, :, None] * spread[:, None] * alike, level)

    def _explaining(
        self, bare: Prior, known: Sequence[KnownCells], features: Sequence[Feature], extra: FloatArray
    ) -> Prior:
        """The prior with features in its level and, category by category, the mean of all candidate signals, weighed by
        how well each explains what is known; `extra` is added to each signal."""
        sizes = self._layout.sizes
        moved, _ = with_features(replace(bare, signal=bare.signal + extra), sizes, known, features)
        scores = evidence(replace(moved, signal=extra), sizes, known, self._signals) + self._log_prior[:, None]
        weights = np.exp(scores - scores.max(0))
        return replace(moved, signal=extra + np.tensordot(weights / weights.sum(0), self._signals, (0, 0)))
