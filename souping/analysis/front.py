"""Front of several goals (`pareto`): the soups that no other beats in all of them, by the posterior of the search.

Goals are linear functionals of the category posteriors of the search's surrogate, which is fitted to all answers on the
search fold; the lengths of answers have a second one, as guards do. The report fold is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from souping.analysis.guards import TOKENS, Guard, Limit, resolve
from souping.analysis.intervals import ItemTable
from souping.analysis.surface import FITTED, fitted
from souping.core.fields import pick
from souping.core.types import BoolArray, FloatArray, Item, Json, UserError, Weights, elements, entries, part, texts
from souping.report.format import clean, count, in_words, interval, percent, short, weight
from souping.report.plots import COLOURS, FAINT, Drawing, canvas, figure, ring
from souping.report.sections import DISPLAYS, Display
from souping.report.tables import Row, Section, TableCell, grid

NAME, CONFIRMED, DRAWS, LISTED = "front", 3, 400, 15
"""Key under `analyses`, points that answer the whole search fold, draws of the posterior, and points in the table."""


@dataclass(frozen=True, kw_only=True)
class Goals:
    """`pareto` and `pick` as written: the names of goals, and the weights of the sum that is written."""

    names: tuple[str, ...] = ()
    pick: Mapping[str, float] | None = None


def read_goals(pareto: Json, weights: Json) -> Goals:
    """The root keys `pareto` and `pick`, the weights.

    Raises:
        UserError: there are fewer than two goals, or `pick` names another or holds no weights.
    """
    if pareto is None and weights is None:
        return Goals()
    names = tuple(map(str, pareto)) if isinstance(pareto, Sequence) and not isinstance(pareto, str) else ()
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise UserError(f"pareto={pareto!r:.60} needs two goals or more, each once, as in pareto=[math,safety]")
    if weights is None:
        return Goals(names=names)
    table = dict(weights) if isinstance(weights, Mapping) else {}
    for name in table:
        pick(str(name), names, "pick: goal")
    numbers = [v if isinstance(v, int | float) and not isinstance(v, bool) else -1.0 for v in table.values()]
    if not numbers or not min(numbers) >= 0 or not 0 < sum(numbers) < np.inf:
        raise UserError(f"pick={weights!r:.60} needs a weight of 0 or more for a goal, one of them above 0")
    return Goals(names=names, pick={str(n): v / sum(numbers) for n, v in zip(table, numbers, strict=True)})


def resolve_goals(
    goals: Goals, categories: Sequence[str], groups: Mapping[str, Sequence[str]], extra: Sequence[str]
) -> tuple[Guard, ...]:
    """What the names of goals stand for; their items are pooled as those of a guard are.

    Raises:
        UserError: a name is no category, group or `tokens`.
    """
    if beside := [name for name in goals.names if name in extra and name not in categories]:
        raise UserError(
            f"pareto={beside[0]}: the search does not see extra benchmarks: use guard={{{beside[0]}: POINTS}}"
        )
    return resolve([Limit(name=name, amount=1.0) for name in goals.names], categories, groups, (), "pareto")


@dataclass(frozen=True, kw_only=True)
class Front:
    """Points [S, K] with each goal's posterior mean and 95 % band [S, G], and the odds [S] of being on it.

    Higher is better: scores are fractions of 1, lengths minus a multiple of `unit` tokens. `on` [S] marks the front of
    the means, `whole` [S] the points that answered all items, `known` those that answered any.
    """

    goals: tuple[Guard, ...]
    points: FloatArray
    means: FloatArray
    low: FloatArray
    high: FloatArray
    odds: FloatArray
    on: BoolArray
    whole: BoolArray
    known: int
    unit: float

    @classmethod
    def of(
        cls,
        goals: tuple[Guard, ...],
        items: Sequence[Item],
        fold: ItemTable,
        points: Sequence[Weights],
        scores: Mapping[Weights, FloatArray],
        lengths: Mapping[Weights, FloatArray],
    ) -> Front:
        """From the scores and lengths [I] of soups, nan where they did not answer."""
        every, blank = list(dict.fromkeys([*scores, *points]))[:FITTED], np.full(len(items), np.nan)
        table, values = np.array(every), np.array([scores.get(point, blank) for point in every])
        unit = max((float(np.nanmean(row)) for row in lengths.values()), default=0.0) or 1.0
        tokens = np.array([lengths.get(point, blank) for point in every]) / unit
        flat = np.ones(len(fold.names))
        models = {False: fitted(table, values, fold.categories, flat)}
        if any(goal.lengths for goal in goals):
            models[True] = fitted(table, tokens, fold.categories, flat, 0.0)
        drawn = {kind: model.samples(DRAWS, max(1.0, model.surprise())) for kind, model in models.items()}
        middle = {
            kind: np.stack([model.posterior(c)[0] for c in range(len(flat))], -1) for kind, model in models.items()
        }
        shares = [np.bincount(fold.categories, goal.covers(items), len(flat)) for goal in goals]
        sides = [
            (-1.0 if goal.lengths else 1.0) * share / share.sum() for goal, share in zip(goals, shares, strict=True)
        ]
        kinds = [goal.lengths for goal in goals]
        means, draws = (
            np.stack([source[kind] @ side for kind, side in zip(kinds, sides, strict=True)], -1)
            for source in (middle, drawn)
        )
        low, high = np.quantile(draws, (0.025, 0.975), axis=0)
        return cls(
            goals=goals,
            points=table,
            means=means,
            low=low,
            high=high,
            odds=np.mean([undominated(draw) for draw in draws], axis=0),
            on=undominated(means),
            whole=np.isfinite(values).all(1),
            known=len(scores),
            unit=unit,
        )

    def total(self, pick: Mapping[str, float]) -> FloatArray:
        """The weighted sum of the goals [S]."""
        return np.asarray(self.means @ np.array([pick.get(goal.name, 0.0) for goal in self.goals]))

    def candidates(self, pick: Mapping[str, float] | None) -> list[Weights]:
        """Points of the front to be confirmed: the best by `pick`, else the middle and the best of each goal."""
        on = np.flatnonzero(self.on)
        if pick is not None:
            order = on[np.argsort(-self.total(pick)[on], kind="stable")]
        else:
            spread = self.means[on] - self.means[on].min(0)
            spread = spread / np.maximum(spread.max(0), 1e-12)
            order = on[[int(spread.sum(1).argmax()), *map(int, spread.argmax(0))]]
        return [tuple(map(float, self.points[n])) for n in dict.fromkeys(order.tolist())][:CONFIRMED]

    def by_pick(self, pick: Mapping[str, float]) -> list[Weights]:
        """The points that answered the whole fold, those with the largest sum first."""
        whole = np.flatnonzero(self.whole)
        return [tuple(map(float, self.points[n])) for n in whole[np.argsort(-self.total(pick)[whole], kind="stable")]]

    def as_dict(self, names: Sequence[str], chosen: Mapping[str, float], goals: Goals) -> dict[str, Json]:
        """What report.json keeps; lengths are mean tokens."""
        order = np.flatnonzero(self.on)[np.argsort(self.means[self.on, 0], kind="stable")]
        point = np.array([chosen.get(name, 0.0) for name in names])
        nearest = int(np.abs(self.points - point).sum(1).argmin())
        return {
            "fold": "search",
            "goals": [goal.name for goal in self.goals],
            "ingredients": list(names),
            "soups": self.known,
            "pick": None if goals.pick is None else dict(goals.pick),
            "points": [self._row(int(n)) for n in order],
            "chosen": self._row(nearest),
            "rest": [[*self._shown(self.means[n]).values()] for n in np.flatnonzero(~self.on)],
        }

    def _row(self, n: int) -> dict[str, Json]:
        low, high = self._shown(self.low[n]), self._shown(self.high[n])
        lengths = [goal.name for goal in self.goals if goal.lengths]
        return {
            "weights": [round(float(share), 9) for share in self.points[n]],
            "means": self._shown(self.means[n]),
            "low": {name: (high if name in lengths else low)[name] for name in low},
            "high": {name: (low if name in lengths else high)[name] for name in high},
            "probability": round(float(self.odds[n]), 4),
            "confirmed": bool(self.whole[n]),
        }

    def _shown(self, row: FloatArray) -> dict[str, Json]:
        return {
            goal.name: round(float(-value * self.unit if goal.lengths else value), 6)
            for goal, value in zip(self.goals, row, strict=True)
        }


def undominated(values: FloatArray) -> BoolArray:
    """Which rows [S, G] no other beats: it would be as good in every goal and better in one."""
    beats = (values[:, None] >= values).all(-1) & (values[:, None] > values).any(-1)
    return np.asarray(~beats.any(0))


# How it is shown


def section(data: Row) -> Section:
    goals, points = texts(data, "goals"), entries(data, "points")
    lines = [
        f"{count(len(points))} of the points that the search's model knows are beaten by none in {in_words(goals)}, by "
        f"its posterior means from {count(data.get('soups'))} soups; with 95 % bands and the probability that each is "
        "on the true front. Confirmed points answered the whole search fold; the report fold was opened for the chosen "
        "soup alone."
    ]
    if sums := part(data, "pick"):
        what = " + ".join(f"{value:.3g} {clean(name)}" for name, value in sums.items())
        lines.append(f"The written soup is the confirmed point with the largest {what}.")
    lines += [f"{count(len(points) - LISTED)} more points are in report.json."] * (len(points) > LISTED)
    step = max(1, -(-len(points) // LISTED))
    shown = [row for n, row in enumerate(points) if n % step == 0 or row.get("confirmed")][: LISTED + CONFIRMED]
    rows = [
        (
            " / ".join(weight(share) for share in elements(row, "weights")),
            *(_cell(row, goal) for goal in goals),
            percent(row.get("probability"), 0),
            "yes" if row.get("confirmed") else "",
        )
        for row in shown
    ]
    header = (" / ".join(map(clean, texts(data, "ingredients"))), *map(clean, goals), "on the front, %", "confirmed")
    return Section(f"Front of {in_words(goals)}", tuple(lines), NAME, (grid(header, rows),))


def _cell(row: Row, goal: str) -> TableCell:
    mean, low, high = (part(row, key).get(goal) for key in ("means", "low", "high"))
    if goal == TOKENS:
        return TableCell(f"{mean:.0f}", f"{low:.0f} to {high:.0f}")
    return TableCell(percent(mean), interval(low, high))


def draw(data: Row) -> Drawing | None:
    """The first two goals of all points, with the bands of those on the front."""
    goals, points, chosen = texts(data, "goals"), entries(data, "points"), part(data, "chosen")
    if not points:
        return None
    units = [1.0 if goal == TOKENS else 100.0 for goal in goals[:2]]

    def axis(rows: Sequence[Row], key: str, n: int) -> FloatArray:
        return units[n] * np.array([part(row, key)[goals[n]] for row in rows], dtype=float)

    with canvas():
        made, axes = figure(6.4, 4.2)
        if rest := elements(data, "rest"):
            axes.plot(
                *(unit * np.array(rest, dtype=float)[:, n] for n, unit in enumerate(units)),
                "o",
                color=FAINT,
                markersize=3,
            )
        x, y = (axis(points, "means", n) for n in (0, 1))
        reach = [
            np.abs(np.stack([axis(points, key, n) - middle for key in ("low", "high")]))
            for n, middle in ((0, x), (1, y))
        ]
        axes.errorbar(x, y, xerr=reach[0], yerr=reach[1], fmt="o", color=COLOURS["soup"], markersize=4, linewidth=0.5)
        ring(axes, float(axis([chosen], "means", 0)[0]), float(axis([chosen], "means", 1)[0]), 7)
        for name, goal in ((axes.set_xlabel, goals[0]), (axes.set_ylabel, goals[1])):
            name("mean tokens" if goal == TOKENS else f"{short(goal, 40)}, %")
    alt = f"Front of {in_words(goals[:2])}: {len(points)} points that no other beats, of {len(points) + len(rest)}."
    return Drawing(NAME, made, alt, "Ring: the chosen soup. Bars: 95 % bands of the points on the front.")


DISPLAYS[NAME] = Display(section, (draw,), place=0)
