"""Power of the claim "better than every candidate": the true gain that a report fold shows, and the items for a margin.

Shape legend: M candidates, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from souping.analysis.intervals import NORMAL, ItemTable, design
from souping.analysis.sign_flip import ALPHA
from souping.core.protocols import Objective
from souping.core.scores import ScoreMatrix
from souping.core.types import FloatArray, Item, ItemScores

DRAWS, POWER = 4000, 0.8
DISCORDANCE = 0.1
"""Assumed share of the items on which two models differ, if no answers of the candidates are known."""
ABSURD = 100_000
"""More items than anybody would write for one comparison."""


@dataclass(frozen=True, kw_only=True)
class Power:
    """True `gain` over the best candidate (fraction of 1) that is called better than every candidate in 80 % of runs
    on `items` report items, and the items `needed` for a gain of `margin`."""

    gain: float
    items: int
    margin: float
    needed: int
    assumed: bool

    def sentence(self) -> str:
        assumption = f"assuming equal candidates, any two of which differ on {100 * DISCORDANCE:.0f} % of the items"
        basis = assumption if self.assumed else "estimated from the candidates' answers on the select fold"
        return (
            f"{self.items:,} report items: a soup that is truly {100 * self.gain:.1f} points better than the best "
            f"candidate has an 80 % chance to be shown better than every candidate ({basis}); for a gain of "
            f"{points_in_words(self.margin)}, the margin, it takes {items_in_words(self.needed)} items"
        )


def power_of(scores: ScoreMatrix, report: Sequence[Item], objective: Objective, margin: float) -> Power | None:
    """Power on the `report` items, by what selection knows of the candidates.

    Without answers of theirs they count as equal, and any two models as different on DISCORDANCE of the items.
    """
    known, count = scores.items, len(scores.candidates)
    if known is not None:
        return measured_power({name: known[name] for name in scores.candidates}, report, objective, margin)
    covariance = np.eye(count) * DISCORDANCE / 2 / _worth(ItemTable.of(report, objective))
    return _power(np.zeros(count), covariance, 0.0, 1.0, len(report), margin, assumed=True)


def measured_power(
    scores: Mapping[str, ItemScores], report: Sequence[Item], objective: Objective, margin: float
) -> Power | None:
    """Power on the `report` items from the candidates' scores on other items; None if all candidates answer alike.

    The candidates' errors keep their covariance over groups, scaled to the size of the report fold. The soup is assumed
    to differ from each candidate as much as the candidates differ from each other.
    """
    table = ItemTable.of(next(iter(scores.values())).items, objective)
    wholes = [design(s.values, table.categories, table.groups, table.coefficients) for s in scores.values()]
    pull, sizes, stratum = np.stack([w.influence() for w in wholes]), wholes[0].sizes, wholes[0].stratum
    means = np.stack([np.bincount(stratum, row) / sizes for row in pull])
    apart = (pull - means[:, stratum]) * np.sqrt(sizes / np.maximum(sizes - 1, 1))[stratum]
    covariance = apart @ apart.T
    pair = _pair_variance(covariance)
    if len(wholes) < 2 or pair <= 0:
        return None
    levels = np.array([w.objective for w in wholes])
    chance = pair / 2 * (1 + math.sqrt(2 / (len(levels) - 1)))  # a spread of equal candidates that is not rare
    reliable = max(0.0, 1 - chance / max(float(levels.var(ddof=1)), chance))
    scale = _worth(table) / _worth(ItemTable.of(report, objective))
    return _power(levels, covariance, reliable, scale, len(report), margin, assumed=False)


def _power(
    levels: FloatArray, covariance: FloatArray, reliable: float, scale: float, items: int, margin: float, assumed: bool
) -> Power:
    """Power by simulation: `levels` [M] have errors of this `covariance`, those of the report fold's are `scale` times
    it. A share `reliable` of the variance between the levels is real, so true levels are drawn around shrunken ones."""
    rng, count = np.random.default_rng(0), len(levels)
    root = np.linalg.cholesky(covariance + 1e-9 * covariance.trace() * np.eye(count))
    true = levels.mean() + reliable * (levels - levels.mean())
    true = true + math.sqrt(reliable) * rng.standard_normal((DRAWS, count)) @ root.T
    own = math.sqrt(scale * _pair_variance(covariance) * (count + 1) / (2 * count))  # of the soup, around the mean
    error = math.sqrt(scale) * rng.standard_normal((DRAWS, count)) @ root.T
    error += own * rng.standard_normal((DRAWS, 1)) - error.mean(axis=1, keepdims=True)
    wanted = NORMAL.inv_cdf(1 - ALPHA / 2) * error.std(axis=0) + error
    gaps = true.max(axis=1, keepdims=True) - true

    def gain(more: float) -> float:
        """Gain with 80 % power on `more` times the items: what the hardest of the candidates demands."""
        return float(np.quantile((wanted / math.sqrt(more) - gaps).max(axis=1), POWER))

    few, many = math.log(20 / items), math.log(2 * ABSURD / items)
    for _ in range(20):
        middle = (few + many) / 2
        few, many = (few, middle) if gain(math.exp(middle)) <= margin else (middle, many)
    return Power(gain=gain(1.0), items=items, margin=margin, needed=rounded_up(items * math.exp(many)), assumed=assumed)


def _pair_variance(covariance: FloatArray) -> float:
    """Mean variance of the difference of two models."""
    count = len(covariance)
    return float(2 * (covariance.trace() - covariance.sum() / count) / max(count - 1, 1))


def _worth(table: ItemTable) -> float:
    """Independent items of equal weight that would tell as much of the objective."""
    counts = np.bincount(table.categories, minlength=len(table.names))
    return float(1 / (table.coefficients**2 / counts).sum())


def rounded_up(items: float) -> int:
    """To two digits, which is all that can be known of a number of items that is needed; above ABSURD, just that."""
    unit = int(10 ** max(0, math.floor(math.log10(max(items, 1))) - 1)) if items <= ABSURD else 0
    return math.ceil(items / unit) * unit if unit else ABSURD + 1


def points_in_words(fraction: float) -> str:
    points = f"{100 * fraction:.4g}"
    return f"{points} point" if points == "1" else f"{points} points"


def items_in_words(needed: int) -> str:
    return f"more than {ABSURD:,}" if needed > ABSURD else f"about {needed:,}"
