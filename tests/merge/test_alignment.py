"""Alignment: the weights, bands and shards of a plan against the arithmetic written out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from souping.checkpoints.checkpoint import Checkpoint
from souping.core.text import human
from souping.core.types import UserError
from souping.merge.alignment import (
    DEFAULT_SHARD,
    MOST_LAYOUTS,
    Alignment,
    Layout,
    check_tensor_weights,
    fitted,
    place_tensors,
)
from souping.merge.factors import Product, blocks_of
from souping.merge.plan import PlannedTensor, base_name, tokenizer_source
from tests.support.checkpoints import (
    expected,
    family,
    opened,
    plan,
    random_tensors,
    same_bits,
    save,
    simple,
    soup_of,
)


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
def test_scale_multiplies_the_differences_to_the_base(tmp_path: Path, scale: float) -> None:
    """base + scale * sum of w_i (m_i - base)."""
    folders = family(tmp_path, 3, dtype=torch.float32)
    settings = {"method": "task_arithmetic", "base_model": str(folders.pop("m2")), "scale": scale}
    soup = soup_of(folders, tmp_path / "soup", (0.3, 0.7), **settings)
    first = random_tensors(0, torch.float32)
    second = random_tensors(1, torch.float32)
    base = random_tensors(2, torch.float32)
    for name, tensor in soup.items():
        difference = 0.3 * (first[name] - base[name]) + 0.7 * (second[name] - base[name])
        torch.testing.assert_close(tensor, base[name] + scale * difference, rtol=1e-5, atol=1e-5)


def test_a_soup_of_one_model_is_that_model_whatever_the_scale(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    settings = {"method": "task_arithmetic", "base_model": str(folders.pop("m1")), "scale": 0.5}
    soup = soup_of(folders, tmp_path / "soup", (1.0,), **settings)
    for name, tensor in random_tensors(0).items():
        assert same_bits(soup[name], tensor), name


def test_one_model_needs_no_base_unless_its_difference_is_scaled(tmp_path: Path) -> None:
    folders = family(tmp_path, 1)
    alone = replace(simple(folders, (1.0,)), method="task_arithmetic")
    made = plan(alone, folders)
    assert (made.method, made.read_bytes) == ("linear", made.nbytes)
    assert {band.op for tensor in made.tensors for band in tensor.bands} == {"copy"}
    for changed in (
        replace(alone, weights=(0.5,)),
        replace(alone, settings={"scale": 0.5}),
        replace(simple(family(tmp_path / "two", 2), (0.5, 0.5)), method="task_arithmetic"),
    ):
        with pytest.raises(UserError, match=r"merge\.base_model"):
            plan(changed, family(tmp_path / "two", 2) if len(changed.weights) > 1 else folders)


# Overrides


@pytest.mark.parametrize("pattern", ["layers.0-0", "layers.0-9999", "a.3-7.b", "*"])
def test_ranges_ascend_below_10000(pattern: str) -> None:
    assert check_tensor_weights({pattern: [0.25, 0.75]}) == ((pattern, (0.25, 0.75)),)


@pytest.mark.parametrize(
    "pattern", ["", "layers.5-4", "layers.0-10000", "layers.0-10001", "a.0-1.b.9-8"]
)
def test_other_ranges_are_refused(pattern: str) -> None:
    with pytest.raises(UserError, match=r"merge\.tensor_weights"):
        check_tensor_weights({pattern: [0.25, 0.75]})


@pytest.mark.parametrize("weights", [[0.5, 0.6], [-0.5, 0.5], []])
def test_the_weights_of_an_override_sum_to_one(weights: list[float]) -> None:
    with pytest.raises(UserError, match=r"merge\.tensor_weights\.a"):
        check_tensor_weights({"a": weights})


def test_overrides_of_the_pool_are_scaled_for_a_part_of_it() -> None:
    """Of weights for a, b and c a soup of c and a takes its own two; a pattern with none for them is left out."""
    overrides = {"x": [0.0, 1.0, 0.0], "y": [0.2, 0.5, 0.3], "z": [1.0, 0.0, 0.0]}
    rows = fitted(overrides, ["a", "b", "c"], ["c", "a"])
    assert [pattern for pattern, _ in rows] == ["y", "z"]
    assert rows[0][1] == pytest.approx([0.6, 0.4])
    assert rows[1][1] == [0.0, 1.0]
    assert fitted({"y": [0.2, 0.5, 0.3]}, ["a", "b", "c"], ["a", "b", "c"]) == [
        ["y", [0.2, 0.5, 0.3]]
    ]
    with pytest.raises(UserError, match="2 weights for 3 candidates"):
        fitted({"y": [0.5, 0.5]}, ["a", "b", "c"], ["a"])


@pytest.mark.parametrize(
    "overrides", [{"no.such": [0.5, 0.5]}, {"*.mlp.*": [0.5, 0.5], "q": [0.5, 0.5]}]
)
def test_a_pattern_that_matches_no_tensor_is_refused(
    tmp_path: Path, overrides: dict[str, list[float]]
) -> None:
    with pytest.raises(UserError, match="matches no tensor"):
        soup_of(family(tmp_path, 2), tmp_path / "soup", (0.5, 0.5), tensor_weights=overrides)


def test_the_first_pattern_that_matches_counts(tmp_path: Path) -> None:
    overrides = {"*.up_proj.*": [0.1, 0.9], "layers.1": [0.8, 0.2]}
    soup = soup_of(family(tmp_path, 2), tmp_path / "soup", (0.5, 0.5), tensor_weights=overrides)
    first = random_tensors(0)
    second = random_tensors(1)
    for name, weights in {
        "model.layers.1.mlp.up_proj.weight": (0.1, 0.9),
        "model.layers.1.self_attn.q_proj.weight": (0.8, 0.2),
        "model.layers.0.self_attn.q_proj.weight": (0.5, 0.5),
    }.items():
        assert same_bits(soup[name], expected([first[name], second[name]], weights, torch.bfloat16))


def test_a_model_without_weight_in_a_tensor_does_not_widen_its_dtype(tmp_path: Path) -> None:
    folders = {
        "narrow": save(tmp_path / "narrow", random_tensors(0)),
        "wide": save(tmp_path / "wide", random_tensors(1, torch.float32)),
    }
    made = plan(simple(folders, (0.5, 0.5), overrides=[["layers.0", [1.0, 0.0]]]), folders)
    dtypes = {tensor.name: tensor.dtype for tensor in made.tensors}
    assert dtypes["model.layers.0.mlp.up_proj.weight"] == "BF16"
    assert dtypes["model.layers.1.mlp.up_proj.weight"] == "F32"


# Bands of rows


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_rows_that_a_model_lacks_are_mixed_of_the_others(tmp_path: Path, method: str) -> None:
    """Rows 0 to 12 are of all models, 12 to 14 of two; there the weights 0.3 and 0.2 become 0.6 and 0.4."""
    rows = {"short": 12, "middle": 14, "long": 14}
    folders = {}
    for seed, (name, count) in enumerate(rows.items()):
        tensors = random_tensors(seed, torch.float32, rows=count)
        folders[name] = save(tmp_path / name, tensors, {"vocab_size": count})
    settings = {}
    if method == "task_arithmetic":
        settings = {"base_model": str(save(tmp_path / "base", random_tensors(9, torch.float32)))}
    soup = soup_of(
        folders, tmp_path / "soup", (0.5, 0.3, 0.2), method=method, vocab="union", **settings
    )
    heads = []
    for seed, count in enumerate(rows.values()):
        heads.append(random_tensors(seed, torch.float32, rows=count)["lm_head.weight"])
    mean = 0.5 * heads[0] + 0.3 * heads[1][:12] + 0.2 * heads[2][:12]
    # base + sum of w (m - base) is the mean, as the weights sum to 1.
    torch.testing.assert_close(soup["lm_head.weight"][:12], mean, rtol=1e-5, atol=1e-5)
    tail = 0.6 * heads[1][12:] + 0.4 * heads[2][12:]
    torch.testing.assert_close(soup["lm_head.weight"][12:], tail, rtol=1e-5, atol=1e-5)


def test_the_first_model_carries_where_none_has_the_soups_vocabulary(tmp_path: Path) -> None:
    """One has the longer embedding and the other the longer head."""
    folders = {}
    for seed, (name, rows) in enumerate({"a": (15, 12), "b": (12, 15)}.items()):
        tensors = random_tensors(seed, rows=12)
        tensors["model.embed_tokens.weight"] = torch.ones(rows[0], 7, dtype=torch.bfloat16)
        tensors["lm_head.weight"] = torch.ones(rows[1], 7, dtype=torch.bfloat16)
        folders[name] = save(tmp_path / name, tensors)
    made = plan(simple(folders, (0.5, 0.5), vocab="union"), folders)
    assert made.tokenizer_source == "a"


# Shards


def planned(name: str, dtype: str, nbytes: int) -> PlannedTensor:
    return PlannedTensor(
        name=name, dtype=dtype, shape=(nbytes,), shard=0, offset=0, nbytes=nbytes, bands=()
    )


def test_shards_are_filled_in_order_and_wide_dtypes_come_first_in_each() -> None:
    """Of 100 bytes: 60 + 40 fill the first, 10 fit no more; 150 is more than a shard and stands alone."""
    tensors = [
        planned("a", "BF16", 60), planned("b", "F32", 40), planned("c", "BF16", 10), planned("d", "F32", 150),
        planned("e", "U8", 3), planned("f", "F64", 16), planned("g", "BF16", 4),
    ]  # fmt: skip
    placed, names = place_tensors(tensors, 100)
    assert names == tuple(
        f"model-{n}-of-00004.safetensors" for n in ("00001", "00002", "00003", "00004")
    )
    places = {tensor.name: (tensor.shard, tensor.offset) for tensor in placed}
    assert places == {
        "b": (0, 0), "a": (0, 40), "c": (1, 0), "d": (2, 0), "f": (3, 0), "g": (3, 16), "e": (3, 20),
    }  # fmt: skip
    one, name = place_tensors(tensors[:2], 100)
    assert name == ("model.safetensors",)
    assert [tensor.name for tensor in one] == ["b", "a"]


def test_a_plan_counts_its_bytes_and_names_the_place_of_each_tensor(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    made = plan(simple(folders, (0.3, 0.7)), folders, max_shard_size=200)
    sizes = {name: tensor.nbytes for name, tensor in random_tensors(0).items()}
    assert made.nbytes == sum(sizes.values())
    assert made.read_bytes == 2 * made.nbytes
    shards = range(len(made.shards))
    assert sum(made.shard_bytes(shard) for shard in shards) == made.nbytes
    text = made.index()
    assert text is not None
    index = json.loads(text)
    assert index["metadata"]["total_size"] == made.nbytes
    for tensor in made.tensors:
        assert index["weight_map"][tensor.name] == made.shards[tensor.shard]
        assert tensor.nbytes == sizes[tensor.name]
    assert plan(simple(folders, (0.3, 0.7)), folders).index() is None


@pytest.mark.parametrize(("size", "place"), [("5GB", "model.safetensors"), (200, "shards and")])
def test_a_plan_says_what_it_reads_and_where_it_writes(
    tmp_path: Path, size: int | str, place: str
) -> None:
    folders = family(tmp_path, 2)
    made = plan(simple(folders, (0.25, 0.75)), folders, max_shard_size=size)
    first, second = made.describe().split("\n")
    assert first == f"linear soup {made.recipe.id}: 0.25 x m0 + 0.75 x m1"
    assert second.startswith(f"7 tensors, bfloat16, reads {human(2 * made.nbytes)}, writes ")
    assert f"writes {human(made.nbytes)} to " in second
    ending = second.partition(" to ")[2]
    if size == "5GB":
        assert ending == place
    else:
        assert ending == f"{len(made.shards)} shards and model.safetensors.index.json"


@pytest.mark.parametrize(
    ("taken", "name"),
    [((), "base"), (("a", "base"), "base model"), (("base model", "base"), "base model model")],
)
def test_the_base_has_a_name_of_its_own(taken: tuple[str, ...], name: str) -> None:
    assert base_name(taken) == name


def test_a_tokenizer_comes_from_an_ingredient_of_the_recipe(tmp_path: Path) -> None:
    made = simple(family(tmp_path, 2), (0.5, 0.5))
    assert [tokenizer_source(name, made) for name in ("m1", "m2", None)] == ["m1", None, None]


# Factors of adapters


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ((5, 7), [(0, 5)]),
        ((5, 1 << 19), [(0, 2), (2, 2), (4, 1)]),
        ((3, 1 << 21), [(0, 1), (1, 1), (2, 1)]),
        ((2,), [(0, 2)]),
    ],
)
def test_blocks_have_about_a_million_elements(
    shape: tuple[int, ...], blocks: list[tuple[int, int]]
) -> None:
    assert list(blocks_of(shape)) == blocks


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_added_in_double_precision(transposed: bool) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 5)).astype(np.float32)
    b = rng.standard_normal((4, 3)).astype(np.float32)
    product = b.astype(np.float64) @ a.astype(np.float64)
    if transposed:
        product = product.T
    base = rng.standard_normal(product.shape).astype(np.float32)
    whole = (product + base).astype(np.float32)
    adder = Product(a, b, transposed)
    np.testing.assert_array_equal(adder.total(base, 0).astype(np.float32), whole)
    np.testing.assert_array_equal(adder.total(base[1:3], 1).astype(np.float32), whole[1:3])


def test_tensors_of_whole_numbers_are_the_same_in_all_models(tmp_path: Path) -> None:
    counts = torch.arange(6, dtype=torch.int64).reshape(2, 3)
    folders = {}
    for number, name in enumerate("ab"):
        folders[name] = save(tmp_path / name, random_tensors(number) | {"model.counts": counts})
    made = plan(simple(folders, (0.25, 0.75)), folders)
    (tensor,) = [tensor for tensor in made.tensors if tensor.name == "model.counts"]
    (band,) = tensor.bands
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("I64", (2, 3), 48)
    assert (band.op, band.start, band.count, band.weights) == ("same", 0, 6, (1.0, 1.0))
    assert [source.ingredient for source in band.sources] == [0, 1]
    soup = soup_of(folders, tmp_path / "soup", (0.25, 0.75))
    assert torch.equal(soup["model.counts"], counts)


def test_a_recipe_without_an_ingredient_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ingredient"):
        plan(simple(family(tmp_path, 1), (0.0,)), family(tmp_path, 1))


def test_the_layouts_of_the_last_32_pools_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two with a limit of two, the third drops the first; weights make no other layout."""
    folders = family(tmp_path, 3)
    checkpoints, _ = opened(folders)
    alignment = Alignment(checkpoints)
    laid = list[list[str]]()
    original = Layout.of

    def laid_out(pool: Mapping[str, Checkpoint], vocab: str) -> Layout:
        laid.append([*pool])
        return original(pool, vocab)

    monkeypatch.setattr(Layout, "of", laid_out)
    monkeypatch.setattr("souping.merge.alignment.MOST_LAYOUTS", 2)
    for names in (("m0",), ("m1",), ("m1",), ("m2",), ("m1",), ("m0",)):
        alignment.plan(simple({name: folders[name] for name in names}, (1.0,)))
    pair = {name: folders[name] for name in ("m0", "m1")}
    for weights in ((0.5, 0.5), (0.1, 0.9)):
        alignment.plan(simple(pair, weights))
    assert laid == [["m0"], ["m1"], ["m2"], ["m0"], ["m0", "m1"]]
    assert (MOST_LAYOUTS, DEFAULT_SHARD) == (32, 5_000_000_000)


def test_what_is_mixed_is_mixed_in_any_dtype_and_only_what_keeps_its_dtype_is_copied(
    tmp_path: Path,
) -> None:
    folders = {
        "narrow": save(tmp_path / "narrow", random_tensors(0)),
        "wide": save(tmp_path / "wide", random_tensors(1, torch.float32)),
    }
    made = plan(replace(simple(folders, (0.5, 0.5)), method="slerp"), folders)
    assert {(band.op, tensor.dtype) for tensor in made.tensors for band in tensor.bands} == {
        ("mix", "F32")
    }
    for name, op in (("narrow", "linear"), ("wide", "copy")):
        alone = replace(simple({name: folders[name]}, (1.0,)), dtype="float32")
        made = plan(alone, folders)
        assert {band.op for tensor in made.tensors for band in tensor.bands} == {op}


def test_rows_of_no_weighted_model_are_those_of_the_first_that_has_them(tmp_path: Path) -> None:
    """A pattern gives the longer head no weight: its further rows are copied from it as they are."""
    folders = {}
    for seed, (name, rows) in enumerate({"short": 12, "long": 14}.items()):
        folders[name] = save(tmp_path / name, random_tensors(seed, rows=rows), {"vocab_size": rows})
    soup = soup_of(
        folders,
        tmp_path / "soup",
        (0.5, 0.5),
        vocab="union",
        tensor_weights={"lm_head": [1.0, 0.0]},
    )
    assert same_bits(soup["lm_head.weight"][:12], random_tensors(0)["lm_head.weight"])
    assert same_bits(soup["lm_head.weight"][12:], random_tensors(1, rows=14)["lm_head.weight"][12:])
