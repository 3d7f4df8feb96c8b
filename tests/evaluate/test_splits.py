"""Splits and the benchmark file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from souping.core.groups import groups_of
from souping.core.protocols import Prompts
from souping.core.types import SPLITS, Item, Json, JsonObject, UserError, digest
from souping.evaluate.benchmark import (
    SPLIT_SHARES,
    Benchmark,
    EvaluatorBenchmark,
    ListedItems,
    assign,
    first_items,
    included_items,
    limit_splits,
    make_splits,
    outline_items,
    position,
    shares_of,
    two_splits,
)
from tests.conftest import make_items


@given(st.text(max_size=20))
def test_a_groups_split_is_a_function_of_its_name_alone(group: str) -> None:
    assert 0 <= position(group) < 1
    assert assign(group) == assign(group) in SPLITS
    two = assign(group, two=True)
    assert two == {"select": "search"}.get(assign(group), assign(group))


def test_the_cut_is_for_good() -> None:
    splits = "test test test search select test test select"
    assert [assign(f"g{n}") for n in range(8)] == splits.split()
    alone = Item(id="7", category="c", prompt="what is 2 + 2?", answer="4")
    assert alone.group == "prompt da029bd12a16038c"
    assert replace(alone, id="8", category="d", answer="5", group="").group == alone.group


def groups_in(items: Sequence[Item]) -> set[str]:
    return {item.group for item in items}


def test_splits_are_disjoint_by_group_and_cover_and_more_items_move_none() -> None:
    items = make_items(300)
    splits = make_splits(items)
    more = {
        i.id: split
        for split, members in make_splits(make_items(400)).items.items()
        for i in members
    }
    assert all(more[i.id] == split for split, members in splits.items.items() for i in members)
    groups = [groups_in(splits.items[split]) for split in SPLITS]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert sum(splits.counts().values()) == len(items)
    assert splits.counts()["test"] > splits.counts()["search"]
    assert splits.notes == ()
    assert make_splits(items, two=True).counts()["select"] == 0


def test_the_content_of_splits_is_which_item_is_in_which_split_in_any_order() -> None:
    splits = make_splits(make_items(60))
    contents = []
    for split in SPLITS:
        contents.append(sorted([i.category, i.fingerprint] for i in splits.items[split]))
    assert splits.content == digest(contents)
    backwards = {split: items[::-1] for split, items in splits.items.items()}
    assert replace(splits, items=backwards).content == splits.content
    for split, other in zip(SPLITS, (*SPLITS[1:], SPLITS[0]), strict=True):
        first, *rest = splits.items[split]
        moved = {split: tuple(rest), other: (*splits.items[other], first)}
        assert replace(splits, items={**splits.items, **moved}).content != splits.content
        changed = {split: (replace(first, answer="another"), *rest)}
        assert replace(splits, items={**splits.items, **changed}).content != splits.content


def test_a_category_with_too_few_groups_is_refused() -> None:
    lonely = Item(id="x", category="lonely", prompt="p", answer="a")
    with pytest.raises(UserError, match=r"category 'lonely' has no items in split"):
        make_splits([*make_items(100), lonely])


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
        ([{"id": "1", "prompt": "p", "answer": "a"}], r"x.jsonl:1: `category` is missing"),
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


def test_shares_of_splits_may_be_others_and_what_is_not_named_keeps_its_proportion() -> None:
    assert shares_of(None) == shares_of({}) == SPLIT_SHARES
    assert shares_of({"search": 0.4}) == pytest.approx(
        {"select": 0.15, "search": 0.4, "test": 0.45}
    )
    assert shares_of({"select": 0.1, "search": 0.5, "test": 0.4}) == {
        "select": 0.1,
        "search": 0.5,
        "test": 0.4,
    }
    items = make_items(400)
    splits = make_splits(items, shares=shares_of({"select": 0.2, "search": 0.5, "test": 0.3}))
    counts = splits.counts()
    # 0.5 is 1.67 times 0.3, and that 1.5 times 0.2; groups are dealt by a hash.
    assert counts["search"] > 1.3 * counts["test"] > 1.1 * counts["select"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"serch": 0.4},
        {"search": 1.0},
        {"search": 0.0},
        {"search": True},
        {"select": 0.5, "search": 0.5},
    ],
    ids=str,
)
def test_shares_that_leave_a_split_nothing_or_name_none_are_refused(
    wrong: dict[str, float],
) -> None:
    with pytest.raises(UserError, match=r"benchmark\.splits"):
        shares_of(wrong)


def test_shares_of_all_splits_add_up_to_one() -> None:
    with pytest.raises(UserError, match="add up to"):
        shares_of({"select": 0.2, "search": 0.2, "test": 0.2})


# The rules by hand


def in_groups(**groups: str) -> list[Item]:
    """An item for each group of a category, {category: groups}."""
    items = []
    for category, names in groups.items():
        for group in names.split():
            items.append(
                Item(
                    id=f"{category} {group}", category=category, prompt="p", answer="a", group=group
                )
            )
    return items


def test_the_position_of_a_group_is_its_hash() -> None:
    """The first 64 bits of SHA-256 of salt and name, over 2^64; shares are cut at 0.2 and 0.4."""
    for group in ("g0", "g3", "g4", "x"):
        text = f"souping folds 4\0{group}".encode()
        first_bits = int(hashlib.sha256(text).hexdigest()[:16], 16)
        place = first_bits / 2**64
        assert position(group) == place
        split = "test"
        if place < 0.4:
            split = "search"
        if place < 0.2:
            split = "select"
        assert assign(group) == split
        assert assign(group, two=True) == ("test" if split == "test" else "search")


def test_a_small_category_gets_a_group_in_each_split_from_the_split_that_has_most() -> None:
    """By their hashes g0 to g2 and g5 are in report; the first by its hash moves to select, the next to search."""
    names = ["g0", "g1", "g2", "g5"]
    assert {assign(name) for name in names} == {"test"}
    first, second, *others = sorted(names, key=position)
    splits = make_splits(in_groups(c=" ".join(names)))
    groups = {split: sorted(groups_in(splits.items[split])) for split in SPLITS}
    assert groups == {"select": [first], "search": [second], "test": sorted(others)}
    assert "2 moved" in splits.notes[0]
    assert "c (4)" in splits.notes[0]


def test_three_groups_fill_three_splits_and_two_do_not() -> None:
    splits = make_splits(in_groups(c="g0 g1 g2"))
    assert splits.counts() == {"select": 1, "search": 1, "test": 1}
    with pytest.raises(UserError, match="category 'c'"):
        make_splits(in_groups(c="g0 g1"))
    assert make_splits(in_groups(c="g0 g1"), two=True).counts() == {
        "select": 0,
        "search": 1,
        "test": 1,
    }


def test_two_splits_have_no_items_to_select_by() -> None:
    splits = two_splits(make_items(100))
    assert not splits["select"]
    assert len(splits["search"]) + len(splits["test"]) == 200


@pytest.mark.parametrize(("size", "small"), [(19, True), (20, False)])
def test_a_split_with_fewer_than_twenty_items_of_a_category_is_noted(
    size: int, small: bool
) -> None:
    items = make_items(300, ["w"])
    searched = [item for item in items if assign(item.group) == "search"][:size]
    others = [item for item in items if assign(item.group) != "search"]
    notes = make_splits([*searched, *others]).notes
    assert any("split search" in note and f"w ({size})" in note for note in notes) == small


def test_a_dry_run_has_the_first_items_and_reports_on_those_of_neither_split() -> None:
    splits = make_splits(make_items(200))
    few = limit_splits(splits, 3)
    for split in ("select", "search"):
        for category in ("w", "x"):
            own = [item for item in splits.items[split] if item.category == category]
            assert [item for item in few.items[split] if item.category == category] == own[:3]
    taken = {item.group for item in [*few.items["select"], *few.items["search"]]}
    report = few.items["test"]
    assert len(report) == 6
    assert not taken & {item.group for item in report}
    assert set(report) <= {*splits.items["select"], *splits.items["search"]}
    assert "on 6 items" in few.notes[0]
    all_of_them = limit_splits(splits, 1000)
    assert all_of_them.items["test"] == all_of_them.items["search"]
    assert first_items(report, None) == report


def test_groups_are_joined_by_texts_directly_or_through_others() -> None:
    shared = [
        ("a", ["1"]),
        ("b", ["2", "1"]),
        ("c", ["3"]),
        ("d", ["2"]),
        ("e", []),
        ("f", ["3", "4"]),
    ]
    assert groups_of(shared) == {"a": "a", "b": "a", "c": "c", "d": "a", "e": "e", "f": "c"}


def test_items_of_one_number_are_a_group_in_shared_categories() -> None:
    items = outline_items({"a": 2, "b": 2, "c": 2}, ["a", "b"])
    assert [item.id for item in items] == ["a/0", "a/1", "b/0", "b/1", "c/0", "c/1"]
    groups = [item.group for item in items]
    assert groups[:4] == ["shared 0", "shared 1", "shared 0", "shared 1"]
    assert len(set(groups)) == 4


@pytest.mark.parametrize(
    "shares",
    [
        {"select": 0.995},
        {"select": 0.6, "search": 0.395},
        {"select": 0.2, "search": 0.2, "test": 0.60001},
    ],
)
def test_shares_that_leave_too_little_or_do_not_make_1(shares: dict[str, float]) -> None:
    with pytest.raises(UserError, match="add up to"):
        shares_of(shares)


def test_the_evaluators_items_have_the_name_that_was_chosen() -> None:
    """The user's choice of items keeps the name and the shares; otherwise the name is the evaluator's."""
    whole = ListedItems(listed=make_items(2))

    class Own(Prompts):
        @property
        def benchmark(self) -> ListedItems:
            return whole

        def outline(self) -> tuple[Item, ...]:
            return outline_items({"w": 3, "x": 3}, [])

    choice = EvaluatorBenchmark(exclude=["w"], limit=1, splits={"test": 0.5})
    brought = choice.brought_by(Own())
    assert (brought.title, brought.label, brought.splits) == ("items", "items", {"test": 0.5})
    assert [item.id for item in brought.items()] == [make_items(2)[2].id]
    assert replace(choice, name="mine").brought_by(Own()).title == "mine"
    assert choice.brought_by(Prompts()) is choice
    assert [item.id for item in choice.outline(Own())] == ["x/0"]
    assert choice.outline(Prompts()) == ()
    assert choice.from_evaluator
    assert not brought.from_evaluator


def test_excluded_categories_are_left_out() -> None:
    items = make_items(2)
    assert {item.category for item in included_items(tuple(items), ["w"])} == {"x"}
    assert included_items(tuple(items), []) == tuple(items)
    w, x = included_items(tuple(items), [], limit=1)
    assert [w, x] == [items[0], items[2]]
    with pytest.raises(UserError, match="leave one in"):
        included_items(tuple(items), ["w", "x"])
    with pytest.raises(UserError, match=r"benchmark\.exclude"):
        included_items(tuple(items), ["v"])


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.0, 1.5])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(UserError, match=r"benchmark\.splits\.test"):
        shares_of({"test": share})


def test_a_message_without_content_may_call_tools() -> None:
    tools: Json = [{"name": "f"}]
    call: JsonObject = {"role": "assistant", "content": None, "tool_calls": tools}
    said: JsonObject = {"role": "assistant", "content": "wait", "tool_calls": tools}
    row: dict[str, Json] = {"id": "1", "category": "c", "answer": "a", "messages": [call, said]}
    (item,) = ListedItems(listed=[row]).items()
    assert item.prompt == ({**call, "content": ""}, said)
    wrong_messages: tuple[JsonObject, ...] = (
        {"role": "user", "content": None},
        {"content": "hi"},
        {"role": "user", "content": 3},
    )
    for wrong in wrong_messages:
        with pytest.raises(UserError, match="chat message"):
            ListedItems(listed=[{**row, "messages": [wrong]}]).items()


def test_a_text_without_an_answer_is_an_item_of_the_loss() -> None:
    (item,) = ListedItems(listed=[{"text": "Once upon a time", "source": "tales"}]).items()
    assert (item.prompt, item.answer, item.scorer, item.category) == (
        "Once upon a time",
        "",
        "loss",
        "tales",
    )
    with pytest.raises(UserError, match=r"items\[0\]: `source` is missing"):
        ListedItems(listed=[{"text": "Once"}]).items()
    with pytest.raises(UserError, match="`text` is empty"):
        ListedItems(listed=[{"text": "", "source": "tales"}]).items()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", 1.5),
        ("category", ["c"]),
        ("scorer", {}),
        ("group", []),
        ("prompt", 3),
        ("tools", "f"),
    ],
)
def test_a_key_of_another_type_is_named(key: str, value: Json) -> None:
    row: JsonObject = {"id": "1", "category": "c", "prompt": "p", "answer": "a"}
    assert len(ListedItems(listed=[row]).items()) == 1
    with pytest.raises(UserError, match=rf"items\[0\]: `{key}` "):
        ListedItems(listed=[{**row, key: value}]).items()


def test_ids_of_items_without_one_are_those_of_their_prompts() -> None:
    rows: list[JsonObject] = [
        {"category": "c", "answer": "a", "prompt": p} for p in ("x", "y", "x")
    ]
    first, second, third = ListedItems(listed=rows).items()
    assert first.id == first.prompt_digest[:16]
    assert second.id == second.prompt_digest[:16]
    assert third.id == f"{first.id}-2"
    with pytest.raises(UserError, match=r"items\[1\]: id '7' appears twice"):
        ListedItems(listed=[{**row, "id": 7} for row in rows]).items()
    with pytest.raises(UserError, match="holds no items"):
        ListedItems(listed=[]).items()
