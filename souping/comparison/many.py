"""Several models at once: corrected differences to a baseline, and the set that holds the best model.

Shape legend: D sign patterns, H strata, M models, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from souping.analysis.intervals import NORMAL, distinct
from souping.analysis.sign_flip import DRAWS, TIE, drawn_sums
from souping.comparison.estimate import SCORE, PooledScores, variance_parts
from souping.core.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class JointFlips:
    """Sums of the groups of all models in the same sign patterns, the pattern seen first.

    `sums` [D, H, M]; `squares` [H, M, M] are the groups' squared differences of two models; `sizes` [H]. `extra`
    [M, M] is the variance of each difference between training runs, which sign flips do not show.
    """

    sums: FloatArray
    squares: FloatArray
    sizes: FloatArray
    extra: FloatArray

    @classmethod
    def of(cls, pooled: PooledScores, models: Sequence[str], draws: int = DRAWS) -> JointFlips:
        pooled = pooled.scored()
        means = [pooled.values[name][SCORE].mean(axis=0) for name in models]
        wholes = [pooled.paired(one, means[0]) for one in means]
        pull = np.stack([(w.weights * w.sums / w.counts.sum(axis=0)).sum(axis=1) for w in wholes], axis=1)
        stratum, sizes = wholes[0].stratum, wholes[0].sizes
        unit = np.abs(pull).max() or 1.0
        rows, where, number = distinct(pull / unit, stratum)
        drawn = drawn_sums(rows, number, where, len(sizes), draws, 0) * unit
        seen = np.stack([np.bincount(stratum, column, len(sizes)) for column in pull.T], axis=1)
        apart = (pull[:, :, None] - pull[:, None, :]) ** 2
        squares = np.stack([apart[stratum == h].sum(axis=0) for h in range(len(sizes))])
        extra = np.zeros((len(models), len(models)))
        for i, a in enumerate(models):
            for j, b in enumerate(models[:i]):
                parts = variance_parts(pooled, a, b)
                extra[i, j] = extra[j, i] = max(0.0, parts.total - parts.items - (parts.answers or 0.0))
        return cls(sums=np.concatenate([seen[None], drawn]), squares=squares, sizes=sizes, extra=extra)

    def t(self, one: int, other: int) -> FloatArray:
        """Studentised difference of two models in every pattern, [D]."""
        apart = self.sums[:, :, one] - self.sums[:, :, other]
        squares = self.squares[:, one, other]
        factor = self.sizes / np.maximum(self.sizes - 1, 1)
        variance = ((squares - apart**2 / self.sizes) * factor).sum(axis=1) + self.extra[one, other]
        return np.asarray(apart.sum(axis=1) / np.sqrt(np.maximum(variance, 1e-12 * max(squares.sum(), 1e-30))))


def step_down(flips: JointFlips, alpha: float) -> list[float]:
    """For each model but the first, the baseline: the number of independent tests whose correction its difference
    needs (max-T step-down over shared sign patterns; Westfall and Young 1993).

    The model with the largest difference is held to the largest of all, the next one to the largest of the rest. From
    the first that is not shown on, all have the same correction.
    """
    tables = np.stack([np.abs(flips.t(m, 0)) for m in range(1, flips.sums.shape[2])])
    order, needed = np.argsort(-tables[:, 0], kind="stable"), [1.0] * len(tables)
    stopped = 0.0
    for rank, model in enumerate(order):
        rest = order[rank:]
        critical = min(_critical(tables[rest, 1:].max(axis=0), alpha), -NORMAL.inv_cdf(alpha / 2 / len(rest)))
        tests = stopped or min(float(len(rest)), max(1.0, alpha / (2 * NORMAL.cdf(-critical))))
        needed[model] = tests
        if not stopped and tables[model, 0] < critical:
            stopped = tests
    return needed


def best_set(flips: JointFlips, alpha: float) -> list[int]:
    """Models that may be the best one: in 1 - alpha of comparisons the truly best is among them (multiple comparisons
    with the best, Hsu 1981). A model is left out if another is above it by more than chance among all others."""
    kept = []
    count = flips.sums.shape[2]
    for model in range(count):
        others = np.stack([flips.t(other, model) for other in range(count) if other != model])
        seen, drawn = others[:, 0].max(), others[:, 1:].max(axis=0)
        if (1 + (drawn >= seen - TIE).sum()) / (1 + len(drawn)) > alpha:
            kept.append(model)
    return kept


def _critical(largest: FloatArray, alpha: float) -> float:
    ordered: FloatArray = np.sort(largest)
    return float(ordered[-max(1, int(np.ceil(alpha * (1 + len(ordered)) - 1 - TIE)))])
