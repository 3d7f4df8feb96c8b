"""Dataclasses from JSON that people have edited: what fits is kept, what does not is empty, and nothing raises."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pytest

from souping.core.parsing import MAX_DEPTH
from souping.core.reading import NULL, read, rest, to_json
from souping.core.types import Json
from souping.core.unit import BITS_PER_BYTE, POINTS, Unit

HUGE = 10**400


@dataclass(frozen=True, kw_only=True)
class Wheel:
    spokes: int | None
    width: float | None

    def __post_init__(self) -> None:
        if self.spokes == 13:
            raise ValueError("thirteen spokes")


@dataclass(frozen=True, kw_only=True)
class Cart:
    name: str
    painted: bool
    load: float | None
    weights: tuple[float | None, ...]
    wheels: tuple[Wheel, ...]
    spare: Wheel | None
    prices: Mapping[str, float | None]
    axles: Mapping[str, Wheel]
    grid: tuple[tuple[str, ...], ...]
    front: Wheel
    remark: str | None = None
    stops: tuple[str, ...] = ()
    driver: str | None = field(default=None, metadata=NULL)
    colour: str = "blue"
    cargo: Any = None
    others: Mapping[str, Any] = rest()


WHEEL: dict[str, Any] = {"spokes": 8, "width": 2.5}
CART: dict[str, Any] = {
    "name": "hay",
    "painted": True,
    "load": 3.5,
    "weights": [1, 0.5, None],
    "wheels": [WHEEL, WHEEL],
    "spare": None,
    "prices": {"buy": 10, "sell": 2.25},
    "axles": {"rear": WHEEL},
    "grid": [["a", "b"], []],
    "front": WHEEL,
    "driver": None,
    "colour": "red",
}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def written(cart: Cart) -> str:
    return json.dumps(to_json(cart), sort_keys=True, allow_nan=False)


def test_a_value_that_was_read_is_written_as_it_was() -> None:
    assert written(read(Cart, CART)) == json.dumps(CART, sort_keys=True)
    assert read(Cart, CART).wheels[1] == Wheel(spokes=8, width=2.5)


def test_an_empty_default_is_left_out_and_a_field_without_default_is_written() -> None:
    cart = to_json(read(Cart, {}))
    assert isinstance(cart, dict)
    assert {"remark", "stops", "cargo"} & cart.keys() == set()
    assert cart["load"] is cart["driver"] is cart["spare"] is None
    assert cart["colour"] == "blue"
    assert to_json(read(Cart, {"remark": "old", "stops": ["x"]})) == {
        **cart,
        "remark": "old",
        "stops": ["x"],
    }


def test_numbers_stay_as_they_are() -> None:
    cart = read(Cart, {"load": 3, "weights": [1, 1.0, -0.0], "front": {"spokes": 4.0, "width": 2}})
    assert [type(value) for value in (cart.load, *cart.weights)] == [int, int, float, float]
    assert str(cart.weights[2]) == "-0.0"
    assert (cart.front.spokes, type(cart.front.spokes), type(cart.front.width)) == (4, int, int)


def test_a_value_that_its_class_refuses_becomes_empty() -> None:
    refused: dict[str, Json] = {"spokes": 13, "width": 1.0}
    cart = read(Cart, {"spare": refused, "front": refused, "wheels": [refused, WHEEL]})
    assert cart.spare is None
    assert cart.front == Wheel(spokes=None, width=None)
    assert cart.wheels == (Wheel(spokes=8, width=2.5),)


@pytest.mark.parametrize("key", ["made", "others", "Name"])
def test_unknown_keys_are_kept_in_the_field_for_them(key: str) -> None:
    value: Json = {"by": ["hand", 1, None]}
    cart = read(Cart, {**CART, key: value, "front": {**WHEEL, "lost": 1}})
    assert cart.others == {key: value}
    assert to_json(cart) == {**CART, key: value}


def test_odd_objects_of_a_list_are_dropped_and_other_odd_entries_become_empty() -> None:
    cart = read(
        Cart,
        {
            "wheels": [WHEEL, 3, None, "x", [WHEEL]],
            "weights": [1.0, "2", None, True, HUGE],
            "prices": {"buy": "much", "sell": 1.0},
            "axles": {"rear": 5},
            "grid": [["a", 1], "b", ["c"]],
        },
    )
    assert len(cart.wheels) == 1
    assert cart.weights == (1.0, None, None, None, None)
    assert cart.prices == {"buy": None, "sell": 1.0}
    assert cart.axles == {"rear": Wheel(spokes=None, width=None)}
    assert cart.grid == (("a", ""), (), ("c",))


@pytest.mark.parametrize(
    "value",
    [None, 1, "text", True, [], [1], {"a": 1}, math.nan, math.inf, HUGE, -HUGE, nested(700)],
    ids=lambda value: f"{type(value).__name__} {value!r:.9}",
)
def test_odd_values_are_empty_wherever_they_stand(value: Any) -> None:
    read(Cart, value)
    for key in CART:
        cart = read(Cart, {**CART, key: value, "cargo": value})
        assert read(Cart, json.loads(written(cart))) == cart


@pytest.mark.parametrize("number", [math.nan, math.inf, HUGE, -HUGE, True, "1", "nan"])
def test_a_number_that_is_not_finite_becomes_none(number: Any) -> None:
    assert read(Cart, {"load": number}).load is None
    assert read(Wheel, {"spokes": number}).spokes is None


def test_a_fraction_is_not_a_count() -> None:
    assert read(Wheel, {"spokes": 4.5}).spokes is None


def test_deep_nesting_is_cut_where_reading_json_stops() -> None:
    cart = read(Cart, {"cargo": nested(700), "far": nested(700)})
    assert read(Cart, json.loads(written(cart))) == cart
    assert to_json(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    assert to_json(nested(MAX_DEPTH + 1)) != nested(MAX_DEPTH + 1)


def test_values_that_json_does_not_have_become_plain() -> None:
    array = np.array([1.5, np.nan])
    value = {1: array, "scalar": np.float64(2.5), "count": np.int64(3), "pair": (1, {2})}
    plain = {"1": [1.5, None], "scalar": 2.5, "count": 3, "pair": [1, "{2}"]}
    assert to_json(value) == plain
    assert to_json({"unit": POINTS}) == {"unit": asdict(POINTS)}
    assert to_json(Unit) == str(Unit)


# ---------------------------------------------------------------- units of files


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0},
        {"scale": -1.0},
        {"scale": 1e308},
        {"min_gain": 0.0},
        {"min_gain": 1e-300},
        {"digits": 99},
        {"digits": -1},
        {"name": "\x1b[2J"},
        {"symbol": "\u202e"},
        {"meaning": "a\x00b"},
        {"meaning": ""},
    ],
    ids=lambda change: f"{change!r:.30}",
)
def test_a_unit_that_numbers_cannot_be_shown_in_is_not_taken_from_a_file(
    change: dict[str, Any],
) -> None:
    table = {**asdict(BITS_PER_BYTE), **change}
    assert read(Unit, table) == POINTS
    with pytest.raises(ValueError, match="unit"):
        Unit(**table)


@pytest.mark.parametrize("value", [None, "points", [], {"scale": "x"}, {"digits": None}, HUGE])
def test_a_unit_of_odd_types_is_that_of_points(value: Any) -> None:
    assert read(Unit, value) == POINTS


def test_a_unit_of_a_file_keeps_what_fits() -> None:
    assert read(Unit, {**asdict(BITS_PER_BYTE), "digits": "many"}).scale == 1.0
    assert read(Unit, asdict(BITS_PER_BYTE)) == BITS_PER_BYTE
