"""Pools of adapters and full models over one base, without PEFT: their soups are full models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from souping.core.types import UserError
from souping.merge.adapters import AdapterPool
from souping.merge.local import LocalMerge
from tests.conftest import Cli, pool_of
from tests.support.adapters import PREFIX, change_config, deltas, save_adapter
from tests.support.hub import files_of

Q0 = "model.layers.0.self_attn.q_proj"
WEIGHTS = {"a": 0.3, "b": 0.7}


@pytest.fixture
def folders(family: Path, tmp_path: Path) -> dict[str, Path]:
    """`a` is an adapter, `b` is a full model whose every tensor differs from the base's."""
    base = family / "base"
    shutil.copytree(base, tmp_path / "b")
    path = tmp_path / "b" / "model.safetensors"
    dice = torch.Generator().manual_seed(7)
    tensors = load_file(path)
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=dice) / 8
        tensors[name] = (tensor + noise).to(tensor.dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    return {"a": save_adapter(tmp_path / "a", base, {Q0: 4}, seed=1), "b": tmp_path / "b"}


def opened(folders: dict[str, Path]) -> AdapterPool:
    pool = LocalMerge().open(folders)
    assert isinstance(pool, AdapterPool)
    return pool


def test_adapters_and_a_full_model_give_a_full_model(
    folders: dict[str, Path], family: Path, tmp_path: Path
) -> None:
    pool = opened(folders)
    assert any("full models" in line for line in pool.warnings)
    recipe = pool.recipe(WEIGHTS)
    assert recipe.settings["adapters"] == "merge"
    assert pool.adapter_shape is None
    soup = pool.write(recipe, tmp_path / "soup")
    written = load_file(soup / "model.safetensors")
    base = load_file(family / "base" / "model.safetensors")
    full = load_file(folders["b"] / "model.safetensors")
    changes = deltas(folders["a"])
    assert written.keys() == base.keys()
    for name, value in base.items():
        adapted = value.double() + changes.get(name.removesuffix(".weight"), 0)
        wanted = WEIGHTS["a"] * adapted + WEIGHTS["b"] * full[name].double()
        step = torch.finfo(value.dtype).eps * wanted.abs()
        assert ((written[name].double() - wanted).abs() <= step + 1e-7).all()
    live = AutoModelForCausalLM.from_pretrained(family / "base", dtype=torch.float32)
    loadable = pool.live(live)
    for weights, folder in ((WEIGHTS, soup), ({"b": 1.0}, folders["b"])):
        loadable.load_soup(pool.recipe(weights))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for name, value in model.state_dict().items():
            assert torch.equal(live.state_dict()[name], value), name


def test_a_full_model_among_adapters_has_the_fingerprint_that_it_always_has(
    folders: dict[str, Path],
) -> None:
    alone = LocalMerge().open({"b": folders["b"]})
    assert opened(folders).fingerprints["b"] == alone.fingerprints["b"]


def test_a_mixed_soup_is_rebuilt_bit_for_bit(
    folders: dict[str, Path], souping: Cli, tmp_path: Path
) -> None:
    words = ["+experiment=merge", "optimiser.weights=[0.3,0.7]", "out=soup"]
    souping(*words, f"pool.candidates=[{folders['a']},{folders['b']}]").ok()
    recipe = json.loads((tmp_path / "soup/recipe.json").read_text())
    assert recipe["settings"]["adapters"] == "merge"
    souping("rebuild", "soup/recipe.json", "out=again").ok()
    assert files_of(tmp_path / "again") == files_of(tmp_path / "soup")


@pytest.mark.parametrize("case", ["missing", "shape", "extra"])
def test_a_full_model_that_does_not_fit_the_adapters_base_is_refused(
    case: str, folders: dict[str, Path]
) -> None:
    path = folders["b"] / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    if case == "missing":
        del tensors[name]
    elif case == "shape":
        tensors[name] = tensors[name][:-1].clone()
    else:
        tensors["model.layers.9.mlp.up_proj.weight"] = tensors[name].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"mlp\.up_proj") as caught:
        opened(folders)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("mode", ["keep", "merge"])
def test_a_check_says_what_vllm_cannot_serve(
    mode: str, family: Path, souping: Cli, tmp_path: Path
) -> None:
    """A run of kept adapters is refused before it starts; the same adapters as a full model are not."""
    for seed, name in enumerate(("ant", "bee")):
        folder = save_adapter(tmp_path / name, family / "base", {Q0: 2}, seed)
        change_config(folder, modules_to_save=["norm"])
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        for key, tensor in load_file(family / "base/model.safetensors").items():
            if key.removesuffix(".weight").endswith("norm"):
                tensors[PREFIX + key] = tensor + 0.1
        save_file(tensors, path, metadata={"format": "pt"})
    words = [*pool_of(tmp_path, "ant", "bee"), f"merge.base_model={family / 'base'}"]
    words += [f"benchmark.path={family / 'items.jsonl'}", f"merge.adapters={mode}", "engine=vllm"]
    outcome = souping("check", *words)
    assert outcome.code == 2
    told = "modules_to_save: set merge.adapters=merge" in outcome.err + outcome.out
    assert told == (mode == "keep"), outcome.err + outcome.out
