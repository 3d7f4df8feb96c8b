"""What a paired comparison of a given size can detect, printed before a run."""

from __future__ import annotations


def power(items: int, difference: float, discordance: float = 0.1, alpha: float = 0.05) -> float:
    """Power of the two-sided paired test for a true `difference` (fraction) at a discordance rate."""
    raise NotImplementedError


def minimal_detectable(items: int, discordance: float = 0.1, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest difference (fraction) that is found with the given power."""
    raise NotImplementedError
