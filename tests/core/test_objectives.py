"""What every objective promises: add a row, and it is held to all of it; then what each computes."""

from __future__ import annotations

import numpy as np
import pytest

from souping.core.protocols import Objective
from souping.core.scores import Mean, Tree, Weighted
from souping.core.types import UserError
from souping.evaluate.bfcl.benchmark import Bfcl
from souping.testing import check_objective
from tests.support.choices import differing, each

NAMES = ["simple_python", "simple_java", "multiple", "live_simple", "irrelevance"]
ROWS: dict[str, list[Objective]] = {
    "mean": [Mean()],
    "weighted": [Weighted(weights={"multiple": 3.0, "irrelevance": 1.0})],
    "tree": [Tree(tree={"one": [["simple_python", "simple_java"], "multiple"], "two": ["live_simple"]})],
    "bfcl": [Bfcl(), Bfcl(version="v4")],
}


def test_every_choice_has_a_row() -> None:
    assert differing("objective", ROWS) == {}


@pytest.mark.parametrize("objective", each(ROWS))
class TestObjective:
    def test_it_conforms(self, objective: Objective) -> None:
        check_objective(objective, NAMES)

    def test_its_name_in_the_report_is_its_class(self, objective: Objective) -> None:
        assert objective.name == type(objective).__name__.lower()

    def test_notes_are_sentences(self, objective: Objective) -> None:
        assert all(isinstance(note, str) and note for note in objective.notes(NAMES))


def test_the_names_in_reports() -> None:
    assert {name: rows[0].name for name, rows in ROWS.items()} == {name: name for name in ROWS}


def test_objectives_are_linear_and_sum_to_one() -> None:
    names = ["python", "java", "multiple", "live"]
    tree = Tree(tree={"non_live": [["python", "java"], "multiple"], "live": ["live"]})
    np.testing.assert_allclose(tree.coefficients(names), [0.125, 0.125, 0.25, 0.5])
    np.testing.assert_allclose(Mean().coefficients(names), 0.25)
    np.testing.assert_allclose(Weighted(weights={"java": 3, "live": 1}).coefficients(names), [0, 0.75, 0, 0.25])
    with pytest.raises(UserError, match="objective: category=rust"):
        Weighted(weights={"rust": 1}).coefficients(names)
    with pytest.raises(UserError, match=r"objective.weights"):
        Weighted(weights={"java": -1})
    with pytest.raises(UserError, match=r"objective.tree"):
        Tree(tree={})
