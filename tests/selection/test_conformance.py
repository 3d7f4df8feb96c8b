"""What every selector promises: add a row, and it is held to all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from souping.analysis.correlation import pearson
from souping.core.protocols import Selector
from souping.core.scores import Mean
from souping.core.types import ScoreMatrix, UserError
from souping.selection import All, Greedy, SoCE, SoCECluster, TopK
from souping.testing import check_selector
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
    def test_it_conforms(self, selector: Selector) -> None:
        check_selector(selector)

    def test_experts_are_ingredients_and_best_among_them(self, selector: Selector, matrix: ScoreMatrix) -> None:
        selection = selector.select(matrix)
        for cluster in selection.clusters or [(category,) for category in selection.experts]:
            (expert,) = {selection.experts[category] for category in cluster}
            columns = [matrix.categories.index(category) for category in cluster]
            means = matrix.rows(selection.ingredients)[:, columns].mean(axis=1)
            assert matrix.rows([expert])[0, columns].mean() == pytest.approx(means.max())

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

    def test_scores_below_zero_choose_as_others_do(self, selector: Selector, matrix: ScoreMatrix) -> None:
        """Losses are turned round, so that higher is better."""
        below = replace(matrix, values=matrix.values - 2)
        assert selector.select(below).ingredients == selector.select(matrix).ingredients

    def test_moving_the_cut_to_where_it_is_changes_nothing(self, selector: Selector) -> None:
        assert selector.with_cut(selector.cut or 0.1) == selector

    def test_a_measure_is_a_correlation(self, selector: Selector, matrix: ScoreMatrix) -> None:
        measure = selector.measure
        shape = (len(matrix.categories),) * 2
        assert measure is None or measure(matrix.values).rho.shape == shape
