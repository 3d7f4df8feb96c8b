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
from souping.core.unit import Unit, unit_of
from souping.report.format import brackets, clean, count, in_words, percent, short, weight
from souping.report.plots import COLOURS, FAINT, Drawing, canvas, figure, ring
from souping.report.sections import DISPLAYS, Display
from souping.report.tables import Row, Section, grid

NAME = "front"
"""Key under `analyses`."""
CONFIRMED = 3
"""Most points that are evaluated on the whole search fold."""
DRAWS = 400
"""Draws of the posterior."""
LISTED = 15
"""Points in the report's table."""
LENGTH = Unit(symbol="mean per answer", meaning=TOKENS, higher_is_better=False, scale=1.0, fractions=False)


def resolve_goals(
    names: Sequence[str],
    weights: Mapping[str, float] | None,
    categories: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    unit: Unit,
) -> tuple[Guard, ...]:
    """What the names of `pareto` stand for, as in `resolve`; `weights` are those of `pick`.

    Raises:
        UserError: there is one goal, a name is no category, group or `tokens`, or `pick` has no weights of goals.
    """
    if not names and not weights:
        return ()
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"pareto={[*names]!r:.60} needs two goals or more, each once, as in pareto=[math,safety]")
    if weights and not (
        fits(weights, Mapping[str, float]) and min(weights.values()) >= 0 < sum(weights.values()) < np.inf
    ):
        raise UserError(f"pick={weights!r:.60} needs finite weights of 0 or more, one of them above 0")
    for name in weights or ():
        pick(name, names, "pick: goal")
    return resolve(dict.fromkeys(names, 1.0), categories, groups, {"": unit}, "pareto")


class Front:
    """Points [S, K] with each goal's posterior mean and 95 % band [S, G], and the odds [S] of being on it.

    Higher is better: inner scores, lengths as minus a multiple of the first model's. `on` [S] marks the front of the
    means, `whole` [S] the points that answered all items; `known` counts those that answered any.
    """

    def __init__(
        self, goals: Sequence[Guard], items: Sequence[Item], points: Sequence[Weights], trials: Iterable[Trial]
    ) -> None:
        """From the answers of a search."""
        found, blank = {trial.weights: trial.result for trial in trials}, np.full(len(items), np.nan)
        every = list(dict.fromkeys([*found, *points]))[:FITTED]
        names = [item.category for item in items]
        categories = np.unique(names, return_inverse=True)[1]
        scores = np.array([found[p].values if p in found else blank for p in every])
        self.points, self.known, self.whole = np.array(every), len(found), np.isfinite(scores).all(1)
        flat = np.ones(categories.max() + 1)
        models = {False: fitted(self.points, scores, categories, flat)}
        if any(goal.lengths for goal in goals):
            tokens = np.array([found[p].lengths if p in found else blank for p in every])
            length = float(np.nanmean(tokens[0])) or 1.0
            models[True] = fitted(self.points, -tokens / length, categories, flat, rise=0.0)
            unit = replace(LENGTH, margin=0.01 * length)
            goals = [replace(goal, unit=unit) if goal.lengths else goal for goal in goals]
        drawn = {kind: model.posterior_draws(DRAWS, max(1.0, model.surprise())) for kind, model in models.items()}
        self.goals, pairs = goals, [(goal, models[False].shares(goal.covers(names))) for goal in goals]
        draws = np.stack([drawn[goal.lengths] @ own for goal, own in pairs], -1)
        self.means = np.stack([models[goal.lengths].total(own)[0] for goal, own in pairs], -1)
        self.low, self.high = np.quantile(draws, (0.025, 0.975), axis=0)
        self.odds, self.on = np.mean([undominated(draw) for draw in draws], axis=0), undominated(self.means)

    def merits(self, pick: Mapping[str, float]) -> dict[Weights, float]:
        """{point: weighted sum of its goals}"""
        totals = (self.means @ np.array([pick.get(goal.name, 0.0) for goal in self.goals])).tolist()
        return {tuple(map(float, point)): total for point, total in zip(self.points, totals, strict=True)}

    def candidates(self, pick: Mapping[str, float] | None) -> list[Weights]:
        """Points of the front to be confirmed: the best by `pick`, else those that are most likely on the true one."""
        worth = self.odds if pick is None else np.array([*self.merits(pick).values()])
        order = sorted(np.flatnonzero(self.on), key=lambda n: -worth[n])
        return [tuple(map(float, self.points[n])) for n in order[:CONFIRMED]]

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
            "points": [self._row(n) for n in order],
            "chosen": self._row(int(np.abs(self.points - point).sum(axis=1).argmin())),
            "rest": [self._row(n) for n in np.flatnonzero(~self.on)],
        }

    def _row(self, n: int) -> dict[str, Json]:
        found = dict[str, Json]()
        for goal, *band in zip(self.goals, self.means[n], self.low[n], self.high[n], strict=True):
            band = np.clip(band, 0, 1).tolist() if goal.unit.fractions else list(map(float, band))
            found[goal.name] = goal.unit.raw_table(dict(zip(("mean", "low", "high"), band, strict=True)))
        return {
            "weights": [round(float(share), 9) for share in self.points[n]],
            "goals": found,
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
    goals, total = in_words([*units]), len(points) + len(entries(data, "rest"))
    lines = [
        f"By the search's model, {len(points)} of {total} soups are on the front: none beats them in {goals} together. "
        f"Means from {count(data.get('soups'))} evaluated soups, 95 % bands, and the probability of being on the true "
        "front. Confirmed soups answered the whole search fold."
    ]
    if sums := part(data, "pick"):
        what = " + ".join(f"{value:.3g} {clean(name)}" for name, value in sums.items())
        lines.append(f"Among the confirmed soups, pick prefers the largest {what}; guards may rule it out.")
    lines += [f"{count(len(points) - LISTED)} more are in report.json."] * (len(points) > LISTED)
    rows = []
    for row in sorted(points, key=lambda row: not row.get("confirmed"))[:LISTED]:
        means = [brackets(part(part(row, "goals"), name), own=unit) for name, unit in units.items()]
        mixed = " / ".join(weight(share) for share in elements(row, "weights"))
        rows.append((mixed, *means, percent(row.get("probability"), 0), "yes" if row.get("confirmed") else ""))
    heads = [unit.heading(name) for name, unit in units.items()]
    header = (" / ".join(map(clean, elements(data, "ingredients"))), *heads, "on the true front, %", "confirmed")
    return Section(f"Front of {goals}", tuple(lines), NAME, (grid(header, rows),))


def _units(data: Row) -> dict[str, Unit]:
    """{goal: its unit}"""
    return {clean(goal.get("name")): unit_of(goal) for goal in entries(data, "goals")}


def draw(data: Row) -> Drawing | None:
    """The first two goals of all points, with the bands of those on the front."""
    points, rest, goals = entries(data, "points"), entries(data, "rest"), list(_units(data).items())[:2]
    (across, first), (up, second) = goals

    def numbers(rows: Sequence[Row]) -> FloatArray:
        """Mean, low and high of both goals [2, 3, rows]."""
        tables = [(unit, [part(part(row, "goals"), name) for row in rows]) for name, unit in goals]
        keys = ("mean", "low", "high")
        return np.stack(
            [unit.scale * np.array([[one[k] for one in t] for k in keys], dtype=float) for unit, t in tables]
        )

    with canvas():
        made, axes = figure(6.4, 4.2)
        axes.plot(*numbers(rest)[:, 0], "o", color=FAINT, markersize=3)
        middle, bands = numbers(points)[:, 0], numbers(points)[:, 1:]
        x, y = np.abs(bands - middle[:, None])
        axes.errorbar(middle[0], middle[1], y, x, fmt="o", color=COLOURS["soup"], markersize=4, linewidth=0.5)
        x, y = numbers([part(data, "chosen")])[:, 0, 0].tolist()
        ring(axes, x, y, 7)
        axes.set(xlabel=first.heading(short(across, 40)), ylabel=second.heading(short(up, 40)))
    alt = f"Front of {in_words([across, up])}: {len(points)} points that no other beats, of {len(points) + len(rest)}."
    return Drawing(NAME, made, alt, "Ring: the chosen soup. Bars: 95 % bands of the points on the front.")


DISPLAYS[NAME] = Display(section, (draw,), place=0)
