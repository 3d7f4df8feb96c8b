"""The response surface against populations whose truth is known: coverage at all points at once, and its files."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from souping.analysis import NotEstimableError, surface
from souping.analysis.surface import (
    ResponseSurface,
    SurfaceLimits,
    SurfaceResult,
    band,
    design_effect,
    differences_to_first,
    fitted_surface,
)
from souping.core.types import FloatArray
from souping.core.unit import BITS_PER_BYTE, POINTS as PERCENT, Estimate
from souping.report.plots import FAINT, INK
from souping.search.points import uniform, vertices, weight_grid
from souping.search.surrogate import draws
from souping.statistics.score_table import ItemTable
from tests.support.analyses import NAMES, run_of
from tests.support.drawings import faces, line, rims

POINTS = np.array([uniform(3), *vertices(3), *weight_grid(3, 0.1)])
PER_CATEGORY = 60
CATEGORIES = 3


@functools.cache
def chances(seed: int = 1, items: int = 4000) -> np.ndarray:
    """[T, items * C] probabilities: a bowl over the weights in each category; hard and easy items."""
    rng = np.random.default_rng(seed)
    tops = ((0.5, 0.3, 0.2), (0.2, 0.6, 0.2), (0.3, 0.3, 0.4))
    parts = []
    for top in tops:
        level = 1.2 - 3 * np.square(POINTS - np.array(top)).sum(axis=1)
        parts.append(1 / (1 + np.exp(-(level[:, None] + 1.5 * rng.standard_normal(items)[None]))))
    return np.concatenate(parts, axis=1)


def searched(seed: int, whole: bool) -> tuple[Estimate[FloatArray], np.ndarray]:
    """A split, asked whole or in nested parts; the true differences [T] of the objective."""
    table = chances()
    rng = np.random.default_rng(seed)
    size = table.shape[1] // CATEGORIES
    truth = table.mean(axis=1)
    own = rng.permutation(size)[:PER_CATEGORY]
    items = np.concatenate([c * size + own for c in range(CATEGORIES)])
    draw = rng.random(len(items))  # what is hard for one soup is hard for its neighbours
    values = (draw[None] < table[:, items]).astype(float)
    if not whole:
        depth = rng.choice([0, 15, 30, PER_CATEGORY], len(POINTS))
        depth[:4] = PER_CATEGORY
        values[np.tile(np.arange(PER_CATEGORY), CATEGORIES)[None] >= depth[:, None]] = np.nan
    categories = np.repeat(np.arange(CATEGORIES), PER_CATEGORY)
    found, _ = band(POINTS, values, categories, np.full(CATEGORIES, 1 / CATEGORIES))
    return found, truth - truth[0]


@pytest.mark.parametrize("whole", [True, False])
def test_a_band_covers_the_whole_truth_at_once(whole: bool) -> None:
    inside = 0
    for seed in range(40):
        found, truth = searched(seed, whole)
        inside += int(((found.low <= truth) & (truth <= found.high)).all())
    assert inside >= 0.9 * 40


def test_soups_say_nothing_of_a_single_model_that_was_not_asked() -> None:
    run = run_of(3)
    missing = run.single(run.soups.ingredients[1]).id
    lacking = dataclasses.replace(
        run, search={key: own for key, own in run.search.items() if key != missing}
    )
    with pytest.raises(NotEstimableError, match=f"{run.soups.ingredients[1]}.* did not answer"):
        ResponseSurface().analyse(lacking)


def test_the_uniform_soup_differs_from_itself_by_nothing_and_less_asked_is_wider() -> None:
    (whole, _) = searched(0, True)
    (parts, _) = searched(0, False)
    for found in (whole, parts):
        assert found.value[0] == 0
        assert abs(found.high[0]) < 1e-6
    assert (parts.high - parts.low)[4:].mean() > (whole.high - whole.low)[4:].mean()


def test_a_band_ends_where_no_difference_can_be() -> None:
    values = np.tile((POINTS[:, :1] > 0.5).astype(float), (1, 2))
    found, each = band(POINTS, values, np.array([0, 1]), np.array([0.5, 0.5]))
    assert found.low.min() >= -1
    assert found.high.max() <= 1
    assert np.abs(each).max() <= 1
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()


@pytest.mark.parametrize(
    ("lowest", "highest", "is_fraction"),
    [(0, 1, True), (0.01, 0.99, True), (-0.01, 1, False), (0, 1.01, False), (-1, 0, False)],
)
def test_only_differences_of_fractions_end_at_1(
    lowest: float, highest: float, is_fraction: bool
) -> None:
    right = np.tile((POINTS[:, :1] > 0.5).astype(float), (1, 2))
    values = lowest + (highest - lowest) * right
    found, _ = band(POINTS, values, np.array([0, 1]), np.array([0.5, 0.5]))
    assert (found.high.max() == 1) == is_fraction
    assert (found.high.max() > 1) != is_fraction


def test_items_of_a_group_are_counted_as_alike_as_they_are() -> None:
    rng = np.random.default_rng(3)
    groups = np.arange(300) // 10
    categories = np.arange(300) // 150
    alone = rng.standard_normal((20, 300))
    alike = np.sqrt(0.4) * rng.standard_normal((20, 30))[:, groups] + np.sqrt(0.6) * alone
    # Of groups of m items with correlation rho the effect is 1 + (m - 1) rho.
    assert design_effect(alone, categories, groups) == pytest.approx(1, abs=0.25)
    assert design_effect(alike, categories, groups) == pytest.approx(1 + 9 * 0.4, rel=0.25)
    scores = (alike[:, :] > 0).astype(float)
    points = POINTS[:20]
    weights = np.full(2, 0.5)
    grouped, _ = band(points, scores, categories, weights, groups=groups)
    ignored, _ = band(points, scores, categories, weights)
    assert (grouped.high - grouped.low).mean() > 1.2 * (ignored.high - ignored.low).mean()


def test_the_design_effect_is_the_quotient_of_the_sums_of_squares() -> None:
    """Two groups of two items: sums of residuals 1 and -1, squares 1/4 each, n / (n - 1) = 2."""
    one = np.zeros(4, int)
    groups = np.array([0, 0, 1, 1])
    assert design_effect(np.array([[1.0, 1.0, 0.0, 0.0]]), one, groups) == pytest.approx(4.0)
    assert design_effect(np.array([[1.0, 0.5, 0.5, 0.0]]), one, groups) == pytest.approx(2.0)
    assert design_effect(np.array([[1.0, 0.0, 1.0, 0.0]]), one, groups) == 1.0


def test_the_design_effect_pools_categories_and_leaves_out_what_was_not_answered() -> None:
    """Categories of 3 groups and of 1: sum over both of squared group sums x n / (n - 1), over squared residuals."""
    categories = np.array([0, 0, 0, 0, 0, 1, 1])
    groups = np.array([0, 0, 1, 1, 2, 7, 7])
    scores = np.array(
        [
            [1.0, 1.0, 0.0, 0.0, 0.5, 1.0, 0.5],
            [np.nan] * 5 + [1.0, 0.0],
            [0.0, np.nan, 1.0, 1.0, 1.0, np.nan, np.nan],
        ]
    )
    # First soup: sums 1, -1, 0. Third: mean 3/4, residuals -3/4, then 1/4 three times: sums -3/4, 1/2, 1/4.
    clustered = (2 + (9 + 4 + 1) / 16) * 3 / 2
    independent = 1.0 + 12 / 16
    # Category 1 has one group, whose residuals sum to 0.
    independent += 2 * 0.25**2 + 2 * 0.5**2
    expected = clustered / independent
    assert design_effect(scores, categories, groups) == pytest.approx(expected)
    # Answers that are alike within a soup say nothing.
    assert design_effect(np.ones((3, 7)), categories, groups) == 1.0


def test_limits_are_those_of_2000_draws_widened_by_a_third() -> None:
    rng = np.random.default_rng(5)
    root = rng.standard_normal((6, 6)) / 20
    cov = root @ root.T
    mean = rng.random(6)
    found = differences_to_first(mean, cov, most=0.4)
    shift = np.eye(6)
    shift[:, 0] -= 1.0
    differences = shift @ cov @ shift.T
    error = np.sqrt(np.maximum(np.diag(differences), 0))
    sizes = np.abs(draws(differences, 2000)[:, 1:]) / error[1:]
    margin = 1.35 * np.quantile(sizes.max(axis=1), 0.95) * error
    expected = np.clip(mean - mean[0], -0.4, 0.4)
    assert found.value == pytest.approx(expected)
    assert found.low == pytest.approx(np.maximum(expected - margin, -0.4), rel=1e-6)
    assert found.high == pytest.approx(np.minimum(expected + margin, 0.4), rel=1e-6)
    assert found.value.min() == -0.4 or found.value.max() == 0.4


@pytest.mark.parametrize(("lowest", "scale"), [(0.0, 1.0), (0.0, 3.0), (-0.5, 1.0)])
def test_bands_follow_the_model_and_are_never_narrower(lowest: float, scale: float) -> None:
    """Scores of 0 or 1, and others, which have no bound; categories weigh 2 and 1 thirds."""
    rng = np.random.default_rng(8)
    points = POINTS[:12]
    categories = np.repeat([0, 1], 20)
    weights = np.array([2.0, 1.0]) / 3
    scores = lowest + scale * (rng.random((12, 40)) < 0.5).astype(float)
    scores[5:, 30:] = np.nan
    scores[9] = np.nan
    groups = np.arange(40) // 2
    found, each = band(points, scores, categories, weights, groups=groups)
    common = np.nanmean(scores, axis=0)
    effect = design_effect(scores - common, categories, groups)
    model = fitted_surface(points, scores, categories, weights, effect=effect)
    mean, cov = model.objective()
    wider = max(1.0, model.surprise())
    expected = differences_to_first(mean, wider * cov, 1.0 if (lowest, scale) == (0, 1) else np.inf)
    for ends, expected_ends in zip(found, expected, strict=True):
        assert ends == pytest.approx(expected_ends)
    for c in range(2):
        of_category = model.posterior(c).mean
        assert each[c] == pytest.approx(of_category - of_category[0])


def test_a_sample_counts_as_fewer_items_by_the_effect_of_groups() -> None:
    scores = (np.random.default_rng(4).random((6, 20)) < 0.5).astype(float)
    scores[3, 10:] = np.nan
    scores[4] = np.nan
    weights = np.array([1.0])
    plain = fitted_surface(POINTS[:6], scores, np.zeros(20, int), weights)
    model = fitted_surface(POINTS[:6], scores, np.zeros(20, int), weights, effect=2.5)
    # Items that the same soups answered are a sample.
    assert sorted(plain.size[0].tolist()) == [10, 10]
    # 10 / 2.5
    assert sorted(model.size[0].tolist()) == [4, 4]
    assert model.requested[:, 0].sum(axis=1).tolist() == [2, 2, 2, 1, 0, 2]
    known = np.nanmean(scores[3])
    assert np.nanmax(model.score[3]) == pytest.approx(known)


def run_result(size: int, **fields: object) -> SurfaceResult:
    run = dataclasses.replace(run_of(size), **fields)  # type: ignore[arg-type]
    result = ResponseSurface().analyse(run)
    assert isinstance(result, SurfaceResult)
    return result


@pytest.mark.parametrize(("size", "points"), [(2, 11), (3, 40), (4, 89)])
def test_a_surface_is_the_uniform_soup_the_ingredients_and_a_grid(size: int, points: int) -> None:
    result = run_result(size)
    assert result.weights[0] == pytest.approx((1 / size,) * size)
    assert np.array(result.weights[1 : size + 1]).tolist() == np.eye(size).tolist()
    assert len(set(result.weights)) == len(result.weights) == points
    steps = 10 * np.array(result.weights[size + 1 :])
    assert np.abs(steps - steps.round()).max() < 1e-9
    assert steps.min() >= 1


def test_a_result_has_the_band_of_the_answers() -> None:
    """One soup answered a half of the split: its other answers are not known."""
    plain = run_of(3)
    soup = plain.trials[3]
    part = plain.search[soup.id].values.copy()
    part[60:] = np.nan
    known = {name: scores for name, scores in plain.search.items() if name != soup.id}
    result = run_result(3, search=known, parts={soup.id: part})
    items = next(iter(plain.search.values())).items
    table = ItemTable.of(items, plain.objective)
    by_weights = {}
    for recipe in (*(plain.single(name) for name in NAMES[:3]), *plain.trials):
        key = tuple(round(recipe.shares.get(name, 0.0), 9) for name in NAMES[:3])
        by_weights[key] = part if recipe.id == soup.id else plain.search[recipe.id].values
    points = np.array(result.weights, float)
    unknown = np.full(len(items), np.nan)
    scores = np.array(
        [by_weights.get(tuple(np.round(point, 9).tolist()), unknown) for point in points]
    )
    expected, each = band(points, scores, table.categories, table.coefficients, groups=table.groups)
    limits = result.objective
    assert limits.difference == pytest.approx(expected.value, abs=1e-6)
    assert limits.low == pytest.approx(expected.low, abs=1e-6)
    assert limits.high == pytest.approx(expected.high, abs=1e-6)
    for c, name in enumerate(table.names):
        assert result.categories[name] == pytest.approx(each[c], abs=1e-6)
    shown_values = np.array([limits.low, limits.high, limits.difference])
    assert shown_values.round(6).tolist() == shown_values.tolist()
    assert result.width == pytest.approx((expected.high - expected.low).mean())
    assert list(result.items) == np.isfinite(scores).sum(axis=1).tolist()
    assert 60 in result.items
    assert (result.split_items, result.soups, result.split) == (120, len(by_weights), "search")
    assert result.chosen == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert result.ingredients == NAMES[:3]
    alone = run_result(3, soups=dataclasses.replace(plain.soups, soup=plain.single("bee")))
    assert alone.chosen == (0.0, 1.0, 0.0)


def test_a_surface_takes_five_soups_and_at_most_400(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotEstimableError, match="4 soups"):
        ResponseSurface().analyse(run_of(3, trials=1))
    assert run_result(3, trials=run_of(3).trials[:2]).soups == 5
    assert surface.FITTED == 400
    monkeypatch.setattr(surface, "FITTED", 20)
    assert run_result(3).soups == 20


# What is shown


def shown(size: int) -> SurfaceResult:
    """Five points of so many ingredients: the second is better than the uniform soup, the last two are worse."""
    weights = [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.75, 0.25], [0.25, 0.75]]
    return SurfaceResult(
        split="search",
        ingredients=NAMES[:size],
        chosen=(0.7, 0.3, *(0.0,) * (size - 2)),
        weights=tuple((*row, *(0.0,) * (size - 2)) for row in weights),
        items=(4,) * 5,
        split_items=1200,
        soups=7,
        objective=SurfaceLimits(
            difference=(0.0, 0.05, 0.01, -0.02, -0.06),
            low=(0.0, 0.02, -0.01, -0.03, -0.1),
            high=(0.0, 0.08, 0.02, -0.01, -0.05),
        ),
        categories={},
        width=0.034,
    )


def test_a_page_counts_mixtures_whose_limits_exclude_0() -> None:
    first, second = shown(2).section(PERCENT).lines
    assert first.startswith("Of 5 mixtures, 1 are better and 2 worse")
    assert "3.4 points wide" in first
    assert ("7 trials" in second, "1,200 search items" in second) == (True, True)
    # Of a loss, less is better.
    assert "2 are better and 1 worse" in shown(2).section(BITS_PER_BYTE).lines[0]


def test_two_ingredients_are_a_curve_in_its_band_by_the_first_weight() -> None:
    (drawing,) = shown(2).drawings(PERCENT)
    (axes,) = drawing.figure.axes
    curve, ring, zero = map(line, axes.lines)
    assert (axes.lines[-1].get_linewidth(), axes.collections[0].get_linewidth()) == (0.8, [0])
    assert curve[0] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert curve[1] == pytest.approx([1.0, -6.0, 0.0, -2.0, 5.0])
    assert ring[0][0] == 0.75
    assert ring[1][0] == pytest.approx(-2.0)
    assert zero[1] == [0, 0]
    outline = np.asarray(axes.collections[0].get_paths()[0].vertices)
    corners = {tuple(point) for point in outline.round(6)}
    assert {(0.0, -1.0), (0.25, -10.0), (1.0, 2.0), (0.25, -5.0), (1.0, 8.0)} <= corners
    assert "ant" in axes.get_xlabel()
    assert "from \u22126.0 to 5.0 points, best at 1 / 0" in drawing.alt
    assert "best at 0.25 / 0.75" in shown(2).drawings(BITS_PER_BYTE)[0].alt


def test_three_ingredients_are_a_triangle_with_rims_where_0_is_excluded() -> None:
    from matplotlib.colors import to_rgba

    (drawing,) = shown(3).drawings(PERCENT)
    (points,) = drawing.figure.axes[0].collections
    expected = [FAINT, INK, FAINT, INK, INK]
    assert [tuple(rim) for rim in rims(points)] == [to_rgba(colour) for colour in expected]
    colours = faces(points)
    # The scale has the same length on both sides of 0, where it is white.
    assert colours[0][:3].min() > 0.95
    assert colours[4][0] > colours[4][2]
    assert colours[1][2] > colours[1][0]
    assert "Dark outline" in drawing.caption


def test_more_ingredients_are_in_the_order_of_their_scores() -> None:
    (drawing,) = shown(4).drawings(PERCENT)
    curve, ring, _ = map(line, drawing.figure.axes[0].lines)
    assert curve[0] == [0, 1, 2, 3, 4]
    assert curve[1] == pytest.approx([-6.0, -2.0, 0.0, 1.0, 5.0])
    assert ring[0][0] == 1
    assert ring[1][0] == pytest.approx(-2.0)
    assert "Dark outline" not in drawing.caption


def test_the_numbers_of_a_surface_are_those_of_earlier_reports() -> None:
    assert (surface.FEWEST_SOUPS, surface.FITTED, surface.CONFIDENCE) == (5, 400, 0.95)
    assert (surface.BAND_DRAWS, surface.WIDENING, surface.TINY_ERROR) == (2000, 1.35, 1e-9)
