"""The score matrix, its CSV form, and what every source of scores promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from souping.core.protocols import ScoreSource
from souping.core.scores import MeasuredScores, TableScores, read_table
from souping.core.types import ItemScores, ScoreMatrix, UserError
from souping.logs.scores import LogScores
from tests.conftest import PAPER, ROOT, make_items
from tests.support.choices import differing, each


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.floats(0, 1)), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_percent_and_fraction_read_alike(tmp_path: Path, values: np.ndarray, percent: bool) -> None:
    scale = 100.0 if percent and values.max() > 0.02 else 1.0
    rows = [",".join([f"m{i}", *(repr(float(v * scale)) for v in row)]) for i, row in enumerate(values)]
    header = ",".join(["model", *(f"c{i}" for i in range(values.shape[1]))])
    table = read_table(write(tmp_path / "t.csv", "\n".join([header, *rows])))
    assert table.published
    np.testing.assert_allclose(table.values, values, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,a,b\nx,1,2\ny,3\n", r"t.csv:3: 2 cells"),
        ("model,a,b\nx,1,nan\n", r"t.csv:2: column 'b' holds 'nan'"),
        ("model,a,b\nx,1,-3\n", r"column 'b'"),
        ("model,a,a\nx,1,2\n", r"column 'a' appears twice"),
        ("model,a\nx,1\nx,2\n", r"t.csv: model 'x' appears twice"),
        ("name,a\nx,1\n", r"the header must be"),
        ("model,a\n", r"at least one row"),
    ],
)
def test_a_bad_table_names_row_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "t.csv", text))


def test_means_of_items_make_the_matrix() -> None:
    items = tuple(make_items(4))
    scores = {m: ItemScores(items=items, values=np.full(8, v)) for m, v in [("a", 0.25), ("b", 1.0)]}
    matrix = ScoreMatrix.from_items(scores)
    assert matrix.categories == ("w", "x")
    np.testing.assert_allclose(matrix.values, [[0.25, 0.25], [1, 1]])


LOGS = ROOT / "tests" / "data" / "logs" / "lm_eval"
SOURCES: dict[str, list[ScoreSource]] = {
    "evaluate": [MeasuredScores()],
    "table": [TableScores(path=str(PAPER / "bfcl_8b.csv"))],
    "logs": [LogScores(path={"CoALM-8B": str(LOGS / "python_cook"), "BitAgent-8B": str(LOGS / "java_cook")})],
}
CANDIDATES = ("CoALM-8B", "BitAgent-8B")


def test_every_choice_has_a_row() -> None:
    assert differing("scores", SOURCES) == {}


@pytest.mark.parametrize("source", each(SOURCES))
class TestSource:
    def test_it_gives_the_candidates_rows_and_says_whether_they_were_published(self, source: ScoreSource) -> None:
        measured = ScoreMatrix(models=CANDIDATES, categories=("x",), values=np.array([[0.5], [0.25]]))
        scores = source.matrix(CANDIDATES, lambda: measured)
        assert ScoreSource in type(source).__mro__
        assert scores.candidates == CANDIDATES
        assert scores.published == source.published

    def test_only_what_is_not_published_is_measured(self, source: ScoreSource) -> None:
        asked = []

        def measure() -> ScoreMatrix:
            asked.append(1)
            return ScoreMatrix(models=CANDIDATES, categories=("x",), values=np.array([[0.5], [0.25]]))

        source.matrix(CANDIDATES, measure)
        assert bool(asked) != source.published


def test_a_candidate_without_a_row_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"CoALM-8 .*did you mean CoALM-8B"):
        TableScores(path=str(PAPER / "bfcl_8b.csv")).matrix(("CoALM-8",), lambda: pytest.fail("measured"))
