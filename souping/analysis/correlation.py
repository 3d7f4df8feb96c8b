"""Correlation of categories over models, and how much of it is noise of the items.

Scores [M, C] -> rho, low, high [C, C], with 95 % intervals. All three coefficients are cosines of
columns: of centred scores (Pearson), of centred ranks (Spearman), of the signs of all pairwise
differences (Kendall's tau-b). Written so, a coefficient for every pair of categories is one product
of small matrices, quick enough to be repeated on hundreds of bootstrap draws, and scipy need not be
imported.

Reliability is the share of a category's variance between models that is real; correlations can be
freed from item noise.

Shape legend: M models, C categories, G groups of items, D draws, R distinct rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from souping.core.protocols import Correlation
from souping.core.types import (
    CONSTANT,
    Correlations,
    FloatArray,
    IntArray,
    ScoreMatrix,
    UserError,
    frozen,
)
from souping.statistics.bootstrap_t import resample
from souping.statistics.corrections import Z95
from souping.statistics.flips import distinct
from souping.statistics.grouped import design
from souping.statistics.score_table import group_numbers

# A column whose range is below this share of its largest value is constant: only rounding tells its
# scores apart.
FLAT_RANGE = 1e-9
# Fewer models (or base families) say next to nothing about a correlation: with six, r = 0.07 spans
# -0.79 to 0.83.
FEWEST_MODELS = 6
# Variances between models that are zero but for rounding, and the least reliability from which a
# correlation can be freed from noise.
ZERO_VARIANCE = 1e-18
LEAST_RELIABILITY = 0.05


def few_models(models: int) -> str:
    """Warning for correlations over too few models; empty if they are enough."""
    if models >= FEWEST_MODELS:
        return ""
    head = f"correlations over {models} models are largely chance (at least {FEWEST_MODELS} needed)"
    return f"{head}; selectors without correlations: selector=greedy, selector=all"


def check_columns(scores: FloatArray, names: Sequence[str] = ()) -> None:
    """Refuse scores [M, C] of which no correlation exists; columns are named by `names`, else by number from 1.

    Raises:
        UserError: fewer than 3 models or 2 categories, a column that holds NaN or infinity, or a constant column.
    """
    if len(scores) < 3:
        raise UserError(
            f"correlation needs the scores of 3 models or more, not {len(scores)}: add models or a table"
        )
    if scores.shape[1] < 2:
        raise UserError(
            f"correlation needs at least 2 categories, not {scores.shape[1]}: use selector=topk or all"
        )
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=0))
    if broken.size:
        raise UserError(
            f"a score that is not a finite number in {_columns(broken, names)}: fix it or leave that out"
        )
    flat = np.flatnonzero(np.ptp(scores, axis=0) <= FLAT_RANGE * np.abs(scores).max(axis=0))
    if flat.size:
        same = f"the same score for all {len(scores)} models in {_columns(flat, names)}"
        raise UserError(f"{same}, so no correlation exists: leave it out or add models")


def pearson(scores: FloatArray) -> Correlations:
    """Pearson's r with Fisher's z interval: se(z) = 1 / sqrt(M - 3), so nan limits below 4 models (Fisher 1921)."""
    check_columns(scores)
    rho = _cosines(_scaled(scores))
    return _with_interval(rho, np.ones_like(rho), len(scores) - 3)


def spearman(scores: FloatArray) -> Correlations:
    """Spearman's rank correlation, equal scores sharing their mean rank.

    Interval: se(z) = sqrt((1 + r^2 / 2) / (M - 3)) (Bonett and Wright 2000), nan limits below 4 models.
    """
    check_columns(scores)
    # Twice the rank less the mean rank: how many scores are below, less how many are above.
    rho = _cosines(_signs(scores).sum(axis=1))
    return _with_interval(rho, 1 + rho**2 / 2, len(scores) - 3)


def kendall(scores: FloatArray) -> Correlations:
    """Kendall's tau-b.

    Interval: se(z) = sqrt(0.437 / (M - 4)) (Fieller, Hartley and Pearson 1957), nan limits below 5 models.
    """
    check_columns(scores)
    # Every pair of models once.
    above, below = np.triu_indices(len(scores), 1)
    rho = _cosines(_signs(scores)[above, below], centre=False)
    return _with_interval(rho, np.full_like(rho, 0.437), len(scores) - 4)


def _columns(numbers: NDArray[np.int64], names: Sequence[str]) -> str:
    """Columns in words: by their names, or without names by number from 1."""
    if not names:
        return f"column {', '.join(str(n + 1) for n in numbers)}"
    return f"category {', '.join(repr(names[n]) for n in numbers)}"


def _scaled(scores: FloatArray) -> FloatArray:
    """Columns divided by their largest value, so that squares neither overflow nor vanish."""
    return np.asarray(scores / np.abs(scores).max(axis=0), dtype=float)


def _signs(scores: FloatArray) -> FloatArray:
    """Sign of every pairwise difference, [M, M, C]; differences at the level of rounding count as ties."""
    scaled = _scaled(scores)
    differences = scaled[:, None] - scaled[None, :]
    return np.where(np.abs(differences) <= FLAT_RANGE, 0.0, np.sign(differences))


def _cosines(columns: FloatArray, *, centre: bool = True) -> FloatArray:
    """[N, C] -> cosines of every two columns, [C, C], with a diagonal of exactly 1."""
    if centre:
        columns = columns - columns.mean(axis=0)
    units = columns / np.sqrt((columns**2).sum(axis=0))
    rho: FloatArray = np.clip(np.einsum("na,nb->ab", units, units), -1.0, 1.0)
    np.fill_diagonal(rho, 1.0)
    return rho


def _with_interval(rho: FloatArray, variance: FloatArray, degrees: int) -> Correlations:
    """Limits tanh(atanh(rho) -+ 1.96 sqrt(variance / degrees)); nan without degrees of freedom, 1 on the diagonal."""
    low = np.full_like(rho, np.nan)
    high = np.full_like(rho, np.nan)
    if degrees >= 1:
        # atanh is infinite at -1 and 1. So near to them, rounding may leave rho outside its limits.
        z = np.arctanh(np.clip(rho, -1 + 1e-15, 1 - 1e-15))
        margin = Z95 * np.sqrt(variance / degrees)
        low = np.minimum(rho, np.tanh(z - margin))
        high = np.maximum(rho, np.tanh(z + margin))
    np.fill_diagonal(low, 1.0)
    np.fill_diagonal(high, 1.0)
    return Correlations(rho=rho, low=low, high=high)


def correlated(correlation: Correlation, table: FloatArray) -> Correlations:
    """Correlations [C, C] of the categories that differ between models; nan where none is defined."""
    unknown = np.full((table.shape[1],) * 2, np.nan)
    # The arrays are filled in below, if there are correlations: not with too few models or categories.
    correlations = Correlations(rho=unknown, low=unknown.copy(), high=unknown.copy())
    varying = np.flatnonzero(np.ptp(table, axis=0) > CONSTANT)
    pairs = np.ix_(varying, varying)
    with suppress(UserError):
        of_varying = correlation(table[:, varying])
        correlations.rho[pairs] = of_varying.rho
        correlations.low[pairs] = of_varying.low
        correlations.high[pairs] = of_varying.high
    return correlations


# ---------------------------------------------------------------- noise of the items


@frozen
class GroupSums:
    """Item scores summed by group. Groups with items in the same categories form a stratum."""

    sums: FloatArray  # [G, M, C]
    counts: FloatArray  # [G, C]
    stratum: IntArray  # [G]

    @classmethod
    def of(cls, scores: ScoreMatrix) -> GroupSums:
        """Collect the per-item scores of a matrix.

        Raises:
            ValueError: the models were scored on different items.
        """
        assert scores.items, "published scores have no items"
        items = scores.items[scores.models[0]].items
        ids = [item.id for item in items]
        for model in scores.models:
            if [item.id for item in scores.items[model].items] != ids:
                raise ValueError("all models must be scored on the same items, in the same order")

        groups = group_numbers([item.group for item in items])
        categories = np.array([scores.categories.index(item.category) for item in items])
        equal_weights = np.ones(len(scores.categories))
        grouped = []
        for model in scores.models:
            grouped.append(design(scores.items[model].values, categories, groups, equal_weights))

        # The order of later sums follows the layout in memory, so the layout is fixed.
        sums = np.stack([of_model.sums for of_model in grouped], axis=1)
        return cls(
            sums=np.ascontiguousarray(sums),
            counts=np.ascontiguousarray(grouped[0].counts),
            stratum=grouped[0].stratum,
        )

    @property
    def means(self) -> FloatArray:
        """Category means of each model, [M, C]."""
        return np.asarray(self.sums.sum(axis=0) / self.counts.sum(axis=0))

    def draws(self, number: int, rng: np.random.Generator) -> FloatArray:
        """Category means on bootstrap draws of groups within strata, [D, M, C].

        They are nan where a draw misses a category.
        """
        groups, models, categories = self.sums.shape
        table = np.hstack([self.sums.reshape(groups, -1), self.counts])
        rows, stratum, copies = distinct(table, self.stratum)
        # Each draw's sums, by how often it has each distinct group: first those of scores, then those of counts.
        totals = np.einsum("dr,rf->df", resample(stratum, copies, number, rng), rows)
        sums = totals[:, : models * categories].reshape(number, models, categories)
        counts = totals[:, None, models * categories :]
        means = np.full_like(sums, np.nan)
        return np.asarray(np.divide(sums, counts, out=means, where=counts > 0))

    def noise(self) -> FloatArray:
        """Covariance of category means between models that item sampling alone explains, [C, C].

        From the model x group interaction: an item that is hard for all models moves all of them
        alike, so it is not noise here. Off the diagonal only groups that span categories count.
        """
        # What each group adds to the models' means, less what it adds to all of them [G, M, C].
        residuals = self.sums - self.counts[:, None] * self.means
        influence = residuals / self.counts.sum(axis=0)
        interaction = influence - influence.mean(axis=1, keepdims=True)

        # The factor n / (n - 1) of a variance over n groups, here as a root.
        groups = (self.counts > 0).sum(axis=0)  # [C]
        interaction = interaction * np.sqrt(groups / np.maximum(groups - 1, 1))
        products = np.einsum("gma,gmb->ab", interaction, interaction)
        return np.asarray(products / (self.sums.shape[1] - 1))


def reliability(sums: GroupSums) -> FloatArray:
    """Share of each category's variance between models that is not item noise, [C] in 0..1; nan where none varies.

    1 - noise / observed variance: Hoyt's (1941) reliability, which for items of equal weight is Cronbach's alpha.
    """
    observed = np.var(sums.means, axis=0, ddof=1)
    noise = np.diag(sums.noise())
    unknown = np.full_like(noise, np.nan)
    ratio = np.divide(noise, observed, out=unknown, where=observed > ZERO_VARIANCE)
    return np.asarray(np.clip(1 - ratio, 0.0, 1.0))


def disattenuated(sums: GroupSums) -> FloatArray:
    """Pearson correlation of categories over models with item noise taken out, [C, C] in -1..1.

    Observed covariances and variances are each reduced by their noise before the division (Spearman 1904, who corrects
    the variances alone; with shared groups the covariance has noise too). nan for a category that is nearly all noise.
    """
    covariance = np.cov(sums.means, rowvar=False) - sums.noise()
    variance = np.maximum(np.diag(covariance), 0.0)
    sd = np.sqrt(np.where(reliability(sums) > LEAST_RELIABILITY, variance, np.nan))
    rho: FloatArray = np.clip(covariance / np.outer(sd, sd), -1.0, 1.0)
    return rho
