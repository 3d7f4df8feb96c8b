"""Score matrices and their sources, objectives, and points of the weight simplex."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

from souping.core.fields import check_weights
from souping.core.protocols import Objective, ScoreSource
from souping.core.scores import (
    Mean,
    MeasuredScores,
    TableScores,
    Tree,
    Weighted,
    WorstCategory,
    read_table,
    value,
    value_of,
)
from souping.core.types import TOLERANCE, ScoreMatrix, UserError
from souping.evaluate.bfcl.bfcl_benchmark import Bfcl
from souping.logs.log_scores import LogScores
from souping.search import points as simplex
from souping.testing import check_objective
from tests.conftest import PAPER, ROOT
from tests.support.choices import differing, each


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@given(
    arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.floats(0, 1)),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_percent_and_fraction_read_alike(tmp_path: Path, values: np.ndarray, percent: bool) -> None:
    scale = 100.0 if percent and values.max() > 0.02 else 1.0
    rows = []
    for number, row in enumerate(values):
        cells = [repr(float(score * scale)) for score in row]
        rows.append(",".join([f"m{number}", *cells]))
    header = ",".join(["model", *(f"c{i}" for i in range(values.shape[1]))])
    table = read_table(write(tmp_path / "t.csv", "\n".join([header, *rows])))
    assert table.published
    np.testing.assert_allclose(table.values, values, atol=1e-12)


def test_a_category_may_be_called_model(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "model,model,b\nx,1,2\ny,3,4\n"))
    assert (table.models, table.categories) == (("x", "y"), ("model", "b"))


def test_a_score_table_that_is_not_there_is_an_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.csv"):
        read_table(tmp_path / "no.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,a,b\nx,1,2\ny,3\n", r"t.csv:3: 2 cells"),
        ("model,a,b\nx,1,nan\n", r"t.csv:2: column 'b' holds 'nan'"),
        ("model,a,a\nx,1,2\n", r"column 'a' appears twice"),
        ("model,a\nx,1\nx,2\n", r"t.csv: model 'x' appears twice"),
    ],
)
def test_a_bad_table_names_row_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "t.csv", text))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("model,a,b\nx,0,1\n", [[0.0, 1.0]]),
        ("model,a,b\nx,0,1.5\n", [[0.0, 0.015]]),
        ("Model, a ,b\n\nx, 100 ,50\n,,\n", [[1.0, 0.5]]),
    ],
)
def test_a_table_with_a_value_above_1_is_percent(
    tmp_path: Path, text: str, values: list[list[float]]
) -> None:
    assert read_table(write(tmp_path / "t.csv", text)).values.tolist() == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,a\nx,1\n", "t.csv:1: the header"),
        ("model\nx\n", "t.csv:1: the header"),
        ("model,a\n", "at least one row"),
        ("model,a,\nx,1,2\n", "has no name"),
        ("model,a\nx,high\n", "t.csv:2: column 'a' holds 'high'"),
        ("model,a\nx,100.5\n", "t.csv:2: column 'a' holds '100.5'"),
        ("model,a\nx,1\ny,-0.1\n", "t.csv:3: column 'a' holds '-0.1'"),
    ],
)
def test_a_file_that_is_no_table_of_scores_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "t.csv", text))


LOGS = ROOT / "tests" / "data" / "logs" / "lm_eval"
SOURCES: dict[str, list[ScoreSource]] = {
    "evaluate": [MeasuredScores()],
    "table": [TableScores(path=str(PAPER / "bfcl_8b.csv"))],
    "logs": [
        LogScores(
            path={"CoALM-8B": str(LOGS / "tuned_python"), "BitAgent-8B": str(LOGS / "tuned_java")}
        )
    ],
}
CANDIDATES = ("CoALM-8B", "BitAgent-8B")


def test_every_choice_has_a_row() -> None:
    assert differing("scores", SOURCES) == {}


@pytest.mark.parametrize("source", each(SOURCES))
def test_a_source_gives_the_candidates_rows_and_measures_only_what_is_not_published(
    source: ScoreSource,
) -> None:
    asked = []

    def measure() -> ScoreMatrix:
        asked.append(1)
        return ScoreMatrix(models=CANDIDATES, categories=("x",), values=np.array([[0.5], [0.25]]))

    scores = source.matrix(CANDIDATES, measure)
    assert isinstance(source, ScoreSource)
    assert scores.candidates == CANDIDATES
    assert scores.published == source.published == (not asked)


def test_a_candidate_without_a_row_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"CoALM-8 .*did you mean CoALM-8B"):
        TableScores(path=str(PAPER / "bfcl_8b.csv")).matrix(
            ("CoALM-8",), lambda: pytest.fail("measured")
        )


NAMES = ["simple_python", "simple_java", "multiple", "live_simple", "irrelevance"]
ROWS: dict[str, list[Objective]] = {
    "mean": [Mean()],
    "worst_category": [WorstCategory()],
    "weighted": [Weighted(category_weights={"multiple": 3.0, "irrelevance": 1.0})],
    "tree": [
        Tree(tree={"one": [["simple_python", "simple_java"], "multiple"], "two": ["live_simple"]})
    ],
    "bfcl": [Bfcl()],
}


def test_every_objective_has_a_row() -> None:
    assert differing("objective", ROWS) == {}


@pytest.mark.parametrize("objective", each(ROWS))
def test_an_objective_conforms(objective: Objective) -> None:
    check_objective(objective, NAMES)
    assert objective in ROWS[objective.name]  # in reports, the name of the choice
    assert all(isinstance(note, str) and note for note in objective.notes(NAMES))


def test_objectives_are_linear_and_sum_to_one() -> None:
    names = ["python", "java", "multiple", "live"]
    tree = Tree(tree={"non_live": [["python", "java"], "multiple"], "live": ["live"]})
    np.testing.assert_allclose(tree.coefficients(names), [0.125, 0.125, 0.25, 0.5])
    np.testing.assert_allclose(Mean().coefficients(names), 0.25)
    np.testing.assert_allclose(
        Weighted(category_weights={"java": 3, "live": 1}).coefficients(names), [0, 0.75, 0, 0.25]
    )
    with pytest.raises(UserError, match="objective: category=rust"):
        Weighted(category_weights={"rust": 1}).coefficients(names)
    with pytest.raises(UserError, match=r"objective.category_weights"):
        Weighted(category_weights={"java": -1})
    with pytest.raises(UserError, match=r"objective.tree"):
        Tree(tree={})


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 0.0, "b": 0.0}, {"a": 2.0, "b": -1.0}])
def test_weights_that_weigh_nothing_or_are_negative_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"objective\.category_weights"):
        Weighted(category_weights=weights)


def test_a_category_may_weigh_nothing_and_stand_in_several_groups() -> None:
    weighted = Weighted(category_weights={"a": 0.0, "b": 0.5})
    assert weighted.coefficients(["a", "b", "c"]).tolist() == [0.0, 1.0, 0.0]
    tree = Tree(tree={"one": ["a", "b"], "two": {"deep": ["b", "c", "d"]}})
    assert tree.coefficients(["a", "b", "c", "d", "e"]) == pytest.approx(
        [1 / 4, 5 / 12, 1 / 6, 1 / 6, 0]
    )
    assert tree.groups == {"one": ("a", "b"), "two": ("b", "c", "d"), "deep": ("b", "c", "d")}
    assert Tree(tree=["a", [{"one": ["b", "c"]}, "d"]]).groups == {"one": ("b", "c")}
    with pytest.raises(UserError, match="empty group"):
        Tree(tree={"one": ["a"], "two": []})


def test_the_worst_category_is_a_minimum_and_a_linear_objective_a_dot_product() -> None:
    means = np.array([[0.2, 0.5], [0.9, 0.1]])
    assert WorstCategory().value(means, ["a", "b"]).tolist() == [0.2, 0.1]
    by_hand = Weighted(category_weights={"a": 3, "b": 1}).value(means, ["a", "b"])
    assert by_hand == pytest.approx([0.275, 0.7])
    assert value(Mean(), {"a": 0.2, "b": 0.4}) == pytest.approx(0.3)
    assert value_of(Mean(), ["a"]) is None
    worst = value_of(WorstCategory(), ["a", "b"])
    assert worst is not None
    assert worst(means).tolist() == [0.2, 0.1]


@pytest.mark.parametrize(("size", "points"), [(2, 9), (3, 36), (4, 84), (5, 126), (10, 1), (11, 0)])
def test_the_papers_grid_has_c_9_k_minus_1_points(size: int, points: int) -> None:
    found = simplex.weight_grid(size)
    assert len(found) == len(set(found)) == points
    assert points == comb(9, size - 1) == simplex.grid_size(size)


@given(st.integers(2, 6), st.sampled_from([0.05, 0.1, 0.125, 0.2, 0.25]))
def test_grid_points_lie_on_the_simplex_and_on_the_lattice(size: int, step: float) -> None:
    assert (0.3, 0.7) in simplex.weight_grid(2)  # no float dust
    for point in simplex.weight_grid(size, step):
        assert abs(sum(point) - 1) < 1e-9
        assert all(step - 1e-9 <= w <= 1 - step + 1e-9 for w in point)
        assert all(abs(w / step - round(w / step)) < 1e-6 for w in point)


@given(st.integers(2, 5))
def test_spread_is_a_permutation_whose_prefixes_cover(size: int) -> None:
    points = simplex.weight_grid(size)
    order = simplex.spread(points)
    assert sorted(order) == sorted(points)
    if len(points) > 10:
        # The point that is farthest from the first ten.
        assert cdist(points, order[:10]).min(axis=1).max() < (
            cdist(points, points[:10]).min(axis=1).max()
        )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_weights_are_taken_only_when_they_sum_to_one(weights: list[float]) -> None:
    for wrong in ([], [*weights, float("nan")]):
        with pytest.raises(UserError, match="finite"):
            check_weights(wrong)
    if abs(sum(weights) - 1) <= TOLERANCE:
        assert check_weights(weights) == tuple(weights)
    else:
        with pytest.raises(UserError, match="not 1"):
            check_weights(weights)
