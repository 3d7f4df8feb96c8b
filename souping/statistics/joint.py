"""Several differences under the same sign flips (max-T; Westfall and Young 1993).

The groups of several columns (models, or pairs of models in categories) meet the same sign patterns, so a correction
for several tests knows how their differences hang together. A difference is that of two columns, or a column alone.
It is beyond chance at level a where |T| / se is above the size that the largest |T*| / se* of all reaches with a chance
of a.

Shape legend: G groups, H strata, F columns, D sign patterns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from souping.core.types import FloatArray, IntArray, frozen
from souping.statistics.bootstrap_t import NORMAL, bootstrap_reach
from souping.statistics.comparison import Comparison, bounded, comparison_of
from souping.statistics.corrections import Level, step_down
from souping.statistics.flips import SIGN_DRAWS, distinct, drawn_sums, draws_for, studentised
from souping.statistics.grouped import ZERO_DIFFERENCE, GroupedScores
from souping.statistics.nested import NestedIntervals, Reach
from souping.statistics.score_table import ItemTable, Paired, ScoreTable, without_rounding

MAX_T = "max-T of studentised sign flips over groups"
ColumnPair = tuple[int, int | None]
"""A column, and the column that is subtracted from it, which must be of the same groups; None for a column alone."""


@frozen
class JointFlips:
    """Sums of the groups of all columns in the same sign patterns, the pattern seen first.

    Pulls and sums are in `unit`s: a power of 2 near the largest pull, so that dividing by it does not round.
    """

    pulls: FloatArray  # [G, F] what each group adds to each column
    stratum: IntArray  # [G]
    sizes: FloatArray  # [H, F] groups of a stratum that a column has
    seen: FloatArray  # [H, F] sums in the pattern seen
    drawn: FloatArray  # [D, H, F] those in the others
    unit: float

    @classmethod
    def of(cls, pulls: FloatArray, stratum: IntArray, sizes: FloatArray, draws: int) -> JointFlips:
        """Sums in the pattern seen and in `draws` random ones. The other arguments are the fields of these names, but
        the `pulls` are in scores."""
        _, exponent = np.frexp(np.abs(pulls).max())
        unit = 2.0 ** int(exponent)
        pulls = pulls / unit
        strata = len(sizes)
        rows, row_stratum, number = distinct(pulls, stratum)
        drawn = drawn_sums(rows, number, row_stratum, strata, draws, seed=0)
        seen = [np.bincount(stratum, column, strata) for column in pulls.T]
        return cls(
            pulls=pulls,
            stratum=stratum,
            sizes=sizes,
            seen=np.stack(seen, axis=1),
            drawn=drawn,
            unit=unit,
        )

    @classmethod
    def of_models(cls, models: Sequence[GroupedScores], draws: int) -> JointFlips:
        """A column for each model, with what its groups add to the objective."""
        layout = models[0].layout
        pulls = np.stack([model.pulls for model in models], axis=1)
        sizes = np.repeat(layout.sizes[:, None], len(models), axis=1)
        return cls.of(pulls, layout.stratum, sizes, draws)

    def t(self, difference: ColumnPair) -> FloatArray:
        """T / se of a difference in every pattern, [1 + D]; 0 if no group differs but for rounding."""
        statistics, _ = self.t_and_error(difference)
        return statistics

    def t_and_error(self, difference: ColumnPair) -> tuple[FloatArray, float]:
        """(T / se of a difference in every pattern [1 + D], its standard error in the pattern seen)."""
        column, subtracted = difference
        pulls = self.pulls[:, column]
        seen = self.seen[:, column]
        drawn = self.drawn[:, :, column]
        if subtracted is not None:
            pulls = pulls - self.pulls[:, subtracted]
            seen = seen - self.seen[:, subtracted]
            drawn = drawn - self.drawn[:, :, subtracted]
        sums = np.concatenate([seen[None], drawn])  # [1 + D, H]
        # No group differs: what is left is rounding.
        if np.abs(pulls).max() <= ZERO_DIFFERENCE:
            pulls = np.zeros_like(pulls)
            sums = np.zeros_like(sums)

        # A subtracted column is of the same groups.
        sizes = self.sizes[:, column]
        squares = np.bincount(self.stratum, pulls**2, len(sizes)).astype(float)
        totals, errors = studentised(sums, squares, sizes)
        return totals / errors, float(errors[0]) * self.unit

    def largest(self, differences: Iterable[ColumnPair]) -> FloatArray:
        """The largest |T| / se of several differences in every pattern, [1 + D]."""
        largest = np.zeros(1 + len(self.drawn))
        for difference in differences:
            largest = np.maximum(largest, np.abs(self.t(difference)))
        return largest

    def tests(self, differences: Sequence[ColumnPair], alpha: float) -> float:
        """Number of independent tests whose correction the largest of these differences needs at level alpha."""
        # The first one is the pattern seen.
        critical = critical_value(self.largest(differences)[1:], alpha, len(differences))
        return equivalent_tests(critical, alpha, len(differences))

    def step_down(self, differences: Sequence[ColumnPair], alpha: float) -> list[float]:
        """The number of independent tests whose correction each difference needs, in the order of the differences.

        The largest difference is held to the largest of all, the next one to the largest of the others.
        """
        statistics = {difference: np.abs(self.t(difference)) for difference in differences}

        def decide(remaining: Sequence[ColumnPair]) -> tuple[bool, float]:
            """(whether the first remaining difference is beyond chance, for how many tests it is corrected)"""
            # Without the pattern seen, which comes first.
            largest = np.max([statistics[difference][1:] for difference in remaining], axis=0)
            critical = critical_value(largest, alpha, len(remaining))
            first = statistics[remaining[0]]
            shown = bool(first[0] >= critical)  # in the pattern seen
            return shown, equivalent_tests(critical, alpha, len(remaining))

        order = sorted(differences, key=lambda difference: -statistics[difference][0])
        needed = step_down(order, decide)
        return [needed[difference] for difference in differences]

    def may_be_best(self, model: int, alpha: float) -> bool:
        """Whether a column may be the highest: no other is above it by more than chance among all others.

        In 1 - alpha of comparisons this holds of the truly best (multiple comparisons with the best,
        Hsu 1981).
        """
        rivals = [column for column in range(self.pulls.shape[1]) if column != model]
        largest = np.max([self.t((rival, model)) for rival in rivals], axis=0)
        # The first one is the pattern seen.
        as_large = largest[1:] >= largest[0] - ZERO_DIFFERENCE
        return bool((1 + as_large.sum()) / (1 + len(as_large)) > alpha)


def critical_value(largest: FloatArray, alpha: float, tests: int) -> float:
    """Size that the largest of several |T| / se reaches with probability alpha by chance.

    From the `largest` [D] of each drawn sign pattern, but at most Bonferroni's for this number of tests.
    """
    # The critical value is reached by alpha (1 + D) of 1 + D patterns, rounded up. One of them is the pattern seen, so
    # one fewer of the drawn ones. Rounding error must not raise a whole number to the next, and at a level that the
    # draws do not resolve, the largest of them counts.
    rank = max(1, math.ceil(alpha * (1 + len(largest)) - 1 - ZERO_DIFFERENCE))
    by_patterns = float(np.sort(largest)[-rank])
    bonferroni = -NORMAL.inv_cdf(alpha / 2 / tests)
    return min(by_patterns, bonferroni)


def equivalent_tests(critical: float, alpha: float, most: int) -> float:
    """Number of independent tests, 1 to `most`, whose correction has this critical value."""
    return min(float(most), max(1.0, alpha / (2 * NORMAL.cdf(-critical))))


# ---------------------------------------------------------------- models that may have been picked


def picked_tests(
    scores: FloatArray,
    pairs: Iterable[tuple[int, int]],
    items: ItemTable,
    alpha: float,
    draws: int = SIGN_DRAWS,
) -> float:
    """Tests that a comparison stands for if its models may have been picked, by known scores, as one of these pairs.

    `scores` [M, I] are nan where a model did not answer; it then counts as the mean of the others. `pairs` are numbers
    of models.
    """
    differences: list[ColumnPair] = list(pairs)
    if len(differences) < 2:
        return 1.0
    answered = np.isfinite(scores)
    means = np.nan_to_num(scores).sum(axis=0) / np.maximum(answered.sum(axis=0), 1)
    centred = np.where(answered, without_rounding(scores - means), 0.0)
    models = [items.grouped(row) for row in centred]
    flips = JointFlips.of_models(models, draws_for(alpha, draws))
    return flips.tests(differences, alpha)


# ---------------------------------------------------------------- limits that hold for all at once


@frozen
class MaxTReach(Reach):
    """Simultaneous limits: the size that the largest of all |t*| reaches with a chance of `level`.

    In a category of few groups many patterns have all groups on one side: with hardly any standard
    error, their |t*| is huge. So a limit is at most the size that the difference's own |t*| reaches
    with a chance of `level` / `tests`.
    """

    error: float  # standard error of this difference
    largest: FloatArray  # [D] of all differences in a pattern, falling
    statistics: FloatArray  # [D] |T*| / se* of this one, falling
    tests: int

    def below(self, level: float) -> float:
        """Distance from the difference down to its lower limit, in scores; up to the upper one it is the same."""
        # The first size holds for all differences at once; the second is Bonferroni's, from this one's patterns alone.
        critical = min(_reached(level, self.largest), _reached(level / self.tests, self.statistics))
        return critical * self.error

    def above(self, level: float) -> float:
        return self.below(level)


def _reached(level: float, falling: FloatArray) -> float:
    """The size that is reached with a chance of `level`, by the sizes [D] in the drawn patterns, largest first."""
    # The same rank as in `critical_value`, but a level that the draws do not resolve has no limit.
    rank = math.ceil(level * (1 + len(falling)) - ZERO_DIFFERENCE) - 1
    if rank <= 0:
        return math.inf
    return float(falling[rank - 1])


def intervals(pair: Paired, reach: MaxTReach) -> NestedIntervals:
    """Simultaneous intervals of one difference; graded scores have bootstrap-t limits too."""
    bootstrap = None
    if pair.graded:
        bootstrap = bootstrap_reach(pair.grouped, tests=reach.tests)
    return NestedIntervals.of(
        pair.grouped, [reach, bootstrap], pair.bound, graded=pair.graded, tests=reach.tests
    )


# ---------------------------------------------------------------- categories


ModelPair = tuple[ScoreTable, str, str]
"""Scores of two models, and their names."""


def compare_in_categories(pairs: Sequence[ModelPair], level: Level) -> list[tuple[str, Comparison]]:
    """(category, comparison) of every pair of models in every category, as one family at every corner of the missing
    answers."""
    cells = []
    categories = []
    for scores, a, b in pairs:
        for number, name in enumerate(scores.items.names):
            cells.append((scores.alone(number), a, b))
            categories.append(name)
    comparisons = map(bounded, compare_jointly(cells, level))
    return list(zip(categories, comparisons, strict=True))


def compare_jointly(cells: Sequence[ModelPair], level: Level) -> list[list[Comparison]]:
    """Every cell's two models on its items, with limits and p-values that hold for all cells at once (max-T).

    Of each cell the comparisons at the corners of the missing answers, first by the scores as they were counted.
    """
    at_corners = [scores.corners(a, b) for scores, a, b in cells]
    families = []
    for corner in range(max(len(corners) for corners in at_corners)):
        # A cell without missing answers has one corner, which stands for all.
        family = []
        for (_, a, b), corners in zip(cells, at_corners, strict=True):
            family.append((corners[min(corner, len(corners) - 1)], a, b))
        families.append(_family(family, level))
    return [list(corners) for corners in zip(*families, strict=True)]


def _family(cells: Sequence[ModelPair], level: Level) -> list[Comparison]:
    """Comparisons of models by max-T, each on all items of its cell."""
    pairs = [scores.paired(a, b) for scores, a, b in cells]
    flips = _joint_flips(cells, pairs, level.alpha)

    # Raised by what rounding may be, so that a pattern equal to the one seen reaches it.
    statistics = []
    errors = []
    for f in range(len(pairs)):
        t, error = flips.t_and_error((f, None))
        statistics.append(np.abs(t[1:]) * (1 + ZERO_DIFFERENCE))
        errors.append(error)
    largest = np.sort(np.max(statistics, axis=0))[::-1]

    comparisons = []
    for f, pair in enumerate(pairs):
        reach = MaxTReach(
            error=errors[f],
            largest=largest,
            statistics=np.sort(statistics[f])[::-1],
            tests=len(pairs),
        )
        comparisons.append(comparison_of(pair, intervals(pair, reach), level, MAX_T))
    return comparisons


def _joint_flips(cells: Sequence[ModelPair], pairs: Sequence[Paired], alpha: float) -> JointFlips:
    """Sign flips with a column for each pair's difference; a group has the same sign in all columns."""
    groups_of_cells = [np.unique(scores.items.groups) for scores, _, _ in cells]
    # A group may be in several cells: number each among the groups of all cells.
    _, group = np.unique(np.concatenate(groups_of_cells), return_inverse=True)
    sizes = [len(groups) for groups in groups_of_cells]
    pulls = np.zeros((int(group.max()) + 1, len(pairs)))
    for f, groups in enumerate(np.split(group, np.cumsum(sizes)[:-1])):
        pulls[groups, f] = pairs[f].grouped.pulls
    # The items of a cell are of one category, so its groups are one stratum.
    one_stratum = np.zeros(len(pulls), dtype=np.int64)
    draws = draws_for(alpha, SIGN_DRAWS)
    return JointFlips.of(pulls, one_stratum, np.array([sizes], dtype=float), draws)
