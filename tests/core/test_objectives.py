"""What every objective promises: add a row, and it is held to all of it; then what each computes."""

from __future__ import annotations

import numpy as np
import pytest

from souping.core.objectives import Mean, Tree, Weighted, value
from souping.core.protocols import Objective
from souping.core.types import UserError
from souping.evaluate.bfcl.benchmark import Bfcl
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
    def test_it_is_an_objective_with_a_name_for_the_report(self, objective: Objective) -> None:
        assert Objective in type(objective).__mro__
        assert objective.name == type(objective).__name__.lower()

    def test_coefficients_are_a_weight_a_category_and_sum_to_one(self, objective: Objective) -> None:
        coefficients = objective.coefficients(NAMES)
        assert coefficients.shape == (len(NAMES),)
        assert (coefficients >= 0).all()
        assert coefficients.sum() == pytest.approx(1.0)

    def test_the_order_of_the_categories_changes_nothing(self, objective: Objective) -> None:
        given = dict(zip(NAMES, objective.coefficients(NAMES), strict=True))
        turned = dict(zip(NAMES[::-1], objective.coefficients(NAMES[::-1]), strict=True))
        assert turned == pytest.approx(given)

    def test_equal_scores_are_the_objective(self, objective: Objective) -> None:
        assert value(objective, dict.fromkeys(NAMES, 0.7)) == pytest.approx(0.7)

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
