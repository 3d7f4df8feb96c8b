"""The surrogate's posterior beside the textbook's formulas, and the blocks of a fold."""

from __future__ import annotations

import numpy as np
import pytest

from souping.core.types import FloatArray, SearchSpace
from souping.search.adaptive import SoupModel, draws, item_blocks

TABLE = np.array([[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.0, 1.0]])


def space(counts: tuple[int, ...], group: int = 1) -> SearchSpace:
    categories = tuple(f"c{c}" for c, n in enumerate(counts) for _ in range(n))
    groups = tuple(f"g{i // group}" for i in range(len(categories)))
    weights = {f"c{c}": 1 / len(counts) for c in range(len(counts))}
    return SearchSpace(ingredients=("a", "b"), categories=categories, groups=groups, coefficients=weights)


def fresh(counts: tuple[int, ...], seed: int = 0) -> SoupModel:
    return SoupModel(TABLE, item_blocks(space(counts), seed), np.full(len(counts), 1 / len(counts)))


def model(asked: tuple[tuple[int, int], ...], counts: tuple[int, ...] = (96, 24), seed: int = 0) -> SoupModel:
    """A model that was told the next block of a category of a soup, for each (soup, category)."""
    made, rng = fresh(counts, seed), np.random.default_rng(seed)
    for soup, category in asked:
        number = made.left[soup, category].argmax()
        block = made.blocks[category][number]
        made.asked[soup, category, number] = True
        made.observe(soup, block.tolist(), (rng.random(len(block)) < 0.6).astype(float))
    made.fit()
    return made


ASKED = ((0, 0), (0, 0), (2, 0), (3, 0), (3, 1))


def brute(made: SoupModel, c: int) -> tuple[FloatArray, FloatArray, float]:
    """Mean [S] and covariance [S, S] of a category by the formulas of a Gaussian process, cell by cell, and how far the
    answers lie from what was expected (Mahalanobis, squared)."""
    cells = [(s, b) for s, b in np.argwhere(made.asked[:, c])]
    signal, noise, level = made.signal[c], made.noise[c], made.level[c]
    joint = np.array(
        [[signal[s, t] + (noise[s, t] / len(made.blocks[c][b]) if b == d else 0.0) for t, d in cells] for s, b in cells]
    )
    cross = np.array([[signal[s, t] for t, _ in cells] for s in range(len(TABLE))])
    shift = np.array([made.values[s, made.blocks[c][b]].mean() - level[s] for s, b in cells])
    gain = cross @ np.linalg.inv(joint)
    return level + gain @ shift, signal - gain @ cross.T, float(shift @ np.linalg.solve(joint, shift))


@pytest.mark.parametrize("category", [0, 1])
def test_the_posterior_is_the_textbooks(category: int) -> None:
    made = model(ASKED)
    mean, cov, surprise = brute(made, category)
    found = made.posterior(category)
    assert found[0] == pytest.approx(mean, abs=1e-6)
    assert found[1] == pytest.approx(cov, abs=1e-6)
    assert found[4] == pytest.approx([surprise, made.asked[:, category].sum()], rel=1e-4)


def test_the_next_block_takes_away_what_its_covariance_says() -> None:
    made = model(ASKED)
    _, before, cross, spread, _ = made.posterior(0)
    made.asked[2, 0, 1] = True  # asked, not answered: variances shrink, means stay
    mean, after, *_ = made.posterior(0)
    assert before - after == pytest.approx(np.outer(cross[:, 2], cross[:, 2]) / spread[2], abs=1e-9)
    assert mean == pytest.approx(brute(model(ASKED), 0)[0], abs=1e-6)


def test_shared_items_make_a_difference_sharp() -> None:
    gaps = []
    for block in (0, 1):
        made = fresh((96, 24))
        made.fit()
        made.asked[1, 0, 0] = made.asked[2, 0, block] = True
        made.score[1, 0, 0] = made.score[2, 0, block] = 0.6
        cov = made.posterior(0)[1]
        gaps.append(cov[1, 1] + cov[2, 2] - 2 * cov[1, 2])
    assert 0 < gaps[0] < gaps[1]


def test_finishing_a_finished_fold_gains_nothing() -> None:
    made = model(ASKED)
    asked = made.asked.copy()
    assert made.finishing_gain(np.argsort(-made.objective()[0])) > 0.005
    assert (made.asked == asked).all()
    for soup in range(4):
        made.ask_rest(soup)
        made.observe(soup, slice(None), np.full(120, 0.6))  # type: ignore[arg-type]
    assert made.finishing_gain(np.argsort(-made.objective()[0])) == pytest.approx(0, abs=1e-9)


def test_draws_have_the_covariance_and_are_always_the_same() -> None:
    root = np.random.default_rng(1).standard_normal((3, 3))
    sample = draws(root @ root.T, 20_000)
    assert np.cov(sample.T) == pytest.approx(root @ root.T, abs=0.15)
    assert (draws(root @ root.T, 20_000) == sample).all()


@pytest.mark.parametrize("counts", [(1, 1), (3, 30), (100, 7, 12), (400, 400)])
def test_blocks_partition_each_category_and_double(counts: tuple[int, ...]) -> None:
    rows = item_blocks(space(counts), seed=4)
    assert sorted(int(i) for row in rows for block in row for i in block) == list(range(sum(counts)))
    for row, count in zip(rows, counts, strict=True):
        sizes = [len(block) for block in row]
        assert sum(sizes) == count
        assert len(sizes) <= 4
        assert all(abs(size - sum(sizes[:n])) <= 1 for n, size in enumerate(sizes) if n)


def test_groups_stay_in_one_block_and_the_seed_decides_the_order() -> None:
    of = space((60, 60), group=3)
    for row in item_blocks(of, 1):
        owners = [{of.groups[i] for i in block} for block in row]
        assert not owners[0] & owners[1]
    orders = [np.concatenate([b for row in item_blocks(of, seed) for b in row]).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
