"""Guards: losses that a soup must not have, beside the goal that a search maximises.

A guard watches the items of a category, of a group of categories or of another benchmark, or the length of all answers.
A soup is admissible if, for each guard, the one-sided 95 % limit of its difference to the reference lies above minus
the margin: with a flat prior, a larger loss then has a probability below 5 %. The items of a guard are pooled, and
nothing is carried over from one guard to another. The report tests every guard anew on the report fold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

from souping.analysis.intervals import NORMAL
from souping.analysis.sign_flip import ALPHA
from souping.analysis.significance import DISCORDANCE, POWER, Comparison, compare, pair_variance
from souping.core.fields import pick
from souping.core.types import Bound, FloatArray, Fold, Item, ItemScores, Json, UserError, entries
from souping.core.unit import POINTS, Unit, scores_in, unit_of
from souping.report.format import brackets, clean, count, share
from souping.report.sections import DISPLAYS, Display
from souping.report.tables import Row, Section, grid

NAME, TOKENS = "guards", "tokens"
ADMISSION = 0.05
"""Largest probability of a loss above the margin with which a soup is admitted."""
LEVELS: Mapping[Fold, float] = {"search": ADMISSION, "report": ALPHA / 2}
"""One-sided levels of admission, and of all tests of the report together."""
NEARER = 0.7
"""How much less a soup's scores differ from a candidate's than those of two candidates do (mean squares): the
median of the recorded tables, benchmarks/guards.py --soups."""
FORM = "guard={CATEGORY: POINTS} or guard=POINTS for every category; guard={tokens: +10%} for the length of answers"
LONGER = Unit(name="%", meaning="growth of the mean answer", higher_is_better=False, fractions=False)


@dataclass(frozen=True, kw_only=True)
class Guard(Bound):
    """Bound of a user's, in the `unit` of its benchmark's scores; `benchmark` names an extra one."""

    benchmark: str = ""
    unit: Unit = POINTS

    @property
    def borne(self) -> str:
        """`3 points`, `10 %`"""
        return self.unit.amount(self.unit.size(self.margin))


def read_guards(guard: Json) -> dict[str, float]:
    """The root key `guard`: a loss for every category (named ""), or {category, group, extra benchmark or `tokens`:
    loss}, in percent for `tokens`.

    Raises:
        UserError: it is neither, or a loss is not above 0.
    """
    if guard is None:
        return {}
    table = guard if isinstance(guard, Mapping) else {"": guard}
    return {str(name): _amount(str(name), value) for name, value in table.items()}


def _amount(name: str, value: Json) -> float:
    where, text = f"guard.{name}" if name else "guard", str(value).strip()
    try:
        wrong = isinstance(value, bool) or text.endswith("%") != (name == TOKENS)
        amount = math.nan if wrong else float(text.removesuffix("%"))
    except ValueError:
        amount = math.nan
    if amount == 0:
        raise UserError(f"{where}=0: no number of items can show that nothing is lost: name the loss you would bear")
    if not 0 < amount < math.inf:
        form = 'a share such as "+10%"' if name == TOKENS else "a number above 0 such as 3"
        raise UserError(f"{where}={text:.40} must be {form}: {FORM}")
    return amount


def resolve(
    limits: Mapping[str, float],
    categories: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    units: Mapping[str, Unit],
    key: str = "guard",
) -> tuple[Guard, ...]:
    """What the names stand for: `tokens`, an extra benchmark, a group of the objective's tree, a category or a pattern.

    `units` are {extra benchmark: unit of its scores}, the run's own under an empty name.

    Raises:
        UserError: a name is none of them.
    """
    found = list[Guard]()
    for name, amount in (dict.fromkeys(categories, limits[""]) if "" in limits else limits).items():
        benchmark, inside = name if name in units else "", tuple(groups.get(name, ()))
        inside = inside or tuple(c for c in categories if c == name or fnmatchcase(c, name))
        if not (benchmark or inside or name == TOKENS):
            pick(name, [*categories, *groups, *filter(None, units), TOKENS], key)
        own = LONGER if name == TOKENS else units[benchmark]
        found.append(
            Guard(
                name=name,
                margin=own.inner_margin(amount),
                categories=() if benchmark or name == TOKENS else inside,
                lengths=name == TOKENS,
                benchmark=benchmark,
                unit=own,
            )
        )
    return tuple(found)


# ------------------------------------------------------------ a soup against the reference


@dataclass(frozen=True, kw_only=True)
class GuardCheck:
    """Soup minus reference under one guard."""

    guard: Guard
    found: Comparison

    @property
    def admits(self) -> bool:
        return self.found.low > -self.guard.margin

    @property
    def outcome(self) -> Literal["held", "broken", "undecided"]:
        return "held" if self.admits else "broken" if self.found.high < -self.guard.margin else "undecided"

    def as_dict(self) -> dict[str, Json]:
        """The JSON form of `report.json`."""
        own, found = self.guard.unit, self.found
        shown = {"difference": found.difference, "low": found.low, "high": found.high, "level": found.level}
        borne = {"name": self.guard.name, "unit": asdict(own), "margin": own.size(self.guard.margin)}
        return {**borne, **own.raw_table(shown), "items": found.n, "groups": found.groups, "outcome": self.outcome}


def check(
    guard: Guard, soup: ItemScores, reference: ItemScores, *, looks: int = 1, tests: float = ALPHA / 2 / ADMISSION
) -> GuardCheck:
    """Compare two models under a guard by the sign-flip test and its inverse: one-sided, 2.5 % divided by `tests`."""
    inside, (a, b) = guard.covers([item.category for item in soup.items]), _sides(guard, soup, reference)
    groups = _groups(soup.items)[inside]
    found = compare("", "", a[inside], b[inside], 0 * groups, groups, np.ones(1), looks=looks, tests=tests)
    return GuardCheck(guard=guard, found=found)


def lead(guard: Guard, soup: ItemScores, reference: ItemScores) -> float:
    """Mean gain of the soup on the items of a guard."""
    a, b = _sides(guard, soup, reference)
    return float((a - b)[guard.covers([item.category for item in soup.items])].mean())


def _sides(guard: Guard, soup: ItemScores, reference: ItemScores) -> tuple[FloatArray, FloatArray]:
    """Scores whose mean difference is the soup's gain [I], [I].

    Lengths count as ((1 + margin) x reference - soup) / mean reference - margin: the mean is minus the relative growth,
    and the variance of the bound itself counts.
    """
    if not guard.lengths:
        return soup.values, reference.values
    mean = max(float(reference.lengths.mean()), 1e-9)
    return -soup.lengths / mean, guard.margin - (1 + guard.margin) * reference.lengths / mean


def _groups(items: Sequence[Item]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.unique([item.group for item in items], return_inverse=True)[1].astype(np.int64)


def judge(guards: Sequence[Guard], pairs: Sequence[tuple[ItemScores, ItemScores]], looks: int = 1) -> list[GuardCheck]:
    """Every guard on the report fold at Holm's levels, one-sided 2.5 % for all of them, corrected for the looks.

    `pairs` are the scores of soup and reference on the items of each guard.
    """
    left, done = dict(enumerate(zip(guards, pairs, strict=True))), dict[int, GuardCheck]()
    while left:
        found = {n: check(guard, *pair, looks=looks, tests=len(left)) for n, (guard, pair) in left.items()}
        done |= {n: one for n, one in found.items() if one.outcome != "undecided"} or found
        left = {n: rest for n, rest in left.items() if n not in done}
    return [done[n] for n in range(len(guards))]


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
        apart = DISCORDANCE if guard.unit.fractions else None
        apart = (_discordance(guard, known) if known and not guard.benchmark else None) or apart
        for fold, items in folds.items():
            size = int(guard.covers([item.category for item in items.get(guard.benchmark, ())]).sum())
            row = {"name": guard.name, "borne": guard.borne, "fold": fold, "level": LEVELS[fold], "items": size}
            rows.append({**row, **_passing(guard.margin, apart, size, LEVELS[fold])})
    return rows


def _passing(margin: float, apart: float | None, items: int, level: float) -> dict[str, Any]:
    """Of a one-sided test: `apart` is the mean squared difference of two equal models on an item, if it is known."""
    if apart is None or not items:
        return {"share": None, "needed": None}
    least, most = NORMAL.inv_cdf(1 - level), NORMAL.inv_cdf(POWER)
    share_passing = NORMAL.cdf(margin / math.sqrt(apart / items) - least)
    return {"share": share_passing, "needed": round(apart * ((least + most) / margin) ** 2)}


def warnings_of(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say before a search with guards that even an equal soup will often not pass."""
    return [
        f"guard {one['name']}: on {one['items']:,} search items {100 * one['share']:.0f} % of soups that lose nothing "
        f"will pass; {one['needed']:,} items would let 80 % pass"
        for one in plans
        if one["fold"] == "search" and (one["share"] or 1) < 0.5
    ]


def _discordance(guard: Guard, known: Mapping[str, ItemScores]) -> float | None:
    """Variance of the mean difference of soup and reference, over groups, times the guard's items; None if unknown."""
    items = next(iter(known.values())).items
    inside = guard.covers([item.category for item in items])
    if len(known) < 2 or inside.sum() < 2:
        return None
    tables = [s.lengths / max(float(s.lengths.mean()), 1e-9) if guard.lengths else s.values for s in known.values()]
    groups = _groups(items)[inside]
    sums = np.stack([np.bincount(groups, table[inside] - table[inside].mean()) for table in tables])
    return (1.0 if guard.lengths else NEARER) * pair_variance(sums @ sums.T / inside.sum()) or None


# ------------------------------------------------------------ how they are shown


def planned(plans: Sequence[Mapping[str, Any]]) -> Section | None:
    """The section of a plan."""
    if not plans:
        return None
    keys = ("name", "borne", "fold")
    rows = [
        (*(one[key] for key in keys), count(one["items"]), share(one["share"]), count(one["needed"])) for one in plans
    ]
    header = ("guard", "loss borne", "fold", "items", "equal soups that pass", "items for 80 %")
    lines = (
        "The search admits a soup if a larger loss has a probability below 5 %; the report tests at 2.5 %. Without "
        f"stored answers the plan assumes that soup and reference differ on {100 * DISCORDANCE:.0f} % of the items.",
        *(f"{warning}." for warning in warnings_of(plans)),
    )
    return Section("Guards", lines, grids=(grid(header, rows, left=(0, 1, 2)),))


def section(data: Row) -> Section:
    checks = entries(data, "checks")
    lines = [f"Losses that the soup must not have: {clean(data.get('sentence'))}."]
    lines += ["Tested on the report fold, one-sided 2.5 % for all guards together (Holm)."] * bool(checks)
    header = ("guard", "loss borne", "soup minus reference", "items", "outcome")
    broken = [n for n, one in enumerate(checks) if one.get("outcome") == "broken"]
    table = grid(header, map(_row, checks), left=(0, 1, 4), strong=broken)
    return Section("Guards", tuple(lines), grids=(table,) if checks else ())


def _row(one: Row) -> tuple[str, ...]:
    own = unit_of(one)
    with scores_in(own):
        return (
            clean(one.get("name")),
            own.amount(float(str(one.get("margin")))),
            f"{brackets(one, sign=True)} {own.name}",
            count(one.get("items")),
            clean(one.get("outcome")),
        )


DISPLAYS[NAME] = Display(section, place=-1)
