"""Shapley values of the ingredients (`shapley`): what each of them adds to soups of the others, on the search fold.

The value v(C) of a coalition C is the objective of the uniform soup of its members (arXiv 2511.13254); the empty
coalition is worth 0. A player's Shapley value is its marginal contribution, averaged over all orders in which the
players may come; the values sum to v(all) (Shapley 1953). Pairs and triplets are players too, worth the soup of all
members.
v is linear in the items' scores, so every category has Shapley values at no further cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval

from souping.analysis import Analysis, Draws, NotEstimableError, RunScores, RunSoups
from souping.analysis.intervals import ItemTable
from souping.core.fields import Seed, component
from souping.core.types import FloatArray, Json, Recipe, elements, entries, number, part
from souping.core.unit import gain, unit
from souping.report.format import clean, count, in_words, interval, score, short
from souping.report.plots import COLOURS, INK, Drawing, canvas, figure, name_rows
from souping.report.sections import DISPLAYS, Display
from souping.report.tables import Row, Section, TableCell, TableGrid, grid

Members = frozenset[str]
"""Models that are together: a player (one, two or three of them) or a coalition of players."""
Coefficients = dict[Members, float]
MOST = 12
"""Players up to which all coalitions may be evaluated: 4,095 soups."""
FREE = 2000
"""Orders that are drawn if every coalition's value is known already."""
SALT = 0x54A9
SIZES = {1: "single models", 2: "pairs", 3: "triplets"}


@component
class Shapley(Analysis):
    """Shapley values of single models, pairs and triplets, and how models interact.

    `players` are the ingredients or all candidates. Up to `exact` players (12 at most) all coalitions are evaluated;
    beyond, those of `permutations` orders, which gives standard errors.
    """

    players: Literal["ingredients", "candidates"] = "ingredients"
    exact: Annotated[int, Interval(ge=1, le=MOST)] = 5
    permutations: Draws = 20
    seed: Seed = 0

    def asks(self, soups: RunSoups) -> tuple[Recipe, ...]:
        game = _Game(self, soups)
        if len(game.names) < 2:
            return ()
        return tuple({recipe.id: recipe for recipe in game.recipes()}.values())

    def analyse(self, run: RunScores) -> dict[str, Json]:
        game = _Game(self, run.soups)
        if len(game.names) < 2:
            raise NotEstimableError("a single model is no game: it takes two players")
        if not run.objective.linear:
            raise NotEstimableError(f"Shapley values need a linear objective, which {run.objective.name} is not")
        values = _Values(run, game)
        return {
            "fold": "search",
            "players": list(game.names),
            "whole": unit().raw(values.worth(game.everybody)),
            "levels": [_level(game, values, size) for size in SIZES if size <= len(game.names)],
            "interactions": _interactions(game, values) if game.complete else [],
            "coalitions": [values.row(members) for members in game.subsets()] if game.complete else [],
        }


class _Game:
    """Players, coalitions and their soups; the same for the plan and for the values."""

    def __init__(self, settings: Shapley, soups: RunSoups) -> None:
        self.settings, self.soups = settings, soups
        self.names = tuple(soups.candidates) if settings.players == "candidates" else soups.ingredients
        self.complete = len(self.names) <= settings.exact
        self.everybody = Members(self.names)
        self._recipes: dict[Members, Recipe] = {}

    def in_order(self, members: Members) -> list[str]:
        return [name for name in self.names if name in members]

    def players(self, size: int) -> list[Members]:
        return [Members(members) for members in combinations(self.names, size)]

    def subsets(self) -> Iterator[Members]:
        """Every coalition of single models, the smallest first."""
        for size in range(1, len(self.names) + 1):
            yield from self.players(size)

    def exact(self, size: int) -> bool:
        """Whether all coalitions of players of this size are gone through."""
        return math.comb(len(self.names), size) <= (MOST if self.complete else self.settings.exact)

    def orders(self, size: int) -> list[list[Members]]:
        """The orders that are drawn if not all coalitions are gone through: the same in plan and analysis."""
        players = self.players(size)
        rng = np.random.default_rng([SALT, self.settings.seed, size])
        number = FREE if self.complete else self.settings.permutations
        return [[players[i] for i in rng.permutation(len(players))] for _ in range(number)]

    def coalitions(self, size: int) -> Iterator[Members]:
        """All coalitions whose values players of this size take."""
        if self.exact(size):
            players = self.players(size)
            yield from (Members().union(*some) for n in range(1, len(players) + 1) for some in combinations(players, n))
            return
        for order in self.orders(size):
            yield from (Members().union(*order[: n + 1]) for n in range(len(order)))

    def recipes(self) -> Iterator[Recipe]:
        """All soups that are needed."""
        if self.complete:
            yield from map(self.recipe, self.subsets())
            return
        for size in (size for size in SIZES if size <= len(self.names)):
            yield from map(self.recipe, self.coalitions(size))

    def recipe(self, members: Members) -> Recipe:
        """The soup of a coalition."""
        if members not in self._recipes:
            self._recipes[members] = self.soups.recipe(dict.fromkeys(self.in_order(members), 1 / len(members)))
        return self._recipes[members]


class _Values:
    """Item scores of coalitions, and the objective of any linear combination of them."""

    def __init__(self, run: RunScores, game: _Game) -> None:
        needed = {recipe.id for recipe in game.recipes()}
        lacking = needed - set(run.search)
        if lacking:
            raise NotEstimableError(
                f"{len(lacking)} of {len(needed)} coalitions have not answered the whole search fold: make this "
                "analysis again to evaluate the rest"
            )
        self.run, self.game = run, game
        self.first = run.search[game.recipe(game.everybody).id]
        self._scores, self._worth = {Members(): 0 * self.first.values}, dict[Members, float]()

    def scores(self, members: Members) -> FloatArray:
        """Scores [I] of a coalition's soup. A recipe's id is a hash of its text: too slow for every coefficient."""
        if members not in self._scores:
            self._scores[members] = self.run.search[self.game.recipe(members).id].values
        return self._scores[members]

    def worth(self, members: Members) -> float:
        """v of a coalition."""
        if members not in self._worth:
            self._worth[members] = self.objective(self.scores(members))
        return self._worth[members]

    def row(self, members: Members) -> dict[str, Json]:
        """A coalition with its soup and value."""
        names, recipe = self.game.in_order(members), self.game.recipe(members)
        return {"members": names, "recipe_id": recipe.id, "value": unit().raw(self.worth(members))}

    def combine(self, coefficients: Coefficients) -> FloatArray:
        """Sum over coalitions of coefficient times scores, [I]."""
        total = np.zeros(len(self.first.values))
        for members, share in coefficients.items():
            if abs(share) > 1e-15:
                total += share * self.scores(members)
        return total

    def objective(self, values: FloatArray) -> float:
        means = replace(self.first, values=values).by_category()
        weights = self.run.objective.coefficients(tuple(means))
        return float(sum(w * v.mean() for w, v in zip(weights, means.values(), strict=True)))

    def summary(self, values: FloatArray) -> dict[str, Json]:
        """Value with its interval over items, and the value of each category."""
        table = ItemTable.of(self.first.items, self.run.objective)
        whole = table.interval(values)
        means = {name: unit().raw(float(values[table.categories == n].mean())) for n, name in enumerate(table.names)}
        limits = {"value": self.objective(values), "low": whole.low, "high": whole.high}
        return {**unit().raw_table(limits), "categories": means}


def _level(game: _Game, values: _Values, size: int) -> dict[str, Json]:
    """The Shapley values of players of one size; they sum to v(all), to rounding (`efficiency_gap`)."""
    players, errors, orders = game.players(size), dict[Members, float](), list[list[Members]]()
    if game.exact(size):
        shares = exact_coefficients(players)
    else:
        orders = game.orders(size)
        shares, errors = _drawn(players, orders, values)
    found = {player: values.combine(shares[player]) for player in players}
    whole = values.worth(game.everybody)
    return {
        "size": size,
        "kind": SIZES[size],
        "method": "permutations" if orders else "all coalitions",
        "orders": len(orders),
        "players": [
            {
                "members": game.in_order(player),
                **values.summary(scores),
                "standard_error": errors.get(player),
            }
            for player, scores in found.items()
        ],
        "efficiency_gap": unit().size(abs(sum(map(values.objective, found.values())) - whole)),
    }


def exact_coefficients(players: Sequence[Members]) -> dict[Members, Coefficients]:
    """Coefficient of every coalition in every player's Shapley value: |S|! (n - |S| - 1)! / n! for joining S."""
    n = len(players)
    weigh = [math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n) for s in range(n)]
    shares: dict[Members, Coefficients] = {player: {} for player in players}
    for size in range(n + 1):
        for coalition in combinations(players, size):
            inside, members = set(coalition), Members().union(*coalition)
            for player, own in shares.items():
                own[members] = own.get(members, 0.0) + (weigh[size - 1] if player in inside else -weigh[size])
    return shares


def _drawn(
    players: Sequence[Members], orders: Sequence[Sequence[Members]], values: _Values
) -> tuple[dict[Members, Coefficients], dict[Members, float]]:
    """Coefficients and standard errors from drawn orders (Castro, Gomez and Tejada 2009).

    A value is the mean over orders of what the player adds when it comes.
    """
    shares: dict[Members, Coefficients] = {player: {} for player in players}
    added: dict[Members, list[float]] = {player: [] for player in players}
    for order in orders:
        before = Members()
        for player in order:
            after, own = before | player, shares[player]
            own[after] = own.get(after, 0.0) + 1 / len(orders)
            own[before] = own.get(before, 0.0) - 1 / len(orders)
            added[player].append(values.worth(after) - values.worth(before))
            before = after
    errors = {player: float(np.std(gains, ddof=1) / math.sqrt(len(orders))) for player, gains in added.items()}
    return shares, {player: unit().size(error) for player, error in errors.items()}


def _interactions(game: _Game, values: _Values) -> list[Mapping[str, Json]]:
    """Shapley interaction index (Grabisch and Roubens 1999) of every pair and triplet of models.

    The sum over coalitions S of the others of (n - s - t)! s! / (n - t + 1)! times the discrete derivative of v at S:
    above 0 the models complement each other, below 0 they overlap.
    """
    n, rows = len(game.names), list[Mapping[str, Json]]()
    for t in (2, 3):
        for together in combinations(game.names, t) if n >= t else ():
            shares: Coefficients = {}
            others = [name for name in game.names if name not in together]
            for s in range(len(others) + 1):
                weigh = math.factorial(n - s - t) * math.factorial(s) / math.factorial(n - t + 1)
                for rest in combinations(others, s):
                    for inner, sign in _signed(together):
                        members = Members((*rest, *inner))
                        shares[members] = shares.get(members, 0.0) + sign * weigh
            rows.append({"members": list(together), **values.summary(values.combine(shares))})
    return rows


def _signed(together: Sequence[str]) -> Iterable[tuple[tuple[str, ...], int]]:
    """Every part of a set with the sign of its value in the discrete derivative."""
    for size in range(len(together) + 1):
        for inner in combinations(together, size):
            yield inner, (-1) ** (len(together) - size)


# How it is shown

COLOUR = {1: COLOURS["soup"], 2: COLOURS["best_single"], 3: COLOURS["uniform_selected"]}


def section(data: Row) -> Section:
    levels = entries(data, "levels")
    head = (
        f"What each adds to the others on the search fold, in {unit().name}, on average over all orders of joining: a "
        "coalition is worth the score of the uniform soup of its members. The values of a table sum to the score of "
        f"all, {score(data.get('whole'))}. The search fold chose the weights: this explains the soup, and proves "
        "nothing."
    )
    lines, drawn = [head], [level for level in levels if level.get("method") == "permutations"]
    if drawn:
        kinds, orders = in_words([level.get("kind") for level in drawn]), count(drawn[0].get("orders"))
        lines.append(f"{kinds}: from {orders} drawn orders, with standard errors of the draw.")
    tables = [Section(clean(level.get("kind")).capitalize(), grids=(_table(level),)) for level in levels]
    folded = tables[1:]
    if pairs := entries(data, "interactions"):
        side = unit().better_side.lower()
        meaning = (
            f"Shapley interaction index, {unit().name}: to the {side} of 0 two models are worth more together, "
            "on the other side they overlap."
        )
        rows = [(_name(row), _value(row)) for row in pairs]
        folded.append(Section("Interactions", (meaning,), grids=(grid(("models", "interaction"), rows),)))
    folded += [Section("Category by category", grids=(_categories(level),)) for level in levels[:1]]
    shown = tuple(table.grids[0] for table in tables[:1])
    return Section("Who adds what? Shapley values", tuple(lines), "shapley", shown, tuple(folded))


def _name(row: Row) -> str:
    return " + ".join(map(clean, elements(row, "members")))


def _table(level: Row) -> TableGrid:
    rows, drawn = entries(level, "players"), level.get("method") == "permutations"
    lines: list[list[str | TableCell]] = [
        [_name(row), _value(row), *([score(row.get("standard_error"))] if drawn else [])] for row in rows
    ]
    header = (clean(level.get("kind")), "Shapley value", *(["standard error of the orders"] if drawn else []))
    return grid(header, lines)


def _value(row: Row) -> TableCell:
    return TableCell(score(row.get("value"), sign=True), interval(row.get("low"), row.get("high"), sign=True))


def _categories(level: Row) -> TableGrid:
    rows = entries(level, "players")
    names = list(part(rows[0], "categories")) if rows else []
    lines = [(clean(name), *(score(part(row, "categories").get(name), sign=True) for row in rows)) for name in names]
    return grid(("category", *map(_name, rows)), lines)


def draw(data: Row) -> Drawing | None:
    """One bar per player with its interval over items, size by size."""
    from matplotlib.patches import Patch

    levels = [level for level in entries(data, "levels") if len(entries(level, "players")) > 1]
    rows = [(int(number(level.get("size")) or 1), row) for level in levels for row in _best(level)]
    if not rows:
        return None
    with canvas():
        made, axes = figure(8.6, 1.0 + 0.27 * len(rows))
        for y, (size, row) in enumerate(rows):
            value, low, high = (unit().scale * (number(row.get(key)) or 0.0) for key in ("value", "low", "high"))
            axes.barh(y, value, height=0.72, color=COLOUR[size])
            axes.plot([low, high], [y, y], color=INK, linewidth=1.1)
        axes.axvline(0, color=INK, linewidth=0.8)
        below = f"Shapley value, {unit().name} on the search fold (95 % interval over items)"
        name_rows(axes, [short(_name(row), 48) for _, row in rows], below)
        handles = [Patch(color=COLOUR[size], label=SIZES[size]) for size in dict(rows)]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, handlelength=1.0)
    alt = "Bars of Shapley values: " + "; ".join(f"{_name(row)} {_value(row).text}" for _, row in rows[:20])
    return Drawing("shapley", made, alt)


def _best(level: Row, limit: int = 10) -> list[Row]:
    """The players of a size in their order; of many, those worth most."""
    rows = entries(level, "players")
    return rows if len(rows) <= limit else sorted(rows, key=lambda row: -gain(row.get("value")))[:limit]


DISPLAYS["shapley"] = Display(section, (draw,), place=2)
