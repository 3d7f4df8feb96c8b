"""What the adaptive search looks at next: expected improvement over the leader, within bounds.

Shape legend: S soups, I items of the search split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from souping.core.types import (
    BoolArray,
    Bound,
    FloatArray,
    IntArray,
    SearchBounds,
    SearchSpace,
    Weights,
)
from souping.search.points import vertices
from souping.search.surrogate import SoupModel

# Probability of keeping to all bounds from which a soup may lead.
LIKELY = 0.5
# Least variance under a root or a division.
TINY = 1e-12


def expected_improvement(
    mean: FloatArray, cov: FloatArray, most: int, odds: FloatArray | float = 1.0
) -> tuple[int, IntArray, FloatArray]:
    """(leader, its rivals, how fast each rival's improvement grows with its variance).

    The rivals are the `most` soups with the largest expected improvement over the leader,
    EI = s (phi(z) + z Phi(z)) of the difference to it, so dEI / ds^2 = phi(z) / 2s (Jones et al.
    1998). With `odds` [S] of being admissible the leader is likely to be, and improvements are
    weighed by them (Gardner et al. 2014).
    """
    likely = odds >= min(LIKELY, np.max(odds))
    leader = int(np.argmax(np.where(likely, mean, -np.inf)))

    sd = np.sqrt(difference_variances(cov, leader))
    z = (mean - mean[leader]) / sd
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    improvement = sd * (density + z * _normal_cdf(z)) * odds
    improvement[leader] = -1

    order = np.argsort(-improvement, kind="stable")
    rivals: IntArray = order[: min(most, len(mean) - 1)]
    urgency = (density * odds)[rivals] / (2 * sd[rivals])
    return leader, rivals, urgency


def difference_variances(cov: FloatArray, soup: int) -> FloatArray:
    """Variance of each soup's difference to one of them [S]; never quite zero."""
    variances = np.diag(cov) + cov[soup, soup] - 2 * cov[soup]
    return np.asarray(np.maximum(variances, TINY))


def _normal_cdf(z: FloatArray) -> FloatArray:
    return np.array([(1 + math.erf(value / math.sqrt(2))) / 2 for value in z])


class BoundModel:
    """How likely each soup keeps to the bounds of a search.

    A bound is about the scores, which the search's surrogate knows, or about the lengths of the
    answers, which have a surrogate of their own. Lengths count as minus multiples of the
    reference's mean, so that more is better and a margin is a share.
    """

    def __init__(
        self,
        scores: SoupModel,
        space: SearchSpace,
        bounds: SearchBounds,
        points: Sequence[Weights],
    ) -> None:
        self._scores = scores
        self._bounds = bounds.bounds
        self._reference = bounds.reference
        self._unit = float(bounds.reference.lengths.mean()) or 1.0
        single_lengths = None
        if space.lengths is not None:
            single_lengths = -space.lengths / self._unit
        self._lengths = SoupModel(
            scores.table, scores.item_samples, scores.weights, rise=0.0, singles=single_lengths
        )
        self._items = [bound.covers(space.categories) for bound in self._bounds]
        self._reference_soup = _soup_of(bounds.against, space, points)

    def observe(self, soup: int, items: slice | list[int], lengths: FloatArray) -> None:
        """Take in the tokens of a soup's answers to some items of the split."""
        if any(bound.lengths for bound in self._bounds):
            self._lengths.observe(soup, items, -lengths / self._unit)

    def fit(self) -> None:
        if self._lengths.known:
            self._lengths.fit()

    def odds(self) -> FloatArray:
        """Probability [S] that a soup's true loss is within all bounds."""
        odds = np.ones(len(self._scores.table))
        for bound, items in zip(self._bounds, self._items, strict=True):
            odds *= self._odds_within(bound, items)
        return odds

    def _odds_within(self, bound: Bound, items: BoolArray) -> FloatArray:
        """Probability [S] that a soup's mean over the items of a bound [I] is high enough.

        While no lengths are known, a bound of theirs rules out no soup.
        """
        model = self._lengths if bound.lengths else self._scores
        if bound.lengths and not model.known:
            return np.ones(len(model.table))
        model.requested = self._scores.requested
        mean, cov = model.total(model.shares(items))
        if self._reference_soup is None:
            reference = self._reference.values
            if bound.lengths:
                reference = -self._reference.lengths / self._unit
            difference = mean - reference[items].mean()
            variance = np.diag(cov)
        else:
            difference = mean - mean[self._reference_soup]
            variance = difference_variances(cov, self._reference_soup)

        sd = np.sqrt(model.surprise() * np.maximum(variance, TINY))
        return _normal_cdf((bound.margin + difference) / sd)


def _soup_of(model: str, space: SearchSpace, points: Sequence[Weights]) -> int | None:
    """Number of the soup that is a single model, None if it is not among the points."""
    if model not in space.ingredients:
        return None
    vertex = vertices(len(space.ingredients))[space.ingredients.index(model)]
    if vertex not in points:
        return None
    return points.index(vertex)
