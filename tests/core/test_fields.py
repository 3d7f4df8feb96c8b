"""Values against annotations: components, arguments, choices, and JSON that people edit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import pytest

from souping.core.fields import (
    Bounds,
    Count,
    Form,
    Share,
    check_arguments,
    component,
    load_json,
    pick,
)
from souping.core.scores import TableScores
from souping.core.types import UserError

LISTS = [list[str], tuple[str, ...], tuple[str, str]]


@component
class Oven:
    """A component with a field of each kind."""

    steps: Count = 1
    heat: Annotated[float, Bounds(gt=0, lt=300)] = 200.0
    way: Literal["bake", "grill"] = "bake"
    share: Share | None = None
    name: Annotated[str, Form(r"\w+", "one word")] = "oven"
    trays: list[str] = field(default_factory=list)
    tags: dict[str, bool | int] = field(default_factory=dict)
    timer: Callable[[int], int] | None = None
    inner: Oven | None = None
    _state: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.way == "grill" and self.heat < 100:
            raise UserError("oven.heat is too low to grill")


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"heat": float("nan")},
        {"way": "boil"},
        {"share": 1.5},
        {"name": "two words"},
        {"trays": [1]},
        {"tags": {"a": "b"}},
        {"trays": "abc"},
        {"steps": True},
        {"timer": 3},
    ],
    ids=repr,
)
def test_a_value_that_does_not_fit_names_class_and_field(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^Oven\({next(iter(values))}="):
        Oven(**values)


def test_values_that_fit_and_relations_between_them() -> None:
    with pytest.raises(UserError, match="too low to grill"):
        Oven(way="grill", heat=50)
    steps: Any = np.int64(3)
    pair: Any = ("a",)
    array: Any = np.array(["a"])
    oven = Oven(
        steps=steps,
        heat=1,
        share=0.5,
        trays=pair,
        tags={"a": True, "b": 2},
        timer=abs,
        inner=Oven(),
    )
    assert type(oven.steps) is int
    assert Oven(trays=array).trays == ["a"]
    assert TableScores(path=Path("scores.csv")).path == "scores.csv"  # type: ignore[arg-type]
    assert dataclasses.replace(oven, steps=4).steps == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        oven.steps = 5  # type: ignore[misc]


def test_arguments_and_options_are_held_against_their_annotations() -> None:
    assert pick("a", ["a", "b"], "key") == "a"
    with pytest.raises(UserError, match=r"^group\.key=bleu .*did you mean blue"):
        pick("bleu", ["red", "blue"], "group.key")

    def bake(minutes: Count, way: Literal["bake", "grill"] | None = None) -> None: ...

    check_arguments(bake, {"minutes": 3, "way": None})
    with pytest.raises(UserError, match=r"^minutes=0 "):
        check_arguments(bake, {"minutes": 0})
    with pytest.raises(UserError, match=r"^way='gril' .*did you mean grill"):
        check_arguments(bake, {"way": "gril"})


class Inner(TypedDict, total=False):
    """Keys that may be absent."""

    weight: float


class Outer(TypedDict):
    """Keys that are there."""

    name: str
    inner: Inner


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"name": 3, "inner": {}}', "name"),
        ('{"name": "a"}', "inner"),
        ('{"name": "a", "inner": {"weight": "b"}}', r"inner\.weight"),
        ("[]", "recipe="),
        ("{", "not JSON"),
    ],
)
def test_json_that_was_edited_names_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "edited.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"recipe=.*edited\.json.*{words}|{words}.*edited\.json"):
        load_json(path, Outer, "recipe")
    path.write_text(json.dumps({"name": "a", "inner": {"weight": 1}, "more": 1}))
    assert load_json(path, Outer)["inner"] == {"weight": 1}
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="UTF-8"):
        load_json(path, Outer)


@pytest.mark.parametrize("annotation", LISTS, ids=str)
def test_lists_and_tuples_are_described_alike(tmp_path: Path, annotation: Any) -> None:
    path = tmp_path / "edited.json"
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match=r"edited\.json: it must be a list, each a text"):
        load_json(path, annotation)
