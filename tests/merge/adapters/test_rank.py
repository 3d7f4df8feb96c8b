"""`merge.rank`: a soup of adapters of a lower rank, held against numpy's SVD of the products."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from souping.core.types import UserError
from souping.merge.adapters import AdapterPool
from souping.merge.local import LocalMerge
from tests.conftest import Cli
from tests.support.adapters import deltas, save_adapter, weighted
from tests.support.hub import files_of

Q0 = "model.layers.0.self_attn.q_proj"
UP1 = "model.layers.1.mlp.up_proj"
WEIGHTS = {"a": 0.3, "b": 0.7}


@pytest.fixture
def folders(family: Path, tmp_path: Path) -> dict[str, Path]:
    base = family / "base"
    return {
        "a": save_adapter(tmp_path / "a", base, {Q0: 4, UP1: 2}, seed=1),
        "b": save_adapter(tmp_path / "b", base, {Q0: 3, UP1: 3}, seed=2),
    }


def opened(folders: dict[str, Path], rank: int | None) -> AdapterPool:
    pool = LocalMerge(rank=rank).open(folders)
    assert isinstance(pool, AdapterPool)
    return pool


def nearest(folders: dict[str, Path], rank: int) -> tuple[dict[str, np.ndarray], float]:
    """{module: its product cut to a rank}, and how far that moves them all, by numpy's SVD of whole products."""
    products = {}
    lost = 0.0
    total = 0.0
    for module, delta in weighted(
        {folder: WEIGHTS[name] for name, folder in folders.items()}
    ).items():
        u, values, v = np.linalg.svd(delta.numpy())
        products[module] = (u[:, :rank] * values[:rank]) @ v[:rank]
        lost += float((values[rank:] ** 2).sum())
        total += float((values**2).sum())
    return products, (lost / total) ** 0.5


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_product_is_the_nearest_of_that_rank(
    folders: dict[str, Path], tmp_path: Path, rank: int
) -> None:
    pool = opened(folders, rank)
    products, error = nearest(folders, rank)
    soup = deltas(pool.write(pool.recipe(WEIGHTS), tmp_path / "soup"))
    for module, product in products.items():
        assert soup[module].numpy() == pytest.approx(product, abs=1e-5)
    factors = load_file(tmp_path / "soup" / "adapter_model.safetensors")
    assert {min(factor.shape) for factor in factors.values()} == {rank}
    similarity = pool.similarity(WEIGHTS)
    assert similarity is not None
    assert similarity.truncation == pytest.approx(error, abs=1e-6)
    assert any("merge.rank" in line for line in similarity.warnings) == (error > 0.1)


def test_a_rank_that_cuts_nothing_changes_no_byte(folders: dict[str, Path], tmp_path: Path) -> None:
    weights = []
    for number, rank in enumerate((None, 7, 100)):
        pool = opened(folders, rank)
        soup = pool.write(pool.recipe(WEIGHTS), tmp_path / str(number))
        weights.append((soup / "adapter_model.safetensors").read_bytes())
    assert weights[1:] == weights[:1] * 2
    assert opened(folders, rank=None).similarity(WEIGHTS).truncation is None  # type: ignore[union-attr]


def test_a_live_module_gets_what_the_folder_holds(
    folders: dict[str, Path], family: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    pool = opened(folders, rank=2)
    recipe = pool.recipe(WEIGHTS)
    module = AutoModelForCausalLM.from_pretrained(family / "base", dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    pool.live(module).load_soup(recipe)
    for name, product in deltas(pool.write(recipe, tmp_path / "soup")).items():
        change = module.state_dict()[f"{name}.weight"] - before[f"{name}.weight"]
        assert change.double().numpy() == pytest.approx(product.numpy(), abs=1e-6)


def test_the_rank_is_part_of_the_soup_and_of_its_rebuild(
    folders: dict[str, Path], family: Path, souping: Cli, tmp_path: Path
) -> None:
    pool = opened(folders, rank=2)
    assert pool.recipe(WEIGHTS).settings["rank"] == 2
    assert "rank" not in opened(folders, rank=None).recipe(WEIGHTS).settings
    names = ",".join(map(str, folders.values()))
    call = [f"pool.candidates=[{names}]", "optimiser.weights=[0.3,0.7]", "merge.rank=2"]
    souping("+experiment=merge", *call, "out=soup").ok()
    souping("rebuild", "soup/recipe.json", "out=again").ok()
    assert files_of(tmp_path / "again") == files_of(tmp_path / "soup")


def test_a_rank_without_a_meaning_is_refused(folders: dict[str, Path], family: Path) -> None:
    with pytest.raises(UserError, match=r"merge\.rank"):
        LocalMerge(rank=2, adapters="merge").open(folders)
    with pytest.raises(UserError, match=r"merge\.rank"):
        LocalMerge(rank=2).open({"ant": family / "ant"})
    with pytest.raises(UserError, match="rank"):
        LocalMerge(rank=0)


@pytest.mark.parametrize("names", [("a", "fresh"), ("fresh", "new"), ("a",)])
def test_the_loss_is_told_whatever_can_be_compared(
    folders: dict[str, Path], tmp_path: Path, names: tuple[str, ...]
) -> None:
    """An adapter that was not trained has B = 0; one alone has no other."""
    place = dict(folders)
    for name in ("fresh", "new"):
        place[name] = shutil.copytree(folders["a"], tmp_path / name)
        factors = load_file(place[name] / "adapter_model.safetensors")
        for key in factors:
            if "lora_B" in key:
                factors[key] = torch.zeros_like(factors[key])
        save_file(factors, place[name] / "adapter_model.safetensors")
    chosen = {name: place[name] for name in names}
    similarity = opened(chosen, rank=1).similarity(dict.fromkeys(names, 1 / len(names)))
    assert similarity is not None
    trained = "a" in names
    expected = nearest({"a": folders["a"]}, rank=1)[1] if trained else 0.0
    assert similarity.truncation == pytest.approx(expected, abs=1e-6)
    assert any("merge.rank" in line for line in similarity.warnings) == trained
