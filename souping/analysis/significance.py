"""Paired comparison of two models on the same items, several p-values, the strongest claim that holds, and its power.

All p-values are two-sided; a claim "better" also needs the difference above zero.

Shape legend: I items, G groups, C categories, H strata, M candidates, D simulated report folds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from souping.analysis.bootstrap_t import NORMAL
from souping.analysis.grouped import GroupedScores, GroupLayout
from souping.analysis.intervals import ItemTable, span
from souping.analysis.nested import ZERO_DIFFERENCE
from souping.analysis.paired import paired_intervals, step
from souping.analysis.sign_flip import ALPHA, TEST
from souping.analysis.sign_patterns import SIGN_DRAWS
from souping.core.protocols import Objective
from souping.core.types import FloatArray, IntArray, Item, ItemScores, ScoreMatrix
from souping.core.unit import MARGIN, Unit
from souping.report.content import PowerSummary

GRADED_TEST = f"{TEST}, and bootstrap-t"
EVERY = "better, or worse, in every category: the largest of the categories' p-values"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """a minus b on the objective (inner scores) with its interval at `level` and two-sided p-value.

    The interval excludes 0 just where `p_value`, uncorrected, is below 1 - level.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    level: float = 1 - ALPHA
    p_value: float
    test: str
    # Items, and groups of them.
    n: int
    groups: int
    # Share of items on which the two scores differ.
    discordant: float
    # Half the distance of the values that the statistic of the test can take, 0 unless all groups
    # that differ do so by as much.
    step: float = 0.0
    # Degrees of freedom of a difference of training runs.
    degrees: float = math.inf
    run_share: float = 1.0

    def raw(self, unit: Unit) -> dict[str, Any]:
        """The fields of a `PairedDifference`."""
        table = asdict(self)
        del table["step"], table["degrees"], table["run_share"]
        return unit.raw_table(table)


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
    draws: int = SIGN_DRAWS,
    seed: int = 0,
    same_model: bool = False,
    tested: bool = True,
    layout: GroupLayout | None = None,
) -> Comparison:
    """Compare a with b on T = sum_c w_c * mean over items of c of (a_i - b_i), at the `looks`-th look at these items.

    With several `tests` the level of the interval is divided by their number.

    a, b [I] are scores, categories and groups [I] integers (a group may span categories), coefficients [C] with
    w_c >= 0. `layout` is what these make, if it is known. `paired_intervals` has the test, its interval and its
    p-value.

    Two models that gave the same scores have difference 0 and p = 1 with an interval of positive width: other items
    might tell them apart. With `same_model` both are one soup, the difference is 0 by construction and so is the width.
    One that is not `tested` has no p-value (nan), and takes half the time.
    """
    if layout is None:
        layout = GroupLayout.of(categories, groups, coefficients)
    deltas = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    scores = layout.grouped(deltas)
    alpha = ALPHA / penalty(looks) / tests
    comparison = Comparison(
        a=a_name,
        b=b_name,
        difference=scores.objective,
        low=0.0,
        high=0.0,
        level=1 - alpha,
        p_value=1.0,
        test="same model",
        n=len(deltas),
        groups=layout.groups,
        discordant=float((np.abs(deltas) > ZERO_DIFFERENCE).mean()),
        step=step(scores),
    )
    if same_model:
        return comparison
    bound = bound_of(scores, a, b)
    intervals = paired_intervals(
        scores, bound, alpha=alpha, draws=draws, seed=seed, highest=1.0 if tested else alpha
    )
    low, high = intervals.limits(alpha)
    p_value = intervals.p_value() if tested else math.nan
    test = TEST if comparison.step else GRADED_TEST
    return replace(comparison, low=low, high=high, p_value=p_value, test=test)


def bound_of(scores: GroupedScores, a: FloatArray, b: FloatArray) -> float:
    """The largest difference that scores such as a and b can have."""
    _, top_a = span(np.asarray(a))
    _, top_b = span(np.asarray(b))
    return float(scores.weights.sum()) * max(top_a, top_b)


def corners(
    a: FloatArray, b: FloatArray, missing: Sequence[FloatArray] = ()
) -> list[tuple[FloatArray, FloatArray]]:
    """Scores of both models as they were counted and, if answers are missing, what bounds them.

    `missing` are the shares [I] of each item's answers that were never received, of a and of b; they were counted as
    wrong. The corners are opposite: one's missing answers wrong and the other's right. Only scores from 0 to 1 have
    them.
    """
    counted = (a, b)
    are_fractions = np.isfinite([span(np.asarray(a)), span(np.asarray(b))]).all()
    if not are_fractions or not any(shares.any() for shares in missing):
        return [counted]
    missing_a, missing_b = missing
    best_a = np.minimum(a + missing_a, 1.0)
    best_b = np.minimum(b + missing_b, 1.0)
    return [counted, (a, best_b), (best_a, b)]


def bounded(comparisons: Sequence[Comparison]) -> Comparison:
    """The first comparison, with an interval and a p-value that hold for all: what `corners` are for.

    The interval reaches from the lowest to the highest limit. Its p-value is the largest, and 1 if not all differences
    are on one side of 0.
    """
    signs = {np.sign(comparison.difference) for comparison in comparisons}
    p_value = max(comparison.p_value for comparison in comparisons)
    return replace(
        comparisons[0],
        low=min(comparison.low for comparison in comparisons),
        high=max(comparison.high for comparison in comparisons),
        p_value=p_value if len(signs) == 1 else 1.0,
    )


def compare_on_table(
    names: tuple[str, str],
    a: FloatArray,
    b: FloatArray,
    table: ItemTable,
    *,
    looks: int = 1,
    tests: float = 1.0,
    same_model: bool = False,
    missing: Sequence[FloatArray] = (),
) -> Comparison:
    """`compare` on the objective of a table, at all `corners` of the missing answers.

    An objective that is not linear, such as the lowest category mean, is tested in every category, without a
    correction: its difference is not below the lowest of theirs and not above the highest (it rises with every mean,
    and by as much as all of them), so their lowest lower and highest upper limits hold it, and exclude 0 where every
    category shows the same.
    """
    at_corners = []
    for scores_a, scores_b in corners(a, b, missing):
        comparison = compare(
            *names,
            scores_a,
            scores_b,
            table.categories,
            table.groups,
            table.coefficients,
            looks=looks,
            tests=tests,
            same_model=same_model,
        )
        at_corners.append(comparison)
    comparison = bounded(at_corners)
    if table.value is None or same_model:
        return comparison

    by_category = []
    for category in range(len(table.names)):
        items = table.categories == category
        by_category.append(
            compare_on_table(
                names,
                a[items],
                b[items],
                _only_category(table, category),
                looks=looks,
                tests=tests,
                missing=[shares[items] for shares in missing],
            )
        )
    all_categories = bounded(by_category)
    return replace(
        comparison,
        difference=table.score(a) - table.score(b),
        low=all_categories.low,
        high=all_categories.high,
        p_value=all_categories.p_value,
        test=EVERY,
    )


def _only_category(table: ItemTable, category: int) -> ItemTable:
    """The items of one category, whose mean is the objective."""
    groups = table.groups[table.categories == category]
    return replace(
        table,
        names=(table.names[category],),
        categories=0 * groups,
        groups=groups,
        coefficients=np.ones(1),
        value=None,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order: any of them below alpha holds at family-wise level alpha (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        remaining = len(p_values) - rank
        largest = max(largest, min(1.0, remaining * float(p_values[index])))
        adjusted[index] = largest
    return adjusted


def better_than_every(comparisons: Sequence[Comparison]) -> float:
    """p-value of "a is better than every b": the largest of the two-sided p-values, 1 if any difference is not above 0.

    An intersection-union test needs no correction (Berger 1982): the claim is false if it is false for one b, and that
    comparison alone rejects with at most its own error. As p-values are two-sided, a false claim has half the level.
    """
    if not all(comparison.difference > ZERO_DIFFERENCE for comparison in comparisons):
        return 1.0
    return max(comparison.p_value for comparison in comparisons)


def penalty(looks: int) -> int:
    """Factor of the p-values of the `looks`-th look at the same items: 1, then k(k + 1).

    1 + 1/6 + 1/12 + .. is 1.5: over however many looks, each corrected as it comes, false claims stay below 1.5 times
    the level.
    """
    if looks <= 1:
        return 1
    return looks * (looks + 1)


def over_looks(p_value: float, looks: int) -> float:
    """p-value corrected for the looks at these items so far, this one included."""
    return min(1.0, p_value * penalty(looks))


def items_for(comparison: Comparison, margin: float = MARGIN) -> int:
    """Items on which a true difference of the margin has 80 % power, by the width of the interval.

    The difference that was observed plays no part: power for it says nothing that its p-value does not.
    """
    if margin <= 0:
        return rounded_up(math.inf)
    # With x^2 times the items the difference is width / x + step / x^2: the root of
    # margin x^2 - width x - step.
    width = detectable(comparison) - comparison.step
    x = (width + math.sqrt(width**2 + 4 * margin * comparison.step)) / (2 * margin)
    return rounded_up(comparison.n * x * x)


def detectable(comparison: Comparison) -> float:
    """True difference that has 80 % power, and the margin that has it if the models are equal, by the width of the
    interval (not by the difference that was seen).

    Of a few discordant items, the test can only reject at the next whole one: the continuity correction is half a step.
    """
    half_width = (comparison.high - comparison.low) / 2
    quantile, needed = errors_for_power(comparison.level, comparison.degrees, comparison.run_share)
    return needed * half_width / quantile + comparison.step


def errors_for_power(level: float, degrees: float, run_share: float = 1.0) -> tuple[float, float]:
    """(standard errors that an interval reaches, those of a true difference that has 80 % power).

    Of the variance, `run_share` was estimated from few runs (`BanerjeeReach`). If that part came out s^2 times too
    large, and comes out u^2 times too large in the comparison that is planned, an interval reaches
    sqrt(z^2 (1 - share) + t^2 share u^2 / s^2). The power is that on average over s^2 and u^2 ~ chi^2 / degrees.
    """
    z = NORMAL.inv_cdf((1 + level) / 2)
    if degrees > MANY_DEGREES:
        return z, z + NORMAL.inv_cdf(POWER)
    from scipy.special import chdtri, ndtr, stdtrit

    t = float(stdtrit(degrees, (1 + level) / 2))
    tails = (np.arange(FUTURE_ERRORS) + 0.5) / FUTURE_ERRORS
    squares = chdtri(degrees, tails) / degrees
    true_runs = run_share / squares[:, None]
    reaches = np.sqrt(z**2 * (1 - run_share) + t**2 * true_runs * squares)
    errors = np.sqrt(1 - run_share + true_runs)
    low = 0.0
    high = 100 * t
    for _ in range(POWER_HALVINGS):
        k = (low + high) / 2
        if np.mean(ndtr((k - reaches) / errors)) < POWER:
            low = k
        else:
            high = k
    return math.sqrt(z**2 * (1 - run_share) + t**2 * run_share), high


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


POWER = 0.8
# Degrees of freedom beyond which Student's t is the normal distribution.
MANY_DEGREES = 200
# Quantiles of a standard error that is not known yet, and halvings by which the difference is found
# that has the power.
FUTURE_ERRORS = 24
POWER_HALVINGS = 24
# Simulated report folds, and halvings by which the number of items is found.
FUTURES = 4000
ITEMS_HALVINGS = 20
# Assumed share of the items on which two models differ, if no answers of the candidates are known.
DISCORDANCE = 0.1
# More items than anybody would write for one comparison.
ABSURD = 100_000


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


def pair_variance(covariance: FloatArray) -> float:
    """Mean variance of the difference of two models."""
    count = len(covariance)
    return float(2 * (covariance.trace() - covariance.sum() / count) / max(count - 1, 1))


def _worth(table: ItemTable) -> float:
    """Independent items of equal weight that would tell as much of the objective."""
    counts = np.bincount(table.categories, minlength=len(table.names))
    return float(1 / (table.coefficients**2 / counts).sum())


def rounded_up(items: float) -> int:
    """To two digits, which is all that can be known of a number of items that is needed; above ABSURD, just that."""
    if not items <= ABSURD:
        return ABSURD + 1
    digits = math.floor(math.log10(max(items, 1)))
    unit = int(10 ** max(0, digits - 1))
    return math.ceil(items / unit) * unit


def items_in_words(needed: int) -> str:
    if needed > ABSURD:
        return f"more than {ABSURD:,}"
    return f"about {needed:,}"
