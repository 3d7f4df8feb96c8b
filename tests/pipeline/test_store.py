"""The results store: one file that other runs, other processes and a kill may meet."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import subprocess
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from souping.core.types import Item, Record, UserError
from souping.pipeline.ledger import Ledger
from souping.pipeline.store import MARK, Store, StoredAnswers, row_number
from tests.conftest import claim, make_items, recipe

HALF = recipe(0.5, 0.5)


def score_of(stored: StoredAnswers, item: Item) -> float | None:
    record = stored.find(item, 0, "block")
    return record.score if record else None


def test_every_part_of_an_answer_comes_back_and_the_first_writer_wins(tmp_path: Path) -> None:
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
        seconds=0.5,
    )
    with Store(tmp_path / "deep" / "s") as one, Store(tmp_path / "deep" / "s") as two:
        for store, each in ((one, record), (two, replace(record, score=0.75, output="later"))):
            store.add(HALF, "j", {"a": 1}, "block", [item], [each])
        stored = two.load(HALF.fingerprint, "j")
        assert stored.find(item, 3, "block") == stored.first(item, 3) == replace(record, output="half a character: ?")
        assert stored.find(item, 0, "block") is stored.find(item, 3, "another") is None
        assert len(two.load(HALF.fingerprint, "other")) == 0


def test_a_new_scorer_finds_the_answer_and_adds_its_score(tmp_path: Path) -> None:
    item = make_items(1)[0]
    other = replace(item, answer="another", category="elsewhere")
    with Store(tmp_path / "s") as store:
        store.add(HALF, "j", {}, "block", [item], [Record(item=item.id, score=1.0, output="x")])
        stored = store.load(HALF.fingerprint, "j")
        answer = stored.find(other, 0, "block")
        assert answer is not None
        assert (answer.output, answer.score != answer.score, stored.first(other)) == ("x", True, None)
        store.add(HALF, "j", {}, "block", [other], [replace(answer, score=0.0)])
        stored = store.load(HALF.fingerprint, "j")
        assert (len(stored), score_of(stored, item), score_of(stored, other)) == (1, 1.0, 0.0)


def test_a_block_that_breaks_off_leaves_the_store_to_the_next(tmp_path: Path) -> None:
    items = make_items(2)
    records = [Record(item=i.id, score=1.0) for i in items]
    with Store(tmp_path / "s") as one, Store(tmp_path / "s") as two:
        with pytest.raises(ValueError, match="shorter"):
            one.add(HALF, "j", {}, "block", items, records[:1])
        assert len(two.load(HALF.fingerprint, "j")) == 0
        for store in (two, one):
            store.add(HALF, "j", {}, "block", items, records)
        assert len(one.load(HALF.fingerprint, "j")) == len(items)


def test_hashes_are_a_mapping(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        hashes = store.hashes
        hashes["x"] = "1"
        hashes["x"] = "2"
        assert dict(hashes) == dict(store.hashes) == {"x": "2"}


def foreign(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()
    return path


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (("CREATE TABLE notes(x)",), "another program's"),
        (("CREATE TABLE items(id, price)", "PRAGMA user_version=1"), "another program's"),
        (("CREATE TABLE soups(fingerprint)", "PRAGMA application_id=7"), "another program's"),
        (("PRAGMA user_version=99",), "layout 99"),
        (("CREATE TABLE soups(x)", f"PRAGMA application_id={MARK}", "PRAGMA user_version=4"), "layout 4"),
    ],
)
def test_a_file_of_another_program_or_version_is_not_touched(
    tmp_path: Path, statements: tuple[str, ...], said: str
) -> None:
    file = foreign(tmp_path / "s", *statements)
    before = file.read_bytes()
    with pytest.raises(UserError, match=rf"store\.path=.*{said}"):
        Store(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_no_database_and_sqlites_notation_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("not a database, and longer than a header" * 50)
    with pytest.raises(UserError, match=r"store.path=.*cannot open"):
        Store(tmp_path / "s")
    with pytest.raises(UserError, match=r"^store\.path=file:x"):
        Store(Path("file:x?mode=memory"))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def full(path: Path) -> list[Item]:
    items = make_items(100)
    with Store(path) as store:
        records = [Record(item=i.id, score=0.5, output="x" * 200) for i in items]
        store.add(HALF, "j", {}, "block", items, records)
        store.add(recipe(1.0, 0.0), "j", {}, "block", items[:1], [Record(item=items[0].id, score=1.0)])
        store.hashes["x"] = "1"
        store.remember_folder("f-a", path)
        Ledger(store).open_report(claim(HALF, items))
    return items


def read_all(path: Path) -> int:
    with Store(path) as store:
        count = len(store.load(HALF.fingerprint, "j"))
        store.folder_of("f-a"), store.throughput(["s"], "j")
        dict(store.hashes), Ledger(store).open_report(claim(HALF, make_items(1)))
    return count


def test_a_damaged_page_is_reported_with_the_command_that_saves_the_rest(tmp_path: Path) -> None:
    full(tmp_path / "whole")
    content, errors = (tmp_path / "whole").read_bytes(), []
    for page in range(1, len(content) // 4096):
        file = tmp_path / f"{page}.sqlite"
        file.write_bytes(content[: 4096 * page] + bytes(4096) + content[4096 * (page + 1) :])
        try:
            read_all(file)
        except UserError as error:
            errors.append(f"sqlite3 {file} .recover | sqlite3 {tmp_path}/{page}-saved.sqlite" in str(error))
    assert len(errors) > 5
    assert all(errors)


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs SQLite's command line tool")
def test_a_row_that_is_no_json_is_reported_with_its_file(tmp_path: Path) -> None:
    item = make_items(1)[0]
    with Store(tmp_path / "s") as store:
        store.add(HALF, "j", {}, "block", [item], [Record(item=item.id, score=1.0, output="x", statistics=(1.0,))])
        with store.writing() as db:
            db.execute("UPDATE grades SET statistics = '{'")
        with pytest.raises(UserError, match=r"store\.path="):
            store.load(HALF.fingerprint, "j")


def test_the_command_saves_the_rows_of_a_store_that_lost_its_end(tmp_path: Path) -> None:
    full(tmp_path / "whole")
    content, cut = (tmp_path / "whole").read_bytes(), tmp_path / "cut.sqlite"
    cut.write_bytes(content[: len(content) * 80 // 100 // 4096 * 4096])
    with pytest.raises(UserError, match="the file is damaged") as caught:
        read_all(cut)
    subprocess.run(str(caught.value).rpartition("what can be read: ")[2], shell=True, check=True, capture_output=True)
    assert read_all(tmp_path / "cut-saved.sqlite") > 0


def test_what_referred_to_a_lost_row_belongs_to_nothing_else(tmp_path: Path) -> None:
    items, other = full(tmp_path / "s"), recipe(0.25, 0.75)
    lost = row_number(recipe(1.0, 0.0).fingerprint)
    with closing(sqlite3.connect(tmp_path / "s")) as db:
        db.execute("DELETE FROM soups WHERE id = ?", (lost,))
        db.execute("DELETE FROM answers WHERE rowid = (SELECT MAX(rowid) FROM answers)")
        db.commit()
    with Store(tmp_path / "s") as store:
        assert len(store.load(other.fingerprint, "j")) == 0
        store.add(other, "j", {}, "block", items[:2], [Record(item=item.id, score=0.125) for item in items[:2]])
        stored = store.load(other.fingerprint, "j")
        assert [score_of(stored, item) for item in items[:2]] == [0.125] * 2


@pytest.mark.parametrize("replaced", [False, True])
def test_a_store_that_is_removed_or_replaced_while_it_is_open_is_reported_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, replaced: bool
) -> None:
    with caplog.at_level(logging.WARNING), Store(tmp_path / "s") as store, suppress(UserError):
        store.hashes["x"] = "0"
        (tmp_path / "s").unlink()
        if replaced:
            (tmp_path / "s").touch()
        store.hashes["x"] = "1"
    assert "store.path=" in caplog.text
    assert "removed or replaced" in caplog.text
