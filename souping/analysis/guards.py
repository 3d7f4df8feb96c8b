"""Guards: losses that a soup must not have, beside the goal that a search maximises.

A guard watches the items of a category, of a group of categories or of another benchmark, or the
length of all answers. A soup is admissible if, for each guard, the one-sided 95 % limit of its
difference to the reference lies above minus the margin: with a flat prior, a larger loss then has a
probability below 5 %. The items of a guard are pooled, and nothing is carried over from one guard
to another. The report tests every guard anew on the test split.

Shape legend: I items, M models, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from souping.core.fields import LARGEST_SETTING, pick
from souping.core.text import DASH
from souping.core.types import (
    OWN_BENCHMARK,
    Bound,
    Item,
    ItemScores,
    Json,
    SearchBounds,
    Split,
    UserError,
    frozen,
)
from souping.core.unit import POINTS, Unit
from souping.report.analysis_results import AnalysisResult
from souping.report.cells import Section, grid
from souping.report.content import MaybeFloat, MaybeInt
from souping.report.format import clean, count, share
from souping.statistics.bootstrap_t import NORMAL
from souping.statistics.comparison import Comparison, contrast
from souping.statistics.corrections import ALPHA, Level, release
from souping.statistics.power import DISCORDANCE, POWER, pair_variance
from souping.statistics.score_table import ScoreTable, group_numbers, one_category

GUARDS = "guards"
# Name of a guard or goal that is the mean length of all answers.
LENGTH_GUARD = "tokens"
# Largest probability of a loss above the margin with which a soup is admitted.
ADMISSION = 0.05
# One-sided levels of admission, and of all tests of the report together.
GUARD_LEVELS: Mapping[Split, float] = {"search": ADMISSION, "test": ALPHA / 2}
# How much less a soup's scores differ from a candidate's than those of two candidates do (mean
# squares): the median of the recorded tables, benchmarks/guards.py --soups.
NEARER = 0.7
FORM = "guard={CATEGORY: POINTS}, or guard=POINTS for every category; guard={tokens: +10%} for the length of answers"
# Smallest loss that may be set: a test of it needs more items than anybody has.
SMALLEST = 1e-6
# Least mean length that others are divided by.
LEAST_LENGTH = 1e-9
# Share of equal soups that pass a guard below which a search warns.
FEW_PASS = 0.5
LONGER = Unit(
    name="%", meaning="growth of the mean answer", higher_is_better=False, fractions=False
)


@frozen
class Guard(Bound):
    """Bound that a user set, in the `unit` of its benchmark's scores; `benchmark` names an extra one."""

    benchmark: str = OWN_BENCHMARK
    unit: Unit = POINTS

    @property
    def allowed(self) -> str:
        """`3 points`, `10 %`"""
        return self.unit.amount(self.unit.size(self.margin))

    def admits(self, comparison: Comparison) -> bool:
        """Whether soup minus reference rules out a larger loss."""
        return comparison.low > -self.margin

    def outcome(self, comparison: Comparison) -> Literal["held", "broken", "undecided"]:
        """What soup minus reference shows: no larger loss, a larger one, or neither."""
        if self.admits(comparison):
            return "held"
        if comparison.high < -self.margin:
            return "broken"
        return "undecided"

    def result(self, comparison: Comparison) -> GuardCheck:
        """The guard with soup minus reference, as report.json keeps it."""
        difference, low, high = self.unit.raw_estimate(comparison.estimate)
        return GuardCheck(
            name=self.name,
            unit=self.unit,
            margin=self.unit.size(self.margin),
            difference=difference,
            low=low,
            high=high,
            level=comparison.level.confidence,
            items=comparison.n,
            groups=comparison.groups,
            outcome=self.outcome(comparison),
        )


def read_guards(guard: Json) -> dict[str, float]:
    """The root key `guard`: a loss for every category (named ""), or {category, group, extra benchmark or `tokens`:
    loss}, in percent for `tokens`.

    Raises:
        UserError: it is neither, or a loss is too small or too large.
    """
    if guard is None:
        return {}
    if not isinstance(guard, Mapping):
        guard = {"": guard}
    losses = {}
    for name, value in guard.items():
        key = f"guard.{name}" if name else "guard"
        losses[name] = _loss(key, value, percent=name == LENGTH_GUARD)
    return losses


def _loss(key: str, value: Json, percent: bool) -> float:
    """The loss that a setting such as `3`, or `+10%` if it is in `percent`, allows (UserError, with the `key`)."""
    text = str(value).strip()
    try:
        loss = float(text.removesuffix("%"))
    except ValueError:
        loss = math.nan  # not in range
    in_range = SMALLEST <= loss <= LARGEST_SETTING
    if not in_range or text.endswith("%") != percent:
        form = 'a percentage such as "+10%"' if percent else "a number such as 3"
        raise UserError(
            f"{key}={text:.40} must be {form}, at least {SMALLEST:g}: the largest loss that you accept, {FORM}"
        )
    return loss


def resolve(
    limits: Mapping[str, float],
    categories: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    units: Mapping[str, Unit],
    key: str = "guard",
) -> tuple[Guard, ...]:
    """Guards from {name: loss}; a name is `tokens`, an extra benchmark, a group of the objective's tree or a category.

    A loss with an empty name holds for every category. `units` are {benchmark: unit of its scores}, including
    OWN_BENCHMARK. `key` is the setting, for messages.

    Raises:
        UserError: a name is not one of them, or no loss can be as large.
    """
    # {name: its categories}; an extra benchmark and `tokens` have none. The run's own benchmark, whose name is empty,
    # is not guarded as a whole.
    categories_of: dict[str, Sequence[str]] = {name: (name,) for name in categories}
    categories_of |= groups
    for name in (*filter(None, units), LENGTH_GUARD):
        categories_of[name] = ()
    if "" in limits:
        limits = dict.fromkeys(categories, limits[""])

    guards = []
    for name, loss in limits.items():
        guarded = tuple(categories_of[pick(name, categories_of, key)])
        benchmark = name if name in units else OWN_BENCHMARK
        unit = LONGER if name == LENGTH_GUARD else units[benchmark]
        if unit.fractions and loss >= unit.scale:
            raise UserError(
                f"{key}.{name}={loss:g} must be below {unit.scale:g}: no loss can be larger"
            )
        guard = Guard(
            name=name,
            margin=unit.inner_margin(loss),
            categories=guarded,
            lengths=name == LENGTH_GUARD,
            benchmark=benchmark,
            unit=unit,
        )
        guards.append(guard)
    return tuple(guards)


# ------------------------------------------------------------ a soup against the reference


def guarded_difference(
    guard: Guard,
    soup: ItemScores,
    reference: ItemScores,
    *,
    looks: int = 1,
    tests: float = ALPHA / 2 / ADMISSION,
) -> Comparison:
    """Soup minus reference under a guard: one-sided at ALPHA / 2 = 2.5 % divided by `tests`.

    The default of `tests`, which is below 1, gives the level of ADMISSION. A guard on scores must hold whatever the
    missing answers of both models are. Lengths count as ((1 + margin) x reference - soup) / mean reference - margin:
    the mean is minus the relative growth, and the variance of the bound itself counts.
    """
    items = one_category(group_numbers([item.group for item in soup.items]))
    if guard.lengths:
        mean = max(float(reference.lengths.mean()), LEAST_LENGTH)
        bound = guard.margin - (1 + guard.margin) * reference.lengths / mean
        scores = ScoreTable.complete(items, {"soup": -soup.lengths / mean, "reference": bound})
    else:
        scores = ScoreTable.measured(items, {"soup": soup, "reference": reference})
    guarded = guard.covers([item.category for item in soup.items])
    return contrast(scores.at(guarded), "soup", "reference", Level(looks, tests))


def guard_tests(
    guards: Sequence[Guard],
    pairs: Sequence[tuple[ItemScores, ItemScores]],
    looks: int = 1,
    picked: float = 1.0,
    limits: int = 0,
) -> list[GuardCheck]:
    """Tests of all guards on the test split at Holm's levels, one-sided 2.5 % for all, corrected for the looks.

    `pairs` are the scores of soup and reference on the items of each guard. `picked` is the number of tests that the
    choice of the soup counts for. For guards that were set after a look, `limits` is how many simultaneous limits are
    read instead of tests.
    """
    if limits:
        checks = []
        for guard, pair in zip(guards, pairs, strict=True):
            comparison = guarded_difference(guard, *pair, looks=looks, tests=limits * picked)
            checks.append(guard.result(comparison))
        return checks

    # The comparison of each guard at the last of Holm's steps that it took part in.
    comparisons: dict[int, Comparison] = {}

    def is_decided(n: int, undecided: int) -> bool:
        """Whether guard n is held or broken if it is one of this number of undecided guards; keeps its comparison."""
        tests = undecided * picked
        comparisons[n] = guarded_difference(guards[n], *pairs[n], looks=looks, tests=tests)
        return guards[n].outcome(comparisons[n]) != "undecided"

    release(range(len(guards)), is_decided)
    return [guard.result(comparisons[n]) for n, guard in enumerate(guards)]


@frozen
class Admission:
    """Guards on the items of a split, with the scores of the model `against` which soups are compared."""

    guards: tuple[Guard, ...]
    against: str
    reference: ItemScores

    @property
    def own_guards(self) -> tuple[Guard, ...]:
        """The guards on the run's own items."""
        return tuple(guard for guard in self.guards if guard.benchmark == OWN_BENCHMARK)

    @property
    def bounds(self) -> SearchBounds:
        """What a search knows of the guards."""
        return SearchBounds(bounds=self.own_guards, against=self.against, reference=self.reference)


# ------------------------------------------------------------ planning


def plan_guards(
    guards: Sequence[Guard],
    splits: Mapping[Split, Mapping[str, Sequence[Item]]],
    known: Mapping[str, ItemScores] | None = None,
) -> list[dict[str, Any]]:
    """What each guard can do on each split: the `share` of equal soups that pass, and the items `needed` for 80 %.

    Items are {benchmark: items}, including OWN_BENCHMARK. `known` are scores of candidates on some
    items of the run's benchmark. Without them a soup and the reference differ on 10 % of the items, and nothing is
    known of lengths and losses.
    """
    rows = []
    for guard in guards:
        variance = _variance(guard, known or {})
        for split, items in splits.items():
            level = GUARD_LEVELS[split]
            categories = [item.category for item in items.get(guard.benchmark, ())]
            size = int(guard.covers(categories).sum())
            row = {
                "name": guard.name,
                "allowed": guard.allowed,
                "split": split,
                "level": level,
                "items": size,
            }
            rows.append({**row, **_passing(guard.margin, variance, size, level)})
    return rows


def _passing(margin: float, variance: float | None, items: int, level: float) -> dict[str, Any]:
    """Share of equal soups that pass, and the items with which 80 % do, by a one-sided test.

    With a standard error s a soup passes with the probability Phi(margin / s - z). For a share of
    80 % that is n = variance ((z + z_80) / margin)^2.
    """
    if variance is None or not items:
        return {"share": None, "needed": None}
    z = NORMAL.inv_cdf(1 - level)
    z_power = NORMAL.inv_cdf(POWER)
    share_passing = NORMAL.cdf(margin / math.sqrt(variance / items) - z)
    return {"share": share_passing, "needed": round(variance * ((z + z_power) / margin) ** 2)}


def _variance(guard: Guard, known: Mapping[str, ItemScores]) -> float | None:
    """Variance per item of the difference of a soup and an equal model under a guard: the mean over n items has 1 / n
    of it. None if unknown.

    Measured on the differences of the `known` models; assumed if these tell nothing.
    """
    assumed = DISCORDANCE if guard.unit.fractions else None
    scores = list(known.values())
    if guard.benchmark != OWN_BENCHMARK or not scores:
        return assumed
    items = scores[0].items
    guarded = guard.covers([item.category for item in items])
    if not guarded.any():
        return assumed

    # Sums over the groups of each model's deviations from its mean [M, G].
    groups = group_numbers([item.group for item in items])[guarded]
    sums = []
    for model in scores:
        values = model.values
        if guard.lengths:
            values = model.lengths / max(float(model.lengths.mean()), LEAST_LENGTH)
        deviations = values[guarded] - values[guarded].mean()
        sums.append(np.bincount(groups, deviations))
    deviations_by_group = np.stack(sums)
    covariance = deviations_by_group @ deviations_by_group.T / guarded.sum()
    # A soup is nearer to a model than two models are to each other; for lengths this was not measured.
    factor = 1.0 if guard.lengths else NEARER
    variance = factor * pair_variance(covariance)
    return variance or assumed  # candidates that never differ say nothing about a soup


def warnings_of(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings for guards that even an equal soup will often not pass in the search, from the rows of `plan_guards`."""
    warnings = []
    for plan in plans:
        passing = plan["share"]
        if plan["split"] != "search" or not passing or passing >= FEW_PASS:
            continue
        warnings.append(
            f"guard {plan['name']}: with {plan['items']:,} search items, only {100 * passing:.0f} % of the soups that "
            f"lose nothing would pass; with {plan['needed']:,} items, 80 % would"
        )
    return warnings


# ------------------------------------------------------------ how they are shown


def planned(plans: Sequence[Mapping[str, Any]]) -> Section | None:
    """The section of a plan on its guards, from the rows of `plan_guards`; None without guards."""
    if not plans:
        return None
    rows = []
    for plan in plans:
        size = count(plan["items"])
        passing = share(plan["share"])
        needed = count(plan["needed"])
        rows.append((plan["name"], plan["allowed"], plan["split"], size, passing, needed))
    header = ("guard", "allowed loss", "split", "items", "equal soups that pass", "items for 80 %")
    lines = (
        "The search admits a soup if the probability of a larger loss is below 5 %; the report tests at 2.5 %. Without "
        f"stored answers, the plan assumes that soup and reference differ on {100 * DISCORDANCE:.0f} % of the items.",
        *(f"{warning}." for warning in warnings_of(plans)),
    )
    return Section("Guards", lines, grids=(grid(header, rows, left=(0, 1, 2)),))


@frozen
class GuardCheck:
    """A guard on the test split."""

    name: str
    """name of the guard"""
    unit: Unit = POINTS
    """unit of its limit"""
    margin: MaybeFloat
    """largest loss that is allowed"""
    difference: MaybeFloat
    """soup minus the model of the guards"""
    low: MaybeFloat
    """lower limit at `level`"""
    high: MaybeFloat
    """upper limit"""
    level: MaybeFloat
    """level of the interval"""
    items: MaybeInt
    """items"""
    groups: MaybeInt
    """groups of items"""
    outcome: str
    """`held`, `broken` or `undecided`, or why there is none"""


@frozen
class GuardsResult(AnalysisResult):
    """What the guards changed, and whether they held."""

    against: str | None = None
    """the model that soups are compared with"""
    cost: MaybeFloat = None
    """what the guards cost on the search split"""
    refused: bool | None = None
    """whether no soup passed"""
    sentence: str | None = None
    """what the guards changed"""
    checks: tuple[GuardCheck, ...]
    """every guard on the test split"""

    def section(self, unit: Unit) -> Section:
        """What the guards changed, and a table of their tests, if there were any."""
        against = clean(self.against)
        lines = [f"Compared with {against}, {clean(self.sentence)}."]
        if not self.checks:
            return Section("Guards", tuple(lines))
        lines.append("Tested on the test split, one-sided 2.5 % for all guards together (Holm).")
        header = ("guard", "allowed loss", f"soup minus {against}", "items", "outcome")
        rows = []
        for check in self.checks:
            margin = DASH if check.margin is None else check.unit.amount(check.margin)
            limits = check.unit.brackets(check.difference, check.low, check.high, True)
            difference = f"{limits} {check.unit.name}"
            outcome = clean(check.outcome)
            rows.append((clean(check.name), margin, difference, count(check.items), outcome))
        broken = [n for n, check in enumerate(self.checks) if check.outcome == "broken"]
        table = grid(header, rows, left=(0, 1, 4), strong=broken)
        return Section("Guards", tuple(lines), grids=(table,))
