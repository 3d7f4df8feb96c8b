"""What every selector promises (add a row, and it is held to all of it), each one's rules, and the paper's tables."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from souping.analysis import correlation
from souping.analysis.correlation import pearson
from souping.core.protocols import Selector
from souping.core.scores import Mean, Weighted, WorstCategory, read_table
from souping.core.types import Correlations, FloatArray, ScoreMatrix, UserError
from souping.selection import All, Greedy, SoCE, SoCECluster, TopK, ranking
from souping.testing import check_selector
from tests.conftest import PAPER
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
    def test_a_selector_conforms(self, selector: Selector) -> None:
        check_selector(selector)
        assert selector.with_threshold(selector.deciding_threshold or 0.1) == selector

    def test_experts_are_ingredients_and_best_in_a_category(
        self, selector: Selector, matrix: ScoreMatrix
    ) -> None:
        selection = selector.select(matrix)
        for cluster in selection.clusters or [(category,) for category in selection.experts]:
            (expert,) = {selection.experts[category] for category in cluster}
            columns = [matrix.categories.index(category) for category in cluster]
            means = matrix.rows(selection.ingredients)[:, columns].mean(axis=1)
            assert matrix.rows([expert])[0, columns].mean() == pytest.approx(means.max())

    def test_scores_below_zero_choose_as_others_do(
        self, selector: Selector, matrix: ScoreMatrix
    ) -> None:
        """Losses are turned round, so that higher is better."""
        below = replace(matrix, values=matrix.values - 2)
        assert selector.select(below).ingredients == selector.select(matrix).ingredients

    @pytest.mark.parametrize(
        ("models", "candidates", "categories"), [(1, 1, 1), (2, 2, 4), (4, 4, 1), (4, 1, 4)]
    )
    def test_a_check_refuses_in_the_words_of_the_selection(
        self, selector: Selector, matrix: ScoreMatrix, models: int, candidates: int, categories: int
    ) -> None:
        names = matrix.models[:models]
        columns = matrix.categories[:categories]
        values = matrix.values[:models, :categories]
        small = ScoreMatrix(
            models=names, candidates=names[:candidates], categories=columns, values=values
        )
        words = []
        for step in (
            lambda: selector.check(models, candidates, categories),
            lambda: selector.select(small),
        ):
            try:
                step()
                words.append("")
            except UserError as error:
                words.append(str(error))
        assert words[0] == words[1]


def soce(**changes: object) -> SoCE:
    settings: dict[str, object] = {
        "correlation": correlation.pearson,
        "objective": Mean(),
        **changes,
    }
    return SoCE(**settings)  # type: ignore[arg-type]


B8 = ("xLAM-2-8b-fc-r", "ToolACE-2-8B", "watt-tool-8B")
PAIR = ("MetaMathOctopus-7B", "MetaMathOctopus-MAPO-DPO-7B")
B70 = ("xLAM-2-70b-fc-r", "CoALM-70B", "watt-tool-70B", "functionary-medium-v3.1")


@pytest.mark.parametrize(
    ("table", "changes", "ingredients"),
    [
        ("bfcl_8b", {}, B8),
        ("bfcl_8b", {"threshold": 0.3}, (*B8, "BitAgent-8B")),
        ("bfcl_70b", {}, B70),  # the paper left functionary-medium out
        ("mgsm", {}, PAIR[1:]),
        ("mgsm", {"threshold": 0.3}, PAIR[1:]),
        ("mgsm", {"sign": "signed"}, PAIR[1:]),
        ("mgsm", {"threshold": 0.3, "ties": "all"}, PAIR),
        ("mgsm", {"sign": "signed", "ties": "all"}, PAIR),
    ],
)
def test_the_experts_of_published_tables(
    table: str, changes: dict[str, object], ingredients: tuple[str, ...]
) -> None:
    selection = soce(**changes).select(read_table(PAPER / f"{table}.csv"))
    assert set(selection.ingredients) == set(ingredients)
    assert selection.metric == "pearson"


@pytest.mark.parametrize(
    ("sign", "rho", "low"),
    [
        ("absolute", 0.2, []),
        ("absolute", -0.2, []),
        ("absolute", 0.199, [0, 1]),
        ("absolute", -0.199, [0, 1]),
        ("signed", 0.2, []),
        ("signed", 0.199, [0, 1]),
        ("signed", -0.9, [0, 1]),
    ],
)
def test_a_category_at_the_threshold_is_no_low_correlation_one(
    sign: str, rho: float, low: list[int]
) -> None:
    """Algorithm 1 of the paper: a category is low if |rho| is below the threshold for another one."""
    correlations = np.array([[1.0, rho, 0.9], [rho, 1.0, 0.9], [0.9, 0.9, 1.0]])
    assert soce(threshold=0.2, sign=sign).low_categories(correlations) == low


def test_equally_good_experts_are_taken_as_the_setting_says_and_noted(matrix: ScoreMatrix) -> None:
    values = matrix.values.copy()
    values[3, 0] = values[0, 0]  # d ties with a in w; a is the better overall
    tied = ScoreMatrix(
        models=("d", "b", "c", "a"), categories=matrix.categories, values=values[[3, 1, 2, 0]]
    )
    assert soce(threshold=0.9).select(tied).experts["w"] == "a"
    assert soce(threshold=0.9, ties="first").select(tied).experts["w"] == "d"
    every = soce(threshold=0.9, ties="all").select(tied)
    assert {"a", "d"} <= set(every.ingredients)
    assert (every.tied, every.ties, every.sign) == ({"w": ("a", "d")}, "all", "absolute")
    assert every.notes == ("w: a, d are equally good; all of them are ingredients",)
    plain = soce(correlation=partial(correlation.spearman), threshold=0.9).select(matrix)
    assert (plain.notes, plain.metric) == ((), "spearman")
    (note,) = soce(threshold=0.9, ties="first").select(tied).notes
    assert note == "w: d, a are equally good; d, the first in the pool, is the expert"


def test_a_constant_category_and_too_few_models_are_named(matrix: ScoreMatrix) -> None:
    flat = matrix.values.copy()
    flat[:, 2] = 0.1 + 0.2
    flat[0, 2] = 0.3
    with_flat = ScoreMatrix(models=matrix.models, categories=matrix.categories, values=flat)
    assert soce(threshold=0.9).select(with_flat).categories == ("w", "x", "z")
    with pytest.raises(UserError, match="the models differ; there are 1"):
        soce(exclude=["w", "x"]).select(with_flat)
    two = ScoreMatrix(
        models=("a", "b"), categories=("x", "y"), values=np.array([[0.1, 0.2], [0.2, 0.1]])
    )
    with pytest.raises(UserError, match="at least 3"):
        soce().select(two)
    one = ScoreMatrix(
        models=("a", "b", "c"), categories=("x",), values=np.array([[0.1], [0.2], [0.3]])
    )
    with pytest.raises(UserError, match="at least 2 categories"):
        soce().select(one)


def test_a_constant_category_weighs_in_the_objective_but_not_in_the_choice(
    matrix: ScoreMatrix,
) -> None:
    more = ScoreMatrix(
        models=matrix.models,
        categories=(*matrix.categories, "all"),
        values=np.column_stack([matrix.values, np.ones(4)]),
    )
    assert more.constant == ("all",)
    for selector in (soce(threshold=0.9), Greedy(objective=Mean()), TopK(objective=Mean(), k=2)):
        plain = selector.select(matrix)
        with_more = selector.select(more)
        assert (plain.ingredients, plain.low_correlation) == (
            with_more.ingredients,
            with_more.low_correlation,
        )


def test_excluded_categories_have_no_part(matrix: ScoreMatrix) -> None:
    assert soce(threshold=0.9, exclude=["y"]).select(matrix).categories == ("w", "x", "z")
    assert Greedy(objective=Mean(), exclude=["w", "x"]).select(matrix).ingredients == ("c",)
    assert TopK(objective=Mean(), k=1, exclude=["w", "x"]).select(matrix).ingredients == ("c",)
    with pytest.raises(UserError, match=r"selector\.exclude=why"):
        soce(exclude=["why"]).select(matrix)
    with pytest.raises(UserError, match=r"selector.exclude leaves no category"):
        TopK(objective=Mean(), exclude=["w", "x", "y", "z"]).select(matrix)


def test_without_a_low_correlation_category_the_choice_is_greedy_and_says_so() -> None:
    alike = ScoreMatrix(
        models=("a", "b", "c"),
        categories=("x", "y"),
        values=np.array([[0.9, 0.2], [0.5, 0.6], [0.1, 1]]),
    )
    selection = soce().select(alike)
    greedy = Greedy(objective=Mean()).select(alike)
    assert (selection.selector, selection.ingredients) == ("greedy", greedy.ingredients)
    assert (selection.low_correlation, selection.threshold) == ((), None)
    assert selection.correlations is not None
    (note,) = selection.notes
    assert (
        "no low-correlation category; the smallest |rho| is 1.000 (x, y): selected as by selector=greedy"
        in note
    )
    with pytest.raises(UserError, match="no low-correlation category"):
        soce(fallback="error").select(alike)


def test_the_note_names_a_threshold_that_takes_the_pair_of_the_smallest_correlation() -> None:
    """The correlation of (1, 2, 3) and (1, 3, 2) is 0.5: the next hundredth is 0.51."""
    scores = ScoreMatrix(
        models=("a", "b", "c"),
        categories=("x", "y"),
        values=np.array([[0.1, 0.1], [0.2, 0.3], [0.3, 0.2]]),
    )
    (note,) = soce().select(scores).notes
    assert "selector.threshold=0.51 takes" in note
    assert soce(threshold=0.51).select(scores).low_correlation == ("x", "y")


def test_greedy_takes_what_raises_the_best_so_far(matrix: ScoreMatrix) -> None:
    assert Greedy(objective=Mean(), k=1).select(matrix).ingredients == ("a",)
    assert Greedy(objective=Mean()).select(matrix).ingredients == ("a", "c")
    with pytest.raises(UserError, match=r"selector.k=5 is more than the 4 candidates"):
        Greedy(objective=Mean(), k=5).check(4, 4, 4)
    with pytest.raises(UserError, match="scores zero"):
        Greedy(objective=Mean()).select(
            ScoreMatrix(models=("a",), categories=("x",), values=np.zeros((1, 1)))
        )


def test_topk_and_ranking_follow_the_objective(matrix: ScoreMatrix) -> None:
    only_y = Weighted(category_weights={"y": 1.0})
    assert ranking(matrix, only_y)[0] == "c"
    assert TopK(objective=only_y, k=2).select(matrix).ingredients == ("a", "c")
    with pytest.raises(UserError, match="more than the 4 candidates"):
        TopK(objective=Mean(), k=5).select(matrix)
    with pytest.raises(UserError, match="at least 1"):
        TopK(objective=Mean(), k=0)


@pytest.mark.parametrize(
    ("table", "sizes", "experts"),
    [
        ("bfcl_8b", [9, 1, 4], ["xLAM-2-8b-fc-r", "ToolACE-2-8B", "watt-tool-8B"]),
        ("bfcl_70b", [9, 4, 1], ["xLAM-2-70b-fc-r", "CoALM-70B", "functionary-medium-v3.1"]),
        ("mgsm", [10], ["MetaMathOctopus-MAPO-DPO-7B"]),
    ],
)
def test_an_expert_of_each_cluster_on_the_papers_tables(
    table: str, sizes: list[int], experts: list[str]
) -> None:
    selection = SoCECluster(correlation=correlation.pearson, objective=Mean()).select(
        read_table(PAPER / f"{table}.csv")
    )
    assert selection.selector == "soce_cluster"
    assert [len(cluster) for cluster in selection.clusters] == sizes
    assert list(selection.ingredients) == experts
    assert len(selection.notes) == len(sizes)


def test_clusters_are_scipys_average_linkage() -> None:
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    for seed in range(20):
        values = np.random.default_rng(seed).random((6, 9))
        rho = correlation.pearson(values).rho
        for threshold in (-0.2, 0.2, 0.6):
            ours = SoCECluster(
                correlation=correlation.pearson, objective=Mean(), threshold=threshold
            ).clusters(rho)
            tree = linkage(squareform(np.clip(1 - rho, 0, 2), checks=False), "average")
            theirs = fcluster(tree, 1 - threshold, "distance")
            assert {frozenset(c) for c in ours} == {
                frozenset(np.flatnonzero(theirs == label).tolist())
                for label in set(theirs.tolist())
            }


@pytest.mark.parametrize("key", ["rho", "low", "high"])
def test_correlations_of_another_shape_are_refused(matrix: ScoreMatrix, key: str) -> None:
    def short(scores: FloatArray) -> Correlations:
        return replace(pearson(scores), **{key: np.zeros((3, 4))})

    with pytest.raises(UserError, match=rf"{key} has shape \(3, 4\), not \(4, 4\)"):
        soce(correlation=short).select(matrix)


def test_a_correlation_that_gives_an_array_is_refused(matrix: ScoreMatrix) -> None:
    with pytest.raises(UserError, match="gave a ndarray, not Correlations"):
        soce(correlation=lambda scores: np.corrcoef(scores, rowvar=False)).select(matrix)


def test_a_published_table_without_a_category_of_the_objective_is_ranked_by_its_mean() -> None:
    table = ScoreMatrix(
        models=("a", "b"),
        categories=("x", "y"),
        values=np.array([[0.9, 0.1], [0.4, 0.7]]),
        published=True,
    )
    other = Weighted(category_weights={"x": 1.0, "z": 1.0})
    assert ranking(table, other, strict=False) == ["b", "a"]
    with pytest.raises(UserError, match="z"):
        ranking(table, other)
    with pytest.raises(UserError, match="z"):
        ranking(replace(table, published=False), other, strict=False)


def test_excluded_categories_weigh_nothing_in_any_ranking(matrix: ScoreMatrix) -> None:
    """The order of a mean and of a minimum over what is left; of nothing, the order of the pool."""
    own = [matrix.categories.index(name) for name in ("y", "z")]
    values = matrix.values[:, own]
    names = np.array(matrix.models)
    by_mean = names[np.argsort(-values.mean(axis=1), kind="stable")].tolist()
    by_worst = names[np.argsort(-values.min(axis=1), kind="stable")].tolist()
    assert ranking(matrix, Mean(), exclude=["w", "x"]) == by_mean
    assert ranking(matrix, WorstCategory(), exclude=["w", "x"]) == by_worst
    assert by_mean != ranking(matrix, Mean())
    for objective in (Mean(), WorstCategory()):
        assert ranking(matrix, objective, exclude=matrix.categories) == list(matrix.models)


def test_a_threshold_above_0_is_needed_where_the_sign_does_not_count() -> None:
    assert soce(sign="signed", threshold=0.0).threshold == 0
    assert soce(threshold=1e-9).threshold == 1e-9
    with pytest.raises(UserError, match=r"selector\.threshold=0.* above 0"):
        soce(threshold=0.0)


def test_what_a_selector_says_of_itself() -> None:
    cluster = SoCECluster(correlation=pearson, objective=Mean(), threshold=0.4)
    assert (cluster.deciding_threshold, cluster.deciding_correlation) == (0.4, pearson)
    by_number = replace(cluster, k=4)
    assert by_number.deciding_threshold is None
    by_number.check(models=3, candidates=3, categories=4)
    with pytest.raises(UserError, match=r"selector\.k=4 clusters are more than the 3 categories"):
        by_number.check(models=3, candidates=3, categories=3)
    assert TopK(objective=Mean()).picks_best
    assert not TopK(objective=Mean(), exclude=["w"]).picks_best


@pytest.mark.parametrize(
    ("selector", "sizes"),
    [
        (Greedy(objective=Mean()), (1, 2, 3, 4)), (Greedy(objective=Mean(), k=2), (1, 2)),
        (Greedy(objective=Mean(), k=9), (1, 2, 3, 4)), (TopK(objective=Mean()), (3,)),
        (TopK(objective=Mean(), k=5), (4,)), (All(), (4,)),
    ],
)  # fmt: skip
def test_a_selection_has_one_of_these_sizes(selector: Selector, sizes: tuple[int, ...]) -> None:
    assert tuple(selector.sizes(4)) == sizes
