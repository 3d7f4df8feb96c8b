"""A search whose soups others evaluate beside the ordinary one: `search.py --open N --min-items N`.

With several open soups the workers are simulated: whenever one is free, the search is asked for its next request. Open
requests end in random order, drawn from the seed of the split. With `--min-items` a request has so many items or more.
Both searches have the same splits, seeds and budgets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

Share = float | None
"""Budget as a share of the full grid's items; None where the search ends by itself."""
Differences = Mapping[Share, np.ndarray]
"""Regret of such a search less that of the ordinary one, in points, by independent unit (split or world)."""


class Interval(NamedTuple):
    """Mean difference, its standard error, and the degrees of freedom of that."""

    mean: float
    error: float
    freedom: float

    @property
    def limits(self) -> tuple[float, float]:
        """95 % interval of Student's t."""
        margin = float(stdtrit(self.freedom, 0.975)) * self.error
        return self.mean - margin, self.mean + margin

    def __str__(self) -> str:
        low, high = self.limits
        return f"{self.mean:+.2f} ({low:+.2f} to {high:+.2f})"


def interval(differences: np.ndarray) -> Interval:
    count = len(differences)
    error = differences.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
    return Interval(float(differences.mean()), float(error), count - 1)


def pooled(intervals: list[Interval]) -> Interval:
    """Mean of the tables' means, each with the same weight; degrees of freedom by Welch and Satterthwaite."""
    variances = np.array([table.error**2 for table in intervals])
    freedoms = np.array([table.freedom for table in intervals])
    mean = float(np.mean([table.mean for table in intervals]))
    error = math.sqrt(variances.sum()) / len(intervals)
    freedom = variances.sum() ** 2 / max((variances**2 / freedoms).sum(), 1e-300)
    return Interval(mean, error, freedom)


def report(search: str, tables: Mapping[str, Differences]) -> list[str]:
    """Mean differences of a search with their 95 % intervals: tables down, shares across."""
    shares = list(dict.fromkeys(share for table in tables.values() for share in table))
    titles = [f"{100 * share:g} %" if share else "stops by itself" for share in shares]
    lines = [
        f"## {search}, beside adaptive",
        "",
        "Regret less that of adaptive on the same splits, in points: mean (paired 95 % interval).",
        "",
        f"| table | {' | '.join(titles)} | all |",
        "|---|" + "---|" * (len(shares) + 1),
    ]
    columns: dict[Share | str, list[Interval]] = {}
    for name, differences in tables.items():
        queries = ["-"] * len(shares)
        for number, share in enumerate(shares):
            if share in differences:
                query = interval(differences[share])
                columns.setdefault(share, []).append(query)
                queries[number] = str(query)
        over_shares = interval(np.mean(list(differences.values()), axis=0))
        columns.setdefault("all", []).append(over_shares)
        lines.append(f"| {name} | {' | '.join(queries)} | {over_shares} |")
    totals = [str(pooled(columns[key])) for key in (*shares, "all")]
    lines.append(f"| mean of the tables | {' | '.join(totals)} |")
    return [*lines, ""]
