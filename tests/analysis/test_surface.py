"""The response surface against populations whose truth is known: coverage at all points at once, and its files."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from souping.analysis import NotEstimableError
from souping.analysis.surface import AskedFold, ResponseSurface
from souping.analysis.surface_fit import SurfaceFit, fit_surface
from souping.core.simplex import grid, uniform, vertices
from souping.report.analyses.surface import files
from souping.report.files import as_json
from souping.report.registry import section_of
from tests.support.analyses import run_of

POINTS = np.array([uniform(3), *vertices(3), *grid(3, 0.1)])
PER_CATEGORY, CATEGORIES = 60, 3


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


def searched(seed: int, whole: bool) -> tuple[SurfaceFit, np.ndarray]:
    """A fold drawn by groups of two, asked whole or in nested parts of some soups; the true differences [C + 1, T]."""
    table, rng = chances(), np.random.default_rng(seed)
    size = table.shape[1] // CATEGORIES
    known = table.reshape(len(POINTS), CATEGORIES, size).mean(axis=2).T
    truth = np.vstack([known.mean(axis=0), known])
    pairs = rng.permutation(size // 2)[: PER_CATEGORY // 2]
    own = np.concatenate([2 * pairs, 2 * pairs + 1])
    items = np.concatenate([c * size + own for c in range(CATEGORIES)])
    draw = rng.random(len(items))  # what is hard for one soup is hard for its neighbours
    values = (draw[None] < table[:, items]).astype(float)
    if not whole:
        depth = rng.integers(0, PER_CATEGORY + 1, len(POINTS))
        depth[0] = PER_CATEGORY
        place = np.tile(np.arange(PER_CATEGORY), CATEGORIES)
        values[place[None] >= depth[:, None]] = np.nan
    categories = np.repeat(np.arange(CATEGORIES), PER_CATEGORY)
    groups = np.tile(np.tile(np.arange(PER_CATEGORY // 2), 2), CATEGORIES) + categories * 100
    _, numbers = np.unique(groups, return_inverse=True)
    fit = fit_surface(POINTS, values, categories, numbers.astype(np.int64), np.full(CATEGORIES, 1 / CATEGORIES))
    return fit, truth - truth[:, :1]


@pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.slow), False])
def test_bands_cover_the_whole_truth_at_once(whole: bool) -> None:
    inside = np.zeros(CATEGORIES + 1)
    for seed in range(40):
        fit, truth = searched(seed, whole)
        for number, band in enumerate((fit.objective, *fit.categories)):
            inside[number] += ((band.low <= truth[number]) & (truth[number] <= band.high)).all()
    assert inside[0] >= 0.9 * 40
    assert inside.min() >= 0.85 * 40


def test_bands_hold_where_single_models_lie_below_a_plateau_of_soups() -> None:
    alone, size = POINTS.max(axis=1) > 0.99, 120
    asked = alone | (POINTS[:, 0] >= 0.5)  # the uniform soup is not among them
    truth = np.where(alone, 0.65 - 0.8, 0.0)
    for seed in range(8):
        draw = np.random.default_rng(seed).random(CATEGORIES * size)
        values = (draw[None] < 0.8 + truth[:, None]).astype(float)
        values[~asked] = np.nan
        categories = np.repeat(np.arange(CATEGORIES), size)
        band = fit_surface(POINTS, values, categories, np.arange(len(draw)), np.full(CATEGORIES, 1 / 3)).objective
        assert ((band.low <= truth) & (truth <= band.high)).all()


def test_soups_say_nothing_of_a_single_model_that_was_not_asked() -> None:
    run = run_of(3)
    missing = run.single(run.soups.ingredients[1]).id
    lacking = dataclasses.replace(run, search={key: own for key, own in run.search.items() if key != missing})
    with pytest.raises(NotEstimableError, match=f"{run.soups.ingredients[1]}.* did not answer"):
        ResponseSurface().analyse(lacking)


def test_the_uniform_soup_differs_from_itself_by_nothing_and_less_asked_is_wider() -> None:
    (whole, _), (parts, _) = searched(0, True), searched(0, False)
    for fit in (whole, parts):
        assert fit.objective.difference[0] == 0
        assert abs(fit.objective.high[0]) < 1e-6
    assert parts.objective.error[4:].mean() > whole.objective.error[4:].mean()
    assert whole.objective.quantile > 2.2  # wider than a single point's 1.96


def test_soups_that_answer_alike_leave_some_doubt() -> None:
    categories = np.repeat([0, 1], 20)
    values = np.ones((len(POINTS), 40))
    values[:, 20:] = (np.arange(20)[None] < 10 * POINTS[:, :1]).astype(float)
    fit = fit_surface(POINTS, values, categories, np.arange(40), np.array([0.5, 0.5]))
    assert (fit.categories[0].high[1:] > 0.01).all()
    assert np.abs(fit.categories[0].difference).max() < 1e-9


def test_a_part_that_holds_all_of_a_category_is_not_checked() -> None:
    categories = np.array([0, *[1] * 12])
    asked = AskedFold(
        weights=POINTS, scores=np.random.default_rng(0).integers(0, 2, (len(POINTS), 13)).astype(float),
        names=("few", "many"), categories=categories, groups=np.arange(13), coefficients=np.array([0.5, 0.5]),
    )  # fmt: skip
    with np.errstate(all="raise", under="ignore"):
        found = ResponseSurface(parts=2)._checked(asked, POINTS)
    assert set(found) == {"not_estimable"}  # one part has "few", the other cannot fit it


def test_a_surface_that_was_not_checked_says_so() -> None:
    run = run_of()
    mixed = tuple(soup for soup in run.trials if len(set(soup.weights)) > 1)  # all but the uniform one
    data = json.loads(as_json(ResponseSurface().analyse(replace(run, trials=mixed))))
    assert "uniform" in data["held_out"]["not_estimable"]
    section = section_of({"analyses": {"surface": data}}, "surface")
    assert section is not None
    assert any("uniform soup" in line for line in section.lines if "held-out" in line)


def test_files_have_a_line_a_point_and_say_what_was_asked() -> None:
    data = ResponseSurface().analyse(run_of(3))
    written = files(json.loads(json.dumps(data)))
    rows = list(csv.DictReader(io.StringIO(written["surface.csv"])))
    assert set(written) == {"surface.csv", "surface.json"}
    assert len(rows) == 40
    assert json.loads(written["surface.json"])["objective"] == data["objective"]
    for row in rows:
        weights = [float(value) for key, value in row.items() if key.startswith("weight:")]
        assert sum(weights) == pytest.approx(1, abs=1e-6)
        assert float(row["objective:low"]) <= float(row["objective:difference"]) <= float(row["objective:high"])
    assert {int(row["items"]) for row in rows} <= {0, 120}


def test_a_band_ends_where_no_difference_can_be() -> None:
    """A category of two items among many: what is not known of it is more than it can be."""
    rng, categories = np.random.default_rng(2), np.array([0] * 60 + [1] * 2)
    values = (rng.random((len(POINTS), 62)) < 0.7).astype(float)
    values[:, 60:] = rng.random((len(POINTS), 2)) < 0.5
    fit = fit_surface(POINTS, values, categories, np.arange(62), np.array([0.5, 0.5]))
    small = fit.categories[1]
    assert (small.quantile * small.error).max() > 1
    for band in (fit.objective, *fit.categories):
        assert band.low.min() >= -1
        assert band.high.max() <= 1
        assert (band.low <= band.difference).all()
        assert (band.difference <= band.high).all()
    wider = fit_surface(POINTS, 100 * values, categories, np.arange(62), np.array([0.5, 0.5])).categories[1]
    assert wider.high.max() > 1
