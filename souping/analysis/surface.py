"""Response surface: objective and categories over the weights of the ingredients, with 95 % bands (`surface`).

The bands are the posterior of the search's surrogate, given all answers on the search split, for the
difference to the uniform soup; they hold at all weights at once. The test split is not touched.

Shape legend: S points, K ingredients, C categories, I items, D draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from souping.analysis.base import SINGLE_SELECTED, Analysis, NotEstimableError, RunScores
from souping.core.fields import component
from souping.core.text import minus
from souping.core.types import BoolArray, FloatArray, IntArray, Names, Weights, frozen
from souping.core.unit import Estimate, Unit
from souping.report.analysis_results import AnalysisResult
from souping.report.cells import Section
from souping.report.content import Matrix, MaybeFloat, MaybeInt
from souping.report.format import count, four_digits, in_words
from souping.report.plots import FAINT, INK, Drawing, canvas, curve, scale, triangle, weight_axis
from souping.search.points import uniform, vertices, weight_grid, weights_key
from souping.search.surrogate import RISE, SoupModel, draws
from souping.statistics.score_table import ItemTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Evaluated soups without which there is no surface.
FEWEST_SOUPS = 5
# Most soups that the model is fitted on.
FITTED = 400
CONFIDENCE = 0.95
# Draws of the posterior that the width of a band is estimated from.
BAND_DRAWS = 2000
# Factor of a band's width for what the posterior takes for certain (the scales and the smoothness):
# set on the simulated bowls of tests/analysis/test_surface.py, not on tables.
WIDENING = 1.35
# Standard errors that count as zero.
TINY_ERROR = 1e-9


def differences_to_first(mean: FloatArray, cov: FloatArray, most: float) -> Estimate[FloatArray]:
    """Differences [S] to the first point (inner scores), with limits that hold at all points at once.

    From the posterior of all points: mean [S], covariance [S, S]. No difference can be larger than `most`.
    """
    # Covariance and standard error of the differences to the first point.
    cov = cov - cov[:, :1] - cov[:1] + cov[0, 0]
    error = np.sqrt(np.maximum(np.diag(cov), 0))

    # In 95 % of the draws, |difference| / error is at most this size at all points but the first.
    sizes = np.abs(draws(cov, BAND_DRAWS))[:, 1:] / np.maximum(error[1:], TINY_ERROR)
    critical = float(np.quantile(np.max(sizes, axis=1), CONFIDENCE))

    difference = np.clip(mean - mean[0], -most, most)
    margin = WIDENING * critical * error
    low = np.maximum(difference - margin, -most)
    high = np.minimum(difference + margin, most)
    return Estimate(difference, low, high)


def band(
    points: FloatArray,
    scores: FloatArray,
    categories: IntArray,
    coefficients: FloatArray,
    value: Callable[[FloatArray], FloatArray] | None = None,
    groups: IntArray | None = None,
) -> tuple[Estimate[FloatArray], list[FloatArray]]:
    """Band of the objective at `points` [S, K] less that at the first of them, and the difference [S] of each category.

    `scores` [S, I] are nan where a point was not evaluated, `categories` and `groups` [I] numbers from 0 (every item is
    a group if there are none), `coefficients` [C] the objective's, or its `value` where it is not linear.
    """
    effect = 1.0  # every item is a group
    if groups is not None:
        # An item's mean over the points cancels in differences of points, so only the rest counts.
        answered = np.maximum(np.isfinite(scores).sum(axis=0), 1)
        common = np.nansum(scores, axis=0) / answered
        effect = design_effect(scores - common, categories, groups)
    model = fitted_surface(points, scores, categories, coefficients, value=value, effect=effect)
    mean, cov = model.objective()
    # Bands are wider if answers vary more than the model believes, and never narrower.
    wider = max(1.0, model.surprise())
    are_fractions = np.nanmin(scores) >= 0 and np.nanmax(scores) <= 1
    most = 1.0 if are_fractions else np.inf
    objective = differences_to_first(mean, wider * cov, most * float(coefficients.sum()))
    differences = []
    for c in range(len(coefficients)):
        category_mean = model.posterior(c).mean
        differences.append(np.clip(category_mean - category_mean[0], -most, most))
    return objective, differences


def fitted_surface(
    points: FloatArray,
    scores: FloatArray,
    categories: IntArray,
    coefficients: FloatArray,
    rise: float = RISE,
    value: Callable[[FloatArray], FloatArray] | None = None,
    effect: float = 1.0,
) -> SoupModel:
    """The search's surrogate, given scores [S, I] of points [S, K], nan where there is none.

    `categories` [I] are numbers from 0. `coefficients` [C] are those of the objective, or `value` is the objective of
    category means [..., C] if it is not linear. Soups are expected about `rise` above the mean of their ingredients. A
    sample of n items counts as n / `effect` independent ones.
    """
    answered = np.isfinite(scores)
    samples = _item_samples(answered, categories, len(coefficients))
    complete = answered.all(axis=1)
    # The usual scores of the items are those of points that answered all of them.
    model = SoupModel(points, samples, coefficients, rise, value, singles=scores[complete])
    # The surrogate divides the variance of an item by the size of its sample.
    model.size = model.size / effect
    for soup in np.flatnonzero(answered.any(axis=1)):
        model.observe(int(soup), slice(None), scores[soup])
    # Only what was answered: the surrogate takes requests without answers for answers to come.
    model.requested = np.isfinite(model.score)
    model.fit()
    return model


def design_effect(scores: FloatArray, categories: IntArray, groups: IntArray) -> float:
    """Variance of means of scores [S, I] over that of independent items, as items of a group are alike (Kish 1965).

    At least 1. Scores are nan where a point was not evaluated.
    """
    clustered = 0.0
    independent = 0.0
    for c in np.unique(categories):
        in_category = categories == c
        _, group = np.unique(groups[in_category], return_inverse=True)
        answers = scores[:, in_category]
        answers = answers[np.isfinite(answers).any(axis=1)]
        residuals = np.nan_to_num(answers - np.nanmean(answers, axis=1, keepdims=True))
        sums = np.stack([np.bincount(group, row) for row in residuals])
        n = sums.shape[1]
        clustered += float((sums**2).sum()) * n / max(n - 1, 1)
        independent += float((residuals**2).sum())
    if not independent:
        return 1.0
    return max(1.0, clustered / independent)


def _item_samples(answered: BoolArray, categories: IntArray, count: int) -> list[list[IntArray]]:
    """Positions of the items of `count` categories, each split into samples that the same soups answered [S, I]."""
    _, pattern = np.unique(answered, axis=1, return_inverse=True)
    pattern = pattern.reshape(-1)
    samples = []
    for c in range(count):
        items = np.flatnonzero(categories == c)
        patterns = np.unique(pattern[items])
        samples.append([items[pattern[items] == number] for number in patterns])
    return samples


@component
class ResponseSurface(Analysis):
    """Bands over the grid of weights in steps of 0.1, the single ingredients and the uniform soup."""

    def analyse(self, run: RunScores) -> SurfaceResult:
        """The objective over the weights, by the surrogate of the search that is given all answers."""
        evaluated = _evaluated(run)
        names = run.soups.ingredients
        split = ItemTable.of(next(iter(run.search.values())).items, run.objective)

        # The points of the surface, then the evaluated ones beside it, on which the model is fitted too.
        surface = _surface_points(len(names))
        size = len(surface)
        points = list(dict.fromkeys([*surface, *evaluated]))
        items = next(iter(evaluated.values())).size
        scores = answer_table(points, evaluated, items)
        objective, differences = band(
            np.array(points),
            scores,
            split.categories,
            split.coefficients,
            value=split.value,
            groups=split.groups,
        )

        categories = {}
        for name, difference in zip(split.names, differences, strict=True):
            raw = run.unit.raw(difference[:size])
            categories[name] = tuple(np.round(raw, 6).tolist())
        chosen = run.soups.soup.shares
        # Only the first `size` points are shown.
        answered = np.isfinite(scores[:size]).sum(axis=1)
        width = float((objective.high - objective.low)[:size].mean())
        raw_difference, low, high = run.unit.raw_estimate(objective)
        return SurfaceResult(
            split="search",
            ingredients=tuple(names),
            chosen=tuple(chosen.get(name, 0.0) for name in names),
            weights=tuple(surface),
            items=tuple(answered.tolist()),
            split_items=items,
            soups=len(evaluated),
            objective=SurfaceLimits(
                difference=_rounded(raw_difference[:size]),
                low=_rounded(low[:size]),
                high=_rounded(high[:size]),
            ),
            categories=categories,
            width=run.unit.size(width),
        )


def answer_table(
    points: Sequence[Weights], answers: Mapping[Weights, FloatArray], items: int
) -> FloatArray:
    """Answers of points [S, I]; nan where a point was not evaluated."""
    unknown = np.full(items, np.nan)
    return np.array([answers.get(point, unknown) for point in points])


def _rounded(values: FloatArray) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values.tolist())


def _surface_points(ingredients: int) -> list[Weights]:
    """Weights at which a surface is shown, at most 133: the uniform soup, single models, and a grid."""
    grid = (uniform(ingredients), *vertices(ingredients), *weight_grid(ingredients))
    return list(dict.fromkeys(map(weights_key, grid)))


def _evaluated(run: RunScores) -> dict[tuple[float, ...], FloatArray]:
    """{weights: scores [I], nan for missing items} of the ingredients and the soups of the search.

    Raises:
        NotEstimableError: too few soups were evaluated, or an ingredient was not evaluated alone.
    """
    names = run.soups.ingredients
    if len(names) < 2:
        raise NotEstimableError(SINGLE_SELECTED)
    known = {key: scores.values for key, scores in run.search.items()}
    known |= run.parts
    singles = [run.single(name) for name in names]
    unknown = [name for name, single in zip(names, singles, strict=True) if single.id not in known]
    if unknown:
        raise NotEstimableError(
            f"{', '.join(unknown)} alone did not answer the search split, and soups do not tell"
        )

    evaluated = dict[tuple[float, ...], FloatArray]()
    for soup in (*singles, *run.trials):
        if soup.id in known and len(evaluated) < FITTED:
            shares = soup.shares
            weights = weights_key([shares.get(name, 0.0) for name in names])
            evaluated[weights] = known[soup.id]
    if len(evaluated) < FEWEST_SOUPS:
        raise NotEstimableError(
            f"{len(evaluated)} soups were evaluated on the search split; a surface takes {FEWEST_SOUPS}"
        )
    return evaluated


# How it is shown


@frozen
class SurfaceLimits:
    """Differences to the uniform soup, point by point, with limits that hold for all of them at once."""

    difference: tuple[MaybeFloat, ...]
    """score minus that of the uniform soup"""
    low: tuple[MaybeFloat, ...]
    """lower limits"""
    high: tuple[MaybeFloat, ...]
    """upper limits"""


@frozen
class SurfaceResult(AnalysisResult):
    """Predicted scores over the weights."""

    folded = True
    split: str
    """split of the items"""
    ingredients: Names
    """ingredients, in the order of the weights"""
    chosen: tuple[MaybeFloat, ...]
    """weights of the soup"""
    weights: Matrix
    """weights of each point"""
    items: tuple[MaybeInt, ...]
    """items that each point answered"""
    split_items: MaybeInt
    """items of the split"""
    soups: MaybeInt
    """soups that the model was fitted on"""
    objective: SurfaceLimits
    """the objective"""
    categories: Mapping[str, tuple[MaybeFloat, ...]]
    """{category: differences}"""
    width: MaybeFloat
    """mean width of the bands"""

    def section(self, unit: Unit) -> Section:
        """How many mixtures are better or worse than the uniform soup: their limits exclude 0."""
        above = 0
        below = 0
        # In an edited file, the lists may differ in length.
        for low, high in zip(self.objective.low, self.objective.high, strict=False):
            limits = (unit.gain(low), unit.gain(high))
            above += min(limits) > 0
            below += max(limits) < 0
        lines = (
            f"Of {count(len(self.objective.low))} mixtures, {count(above)} are better and {count(below)} worse than "
            "the uniform soup, with 95 % confidence for all points at once. "
            f"The bands are {unit.points(self.width)} wide on average.",
            f"By the search's model of {count(self.soups)} trials (soups and single models) on "
            f"{count(self.split_items)} search items.",
        )
        return Section("Response surface", lines, "surface")

    def drawings(self, unit: Unit) -> tuple[Drawing, ...]:
        """Two ingredients: a curve in its band; three: a triangle; more: the points in their order."""
        names = self.ingredients
        points = np.array(self.weights, dtype=float)
        chosen = _array(self.chosen)
        value = unit.scale * _array(self.objective.difference)
        low = unit.scale * _array(self.objective.low)
        high = unit.scale * _array(self.objective.high)
        label = f"score minus uniform soup ({unit.name})"
        caption = "Ring: the chosen soup."
        with canvas():
            if len(names) == 3:
                largest = max(float(np.abs(value).max()), 1e-9)
                rims = [INK if sure else FAINT for sure in (low > 0) | (high < 0)]
                shades = scale(-largest, largest, unit.colours("RdBu"))
                plot = triangle(names, points, value, chosen, shades, label, rims)
                caption += " Dark outline: its interval excludes 0."
            else:
                plot = _band(names, points, chosen, value, low, high, label)
        lowest = minus(f"{value.min():.{unit.digits}f}")
        highest = minus(f"{value.max():.{unit.digits}f}")
        best = " / ".join(map(four_digits, points[int(unit.inner(value).argmax())]))
        reached = f"from {lowest} to {highest} {unit.name}, best at {best}"
        alt = (
            f"Objective over the weights of {in_words(names)}, less the uniform soup's: {reached}."
        )
        return (Drawing("surface", plot, alt, caption),)


def _array(values: Sequence[MaybeFloat]) -> FloatArray:
    """Numbers of a report as an array, nan for None."""
    return np.array(values, dtype=float)


def _band(
    names: Sequence[str],
    points: FloatArray,
    chosen: FloatArray,
    value: FloatArray,
    low: FloatArray,
    high: FloatArray,
    label: str,
) -> Figure:
    """The points in order with their band, and a ring around the point nearest to the chosen weights."""
    # Two ingredients: over the weight of the first. More: over the rank of the value.
    x = points[:, 0]
    x_label = weight_axis(names)
    if len(names) > 2:
        x = np.empty(len(value))
        x[np.argsort(value, kind="stable")] = np.arange(len(value))
        x_label = "points, in order"
    nearest = int(np.abs(points - chosen).sum(axis=1).argmin())
    plot, axes = curve(x, value, nearest, x_label, label)
    order = np.argsort(x, kind="stable")
    axes.fill_between(x[order], low[order], high[order], color=FAINT, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    return plot
