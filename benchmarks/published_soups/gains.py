"""Gains of soups over their better parent, with intervals over ladders.

The objective is the mean of two averages: of the general benchmarks, and of those of the domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from benchmarks.published_soups.merge_to_learn import (
    GENERAL,
    LADDERS,
    METHODS,
    SPARSE,
    SPARSE_PAIRS,
    WEIGHTS,
    MergePath,
    Method,
    Row,
    merge_path,
    with_test_columns,
)
from souping.core.types import FloatArray

HALF = 5  # place of the weight .5


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval, in points."""

    value: float
    low: float
    high: float


def averages(scores: FloatArray) -> FloatArray:
    """(general, domain) averages [..., 2] of scores [..., B]."""
    general = scores[..., : len(GENERAL)].mean(axis=-1)
    domain = scores[..., len(GENERAL) :].mean(axis=-1)
    return np.stack([general, domain], axis=-1)


def objective(scores: FloatArray) -> FloatArray:
    """Objective [...] of scores [..., B]."""
    return np.asarray(averages(scores).mean(axis=-1))


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Soups of one path minus the better parent, in points."""

    path: MergePath
    best: float  # the best weight, chosen on the scores that are reported
    best_weight: float
    by_neighbours: float  # the weight whose neighbours are best, so its own luck chose nothing
    half: float  # equal weights; for task arithmetic half of the change
    router: float  # each average by the parent that is better at it


def gains(path: MergePath) -> Gains:
    """The gains of a path."""
    score = objective(path.points)
    parent = objective(path.parents).max()
    best = best_soup(path, score)
    return Gains(
        path=path,
        best=float(score[best] - parent),
        best_weight=float(WEIGHTS[best]),
        by_neighbours=float(score[best_soup(path, neighbour_means(score))] - parent),
        half=float(score[HALF] - parent),
        router=float(averages(path.parents).max(axis=0).mean() - parent),
    )


def best_soup(path: MergePath, score: FloatArray) -> int:
    """Place of the soup with the highest score [S]; of equals the first."""
    return int(np.arange(len(score))[path.soups][np.argmax(score[path.soups])])


def neighbour_means(score: FloatArray) -> FloatArray:
    """Mean of the points beside each point [S]; an end has one."""
    padded = np.concatenate([[np.nan], score, [np.nan]])
    return np.asarray(np.nanmean([padded[:-2], padded[2:]], axis=0))


def over_ladders(values: Mapping[str, Sequence[float]]) -> Estimate:
    """Mean of the ladders' means, and its interval by Student's t.

    The amounts of a ladder are nested and its methods share their parents, so a ladder is one
    observation.
    """
    means = np.array([np.mean(ladder) for ladder in values.values()])
    error = means.std(ddof=1) / len(means) ** 0.5
    margin = float(student.ppf(0.975, len(means) - 1) * error)
    value = float(means.mean())
    return Estimate(value=value, low=value - margin, high=value + margin)


def by_ladder(
    found: Iterable[Gains], value: Callable[[Gains], float], methods: Sequence[Method] = METHODS
) -> dict[str, list[float]]:
    """{ladder: a value of each of its paths}, by some methods."""
    values: dict[str, list[float]] = {ladder.name: [] for ladder in LADDERS}
    for gain in found:
        if gain.path.method in methods:
            values[gain.path.ladder.name].append(value(gain))
    return values


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Gains of the weight, over the parent, that were both chosen on dev; in points, means over the ladder."""

    method: str
    dev: float
    test: float
    best_on_test: float  # the best weight on TEST, minus the same parent


def transfers(models: Mapping[str, Row]) -> list[Transfer]:
    """Science, which has a dev and a TEST column, by method."""
    ladder = LADDERS[0]
    found = []
    for method in METHODS:
        rows = []
        for amount in ladder.amounts:
            dev = merge_path(models, ladder, amount, method)
            test = merge_path(models, ladder, amount, method, with_test_columns)
            rows.append(_transfer(dev, test))
        means = np.mean(rows, axis=0)
        found.append(
            Transfer(
                method=method.name,
                dev=float(means[0]),
                test=float(means[1]),
                best_on_test=float(means[2]),
            )
        )
    return found


def _transfer(dev: MergePath, test: MergePath) -> tuple[float, float, float]:
    """(gain on dev, gain on TEST, gain of the best weight on TEST) of one path."""
    score = objective(dev.points)
    test_score = objective(test.points)
    parents = objective(dev.parents)
    soup = best_soup(dev, score)
    test_parent = objective(test.parents)[np.argmax(parents)]
    best = test_score[test.soups].max()
    return (
        float(score[soup] - parents.max()),
        float(test_score[soup] - test_parent),
        float(best - test_parent),
    )


@dataclass(frozen=True, kw_only=True)
class SparseMerge:
    """TIES or DARE minus the plain merge of the same pair, in points."""

    pair: str
    method: str
    plain: str
    best: float  # the best weight of each
    equal_weights: float  # mean over the soups with the same weights


def sparse_merges(models: Mapping[str, Row]) -> list[SparseMerge]:
    """The two pairs that were also merged by TIES and DARE."""
    found = []
    for ladder, amount in SPARSE_PAIRS:
        for method, plain in SPARSE:
            path = merge_path(models, ladder, amount, method)
            beside = merge_path(models, ladder, amount, plain)
            score = objective(path.points)[path.soups]
            plain_score = objective(beside.points)[beside.soups]
            found.append(
                SparseMerge(
                    pair=f"{ladder.name} {amount}",
                    method=method.name,
                    plain=plain.name,
                    best=float(score.max() - plain_score.max()),
                    equal_weights=float((score - plain_score).mean()),
                )
            )
    return found
