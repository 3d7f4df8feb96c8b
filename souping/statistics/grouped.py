"""Scores summed over the items of each group: what tests and intervals of the objective work on.

Items of a group (questions on one passage) are not independent, so groups are what is resampled,
and whose signs are flipped. Groups with items in the same categories form a stratum.

Shape legend: I items, G groups, C categories, H strata, D draws, R distinct rows.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from souping.core.types import BoolArray, FloatArray, IntArray, frozen

# Groups without which a stratum cannot show its own variance.
SMALLEST_STRATUM = 5
# Variance of a stratum, relative to its share of T squared, that counts as none.
FLAT_VARIANCE = 1e-12
# Differences that are rounding.
ZERO_DIFFERENCE = 1e-9


@frozen
class GroupLayout:
    """Group, category and stratum of each item: what all scores of the same items have in common.

    `weights` [C] are the objective's coefficients. Categories without weight are left out, and so
    are groups without an item in another one.
    """

    groups: int  # of all items
    cells: IntArray  # [I] place of the item in a table [C, G], beyond its end where it is left out
    counts: FloatArray  # [G, C] items
    totals: FloatArray  # [C] items
    stratum: IntArray  # [G]
    sizes: FloatArray  # [H] groups
    weights: FloatArray  # [C]
    ranges: FloatArray  # [C] by how much scores can differ

    @classmethod
    def of(
        cls,
        categories: IntArray,
        groups: IntArray,
        coefficients: FloatArray,
        ranges: FloatArray | None = None,
    ) -> GroupLayout:
        """From the category and the group of each item [I]. Without `ranges`, scores are from 0 to 1.

        Raises:
            ValueError: a category with weight has no item.
        """
        weights = np.asarray(coefficients, dtype=float)
        # The rank of each group among those that have an item.
        occupied = np.bincount(groups) > 0
        group = (np.cumsum(occupied) - 1)[groups]
        shape = (int(group.max()) + 1, len(weights))
        counts = np.zeros(shape)
        np.add.at(counts, (group, categories), 1.0)

        used = weights > 0
        if (counts[:, used].sum(axis=0) == 0).any():
            raise ValueError("every category with weight needs at least one item")
        has_used = counts[:, used].sum(axis=1) > 0
        counts = counts[has_used][:, used]
        stratum = stratify(counts > 0)
        # The place of each item among the categories and groups that are left.
        category_rank = (np.cumsum(used) - 1)[categories]
        place = category_rank * len(counts) + (np.cumsum(has_used) - 1)[group]
        return cls(
            groups=shape[0],
            cells=np.where(used[categories], place, counts.size),
            counts=counts,
            totals=counts.sum(axis=0),
            stratum=stratum,
            sizes=np.bincount(stratum).astype(float),
            weights=weights[used],
            ranges=(np.ones_like(weights) if ranges is None else ranges)[used],
        )

    def grouped(self, values: FloatArray) -> GroupedScores:
        """Sums of values [I] by group and category."""
        groups, categories = self.counts.shape
        # One more cell takes the items that are left out.
        sums = np.bincount(self.cells, np.asarray(values, dtype=float), groups * categories + 1)
        table = sums[:-1].reshape(categories, groups).T
        return GroupedScores(sums=table.astype(float, copy=False), layout=self)

    def by_stratum(self, table: FloatArray) -> FloatArray:
        """Sums of a table [G, C] over the groups of each stratum, [H, C]."""
        columns = [np.bincount(self.stratum, column, len(self.sizes)) for column in table.T]
        return np.stack(columns, axis=1)

    @cached_property
    def group_shares(self) -> FloatArray:
        """How far T moves if all items of a group and category move by 1, [G, C]."""
        return np.asarray(self.weights * self.counts / self.totals)

    @cached_property
    def shares(self) -> FloatArray:
        """How far T moves if all items of a stratum and category move by 1, [H, C]."""
        return self.by_stratum(self.group_shares)

    @cached_property
    def spans(self) -> FloatArray:
        """How far T moves if all items of a stratum move from the lowest score to the highest, [H]."""
        return np.asarray((self.shares * self.ranges).sum(axis=1))


@frozen
class GroupedScores:
    """Scores (or paired differences) summed over the items of each group.

    The objective is T = sum_c w_c * sum_g sums[g, c] / sum_g counts[g, c].
    """

    sums: FloatArray  # [G, C]
    layout: GroupLayout

    @property
    def counts(self) -> FloatArray:
        """Items of each group and category, [G, C]."""
        return self.layout.counts

    @property
    def stratum(self) -> IntArray:
        """Stratum of each group, [G]."""
        return self.layout.stratum

    @property
    def weights(self) -> FloatArray:
        """Coefficients of the categories, [C]."""
        return self.layout.weights

    @property
    def sizes(self) -> FloatArray:
        """Groups per stratum, [H]."""
        return self.layout.sizes

    @property
    def strata(self) -> int:
        """Number of strata."""
        return len(self.sizes)

    @cached_property
    def means(self) -> FloatArray:
        """Category means, [C]."""
        return np.asarray(self.sums.sum(axis=0) / self.layout.totals)

    @cached_property
    def objective(self) -> float:
        """T, the weighted sum of the category means."""
        return float((self.weights * self.means).sum())

    @cached_property
    def pulls(self) -> FloatArray:
        """What each group adds to T, [G]."""
        zeros = 0 * self.weights
        return self._pulled_from(zeros)

    @cached_property
    def step(self) -> float:
        """The size of what a group adds to T if it is the same for all groups that do not add 0; else 0."""
        pulls = np.abs(self.pulls)
        largest = float(pulls.max())
        is_zero = pulls <= ZERO_DIFFERENCE * largest
        is_largest = pulls >= (1 - ZERO_DIFFERENCE) * largest
        if not (is_zero | is_largest).all():
            return 0.0
        return largest

    @cached_property
    def influence(self) -> FloatArray:
        """Each group's pull on T, linearised because category means are ratios, [G]."""
        return self._pulled_from(self._centres())

    def _pulled_from(self, centres: FloatArray) -> FloatArray:
        """What each group adds to T beyond these `centres` [C], one category at a time to save memory."""
        pulls = np.zeros(len(self.sums))
        for c, total in enumerate(self.layout.totals):
            residuals = self.sums[:, c] - self.counts[:, c] * centres[c]
            pulls += self.weights[c] * residuals / total
        return pulls

    def _centres(self) -> FloatArray:
        """What categories vary around [C]: their means.

        A small category, of fewer than five groups, varies around the mean of the strata in which
        all small ones are: a lone item has no distance from its own mean (strata of one unit,
        collapsed: Cochran 1977, section 5A.12).
        """
        small = (self.counts > 0).sum(axis=0) < SMALLEST_STRATUM
        if not small.any():
            return self.means
        has_small = (self.counts[:, small] > 0).any(axis=1)
        collapsed = np.isin(self.stratum, self.stratum[has_small])
        mean = self.sums[collapsed].sum() / self.counts[collapsed].sum()
        return np.where(small, mean, self.means)

    @cached_property
    def variances(self) -> FloatArray:
        """Variance of T that each stratum contributes, [H]: n / (n - 1) * sum (u_g - mean u)^2."""
        influence = self.influence
        n = self.sizes
        means = np.bincount(self.stratum, influence, self.strata) / n
        deviations = influence - means[self.stratum]
        squares = np.bincount(self.stratum, deviations**2, self.strata)
        return np.asarray(squares * n / np.maximum(n - 1, 1))

    @cached_property
    def flat(self) -> BoolArray:
        """Strata in which no group differs from another: their estimated variance is zero, [H]."""
        return np.asarray(self.variances <= FLAT_VARIANCE * self.layout.shares.sum(axis=1) ** 2)


def design(
    values: FloatArray, categories: IntArray, groups: IntArray, coefficients: FloatArray
) -> GroupedScores:
    """Sum values [I] by group and category. Categories without weight are left out.

    Raises:
        ValueError: a category with weight has no item.
    """
    return GroupLayout.of(categories, groups, coefficients).grouped(values)


def stratify(present: BoolArray) -> IntArray:
    """Stratum [G] of each group: the set of categories its items are in, present [G, C].

    Sets that fewer than five groups have cannot show their own variance; they form one stratum,
    and where that is still below five it joins the largest.
    """
    # Packed bits compare faster than rows, and sort alike.
    packed = np.ascontiguousarray(np.packbits(present, axis=1))
    _, category_set = np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_inverse=True)

    sizes = np.bincount(category_set)
    rare = sizes < SMALLEST_STRATUM
    joined = len(sizes)  # a new stratum
    if rare.any() and not rare.all() and sizes[rare].sum() < SMALLEST_STRATUM:
        joined = int(np.argmax(sizes))
    merged = np.where(rare[category_set], joined, category_set)
    _, stratum = np.unique(merged, return_inverse=True)
    return stratum.reshape(-1).astype(np.int64)
