"""Verdict of a run: whether its soup is better than the candidates, by the corrected p-values and the margin.

All p-values are two-sided; a claim "better" also needs the difference above zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from souping.core.types import Item, ScoreMatrix
from souping.core.unit import MARGIN, Unit
from souping.report.content import MoreAnswersSummary, PowerSummary
from souping.report.sections import more_in_words
from souping.runs.settings import RunSettings
from souping.statistics.comparison import Comparison, better_than_every
from souping.statistics.corrections import ALPHA
from souping.statistics.grouped import ZERO_DIFFERENCE
from souping.statistics.power import (
    DISCORDANCE,
    MoreAnswers,
    Power,
    items_for,
    items_in_words,
    power_of,
)

VerdictClaim = Literal[
    "better_than_every_candidate",
    "better_than_best_candidate",
    "no_difference_shown",
    "keep_candidate",
    "nothing_to_soup",
    "not_measured",
]


class Verdict(NamedTuple):
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
    best_candidate: str,
    selected: Sequence[str],
    recipe: Sequence[str],
    margin: float = MARGIN,
    unmeasured: str = "",
    mixture: Comparison | None = None,
) -> Verdict:
    """The strongest claim that holds, in this order.

    1. `nothing_to_soup`: one ingredient was selected (K = 1); nothing was searched or tested.
    2. `not_measured`: too many answers of a compared model were truncated or are missing; `unmeasured` says whose.
    3. `keep_candidate` by the search: the winning recipe is a single model. A decision, no test; it is shown with the
       interval of the best `mixture` minus that model on the search split.
    4. `better_than_every_candidate`: the soup is above every candidate and the largest of the p-values, corrected for
       the looks, is below 0.05 (intersection-union, `better_than_every`).
    5. `better_than_best_candidate`: as 4, but only against the candidate that the search split would choose. It
       is a weaker claim: that candidate need not be the best one.
    6. `keep_candidate`: the upper limit of soup minus that same candidate is below the margin, so that no gain worth a
       soup is left (non-inferiority turned round).
    7. `no_difference_shown`, with the number of items that the margin needs.

    `comparisons` hold the soup (a) against every candidate (b) on the test split; others are ignored. `best_candidate`
    was chosen on the search split, `selected` are the selection's ingredients, `recipe` the ingredients with weight in
    the winning recipe, and `margin` is the least inner gain worth a soup.

    Raises:
        ValueError: a candidate is not compared with the soup.
    """
    # Cases 1 to 3: nothing is tested.
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
        return Verdict(claim="keep_candidate", sentence=f"{text}. Its row is called soup.")

    # {candidate: the soup minus it}
    against = {}
    for comparison in comparisons:
        if comparison.a == soup and comparison.b in candidates:
            against[comparison.b] = comparison
    missing = [name for name in dict.fromkeys([*candidates, best_candidate]) if name not in against]
    if missing:
        raise ValueError(f"the verdict needs {soup!r} compared with {', '.join(missing)}")
    better = _better(unit, against, best_candidate)
    if better is not None:
        return better
    return _not_better(unit, against[best_candidate], margin)


def _better(unit: Unit, against: dict[str, Comparison], best_candidate: str) -> Verdict | None:
    """Claim for a soup that is shown to be better than every candidate or, weaker, than the best one of the search.

    `against` are {candidate: the soup minus it}. Returns None if neither claim is shown.
    """
    comparisons = list(against.values())
    # The closest call: a candidate that the soup is not above, else the one with the largest p-value. p_family has
    # the order of p_look, of which several may be cut to 1 at later looks.
    closest = max(
        comparisons, key=lambda c: (c.difference <= ZERO_DIFFERENCE, c.p_family, -c.difference)
    )
    p_every = better_than_every(comparisons)
    if p_every < ALPHA:
        figures = _figures(unit, closest, p_every)
        text = (
            f"The soup is better than every candidate; the closest call is {closest.b}, {figures}."
        )
        return Verdict(claim="better_than_every_candidate", sentence=text, p_value=p_every)

    single = against[best_candidate]
    if single.difference <= ZERO_DIFFERENCE or single.p_look >= ALPHA:
        return None
    figures = _figures(unit, single, single.p_look)
    sentence = (
        f"The soup is better than {best_candidate}, the model you would have deployed, {figures}; "
        f"it is not shown to be better than every candidate: {closest.b} {_points(unit, closest)}."
    )
    return Verdict(claim="better_than_best_candidate", sentence=sentence, p_value=single.p_look)


def _not_better(unit: Unit, single: Comparison, margin: float) -> Verdict:
    """Claim for a soup that is not shown to be better than `single.b`, the best candidate of the search.

    That candidate is kept if a gain of the margin is ruled out; else no difference is shown.
    """
    gain = unit.amount(unit.size(margin))
    if single.high < margin:
        sentence = (
            f"Keep {single.b}, what the search would have chosen: a soup better by {gain} is ruled out; "
            f"soup minus it is {_points(unit, single)}."
        )
        return Verdict(claim="keep_candidate", sentence=sentence)
    figures = _figures(unit, single, single.p_look)
    needed = items_in_words(items_for(single, margin))
    sentence = (
        f"No difference shown: the soup against {single.b}, the model you would have deployed, {figures}. "
        f"A true gain of {gain} takes {needed} test items (80 % power); there are {single.n:,}. "
        f"That is for {single.b} alone; to show that a soup is better than every candidate takes more."
    )
    return Verdict(claim="no_difference_shown", sentence=sentence, p_value=single.p_look)


def _points(unit: Unit, comparison: Comparison, remark: str = "") -> str:
    """A difference with its interval, which a `remark` follows."""
    difference, low, high = unit.raw_estimate(comparison.estimate)
    limits = unit.limits(low, high, comparison.level.joint_confidence)
    return f"{unit.points(difference, sign=True)} ({limits}{remark})"


def _figures(unit: Unit, comparison: Comparison, p_value: float) -> str:
    """A difference with its interval and p-value, which is corrected for the looks."""
    remark = f", {_p(p_value)}"
    looks = comparison.level.looks
    if looks > 1:
        remark += f", corrected for {looks} looks at these items"
    return _points(unit, comparison, remark)


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"


# ---------------------------------------------------------------- power


def planned_power(run: RunSettings, scores: ScoreMatrix, test: Sequence[Item]) -> Power | None:
    """What a run can show on its `test` items, by the scores that selection sees; None without a formula for it."""
    repeats = run.evaluator.sampling.answers_per_item
    return power_of(scores, test, run.objective, run.inner_min_gain, repeats)


def power_in_words(power: Power, unit: Unit) -> str:
    """The smallest gain that the test split can show, and the number of items that the margin needs, as a line."""
    condition = "80 % power"
    if power.assumed:
        condition += (
            f" if candidates are equal and any two differ on {100 * DISCORDANCE:.0f} % of the items"
        )
    gain = f"{unit.text(unit.size(power.gain))} {unit.name}"
    margin = unit.amount(unit.size(power.margin))
    line = (
        f"test split: {power.items:,} items show that a soup {gain} above the best candidate is better than every "
        f"candidate ({condition}); {margin} needs {items_in_words(power.needed)} items"
    )
    if power.more is not None:
        line += f"; {more_in_words(_more_summary(power.more, unit), unit)}"
    return line


def power_summary(power: Power, unit: Unit) -> PowerSummary:
    """The power of the test split in the evaluator's unit, as report.json and plan.json keep it."""
    return PowerSummary(
        gain=unit.size(power.gain),
        items=power.items,
        min_gain=unit.size(power.margin),
        needed=power.needed,
        assumed=power.assumed,
        more=_more_summary(power.more, unit) if power.more else None,
    )


def _more_summary(more: MoreAnswers, unit: Unit) -> MoreAnswersSummary:
    return MoreAnswersSummary(
        repeats=more.repeats,
        answers_gain=unit.size(more.answers_gain),
        items=more.items,
        items_gain=unit.size(more.items_gain),
    )
