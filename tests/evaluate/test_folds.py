"""Folds and the benchmark file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from souping.core.types import FOLDS, Item, UserError
from souping.evaluate.benchmark import (
    FOLD_SHARES,
    Benchmark,
    assign,
    position,
    shares_of,
    split_folds,
)
from tests.conftest import make_items


@given(st.text(max_size=20))
def test_a_groups_fold_is_a_function_of_its_name_alone(group: str) -> None:
    assert 0 <= position(group) < 1
    assert assign(group) == assign(group) in FOLDS
    two = assign(group, two=True)
    assert two == {"select": "search"}.get(assign(group), assign(group))


def test_the_cut_is_for_good() -> None:
    folds = "report report report search select report report select"
    assert [assign(f"g{n}") for n in range(8)] == folds.split()
    alone = Item(id="7", category="c", prompt="what is 2 + 2?", answer="4")
    assert alone.group == "prompt da029bd12a16038c"
    assert replace(alone, id="8", category="d", answer="5", group="").group == alone.group


def test_folds_are_disjoint_by_group_and_cover_and_more_items_move_none() -> None:
    items = make_items(300)
    folds = split_folds(items)
    more = {
        i.id: fold for fold, members in split_folds(make_items(400)).items.items() for i in members
    }
    assert all(more[i.id] == fold for fold, members in folds.items.items() for i in members)
    groups = [{i.group for i in folds.items[f]} for f in FOLDS]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert sum(folds.counts().values()) == len(items)
    assert folds.counts()["report"] > folds.counts()["search"]
    assert folds.notes == ()
    assert split_folds(items, two=True).counts()["select"] == 0


def test_a_category_with_too_few_groups_is_refused() -> None:
    lonely = Item(id="x", category="lonely", prompt="p", answer="a")
    with pytest.raises(UserError, match=r"category 'lonely' has no items in fold"):
        split_folds([*make_items(100), lonely])


def write(path: Path, *rows: object) -> Benchmark:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return Benchmark(path=str(path))


GOOD = {"id": "1", "category": "c", "prompt": "p", "answer": "a"}


def test_items_are_read_with_defaults(tmp_path: Path) -> None:
    chat = {
        **GOOD,
        "id": 2,
        "prompt": None,
        "messages": [{"role": "user", "content": "hi\u2028there"}],
        "group": "g",
    }
    chat.pop("prompt")
    one, two = write(
        tmp_path / "mine.jsonl", GOOD, "", json.dumps(chat, ensure_ascii=False)
    ).items()
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
        ([{"category": "c", "prompt": "p", "answer": "a"}], r"x.jsonl:1: `id` is missing"),
        ([GOOD, GOOD], r"x.jsonl:2: id '1' appears twice"),
        ([{**GOOD, "prompt": [{"role": "user", "content": [{}]}]}], r"x.jsonl:1: .*`content`"),
        ([{**GOOD, "tools": [{}]}], r"x.jsonl:1: `tools`"),
        ([{**GOOD, "scorer": "exat"}], r"x.jsonl:1: .*exact"),
        (["[" * 100000], r"x.jsonl:1"),
        ([], r"holds no items"),
    ],
)
def test_a_bad_item_names_file_and_line(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(tmp_path / "x.jsonl", *rows).items()


def test_tool_calls_and_schemas_are_kept(tmp_path: Path) -> None:
    call = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    answer = {"role": "tool", "name": "f", "content": "4"}
    rows = {
        **GOOD,
        "prompt": [{"role": "user", "content": "2 + 2?"}, call, answer],
        "tools": [{"name": "f"}],
    }
    (item,) = write(tmp_path / "x.jsonl", rows).items()
    assert item.prompt[1] == {**call, "content": ""}
    assert item.prompt[2] == answer
    assert item.tools == ({"name": "f"},)


def test_shares_of_folds_may_be_others_and_what_is_not_named_keeps_its_proportion() -> None:
    assert shares_of(None) == shares_of({}) == FOLD_SHARES
    assert shares_of({"search": 0.4}) == pytest.approx(
        {"select": 0.15, "search": 0.4, "report": 0.45}
    )
    assert shares_of({"select": 0.1, "search": 0.5, "report": 0.4}) == {
        "select": 0.1,
        "search": 0.5,
        "report": 0.4,
    }
    items = make_items(400)
    folds = split_folds(items, shares=shares_of({"select": 0.2, "search": 0.5, "report": 0.3}))
    counts = folds.counts()
    assert counts["search"] > 1.3 * counts["report"] > 1.1 * counts["select"]
    for wrong in (
        {"serch": 0.4},
        {"search": 1.0},
        {"search": 0.0},
        {"search": True},
        {"select": 0.5, "search": 0.5},
    ):
        with pytest.raises(UserError, match=r"benchmark\.folds"):
            shares_of(wrong)
    with pytest.raises(UserError, match="add up to"):
        shares_of({"select": 0.2, "search": 0.2, "report": 0.2})
