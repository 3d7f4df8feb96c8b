"""Response surface: objective and categories over the weights of the ingredients, with 95 % bands (`surface`).

The bands are the posterior of the search's own surrogate, given all answers on the search fold, for the difference to
the uniform soup; they hold at all weights at once. The report fold is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from souping.analysis.base import SINGLE_SELECTED, Analysis, NotEstimableError, RunScores
from souping.analysis.intervals import ItemTable
from souping.core.fields import component
from souping.core.text import minus
from souping.core.types import FloatArray, IntArray, Names
from souping.core.unit import Unit
from souping.report.analyses import AnalysisResult
from souping.report.content import Matrix, MaybeFloat, MaybeInt
from souping.report.format import count, in_words, weight
from souping.report.plots import FAINT, INK, Drawing, canvas, curve, scale, triangle, weight_axis
from souping.report.tables import Section
from souping.search.points import check_step, grid, grid_size, uniform, vertices
from souping.search.surrogate import RISE, SoupModel, draws

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FEWEST_SOUPS = 5
"""Evaluated soups without which there is no surface."""
MOST_POINTS = 150
FITTED = 400
"""Soups at most that the model is fitted on."""
CONFIDENCE = 0.95
BAND_DRAWS = 2000
"""Draws of the posterior that the width of a band is estimated from."""
WIDENING = 1.35
"""Factor of a band's width for what the posterior takes for certain (the scales and the smoothness): set on the
simulated bowls of tests/analysis/test_surface.py, not on tables."""


@dataclass(frozen=True, kw_only=True)
class SurfaceBand:
    """Difference to the first point [S] (of inner scores), and its limits [S], which hold at all points at once."""

    difference: FloatArray
    low: FloatArray
    high: FloatArray

    @classmethod
    def of(cls, mean: FloatArray, cov: FloatArray, most: float) -> SurfaceBand:
        """From the posterior of all points: mean [S], covariance [S, S]. No difference can be larger than `most`."""
        cov = cov - cov[:, :1] - cov[:1] + cov[0, 0]
        error = np.sqrt(np.maximum(np.diag(cov), 0))
        largest = np.max(
            np.abs(draws(cov, BAND_DRAWS))[:, 1:] / np.maximum(error[1:], 1e-9), axis=1
        )
        difference = np.clip(mean - mean[0], -most, most)
        reach = WIDENING * float(np.quantile(largest, CONFIDENCE)) * error
        return cls(
            difference=difference,
            low=np.maximum(difference - reach, -most),
            high=np.minimum(difference + reach, most),
        )

    def at(self, unit: Unit, points: int) -> SurfaceLimits:
        """The first `points` points, in the unit of the scores."""
        limits = {}
        for key, row in unit.raw_table(vars(self)).items():
            limits[key] = tuple(round(value, 6) for value in row[:points].tolist())
        return SurfaceLimits(**limits)


def band(
    points: FloatArray,
    scores: FloatArray,
    categories: IntArray,
    coefficients: FloatArray,
    value: Callable[[FloatArray], FloatArray] | None = None,
    groups: IntArray | None = None,
) -> tuple[SurfaceBand, list[FloatArray]]:
    """Band of the objective at `points` [S, K] less that at the first of them, and the difference [S] of each category.

    `scores` [S, I] are nan where a point was not evaluated, `categories` and `groups` [I] numbers from 0 (every item is
    a group if there are none), `coefficients` [C] the objective's, or its `value` where it is not linear.
    """
    effect = 1.0
    if groups is not None:
        # What all points have in common on an item is in no difference.
        answered = np.maximum(np.isfinite(scores).sum(axis=0), 1)
        common = np.nansum(scores, axis=0) / answered
        effect = design_effect(scores - common, categories, groups)
    model = fitted(points, scores, categories, coefficients, value=value, effect=effect)
    parts = [model.posterior(c) for c in range(len(coefficients))]
    (mean, cov), wider = model.objective(), max(1.0, model.surprise())
    most = 1.0 if np.nanmin(scores) >= 0 and np.nanmax(scores) <= 1 else np.inf
    whole = SurfaceBand.of(mean, wider * cov, most * float(coefficients.sum()))
    return whole, [np.clip(part.mean - part.mean[0], -most, most) for part in parts]


def fitted(
    points: FloatArray,
    scores: FloatArray,
    categories: IntArray,
    coefficients: FloatArray,
    rise: float = RISE,
    value: Callable[[FloatArray], FloatArray] | None = None,
    effect: float = 1.0,
) -> SoupModel:
    """The search's surrogate, given scores [S, I] of points [S, K], nan where there is none.

    A sample of n items counts as n / `effect` independent ones.
    """
    samples, whole = (
        _item_samples(np.isfinite(scores), categories, len(coefficients)),
        np.isfinite(scores).all(1),
    )
    model = SoupModel(points, samples, coefficients, rise, value, scores[whole])
    model.size = model.size / effect
    for soup in np.flatnonzero(np.isfinite(scores).any(axis=1)):
        model.observe(int(soup), slice(None), scores[soup])
    model.asked = np.isfinite(model.score)
    model.fit()
    return model


def design_effect(scores: FloatArray, categories: IntArray, groups: IntArray) -> float:
    """Variance of means of scores [S, I] over that of independent items, as items of a group are alike (Kish 1965).

    At least 1. Scores are nan where a point was not evaluated.
    """
    clustered = 0.0
    independent = 0.0
    for c in np.unique(categories):
        place = categories == c
        _, group = np.unique(groups[place], return_inverse=True)
        answers = scores[:, place]
        answers = answers[np.isfinite(answers).any(axis=1)]
        residuals = np.nan_to_num(answers - np.nanmean(answers, axis=1, keepdims=True))
        sums = np.stack([np.bincount(group, row) for row in residuals])
        n = sums.shape[1]
        clustered += float((sums**2).sum()) * n / max(n - 1, 1)
        independent += float((residuals**2).sum())
    return max(1.0, clustered / independent) if independent else 1.0


def _item_samples(
    known: NDArray[np.bool_], categories: IntArray, count: int
) -> list[list[IntArray]]:
    """Positions of each category's items, split by which soups answered them."""
    pattern = np.unique(known, axis=1, return_inverse=True)[1].reshape(-1)
    members = [np.flatnonzero(categories == c) for c in range(count)]
    return [
        [some[pattern[some] == number] for number in np.unique(pattern[some])] for some in members
    ]


@component
class ResponseSurface(Analysis):
    """Bands over a grid of weights of `step`."""

    step: float = 0.1

    def __post_init__(self) -> None:
        check_step(self.step, "analysis.surface.step")

    def analyse(self, run: RunScores) -> SurfaceResult:
        found = _evaluated(run)
        names, items = run.soups.ingredients, next(iter(found.values())).size
        fold = ItemTable.of(next(iter(run.search.values())).items, run.objective)
        shown = dict.fromkeys(self._points(len(names)))
        points = [*shown, *(point for point in found if point not in shown)]
        blank = np.full(items, np.nan)
        scores = np.array([found.get(point, blank) for point in points])
        objective, categories = band(
            np.array(points), scores, fold.categories, fold.coefficients, fold.value, fold.groups
        )
        winner = dict(zip(run.soups.soup.ingredients, run.soups.soup.weights, strict=True))
        answered = np.isfinite(scores[: len(shown)]).sum(axis=1)
        width = float((objective.high - objective.low)[: len(shown)].mean())
        return SurfaceResult(
            fold="search",
            ingredients=tuple(names),
            chosen=tuple(winner.get(name, 0.0) for name in names),
            weights=tuple(shown),
            items=tuple(answered.tolist()),
            fold_items=items,
            soups=len(found),
            objective=objective.at(run.unit, len(shown)),
            categories={
                name: tuple(np.round(run.unit.raw(row[: len(shown)]), 6).tolist())
                for name, row in zip(fold.names, categories, strict=True)
            },
            width=run.unit.size(width),
        )

    def _points(self, size: int) -> Sequence[tuple[float, ...]]:
        """Uniform, the singles, and the grid: with a wider step where its points would be too many."""
        step = self.step
        while grid_size(size, step) > MOST_POINTS and step < 0.5:
            step = {0.1: 0.2, 0.05: 0.1, 0.2: 0.25, 0.25: 0.5}.get(round(step, 3), 0.5)
        return [_key(point) for point in (uniform(size), *vertices(size), *grid(size, step))]


def _key(weights: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(weight), 9) for weight in weights)


def _evaluated(run: RunScores) -> dict[tuple[float, ...], FloatArray]:
    """{weights: scores [I], nan for missing items} of the ingredients and the soups of the search.

    Raises:
        NotEstimableError: too few soups were evaluated, or an ingredient was not evaluated alone.
    """
    known = {**{key: scores.values for key, scores in run.search.items()}, **run.parts}
    names, found = run.soups.ingredients, dict[tuple[float, ...], FloatArray]()
    if len(names) < 2:
        raise NotEstimableError(SINGLE_SELECTED)
    if alone := [name for name in names if run.single(name).id not in known]:
        raise NotEstimableError(
            f"{', '.join(alone)} alone did not answer the search fold, and soups do not tell"
        )
    for soup in (*map(run.single, names), *run.trials):
        if soup.id in known and len(found) < FITTED:
            weights = dict(zip(soup.ingredients, soup.weights, strict=True))
            found[_key([weights.get(name, 0.0) for name in names])] = known[soup.id]
    if len(found) < FEWEST_SOUPS:
        raise NotEstimableError(
            f"{len(found)} soups were evaluated on the search fold; a surface takes {FEWEST_SOUPS}"
        )
    return found


# How it is shown


@dataclass(frozen=True, kw_only=True)
class SurfaceLimits:
    """Differences to the uniform soup, point by point, with limits that hold for all of them at once."""

    difference: tuple[MaybeFloat, ...]
    """score minus that of the uniform soup"""
    low: tuple[MaybeFloat, ...]
    """lower limits"""
    high: tuple[MaybeFloat, ...]
    """upper limits"""


@dataclass(frozen=True, kw_only=True)
class SurfaceResult(AnalysisResult):
    """Predicted scores over the weights."""

    fold: str
    """fold of the items"""
    ingredients: Names
    """ingredients, in the order of the weights"""
    chosen: tuple[MaybeFloat, ...]
    """weights of the soup"""
    weights: Matrix
    """weights of each point"""
    items: tuple[MaybeInt, ...]
    """items that each point answered"""
    fold_items: MaybeInt
    """items of the fold"""
    soups: MaybeInt
    """soups that the model was fitted on"""
    objective: SurfaceLimits
    """the objective"""
    categories: Mapping[str, tuple[MaybeFloat, ...]]
    """{category: differences}"""
    width: MaybeFloat
    """mean width of the bands"""

    def section(self, unit: Unit) -> Section:
        ends = zip(self.objective.low, self.objective.high, strict=False)
        limits = [(unit.gain(low), unit.gain(high)) for low, high in ends]
        above = sum(min(pair) > 0 for pair in limits)
        below = sum(max(pair) < 0 for pair in limits)
        lines = (
            f"Of {count(len(limits))} mixtures, {count(above)} are better and {count(below)} worse than the uniform "
            "soup, with 95 % confidence for all points at once. "
            f"The bands are {unit.points(self.width)} wide on average.",
            f"By the search's model of {count(self.soups)} soups on {count(self.fold_items)} search items.",
        )
        return Section("Response surface", lines, "surface")

    def drawings(self, unit: Unit) -> tuple[Drawing, ...]:
        """Two ingredients: a curve in its band; three: a triangle; more: the points in their order."""
        names = self.ingredients
        places = np.array(self.weights, dtype=float)
        chosen = _array(self.chosen)
        value = unit.scale * _array(self.objective.difference)
        low = unit.scale * _array(self.objective.low)
        high = unit.scale * _array(self.objective.high)
        label = f"score minus uniform soup ({unit.name})"
        caption = "Ring: the chosen soup."
        with canvas():
            if len(names) == 3:
                reach = max(float(np.abs(value).max()), 1e-9)
                rims = [INK if sure else FAINT for sure in (low > 0) | (high < 0)]
                shades = scale(-reach, reach, unit.colours("RdBu"))
                plot = triangle(names, places, value, chosen, shades, label, rims)
                caption += " Dark outline: its interval excludes 0."
            else:
                plot = _band(names, places, chosen, value, low, high, label)
        least, most = (minus(f"{limit:.{unit.digits}f}") for limit in (value.min(), value.max()))
        top = " / ".join(weight(w) for w in places[int(unit.inner(value).argmax())])
        reached = f"from {least} to {most} {unit.name}, best at {top}"
        alt = (
            f"Objective over the weights of {in_words(names)}, less the uniform soup's: {reached}."
        )
        return (Drawing("surface", plot, alt, caption),)


def _array(values: Sequence[MaybeFloat]) -> FloatArray:
    """nan for what is not known."""
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
    """The points in order with their band, and a ring around the one that is nearest to the chosen weights."""
    across, below = points[:, 0], weight_axis(names)
    if len(names) > 2:
        across, below = (
            np.argsort(np.argsort(value, kind="stable")).astype(float),
            "points, in order",
        )
    near = int(np.abs(points - chosen).sum(axis=1).argmin())
    made, axes = curve(across, value, near, below, label)
    order = np.argsort(across, kind="stable")
    axes.fill_between(across[order], low[order], high[order], color=FAINT, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    return made
