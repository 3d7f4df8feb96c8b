"""Shapley values of the ingredients (`shapley`): what each of them adds to soups of the others, on the search split.

The value v(C) of a subset C is the objective of the uniform soup of its members (arXiv
2511.13254). The empty subset is worth the base model where it is a candidate, else the mean of
the players alone: worth nothing, it would give every player an n-th of the whole score. A player's
Shapley value is its marginal contribution, averaged over all orders in which the players may come:

    phi(p) = sum over S without p of |S|! (n - |S| - 1)! / n! (v(S + p) - v(S))

The values sum to v(all) - v(nobody) (Shapley 1953). Pairs and triplets are players too, worth the soup of all
members. v is linear in the items' scores, so every category has Shapley values at no further cost.

Shape legend: I items of the search split; n players.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Annotated, Literal

import numpy as np

from souping.analysis.base import Analysis, NotEstimableError, RunScores, RunSoups
from souping.core.fields import Bounds, component
from souping.core.types import FloatArray, Names, Recipe, frozen
from souping.core.unit import Estimate, Unit
from souping.report.analysis_results import AnalysisResult
from souping.report.cells import Section, TableCell, TableGrid, grid
from souping.report.content import MaybeFloat, MaybeInt, NamedNumbers
from souping.report.format import clean, short
from souping.report.plots import COLOURS, INK, Drawing, canvas, figure, name_rows
from souping.statistics.intervals import objective_interval
from souping.statistics.score_table import ItemTable, ModelScores

# Models that are together: a player (one, two or three of them) or a subset of players.
Members = frozenset[str]
Coefficients = dict[Members, float]
# Most players: 4,095 subsets.
MOST_PLAYERS = 12
SUBSET_KINDS = {1: "single models", 2: "pairs", 3: "triplets"}


@component
class Shapley(Analysis):
    """Shapley values of single models, pairs and triplets.

    They are of the ingredients or of all candidates (`over`), at most `max_models` of them (12 at most), since all
    subsets are evaluated. Pairs and triplets are shown if there are at most 12 of them.
    """

    over: Literal["ingredients", "candidates"] = "ingredients"
    max_models: Annotated[int, Bounds(ge=1, le=MOST_PLAYERS)] = 5

    def asks(self, soups: RunSoups) -> tuple[Recipe, ...]:
        game = _Game(self, soups)
        # `analyse` refuses such a number of models.
        if not 2 <= len(game.names) <= self.max_models:
            return ()
        return tuple(map(game.recipe, game.subsets()))

    def notes(self, base_model: str | None, base: str | None) -> list[str]:
        if not base_model or base:
            return []
        return [
            f"merge.base_model={base_model} is not a candidate and is not evaluated: values are relative to the mean "
            "of the models alone; for values relative to the base, add it to pool.candidates"
        ]

    def analyse(self, run: RunScores) -> ShapleyResult:
        game = _Game(self, run.soups)
        size = len(game.names)
        if size < 2:
            raise NotEstimableError("a single model has no Shapley value: it takes two models")
        if not run.objective.linear:
            raise NotEstimableError(
                f"Shapley values need a linear objective, which {run.objective.name} is not"
            )
        if size > self.max_models:
            raise NotEstimableError(
                f"{size} models have {2**size - 1} subsets: set analysis.shapley.max_models={size}"
            )
        values = _Values(run, game)
        # Single models, and pairs and triplets if there are few of them.
        levels = []
        for together in SUBSET_KINDS:
            if together <= size and math.comb(size, together) <= MOST_PLAYERS:
                levels.append(_level(game, values, together))
        return ShapleyResult(
            split="search",
            models=game.names,
            whole=run.unit.raw(values.of_all),
            baseline=values.base,
            baseline_score=run.unit.raw(values.of_nobody),
            levels=tuple(levels),
            subsets=tuple(values.row(members) for members in game.subsets()),
        )


class _Game:
    """Players, subsets and their soups, for `asks` and for `analyse`."""

    def __init__(self, settings: Shapley, soups: RunSoups) -> None:
        self.soups = soups
        # Names of the models, and the subset of all of them.
        self.names = soups.ingredients
        if settings.over == "candidates":
            self.names = tuple(soups.candidates)
        self.everybody = Members(self.names)

    def in_order(self, members: Members) -> Names:
        """Names of a subset, in the game's order."""
        return tuple(name for name in self.names if name in members)

    def players(self, size: int) -> list[Members]:
        """All players that are `size` models each."""
        return [Members(members) for members in combinations(self.names, size)]

    def subsets(self) -> Iterator[Members]:
        """Every subset of models, the smallest first."""
        for size in range(1, len(self.names) + 1):
            yield from self.players(size)

    def recipe(self, members: Members) -> Recipe:
        """The soup of a subset."""
        return self.soups.recipe(dict.fromkeys(self.in_order(members), 1 / len(members)))


class _Values:
    """Item scores of subsets, and the objective of any linear combination of them."""

    def __init__(self, run: RunScores, game: _Game) -> None:
        """Scores of every subset (NotEstimableError if the soup of one lacks answers)."""
        soups = {members: game.recipe(members).id for members in game.subsets()}
        missing = set(soups.values()) - set(run.search)
        if missing:
            lack = f"{len(missing)} of {len(soups)} subsets lack answers to the search split"
            raise NotEstimableError(f"{lack}: make it again to evaluate the rest")
        self.run = run
        self.game = game
        # Scores of the soup of all, and {subset: scores [I]}.
        self.everybody = run.search[soups[game.everybody]]
        self.scores = {members: run.search[soup].values for members, soup in soups.items()}
        self.of_all = self.objective(self.everybody.values)
        # The empty subset: the base model, or (no name) the mean of the players alone.
        self.base = run.soups.base or ""
        if self.base and run.single(self.base).id in run.search:
            nobody = run.search[run.single(self.base).id].values
        else:
            self.base = ""
            nobody = np.mean([self.scores[single] for single in game.players(1)], axis=0)
        self.scores[Members()] = nobody
        self.of_nobody = self.objective(nobody)

    def row(self, members: Members) -> SubsetValue:
        """A subset with its soup and value."""
        return SubsetValue(
            members=self.game.in_order(members),
            recipe_id=self.game.recipe(members).id,
            value=self.run.unit.raw(self.objective(self.scores[members])),
        )

    def combine(self, coefficients: Coefficients) -> FloatArray:
        """Sum over subsets of coefficient times scores, [I]."""
        total = np.zeros(len(self.everybody.values))
        for members, share in coefficients.items():
            total += share * self.scores[members]
        return total

    def objective(self, values: FloatArray) -> float:
        """Linear objective of scores [I], or of a combination of them."""
        by_category = replace(self.everybody, values=values).by_category()
        weights = self.run.objective.coefficients(tuple(by_category))
        total = 0.0
        for weight, scores in zip(weights, by_category.values(), strict=True):
            total += weight * scores.mean()
        return float(total)

    def player(self, members: Members, values: FloatArray) -> PlayerValue:
        """The Shapley value of a player, from what each item adds to it [I], with its interval and its categories."""
        unit = self.run.unit
        table = ItemTable.of(self.everybody.items, self.run.objective)
        _, low, high = objective_interval(ModelScores(items=table, values=values)).estimate
        value, low, high = unit.raw_estimate(Estimate(self.objective(values), low, high))
        means = {}
        for c, name in enumerate(table.names):
            means[name] = unit.raw(float(values[table.categories == c].mean()))
        names = self.game.in_order(members)
        return PlayerValue(members=names, value=value, low=low, high=high, categories=means)


def _level(game: _Game, values: _Values, size: int) -> ShapleyLevel:
    """Shapley values of the players that are `size` models each (1, 2 or 3).

    They sum to v(all) - v(nobody) over these players, to rounding (`efficiency_gap`).
    """
    # {player: what each item adds to its value [I]}
    value_of = {}
    for player, coefficients in exact_coefficients(game.players(size)).items():
        value_of[player] = values.combine(coefficients)
    gain = values.of_all - values.of_nobody
    gap = abs(sum(map(values.objective, value_of.values())) - gain)
    return ShapleyLevel(
        size=size,
        kind=SUBSET_KINDS[size],
        models=tuple(values.player(player, value) for player, value in value_of.items()),
        efficiency_gap=values.run.unit.size(gap),
    )


def exact_coefficients(players: Sequence[Members]) -> dict[Members, Coefficients]:
    """{player: {subset: coefficient of the subset's value}}, by the formula of the module."""
    n = len(players)
    weights = []  # |S|! (n - |S| - 1)! / n!, for joining a subset S of 0, 1, .. players
    for s in range(n):
        weights.append(math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n))

    coefficients: dict[Members, Coefficients] = {player: {} for player in players}
    # A subset of players stands in v(S + player) - v(S) as S + player if it has the player, else as S.
    for size in range(n + 1):
        for subset in combinations(players, size):
            members = Members().union(*subset)  # the models of these players
            for player, of_player in coefficients.items():
                weight = weights[size - 1] if player in subset else -weights[size]
                of_player[members] = of_player.get(members, 0.0) + weight
    return coefficients


# How it is shown

COLOUR: Mapping[MaybeInt, str] = {
    1: COLOURS["soup"],
    2: COLOURS["best_candidate"],
    3: COLOURS["uniform_selected"],
}


@frozen
class PlayerValue:
    """The Shapley value of a player."""

    members: Names
    """its models"""
    value: MaybeFloat
    """Shapley value"""
    low: MaybeFloat
    """lower limit of the 95 % interval over items"""
    high: MaybeFloat
    """upper limit"""
    categories: NamedNumbers
    """{category: Shapley value}"""

    @property
    def name(self) -> str:
        return " + ".join(map(clean, self.members))

    def cell(self, unit: Unit) -> TableCell:
        """The value, and its interval below it."""
        limits = unit.interval(self.low, self.high, sign=True)
        return TableCell(unit.score(self.value, sign=True), limits)


@frozen
class ShapleyLevel:
    """Models, pairs or triplets."""

    size: MaybeInt
    """models in each"""
    kind: str
    """`single models`, `pairs` or `triplets`"""
    models: tuple[PlayerValue, ...]
    """models, or pairs or triplets of them"""
    efficiency_gap: MaybeFloat
    """how far the values are from summing to the gain of all over the baseline"""

    def table(self, unit: Unit) -> TableGrid:
        """A row for each player."""
        rows = [(player.name, player.cell(unit)) for player in self.models]
        return grid((clean(self.kind), "Shapley value"), rows)

    def by_category(self, unit: Unit) -> TableGrid:
        """A row for each category, a column for each player."""
        rows = []
        for name in self.models[0].categories if self.models else ():
            values = [player.categories.get(name) for player in self.models]
            rows.append((clean(name), *(unit.score(value, sign=True) for value in values)))
        return grid(("category", *(player.name for player in self.models)), rows)


@frozen
class SubsetValue:
    """The score of a subset's soup."""

    members: Names
    """models"""
    recipe_id: str
    """id of the soup's recipe"""
    value: MaybeFloat
    """objective on the search split"""


@frozen
class ShapleyResult(AnalysisResult):
    """What each model adds to soups of the others."""

    folded = True
    split: str
    """split of the items"""
    models: Names
    """single models"""
    whole: MaybeFloat
    """score of the soup of all"""
    baseline: str
    """the base model, to which the values are relative; empty: the mean of the models alone"""
    baseline_score: MaybeFloat
    """score of the baseline"""
    levels: tuple[ShapleyLevel, ...]
    """single models, pairs and triplets"""
    subsets: tuple[SubsetValue, ...]
    """every subset"""

    def section(self, unit: Unit) -> Section:
        """A table of the single models; pairs, triplets and categories are folded away."""
        head = (
            f"What each adds to uniform soups of the others on the search split, in {unit.name}: the mean over orders "
            f"of joining. {self._sum(unit)}"
        )
        title = "Who adds what? Shapley values"
        if not self.levels:
            return Section(title, (head,), "shapley")
        single = self.levels[0]
        folded = [
            Section(clean(level.kind).capitalize(), grids=(level.table(unit),))
            for level in self.levels[1:]
        ]
        folded.append(Section("Category by category", grids=(single.by_category(unit),)))
        return Section(title, (head,), "shapley", (single.table(unit),), tuple(folded))

    def _sum(self, unit: Unit) -> str:
        """What the values are relative to, and what they sum to."""
        score = unit.score(self.whole)
        # A report that was edited may lack the baseline.
        if self.baseline_score is None:
            return f"The values of a table sum to the score of all, {score}."
        baseline = "the mean of the models alone"
        if self.baseline:
            baseline = f"the base model {clean(self.baseline)}"
        gain = None if self.whole is None else self.whole - self.baseline_score
        return (
            f"The values are relative to {baseline} ({unit.score(self.baseline_score)}): those of a table sum to "
            f"{unit.points(gain, sign=True)}, what the soup of all ({score}) is above it."
        )

    def drawings(self, unit: Unit) -> tuple[Drawing, ...]:
        """One bar per player with its interval over items, size by size."""
        from matplotlib.patches import Patch

        rows = list[tuple[ShapleyLevel, PlayerValue]]()
        for level in self.levels:
            if len(level.models) > 1:
                rows.extend((level, player) for player in level.models)
        if not rows:
            return ()
        with canvas():
            plot, axes = figure(8.6, 1.0 + 0.27 * len(rows))
            colours = {}
            for y, (level, player) in enumerate(rows):
                colour = COLOUR.get(level.size, INK)
                colours[clean(level.kind)] = colour
                low = unit.scale * (player.low or 0.0)
                high = unit.scale * (player.high or 0.0)
                axes.barh(y, unit.scale * (player.value or 0.0), height=0.72, color=colour)
                axes.plot([low, high], [y, y], color=INK, linewidth=1.1)
            axes.axvline(0, color=INK, linewidth=0.8)
            below = f"Shapley value, {unit.name} on the search split (95 % interval over items)"
            name_rows(axes, [short(player.name, 48) for _, player in rows], below)
            handles = [Patch(color=colour, label=kind) for kind, colour in colours.items()]
            axes.legend(
                handles=handles,
                loc="lower left",
                bbox_to_anchor=(0, 1.0),
                ncols=3,
                handlelength=1.0,
            )
        values = [f"{player.name} {player.cell(unit).text}" for _, player in rows[:20]]
        alt = f"Bars of Shapley values: {'; '.join(values)}"
        return (Drawing("shapley", plot, alt),)
