"""How often the testing procedure claims something that is not so, and how often its intervals cover the truth.

    python benchmarks/nulls.py [--repetitions 2000] [--out benchmarks/results/nulls-DATE.md]

Every null is simulated from scores with a known truth; each may claim at most 5 %, which 2,000 repetitions accept up to
116 times (5 % plus 1.64 standard errors). One procedure must fail, or the check could not see anything: groups ignored.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from souping.analysis.intervals import design, limits, objective_interval, rate
from souping.analysis.significance import over_ledger, sign_flip

ALPHA, DRAWS, BASE = 0.05, 999, 0.7


class Layout:
    """C categories of n items. In each, a third of the items stand alone, a third in fives, and a third shares its
    groups with the other categories, as one scenario asked in several ways does."""

    def __init__(self, categories: int = 8, n: int = 75) -> None:
        third = n // 3
        within = np.concatenate([np.arange(n - 2 * third), n + np.arange(third) // 5])
        own = [c * 10_000 + within for c in range(categories)]
        self.groups = np.concatenate([np.concatenate([g, 1_000_000 + np.arange(third)]) for g in own])
        self.categories = np.repeat(np.arange(categories), n)
        self.weights = np.full(categories, 1.0 / categories)
        _, self.groups = np.unique(self.groups, return_inverse=True)


def simulate(
    rng: np.random.Generator, layout: Layout, rates: np.ndarray, shared: float = 0.5, grouped: float = 0.35
) -> np.ndarray:
    """Right-or-wrong scores [M, I] with P(right) = rates [M, C] exactly (a Gaussian copula).

    `shared` is the part of the variance that an item has in common for all models (hard items are hard for all),
    `grouped` the part that a model has in common for the items of a group.
    """
    from scipy.special import ndtri

    models, items = len(rates), len(layout.groups)
    item = rng.standard_normal(items) * np.sqrt(shared)
    group = rng.standard_normal((models, layout.groups.max() + 1))[:, layout.groups] * np.sqrt(grouped)
    own = rng.standard_normal((models, items)) * np.sqrt(1 - shared - grouped)
    return (item + group + own < ndtri(rates)[:, layout.categories]).astype(float)


def nearly(rng: np.random.Generator, layout: Layout, scores: np.ndarray, fresh: np.ndarray, share: float) -> np.ndarray:
    """A near-duplicate of `scores` [I]: a share of the groups is answered anew, with the same accuracy."""
    anew = rng.random(layout.groups.max() + 1) < share
    return np.where(anew[layout.groups], fresh, scores)


def p_value(layout: Layout, a: np.ndarray, b: np.ndarray, seed: int, groups: np.ndarray | None = None) -> float:
    groups = layout.groups if groups is None else groups
    return sign_flip(design(a - b, layout.categories, groups, layout.weights), draws=DRAWS, seed=seed)


def better_than_all(layout: Layout, soup: np.ndarray, rest: np.ndarray, seed: int, opened: int = 1) -> bool:
    """The intersection-union claim of `significance.better_than_every`, stopping at the first that forbids it."""
    gaps = np.stack([np.bincount(layout.categories, soup - b) for b in rest])
    gaps = (gaps / np.bincount(layout.categories) * layout.weights).sum(axis=1)
    if gaps.min() <= 1e-9:
        return False
    order = np.argsort(gaps)
    return all(over_ledger(p_value(layout, soup, rest[i], seed), opened) < ALPHA for i in order)


Outcome = tuple[bool, bool]
"""(the test rejects a difference that is zero, "better than every candidate" is claimed), in one repetition."""
Null = Callable[[np.random.Generator, Layout, int], Outcome]


def _equal_rates(models: int, layout: Layout) -> np.ndarray:
    return np.full((models, len(layout.weights)), BASE)


def _judge(layout: Layout, scores: np.ndarray, seed: int) -> Outcome:
    """The soup is row 0; the candidate whose difference to it is truly zero is row 1."""
    return p_value(layout, scores[0], scores[1], seed) < ALPHA, better_than_all(layout, scores[0], scores[1:], seed)


def all_equal(rng: np.random.Generator, layout: Layout, seed: int) -> Outcome:
    return _judge(layout, simulate(rng, layout, _equal_rates(6, layout)), seed)


def below(points: float) -> Null:
    """The soup equals the best candidate; the others are `points` below."""

    def null(rng: np.random.Generator, layout: Layout, seed: int) -> Outcome:
        rates = _equal_rates(6, layout)
        rates[2:] -= points / 100
        return _judge(layout, simulate(rng, layout, rates), seed)

    return null


def near_duplicates(rng: np.random.Generator, layout: Layout, seed: int) -> Outcome:
    """Two candidates differ in 3 % of the groups; the soup differs from the first in another 3 %."""
    scores = simulate(rng, layout, _equal_rates(5, layout))
    twin, soup = (nearly(rng, layout, scores[1], scores[i], 0.03) for i in (2, 0))
    return _judge(layout, np.vstack([soup, scores[1], twin, scores[3:]]), seed)


def opposite(rng: np.random.Generator, layout: Layout, seed: int) -> Outcome:
    """Equal overall: the soup is 15 points above in half of the categories and 15 below in the others."""
    rates = _equal_rates(4, layout)
    rates[0] += np.where(np.arange(len(layout.weights)) % 2, 0.15, -0.15)
    return _judge(layout, simulate(rng, layout, rates), seed)


def opened_often(rng: np.random.Generator, layout: Layout, seed: int, as_printed: bool = False) -> Outcome:
    """Twenty recipes are scored on the report fold; each p-value is corrected over the ledger's length.

    `as_printed` corrects each over the length that the ledger had when its report was written: 1, 2 .. 20.
    """
    scores = simulate(rng, layout, _equal_rates(22, layout))
    soups, rest = scores[:20], scores[20:]
    opened = [k if as_printed else 20 for k in range(1, 21)]
    rejects = any(over_ledger(p_value(layout, s, rest[0], seed), k) < ALPHA for s, k in zip(soups, opened, strict=True))
    return rejects, any(better_than_all(layout, s, rest, seed, k) for s, k in zip(soups, opened, strict=True))


def shared_items(rng: np.random.Generator, layout: Layout, seed: int) -> Outcome:
    """Twelve soups that agree on 9 of 10 items are searched on one fold, the best is reported on the other; the
    candidate it is compared with was chosen on the search fold too."""
    rates = _equal_rates(17, layout)
    search, report = (simulate(rng, layout, rates, shared=0.85, grouped=0.1) for _ in range(2))
    best, single = int(np.argmax(search[:12].mean(axis=1))), 12 + int(np.argmax(search[12:].mean(axis=1)))
    order = [best, single, *(m for m in range(12, 17) if m != single)]
    return _judge(layout, report[order], seed)


def groups_ignored(rng: np.random.Generator, layout: Layout, seed: int) -> Outcome:
    """The wrong procedure: every item flips alone."""
    scores = simulate(rng, layout, _equal_rates(2, layout))
    alone = np.arange(len(layout.groups))
    return p_value(layout, scores[0], scores[1], seed, groups=alone) < ALPHA, False


NULLS: dict[str, Null] = {
    "all candidates equal": all_equal,
    "soup equals the best, others 0.5 points below": below(0.5),
    "soup equals the best, others 1 point below": below(1.0),
    "soup equals the best, others 3 points below": below(3.0),
    "near-duplicate pair": near_duplicates,
    "equal overall, opposite categories": opposite,
    "report fold opened 20 times": opened_often,
    "soups correlated through shared items": shared_items,
}


def count(null: Null, layout: Layout, repetitions: int, seed: int = 0) -> tuple[int, int]:
    """(rejections, claims) in so many repetitions; repetition r draws from its own generator."""
    outcomes = [null(np.random.default_rng([seed, r]), layout, r) for r in range(repetitions)]
    return sum(o[0] for o in outcomes), sum(o[1] for o in outcomes)


def allowed(repetitions: int) -> int:
    """Most rejections that a true rate of 5 % explains: 116 of 2,000."""
    return int(repetitions * ALPHA + 1.645 * np.sqrt(repetitions * ALPHA * (1 - ALPHA)))


def covers(rng: np.random.Generator, layout: Layout, level: float, share: float, graded: bool) -> tuple[bool, ...]:
    """Do the intervals of an objective, a paired difference and a category's rate hold the truth, in one repetition?

    The second model answers a `share` of the groups anew and is equally good, so the true difference is 0. Graded
    scores mix three thresholds around the same rate.
    """
    rates = np.full((2, len(layout.weights)), level)
    rates[:, ::2] -= 0.02
    parts = [simulate(rng, layout, rates) for _ in range(3 if graded else 1)]
    a, fresh = np.mean(parts, axis=0)
    b = nearly(rng, layout, a, fresh, share)
    one = objective_interval(a, layout.categories, layout.groups, layout.weights, draws=DRAWS)
    deltas = design(a - b, layout.categories, layout.groups, layout.weights)
    low, high = limits(deltas, -1.0, 1.0, draws=DRAWS, seed=0, symmetric=True)  # as `significance.compare` does
    first = layout.categories == 0
    category = rate(a[first], layout.groups[first])
    truth = float(layout.weights @ rates[0])
    return one.low <= truth <= one.high, low <= 0 <= high, category.low <= rates[0, 0] <= category.high


COVERAGE: dict[str, tuple[Layout, float, float, bool]] = {
    "8 x 75 items, 70 % right, half discordant groups": (Layout(), 0.7, 0.5, False),
    "8 x 75 items, 70 % right, 5 % discordant groups": (Layout(), 0.7, 0.05, False),
    "8 x 75 items, 97 % right, half discordant groups": (Layout(), 0.97, 0.5, False),
    "8 x 75 items, graded scores": (Layout(), 0.7, 0.5, True),
    "2 x 24 items, 70 % right, half discordant groups": (Layout(2, 24), 0.7, 0.5, False),
    "2 x 24 items, 97 % right, 5 % discordant groups": (Layout(2, 24), 0.97, 0.05, False),
}


def _null_rows(repetitions: int) -> list[str]:
    layout, rows = Layout(), []
    printed = partial(opened_often, as_printed=True)
    others = {"must fail: groups ignored": groups_ignored, "no promise: opened 20 times, as each was printed": printed}
    for seed, (name, null) in enumerate((NULLS | others).items()):
        start = time.perf_counter()
        rejected, claimed = count(null, layout, repetitions, seed)
        rows.append(f"| {name} | {rejected} | {claimed} | {time.perf_counter() - start:.0f} |")
        print(rows[-1], flush=True)
    return rows


def _coverage_rows(repetitions: int) -> list[str]:
    rows = []
    for name, case in COVERAGE.items():
        held = np.mean([covers(np.random.default_rng([1, r]), *case) for r in range(repetitions)], axis=0)
        rows.append(f"| {name} | " + " | ".join(f"{100 * h:.1f}" for h in held) + " |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    text = [
        f"# Nulls and coverage, {datetime.date.today()}",
        f"\n{args.repetitions} repetitions each, {DRAWS} draws each of signs and of the bootstrap; "
        f"accepted: up to {allowed(args.repetitions)} rejections. `python benchmarks/nulls.py`\n",
        "| null | test rejects (two-sided, 5 %) | claims 'better than every candidate' | seconds |\n|---|---|---|---|",
        *_null_rows(args.repetitions),
        "\nCoverage of 95 % intervals, percent:\n",
        "| scores | objective | paired difference | one category |\n|---|---|---|---|",
        *_coverage_rows(args.repetitions),
    ]
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
