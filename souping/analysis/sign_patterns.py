"""Sums of groups whose signs are flipped: all patterns where they are few, else random ones.

Equal groups of a stratum are one row that stands for `number` of them; a pattern then is how many
of them have a positive sign, `plus`.

Shape legend: G groups, R distinct rows, F columns of a row, H strata, D sign patterns.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from souping.analysis.grouped import INTERVAL_SALT
from souping.core.types import FloatArray, IntArray

# Patterns that are drawn, at least and at most. With the pattern seen they are a prime number, so
# that no p-value falls on a level such as 0.05 or a fraction of it.
SIGN_DRAWS = 10_006
MOST_DRAWS = 100_002
# Patterns up to which all are counted instead of drawn.
EXACT_STATES = 20_000
# Parts of 0..1, a power of 2, in which the inverse of a distribution is looked up.
STARTS = 1024
# Signs that are drawn at a time.
SIGNS_AT_A_TIME = 4_000_000
# Signs are drawn by the byte for at least MANY_GROUPS groups, if on average at most FEW_ALIKE of
# them are equal.
MANY_GROUPS = 64
FEW_ALIKE = 32


def draws_for(alpha: float, draws: int) -> int:
    """Number of patterns that resolves a level alpha, and at least `draws`."""
    return max(draws, min(MOST_DRAWS, round(20 / alpha)))


def stratum_sums(
    plus: FloatArray | IntArray,
    rows: FloatArray,
    number: IntArray,
    stratum: IntArray,
    strata: int,
) -> FloatArray:
    """Sums by stratum [D, H, F] if `plus` [R, D] of each row's groups have a positive sign.

    The rows [R, F] are of a `stratum` [R] and stand for `number` [R] groups.
    """
    net = 2.0 * plus - number[:, None]  # positive less negative signs
    sums = []
    for h in range(strata):
        in_stratum = stratum == h
        # Along the patterns, which is ten times as fast as along the rows.
        sums.append(np.einsum("rd,rf->fd", net[in_stratum], rows[in_stratum]).T)
    return np.stack(sums, axis=1)


# ---------------------------------------------------------------- all patterns


def is_countable(number: IntArray) -> bool:
    """Whether rows that stand for `number` groups each have few enough patterns to count all."""
    if len(number) >= EXACT_STATES.bit_length():  # two patterns of each row at least
        return False
    return bool(np.prod(number + 1.0) <= EXACT_STATES)


def every_pattern(number: IntArray) -> tuple[IntArray, FloatArray]:
    """All counts of positive signs [R, D], and the probability of each under fair signs [D]."""
    plus = np.indices(tuple(number + 1)).reshape(len(number), -1)
    chances = [_heads_distribution(int(n))[heads] for n, heads in zip(number, plus, strict=True)]
    return plus, np.prod(chances, axis=0)


@lru_cache(maxsize=2000)
def _heads_distribution(coins: int) -> FloatArray:
    """Probabilities of 0, 1, .. heads of so many fair coins."""
    # The counts of more coins exceed the largest float.
    if coins <= 1000:
        chances = []
        # C(n, k + 1) = C(n, k) (n - k) / (k + 1), in whole numbers
        ways = 1
        for heads in range(coins + 1):
            chances.append(ways / 2.0**coins)
            ways = ways * (coins - heads) // (heads + 1)
        return np.array(chances)
    counts = np.arange(1, coins + 1)
    log_odds = np.log((coins + 1 - counts) / counts)  # of so many heads against one fewer
    log_ways = np.concatenate([[0.0], np.cumsum(log_odds)])
    scaled: FloatArray = np.exp(log_ways - log_ways.max())
    return np.array(scaled / scaled.sum())


# ---------------------------------------------------------------- random patterns


def drawn_sums(
    rows: FloatArray, number: IntArray, stratum: IntArray, strata: int, draws: int, seed: int
) -> FloatArray:
    """`stratum_sums` of so many random patterns."""
    rng = np.random.default_rng([INTERVAL_SALT, seed])
    groups = number.sum()
    if MANY_GROUPS <= groups <= FEW_ALIKE * len(number):
        group_rows = np.repeat(rows, number, axis=0)
        group_stratum = np.repeat(stratum, number)
        return _draw_by_byte(group_rows, group_stratum, strata, draws, rng)
    return _draw_by_row(rows, number, stratum, strata, draws, rng)


def _draw_by_row(
    rows: FloatArray,
    number: IntArray,
    stratum: IntArray,
    strata: int,
    draws: int,
    rng: np.random.Generator,
) -> FloatArray:
    """Draw how many groups of each row have a positive sign, a chunk of patterns at a time.

    The rows are in the order of their strata.
    """
    chunk = max(1, SIGNS_AT_A_TIME // len(number))
    sums = np.empty((rows.shape[1], draws, strata))
    for start in range(0, draws, chunk):
        size = min(draws - start, chunk)
        for h in range(strata):
            in_stratum = stratum == h
            coins = number[in_stratum]
            plus = np.stack([_heads(int(groups), rng.random(size)) for groups in coins])
            alone = stratum_sums(plus, rows[in_stratum], coins, 0 * coins, strata=1)
            sums[:, start : start + size, h] = alone[:, 0].T
    return sums.transpose(1, 2, 0)


def _heads(coins: int, uniform: FloatArray) -> IntArray:
    """Heads of so many fair coins, by uniform numbers [D] and the inverse of their distribution.

    This is much faster than rng.binomial. A table of starts finds nearly all of them in one step.
    """
    cumulative, starts = _inverse_heads(coins)
    heads = starts[(uniform * len(starts)).astype(np.intp)]
    later = np.flatnonzero(cumulative[heads] < uniform)
    heads[later] = np.searchsorted(cumulative, uniform[later])
    return heads


@lru_cache(maxsize=2000)
def _inverse_heads(coins: int) -> tuple[FloatArray, IntArray]:
    """(chances of at most 0, 1, .. heads; for each of STARTS equal parts of 0..1, the heads where it begins)."""
    cumulative = np.cumsum(_heads_distribution(coins))
    # Rounding may leave it below 1.
    cumulative[-1] = np.inf
    return cumulative, np.searchsorted(cumulative, np.arange(STARTS) / STARTS)


def _draw_by_byte(
    rows: FloatArray, stratum: IntArray, strata: int, draws: int, rng: np.random.Generator
) -> FloatArray:
    """Draw a byte for eight groups at a time, rows [G, F].

    It picks one of the 256 signed sums of the eight, which is much faster than eight signs.
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    signs = 1.0 - 2.0 * bits  # [256, 8]
    sums = np.empty((strata, rows.shape[1], draws))
    picked = np.empty((draws, rows.shape[1]))
    for h in range(strata):
        stratum_rows = rows[stratum == h]
        totals = np.zeros_like(picked)
        for start in range(0, len(stratum_rows), 8):
            eight = stratum_rows[start : start + 8]
            signed_sums = np.einsum("sr,rf->fs", signs[:, : len(eight)], eight).T  # [256, F]
            byte = rng.integers(0, 256, size=draws, dtype=np.uint8)
            # Much the fastest form.
            totals += signed_sums.take(byte, axis=0, out=picked, mode="clip")
        sums[h] = totals.T
    return sums.transpose(2, 0, 1)
