"""One sentence: what the comparisons on the report fold allow to be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from souping.analysis.significance import TIE, Comparison, better_than_every, over_ledger

Claim = Literal[
    "better_than_every_candidate", "better_than_best_single", "no_difference_shown", "keep_single", "nothing_to_soup"
]
ALPHA = 0.05


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
    """The strongest claim that holds, in this order.

    1. `nothing_to_soup`: one ingredient was selected (K = 1); nothing was searched or tested.
    2. `keep_single`: the winning recipe is a single model, or on the report fold the soup is not above some candidate.
       The model to keep is then the one furthest above the soup (`best_single` among equals).
    3. `better_than_every_candidate`: the soup is above every candidate and the largest of the p-values, corrected over
       the ledger, is below 0.05 (intersection-union, `better_than_every`).
    4. `better_than_best_single`: as 3, but only against the candidate that the search fold would have had deployed. It
       is a weaker claim: that candidate need not be the best one.
    5. `no_difference_shown`.

    `comparisons` hold the soup (a) against every candidate (b) on the report fold; others are ignored. `best_single`
    was chosen on the search fold, `selected` are the selection's ingredients, `recipe` the ingredients with weight in
    the winning recipe, `opened` the length of the report fold's ledger.

    Raises:
        ValueError: a candidate is not compared with the soup.
    """
    if len(selected) == 1:
        text = f"Nothing to soup: {selected[0]} is the only ingredient selected."
        return Verdict(claim="nothing_to_soup", sentence=text, p_value=None)
    if len(recipe) == 1:
        text = f"Keep {recipe[0]}, do not soup: the search found no mixture above this single model."
        return Verdict(claim="keep_single", sentence=text, p_value=None)
    against = {c.b: c for c in comparisons if c.a == soup and c.b in candidates}
    missing = [name for name in dict.fromkeys([*candidates, best_single]) if name not in against]
    if missing:
        raise ValueError(f"the verdict needs {soup!r} compared with {', '.join(missing)}")
    return _keep(against, best_single, opened) or _better(against, best_single, opened)


def _keep(against: dict[str, Comparison], best_single: str, opened: int) -> Verdict | None:
    """The soup does not stand above some candidate: keep the one furthest above it."""
    order = sorted(against.values(), key=lambda c: (round(c.difference, 12), c.b != best_single))
    closest = order[0]
    if closest.difference > TIE:
        return None
    p_value = over_ledger(closest.p_value, opened)
    where = "level with" if abs(closest.difference) <= TIE else "below"
    figures = _figures(closest, p_value, opened)
    text = f"Keep {closest.b}, do not soup: on the report fold the soup is {where} it, {figures}."
    return Verdict(claim="keep_single", sentence=text, p_value=p_value)


def _better(against: dict[str, Comparison], best_single: str, opened: int) -> Verdict:
    """What can be claimed of a soup that stands above every candidate."""
    every = over_ledger(better_than_every(list(against.values())), opened)
    hardest = max(against.values(), key=lambda c: (c.p_value, -c.difference))
    if every < ALPHA:
        figures = _figures(hardest, every, opened)
        text = f"The soup is better than every candidate; the closest call is {hardest.b}, {figures}."
        return Verdict(claim="better_than_every_candidate", sentence=text, p_value=every)
    single = against[best_single]
    p_value = over_ledger(single.p_value, opened)
    figures = _figures(single, p_value, opened)
    if p_value < ALPHA:
        text = f"The soup is better than {best_single}, the model you would have deployed, {figures}"
        rest = f"; it is not shown to be better than every candidate ({hardest.b}: {_p(every)})."
        return Verdict(claim="better_than_best_single", sentence=text + rest, p_value=p_value)
    text = f"No difference shown: the soup against {best_single}, the model you would have deployed, {figures}."
    return Verdict(claim="no_difference_shown", sentence=text, p_value=p_value)


def _figures(c: Comparison, p_value: float, opened: int) -> str:
    """Percent points with interval and p-value."""
    low, middle, high = (round(100 * v, 1) + 0.0 for v in (c.low, c.difference, c.high))
    ledger = f", corrected for {opened} recipes scored on this fold" if opened > 1 else ""
    return f"{middle:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}, {_p(p_value)}{ledger})"


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else f"p = {value:.4f}" if value >= 0.0001 else "p < 0.0001"
