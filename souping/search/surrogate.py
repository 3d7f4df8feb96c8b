"""Surrogate of the adaptive search: a Gaussian process of the soups' category means.

Shape legend: S soups, K ingredients, C categories, I items of the search split, B samples of a
category at most, N (soup, sample) pairs of a category, D draws.

The model of one category. Soup s scores y on a sample b of n items, where

    y = f(s) + g_b(s) / sqrt(n),    f ~ GP(level, signal),    g_b ~ GP(0, noise), one for each b.

f is the category's true mean: a common level, a plane over the weights, and a bend (Matern 3/2).
g_b is the error of drawing the sample, one draw for all soups: soups with similar weights answer
alike, so their difference on shared items is sharp. This pairing is why a search needs few items.

signal: covariance of f(s) and f(t), [S, S].
noise: covariance of the scores of soups s and t on one item, [S, S].
cov_yy: covariance of the scores y of the requested samples, [N, N].
alpha: cov_yy^-1 (y - level), as in algorithm 2.1 of Rasmussen and Williams (2006).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from souping.core.types import TOLERANCE, BoolArray, FloatArray, IntArray

# Prior standard deviations of a category's level, of the plane over the weights and of the bend.
LEVEL_SD = 0.3
PLANE_SD = 0.25
BEND_SD = 0.17
# Mean and spread of how far soups rise above the plane through the single models, times
# 1 - sum of squared weights.
RISE = 0.06
# Mean of a category's level, and variance of one item's score, while too few answers are known.
UNKNOWN_LEVEL = 0.5
UNKNOWN_NOISE = 0.2
# Least variance of one item's score.
LEAST_NOISE = 0.02

# Candidates that are mixed by their evidence: factors on plane and bend, length scales of the bend
# as distances of weights, and a prior that holds the logarithm of a factor near zero. The last
# candidate jumps from one soup of the grid to the next.
SCALES = (0.2, 0.35, 0.6, 1.0, 1.6, 2.5, 2.5)
BEND_LENGTHS = (0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.2)
SCALE_PRIOR = 0.3
# Candidates of the correlation of two soups' answers to one item: the part that all soups share,
# and the distance of weights over which the rest fades.
SHARED_CORRELATIONS = (0.1, 0.3, 0.5)
REACH = (0.4, 1.2)

# Added to the diagonal of a covariance before it is decomposed.
JITTER = 1e-9
# Draws of the posterior for an objective that is not linear, and the step of its slopes.
POSTERIOR_DRAWS = 512
SLOPE_STEP = 1e-6


class Posterior(NamedTuple):
    """What the answers say of one category."""

    mean: FloatArray  # [S]
    covariance: FloatArray  # [S, S]
    next_covariance: FloatArray  # [S, S] of each soup's mean with the next sample of each soup
    next_variance: FloatArray  # [S] of the score of that sample
    surprise: FloatArray  # [2]: sum of squared standardised residuals, and how many they are


class SoupModel:
    """Posterior of all soups' category means [C, S], given their scores on samples of items.

    `requested` [S, C, B] marks samples that were requested; those that are not answered yet count in
    the variances, but not in the means. `score` [S, C, B] is nan where there is no answer.
    """

    def __init__(
        self,
        table: FloatArray,
        item_samples: Sequence[Sequence[IntArray]],
        coefficients: FloatArray,
        rise: float = RISE,
        value: Callable[[FloatArray], FloatArray] | None = None,
        singles: FloatArray | None = None,
    ) -> None:
        """Weights `table` [S, K] of soups, positions `item_samples[c][b]` of items.

        `coefficients` [C] are those of the objective, `value` the objective of category means
        [..., C] where it is not linear. `singles` [K, I] are single models' scores, of which
        `usual_scores` are taken.

        If weights do not sum to one, the rest is the weight of the base model, which may be
        negative.
        """
        base_weight = 1 - table.sum(axis=1, keepdims=True)
        if (np.abs(base_weight) > TOLERANCE).any():
            table = np.hstack([table, base_weight])
        self.table = table
        self.item_samples = item_samples
        self.weights = coefficients
        self.rise = rise
        self.value = value
        self.size = _sample_sizes(item_samples)

        # Euclidean distance of two soups' weights [S, S], and how far a soup is from a single
        # model [S]: 0 for a single model, 1 - 1 / K for equal weights.
        self._distance = np.sqrt(((table[:, None] - table) ** 2).sum(axis=-1))
        self._mixing = 1 - (table**2).sum(axis=1)

        # Requests, mean scores of samples [S, C, B] and scores of single items [S, I].
        item_count = int(self.size[np.isfinite(self.size)].sum())
        self.requested: BoolArray = np.zeros((len(table), *self.size.shape), dtype=bool)
        self.score = np.full(self.requested.shape, np.nan)
        self.values = np.full((len(table), item_count), np.nan)

        # Scores are modelled less the items' usual ones, whose category means are added again.
        self._usual = np.zeros(item_count) if singles is None else usual_scores(singles)
        self._usual_mean = [
            float(self._usual[np.concatenate(samples)].mean()) for samples in item_samples
        ]
        # {category: (requests and answers as bytes, the posterior that they give)}
        self._posteriors: dict[int, tuple[bytes, Posterior]] = {}

    # ---------------------------------------------------------------- answers

    def observe(self, soup: int, items: slice | list[int], values: FloatArray) -> None:
        """Take in a soup's scores on some items of the split."""
        self.values[soup, items] = values - self._usual[items]
        for c, samples in enumerate(self.item_samples):
            for b, sample in enumerate(samples):
                self.score[soup, c, b] = self.values[soup, sample].mean()

    @property
    def known(self) -> int:
        """Number of answers."""
        return int(np.isfinite(self.values).sum())

    @property
    def unrequested(self) -> BoolArray:
        """Samples that were not requested [S, C, B]."""
        return np.asarray(np.isfinite(self.size) & ~self.requested)

    def request_split(self, soup: int) -> None:
        """Mark the whole split as requested of a soup."""
        self.requested[soup] = np.isfinite(self.size)

    def unrequested_items(self, soup: int) -> list[int]:
        """Items of the split that were not requested of a soup."""
        items: list[int] = []
        for c, b in np.argwhere(self.unrequested[soup]):
            items.extend(self.item_samples[c][b].tolist())
        return items

    # ---------------------------------------------------------------- prior

    def fit(self) -> None:
        """Set the level [S], noise [S, S] and signal [S, S] of each category, by its answers.

        Candidates of noise and signal are averaged with their posterior probabilities as weights.
        """
        self._posteriors.clear()
        signals = self._candidate_signals()
        correlations = self._candidate_correlations()
        self.level: list[FloatArray] = []
        self.noise: list[FloatArray] = []
        self.signal: list[FloatArray] = []
        for c in range(len(self.item_samples)):
            level, item_variance = self._level_and_item_variance(c)
            evidence = self._log_evidence(c, level, item_variance, signals, correlations)

            # Posterior probability [scales, correlations] of the candidates.
            probability = np.exp(evidence - evidence.max())
            probability *= np.exp(-SCALE_PRIOR * np.log(SCALES) ** 2)[:, None]
            probability /= probability.sum()

            correlation = np.tensordot(probability.sum(axis=0), correlations, 1)
            self.level.append(level)
            self.noise.append(item_variance * correlation)
            self.signal.append(np.tensordot(probability.sum(axis=1), signals, 1))

    def _candidate_signals(self) -> FloatArray:
        """Covariance of the true means for each of SCALES, [scales, S, S]."""
        scaled_distance = np.sqrt(3) * self._distance / np.array(BEND_LENGTHS)[:, None, None]
        plane = PLANE_SD**2 * self.table @ self.table.T
        bend = BEND_SD**2 * (1 + scaled_distance) * np.exp(-scaled_distance)
        level = LEVEL_SD**2 + self.rise**2 * np.outer(self._mixing, self._mixing)
        scales = np.square(SCALES)[:, None, None]
        return np.asarray(level + scales * (plane + bend))

    def _candidate_correlations(self) -> FloatArray:
        """Correlation of answers to one item for each of SHARED_CORRELATIONS x REACH, [correlations, S, S]."""
        correlations = []
        for shared, reach in itertools.product(SHARED_CORRELATIONS, REACH):
            correlations.append(shared + (1 - shared) * np.exp(-self._distance / reach))
        return np.stack(correlations)

    def _level_and_item_variance(self, c: int) -> tuple[FloatArray, float]:
        """(prior mean [S] of category c, variance of the score of one of its items)."""
        answers = self.values[:, np.concatenate(self.item_samples[c])]
        # One answer of a soup has no variance.
        answers = answers[np.isfinite(answers).sum(axis=1) > 1]
        if not len(answers):
            return UNKNOWN_LEVEL + self.rise * self._mixing, UNKNOWN_NOISE
        mean = float(np.nanmean(answers, axis=1).mean())
        variance = float(np.nanvar(answers, axis=1, ddof=1).mean())
        return mean + self.rise * self._mixing, max(variance, LEAST_NOISE)

    def _log_evidence(
        self,
        c: int,
        level: FloatArray,
        item_variance: float,
        signals: FloatArray,
        correlations: FloatArray,
    ) -> FloatArray:
        """Log marginal likelihood of category c's answers under each candidate prior, [scales, correlations].

        A candidate prior has one of the `signals` [scales, S, S] and one of the `correlations`
        [correlations, S, S]; all have the same `level` [S] and `item_variance`. Up to a constant
        the likelihood is -r' cov_yy^-1 r / 2 - log det(cov_yy) / 2 of the residuals r, where
        cov_yy = L L' (Rasmussen and Williams 2006, equation 2.30).
        """
        soup, sample, score = self._requests(c)
        answered = np.isfinite(score)
        soup = soup[answered]
        sample = sample[answered]
        residual = score[answered] - level[soup]

        # The error of a sample of n items has 1 / n of the noise, and only scores on one and the
        # same sample share it.
        rows = soup[:, None]
        sharing = (sample[:, None] == sample) / self.size[c, sample]
        signal = signals[..., rows, soup]
        noise = item_variance * (correlations[..., rows, soup] * sharing)
        cov_yy = signal[:, None] + noise[None] + JITTER * np.eye(len(soup))

        L = np.linalg.cholesky(cov_yy)
        whitened = np.linalg.solve(L, residual[:, None])[..., 0]
        half_log_det = np.log(np.diagonal(L, axis1=-2, axis2=-1)).sum(axis=-1)
        return np.asarray(-(whitened**2).sum(axis=-1) / 2 - half_log_det)

    # ---------------------------------------------------------------- posterior

    def posterior(self, c: int) -> Posterior:
        """Posterior of a category; computed anew only where its requests or answers changed."""
        state = self.requested[:, c].tobytes() + self.score[:, c].tobytes()
        if c in self._posteriors:
            known_state, posterior = self._posteriors[c]
            if known_state == state:
                return posterior
        posterior = self._condition(c)
        self._posteriors[c] = (state, posterior)
        return posterior

    def _requests(self, c: int) -> tuple[IntArray, IntArray, FloatArray]:
        """(soup, sample, mean score) [N] of the samples requested in category c; nan where not answered."""
        soup, sample = np.nonzero(self.requested[:, c])
        return soup, sample, self.score[soup, c, sample]

    def _condition(self, c: int) -> Posterior:
        """Posterior of a category, given its requests and answers: the equations of Gaussian process regression."""
        level = self.level[c]
        signal = self.signal[c]
        noise = self.noise[c]
        soup, sample, score = self._requests(c)
        # The first sample for a soup that has no next one; `AdaptiveSearch` never chooses that.
        next_sample = self.unrequested[:, c].argmax(axis=-1)
        next_size = self.size[c, next_sample]

        # Covariance of the requested samples with each other [N, N], and with the next sample of
        # each soup [N, S].
        pairs = np.ix_(soup, soup)
        sharing = (sample[:, None] == sample) / self.size[c, sample]
        cov_yy = signal[pairs] + noise[pairs] * sharing + JITTER * np.eye(len(soup))
        cov_y_next = signal[soup] + noise[soup] * (sample[:, None] == next_sample) / next_size

        # Variances count all requests: V = L^-1 cov, so V' V = cov' cov_yy^-1 cov.
        L = np.linalg.cholesky(cov_yy)
        V_f = np.linalg.solve(L, signal[soup])
        V_next = np.linalg.solve(L, cov_y_next)
        next_variance = np.diag(signal) + np.diag(noise) / next_size - (V_next**2).sum(axis=0)

        # Means count those that are answered.
        answered = np.isfinite(score)
        residual = (score - level[soup])[answered]
        alpha = np.linalg.solve(cov_yy[np.ix_(answered, answered)], residual)
        mean = level + signal[:, soup[answered]] @ alpha

        return Posterior(
            mean=self._usual_mean[c] + mean,
            covariance=signal - V_f.T @ V_f,
            next_covariance=signal - V_f.T @ V_next,
            next_variance=next_variance,
            surprise=np.array([residual @ alpha, len(alpha)]),
        )

    def _all_posteriors(self) -> list[Posterior]:
        """The posterior of each category, [C]."""
        return [self.posterior(c) for c in range(len(self.item_samples))]

    # ---------------------------------------------------------------- objective

    def objective(self) -> tuple[FloatArray, FloatArray]:
        """Posterior mean [S] and covariance [S, S] of the objective."""
        if self.value is None:
            return self.total(self.weights)
        values = self.value(self.posterior_draws())
        covariance = np.asarray(np.cov(values, rowvar=False), dtype=float)
        return values.mean(axis=0), covariance

    def total(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Posterior mean [S] and covariance [S, S] of a weighted sum of the category means.

        Categories are independent of each other.
        """
        means = []
        covariances = []
        for weight, posterior in zip(weights, self._all_posteriors(), strict=True):
            means.append(weight * posterior.mean)
            covariances.append(weight**2 * posterior.covariance)
        return np.sum(means, axis=0), np.sum(covariances, axis=0)

    def shares(self, items: BoolArray) -> FloatArray:
        """Share of each category in the mean over some items [I]."""
        counts = np.array([items[np.concatenate(samples)].sum() for samples in self.item_samples])
        return np.asarray(counts / counts.sum())

    def posterior_draws(self, count: int = POSTERIOR_DRAWS, wider: float = 1.0) -> FloatArray:
        """Draws of all category means [D, S, C]; `wider` is a factor on their variances."""
        means = []
        for c, posterior in enumerate(self._all_posteriors()):
            deviation = draws(wider * posterior.covariance, count, stream=c)
            means.append(posterior.mean + deviation)
        return np.stack(means, axis=-1)

    def slopes(self, soups: IntArray) -> FloatArray:
        """Expected derivative of some soups' objective to each category mean [soups, C]."""
        if self.value is None:
            return np.tile(self.weights, (len(soups), 1))
        means = self.posterior_draws()[:, soups]
        value = self.value(means)
        derivatives = []
        # Difference quotients, one category after the other.
        for step in SLOPE_STEP * np.eye(len(self.weights)):
            difference = self.value(means + step) - value
            derivatives.append(difference.mean(axis=0) / SLOPE_STEP)
        return np.stack(derivatives, axis=-1)

    def finishing_gain(self, soups: IntArray, odds: FloatArray | None = None) -> float:
        """By how much (inner scores) the pick is expected to improve if these soups answer the rest of the split.

        `soups` has the leader first. A soup's lead is multiplied by its `odds` [S] of being admissible.
        """
        mean, covariance = self.objective()
        admissible = np.ones(len(soups)) if odds is None else odds[soups]

        # The posterior means will move by a normal of the variance that the answers take away.
        taken_away = covariance - self._covariance_after(soups)
        later = mean[soups] + draws(taken_away[np.ix_(soups, soups)], POSTERIOR_DRAWS)

        lead_now = (mean[soups] - mean[soups[0]]) * admissible
        lead_later = (later - later[:, :1]) * admissible
        return float(lead_later.max(axis=1).mean() - lead_now.max())

    def _covariance_after(self, soups: IntArray) -> FloatArray:
        """Covariance [S, S] of the objective as if these soups' whole split were requested."""
        requested = self.requested
        self.requested = requested.copy()
        self.requested[soups] = np.isfinite(self.size)
        try:
            _, covariance = self.objective()
            return covariance
        finally:
            self.requested = requested

    def surprise(self) -> float:
        """Factor on variances by which the answers vary more than the model believes; 1 if nothing was answered."""
        surprises = [posterior.surprise for posterior in self._all_posteriors()]
        squares, count = np.sum(surprises, axis=0)
        # One more residual, of the size that the model believes, holds the factor near 1.
        return float((1 + squares) / (1 + count))


def _sample_sizes(item_samples: Sequence[Sequence[IntArray]]) -> FloatArray:
    """Items of each sample [C, B]; infinite where a category has fewer samples."""
    columns = max(len(samples) for samples in item_samples)
    sizes = np.full((len(item_samples), columns), np.inf)
    for c, samples in enumerate(item_samples):
        sizes[c, : len(samples)] = [len(sample) for sample in samples]
    return sizes


def usual_scores(singles: FloatArray) -> FloatArray:
    """What to take from each item's scores [I], by those of single models [K, I].

    It is 0 if all scores are between 0 and 1, else the models' mean: texts differ in their losses
    far more than models do, and the surrogate's noise is that of right and wrong answers.
    """
    if singles.min() >= 0 and singles.max() <= 1:
        return np.zeros(singles.shape[1])
    return np.asarray(singles.mean(axis=0))


def draws(cov: FloatArray, count: int, stream: int = 0) -> FloatArray:
    """Samples [count, S] of a normal with mean zero and covariance `cov`; a `stream` always gives the same ones."""
    # A root of the covariance by its eigenvalues, as it may be singular.
    eigenvalues, eigenvectors = np.linalg.eigh(cov)
    root = eigenvectors * np.sqrt(np.maximum(eigenvalues, 0))
    normal = np.random.default_rng(stream).standard_normal((count, len(cov)))
    return np.asarray(normal @ root.T)
