"""Paired comparison of two models on the same items, several p-values, and the strongest claim that holds.

All p-values are two-sided; a claim "better" also needs the difference above zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from souping.analysis.intervals import NORMAL, design, span
from souping.analysis.power import POWER, items_in_words, points_in_words, rounded_up
from souping.analysis.sign_flip import ALPHA, DRAWS, TEST, TIE, invert
from souping.core.text import minus
from souping.core.types import FloatArray, IntArray, Json

MARGIN = 0.01
"""A gain below it is no reason to soup."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """a minus b on the objective (fractions of 1) with its interval at `level` and two-sided p-value.

    The interval excludes 0 just where `p_value`, uncorrected, is below 1 - level. `n` items in `groups` groups;
    `discordant` is the share of items on which the two scores differ.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    level: float = 1 - ALPHA
    p_value: float
    test: str
    n: int
    groups: int
    discordant: float

    def as_dict(self) -> dict[str, Json]:
        """The JSON form of `report.json`."""
        return asdict(self)


def compare(
    a_name: str,
    b_name: str,
    a: FloatArray,
    b: FloatArray,
    categories: IntArray,
    groups: IntArray,
    coefficients: FloatArray,
    *,
    looks: int = 1,
    tests: float = 1.0,
    draws: int = DRAWS,
    seed: int = 0,
    same_model: bool = False,
) -> Comparison:
    """Compare a with b on T = sum_c w_c * mean over items of c of (a_i - b_i), at the `looks`-th look at these items.

    With several `tests` the level of the interval is divided by their number.

    a, b [I] are scores, categories and groups [I] integers (a group may span categories), coefficients [C] with
    w_c >= 0. The p-value is that of T = 0 by the sign-flip test, the interval holds the differences that the same test
    does not reject at the level of the look (`sign_flip.invert`).

    Two models that gave the same scores have difference 0 and p = 1 with an interval of positive width: other items
    might tell them apart. With `same_model` both are one soup, the difference is 0 by construction and so is the width.
    """
    if len(a) != len(b):
        raise ValueError("a and b must be scores of the same items")
    deltas = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    whole = design(deltas, categories, groups, coefficients)
    scale = float(whole.weights.sum()) * max(span(np.asarray(v))[1] for v in (a, b))
    alpha, same = ALPHA / penalty(looks) / tests, (0.0, 0.0, 1.0)
    low, high, p_value = same if same_model else invert(whole, scale, alpha=alpha, draws=draws, seed=seed)
    return Comparison(
        a=a_name,
        b=b_name,
        difference=whole.objective,
        low=low,
        high=high,
        level=1 - alpha,
        p_value=p_value,
        test="same model" if same_model else TEST,
        n=len(deltas),
        groups=len(np.unique(groups)),
        discordant=float((np.abs(deltas) > TIE).mean()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order: any of them below alpha holds at family-wise level alpha (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[index] = running
    return adjusted


def better_than_every(comparisons: Sequence[Comparison]) -> float:
    """p-value of "a is better than every b": the largest of the two-sided p-values, 1 if any difference is not above 0.

    An intersection-union test needs no correction (Berger 1982): the claim is false if it is false for one b, and that
    comparison alone rejects with at most its own error. As p-values are two-sided, a false claim has half the level.

    Raises:
        ValueError: there is nothing to compare with.
    """
    if not comparisons:
        raise ValueError("better than every candidate needs a comparison with each of them")
    return max(c.p_value if c.difference > TIE else 1.0 for c in comparisons)


def penalty(looks: int) -> int:
    """Factor of the p-values of the `looks`-th look at the same items: 1, then k(k + 1).

    1 + 1/6 + 1/12 + .. is 1.5: over however many looks, each corrected as it comes, false claims stay below 1.5 times
    the level.

    Raises:
        ValueError: there was no look; the one in question counts.
    """
    if looks < 1:
        raise ValueError(f"looks={looks}: a recipe that is reported on items is a look at them")
    return looks * (looks + 1) if looks > 1 else 1


def over_looks(p_value: float, looks: int) -> float:
    """p-value corrected for the looks at these items so far, this one included."""
    return min(1.0, p_value * penalty(looks))


def items_for(comparison: Comparison, margin: float = MARGIN) -> int:
    """Items on which a true difference of the margin has 80 % power, by the width of the interval.

    The difference that was observed plays no part: power for it says nothing that its p-value does not.
    """
    quantile = NORMAL.inv_cdf((1 + comparison.level) / 2)
    error = (comparison.high - comparison.low) / 2 / quantile
    ratio = (quantile + NORMAL.inv_cdf(POWER)) * error / margin if margin > 0 else math.inf
    return rounded_up(comparison.n * ratio**2)


Claim = Literal[
    "better_than_every_candidate",
    "better_than_best_single",
    "no_difference_shown",
    "keep_single",
    "nothing_to_soup",
    "not_measured",
]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`claim` for programs, `sentence` for people; `p_value` is that of a claim "better" or of no difference, corrected
    for the looks, and None where nothing was tested or an interval decided."""

    claim: Claim
    sentence: str
    p_value: float | None = None

    def as_dict(self) -> dict[str, Json]:
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
    margin: float = MARGIN,
    unmeasured: str = "",
    mixture: Comparison | None = None,
) -> Verdict:
    """The strongest claim that holds, in this order.

    1. `nothing_to_soup`: one ingredient was selected (K = 1); nothing was searched or tested.
    2. `not_measured`: too many answers of a compared model were cut off or are missing; `unmeasured` says whose.
    3. `keep_single` by the search: the winning recipe is a single model. A decision, no test; it is shown with the
       interval of the best `mixture` minus that model on the search fold.
    4. `better_than_every_candidate`: the soup is above every candidate and the largest of the p-values, corrected for
       the looks, is below 0.05 (intersection-union, `better_than_every`).
    5. `better_than_best_single`: as 4, but only against the candidate that the search fold would have had deployed. It
       is a weaker claim: that candidate need not be the best one.
    6. `keep_single`: the upper limit of soup minus that same candidate is below the margin, so that no gain worth a
       soup is left (non-inferiority turned round).
    7. `no_difference_shown`, with the number of items that the margin needs.

    `comparisons` hold the soup (a) against every candidate (b) on the report fold; others are ignored. `best_single`
    was chosen on the search fold, `selected` are the selection's ingredients, `recipe` the ingredients with weight in
    the winning recipe, `opened` the number of looks at the report items, `margin` a fraction of 1.

    Raises:
        ValueError: a candidate is not compared with the soup.
    """
    if len(selected) == 1:
        text = f"Nothing to soup: {selected[0]} is the only ingredient selected."
        return Verdict(claim="nothing_to_soup", sentence=text)
    if unmeasured:
        return Verdict(claim="not_measured", sentence=f"Not measured: {unmeasured}")
    if len(recipe) == 1:
        text = f"Keep {recipe[0]}, do not soup: the search found no mixture above it"
        tried = (
            f"; {mixture.a} minus {mixture.b} is {_points(mixture)} on {mixture.n:,} search items" if mixture else ""
        )
        return Verdict(claim="keep_single", sentence=f"{text}{tried}. Nothing is left to test.")
    against = {c.b: c for c in comparisons if c.a == soup and c.b in candidates}
    missing = [name for name in dict.fromkeys([*candidates, best_single]) if name not in against]
    if missing:
        raise ValueError(f"the verdict needs {soup!r} compared with {', '.join(missing)}")
    return _better(against, best_single, opened) or _not_better(against[best_single], opened, margin)


def _better(against: dict[str, Comparison], best_single: str, opened: int) -> Verdict | None:
    """Claim for a soup that is shown to be better than every candidate, or than the one of the search."""
    every = over_looks(better_than_every(list(against.values())), opened)
    hardest = max(against.values(), key=lambda c: (c.difference <= TIE, c.p_value, -c.difference))
    if every < ALPHA:
        figures = _figures(hardest, every, opened)
        text = f"The soup is better than every candidate; the closest call is {hardest.b}, {figures}."
        return Verdict(claim="better_than_every_candidate", sentence=text, p_value=every)
    single = against[best_single]
    p_value = over_looks(single.p_value, opened)
    if single.difference <= TIE or p_value >= ALPHA:
        return None
    text = f"The soup is better than {best_single}, the model you would have deployed"
    rest = f"; it is not shown to be better than every candidate: {hardest.b} {_points(hardest)}."
    sentence = f"{text}, {_figures(single, p_value, opened)}{rest}"
    return Verdict(claim="better_than_best_single", sentence=sentence, p_value=p_value)


def _not_better(single: Comparison, opened: int, margin: float) -> Verdict:
    """Keep the search's candidate where a gain of the margin is ruled out; else nothing is shown."""
    if single.high < margin:
        text = f"Keep {single.b}, what the search would have chosen: a soup better by {points_in_words(margin)}"
        return Verdict(claim="keep_single", sentence=f"{text} is ruled out; soup minus it is {_points(single)}.")
    p_value = over_looks(single.p_value, opened)
    text = f"No difference shown: the soup against {single.b}, the model you would have deployed, "
    needed = f"A true gain of {points_in_words(margin)} takes {items_in_words(items_for(single, margin))} report items"
    rest = f"{_figures(single, p_value, opened)}. {needed} (80 % power); there are {single.n:,}."
    return Verdict(claim="no_difference_shown", sentence=text + rest, p_value=p_value)


def _points(c: Comparison, more: str = "") -> str:
    """Percent points with the interval, whose limits show on which side of 0 they are however near."""
    middle, low, high = round(100 * c.difference, 1) + 0.0, 100 * c.low, 100 * c.high
    return minus(f"{middle:+.1f} points ({100 * c.level:.4g} % interval {low:+.1f} to {high:+.1f}") + f"{more})"


def _figures(c: Comparison, p_value: float, opened: int) -> str:
    """Percent points with interval and p-value."""
    looks = f", corrected for {opened} looks at these items" if opened > 1 else ""
    return _points(c, f", {_p(p_value)}{looks}")


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else f"p = {value:.4f}" if value >= 0.0001 else "p < 0.0001"
