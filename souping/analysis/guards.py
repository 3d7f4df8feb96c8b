"""Guards: losses that a soup must not have, beside the goal that a search maximises.

A guard watches the items of a category, of a group of categories or of another benchmark, or the length of all answers.
A soup is admissible if, for each guard, the one-sided 95 % limit of its difference to the reference lies above minus
the margin: with a flat prior, a larger loss then has a probability below 5 %. The items of a guard are pooled, and
nothing is carried over from one guard to another. The report tests every guard anew on the report fold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from souping.analysis.bootstrap_t import NORMAL
from souping.analysis.sign_flip import ALPHA
from souping.analysis.significance import DISCORDANCE, POWER, Comparison, compare, pair_variance
from souping.core.fields import LARGEST_SETTING, pick
from souping.core.text import DASH
from souping.core.types import Bound, Fold, IntArray, Item, ItemScores, Json, UserError
from souping.core.unit import POINTS, Unit
from souping.report.analyses import AnalysisResult
from souping.report.content import MaybeFloat, MaybeInt
from souping.report.format import clean, count, share
from souping.report.tables import Section, grid

GUARDS = "guards"
LENGTH_GUARD = "tokens"
"""Name of a guard or goal that is the mean length of all answers."""
ADMISSION = 0.05
"""Largest probability of a loss above the margin with which a soup is admitted."""
GUARD_LEVELS: Mapping[Fold, float] = {"search": ADMISSION, "report": ALPHA / 2}
"""One-sided levels of admission, and of all tests of the report together."""
NEARER = 0.7
"""How much less a soup's scores differ from a candidate's than those of two candidates do (mean squares): the
median of the recorded tables, benchmarks/guards.py --soups."""
FORM = "guard={CATEGORY: POINTS}, or guard=POINTS for every category; guard={tokens: +10%} for the length of answers"
SMALLEST = 1e-6
"""Smallest loss that may be set: a test of it needs more items than anybody has."""
LONGER = Unit(
    name="%", meaning="growth of the mean answer", higher_is_better=False, fractions=False
)


@dataclass(frozen=True, kw_only=True)
class Guard(Bound):
    """Bound that a user set, in the `unit` of its benchmark's scores; `benchmark` names an extra one."""

    benchmark: str = ""
    unit: Unit = POINTS

    @property
    def allowed(self) -> str:
        """`3 points`, `10 %`"""
        return self.unit.amount(self.unit.size(self.margin))

    def admits(self, found: Comparison) -> bool:
        """Whether soup minus reference rules out a larger loss."""
        return found.low > -self.margin

    def outcome(self, found: Comparison) -> Literal["held", "broken", "undecided"]:
        return (
            "held" if self.admits(found) else "broken" if found.high < -self.margin else "undecided"
        )

    def result(self, found: Comparison) -> GuardCheck:
        """What report.json keeps."""
        limits = {"difference": found.difference, "low": found.low, "high": found.high}
        return GuardCheck(
            name=self.name,
            unit=self.unit,
            margin=self.unit.size(self.margin),
            **self.unit.raw_table(limits),
            level=found.level,
            items=found.n,
            groups=found.groups,
            outcome=self.outcome(found),
        )


def read_guards(guard: Json) -> dict[str, float]:
    """The root key `guard`: a loss for every category (named ""), or {category, group, extra benchmark or `tokens`:
    loss}, in percent for `tokens`.

    Raises:
        UserError: it is neither, or a loss is too small or too large.
    """
    table = guard if isinstance(guard, Mapping) else {} if guard is None else {"": guard}
    return {
        name: _loss(f"guard.{name}" if name else "guard", value, name == LENGTH_GUARD)
        for name, value in table.items()
    }


def _loss(key: str, value: Json, percent: bool) -> float:
    text = str(value).strip()
    try:
        loss = float(text.removesuffix("%"))
    except ValueError:
        loss = math.nan
    if not SMALLEST <= loss <= LARGEST_SETTING or text.endswith("%") != percent:
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
    """What the names stand for: `tokens`, an extra benchmark, a group of the objective's tree or a category.

    `units` are {extra benchmark: unit of its scores}, the run's own under an empty name.

    Raises:
        UserError: a name is not one of them, or no loss can be as large.
    """
    found = list[Guard]()
    named: dict[str, Sequence[str]] = {**{name: (name,) for name in categories}, **groups}
    named |= dict.fromkeys([*filter(None, units), LENGTH_GUARD], ())
    for name, loss in (dict.fromkeys(categories, limits[""]) if "" in limits else limits).items():
        inside, benchmark = tuple(named[pick(name, named, key)]), name if name in units else ""
        own = LONGER if name == LENGTH_GUARD else units[benchmark]
        if own.fractions and loss >= own.scale:
            raise UserError(
                f"{key}.{name}={loss:g} must be below {own.scale:g}: no loss can be larger"
            )
        margin, lengths = own.inner_margin(loss), name == LENGTH_GUARD
        found.append(
            Guard(
                name=name,
                margin=margin,
                categories=inside,
                lengths=lengths,
                benchmark=benchmark,
                unit=own,
            )
        )
    return tuple(found)


# ------------------------------------------------------------ a soup against the reference


def check(
    guard: Guard,
    soup: ItemScores,
    reference: ItemScores,
    *,
    looks: int = 1,
    tests: float = ALPHA / 2 / ADMISSION,
) -> Comparison:
    """Soup minus reference under a guard by the sign-flip test and its inverse: one-sided, 2.5 % divided by `tests`.

    Lengths count as ((1 + margin) x reference - soup) / mean reference - margin: the mean is minus the relative growth,
    and the variance of the bound itself counts.
    """
    a, b, inside = (
        soup.values,
        reference.values,
        guard.covers([item.category for item in soup.items]),
    )
    if guard.lengths:
        mean = max(float(reference.lengths.mean()), 1e-9)
        a, b = -soup.lengths / mean, guard.margin - (1 + guard.margin) * reference.lengths / mean
    groups = _groups(soup.items)[inside]
    return compare(
        "", "", a[inside], b[inside], 0 * groups, groups, np.ones(1), looks=looks, tests=tests
    )


def _groups(items: Sequence[Item]) -> IntArray:
    return np.unique([item.group for item in items], return_inverse=True)[1].astype(np.int64)


def judge(
    guards: Sequence[Guard],
    pairs: Sequence[tuple[ItemScores, ItemScores]],
    looks: int = 1,
    picked: float = 1.0,
    limits: int = 0,
) -> list[GuardCheck]:
    """Tests of all guards on the report fold at Holm's levels, one-sided 2.5 % for all, corrected for the looks.

    `pairs` are the scores of soup and reference on the items of each guard. The soup may have been `picked` among so
    many. Guards that were set after a look are read from simultaneous limits of so many differences instead.
    """
    if limits:
        later = [
            check(g, *p, looks=looks, tests=limits * picked)
            for g, p in zip(guards, pairs, strict=True)
        ]
        return [guard.result(found) for guard, found in zip(guards, later, strict=True)]
    left, done = dict(enumerate(zip(guards, pairs, strict=True))), dict[int, Comparison]()
    while left:
        found = {
            n: check(guard, *pair, looks=looks, tests=len(left) * picked)
            for n, (guard, pair) in left.items()
        }
        done |= {
            n: one for n, one in found.items() if guards[n].outcome(one) != "undecided"
        } or found
        left = {n: rest for n, rest in left.items() if n not in done}
    return [guard.result(done[n]) for n, guard in enumerate(guards)]


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Guards on the items of a fold, with the scores of the model `against` which soups are compared."""

    guards: tuple[Guard, ...]
    against: str
    reference: ItemScores

    @property
    def bounds(self) -> tuple[Guard, ...]:
        """The guards on the run's own items."""
        return tuple(guard for guard in self.guards if not guard.benchmark)


# ------------------------------------------------------------ planning


def plan_guards(
    guards: Sequence[Guard],
    folds: Mapping[Fold, Mapping[str, Sequence[Item]]],
    known: Mapping[str, ItemScores] | None = None,
) -> list[dict[str, Any]]:
    """What each guard can do on each fold: the `share` of equal soups that pass, and the items `needed` for 80 %.

    Items are {extra benchmark: items}, the run's own under an empty name. `known` are scores of candidates on some
    items of the run's benchmark. Without them a soup and the reference differ on 10 % of the items, and nothing is
    known of lengths and losses.
    """
    rows = []
    for guard in guards:
        variance = _variance(guard, known or {})
        for fold, items in folds.items():
            level, own = GUARD_LEVELS[fold], items.get(guard.benchmark, ())
            size = int(guard.covers([item.category for item in own]).sum())
            row = {
                "name": guard.name,
                "allowed": guard.allowed,
                "fold": fold,
                "level": level,
                "items": size,
            }
            rows.append({**row, **_passing(guard.margin, variance, size, level)})
    return rows


def _passing(margin: float, variance: float | None, items: int, level: float) -> dict[str, Any]:
    """Of a one-sided test of two equal models."""
    if variance is None or not items:
        return {"share": None, "needed": None}
    least, most = NORMAL.inv_cdf(1 - level), NORMAL.inv_cdf(POWER)
    share_passing = NORMAL.cdf(margin / math.sqrt(variance / items) - least)
    return {"share": share_passing, "needed": round(variance * ((least + most) / margin) ** 2)}


def _variance(guard: Guard, known: Mapping[str, ItemScores]) -> float | None:
    """Of the mean difference of two equal models, over groups, times the guard's items; None if nothing is known."""
    found, scores = 0.0, [] if guard.benchmark else [*known.values()]
    inside = guard.covers([item.category for item in scores[0].items] if scores else ())
    if inside.any():
        tables = [
            s.lengths / max(float(s.lengths.mean()), 1e-9) if guard.lengths else s.values
            for s in scores
        ]
        groups = _groups(scores[0].items)[inside]
        sums = np.stack(
            [np.bincount(groups, table[inside] - table[inside].mean()) for table in tables]
        )
        found = (1.0 if guard.lengths else NEARER) * pair_variance(sums @ sums.T / inside.sum())
    return found or (DISCORDANCE if guard.unit.fractions else None)


def warnings_of(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say before a search with guards that even an equal soup will often not pass."""
    return [
        f"guard {one['name']}: with {one['items']:,} search items, only {100 * one['share']:.0f} % of the soups that "
        f"lose nothing would pass; with {one['needed']:,} items, 80 % would"
        for one in plans
        if one["fold"] == "search" and (one["share"] or 1) < 0.5
    ]


# ------------------------------------------------------------ how they are shown


def planned(plans: Sequence[Mapping[str, Any]]) -> Section | None:
    """The section of a plan."""
    rows = [
        (
            one["name"],
            one["allowed"],
            one["fold"],
            count(one["items"]),
            share(one["share"]),
            count(one["needed"]),
        )
        for one in plans
    ]
    header = ("guard", "allowed loss", "fold", "items", "equal soups that pass", "items for 80 %")
    lines = (
        "The search admits a soup if the probability of a larger loss is below 5 %; the report tests at 2.5 %. Without "
        f"stored answers, the plan assumes that soup and reference differ on {100 * DISCORDANCE:.0f} % of the items.",
        *(f"{warning}." for warning in warnings_of(plans)),
    )
    return Section("Guards", lines, grids=(grid(header, rows, left=(0, 1, 2)),)) if rows else None


@dataclass(frozen=True, kw_only=True)
class GuardCheck:
    """A guard on the report fold."""

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


@dataclass(frozen=True, kw_only=True)
class GuardsResult(AnalysisResult):
    """What the guards changed, and whether they held."""

    against: str | None = None
    """the model that soups are compared with"""
    cost: MaybeFloat = None
    """what the guards cost on the search fold"""
    refused: bool | None = None
    """whether no soup passed"""
    sentence: str | None = None
    """what the guards changed"""
    checks: tuple[GuardCheck, ...]
    """every guard on the report fold"""

    def section(self, unit: Unit) -> Section:
        against = clean(self.against)
        lines = [f"Compared with {against}, {clean(self.sentence)}."]
        if not self.checks:
            return Section("Guards", tuple(lines))
        lines.append("Tested on the report fold, one-sided 2.5 % for all guards together (Holm).")
        header = ("guard", "allowed loss", f"soup minus {against}", "items", "outcome")
        rows = []
        for check in self.checks:
            margin = DASH if check.margin is None else check.unit.amount(check.margin)
            shown = check.unit.brackets(check.difference, check.low, check.high, True)
            words = (f"{shown} {check.unit.name}", count(check.items), clean(check.outcome))
            rows.append((clean(check.name), margin, *words))
        broken = [i for i, check in enumerate(self.checks) if check.outcome == "broken"]
        table = grid(header, rows, left=(0, 1, 4), strong=broken)
        return Section("Guards", tuple(lines), grids=(table,))
