"""Running adaptive search: the cell (soup, items of some categories) that most sharpens who leads, cell after cell.

A surrogate (a Gaussian process a category; a random-effects model where soups have no weights in common) knows what was
answered. Its leader is the soup with the highest posterior mean of the objective; its rivals are those with the highest
expected improvement over the leader. The next cell is the one that takes most off the expected improvement of the
rivals a price. At the end the leader answers the rest of the fold, and the posterior's best of the soups that answered
the whole fold wins; where the budget is too small for that, the posterior's best of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from souping.core import simplex
from souping.core.protocols import Optimiser
from souping.core.types import Cell, FloatArray, IntArray, Json, Result, SearchSpace, UserError, Weights
from souping.search import beliefs
from souping.search.arms import ArmsModel
from souping.search.fold import FoldAnswers, FoldLayout
from souping.search.guide import LikelihoodGuide
from souping.search.soups import SoupModel

RIVALS, FINALISTS, SHOWN = 12, 3, 20
"""Rivals looked at, soups that may finish the fold at the end, equals that are named."""
ENOUGH = 0.001
"""Expected gain from finishing the fold below which a search ends: 0.1 points."""
CONFIRMED = 4
"""Folds in a budget below which a pick among models without weights in common is not asked for the rest of the fold:
the answers are needed to find it."""
CROWD = 100
"""Models without weights in common for each one that is asked between two looks at who leads."""
GROWTH = 1.6
"""The prior is fitted anew when this many times more answers are known."""


@dataclass(frozen=True, kw_only=True)
class SearchRules:
    """When a search ends, and whether a guide may help."""

    auto: bool = True
    guide: bool
    budget: int | None = None


class AdaptiveSearch(Optimiser):
    """Running adaptive search over `points`. Cells that are open count as known, at their expected values."""

    def __init__(self, rules: SearchRules, points: Sequence[Weights], space: SearchSpace, seed: int) -> None:
        self._rules, self._space = rules, space
        self._points: list[Weights] = list(dict.fromkeys(tuple(map(float, p)) for p in points))
        self._numbers = {p: n for n, p in enumerate(self._points)}
        self._table = np.array(self._points)
        arms = bool((self._table.max(1) == 1).all())
        self._layout = FoldLayout.of(space, seed, merged=arms)
        self._answers = FoldAnswers(self._layout, len(self._points))
        self._open: list[Cell] = []
        self._planned: list[tuple[int, tuple[int, ...]]] = []
        self._at_once = max(len(self._points) // CROWD, 1) if arms else 1
        self._spent = self._finals = self._leader = 0
        self._why, self._looked = "", 0
        guided = rules.guide and space.margins and not arms
        self._guide = LikelihoodGuide(self._points, self._table) if guided else None
        if space.singles is not None:
            for single, vertex in zip(space.singles, simplex.vertices(len(space.ingredients)), strict=True):
                if vertex in self._numbers:
                    self._answers.hear(self._numbers[vertex], None, single)
        self._confirms = rules.budget is None or not arms or rules.budget >= CONFIRMED * self._layout.items
        self._model = ArmsModel(self._layout) if arms else SoupModel(self._table, self._layout, self._guide)
        self._fitted = self._answers.told
        self._surrogate: beliefs.Posterior = self._model.fit(self._answers, None)

    # ------------------------------------------------------------ surrogate

    def _refit(self) -> None:
        """The surrogate anew from all that was told."""
        self._fitted = self._answers.told
        self._surrogate = self._model.fit(self._answers, self._surrogate.mean)

    def _believed(self) -> tuple[beliefs.Posterior, IntArray]:
        """Surrogate and depths with the open cells counted as answered."""
        if not self._open:
            return self._surrogate, self._answers.depth
        surrogate, depth = self._surrogate.copy(), self._answers.depth.copy()
        for cell in (cell for cell in self._open if cell.wants == "scores"):
            soup = self._numbers[cell.weights]
            for category, block in self._answers.parts(soup, cell.items):
                surrogate.observe(category, soup, block)
                depth[soup, category] += 1
        return surrogate, depth

    # ------------------------------------------------------------ asking

    def ask(self) -> Cell | None:
        if self._guide is not None and self._guide.wanted:
            return self.opened(Cell(weights=self._guide.wanted.pop(0), wants="margins"))
        if not self._why:
            surrogate, depth = self._believed()
            cell = self._next(surrogate, depth)
            if cell is not None:
                return self.opened(cell)
        if self._open:
            return None
        if self._fitted < self._answers.told:
            self._refit()
        cell = self._confirm()
        return None if cell is None else self.opened(cell)

    def opened(self, cell: Cell) -> Cell:
        """Take note that a cell is asked."""
        self._open.append(cell)
        if cell.wants == "scores":
            self._spent += self._layout.items if cell.items is None else len(cell.items)
        return cell

    def _next(self, surrogate: beliefs.Posterior, depth: IntArray) -> Cell | None:
        """The cell that most sharpens who leads; None, with the reason noted, where exploring ends."""
        if not self._planned:
            self._planned = self._plan(surrogate, depth)
        if not self._planned:
            return None
        soup, items = self._planned.pop(0)
        if not self._affords(len(items) + self._confirms * len(self._answers.rest(self._leader, depth))):
            self._why = "the budget ends"
            return None
        return Cell(weights=self._points[soup], items=None if self._space.whole else items)

    def _plan(self, surrogate: beliefs.Posterior, depth: IntArray) -> list[tuple[int, tuple[int, ...]]]:
        """Soups and items that most sharpen who leads, `_at_once` of them; none, with the reason noted, at the end."""
        weights, left = self._layout.weights, depth < self._layout.counts
        self._leader, rivals, urgency = beliefs.expected_improvement(surrogate, weights, RIVALS)
        if not left.any():
            self._why = "every soup has answered the whole fold"
        elif self._rules.auto and self._due():
            gain = beliefs.finishing_gain(surrogate, self._layout, depth, self._leader, rivals)
            if gain < ENOUGH:
                self._why = f"finishing the fold would gain {100 * gain:.2f} points"
        if self._why:
            return []
        block = np.where(left, depth, 0)
        worth = np.tensordot(urgency, surrogate.reduction(self._leader, rivals, weights, block), (0, 1)).T
        size = self._layout.sizes[np.arange(len(weights)), block]
        chosen = self._choose(np.where(left, worth, 0.0), np.where(left, size, np.inf))
        return [(s, tuple(int(i) for c in row for i in self._layout.blocks[c][block[s, c]])) for s, row in chosen]

    @property
    def ends(self) -> bool:
        """Whether finishing the fold can no longer pay."""
        leader, rivals, _ = beliefs.expected_improvement(self._surrogate, self._layout.weights, RIVALS)
        gain = beliefs.finishing_gain(self._surrogate, self._layout, self._answers.depth, leader, rivals)
        self._why = f"finishing the fold would gain {100 * gain:.2f} points" if gain < ENOUGH else self._why
        return gain < ENOUGH

    def _due(self) -> bool:
        """Whether a third of a fold was told since the stop rule was looked at."""
        if self._spent < self._looked + self._layout.items // 3:
            return False
        self._looked = self._spent
        return True

    def _affords(self, items: int) -> bool:
        return self._rules.budget is None or self._spent + items <= self._rules.budget

    def _choose(self, worth: FloatArray, size: FloatArray) -> list[tuple[int, list[int]]]:
        """Soups, and categories of each, of the best worth a price; never less than a batch unless that pays."""
        if self._space.whole:
            total = np.where(np.isfinite(size).all(1), worth.sum(1), -1.0)
            return [(int(np.argmax(total)), list(range(worth.shape[1])))]
        order = np.argsort(-worth / size, 1, kind="stable")
        gain = np.cumsum(np.take_along_axis(worth, order, 1), 1)
        items = np.cumsum(np.take_along_axis(size, order, 1), 1)
        ratio = np.where(np.isfinite(items), gain / np.maximum(items, self._space.block), -1.0)
        last = ratio.argmax(1)
        soups = np.argsort(-ratio.max(1), kind="stable")[: self._at_once]
        return [(int(s), sorted(int(c) for c in order[s, : last[s] + 1])) for s in soups if ratio[s, last[s]] >= 0]

    def _confirm(self) -> Cell | None:
        """The rest of the fold for the best soup that the budget lets finish; None once the best has answered all, or
        where nothing is confirmed."""
        mean = self._layout.weights @ self._surrogate.mean
        for soup in np.argsort(-mean, kind="stable"):
            rest = self._answers.rest(int(soup))
            if not rest or self._finals >= FINALISTS or not self._confirms:
                return None
            if self._affords(len(rest)):
                self._finals += 1
                whole = self._space.whole or len(rest) == self._layout.items
                return Cell(weights=self._points[int(soup)], items=None if whole else tuple(rest))
        return None

    # ------------------------------------------------------------ telling

    def tell(self, cell: Cell, result: Result) -> None:
        self._open.remove(cell)
        if cell.wants == "margins":
            if self._guide is not None:
                self._guide.hear(cell.weights, result.values)
            return
        soup = self._numbers[cell.weights]
        for category, block, score in self._answers.hear(soup, cell.items, result.values):
            self._surrogate.observe(category, soup, block, score)
        if self._answers.told >= GROWTH * self._fitted:
            self._refit()

    def best(self) -> Weights:
        """The posterior's best of those that answered the whole fold; of all, where the search was cut short or
        confirms nothing."""
        if not self._answers.depth.any():
            raise UserError("the search ended without a result: raise optimiser.trials or optimiser.budget")
        mean = self._layout.weights @ self._surrogate.mean
        asked = np.flatnonzero(self._answers.depth.any(1))
        done = self._answers.complete if self._why and self._confirms and len(self._answers.complete) else asked
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
            "guide": self._guide.verdict if self._guide is not None else "none",
        }
