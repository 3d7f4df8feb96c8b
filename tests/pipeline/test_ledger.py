"""Ledger of looks and searches: by item, whatever file, name or setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from souping.pipeline.ledger import Ledger
from souping.pipeline.store import Store
from tests.conftest import make_items

ITEMS = make_items(4, categories=("c",))


def test_looks_are_the_most_pairs_that_any_item_has_seen(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        ledger = Ledger(store)
        assert ledger.looks(ITEMS) == 0
        assert [ledger.open_report(r, "j", ITEMS) for r in ("r1", "r2", "r1", "r3")] == [1, 2, 2, 3]
        assert ledger.open_report("r3", "another template", ITEMS) == 4  # ten templates are ten looks
        assert ledger.open_report("r9", "j", ITEMS[:1]) == 5
        assert ledger.looks(ITEMS[1:]) == 4
        assert ledger.open_report("r9", "j", make_items(9, categories=("c",))[4:]) == 1


def test_names_and_additions_begin_no_ledger_anew(tmp_path: Path) -> None:
    renamed = [replace(i, id=f"x{i.id}", category="d", group="g", answer="other") for i in ITEMS]
    with Store(tmp_path / "s") as store:
        ledger = Ledger(store)
        ledger.open_report("r1", "j", ITEMS)
        assert ledger.looks(renamed) == 1
        assert ledger.open_report("r2", "j", make_items(9, categories=("e",))) == 2


def test_what_a_search_chose_on_is_known_of_each_of_its_recipes(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        ledger = Ledger(store)
        ledger.note_search(["r1", "r2"], ITEMS[:2])
        ledger.note_search(["r1"], ITEMS[1:3])
    with Store(tmp_path / "s") as store:
        ledger = Ledger(store)
        assert ledger.searched("r1") == {item.identity for item in ITEMS[:3]}
        assert ledger.searched("r2") == {item.identity for item in ITEMS[:2]}
        assert ledger.searched("r3") == set()


@pytest.mark.parametrize("count", [3])
def test_one_set_of_items_is_written_once(tmp_path: Path, count: int) -> None:
    with Store(tmp_path / "s") as store:
        for number in range(count):
            Ledger(store).note_search([f"r{number}"], ITEMS[::-1] if number else ITEMS)
        with store.reading() as db:
            assert db.execute("SELECT COUNT(*) FROM members").fetchone() == (len(ITEMS),)
