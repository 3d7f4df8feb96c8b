"""Selectors of ingredients among the candidates: experts of weakly correlated categories (SoCE) or
of clusters of categories, greedy, top-k, all."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval

from souping.core.fields import Count, component, pick
from souping.core.protocols import Correlation, Objective, Selector
from souping.core.scores import Mean
from souping.core.text import listed, minus, named
from souping.core.types import Correlations, FloatArray, Names, ScoreMatrix, Selection, UserError

SCORE_TIE = 1e-9
Threshold = Annotated[float, Interval(gt=-1, le=1)]


def correlated(correlation: Correlation, scores: ScoreMatrix) -> Correlations:
    """Correlations of the categories.

    Raises:
        UserError: a correlation of the user's gave something else.
    """
    found = correlation(scores.values)
    size = len(scores.categories)
    if not isinstance(found, Correlations):
        raise UserError(
            f"correlation {named(correlation)} gave a {type(found).__name__}, not Correlations"
        )
    for key, part in (("rho", found.rho), ("low", found.low), ("high", found.high)):
        if np.shape(part) != (size, size):
            raise UserError(
                f"correlation {named(correlation)}: {key} has shape {np.shape(part)}, not {(size, size)}"
            )
    return found


def in_pool_order(scores: ScoreMatrix, names: set[str]) -> Names:
    return tuple(name for name in scores.candidates if name in names)


def ranking(
    scores: ScoreMatrix, objective: Objective, strict: bool = True, drop: Collection[str] = ()
) -> list[str]:
    """Candidates by objective, best first; equal ones in the pool's order. Categories of `drop` weigh nothing.

    The columns of a published table may be other categories than the benchmark's: unless `strict`, their plain mean
    ranks where the objective does not know them.
    """
    try:
        coefficients = objective.coefficients(scores.categories)
    except UserError:
        if strict or not scores.published:
            raise
        coefficients = Mean().coefficients(scores.categories)
    kept = np.array([name not in drop for name in scores.categories])
    rows = scores.rows(scores.candidates)
    totals = rows @ np.where(kept, coefficients, 0.0)
    if not objective.linear and kept.any():
        totals = objective.value(
            rows[:, kept], [name for name in scores.categories if name not in drop]
        )
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

    Categories of `drop`, and those in which all models score the same, are left out: they stay in the objective.

    Where no category is a low-correlation one, which the paper leaves open, `otherwise=greedy` selects as `Greedy` does
    and says so; `error` refuses.
    """

    correlation: Correlation
    objective: Objective
    threshold: Threshold = 0.2
    sign: Literal["absolute", "signed"] = "absolute"
    ties: Literal["overall", "all", "first"] = "overall"
    otherwise: Literal["greedy", "error"] = "greedy"
    drop: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.sign == "absolute" and self.threshold <= 0:
            raise UserError(
                f"selector.threshold={self.threshold} must be above 0 with selector.sign=absolute"
            )

    @property
    def cut(self) -> float:
        return self.threshold

    def with_cut(self, threshold: float) -> SoCE:
        return replace(self, threshold=threshold)

    @property
    def measure(self) -> Correlation:
        return self.correlation

    def check(self, models: int, candidates: int, categories: int) -> None:
        _check_correlates(self.label, models, categories)

    def select(self, scores: ScoreMatrix) -> Selection:
        """Correlate, find the low-correlation categories, pick their experts.

        Raises:
            UserError: no category is below the threshold and `otherwise=error`, or the correlation is not defined.
        """
        whole = scores
        scores = scores.without(_dropped(scores, self.drop))
        scores = scores.without(scores.constant)
        _check(self, scores)
        correlations = correlated(self.correlation, scores)
        low = self.low_categories(correlations.rho)
        if not low:
            return self._without_low(whole, correlations, scores.categories)
        order = list(whole.candidates) if self.ties == "first" else ranking(whole, self.objective)
        best = {scores.categories[column]: _tied_best(scores, column, order) for column in low}
        chosen = {
            name for names in best.values() for name in (names if self.ties == "all" else names[:1])
        }
        tied = {category: tuple(names) for category, names in best.items() if len(names) > 1}
        return Selection(
            selector=self.label,
            ingredients=in_pool_order(scores, chosen),
            experts={category: names[0] for category, names in best.items()},
            low_correlation=tuple(best),
            metric=_name(self.correlation),
            threshold=self.threshold,
            sign=self.sign,
            ties=self.ties,
            tied=tied,
            categories=scores.categories,
            correlations=correlations,
            notes=tuple(self._tie(category, names) for category, names in tied.items()),
        )

    def _tie(self, category: str, names: Names) -> str:
        """What became of candidates that are equally good experts."""
        rules = {
            "overall": f"{names[0]}, the best of them overall, is the expert",
            "first": f"{names[0]}, the first in the pool, is the expert",
            "all": "all of them are ingredients",
        }
        return f"{category}: {listed(names)} are equally good; {rules[self.ties]}"

    def low_categories(self, rho: FloatArray) -> list[int]:
        """Columns with some other column below the threshold; `rho` is [C, C]."""
        values = (np.abs(rho) if self.sign == "absolute" else rho).copy()
        np.fill_diagonal(values, np.inf)
        return [int(i) for i in np.flatnonzero((values < self.threshold).any(axis=1))]

    def _without_low(
        self, whole: ScoreMatrix, correlations: Correlations, categories: Names
    ) -> Selection:
        """What is selected where no category is below the threshold."""
        values = np.abs(correlations.rho) if self.sign == "absolute" else correlations.rho.copy()
        np.fill_diagonal(values, np.inf)
        a, b = np.unravel_index(int(np.argmin(values)), values.shape)
        smallest = minus(f"{values[a, b]:.3f}")
        pair = f"{categories[a]}, {categories[b]}"
        kind = "|rho|" if self.sign == "absolute" else "rho"
        why = (
            f"selector.threshold={self.threshold}: no low-correlation category; the smallest {kind} is {smallest} "
            f"({pair}): "
        )
        if self.otherwise == "error":
            raise UserError(f"{why}raise the threshold or use selector=greedy")
        higher = math.floor(100 * values[a, b] + 1) / 100
        note = f"{why}selected as by selector=greedy"
        if higher <= 1:
            note += f" (selector.threshold={higher:g} takes the experts of that pair)"
        chosen = Greedy(objective=self.objective, drop=self.drop).select(whole)
        metric = _name(self.correlation)
        return replace(
            chosen, metric=metric, categories=categories, correlations=correlations, notes=(note,)
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
    `threshold`; with `k`, until so many are left. The candidate with the best mean over a cluster's categories is its
    expert, of equal ones the one with the better objective; the distinct experts are the ingredients.
    """

    correlation: Correlation
    objective: Objective
    threshold: Threshold = 0.2

    @property
    def label(self) -> str:
        return "soce_cluster"

    @property
    def cut(self) -> float | None:
        return self.threshold if self.k is None else None

    def with_cut(self, threshold: float) -> SoCECluster:
        return replace(self, threshold=threshold) if self.k is None else self

    @property
    def measure(self) -> Correlation:
        return self.correlation

    def check(self, models: int, candidates: int, categories: int) -> None:
        _check_correlates(self.label, models, categories)
        if self.k is not None and self.k > categories:
            raise UserError(
                f"selector.k={self.k} clusters are more than the {categories} categories"
            )

    def select(self, scores: ScoreMatrix) -> Selection:
        """Correlate, cluster, pick an expert a cluster.

        Raises:
            UserError: the correlation is not defined.
        """
        _check(self, scores)
        whole = scores
        scores = scores.without(scores.constant)
        _check_correlates(self.label, len(scores.models), len(scores.categories))
        correlations = correlated(self.correlation, scores)
        clusters = self.clusters(correlations.rho)
        order = ranking(whole, self.objective)
        means = [scores.rows(order)[:, cluster].mean(axis=1).round(12) for cluster in clusters]
        best = [order[int(np.argmax(mean))] for mean in means]
        names = [tuple(scores.categories[i] for i in cluster) for cluster in clusters]
        return Selection(
            selector=self.label,
            ingredients=in_pool_order(scores, set(best)),
            experts={
                category: expert
                for cluster, expert in zip(names, best, strict=True)
                for category in cluster
            },
            clusters=tuple(names),
            metric=_name(self.correlation),
            threshold=self.cut,
            categories=scores.categories,
            correlations=correlations,
            notes=tuple(
                f"cluster of {listed(c)}: {expert}" for c, expert in zip(names, best, strict=True)
            ),
        )

    def clusters(self, rho: FloatArray) -> list[list[int]]:
        """Columns of rho [C, C] that move together, in the order of their first columns."""
        clusters = [[i] for i in range(len(rho))]
        while len(clusters) > (self.k or 1):
            between = np.array([[rho[np.ix_(a, b)].mean() for b in clusters] for a in clusters])
            np.fill_diagonal(between, -np.inf)
            a, b = sorted(np.unravel_index(int(np.argmax(between.round(12))), between.shape))
            if self.k is None and between[a, b] < self.threshold - SCORE_TIE:
                break
            clusters[a] = sorted([*clusters[a], *clusters.pop(int(b))])
        return clusters


@component
class Greedy(LimitedSelector):
    """Selector that adds the candidate which most raises the mean best score over categories; stops when none does.

    Categories of `drop` are left out; they stay in the objective.
    """

    objective: Objective
    drop: Sequence[str] = ()

    def select(self, scores: ScoreMatrix) -> Selection:
        whole = scores
        scores = scores.without(_dropped(scores, self.drop))
        _check(self, scores)
        values = scores.rows(scores.candidates)
        best, chosen = np.minimum(values.min(axis=0), 0.0), list[int]()  # losses are below zero
        order = [whole.candidates.index(name) for name in ranking(whole, self.objective)]
        while self.k is None or len(chosen) < self.k:
            gains = (np.maximum(values, best) - best).mean(axis=1).round(12)
            pick = max(order, key=lambda i: gains[i])  # among equal ones the better objective
            if gains[pick] <= 0:
                break
            chosen.append(pick)
            best = np.maximum(best, values[pick])
        if not chosen:
            raise UserError(
                "selector=greedy: every candidate scores zero in every category; nothing to select"
            )
        names = in_pool_order(scores, {scores.candidates[i] for i in chosen})
        experts = _holders(scores, names)
        return Selection(
            selector=self.label, ingredients=names, experts=experts, categories=scores.categories
        )


@component
class TopK(LimitedSelector):
    """K best candidates by the objective, in which categories of `drop` weigh nothing here."""

    objective: Objective
    k: Count = 3
    drop: Sequence[str] = ()

    def sizes(self, candidates: int) -> tuple[int, ...]:
        return (min(self.k, candidates),)

    def select(self, scores: ScoreMatrix) -> Selection:
        _check(self, scores)
        order = ranking(scores, self.objective, drop=_dropped(scores, self.drop))
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
    selector.check(len(scores.models), len(scores.candidates), len(scores.categories))


def _check_correlates(label: str, models: int, categories: int) -> None:
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
    """{category: the best of `names` there}."""
    best = scores.rows(names).argmax(axis=0)
    return {category: names[i] for category, i in zip(scores.categories, best, strict=True)}


def _name(correlation: Correlation) -> str:
    """Name of the function, also of one whose arguments are bound."""
    function = correlation.func if isinstance(correlation, partial) else correlation
    return str(getattr(function, "__name__", ""))  # Python's: a callable object has no name


def _dropped(scores: ScoreMatrix, drop: Sequence[str]) -> set[str]:
    """Categories of `drop`, which are there (else UserError, nearest named) and leave some."""
    check_drop(drop, scores.categories)
    return set(drop)


def check_drop(drop: Sequence[str], categories: Sequence[str]) -> None:
    """Refuse names that are no categories, and a choice that leaves none."""
    for name in drop:
        pick(name, categories, "selector.drop")
    if drop and not set(categories) - set(drop):
        raise UserError("selector.drop leaves no category to select by: leave one in")


def _tied_best(scores: ScoreMatrix, column: int, order: Sequence[str]) -> list[str]:
    """The tied best candidates of a category, the first of `order` first."""
    values = scores.rows(order)[:, column]
    return [name for name, v in zip(order, values, strict=True) if v >= values.max() - SCORE_TIE]
