"""Running adaptive search: the cell (soup, items of some categories) that most sharpens who leads, cell after cell.

A surrogate, one Gaussian process per category, is fitted to the answers. Its leader is the soup with the highest
posterior mean of the objective; its rivals are those with the highest expected improvement over the leader. The next
cell is the one that takes most off the expected improvement of the rivals, by its price. At the end the leader answers
the rest of the fold, and the posterior's best of the soups that answered the whole fold wins; if the budget is too
small for that, the posterior's best of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from souping.core import simplex
from souping.core.protocols import Optimiser
from souping.core.types import Cell, FloatArray, IntArray, Json, Result, SearchSpace, UserError, Weights
from souping.search import beliefs
from souping.search.fold import FoldAnswers, FoldLayout
from souping.search.soups import SoupModel
from souping.search.surrogate import Surrogate

RIVALS, FINALISTS, SHOWN = 12, 3, 20
"""Rivals looked at, soups that may finish the fold at the end, equals that are named."""
ENOUGH = 0.001
"""Expected gain from finishing the fold below which a search ends: 0.1 points."""
GROWTH = 1.6
"""The prior is fitted anew when this many times more answers are known."""


class AdaptiveSearch(Optimiser):
    """Running adaptive search over `points`, which stops by itself where `stops`. Cells that are open count as known,
    at their expected values."""

    def __init__(
        self, points: Sequence[Weights], space: SearchSpace, seed: int, stops: bool, budget: int | None
    ) -> None:
        self._space, self._stops, self._budget = space, stops, budget
        self._points: list[Weights] = list(dict.fromkeys(tuple(map(float, p)) for p in points))
        self._numbers = {p: n for n, p in enumerate(self._points)}
        self._table = np.array(self._points)
        self._layout = FoldLayout.of(space, seed)
        self._answers = FoldAnswers(self._layout, len(self._points))
        self._open: list[Cell] = []
        self._spent = self._finals = 0
        self._why, self._looked = "", 0
        if space.singles is not None:
            for single, vertex in zip(space.singles, simplex.vertices(len(space.ingredients)), strict=True):
                if vertex in self._numbers:
                    self._answers.hear(self._numbers[vertex], None, single)
        self._model = SoupModel(self._table, self._layout)
        self._fitted = self._answers.told
        self._surrogate = self._model.fit(self._answers, None)

    # ------------------------------------------------------------ surrogate

    def _refit(self) -> None:
        """The surrogate anew from all that was told."""
        self._fitted = self._answers.told
        self._surrogate = self._model.fit(self._answers, self._surrogate.mean)

    def _believed(self) -> tuple[Surrogate, IntArray]:
        """Surrogate and depths with the open cells counted as answered."""
        if not self._open:
            return self._surrogate, self._answers.depth
        surrogate, depth = self._surrogate.copy(), self._answers.depth.copy()
        for cell in self._open:
            soup = self._numbers[cell.weights]
            for category, block in self._answers.parts(soup, cell.items):
                surrogate.observe(category, soup, block)
                depth[soup, category] += 1
        return surrogate, depth

    # ------------------------------------------------------------ asking

    def ask(self) -> Cell | None:
        if not self._why:
            surrogate, depth = self._believed()
            cell = self._next(surrogate, depth)
            if cell is not None:
                return self._opened(cell)
        if self._open:
            return None
        if self._fitted < self._answers.told:
            self._refit()
        cell = self._confirm()
        return None if cell is None else self._opened(cell)

    def _opened(self, cell: Cell) -> Cell:
        """Take note that a cell is asked."""
        self._open.append(cell)
        self._spent += self._layout.items if cell.items is None else len(cell.items)
        return cell

    def _next(self, surrogate: Surrogate, depth: IntArray) -> Cell | None:
        """The cell that most sharpens who leads; None, with the reason noted, where exploring ends."""
        weights, left = self._layout.weights, depth < self._layout.counts
        leader, rivals, urgency = beliefs.expected_improvement(surrogate, weights, RIVALS)
        self._why = self._reason(surrogate, depth, leader, rivals)
        if self._why:
            return None
        block = np.where(left, depth, 0)
        worth = np.tensordot(urgency, surrogate.reduction(leader, rivals, weights, block), (0, 1)).T
        size = self._layout.sizes[np.arange(len(weights)), block]
        soup, categories = self._choose(np.where(left, worth, 0.0), np.where(left, size, np.inf))
        items = tuple(int(i) for c in categories for i in self._layout.blocks[c][block[soup, c]])
        if not self._affords(len(items) + len(self._answers.rest(leader, depth))):
            self._why = "the budget ends"
            return None
        return Cell(weights=self._points[soup], items=None if self._space.whole else items)

    def _reason(self, surrogate: Surrogate, depth: IntArray, leader: int, rivals: IntArray) -> str:
        """Why exploring ends here; empty where it goes on."""
        if not (depth < self._layout.counts).any():
            return "every soup has answered the whole fold"
        if self._stops and self._due():
            gain = beliefs.finishing_gain(surrogate, self._layout, depth, leader, rivals)
            if gain < ENOUGH:
                return f"finishing the fold would gain {100 * gain:.2f} points"
        return ""

    def _due(self) -> bool:
        """Whether a third of a fold was told since the stop rule was looked at."""
        if self._spent < self._looked + self._layout.items // 3:
            return False
        self._looked = self._spent
        return True

    def _affords(self, items: int) -> bool:
        return self._budget is None or self._spent + items <= self._budget

    def _choose(self, worth: FloatArray, size: FloatArray) -> tuple[int, list[int]]:
        """The soup, and its categories, of the best worth a price; never less than a batch unless that pays."""
        if self._space.whole:
            total = np.where(np.isfinite(size).all(1), worth.sum(1), -1.0)
            return int(np.argmax(total)), list(range(worth.shape[1]))
        order = np.argsort(-worth / size, 1, kind="stable")
        gain = np.cumsum(np.take_along_axis(worth, order, 1), 1)
        items = np.cumsum(np.take_along_axis(size, order, 1), 1)
        ratio = np.where(np.isfinite(items), gain / np.maximum(items, self._space.block), -1.0)
        soup = int(np.argmax(ratio.max(1)))
        return soup, sorted(int(c) for c in order[soup, : ratio[soup].argmax() + 1])

    def _confirm(self) -> Cell | None:
        """The rest of the fold for the best soup that the budget lets finish; None once the best has answered all."""
        mean = self._layout.weights @ self._surrogate.mean
        for soup in np.argsort(-mean, kind="stable"):
            rest = self._answers.rest(int(soup))
            if not rest or self._finals >= FINALISTS:
                return None
            if self._affords(len(rest)):
                self._finals += 1
                whole = self._space.whole or len(rest) == self._layout.items
                return Cell(weights=self._points[int(soup)], items=None if whole else tuple(rest))
        return None

    # ------------------------------------------------------------ telling

    def tell(self, cell: Cell, result: Result) -> None:
        self._open.remove(cell)
        soup = self._numbers[cell.weights]
        for category, block, score in self._answers.hear(soup, cell.items, result.values):
            self._surrogate.observe(category, soup, block, score)
        if self._answers.told >= GROWTH * self._fitted:
            self._refit()

    def best(self) -> Weights:
        """The posterior's best of those that answered the whole fold; of all, where the search was cut short."""
        if not self._answers.depth.any():
            raise UserError("the search ended without a result: raise optimiser.trials or optimiser.budget")
        mean = self._layout.weights @ self._surrogate.mean
        asked = np.flatnonzero(self._answers.depth.any(1))
        done = self._answers.complete if self._why and len(self._answers.complete) else asked
        size = (self._table[done] > 0).sum(1)
        return self._points[int(done[np.lexsort((size, -mean[done].round(9)))[0]])]

    def summary(self) -> Mapping[str, Json]:
        """What the search says of itself: points are of 100."""
        weights = self._layout.weights
        alike = beliefs.indistinguishable(self._surrogate, weights, self._numbers[self.best()])
        leader, rivals, _ = beliefs.expected_improvement(self._surrogate, weights, RIVALS)
        gain = beliefs.next_items(self._surrogate, self._layout, self._answers.depth, leader, rivals)
        return {
            "stopped": self._why or "a limit of the run",
            "indistinguishable": [list(self._points[s]) for s in alike[:SHOWN]],
            "indistinguishable_count": len(alike),
            "next_100_items_gain": round(100 * gain, 3),
        }
