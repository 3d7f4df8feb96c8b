"""How many low-correlation categories chance gives: against counts by numpy, and in the words of a selection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import souping
from souping.analysis.chance import low_counts_by_chance, low_note, selected
from souping.analysis.correlation import pearson
from souping.core.scores import Mean
from souping.core.types import FloatArray, ScoreMatrix, Selection
from souping.selection import Greedy, SoCE

SOCE = SoCE(correlation=pearson, objective=Mean())


def matrix(values: FloatArray) -> ScoreMatrix:
    models, categories = values.shape
    return ScoreMatrix(
        models=tuple(f"model {number}" for number in range(models)),
        categories=tuple(f"category {number}" for number in range(categories)),
        values=values,
    )


def low_by_numpy(values: FloatArray) -> int:
    rho = np.abs(np.corrcoef(values, rowvar=False))
    np.fill_diagonal(rho, 1)
    return int((rho < 0.2).any(axis=1).sum())


def one_ability(models: int = 30, categories: int = 4) -> FloatArray:
    """Every category shows the same ability of a model, and a little noise."""
    random = np.random.default_rng(0)
    return random.random((models, 1)) + random.normal(0, 0.05, (models, categories))


def test_each_category_is_dealt_to_the_models_on_its_own() -> None:
    values = one_ability(models=7)
    random = np.random.default_rng(5)
    expected = [low_by_numpy(random.permuted(values, axis=0)) for _ in range(20)]
    found = low_counts_by_chance(SOCE, matrix(values), permutations=20, seed=5)
    assert found.tolist() == expected
    assert len(set(expected)) > 1


def test_a_selector_without_a_choice_counts_as_no_low_category() -> None:
    strict = SoCE(correlation=pearson, objective=Mean(), threshold=1e-9, fallback="error")
    counts = low_counts_by_chance(strict, matrix(one_ability()), permutations=7)
    assert counts.tolist() == [0] * 7


def test_scores_without_structure_have_as_many_low_categories_as_chance_gives() -> None:
    selection = selected(SOCE, matrix(np.random.default_rng(1).random((8, 10))))
    assert selection.low_by_chance == pytest.approx(10, abs=1)
    assert "no more than chance" in selection.notes[0]


def test_two_abilities_beside_their_sums_are_fewer_than_by_chance() -> None:
    random = np.random.default_rng(2)
    abilities = random.normal(0, 1, (30, 2))
    sums = abilities.sum(axis=1, keepdims=True) + random.normal(0, 0.1, (30, 6))
    values = np.concatenate([abilities, sums], axis=1)
    assert low_by_numpy(values) == 2
    selection = selected(SOCE, matrix(values))
    assert selection.low_correlation == ("category 0", "category 1")
    assert "fewer than by chance" in selection.notes[0]


def test_opposite_categories_are_more_than_chance_where_the_sign_counts() -> None:
    ability = np.random.default_rng(0).random((30, 1))
    values = np.concatenate([ability, ability**2, 1 - ability, 1 - ability**2], axis=1)
    signed = SoCE(correlation=pearson, objective=Mean(), sign="signed", threshold=-0.5)
    selection = selected(signed, matrix(values))
    assert len(selection.low_correlation) == 4
    assert selection.low_by_chance is not None
    assert selection.low_by_chance < 1
    assert "more than chance" in selection.notes[0]
    assert "no more" not in selection.notes[0]


@pytest.mark.parametrize(
    ("beyond", "permutations", "is_unusual"),
    [(1, 79, True), (1, 78, False), (2, 99, False), (0, 39, True), (0, 38, False)],
)
def test_a_count_is_unusual_at_2_5_percent_of_it_and_the_permutations(
    beyond: int, permutations: int, is_unusual: bool
) -> None:
    """The selection is one more draw: (1 + 1) / (1 + 79) is 2.5 percent."""
    categories = ("a", "b", "c", "d")
    selection = Selection(ingredients=(), categories=categories, low_correlation=categories[:2])
    rest = permutations - beyond
    fewer = low_note(selection, np.array([2] * beyond + [1] * rest))
    more = low_note(selection, np.array([2] * beyond + [3] * rest))
    assert fewer.startswith("2 of 4 categories")
    assert fewer.endswith(": more than chance" if is_unusual else ": no more than chance")
    assert more.endswith(": fewer than by chance" if is_unusual else ": no more than chance")


def test_without_low_correlations_chance_is_not_asked() -> None:
    selection = selected(SOCE, matrix(one_ability()))
    assert selection.low_correlation == ()
    assert selection.low_by_chance is None
    assert selected(Greedy(objective=Mean()), matrix(one_ability())).low_by_chance is None


def test_the_library_shows_what_chance_gives(tmp_path: Path) -> None:
    values = np.random.default_rng(1).random((8, 5))
    rows = [f"m{number}," + ",".join(map(str, row)) for number, row in enumerate(values.tolist())]
    path = tmp_path / "scores.csv"
    path.write_text("\n".join(["model,a,b,c,d,e", *rows]))
    selection = souping.select(path)
    counts = low_counts_by_chance(SOCE, matrix(values))
    assert selection.low_by_chance == pytest.approx(counts.mean())
