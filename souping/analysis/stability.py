"""How much of a selection is luck: bootstrap of items, sweep of the threshold, jackknife over rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from souping.core import Selector
from souping.scores import ScoreMatrix


def stability(
    scores: ScoreMatrix, selector: Selector, draws: int = 500, seed: int = 0, families: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """JSON-ready: {method, draws, not_estimable, reasons {message: draws}, experts {category: {candidate: share}},
    ingredients {candidate: share}, low_correlation {category: share}, sizes {"K": share},
    correlations [{a, b, rho, low, high, bootstrap_low, bootstrap_high, disattenuated}], reliability {category: r},
    threshold (the selector's own), thresholds [{threshold, ingredients, low_correlation, error}],
    jackknife [{left_out, ingredients, low_correlation, error}], models {status, reason}}; None where not estimable.
    """
    raise NotImplementedError
