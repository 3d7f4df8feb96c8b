"""The adaptive search: budgets, samples, finalists and odd tables; its posterior beside the textbook's formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import pytest

from benchmarks.published_soups.recorded_search import search_path
from souping.core.types import (
    Bound,
    FloatArray,
    Item,
    ItemScores,
    Query,
    Result,
    SearchBounds,
    SearchSpace,
    Weights,
)
from souping.search import points as simplex
from souping.search.adaptive import ENOUGH_GAIN, Adaptive, item_samples, merits_of
from souping.search.points import Grid, anchors
from souping.search.surrogate import SoupModel, draws
from tests.conftest import ROOT
from tests.support.choices import slow_unless
from tests.support.scripts import script
from tests.support.worlds import World, price, searched, world

PLAIN = Adaptive(early_stopping=False)


@pytest.mark.parametrize(
    ("budget", "opened", "known"),
    [(120, 1, False), (130, 1, True), (300, 4, True), (1000, 4, True), (800, 1, False)],
)
def test_a_budget_is_kept_and_the_winner_answered_the_whole_split(
    budget: int, opened: int, known: bool
) -> None:
    of = world()
    search = replace(PLAIN, max_items=budget).start(
        of.space if known else replace(of.space, singles=None), 1
    )
    asked = searched(search, of, opened)
    assert price(asked, of) <= budget
    best = price([query for query in asked if query.weights == search.best()], of)
    assert (known and search.best() in of.points[1:4]) or best == 120


def test_no_item_is_asked_twice_of_a_soup_and_every_prefix_is_nested() -> None:
    of = world()
    orders: dict[tuple[float, ...], list[int]] = {}
    for query in searched(replace(PLAIN, max_items=1500).start(of.space, 1), of):
        orders.setdefault(query.weights, []).extend(query.items or range(120))
    assert all(len(items) == len(set(items)) for items in orders.values())
    for category in ("c0", "c1", "c2"):
        inside = {i for i, name in enumerate(of.space.categories) if name == category}
        rows = sorted((inside & set(items) for items in orders.values()), key=len)
        assert all(short <= rows[-1] for short in rows)
        assert rows[-1], "no category starves"


@pytest.mark.parametrize("opened", [1, 8])
def test_adaptive_finds_what_the_grid_finds_for_a_quarter_of_the_items(opened: int) -> None:
    lost = []
    for seed in range(12):
        of = world(seed)
        search = replace(PLAIN, max_items=round(0.25 * of.values.size)).start(of.space, seed)
        searched(search, of, opened)
        lost.append(of.truth.max() - of.score(search.best()))
    assert np.mean(lost) < 0.03


@pytest.mark.parametrize("seed", [0, 1])
def test_a_peak_between_a_single_model_and_the_next_soups_is_found(seed: int) -> None:
    """Three categories jump between the first two points, and five fall: the second point is 6 points ahead."""
    falling = [70, 68, 52, 42, 36, 32, 28, 26, 24, 22, 20]
    jumping = [40, 95, 98, *[99] * 8]
    path = np.array([falling] * 5 + [jumping] * 3, dtype=float).T
    assert search_path(path, 400, seed).search == 0


def test_the_stop_rule_ends_a_search_early_and_says_why() -> None:
    of = world()
    search = Adaptive().start(of.space, 0)
    assert price(searched(search, of), of) < 0.5 * of.values.size
    summary = search.summary()
    assert summary.stopped.gain is not None
    assert 0 <= summary.stopped.gain < ENOUGH_GAIN
    assert 0 <= summary.indistinguishable_count < len(of.points)
    assert summary.finishing_gain >= 0


def test_whole_splits_are_asked_where_parts_may_not_be() -> None:
    of = world(whole=True)
    search = replace(PLAIN, max_items=900).start(of.space, 0)
    asked = searched(search, of)
    assert {query.items for query in asked} == {None}
    assert len(asked) == len({query.weights for query in asked}) <= 7
    search.best()


def test_batches_are_no_smaller_than_the_evaluators() -> None:
    of = world()
    optimiser = replace(PLAIN, max_items=1000)
    small = searched(optimiser.start(of.space, 0), of)
    large = searched(optimiser.start(replace(of.space, full_batch=60), 0), of)
    assert np.median([price([query], of) for query in small]) < np.median(
        [price([query], of) for query in large]
    )


@pytest.mark.parametrize("opened", [1, 4])
@pytest.mark.parametrize("min_items", [1, 30, 50, 70, 500])
def test_a_request_has_the_least_number_of_items_or_the_whole_split(
    min_items: int, opened: int
) -> None:
    """A soup answers each item once."""
    of = world()
    space = replace(of.space, min_items=min_items)
    queries = searched(replace(PLAIN, max_items=2000).start(space, 1), of, opened)
    items: dict[Weights, list[int]] = {}
    for query in queries:
        assert price([query], of) >= min(min_items, of.split)
        items.setdefault(query.weights, []).extend(query.items or range(of.split))
    for numbers in items.values():
        assert len(numbers) == len(set(numbers))
    if min_items == 1:
        assert min(price([query], of) for query in queries) < 30
    if min_items == 70:
        assert {query.items for query in queries} == {None}


@pytest.mark.parametrize(
    ("step", "size"), [(0.1, 6), (0.1, 50), (0.05, 6), pytest.param(0.5, 7, marks=pytest.mark.slow)]
)
def test_many_ingredients_are_searched_by_soups_of_a_few_of_them(step: float, size: int) -> None:
    space = SearchSpace(
        ingredients=tuple(map(str, range(size))), categories=("a", "a", "b"), groups=("1", "2", "3"),
        coefficients={"a": 0.5, "b": 0.5}, singles=np.linspace(0, 1, 3 * size).reshape(size, 3).clip(0.1, 0.9),
    )  # fmt: skip
    points = Adaptive(step=step).points(size, merits_of(space))
    assert points == Adaptive(step=step).points(size, merits_of(space))
    assert points[: size + 1] == anchors(size)
    assert len(set(points)) == len(points) <= 240
    assert all(sum(point) == pytest.approx(1) and min(point) >= 0 for point in points)
    assert f"{len(points)} possible soups" in Adaptive(step=step).describe(size)
    sparse = [point for point in points[size + 1 :] if 0 in point]
    assert len(sparse) >= size
    if size == 50:  # the better singles are the later ones here
        assert np.mean([np.mean(np.flatnonzero(point)) for point in sparse]) > 35
    assert Adaptive(step=step).start(space, 0).ask() is not None
    for few in (2, 3, 4, 5):
        assert set(Adaptive().points(few)) == set(Grid().known_points(few))


four_categories = partial(world, items=360, shares=(0.25,) * 4, split=0.5, full_batch=16)
SHAPES: dict[str, Callable[[int], World]] = {
    "sixty items": partial(four_categories, items=180, split=1 / 3),
    "two ingredients": partial(four_categories, size=2),
    "six ingredients": partial(four_categories, size=6, items=120),
    "one category": partial(four_categories, shares=(1.0,)),
    "thirty categories": partial(four_categories, shares=(1 / 30,) * 30),
    "lopsided categories": partial(four_categories, shares=(0.9, 0.08, 0.01, 0.01)),
    "groups of twenty": partial(four_categories, group=20, shares=(0.5, 0.5)),
    "a category that all pass": partial(four_categories, even=True),
}


@pytest.mark.parametrize(
    "name", slow_unless(SHAPES.keys() - {"six ingredients", "thirty categories"}, SHAPES)
)
@pytest.mark.slow
def test_part_of_the_grid_finds_better_than_chance(name: str) -> None:
    lost = []
    chance = []
    for seed in range(5):
        of = SHAPES[name](seed)
        budget = round((0.1 if name == "six ingredients" else 0.25) * len(of.points) * of.split)
        search = replace(PLAIN, max_items=budget).over(of.points, of.space, seed)
        assert price(searched(search, of), of) <= budget
        assert 0 <= search.summary().indistinguishable_count < len(of.points)
        lost.append(of.truth.max() - of.score(search.best()))
        chance.append((of.truth.max() - of.truth).mean())
    assert np.mean(lost) < 0.75 * np.mean(chance)


def test_a_pick_is_scored_on_groups_that_its_search_never_saw() -> None:
    tables = script(ROOT / "benchmarks" / "search_tables.py")
    points = np.array([*np.eye(3), *simplex.weight_grid(3, 0.2)])
    right = np.random.default_rng(0).integers(0, 2, (len(points), 90))
    of = tables.TruthTable("t", right.astype(float), np.arange(90) % 3, np.arange(90) // 4, points)
    sim = tables.Simulation(of, 3, 30)
    assert not set(of.group[sim.split]) & set(of.group[sim.outside])
    assert set(of.group[sim.split]) | set(of.group[sim.outside]) == set(of.group)
    means = np.mean(
        [right[:, sim.outside[of.cat[sim.outside] == c]].mean(1) for c in range(3)], axis=0
    )
    assert sim.regret(int(means.argmax())) == 0
    assert sim.regret(4) == pytest.approx(100 * (means.max() - means[4]))


TABLE = np.array([[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.0, 1.0]])


def space(counts: tuple[int, ...], group: int = 1) -> SearchSpace:
    categories = tuple(f"c{c}" for c, n in enumerate(counts) for _ in range(n))
    groups = tuple(f"g{i // group}" for i in range(len(categories)))
    weights = {f"c{c}": 1 / len(counts) for c in range(len(counts))}
    return SearchSpace(
        ingredients=("a", "b"), categories=categories, groups=groups, coefficients=weights
    )


def fresh(counts: tuple[int, ...], seed: int = 0) -> SoupModel:
    return SoupModel(
        TABLE, item_samples(space(counts), seed), np.full(len(counts), 1 / len(counts))
    )


def model(
    asked: tuple[tuple[int, int], ...], counts: tuple[int, ...] = (96, 24), seed: int = 0
) -> SoupModel:
    """A model that was told the next sample of a category of a soup, for each (soup, category)."""
    made = fresh(counts, seed)
    rng = np.random.default_rng(seed)
    for soup, category in asked:
        number = made.unrequested[soup, category].argmax()
        sample = made.item_samples[category][number]
        made.requested[soup, category, number] = True
        made.observe(soup, sample.tolist(), (rng.random(len(sample)) < 0.6).astype(float))
    made.fit()
    return made


ASKED = ((0, 0), (0, 0), (2, 0), (3, 0), (3, 1))


def brute(made: SoupModel, c: int) -> tuple[FloatArray, FloatArray, float]:
    """Mean [S] and covariance [S, S] of a category by the formulas of a Gaussian process, one query after another, and
    how far the answers lie from what was expected (Mahalanobis, squared)."""
    # Soup and sample of each answer.
    s, b = np.argwhere(made.requested[:, c]).T
    signal = made.signal[c]
    noise = made.noise[c]
    level = made.level[c]
    sizes = np.array([len(sample) for sample in made.item_samples[c]])
    # Soups share the noise of a sample.
    shared = b[:, None] == b
    joint = signal[np.ix_(s, s)] + shared * noise[np.ix_(s, s)] / sizes[b]
    cross = signal[:, s]
    shift = np.zeros(len(s))
    for number, (soup, sample) in enumerate(zip(s, b, strict=True)):
        items = made.item_samples[c][sample]
        shift[number] = made.values[soup, items].mean() - level[soup]
    gain = cross @ np.linalg.inv(joint)
    return (
        level + gain @ shift,
        signal - gain @ cross.T,
        float(shift @ np.linalg.solve(joint, shift)),
    )


@pytest.mark.parametrize("category", [0, 1])
def test_the_posterior_is_the_textbooks(category: int) -> None:
    made = model(ASKED)
    mean, cov, surprise = brute(made, category)
    found = made.posterior(category)
    assert found.mean == pytest.approx(mean, abs=1e-6)
    assert found.covariance == pytest.approx(cov, abs=1e-6)
    assert found.surprise == pytest.approx([surprise, made.requested[:, category].sum()], rel=1e-4)


def test_the_next_sample_takes_away_what_its_covariance_says() -> None:
    made = model(ASKED)
    _, before, cross, spread, _ = made.posterior(0)
    made.requested[2, 0, 1] = True  # asked, not answered: variances shrink, means stay
    mean, after, *_ = made.posterior(0)
    assert before - after == pytest.approx(np.outer(cross[:, 2], cross[:, 2]) / spread[2], abs=1e-9)
    assert mean == pytest.approx(brute(model(ASKED), 0)[0], abs=1e-6)


def test_shared_items_make_a_difference_sharp() -> None:
    gaps = []
    for sample in (0, 1):
        made = fresh((96, 24))
        made.fit()
        made.requested[1, 0, 0] = made.requested[2, 0, sample] = True
        made.score[1, 0, 0] = made.score[2, 0, sample] = 0.6
        cov = made.posterior(0).covariance
        gaps.append(cov[1, 1] + cov[2, 2] - 2 * cov[1, 2])
    assert 0 < gaps[0] < gaps[1]


def test_finishing_a_finished_split_gains_nothing() -> None:
    made = model(ASKED)
    asked = made.requested.copy()
    assert made.finishing_gain(np.argsort(-made.objective()[0])) > 0.005
    assert (made.requested == asked).all()
    for soup in range(4):
        made.request_split(soup)
        made.observe(soup, slice(None), np.full(120, 0.6))  # type: ignore[arg-type]
    assert made.finishing_gain(np.argsort(-made.objective()[0])) == pytest.approx(0, abs=1e-9)


def test_draws_have_the_covariance_and_are_always_the_same() -> None:
    root = np.random.default_rng(1).standard_normal((3, 3))
    sample = draws(root @ root.T, 20_000)
    assert np.cov(sample.T) == pytest.approx(root @ root.T, abs=0.15)
    assert (draws(root @ root.T, 20_000) == sample).all()


@pytest.mark.parametrize("counts", [(1, 1), (3, 30), (100, 7, 12), (400, 400)])
def test_samples_partition_each_category_and_double(counts: tuple[int, ...]) -> None:
    rows = item_samples(space(counts), seed=4)
    assert sorted(int(i) for row in rows for sample in row for i in sample) == list(
        range(sum(counts))
    )
    for row, count in zip(rows, counts, strict=True):
        sizes = [len(sample) for sample in row]
        assert sum(sizes) == count
        assert len(sizes) <= 4
        assert all(abs(size - sum(sizes[:n])) <= 1 for n, size in enumerate(sizes) if n)


def test_groups_stay_in_one_sample_and_the_seed_decides_the_order() -> None:
    of = space((60, 60), group=3)
    for first, second, *_ in item_samples(of, seed=1):
        assert not {of.groups[item] for item in first} & {of.groups[item] for item in second}

    def order(seed: int) -> list[int]:
        samples = chain(*item_samples(of, seed))
        return [int(item) for item in np.concatenate([*samples])]

    assert order(1) == order(1) != order(2)


def test_the_worst_category_of_losses_is_that_of_the_highest_loss() -> None:
    """Texts differ more than soups; what is taken from each item's score is put back before the minimum is taken."""
    rng = np.random.default_rng(4)
    points = Adaptive().points(2)
    texts = rng.random(80) + np.repeat([1.0, 1.3], 40)
    samples = [[np.arange(40)], [np.arange(40, 80)]]
    losses = texts + 0.2 * np.array([np.repeat(point, 40) for point in points])
    singles = -2 * losses[[points.index(corner) for corner in simplex.vertices(2)]]
    model = SoupModel(
        np.array(points),
        samples,
        np.full(2, 0.5),
        value=lambda means: means.min(-1),
        singles=singles,
    )
    for number, row in enumerate(-2 * losses):
        model.observe(number, slice(None), row)
    model.requested[:] = True
    model.fit()
    found = model.objective()[0]
    worst = -2 * np.stack([losses[:, :40].mean(1), losses[:, 40:].mean(1)]).max(0)
    assert found == pytest.approx(worst, abs=0.03)
    assert points[int(found.argmax())] == (1.0, 0.0)


@dataclass(frozen=True)
class LongFirst(World):
    """The first ingredient alone is always right, and its answers are ten times as long."""

    def answer(self, query: Query) -> Result:
        tokens = np.full(self.split, 1000.0 if query.weights[0] == 1 else 100.0)
        lengths = tokens if query.items is None else tokens[list(query.items)]
        return replace(super().answer(query), lengths=lengths)


def bounded_world(seed: int) -> LongFirst:
    """With a bound on the length, against the second ingredient."""
    of = world(seed)
    values = of.values.copy()
    values[1] = 1.0
    items = tuple(
        Item(id=str(n), category=name, prompt="", answer="")
        for n, name in enumerate(of.space.categories)
    )
    bounds = SearchBounds(
        bounds=(Bound(name="tokens", margin=0.1, lengths=True),),
        against="",
        reference=ItemScores(items=items, values=values[2], lengths=np.full(of.split, 100.0)),
    )
    space = replace(
        of.space,
        singles=values[1:4],
        lengths=np.array([[1000.0], [100.0], [100.0]]) * np.ones(of.split),
        bounds=bounds,
    )
    return LongFirst(points=of.points, values=values, categories=of.categories, space=space)


def test_the_gain_of_more_answers_is_over_a_leader_that_keeps_to_the_bounds() -> None:
    of = bounded_world(0)
    search = replace(PLAIN, max_items=200).start(of.space, 0)
    searched(search, of)
    assert search.best() != of.points[1]
    assert search.summary().finishing_gain > 0.001


def test_a_bound_on_lengths_is_kept_though_no_single_model_is_known() -> None:
    of = bounded_world(1)
    space = replace(of.space, singles=None, lengths=None)
    search = replace(PLAIN, max_items=1500).start(space, 0)
    asked = searched(search, of)
    assert of.points[1] in {query.weights for query in asked}
    assert search.best() != of.points[1]


def test_scales_search_beyond_the_models_around_their_base() -> None:
    scaled = Adaptive(scales=[0.5, 1.5])
    points = scaled.points(2)
    assert {round(sum(point), 9) for point in points} == {0.5, 1.0, 1.5}
    assert points[:3] == anchors(2)
    assert all(len(np.flatnonzero(point)) > 1 for point in points if abs(sum(point) - 1) > 1e-9)
    assert len(set(points)) == len(points)
    table = np.array(points)
    categories = np.repeat([0, 1], 60)
    rng = np.random.default_rng(5)
    skill = 0.4 + 0.3 * table.sum(1)  # the farther from the base, the better
    values = (rng.random((len(points), 120)) < skill[:, None]).astype(float)
    space = SearchSpace(
        ingredients=("x", "y"),
        categories=tuple(f"c{c}" for c in categories),
        groups=tuple(map(str, range(120))),
        coefficients={"c0": 0.5, "c1": 0.5},
        singles=values[1:3],
    )
    search = scaled.start(space, 0)
    while (query := search.ask()) is not None:
        row = values[points.index(query.weights)]
        row = row if query.items is None else row[list(query.items)]
        search.tell(
            query, Result(objective=float(row.mean()), categories={}, items=len(row), values=row)
        )
    assert sum(search.best()) == pytest.approx(1.5)
