"""Soups without a search, and rebuilding one from its recipe."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from souping.core.types import Recipe, UserError
from souping.pipeline.merge_only import read_recipe
from tests.conftest import Cli


def same_folder(a: Path, b: Path) -> None:
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
    for file in a.iterdir():
        assert file.read_bytes() == (b / file.name).read_bytes(), file.name


def merge(souping: Cli, family: Path, *more: str) -> None:
    folders = ",".join(str(family / name) for name in ("ant", "bee", "cat"))
    weights = [] if any(a.startswith("optimiser=") for a in more) else ["optimiser.weights=[0.5,0.2,0.3]"]
    done = souping("+experiment=merge", f"pool.candidates=[{folders}]", "out=soup", *weights, *more)
    assert done.code == 0, done.err
    assert "GB/s" in done.out + done.err


def test_a_soup_loads_and_is_the_average(souping: Cli, family: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merge(souping, family)
    soup = load_file(tmp_path / "soup" / "model.safetensors")
    parts = [load_file(family / name / "model.safetensors") for name in ("ant", "bee", "cat")]
    for name, tensor in soup.items():
        exact = sum(w * p[name].double() for w, p in zip((0.5, 0.2, 0.3), parts, strict=True))
        assert (tensor.double() - exact).abs().max() <= exact.abs().max() * 2**-8
    AutoModelForCausalLM.from_pretrained(tmp_path / "soup")
    assert AutoTokenizer.from_pretrained(tmp_path / "soup")("hi")["input_ids"]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("optimiser=uniform",),
        ("merge.dtype=float32",),
        ("merge.overrides={layers.0:[0.1,0.1,0.8],*.mlp.*:[0.2,0.4,0.4]}", "merge.max_shard_size=20KB"),
    ],
    ids=["plain", "uniform", "float32", "overrides"],
)
def test_a_soup_is_rebuilt_bit_for_bit(souping: Cli, family: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    merge(souping, family, *more)
    done = souping("+experiment=rebuild", "recipe=soup/recipe.json", "out=again")
    assert done.code == 0, done.err
    same_folder(tmp_path / "soup", tmp_path / "again")


def test_another_store_finds_the_ingredients_in_the_pool(souping: Cli, family: Path, tmp_path: Path) -> None:
    merge(souping, family)
    arguments = ["+experiment=rebuild", "recipe=soup/recipe.json", "out=again", "store.path=other.sqlite"]
    souping(*arguments).refused("ant", "pool.candidates")
    folders = ",".join(str(family / name) for name in ("cat", "bee", "ant"))
    done = souping(*arguments, f"pool.candidates=[{folders}]")
    assert done.code == 0, done.err
    same_folder(tmp_path / "soup", tmp_path / "again")


def test_a_changed_ingredient_is_refused(souping: Cli, family: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    for name in ("ant", "bee", "cat"):
        shutil.copytree(family / name, own / name)
    merge(souping, own)
    weights = own / "bee" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    souping("+experiment=rebuild", "recipe=soup/recipe.json", "out=again").refused("bee", "content")
    assert not (tmp_path / "again").exists()


def test_recipes_that_are_none(souping: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    (tmp_path / "y.json").write_text("[]")
    for name in ("", "none.json", "x.json", "y.json"):
        words = [f"recipe={name}"] if name else []
        souping("+experiment=rebuild", *words, "out=again").refused("recipe", name)


@pytest.mark.parametrize("optimiser", ["grid", "greedy_soup"])
def test_a_search_without_items_is_refused(souping: Cli, family: Path, optimiser: str) -> None:
    pool = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    souping("+experiment=merge", pool, f"optimiser={optimiser}").refused("no items to search on")


def test_weights_must_fit_the_pool(souping: Cli, family: Path) -> None:
    pool = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    souping("+experiment=merge", pool).refused("optimiser.weights is not set")
    souping("+experiment=merge", pool, "optimiser.weights=[0.5,0.2,0.3]").refused("3 weights")
    souping("+experiment=merge", pool, "optimiser.weights=[0.5,0.2]").refused("0.7")


def test_a_plan_is_shown_saved_and_cooked_alone(souping: Cli, family: Path, tmp_path: Path) -> None:
    from souping.merge.__main__ import main as cook_alone

    folders = ",".join(str(family / name) for name in ("ant", "bee"))
    arguments = ["+experiment=merge", f"pool.candidates=[{folders}]", "optimiser.weights=[0.25,0.75]"]
    done = souping(*arguments, "plan=true", "hydra.run.dir=planned")
    assert done.code == 0, done.err
    assert "0.25 x ant + 0.75 x bee" in done.out
    assert not (tmp_path / "planned" / "soup").exists()
    assert "normalize: false" in (tmp_path / "planned" / "mergekit.yml").read_text()
    assert cook_alone([str(tmp_path / "planned" / "plan.json"), str(tmp_path / "alone")]) == 0
    assert souping(*arguments, "out=soup").code == 0
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("alone", "soup"))
    assert one == two


def test_nonfinite_weights_warn_when_asked_to(souping: Cli, family: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    bad = tmp_path / "bad"
    shutil.copytree(family / "bee", bad)
    table = load_file(bad / "model.safetensors")
    table["model.norm.weight"][0] = torch.nan
    save_file(table, bad / "model.safetensors", metadata={"format": "pt"})
    arguments = ["+experiment=merge", f"pool.candidates=[{family / 'ant'},{bad}]", "optimiser.weights=[0.5,0.5]"]
    souping(*arguments, "out=soup").refused("bad", "model.norm.weight")
    done = souping(*arguments, "out=soup", "merge.nonfinite=warn")
    assert done.code == 0, done.err
    assert "warning:" in done.out + done.err
    assert "model.norm.weight" in done.out + done.err
    done = souping("+experiment=rebuild", "recipe=soup/recipe.json", "out=again")
    assert done.code == 0, done.err
    same_folder(tmp_path / "soup", tmp_path / "again")


@pytest.mark.parametrize(
    "change",
    [
        {"id": "edited"},
        {"weights": [0, 0, 0]},
        {"weights": [1.0]},
        {"ingredients": [["a"], ["b"], ["c"]]},
        {"ingredients": ["a", "a", "a"]},
        {"ingredients": "abc"},
        {key: list(map(str, range(200_000))) for key in ("ingredients", "fingerprints")} | {"weights": [1] * 200_000},
        {"fingerprints": [1, 2, 3]},
        {"weights": [10**400, 1, 1]},
        {"weights": [math.nan, 1, 1]},
        {"weights": [math.inf, 1, 1]},
        {"weights": [True, 1, 1]},
        {"dtype": "int4"},
        {"dtype": ["bfloat16"]},
        {"method": ["linear"]},
        {"max_shard_size": 1.5},
        {"max_shard_size": -5},
        {"max_shard_size": "5GB"},
        {"carried_from": ["a"]},
        {"nonfinite": "never"},
        {"sources": ["a"]},
        {"sources": {"a": None}},
        {"settings": {"t": json.loads("[" * 300 + "]" * 300)}},
        {"id": 5},
        {"settings": []},
        {"settings": {"overrides": [1]}},
        {"settings": {"overrides": [["x", ["y"]]]}},
        {"settings": {"scale": True}},
        {"settings": {"base": 3}},
        {"settings": {"seed": -1}},
        {"settings": {"vocab": []}},
        {"settings": {"by": "mergekit", "parameters": {"t": "x"}}},
        {"settings": {"no_such": 1}},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_recipe_with_values_of_other_kinds_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    table = {"id": "x", "ingredients": list("abc"), "fingerprints": list("def"), "weights": [0.5, 0.2, 0.3]}
    table |= {"dtype": "float32", "method": "linear", "settings": {}, **change}
    with suppress(TypeError, ValueError, AttributeError, OverflowError):  # an edit that hides itself
        table["id"] = Recipe.from_dict(table).id if table["id"] == "x" else table["id"]
    (tmp_path / "r.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"^recipe=.*r\.json"):
        read_recipe(tmp_path / "r.json")
