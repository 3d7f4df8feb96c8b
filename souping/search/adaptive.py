"""Adaptive search: the cell (soup, items of some categories) that most sharpens who leads, cell after cell.

A surrogate (a Gaussian process a category) knows what was answered. Its leader is the soup with the highest posterior
mean of the objective; its rivals are those with the highest expected improvement over the leader. The next cell is the
one that takes most off the expected improvement of the rivals a price, as far as that comes from not knowing. At the
end the leader answers the rest of the fold, and the posterior's best of the soups that answered the whole fold wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from souping.core.protocols import Optimiser, Strategy
from souping.core.text import Count
from souping.core.types import Cell, FloatArray, IntArray, Json, Result, SearchSpace, UserError, Weights
from souping.search.beliefs import expected_improvement, finishing_gain, outlook
from souping.search.guide import JURY, MARGIN, LikelihoodGuide, guided, left_out
from souping.search.kernels import Kernel, agreeing
from souping.search.layout import FoldLayout
from souping.search.points import Grid
from souping.search.surrogate import KnownCells, Prior, Surrogate, evidence

POINTS, RIVALS, FLOOR = 240, 12, 0.02
"""Soups at most, rivals looked at, least variance of an item's score."""
SCALES, LENGTHS = (0.35, 0.6, 1.0, 1.6), (0.4, 0.75, 1.4)
"""Scales and lengths of the prior's signal among which the evidence chooses."""
ENOUGH = 0.001
"""Expected gain from finishing the fold below which a search ends: 0.1 points."""
FINALISTS = 3


class AdaptiveSearch(Optimiser):
    """Running adaptive search over `points` [S, K]. Cells that are open count as known, at their expected values."""

    def __init__(self, space: SearchSpace, points: Sequence[Weights], seed: int, budget: int | None, auto: bool, guide: bool = False) -> None:
        self._points, self._space = [tuple(map(float, p)) for p in points], space
        self._numbers = {p: n for n, p in enumerate(self._points)}
        self._layout = layout = FoldLayout.of(space, seed)
        self._budget, self._auto = budget, auto
        self._values = np.full((len(points), layout.items), np.nan)
        self._depth = np.zeros((len(points), len(layout.counts)), dtype=int)
        self._open: list[Cell] = []
        self._spent = self._finals = 0
        self._kernel, self._table = Kernel(), np.array(self._points)
        self._surrogate: Surrogate | None = None
        self._design, self._fitted = 1.0, 0
        self._why, self._asked_last = "", -1
        self._guide = LikelihoodGuide(self._points, self._table) if guide and space.margins else None
        self._verdict, self._trusted = "none", False
        self._start(space.singles)

    def _start(self, singles: FloatArray | None) -> None:
        for k in range(len(self._space.ingredients)) if singles is not None else ():
            vertex = tuple(float(j == k) for j in range(len(self._space.ingredients)))
            if singles is not None and vertex in self._numbers:
                self._values[self._numbers[vertex]] = singles[k]
        self._depth[~np.isnan(self._values).any(1)] = self._layout.counts
        self._refit()

    # ------------------------------------------------------------ surrogate

    def _refit(self) -> None:
        """The surrogate anew from all that was told, with the prior that explains it best."""
        self._fitted = int(np.isfinite(self._values).sum())
        known, level, residuals = self._known(), self._levels(), self._residuals()
        self._kernel = agreeing(Kernel(), self._table, residuals)
        noise = self._noise(residuals)
        level = np.repeat(level[:, None], len(self._table), 1)
        priors = [
            Prior(np.repeat(kernel.signal(self._table)[None], len(level), 0), noise, level)
            for kernel in (
                replace(self._kernel, plane=self._kernel.plane * a, bend=self._kernel.bend * a, length=b)
                for a in SCALES
                for b in LENGTHS
            )
        ]
        best = max(priors, key=lambda prior: evidence(prior, self._layout.sizes, known))
        self._plain, self._trusted = best, False
        if self._guide is not None and self._guide.ready:
            best = self._judge(self._guide, best, known)
        self._surrogate = Surrogate(best, self._layout.sizes, known)

    def _judge(self, guide: LikelihoodGuide, plain: Prior, known: Sequence[KnownCells]) -> Prior:
        """The guided prior where it explains mixed soups better than the plain one, each left out in turn."""
        vertices = (self._table.max(1) == 1).astype(float)
        other = guided(plain, guide.covariate(self._layout.blocks), self._kernel.level, vertices)
        jury = [int(s) for s in np.flatnonzero(self._depth.any(1)) if not vertices[s]]
        if len(jury) < JURY:
            self._verdict = f"not trusted: {len(jury)} mixed soups answered, {JURY} decide"
            return plain
        scores = [left_out(prior, self._layout.sizes, known, jury) for prior in (other, plain)]
        self._trusted = scores[0] - scores[1] > MARGIN
        said = "trusted" if self._trusted else "not trusted"
        self._verdict = f"{said}: log score {scores[0] - scores[1]:+.1f} on {len(jury)} mixed soups"
        return other if self._trusted else plain

    def _known(self) -> list[KnownCells]:
        """What was told, category by category."""
        blocks = self._layout.sizes.shape[1]
        found = []
        for c, row in enumerate(self._layout.blocks):
            cells = [(s, b) for s in range(len(self._points)) for b in range(self._depth[s, c])]
            values = [float(self._values[s, row[b]].mean()) for s, b in cells]
            found.append(KnownCells(np.array([s * blocks + b for s, b in cells], dtype=int), np.array(values)))
        return found

    def _levels(self) -> FloatArray:
        """Mean score of each category over the soups that were asked [C]."""
        means = [[self._values[s, np.concatenate(row)] for s in range(len(self._points))] for row in self._layout.blocks]
        rows = [[float(np.nanmean(v)) for v in soups if np.isfinite(v).any()] for soups in means]
        return np.array([np.mean(row) if row else 0.5 for row in rows])

    def _residuals(self) -> FloatArray:
        """Scores minus the soup's mean of the category [S, I], nan where there is none."""
        residuals = np.full_like(self._values, np.nan)
        for row in self._layout.blocks:
            items = np.concatenate(row)
            scores = self._values[:, items]
            count = np.isfinite(scores).sum(1, keepdims=True)
            mean = np.nansum(scores, 1, keepdims=True) / np.maximum(count, 1)
            residuals[:, items] = np.where(count > 1, (scores - mean) * np.sqrt(count / np.maximum(count - 1, 1)), np.nan)
        return residuals

    def _noise(self, residuals: FloatArray) -> FloatArray:
        """Covariance of one item's score [C, S, S]: a score near 0 or 1 varies less, as mean (1 - mean)."""
        alike = self._kernel.noise(self._table)
        noise = []
        for c, row in enumerate(self._layout.blocks):
            items = np.concatenate(row)
            found = residuals[:, items] ** 2
            spread = float(np.nanmean(found)) if np.isfinite(found).any() else 0.2
            deviation = np.full(len(self._points), np.sqrt(max(spread, FLOOR)))
            if self._surrogate is not None:
                mean = self._surrogate.mean[c].clip(0.04, 0.96)
                shape = mean * (1 - mean)
                seen = np.isfinite(found).any(1)
                deviation *= np.sqrt(shape / shape[seen].mean()) if seen.any() else 1.0
            noise.append(deviation[:, None] * deviation * alike)
        return np.array(noise) * self._design
    
    def _observe(self, surrogate: Surrogate, category: int, soup: int, block: int) -> None:
        items = self._layout.blocks[category][block]
        surrogate.observe(category, soup, block, float(self._values[soup, items].mean()))

    # ------------------------------------------------------------ asking

    def ask(self) -> Cell | None:
        if self._guide is not None and self._guide.wanted:
            self._open.append(Cell(weights=self._guide.wanted.pop(0), wants="margins"))
            return self._open[-1]
        surrogate, depth = self._believed()
        cell = None if self._why else self._next(surrogate, depth)
        if cell is None:
            cell = self._confirm(surrogate, depth)
        if cell is not None:
            self._open.append(cell)
            self._spent += len(cell.items or ()) or self._layout.items
        return cell

    def _believed(self) -> tuple[Surrogate, IntArray]:
        """Surrogate and depths with the open cells counted as answered."""
        if not self._open:
            return self._surrogate, self._depth
        surrogate, depth = self._surrogate.copy(), self._depth.copy()
        for cell in (c for c in self._open if c.wants == "scores"):
            for category, block in self._parts(cell):
                surrogate.observe(category, self._numbers[cell.weights], block)
                depth[self._numbers[cell.weights], category] += 1
        return surrogate, depth

    def _parts(self, cell: Cell) -> list[tuple[int, int]]:
        """(category, block) of a cell that are not told yet."""
        wanted = set(range(self._layout.items) if cell.items is None else cell.items)
        soup = self._numbers[cell.weights]
        return [
            (c, b)
            for c, row in enumerate(self._layout.blocks)
            for b in range(self._depth[soup, c], len(row))
            if int(row[b][0]) in wanted
        ]

    def _next(self, surrogate: Surrogate, depth: IntArray) -> Cell | None:
        """The cell that most sharpens who leads; None, with the reason noted, where exploring ends."""
        mean, cov = surrogate.objective(self._layout.weights)
        leader, rivals, urgency = expected_improvement(mean, cov, RIVALS)
        if self._auto and self._due() and (gain := finishing_gain(surrogate, self._layout, depth, leader, rivals)) < ENOUGH:
            self._why = f"finishing the fold would gain {100 * gain:.2f} points"
            return None
        weights = self._layout.weights
        drop = np.einsum("r,crm->cm", urgency, surrogate.reduction(leader, rivals, weights))
        left = depth < self._layout.counts
        if not left.any():
            self._why = "every soup has answered the whole fold"
            return None
        block = np.where(left, depth, 0)
        categories = np.arange(len(weights))
        worth = drop[categories, np.arange(len(depth))[:, None] * surrogate.blocks + block]
        size = self._layout.sizes[categories, block]
        worth, size = np.where(left, worth, 0.0), np.where(left, size, np.inf)
        soup, chosen = self._choose(worth, size)
        items = [int(i) for c in chosen for i in self._layout.blocks[c][block[soup, c]]]
        if self._budget is not None and self._spent + len(items) + self._rest(leader, depth) > self._budget:
            self._why = "the budget ends"
            return None
        return Cell(weights=self._points[soup], items=None if self._space.whole else tuple(items))

    def _due(self) -> bool:
        """Whether half a fold was told since the stop rule was looked at."""
        told = int(np.isfinite(self._values).sum())
        if told < self._asked_last + self._layout.items // 2:
            return False
        self._asked_last = told
        return True

    def _choose(self, worth: FloatArray, size: FloatArray) -> tuple[int, list[int]]:
        """The soup, and its categories, of the best worth a price; a batch is never smaller than pays."""
        if self._space.whole:
            return int(np.argmax(worth.sum(1))), list(range(worth.shape[1]))
        order = np.argsort(-worth / size, 1, kind="stable")
        gain = np.cumsum(np.take_along_axis(worth, order, 1), 1)
        items = np.cumsum(np.take_along_axis(size, order, 1), 1)
        ratio = np.where(np.isfinite(items), gain / np.maximum(items, self._space.block), -1.0)
        soup, last = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        return int(soup), sorted(int(c) for c in order[soup, : last + 1])

    def _rest(self, soup: int, depth: IntArray) -> int:
        """Items of the fold that a soup has not been asked."""
        asked = np.arange(self._layout.sizes.shape[1]) < depth[soup][:, None]
        return int(self._layout.sizes[~asked].sum())

    def _confirm(self, surrogate: Surrogate, depth: IntArray) -> Cell | None:
        """The rest of the fold for the leader, as long as the leader has not answered it and the budget allows."""
        if self._open or self._finals >= FINALISTS:
            return None
        mean, _ = surrogate.objective(self._layout.weights)
        leader = int(np.argmax(mean))
        rest = self._rest(leader, depth)
        if not rest or (self._budget is not None and self._spent + rest > self._budget):
            return None
        self._finals += 1
        items = [
            int(i) for c, row in enumerate(self._layout.blocks) for part in row[depth[leader, c] :] for i in part
        ]
        whole = self._space.whole or len(items) == self._layout.items
        return Cell(weights=self._points[leader], items=None if whole else tuple(items))

    # ------------------------------------------------------------ telling

    def tell(self, cell: Cell, result: Result) -> None:
        if self._guide is not None and cell.wants == "margins":
            self._open = [c for c in self._open if c != cell]
            self._guide.hear(cell.weights, result.values)
            return
        parts = self._parts(cell)
        self._open = [c for c in self._open if c != cell]
        soup = self._numbers[cell.weights]
        positions = np.arange(self._layout.items) if cell.items is None else np.array(cell.items)
        self._values[soup, positions] = result.values
        for category, block in parts:
            self._observe(self._surrogate, category, soup, block)
            self._depth[soup, category] += 1
        if int(np.isfinite(self._values).sum()) >= 2 * self._fitted:
            self._refit()

    def best(self) -> Weights:
        done = np.flatnonzero((self._depth == self._layout.counts).all(1))
        if not len(done):
            raise UserError("the search ended without a result: raise optimiser.trials or optimiser.budget")
        mean, _ = self._surrogate.objective(self._layout.weights)
        return self._points[int(done[np.argmax(mean[done].round(12))])]

    def summary(self) -> Mapping[str, Json]:
        mean, cov = self._surrogate.objective(self._layout.weights)
        pick = self._numbers[self.best()]
        told = outlook(mean, cov, pick)
        return {"why": self._why, "guide": self._verdict, "within_1_point": told.within, "expected_regret": told.regret}


@dataclass(frozen=True, kw_only=True)
class Adaptive(Strategy):
    """Surrogate over the grid's points that chooses soups and items; `stop=auto` ends it when more cannot pay."""

    step: float = 0.1
    stop: Literal["auto", "never"] = "auto"
    guide: Literal["likelihood", "none"] = "likelihood"
    trials: Count | None = None
    budget: Count | None = None

    def start(self, space: SearchSpace, seed: int) -> AdaptiveSearch:
        points = Grid(step=self.step).known_points(len(space.ingredients))[:POINTS]
        return self.over(points, space, seed)

    def over(self, points: Sequence[Weights], space: SearchSpace, seed: int) -> AdaptiveSearch:
        """A search over these points."""
        return AdaptiveSearch(space, points, seed, self.budget, self.stop == "auto", self.guide == "likelihood")

    def count(self, size: int) -> int | None:
        return None

    def describe(self, size: int) -> str:
        return "adaptive"
