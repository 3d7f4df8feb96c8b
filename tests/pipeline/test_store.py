"""The results store and the evaluation that goes through it."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from souping.core.objectives import Mean
from souping.core.protocols import Served
from souping.core.types import Item, Recipe, Record, UserError
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.store import MARK, Store, save
from souping.search.loop import search
from souping.search.points import Grid
from tests.conftest import FakeEvaluator, make_items


def recipe(*weights: float, names: tuple[str, ...] = ("a", "b")) -> Recipe:
    return Recipe(ingredients=names, fingerprints=tuple(f"f-{n}" for n in names), weights=weights, dtype="BF16")


def serve(recipe: Recipe) -> SimpleNamespace:
    return SimpleNamespace(module="+".join(recipe.ingredients), tokenizer=None, folder=None)


def test_a_vertex_is_the_single_model() -> None:
    assert recipe(1.0, 0.0).id == recipe(1.0, names=("a",)).id
    assert recipe(0.5, 0.5).id != recipe(0.4, 0.6).id
    renamed = Recipe(ingredients=("x", "y"), fingerprints=("f-a", "f-b"), weights=(0.5, 0.5), dtype="BF16")
    assert renamed.id == recipe(0.5, 0.5).id


def test_what_is_stored_comes_back_and_first_writer_wins(tmp_path: Path) -> None:
    items = make_items(2)
    with Store(tmp_path / "deep" / "s.sqlite") as store:
        records = [Record(item=i.id, score=0.5, output="x") for i in items]
        store.add(recipe(1.0, 0.0), "judge", {"a": 1}, items, records)
        store.add(recipe(1.0, 0.0), "judge", {"a": 1}, items[:1], [Record(item=items[0].id, score=0.9)])
        found = store.load(recipe(1.0, 0.0).fingerprint, "judge")
        assert {r.score for r in found.values()} == {0.5}
        assert set(found) == {i.fingerprint for i in items}
        assert store.load(recipe(1.0, 0.0).fingerprint, "other") == {}


def test_a_batch_that_breaks_off_leaves_the_store_to_the_next(tmp_path: Path) -> None:
    items = make_items(2)
    records = [Record(item=i.id, score=1.0) for i in items]
    with Store(tmp_path / "s") as one, Store(tmp_path / "s") as two:
        with pytest.raises(ValueError, match="shorter"):
            one.add(recipe(0.5, 0.5), "j", {}, items, records[:1])
        for store in (two, one):
            store.add(recipe(0.5, 0.5), "j", {}, items, records)
        assert len(one.load(recipe(0.5, 0.5).fingerprint, "j")) == len(items)


def test_two_processes_may_write_one_store(tmp_path: Path) -> None:
    items = make_items(2)
    with Store(tmp_path / "s") as one, Store(tmp_path / "s") as two:
        for store, score in ((one, 0.25), (two, 0.75)):
            store.add(recipe(0.5, 0.5), "j", {}, items, [Record(item=i.id, score=score) for i in items])
        assert {r.score for r in two.load(recipe(0.5, 0.5).fingerprint, "j").values()} == {0.25}


def test_the_ledger_counts_frozen_recipes_once(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        assert [store.open_report("b", "j", r) for r in ("r1", "r2", "r1", "r3")] == [1, 2, 2, 3]
        assert store.open_report("b", "other settings", "r3") == 3
        assert store.open_report("other", "j", "r9") == 1


def test_hashes_are_a_mapping(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        hashes = store.hashes
        assert hashes.get("x") is None
        hashes["x"] = "1"
        hashes["x"] = "2"
        assert dict(hashes) == {"x": "2"}
        del hashes["x"]
        assert len(hashes) == 0


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("not a database, and longer than a header" * 50)
    with pytest.raises(UserError, match=r"store.path=.*cannot open"):
        Store(tmp_path / "s")
    with pytest.raises(UserError, match=r"store.path="):
        Store(tmp_path / "s" / "below" / "x")
    db = sqlite3.connect(tmp_path / "future")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(UserError, match="layout 99"):
        Store(tmp_path / "future")


@pytest.mark.parametrize("layout", [0, 1, 2, 3])
def test_another_programs_file_is_not_touched(tmp_path: Path, layout: int) -> None:
    for number, table in enumerate(("notes(x)", "items(id, price)", "scores(x)")):
        file = tmp_path / f"{number}.db"
        with sqlite3.connect(file) as db:
            db.execute(f"CREATE TABLE {table}")
            db.execute(f"PRAGMA user_version={layout}")
        db.close()
        before = file.read_bytes()
        with pytest.raises(UserError, match=r"store\.path=.*another program's"):
            Store(file)
        assert file.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_a_marked_file_of_another_program_is_refused_although_its_tables_are_ours(tmp_path: Path) -> None:
    with Store(tmp_path / "s"):
        pass
    with sqlite3.connect(tmp_path / "s") as db:
        assert db.execute("PRAGMA application_id").fetchone()[0] == MARK
        db.execute("PRAGMA application_id=7")
    db.close()
    with pytest.raises(UserError, match="another program's"):
        Store(tmp_path / "s")


@pytest.mark.parametrize("layout", [1, 2])
def test_a_store_of_before_the_mark_is_taken_by_its_tables(tmp_path: Path, layout: int) -> None:
    full(tmp_path / "s")
    with sqlite3.connect(tmp_path / "s") as db:
        db.execute("PRAGMA application_id=0")
        if layout == 1:
            db.execute("ALTER TABLE scores DROP COLUMN statistics")
        db.execute(f"PRAGMA user_version={layout}")
        db.execute("CREATE TABLE mine(note)")
    db.close()
    with Store(tmp_path / "s") as store:
        assert len(store.load(recipe(0.5, 0.5).fingerprint, "j")) == 200


def full(path: Path) -> list[Item]:
    items = make_items(100)
    with Store(path) as store:
        store.add(recipe(0.5, 0.5), "j", {}, items, [Record(item=i.id, score=0.5, output="x" * 200) for i in items])
        store.add(recipe(1.0, 0.0), "j", {}, items[:1], [Record(item=items[0].id, score=1.0)])
        store.hashes["x"] = "1"
        store.remember_folder("f-a", path)
        store.note_adoption("s", "j", {"from": "there"})
        store.open_report("b", "j", "r")
    return items


def read_all(path: Path) -> int:
    with Store(path) as store:
        count = len(store.load(recipe(0.5, 0.5).fingerprint, "j"))
        store.folder_of("f-a"), store.adoptions("s", "j"), store.throughput(["s"], "j")
        dict(store.hashes), len(store.hashes), store.open_report("b", "j", "r")
    return count


def test_a_damaged_page_is_told_with_the_command_that_saves_the_rest(tmp_path: Path) -> None:
    full(tmp_path / "whole")
    content, told, saved = (tmp_path / "whole").read_bytes(), [], []
    for page in range(1, len(content) // 4096):
        file = tmp_path / f"{page}.sqlite"
        file.write_bytes(content[: 4096 * page] + bytes(4096) + content[4096 * (page + 1) :])
        try:
            read_all(file)
        except UserError as error:
            told.append(f"python -m souping.pipeline.store {file}" in str(error))
            save(file, tmp_path / f"{page}-saved.sqlite")
            saved.append(read_all(tmp_path / f"{page}-saved.sqlite"))
    assert len(told) > 5
    assert all(told)
    assert max(saved) == 200
    assert any(0 < count < 200 for count in saved)


def test_what_is_saved_is_what_was_there(tmp_path: Path) -> None:
    full(tmp_path / "s")
    with sqlite3.connect(tmp_path / "s") as db:
        db.execute("UPDATE scores SET score = 'abc' WHERE item = 1")
        db.execute("UPDATE scores SET statistics = '{' WHERE item = 2")
        db.execute("DELETE FROM soups WHERE id = 2")
    db.close()
    with pytest.raises(UserError, match="damaged"):
        read_all(tmp_path / "s")
    counts = save(tmp_path / "s", tmp_path / "new")
    assert counts["scores"] == 198  # none of a soup that is not known any more
    assert (counts["adoptions"], counts["ledger"], counts["folders"]) == (1, 1, 1)
    assert read_all(tmp_path / "new") == 198
    with pytest.raises(UserError, match="exists"):
        save(tmp_path / "s", tmp_path / "new")


def test_a_store_that_is_removed_or_replaced_while_it_is_open_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("souping.pipeline.store"), "warning", lambda _, line: said.append(line))
    with Store(tmp_path / "s") as store:
        (tmp_path / "s").unlink()
        with pytest.raises(UserError, match="was removed or replaced"):
            store.hashes["x"] = "1"
        (tmp_path / "s").touch()
        with pytest.raises(UserError, match="was removed or replaced"):
            store.hashes["x"] = "1"
    assert ["was removed or replaced" in line for line in said] == [True]


def evaluation(store: Store, judge: FakeEvaluator) -> Evaluation:
    return Evaluation(store, judge, serve, lambda n: None)


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
        def evaluate(self, model: Served, items: Sequence[Item], replicate: int = 0) -> list[Record]:
            if len(self.asked) >= 14:
                raise KeyboardInterrupt
            return super().evaluate(model, items)

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
        found = search(
            strategy.start(("a", "b"), ("a", "b"), 0),
            strategy,
            lambda weights: recipe(*weights),
            evaluation(store, judge),
            items,
            Mean(),
            lambda trial: heard.append(trial.number),
        )
    assert heard == list(range(trials))
    assert found.result.objective == 0.8
    assert found.weights == (0.5, 0.5)
