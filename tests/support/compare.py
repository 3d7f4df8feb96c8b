"""Small logs, and their comparison."""

from __future__ import annotations

from typing import Any

import numpy as np

import souping as library
from souping.comparison.result import CompareResult
from tests.support.logs import Frame

Rows = list[dict[str, Any]]


def answers(rate: float, seed: int, items: int = 400, **more: Any) -> Rows:
    """Rows of a log of two tasks; items are equally hard in every log."""
    difficulty = np.random.default_rng(0).random(items)
    chance = np.random.default_rng(seed).random(items)
    right = 0.8 * difficulty + 0.2 * chance < rate
    return [
        {"item": f"i{n}", "category": ("sums", "words")[n % 2], "score": int(right[n]), **more}
        for n in range(items)
    ]


def compared(*logs: Rows, **settings: Any) -> CompareResult:
    names = ("base", "cand", "more", "most")
    return library.compare(
        {name: Frame(rows) for name, rows in zip(names, logs, strict=False)}, **settings
    )
