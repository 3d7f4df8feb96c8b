"""Averages of the last checkpoints of a training run: a list of windows and weightings, without a search over weights.

Averaging checkpoints with weights c_j, the oldest first, equals multiplying the updates after the
oldest one by w_i = c_i + ... + c_k (Tian et al. 2025, arXiv 2507.17634, "WSM"). So an average can
stand for a decay of the learning rate: equal weights for a linear decay to 0, `minus_sqrt` for a
decay by 1 - sqrt(t). The moving average is that of Li et al. 2025 (arXiv 2505.12082).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import numpy as np

from souping.core.fields import Bounds, component
from souping.core.types import FloatArray, Weights, frozen
from souping.search.points import LimitedOptimiser, ListedOptimiser, limit_texts

WindowKind = Literal["uniform", "minus_sqrt", "ema"]
ALPHAS = (0.1, 0.2, 0.4)
# Most window lengths that are listed.
MOST_WINDOW_LENGTHS = 12


def uniform_window(size: int) -> FloatArray:
    """Equal weights of n = `size` checkpoints."""
    return np.full(size, 1 / size)


def minus_sqrt(size: int) -> FloatArray:
    """Weights c_j = sqrt((j + 1) / n) - sqrt(j / n) of n = `size` checkpoints, oldest first: the oldest weighs most."""
    return np.diff(np.sqrt(np.arange(size + 1) / size))


def ema(size: int, alpha: float) -> FloatArray:
    """Weights of the moving average a_j = alpha theta_j + (1 - alpha) a_(j-1) that starts at the oldest checkpoint."""
    newer = alpha * (1 - alpha) ** np.arange(size - 1.0)[::-1]
    return np.array([(1 - alpha) ** (size - 1), *newer])


WINDOW_WEIGHTS: Mapping[str, Callable[[int], FloatArray]] = {
    "uniform": uniform_window,
    "minus_sqrt": minus_sqrt,
}


@frozen
class Window:
    """Weights of all checkpoints, oldest first; all but the last `length` have weight 0. Only `ema` has an `alpha`."""

    kind: WindowKind
    length: int
    weights: Weights
    alpha: float | None = None

    @classmethod
    def of(cls, kind: WindowKind, length: int, size: int, alpha: float | None = None) -> Window:
        """The average of the last `length` of `size` checkpoints; `alpha` is given for `ema` alone."""
        if alpha is None:
            shares = WINDOW_WEIGHTS[kind](length)
        else:
            shares = ema(length, alpha)
        weights = (0.0,) * (size - length) + tuple(shares.tolist())
        return cls(kind=kind, length=length, weights=weights, alpha=alpha)


def windows(size: int) -> list[Window]:
    """About twenty averages of `size` checkpoints: equal weights over the last 1, 2, 3, ..., moving averages of all,
    and `minus_sqrt` for every other length from the longest down to 3."""
    lengths = list(range(1, size + 1))
    # Of many lengths, some in a geometric series.
    if size > MOST_WINDOW_LENGTHS:
        spaced = np.round(np.geomspace(1, size, MOST_WINDOW_LENGTHS)).astype(int)
        lengths = np.unique(spaced).tolist()
    listed = [Window.of("uniform", length, size) for length in lengths]
    if size > 1:
        listed.extend(Window.of("ema", size, size, alpha) for alpha in ALPHAS)
    for length in lengths[::-1][::2]:
        if length > 2:
            listed.append(Window.of("minus_sqrt", length, size))
    return listed


def shuffled(weights: Weights) -> Weights:
    """The same weights in a random order, which depends only on the number of checkpoints."""
    order = np.random.default_rng(0).permutation(len(weights))
    return tuple(weights[int(place)] for place in order)


@component
class TrajectoryAverages(ListedOptimiser, LimitedOptimiser):
    """Averages of the last checkpoints, evaluated on the whole search split; `kind` makes one of all checkpoints."""

    kind: WindowKind | None = None
    alpha: Annotated[float, Bounds(gt=0, lt=1)] = 0.2

    def known_points(self, size: int) -> list[Weights]:
        if self.kind is None:
            return [window.weights for window in windows(size)]
        alpha = self.alpha if self.kind == "ema" else None
        return [Window.of(self.kind, size, size, alpha).weights]

    def describe(self, size: int) -> str:
        if self.kind == "ema":
            return f"trajectory: one soup, {self.kind} (alpha {self.alpha:g})"
        if self.kind is not None:
            return f"trajectory: one soup, {self.kind}"
        averages = f"trajectory: {len(windows(size))} averages of the last 1 to {size} checkpoints"
        return ", ".join([averages, *limit_texts(self)])
