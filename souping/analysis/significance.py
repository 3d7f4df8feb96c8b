"""Paired comparison of two models on the same items, several p-values, and the strongest claim that holds.

All p-values are two-sided; a claim "better" also needs the difference above zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import comb
from typing import Literal

import numpy as np

from souping.analysis.intervals import SALT, GroupedScores, IntArray, design, distinct, limits, span
from souping.core.types import FloatArray, Json

TEST = "studentised sign-flip over groups"
EXACT_STATES = 20_000
BOOTSTRAP_DRAWS = 4999
TIE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """a minus b on the objective (fractions of 1) with its 95 % interval and two-sided p-value.

    `n` items in `groups` groups; `discordant` is the share of items on which the two scores differ.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
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
    draws: int = 9999,
    seed: int = 0,
    same_model: bool = False,
) -> Comparison:
    """Compare a with b on T = sum_c w_c * mean over items of c of (a_i - b_i).

    a, b [I] are scores, categories and groups [I] integers (a group may span categories), coefficients [C] with
    w_c >= 0. The p-value is `sign_flip`'s; the interval is a symmetric, stratified, paired bootstrap-t over groups, in
    which strata without discordance get Jeffreys' limits, so that it never has width 0. Interval and p-value come from
    different resamplings and may disagree in a narrow case: claims go by the p-value.

    Two models that gave the same scores have difference 0 and p = 1 with an interval of positive width: other items
    might tell them apart. With `same_model` both are one soup, the difference is 0 by construction and so is the width.
    """
    if len(a) != len(b):
        raise ValueError("a and b must be scores of the same items")
    deltas = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    whole = design(deltas, categories, groups, coefficients)
    scale = float(whole.weights.sum()) * max(span(np.asarray(v))[1] for v in (a, b))
    low, high, p_value, test = 0.0, 0.0, 1.0, "same model"
    if not same_model:
        turned = whole.objective < 0  # a - b and b - a meet the same draws, so that their intervals mirror each other
        facing = replace(whole, sums=-whole.sums) if turned else whole
        low, high = limits(facing, -scale, scale, draws=BOOTSTRAP_DRAWS, seed=seed, symmetric=True)
        low, high = (-high, -low) if turned else (low, high)
        p_value, test = sign_flip(whole, draws=draws, seed=seed), TEST
    return Comparison(
        a=a_name,
        b=b_name,
        difference=whole.objective,
        low=low,
        high=high,
        p_value=p_value,
        test=test,
        n=len(deltas),
        groups=len(np.unique(groups)),
        discordant=float((np.abs(deltas) > TIE).mean()),
    )


def sign_flip(whole: GroupedScores, *, draws: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of T = 0 by flipping the sign of all differences of a group together.

    Under "a and b are exchangeable in every group" any pattern of signs is as likely as the one seen, so the test is
    exact; dividing T by its standard error, recomputed for every pattern, keeps it valid for large samples where only
    E T = 0 holds and categories differ the opposite way (Chung and Romano 2013; Janssen 1997).
    p = (1 + #{|T*| >= |T|}) / (draws + 1); where there are at most 20,000 distinct patterns all are counted instead.
    """
    pull = (whole.weights * whole.sums / whole.counts.sum(axis=0)).sum(axis=1)
    largest = np.abs(pull).max()
    if largest <= TIE * whole.shares().max():
        return 1.0
    pull = pull / largest  # the statistic has no unit
    pull[np.abs(pull) <= TIE] = 0.0
    discordant = pull != 0
    rows, stratum, number = distinct(np.abs(pull[discordant])[:, None], whole.stratum[discordant])
    pulls = rows[:, 0]
    squares, seen = _by_stratum(whole, pull**2), _by_stratum(whole, pull)[None, :]
    threshold = _studentised(seen, squares, whole.sizes)[0] * (1 - TIE) - TIE  # both ways: T may be 0 but for rounding
    if np.prod(number + 1.0) <= EXACT_STATES:
        plus, chance = _every_pattern(number)
        sums = _stratum_sums(plus, pulls, number, stratum, whole.strata)
        return float(min(1.0, chance[_studentised(sums, squares, whole.sizes) >= threshold].sum()))
    plus = np.random.default_rng([SALT, seed]).binomial(number, 0.5, size=(draws, len(number)))
    sums = _stratum_sums(plus, pulls, number, stratum, whole.strata)
    return float((1 + (_studentised(sums, squares, whole.sizes) >= threshold).sum()) / (draws + 1))


def _by_stratum(whole: GroupedScores, values: FloatArray) -> FloatArray:
    """[G] -> sums over the groups of each stratum, [H]."""
    return np.bincount(whole.stratum, values, whole.strata).astype(float)


def _studentised(sums: FloatArray, squares: FloatArray, sizes: FloatArray) -> FloatArray:
    """|T| / se from stratum sums [D, H]: flipping signs changes the sums, never the sums of squares [H]."""
    variance = ((squares - sums**2 / sizes) * sizes / np.maximum(sizes - 1, 1)).sum(axis=1)
    return np.asarray(np.abs(sums.sum(axis=1)) / np.sqrt(np.maximum(variance, 1e-12 * squares.sum())))


def _stratum_sums(plus: IntArray, pulls: FloatArray, number: IntArray, stratum: IntArray, strata: int) -> FloatArray:
    """Sums by stratum [D, H] when `plus` [D, R] of the `number` [R] groups of size `pulls` [R] have a positive sign."""
    signed = (2.0 * plus - number) * pulls
    return np.stack([signed[:, stratum == h].sum(axis=1) for h in range(strata)], axis=1)


def _every_pattern(number: IntArray) -> tuple[IntArray, FloatArray]:
    """All counts of positive signs, [S, R], and the probability of each under fair signs, [S]."""
    plus = np.indices(tuple(number + 1)).reshape(len(number), -1).T
    ways = [np.array([comb(int(n), k) / 2.0**n for k in range(n + 1)]) for n in number]
    return plus, np.prod([way[plus[:, r]] for r, way in enumerate(ways)], axis=0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order: any of them below alpha holds at family-wise level alpha (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[index] = running
    return adjusted


def mcnemar(a: FloatArray, b: FloatArray) -> float:
    """Exact two-sided McNemar p-value (binomial, 1/2) of right-or-wrong scores a, b [I].

    Only for the plain mean over independent items: it knows neither weights nor groups.

    Raises:
        ValueError: a score is neither 0 nor 1, or the lengths differ.
    """
    if len(a) != len(b) or not np.isin(a, (0, 1)).all() or not np.isin(b, (0, 1)).all():
        raise ValueError("McNemar's test needs scores of 0 or 1 on the same items")
    wins, losses = int(np.sum(np.greater(a, b))), int(np.sum(np.less(a, b)))
    tail: int = sum(comb(wins + losses, k) for k in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2 ** (wins + losses)))


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


def over_ledger(p_value: float, opened: int) -> float:
    """p-value corrected (Bonferroni) over the `opened` recipes that were ever scored on the report fold.

    Raises:
        ValueError: the ledger is empty; the recipe in question is in it.
    """
    if opened < 1:
        raise ValueError(f"opened={opened}: a recipe that was scored on the report fold is in its ledger")
    return min(1.0, p_value * opened)


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
    """Claim for a soup that stands above every candidate."""
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
