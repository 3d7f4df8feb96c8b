"""Adaptive search, the default: evaluates the soup and items that best separate the leader from its rivals.

A surrogate is fitted to the answers. Its leader is the soup with the highest posterior mean of the objective; its
rivals are those with the highest expected improvement over the leader. The next cell (a soup and some items) is the
one that reduces the rivals' expected improvement most for its price. At the end the leader is evaluated on the rest of
the fold, and of the fully evaluated soups the posterior's best wins; if the budget is too small for that, the
posterior's best of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval

from souping.core.fields import component
from souping.core.protocols import Optimiser
from souping.core.types import Cell, FloatArray, IntArray, Json, Result, SearchSpace, UserError, Weights
from souping.core.unit import unit
from souping.search.points import Grid, LimitedStrategy, anchors, endings, grid, grid_size, scattered, spread, vertices
from souping.search.surrogate import LIKELY, BoundModel, SoupModel, difference_variances, expected_improvement

FIRST_SAMPLE = 12
"""Least number of items in a category's first sample."""
SAMPLES = 4
"""Most samples of a category: each is as large as all before it. They are no batches of an evaluator."""
RIVALS = 12
"""Rivals that are compared with the leader."""
FINALISTS = 3
"""Soups that may be evaluated on the rest of the fold at the end."""
SHOWN = 20
"""Indistinguishable soups that are listed."""
ENOUGH = 0.001
"""Expected gain from the rest of the fold below which a search ends (0.1 points)."""
GROWTH = 1.6
"""The prior is fitted anew once this many times more answers are known."""
POINTS = 240
"""Most soups of a search."""
LISTED = 5000
"""Largest grid that is listed."""
MANY = 6
"""Ingredients from which soups of a few of them join the grid."""
FADING = 0.85
"""Factor on the odds that such a soup contains a single model, for each rank below the best."""
USUAL = (7.0, 0.75, 0.8)
"""Searches that end by themselves usually take 7 x ingredients^0.75 x fold^0.8 items: benchmarks/search_sizes.py."""
LONGEST = 2
"""They hardly ever take more than this many times as many."""


@component
class Adaptive(LimitedStrategy):
    """Surrogate over the grid's points that chooses soups and items.

    `stop=auto` ends it when more answers would gain less than 0.1 points. `step` below 0.1 searches between the
    grid's points; of more than 240 points those are taken that cover the simplex. `scales` adds each soup of the grid
    with its distance from the base model multiplied (`merge.method=task_arithmetic`).
    """

    step: float = 0.1
    stop: Literal["auto", "never"] = "auto"
    scales: list[Annotated[float, Interval(gt=0, le=10)]] = field(default_factory=list)

    def __post_init__(self) -> None:
        Grid(step=self.step)

    def start(self, space: SearchSpace, seed: int) -> AdaptiveSearch:
        return self.over(self.points(len(space.ingredients), merits_of(space)), space, seed)

    def over(self, points: Sequence[Weights], space: SearchSpace, seed: int) -> AdaptiveSearch:
        """A search over these points."""
        return AdaptiveSearch(points, space, seed, stops=self.stop == "auto", budget=self.budget)

    def points(self, size: int, merits: FloatArray | None = None) -> list[Weights]:
        """Soups to search, the anchors first; weights that do not sum to one leave the rest to the base model."""
        plain = self._simplex(size, merits)
        mixed = [point for point in plain if max(point) < 1]
        scaled = [tuple(round(scale * w, 12) for w in point) for scale in self.scales for point in mixed]
        return list(dict.fromkeys([*anchors(size), *spread([*plain, *scaled])]))[:POINTS] if scaled else plain

    def _simplex(self, size: int, merits: FloatArray | None) -> list[Weights]:
        """Of many ingredients those with the better `merits` [K] come more often."""
        inner = spread(grid(size, self.step)) if grid_size(size, self.step) <= LISTED else []
        points = dict.fromkeys(anchors(size) + inner[: POINTS // 2 if size >= MANY else None])
        if inner and size < MANY:
            return list(points)[:POINTS]
        rank = np.zeros(size) if merits is None else np.argsort(np.argsort(-merits, kind="stable"))
        odds = FADING**rank / np.sum(FADING**rank)
        for point in itertools.islice(scattered(size, self.step, odds), 20 * POINTS):  # a coarse step has few
            points[point] = None
            if len(points) >= max(POINTS, 3 * size):
                break
        return list(points)

    @property
    def uses_singles(self) -> bool:
        return True

    def count(self, size: int) -> int | None:
        return None

    def workload(self, size: int, items: int) -> tuple[int, int] | None:
        """Expected: after how many items searches of this size ended. Most: hardly any of them took more."""
        limit = len(self.points(size)) * items
        limit = limit if self.budget is None else min(limit, self.budget)
        factor, by_size, by_items = USUAL
        expected = limit if self.stop == "never" else round(factor * size**by_size * items**by_items)
        return min(expected, limit), min(LONGEST * expected, limit)

    def describe(self, size: int) -> str:
        stop = ["stops when more answers would not change the pick"] if self.stop == "auto" else []
        return ", ".join([f"adaptive, {len(self.points(size))} possible soups", *stop, *endings(self)])


class AdaptiveSearch(Optimiser):
    """Running adaptive search over `points`. Cells that are open count as known, at their expected values."""

    def __init__(
        self, points: Sequence[Weights], space: SearchSpace, seed: int, stops: bool, budget: int | None
    ) -> None:
        self._points: list[Weights] = list(dict.fromkeys(tuple(map(float, point)) for point in points))
        self._numbers = {point: number for number, point in enumerate(self._points)}
        self._space, self._stops, self._budget = space, stops, budget
        coefficients = np.array(list(space.coefficients.values()), dtype=float)
        table, samples = np.array(self._points), item_samples(space, seed)
        self._model = SoupModel(table, samples, coefficients, value=space.value, singles=space.singles)
        self._bounds = BoundModel(self._model, space, self._points) if space.bounds else None
        self._open: list[Cell] = []
        self._spent = self._looked = self._finals = 0  # `_looked`: what was spent when the end was last considered
        self._stop_reason = ""  # set once exploring ends; from then on only the finalists' remaining items are asked
        if space.singles is not None:
            lengths = np.zeros_like(space.singles) if space.lengths is None else space.lengths
            for vertex, values, tokens in zip(vertices(len(space.ingredients)), space.singles, lengths, strict=True):
                if vertex in self._numbers:
                    self._model.ask_rest(self._numbers[vertex])
                    self._observe(vertex, slice(None), values, tokens)
        self._refit()

    def _refit(self) -> None:
        self._fitted = self._model.known
        self._model.fit()
        if self._bounds is not None:
            self._bounds.fit()

    def ask(self) -> Cell | None:
        if not self._stop_reason and (cell := self._next()) is not None:
            return cell
        if self._open:
            return None
        if self._fitted < self._model.known:
            self._refit()
        return self._confirm()

    def _next(self) -> Cell | None:
        """The cell that most sharpens who leads; None, with the reason noted, where exploring ends."""
        model = self._model
        leader, rivals, urgency = expected_improvement(*model.objective(), RIVALS, self._odds())
        self._stop_reason = self._ending(leader, rivals)
        if self._stop_reason:
            return None
        soup, chosen = self._choose(leader, rivals, urgency)
        coming = [(c, int(model.left[soup, c].argmax())) for c in chosen]
        items = [int(i) for c, b in coming for i in model.item_samples[c][b]]
        if not self._affords(len(items) + len(model.rest(leader))):
            self._stop_reason = "the budget ends"
            return None
        model.asked[soup, chosen, [b for _, b in coming]] = True
        return self._open_cell(soup, items)

    def _ending(self, leader: int, rivals: IntArray) -> str:
        """Why the search ends here, looked at whenever a third of a fold was asked; empty while it goes on."""
        if not self._model.left.any():
            return "every soup has answered the whole fold"
        if self._stops and self._spent >= self._looked + len(self._space.categories) // 3:
            self._looked = self._spent
            gain = self._model.finishing_gain(np.array([leader, *rivals]), self._odds())
            if gain < ENOUGH:
                return f"more answers would gain only {unit().text(unit().size(gain), more=1)} {unit().name}"
        return ""

    def _choose(self, leader: int, rivals: IntArray, urgency: FloatArray) -> tuple[int, list[int]]:
        """The soup, and categories of it, whose next samples tell most per item; a batch of items at least."""
        model, left = self._model, self._model.left
        worth, slopes = np.zeros(left.shape[:2]), model.slopes(np.array([leader, *rivals]))
        for c, (weight, *weights) in enumerate(slopes.T):
            posterior = model.posterior(c)
            cross = posterior.next_covariance
            apart = np.array(weights)[:, None] * cross[rivals] - weight * cross[leader]
            worth[:, c] = urgency @ (apart**2 / np.maximum(posterior.next_variance, 1e-12))
        price = model.size[np.arange(left.shape[1]), left.argmax(2)]
        worth, price = np.where(left.any(2), worth, 0.0), np.where(left.any(2), price, np.inf)
        order = np.argsort(-worth / price, 1, kind="stable")
        gain, items = (np.cumsum(np.take_along_axis(part, order, 1), 1) for part in (worth, price))
        ratio = np.where(np.isfinite(items), gain / np.maximum(items, self._space.full_batch), -1.0)
        if self._space.whole:
            ratio[:, :-1] = -1.0
        soup = int(np.argmax(ratio.max(1)))
        return soup, sorted(int(c) for c in order[soup, : ratio[soup].argmax() + 1])

    def _odds(self) -> FloatArray:
        """Probability [S] of keeping to all bounds."""
        return np.ones(len(self._points)) if self._bounds is None else self._bounds.odds()

    def _confirm(self) -> Cell | None:
        """The rest of the fold for the best soup that the budget lets finish; None once the best has answered all."""
        for soup in self._by_promise():
            rest = self._model.rest(soup)
            if not rest or self._finals >= FINALISTS:
                return None
            if self._affords(len(rest)):
                self._finals += 1
                self._model.ask_rest(int(soup))
                return self._open_cell(int(soup), rest)
        return None

    def _by_promise(self) -> list[int]:
        """Soups that may still win, the posterior's best first."""
        order, odds = np.argsort(-self._model.objective()[0], kind="stable"), self._odds()
        return [int(soup) for soup in order if odds[soup] >= LIKELY]

    def _affords(self, items: int) -> bool:
        return self._budget is None or self._spent + items <= self._budget

    def _open_cell(self, soup: int, items: list[int]) -> Cell:
        self._spent += len(items)
        whole = len(items) == len(self._space.categories)
        self._open.append(Cell(weights=self._points[soup], items=None if whole else tuple(items)))
        return self._open[-1]

    def tell(self, cell: Cell, result: Result) -> None:
        self._open.remove(cell)
        items = slice(None) if cell.items is None else list(cell.items)
        self._observe(cell.weights, items, result.values, result.lengths)
        if self._model.known >= GROWTH * self._fitted:
            self._refit()

    def _observe(self, soup: Weights, items: slice | list[int], values: FloatArray, lengths: FloatArray) -> None:
        self._model.observe(self._numbers[soup], items, values)
        if self._bounds is not None:
            self._bounds.observe(self._numbers[soup], items, lengths)

    def best(self) -> Weights:
        """The posterior's best of those that answered the whole fold; of all, where the search was cut short."""
        known = np.isfinite(self._model.values)
        if not known.any():
            raise UserError("the search ended without a result: raise optimiser.trials or optimiser.budget")
        done = np.flatnonzero(known.all(1) if self._stop_reason and known.all(1).any() else known.any(1))
        odds = self._odds()[done]
        done = done[odds >= LIKELY] if (odds >= LIKELY).any() else done
        mean, size = self._model.objective()[0], (self._model.table[done] > 0).sum(1)
        return self._points[int(done[np.lexsort((size, -mean[done].round(9)))[0]])]

    def summary(self) -> Mapping[str, Json]:
        """Why the search ended, and the soups that may be as good as the pick (one-sided 95 %), best first."""
        (mean, cov), pick = self._model.objective(), self._numbers[self.best()]
        lead = (mean[pick] - mean) / np.sqrt(self._model.surprise() * difference_variances(cov, pick))
        alike = [s for s in np.argsort(-mean, kind="stable") if s != pick and lead[s] < 1.645]
        leader, rivals, _ = expected_improvement(mean, cov, RIVALS)
        more = unit().size(self._model.finishing_gain(np.array([leader, *rivals]), self._odds()))
        return {
            "stopped": self._stop_reason or "a limit of the run",
            "indistinguishable": [list(self._points[s]) for s in alike[:SHOWN]],
            "indistinguishable_count": len(alike),
            "finishing_gain": round(unit().scale * more, 3),
            **({} if self._bounds is None else {"without_guards": unit().raw(float(mean.max()))}),
        }


def merits_of(space: SearchSpace) -> FloatArray | None:
    """The ingredients' own objectives [K], if their scores are known."""
    if space.singles is None:
        return None
    names = np.array(space.categories)
    return space.objective(np.stack([space.singles[:, names == name].mean(1) for name in space.coefficients], 1))


def item_samples(space: SearchSpace, seed: int) -> list[list[IntArray]]:
    """Positions of each category's items in samples that double, in an order of groups that the seed decides.

    Every prefix is a random sample of groups. A sample ends where a group ends: otherwise two samples would share the
    draw of a group.
    """
    group = np.unique(space.groups, return_inverse=True)[1]
    rank = np.random.default_rng(seed).permutation(group.max() + 1)[group]
    order, categories = np.argsort(rank, kind="stable"), np.array(space.categories)
    members = [order[categories[order] == name] for name in space.coefficients]
    return [[own] if space.whole else _cut(own, rank[own]) for own in members]


def _cut(own: IntArray, rank: IntArray) -> list[IntArray]:
    ends = 1 + np.flatnonzero(np.diff(rank))
    wanted = [len(own) >> k for k in range(SAMPLES - 1, 0, -1) if len(own) >> k >= FIRST_SAMPLE]
    return np.split(own, sorted({int(ends[np.argmin(abs(ends - size))]) for size in wanted} if len(ends) else ()))
