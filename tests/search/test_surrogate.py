"""The surrogate's prior, what it expects of more answers, and the next request, each beside its formula in numpy.

The constants are written out: a search that runs with others takes other items.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal, norm

from souping.core.types import (
    BoolArray,
    Bound,
    FloatArray,
    IntArray,
    Item,
    ItemScores,
    SearchBounds,
    SearchSpace,
)
from souping.search import adaptive, surrogate
from souping.search.adaptive import (
    Adaptive,
    BoundModel,
    difference_variances,
    expected_improvement,
    item_samples,
    merits_of,
)
from souping.search.points import weight_grid
from souping.search.surrogate import SoupModel, draws, usual_scores

TABLE = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.2, 0.8], [0.7, 0.3]])
WEIGHTS = np.array([0.3, 0.7])
CATEGORIES = ("c0",) * 100 + ("c1",) * 30
SPACE = SearchSpace(
    ingredients=("a", "b"),
    categories=CATEGORIES,
    groups=tuple(map(str, range(130))),
    coefficients={"c0": 0.3, "c1": 0.7},
)
ANSWERED = ((1, 0, 3), (2, 0, 3), (0, 0, 2), (4, 0, 1), (1, 1, 2), (3, 1, 1))
"""(soup, category, samples) of `answered`."""


def answered() -> SoupModel:
    """A model that knows some samples; one more was requested and is not answered."""
    model = SoupModel(TABLE, item_samples(SPACE, seed=3), WEIGHTS)
    rng = np.random.default_rng(0)
    for soup, c, samples in ANSWERED:
        for b in range(samples):
            items = model.item_samples[c][b]
            model.requested[soup, c, b] = True
            rate = 0.5 + 0.2 * TABLE[soup, c]
            model.observe(soup, items.tolist(), (rng.random(len(items)) < rate).astype(float))
    model.requested[3, 0, 0] = True
    model.fit()
    return model


def fitted(model: SoupModel, c: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Level [S], noise [S, S] and signal [S, S]: candidates weighed by their likelihood and prior."""
    known = model.values[:, np.concatenate(model.item_samples[c])]
    rows = [row[np.isfinite(row)] for row in known if np.isfinite(row).sum() > 1]
    variance = max(0.02, float(np.mean([row.var(ddof=1) for row in rows])))
    mixing = 1 - (TABLE**2).sum(axis=1)
    level = np.mean([row.mean() for row in rows]) + 0.06 * mixing

    distance = cdist(TABLE, TABLE)
    linear = 0.25**2 * TABLE @ TABLE.T

    requests = np.argwhere(np.isfinite(model.score[:, c]))
    soups, samples = requests.T
    scores = model.score[soups, c, samples]
    sizes = np.array([len(model.item_samples[c][b]) for b in samples])
    same = (samples[:, None] == samples) / sizes
    probability = []
    signals = []
    correlations = []
    candidates = [(scale, 0.75) for scale in (0.2, 0.35, 0.6, 1.0, 1.6, 2.5)]
    for scale, length in (*candidates, (2.5, 0.2)):
        scaled = np.sqrt(3) * distance / length
        bend = 0.17**2 * (1 + scaled) * np.exp(-scaled)
        for shared, reach in itertools.product((0.1, 0.3, 0.5), (0.4, 1.2)):
            signal = 0.3**2 + 0.06**2 * np.outer(mixing, mixing) + scale**2 * (linear + bend)
            correlation = shared + (1 - shared) * np.exp(-distance / reach)
            pairs = np.ix_(soups, soups)
            covariance = signal[pairs] + variance * correlation[pairs] * same
            likelihood = multivariate_normal(level[soups], covariance).pdf(scores)
            probability.append(likelihood * np.exp(-0.3 * np.log(scale) ** 2))
            signals.append(signal)
            correlations.append(correlation)
    share = np.array(probability) / np.sum(probability)
    return (
        level,
        variance * np.tensordot(share, correlations, 1),
        np.tensordot(share, signals, 1),
    )


@pytest.mark.parametrize("category", [0, 1])
def test_the_prior_is_a_mixture_by_the_likelihood_of_the_answers(category: int) -> None:
    model = answered()
    level, noise, signal = fitted(model, category)
    assert model.level[category] == pytest.approx(level, rel=1e-9)
    assert model.noise[category] == pytest.approx(noise, rel=1e-4)
    assert model.signal[category] == pytest.approx(signal, rel=1e-4)


def test_without_answers_the_level_is_a_half_and_an_items_variance_a_fifth() -> None:
    model = SoupModel(TABLE, item_samples(SPACE, seed=3), WEIGHTS)
    model.fit()
    mixing = 1 - (TABLE**2).sum(axis=1)
    assert model.level[0] == pytest.approx(0.5 + 0.06 * mixing)
    assert np.diag(model.noise[0]) == pytest.approx(np.full(5, 0.2))
    assert model.surprise() == 1


def test_equal_answers_have_a_least_variance() -> None:
    model = SoupModel(TABLE, item_samples(SPACE, seed=3), WEIGHTS)
    model.request_split(1)
    model.observe(1, slice(None), np.ones(130))
    model.fit()
    assert np.diag(model.noise[1]) == pytest.approx(np.full(5, 0.02))


def test_a_likelihood_of_many_answers_does_not_overflow() -> None:
    """84 soups with four samples each have a log likelihood of some hundreds."""
    table = np.array(weight_grid(4))
    model = SoupModel(table, item_samples(SPACE, seed=3), WEIGHTS)
    rng = np.random.default_rng(0)
    for soup in range(len(table)):
        model.request_split(soup)
        model.observe(soup, slice(None), 0.6 + 0.01 * rng.standard_normal(130))
    model.fit()
    for signal in model.signal:
        assert np.isfinite(signal).all()
        assert np.diag(signal).min() > 0.3**2


def test_weights_that_do_not_sum_to_one_leave_the_rest_to_the_base() -> None:
    model = SoupModel(
        np.array([[1.0, 0.0], [0.25, 0.25], [0.9, 0.6]]), [[np.arange(9)]], np.ones(1)
    )
    assert model.table.tolist() == [[1.0, 0.0, 0.0], [0.25, 0.25, 0.5], [0.9, 0.6, -0.5]]


def test_a_linear_objective_is_the_weighted_sum_of_the_categories() -> None:
    model = answered()
    first = model.posterior(0)
    second = model.posterior(1)
    mean, covariance = model.objective()
    assert mean == pytest.approx(0.3 * first.mean + 0.7 * second.mean)
    assert covariance == pytest.approx(0.09 * first.covariance + 0.49 * second.covariance)
    assert model.slopes(np.array([3, 1])).tolist() == [[0.3, 0.7], [0.3, 0.7]]


def test_another_objective_has_the_mean_spread_and_slopes_of_its_draws() -> None:
    """Of a product of two independent means: E xy = E x E y, and its slopes are the other factor."""
    model = answered()
    model.value = lambda means: means[..., 0] * means[..., 1]
    x = model.posterior(0)
    y = model.posterior(1)
    mean, covariance = model.objective()
    variance = np.diag(x.covariance) * (y.mean**2 + np.diag(y.covariance))
    variance += x.mean**2 * np.diag(y.covariance)
    assert mean == pytest.approx(x.mean * y.mean, abs=0.02)
    assert np.diag(covariance) == pytest.approx(variance, rel=0.25)
    slopes = model.slopes(np.array([3, 1]))
    assert slopes == pytest.approx(np.stack([y.mean, x.mean], axis=1)[[3, 1]], abs=0.02)
    for c, posterior in enumerate((x, y)):
        deviations = draws(2.0 * posterior.covariance, 7, stream=c)
        drawn = model.posterior_draws(count=7, wider=2.0)
        assert drawn[..., c] == pytest.approx(posterior.mean + deviations)
    wide = model.posterior_draws(count=4000, wider=4.0)
    assert wide.shape == (4000, 5, 2)
    assert wide[..., 0].std(axis=0) == pytest.approx(2 * np.sqrt(np.diag(x.covariance)), rel=0.1)


def test_answers_that_vary_more_than_believed_are_a_factor_on_variances() -> None:
    model = answered()
    squares = 0.0
    count = 0
    for c in (0, 1):
        level = model.level[c]
        soups, samples = np.argwhere(np.isfinite(model.score[:, c])).T
        sizes = np.array([len(model.item_samples[c][b]) for b in samples])
        pairs = np.ix_(soups, soups)
        same = (samples[:, None] == samples) / sizes
        covariance = model.signal[c][pairs] + model.noise[c][pairs] * same
        residual = model.score[soups, c, samples] - level[soups]
        squares += residual @ np.linalg.solve(covariance, residual)
        count += len(residual)
    assert model.surprise() == pytest.approx((1 + squares) / (1 + count), rel=1e-4)


@pytest.mark.parametrize("soups", [np.array([4, 0, 3]), np.array([3, 0, 4]), np.array([0, 4, 3])])
@pytest.mark.parametrize("odds", [1.0, 0.5])
def test_the_gain_of_finishing_is_the_expected_larger_lead(odds: float, soups: IntArray) -> None:
    """The means will move by a normal with the covariance that the answers take away.

    Bounds may let a soup lead that others are above: their lead of now is no gain.
    """
    model = answered()
    mean, covariance = model.objective()
    finished = answered()
    for soup in soups:
        finished.request_split(soup)
    taken_away = covariance - finished.objective()[1]
    later = mean[soups] + draws(taken_away[np.ix_(soups, soups)], 512)
    chances = np.array([odds, 1.0, 1.0, odds / 2, 0.9])
    first, second, third = soups

    largest_leads = []
    for means in later:
        leads = [
            0.0,
            chances[second] * (means[1] - means[0]),
            chances[third] * (means[2] - means[0]),
        ]
        largest_leads.append(max(leads))
    now = [
        0.0,
        chances[second] * (mean[second] - mean[first]),
        chances[third] * (mean[third] - mean[first]),
    ]
    gain = model.finishing_gain(soups, chances)
    assert gain == pytest.approx(np.mean(largest_leads) - max(now))
    assert abs(gain) > 1e-4
    assert not model.requested[0].all()


def test_shares_are_those_of_the_items() -> None:
    items: BoolArray = np.zeros(130, dtype=bool)
    items[[0, 1, 99, 110]] = True
    assert answered().shares(items).tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    ("singles", "usual"),
    [
        ([[0.0, 1.0], [1.0, 0.5]], [0.0, 0.0]),
        ([[0.1, 0.9], [0.2, 0.5]], [0.0, 0.0]),
        ([[0.0, 1.1], [1.0, 0.5]], [0.5, 0.8]),
        ([[-0.1, 1.0], [0.3, 0.5]], [0.1, 0.75]),
    ],
)
def test_usual_scores_are_taken_off_where_scores_are_no_fractions(
    singles: list[list[float]], usual: list[float]
) -> None:
    assert usual_scores(np.array(singles)) == pytest.approx(usual)


# What is requested next


def random_posterior(soups: int) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(2)
    root = rng.standard_normal((soups, soups))
    return rng.standard_normal(soups), root @ root.T


@pytest.mark.parametrize("most", [3, 30])
def test_rivals_are_those_of_the_largest_expected_improvement(most: int) -> None:
    mean, covariance = random_posterior(9)
    odds = np.full(9, 0.9)
    odds[np.argmax(mean)] = 0.4
    likely = np.where(odds >= 0.5, mean, -np.inf)
    leader = int(np.argmax(likely))
    rows = []
    for soup in range(9):
        variance = (
            covariance[soup, soup] + covariance[leader, leader] - 2 * covariance[soup, leader]
        )
        if soup == leader:
            continue
        sd = np.sqrt(variance)
        z = (mean[soup] - mean[leader]) / sd
        improvement = odds[soup] * sd * (norm.pdf(z) + z * norm.cdf(z))
        rows.append((-improvement, soup, odds[soup] * norm.pdf(z) / (2 * sd)))
        assert difference_variances(covariance, leader)[soup] == pytest.approx(variance)
    rows = sorted(rows)[:most]
    found, rivals, urgency = expected_improvement(mean, covariance, most, odds)
    assert found == leader
    assert rivals.tolist() == [soup for _, soup, _ in rows]
    assert urgency == pytest.approx([value for _, _, value in rows])


def test_where_no_soup_is_likely_to_be_admissible_the_likeliest_leads() -> None:
    mean, covariance = random_posterior(4)
    odds = np.array([0.1, 0.1, 0.1, 0.1])
    odds[np.argmin(mean)] = 0.3
    assert expected_improvement(mean, covariance, 2, odds)[0] == np.argmin(mean)


@pytest.mark.parametrize("against", ["another model", "b"])
def test_the_odds_of_a_bound_are_those_of_a_normal(against: str) -> None:
    """Of the items of c0, against stored scores, or against a soup whose own score is as uncertain."""
    model = answered()
    items = tuple(
        Item(id=str(n), category=c, prompt="", answer="") for n, c in enumerate(CATEGORIES)
    )
    reference = ItemScores(items=items, values=np.r_[np.full(100, 0.62), np.zeros(30)])
    bound = Bound(name="c0", margin=0.03, categories=("c0",))
    bounds = SearchBounds(bounds=(bound,), against=against, reference=reference)
    points = [tuple(row) for row in TABLE.tolist()]
    odds = BoundModel(model, SPACE, bounds, points).odds()
    posterior = model.posterior(0)
    if against == "another model":
        difference = posterior.mean - 0.62
        variance = np.diag(posterior.covariance)
    else:
        difference = posterior.mean - posterior.mean[2]
        cov = posterior.covariance
        variance = np.maximum(np.diag(cov) + cov[2, 2] - 2 * cov[2], 1e-12)
    expected = norm.cdf((0.03 + difference) / np.sqrt(model.surprise() * variance))
    assert odds == pytest.approx(expected)
    assert 0.05 < odds[3] < 0.95


def known_space(*, batch: int, whole: bool) -> SearchSpace:
    """The search split with scores of the singles. A request takes `batch` items or more, all of them if `whole`."""
    rng = np.random.default_rng(7)
    return replace(
        SPACE,
        singles=(rng.random((2, 130)) < 0.6).astype(float),
        full_batch=batch,
        whole=whole,
    )


def told_singles(space: SearchSpace) -> SoupModel:
    """The model of TABLE's soups that knows all answers of the ingredients alone, which are soups 1 and 2."""
    model = SoupModel(TABLE, item_samples(space, seed=0), WEIGHTS, singles=space.singles)
    assert space.singles is not None
    for soup, values in zip((1, 2), space.singles, strict=True):
        model.request_split(soup)
        model.observe(soup, slice(None), values)
    model.fit()
    return model


@pytest.mark.parametrize(("batch", "whole"), [(1, False), (40, False), (1000, False), (1, True)])
def test_the_first_request_tells_most_per_item(batch: int, whole: bool) -> None:
    """Over all soups and sets of categories: the sum of cov^2 / var by urgency, over the items or a batch."""
    space = known_space(batch=batch, whole=whole)
    search = Adaptive(early_stopping=False).over(
        [tuple(row) for row in TABLE.tolist()], space, seed=0
    )
    model = told_singles(space)
    mean, covariance = model.objective()
    leader, rivals, urgency = expected_improvement(mean, covariance, 12, np.ones(5))
    worth = np.zeros((5, 2))
    for c in range(2):
        posterior = model.posterior(c)
        for rival, factor in zip(rivals, urgency, strict=True):
            cov = WEIGHTS[c] * (
                posterior.next_covariance[rival] - posterior.next_covariance[leader]
            )
            worth[:, c] += factor * cov**2 / posterior.next_variance
    ratios = {}
    for soup in (0, 3, 4):
        for categories in ((0,), (1,), (0, 1)):
            if whole and len(categories) < 2:
                continue
            chosen = list(categories)
            items = sum(len(model.item_samples[c][0]) for c in categories)
            ratios[soup, categories] = worth[soup, chosen].sum() / max(items, batch)
    soup, categories = max(ratios, key=lambda key: ratios[key])
    expected = [int(item) for c in categories for item in model.item_samples[c][0]]

    query = search.ask()
    assert query is not None
    assert query.weights == tuple(TABLE[soup])
    assert list(query.items or range(130)) == (list(range(130)) if whole else expected)


@pytest.mark.parametrize("surprise", [0.02, 1.0, 50.0])
def test_the_end_names_soups_that_may_be_as_good(
    surprise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soups whose lead is within 1.645 standard deviations of the pick's; of the singles all is known."""
    monkeypatch.setattr(SoupModel, "surprise", lambda self: surprise)
    space = known_space(batch=1, whole=False)
    search = Adaptive().over([tuple(row) for row in TABLE.tolist()], space, seed=0)
    model = told_singles(space)
    mean, covariance = model.objective()
    # A search without any request has answers of the singles alone, and picks the better one.
    pick = 1 if mean[1] > mean[2] else 2
    variance = surprise * difference_variances(covariance, pick)
    close = []
    for soup in np.argsort(-mean):
        if soup != pick and (mean[pick] - mean[soup]) / np.sqrt(variance[soup]) < 1.645:
            close.append(tuple(TABLE[soup]))
    summary = search.summary()
    assert search.best() == tuple(TABLE[pick])
    assert list(summary.indistinguishable) == close
    assert summary.indistinguishable_count == len(close)


def test_merits_are_the_ingredients_own_objectives() -> None:
    singles = np.zeros((2, 130))
    singles[0, :50] = 1
    singles[1, 100:115] = 1
    assert merits_of(replace(SPACE, singles=singles)) == pytest.approx([0.3 * 0.5, 0.7 * 0.5])
    assert merits_of(SPACE) is None


@pytest.mark.parametrize(
    ("optimiser", "size", "items", "expected"),
    [
        # 7 x 3^0.75 x 1000^0.8 = 4008 of 40 soups; twice that at most
        (Adaptive(), 3, 1000, (4008, 8016)),
        (Adaptive(max_items=5000), 3, 1000, (4008, 5000)),
        (Adaptive(max_items=3000), 3, 1000, (3000, 3000)),
        (Adaptive(early_stopping=False), 2, 100, (1100, 1100)),
        (Adaptive(), 2, 10, (74, 110)),
    ],
)
def test_the_items_that_a_search_takes(
    optimiser: Adaptive, size: int, items: int, expected: tuple[int, int]
) -> None:
    assert optimiser.workload(size, items) == expected


def test_samples_are_cut_where_groups_end_nearest_to_an_eighth_a_quarter_and_a_half() -> None:
    """Of 100 items 12, 25 and 50; in groups of 8: 16 and 48 of 104, as 8 is below the least sample."""
    alone = replace(
        SPACE, categories=("c",) * 100, groups=tuple(map(str, range(100))), coefficients={"c": 1.0}
    )
    sizes = [len(sample) for sample in item_samples(alone, seed=0)[0]]
    assert sizes == [12, 13, 25, 50]
    groups = tuple(str(n // 8) for n in range(104))
    grouped = replace(alone, categories=("c",) * 104, groups=groups)
    assert [len(sample) for sample in item_samples(grouped, seed=0)[0]] == [16, 8, 24, 56]
    short = replace(alone, categories=("c",) * 23, groups=tuple(map(str, range(23))))
    assert [len(sample) for sample in item_samples(short, seed=0)[0]] == [23]
    longer = replace(alone, categories=("c",) * 24, groups=tuple(map(str, range(24))))
    assert [len(sample) for sample in item_samples(longer, seed=0)[0]] == [12, 12]


def test_unrequested_items_are_those_of_the_samples_without_a_request() -> None:
    model = answered()
    for soup in range(len(TABLE)):
        requested = {(c, b) for own, c, count in ANSWERED if own == soup for b in range(count)}
        if soup == 3:
            requested.add((0, 0))
        expected = [
            item
            for c, samples in enumerate(model.item_samples)
            for b, items in enumerate(samples)
            if (c, b) not in requested
            for item in items.tolist()
        ]
        assert model.unrequested_items(soup) == expected
        model.request_split(soup)
        assert model.unrequested_items(soup) == []


def test_the_numbers_that_a_search_rests_on_are_those_of_earlier_ones() -> None:
    """With others, a search that is repeated from its store would take another path."""
    samples = (adaptive.FIRST_SAMPLE, adaptive.MOST_SAMPLES, adaptive.RIVALS, adaptive.FINALISTS)
    assert samples == (12, 4, 12, 3)
    ends = (adaptive.ENOUGH_GAIN, adaptive.GROWTH, adaptive.LISTED_SOUPS, adaptive.ONE_SIDED_95)
    assert ends == (0.001, 1.6, 20, 1.645)
    assert (adaptive.LIKELY, adaptive.TINY, adaptive.MOST_SOUPS) == (0.5, 1e-12, 240)
    points = (adaptive.LARGEST_GRID, adaptive.MANY, adaptive.FADING)
    assert points == (5000, 6, 0.85)
    assert (adaptive.USUAL, adaptive.UPPER_ESTIMATE) == ((7.0, 0.75, 0.8), 2)
    assert (surrogate.LEVEL_SD, surrogate.PLANE_SD, surrogate.BEND_SD) == (0.3, 0.25, 0.17)
    levels = (surrogate.RISE, surrogate.UNKNOWN_LEVEL, surrogate.UNKNOWN_NOISE)
    assert levels == (0.06, 0.5, 0.2)
    assert (surrogate.LEAST_NOISE, surrogate.SCALE_PRIOR, surrogate.JITTER) == (0.02, 0.3, 1e-9)
    assert surrogate.SCALES == (0.2, 0.35, 0.6, 1.0, 1.6, 2.5, 2.5)
    assert surrogate.BEND_LENGTHS == (0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.2)
    assert (surrogate.SHARED_CORRELATIONS, surrogate.REACH) == ((0.1, 0.3, 0.5), (0.4, 1.2))
    assert (surrogate.POSTERIOR_DRAWS, surrogate.SLOPE_STEP) == (512, 1e-6)


def test_two_answers_show_a_variance_and_one_does_not() -> None:
    """Of one soup: 0 and 1 have the mean 0.5 and the variance 0.5; another soup's single answer says nothing."""
    model = SoupModel(TABLE, [[np.arange(1), np.arange(1, 2)]], np.ones(1))
    model.requested[1] = True
    model.observe(1, slice(None), np.array([0.0, 1.0]))
    model.observe(2, [0], np.array([1.0]))
    model.fit()
    assert np.diag(model.noise[0]) == pytest.approx(np.full(5, 0.5))
    assert model.level[0][1] == pytest.approx(0.5)


def test_of_equal_soups_the_one_of_fewer_ingredients_is_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = [(0.5, 0.5), (0.0, 1.0), (1.0, 0.0)]
    search = Adaptive().over(points, known_space(batch=1, whole=False), seed=0)
    monkeypatch.setattr(SoupModel, "objective", lambda self: (np.zeros(3), np.eye(3)))
    assert search.best() == (0.0, 1.0)
    equal = np.array([1e-10, 0.0, 0.0])
    monkeypatch.setattr(SoupModel, "objective", lambda self: (equal, np.eye(3)))
    assert search.best() == (0.0, 1.0)
