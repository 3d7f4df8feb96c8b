"""Design of the study: five factors with two levels each, and the order in which families are trained.

An order of the full 2^5 is balanced after every even number of families (each run is followed by its mirror image), and
after every prefix as balanced in pairs of factors as a greedy order can make it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FACTORS = {
    "generalists": "tunes are specialists in a few skills (-), or have a random mixture of all (+)",
    "spread": "all tunes are trained equally long (-), or from a quarter to twice the length (+)",
    "long": "60 steps of tuning (-), or 240 (+)",
    "copies": "eight different tunes (-), or two of them are near copies of two others (+)",
    "ten": "five categories (-), or ten (+)",
}
Levels = tuple[int, ...]
"""-1 or 1 for each factor."""
TUNES = 8
# The cyclic row of Plackett and Burman (1946) for twelve runs.
PLACKETT_BURMAN = (1, 1, -1, 1, 1, 1, -1, -1, -1, 1, -1)
LARGER_PLACES = (0, 1, 2, 3)
"""Runs of the confirmatory order that are repeated with about a million parameters."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of a transformer, and the rates of its training."""

    width: int
    layers: int
    heads: int
    base_rate: float
    tune_rate: float


SMALL = Size(width=64, layers=2, heads=2, base_rate=3e-3, tune_rate=1.5e-3)
LARGER = Size(width=160, layers=3, heads=4, base_rate=1.5e-3, tune_rate=0.75e-3)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family that is to be trained: its name, levels of the factors, seed and size."""

    name: str
    levels: Levels
    seed: int
    size: Size = SMALL

    def has(self, factor: str) -> bool:
        """Whether a factor is at its upper level."""
        return self.levels[list(FACTORS).index(factor)] > 0

    @property
    def categories(self) -> int:
        if self.has("ten"):
            return 10
        return 5

    @property
    def steps(self) -> int:
        if self.has("long"):
            return 240
        return 60


def seed_of(words: str) -> int:
    """The first eight bytes of a SHA-256."""
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")


def screening() -> list[Levels]:
    """Twelve runs in which every factor, and every pair of factors, is balanced (Plackett and Burman)."""
    width = len(FACTORS)
    rows = [tuple(np.roll(PLACKETT_BURMAN, shift)[:width].tolist()) for shift in range(11)]
    return [*rows, (-1,) * width]


def factorial() -> list[Levels]:
    """The full 2^5: each run and its mirror image, the pairs in an order that balances pairs of factors early."""
    runs = itertools.product((-1, 1), repeat=len(FACTORS) - 1)
    left = [(-1, *rest) for rest in runs]
    # products of two factors are the same for a run and its mirror image
    total = np.zeros(len(list(itertools.combinations(FACTORS, 2))))
    order: list[Levels] = []
    while left:
        chosen = min(left, key=lambda run: (float(((total + products(run)) ** 2).sum()), run))
        left.remove(chosen)
        total += products(chosen)
        order += [chosen, tuple(-level for level in chosen)]
    return order


def products(run: Sequence[int]) -> np.ndarray:
    """Products of every two levels of a run."""
    return np.array([a * b for a, b in itertools.combinations(run, 2)])


def exploratory() -> list[Family]:
    """Twelve families to look at before anything is fixed."""
    families = []
    for number, levels in enumerate(screening()):
        name = f"exploratory-{number:02d}"
        families.append(Family(name=name, levels=levels, seed=seed_of(name)))
    return families


def confirmatory(page: str) -> list[Family]:
    """The 32 families whose seeds are hashes of the preregistration's blob id."""
    families = []
    for number, levels in enumerate(factorial()):
        name = f"confirmatory-{number:02d}"
        families.append(Family(name=name, levels=levels, seed=seed_of(f"{page} {name}")))
    return families


def larger(page: str) -> list[Family]:
    """Four families of about a million parameters."""
    families = []
    for number, place in enumerate(LARGER_PLACES):
        name = f"larger-{number:02d}"
        seed = seed_of(f"{page} {name}")
        families.append(Family(name=name, levels=factorial()[place], seed=seed, size=LARGER))
    return families
