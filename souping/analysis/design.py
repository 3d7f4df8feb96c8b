"""Group x category sums of per-item scores: what every test and interval of the objective is computed from.

Shape legend: I items, G groups, C categories, H strata, D draws, R distinct rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from souping.core import FloatArray

IntArray = NDArray[np.int64]
SMALLEST_STRATUM = 5
FLAT = 1e-12


@dataclass(frozen=True, kw_only=True)
class Design:
    """Scores (or paired differences) summed over the items of each group.

    `sums`, `counts` [G, C]; `stratum` [G] numbers the groups with items in the same categories; `weights` [C] are the
    objective's coefficients. The objective is T = sum_c w_c * sum_g sums[g, c] / sum_g counts[g, c].
    """

    sums: FloatArray
    counts: FloatArray
    stratum: IntArray
    weights: FloatArray

    @property
    def means(self) -> FloatArray:
        """Category means, [C]."""
        return np.asarray(self.sums.sum(axis=0) / self.counts.sum(axis=0))

    @property
    def objective(self) -> float:
        return float((self.weights * self.means).sum())

    @property
    def strata(self) -> int:
        return int(self.stratum.max()) + 1

    @property
    def sizes(self) -> FloatArray:
        """Groups per stratum, [H]."""
        return np.bincount(self.stratum, minlength=self.strata).astype(float)

    def influence(self) -> FloatArray:
        """Each group's pull on T, linearised because category means are ratios over groups, [G]."""
        return np.asarray((self.weights * (self.sums - self.counts * self.means) / self.counts.sum(axis=0)).sum(axis=1))

    def variances(self) -> FloatArray:
        """Variance of T that each stratum contributes, [H]: n / (n - 1) * sum (u_g - mean u)^2."""
        pull, n = self.influence(), self.sizes
        centred = pull - (np.bincount(self.stratum, pull, self.strata) / n)[self.stratum]
        return np.asarray(np.bincount(self.stratum, centred**2, self.strata) * n / np.maximum(n - 1, 1))

    def shares(self) -> FloatArray:
        """Weight of each stratum's items in T, by category, [H, C]: T moves so much if all its items move by 1."""
        part = self.weights * self.counts / self.counts.sum(axis=0)
        return np.stack([np.bincount(self.stratum, column, self.strata) for column in part.T], axis=1)

    def flat(self) -> NDArray[np.bool_]:
        """Strata in which no group differs from another: their estimated variance is zero, [H]."""
        return np.asarray(self.variances() <= FLAT * self.shares().sum(axis=1) ** 2)


def design(values: FloatArray, categories: IntArray, groups: IntArray, coefficients: FloatArray) -> Design:
    """Sum values [I] by group and category. Categories without weight are left out.

    Raises:
        ValueError: lengths differ, a coefficient is negative, or a category with weight has no item.
    """
    weights = np.asarray(coefficients, dtype=float)
    if not len(values) == len(categories) == len(groups) or not len(values):
        raise ValueError("values, categories and groups must have one entry an item, and at least one item")
    if weights.min() < 0 or weights.max() <= 0:
        raise ValueError("coefficients must not be negative, and one must be above zero")
    _, group = np.unique(groups, return_inverse=True)
    shape = (int(group.max()) + 1, len(weights))
    cell = group * shape[1] + np.asarray(categories)
    counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape).astype(float)
    sums = np.bincount(cell, np.asarray(values, dtype=float), shape[0] * shape[1]).reshape(shape)
    used = weights > 0
    if (counts[:, used].sum(axis=0) == 0).any():
        raise ValueError("every category with weight needs at least one item")
    rows = counts[:, used].sum(axis=1) > 0
    sums, counts = sums[rows][:, used], counts[rows][:, used]
    return Design(sums=sums, counts=counts, stratum=stratify(counts > 0), weights=weights[used])


def stratify(present: NDArray[np.bool_]) -> IntArray:
    """Stratum [G] of each group: the set of categories its items are in, present [G, C].

    Sets that fewer than five groups have cannot show their own variance; they form one stratum, and where that is still
    below five it joins the largest.
    """
    _, label = np.unique(present, axis=0, return_inverse=True)
    label = label.reshape(-1)
    sizes = np.bincount(label)
    rare = sizes < SMALLEST_STRATUM
    target = len(sizes)
    if rare.any() and not rare.all() and sizes[rare].sum() < SMALLEST_STRATUM:
        target = int(np.argmax(sizes))
    _, stratum = np.unique(np.where(rare[label], target, label), return_inverse=True)
    return stratum.reshape(-1).astype(np.int64)


def distinct(rows: FloatArray, stratum: IntArray) -> tuple[FloatArray, IntArray, IntArray]:
    """Equal rows within a stratum are interchangeable: (rows [R, F], their stratum [R], how many of each [R])."""
    keyed = np.column_stack([stratum, rows.round(12)])
    _, first, number = np.unique(keyed, axis=0, return_index=True, return_counts=True)
    return rows[first], stratum[first], number.astype(np.int64)


def resample(stratum: IntArray, number: IntArray, draws: int, rng: np.random.Generator) -> FloatArray:
    """Bootstrap multiplicities [D, R]: in each stratum as many groups as there are, drawn with replacement."""
    drawn = np.empty((draws, len(stratum)))
    for h in range(int(stratum.max()) + 1):
        rows = np.flatnonzero(stratum == h)
        total = int(number[rows].sum())
        drawn[:, rows] = rng.multinomial(total, number[rows] / total, size=draws)
    return drawn
