"""Adapters of parameters (`target_parameters`) without PEFT: fused experts, made by hand as PEFT packs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from souping.checkpoints.lora import content
from souping.core.types import UserError
from souping.merge.adapters import AdapterPool
from souping.merge.local import LocalMerge
from tests.conftest import Cli
from tests.support.adapters import PREFIX, change_config
from tests.support.peft_models import load_base, save_base

OWNER = "model.layers.0.mlp.experts"
EXPERTS = 3
SHAPES = {
    "qwen3_moe": {"gate_up_proj": (24, 24), "down_proj": (24, 12)},
    "gpt_oss": {"gate_up_proj": (24, 32), "down_proj": (16, 24)},
}
"""{base: {parameter: its dimensions after that of the experts}}"""
WRAPS = {"gate_up_proj": f"{OWNER}.base_layer", "down_proj": OWNER}
WEIGHTS = {"a": 0.3, "b": 0.7}
Tensors = dict[str, torch.Tensor]


def save_experts(
    folder: Path,
    base: Path,
    seed: int,
    rank: int = 2,
    turned: bool = False,
    **config: Any,
) -> Tensors:
    """An adapter of both parameters, and {parameter: B A of each expert} in float64.

    PEFT keeps A of an expert together, and B of a rank. `turned` as it takes the second dimension for the inputs.
    """
    dice = torch.Generator().manual_seed(seed)
    tensors = Tensors()
    products = Tensors()
    for parameter, dimensions in SHAPES[base.name].items():
        out, columns = reversed(dimensions) if turned else dimensions
        a = torch.randn(EXPERTS, rank, columns, generator=dice)
        b = torch.randn(EXPERTS, out, rank, generator=dice) / 8
        packed_a = torch.empty(EXPERTS * rank, columns)
        packed_b = torch.empty(out, rank * EXPERTS)
        for expert in range(EXPERTS):
            for number in range(rank):
                packed_a[expert * rank + number] = a[expert, number]
                packed_b[:, number * EXPERTS + expert] = b[expert, :, number]
        wrap = f"{PREFIX}{WRAPS[parameter]}"
        tensors |= {f"{wrap}.lora_A.weight": packed_a, f"{wrap}.lora_B.weight": packed_b}
        product = b.double() @ a.double()
        products[f"{OWNER}.{parameter}"] = product.mT if turned else product
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": rank,
        "lora_alpha": rank, "target_modules": [],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return products


def pool_of(folders: dict[str, Path], **merge: Any) -> AdapterPool:
    pool = LocalMerge(**merge).open(folders)
    assert isinstance(pool, AdapterPool)
    return pool


def change_tensors(folder: Path, change: Callable[[Tensors], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    for kind in ("gpt_oss", "qwen3_moe", "llama"):
        save_base(folder / kind, kind, dtype=torch.bfloat16)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("turned", [False, True])
def test_each_expert_is_rounded_once_whichever_way_peft_took_the_inputs(
    kind: str, turned: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    """PEFT 0.18 took the second dimension; in bfloat16, into several shards."""
    base = bases[kind]
    folders = {name: tmp_path / name for name in WEIGHTS}
    wanted = {name: tensor.double() for name, tensor in load_base(base).state_dict().items()}
    for seed, (name, weight) in enumerate(WEIGHTS.items()):
        products = save_experts(folders[name], base, seed, rank=seed + 1, turned=turned)
        for key, product in products.items():
            wanted[key] = wanted[key] + weight * product
    pool = pool_of(folders, adapters="merge", max_shard_size="20KB")
    soup = load_base(pool.write(pool.recipe(WEIGHTS), tmp_path / "soup")).state_dict()
    for name, tensor in wanted.items():
        nearest = tensor.float().bfloat16().double()
        # One rounding, but for sums that lie on the edge of two.
        differing = (soup[name].double() != nearest).double().mean()
        assert differing < 0.001, name
        assert ((soup[name].double() - tensor).abs() <= 2**-8 * tensor.abs()).all(), name


@pytest.mark.parametrize("kind", SHAPES)
def test_a_rank_limit_truncates_each_expert_by_itself(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in WEIGHTS}
    total = Tensors()
    for seed, (name, weight) in enumerate(WEIGHTS.items()):
        for key, product in save_experts(folders[name], bases[kind], seed).items():
            total[key] = total.get(key, torch.zeros(1)) + weight * product
    pool = pool_of(folders, rank=2)
    soup = pool.write(pool.recipe(WEIGHTS), tmp_path / "soup")
    size = (soup / "adapter_model.safetensors").stat().st_size
    # Planned are the values, without the header.
    assert 0 < size - (pool.soup_bytes - pool.base.side_bytes) < 2000
    alone = pool_of({"soup": soup})
    live = load_base(bases[kind])
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    alone.live(live).load_soup(alone.recipe({"soup": 1.0}))
    lost = 0.0
    squares = 0.0
    for key, product in total.items():
        for expert in range(EXPERTS):
            u, values, v = np.linalg.svd(product[expert].numpy())
            nearest = u[:, :2] * values[:2] @ v[:2]
            found = (live.state_dict()[key][expert] - before[key][expert]).double().numpy()
            np.testing.assert_allclose(found, nearest, atol=1e-5)
            lost += float((values[2:] ** 2).sum())
            squares += float((values**2).sum())
    similarity = pool.similarity(WEIGHTS)
    assert similarity is not None
    assert similarity.truncation == pytest.approx((lost / squares) ** 0.5, rel=1e-5)
    config = json.loads((soup / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 2
    assert config["target_parameters"] == sorted(total)
    assert config["target_modules"] == []


def test_the_same_update_by_other_factors_is_similar(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    def swap_ranks(tensors: Tensors) -> None:
        for key, tensor in tensors.items():
            if "lora_A" in key:
                tensors[key] = tensor.reshape(EXPERTS, 2, -1).flip(1).reshape(tensor.shape)
            else:
                tensors[key] = tensor.reshape(len(tensor), 2, -1).flip(1).reshape(tensor.shape)

    folders = {name: tmp_path / name for name in "abc"}
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        save_experts(folders[name], bases["qwen3_moe"], seed)
    change_tensors(folders["b"], swap_ranks)
    similar = pool_of(folders).similarity({"a": 1.0, "b": 1.0})
    other = pool_of(folders).similarity({"a": 1.0, "c": 1.0})
    assert similar is not None
    assert similar.models["a"].task_cosine == pytest.approx(1, abs=1e-6)
    assert other is not None
    cosine = other.models["a"].task_cosine
    assert cosine is not None
    assert cosine < 0.5


def lost_row(tensors: Tensors) -> None:
    for key in [key for key in tensors if "base_layer" in key]:
        dimension = 0 if "lora_A" in key else 1
        tensors[key] = tensors[key].narrow(dimension, 0, 5).contiguous()


def lost_expert(tensors: Tensors) -> None:
    """Ranks of 2 for 2 experts, where the base has 3."""
    for key in tensors:
        dimension = 0 if "lora_A" in key else 1
        tensors[key] = tensors[key].narrow(dimension, 0, 4).contiguous()


def lost_pair(tensors: Tensors) -> None:
    for key in [key for key in tensors if "base_layer" in key]:
        del tensors[key]


def lost_b(tensors: Tensors) -> None:
    del tensors[f"{PREFIX}{OWNER}.base_layer.lora_B.weight"]


def only_square(tensors: Tensors) -> None:
    """gate_up_proj is [experts, 24, 24]: nothing shows which way round its factors are."""
    lost_pair(tensors)
    for side in "AB":
        key = f"{PREFIX}{OWNER}.lora_{side}.weight"
        tensors[key] = torch.zeros((6, 24) if side == "A" else (24, 6))


def third_pair(tensors: Tensors) -> None:
    for side in "AB":
        key = f"{PREFIX}{OWNER}.base_layer.base_layer.lora_{side}.weight"
        tensors[key] = tensors[f"{PREFIX}{OWNER}.lora_{side}.weight"].clone()


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (lost_row, {}),
        (lost_expert, {}),
        (lost_pair, {}),
        (lost_b, {}),
        (third_pair, {}),
        (only_square, {"target_parameters": ["experts.gate_up_proj"]}),
        (dict, {"r": 3}),
        (dict, {"r": 3, "rank_pattern": {"gate_up_proj": 6}}),
        (dict, {"r": 2, "rank_pattern": ["gate_up_proj"]}),
        (dict, {"target_parameters": ["gate_up_proj"]}),
        (dict, {"target_parameters": ["mlp.experts.w1"]}),
        (dict, {"target_parameters": "mlp.experts.gate_up_proj"}),
        (dict, {"target_parameters": [r".*experts\.(gate_up|down)_proj"]}),
        (dict, {"target_parameters": None}),
        (dict, {"use_dora": True}),
        (dict, {"lora_bias": True}),
    ],
)
def test_factors_that_do_not_fit_are_refused_in_one_line(
    change: Callable[[Tensors], None],
    config: dict[str, Any],
    bases: dict[str, Path],
    tmp_path: Path,
) -> None:
    save_experts(tmp_path / "a", bases["qwen3_moe"], seed=1)
    change_tensors(tmp_path / "a", change)
    change_config(tmp_path / "a", **config)
    with pytest.raises(UserError) as caught:
        pool_of({"a": tmp_path / "a"})
    assert len(str(caught.value).splitlines()) == 1
    assert "a" in str(caught.value)


def test_a_base_without_the_experts_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    save_experts(tmp_path / "a", bases["qwen3_moe"], seed=1)
    with pytest.raises(UserError, match=r"mlp\.experts.*does not have"):
        pool_of({"a": tmp_path / "a"}, base_model=str(bases["llama"]))


def test_a_base_that_lacks_half_of_an_expert_is_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(bases["qwen3_moe"], tmp_path / "qwen3_moe")
    path = tmp_path / "qwen3_moe/model.safetensors"
    tensors = load_file(path)
    del tensors[f"{OWNER}.2.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    save_experts(tmp_path / "a", tmp_path / "qwen3_moe", seed=1)
    with pytest.raises(UserError, match="fit"):
        pool_of({"a": tmp_path / "a"})


def test_adapters_that_versions_of_peft_packed_differently_are_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    save_experts(tmp_path / "a", bases["gpt_oss"], seed=1)
    save_experts(tmp_path / "b", bases["gpt_oss"], seed=2, turned=True)
    with pytest.raises(UserError, match=r"a, b .*merge one with PEFT"):
        pool_of({"a": tmp_path / "a", "b": tmp_path / "b"})


UNSLOTH = {"parent_library": "transformers.models.gpt_oss", "unsloth_fixed": True}


@pytest.mark.parametrize(
    ("config", "right", "said"),
    [
        ({}, True, False),
        ({"lora_B_layout": None}, True, False),
        ({"lora_B_layout": "rank_major", "unsloth_fused_expert_lora": {"x": 1}}, True, True),
        ({"lora_B_layout": "rank_major", "auto_mapping": UNSLOTH}, True, True),
        ({"lora_B_layout": "grouped_by_expert"}, False, True),
        ({"lora_B_layout": ["rank_major"]}, False, True),
        ({"auto_mapping": UNSLOTH}, False, True),
    ],
    ids=str,
)
def test_another_order_of_experts_is_refused_and_one_that_nothing_names_is_told(
    config: dict[str, Any], right: bool, said: bool, bases: dict[str, Path], tmp_path: Path
) -> None:
    save_experts(tmp_path / "a", bases["gpt_oss"], seed=1, **config)
    if not right:
        with pytest.raises(UserError, match=r"lora_B_layout.*Unsloth") as caught:
            pool_of({"a": tmp_path / "a"})
        assert len(str(caught.value).splitlines()) == 1
        return
    warnings = pool_of({"a": tmp_path / "a"}).warnings
    assert any("Unsloth" in line for line in warnings) == (not said)


def test_ordinary_adapters_by_unsloth_are_souped(bases: dict[str, Path], tmp_path: Path) -> None:
    save_experts(
        tmp_path / "a", bases["gpt_oss"], seed=1, auto_mapping=UNSLOTH, target_parameters=[]
    )
    key = "model.layers.0.self_attn.q_proj"
    factors = {"A": torch.zeros(2, 24), "B": torch.zeros(32, 2)}
    tensors = {f"{PREFIX}{key}.lora_{side}.weight": it for side, it in factors.items()}
    save_file(tensors, tmp_path / "a/adapter_model.safetensors", metadata={"format": "pt"})
    assert pool_of({"a": tmp_path / "a"}).warnings == []


def test_what_the_settings_make_of_the_factors_is_in_the_fingerprint(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    save_experts(tmp_path / "a", bases["gpt_oss"], seed=1)
    found = list[str]()
    changes: list[dict[str, Any]] = [
        {},
        {"alpha_pattern": {"gate_up_proj": 5}},
        {"lora_alpha": 3},
        {"use_rslora": True},
        {"target_parameters": ["gate_up_proj", "down_proj"]},
    ]
    for change in changes:
        change_config(tmp_path / "a", **change)
        pool = pool_of({"a": tmp_path / "a"})
        found.append(pool.fingerprints["a"])
        assert content(tmp_path / "a", pool.base_fingerprint) == found[-1]
    assert len(set(found)) == len(changes)


def test_a_full_model_beside_them_gives_a_full_model_where_files_have_fused_experts(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    for kind in SHAPES:
        folder = tmp_path / f"{kind}_adapter"
        products = save_experts(folder, bases[kind], seed=1)
        pool_folders = {"a": folder, "b": bases[kind]}
        if kind == "qwen3_moe":
            with pytest.raises(UserError, match="two names"):
                pool_of(pool_folders)
            continue
        pool = pool_of(pool_folders, dtype="float32")
        soup = load_base(pool.write(pool.recipe({"a": 0.25, "b": 0.75}), tmp_path / "soup"))
        base = load_base(bases[kind]).state_dict()
        for key, product in products.items():
            change = soup.state_dict()[key].double() - base[key].double()
            torch.testing.assert_close(change, 0.25 * product, atol=1e-6, rtol=1e-5)


def test_fused_experts_are_merged_by_command_and_rebuilt(
    bases: dict[str, Path], souping: Cli, tmp_path: Path
) -> None:
    for seed, name in enumerate(WEIGHTS):
        save_experts(tmp_path / name, bases["qwen3_moe"], seed)
    words = ["pool.candidates=[a,b]", "optimiser.weights=[0.5,0.5]", "merge.adapters=merge"]
    souping("merge", *words, "out=soup").ok()
    souping("rebuild", "soup/recipe.json", "out=again").ok()
    first = (tmp_path / "soup/model.safetensors").read_bytes()
    assert (tmp_path / "again/model.safetensors").read_bytes() == first
    change_config(tmp_path / "a", lora_B_layout="grouped_by_expert")
    souping("merge", *words, "out=third").refused("lora_B_layout")
