"""How far a category's spread between models is real: reliability, and correlations freed from item noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from souping.analysis.design import IntArray, distinct, resample, stratify
from souping.core import FloatArray
from souping.scores import ScoreMatrix


@dataclass(frozen=True, kw_only=True)
class GroupSums:
    """Item scores summed by group: `sums` [G, M, C], `counts` [G, C], `stratum` [G] (groups with like categories)."""

    sums: FloatArray
    counts: FloatArray
    stratum: IntArray

    @classmethod
    def of(cls, scores: ScoreMatrix) -> GroupSums:
        """Collect the per-item scores of a matrix.

        Raises:
            ValueError: there are none, or the models were scored on different items.
        """
        if not scores.items:
            raise ValueError("the score matrix holds no per-item scores")
        items = scores.items[scores.models[0]].items
        names = [item.id for item in items]
        if any([i.id for i in scores.items[m].items] != names for m in scores.models):
            raise ValueError("all models must be scored on the same items, in the same order")
        _, group = np.unique([item.group for item in items], return_inverse=True)
        column = np.array([scores.categories.index(item.category) for item in items])
        shape = (int(group.max()) + 1, len(scores.categories))
        cell, size = group * shape[1] + column, shape[0] * shape[1]
        counts = np.bincount(cell, minlength=size).reshape(shape).astype(float)
        sums = [np.bincount(cell, scores.items[m].values, size).reshape(shape) for m in scores.models]
        return cls(sums=np.stack(sums, axis=1), counts=counts, stratum=stratify(counts > 0))

    @property
    def means(self) -> FloatArray:
        """Category means of each model, [M, C]."""
        return np.asarray(self.sums.sum(axis=0) / self.counts.sum(axis=0))

    def draws(self, number: int, rng: np.random.Generator) -> FloatArray:
        """Category means on bootstrap draws of groups within strata, [D, M, C]; nan where a draw lost a category."""
        groups, models, width = self.sums.shape
        table = np.hstack([self.sums.reshape(groups, -1), self.counts])
        rows, stratum, copies = distinct(table, self.stratum)
        totals = np.einsum("dr,rf->df", resample(stratum, copies, number, rng), rows)
        sums, counts = totals[:, : models * width].reshape(number, models, width), totals[:, None, models * width :]
        return np.asarray(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))

    def noise(self) -> FloatArray:
        """Covariance of category means between models that item sampling alone explains, [C, C].

        From the model x group interaction: an item that is hard for all models moves all of them alike and is no
        noise here. Off the diagonal only groups that span categories count.
        """
        n = (self.counts > 0).sum(axis=0)  # groups of each category
        pull = (self.sums - self.counts[:, None] * self.means) / self.counts.sum(axis=0)
        pull = (pull - pull.mean(axis=1, keepdims=True)) * np.sqrt(n / np.maximum(n - 1, 1))
        return np.asarray(np.einsum("gma,gmb->ab", pull, pull) / (self.sums.shape[1] - 1))


def reliability(sums: GroupSums) -> FloatArray:
    """Share of each category's variance between models that is not item noise, [C] in 0..1; nan where none varies.

    1 - noise / observed variance: Hoyt's (1941) reliability, which for items of equal weight is Cronbach's alpha.
    """
    observed, noise = np.var(sums.means, axis=0, ddof=1), np.diag(sums.noise())
    ratio = np.divide(noise, observed, out=np.full_like(noise, np.nan), where=observed > 1e-18)
    return np.asarray(np.clip(1 - ratio, 0.0, 1.0))


def disattenuated(sums: GroupSums) -> FloatArray:
    """Pearson correlation of categories over models with item noise taken out, [C, C] in -1..1.

    Observed covariance less its noise, over the variances less theirs (Spearman 1904; with shared groups the covariance
    is corrected too). nan where a variance is all noise: nothing can be said.
    """
    true = np.cov(sums.means, rowvar=False) - sums.noise()
    spread = np.sqrt(np.where(reliability(sums) > 0.05, np.maximum(np.diag(true), 0.0), np.nan))
    rho: FloatArray = np.clip(true / np.outer(spread, spread), -1.0, 1.0)
    return rho
