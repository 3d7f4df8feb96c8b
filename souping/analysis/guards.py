"""Guards: losses that a soup must not have, beside the goal that a search maximises.

A guard watches some items: those of a category, of a group of categories or of another benchmark, or the length of all
answers. A soup is admissible if, for each guard, the one-sided 95 % limit of its difference to the reference lies above
minus the margin: with a flat prior, a larger loss then has a probability below 5 %. The items of a guard are pooled,
and nothing is carried over from one guard to another. The report tests every guard anew on the report fold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from souping.analysis.intervals import NORMAL, design
from souping.analysis.sign_flip import ALPHA, invert
from souping.analysis.significance import DISCORDANCE, POWER, penalty
from souping.core.fields import pick
from souping.core.types import BoolArray, FloatArray, IntArray, Item, ItemScores, Json, UserError

TOKENS = "tokens"
ADMISSION = 0.05
"""Largest probability of a loss above the margin with which a soup is admitted."""
TEST = ALPHA / 2
"""One-sided level of the report's test."""
FORM = "guard={CATEGORY: POINTS} or guard=POINTS for every category; guard={tokens: +10%} for the length of answers"
Outcome = Literal["held", "broken", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Largest loss that a user would bear: a fraction of 1 in the scores of some `categories`, all if there are none,
    or, with `lengths`, a share by which answers may get longer. `benchmark` names the extra benchmark it is about."""

    name: str
    margin: float
    categories: tuple[str, ...] = ()
    benchmark: str = ""
    lengths: bool = False

    def covers(self, items: Sequence[Item]) -> BoolArray:
        """Which items it watches [I]."""
        return np.array([not self.categories or item.category in self.categories for item in items])


@dataclass(frozen=True, kw_only=True)
class Limit:
    """`guard` as written: a number of points, or a share of the reference's length."""

    name: str
    amount: float


def read_guards(guard: Json) -> tuple[Limit, ...]:
    """The root key `guard`: points for every category, or {category, group, extra benchmark or `tokens`: loss}.

    Raises:
        UserError: it is neither, or a loss is not above 0.
    """
    if guard is None:
        return ()
    table = guard if isinstance(guard, Mapping) else {"": guard}
    return tuple(Limit(name=str(name), amount=_amount(str(name), value)) for name, value in table.items())


def _amount(name: str, value: Json) -> float:
    where = f"guard.{name}" if name else "guard"
    text = str(value).strip()
    share = text.endswith("%")
    if share != (name == TOKENS):
        form = 'a share such as "+10%"' if name == TOKENS else "a number of points such as 3"
        raise UserError(f"{where}={text:.40} must be {form}: {FORM}")
    try:
        amount = float("nan" if isinstance(value, bool) else text.removesuffix("%"))
    except ValueError:
        amount = math.nan
    if amount == 0:
        raise UserError(f"{where}=0: no number of items can show that nothing is lost: name the loss you would bear")
    if not 0 < amount <= (1000 if share else 100):
        raise UserError(f"{where}={text:.40} must be above 0 and at most {'1000%' if share else 100}: {FORM}")
    return amount / 100


def resolve(
    limits: Sequence[Limit],
    categories: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    benchmarks: Sequence[str],
    key: str = "guard",
) -> tuple[Guard, ...]:
    """What the names stand for: an extra benchmark, a category, a group of the objective's tree, or a pattern.

    Raises:
        UserError: a name is none of them.
    """
    found = list[Guard]()
    for one in limits:
        if one.name == "":
            found += [Guard(name=name, margin=one.amount, categories=(name,)) for name in categories]
            continue
        inside = tuple(groups.get(one.name, ())) or tuple(c for c in categories if fnmatchcase(c, one.name))
        if one.name == TOKENS:
            found.append(Guard(name=one.name, margin=one.amount, lengths=True))
        elif one.name in benchmarks:
            found.append(Guard(name=one.name, margin=one.amount, benchmark=one.name))
        elif inside:
            found.append(Guard(name=one.name, margin=one.amount, categories=inside))
        else:
            pick(one.name, [*categories, *groups, *benchmarks, TOKENS], key)
    return tuple(found)


# ------------------------------------------------------------ a soup against the reference


@dataclass(frozen=True, kw_only=True)
class GuardCheck:
    """Soup minus reference under one guard, with its interval: fractions of 1, or minus the relative growth of answers.
    `margin` is the loss that is borne."""

    name: str
    margin: float
    difference: float
    low: float
    high: float
    level: float
    items: int
    groups: int

    @property
    def admits(self) -> bool:
        return self.low > -self.margin

    @property
    def outcome(self) -> Outcome:
        return "held" if self.admits else "broken" if self.high < -self.margin else "undecided"

    def as_dict(self) -> dict[str, Json]:
        """The JSON form of `report.json`."""
        return {**asdict(self), "outcome": self.outcome}


def check(guard: Guard, soup: ItemScores, reference: ItemScores, alpha: float = 2 * ADMISSION) -> GuardCheck:
    """Compare two models under a guard by the sign-flip test and its inverse; `alpha` is two-sided."""
    inside = guard.covers(soup.items)
    deltas, groups = differences(guard, soup, reference)[inside], _groups(soup.items, inside)
    scale = float(np.abs(deltas).max()) + guard.margin if guard.lengths else 1.0
    whole = design(deltas, np.zeros(len(deltas), dtype=int), groups, np.ones(1))
    low, high, _ = invert(whole, scale, alpha=alpha)
    return GuardCheck(
        name=guard.name,
        margin=guard.margin,
        difference=whole.objective,
        low=low,
        high=high,
        level=1 - alpha,
        items=len(deltas),
        groups=int(groups.max()) + 1,
    )


def differences(guard: Guard, soup: ItemScores, reference: ItemScores) -> FloatArray:
    """Soup minus reference on each item [I] in the unit of the guard.

    Lengths count as ((1 + margin) x reference - soup) / mean reference - margin: the mean is minus the relative growth,
    and the variance of the bound itself counts.
    """
    if not guard.lengths:
        return soup.values - reference.values
    unit = max(float(reference.lengths.mean()), 1e-9)
    return ((1 + guard.margin) * reference.lengths - soup.lengths) / unit - guard.margin


def _groups(items: Sequence[Item], inside: BoolArray) -> IntArray:
    """Numbers of the groups of some items."""
    names = [item.group for item, own in zip(items, inside, strict=True) if own]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def judge(
    guards: Sequence[Guard], soup: Sequence[ItemScores], reference: Sequence[ItemScores], looks: int = 1
) -> list[GuardCheck]:
    """Every guard on the report fold at Holm's levels, one-sided 2.5 % for all of them, corrected for the looks.

    `soup` and `reference` are the scores on the items of each guard.
    """
    left, done = list(range(len(guards))), dict[int, GuardCheck]()
    while left:
        alpha = 2 * TEST / penalty(looks) / len(left)
        found = {n: check(guards[n], soup[n], reference[n], alpha) for n in left}
        decided = [n for n in left if found[n].outcome != "undecided"]
        done |= found if not decided else {n: found[n] for n in decided}
        left = [n for n in left if n not in decided] if decided else []
    return [done[n] for n in range(len(guards))]


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Guards on the items of a fold, with the scores of the model that soups must not fall behind."""

    guards: tuple[Guard, ...]
    against: str
    reference: ItemScores

    @property
    def own(self) -> list[Guard]:
        """The guards on the items of the run's own benchmark."""
        return [guard for guard in self.guards if not guard.benchmark]

    def checks(self, soup: ItemScores) -> list[GuardCheck]:
        """A soup that has answered the whole fold under each guard on its items."""
        return [check(guard, soup, self.reference) for guard in self.own]

    def likely(self, soup: ItemScores) -> bool:
        """Whether the losses on the fold itself are within the margins."""
        losses = [
            (guard.margin, differences(guard, soup, self.reference)[guard.covers(soup.items)]) for guard in self.own
        ]
        return all(float(lost.mean()) > -margin for margin, lost in losses)


# ------------------------------------------------------------ planning


@dataclass(frozen=True, kw_only=True)
class GuardPlan:
    """What a guard can do with so many items: `needed` items for 80 % of equal soups to pass, and the `share` of equal
    soups that will, at the search's level of 5 % and at the report's of 2.5 %.

    `discordance` is the mean squared difference of two equal models' scores on one item; None where it is not known.
    """

    name: str
    margin: float
    search: int
    report: int
    discordance: float | None
    lengths: bool = False

    def as_dict(self) -> dict[str, Json]:
        """The JSON form of `plan.json`."""
        levels = {"search": (self.search, ADMISSION), "report": (self.report, TEST)}
        shares = {f"{fold}_pass": self.share(*where) for fold, where in levels.items()}
        return {
            **asdict(self),
            **shares,
            **{f"{fold}_needed": self.needed(level) for fold, (_, level) in levels.items()},
        }

    def needed(self, level: float) -> int | None:
        """Items for which 80 % of equal soups pass a one-sided test at this level."""
        if self.discordance is None:
            return None
        return round(self.discordance * ((quantile(1 - level) + quantile(POWER)) / self.margin) ** 2)

    def share(self, items: int, level: float) -> float | None:
        """Equal soups that pass a one-sided test on so many items."""
        if self.discordance is None or not items:
            return None
        error = math.sqrt(max(self.discordance, 1e-12) / items)
        return NORMAL.cdf(self.margin / error - quantile(1 - level))

    def warnings(self) -> list[str]:
        """What to say before a search whose guard even an equal soup will often not pass."""
        share = self.share(self.search, ADMISSION)
        if share is None or share >= 0.5:
            return []
        return [
            f"guard {self.name}: on {self.search:,} search items {100 * share:.0f} % of soups that lose nothing "
            f"will pass; {self.needed(ADMISSION):,} items would let 80 % pass"
        ]


def quantile(share: float) -> float:
    return NORMAL.inv_cdf(share)


def plan_guards(
    guards: Sequence[Guard],
    search: Mapping[str, Sequence[Item]],
    report: Mapping[str, Sequence[Item]],
    known: Mapping[str, ItemScores] | None = None,
) -> Iterator[GuardPlan]:
    """A plan for each guard; items are {extra benchmark: items}, the run's own under an empty name.

    `known` are scores of candidates on other items of the run's benchmark. Without them two equal models differ on
    10 % of the items, and nothing is known of lengths.
    """
    for guard in guards:
        sizes = (int(guard.covers(fold.get(guard.benchmark, ())).sum()) for fold in (search, report))
        assumed = None if guard.lengths else DISCORDANCE
        measured = _discordance(guard, known) if known and not guard.benchmark else None
        yield GuardPlan(
            name=guard.name,
            margin=guard.margin,
            search=next(sizes),
            report=next(sizes),
            discordance=assumed if measured is None else measured,
            lengths=guard.lengths,
        )


def _discordance(guard: Guard, known: Mapping[str, ItemScores]) -> float | None:
    """Variance of the mean difference of two candidates, over groups, times the guard's items; None if unknown."""
    items = next(iter(known.values())).items
    inside = guard.covers(items)
    if len(known) < 2 or inside.sum() < 2:
        return None
    groups = _groups(items, inside)
    tables = [(s.lengths / max(float(s.lengths.mean()), 1e-9) if guard.lengths else s.values) for s in known.values()]
    wholes = [
        design((a - b)[inside], np.zeros_like(groups), groups, np.ones(1))
        for n, a in enumerate(tables)
        for b in tables[:n]
    ]
    return float(np.mean([whole.variances().sum() for whole in wholes]) * inside.sum()) or None
