"""Models without weights in common: their posterior beside the textbook's formulas, and what is estimated for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from souping.core.types import FloatArray, SearchSpace
from souping.search.arms import ALIKE, FLOOR, WIDE, ArmsPosterior, alike
from souping.search.fold import FoldAnswers, FoldLayout

SIZES, DEVIATION = np.array([6.0, 6.0, 12.0]), np.array([0.5, 0.4, 0.3, 0.5])
LEVEL, RISE, LUCK, ONE, EVERY = 0.4, 0.2, 0.3, np.ones(1), np.arange(4)
TOLD = {(0, 0): 0.7, (0, 1): 0.6, (2, 0): 0.2, (3, 0): 0.5, (3, 1): 0.9}


def posterior(told: dict[tuple[int, int], float], rise: float = RISE) -> ArmsPosterior:
    scores = np.full((4, 3), np.nan)
    for (model, block), score in told.items():
        scores[model, block] = score
    return ArmsPosterior(LEVEL, rise, DEVIATION, LUCK, SIZES, scores)


def covariance(rise: float = RISE) -> FloatArray:
    """Prior covariance of 4 true means, then of 12 cells (model by model)."""
    model, block = np.divmod(np.arange(12), 3)
    model, block = np.append(EVERY, model), np.append([-1] * 4, block)
    true = WIDE**2 + rise**2 * (model[:, None] == model)
    noise = DEVIATION[model][:, None] * DEVIATION[model] * (LUCK + (1 - LUCK) * (model[:, None] == model))
    same = (block[:, None] == block) & (block >= 0)
    return true + same * noise / SIZES[block] + FLOOR * np.diag((block >= 0).astype(float))


def brute(told: dict[tuple[int, int], float], rise: float = RISE) -> tuple[FloatArray, FloatArray, float]:
    """Means and covariance of all, and the log-density of what was told."""
    every, at = covariance(rise), [4 + 3 * model + block for model, block in told]
    shift = np.array(list(told.values())) - LEVEL
    gain = every[:, at] @ np.linalg.inv(every[np.ix_(at, at)])
    density = -(shift @ np.linalg.solve(every[np.ix_(at, at)], shift) + np.linalg.slogdet(every[np.ix_(at, at)])[1]) / 2
    return LEVEL + gain @ shift, every - gain @ every[at], density


def test_the_posterior_is_the_textbooks() -> None:
    found, (mean, cov, _) = posterior(TOLD), brute(TOLD)
    assert found.mean[0] == pytest.approx(mean[:4], abs=1e-9)
    assert found.covariance(EVERY, ONE) == pytest.approx(cov[:4, :4], abs=1e-9)
    own = np.diag(cov)[:4]
    assert found.differences(1, ONE) == pytest.approx(own + own[1] - 2 * cov[1, :4], abs=1e-9)
    model, block = np.array([0, 1, 1, 2]), np.array([2, 0, 2, 1])
    cross, joint = found.cells(0, EVERY, model, block)
    at = 4 + 3 * model + block
    assert cross == pytest.approx(cov[:4][:, at], abs=1e-9)
    assert joint == pytest.approx(cov[np.ix_(at, at)], abs=1e-9)


def test_evidence_differs_between_rises_as_densities_do() -> None:
    found = posterior(TOLD, 0.05).evidence - posterior(TOLD, 0.3).evidence
    assert found == pytest.approx(brute(TOLD, 0.05)[2] - brute(TOLD, 0.3)[2], abs=1e-6)


def test_surprises_are_the_distance_of_the_scores_from_what_was_expected() -> None:
    at = [4 + 3 * model + block for model, block in TOLD]
    shift = np.array(list(TOLD.values())) - LEVEL
    far = shift @ np.linalg.solve(covariance()[np.ix_(at, at)], shift)
    assert posterior(TOLD).surprises == (pytest.approx(far, rel=1e-6), len(TOLD))


def test_observing_is_conditioning_and_takes_away_what_was_said() -> None:
    found = posterior(TOLD)
    block = np.array([[2], [0], [1], [2]])
    drop = found.reduction(3, np.array([0, 1]), ONE, block)[0]
    for model in range(4):
        later, more = found.copy(), {**TOLD, (model, int(block[model, 0])): 0.8}
        later.observe(0, model, int(block[model, 0]), 0.8)
        gone = found.differences(3, ONE) - later.differences(3, ONE)
        assert drop[:, model] == pytest.approx(gone[:2], abs=1e-9)
        assert later.mean[0] == pytest.approx(brute(more)[0][:4], abs=1e-9)
    twin = found.copy()
    twin.observe(0, 1, 0)
    assert twin.mean == pytest.approx(found.mean)
    assert twin.differences(3, ONE)[1] < found.differences(3, ONE)[1]


def test_how_alike_models_answer_is_learned_from_their_answers() -> None:
    rng = np.random.default_rng(0)
    shared, own = rng.standard_normal((1, 3000)), rng.standard_normal((6, 3000))
    residuals = np.sqrt(0.6) * shared + np.sqrt(0.4) * own
    residuals[2:, 1500:] = np.nan
    assert alike(residuals) == pytest.approx(0.6, abs=0.05)
    assert alike(np.full((3, 4), np.nan)) == pytest.approx(ALIKE)


def test_merged_categories_have_their_part_in_every_block_and_groups_stay_together() -> None:
    categories = tuple("a" * 80 + "b" * 40)
    space = SearchSpace(
        ingredients=("x", "y"), categories=categories, groups=tuple(f"g{i // 4}" for i in range(120)),
        coefficients={"a": 0.5, "b": 0.5},
    )  # fmt: skip
    layout = FoldLayout.of(space, 3, merged=True)
    assert sorted(np.concatenate(layout.blocks[0]).tolist()) == list(range(120))
    for block in layout.blocks[0][-2:]:
        assert np.mean(block < 80) == pytest.approx(2 / 3, abs=0.15)
    owners = [set(layout.groups[block].tolist()) for block in layout.blocks[0]]
    assert not owners[0] & owners[1]
    values = np.where(np.arange(120) < 80, 1.0, 0.0)
    assert layout.mean(values, np.arange(120)) == pytest.approx(0.5)
    assert layout.effective.sum() < layout.sizes.sum()


def test_what_weighs_nothing_is_the_last_block_and_tells_nothing() -> None:
    space = SearchSpace(
        ingredients=("x", "y"), categories=tuple("a" * 40 + "b" * 80), groups=tuple(map(str, range(120))),
        coefficients={"a": 1.0, "b": 0.0},
    )  # fmt: skip
    blocks = FoldLayout.of(space, 3, merged=True).blocks[0]
    assert all((block < 40).all() for block in blocks[:-1])
    assert sorted(blocks[-1].tolist()) == list(range(40, 120))
    assert FoldLayout.of(space, 3, merged=True).effective[0, -1] < 1
    assert len(FoldLayout.of(replace(space, whole=True), 3, merged=True).blocks[0]) == 1
    small = replace(space, coefficients={"a": 9e-4, "b": 1e-4})
    shares = FoldLayout.of(small, 3, merged=True).shares
    assert shares[:40].sum() / shares.sum() == pytest.approx(0.9)


def test_specialists_are_no_noisier_and_no_more_clustered_where_categories_are_one() -> None:
    """Answers around each category's own mean, groups within a category: merged as by category."""
    rng, size = np.random.default_rng(1), 300
    space = SearchSpace(
        ingredients=("x", "y"), categories=tuple("a" * size + "b" * size),
        groups=tuple(f"g{i // 10}" for i in range(2 * size)), coefficients={"a": 0.5, "b": 0.5},
    )  # fmt: skip
    found = {}
    truth = [np.r_[rng.random(size) < p, rng.random(size) < 1.2 - p].astype(float) for p in (0.9, 0.3) * 3]
    for merged in (True, False):
        answers = FoldAnswers(FoldLayout.of(space, 0, merged), len(truth))
        for soup, values in enumerate(truth):
            answers.hear(soup, None, values)
        deviation = answers.deviations(answers.residuals(), None)
        found[merged] = (answers.clustering(), float((deviation[:, 0] ** 2).mean()))
    assert found[True] == pytest.approx(found[False], rel=0.02)
    assert found[True][1] < 0.17
