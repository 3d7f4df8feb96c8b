"""How often the testing procedure claims something that is not so, and how often its intervals cover the truth.

    python benchmarks/nulls.py [--repetitions 10000] [--only tests nulls coverage] [--cases TEXT ..]
        [--out FILE] [--date DATE]

Every null is simulated from scores with a known truth. False claims are one-sided: each null may make them in 2.5 %.
10,000 repetitions accept 300 on a side, which a valid test exceeds once in a thousand times; twenty looks one after
another may make 3.75 %. Coverage has a lower limit alone, 94 % less two standard errors, and an interval may be 1.15
times as wide as the plain inversion of the sign flips. One procedure must fail, or the check could not see anything:
groups ignored.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from souping.core.unit import MARGIN
from souping.statistics import score_table as tables
from souping.statistics.comparison import contrast, paired_intervals
from souping.statistics.corrections import ALPHA, penalty
from souping.statistics.flips import flip_reach
from souping.statistics.grouped import design
from souping.statistics.intervals import objective_interval, rate
from souping.statistics.score_table import ItemTable, ModelScores

DRAWS = 999
BASE = 0.7
LEVEL = 0.025
LOOKS_LEVEL = 0.0375
LOOKS = 20


class Layout:
    """C categories of n items. In each, a third of the items stand `alone` (or all do), a third in fives, and a third
    shares its groups with the other categories, as one scenario asked in several ways does."""

    def __init__(self, categories: int = 8, n: int = 75, alone: bool = False) -> None:
        third = 0 if alone else n // 3
        within = np.concatenate([np.arange(n - 2 * third), n + np.arange(third) // 5])
        own = [c * 10_000 + within for c in range(categories)]
        self.groups = np.concatenate(
            [np.concatenate([g, 1_000_000 + np.arange(third)]) for g in own]
        )
        self.categories = np.repeat(np.arange(categories), n)
        self.weights = np.full(categories, 1.0 / categories)
        _, self.groups = np.unique(self.groups, return_inverse=True)


def simulate(
    rng: np.random.Generator,
    layout: Layout,
    rates: np.ndarray,
    shared: float = 0.5,
    grouped: float = 0.35,
) -> np.ndarray:
    """Right-or-wrong scores [M, I] with P(right) = rates [M, C] exactly (a Gaussian copula).

    `shared` is the part of the variance that an item has in common for all models (hard items are hard for all),
    `grouped` the part that a model has in common for the items of a group.
    """
    from scipy.special import ndtri

    models = len(rates)
    items = len(layout.groups)
    item = rng.standard_normal(items) * np.sqrt(shared)
    of_groups = rng.standard_normal((models, layout.groups.max() + 1))
    group = of_groups[:, layout.groups] * np.sqrt(grouped)
    own = rng.standard_normal((models, items)) * np.sqrt(1 - shared - grouped)
    right = item + group + own < ndtri(rates)[:, layout.categories]
    return np.asarray(right, dtype=float)


def nearly(
    rng: np.random.Generator, layout: Layout, scores: np.ndarray, fresh: np.ndarray, share: float
) -> np.ndarray:
    """A near-duplicate of `scores` [I]: a share of the groups is answered anew, with the same accuracy."""
    anew = rng.random(layout.groups.max() + 1) < share
    return np.where(anew[layout.groups], fresh, scores)


def sampled(
    rng: np.random.Generator, layout: Layout, rates: np.ndarray, answers: int = 4
) -> np.ndarray:
    """Scores [M, I] that are means of several answers: a fifth of the variance is the draw of an answer.

    What a model makes of an item is the same in all its answers, so each of them is right with the item's chance.
    """
    from scipy.special import ndtr, ndtri

    models = len(rates)
    items = len(layout.groups)
    drawn = 0.2
    item = rng.standard_normal(items) * np.sqrt(0.4)
    group = rng.standard_normal((models, layout.groups.max() + 1))[:, layout.groups] * np.sqrt(0.25)
    own = rng.standard_normal((models, items)) * np.sqrt(1 - drawn - 0.65)
    chance = ndtr((ndtri(rates)[:, layout.categories] - item - group - own) / np.sqrt(drawn))
    return np.asarray(rng.binomial(answers, chance) / answers)


@dataclass(frozen=True)
class Said:
    """What the procedure says of a soup: `rejects` is the two-sided test against the search's candidate."""

    rejects: bool
    better: bool
    every: bool
    keeps: bool


CLAIMS = ("rejects", "better", "every", "keeps")


def interval(
    layout: Layout,
    a: np.ndarray,
    b: np.ndarray,
    seed: int,
    looks: int = 1,
    groups: np.ndarray | None = None,
) -> tuple[float, float, float]:
    """(low, high, p) of a - b at the level of the look; a rare p-value is looked at with more draws."""
    whole = design(
        a - b, layout.categories, layout.groups if groups is None else groups, layout.weights
    )
    alpha = ALPHA / penalty(looks)
    error = float(np.sqrt(whole.variances.sum()))
    if looks > 1 and abs(whole.objective) < 2 * error:
        return -1.0, 1.0, 1.0  # far from the level of any later look
    graded = not np.isin((a, b), (0, 1)).all()
    intervals = paired_intervals(
        whole, bound=1.0, graded=graded, alpha=alpha, draws=DRAWS, seed=seed
    )
    return (*intervals.limits(alpha), intervals.p_value())


def judge(
    layout: Layout, scores: np.ndarray, seed: int, looks: int = 1, groups: np.ndarray | None = None
) -> Said:
    """The soup is row 0, the candidate that search would have chosen row 1, the other candidates follow.

    The claims of `verdict`; that every candidate is beaten is asked only where the first one is.
    """
    alpha = ALPHA / penalty(looks)
    low, high, p_value = interval(layout, scores[0], scores[1], seed, looks, groups)
    better = p_value < alpha and low > 0
    rest = (interval(layout, scores[0], other, seed, looks, groups) for other in scores[2:])
    every = better and all(p < alpha and low > 0 for low, _, p in rest)
    return Said(
        rejects=p_value < alpha, better=better, every=every, keeps=not better and high < MARGIN
    )


Null = Callable[[np.random.Generator, Layout, int], Said]
Draw = Callable[[np.random.Generator, Layout, np.ndarray], np.ndarray]


def _rates(models: int, layout: Layout, soup: float = 0.0, others: float = 0.0) -> np.ndarray:
    """Rates [M, C]: the soup so many points above the search's candidate, the other candidates so many below it."""
    rates = np.full((models, len(layout.weights)), BASE)
    rates[0] += soup / 100
    rates[2:] -= others / 100
    return rates


def independent(
    models: int = 6, soup: float = 0.0, others: float = 0.0, draw: Draw = simulate
) -> Null:
    """Models that share nothing but the items."""

    def null(rng: np.random.Generator, layout: Layout, seed: int) -> Said:
        return judge(layout, draw(rng, layout, _rates(models, layout, soup, others)), seed)

    return null


def near_duplicates(rng: np.random.Generator, layout: Layout, seed: int) -> Said:
    """Two candidates differ in 3 % of the groups; the soup differs from the first in another 3 %."""
    scores = simulate(rng, layout, _rates(5, layout))
    twin = nearly(rng, layout, scores[1], scores[2], 0.03)
    soup = nearly(rng, layout, scores[1], scores[0], 0.03)
    return judge(layout, np.vstack([soup, scores[1], twin, scores[3:]]), seed)


def opposite(rng: np.random.Generator, layout: Layout, seed: int) -> Said:
    """Equal overall: the soup is 15 points above in half of the categories and 15 below in the others."""
    rates = _rates(4, layout)
    rates[0] += np.where(np.arange(len(layout.weights)) % 2, 0.15, -0.15)
    return judge(layout, simulate(rng, layout, rates), seed)


def looked_often(draw: Draw = simulate) -> Null:
    """Twenty recipes are reported on the same items one after another, each as it was printed at its look."""

    def null(rng: np.random.Generator, layout: Layout, seed: int) -> Said:
        scores = draw(rng, layout, _rates(LOOKS + 2, layout))
        soups = scores[:LOOKS]
        rest = scores[LOOKS:]
        said = dict.fromkeys(CLAIMS, False)
        for look, soup in enumerate(soups, 1):
            claims = judge(layout, np.vstack([soup[None], rest]), seed, look)
            for claim, is_said in vars(claims).items():
                said[claim] |= bool(is_said)
        return Said(**said)

    return null


def shared_items(rng: np.random.Generator, layout: Layout, seed: int) -> Said:
    """Twelve soups that agree on 9 of 10 items are searched on one split, the best is reported on the other; the
    candidate it is compared with was chosen on the search split too."""
    rates = _rates(17, layout)
    search = simulate(rng, layout, rates, shared=0.85, grouped=0.1)
    report = simulate(rng, layout, rates, shared=0.85, grouped=0.1)
    best = int(np.argmax(search[:12].mean(axis=1)))
    single = 12 + int(np.argmax(search[12:].mean(axis=1)))
    order = [best, single, *(m for m in range(12, 17) if m != single)]
    return judge(layout, report[order], seed)


def groups_ignored(rng: np.random.Generator, layout: Layout, seed: int) -> Said:
    """The wrong procedure: every item flips alone."""
    alone = np.arange(len(layout.groups))
    return judge(layout, simulate(rng, layout, _rates(2, layout)), seed, groups=alone)


USUAL = Layout()
WIDE = Layout(8, 263, alone=True)
"""The second gives a model's objective a standard error of 1 point, and `alike` models a correlation of 0.5."""
alike = partial(simulate, shared=0.7, grouped=0.2)
NULLS: dict[str, tuple[Null, Layout]] = {
    "all candidates equal": (independent(), USUAL),
    "all equal, 4 sampled answers": (independent(draw=sampled), USUAL),
    "soup equals the best, others 0.5 points below": (independent(others=0.5), USUAL),
    "soup equals the best, others 1 point below": (independent(others=1.0), USUAL),
    "soup equals the best, others 3 points below": (independent(others=3.0), USUAL),
    "near-duplicate pair": (near_duplicates, USUAL),
    "equal overall, opposite categories": (opposite, USUAL),
    "soups correlated through shared items": (shared_items, USUAL),
    "five equal candidates, soup equal, s.e. 1": (independent(draw=alike), WIDE),
    "the same, 4 sampled answers": (independent(draw=sampled), WIDE),
}
"""The soup is no better, so "better" is false and "keep" is true."""
LOOKED: dict[str, tuple[Null, Layout]] = {
    "test items looked at 20 times, each as printed": (looked_often(), USUAL),
    "the same, 4 sampled answers": (looked_often(sampled), USUAL),
}
"""As above, over all twenty reports."""
KEEPS: dict[str, tuple[Null, Layout]] = {
    "five equal candidates, soup 1 point better (the margin), s.e. 1": (
        independent(soup=1.0, draw=alike),
        WIDE,
    ),
    "the same, 4 sampled answers": (independent(soup=1.0, draw=sampled), WIDE),
    "soup 1 point better, 600 items": (independent(soup=1.0), USUAL),
    "soup 2 points better, s.e. 1": (independent(soup=2.0, draw=alike), WIDE),
}
"""The soup is better by the margin or more, so "keep" is false and "better" is true."""
FAILS: dict[str, tuple[Null, Layout]] = {"groups ignored": (groups_ignored, USUAL)}


def count(null: Null, layout: Layout, repetitions: int, seed: int = 0) -> dict[str, int]:
    """How often each is said in so many repetitions; repetition r draws from its own generator."""
    counts = dict.fromkeys(CLAIMS, 0)
    for repetition in range(repetitions):
        claims = null(np.random.default_rng([seed, repetition]), layout, repetition)
        for claim, is_said in vars(claims).items():
            counts[claim] += bool(is_said)
    return counts


def allowed(repetitions: int, level: float = LEVEL) -> int:
    """Most false claims that a true rate of `level` explains, 999 times in 1,000: 300 of 10,000 at 2.5 %."""
    from scipy.stats import binom

    return int(binom.ppf(0.999, repetitions, level))


def least_coverage(repetitions: int) -> float:
    """94 % less two standard errors."""
    return 0.94 - 2 * float(np.sqrt(0.94 * 0.06 / repetitions))


# ---------------------------------------------------------------- one test alone


@dataclass(frozen=True)
class Answers:
    """Scores of two models on the same items; their true difference is 0."""

    a: np.ndarray
    b: np.ndarray
    categories: np.ndarray
    groups: np.ndarray
    weights: np.ndarray
    missing: tuple[np.ndarray, ...] = ()


World = Callable[[np.random.Generator], Answers]


def one_category(a: np.ndarray, b: np.ndarray, missing: tuple[np.ndarray, ...] = ()) -> Answers:
    return Answers(a, b, np.zeros(len(a), dtype=int), np.arange(len(a)), np.ones(1), missing)


def rare_losses(n: int, share: float, loss: float, sign: float = 1.0) -> World:
    """Many small gains, and a `share` of losses that make up for them."""

    def world(rng: np.random.Generator) -> Answers:
        gains = 2 * share * loss / (1 - share) * rng.random(n)
        differences = sign * np.where(rng.random(n) < share, -loss, gains)
        return one_category(0.5 + differences / 2, 0.5 - differences / 2)

    return world


def hidden_loss(rate_lost: float) -> World:
    """Seven categories of 75 items gain what a category of 12 items loses."""

    def world(rng: np.random.Generator) -> Answers:
        categories = np.concatenate([np.repeat(np.arange(7), 75), np.full(12, 7)])
        chance = rng.random(len(categories))
        gain = rate_lost / 7
        differences = np.select([chance < 0.03 + gain, chance < 0.06 + gain], [1.0, -1.0], 0.0)
        small = categories == 7
        differences[small] = -1.0 * (chance[small] < rate_lost)
        a = (differences > 0).astype(float)
        b = (differences < 0).astype(float)
        return Answers(a, b, categories, np.arange(len(a)), np.full(8, 1 / 8))

    return world


def small_category(rng: np.random.Generator) -> Answers:
    """20 items lose 20 % beside five categories of 114 items that gain 4 %."""
    categories = np.concatenate([np.repeat(np.arange(5), 114), np.full(20, 5)])
    chance = rng.random(len(categories))
    small = categories == 5
    a = (~small & (chance < 0.04)) * 1.0
    b = (small & (chance < 0.2)) * 1.0
    return Answers(a, b, categories, np.arange(len(a)), np.full(6, 1 / 6))


def few_unequal_groups(rng: np.random.Generator) -> Answers:
    """16 groups of 1 to 30 items, right or wrong."""
    groups = np.repeat(np.arange(16), np.tile([1, 2, 3, 5, 8, 12, 20, 30], 2))
    signal = 0.6 * rng.standard_normal((2, 16))[:, groups]
    a, b = (signal + 0.8 * rng.standard_normal((2, len(groups))) < 0.5) * 1.0
    return Answers(a, b, 0 * groups, groups, np.ones(1))


def discordant(n: int, share: float) -> World:
    def world(rng: np.random.Generator) -> Answers:
        chance = rng.random(n)
        return one_category((chance < share / 2) * 1.0, (chance > 1 - share / 2) * 1.0)

    return world


def heavy_category(rng: np.random.Generator) -> Answers:
    """A weight of 0.6 on 40 items, 0.1 on 100 each of four other categories."""
    categories = np.concatenate([np.zeros(40, dtype=int), np.repeat(np.arange(1, 5), 100)])
    chance = rng.random(len(categories))
    weights = np.array([0.6, 0.1, 0.1, 0.1, 0.1])
    a = (chance < 0.05) * 1.0
    b = (chance > 0.95) * 1.0
    return Answers(a, b, categories, np.arange(len(a)), weights)


def tasks_of_unequal_size(rng: np.random.Generator) -> Answers:
    sizes = 5 + np.arange(57) // 2
    categories = np.repeat(np.arange(57), sizes)
    a, b = (rng.random((2, len(categories))) < BASE) * 1.0
    return Answers(a, b, categories, np.arange(len(a)), np.full(57, 1 / 57))


def tens(rng: np.random.Generator) -> Answers:
    """60 groups of ten alike items."""
    groups = np.repeat(np.arange(60), 10)
    signal = np.sqrt(0.4) * rng.standard_normal((2, 60))[:, groups]
    a, b = (signal + np.sqrt(0.6) * rng.standard_normal((2, 600)) < 0.5) * 1.0
    return Answers(a, b, np.arange(600) // 150, groups, np.full(4, 0.25))


def graded(rng: np.random.Generator) -> Answers:
    hard = rng.beta(2, 2, 200)
    a = rng.beta(4 * hard, 4 * (1 - hard))
    b = rng.beta(4 * hard, 4 * (1 - hard))
    return one_category(a, b)


def against_constant(n: int, score: float) -> World:
    """Right or wrong, against a score that is the same on every item."""

    def world(rng: np.random.Generator) -> Answers:
        return one_category((rng.random(n) < score) * 1.0, np.full(n, score))

    return world


def missing_unequally(share_a: float, share_b: float) -> World:
    """Answers to hard items, mostly, were not received, of one model more than of the other; they count as wrong."""

    def world(rng: np.random.Generator) -> Answers:
        hard = rng.standard_normal(400)
        answers = []
        missing = []
        for share in (share_a, share_b):
            right = (0.7 * hard + 0.7 * rng.standard_normal(400) < 0.5) * 1.0
            lost = (rng.random(400) < 2 * share * (hard > 0)) * 1.0
            answers.append(np.where(lost > 0, 0.0, right))
            missing.append(lost)
        return one_category(answers[0], answers[1], tuple(missing))

    return world


SMALL_CATEGORY = "20 items of 590 lose 20 %"
TESTS: dict[str, World] = {
    "300 items, 10 % discordant": discordant(300, 0.1),
    "100 items, 20 % discordant": discordant(100, 0.2),
    "200 items, 1 % discordant": discordant(200, 0.01),
    **{
        f"{n} items, {100 * share:.0f} % losses of {loss}": rare_losses(n, share, loss)
        for n in (30, 100, 300, 1000)
        for share, loss in ((0.02, 0.8), (0.05, 0.5))
    },
    **{
        f"{n} items, 2 % gains of 0.8 (mirror)": rare_losses(n, 0.02, 0.8, -1.0)
        for n in (30, 100, 300)
    },
    "12 items of 537 hide the loss, 10 % of them": hidden_loss(0.1),
    "12 items of 537 hide the loss, 4 % of them": hidden_loss(0.04),
    SMALL_CATEGORY: small_category,
    "weight 0.6 on 40 of 440 items": heavy_category,
    "57 tasks of 5 to 33 items": tasks_of_unequal_size,
    "60 groups of ten": tens,
    "16 groups of 1 to 30 items": few_unequal_groups,
    "200 graded items": graded,
    "missing: 10 % of a, 2 % of b": missing_unequally(0.1, 0.02),
    "missing: 3 % of a, 15 % of b": missing_unequally(0.03, 0.15),
    "20 items, a constant score of 0.8": against_constant(20, 0.8),
    "80 items, a constant score of 0.95": against_constant(80, 0.95),
    "150 items, a constant score of 0.97": against_constant(150, 0.97),
}
"""Two equal models, one test: neither may be called better."""
UNLIKE_PLAIN = (
    "losses of",
    "gains of",
    "hide the loss",
    "lose 20 %",
    "weight 0.6",
    "1 % discordant",
    "missing",
    "constant",
)
"""Worlds that the plain inversion gets wrong, so that its width is no measure."""


def _ungrouped(rng: np.random.Generator) -> Answers:
    """The wrong procedure: every item of a group flips alone."""
    answers = tens(rng)
    return replace(answers, groups=np.arange(len(answers.a)))


TESTS_THAT_FAIL: dict[str, World] = {"60 groups of ten, ignored": _ungrouped}


@dataclass(frozen=True)
class Tally:
    """False claims on both sides, coverage, and the mean width over that of the plain inversion."""

    better: int
    worse: int
    coverage: float
    width: float


def tally(world: World, repetitions: int, seed: int = 0) -> Tally:
    """False claims of a contrast in a world where both models are equal."""
    better = worse = 0
    widths = plain = 0.0
    for r in range(repetitions):
        answers = world(np.random.default_rng([seed, 77, r]))
        design_of = (answers.categories, answers.groups, answers.weights)
        missing = answers.missing or (0.0, 0.0)
        scores = tables.ScoreTable(
            items=ItemTable(
                names=tuple(map(str, range(len(answers.weights)))),
                categories=answers.categories,
                groups=answers.groups,
                coefficients=answers.weights,
            ),
            answers={
                "a": tables.Answers.of(answers.a, missing[0]),
                "b": tables.Answers.of(answers.b, missing[1]),
            },
        )
        shown = contrast(scores, "a", "b", draws=DRAWS, seed=r, tested=False)
        better += shown.low > 0
        worse += shown.high < 0
        widths += shown.high - shown.low
        differences = design(answers.a - answers.b, *design_of)
        flips = flip_reach(differences, draws=DRAWS, seed=r, highest=ALPHA)
        plain += 0.0 if flips is None else flips.below(ALPHA) + flips.above(ALPHA)
    coverage = 1 - (better + worse) / repetitions
    return Tally(better, worse, coverage, widths / plain if plain else float("nan"))


def constant_score(n: int, score: float) -> float:
    """Chance that n right or wrong answers, of which as many are right, are called better than this score of each item.

    Exact: the binomial chances of the numbers of wrong answers that are called so.
    """
    from scipy.stats import binom

    false = 0.0
    items = tables.one_category(np.arange(n))
    for wrong in range(n + 1):
        a = (np.arange(n) >= wrong).astype(float)
        scores = tables.ScoreTable.complete(items, {"a": a, "b": np.full(n, score)})
        shown = contrast(scores, "a", "b", draws=DRAWS, tested=False)
        if shown.low <= 1e-9:  # 0 but for rounding; more wrong answers are no better
            return false
        false += float(binom.pmf(wrong, n, 1 - score))
    return false


CONSTANTS = [
    *[(n, score) for score in (0.9, 0.95) for n in (35, 40, 45, 70)],
    *[(20, 0.8), (22, 0.82), (25, 0.82), (25, 0.84), (50, 0.92), (60, 0.94)],
    *[(80, 0.95), (100, 0.96), (135, 0.97), (150, 0.97)],
]
CONSTANT_LEVEL = 0.035
SMALL_CATEGORY_LEVEL = 0.04


def _constant_rows() -> list[str]:
    rows = [f"| {n} | {score} | {100 * constant_score(n, score):.2f} |" for n, score in CONSTANTS]
    print("\n".join(rows), flush=True)
    return rows


def level_of(name: str) -> float:
    """Chance of a false claim that is accepted of a world."""
    return SMALL_CATEGORY_LEVEL if name == SMALL_CATEGORY else LEVEL


def _test_rows(repetitions: int, cases: Sequence[str]) -> list[str]:
    rows = []
    for seed, (name, world) in enumerate({**TESTS, **TESTS_THAT_FAIL}.items()):
        if cases and not any(text in name for text in cases):
            continue
        start = time.perf_counter()
        found = tally(world, repetitions, seed=seed)
        most = allowed(repetitions, level_of(name))
        claims = max(found.better, found.worse) <= most
        covers = found.coverage >= least_coverage(repetitions)
        wide = found.width > 1.15 and not any(words in name for words in UNLIKE_PLAIN)
        holds = (claims and covers and not wide) == (name in TESTS)
        cells = [
            name,
            f"{found.better}",
            f"{found.worse}",
            f"at most {most}" if name in TESTS else f"must exceed {most}",
            f"{100 * found.coverage:.1f}",
            f"{found.width:.2f}",
            "yes" if holds else "**no**",
            f"{1000 * (time.perf_counter() - start) / repetitions:.1f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    return rows


# ---------------------------------------------------------------- coverage


@dataclass(frozen=True)
class Case:
    """Design of a coverage simulation: the second model answers a `share` of the groups anew, `gain` better there."""

    layout: Layout
    level: float
    share: float
    gain: float = 0.0
    graded: bool = False
    looks: int = 1


def covers(rng: np.random.Generator, case: Case) -> tuple[bool, ...]:
    """Do the intervals of an objective, a paired difference and a category's rate hold the truth, in one repetition?

    Graded scores mix three thresholds around the same rate.
    """
    layout = case.layout
    rates = np.full((2, len(layout.weights)), case.level)
    rates[:, ::2] -= 0.02
    rates[1] += case.gain
    a, fresh = np.mean(
        [simulate(rng, layout, rates) for _ in range(3 if case.graded else 1)], axis=0
    )
    b = nearly(rng, layout, a, fresh, case.share)
    items = ItemTable(
        names=(),
        categories=layout.categories,
        groups=layout.groups,
        coefficients=layout.weights,
    )
    one = objective_interval(ModelScores(items=items, values=a), draws=DRAWS)
    deltas = design(b - a, layout.categories, layout.groups, layout.weights)
    alpha = ALPHA / penalty(case.looks)
    difference_of = paired_intervals(
        deltas, bound=1.0, graded=case.graded, alpha=alpha, draws=DRAWS
    )
    low, high = difference_of.limits(alpha)
    first = layout.categories == 0
    category = rate(ModelScores(items=tables.one_category(layout.groups[first]), values=a[first]))
    truth = float(layout.weights @ rates[0])
    difference = case.share * case.gain
    return (
        one.estimate.low <= truth <= one.estimate.high,
        low <= difference <= high,
        category.estimate.low <= rates[0, 0] <= category.estimate.high,
    )


COVERAGE: dict[str, Case] = {
    "8 x 75 items, 70 % right, half discordant groups": Case(USUAL, 0.7, 0.5),
    "the same, 5 points better": Case(USUAL, 0.7, 0.5, 0.1),
    "the same, at the 5th look (99.83 %)": Case(USUAL, 0.7, 0.5, 0.1, looks=5),
    "8 x 75 items, 70 % right, 5 % discordant groups": Case(USUAL, 0.7, 0.05),
    "the same, 1 point better": Case(USUAL, 0.7, 0.05, 0.2),
    "8 x 75 items, 97 % right, half discordant groups": Case(USUAL, 0.97, 0.5),
    "the same, 2.5 points worse": Case(USUAL, 0.97, 0.5, -0.05),
    "8 x 75 items, graded scores": Case(USUAL, 0.7, 0.5, graded=True),
    "graded, 5 points better": Case(USUAL, 0.7, 0.5, 0.1, graded=True),
    "2 x 24 items, 70 % right, half discordant groups": Case(Layout(2, 24), 0.7, 0.5),
    "2 x 24 items, 70 % right, 5 points better": Case(Layout(2, 24), 0.7, 0.5, 0.1),
    "2 x 24 items, 97 % right, 5 % discordant groups": Case(Layout(2, 24), 0.97, 0.05),
    "1 x 75 items, 70 % right, 10 % discordant groups, 5 points worse": Case(
        Layout(1, 75), 0.7, 0.1, -0.5
    ),
}


def _null_rows(repetitions: int, cases: Sequence[str]) -> list[str]:
    """Lines of the table of false claims, for the null worlds whose names hold one of `cases`, or for all.

    The number of the claim that is false in a world is bold.
    """
    once = allowed(repetitions)
    often = allowed(repetitions, LOOKS_LEVEL)
    # (null worlds, the claim that is false in them, how often it may be made)
    kinds = [(NULLS, "better", f"at most {once}"), (LOOKED, "better", f"at most {often}")]
    kinds += [(KEEPS, "keeps", f"at most {once}"), (FAILS, "better", f"must exceed {once}")]
    rows = list[str]()
    # The seed is the number of a world in the whole table, also if others are left out.
    seed = -1
    for nulls, false, bound in kinds:
        for name, (null, layout) in nulls.items():
            seed += 1
            if cases and not any(case in name for case in cases):
                continue
            start = time.perf_counter()
            claims = count(null, layout, repetitions, seed)
            seconds = time.perf_counter() - start
            cells = [name]
            for key in ("better", "every", "keeps"):
                cells.append(f"**{claims[key]}**" if key == false else f"{claims[key]}")
            cells += [bound, f"{claims['rejects']}", f"{seconds:.0f}"]
            rows.append(f"| {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    return rows


def _coverage_rows(repetitions: int) -> list[str]:
    """Lines of the table of coverage: how often, in percent, each kind of interval holds the truth."""
    rows = []
    for name, case in COVERAGE.items():
        held = np.mean(
            [covers(np.random.default_rng([1, r]), case) for r in range(repetitions)], axis=0
        )
        rows.append(f"| {name} | " + " | ".join(f"{100 * h:.1f}" for h in held) + " |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--only", nargs="+", default=["tests", "nulls", "coverage"])
    parser.add_argument(
        "--cases",
        nargs="*",
        default=[],
        help="of `tests` and `nulls`, those whose name has one of these texts",
    )
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--date", default=str(datetime.date.today()))
    args = parser.parse_args()
    text = [
        f"# Nulls and coverage, {args.date}",
        f"\n{args.repetitions:,} repetitions each, {DRAWS} draws of signs (more where a later look needs them). "
        "`python benchmarks/nulls.py`",
    ]
    if "tests" in args.only:
        text += [
            "\nTwo equal models, one test. The width is that over the plain inversion of the sign flips.\n",
            "| truth | 'a is better' | 'a is worse' | false claims | coverage, % | width | holds | ms |",
            "|---|---|---|---|---|---|---|---|",
            *_test_rows(args.repetitions, args.cases),
            "\nRight or wrong against a constant score of the same mean, exact (at most 3.5 %).\n",
            "| items | score | 'better', % |",
            "|---|---|---|",
            *_constant_rows(),
        ]
    if "nulls" in args.only:
        text += [
            "\nClaims of a report. Bold: the claim that is false there.\n",
            "| truth | 'better than the best candidate' | 'better than every candidate' | 'keep' | false claims "
            "| two-sided rejections | seconds |\n|---|---|---|---|---|---|---|",
            *_null_rows(args.repetitions, args.cases),
        ]
    if "coverage" in args.only:
        text += [
            f"\nCoverage of 95 % intervals, percent (at least {100 * least_coverage(args.repetitions):.1f}):\n",
            "| scores | objective | paired difference | one category |\n|---|---|---|---|",
            *_coverage_rows(args.repetitions),
        ]
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
