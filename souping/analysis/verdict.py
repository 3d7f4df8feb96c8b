"""One sentence: what the comparisons on the report fold allow to be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from souping.analysis.significance import Comparison

Claim = Literal[
    "better_than_every_candidate", "better_than_best_single", "no_difference_shown", "keep_single", "nothing_to_soup"
]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`claim` for programs, `sentence` for people; `p_value` is the claim's own, None where nothing was tested."""

    claim: Claim
    sentence: str
    p_value: float | None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form of `report.json`."""
        return asdict(self)


def verdict(
    soup: str,
    comparisons: Sequence[Comparison],
    *,
    candidates: Sequence[str],
    best_single: str,
    selected: Sequence[str],
    recipe: Sequence[str],
    opened: int = 1,
) -> Verdict:
    """`comparisons` hold soup (a) against every candidate (b), others are ignored.

    `best_single` is the candidate chosen on the search fold, `selected` the selection's ingredients (K), `recipe` the
    ingredients with weight in the winning recipe, `opened` the length of the report fold's ledger.
    """
    raise NotImplementedError
