"""Tables of scores: what missing and truncated answers could have been."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from souping.core.scores import Mean, WorstCategory
from souping.core.types import Item, ItemScores
from souping.statistics.score_table import (
    Answers,
    ItemTable,
    ModelScores,
    ScoreTable,
    group_numbers,
    joined,
    one_category,
    span,
    without_rounding,
)

ITEMS = tuple(Item(id=str(n), category="c", prompt=str(n), answer="") for n in range(4))


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([0.0, 0.5, 1.0], (0.0, 1.0)),
        ([0.0, 2.0], (-math.inf, math.inf)),
        ([-0.1, 1.0], (-math.inf, math.inf)),
    ],
)
def test_only_scores_from_0_to_1_have_limits(
    values: list[float], limits: tuple[float, float]
) -> None:
    assert span(np.array(values)) == limits


def test_a_truncated_answer_may_be_worth_nothing_or_all() -> None:
    scores = ItemScores(
        items=ITEMS,
        values=np.array([1.0, 0.75, 0.0, 0.5]),
        truncated=np.array([0.0, 0.5, 1.0, 0.0]),
    )
    table = ItemTable.of(ITEMS, Mean())
    answers = ScoreTable.measured(table, {"m": scores}, truncated=True).answers["m"]
    assert answers.lowest.tolist() == [[1.0, 0.25, 0.0, 0.5]]
    assert answers.highest.tolist() == [[1.0, 0.75, 1.0, 0.5]]


THREE = ItemTable(
    names=("x", "y", "z"),
    categories=np.array([0, 0, 1, 1, 1, 2]),
    groups=np.array([0, 0, 1, 2, 2, 3]),
    coefficients=np.array([0.5, 0.3, 0.2]),
    ranges=np.array([1.0, 2.0, 4.0]),
)


def test_items_are_numbered_by_the_first_appearance_of_their_category() -> None:
    items = [
        Item(id=str(n), category=c, prompt="", answer="", group=g)
        for n, (c, g) in enumerate([("b", "q"), ("a", "p"), ("b", "p"), ("c", "r")])
    ]
    table = ItemTable.of(items, Mean())
    assert table.names == ("b", "a", "c")
    assert table.categories.tolist() == [0, 1, 0, 2]
    assert table.groups.tolist() == [1, 0, 0, 2]
    assert table.coefficients == pytest.approx([1 / 3] * 3)
    assert group_numbers(["z", "a", "z"]).tolist() == [1, 0, 1]


def test_a_part_of_the_items_has_the_weights_of_what_is_left() -> None:
    part = THREE.at(np.array([True, True, False, False, False, True]))
    assert (part.names, part.categories.tolist()) == (("x", "z"), [0, 0, 1])
    assert part.coefficients == pytest.approx([5 / 7, 2 / 7])
    assert part.groups.tolist() == [0, 0, 3]
    assert part.ranges is not None
    assert part.ranges.tolist() == [1.0, 4.0]
    assert THREE.at(np.ones(6, bool)) is THREE
    alone = THREE.alone(1)
    assert (alone.names, alone.groups.tolist()) == (("y",), [1, 2, 2])
    assert alone.coefficients.tolist() == [1.0]
    assert alone.ranges is not None
    assert alone.ranges.tolist() == [2.0]


def test_an_objective_is_the_weighted_sum_of_category_means() -> None:
    values = np.array([[1.0, 0.0, 0.5, 0.5, 1.0, 0.25], [0.0, 0.0, 1.0, 0.5, 1.0, 0.75]])
    mean = values.mean(axis=0)
    expected = 0.5 * mean[:2].mean() + 0.3 * mean[2:5].mean() + 0.2 * mean[5]
    assert THREE.mean(values) == pytest.approx(expected)
    assert THREE.score(mean) == pytest.approx(expected)
    assert THREE.item_weights == pytest.approx([0.25, 0.25, 0.1, 0.1, 0.1, 0.2])
    assert float(THREE.item_weights @ mean) == pytest.approx(expected)
    worst = ItemTable.of(ITEMS, WorstCategory())
    assert worst.score(np.array([1.0, 0.5, 0.0, 0.5])) == pytest.approx(0.5)


def test_a_category_without_weight_counts_for_an_objective_that_is_not_linear() -> None:
    table = ItemTable(
        names=("x", "y"),
        categories=np.array([0, 0, 1]),
        groups=np.arange(3),
        coefficients=np.array([1.0, 0.0]),
        value=lambda means: means.min(axis=-1),
    )
    assert table.score(np.array([1.0, 0.5, 0.25])) == pytest.approx(0.25)


def test_the_scores_of_one_model_may_be_taken_without_their_groups() -> None:
    scores = ModelScores(items=THREE, values=np.array([1.0, 0.0, 0.5, 0.5, 1.0, 0.25]))
    assert (len(scores.grouped.sums), len(scores.ungrouped.sums)) == (4, 6)
    assert scores.grouped.objective == pytest.approx(scores.ungrouped.objective)
    assert scores.span == (0.0, 1.0)
    assert scores.alone(1).values.tolist() == [0.5, 0.5, 1.0]
    assert scores.alone(1).grouped.objective == pytest.approx(2 / 3)


HALF_MISSING = Answers.of(np.array([0.5, 1.0, 0.0]), missing=np.array([0.25, 0.5, 0.0]), noise=0.1)
"""Scores of three items, of which a quarter and a half of the answers are missing for the first two."""


def test_missing_answers_are_between_wrong_and_right() -> None:
    answers = HALF_MISSING
    assert answers.counted.tolist() == answers.lowest.tolist() == [[0.5, 1.0, 0.0]]
    assert answers.highest.tolist() == [[0.75, 1.0, 0.0]]
    assert answers.missing == 1
    assert answers.noise.tolist() == [[0.1] * 3]
    assert answers.filled(right=True).counted.tolist() == [[0.75, 1.0, 0.0]]
    assert answers.filled(right=False).highest.tolist() == [[0.5, 1.0, 0.0]]
    assert answers.filled(right=True).missing == 0
    assert Answers.of(np.array([2.0])).highest.tolist() == [[2.0]]
    assert np.isnan(Answers.of(np.array([2.0])).noise).all()


def test_answers_of_a_part_and_of_both_parts_keep_their_limits() -> None:
    answers = HALF_MISSING
    place = np.array([False, True, True])
    assert answers.at(place).highest.tolist() == [[1.0, 0.0]]
    both = joined([answers, answers.at(place)])
    assert both.highest.tolist() == [[0.75, 1.0, 0.0, 1.0, 0.0]]
    assert both.noise.shape == both.counted.shape == both.lowest.shape == (1, 5)


def test_answers_that_were_left_out_are_wrong_once_they_count() -> None:
    left_out = Answers(
        counted=np.array([[np.nan, 1.0]]),
        lowest=np.array([[0.0, 1.0]]),
        highest=np.array([[1.0, 1.0]]),
        noise=np.zeros((1, 2)),
    )
    assert left_out.as_counted().counted.tolist() == [[0.0, 1.0]]
    assert left_out.as_counted().missing == 0


def test_missing_scores_without_limits_are_as_counted() -> None:
    unanswered = np.array([1.0, 0.0, 0.0, 0.0])
    table = ItemTable.of(ITEMS, Mean())
    for values, missing in (([0.0, 1.0, 0.5, 1.0], 1), ([0.0, 2.0, 0.5, 1.0], 0)):
        scores = ItemScores(items=ITEMS, values=np.array(values), unanswered=unanswered)
        plain = ItemScores(items=ITEMS, values=np.array([0.0, 1.0, 1.0, 1.0]))
        made = ScoreTable.measured(table, {"m": scores, "n": plain})
        assert (made.missing("m"), made.missing("n"), made.missing("m", "n")) == (
            missing,
            0,
            missing,
        )


def two(m: list[list[float]], n: list[list[float]]) -> ScoreTable:
    """Scores of two models [R, I] on the six items of THREE, whose ranges are then those of the scores."""
    plain = replace(THREE, ranges=None)
    return ScoreTable.complete(plain, {"m": np.array(m), "n": np.array(n)})


RIGHT = [[1.0, 0.0, 1.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("factor", "ranges"), [(1.0, None), (100.0, [100.0] * 3), (-2.0, [2.0] * 3)]
)
def test_right_and_wrong_may_have_any_scale(factor: float, ranges: object) -> None:
    scores = [[factor * value for value in RIGHT[0]]]
    table = two(scores, [scores[0][::-1]])
    found = table.items.ranges
    assert (None if found is None else found.tolist()) == ranges
    pair = table.paired("m", "n")
    assert not pair.graded
    assert pair.bound == pytest.approx(abs(factor))
    assert pair.discordant == 1.0
    assert pair.deltas == pytest.approx(factor * np.array([1.0, -1, 1, -1, 1, -1]))


def test_graded_scores_without_limits_have_no_bound() -> None:
    within = two([[0.2, 0.0, 1.0, 0.0, 1.0, 0.0]], RIGHT).paired("m", "n")
    assert (within.graded, within.bound) == (True, 1.0)
    beyond = two([[0.2, 0.0, 3.0, 0.0, 1.0, 0.0]], RIGHT).paired("m", "n")
    assert (beyond.graded, beyond.bound) == (True, math.inf)
    # Two runs that disagree are right or wrong all the same.
    runs = two([*RIGHT, RIGHT[0][::-1]], RIGHT)
    assert not runs.paired("m", "n").graded
    assert runs.has_runs
    assert not two(RIGHT, RIGHT).has_runs
    assert runs.mean("m").tolist() == [0.5] * 6


@pytest.mark.parametrize(
    ("m", "n", "ranges"),
    [
        # x from 0 to 3, y from 0 (scores above it start there) to 2; z is flat at 5: from 0 on.
        ([0.0, 3.0, 1.0, 2.0, 2.0, 5.0], [1.0, 1.0, 2.0, 1.0, 1.0, 5.0], [3.0, 2.0, 5.0]),
        # Losses: x from -4 to -1, y flat at -3 (up to 0), z all 0, so the largest of the others.
        ([-4.0, -1.0, -3.0, -3.0, -3.0, 0.0], [-2.0, -2.0, -3.0, -3.0, -3.0, 0.0], [3.0, 3.0, 3.0]),
        ([-4.0, 1.0, -1.0, -3.0, -3.0, 0.0], [-2.0, -2.0, -3.0, -3.0, -3.0, 0.0], [5.0, 2.0, 5.0]),
    ],
)  # fmt: skip
def test_the_range_of_a_category_is_that_of_its_scores(
    m: list[float], n: list[float], ranges: list[float]
) -> None:
    found = two([m], [n]).items.ranges
    assert found is not None
    assert found.tolist() == ranges


def test_corners_favour_each_of_the_two_models_in_turn() -> None:
    base = two(RIGHT, RIGHT)
    missing = np.array([1.0, 0, 0, 0, 0, 1.0])
    answers = {name: Answers.of(np.zeros(6), missing) for name in ("m", "n", "o")}
    table = ScoreTable(items=base.items, answers=answers)
    assert base.corners("m", "n") == [base.scored]
    counted, other, own = table.corners("m", "n")
    for corner, m, n in ((counted, 0, 0), (other, 0, 1), (own, 1, 0)):
        assert corner.mean("m").tolist() == (m * missing).tolist()
        assert corner.mean("n").tolist() == (n * missing).tolist()
        assert corner.mean("o").tolist() == [0] * 6
    favoured = table.favouring("o")
    assert favoured.mean("o").tolist() == missing.tolist()
    assert favoured.mean("m").tolist() == [0] * 6


def test_items_without_a_score_in_any_run_are_left_out() -> None:
    table = two([[np.nan, 0.0, 1.0, 0.0, 1.0, 0.0]], [[1.0, 0.0, np.nan, 0.0, 1.0, 0.0]])
    assert table.scored.mean("m").tolist() == [0.0, 0.0, 1.0, 0.0]
    assert table.scored.items.groups.tolist() == [0, 2, 2, 3]
    only = two(RIGHT, RIGHT).only(["z", "x"])
    assert (only.items.names, only.mean("m").tolist()) == (("x", "z"), [1.0, 0.0, 0.0])
    whole = two(RIGHT, RIGHT)
    assert whole.at(np.ones(6, bool)) is whole
    alone = whole.alone(1)
    assert (alone.items.names, alone.mean("n").tolist()) == (("y",), [1.0, 0.0, 1.0])


def test_a_difference_of_rounding_is_none() -> None:
    table = two([[2 / 3] * 6], [[0.666666666666667] * 6])
    assert table.difference("m", "n").objective == 0
    assert without_rounding(np.array([1e-3, -1e-3, 1e-15, -1e-15])).tolist() == [1e-3, -1e-3, 0, 0]
    apart = two([[0.5, 1, 0, 0, 0, 0.25]], [[0, 0, 0, 0, 0, 0]]).difference("m", "n")
    assert apart.objective == pytest.approx(0.5 * 0.75 + 0.2 * 0.25)


def test_tables_of_arrays_are_equal_to_themselves_alone() -> None:
    """Arrays have no truth value: what holds them is compared, and kept in sets, by identity."""
    items = one_category(np.arange(4))
    table = ScoreTable.complete(items, {"a": np.ones(4), "b": np.zeros(4)})
    for one in (
        items,
        table,
        table.answers["a"],
        table.paired("a", "b"),
        ModelScores(items=items, values=np.ones(4)),
    ):
        assert one == one
        assert one != replace(one)
        assert len({one, replace(one)}) == 2
