"""What an engine holds is compared with the average of what it held of each candidate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from souping.core.protocols import WeightSamples
from souping.core.types import Recipe, UserError
from souping.merge.loaded_weights import SAMPLED_VALUES, LoadedWeights, sample_weights

SHARES = {"ant": 0.3, "bee": 0.7}
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What goes to run.log."""
    said: list[str] = []
    log = SimpleNamespace(info=lambda text, *values: said.append(text % values))
    monkeypatch.setattr("souping.merge.loaded_weights.log", log)
    return said


def recipe(shares: dict[str, float], dtype: str = "bfloat16", **changes: object) -> Recipe:
    names = tuple(shares)
    values = {"fingerprints": names, "weights": tuple(shares.values()), **changes}
    return Recipe(ingredients=names, dtype=dtype, **values)  # type: ignore[arg-type]


def models(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensors]:
    """Random models of the names in SHARES; `first` and `second` have one shape, so that they can be mixed up."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name in SHARES:
        made[name] = {
            key: torch.randn(shape, generator=generator).to(dtype)
            for key, shape in (("first", (300, 7)), ("second", (300, 7)), ("norm", (5,)))
        }
    return made


def average(
    made: dict[str, Tensors],
    dtype: torch.dtype = torch.bfloat16,
    shares: dict[str, float] | None = None,
) -> Tensors:
    """By torch: sums in fp32, rounded once."""
    soup = {}
    for key, tensor in made["ant"].items():
        total = torch.zeros(tensor.shape)
        for name, share in (shares or SHARES).items():
            total.add_(made[name][key].float(), alpha=share)
        soup[key] = total.to(dtype)
    return soup


def sampled(tensors: Tensors) -> WeightSamples:
    return sample_weights(tensors.items())


def known(made: dict[str, Tensors], dtype: str = "bfloat16", stored: bool = True) -> LoadedWeights:
    weights = LoadedWeights()
    for name, tensors in made.items():
        weights.check(recipe({name: 1.0}, dtype), sampled(tensors), stored)
    return weights


def test_an_average_passes_and_each_wrong_tensor_is_named() -> None:
    made = models()
    weights = known(made)
    soup = average(made)
    weights.check(recipe(SHARES), sampled(soup), stored=False)
    dropped = {**soup, "norm": made["ant"]["norm"]}
    swapped = {**soup, "first": soup["second"], "second": soup["first"]}
    half = {**soup, "second": soup["second"].clone()}
    half["second"][150:] = made["bee"]["second"][150:]
    for tensors, names in ((dropped, {"norm"}), (swapped, {"first", "second"}), (half, {"second"})):
        with pytest.raises(UserError) as error:
            weights.check(recipe(SHARES), sampled(tensors), stored=False)
        assert {name for name in soup if name in str(error.value)} == names


def test_one_unit_in_the_last_place_is_found_where_the_engine_holds_what_is_stored() -> None:
    made = models()
    soup = average(made)
    soup["norm"][2:3].view(torch.int16).add_(1)
    with pytest.raises(UserError, match="norm"):
        known(made).check(recipe(SHARES), sampled(soup), stored=False)
    # A candidate that was written in another dtype, or an engine that rounds, may differ by their rounding.
    known(made, stored=False).check(recipe(SHARES), sampled(soup), stored=False)
    known(made, "float32").check(recipe(SHARES, "float32"), sampled(soup), stored=False)


def test_an_engine_that_rounds_the_candidates_still_shows_another_tensor() -> None:
    made = models(torch.float32)
    soup = average(made, torch.float32)
    rounded = dict[str, dict[str, torch.Tensor]]()
    for name, tensors in {**made, "soup": soup}.items():
        rounded[name] = {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}
    weights = known({name: rounded[name] for name in SHARES}, "float32")
    weights.check(recipe(SHARES, "float32"), sampled(rounded["soup"]), stored=False)
    rounded["soup"]["norm"] = rounded["ant"]["norm"]
    with pytest.raises(UserError, match="norm"):
        weights.check(recipe(SHARES, "float32"), sampled(rounded["soup"]), stored=False)


@pytest.mark.parametrize("engine", [torch.float32, torch.bfloat16, torch.float16])
def test_a_soup_of_several_dtypes_passes_in_an_engine_of_one(engine: torch.dtype) -> None:
    """Its bf16 tensors were rounded when it was written, though the engine's dtype may have more bits."""
    made = models()
    for tensors in made.values():
        tensors["norm"] = tensors["norm"].float()
    soup = {**average(made), "norm": average(made, torch.float32)["norm"]}
    held = dict[str, Tensors]()
    for name, tensors in {**made, "soup": soup}.items():
        held[name] = {key: tensor.to(engine) for key, tensor in tensors.items()}
    dtype = "float32+bfloat16"
    weights = known({name: held[name] for name in SHARES}, dtype)
    weights.check(recipe(SHARES, dtype), sampled(held["soup"]), stored=False)
    held["soup"]["first"] = held["soup"]["second"]
    with pytest.raises(UserError, match="first"):
        weights.check(recipe(SHARES, dtype), sampled(held["soup"]), stored=False)


@pytest.mark.parametrize(("units", "passes"), [(1, True), (16, False)])
def test_an_engine_that_rounds_may_be_off_by_a_few_units_in_the_last_place(
    units: int, passes: bool
) -> None:
    """Values near 1.5, where a unit of bf16 is 1 / 128; 4 * 1.5 / 256 are allowed, three units."""
    made = models()
    for tensors in made.values():
        for key, tensor in tensors.items():
            tensors[key] = 1.25 + tensor.float().remainder(0.5).to(torch.bfloat16)
    soup = average(made)
    soup["norm"][2] += units / 128
    weights = known(made, stored=False)
    if passes:
        weights.check(recipe(SHARES), sampled(soup), stored=False)
        return
    with pytest.raises(UserError, match=r"norm \(1 of 5 sampled values\)"):
        weights.check(recipe(SHARES), sampled(soup), stored=False)


def test_a_candidate_that_is_loaded_again_has_the_values_of_the_first_time() -> None:
    made = models()
    weights = known(made)
    weights.check(recipe({"bee": 1.0}), sampled(made["bee"]), stored=True)
    changed = {**made["bee"], "norm": made["ant"]["norm"]}
    with pytest.raises(UserError, match="norm"):
        weights.check(recipe({"bee": 1.0}), sampled(changed), stored=True)


def test_weights_that_the_engine_makes_itself_are_not_averaged() -> None:
    made = models()
    # 0.3 x + 0.6 x is not x.
    shares = {"ant": 0.3, "bee": 0.6}
    soup = average(made, shares=shares)
    for tensors in (*made.values(), soup):
        tensors["scale"] = torch.full((3,), 0.1)
    known(made).check(recipe(shares), sampled(soup), stored=False)


@pytest.mark.parametrize(
    ("soup", "why"),
    [
        (recipe(SHARES, method="slerp"), "no plain average"),
        (recipe(SHARES, settings={"vocab": "union"}), "no plain average"),
        (recipe({"ant": 0.5, "cat": 0.5}), "cat"),
    ],
    ids=["another method", "settings", "a candidate that was not loaded"],
)
def test_weights_that_were_not_checked_are_said_once(
    soup: Recipe, why: str, lines: list[str]
) -> None:
    made = models()
    weights = known(made)
    for _ in range(2):
        weights.check(soup, sampled(made["ant"]), stored=False)
    assert sum(why in line for line in lines) == 1


def test_adapters_are_checked_within_rounding_if_their_weights_sum_to_one() -> None:
    made = models(torch.float32)
    weights = known(made, "float32")
    settings = {"adapters": "keep", "base": "b"}
    soup = average(made, torch.float32)
    other = {**soup, "norm": made["ant"]["norm"]}
    weights.check(recipe(SHARES, "float32", settings=settings), sampled(soup), stored=False)
    with pytest.raises(UserError, match="norm"):
        weights.check(recipe(SHARES, "float32", settings=settings), sampled(other), stored=False)
    uneven = recipe({"ant": 0.3, "bee": 0.3}, "float32", settings=settings)
    weights.check(uneven, sampled(other), stored=False)


def test_samples_reach_from_the_first_to_the_last_element(lines: list[str]) -> None:
    tensor = torch.arange(5000, dtype=torch.float32).reshape(50, 100)
    samples = sample_weights(
        {
            "turned": tensor.T,
            "codes": torch.zeros(3, dtype=torch.int32),
            "packed": torch.empty(0),
            "short": torch.arange(3.0),
        }.items()
    )
    assert samples.tensors == (("turned", "float32", SAMPLED_VALUES), ("short", "float32", 3))
    assert samples.unchecked == ("codes", "packed")
    assert samples.values[0] == 0
    assert samples.values[SAMPLED_VALUES - 1] == 4999
    assert samples.values[SAMPLED_VALUES:].tolist() == [0, 1, 2]
    assert np.unique(samples.values[:SAMPLED_VALUES]).size == SAMPLED_VALUES
    LoadedWeights().check(recipe({"ant": 1.0}), samples, stored=True)
    assert "codes, packed" in lines[0]


def stored_in_files(made: dict[str, Tensors]) -> Any:
    """What `LoadedWeights` reads of the candidates' files: all values, as fp32."""

    def stored(name: str, update: bool) -> dict[str, np.ndarray]:
        return {key: tensor.float().numpy().reshape(-1) for key, tensor in made[name].items()}

    return stored


def layered(made: dict[str, Tensors], names: dict[str, str]) -> dict[str, Tensors]:
    return {
        model: {new: tensors[old] for old, new in names.items()} for model, tensors in made.items()
    }


IN_FILES = {"first": "h.0.q_proj.weight", "second": "h.0.v_proj.weight", "norm": "norm.weight"}


@pytest.mark.parametrize(
    "held",
    [
        {"first": "h.0.q_proj.weight", "second": "h.0.v_proj.weight"},
        {"first": "model.h.0.q_proj.weight", "second": "model.h.0.v_proj.weight"},
        {"first": "h.0.q_proj.weight on rank 0", "second": "h.0.v_proj.weight on rank 0"},
        {"first": "h.0.qv_proj.weight"},
        {"first": "h.0.q_proj adapter 0", "second": "h.0.v_proj adapter 0"},
    ],
    ids=["same name", "prefix", "rank", "fused", "adapter"],
)
def test_a_tensor_that_is_another_in_the_files_has_to_be_another_in_the_engine(
    held: dict[str, str],
) -> None:
    made = models()
    engine = layered(made, held)
    weights = LoadedWeights(stored_in_files(layered(made, IN_FILES)))
    weights.check(recipe({"ant": 1.0}), sampled(engine["ant"]), stored=True)
    weights.check(recipe({"bee": 1.0}), sampled(engine["bee"]), stored=True)
    stale = {**engine["bee"], held["first"]: engine["ant"][held["first"]]}
    weights = LoadedWeights(stored_in_files(layered(made, IN_FILES)))
    weights.check(recipe({"ant": 1.0}), sampled(engine["ant"]), stored=True)
    with pytest.raises(UserError) as error:
        weights.check(recipe({"bee": 1.0}), sampled(stale), stored=True)
    assert [name for name in engine["bee"] if name in str(error.value)] == [held["first"]]


def test_stacked_experts_are_those_of_the_files() -> None:
    made = models()
    weights = LoadedWeights(
        stored_in_files(layered(made, {"first": "h.0.experts.0.up.weight", "norm": "norm.weight"}))
    )
    engine = layered(made, {"first": "h.0.experts.w13_weight"})
    weights.check(recipe({"ant": 1.0}), sampled(engine["ant"]), stored=True)
    with pytest.raises(UserError, match="w13_weight"):
        weights.check(recipe({"bee": 1.0}), sampled(engine["ant"]), stored=True)


def test_weights_that_are_equal_in_the_files_may_be_equal_in_the_engine() -> None:
    """Or differs in less than the engine's dtype can hold, or in few values."""
    made = models(torch.float32)
    made["bee"] = {
        "first": made["ant"]["first"],
        "second": made["ant"]["second"] * (1 + 1e-6),
        "norm": made["ant"]["norm"].clone(),
    }
    made["bee"]["norm"][0] += 1
    weights = LoadedWeights(stored_in_files(made))
    held = {key: tensor.to(torch.bfloat16) for key, tensor in made["ant"].items()}
    for name in ("ant", "bee"):
        weights.check(recipe({name: 1.0}, "float32"), sampled(held), stored=False)


@pytest.mark.parametrize("part", ["all", "half of a fused tensor"])
def test_half_of_a_candidate_leaves_no_value_as_it_was(part: str) -> None:
    made = models()["ant"]
    weights = LoadedWeights(stored_in_files({"ant": made}))
    # The engine makes `scale` by itself.
    held = {"fused": torch.cat([made["first"], made["second"]]), "scale": torch.ones(3)}
    weights.check(recipe({"ant": 1.0}), sampled(held), stored=True)
    half = {**held, "fused": held["fused"] / 2}
    weights.check(recipe({"ant": 0.5}), sampled(half), stored=False)
    # An engine that loads w + 1.
    weights.check(recipe({"ant": 0.5}), sampled({**half, "fused": half["fused"] + 1}), stored=False)
    half["fused"] = held["fused"].clone()
    if part != "all":
        half["fused"][:300] /= 2
        with pytest.raises(UserError, match="fused"):
            weights.check(recipe({"ant": 0.5}), sampled(half), stored=False)
        return
    stuck = LoadedWeights(stored_in_files({"ant": made}))
    stuck.check(recipe({"ant": 1.0}), sampled(made), stored=True)
    with pytest.raises(UserError, match="first"):
        stuck.check(recipe({"ant": 0.5}), sampled(made), stored=False)
