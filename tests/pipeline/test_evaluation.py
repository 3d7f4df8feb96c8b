"""Evaluation of recipes through the store: blocks, replicates, scores of old answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from souping.core.protocols import LoadedModel
from souping.core.scores import Mean
from souping.core.types import Item, Recipe, Record, SearchSpace
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.store import Store
from souping.search.loop import SearchRun
from souping.search.points import Grid
from tests.conftest import FakeEvaluator, make_items, recipe


def serve(recipe: Recipe) -> SimpleNamespace:
    return SimpleNamespace(module="+".join(recipe.ingredients), tokenizer=None, folder=None)


def evaluation(store: Store, judge: FakeEvaluator, ends: tuple[int, ...] = ()) -> Evaluation:
    return Evaluation(store, judge, serve, lambda r: ends, lambda n: None)


def test_nothing_is_evaluated_twice(tmp_path: Path) -> None:
    items, judge = make_items(10), FakeEvaluator({"a": 5, "b": 3, "a+b": 8})
    with Store(tmp_path / "s") as store:
        first = evaluation(store, judge)
        scores = first.scores(recipe(1.0, 0.0), items)
        assert scores.values.mean() == 0.5
        assert (first.evaluated, first.reused) == (20, 0)
        second = evaluation(store, judge)
        again = second.scores(recipe(1.0, names=("a",)), items)
        assert (again.values == scores.values).all()
        assert (second.evaluated, second.reused) == (0, 20)
        assert len(judge.asked) == 20


def test_a_killed_run_loses_the_batch_in_flight_at_most(tmp_path: Path) -> None:
    class Killed(FakeEvaluator):
        def evaluate(self, model: LoadedModel, items: Sequence[Item], replicate: int = 0) -> list[Record]:
            if len(self.asked) >= 14:
                raise KeyboardInterrupt
            return super().evaluate(model, items, replicate)

    items, judge, stop = make_items(10), FakeEvaluator({"a": 5}), Killed({"a": 5})
    with Store(tmp_path / "s") as store:
        broken = evaluation(store, stop)
        with pytest.raises(KeyboardInterrupt):
            broken.scores(recipe(1.0, 0.0), items)
    with Store(tmp_path / "s") as store:
        rest = evaluation(store, judge)
        rest.scores(recipe(1.0, 0.0), items)
    assert stop.asked + judge.asked == [i.id for i in items]


@pytest.mark.parametrize(("limits", "trials"), [({}, 11), ({"trials": 4}, 4), ({"budget": 65}, 3), ({"budget": 60}, 3)])
def test_trials_count_soups_and_budget_counts_items(tmp_path: Path, limits: dict[str, int], trials: int) -> None:
    items, judge = make_items(10), FakeEvaluator({"a": 5, "b": 3, "a+b": 8})
    strategy = Grid(**limits)  # type: ignore[arg-type]
    heard: list[int] = []
    with Store(tmp_path / "s") as store:
        found = SearchRun(
            strategy.start(SearchSpace(ingredients=("a", "b")), 0),
            strategy,
            lambda weights: recipe(*weights),
            evaluation(store, judge),
            items,
            Mean(),
            lambda trial: heard.append(trial.number),
        ).run()
    assert heard == list(range(trials))
    assert found.result.objective == 0.8
    assert found.recipe.weights == (0.5, 0.5)


def asked(store: Store, judge: FakeEvaluator, items: Sequence[Item], ends: tuple[int, ...] = ()) -> int:
    """Answers that a soup's evaluation asks for anew; as many as it said beforehand."""
    fresh = evaluation(store, judge, ends)
    expected = len(fresh.missing(recipe(1.0, 0.0), items))
    fresh.scores(recipe(1.0, 0.0), items)
    assert fresh.evaluated == expected
    return fresh.evaluated


def test_a_block_is_asked_whole_and_known_by_its_shape(tmp_path: Path) -> None:
    items, judge = make_items(10), FakeEvaluator({"a": 5})
    with Store(tmp_path / "s") as store:
        assert asked(store, judge, items) == 20
        assert asked(store, judge, items[:-1]) == 5  # the last block lost an item, so that its shape is another
        assert asked(store, judge, items[:14]) == 0
        assert asked(store, judge, items[1:8]) == 7
        assert asked(store, judge, items, ends=(2, 7)) == 20  # other end tokens end answers elsewhere
        assert asked(store, judge, items) == 0


@dataclass
class Alone(FakeEvaluator):
    """Every answer for itself."""

    @property
    def blocks_matter(self) -> bool:
        return False


def test_where_blocks_do_not_matter_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    items, judge = make_items(10), Alone({"a": 5})
    with Store(tmp_path / "s") as store:
        assert [asked(store, judge, part) for part in (items[3:9], items, items[::-1])] == [6, 14, 0]


@dataclass
class Reader(FakeEvaluator):
    """Scores an old answer by the item's answer of today."""

    def rescore(self, item: Item, answer: Record) -> Record | None:
        return replace(answer, score=float(item.answer == "new"))


@pytest.mark.parametrize("reads", [True, False])
def test_another_reference_needs_no_new_answer_where_an_old_one_can_be_scored(tmp_path: Path, reads: bool) -> None:
    items, judge = make_items(3), (Reader if reads else FakeEvaluator)({"a": 5})
    changed = [replace(item, answer="new" if reads else "4") for item in items]
    with Store(tmp_path / "s") as store:
        assert asked(store, judge, items) == 6
        assert asked(store, judge, changed) == (0 if reads else 6)
        assert evaluation(store, judge).scores(recipe(1.0, 0.0), changed).values.tolist() == [1.0] * 6
        assert asked(store, judge, items) == 0


@dataclass
class Wavering(FakeEvaluator):
    """Right in the first of its answers; never answers the first item; the second answer to the next is cut."""

    def evaluate(self, model: LoadedModel, items: Sequence[Item], replicate: int = 0) -> list[Record]:
        records = []
        for record in super().evaluate(model, items, replicate):
            number = int(record.item.split("-")[1])
            outcome = "unanswered" if number == 0 else "truncated" if (number, replicate) == (1, 1) else "finished"
            score = float(replicate == 0 and number > 0)
            reason = "no room" if number == 0 else ""
            records.append(replace(record, score=score, outcome=outcome, reason=reason))
        return records


def test_several_answers_are_rows_of_their_own_and_their_outcomes_are_counted(tmp_path: Path) -> None:
    items = make_items(3, categories=("c",))
    with Store(tmp_path / "s") as store:
        assert asked(store, Wavering({"a": 5}), items) == 3
        assert asked(store, Wavering({"a": 5}, times=4), items) == 9  # the first is there
        judge = Wavering({"a": 5}, times=4)
        scores = evaluation(store, judge).scores(recipe(1.0, 0.0), items)
    assert judge.asked == []
    assert scores.values.tolist() == [0.0, 0.25, 0.25]
    assert scores.unanswered.tolist() == [1.0, 0.0, 0.0]
    assert scores.truncated.tolist() == [0.0, 0.25, 0.0]
    assert scores.reasons == {"no room": 4}
    assert scores.noise.tolist() == pytest.approx([0.0, np.var([1, 0, 0, 0], ddof=1) / 4] * 1 + [0.0625])
