"""Weight search by any registered Nevergrad optimiser."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from souping.core import simplex
from souping.core.fields import Count, component, pick
from souping.core.text import first_line
from souping.core.types import Cell, FloatArray, Result, SearchSpace, UserError, Weights
from souping.search.points import LimitedStrategy, Search, anchors, endings

if TYPE_CHECKING:
    from nevergrad.optimization.base import Optimizer
    from nevergrad.parametrization.core import Parameter


@component
class Nevergrad(LimitedStrategy):
    """Any registered Nevergrad optimiser by name, asked one at a time, on a parametrised simplex.

    `softmax` of a real vector (suits CMA and NGOpt), `normalise` of a positive one (suits Hammersley), or `lattice`:
    a choice among the grid's points.
    """

    name: str = "NGOpt"
    parametrisation: Literal["softmax", "normalise", "lattice"] = "softmax"
    step: float = 0.1
    trials: Count | None = 40

    def __post_init__(self) -> None:
        simplex.check_step(self.step)
        if self.trials is None and self.budget is None:
            raise UserError("optimiser=nevergrad never ends by itself: set optimiser.trials or optimiser.budget")
        _registered(self.name)
        if trouble := _trouble(self.name, self.parametrisation, self.step, self.trials):
            raise UserError(f"optimiser.name={self.name} cannot be used here: {trouble}\ntry NGOpt, CMA or DE")

    def start(self, space: SearchSpace, seed: int) -> NevergradSearch:
        return NevergradSearch(self, len(space.ingredients), seed)

    def count(self, size: int) -> int | None:
        return self.trials

    def describe(self, size: int) -> str:
        return f"nevergrad {self.name}, {self.parametrisation}: {', '.join(endings(self))}"


def _registered(name: str) -> Callable[..., Optimizer]:
    """The optimiser of that name (UserError if there is none; the nearest is named)."""
    from nevergrad.optimization.optimizerlib import registry

    known: Mapping[str, Callable[..., Optimizer]] = registry
    return known[pick(name, known, "optimiser.name")]


@lru_cache(maxsize=64)
def _trouble(name: str, parametrisation: str, step: float, trials: int | None) -> str:
    """Why this optimiser cannot be used here; empty if it gave a dozen points, or points for a second.

    Many of Nevergrad's import a package of their own only at the first point, some after several.
    """
    state, end = np.random.get_state(), time.monotonic() + 1.0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimiser = _build(name, _parameter(parametrisation, step, 2), trials)
            for number in range(min(12, trials or 12)):
                optimiser.tell(optimiser.ask(), float(number % 3))
                if time.monotonic() > end:
                    break
    except UserError:
        return ""  # the lattice's, which `start` tells with the true number of ingredients
    except Exception as error:  # of any package
        return first_line(error)
    finally:
        np.random.set_state(state)
    return ""


def _build(name: str, parameter: Parameter, trials: int | None, seed: int = 0) -> Optimizer:
    parameter.random_state = np.random.RandomState(seed)
    return _registered(name)(parametrization=parameter, budget=trials, num_workers=1)


def _parameter(parametrisation: str, step: float, size: int) -> Parameter:
    from nevergrad import p

    if parametrisation == "lattice":
        points = simplex.grid(size, step, step, 1 - step)
        if not points:
            raise UserError(f"optimiser.step={step} has no lattice point for {size} ingredients; lower it")
        return p.TransitionChoice(points)
    if parametrisation == "softmax":
        return p.Array(shape=(size,))
    return p.Array(init=np.full(size, 0.5)).set_mutation(sigma=1 / 6).set_bounds(0.0, 1.0)


class NevergradSearch(Search):
    """Uniform and vertices first (softmax cannot reach a vertex), then what Nevergrad proposes."""

    def __init__(self, settings: Nevergrad, size: int, seed: int) -> None:
        super().__init__(anchors(size))
        self._settings = settings
        self._open: dict[Weights, list[Parameter]] = {}
        parameter = _parameter(settings.parametrisation, settings.step, size)
        self._optimiser = _build(settings.name, parameter, settings.trials, seed)

    def ask(self) -> Cell | None:
        if self.points:
            return super().ask()
        candidate = self._optimiser.ask()
        weights = self._decode(candidate.value)
        self._open.setdefault(weights, []).append(candidate)
        if weights not in self.asked:
            self.asked.append(weights)
        return Cell(weights=weights)

    def _decode(self, value: Sequence[float] | FloatArray) -> Weights:
        if self._settings.parametrisation == "lattice":
            return tuple(map(float, value))
        raw = np.asarray(value, dtype=float)
        raw = np.exp(raw - raw.max()) if self._settings.parametrisation == "softmax" else raw + 1e-9
        return tuple(float(w) for w in raw / raw.sum())

    def tell(self, cell: Cell, result: Result) -> None:
        super().tell(cell, result)
        if self._open.get(cell.weights):
            self._optimiser.tell(self._open[cell.weights].pop(0), -result.objective)
