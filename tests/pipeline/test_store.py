"""The results store."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from souping.core.types import Item, Recipe, Record, UserError
from souping.pipeline.ledger import Ledger
from souping.pipeline.store import MARK, Store
from souping.pipeline.stored_answers import StoredAnswers
from tests.conftest import claim, make_items, recipe


def test_a_vertex_is_the_single_model() -> None:
    assert recipe(1.0, 0.0).id == recipe(1.0, names=("a",)).id
    assert recipe(0.5, 0.5).id != recipe(0.4, 0.6).id
    renamed = Recipe(ingredients=("x", "y"), fingerprints=("f-a", "f-b"), weights=(0.5, 0.5), dtype="BF16")
    assert renamed.id == recipe(0.5, 0.5).id


def test_what_is_stored_comes_back_and_first_writer_wins(tmp_path: Path) -> None:
    items = make_items(2)
    with Store(tmp_path / "deep" / "s.sqlite") as store:
        records = [Record(item=i.id, score=0.5, output="x") for i in items]
        store.add(recipe(1.0, 0.0), "judge", {"a": 1}, "block", items, records)
        store.add(recipe(1.0, 0.0), "judge", {"a": 1}, "block", items[:1], [Record(item=items[0].id, score=0.9)])
        stored = store.load(recipe(1.0, 0.0).fingerprint, "judge")
        assert [score_of(stored, item) for item in items] == [0.5] * 4
        assert stored.graded(items[0], 1, "block") is stored.graded(items[0], 0, "another") is None
        assert len(store.load(recipe(1.0, 0.0).fingerprint, "other")) == 0


def score_of(stored: StoredAnswers, item: Item) -> float | None:
    record = stored.graded(item, 0, "block")
    return record.score if record else None


def test_every_part_of_an_answer_comes_back(tmp_path: Path) -> None:
    item = make_items(1)[0]
    record = Record(
        item=item.id,
        score=0.25,
        output="half a character: \ud800",
        statistics=(1.0, 2.5),
        outcome="truncated",
        reason="why",
        replicate=3,
        tokens=(5, 0, 151_643),
        prompt_tokens=12,
        prompt_key="k",
    )
    with Store(tmp_path / "s") as store:
        store.add(recipe(1.0, 0.0), "j", {}, "block", [item], [record])
        stored = store.load(recipe(1.0, 0.0).fingerprint, "j")
    assert stored.graded(item, 3, "block") == replace(record, output="half a character: ?")


def test_a_new_scorer_finds_the_answer_and_adds_its_score(tmp_path: Path) -> None:
    item = make_items(1)[0]
    other = replace(item, answer="another", category="elsewhere")
    with Store(tmp_path / "s") as store:
        store.add(recipe(1.0, 0.0), "j", {}, "block", [item], [Record(item=item.id, score=1.0, output="x")])
        stored = store.load(recipe(1.0, 0.0).fingerprint, "j")
        assert stored.graded(other, 0, "block") is None
        answer = stored.answer(other, 0, "block")
        assert answer is not None
        assert answer.output == "x"
        store.add(recipe(1.0, 0.0), "j", {}, "block", [other], [replace(answer, score=0.0)])
        stored = store.load(recipe(1.0, 0.0).fingerprint, "j")
        assert (len(stored), score_of(stored, item), score_of(stored, other)) == (1, 1.0, 0.0)


def test_a_batch_that_breaks_off_leaves_the_store_to_the_next(tmp_path: Path) -> None:
    items = make_items(2)
    records = [Record(item=i.id, score=1.0) for i in items]
    with Store(tmp_path / "s") as one, Store(tmp_path / "s") as two:
        with pytest.raises(ValueError, match="shorter"):
            one.add(recipe(0.5, 0.5), "j", {}, "block", items, records[:1])
        for store in (two, one):
            store.add(recipe(0.5, 0.5), "j", {}, "block", items, records)
        assert len(one.load(recipe(0.5, 0.5).fingerprint, "j")) == len(items)


def test_two_processes_may_write_one_store(tmp_path: Path) -> None:
    items = make_items(2)
    with Store(tmp_path / "s") as one, Store(tmp_path / "s") as two:
        for store, score in ((one, 0.25), (two, 0.75)):
            store.add(recipe(0.5, 0.5), "j", {}, "block", items, [Record(item=i.id, score=score) for i in items])
        stored = two.load(recipe(0.5, 0.5).fingerprint, "j")
        assert {score_of(stored, item) for item in items} == {0.25}


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


def test_a_store_of_another_layout_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "s") as db:
        db.execute("CREATE TABLE soups(fingerprint)")
        db.execute(f"PRAGMA application_id={MARK}")
        db.execute("PRAGMA user_version=1")
    db.close()
    with pytest.raises(UserError, match=r"^store\.path=\S+s was [^\n]*layout \d[^\n]*: mv [^\n]*$"):
        Store(tmp_path / "s")
    assert list(tmp_path.iterdir()) == [tmp_path / "s"]


def full(path: Path) -> list[Item]:
    items = make_items(100)
    with Store(path) as store:
        store.add(
            recipe(0.5, 0.5), "j", {}, "block", items, [Record(item=i.id, score=0.5, output="x" * 200) for i in items]
        )
        store.add(recipe(1.0, 0.0), "j", {}, "block", items[:1], [Record(item=items[0].id, score=1.0)])
        store.hashes["x"] = "1"
        store.remember_folder("f-a", path)
        Ledger(store).open_report(claim(recipe(0.5, 0.5), items))
    return items


def read_all(path: Path) -> int:
    with Store(path) as store:
        count = len(store.load(recipe(0.5, 0.5).fingerprint, "j"))
        store.folder_of("f-a"), store.throughput(["s"], "j")
        dict(store.hashes), len(store.hashes), Ledger(store).open_report(claim(recipe(0.5, 0.5), make_items(1)))
    return count


def test_a_damaged_page_is_told_with_the_command_that_saves_the_rest(tmp_path: Path) -> None:
    full(tmp_path / "whole")
    content, told = (tmp_path / "whole").read_bytes(), []
    for page in range(1, len(content) // 4096):
        file = tmp_path / f"{page}.sqlite"
        file.write_bytes(content[: 4096 * page] + bytes(4096) + content[4096 * (page + 1) :])
        try:
            read_all(file)
        except UserError as error:
            told.append(f"sqlite3 {file} .recover | sqlite3 {tmp_path}/{page}-saved.sqlite" in str(error))
    assert len(told) > 5
    assert all(told)


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs SQLite's command line tool")
@pytest.mark.parametrize("share", [95, 80, 60])
def test_the_command_saves_the_rows_of_a_store_that_lost_its_end(tmp_path: Path, share: int) -> None:
    full(tmp_path / "whole")
    content, cut = (tmp_path / "whole").read_bytes(), tmp_path / "cut.sqlite"
    cut.write_bytes(content[: len(content) * share // 100])
    with pytest.raises(UserError, match="the file is damaged") as caught:
        read_all(cut)
    command = str(caught.value).rpartition("save what can be read: ")[2]
    assert ("truncate" in command) == bool(len(cut.read_bytes()) % 4096)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    with sqlite3.connect(tmp_path / "cut-saved.sqlite") as db:
        there = db.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
    db.close()
    assert 0 < read_all(tmp_path / "cut-saved.sqlite") <= there


def test_rows_that_a_recovery_left_alone_are_never_found_again(tmp_path: Path) -> None:
    items = full(tmp_path / "s")
    with sqlite3.connect(tmp_path / "s") as db:
        db.execute("DELETE FROM soups WHERE id = 2")
        db.execute("DELETE FROM answers WHERE id = 200")
    db.execute("PRAGMA journal_mode=DELETE")  # as `.recover` leaves a file
    db.close()
    other = recipe(0.25, 0.75)  # it gets the number of the soup that is gone, and its answer that of the one lost
    with Store(tmp_path / "s") as store:
        assert len(store.load(other.fingerprint, "j")) == 0
        store.add(other, "j", {}, "block", items[:2], [Record(item=item.id, score=0.125) for item in items[:2]])
        stored = store.load(other.fingerprint, "j")
        assert [score_of(stored, item) for item in items[:2]] == [0.125] * 2
        assert len(store.load(recipe(0.5, 0.5).fingerprint, "j")) == 199


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


@pytest.mark.parametrize("path", ["file:x", "file:x?mode=memory"])
def test_sqlites_own_notations_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^store\.path="):
        Store(Path(path))
    assert not list(tmp_path.iterdir())
