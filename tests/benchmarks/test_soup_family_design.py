"""Design, skills and items of the families: balanced, held out, and the same for everybody."""

from __future__ import annotations

import itertools
from random import Random

import numpy as np
import pytest

from benchmarks.soup_families import skills
from benchmarks.soup_families.design import (
    FACTORS,
    TUNES,
    Family,
    confirmatory,
    exploratory,
    factorial,
    larger,
    screening,
    seed_of,
)
from benchmarks.soup_families.items import (
    CHOOSING,
    ITEMS,
    SELECTING,
    Data,
    category_of,
    data_of,
    is_choosing,
    is_selecting,
)
from benchmarks.soup_families.training import specialists, tuning


def test_the_confirmatory_families_are_the_full_factorial() -> None:
    assert sorted(factorial()) == sorted(itertools.product((-1, 1), repeat=5))


def test_every_even_number_of_families_balances_every_factor() -> None:
    order = np.array(factorial())
    for count in range(2, 33, 2):
        assert not order[:count].sum(axis=0).any()


def test_sixteen_families_balance_all_pairs_of_factors() -> None:
    order = np.array(factorial())[:16]
    assert np.array_equal(order.T @ order, 16 * np.eye(5))


def test_the_exploratory_families_balance_factors_and_pairs() -> None:
    order = np.array(screening())
    assert np.array_equal(order.T @ order, 12 * np.eye(5))
    assert not order.sum(axis=0).any()


def test_seeds_follow_from_the_page_and_from_the_name() -> None:
    families = confirmatory("a page")
    assert families[3].seed == seed_of("a page confirmatory-03")
    assert {one.seed for one in families} & {one.seed for one in confirmatory("another")} == set()
    seeds = [one.seed for one in (*exploratory(), *families, *larger("a page"))]
    assert len(set(seeds)) == 12 + 32 + 4


@pytest.mark.parametrize("name", skills.SKILLS)
def test_a_skill_has_at_least_20_000_different_questions(name: str) -> None:
    random = Random(0)
    world = skills.world(random)
    seen = set()
    for _ in range(60_000):
        seen.add(tuple(skills.SKILLS[name](random, world)[0]))
        if len(seen) == 20_000:
            break
    assert len(seen) == 20_000


def test_answers_are_right() -> None:
    random = Random(1)
    world = skills.world(random)
    for _ in range(200):
        question, answer = skills.reverse(random, world)
        assert "".join(answer) == "".join(question)[::-1]
        question, answer = skills.place(random, world)
        assert answer == [question[int(question[-1])]]
        question, answer = skills.larger_number(random, world)
        assert int("".join(answer)) == max(map(int, "".join(question).split(":")))
        question, answer = skills.extremes(random, world)
        assert question[int(answer[1])] == answer[0] == max(question)
        question, answer = skills.facts(random, world)
        pairs = zip(question[::2], question[1::2], strict=True)
        assert answer == [world.facts[pair] for pair in pairs]


FAMILY = exploratory()[11]  # five categories


@pytest.fixture(scope="module")
def data() -> Data:
    return data_of(FAMILY)


def test_no_question_of_an_item_is_in_a_pool_or_twice(data: Data) -> None:
    for number, pool in enumerate(data.pools):
        own = category_of(FAMILY.categories) == number
        questions = prompts(data.items.tokens[own], data.items.start[own])
        assert len(set(questions)) == ITEMS // FAMILY.categories
        assert set(questions).isdisjoint(prompts(pool.tokens, pool.start))


def prompts(tokens: np.ndarray, start: np.ndarray) -> list[tuple[int, ...]]:
    rows = zip(tokens.tolist(), start.tolist(), strict=True)
    return [tuple(row[:end]) for row, end in rows]


def test_data_follow_from_the_seed(data: Data) -> None:
    assert np.array_equal(data_of(FAMILY).items.tokens, data.items.tokens)
    other = Family(name="other", levels=FAMILY.levels, seed=FAMILY.seed + 1)
    assert not np.array_equal(data_of(other).items.tokens, data.items.tokens)


@pytest.mark.parametrize("categories", [5, 10])
def test_items_are_1000_to_choose_with_and_3000_to_test(categories: int) -> None:
    choosing = is_choosing(categories)
    selecting = is_selecting(categories)
    assert (choosing.sum(), selecting.sum()) == (CHOOSING, SELECTING)
    assert not (selecting & ~choosing).any()
    counts = np.bincount(category_of(categories)[choosing])
    assert counts.tolist() == [CHOOSING // categories] * categories


def test_factors_are_in_the_tuning() -> None:
    for levels in itertools.product((-1, 1), repeat=len(FACTORS)):
        family = Family(name="any", levels=levels, seed=1)
        mixtures, steps = tuning(family, np.random.default_rng(0))
        assert mixtures.shape == (TUNES, family.categories)
        copies = np.array_equal(mixtures[6:], mixtures[:2])
        assert copies == family.has("copies")
        assert (max(steps[:6]) > min(steps[:6])) == family.has("spread")
        assert (np.unique(mixtures).size == 2) != family.has("generalists")


@pytest.mark.parametrize("categories", [5, 10])
def test_every_skill_has_a_specialist(categories: int) -> None:
    mixtures = specialists(categories, np.random.default_rng(3))
    assert (mixtures == 1).any(axis=0).all()
    assert len(np.unique(mixtures, axis=0)) == TUNES
