"""The surrogate's posterior beside the textbook's formulas, and the layout of a fold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from souping.core.types import FloatArray, SearchSpace
from souping.search.beliefs import expected_improvement, finishing_gain, indistinguishable, normal
from souping.search.fold import FoldLayout
from souping.search.surrogate import Kernel, KnownCells, Prior, Surrogate, agreeing, distances, evidence

POINTS = np.array([[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.0, 1.0]])
SIZES = np.array([[8.0, 16.0], [5.0, 0.0]])


def prior() -> Prior:
    apart = distances(POINTS)
    signal = np.repeat(Kernel().signal(POINTS, apart)[None], 2, 0)
    return Prior(signal, 0.2 * np.repeat(Kernel().agreement(apart)[None], 2, 0), np.full((2, 4), 0.6))


def brute(category: int, known: list[tuple[int, int]], values: list[float]) -> tuple[FloatArray, FloatArray, float]:
    """Mean [S] and covariance [S, S] of f by the formulas of a Gaussian process, and how far the values lie from what
    was expected (Mahalanobis, squared)."""
    p, n = prior(), len(known)
    joint, cross = np.zeros((n, n)), np.zeros((4, n))
    for i, (s, b) in enumerate(known):
        cross[:, i] = p.signal[category][:, s]
        for j, (t, d) in enumerate(known):
            joint[i, j] = p.signal[category][s, t]
            joint[i, j] += p.noise[category][s, t] / SIZES[category, b] if b == d else 0.0
    gain, shift = cross @ np.linalg.inv(joint), np.array(values) - 0.6
    return 0.6 + gain @ shift, p.signal[category] - gain @ cross.T, float(shift @ np.linalg.solve(joint, shift))


EVERY, FIRST = np.arange(4), np.array([1.0, 0.0])
CELLS, SCORES = [(0, 0), (2, 0), (2, 1), (3, 1)], [0.5, 0.9, 0.8, 0.3]


@pytest.mark.parametrize("at_once", [0, 2, 4])
def test_conditioning_one_by_one_or_at_once_is_the_textbooks(at_once: int) -> None:
    places = np.array([2 * s + b for s, b in CELLS[:at_once]], dtype=int)
    none = KnownCells(np.zeros(0, dtype=int), np.zeros(0))
    known = [KnownCells(places, np.array(SCORES[:at_once])), none]
    surrogate = Surrogate(prior(), SIZES, known)
    for (soup, block), score in list(zip(CELLS, SCORES, strict=True))[at_once:]:
        surrogate.observe(0, soup, block, score)
    mean, cov, surprise = brute(0, CELLS, SCORES)
    assert surrogate.mean[0] == pytest.approx(mean, abs=1e-6)
    assert surrogate.covariance(EVERY, FIRST) == pytest.approx(cov, abs=1e-6)
    own = np.diag(cov)
    assert surrogate.differences(1, FIRST) == pytest.approx(own + own[1] - 2 * cov[1], abs=1e-6)
    assert surrogate.mean[1] == pytest.approx(np.full(4, 0.6))
    assert surrogate.surprises == (pytest.approx(surprise, rel=1e-5), 4)


def test_evidence_is_the_density_of_what_is_known_one_after_another() -> None:
    surrogate, total = Surrogate(prior(), SIZES), 0.0
    for (soup, block), score in zip(CELLS, SCORES, strict=True):
        _, joint = surrogate.cells(0, EVERY, np.array([soup]), np.array([block]))
        left = score - _expected(surrogate, soup, block)
        total -= (left**2 / joint[0, 0] + np.log(joint[0, 0])) / 2
        surrogate.observe(0, soup, block, score)
    places = np.array([2 * s + b for s, b in CELLS])
    known = [KnownCells(places, np.array(SCORES)), KnownCells(np.zeros(0, dtype=int), np.zeros(0))]
    bare, signals = replace(prior(), signal=0 * prior().signal), prior().signal[:1]
    assert evidence(bare, SIZES, known, signals)[0, 0] == pytest.approx(total, abs=1e-6)


def _expected(surrogate: Surrogate, soup: int, block: int) -> float:
    """Score that is expected of a cell: where hearing it would move no mean."""
    low, high = surrogate.copy(), surrogate.copy()
    low.observe(0, soup, block, 0.0)
    high.observe(0, soup, block, 1.0)
    now, a, b = (float(one.mean[0, soup]) for one in (surrogate, low, high))
    return (now - a) / (b - a)


def test_reductions_are_what_observing_takes_away() -> None:
    surrogate, weights = Surrogate(prior(), SIZES), np.array([0.7, 0.3])
    surrogate.observe(0, 0, 0, 0.5)
    before = surrogate.differences(0, weights)[2]
    drop = surrogate.reduction(0, np.array([2]), weights, np.ones((4, 2), dtype=int))[0, 0, 2]
    surrogate.observe(0, 2, 1, 0.7)
    assert drop == pytest.approx(before - surrogate.differences(0, weights)[2], abs=1e-9)


def test_knowing_that_a_cell_will_be_known_moves_no_mean() -> None:
    surrogate = Surrogate(prior(), SIZES)
    surrogate.observe(0, 1, 0, 0.9)
    twin = surrogate.copy()
    twin.observe(0, 3, 1)
    assert twin.mean == pytest.approx(surrogate.mean)
    assert twin.covariance(EVERY, FIRST)[3, 3] < surrogate.covariance(EVERY, FIRST)[3, 3]
    assert surrogate.covariance(EVERY, FIRST) == pytest.approx(brute(0, [(1, 0)], [0.9])[1], abs=1e-6)


def space(counts: tuple[int, ...], group: int = 1) -> SearchSpace:
    categories = tuple(f"c{c}" for c, n in enumerate(counts) for _ in range(n))
    groups = tuple(f"g{i // group}" for i in range(len(categories)))
    weights = {f"c{c}": 1 / len(counts) for c in range(len(counts))}
    return SearchSpace(ingredients=("a", "b"), categories=categories, groups=groups, coefficients=weights)


@pytest.mark.parametrize("counts", [(1, 1), (3, 30), (100, 7, 12), (400, 400)])
def test_blocks_partition_each_category_and_double(counts: tuple[int, ...]) -> None:
    layout = FoldLayout.of(space(counts), seed=4)
    assert sorted(int(i) for own in layout.members for i in own) == list(range(sum(counts)))
    assert [len(own) for own in layout.members] == list(counts)
    for row in layout.blocks:
        seen = np.cumsum([len(block) for block in row])
        assert all(len(block) <= before + 2 for block, before in zip(row[2:], seen[1:], strict=False))


def test_groups_stay_in_one_block_and_the_seed_decides_the_order() -> None:
    layout, again, other = (FoldLayout.of(space((60, 60), group=3), seed) for seed in (1, 1, 2))
    for row in layout.blocks:
        owners = [set(layout.groups[block].tolist()) for block in row]
        assert not owners[0] & owners[1]
    orders = [np.concatenate(one.members).tolist() for one in (layout, again, other)]
    assert orders[0] == orders[1] != orders[2]


def test_how_alike_soups_answer_is_learned_from_their_answers() -> None:
    rng, points = np.random.default_rng(0), np.array([[k / 10, 1 - k / 10] for k in range(11)])
    apart = distances(points)
    for reach in (0.3, 2.4):
        root = np.linalg.cholesky(Kernel(reach=reach, shared=0.1).agreement(apart) + 1e-9 * np.eye(11))
        found = agreeing(Kernel(), apart, root @ rng.standard_normal((11, 2000)))
        assert abs(found.agreement(apart) - Kernel(reach=reach, shared=0.1).agreement(apart)).max() < 0.1
    assert agreeing(Kernel(), apart, np.full((11, 5), np.nan)) == Kernel()


def test_beliefs_of_a_sure_and_of_an_open_race() -> None:
    level = np.array([[0.70, 0.69, 0.5]])
    sure, race = (Surrogate(Prior(np.eye(3)[None] * v, np.eye(3)[None], level), np.ones((1, 1))) for v in (1e-10, 4e-4))
    one = np.ones(1)
    assert indistinguishable(sure, one, 0) == ()
    assert indistinguishable(sure, one, 2) == (0, 1)
    assert indistinguishable(race, one, 0) == (1,)
    leader, rivals, urgency = expected_improvement(race, one, 2)
    assert (leader, rivals.tolist()) == (0, [1, 2])
    assert urgency[0] > urgency[1]


def test_answers_that_surprise_make_a_search_less_sure() -> None:
    level, one, indistinct = np.array([[0.70, 0.69, 0.67, 0.64, 0.5]]), np.ones(1), []
    for seen in (0.70, 0.72, 0.80):
        race = Surrogate(Prior(np.eye(5)[None] * 4e-4, np.eye(5)[None] * 1e-4, level), np.ones((1, 40)))
        for block in range(40):
            race.observe(0, 4, block, 0.5 + (seen - 0.7) * (-1) ** block)
        indistinct.append(len(indistinguishable(race, one, 0)))
    assert indistinct[0] < indistinct[1] < indistinct[2]


def test_the_normal_distribution_function() -> None:
    z = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])
    assert normal(z) == pytest.approx([0.00134990, 0.15865525, 0.5, 0.69146246, 0.97724987], abs=1e-6)


def test_finishing_a_finished_fold_gains_nothing() -> None:
    layout = FoldLayout.of(space((16, 16)), 0)
    surrogate = Surrogate(prior(), layout.sizes)
    open_depth = np.zeros((4, 2), dtype=int)
    rivals = np.array([1, 2, 3])
    assert finishing_gain(surrogate, layout, open_depth, 0, rivals) > 0.005
    for soup in range(4):
        for category in range(2):
            for block in range(layout.counts[category]):
                surrogate.observe(category, soup, block, 0.6)
    assert finishing_gain(surrogate, layout, open_depth + layout.counts, 0, rivals) == pytest.approx(0, abs=1e-9)
