"""What a paired comparison of a given size can detect, printed before a run."""

from __future__ import annotations

import math
from statistics import NormalDist

from souping.core import UserError

NORMAL = NormalDist()


def power(items: int, difference: float, discordance: float = 0.1, alpha: float = 0.05) -> float:
    """Power of the two-sided paired test for a true `difference` (fraction of 1).

    Each item's difference is -1, 0 or 1 and not 0 with probability `discordance`, so its variance is
    discordance - difference^2 (Connor 1987); normal approximation, independent items of equal weight.

    Raises:
        UserError: no items, or a difference that so few discordant items cannot make.
    """
    _check(items, discordance, alpha)
    if not 0 <= difference <= discordance:
        raise UserError(f"difference={difference} must lie between 0 and discordance={discordance}")
    spread = math.sqrt(max(discordance - difference**2, 1e-12) / items)
    critical = NORMAL.inv_cdf(1 - alpha / 2)
    return NORMAL.cdf(difference / spread - critical) + NORMAL.cdf(-difference / spread - critical)


def minimal_detectable(items: int, discordance: float = 0.1, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest difference (fraction of 1) that the two-sided paired test finds with the given power.

    From difference = z * sqrt((discordance - difference^2) / items) with z the sum of the two normal quantiles. It may
    come out above `discordance` where the items are too few: nothing smaller than all of it can be found.
    """
    _check(items, discordance, alpha)
    if not alpha < power < 1:
        raise UserError(f"power={power} must lie between alpha={alpha} and 1")
    z = NORMAL.inv_cdf(1 - alpha / 2) + NORMAL.inv_cdf(power)
    return z * math.sqrt(discordance / (items + z**2))


def _check(items: int, discordance: float, alpha: float) -> None:
    if items < 1 or not 0 < discordance <= 1 or not 0 < alpha < 1:
        raise UserError(
            f"items={items} must be at least 1, discordance={discordance} and alpha={alpha} between 0 and 1"
        )
