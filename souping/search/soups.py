"""Surrogate of soups fitted to what they answered: its prior is estimated from the answers, its scales by evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from souping.core.types import FloatArray
from souping.search.fold import FoldAnswers, FoldLayout
from souping.search.surrogate import (
    Kernel,
    KnownCells,
    Prior,
    Surrogate,
    agreeing,
    candidates,
    distances,
    evidence,
    raised,
)

RISE = (0.06, 0.06)
"""How far soups rise above the plane through single models, times 1 - sum of squared weights: mean and spread."""
ROUGH = 300
"""Items a category of the population that a pick is for: its means are rough by chance, as the report fold's are."""


class SoupModel:
    """Fits a surrogate over the weights `table` [S, K] to answers."""

    def __init__(self, table: FloatArray, layout: FoldLayout) -> None:
        self._table, self._layout = table, layout
        self._apart = distances(table)
        self._signals, self._log_prior = candidates(table, self._apart)
        self._inside = 1 - (table**2).sum(1)

    def fit(self, answers: FoldAnswers, believed: FloatArray | None) -> Surrogate:
        """The surrogate of all that was told, with the prior that explains it best; `believed` [C, S] are the means so
        far."""
        known = answers.known()
        best = self._explaining(self._prior(answers, believed), known)
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

    def _explaining(self, bare: Prior, known: Sequence[KnownCells]) -> Prior:
        """The prior with its level raised between single models and, category by category, the mean of all candidate
        signals, weighed by how well each explains what is known."""
        sizes, rough = self._layout.sizes, bare.noise / ROUGH
        moved = raised(replace(bare, signal=bare.signal + rough), sizes, known, self._inside, *RISE)
        scores = evidence(replace(moved, signal=rough), sizes, known, self._signals) + self._log_prior[:, None]
        weights = np.exp(scores - scores.max(0))
        return replace(moved, signal=rough + np.tensordot(weights / weights.sum(0), self._signals, (0, 0)))
