"""BFCL by its own package: its environment, items and groups, its checker on answers of ours, its overall."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest

from souping.core.scores import value
from souping.core.types import Item, UserError
from souping.evaluate import scoring
from souping.evaluate.benchmark import first_items, make_splits
from souping.evaluate.bfcl import (
    BFCL_EVAL_VERSION,
    BFCL_FOLDER,
    Environment,
    find_environment,
)
from souping.evaluate.bfcl.bfcl_benchmark import Bfcl, BfclBenchmark
from souping.logs.bfcl_items import FILE_ITEMS, MULTI_TURN, SINGLE_TURN
from tests.support.bfcl import UNMET, answer_key, right_answer, score, wrong_answers
from tests.support.evaluators import bfcl_place


@pytest.fixture(scope="module")
def items(bfcl: Environment) -> tuple[Item, ...]:
    return BfclBenchmark(data=bfcl.data, categories=SINGLE_TURN).items()


def test_the_files_are_whole(bfcl: Environment) -> None:
    counts = Counter(
        item.category
        for item in BfclBenchmark(data=bfcl.data, categories=tuple(FILE_ITEMS)).items()
    )
    assert counts == FILE_ITEMS
    assert sum(counts.values()) == 4441
    assert len(counts) == 17


def test_items_over_one_function_document_share_a_group(
    bfcl: Environment, items: Sequence[Item]
) -> None:
    groups: dict[str, set[str]] = {}
    for item in items:
        for doc in answer_key(item)["functions"]:
            groups.setdefault(json.dumps(doc, sort_keys=True), set()).add(item.group)
    assert {len(found) for found in groups.values()} == {1}
    assert len({item.group for item in items}) > 1500  # and no more than that holds them together
    turns = BfclBenchmark(data=bfcl.data, categories=MULTI_TURN).items()
    # a scenario's variants share one
    assert len({(item.id.rsplit("_", 1)[1], item.group) for item in turns}) == 200


def test_splits_do_not_depend_on_the_categories(bfcl: Environment) -> None:
    def split_of(categories: tuple[str, ...]) -> dict[str, str]:
        found = make_splits(BfclBenchmark(data=bfcl.data, categories=categories).items())
        return {item.id: split for split, members in found.items.items() for item in members}

    few = split_of(("simple_python", "parallel"))
    all_of_them = split_of(tuple(FILE_ITEMS))
    assert len(few) == 600
    assert few == {name: all_of_them[name] for name in few}


@pytest.mark.slow
def test_right_answers_are_right(bfcl: Environment, items: Sequence[Item], tmp_path: Path) -> None:
    found = score(bfcl, tmp_path, items, {item.id: right_answer(item) for item in items})
    assert {item.id for item, record in zip(items, found, strict=True) if not record.score} == set(
        UNMET
    )
    assert Counter(item.category for item in items).keys() == set(SINGLE_TURN)
    ours = {
        item.id
        for item, r in zip(items, found, strict=True)
        if scoring.score(item, r.output) != r.score
    }
    # our scorer takes the quotes off strings in Java arrays, bfcl-eval leaves them on
    assert ours == {name for name, reason in UNMET.items() if reason == "array of strings"}


@pytest.mark.slow
def test_planted_errors_are_wrong(bfcl: Environment, items: Sequence[Item], tmp_path: Path) -> None:
    planted = {}
    kinds = Counter[tuple[str, str]]()
    for number, item in enumerate(items):
        options = sorted(wrong_answers(item).items())
        kind, planted[item.id] = options[number % len(options)]
        kinds[kind, item.category] += 1
    found = score(bfcl, tmp_path, items, planted)
    assert [record.item for record in found if record.score] == []
    assert [item.id for item in items if scoring.score(item, planted[item.id])] == []
    assert len({kind for kind, _ in kinds}) == 6
    for category in ("simple_java", "simple_javascript", "live_parallel_multiple"):
        assert len({kind for kind, where in kinds if where == category}) == 5, category


@pytest.mark.slow
def test_handlers_read_what_their_models_write(bfcl: Environment, tmp_path: Path) -> None:
    item = BfclBenchmark(data=bfcl.data, categories=("simple_python",)).items()[0]
    python = right_answer(item)
    ((name, allowed),) = answer_key(item)["calls"][0].items()
    arguments = {key: values[0] for key, values in allowed.items() if values[0] != ""}
    xlam = json.dumps([{"name": name, "arguments": arguments}])
    wants = {
        "watt-ai/watt-tool-8B": python,
        "Salesforce/Llama-xLAM-2-8b-fc-r": xlam,
        "chat-template": python,
    }
    for handler, answer in wants.items():
        for text, right in ((answer, 1.0), (xlam if answer == python else python, 0.0)):
            root = tmp_path / f"{handler}{right}".replace("/", "_")
            (found,) = score(bfcl, root, [item], {item.id: text}, handler)
            assert found.score == right, handler


@pytest.mark.slow
def test_turns_are_checked_by_running_their_calls(bfcl: Environment, tmp_path: Path) -> None:
    items = first_items(BfclBenchmark(data=bfcl.data, categories=MULTI_TURN).items(), 12)
    named = [item for item in items if all(map(_named, chain(*answer_key(item)["turns"])))]
    assert len({item.category for item in named if answer_key(item)["turns"][-1]}) == 4
    right = {}
    for item in named:
        right[item.id] = [[f"[{', '.join(turn)}]"] for turn in answer_key(item)["turns"]]
    for silent in (False, True):
        said = {name: [*turns[:-1], ["[]"]] if silent else turns for name, turns in right.items()}
        found = score(bfcl, tmp_path / str(silent), named, said)
        wanted = [float(not silent or not answer_key(item)["turns"][-1]) for item in named]
        assert [record.score for record in found] == wanted


def _named(call: str) -> bool:
    """Whether a call names all of its arguments: bfcl-eval's reader loses the others."""
    tree = ast.parse(call, mode="eval").body
    return isinstance(tree, ast.Call) and not tree.args


def test_the_overall_by_hand() -> None:
    scores = dict.fromkeys(FILE_ITEMS, 0.0)
    assert value(Bfcl(), scores | {"simple_java": 0.9}) == pytest.approx(0.9 / 3 / 5 / 3)
    assert value(Bfcl(), scores | {"irrelevance": 0.5}) == pytest.approx(0.5 / 5 / 3)
    assert value(Bfcl(), scores | {"live_multiple": 1.0}) == pytest.approx(1053 / 2251 / 3)
    assert value(Bfcl(), scores | {"multi_turn_miss_func": 1.0}) == pytest.approx(1 / 12)
    assert value(Bfcl(), dict.fromkeys(scores, 0.7)) == pytest.approx(0.7)


def test_a_category_that_was_not_evaluated_has_no_score() -> None:
    assert value(Bfcl(), {"simple_python": 0.4, "multiple": 0.8}) == pytest.approx(0.6)
    # Half is for live, of whose 2,251 items 258 are in live_simple.
    single = dict.fromkeys(SINGLE_TURN, 0.5)
    assert value(Bfcl(), single | {"live_simple": 1.0}) == pytest.approx(
        (0.5 + 0.5 + 0.5 * 258 / 2251) / 2
    )
    (note,) = Bfcl().notes(SINGLE_TURN)
    assert "without multi_turn_base, multi_turn_miss_func" in note
    assert Bfcl().notes(list(FILE_ITEMS)) == []


LEVELS = ("minimal", "full")


def requirements(level: str) -> list[str]:
    lines = (BFCL_FOLDER / "requirements" / f"{level}.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_a_missing_environment_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"minimal\.txt$"):
        find_environment(tmp_path)
    bfcl_place(tmp_path)
    assert find_environment(tmp_path).level == "minimal"
    with pytest.raises(UserError, match=r"full\.txt$"):
        find_environment(tmp_path, full=True)
    package = find_environment(tmp_path).package
    (package.parent / "qwen_agent").mkdir()
    assert find_environment(tmp_path, full=True).level == "full"
    info = package.with_name(f"bfcl_eval-{BFCL_EVAL_VERSION}.dist-info")
    info.rename(info.with_name("bfcl_eval-2025.1.1.dist-info"))
    with pytest.raises(UserError, match=BFCL_EVAL_VERSION):
        find_environment(tmp_path)


def test_every_release_is_pinned_and_the_lists_agree() -> None:
    pins = []
    for level in LEVELS:
        lines = requirements(level)
        assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
        assert lines == sorted(lines, key=str.lower)
        pins.append(dict(line.lower().split("==") for line in lines))
    different = {name for name in pins[0].keys() & pins[1].keys() if pins[0][name] != pins[1][name]}
    assert pins[0]["bfcl-eval"] == pins[1]["bfcl-eval"] == BFCL_EVAL_VERSION
    # another package holds these back in the full one
    assert different <= {"python-dateutil", "tenacity"}
