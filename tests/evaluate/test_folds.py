"""Folds and the benchmark file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from souping.core.types import FOLDS, Item, UserError
from souping.evaluate.benchmark import Benchmark
from souping.evaluate.folds import SHARES, assign, position, shares_of, split_folds
from tests.conftest import make_items


@given(st.text(max_size=20))
def test_a_groups_fold_is_a_function_of_its_name_alone(group: str) -> None:
    assert 0 <= position(group) < 1
    assert assign(group) == assign(group) in FOLDS
    two = assign(group, two=True)
    assert two == {"select": "search"}.get(assign(group), assign(group))


def test_the_cut_is_for_good() -> None:
    """Another salt or rule would let items of a report into searches: raise the salt's version with open eyes."""
    folds = "report report report search select report report select"
    assert [assign(f"g{n}") for n in range(8)] == folds.split()
    alone = Item(id="7", category="c", prompt="what is 2 + 2?", answer="4")
    assert alone.group == "prompt da029bd12a16038c"
    assert replace(alone, id="8", category="d", answer="5", group="").group == alone.group


def test_a_renamed_file_moves_no_item(tmp_path: Path) -> None:
    rows = [{"id": str(n), "category": "c", "prompt": f"p {n}", "answer": "a"} for n in range(100)]
    cut = []
    for name in ("one.jsonl", "two.jsonl"):
        folds = split_folds(write(tmp_path / name, *rows).items())
        cut.append({item.id: fold for fold in FOLDS for item in folds.items[fold]})
    assert cut[0] == cut[1]


def test_folds_are_disjoint_by_group_and_cover() -> None:
    items = make_items(300)
    folds = split_folds(items)
    groups = [{i.group for i in folds.items[f]} for f in FOLDS]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert sum(folds.counts().values()) == len(items)
    assert folds.counts()["report"] > folds.counts()["search"]
    assert folds.notes == ()


def test_adding_items_moves_none() -> None:
    before = {i.id: f for f, items in split_folds(make_items(200)).items.items() for i in items}
    after = {i.id: f for f, items in split_folds(make_items(400)).items.items() for i in items}
    assert all(after[name] == fold for name, fold in before.items())


def test_published_scores_leave_two_folds() -> None:
    folds = split_folds(make_items(200), two=True)
    assert folds.counts()["select"] == 0
    assert folds.counts()["search"] + folds.counts()["report"] == 400


def test_many_small_categories_are_one_note() -> None:
    rare = [
        Item(id=f"{n}/{k}", category=f"rare{n:02d}", group=f"{n}/{k}", prompt="p", answer="a")
        for n in range(30)
        for k in range(4)
    ]
    folds = split_folds([*make_items(300), *rare])
    notes = folds.notes
    assert all({item.category for item in folds.items[fold]} >= {item.category for item in rare} for fold in FOLDS)
    assert len(notes) == 4
    assert "few groups" in notes[0]
    assert " more: " in notes[0]
    assert all(note.startswith("fold ") and note.endswith(" and 20 more: their rates are rough") for note in notes[1:])


def test_a_category_with_too_few_groups_is_refused() -> None:
    lonely = Item(id="x", category="lonely", prompt="p", answer="a")
    with pytest.raises(UserError, match=r"category 'lonely' has no items in fold"):
        split_folds([*make_items(100), lonely])


def write(path: Path, *rows: object) -> Benchmark:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return Benchmark(path=str(path))


GOOD = {"id": "1", "category": "c", "prompt": "p", "answer": "a"}


def test_items_are_read_with_defaults(tmp_path: Path) -> None:
    chat = {**GOOD, "id": 2, "prompt": None, "messages": [{"role": "user", "content": "hi\u2028there"}], "group": "g"}
    chat.pop("prompt")
    one, two = write(tmp_path / "mine.jsonl", GOOD, "", json.dumps(chat, ensure_ascii=False)).items()
    assert (one.scorer, one.group, one.language) == ("exact", one.group, "python")
    assert two.id == "2"
    assert two.prompt == ({"role": "user", "content": "hi\u2028there"},)
    assert one.fingerprint != two.fingerprint
    assert Benchmark(path=str(tmp_path / "mine.jsonl")).title == "mine"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{oops"], r"x.jsonl:1: not a JSON object"),
        ([GOOD, "[1]"], r"x.jsonl:2: .*not list"),
        ([{"id": "1", "category": "c", "answer": "a"}], r"x.jsonl:1: `prompt`"),
        ([{"category": "c", "prompt": "p", "answer": "a"}], r"x.jsonl:1: `id` is missing"),
        ([GOOD, GOOD], r"x.jsonl:2: id '1' appears twice"),
        ([{**GOOD, "category": " "}], r"x.jsonl:1: `category`"),
        ([{**GOOD, "prompt": 3}], r"x.jsonl:1: `prompt`"),
        ([{**GOOD, "prompt": [{"role": "user"}]}], r"x.jsonl:1: .*`content`"),
        ([{**GOOD, "prompt": [{"role": "user", "content": [{}]}]}], r"x.jsonl:1: .*`content`"),
        ([{**GOOD, "tools": [{}]}], r"x.jsonl:1: `tools`"),
        ([{k: v for k, v in GOOD.items() if k != "answer"}], r"x.jsonl:1: `answer`"),
        ([{**GOOD, "scorer": "exat"}], r"x.jsonl:1: .*exact"),
        (["[" * 100000], r"x.jsonl:1"),
        ([], r"holds no items"),
    ],
)
def test_a_bad_item_names_file_and_line(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(tmp_path / "x.jsonl", *rows).items()


def test_tool_calls_and_schemas_are_kept(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    answer = {"role": "tool", "name": "f", "content": "4"}
    rows = {**GOOD, "prompt": [{"role": "user", "content": "2 + 2?"}, call, answer], "tools": [{"name": "f"}]}
    (item,) = write(tmp_path / "x.jsonl", rows).items()
    assert item.prompt[1] == {**call, "content": ""}
    assert item.prompt[2] == answer
    assert item.tools == ({"name": "f"},)


def test_an_absent_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        Benchmark(path=str(tmp_path / "none")).items()
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"b: not UTF-8"):
        Benchmark(path=str(tmp_path / "b")).items()
    with pytest.raises(UserError, match=r"benchmark.path is not set"):
        Benchmark().items()


def test_shares_of_folds_may_be_others_and_what_is_not_named_keeps_its_proportion() -> None:
    assert shares_of(None) == shares_of({}) == SHARES
    assert shares_of({"search": 0.4}) == pytest.approx({"select": 0.15, "search": 0.4, "report": 0.45})
    assert shares_of({"select": 0.1, "search": 0.5, "report": 0.4}) == {"select": 0.1, "search": 0.5, "report": 0.4}
    items = make_items(400)
    folds = split_folds(items, shares=shares_of({"select": 0.2, "search": 0.5, "report": 0.3}))
    counts = folds.counts()
    assert counts["search"] > 1.3 * counts["report"] > 1.1 * counts["select"]
    for wrong in ({"serch": 0.4}, {"search": 1.0}, {"search": 0.0}, {"search": True}, {"select": 0.5, "search": 0.5}):
        with pytest.raises(UserError, match=r"benchmark\.folds"):
            shares_of(wrong)
    with pytest.raises(UserError, match="add up to"):
        shares_of({"select": 0.2, "search": 0.2, "report": 0.2})
