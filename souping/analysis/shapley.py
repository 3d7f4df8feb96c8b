"""Shapley values of the ingredients (`shapley`): what each of them adds to soups of the others, on the search fold.

The value v(C) of a coalition C is the objective of its soup: the uniform one of its members (arXiv 2511.13254), or with
`value=winner` the base model plus the coalition's part of the winner's weights, which explains the soup that is
written. A player's Shapley value is its marginal contribution, averaged over all orders in which the players may come;
the values sum to v(all) - v(nobody) (Shapley 1953). Pairs and triplets are players too. v is linear in the items'
scores, so that every item and category has Shapley values of its own, for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval

from souping.analysis import Analysis, Base, Draws, NotEstimableError, RunScores, RunSoups
from souping.analysis.intervals import ItemTable, objective_interval
from souping.core.fields import Seed, component
from souping.core.types import FloatArray, ItemScores, Json, Recipe, UserError, elements, entries, number, part, texts
from souping.report.drawing import COLOURS, INK, Drawing, canvas, figure
from souping.report.format import clean, count, in_words, interval, percent, short
from souping.report.registry import register
from souping.report.tables import Row, Section, TableCell, TableGrid, grid

Members = frozenset[str]
Coalition = tuple[Members, ...]
"""Players that are together: each is a set of models, of one, two or three."""
Coefficients = dict[Coalition, float]
MOST = 12
"""Players up to which all coalitions may be asked: 4,095 soups."""
FREE = 2000
"""Orders that are drawn where every coalition's value is known already."""
SALT = 0x54A9
SIZES = {1: "single models", 2: "pairs", 3: "triplets"}


@component
class Shapley(Analysis):
    """Shapley values of single models, pairs and triplets, and how models interact.

    `players` are the ingredients or all candidates. Up to `exact` players (12 at most) all coalitions are asked;
    beyond, those of `permutations` orders, which gives standard errors. Pairs and triplets are worth the soup of their
    members' `union`, or the soup of their `soups`. `empty` names the model whose score v(nobody) is: the base model
    where there is one (`base`), else 0 (`zero`).
    """

    value: Literal["uniform", "winner"] = "uniform"
    players: Literal["ingredients", "candidates"] = "ingredients"
    exact: Annotated[int, Interval(ge=1, le=MOST)] = 5
    permutations: Draws = 20
    groups: Literal["union", "soups"] = "union"
    empty: Literal["base", "zero"] = "base"
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.value == "winner" and (self.players, self.groups, self.empty) != ("ingredients", "union", "base"):
            raise UserError("shapley.value=winner takes the winner's weights: leave players, groups and empty out")

    @property
    def base(self) -> Base:
        if self.value == "winner":
            return "required"
        return "wanted" if self.empty == "base" else "unused"

    def asks(self, soups: RunSoups) -> tuple[Recipe, ...]:
        game = _Game(self, soups)
        if game.trouble:
            return ()
        return tuple({recipe.id: recipe for recipe in game.recipes()}.values())

    def analyse(self, run: RunScores) -> dict[str, Json]:
        game = _Game(self, run.soups)
        if game.trouble:
            raise NotEstimableError(game.trouble)
        values = _Values.of(run, game)
        levels = [_level(game, values, size) for size in game.sizes()]
        return {
            "fold": "search",
            "value": self.value,
            "groups": self.groups,
            "players": list(game.names),
            "empty": {"of": game.nobody or "nothing", "value": values.objective(values.empty)},
            "whole": values.objective(values.of_coalition(game.everybody)),
            "levels": [level.as_dict(values) for level in levels],
            "interactions": _interactions(game, values) if game.known else [],
            "coalitions": [values.row(members) for members in game.subsets()] if game.known else [],
            "items": _by_item(levels[0], values),
        }


class _Game:
    """Players, coalitions and their soups; the same for the price and for the values."""

    def __init__(self, settings: Shapley, soups: RunSoups) -> None:
        self.settings, self.soups = settings, soups
        self.weights = self._winner_weights()
        own = tuple(self.weights) if settings.value == "winner" else soups.ingredients
        self.names = tuple(soups.candidates) if settings.players == "candidates" else own
        self.known = len(self.names) <= settings.exact and settings.groups == "union"
        self._recipes: dict[Coalition, Recipe] = {}
        self.everybody: Coalition = tuple(frozenset([name]) for name in self.names)

    def _winner_weights(self) -> dict[str, float]:
        """The winner's weights by ingredient; a winner that a plan does not know yet has equal ones."""
        soup, names = self.soups.soup, self.soups.ingredients
        if not set(soup.ingredients) <= set(names):
            return dict.fromkeys(names, 1 / len(names))
        return dict(zip(soup.ingredients, soup.weights, strict=True))

    @property
    def trouble(self) -> str:
        """Why there is nothing to play for; empty where there is."""
        if len(self.names) < 2:
            return "a single model is no game: it takes two players"
        if self.settings.value == "winner" and not self.soups.base:
            return "shapley.value=winner needs the base model as full weights beside full models: merge.base=FOLDER"
        if self.settings.value == "winner" and self.soups.soup.method not in ("linear", "task_arithmetic"):
            return (
                f"shapley.value=winner is of soups that sum differences to the base, not {self.soups.soup.method} ones"
            )
        return ""

    @property
    def nobody(self) -> str:
        """Model whose score v(nobody) is, by name; empty for 0."""
        return self.soups.base if self.settings.empty == "base" else ""

    def sizes(self) -> list[int]:
        """Sizes of the players: single models, pairs, triplets; one that is everybody has all the value."""
        return [size for size in SIZES if size <= len(self.names)]

    def in_order(self, members: Members) -> list[str]:
        return [name for name in self.names if name in members]

    def players(self, size: int) -> list[Members]:
        return [frozenset(members) for members in combinations(self.names, size)]

    def subsets(self) -> Iterator[Members]:
        """Every coalition of single models, the smallest first."""
        for size in range(1, len(self.names) + 1):
            yield from map(frozenset, combinations(self.names, size))

    def exact(self, size: int) -> bool:
        """Whether all coalitions of players of this size are gone through."""
        number = math.comb(len(self.names), size)
        return number <= (MOST if self.known else self.settings.exact)

    def orders(self, size: int) -> list[list[Members]]:
        """The orders that are drawn where not all coalitions are gone through: the same in price and analysis."""
        players = self.players(size)
        rng = np.random.default_rng([SALT, self.settings.seed, size])
        number = FREE if self.known else self.settings.permutations
        return [[players[i] for i in rng.permutation(len(players))] for _ in range(number)]

    def coalitions(self, size: int) -> Iterator[Coalition]:
        """All coalitions whose values players of this size take."""
        players = self.players(size)
        if self.exact(size):
            for number in range(1, len(players) + 1):
                yield from combinations(players, number)
            return
        for order in self.orders(size):
            yield from (tuple(order[: n + 1]) for n in range(len(order)))

    def recipes(self) -> Iterator[Recipe]:
        """All soups that are asked for, with the model of v(nobody)."""
        if self.nobody:
            yield self.soups.recipe({self.nobody: 1.0})
        if self.known:
            yield from (self.recipe((members,)) for members in self.subsets())
            return
        for size in self.sizes():
            yield from (self.recipe(coalition) for coalition in self.coalitions(size))

    def recipe(self, coalition: Coalition) -> Recipe:
        """The soup of a coalition."""
        key = self.key(coalition)
        if key not in self._recipes:
            shares = self._shares(coalition)
            whole = shares == self.weights and self.settings.value == "winner"
            winner = whole and len(self.soups.soup.ingredients) > 1
            self._recipes[key] = self.soups.soup if winner else self.soups.recipe(shares)
        return self._recipes[key]

    def _shares(self, coalition: Coalition) -> dict[str, float]:
        union = frozenset[str]().union(*coalition)
        members = [name for name in self.names if name in union]
        if self.settings.value == "winner":
            return self._part(members)
        if self.settings.groups == "union":
            return dict.fromkeys(members, 1 / len(members))
        counts = {name: sum(name in player for player in coalition) for name in members}
        return {name: counts[name] / sum(counts.values()) for name in members}

    def _part(self, members: Sequence[str]) -> dict[str, float]:
        """The members' part of the winner's weights; what is left is the base model's."""
        part = {name: self.weights[name] for name in members}
        if len(part) == len(self.weights) or self.soups.soup.method == "task_arithmetic":
            return part
        left = sum(self.weights.values()) - sum(part.values())
        return {**part, self.soups.base: part.get(self.soups.base, 0.0) + left}

    def key(self, coalition: Coalition) -> Coalition:
        """What decides a coalition's soup: the union of its members, or how often each of them is in it."""
        union = frozenset[str]().union(*coalition)
        return (union,) if self.settings.groups == "union" else tuple(sorted(coalition, key=sorted))


@dataclass(frozen=True, kw_only=True)
class _Values:
    """Item scores of coalitions, and the objective of any linear combination of them."""

    game: _Game
    run: RunScores
    empty: FloatArray
    first: ItemScores
    known: dict[Coalition, FloatArray] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunScores, game: _Game) -> _Values:
        wanted = {recipe.id for recipe in game.recipes()}
        lacking = wanted - set(run.search)
        if lacking:
            raise NotEstimableError(
                f"{len(lacking)} of {len(wanted)} coalitions have not answered the whole search fold: make this "
                "analysis again, which takes what is stored and asks the rest"
            )
        first = run.search[game.recipe(game.everybody).id]
        nobody = run.search[game.soups.recipe({game.nobody: 1.0}).id].values if game.nobody else 0 * first.values
        return cls(game=game, run=run, empty=nobody, first=first)

    def of_coalition(self, coalition: Coalition) -> FloatArray:
        """Scores [I] of a coalition's soup."""
        if not coalition:
            return self.empty
        if coalition not in self.known:  # a recipe's id is a hash of its text: too dear for every coefficient
            self.known[coalition] = self.run.search[self.game.recipe(coalition).id].values
        return self.known[coalition]

    def row(self, members: Members) -> dict[str, Json]:
        """A coalition with its soup and value."""
        worth = self.objective(self.of_coalition((members,)))
        return {"members": self.game.in_order(members), "recipe_id": self.game.recipe((members,)).id, "value": worth}

    def combine(self, coefficients: Mapping[Coalition, float]) -> FloatArray:
        """Sum over coalitions of coefficient times scores, [I]; coalitions of one soup are put together first."""
        together = dict[Coalition, float]()
        for coalition, share in coefficients.items():
            key = self.game.key(coalition) if coalition else ()
            together[key] = together.get(key, 0.0) + share
        total = np.zeros(len(self.empty))
        for key, share in together.items():
            if abs(share) > 1e-15:
                total += share * self.of_coalition(key)
        return total

    def objective(self, values: FloatArray) -> float:
        means = replace(self.first, values=values).by_category()
        weights = self.run.objective.coefficients(tuple(means))
        return float(sum(w * v.mean() for w, v in zip(weights, means.values(), strict=True)))

    def told(self, values: FloatArray) -> dict[str, Json]:
        """Value with its interval over items, and the value of each category."""
        table = ItemTable.of(self.first.items, self.run.objective)
        whole = objective_interval(values, table.categories, table.groups, table.coefficients)
        means = {name: float(values[table.categories == n].mean()) for n, name in enumerate(table.names)}
        return {"value": self.objective(values), "low": whole.low, "high": whole.high, "categories": means}


@dataclass(frozen=True, kw_only=True)
class _Level:
    """Shapley values by item of players of one size, {player: [I]}; `errors` where orders were drawn."""

    size: int
    exact: bool
    orders: int
    values: Mapping[Members, FloatArray]
    errors: Mapping[Members, float]
    gap: float

    def as_dict(self, values: _Values) -> dict[str, Json]:
        rows = [
            {"members": values.game.in_order(player), **values.told(own), "standard_error": self.errors.get(player)}
            for player, own in self.values.items()
        ]
        return {
            "size": self.size,
            "kind": SIZES[self.size],
            "method": "all coalitions" if self.exact else "permutations",
            "orders": self.orders,
            "players": rows,
            "efficiency_gap": self.gap,
        }


def _level(game: _Game, values: _Values, size: int) -> _Level:
    """The Shapley values of players of one size; they sum to v(all) - v(nobody), to rounding (`gap`)."""
    players = game.players(size)
    if game.exact(size):
        shares = exact_coefficients(players)
        found = {player: values.combine(shares[player]) for player in players}
        errors, orders = dict[Members, float](), 0
    else:
        drawn = game.orders(size)
        found, errors = _drawn(players, drawn, values)
        orders = len(drawn)
    whole = values.objective(values.of_coalition(tuple(players))) - values.objective(values.empty)
    gap = abs(sum(values.objective(own) for own in found.values()) - whole)
    return _Level(size=size, exact=not orders, orders=orders, values=found, errors=errors, gap=gap)


def exact_coefficients(players: Sequence[Members]) -> dict[Members, Coefficients]:
    """Coefficient of every coalition in every player's Shapley value: |S|! (n - |S| - 1)! / n! for joining S."""
    n = len(players)
    weigh = [math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n) for s in range(n)]
    shares: dict[Members, Coefficients] = {player: {} for player in players}
    for size in range(n + 1):
        for coalition in combinations(players, size):
            inside = set(coalition)
            for player in players:
                shares[player][coalition] = weigh[size - 1] if player in inside else -weigh[size]
    return shares


def _drawn(
    players: Sequence[Members], orders: Sequence[Sequence[Members]], values: _Values
) -> tuple[dict[Members, FloatArray], dict[Members, float]]:
    """Values [I] by item and standard errors from drawn orders (Castro, Gomez and Tejada 2009).

    A value is the mean over orders of what the player adds when it comes. Orders are walked once, by what decides a
    coalition's soup: the same few soups come again and again.
    """
    shares: dict[Members, Coefficients] = {player: {} for player in players}
    added: dict[Members, list[float]] = {player: [] for player in players}
    worth = _Worth(values)
    for order in orders:
        before: Coalition = ()
        for player in order:
            after, own = values.game.key((*before, player)), shares[player]
            own[after] = own.get(after, 0.0) + 1 / len(orders)
            own[before] = own.get(before, 0.0) - 1 / len(orders)
            added[player].append(worth(after) - worth(before))
            before = after
    found = {player: values.combine(own) for player, own in shares.items()}
    return found, {player: float(np.std(gains, ddof=1) / math.sqrt(len(orders))) for player, gains in added.items()}


class _Worth:
    """v as a number, computed once a soup; soups are told by their coalitions' keys."""

    def __init__(self, values: _Values) -> None:
        self._values, self._known = values, dict[Coalition, float]()

    def __call__(self, key: Coalition) -> float:
        if key not in self._known:
            self._known[key] = self._values.objective(self._values.of_coalition(key))
        return self._known[key]


def _interactions(game: _Game, values: _Values) -> list[Mapping[str, Json]]:
    """Shapley interaction index (Grabisch and Roubens 1999) of every pair and triplet of models.

    The sum over coalitions S of the others of (n - s - t)! s! / (n - t + 1)! times the discrete derivative of v at S:
    above 0 the models complement each other, below 0 they stand for one another.
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
                        members = frozenset((*rest, *inner))
                        key: Coalition = (members,) if members else ()
                        shares[key] = shares.get(key, 0.0) + sign * weigh
            rows.append({"members": list(together), **values.told(values.combine(shares))})
    return rows


def _signed(together: Sequence[str]) -> Iterable[tuple[tuple[str, ...], int]]:
    """Every part of a set with the sign of its value in the discrete derivative."""
    for size in range(len(together) + 1):
        for inner in combinations(together, size):
            yield inner, (-1) ** (len(together) - size)


def _by_item(level: _Level, values: _Values) -> dict[str, Json]:
    """Every item's Shapley values of the single models, in the items' order."""
    own = {"+".join(values.game.in_order(player)): np.round(v, 9).tolist() for player, v in level.values.items()}
    return {"ids": [item.id for item in values.first.items], "values": own}


# How it is shown

COLOUR = {1: COLOURS["soup"], 2: COLOURS["best_single"], 3: COLOURS["uniform_selected"]}
WORTH = {
    "uniform": "the uniform soup of its members",
    "winner": "the base model with its members' part of the winner's weights",
}


def section(data: Row) -> Section:
    empty, levels = part(data, "empty"), entries(data, "levels")
    soup = WORTH.get(clean(data.get("value")), "")
    head = (
        f"What each adds to the others on the search fold, in points, on the average over all orders of joining: a "
        f"coalition is worth the score of {soup}. The values of a table sum to v(all) {percent(data.get('whole'))} "
        f"less v(nobody) {percent(empty.get('value'))}, the score of {clean(empty.get('of'))}; another v(nobody) would "
        "shift all values of a table alike. The search fold chose the weights: this explains the soup, and proves "
        "nothing."
    )
    lines, drawn = [head], [level for level in levels if clean(level.get("method")) == "permutations"]
    if drawn:
        kinds, orders = in_words([level.get("kind") for level in drawn]), count(drawn[0].get("orders"))
        lines.append(f"{kinds}: from {orders} drawn orders, with standard errors of the draw.")
    tables = [(clean(level.get("kind")).capitalize(), _table(level)) for level in levels]
    folded = [Section(title, grids=(table,)) for title, table in tables[1:]]
    if pairs := entries(data, "interactions"):
        meaning = "Shapley interaction index, points: above 0 two models are worth more together, below 0 they overlap."
        rows = [(_name(elements(row, "members")), _value(row)) for row in pairs]
        folded.append(Section("Interactions", (meaning,), grids=(grid(("models", "interaction"), rows),)))
    if levels:
        folded.append(Section("Category by category", grids=(_categories(levels[0]),)))
    shown = tuple(table for _, table in tables[:1])
    return Section("Who adds what? Shapley values", tuple(lines), "shapley", shown, tuple(folded))


def _name(members: Sequence[Json]) -> str:
    return " + ".join(clean(name) for name in members)


def _table(level: Row) -> TableGrid:
    rows = entries(level, "players")
    drawn = any(number(row.get("standard_error")) is not None for row in rows)
    lines: list[list[str | TableCell]] = [
        [_name(elements(row, "members")), _value(row), *([percent(row.get("standard_error"))] if drawn else [])]
        for row in rows
    ]
    header = (clean(level.get("kind")), "Shapley value", *(["standard error of the orders"] if drawn else []))
    return grid(header, lines)


def _value(row: Row) -> TableCell:
    return TableCell(percent(row.get("value"), sign=True), interval(row.get("low"), row.get("high"), sign=True))


def _categories(level: Row) -> TableGrid:
    rows = entries(level, "players")
    names = list(part(rows[0], "categories")) if rows else []
    lines = [(clean(name), *(percent(part(row, "categories").get(name), sign=True) for row in rows)) for name in names]
    return grid(("category", *(_name(elements(row, "members")) for row in rows)), lines)


def draw(data: Row) -> Drawing | None:
    """A bar a player with its interval over items, size by size."""
    from matplotlib.patches import Patch

    levels = [level for level in entries(data, "levels") if len(entries(level, "players")) > 1]
    rows = [(int(number(level.get("size")) or 1), row) for level in levels for row in _best(level)]
    if not rows:
        return None
    titles: dict[str, str] = {}
    with canvas():
        made, axes = figure(8.6, 1.0 + 0.27 * len(rows))
        for y, (size, row) in enumerate(rows):
            value = 100 * (number(row.get("value")) or 0.0)
            axes.barh(y, value, height=0.72, color=COLOUR[size])[0].set_gid(f"player{y}")
            ends = [number(row.get("low")), number(row.get("high"))]
            if None not in ends:
                axes.plot([100 * (end or 0.0) for end in ends], [y, y], color=INK, linewidth=1.1)
            around = interval(row.get("low"), row.get("high"), sign=True)
            titles[f"player{y}"] = f"{_name(texts(row, 'members'))}: {percent(row.get('value'), sign=True)} ({around})"
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [short(_name(texts(row, "members")), 48) for _, row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("Shapley value, points on the search fold (95 % interval over items)")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        kinds = {int(number(level.get("size")) or 1): clean(level.get("kind")) for level in levels}
        handles = [Patch(color=COLOUR[size], label=kind) for size, kind in kinds.items()]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, handlelength=1.0)
    alt = "Bars of Shapley values: " + "; ".join(list(titles.values())[:20])
    return Drawing("shapley", made, alt, "", titles)


def _best(level: Row, limit: int = 10) -> list[Row]:
    """The players of a size in their order; of many, those worth most."""
    rows = entries(level, "players")
    return rows if len(rows) <= limit else sorted(rows, key=lambda row: -(number(row.get("value")) or 0.0))[:limit]


register("shapley", section, (draw,), place=2)
