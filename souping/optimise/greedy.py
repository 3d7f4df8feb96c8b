"""Greedy soup (Wortsman et al. 2022, arXiv 2203.05482, recipe 1): grow a uniform soup as long as it gets better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from souping import simplex
from souping.core import UserError, Weights
from souping.optimise.search import Search, capped, check_limits


@dataclass(frozen=True, kw_only=True)
class GreedySoup:
    """Evaluates the single ingredients, then adds them in that order, best first, to a uniform soup.

    An ingredient stays only when the soup with it is strictly better on the search fold. At most 2 K - 1 soups.
    """

    trials: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        check_limits(self.trials, self.budget)

    def start(self, ingredients: Sequence[str], candidates: Sequence[str], seed: int) -> GreedySearch:
        return GreedySearch(len(ingredients))

    def count(self, size: int) -> int | None:
        return capped(2 * size - 1, self.trials)

    def describe(self, size: int) -> str:
        return f"greedy soup: {size} singles, then at most {size - 1} uniform soups"


class GreedySearch(Search):
    """The state is what was asked and told: each ask walks the recipe again as far as the results reach."""

    def __init__(self, size: int) -> None:
        super().__init__(simplex.vertices(size))
        self._size = size

    def ask(self) -> Weights | None:
        """The next soup that the walk needs; results still open count as rejected until they come in."""
        if self.points:
            return super().ask()
        fresh = next((w for w, _ in self._walk() if w not in self.asked), None)
        if fresh is not None:
            self.asked.append(fresh)
        return fresh

    def best(self) -> Weights:
        """The soup as grown so far."""
        if not self.results:
            raise UserError("the search ended without a result: raise optimiser.trials or optimiser.budget")
        kept = self._order()[:1]
        for _, members in self._walk():
            kept = members
        return self._uniform(kept)

    def _walk(self) -> Iterator[tuple[Weights, list[int]]]:
        """(soup to judge, members after judging it) for each ingredient after the first, best first."""
        order = self._order()
        kept = order[:1]
        for number in order[1:]:
            soup = self._uniform([*kept, number])
            if self._told(soup) > self._told(self._uniform(kept)):
                kept = [*kept, number]
            yield soup, kept

    def _order(self) -> list[int]:
        """Ingredients by their own result, best first; equal ones in the pool's order, untold ones last."""
        corners = simplex.vertices(self._size)
        return sorted(range(self._size), key=lambda i: -self._told(corners[i]))

    def _told(self, weights: Weights) -> float:
        return round(self.results.get(weights, float("-inf")), 12)

    def _uniform(self, members: Sequence[int]) -> Weights:
        return tuple(1.0 / len(members) if i in members else 0.0 for i in range(self._size))
