"""Front of several goals (`pareto`): the soups that no other beats in all of them, by the posterior of the search.

A goal is what a guard of its name would watch: its mean is a linear function of the posterior's category means, which
is fitted to all answers on the search fold. The report fold is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from souping.analysis.guards import TOKENS, Guard, resolve
from souping.analysis.surface import FITTED, fitted
from souping.core.fields import fits, pick
from souping.core.types import BoolArray, FloatArray, Item, Json, Trial, UserError, Weights, elements, entries, part
from souping.core.unit import Unit, scores_in, unit_of
from souping.report.format import brackets, clean, count, in_words, percent, short, weight
from souping.report.plots import COLOURS, FAINT, Drawing, canvas, figure, ring
from souping.report.sections import DISPLAYS, Display
from souping.report.tables import Row, Section, grid
from souping.search.surrogate import RISE

NAME, CONFIRMED, DRAWS, LISTED = "front", 3, 400, 15
"""Key under `analyses`, points that answer the whole search fold, draws of the posterior, and points in the table."""
LENGTH = Unit(name=TOKENS, symbol=TOKENS, meaning=TOKENS, higher_is_better=False, scale=1.0, digits=0, fractions=False)


def resolve_goals(
    names: Sequence[str],
    weights: Mapping[str, float] | None,
    categories: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    units: Mapping[str, Unit],
) -> tuple[Guard, ...]:
    """What the names of `pareto` stand for, as in `resolve`; `weights` are those of `pick`.

    Raises:
        UserError: there is one goal, a name is no category, group or `tokens`, or `pick` has no weights of goals.
    """
    if not names and not weights:
        return ()
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"pareto={[*names]!r:.60} needs two goals or more, each once, as in pareto=[math,safety]")
    table = weights if isinstance(weights, Mapping) else {}
    for name in table:
        pick(name, names, "pick: goal")
    fine = all(fits(one, float) and 0 <= one < np.inf for one in table.values())
    if weights and not (fine and any(table.values())):
        raise UserError(f"pick={weights!r:.60} needs a weight of 0 or more for a goal, one of them above 0")
    found = resolve(dict.fromkeys(names, 1.0), categories, groups, units, "pareto")
    for one in found:
        if one.benchmark:
            raise UserError(f"pareto={one.name}: the search sees no extra benchmark: use guard={{{one.name}: LOSS}}")
    return found


class Front:
    """Points [S, K] with each goal's posterior mean and 95 % band [S, G], and the odds [S] of being on it.

    Higher is better: inner scores, lengths as minus a multiple of the first model's. `on` [S] marks the front of the
    means, `whole` [S] the points that answered all items; `known` counts those that answered any.
    """

    def __init__(
        self, goals: Sequence[Guard], items: Sequence[Item], points: Sequence[Weights], trials: Iterable[Trial]
    ) -> None:
        """From the answers of a search. Raises UserError if lengths are a goal and nobody counts tokens."""
        found = {trial.weights: trial.result for trial in trials}
        every, blank = list(dict.fromkeys([*found, *points]))[:FITTED], np.full(len(items), np.nan)
        answers = {False: np.array([found[p].values if p in found else blank for p in every])}
        if any(goal.lengths for goal in goals):
            tokens = np.array([found[p].lengths if p in found else blank for p in every])
            if not (length := float(np.nanmean(tokens[0]))):
                raise UserError("pareto: this evaluator does not count the tokens of its answers")
            answers[True] = -tokens / length
            unit = replace(LENGTH, margin=0.01 * length)
            goals = [replace(goal, unit=unit) if goal.lengths else goal for goal in goals]
        self.goals, self.points, self.known = goals, np.array(every), len(found)
        self.whole = np.isfinite(answers[False]).all(1)
        names = [item.category for item in items]
        categories = np.array([[*dict.fromkeys(names)].index(name) for name in names])
        flat, rises = np.ones(categories.max() + 1), {False: RISE, True: 0.0}
        models = {kind: fitted(self.points, rows, categories, flat, rises[kind]) for kind, rows in answers.items()}
        drawn = {kind: model.posterior_draws(DRAWS, max(1.0, model.surprise())) for kind, model in models.items()}
        shares = [models[False].shares(goal.covers(names)) for goal in goals]
        pairs = list(zip(goals, shares, strict=True))
        draws = np.stack([drawn[goal.lengths] @ own for goal, own in pairs], -1)
        self.means = np.stack([models[goal.lengths].total(own)[0] for goal, own in pairs], -1)
        self.low, self.high = np.quantile(draws, (0.025, 0.975), axis=0)
        self.odds, self.on = np.mean([undominated(draw) for draw in draws], axis=0), undominated(self.means)

    def merits(self, pick: Mapping[str, float]) -> dict[Weights, float]:
        """{point: weighted sum of its goals}"""
        totals = (self.means @ np.array([pick.get(goal.name, 0.0) for goal in self.goals])).tolist()
        return {tuple(map(float, point)): total for point, total in zip(self.points, totals, strict=True)}

    def candidates(self, pick: Mapping[str, float] | None) -> list[Weights]:
        """Points of the front to be confirmed: the best by `pick`, else the middle and the best of each goal."""
        on = np.flatnonzero(self.on)
        if pick is not None:
            order = on[np.argsort(-np.array([*self.merits(pick).values()])[on], kind="stable")]
        else:
            spread = self.means[on] - self.means[on].min(0)
            spread = spread / np.maximum(spread.max(0), 1e-12)
            order = on[[int(spread.sum(1).argmax()), *map(int, spread.argmax(0))]]
        return [tuple(map(float, self.points[n])) for n in dict.fromkeys(order.tolist())][:CONFIRMED]

    def as_dict(
        self, names: Sequence[str], chosen: Mapping[str, float], pick: Mapping[str, float] | None
    ) -> dict[str, Json]:
        """What report.json keeps: goals in their units."""
        order = np.flatnonzero(self.on)[np.argsort(self.means[self.on, 0], kind="stable")]
        point = np.array([chosen.get(name, 0.0) for name in names])
        return {
            "fold": "search",
            "goals": [{"name": goal.name, "unit": asdict(goal.unit)} for goal in self.goals],
            "ingredients": list(names),
            "soups": self.known,
            "pick": None if pick is None else dict(pick),
            "points": [self._row(int(n)) for n in order],
            "chosen": self._row(int(np.abs(self.points - point).sum(axis=1).argmin())),
            "rest": [self._row(int(n)) for n in np.flatnonzero(~self.on)],
        }

    def _row(self, n: int) -> dict[str, Json]:
        bands = zip(self.means[n], self.low[n], self.high[n], strict=True)
        tables = [dict(zip(("mean", "low", "high"), map(float, band), strict=True)) for band in bands]
        return {
            "weights": [round(float(share), 9) for share in self.points[n]],
            "goals": {goal.name: goal.unit.raw_table(own) for goal, own in zip(self.goals, tables, strict=True)},
            "probability": round(float(self.odds[n]), 4),
            "confirmed": bool(self.whole[n]),
        }


def undominated(values: FloatArray) -> BoolArray:
    """Which rows [S, G] no other beats: it would be as good in every goal and better in one."""
    beats = (values[:, None] >= values).all(-1) & (values[:, None] > values).any(-1)
    return np.asarray(~beats.any(0))


# How it is shown


def section(data: Row) -> Section:
    units, points = _units(data), entries(data, "points")
    lines = [
        f"{count(len(points))} of the points that the search's model knows are beaten by none in {in_words([*units])}. "
        f"Shown are its posterior means from {count(data.get('soups'))} soups, 95 % bands, and the probability that "
        "each is on the true front. Confirmed points answered the whole search fold. The report fold was opened for "
        "the chosen soup alone."
    ]
    if sums := part(data, "pick"):
        what = " + ".join(f"{value:.3g} {clean(name)}" for name, value in sums.items())
        lines.append(f"The written soup is the confirmed point with the largest {what}.")
    lines += [f"{count(len(points) - LISTED)} more points are in report.json."] * (len(points) > LISTED)
    shown = sorted(points, key=lambda row: not row.get("confirmed"))[:LISTED]
    rows = [
        (
            " / ".join(weight(share) for share in elements(row, "weights")),
            *(_cell(part(part(row, "goals"), name), unit) for name, unit in units.items()),
            percent(row.get("probability"), 0),
            "yes" if row.get("confirmed") else "",
        )
        for row in shown
    ]
    heads = [unit.heading(clean(name)) for name, unit in units.items()]
    header = (" / ".join(map(clean, elements(data, "ingredients"))), *heads, "on the front, %", "confirmed")
    return Section(f"Front of {in_words([*units])}", tuple(lines), NAME, (grid(header, rows),))


def _units(data: Row) -> dict[str, Unit]:
    """{goal: its unit}"""
    return {clean(goal.get("name")): unit_of(goal) for goal in entries(data, "goals")}


def _cell(found: Row, unit: Unit) -> str:
    with scores_in(unit):
        return brackets(found)


def draw(data: Row) -> Drawing | None:
    """The first two goals of all points, with the bands of those on the front."""
    points, rest = entries(data, "points"), entries(data, "rest")
    (across, first), (up, second) = list(_units(data).items())[:2]

    def numbers(rows: Sequence[Row], key: str = "mean") -> FloatArray:
        """[2, rows]"""
        pairs = ((across, first), (up, second))
        tables = [[part(part(row, "goals"), name) for row in rows] for name, _ in pairs]
        scales = np.array([[unit.scale] for _, unit in pairs])
        return np.asarray(scales * np.array([[one[key] for one in own] for own in tables], dtype=float))

    with canvas():
        made, axes = figure(6.4, 4.2)
        axes.plot(*numbers(rest), "o", color=FAINT, markersize=3)
        middle = numbers(points)
        x, y = (np.abs(np.stack([numbers(points, key)[n] for key in ("low", "high")]) - middle[n]) for n in (0, 1))
        axes.errorbar(middle[0], middle[1], y, x, fmt="o", color=COLOURS["soup"], markersize=4, linewidth=0.5)
        here = numbers([part(data, "chosen")])
        ring(axes, float(here[0, 0]), float(here[1, 0]), 7)
        axes.set_xlabel(first.heading(short(across, 40)))
        axes.set_ylabel(second.heading(short(up, 40)))
    alt = f"Front of {in_words([across, up])}: {len(points)} points that no other beats, of {len(points) + len(rest)}."
    return Drawing(NAME, made, alt, "Ring: the chosen soup. Bars: 95 % bands of the points on the front.")


DISPLAYS[NAME] = Display(section, (draw,), place=0)
