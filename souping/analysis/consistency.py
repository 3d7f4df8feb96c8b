"""Consistency of categories before and after souping (`consistency`): do models that are good at one do well at all?

Figure 2 of arXiv 2511.13254 shows the correlation of every two categories over the candidates and
over a population of soups: it rises. But soups of few ingredients correlate by themselves: their scores
move along the few directions in which the ingredients differ. So the population is compared with three
nulls of linear mixing, soups that know nothing that their ingredients do not:

- `shared`: each group of items is answered by one ingredient, drawn by the soup's weights. One random
  number per group serves all soups, so soups of similar weights answer alike, as real ones do.
- `independent`: the same, but every soup draws for itself. The noise of its draws lowers the
  correlations.
- `exact`: every item scores the weighted mean of its ingredients' scores. No noise at all: the
  correlations are highest.

Shape legend: M models, S soups, K ingredients, C categories, G groups of items, D draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from souping.analysis.base import Analysis, NotEstimableError, RunScores
from souping.analysis.correlation import FEWEST_MODELS, GroupSums, correlated, few_models
from souping.analysis.wins import MEAN_TIE, too_few
from souping.core.fields import component
from souping.core.protocols import Correlation
from souping.core.types import (
    BoolArray,
    FloatArray,
    ItemScores,
    Names,
    Recipe,
    ScoreMatrix,
    frozen,
)
from souping.core.unit import Unit
from souping.report.analysis_results import AnalysisResult
from souping.report.cells import Section, TableGrid, grid
from souping.report.content import Matrix, MaybeFloat, MaybeInt
from souping.report.format import clean, count, in_words, rho, short
from souping.report.plots import Drawing, canvas, heat_panel
from souping.report.tables import around
from souping.statistics.corrections import Z95

CONSISTENCY_SALT = 0xC025
# Bootstrap draws for the intervals, and simulated populations of a null that draws.
POPULATION_DRAWS = 1000
MIXTURES = 500
# Differences of two correlations that are rounding.
ROUNDING = 1e-9


@component
class Consistency(Analysis):
    """Mean |rho| over pairs of categories: over the candidates, over the search's soups, and under linear mixing.

    Pairs of categories in which both populations vary count. Intervals are +- 1.96 standard errors by
    `POPULATION_DRAWS` bootstrap draws of the search split's groups, the models and soups as they are. The nulls that
    draw are drawn `MIXTURES` times.
    """

    def analyse(self, run: RunScores) -> ConsistencyResult:
        soups = sorted(run.mixtures(), key=lambda soup: soup.id)  # the draws follow this order
        if len(soups) < FEWEST_MODELS:
            raise NotEstimableError(too_few(run, FEWEST_MODELS))
        singles = {}
        for name, single in sorted(run.soups.candidates.items()):
            if single.id in run.search:
                singles[name] = run.search[single.id]
        before = ScoreMatrix.from_items(singles)
        after = ScoreMatrix.from_items({soup.id: run.search[soup.id] for soup in soups})
        varying = _varying(before.values) & _varying(after.values)
        if len(singles) < 3 or varying.sum() < 2:
            raise NotEstimableError(_too_flat(len(singles), before.categories, varying))

        used = set(itertools.chain(*(soup.ingredients for soup in soups)))
        ingredients = {name: scores for name, scores in singles.items() if name in used}
        nulls = self._nulls(soups, ingredients, varying, run)
        candidates = _summary(before, varying, run.correlation)
        categories = np.array(before.categories)
        return ConsistencyResult(
            split="search",
            metric=run.metric,
            categories=before.categories,
            left_out=tuple(categories[~varying].tolist()),
            before=replace(candidates, note=few_models(len(singles))),
            after=_summary(after, varying, run.correlation),
            nulls={name: _spread(null) for name, null in nulls.items()},
        )

    def _nulls(
        self,
        soups: Sequence[Recipe],
        ingredients: Mapping[str, ItemScores],
        varying: BoolArray,
        run: RunScores,
    ) -> dict[str, FloatArray]:
        """{null: mean |rho| of each of its populations}; `exact` has one."""
        # Each soup's weights, scaled to sum 1 [S, K].
        rows = []
        for soup in soups:
            shares = soup.shares
            total = sum(shares.values())
            rows.append([shares.get(name, 0.0) / total for name in ingredients])
        weights = np.array(rows)

        sums = GroupSums.of(ScoreMatrix.from_items(ingredients))
        groups = len(sums.sums)
        exact = np.einsum("sk,gkc->sc", weights, sums.sums) / sums.counts.sum(axis=0)
        mixed = partial(_mixed, sums, weights, varying, run.correlation)
        return {
            "shared": mixed(groups),
            "independent": mixed((len(soups), groups)),
            "exact": np.array([_strength(run.correlation, exact, varying)]),
        }


def _spread(null: FloatArray) -> NullSpread:
    """Mean and central 95 % of a null."""
    low, high = np.nanquantile(null, (0.025, 0.975)).tolist()
    return NullSpread(mean=float(np.nanmean(null)), low=low, high=high)


def _varying(values: FloatArray) -> BoolArray:
    """Whether the models' scores [M, C] differ in each category, [C]."""
    return np.asarray(np.ptp(values, axis=0) > MEAN_TIE)


def _too_flat(models: int, categories: Sequence[str], varying: BoolArray) -> str:
    """Why there are no correlations: too few candidates, or too few categories that vary [C]."""
    if models < 3:
        return f"{models} candidates have no correlation; it takes 3, and {FEWEST_MODELS} to say anything by it"
    differing = int(varying.sum())
    return f"models differ in {differing} of {len(categories)} categories, and 2 are needed: add items or categories"


def _rho(correlation: Correlation, values: FloatArray, varying: BoolArray) -> FloatArray:
    """Correlations [C, C] of values [M, C].

    They are nan for a category that is not `varying` [C], that these values lack, or in which these are all equal.
    """
    usable = varying & np.isfinite(values).all(axis=0)
    # `correlated` leaves out columns in which nothing differs.
    return correlated(correlation, np.where(usable, values, 0.0)).rho


def _strength(correlation: Correlation, values: FloatArray, varying: BoolArray) -> float:
    """Mean |rho| over the pairs of categories that have a correlation; nan if no pair has."""
    pairs = np.triu_indices(len(varying), 1)
    sizes = np.abs(_rho(correlation, values, varying)[pairs])
    sizes = sizes[np.isfinite(sizes)]
    if not sizes.size:
        return math.nan
    return float(sizes.mean())


def _summary(
    scores: ScoreMatrix, varying: BoolArray, correlation: Correlation
) -> PopulationCorrelation:
    """The correlations of one population, and their mean size with its interval.

    `varying` [C] marks the categories that count: models differ in them. A draw of items in which no pair of categories
    has a correlation has a mean of nan.
    """
    rng = np.random.default_rng(CONSISTENCY_SALT)
    drawn = GroupSums.of(scores).draws(POPULATION_DRAWS, rng)
    mean = _strength(correlation, scores.values, varying)
    drawn_means = [_strength(correlation, values, varying) for values in drawn]
    error = float(np.nanstd(drawn_means, ddof=1))
    rho = _rho(correlation, scores.values, varying)
    return PopulationCorrelation(
        models=len(scores.models),
        mean=mean,
        low=max(0.0, mean - Z95 * error),
        high=min(1.0, mean + Z95 * error),
        matrix=tuple(map(tuple, rho.tolist())),
    )


def _mixed(
    sums: GroupSums,
    weights: FloatArray,
    varying: BoolArray,
    correlation: Correlation,
    size: int | tuple[int, int],
) -> FloatArray:
    """Mean |rho| in each of `MIXTURES` populations of soups.

    For each group of items, a soup answers as one ingredient does, which is drawn by the soup's `weights` [S, K].
    `size` is the shape of the random numbers: G, if one per group serves all soups, or (S, G). The order of the
    ingredients is drawn anew each time, so that no two are always neighbours.
    """
    rng = np.random.default_rng([CONSISTENCY_SALT, 1])
    counts = sums.counts.sum(axis=0)
    strengths = np.empty(MIXTURES)
    for draw in range(MIXTURES):
        # Ingredients share the line from 0 to 1 by their weights; a random point on it picks one.
        order = rng.permutation(weights.shape[1])
        ends = weights[:, order].cumsum(axis=1)
        points = rng.random(size)
        totals = np.zeros((len(weights), len(counts)))  # [S, C]
        start: FloatArray | float = 0.0
        for rank, ingredient in enumerate(order):
            end = ends[:, [rank]]
            # Rounding may leave the last end below 1, and a point above it.
            is_last = rank == len(order) - 1
            picked = (points >= start) & ((points < end) | is_last)
            totals += picked.astype(float) @ sums.sums[:, ingredient]
            start = end
        strengths[draw] = _strength(correlation, totals / counts, varying)
    return strengths


# How it is shown

POPULATIONS = {"before": "candidates", "after": "soups of the search"}
# {null: (its name, what a soup is under it)}, the weakest correlation first.
NULLS = {
    "independent": (
        "mixtures, independent draws",
        "every soup draws an ingredient for each group of items by itself",
    ),
    "shared": (
        "mixtures, one draw per group",
        "one random number per group of items decides the ingredient for all soups",
    ),
    "exact": ("exact mixtures", "every item scores the weighted mean of its ingredients' scores"),
}


@frozen
class NullSpread:
    """Mean |rho| under a null."""

    mean: MaybeFloat
    """mean over populations"""
    low: MaybeFloat
    """lower limit of the central 95 %"""
    high: MaybeFloat
    """upper limit"""

    def place(self, value: MaybeFloat) -> str:
        """Where a value lies: above, below or within the null's central 95 %."""
        if value is None or self.low is None or self.high is None:
            return "not comparable to"
        if value > self.high + ROUNDING:
            return "above"
        if value < self.low - ROUNDING:
            return "below"
        return "within"


@frozen
class PopulationCorrelation:
    """Correlations of categories over a population."""

    models: MaybeInt
    """models"""
    note: str | None = None
    """what so few models cannot show"""
    mean: MaybeFloat
    """mean |rho| of two categories"""
    low: MaybeFloat
    """lower limit of the 95 % interval"""
    high: MaybeFloat
    """upper limit"""
    matrix: Matrix
    """correlation of every two categories"""


@frozen
class ConsistencyResult(AnalysisResult):
    """Correlations of categories before and after souping."""

    folded = True
    split: str
    """split of the items"""
    metric: str
    """name of the correlation"""
    categories: Names
    """categories"""
    left_out: Names
    """categories in which a population does not vary"""
    before: PopulationCorrelation
    """over the candidates"""
    after: PopulationCorrelation
    """over the soups of the search"""
    nulls: Mapping[str, NullSpread]
    """{null: the same under linear mixing}"""

    def section(self, unit: Unit) -> Section:
        """The mean correlations of candidates and soups, and whether mixing alone explains the difference."""
        before = self.before
        after = self.after
        nulls = {key: self.nulls.get(key, UNKNOWN_SPREAD) for key in NULLS}
        head = (
            f"Mean |{clean(self.metric)} rho| of two categories: {rho(before.mean)} ({_limits(before)}) over "
            f"{count(before.models)} candidates, {rho(after.mean)} ({_limits(after)}) over {count(after.models)} "
            "soups of the search (two or more ingredients, whole split)."
        )
        positions = set()
        phrases = []
        for key, (name, _) in NULLS.items():
            position = nulls[key].place(after.mean)
            positions.add(position)
            phrases.append(f"{position} {name} ({rho(nulls[key].mean)})")
        against = f"Soups of few ingredients correlate by mixing alone. The soups are {in_words(phrases)}."
        if len(positions) > 1:
            against += " The answer depends on which mixture is meant."
        lines = [head, against]
        if before.note:
            lines.append(clean(before.note))
        if self.left_out:
            names = in_words(self.left_out)
            lines.append(f"Left out, as all candidates or all soups score the same: {names}.")
        table = self._table(nulls)
        return Section("Do categories move together?", tuple(lines), "consistency", (table,))

    def _table(self, nulls: Mapping[str, NullSpread]) -> TableGrid:
        """A row for each population, then for each null."""
        rows = []
        for key, name in POPULATIONS.items():
            population = self._population(key)
            size = count(population.models)
            rows.append((name, size, rho(population.mean), _limits(population), ""))
        for key, (name, meaning) in NULLS.items():
            null = nulls[key]
            rows.append((name, count(self.after.models), rho(null.mean), _limits(null), meaning))
        header = ("population", "models", "mean |rho|", "95 %", "what it is")
        return grid(header, rows, left=(0, 4))

    def _population(self, key: str) -> PopulationCorrelation:
        return self.before if key == "before" else self.after

    def drawings(self, unit: Unit) -> tuple[Drawing, ...]:
        """Both correlation matrices on one scale."""
        from matplotlib.figure import Figure

        names = self.categories
        labels = [short(name, 24) for name in names]
        font = 6.5 if len(names) <= 12 else 0
        means = []
        with canvas():
            side = max(2.4, 0.42 * len(names))
            plot = Figure(figsize=(2.04 * side, side))
            panels = plot.subplots(1, 2)
            for axes, (key, name) in zip(panels, POPULATIONS.items(), strict=True):
                population = self._population(key)
                mean = rho(population.mean)
                means.append(f"{mean} over the {name}")
                title = f"{count(population.models)} {name}\nmean |rho| {mean}"
                axes.set_title(title, fontsize=9)
                heat_panel(axes, population.matrix, labels, font)
            panels[0].set_yticks(range(len(names)), labels)
            panels[1].set_yticks([])
            plot.subplots_adjust(wspace=0.05)
        alt = (
            f"Heatmaps of the correlation of every two of {len(names)} categories; "
            f"the mean size is {' and '.join(means)}."
        )
        caption = "Left: candidates. Right: soups. Grey: no correlation exists."
        return (Drawing("consistency", plot, alt, caption),)


UNKNOWN_SPREAD = NullSpread(mean=None, low=None, high=None)


def _limits(population: PopulationCorrelation | NullSpread) -> str:
    """The 95 % interval in words."""
    return around(population.low, population.high)
