"""Wins of soups over their ingredients: shares, limits and examples against loops, and what a page shows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from souping.analysis import NotEstimableError, RunScores, wins as module
from souping.analysis.correlation import GroupSums
from souping.analysis.wins import (
    AnswerExample,
    CategoryWins,
    CategoryWinsResult,
    ExampleAnswer,
    FailureShare,
    ItemShare,
    ItemWins,
    ItemWinsResult,
    KeptShares,
    SoupWins,
    WinShare,
)
from souping.core.types import FloatArray, Item, ItemScores, Recipe, Record, ScoreMatrix, digest
from souping.core.unit import POINTS
from souping.statistics.intervals import rate
from souping.statistics.score_table import ModelScores, one_category
from tests.support.analyses import NAMES, recipe_of, result_json, run_of
from tests.support.drawings import bars, legend, line

Z = 1.959963984540054


def coin(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
    """Right or wrong, by a generator of the recipe's own."""
    rng = np.random.default_rng(int(recipe.id, 16))
    return (rng.random(len(items)) < 0.5).astype(float)


def families(run: RunScores) -> list[tuple[str, list[str]]]:
    """(soup's id, ids of its ingredients)"""
    return [
        (soup.id, [run.single(name).id for name in soup.ingredients]) for soup in run.mixtures()
    ]


def wins(
    means: Mapping[str, Sequence[float]], soup: str, singles: Sequence[str]
) -> tuple[int, int]:
    """Categories in which a soup is above all, and above at least one of its ingredients."""
    above_all = 0
    above_one = 0
    for c, mean in enumerate(means[soup]):
        beaten = [mean > means[single][c] + 1e-12 for single in singles]
        above_all += all(beaten)
        above_one += any(beaten)
    return above_all, above_one


def chance(scores: Sequence[float]) -> tuple[float, float]:
    """The same, if each score of a family were the soup's in turn."""
    above_all = 0
    above_one = 0
    for place, own in enumerate(scores):
        others = [score for n, score in enumerate(scores) if n != place]
        above_all += all(own > other for other in others)
        above_one += any(own > other for other in others)
    return above_all / len(scores), above_one / len(scores)


def test_shares_of_wins_have_the_limits_of_400_draws_of_groups() -> None:
    run = run_of(3, answer=coin, per_category=6)
    found: dict[str, Any] = result_json(CategoryWins(), run)
    ids = [single for _, singles in families(run) for single in singles]
    ids += [soup for soup, _ in families(run)]
    matrix = ScoreMatrix.from_items({name: run.search[name] for name in ids})
    means = dict(zip(matrix.models, matrix.values.tolist(), strict=True))
    counts = [wins(means, *family) for family in families(run)]
    assert [(row["beats_all"], row["beats_one"]) for row in found["soups"]] == counts
    assert [row["recipe_id"] for row in found["soups"]] == [soup for soup, _ in families(run)]
    assert [row["weights"] for row in found["soups"]] == [dict(s.shares) for s in run.mixtures()]

    drawn = GroupSums.of(matrix).draws(400, np.random.default_rng(0x9A4E))
    shares = []
    for draw in drawn:
        table = dict(zip(matrix.models, draw.tolist(), strict=True))
        shares.append(np.mean([wins(table, *family) for family in families(run)], axis=0) / 4)
    chances = []
    for soup, singles in families(run):
        for c in range(4):
            chances.append(chance([means[name][c] for name in (soup, *singles)]))
    for n, key in enumerate(("beats_all", "beats_one")):
        share = np.mean([count[n] for count in counts]) / 4
        margin = Z * np.std([row[n] for row in shares], ddof=1)
        limits = (max(0.0, share - margin), min(1.0, share + margin))
        assert found[key]["share"] == pytest.approx(share)
        assert (found[key]["low"], found[key]["high"]) == pytest.approx(limits)
        assert found[key]["chance"] == pytest.approx(np.mean([row[n] for row in chances]))


def test_a_soup_counts_only_if_all_its_ingredients_answered() -> None:
    run = run_of(3, answer=coin)
    pair = recipe_of({"bee": 0.5, "cat": 0.5})
    items = run.search[run.soups.soup.id].items
    known = {**run.search, pair.id: ItemScores(items=items, values=coin(pair, items))}
    del known[run.single("ant").id]
    found = CategoryWins().analyse(replace(run, search=known, trials=(*run.trials, pair)))
    assert isinstance(found, CategoryWinsResult)
    assert [row.recipe_id for row in found.soups] == [pair.id]


CATEGORY_WINS = CategoryWinsResult(
    split="search",
    categories=("w", "x", "y"),
    soups=tuple(
        SoupWins(recipe_id=str(n), weights={}, beats_all=every, beats_one=one)
        for n, (every, one) in enumerate([(0, 1), (0, 3), (2, 3), (None, 3)])
    ),
    beats_all=WinShare(share=0.25, low=0.1, high=0.4, chance=1 / 3),
    beats_one=WinShare(share=0.75, low=0.5, high=0.95, chance=2 / 3),
)


def test_a_page_says_how_often_soups_win() -> None:
    head, _ = CATEGORY_WINS.section(POINTS).lines
    assert "in 3 categories" in head
    assert "25.0 % (10.0 to 40.0; by chance 33.3 %) above all ingredients" in head
    assert "75.0 % (50.0 to 95.0; by chance 66.7 %) above at least one" in head
    assert "whole split) 4:" in head


def test_the_histogram_has_a_bar_for_each_number_of_categories() -> None:
    (drawing,) = CATEGORY_WINS.drawings(POINTS)
    (axes,) = drawing.figure.axes
    counts = [(round(bar.get_x() + bar.get_width() / 2, 6), bar.get_height()) for bar in bars(axes)]
    assert counts[:4] == [(0.2, 0), (1.2, 1), (2.2, 0), (3.2, 3)]
    assert counts[4:] == [(-0.2, 3), (0.8, 0), (1.8, 1), (2.8, 0)]
    # Two stand beside each other.
    assert {round(bar.get_width(), 9) for bar in bars(axes)} == {0.38}
    assert drawing.figure.get_size_inches() == pytest.approx((8.2, 2.5))
    assert [drawn.get_linewidth() for drawn in axes.lines] == [1.4, 1.4]
    by_chance = [x[0] for x, _ in map(line, axes.lines)]
    assert by_chance == pytest.approx([2.0, 1.0])
    unknown = replace(CATEGORY_WINS, beats_all=replace(CATEGORY_WINS.beats_all, chance=None))
    lines = unknown.drawings(POINTS)[0].figure.axes[0].lines
    assert [line(drawn)[0][0] for drawn in lines] == pytest.approx([2.0, 0.0])
    assert axes.get_xticks().tolist() == [0, 1, 2, 3]
    assert all(float(tick).is_integer() for tick in axes.get_yticks())
    _, corner = legend(axes)
    assert corner == pytest.approx((0, 1))
    assert "(4)" in drawing.alt


def test_a_single_model_among_the_trials_is_no_mixture() -> None:
    run = run_of(2, answer=coin)
    more = replace(run, trials=(run.single("ant"), *run.trials))
    assert result_json(CategoryWins(), more) == result_json(CategoryWins(), run)


# Item by item


def shares(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
    """Shares of two answers that are right: 0, 0.5 or 1."""
    rng = np.random.default_rng(int(recipe.id, 16))
    return rng.integers(0, 3, len(items)) / 2


def ratio(weights: FloatArray, values: FloatArray, groups: Sequence[str]) -> tuple[float, ...]:
    """sum(w v) / sum(w) with +- 1.96 standard errors of a ratio between groups (Cochran 1977, 6.4)."""
    share = float((weights * values).sum() / weights.sum())
    totals = dict.fromkeys(groups, 0.0)
    for group, weight, value in zip(groups, weights, values, strict=True):
        totals[group] += weight * (value - share) / weights.sum()
    n = len(totals)
    margin = Z * (n / (n - 1) * sum(total**2 for total in totals.values())) ** 0.5
    return share, max(0.0, share - margin), min(1.0, share + margin)


def test_several_answers_count_as_shares_of_an_item() -> None:
    run = replace(run_of(3, answer=shares, per_category=5), answers=2)
    found: dict[str, Any] = result_json(ItemWins(), run)
    items = run.test[run.soups.soup.id].items
    groups = [item.group for item in items]
    soup = run.test[run.soups.soup.id].values
    singles = [run.test[run.single(name).id].values for name in NAMES[:3]]
    assert (found["items"], found["answers"], found["split"]) == (20, 2, "test")
    assert found["solved"]["soup"] == pytest.approx(soup.mean())
    for failing, row in enumerate(found["by_failures"]):
        weights = np.zeros(len(items))
        for fails in product((0, 1), repeat=3):
            if sum(fails) == failing:
                chances = [1 - s if f else s for f, s in zip(fails, singles, strict=True)]
                weights += np.prod(chances, axis=0)
        assert row["fail"] == failing
        assert row["items"] == pytest.approx(weights.sum())
        expected = ratio(weights, soup, groups)
        assert (row["share"], row["low"], row["high"]) == pytest.approx(expected)
    for row, name, single in zip(found["kept"], NAMES, singles, strict=False):
        assert row["name"] == name
        assert found["solved"][name] == pytest.approx(single.mean())
        for key, weights in (("kept", single), ("gained", 1 - single)):
            limits = (row[key]["share"], row[key]["low"], row[key]["high"])
            assert limits == pytest.approx(ratio(weights, soup, groups))
            assert row[key]["items"] == pytest.approx(weights.sum())


def answering(scores: Mapping[str, ArrayLike], **fields: Any) -> RunScores:
    """A run whose soup (of all ingredients) and ingredients have these scores on both splits, an item a group."""
    names = NAMES[: len(scores) - 1]
    run = run_of(len(names), pool=names, trials=1)
    size = np.size(scores["soup"])
    items = fields.pop("items", None) or tuple(
        Item(id=str(n), category="w", group=str(n), prompt=f"q{n}", answer=f"a{n}")
        for n in range(size)
    )
    ids = {"soup": run.soups.soup.id} | {name: run.single(name).id for name in names}
    table = {
        ids[name]: ItemScores(items=items, values=np.asarray(values, float))
        for name, values in scores.items()
    }
    return replace(run, search=table, test=table, **fields)


def test_wilsons_interval_is_that_of_the_items_in_question_alone() -> None:
    run = answering({"soup": [1, 1, 0, 1, 0], "ant": [1, 1, 1, 1, 1], "bee": [0, 1, 0, 1, 1]})
    result = ItemWins().analyse(run)
    assert isinstance(result, ItemWinsResult)
    first, second = result.kept
    assert first.gained == ItemShare(items=0.0, share=None, low=None, high=None)
    expected = rate(ModelScores(items=one_category(np.arange(3)), values=np.array([1.0, 1.0, 0.0])))
    assert second.kept == ItemShare(
        items=3.0,
        share=expected.estimate.value,
        low=expected.estimate.low,
        high=expected.estimate.high,
    )
    assert [(row.fail, row.items, row.share) for row in result.by_failures] == [
        (0, 3, pytest.approx(2 / 3)),
        (1, 2, 0.5),
        (2, 0, None),
    ]


@pytest.mark.parametrize("wrong", [-1e-5, 1 + 1e-5, 7.0, float("nan"), float("inf")])
def test_scores_outside_0_to_1_solve_no_item(wrong: float) -> None:
    with pytest.raises(NotEstimableError):
        ItemWins().analyse(answering({"soup": [1, wrong], "ant": [1, 1], "bee": [0, 1]}))


def test_rounding_is_not_outside_and_graded_answers_count_from_a_half() -> None:
    rounded: dict[str, list[float]] = {
        "soup": [1 + 1e-8, 0, -1e-8],
        "ant": [1, 1, 0],
        "bee": [0, 1, 0],
    }
    result = ItemWins().analyse(answering(rounded))
    assert isinstance(result, ItemWinsResult)
    assert result.solved["ant"] == pytest.approx(2 / 3)
    graded = {"soup": [0.5, 0.49, 0.9], "ant": [0.5, 1, 0], "bee": [0.2, 0.51, 0]}
    found = ItemWins().analyse(answering(graded))
    assert isinstance(found, ItemWinsResult)
    shares = {"soup": 2 / 3, "ant": 2 / 3, "bee": 1 / 3}
    assert found.solved == pytest.approx(shares)


def test_an_answer_that_is_missing_makes_it_not_estimable() -> None:
    run = answering({"soup": [1, 0], "ant": [1, 1], "bee": [0, 1]})
    lacking = {name: scores for name, scores in run.test.items() if name != run.single("bee").id}
    with pytest.raises(NotEstimableError, match="1 of the soup and its ingredients"):
        ItemWins().analyse(replace(run, test=lacking))
    found = ItemWins().analyse(replace(run, search=lacking))
    assert isinstance(found, ItemWinsResult)
    assert found.examples == ()


def test_examples_are_two_of_each_kind_and_no_category_comes_twice_before_another() -> None:
    """Nobody solves items 0 to 9, all solve 10 to 19, one fails 20 to 29, two fail the rest."""
    ant = np.repeat([0, 1, 0, 0], 10)
    bee = np.repeat([0, 1, 1, 0], 10)
    cat = np.repeat([0, 1, 1, 1], 10)
    soup = np.repeat([1, 0, 1, 1], 10)
    soup[[3, 13, 23]] = 1 - soup[[3, 13, 23]]
    items = tuple(
        Item(
            id=str(n),
            category="x" if n % 10 == 7 else "w",
            group=str(n),
            prompt=f"q{n}",
            answer=str(n),
        )
        for n in range(40)
    )
    scores = {"soup": soup, "ant": ant, "bee": bee, "cat": cat}
    result = ItemWins().analyse(answering(scores, items=items))
    assert isinstance(result, ItemWinsResult)
    expected = []
    for first in (0, 10, 20):
        of_kind = [n for n in range(first, first + 10) if n % 10 not in (3, 7)]
        best = min(of_kind, key=lambda n: digest([items[n].prompt_digest, items[n].id]))
        pair = sorted(
            [best, first + 7], key=lambda n: digest([items[n].prompt_digest, items[n].id])
        )
        expected.append([str(n) for n in pair])
    chosen = [example.item for example in result.examples]
    assert [chosen[:2], chosen[2:4], chosen[4:]] == expected
    kinds = [example.kind for example in result.examples]
    assert [kinds[0], kinds[2], kinds[4]] == [kinds[1], kinds[3], kinds[5]]
    assert ["every" in kinds[0], kinds[2].startswith("failed"), "one" in kinds[4]] == [True] * 3


def example_of(item: Item, read: Any = lambda recipe, split: {}) -> AnswerExample:
    """The example that is made of a single item, which the soup alone solves."""
    run = answering({"soup": [1], "ant": [0], "bee": [0]}, items=(item,), read=read)
    result = ItemWins().analyse(run)
    assert isinstance(result, ItemWinsResult)
    (example,) = result.examples
    return example


PLAIN = Item(id="i", category="w", group="g", prompt="why?", answer="so")


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("p" * 600, "p" * 600),
        ("q" + "p" * 600, "\u2026" + "p" * 600),
        ([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "u"),
        ([{"role": "user", "content": "u"}, {"role": "assistant", "content": ""}], "u"),
        ([{"role": "user"}], ""),
    ],
)
def test_an_example_shows_the_end_of_its_question(prompt: Any, shown: str) -> None:
    assert example_of(replace(PLAIN, prompt=prompt)).prompt == shown


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("a" * 600, "a" * 600),
        ("a" * 600 + "b", "a" * 600 + "\u2026"),
        ({"calls": [1, 2]}, '{"calls": [1, 2]}'),
    ],
)
def test_an_example_shows_the_beginning_of_its_reference(answer: Any, shown: str) -> None:
    example = example_of(replace(PLAIN, answer=answer))
    assert (example.reference, example.category, example.item) == (shown, "w", "i")


def test_an_example_has_the_answers_that_are_known() -> None:
    def read(recipe: Recipe, split: str) -> dict[str, Record]:
        record = Record(item="i", score=0.5, output=split + "o" * 600, outcome="truncated")
        return {} if recipe.ingredients == ("bee",) else {"i": record}

    answers = example_of(PLAIN, read).answers
    assert list(answers) == ["soup", "ant"]
    text = f"search{'o' * 594}\u2026"
    assert answers["ant"] == ExampleAnswer(text=text, score=0.5, outcome="truncated")


@pytest.mark.parametrize(
    ("score", "outcome", "word"),
    [
        (1.0, "finished", "yes"), (0.0, "", "no"), (0.25, "finished", "25.0"), (1.0, "truncated", "yes (truncated)"),
        (0.0, "error", "no (error)"), (None, "finished", "no"),
    ],
)  # fmt: skip
def test_an_answer_is_right_or_not_or_in_part(score: float | None, outcome: str, word: str) -> None:
    assert ExampleAnswer(text="", score=score, outcome=outcome).verdict() == word


def shown(number: int) -> ItemWinsResult:
    """A result of so many ingredients, with an example."""
    share = ItemShare(items=8.0, share=0.75, low=0.5, high=0.9)
    rest = ItemShare(items=2.0, share=0.125, low=0.0, high=0.25)
    answers = {
        "ant": ExampleAnswer(text="no idea", score=0.0, outcome="finished"),
        "soup": ExampleAnswer(text="so", score=1.0, outcome="finished"),
    }
    example = AnswerExample(
        kind="solved", item="7", category="w", prompt="why?", reference="so", answers=answers
    )
    return ItemWinsResult(
        split="test",
        items=10,
        answers=1,
        solved={"soup": 0.7} | dict.fromkeys(NAMES[:number], 0.8),
        kept=tuple(KeptShares(name=name, kept=share, gained=rest) for name in NAMES[:number]),
        by_failures=tuple(
            FailureShare(fail=n, items=10.0 * n, share=n / 10, low=0.0, high=1.0)
            for n in range(number + 1)
        ),
        rule="by hash",
        examples=(example,),
    )


def texts(grid: Any) -> list[list[str]]:
    return [[f"{cell.text}|{cell.sub}".rstrip("|") for cell in row] for row in grid.rows]


def test_a_page_shows_what_the_soup_keeps_and_gains() -> None:
    section = shown(2).section(POINTS)
    (line,) = section.lines
    assert "keeps 75.0 % (50.0 to 90.0) of ant's and 75.0 % (50.0 to 90.0) of bee's" in line
    by_ingredient, examples = section.folded
    assert texts(by_ingredient.grids[0]) == [
        ["ant", "80.0", "75.0|50.0 to 90.0", "12.5|0.0 to 25.0"],
        ["bee", "80.0", "75.0|50.0 to 90.0", "12.5|0.0 to 25.0"],
    ]
    assert by_ingredient.grids[0].left == {0}
    (example,) = examples.folded
    assert example.title == "w: solved (7)"
    assert [line.split(": ")[1] for line in example.lines] == ["why?", "so"]
    assert texts(example.grids[0]) == [["soup", "so", "yes"], ["ant", "no idea", "no"]]
    assert example.grids[0].left == {0, 1, 2}
    assert len(replace(shown(2), examples=()).section(POINTS).folded) == 1


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1, ["none", "all"]),
        (2, ["none", "exactly one", "all"]),
        (4, ["none", "exactly one", "2", "3", "all"]),
    ],
)
def test_a_page_shows_the_soup_where_none_one_or_all_fail(number: int, words: list[str]) -> None:
    (table,) = shown(number).section(POINTS).grids
    assert [row[0] for row in texts(table)] == words
    assert [row[1] for row in texts(table)] == [str(10 * n) for n in range(number + 1)]
    assert texts(table)[-1][2] == f"{10 * number}.0|0.0 to 100.0"


def test_the_numbers_of_the_wins_are_those_of_earlier_reports() -> None:
    assert (module.MEAN_TIE, module.WINS_SALT, module.WINS_DRAWS) == (1e-12, 0x9A4E, 400)
    examples = (module.EXAMPLES, module.EXAMPLE_CHARS, module.SOLVED_FROM, module.SOLVED_ROUNDING)
    assert examples == (2, 600, 0.5, 1e-6)
