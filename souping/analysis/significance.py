"""The strongest claim of a report that holds, and its power.

All p-values are two-sided; a claim "better" also needs the difference above zero.

Shape legend: I items, G groups, C categories, H strata, M candidates, D simulated report folds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from souping.core.protocols import Objective
from souping.core.types import FloatArray, Item, ItemScores, ScoreMatrix
from souping.core.unit import MARGIN, Unit
from souping.report.content import PowerSummary
from souping.statistics.bootstrap_t import NORMAL
from souping.statistics.comparison import Comparison, better_than_every
from souping.statistics.levels import ALPHA, over_looks
from souping.statistics.nested import ZERO_DIFFERENCE
from souping.statistics.power import (
    ABSURD,
    POWER,
    items_for,
    items_in_words,
    pair_variance,
    rounded_up,
)
from souping.statistics.scores import ItemTable

VerdictClaim = Literal[
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

    claim: VerdictClaim
    sentence: str
    p_value: float | None = None


def verdict(
    unit: Unit,
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
    the winning recipe, `opened` the number of looks at the report items, `margin` that of inner scores.

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
        if mixture is not None:
            difference = f"{mixture.a} minus {mixture.b} is {_points(unit, mixture)}"
            text += f"; {difference} on {mixture.n} search items"
        return Verdict(claim="keep_single", sentence=f"{text}. Nothing is left to test.")

    against = {}
    for comparison in comparisons:
        if comparison.a == soup and comparison.b in candidates:
            against[comparison.b] = comparison
    missing = [name for name in dict.fromkeys([*candidates, best_single]) if name not in against]
    if missing:
        raise ValueError(f"the verdict needs {soup!r} compared with {', '.join(missing)}")
    better = _better(unit, against, best_single, opened)
    if better is not None:
        return better
    return _not_better(unit, against[best_single], opened, margin)


def _better(
    unit: Unit, against: dict[str, Comparison], best_single: str, opened: int
) -> Verdict | None:
    """Claim for a soup that is shown to be better than every candidate, or than the one of the search."""
    comparisons = list(against.values())
    hardest = max(
        comparisons, key=lambda c: (c.difference <= ZERO_DIFFERENCE, c.p_value, -c.difference)
    )
    p_every = over_looks(better_than_every(comparisons), opened)
    if p_every < ALPHA:
        figures = _figures(unit, hardest, p_every, opened)
        text = (
            f"The soup is better than every candidate; the closest call is {hardest.b}, {figures}."
        )
        return Verdict(claim="better_than_every_candidate", sentence=text, p_value=p_every)

    single = against[best_single]
    p_value = over_looks(single.p_value, opened)
    if single.difference <= ZERO_DIFFERENCE or p_value >= ALPHA:
        return None
    figures = _figures(unit, single, p_value, opened)
    sentence = (
        f"The soup is better than {best_single}, the model you would have deployed, {figures}; "
        f"it is not shown to be better than every candidate: {hardest.b} {_points(unit, hardest)}."
    )
    return Verdict(claim="better_than_best_single", sentence=sentence, p_value=p_value)


def _not_better(unit: Unit, single: Comparison, opened: int, margin: float) -> Verdict:
    """Keep the search's candidate where a gain of the margin is ruled out; else nothing is shown."""
    gain = unit.amount(unit.size(margin))
    if single.high < margin:
        sentence = (
            f"Keep {single.b}, what the search would have chosen: a soup better by {gain} is ruled out; "
            f"soup minus it is {_points(unit, single)}."
        )
        return Verdict(claim="keep_single", sentence=sentence)
    p_value = over_looks(single.p_value, opened)
    figures = _figures(unit, single, p_value, opened)
    needed = items_in_words(items_for(single, margin))
    sentence = (
        f"No difference shown: the soup against {single.b}, the model you would have deployed, {figures}. "
        f"A true gain of {gain} takes {needed} report items (80 % power); there are {single.n:,}."
    )
    return Verdict(claim="no_difference_shown", sentence=sentence, p_value=p_value)


def _points(unit: Unit, comparison: Comparison, remark: str = "") -> str:
    """The difference with the interval."""
    raw = unit.raw_table(vars(comparison))
    limits = unit.limits(raw["low"], raw["high"], comparison.level)
    return f"{unit.points(raw['difference'], sign=True)} ({limits}{remark})"


def _figures(unit: Unit, comparison: Comparison, p_value: float, opened: int) -> str:
    """The difference with interval and p-value."""
    looks = f", corrected for {opened} looks at these items" if opened > 1 else ""
    return _points(unit, comparison, f", {_p(p_value)}{looks}")


def _p(value: float) -> str:
    if value >= 0.001:
        return f"p = {value:.3f}"
    if value >= 0.0001:
        return f"p = {value:.4f}"
    return "p < 0.0001"


# ---------------------------------------------------------------- power


# Simulated report folds, and halvings by which the number of items is found.
FUTURES = 4000
ITEMS_HALVINGS = 20
# Assumed share of the items on which two models differ, if no answers of the candidates are known.
DISCORDANCE = 0.1


@dataclass(frozen=True, kw_only=True)
class Power:
    """True `gain` over the best candidate (of inner scores) that is called better than every candidate in 80 % of runs
    on `items` report items, and the items `needed` for a gain of `margin`."""

    gain: float
    items: int
    margin: float
    needed: int
    assumed: bool

    def summary(self, unit: Unit) -> PowerSummary:
        table = vars(self) | {"gain": unit.size(self.gain), "margin": unit.size(self.margin)}
        return PowerSummary(**table)

    def sentence(self, unit: Unit) -> str:
        basis = "estimated from the candidates' answers on the select fold"
        if self.assumed:
            basis = f"assuming equal candidates, any two of which differ on {100 * DISCORDANCE:.0f} % of the items"
        gain = f"{unit.text(unit.size(self.gain))} {unit.name}"
        margin = unit.amount(unit.size(self.margin))
        return (
            f"{self.items:,} report items show a true gain of {gain} over the best candidate with 80 % power "
            f"({basis}); the margin of {margin} takes {items_in_words(self.needed)} items"
        )


def power_of(
    scores: ScoreMatrix, report: Sequence[Item], objective: Objective, margin: float
) -> Power | None:
    """Power on the `report` items, by what selection knows of the candidates.

    Without answers of theirs they count as equal, and any two models as different on DISCORDANCE of the items. None
    where all candidates answer alike, and of an objective that is not linear.
    """
    if not objective.linear:
        return None
    if scores.items is not None and not scores.published:
        measured = {name: scores.items[name] for name in scores.candidates}
        return measured_power(measured, report, objective, margin)
    count = len(scores.candidates)
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
    grouped = [table.grouped(candidate.values) for candidate in scores.values()]
    sizes = grouped[0].sizes
    stratum = grouped[0].stratum

    # Covariance of the candidates' errors [M, M], by the influence of each group [M, G].
    influence = np.stack([candidate.influence for candidate in grouped])
    means = np.stack([np.bincount(stratum, row) / sizes for row in influence])
    factor = np.sqrt(sizes / np.maximum(sizes - 1, 1))
    deviations = (influence - means[:, stratum]) * factor[stratum]
    covariance = deviations @ deviations.T
    pair = pair_variance(covariance)
    if len(grouped) < 2 or pair <= 0:
        return None

    # Equal candidates differ by chance: `chance` is the mean of that variance and one standard deviation.
    # `reliable` is the share of the candidates' variance beyond it.
    levels = np.array([candidate.objective for candidate in grouped])
    chance = pair / 2 * (1 + math.sqrt(2 / (len(levels) - 1)))
    reliable = max(0.0, 1 - chance / max(float(levels.var(ddof=1)), chance))
    scale = _worth(table) / _worth(ItemTable.of(report, objective))
    return _power(levels, covariance, reliable, scale, len(report), margin, assumed=False)


def _power(
    levels: FloatArray,
    covariance: FloatArray,
    reliable: float,
    scale: float,
    items: int,
    margin: float,
    assumed: bool,
) -> Power:
    """Power by simulation: `levels` [M] have errors of this `covariance`, those of the report fold's are `scale` times
    it. A share `reliable` of the variance between the levels is real, so true levels are drawn around shrunken ones."""
    rng = np.random.default_rng(0)
    count = len(levels)
    root = np.linalg.cholesky(covariance + 1e-9 * covariance.trace() * np.eye(count))

    # True levels [D, M], and how far each is below the best.
    shrunken = levels.mean() + reliable * (levels - levels.mean())
    true = shrunken + math.sqrt(reliable) * rng.standard_normal((FUTURES, count)) @ root.T
    gaps = true.max(axis=1, keepdims=True) - true

    # Errors of soup minus candidate [D, M]: the soup's varies around the candidates' mean.
    soup_sd = math.sqrt(scale * pair_variance(covariance) * (count + 1) / (2 * count))
    error = math.sqrt(scale) * rng.standard_normal((FUTURES, count)) @ root.T
    error += soup_sd * rng.standard_normal((FUTURES, 1)) - error.mean(axis=1, keepdims=True)
    demanded = NORMAL.inv_cdf(1 - ALPHA / 2) * error.std(axis=0) + error

    def gain(factor: float) -> float:
        """Gain with 80 % power on `factor` times the items: what the hardest of the candidates demands."""
        return float(np.quantile((demanded / math.sqrt(factor) - gaps).max(axis=1), POWER))

    # Halve the logarithm of the factor on the items.
    too_few = math.log(20 / items)
    enough = math.log(2 * ABSURD / items)
    for _ in range(ITEMS_HALVINGS):
        middle = (too_few + enough) / 2
        if gain(math.exp(middle)) <= margin:
            enough = middle
        else:
            too_few = middle
    return Power(
        gain=gain(1.0),
        items=items,
        margin=margin,
        needed=rounded_up(items * math.exp(enough)),
        assumed=assumed,
    )


def _worth(table: ItemTable) -> float:
    """Independent items of equal weight that would tell as much of the objective."""
    counts = np.bincount(table.categories, minlength=len(table.names))
    return float(1 / (table.coefficients**2 / counts).sum())
