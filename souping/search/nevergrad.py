"""Weight search by any registered Nevergrad optimiser, asked and told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

import numpy as np

from souping.core import simplex
from souping.core.protocols import Strategy
from souping.core.types import FloatArray, Result, UserError, Weights
from souping.search.points import Search, anchors, check_limits

if TYPE_CHECKING:
    from nevergrad.optimization.base import Optimizer
    from nevergrad.parametrization.core import Parameter


@dataclass(frozen=True, kw_only=True)
class Nevergrad(Strategy):
    """Any registered Nevergrad optimiser by name, asked one at a time, on a parametrised simplex.

    `softmax` of a real vector (suits CMA and NGOpt), `normalise` of a positive one (suits Hammersley), or `lattice`:
    a choice among the grid's points.
    """

    name: str = "NGOpt"
    parametrisation: Literal["softmax", "normalise", "lattice"] = "softmax"
    step: float = 0.1
    trials: int | None = 40
    budget: int | None = None

    def __post_init__(self) -> None:
        check_limits(self.trials, self.budget)
        if not 0 < self.step <= 0.5 or abs(1 / self.step - round(1 / self.step)) > 1e-6:
            raise UserError(f"optimiser.step={self.step} must be above 0, at most 0.5 and divide 1")
        if self.parametrisation not in ("softmax", "normalise", "lattice"):
            raise UserError(f"optimiser.parametrisation={self.parametrisation} must be softmax, normalise or lattice")
        if self.trials is None and self.budget is None:
            raise UserError("optimiser=nevergrad never ends by itself: set optimiser.trials or optimiser.budget")
        _registered(self.name)

    def start(self, ingredients: Sequence[str], candidates: Sequence[str], seed: int) -> NevergradSearch:
        return NevergradSearch(self, len(ingredients), seed)

    def count(self, size: int) -> int | None:
        return self.trials

    def describe(self, size: int) -> str:
        limit = f"{self.trials} soups" if self.trials else f"{self.budget} items"
        return f"nevergrad {self.name}, {self.parametrisation}: at most {limit}"


def _registered(name: str) -> Callable[..., Optimizer]:
    """The optimiser of that name.

    Raises:
        UserError: there is none; the nearest is named.
    """
    from nevergrad.optimization.optimizerlib import registry

    known: Mapping[str, Callable[..., Optimizer]] = registry
    if name not in known:
        near = get_close_matches(name, list(known), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"optimiser.name={name} is not a registered Nevergrad optimiser{hint}")
    return known[name]


class NevergradSearch(Search):
    """Uniform and vertices first (softmax cannot reach a vertex), then what Nevergrad proposes."""

    def __init__(self, settings: Nevergrad, size: int, seed: int) -> None:
        super().__init__(anchors(size))
        self._settings, self._size = settings, size
        self._open: dict[Weights, list[Parameter]] = {}
        self._optimiser = self._build(seed)

    def _build(self, seed: int) -> Optimizer:
        parameter = self._parameter()
        parameter.random_state = np.random.RandomState(seed)
        optimiser = _registered(self._settings.name)
        return optimiser(parametrization=parameter, budget=self._settings.trials, num_workers=1)

    def _parameter(self) -> Parameter:
        from nevergrad import p

        if self._settings.parametrisation == "lattice":
            step = self._settings.step
            points = simplex.grid(self._size, step, step, 1 - step)
            if not points:
                raise UserError(f"optimiser.step={step} has no lattice point for {self._size} ingredients; lower it")
            return p.TransitionChoice(points)
        if self._settings.parametrisation == "softmax":
            return p.Array(shape=(self._size,))
        return p.Array(init=np.full(self._size, 0.5)).set_mutation(sigma=1 / 6).set_bounds(0.0, 1.0)

    def ask(self) -> Weights | None:
        if self.points:
            return super().ask()
        candidate = self._optimiser.ask()
        weights = self._decode(candidate.value)
        self._open.setdefault(weights, []).append(candidate)
        if weights not in self.asked:
            self.asked.append(weights)
        return weights

    def _decode(self, value: Sequence[float] | FloatArray) -> Weights:
        if self._settings.parametrisation == "lattice":
            return tuple(map(float, value))
        raw = np.asarray(value, dtype=float)
        raw = np.exp(raw - raw.max()) if self._settings.parametrisation == "softmax" else raw + 1e-9
        return tuple(float(w) for w in raw / raw.sum())

    def tell(self, weights: Weights, result: Result) -> None:
        super().tell(weights, result)
        if self._open.get(weights):
            self._optimiser.tell(self._open[weights].pop(0), -result.objective)
