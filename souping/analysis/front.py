"""Front of several goals (`pareto`): soups that no other beats in all of them.

A goal is what a guard of its name would watch: its mean is a linear function of the category means
of the search's posterior, which is fitted to all answers on the search split. The test split is
not touched.

Shape legend: S points, K ingredients, G goals, C categories, I items, D draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from souping.analysis.guards import LENGTH_GUARD, Guard, resolve
from souping.analysis.surface import FITTED, answer_table, design_effect, fitted_surface
from souping.core.fields import fits
from souping.core.types import (
    OWN_BENCHMARK,
    BoolArray,
    FloatArray,
    Item,
    Names,
    Trial,
    UserError,
    Weights,
    frozen,
)
from souping.core.unit import POINTS, Estimate, Unit
from souping.report.analysis_results import AnalysisResult
from souping.report.cells import Section, grid
from souping.report.content import MaybeFloat, MaybeInt, NamedNumbers
from souping.report.format import clean, count, four_digits, in_words, short
from souping.report.plots import COLOURS, FAINT, Drawing, canvas, figure, ring
from souping.search.surrogate import RISE, SoupModel
from souping.statistics.score_table import group_numbers

# Key under `analyses`.
FRONT = "front"
# Most points that are evaluated on the whole search split.
CONFIRMED = 3
# Draws of the posterior.
FRONT_DRAWS = 400
# Points in the report's table.
LISTED_POINTS = 15
LENGTH = Unit(
    symbol="mean per answer",
    meaning=LENGTH_GUARD,
    higher_is_better=False,
    scale=1.0,
    fractions=False,
)


def resolve_goals(
    goals: Sequence[str] | Mapping[str, float],
    categories: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    unit: Unit,
) -> tuple[Guard, ...]:
    """The goals that `pareto` names, or {goal: weight} of them, as guards; empty for no goals.

    Raises:
        UserError: there is one goal, a name is not a category, a group or `tokens`, or a weight
            is negative.
    """
    if not goals:
        return ()
    if len(set(goals)) < max(2, len(goals)):
        raise UserError(
            f"pareto={[*goals]!r:.60} needs two goals or more, each once, "
            "as in pareto=[math,safety]"
        )
    if isinstance(goals, Mapping) and not _are_goal_weights(goals):
        raise UserError(
            f"pareto={goals!r:.60} needs finite weights of 0 or more, one of them above 0"
        )
    # Of a guard, a goal has everything but a loss that it may have.
    no_losses = dict.fromkeys(goals, 0.0)
    return resolve(no_losses, categories, groups, {OWN_BENCHMARK: unit}, "pareto")


def _are_goal_weights(weights: Mapping[str, float]) -> bool:
    """Whether all weights are finite numbers of at least 0, and one is above 0."""
    if not fits(weights, Mapping[str, float]):
        return False
    return min(weights.values()) >= 0 and 0 < sum(weights.values()) < np.inf


class Front:
    """Points with each goal's posterior mean and 95 % band.

    Higher is better: inner scores, lengths as minus a multiple of the first model's.
    """

    goals: Sequence[Guard]
    points: FloatArray  # [S, K]
    known: int  # points that answered any items
    whole: BoolArray  # [S] points that answered all items
    means: FloatArray  # [S, G]
    low: FloatArray  # [S, G]
    high: FloatArray  # [S, G]
    odds: FloatArray  # [S] share of the draws in which a point is on the front; decides what is confirmed
    on: BoolArray  # [S] points on the front of the means

    def __init__(
        self,
        goals: Sequence[Guard],
        items: Sequence[Item],
        points: Sequence[Weights],
        trials: Iterable[Trial],
    ) -> None:
        """From the trials of a search, on the `items` of its split. Further `points` are only predicted."""
        results = {trial.weights: trial.result for trial in trials}
        fitted_points = list(dict.fromkeys([*results, *points]))[:FITTED]
        scores_of = {weights: result.values for weights, result in results.items()}
        lengths_of = {weights: result.lengths for weights, result in results.items()}
        scores = answer_table(fitted_points, scores_of, len(items))
        self.points = np.array(fitted_points)
        self.known = len(results)
        self.whole = np.asarray(np.isfinite(scores).all(axis=1))

        # Surrogates of the scores and, if a goal is about lengths, of the lengths: the key is
        # `goal.lengths`. A length counts as minus a multiple of the first point's mean length; the
        # unit of the goal turns that into tokens again: an inner score of 0.01 is `min_gain` tokens.
        models = {False: _fit(self.points, scores, items)}
        if any(goal.lengths for goal in goals):
            lengths = answer_table(fitted_points, lengths_of, len(items))
            # Lengths are 0 if tokens are not counted.
            first_length = float(np.nanmean(lengths[0])) or 1.0
            # Soups are not expected to be longer or shorter than their ingredients.
            models[True] = _fit(self.points, -lengths / first_length, items, rise=0.0)
            unit = replace(LENGTH, min_gain=0.01 * first_length)
            goals = [replace(goal, unit=unit) if goal.lengths else goal for goal in goals]
        self.goals = goals

        self.means, draws = _posterior(models, goals, [item.category for item in items])
        self.low, self.high = np.quantile(draws, (0.025, 0.975), axis=0)
        self.odds = np.mean([undominated(draw) for draw in draws], axis=0)
        self.on = undominated(self.means)

    def merits(self, goal_weights: Mapping[str, float]) -> dict[Weights, float]:
        """{point: weighted sum of its goals}"""
        merits = self._weighted_sums(goal_weights).tolist()
        points = [self._weights(n) for n in range(len(self.points))]
        return dict(zip(points, merits, strict=True))

    def candidates(self, goal_weights: Mapping[str, float] | None) -> list[Weights]:
        """At most CONFIRMED points of the front, to be evaluated on the whole search split.

        Those with the largest weighted sums of goals; without weights, those that are most likely on the true front.
        """
        worth = self.odds
        if goal_weights is not None:
            worth = self._weighted_sums(goal_weights)
        order = sorted(np.flatnonzero(self.on).tolist(), key=lambda n: -worth[n])
        return [self._weights(n) for n in order[:CONFIRMED]]

    def _weighted_sums(self, goal_weights: Mapping[str, float]) -> FloatArray:
        """Weighted sum of each point's goals, [S]."""
        weights = np.array([goal_weights.get(goal.name, 0.0) for goal in self.goals])
        return np.asarray(self.means @ weights)

    def _weights(self, n: int) -> Weights:
        """Weights of a point, by number."""
        return tuple(float(weight) for weight in self.points[n])

    def result(
        self,
        names: Sequence[str],
        chosen: Mapping[str, float],
        goal_weights: Mapping[str, float] | None,
    ) -> FrontResult:
        """What report.json keeps, with the goals in their units.

        `names` are the ingredients, and `chosen` is {ingredient: weight} of the soup.
        """
        by_first_goal = np.argsort(self.means[self.on, 0], kind="stable")
        front = np.flatnonzero(self.on)[by_first_goal]
        chosen_point = np.array([chosen.get(name, 0.0) for name in names])
        # The soup is the nearest point: its weights may differ by rounding.
        distances = np.abs(self.points - chosen_point).sum(axis=1)
        return FrontResult(
            split="search",
            goals=tuple(Goal(name=goal.name, unit=goal.unit) for goal in self.goals),
            ingredients=tuple(names),
            soups=self.known,
            goal_weights=goal_weights,
            points=tuple(self._point(n) for n in front),
            chosen=self._point(int(distances.argmin())),
            rest=tuple(self._point(n) for n in np.flatnonzero(~self.on).tolist()),
        )

    def _point(self, n: int) -> FrontPoint:
        """A point by number, as report.json keeps it."""
        goals = {}
        for g, goal in enumerate(self.goals):
            band = np.array([self.means[n, g], self.low[n, g], self.high[n, g]])
            if goal.unit.fractions:
                band = np.clip(band, 0, 1)
            mean, low, high = band.tolist()
            mean, low, high = goal.unit.raw_estimate(Estimate(mean, low, high))
            goals[goal.name] = GoalBand(mean=mean, low=low, high=high)
        return FrontPoint(
            weights=tuple(round(float(share), 9) for share in self.points[n]),
            goals=goals,
            confirmed=bool(self.whole[n]),
        )


def _fit(
    points: FloatArray, answers: FloatArray, items: Sequence[Item], rise: float = RISE
) -> SoupModel:
    """Surrogate of scores or lengths [S, I] of points [S, K]."""
    _, categories = np.unique([item.category for item in items], return_inverse=True)
    groups = group_numbers([item.group for item in items])
    equal_weights = np.ones(categories.max() + 1)
    effect = design_effect(answers, categories, groups)
    return fitted_surface(points, answers, categories, equal_weights, rise=rise, effect=effect)


def _posterior(
    models: Mapping[bool, SoupModel], goals: Sequence[Guard], categories: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    """Mean [S, G] of each goal, and draws [D, S, G] from its posterior.

    `models` are the surrogates of the scores (False) and the lengths (True). The posterior is wider where answers vary
    more than the model believes.
    """
    category_draws = {}  # [D, S, C]
    for kind, model in models.items():
        category_draws[kind] = model.posterior_draws(FRONT_DRAWS, max(1.0, model.surprise()))
    means = []
    draws = []
    for goal in goals:
        # The shares of the categories in the goal are the same for both models.
        shares = models[False].shares(goal.covers(categories))
        mean, _ = models[goal.lengths].total(shares)
        means.append(mean)
        draws.append(category_draws[goal.lengths] @ shares)
    return np.stack(means, axis=-1), np.stack(draws, axis=-1)


def undominated(values: FloatArray) -> BoolArray:
    """Which rows of `values` [S, G] no other row beats, by being as good in every goal and better in one, [S]."""
    as_good = (values[:, None] >= values).all(axis=-1)
    better = (values[:, None] > values).any(axis=-1)
    dominated = (as_good & better).any(axis=0)
    return np.asarray(~dominated)


# ---------------------------------------------------------------- how it is shown


@frozen
class Goal:
    """A goal of `pareto`."""

    name: str
    """category, group or `tokens`"""
    unit: Unit = POINTS
    """unit of its means"""


@frozen
class GoalBand:
    """Mean of a goal with its band."""

    mean: MaybeFloat
    """mean"""
    low: MaybeFloat
    """lower limit of the 95 % band"""
    high: MaybeFloat
    """upper limit"""


@frozen
class FrontPoint:
    """A soup and what it reaches."""

    weights: tuple[MaybeFloat, ...]
    """weight of each ingredient"""
    goals: Mapping[str, GoalBand]
    """{goal: mean and band}"""
    confirmed: bool
    """whether it answered the whole search split"""


@frozen
class FrontResult(AnalysisResult):
    """Soups that no other beats in all goals."""

    split: str
    """split of the items"""
    goals: tuple[Goal, ...]
    """goals"""
    ingredients: Names
    """ingredients, in the order of the weights"""
    soups: MaybeInt
    """soups that were evaluated"""
    goal_weights: NamedNumbers | None
    """{goal: weight}, if the soup is chosen by them"""
    points: tuple[FrontPoint, ...]
    """soups on the front"""
    chosen: FrontPoint
    """the soup"""
    rest: tuple[FrontPoint, ...]
    """all others"""

    def section(self, unit: Unit) -> Section:
        """A table of the points on the front, confirmed ones first."""
        total = len(self.points) + len(self.rest)
        names = in_words([goal.name for goal in self.goals])
        lines = [
            f"By the search's model, {len(self.points)} of {total} soups are on the front: none beats them "
            f"in {names} together. Means from {count(self.soups)} evaluated soups, with 95 % bands. "
            "Confirmed soups answered the whole search split."
        ]
        if self.goal_weights:
            terms = [
                f"{share or 0.0:.3g} {clean(name)}" for name, share in self.goal_weights.items()
            ]
            lines.append(
                f"Among the confirmed soups, the weights of the goals prefer the largest {' + '.join(terms)}; "
                "guards may rule it out."
            )
        if len(self.points) > LISTED_POINTS:
            lines.append(f"{count(len(self.points) - LISTED_POINTS)} more are in report.json.")

        ingredients = " / ".join(map(clean, self.ingredients))
        headings = [goal.unit.heading(clean(goal.name)) for goal in self.goals]
        header = (ingredients, *headings, "confirmed")
        confirmed_first = sorted(self.points, key=lambda point: not point.confirmed)
        rows = [self._row(point) for point in confirmed_first[:LISTED_POINTS]]
        return Section(f"Front of {names}", tuple(lines), FRONT, (grid(header, rows),))

    def _row(self, point: FrontPoint) -> tuple[str, ...]:
        """Cells of the table: weights, a band for each goal, whether it is confirmed."""
        weights = " / ".join(map(four_digits, point.weights))
        bands = []
        for goal in self.goals:
            band = point.goals.get(goal.name, UNKNOWN_BAND)
            bands.append(goal.unit.brackets(band.mean, band.low, band.high))
        confirmed = "yes" if point.confirmed else ""
        return (weights, *bands, confirmed)

    def drawings(self, unit: Unit) -> tuple[Drawing, ...]:
        """The first two goals of all points, with the bands of those on the front."""
        goals = self.goals[:2]
        if len(goals) < 2:
            return ()
        with canvas():
            plot, axes = figure(6.4, 4.2)
            mean, _, _ = _bands(self.rest, goals)
            axes.plot(*mean, "o", color=FAINT, markersize=3)

            mean, low, high = _bands(self.points, goals)
            x_error, y_error = np.abs(np.stack([low, high], axis=1) - mean[:, None])
            axes.errorbar(
                mean[0],
                mean[1],
                y_error,
                x_error,
                fmt="o",
                color=COLOURS["soup"],
                markersize=4,
                linewidth=0.5,
            )
            mean, _, _ = _bands([self.chosen], goals)
            x, y = mean[:, 0].tolist()
            ring(axes, x, y, 7)
            names = [clean(goal.name) for goal in goals]
            axes.set_xlabel(goals[0].unit.heading(short(names[0], 40)))
            axes.set_ylabel(goals[1].unit.heading(short(names[1], 40)))
        alt = (
            f"Front of {in_words(names)}: {len(self.points)} points that no other beats, "
            f"of {len(self.points) + len(self.rest)}."
        )
        caption = "Ring: the chosen soup. Bars: 95 % bands of the points on the front."
        return (Drawing(FRONT, plot, alt, caption),)


UNKNOWN_BAND = GoalBand(mean=None, low=None, high=None)


def _bands(
    points: Sequence[FrontPoint], goals: Sequence[Goal]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, low and high of both goals, each [2, points]."""
    shape = (len(goals), len(points), 3)
    bands = np.full(shape, np.nan)
    for g, goal in enumerate(goals):
        for n, point in enumerate(points):
            band = point.goals.get(goal.name, UNKNOWN_BAND)
            bands[g, n] = (band.mean, band.low, band.high)
        bands[g] *= goal.unit.scale  # as it is shown
    return bands[..., 0], bands[..., 1], bands[..., 2]
