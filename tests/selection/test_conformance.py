"""What every selector promises: add a row, and it is held to all of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from souping.analysis.correlation import pearson
from souping.core.objectives import Mean
from souping.core.protocols import Selector
from souping.core.types import ScoreMatrix, UserError
from souping.selection.selectors import All, Greedy, SoCE, SoCECluster, TopK
from tests.support.choices import differing, each

ROWS: dict[str, list[Selector]] = {
    "soce": [
        SoCE(correlation=pearson, objective=Mean(), threshold=0.9),
        SoCE(correlation=pearson, objective=Mean(), threshold=0.9, ties="all"),
    ],
    "soce_cluster": [
        SoCECluster(correlation=pearson, objective=Mean()),
        SoCECluster(correlation=pearson, objective=Mean(), k=2),
    ],
    "greedy": [Greedy(objective=Mean()), Greedy(objective=Mean(), k=1)],
    "topk": [TopK(objective=Mean(), k=2), TopK(objective=Mean())],
    "all": [All()],
}


def test_every_choice_has_a_row() -> None:
    assert differing("selector", ROWS) == {}


@pytest.mark.parametrize("selector", each(ROWS))
class TestSelector:
    def test_it_is_a_selector_that_knows_its_name(self, selector: Selector, matrix: ScoreMatrix) -> None:
        assert Selector in type(selector).__mro__
        assert selector.select(matrix).selector == selector.label

    def test_ingredients_are_distinct_candidates_in_the_pools_order(
        self, selector: Selector, matrix: ScoreMatrix
    ) -> None:
        ingredients = selector.select(matrix).ingredients
        assert len(ingredients) >= 1
        assert list(ingredients) == [name for name in matrix.candidates if name in ingredients]

    def test_rows_that_are_no_candidates_are_never_picked(self, selector: Selector, matrix: ScoreMatrix) -> None:
        board = ScoreMatrix(
            models=(*matrix.models, "star"),
            categories=matrix.categories,
            values=np.vstack([matrix.values, [1.0, 0.99, 0.98, 1.0]]),
            candidates=matrix.candidates,
        )
        assert "star" not in selector.select(board).ingredients

    def test_the_same_scores_give_the_same_selection(self, selector: Selector, matrix: ScoreMatrix) -> None:
        assert selector.select(matrix).ingredients == selector.select(matrix).ingredients

    def test_experts_are_ingredients_and_best_among_them(self, selector: Selector, matrix: ScoreMatrix) -> None:
        selection = selector.select(matrix)
        for cluster in selection.clusters or [(category,) for category in selection.experts]:
            (expert,) = {selection.experts[category] for category in cluster}
            columns = [matrix.categories.index(category) for category in cluster]
            means = matrix.rows(selection.ingredients)[:, columns].mean(axis=1)
            assert matrix.rows([expert])[0, columns].mean() == pytest.approx(means.max())

    def test_the_number_of_ingredients_is_one_that_was_said(self, selector: Selector, matrix: ScoreMatrix) -> None:
        for candidates in (1, 2, 7):
            sizes = selector.sizes(candidates)
            assert sizes
            assert list(sizes) == sorted(set(sizes))
            assert 1 <= sizes[0] <= sizes[-1] <= candidates
        assert len(selector.select(matrix).ingredients) in selector.sizes(len(matrix.candidates))

    @pytest.mark.parametrize(("models", "candidates", "categories"), [(1, 1, 1), (2, 2, 4), (4, 4, 1), (4, 1, 4)])
    def test_a_check_refuses_in_the_words_of_the_selection(
        self, selector: Selector, matrix: ScoreMatrix, models: int, candidates: int, categories: int
    ) -> None:
        names = matrix.models[:models]
        small = replace(
            matrix,
            models=names,
            candidates=names[:candidates],
            categories=matrix.categories[:categories],
            values=matrix.values[:models, :categories],
        )
        refused = ""
        try:
            selector.check(models, candidates, categories)
        except UserError as error:
            refused = str(error)
        if refused:
            with pytest.raises(UserError) as caught:
                selector.select(small)
            assert str(caught.value) == refused
        else:
            assert selector.select(small).ingredients

    def test_a_cut_can_be_moved_and_nothing_else_changes(self, selector: Selector) -> None:
        other = selector.with_cut(0.5)
        assert type(other) is type(selector)
        assert other.cut == (None if selector.cut is None else 0.5)
        assert selector.with_cut(selector.cut or 0.1) == selector

    def test_a_measure_is_a_correlation(self, selector: Selector, matrix: ScoreMatrix) -> None:
        measure = selector.measure
        shape = (len(matrix.categories),) * 2
        assert measure is None or measure(matrix.values).rho.shape == shape
