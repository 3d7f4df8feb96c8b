"""Likelihood guide: how much likelier soups find right answers than wrong ones, as a covariate of the surrogate.

About ten soups read answers that the candidates wrote; nothing is generated. A margin m of an item becomes a soft
score, 1 / (1 + exp(-3 m / s)) with s the median size of a margin, or exp(m) where m is a log-likelihood alone; its mean
a category is interpolated over the simplex. In the guided prior a category's true mean has a multiple of that covariate
in it (about one point a point, on all truth tables) beside all that the plain prior has, so that generated answers
correct the guide: it never picks alone.

Whether it is trusted is decided by data: the log score of what was generated, each mixed soup left out in turn
(Vehtari et al. 2017, with exact Gaussian formulas: Sundararajan and Keerthi 2001). Single models, who wrote the
answers, have no vote.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from souping.core import simplex
from souping.core.text import minus
from souping.core.types import FloatArray, IntArray, Weights
from souping.search.fold import FoldLayout
from souping.search.surrogate import JITTER, Feature, Kernel, KnownCells, Prior, distances, joint

PREFILLED, JURY, MARGIN = 10, 4, 0.0
"""Soups that read, mixed soups that decide, nats by which the guide must be better."""
FACTOR, VARIED, SINGLE, SHARP = (0.9, 0.5), 0.3, 0.1, 3.0
"""Points that a point of the covariate stands for, mean and spread; the spread of its categories around that; how far
single models lie off (fractions of 1); steepness of soft scores."""


class LikelihoodGuide:
    """Margins of soups over the fold's items, [I] a soup."""

    def __init__(self, points: Sequence[Weights], table: FloatArray) -> None:
        mixed = [p for p in points if max(p) < 1]
        self.wanted: list[Weights] = simplex.spread(mixed)[:PREFILLED]
        self.table, self.points = table, list(points)
        self._margins: dict[Weights, FloatArray] = {}
        self.verdict = "not asked"

    def hear(self, weights: Weights, margins: FloatArray) -> None:
        self._margins[weights] = margins

    @property
    def ready(self) -> bool:
        """Whether enough is known to interpolate."""
        return len(self._margins) >= JURY and not self.wanted

    def judge(
        self, priors: tuple[Prior, Prior], layout: FoldLayout, known: Sequence[KnownCells], depth: IntArray
    ) -> Prior:
        """The guided prior, the second, where it explains mixed soups better than the plain one, each left out."""
        single = self.table.max(1) == 1
        jury = [int(s) for s in np.flatnonzero(depth.any(1)) if not single[s]]
        if len(jury) < JURY:
            self.verdict = f"not trusted: {len(jury)} mixed soups answered, {JURY} decide"
            return priors[0]
        scores = [left_out(prior, layout.sizes, known, jury) for prior in priors]
        trusted = scores[1] - scores[0] > MARGIN
        said = "trusted" if trusted else "not trusted"
        self.verdict = f"{said}: log score {minus(f'{scores[1] - scores[0]:+.1f}')} on {len(jury)} mixed soups"
        return priors[1] if trusted else priors[0]

    def feature(self, layout: FoldLayout) -> Feature:
        """The covariate as what every category's mean has in it."""
        return Feature(self.covariate(layout), *FACTOR)

    def spread(self, feature: Feature) -> FloatArray:
        """Covariance [C, S, S] that the guided prior adds: factors that vary by category, single models that lie off,
        for the covariate is no guide to them."""
        single = (self.table.max(1) == 1).astype(float)
        slopes = VARIED**2 * feature.shape[:, :, None] * feature.shape[:, None, :]
        return np.asarray(slopes + SINGLE**2 * np.diag(single))

    def covariate(self, layout: FoldLayout) -> FloatArray:
        """Mean soft score [C, S] of each category, interpolated, with mean 0 over mixed soups. Items without margins
        count as ones that all soups fail."""
        rows = [self.points.index(weights) for weights in self._margins]
        soft = np.nan_to_num(soft_scores(np.array(list(self._margins.values()))))
        mixed = self.table.max(1) < 1
        found = []
        for items in layout.members:
            values = _interpolated(self.table, rows, soft[:, items].mean(1))
            found.append(values - values[mixed].mean())
        return np.array(found)


def soft_scores(margins: FloatArray) -> FloatArray:
    """Margins as scores in 0..1, nan where there is none."""
    finite = margins[np.isfinite(margins)]
    if not len(finite) or finite.max() <= 0:
        return np.asarray(np.exp(np.minimum(margins, 0)))
    scale = max(float(np.median(abs(finite))), JITTER)
    return np.asarray(1 / (1 + np.exp(-np.clip(SHARP * margins / scale, -50, 50))))


def _interpolated(table: FloatArray, rows: Sequence[int], values: FloatArray) -> FloatArray:
    """Values at `rows` spread over all points by a smooth Gaussian process [S]."""
    scale = max(float(values.std()), JITTER)
    prior = Kernel(level=3.0, plane=3.0, bend=2.0).signal(table, distances(table))
    joint = prior[np.ix_(rows, rows)] + 1e-3 * np.eye(len(rows))
    centre = values.mean()
    return np.asarray(centre + scale * prior[:, rows] @ np.linalg.solve(joint, (values - centre) / scale))


def left_out(prior: Prior, sizes: FloatArray, known: Sequence[KnownCells], soups: Sequence[int]) -> float:
    """Log score of all cells of each soup, given those of the others, summed over soups and categories."""
    total, blocks = 0.0, sizes.shape[1]
    for c, row in enumerate(known):
        soup = row.cells // blocks
        precision = np.linalg.inv(joint(prior, sizes, c, row.cells))
        pull = precision @ (row.values - prior.level[c, soup])
        for one in soups:
            own = np.flatnonzero(soup == one)
            if len(own):
                inner = precision[np.ix_(own, own)]
                error = np.linalg.solve(inner, pull[own])
                total -= float(error @ inner @ error) / 2 - float(np.linalg.slogdet(inner)[1]) / 2
    return total
