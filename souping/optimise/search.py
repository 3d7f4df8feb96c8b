"""What every weight search stands on: limits, the points all know, and the best of what was told."""

from __future__ import annotations

from dataclasses import dataclass, field

from souping import simplex
from souping.core import Result, UserError, Weights


def check_limits(trials: int | None, budget: int | None) -> None:
    for name, limit in (("trials", trials), ("budget", budget)):
        if limit is not None and limit < 1:
            raise UserError(f"optimiser.{name}={limit} must be at least 1 (or null for no limit)")


def capped(count: int, trials: int | None) -> int:
    return count if trials is None else min(count, trials)


def anchors(size: int) -> list[Weights]:
    """The uniform soup and the single ingredients: every search knows them."""
    return [simplex.uniform(size), *simplex.vertices(size)]


@dataclass
class Search:
    """A list of points to ask, the results told, and the best of them.

    Equal objectives: the fewer ingredients, then the earlier asked. So a soup must beat a single model to be chosen,
    and the order in which results come back changes nothing.
    """

    points: list[Weights]
    results: dict[Weights, float] = field(default_factory=dict)
    asked: list[Weights] = field(default_factory=list)

    def ask(self) -> Weights | None:
        if not self.points:
            return None
        self.asked.append(self.points.pop(0))
        return self.asked[-1]

    def tell(self, weights: Weights, result: Result) -> None:
        self.results[weights] = result.objective

    def best(self) -> Weights:
        if not self.results:
            raise UserError("the search ended without a result: raise optimiser.trials or optimiser.budget")

        def rank(weights: Weights) -> tuple[float, int, int]:
            return -round(self.results[weights], 12), sum(w > 0 for w in weights), self.asked.index(weights)

        return min(self.results, key=rank)
