"""Adaptive search, the default: asks the cell (soup, items of some categories) that most sharpens who leads.

A surrogate is fitted to the answers. Its leader is the soup with the highest posterior mean of the objective; its
rivals are those with the highest expected improvement over the leader. The next cell is the one that takes most off
the rivals' expected improvement for its price. At the end the leader answers the rest of the fold, and the posterior's
best of the soups that answered the whole fold wins; if the budget is too small for that, the posterior's best of all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from souping.core.fields import component
from souping.core.protocols import Optimiser
from souping.core.types import Cell, FloatArray, IntArray, Json, Result, SearchSpace, UserError, Weights
from souping.core.unit import unit
from souping.search.points import Grid, LimitedStrategy, anchors, endings, grid, grid_size, scattered, spread, vertices

FIRST, BLOCKS = 12, 4
"""Items of a category's first block at least, and its blocks at most: each is as large as all before it. They are
samples of the fold, not the batches of an evaluator."""
RIVALS, FINALISTS, SHOWN = 12, 3, 20
"""Rivals looked at, soups that may finish the fold at the end, equals that are named."""
ENOUGH, GROWTH = 0.001, 1.6
"""Expected gain from finishing the fold below which a search ends (0.1 points), and how many times more answers must be
known before the prior is fitted anew."""
POINTS = 240
"""Soups at most."""
LISTED, MANY, FADING = 5000, 6, 0.85
"""Points up to which a grid is listed; ingredients from which soups of a few of them join it, and by how much the odds
of a single model fade with each rank."""
USUAL, LONGEST = (7.0, 0.75, 0.8), 2
"""Searches that end by themselves usually take 7 x ingredients^0.75 x fold^0.8 items, and hardly ever twice
as many: benchmarks/search_sizes.py."""

LEVEL, PLANE, BEND, LENGTH = 0.3, 0.25, 0.17, 0.75
"""Prior standard deviations of a category's level, plane and bend (fractions of 1), and the bend's length."""
SCALES, HELD = (0.2, 0.35, 0.6, 1.0, 1.6, 2.5), 0.3
"""Factors on plane and bend that are mixed, and how much their logarithms are held near zero."""
SHARED, REACH = (0.1, 0.3, 0.5), (0.4, 1.2)
"""Correlations of two soups' answers to one item that are mixed: `shared` by all, the rest fading over `reach`."""
RISE = 0.06
"""Mean and spread of how far soups rise above the plane through the single models, times 1 - sum of squared weights."""
FLOOR, UNKNOWN, JITTER, TINY = 0.02, 0.2, 1e-9, 1e-12
"""Variance of one item's score: the least, and where nothing is known; and what keeps matrices and roots regular."""


@component
class Adaptive(LimitedStrategy):
    """Surrogate over the grid's points that chooses soups and items.

    `stop=auto` ends it when finishing the fold would gain less than 0.1 points. `step` below 0.1 searches between the
    grid's points; of more than 240 points those are taken that cover the simplex.
    """

    step: float = 0.1
    stop: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        Grid(step=self.step)

    def start(self, space: SearchSpace, seed: int) -> AdaptiveSearch:
        return self.over(self._points(len(space.ingredients), space.objectives), space, seed)

    def over(self, points: Sequence[Weights], space: SearchSpace, seed: int) -> AdaptiveSearch:
        """A search over these points."""
        return AdaptiveSearch(points, space, seed, stops=self.stop == "auto", budget=self.budget)

    def _points(self, size: int, merits: FloatArray | None = None) -> list[Weights]:
        """Soups to search, the anchors first; of many ingredients those with the better `merits` [K] more often."""
        bounds = self.step, self.step, round(1 - self.step, 12)
        inner = spread(grid(size, *bounds)) if grid_size(size, *bounds) <= LISTED else []
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
        limit = len(self._points(size)) * items
        limit = limit if self.budget is None else min(limit, self.budget)
        factor, by_size, by_items = USUAL
        expected = limit if self.stop == "never" else round(factor * size**by_size * items**by_items)
        return min(expected, limit), min(LONGEST * expected, limit)

    def describe(self, size: int) -> str:
        stop = ["stops when more answers would not change the pick"] if self.stop == "auto" else []
        return ", ".join([f"adaptive, {len(self._points(size))} possible soups", *stop, *endings(self)])


class AdaptiveSearch(Optimiser):
    """Running adaptive search over `points`. Cells that are open count as known, at their expected values."""

    def __init__(
        self, points: Sequence[Weights], space: SearchSpace, seed: int, stops: bool, budget: int | None
    ) -> None:
        self._points: list[Weights] = list(dict.fromkeys(tuple(map(float, point)) for point in points))
        self._numbers = {point: number for number, point in enumerate(self._points)}
        self._space, self._stops, self._budget = space, stops, budget
        coefficients = np.array(list(space.coefficients.values()), dtype=float)
        self._model = SoupModel(np.array(self._points), item_blocks(space, seed), coefficients)
        self._open: list[Cell] = []
        self._spent = self._looked = self._finals = 0  # `_looked`: what was spent when the end was last considered
        self._stop_reason = ""  # set once exploring ends; from then on only the finalists' remaining items are asked
        self._usual = usual_scores(space.singles) if space.singles is not None else np.zeros(len(space.categories))
        if space.singles is not None:
            singles = space.singles - self._usual
            for values, vertex in zip(singles, vertices(len(space.ingredients)), strict=True):
                if vertex in self._numbers:
                    self._model.ask_rest(self._numbers[vertex])
                    self._model.observe(self._numbers[vertex], slice(None), values)
        self._refit()

    def _refit(self) -> None:
        self._fitted = self._model.known
        self._model.fit()

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
        leader, rivals, urgency = expected_improvement(*model.objective(), RIVALS)
        self._stop_reason = self._ending(leader, rivals)
        if self._stop_reason:
            return None
        soup, chosen = self._choose(leader, rivals, urgency)
        coming = [(c, int(model.left[soup, c].argmax())) for c in chosen]
        items = [int(i) for c, b in coming for i in model.blocks[c][b]]
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
            gain = self._model.finishing_gain(np.array([leader, *rivals]))
            if gain < ENOUGH:
                return f"finishing the fold would gain {unit().text(unit().size(gain), more=1)} {unit().name}"
        return ""

    def _choose(self, leader: int, rivals: IntArray, urgency: FloatArray) -> tuple[int, list[int]]:
        """The soup, and categories of it, whose next blocks tell most per item; a batch of items at least."""
        model, left = self._model, self._model.left
        worth = np.zeros(left.shape[:2])
        for c, weight in enumerate(model.weights):
            _, _, cross, spread, _ = model.posterior(c)
            worth[:, c] = weight**2 * urgency @ ((cross[rivals] - cross[leader]) ** 2 / np.maximum(spread, TINY))
        price = model.size[np.arange(left.shape[1]), left.argmax(2)]
        worth, price = np.where(left.any(2), worth, 0.0), np.where(left.any(2), price, np.inf)
        order = np.argsort(-worth / price, 1, kind="stable")
        gain, items = (np.cumsum(np.take_along_axis(part, order, 1), 1) for part in (worth, price))
        ratio = np.where(np.isfinite(items), gain / np.maximum(items, self._space.full_batch), -1.0)
        if self._space.whole:
            ratio[:, :-1] = -1.0
        soup = int(np.argmax(ratio.max(1)))
        return soup, sorted(int(c) for c in order[soup, : ratio[soup].argmax() + 1])

    def _confirm(self) -> Cell | None:
        """The rest of the fold for the best soup that the budget lets finish; None once the best has answered all."""
        for soup in np.argsort(-self._model.objective()[0], kind="stable"):
            rest = self._model.rest(soup)
            if not rest or self._finals >= FINALISTS:
                return None
            if self._affords(len(rest)):
                self._finals += 1
                self._model.ask_rest(int(soup))
                return self._open_cell(int(soup), rest)
        return None

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
        self._model.observe(self._numbers[cell.weights], items, result.values - self._usual[items])
        if self._model.known >= GROWTH * self._fitted:
            self._refit()

    def best(self) -> Weights:
        """The posterior's best of those that answered the whole fold; of all, where the search was cut short."""
        known = np.isfinite(self._model.values)
        if not known.any():
            raise UserError("the search ended without a result: raise optimiser.trials or optimiser.budget")
        done = np.flatnonzero(known.all(1) if self._stop_reason and known.all(1).any() else known.any(1))
        mean, size = self._model.objective()[0], (self._model.table[done] > 0).sum(1)
        return self._points[int(done[np.lexsort((size, -mean[done].round(9)))[0]])]

    def summary(self) -> Mapping[str, Json]:
        """Why the search ended, and the soups that may be as good as the pick (one-sided 95 %), best first."""
        (mean, cov), pick = self._model.objective(), self._numbers[self.best()]
        lead = (mean[pick] - mean) / np.sqrt(self._model.surprise() * difference_variances(cov, pick))
        alike = [s for s in np.argsort(-mean, kind="stable") if s != pick and lead[s] < 1.645]
        leader, rivals, _ = expected_improvement(mean, cov, RIVALS)
        more = unit().size(self._model.finishing_gain(np.array([leader, *rivals])))
        return {
            "stopped": self._stop_reason or "a limit of the run",
            "indistinguishable": [list(self._points[s]) for s in alike[:SHOWN]],
            "indistinguishable_count": len(alike),
            "finishing_gain": round(unit().scale * more, 3),
        }


def usual_scores(singles: FloatArray) -> FloatArray:
    """What to take from each item's scores [I], by those of single models [K, I]: their mean, where scores are no
    fractions of 1.

    Texts differ in their losses far more than models do, and the surrogate's noise is that of right and wrong answers.
    """
    inside = singles.min() >= 0 and singles.max() <= 1
    return np.zeros(singles.shape[1]) if inside else np.asarray(singles.mean(0))


def item_blocks(space: SearchSpace, seed: int) -> list[list[IntArray]]:
    """Positions of each category's items in blocks that double, in an order of groups that the seed decides.

    Every prefix is a random sample of groups. A block ends where a group ends: what the draw of a group puts into its
    items would else be shared by two blocks.
    """
    group = np.unique(space.groups, return_inverse=True)[1]
    rank = np.random.default_rng(seed).permutation(group.max() + 1)[group]
    order, categories = np.argsort(rank, kind="stable"), np.array(space.categories)
    members = [order[categories[order] == name] for name in space.coefficients]
    return [[own] if space.whole else _cut(own, rank[own]) for own in members]


def _cut(own: IntArray, rank: IntArray) -> list[IntArray]:
    ends = 1 + np.flatnonzero(np.diff(rank))
    wanted = [len(own) >> k for k in range(BLOCKS - 1, 0, -1) if len(own) >> k >= FIRST]
    return np.split(own, sorted({int(ends[np.argmin(abs(ends - size))]) for size in wanted} if len(ends) else ()))


# ------------------------------------------------------------ the surrogate


class SoupModel:
    """Gaussian process of all soups' category means [C, S], seen through blocks of items that all soups share.

    The mean score of soup s on a block b (n items) of category c is f(s) + g_b(s) / sqrt(n). f is the category's true
    mean: a common level, a plane over the weights, and a bend (Matern 3/2). g_b is what the draw of the items put into
    the block, one draw for all soups: soups with similar weights answer alike, so their difference on shared items is
    sharp. This pairing is why a search needs few items. Scales and correlations are mixed by their evidence (Rasmussen
    and Williams 2006, chapters 2 and 5).

    S soups, C categories, B blocks of a category at most, I items of the fold, K ingredients.
    `asked` [S, C, B] marks blocks that were asked; those that are not answered yet count in the variances.
    """

    def __init__(self, table: FloatArray, blocks: Sequence[Sequence[IntArray]], coefficients: FloatArray) -> None:
        """Weights `table` [S, K] of soups, positions `blocks[c][b]` of items, `coefficients` [C] of the objective."""
        self.table, self.blocks, self.weights = table, blocks, coefficients
        self._apart = np.sqrt(((table[:, None] - table) ** 2).sum(-1))
        self._inside = 1 - (table**2).sum(1)
        most = max(map(len, blocks))
        self.size = np.array([[*map(len, row), *[np.inf] * (most - len(row))] for row in blocks], dtype=float)
        self.asked: NDArray[np.bool_] = np.zeros((len(table), *self.size.shape), dtype=bool)
        self.score = np.full(self.asked.shape, np.nan)
        self.values = np.full((len(table), sum(len(block) for row in blocks for block in row)), np.nan)
        self._cache = dict[int, tuple[bytes, tuple[FloatArray, ...]]]()

    # ---------------------------------------------------------------- answers

    def observe(self, soup: int, items: slice | list[int], values: FloatArray) -> None:
        """Take in a soup's scores on some items of the fold."""
        self.values[soup, items] = values
        for c, row in enumerate(self.blocks):
            self.score[soup, c, : len(row)] = [self.values[soup, block].mean() for block in row]

    @property
    def known(self) -> int:
        return int(np.isfinite(self.values).sum())

    @property
    def left(self) -> NDArray[np.bool_]:
        """Blocks that were not asked [S, C, B]."""
        return np.asarray(np.isfinite(self.size) & ~self.asked)

    def ask_rest(self, soup: int) -> None:
        """Mark all of the fold as asked of a soup."""
        self.asked[soup] = np.isfinite(self.size)

    def rest(self, soup: int) -> list[int]:
        """Items of the fold that a soup was not asked."""
        return [int(item) for c, b in np.argwhere(self.left[soup]) for item in self.blocks[c][b]]

    # ---------------------------------------------------------------- prior

    def fit(self) -> None:
        """Level, noise, signal and correlation of each category from its answers."""
        self._cache.clear()
        alike = [s + (1 - s) * np.exp(-self._apart / r) for s, r in itertools.product(SHARED, REACH)]
        parts = [self._category(c, np.stack(alike)) for c in range(len(self.blocks))]
        self.level, self.noise, self.signal = (list(part) for part in zip(*parts, strict=True))

    def _category(self, c: int, alike: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Level [S], noise [S, S] of one item's score and signal [S, S] of a category."""
        values = self.values[:, np.concatenate(self.blocks[c])]
        values = values[np.isfinite(values).sum(1) > 1]
        level = (float(np.nanmean(values, 1).mean()) if len(values) else 0.5) + RISE * self._inside
        noise = max(float(np.nanvar(values, 1, ddof=1).mean()), FLOOR) if len(values) else UNKNOWN
        soup, block, mean = (part[np.isfinite(self._cells(c)[2])] for part in self._cells(c))
        far = np.sqrt(3) * self._apart / LENGTH
        shape = PLANE**2 * self.table @ self.table.T + BEND**2 * (1 + far) * np.exp(-far)
        base = LEVEL**2 + RISE**2 * np.outer(self._inside, self._inside)
        signals = base + np.square(SCALES)[:, None, None] * shape
        both = np.ix_(soup, soup)
        same = (block[:, None] == block) / self.size[c, block]
        joint = signals[:, None][(..., *both)] + noise * (alike[(..., *both)] * same)[None] + JITTER * np.eye(len(soup))
        lower = np.linalg.cholesky(joint)
        shift = np.linalg.solve(lower, np.broadcast_to((mean - level[soup])[:, None], (*lower.shape[:-1], 1)))[..., 0]
        score = -(shift**2).sum(-1) / 2 - np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(-1)
        share = np.exp(score - score.max()) * np.exp(-HELD * np.log(SCALES) ** 2)[:, None]
        share /= share.sum()
        return level, noise * np.tensordot(share.sum(0), alike, 1), np.tensordot(share.sum(1), signals, 1)

    # ---------------------------------------------------------------- posterior

    def _cells(self, c: int) -> tuple[IntArray, IntArray, FloatArray]:
        """(soup, block, mean score) of the blocks of a category that were asked; nan while they are not answered."""
        soup, block = np.nonzero(self.asked[:, c])
        return soup, block, self.score[soup, c, block]

    def posterior(self, c: int) -> tuple[FloatArray, ...]:
        """Of a category: mean [S], covariance [S, S], covariance [S, S] of each mean with the next block of each soup,
        variance [S] of that block's score, and the surprise (sum of squared standardised residuals, and how many)."""
        key = self.asked[:, c].tobytes() + self.score[:, c].tobytes()
        if c not in self._cache or self._cache[c][0] != key:
            self._cache[c] = key, self._condition(c)
        return self._cache[c][1]

    def _condition(self, c: int) -> tuple[FloatArray, ...]:
        soup, block, value = self._cells(c)
        signal, noise, coming = self.signal[c], self.noise[c], self.left[:, c].argmax(-1)
        same = (block[:, None] == block) / self.size[c, block]
        joint = signal[np.ix_(soup, soup)] + noise[np.ix_(soup, soup)] * same + JITTER * np.eye(len(soup))
        ahead = signal[soup] + noise[soup] * (block[:, None] == coming) / self.size[c, coming]
        lower, known = np.linalg.cholesky(joint), np.isfinite(value)
        seen, cell = (np.linalg.solve(lower, part) for part in (signal[soup], ahead))
        residual = (value - self.level[c][soup])[known]
        pull = np.linalg.solve(joint[np.ix_(known, known)], residual)
        spread = np.diag(signal) + np.diag(noise) / self.size[c, coming] - (cell**2).sum(0)
        mean = self.level[c] + signal[:, soup[known]] @ pull
        return mean, signal - seen.T @ seen, signal - seen.T @ cell, spread, np.array([residual @ pull, len(pull)])

    def objective(self) -> tuple[FloatArray, FloatArray]:
        """Posterior mean [S] and covariance [S, S] of the objective."""
        parts = [self.posterior(c) for c in range(len(self.blocks))]
        mean = np.sum([w * part[0] for w, part in zip(self.weights, parts, strict=True)], 0)
        return mean, np.sum([w**2 * part[1] for w, part in zip(self.weights, parts, strict=True)], 0)

    def finishing_gain(self, soups: IntArray) -> float:
        """Expected gain of the pick (fractions of 1) if these soups, the leader first, answered the rest of the fold.

        Their posterior means will move by a normal of the variance that the answers take away.
        """
        (mean, cov), asked = self.objective(), self.asked
        self.asked = np.where(np.isin(np.arange(len(asked)), soups)[:, None, None], np.isfinite(self.size), asked)
        after = self.objective()[1]
        self.asked = asked
        moved = mean[soups] + draws((cov - after)[np.ix_(soups, soups)], 512)
        return float((moved.max(1) - moved[:, 0]).mean())

    def surprise(self) -> float:
        """How much more than believed the answers vary: a factor on variances, 1 where nothing was answered."""
        total, count = np.sum([self.posterior(c)[4] for c in range(len(self.blocks))], 0)
        return float((1 + total) / (1 + count))


def expected_improvement(mean: FloatArray, cov: FloatArray, most: int) -> tuple[int, IntArray, FloatArray]:
    """Leader, its rivals by expected improvement over it, and the derivative of each one's to the variance of its
    difference (Jones et al. 1998: EI = s (phi(z) + z Phi(z)), so dEI / ds^2 = phi(z) / 2s)."""
    leader = int(np.argmax(mean))
    sd = np.sqrt(difference_variances(cov, leader))
    z = (mean - mean[leader]) / sd
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    improvement = sd * (density + z * [(1 + math.erf(value / math.sqrt(2))) / 2 for value in z])
    improvement[leader] = -1
    rivals: IntArray = np.argsort(-improvement, kind="stable")[: min(most, len(mean) - 1)]
    return leader, rivals, density[rivals] / (2 * sd[rivals])


def difference_variances(cov: FloatArray, soup: int) -> FloatArray:
    """Variance of each soup's difference to one of them [S], from a covariance [S, S]; never quite zero."""
    return np.asarray(np.maximum(np.diag(cov) + cov[soup, soup] - 2 * cov[soup], TINY))


def draws(cov: FloatArray, count: int) -> FloatArray:
    """Samples [count, S] of a normal with mean zero, always the same stream."""
    values, vectors = np.linalg.eigh(cov)
    half = vectors * np.sqrt(np.maximum(values, 0))
    return np.asarray(np.random.default_rng(0).standard_normal((count, len(cov))) @ half.T)
