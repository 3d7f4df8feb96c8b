"""Selectors, which pick the ingredients: experts of weakly correlated categories (SoCE) or of clusters, greedy, top-k.

`rho` is the correlation of every two of C categories over the models, [C, C].
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Annotated, Literal

import numpy as np

from souping.core.fields import Bounds, Count, component, pick
from souping.core.protocols import Correlation, Objective, Selector
from souping.core.scores import Mean
from souping.core.text import listed, minus, named
from souping.core.types import Correlations, FloatArray, Names, ScoreMatrix, Selection, UserError

SCORE_TIE = 1e-9
Threshold = Annotated[float, Bounds(gt=-1, le=1)]


def score_correlations(correlation: Correlation, scores: ScoreMatrix) -> Correlations:
    """Correlations of the categories by a function that may be the user's.

    Raises:
        UserError: it gave no `Correlations`, or arrays of another shape than [C, C].
    """
    correlations = correlation(scores.values)
    size = len(scores.categories)
    if not isinstance(correlations, Correlations):
        kind = type(correlations).__name__
        raise UserError(f"correlation {named(correlation)} gave a {kind}, not Correlations")
    for key, shape in (
        ("rho", np.shape(correlations.rho)),
        ("low", np.shape(correlations.low)),
        ("high", np.shape(correlations.high)),
    ):
        if shape != (size, size):
            raise UserError(
                f"correlation {named(correlation)}: {key} has shape {shape}, not {(size, size)}"
            )
    return correlations


def in_pool_order(scores: ScoreMatrix, names: set[str]) -> Names:
    """The candidates among these names, in the order of the pool."""
    return tuple(name for name in scores.candidates if name in names)


def ranking(
    scores: ScoreMatrix, objective: Objective, strict: bool = True, exclude: Collection[str] = ()
) -> list[str]:
    """Candidates by objective, best first; equal ones in the pool's order. Categories of `exclude` weigh nothing.

    The columns of a published table may be other categories than the benchmark's: unless `strict`, the plain mean
    of all columns ranks the candidates if the table lacks a category of the objective.
    """
    try:
        coefficients = objective.coefficients(scores.categories)
    except UserError:
        if strict or not scores.published:
            raise
        # Only linear objectives name categories, so the mean below is used.
        coefficients = Mean().coefficients(scores.categories)
    values = scores.rows(scores.candidates)
    counted = np.array([name not in exclude for name in scores.categories])
    # Without a category that counts, all are equal.
    if objective.linear or not counted.any():
        totals = values @ (coefficients * counted)
    else:
        names = [name for name in scores.categories if name not in exclude]
        totals = objective.value(values[:, counted], names)
    # Rounded, so that candidates that differ by rounding error are equal.
    order = np.argsort(-totals.round(12), kind="stable")
    return [scores.candidates[i] for i in order]


@component
class SoCE(Selector):
    """Soup Of Category Experts (arXiv 2511.13254, Algorithm 1).

    A category is *low-correlation* when some other category has |rho| < threshold (`sign=absolute`) or rho < threshold
    (`sign=signed`). The best candidate of each is its expert; the distinct experts are the ingredients. Correlations
    are over all rows of the score matrix, experts over the candidates only.

    Ties (equal best scores): `overall` takes the tied candidate with the best objective, `first` the first in the pool,
    `all` makes every tied candidate an ingredient.

    Categories of `exclude`, and those in which all models score the same, are left out: they stay in the objective.

    If there is no low-correlation category, a case that the paper leaves open, `fallback=greedy` selects as `Greedy`
    does and says so; `error` refuses.
    """

    correlation: Correlation
    objective: Objective
    threshold: Threshold = 0.2
    sign: Literal["absolute", "signed"] = "absolute"
    ties: Literal["overall", "all", "first"] = "overall"
    fallback: Literal["greedy", "error"] = "greedy"
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.sign == "absolute" and self.threshold <= 0:
            raise UserError(
                f"selector.threshold={self.threshold} must be above 0 with selector.sign=absolute"
            )

    @property
    def deciding_threshold(self) -> float:
        return self.threshold

    def with_threshold(self, threshold: float) -> SoCE:
        return replace(self, threshold=threshold)

    @property
    def deciding_correlation(self) -> Correlation:
        return self.correlation

    def check(self, models: int, candidates: int, categories: int) -> None:
        _check_correlates(self.label, models, categories)

    def select(self, scores: ScoreMatrix) -> Selection:
        """Correlate, find the low-correlation categories, pick their experts.

        Raises:
            UserError: no category is below the threshold and `fallback=error`, or the correlation is not defined.
        """
        correlating = scores.without(_excluded(scores, self.exclude))
        correlating = correlating.without(correlating.constant)
        _check(self, correlating)
        correlations = score_correlations(self.correlation, correlating)
        low = self.low_categories(correlations.rho)
        if not low:
            return self._without_low(scores, correlations, correlating.categories)

        # The best candidates of each low-correlation category, its expert first.
        order = list(scores.candidates)
        if self.ties != "first":
            order = ranking(scores, self.objective)
        categories = [correlating.categories[column] for column in low]
        columns = zip(categories, low, strict=True)
        best = {category: _tied_best(correlating, column, order) for category, column in columns}
        experts = {category: names[0] for category, names in best.items()}
        tied = {category: tuple(names) for category, names in best.items() if len(names) > 1}

        ingredients = set(experts.values())
        if self.ties == "all":
            ingredients.update(*best.values())
        return Selection(
            selector=self.label,
            ingredients=in_pool_order(scores, ingredients),
            experts=experts,
            low_correlation=tuple(best),
            metric=_name(self.correlation),
            threshold=self.deciding_threshold,
            sign=self.sign,
            ties=self.ties,
            tied=tied,
            categories=correlating.categories,
            correlations=correlations,
            notes=tuple(self._tie(category, names) for category, names in tied.items()),
        )

    def _tie(self, category: str, names: Names) -> str:
        """Note on what became of candidates that are equally good experts of a category."""
        rules = {
            "overall": f"{names[0]}, the best of them overall, is the expert",
            "first": f"{names[0]}, the first in the pool, is the expert",
            "all": "all of them are ingredients",
        }
        return f"{category}: {listed(names)} are equally good; {rules[self.ties]}"

    def low_categories(self, rho: FloatArray) -> list[int]:
        """Low-correlation categories, as columns of `rho` [C, C]: some other category is below the threshold."""
        below = self._between_categories(rho) < self.threshold
        return [int(column) for column in np.flatnonzero(below.any(axis=1))]

    def _between_categories(self, rho: FloatArray) -> FloatArray:
        """[C, C] rho or |rho|, to compare with the threshold; infinity on the diagonal, which does not count."""
        between = rho.copy()
        if self.sign == "absolute":
            between = np.abs(rho)
        np.fill_diagonal(between, np.inf)
        return between

    def _without_low(
        self, scores: ScoreMatrix, correlations: Correlations, categories: Names
    ) -> Selection:
        """The selection if no category is below the threshold, with a note (UserError with `fallback=error`)."""
        between = self._between_categories(correlations.rho)
        a, b = np.unravel_index(int(np.argmin(between)), between.shape)
        smallest = minus(f"{between[a, b]:.3f}")
        kind = "|rho|" if self.sign == "absolute" else "rho"
        why = (
            f"selector.threshold={self.threshold}: no low-correlation category; the smallest {kind} is {smallest} "
            f"({categories[a]}, {categories[b]}): "
        )
        if self.fallback == "error":
            raise UserError(f"{why}raise the threshold or use selector=greedy")

        note = f"{why}selected as by selector=greedy"
        # The next hundredth above the smallest correlation.
        higher = math.floor(100 * between[a, b] + 1) / 100
        if higher <= 1:
            note += f" (selector.threshold={higher:g} takes the experts of that pair)"
        return replace(
            Greedy(objective=self.objective, exclude=self.exclude).select(scores),
            metric=_name(self.correlation),
            categories=categories,
            correlations=correlations,
            notes=(note,),
        )


@component
class LimitedSelector(Selector):
    """Selector of at most `k` ingredients."""

    k: Count | None = None

    def sizes(self, candidates: int) -> tuple[int, ...]:
        return tuple(range(1, min(self.k or candidates, candidates) + 1))

    def check(self, models: int, candidates: int, categories: int) -> None:
        if self.k is not None and self.k > candidates:
            raise UserError(f"selector.k={self.k} is more than the {candidates} candidates")


@component
class SoCECluster(LimitedSelector):
    """An expert for each cluster of categories that move together (the abstract of arXiv 2511.13254).

    Average linkage on 1 - rho: clusters are joined, the closest first, while the mean rho between them is at least
    `threshold`; with `k`, until `k` clusters are left. The candidate with the best mean over a cluster's categories is
    its expert, of equal candidates the one with the better objective; the distinct experts are the ingredients.
    """

    correlation: Correlation
    objective: Objective
    threshold: Threshold = 0.2

    @property
    def label(self) -> str:
        return "soce_cluster"

    @property
    def deciding_threshold(self) -> float | None:
        return self.threshold if self.k is None else None

    def with_threshold(self, threshold: float) -> SoCECluster:
        """A copy with this threshold; the same selector if `k` decides instead."""
        return replace(self, threshold=threshold) if self.k is None else self

    @property
    def deciding_correlation(self) -> Correlation:
        return self.correlation

    def check(self, models: int, candidates: int, categories: int) -> None:
        _check_correlates(self.label, models, categories)
        if self.k is not None and self.k > categories:
            raise UserError(
                f"selector.k={self.k} clusters are more than the {categories} categories"
            )

    def select(self, scores: ScoreMatrix) -> Selection:
        """Correlate, cluster, pick an expert for each cluster.

        Raises:
            UserError: the correlation is not defined.
        """
        _check(self, scores)
        correlating = scores.without(scores.constant)
        _check_correlates(self.label, len(correlating.models), len(correlating.categories))
        correlations = score_correlations(self.correlation, correlating)
        order = ranking(scores, self.objective)
        values = correlating.rows(order)

        clusters: list[Names] = []
        experts: dict[str, str] = {}
        notes = []
        for columns in self.clusters(correlations.rho):
            categories = tuple(correlating.categories[column] for column in columns)
            # Of equal means, but for rounding, the first has the better objective.
            means = values[:, columns].mean(axis=1).round(12)
            expert = order[int(np.argmax(means))]
            clusters.append(categories)
            experts.update(dict.fromkeys(categories, expert))
            notes.append(f"cluster of {listed(categories)}: {expert}")
        return Selection(
            selector=self.label,
            ingredients=in_pool_order(scores, set(experts.values())),
            experts=experts,
            clusters=tuple(clusters),
            metric=_name(self.correlation),
            threshold=self.deciding_threshold,
            categories=correlating.categories,
            correlations=correlations,
            notes=tuple(notes),
        )

    def clusters(self, rho: FloatArray) -> list[list[int]]:
        """Clusters of categories that move together, as columns of `rho` [C, C], in the order of first columns."""
        clusters = [[column] for column in range(len(rho))]
        # Without `k`, the threshold ends it, or a single cluster.
        while len(clusters) > (self.k or 1):
            # Mean correlation of the categories of two clusters.
            between = np.full((len(clusters), len(clusters)), -np.inf)
            for a, b in combinations(range(len(clusters)), 2):
                between[a, b] = rho[np.ix_(clusters[a], clusters[b])].mean()

            # Of means that are equal but for rounding, the first pair.
            closest = int(np.argmax(between.round(12)))
            a, b = map(int, np.unravel_index(closest, between.shape))
            if self.k is None and between[a, b] < self.threshold - SCORE_TIE:
                break
            clusters[a] = sorted([*clusters[a], *clusters.pop(b)])
        return clusters


@component
class Greedy(LimitedSelector):
    """Selector that adds the candidate which most raises the mean best score over categories; stops when none does.

    Categories of `exclude` are left out; they stay in the objective.
    """

    objective: Objective
    exclude: Sequence[str] = ()

    def select(self, scores: ScoreMatrix) -> Selection:
        considered = scores.without(_excluded(scores, self.exclude))
        _check(self, considered)
        values = considered.rows(considered.candidates)
        # Of equal gains the candidate with the better objective is added.
        order = [scores.candidates.index(name) for name in ranking(scores, self.objective)]

        chosen: list[int] = []
        # Best score in each category so far [C]. At first 0, or the lowest score if scores are below 0, as losses are.
        best = np.minimum(values.min(axis=0), 0.0)
        while self.k is None or len(chosen) < self.k:
            # By how much each candidate would raise the mean of the best scores [M]; rounded, so that ties are equal.
            gains = (np.maximum(values, best) - best).mean(axis=1).round(12)
            added = max(order, key=gains.__getitem__)
            if gains[added] <= 0:
                break
            chosen.append(added)
            best = np.maximum(best, values[added])
        if not chosen:
            raise UserError(
                "selector=greedy: every candidate scores zero in every category; nothing to select"
            )
        names = in_pool_order(scores, {scores.candidates[place] for place in chosen})
        return Selection(
            selector=self.label,
            ingredients=names,
            experts=_holders(considered, names),
            categories=considered.categories,
        )


@component
class TopK(LimitedSelector):
    """K best candidates by the objective, in which categories of `exclude` weigh nothing here."""

    objective: Objective
    k: Count = 3
    exclude: Sequence[str] = ()

    @property
    def picks_best(self) -> bool:
        return not self.exclude

    def sizes(self, candidates: int) -> tuple[int, ...]:
        return (min(self.k, candidates),)

    def select(self, scores: ScoreMatrix) -> Selection:
        _check(self, scores)
        order = ranking(scores, self.objective, exclude=_excluded(scores, self.exclude))
        names = in_pool_order(scores, set(order[: self.k]))
        return Selection(selector=self.label, ingredients=names, categories=scores.categories)


@component
class All(Selector):
    """Every candidate."""

    def sizes(self, candidates: int) -> tuple[int, ...]:
        return (candidates,)

    def select(self, scores: ScoreMatrix) -> Selection:
        return Selection(
            selector=self.label, ingredients=scores.candidates, categories=scores.categories
        )


def _check(selector: Selector, scores: ScoreMatrix) -> None:
    """Check that a selector can work with scores of this size (UserError)."""
    selector.check(len(scores.models), len(scores.candidates), len(scores.categories))


def _check_correlates(label: str, models: int, categories: int) -> None:
    """Refuse too few models or categories for a correlation (UserError); `label` names the selector."""
    if models < 3:
        raise UserError(
            f"selector={label} correlates categories over models and needs at least 3; there are {models}: "
            "add candidates or a score table (scores=table), or use selector=all"
        )
    if categories < 2:
        raise UserError(
            f"selector={label} needs at least 2 categories in which the models differ; there are {categories}: "
            "use selector=greedy or selector=all"
        )


def _holders(scores: ScoreMatrix, names: Names) -> dict[str, str]:
    """{category: the model among `names` that is best in it}"""
    best = scores.rows(names).argmax(axis=0)
    return {category: names[i] for category, i in zip(scores.categories, best, strict=True)}


def _name(correlation: Correlation) -> str:
    """Name of the function, also of one whose arguments are bound."""
    function = correlation.func if isinstance(correlation, partial) else correlation
    return str(getattr(function, "__name__", ""))  # a callable object has no name


def _excluded(scores: ScoreMatrix, exclude: Sequence[str]) -> set[str]:
    """The categories of `exclude` (UserError if one does not exist, or none would be left)."""
    check_excluded(exclude, scores.categories)
    return set(exclude)


def check_excluded(exclude: Sequence[str], categories: Sequence[str]) -> None:
    """Refuse names that are not categories, and a choice that leaves none."""
    for name in exclude:
        pick(name, categories, "selector.exclude")
    if exclude and not set(categories) - set(exclude):
        raise UserError("selector.exclude leaves no category to select by: leave one in")


def _tied_best(scores: ScoreMatrix, column: int, order: Sequence[str]) -> list[str]:
    """The candidates with the best score in this column, in the given `order`; several if they are tied."""
    values = scores.rows(order)[:, column]
    tied = np.flatnonzero(values >= values.max() - SCORE_TIE)
    return [order[place] for place in tied.tolist()]
