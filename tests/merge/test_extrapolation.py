"""Weights below 0 or above 1: soups beyond their ingredients, against numpy in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import souping as library
from souping.core.fields import check_weights
from souping.core.types import FloatArray, UserError
from souping.merge.alignment import fitted
from souping.merge.local import LocalMerge
from souping.merge.mergekit import BASED, SIGNED, MergekitMerge
from tests.conftest import Cli, pool_of
from tests.support.adapters import save_adapter, weighted
from tests.support.checkpoints import family as siblings, load, random_tensors, save, soup_of

BEYOND = [(1.3, -0.3), (-0.3, 1.3), (2.5, -1.0, -0.5), (0.5, 1.0, -0.5)]
Q0 = "model.layers.0.self_attn.q_proj"
UP1 = "model.layers.1.mlp.up_proj"


def wide(tensor: torch.Tensor) -> FloatArray:
    return np.asarray(tensor.double().numpy(), np.float64)


def check_sum(
    soup: Mapping[str, torch.Tensor],
    models: Sequence[Mapping[str, torch.Tensor]],
    weights: Sequence[float],
) -> None:
    """Every element is the sum in float64, up to one rounding of the soup's dtype and those of sums in fp32."""
    beyond = False
    for name, tensor in soup.items():
        parts = np.stack([wide(model[name]) for model in models])
        exact = np.tensordot(np.array(weights), parts, axes=1)
        terms = np.tensordot(np.abs(weights), np.abs(parts), axes=1)
        of_dtype = torch.finfo(tensor.dtype)
        limit = of_dtype.eps / 2 * np.abs(exact) + of_dtype.smallest_normal * of_dtype.eps
        limit += len(weights) * 2.0**-23 * terms
        assert (np.abs(wide(tensor) - exact) <= limit).all(), name
        beyond |= bool((exact > parts.max(axis=0)).any())
    # No average is larger than all of its ingredients.
    assert beyond


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weights", BEYOND, ids=str)
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_soup_is_the_sum_in_float64(
    tmp_path: Path, method: str, weights: tuple[float, ...], dtype: torch.dtype
) -> None:
    folders = siblings(tmp_path / "pool", len(weights), dtype=dtype)
    settings = {}
    if method == "task_arithmetic":
        # With weights that sum to 1, the base cancels: it is near, so that differences stay small.
        near = {name: 1.01 * tensor for name, tensor in random_tensors(0, dtype).items()}
        settings = {"base_model": str(save(tmp_path / "base", near))}
    soup = soup_of(folders, tmp_path / "soup", weights, method=method, **settings)
    models = [random_tensors(number, dtype) for number in range(len(weights))]
    if settings:
        models.append(load(Path(settings["base_model"])))
    check_sum(soup, models, [*weights, 0.0][: len(models)])


def test_some_tensors_may_be_beyond(tmp_path: Path) -> None:
    overrides = {"*.mlp.*": [-0.5, 1.5]}
    soup = soup_of(
        siblings(tmp_path / "pool", 2), tmp_path / "soup", (1.3, -0.3), tensor_weights=overrides
    )
    models = [random_tensors(0), random_tensors(1)]
    mlp = {name: tensor for name, tensor in soup.items() if ".mlp." in name}
    check_sum(mlp, models, (-0.5, 1.5))
    check_sum({name: soup[name] for name in soup.keys() - mlp.keys()}, models, (1.3, -0.3))


@pytest.mark.parametrize("adapters", ["keep", "merge"])
def test_a_soup_of_adapters_is_the_sum_in_float64(
    family: Path, tmp_path: Path, souping: Cli, adapters: str
) -> None:
    base = family / "base"
    dpo = save_adapter(tmp_path / "dpo", base, {Q0: 4, UP1: 2}, seed=1)
    sft = save_adapter(tmp_path / "sft", base, {Q0: 3}, seed=2)
    words = ["optimiser.weights=[1.3,-0.3]", f"merge.adapters={adapters}", "out=soup"]
    souping("merge", f"pool.candidates=[{dpo},{sft}]", *words).ok()
    if adapters == "keep":
        found = weighted({tmp_path / "soup": 1.0})
    else:
        whole = load(base)
        soup = load(tmp_path / "soup")
        found = {
            name: soup[f"{name}.weight"].double() - whole[f"{name}.weight"].double()
            for name in (Q0, UP1)
        }
    for module, exact in weighted({dpo: 1.3, sft: -0.3}).items():
        # A full model is stored in bfloat16, as its base.
        error = 2**-20 if adapters == "keep" else 2**-8
        assert (found[module] - exact).abs().max() <= error * exact.abs().max(), module


def test_merge_soup_plan_and_rebuild_take_the_weights(
    family: Path, tmp_path: Path, souping: Cli
) -> None:
    words = [f"pool.candidates=[{family / 'ant'},{family / 'bee'}]", "optimiser.weights=[1.3,-0.3]"]
    assert "1.3 x ant + -0.3 x bee" in souping("plan", "merge", *words, "out=soup").ok().out
    souping("merge", *words, "out=soup").ok()
    check_sum(load(tmp_path / "soup"), [load(family / "ant"), load(family / "bee")], (1.3, -0.3))
    assert "-0.3" in (tmp_path / "soup" / "README.md").read_text()
    souping("rebuild", "soup/recipe.json", "out=again").ok()
    pool = {"sft": family / "bee", "dpo": family / "ant"}
    made = library.soup(pool, {"dpo": 1.3, "sft": -0.3}, out=tmp_path / "library")
    same = library.soup(
        [family / "ant", family / "bee"], [1.3, -0.3], out=tmp_path / "list", merge=LocalMerge()
    )
    whole = (tmp_path / "soup" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == whole
    assert (same / "model.safetensors").read_bytes() == whole
    # In the order of that pool, the sum rounds otherwise in a few places.
    check_sum(load(made), [load(family / "ant"), load(family / "bee")], (1.3, -0.3))
    assert json.loads((made / "recipe.json").read_text())["weights"] == [-0.3, 1.3]


# ------------------------------------------------------------ refused, and told


def test_a_method_between_its_ingredients_refuses_them(
    family: Path, tmp_path: Path, souping: Cli
) -> None:
    pool = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    for words in (
        ["merge.method=slerp"],
        ["merge.method=model_stock", f"merge.base_model={family / 'base'}"],
        ["merge=mergekit", "merge.method=dare_ties", f"merge.base_model={family / 'base'}"],
    ):
        method = words[-2] if "base_model" in words[-1] else words[-1]
        done = souping("merge", pool, "optimiser.weights=[1.3,-0.3]", "out=soup", *words)
        done.refused(method, "linear")
        assert len(done.err.strip().splitlines()) == 1
        assert not (tmp_path / "soup").exists()
    with pytest.raises(library.UserError, match=r"merge\.method=slerp"):
        library.soup(
            [family / "ant", family / "bee"],
            [-1, 2],
            out=tmp_path / "soup",
            merge=LocalMerge(method="slerp"),
        )


@pytest.mark.parametrize("method", [*SIGNED, "ties", "slerp", "nuslerp", "sce", "of_next_year"])
def test_only_sums_of_mergekit_take_them(family: Path, method: str) -> None:
    base = str(family / "base") if method in BASED else None
    folders = {name: family / name for name in ("ant", "bee")}
    pool = MergekitMerge(method=method, base_model=base).open(folders)
    recipe = pool.recipe({"ant": 1.3, "bee": -0.3})
    if method in SIGNED:
        assert "weight: -0.3" in pool.plan(recipe).describe()
    else:
        with pytest.raises(UserError, match=f"merge.method={method}"):
            pool.plan(recipe)
    assert pool.plan(pool.recipe({"ant": 0.5, "bee": 0.5}))


@pytest.mark.parametrize("command", [[], ["plan"], ["check"]], ids=str)
def test_a_run_does_not_take_them(
    family: Path, tmp_path: Path, souping: Cli, command: list[str]
) -> None:
    """Whatever the selector: one that may choose a single model would find out late."""
    words = ["optimiser=fixed", "optimiser.weights=[1.3,-0.2,-0.1]"]
    for selector in ("selector=all", "selector=soce"):
        souping(*command, *pool_of(family, "ant", "bee", "cat"), *words, selector).refused(
            "optimiser.weights", "souping merge"
        )
    assert not list(tmp_path.rglob("selection.json"))


def test_an_overflow_is_told_as_for_other_merges(
    tmp_path: Path, souping: Cli, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = siblings(tmp_path / "pool", 2, dtype=torch.float16)
    tensors = random_tensors(0, torch.float16)
    tensors["lm_head.weight"] = torch.full_like(tensors["lm_head.weight"], 60_000)
    save(folders["m0"], tensors)
    with pytest.raises(UserError, match=r"overflow to infinity.*lm_head\.weight"):
        soup_of(folders, tmp_path / "soup", (1.3, -0.3))
    words = [f"pool.candidates=[{folders['m0']},{folders['m1']}]", "out=soup"]
    beyond = souping("merge", *words, "optimiser.weights=[1.3,-0.3]")
    beyond.refused("lm_head.weight", "merge.nonfinite")
    assert not (tmp_path / "soup").exists()
    souping("merge", *words, "optimiser.weights=[0.7,0.3]").ok()


def test_rounding_is_measured_on_the_soup_beyond(tmp_path: Path) -> None:
    folders = siblings(tmp_path, 2)
    similarity = LocalMerge().open(folders).similarity({"m0": 1.3, "m1": -0.3})
    assert similarity is not None
    assert similarity.rounding is not None
    models = [random_tensors(0), random_tensors(1)]
    matrices = [name for name, tensor in models[0].items() if tensor.ndim > 1]
    first = np.concatenate([wide(models[0][name]).ravel() for name in matrices])
    second = np.concatenate([wide(models[1][name]).ravel() for name in matrices])
    exact = 1.3 * first - 0.3 * second
    assert similarity.rounding.largest == pytest.approx(np.abs(exact).max())
    stored = wide(torch.from_numpy(exact).float().bfloat16())
    error = np.linalg.norm(stored - exact) / np.linalg.norm(exact - first)
    assert similarity.rounding.error == pytest.approx(error, rel=0.3)


@pytest.mark.parametrize(
    "weights", [[1.3, -0.2], [0.5, -0.5], [1e30, -1e30], [1e4, 1 - 1e4], [1.3, float("nan")]]
)
def test_weights_that_do_not_sum_to_one_or_are_too_large_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match=r"optimiser\.weights=\["):
        check_weights(weights)


def test_weights_of_a_part_that_cancel_are_none() -> None:
    """0.1 + 0.2 - 0.3 is not 0 in floats: its inverse is no weight."""
    table = {"x": [0.1, 0.2, -0.3, 1.0]}
    assert fitted(table, list("abcd"), list("abc")) == []
    assert fitted(table, list("abcd"), list("abd")) == [
        ["x", pytest.approx([1 / 13, 2 / 13, 10 / 13])]
    ]


def test_rows_of_models_whose_weights_cancel_are_refused(tmp_path: Path) -> None:
    folders = {}
    for number, rows in enumerate((12, 14, 14, 14)):
        tensors = random_tensors(number, rows=rows)
        folders[f"m{number}"] = save(tmp_path / f"m{number}", tensors, {"vocab_size": rows})
    weights = (1.0, 0.1, 0.2, -0.3)
    with pytest.raises(UserError, match="sum to zero"):
        soup_of(folders, tmp_path / "soup", weights, vocab="union")
    # The weights of the long models cancel again, but no row is theirs alone.
    soup_of(folders, tmp_path / "other", (1.0, 0.1, 0.3, -0.4), vocab="intersect")
