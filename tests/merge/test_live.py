"""Live pouring: in place, exact, tied once, on modules and devices of every kind that can be had here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from souping.checkpoints.compatibility import align
from souping.core.types import UserError
from souping.merge import alignment
from souping.merge.local import LocalMerge
from tests.support.checkpoints import aligned, opened


def llama(seed: int, **settings: Any) -> LlamaForCausalLM:
    config = LlamaConfig(
        **{
            "vocab_size": 97, "hidden_size": 32, "intermediate_size": 55, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, **settings,
        }
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).to(torch.bfloat16)


def pool_of(folder: Path, sizes: tuple[int, ...] = (97, 97, 97), **settings: Any) -> dict[str, Path]:
    folders = {f"m{i}": folder / f"m{i}" for i in range(len(sizes))}
    for i, (path, rows) in enumerate(zip(folders.values(), sizes, strict=True)):
        llama(i, vocab_size=rows, **settings).save_pretrained(path)
    return folders


def loaded(folder: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float16])
def test_pour_after_pour_equals_loading_what_was_written(tmp_path: Path, compute: torch.dtype, tied: bool) -> None:
    folders = pool_of(tmp_path, tie_word_embeddings=tied)
    merge, (checkpoints, fingerprints) = LocalMerge(), opened(folders)
    module = loaded(folders["m0"], compute)
    storages = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    live = merge.live(merge.align(checkpoints), module)
    for number, weights in enumerate([(0.2, 0.5, 0.3), (0.0, 1.0, 0.0), (0.5, 0.5, 0.0)]):
        recipe = merge.recipe(tuple(folders), weights, checkpoints, fingerprints)
        live.pour(recipe)
        written = loaded(merge.write(merge.plan(recipe, aligned(merge, folders)), tmp_path / f"soup{number}"), compute)
        for name, tensor in written.state_dict().items():
            assert torch.equal(module.state_dict()[name], tensor), name
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == storages


@pytest.mark.parametrize("rule", ["union", "intersect"])
def test_the_vocabulary_follows_the_soup(tmp_path: Path, rule: str) -> None:
    folders = pool_of(tmp_path, (97, 103, 97), tie_word_embeddings=True)
    merge, (checkpoints, fingerprints) = LocalMerge(vocab=rule), opened(folders)
    module = loaded(folders["m0"], torch.float32)
    live = merge.live(merge.align(checkpoints), module)
    for number, weights in enumerate([(0.5, 0.5, 0.0), (0.0, 1.0, 0.0), (0.5, 0.0, 0.5)]):
        recipe = merge.recipe(tuple(folders), weights, checkpoints, fingerprints)
        live.pour(recipe)
        soup = merge.write(merge.plan(recipe, aligned(merge, folders)), tmp_path / f"soup{number}")
        written = loaded(soup, torch.float32)
        state = module.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in written.state_dict().items())


def test_parameters_that_are_not_in_one_piece(tmp_path: Path) -> None:
    folders = pool_of(tmp_path)
    merge, (checkpoints, fingerprints) = LocalMerge(), opened(folders)
    recipe = merge.recipe(tuple(folders), (0.2, 0.5, 0.3), checkpoints, fingerprints)
    plain, odd = loaded(folders["m0"], torch.float32), loaded(folders["m0"], torch.float32)
    weight = odd.model.layers[0].mlp.up_proj.weight
    odd.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(weight.detach().t().contiguous().t())
    for module in (plain, odd):
        merge.live(merge.align(checkpoints), module).pour(recipe)
    assert not odd.model.layers[0].mlp.up_proj.weight.is_contiguous()
    assert all(torch.equal(tensor, odd.state_dict()[name]) for name, tensor in plain.state_dict().items())


def test_a_module_of_another_shape_is_refused(tmp_path: Path) -> None:
    folders = pool_of(tmp_path)
    merge, (checkpoints, fingerprints) = LocalMerge(), opened(folders)
    recipe = merge.recipe(tuple(folders), (0.2, 0.5, 0.3), checkpoints, fingerprints)
    with pytest.raises(UserError, match=r"nothing for model\.layers\.1\."):
        merge.live(merge.align(checkpoints), llama(0, num_hidden_layers=2)).pour(recipe)


def test_nan_in_an_ingredient_is_found_while_pouring(tmp_path: Path) -> None:
    folders = pool_of(tmp_path)
    model = llama(1)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    model.save_pretrained(folders["m1"])
    merge, (checkpoints, fingerprints) = LocalMerge(), opened(folders)
    recipe = merge.recipe(tuple(folders), (0.2, 0.5, 0.3), checkpoints, fingerprints)
    with pytest.raises(UserError, match=r"NaN or infinity in tensor model\.norm\.weight in .*m1"):
        merge.live(merge.align(checkpoints), loaded(folders["m0"], torch.float32)).pour(recipe)


def test_the_pool_is_aligned_once_and_recipes_bring_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = pool_of(tmp_path)
    merge, (checkpoints, fingerprints) = LocalMerge(), opened(folders)
    pools: list[tuple[str, ...]] = []
    monkeypatch.setattr(alignment, "align", lambda pool, vocab: pools.append(tuple(pool)) or align(pool, vocab))
    made = merge.align(checkpoints)
    live = merge.live(made, loaded(folders["m0"], torch.float32))
    three = [(0.2, 0.5, 0.3), (0.3, 0.3, 0.4), (0.25, 0.25, 0.5)]
    for weights in [*three, (0.5, 0.0, 0.5), (0.0, 1.0, 0.0), *three, (0.25, 0.0, 0.75)]:
        recipe = merge.recipe(tuple(folders), weights, checkpoints, fingerprints)
        live.pour(recipe)
    assert len(pools) == 3


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "model_stock"])
def test_whatever_was_poured_before_a_pour_equals_what_is_written(tmp_path: Path, method: str) -> None:
    """Other weights, dtypes and signs before it, and overrides that give a tensor one model."""
    folders = pool_of(tmp_path)
    based: dict[str, Any] = {"base": str(folders["m2"])} if method in ("task_arithmetic", "model_stock") else {}
    (checkpoints, fingerprints), recipes = opened(folders), []
    for scale, dtype in ((1.0, None), (0.5, "float32")):
        merge = LocalMerge(method=method, dtype=dtype, **based, **({"scale": scale} if based else {}))
        recipes += [
            merge.recipe(("m0", "m1"), weights, checkpoints, fingerprints)
            for weights in ((0.35, 0.65), (0.9, 0.1), (0.0, 1.0), (0.35, 0.65))
        ]
    if method == "linear":
        overrides = (recipes[1], [1.0, 0.0]), (recipes[0], [0.5, 0.5])
        recipes += [replace(each, settings={"overrides": [["layers.0", row]]}) for each, row in overrides]
    merge = LocalMerge(method=method, **based)
    written = {}
    for recipe in recipes:
        if recipe.id not in written:
            out = merge.write(merge.plan(recipe, aligned(merge, folders)), tmp_path / recipe.id)
            written[recipe.id] = loaded(out, torch.float32).state_dict()
    module = loaded(folders["m0"], torch.float32)
    live = merge.live(merge.align(checkpoints), module)
    for recipe in [*recipes, *reversed(recipes)]:
        live.pour(recipe)
        assert all(torch.equal(t, written[recipe.id][name]) for name, t in module.state_dict().items()), recipe


def test_a_module_whose_parameters_moved_is_filled_where_they_are(tmp_path: Path) -> None:
    folders = pool_of(tmp_path)
    merge, (checkpoints, fingerprints) = LocalMerge(), opened(folders)
    module = loaded(folders["m0"], torch.float32)
    live = merge.live(merge.align(checkpoints), module)
    live.pour(merge.recipe(tuple(folders), (0.2, 0.5, 0.3), checkpoints, fingerprints))
    module.to(torch.bfloat16)
    norm = module.model.norm
    norm.weight = torch.nn.Parameter(torch.zeros_like(norm.weight))
    recipe = merge.recipe(tuple(folders), (0.3, 0.4, 0.3), checkpoints, fingerprints)
    live.pour(recipe)
    written = loaded(merge.write(merge.plan(recipe, aligned(merge, folders)), tmp_path / "soup"), torch.bfloat16)
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in written.state_dict().items())
