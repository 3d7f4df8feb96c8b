"""Points of the weight simplex: K non-negative weights that sum to one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from math import comb

import numpy as np

from souping.core.types import FloatArray, UserError, Weights

TOLERANCE = 1e-5


def vertices(size: int) -> list[Weights]:
    """The K single ingredients."""
    return [tuple(float(i == j) for j in range(size)) for i in range(size)]


def uniform(size: int) -> Weights:
    return (1.0 / size,) * size


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as an ordered sum of `parts` positive integers (stars and bars)."""
    for cuts in combinations(range(1, total), parts - 1):
        edges = (0, *cuts, total)
        yield tuple(b - a for a, b in pairwise(edges))


def grid(size: int, step: float = 0.1, minimum: float = 0.1, maximum: float = 0.9) -> list[Weights]:
    """The paper's points (section 3, step 4): w_i in {minimum, minimum + step, .., maximum}, sum 1.

    With the defaults there are C(9, K-1) of them. Weights are exact multiples of the step, rounded to 12 digits so
    that 0.1 * 3 is written 0.3. Empty when no point exists (K > 10 with the defaults).
    """
    whole, low, high = _units(step, minimum, maximum)
    shifted = whole - size * (low - 1)
    if shifted < size:
        return []
    counts = (tuple(c + low - 1 for c in cut) for cut in compositions(shifted, size))
    return [tuple(round(c / whole, 12) for c in count) for count in counts if max(count) <= high]


def grid_size(size: int, step: float = 0.1, minimum: float = 0.1, maximum: float = 0.9) -> int:
    """An upper bound of the number of grid points, without listing them (exact where `maximum` does not bind)."""
    whole, low, _ = _units(step, minimum, maximum)
    shifted = whole - size * (low - 1)
    return comb(shifted - 1, size - 1) if shifted >= size else 0


def check_step(step: float, key: str = "optimiser.step") -> None:
    """Raises UserError unless `step` divides 1 into 2 to 10,000 parts."""
    if not 1e-4 <= step <= 0.5 or abs(1 / step - round(1 / step)) > 1e-6:
        raise UserError(f"{key}={step} must divide 1, and be from 0.0001 to 0.5")


def _units(step: float, minimum: float, maximum: float) -> tuple[int, int, int]:
    """(steps in 1, steps in minimum, steps in maximum); a step that does not divide them is the user's error."""
    check_step(step)
    if not 0 < minimum <= maximum <= 1:
        raise UserError(f"optimiser.minimum={minimum} and maximum={maximum} must be ordered, above 0 and at most 1")
    counts = [value / step for value in (1.0, minimum, maximum)]
    if any(abs(c - round(c)) > 1e-6 for c in counts):
        raise UserError(f"optimiser.step={step} must divide 1, minimum={minimum} and maximum={maximum}")
    return round(counts[0]), round(counts[1]), round(counts[2])


def spread(points: Sequence[Weights]) -> list[Weights]:
    """Order points so that every prefix covers the simplex: farthest from all before it comes next.

    Greedy maximin (Gonzalez 1985), starting at the point nearest the centre; ties go to the earlier point.
    """
    table = np.array(points, dtype=float)
    if len(table) < 3:
        return list(points)
    first = int(np.argmin(((table - table.mean(axis=0)) ** 2).sum(axis=1).round(12)))
    order, distance = [first], ((table - table[first]) ** 2).sum(axis=1)
    while len(order) < len(table):
        distance[order[-1]] = -1.0
        order.append(int(np.argmax(distance.round(12))))
        distance = np.minimum(distance, ((table - table[order[-1]]) ** 2).sum(axis=1))
    return [points[i] for i in order]


def scattered(size: int, step: float, odds: FloatArray) -> Iterator[Weights]:
    """Sparse points without end, always the same: two to nine members drawn by `odds` [K], a random share of each in
    steps. They cover a simplex that is too large for a grid."""
    random, whole = np.random.default_rng(0), round(1 / step)
    while True:
        members = random.choice(size, int(random.integers(2, min(size, whole, 9) + 1)), replace=False, p=odds)
        cuts = np.sort(random.choice(whole - 1, len(members) - 1, replace=False)) + 1
        row = np.zeros(size)
        row[members] = np.diff([0, *cuts, whole])
        yield tuple((row / whole).round(12).tolist())


def check_weights(weights: Sequence[float], where: str = "optimiser.weights") -> Weights:
    """Weights given by hand, as floats.

    Raises:
        UserError: a weight is negative or not finite, or they do not sum to one within 1e-5.
    """
    values = tuple(float(w) for w in weights)
    if not values or not all(np.isfinite(values)) or min(values) < 0:
        raise UserError(f"{where}={list(values)} must be finite and not negative")
    if abs(sum(values) - 1) > TOLERANCE:
        scaled = ",".join(f"{value / sum(values):.6g}" for value in values) if sum(values) else ""
        hint = f"give {where}='[{scaled}]'" if scaled else "one must be above 0"
        raise UserError(f"{where}={list(values)} sums to {sum(values):.6g}, not 1: {hint}")
    return values
