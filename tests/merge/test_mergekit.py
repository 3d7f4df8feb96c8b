"""mergekit's YAML, its runs as a backend, and our bytes against those of mergekit itself where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from souping.checkpoints.checkpoint import Checkpoint
from souping.core.types import Recipe, UserError
from souping.merge.local import LocalMerge
from souping.merge.mergekit import MergekitMerge, MergekitPlan, to_yaml
from souping.merge.writer import write_checkpoint
from tests.support.checkpoints import aligned, family, load, opened, same_bits

COMMAND = os.environ.get("SOUPING_MERGEKIT") or shutil.which("mergekit-yaml", path=Path(sys.executable).parent)
missing = pytest.mark.skipif(COMMAND is None, reason="mergekit is not installed (or set SOUPING_MERGEKIT)")
WEIGHTS = {
    "1/3": (1 / 3,) * 3,
    "0.15/0.85": (0.15, 0.85),
    "five": (0.1, 0.2, 0.3, 0.15, 0.25),
    "20 x 0.05": (0.05,) * 20,
}


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Twenty tiny Llamas with odd sizes."""
    config = LlamaConfig(
        vocab_size=97, hidden_size=40, intermediate_size=55, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    root = tmp_path_factory.mktemp("llamas")
    for seed in range(20):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(root / f"m{seed}")
    return {f"m{seed}": root / f"m{seed}" for seed in range(20)}


def run_mergekit(text: str, folder: Path) -> dict[str, torch.Tensor]:
    assert COMMAND is not None
    folder.mkdir()
    (folder / "config.yml").write_text(text)
    command = [COMMAND, str(folder / "config.yml"), str(folder / "out"), "--no-copy-tokenizer", "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    return load(folder / "out")


@missing
@pytest.mark.slow
@pytest.mark.parametrize("case", WEIGHTS)
def test_same_bytes_as_mergekit(case: str, llamas: dict[str, Path], tmp_path: Path) -> None:
    folders = dict(list(llamas.items())[: len(WEIGHTS[case])])
    merge = LocalMerge()
    recipe = merge.recipe(tuple(folders), WEIGHTS[case], *opened(folders))
    text = to_yaml(recipe, folders)
    assert yaml.safe_load(text)["parameters"] == {"normalize": False}
    theirs = run_mergekit(text, tmp_path / "theirs")
    ours = load(write_checkpoint(merge.plan(recipe, aligned(merge, folders)), tmp_path / "ours"))
    assert set(ours) == set(theirs)
    assert all(same_bits(ours[name], theirs[name]) for name in ours)


@missing
@pytest.mark.slow
@pytest.mark.parametrize("method", ["task_arithmetic", "slerp"])
def test_other_methods_agree_with_mergekit(method: str, llamas: dict[str, Path], tmp_path: Path) -> None:
    folders = dict(list(llamas.items())[:2])
    settings: dict[str, Any] = {"base": str(llamas["m5"]), "scale": 0.8} if method == "task_arithmetic" else {}
    merge = LocalMerge(method=method, **settings)
    recipe = merge.recipe(tuple(folders), (0.3, 0.7), *opened(folders))
    theirs = run_mergekit(to_yaml(recipe, folders, base=settings.get("base")), tmp_path / "theirs")
    ours = load(write_checkpoint(merge.plan(recipe, aligned(merge, folders)), tmp_path / "ours"))
    for name, tensor in ours.items():
        assert torch.allclose(tensor.float(), theirs[name].float(), rtol=2**-7, atol=1e-6), name


@missing
@pytest.mark.slow
def test_ties_by_mergekit_written_and_poured(llamas: dict[str, Path], tmp_path: Path) -> None:
    folders = dict(list(llamas.items())[:2])
    merge = MergekitMerge(method="ties", base=str(llamas["m5"]), parameters={"density": 0.5}, command=COMMAND)
    checkpoints, fingerprints = opened(folders)
    recipe = merge.recipe(tuple(folders), (0.4, 0.6), checkpoints, fingerprints)
    out = merge.write(merge.plan(recipe, aligned(merge, folders)), tmp_path / "soup", extra_files={"README.md": "x"})
    assert {"README.md", "recipe.json", "config.json", "model.safetensors"} <= {path.name for path in out.iterdir()}
    assert not (out / "mergekit_config.yml").exists()
    module = LlamaForCausalLM.from_pretrained(folders["m0"], dtype=torch.float32)
    merge.live(merge.align(checkpoints), module).pour(recipe)
    written = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in module.state_dict().items())


def fake_mergekit(folder: Path, body: str) -> str:
    """A program that stands in for mergekit-yaml: it is called with CONFIG OUT and flags."""
    path = folder / "fake"
    path.write_text(f"#!{sys.executable}\nimport sys, shutil, pathlib, yaml\nconfig, out = sys.argv[1:3]\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_the_backend_runs_a_command_and_checks_what_it_wrote(tmp_path: Path) -> None:
    folders = family(tmp_path / "pool", 2)
    copy = (
        "source = yaml.safe_load(open(config))['models'][1]['model']\n"
        "shutil.copytree(source, out, dirs_exist_ok=True)\n"
        "(pathlib.Path(out) / 'mergekit_config.yml').write_text(open(config).read())"
    )
    (tmp_path / "bin").mkdir()
    merge = MergekitMerge(method="dare_ties", command=fake_mergekit(tmp_path / "bin", copy))
    recipe = merge.recipe(("m0", "m1"), (0.4, 0.6), *opened(folders))
    made = merge.plan(recipe, aligned(merge, folders))
    assert isinstance(made, MergekitPlan)
    assert yaml.safe_load(made.yaml)["models"][0]["parameters"] == {"weight": 0.4}
    assert "dare_ties" in made.describe()
    assert "dare_ties" in made.save(tmp_path / "bin" / "plan.json").read_text()
    out = merge.write(made, tmp_path / "soup")
    assert set(Checkpoint.open(out).tensors) == set(load(folders["m1"]))
    assert not (out / "mergekit_config.yml").exists()
    merge = MergekitMerge(method="dare_ties", command=fake_mergekit(tmp_path / "bin", "print('half done')"))
    with pytest.raises(UserError, match=r"no config\.json"):
        merge.write(made, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("method", ["ties", "dare_ties", "task_arithmetic"])
def test_a_method_with_a_base_is_refused_without_one_before_any_work(method: str, tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    with pytest.raises(UserError, match=rf"merge\.method={method} needs the base model: set merge\.base=FOLDER"):
        MergekitMerge(method=method).open(folders)
    assert MergekitMerge(method=method, base=str(folders["m0"])).open(folders).names == ("m0", "m1")
    assert MergekitMerge(method="linear").open(folders).names == ("m0", "m1")


def test_a_single_ingredient_needs_no_mergekit(tmp_path: Path) -> None:
    folders = family(tmp_path / "pool", 2)
    merge = MergekitMerge(method="ties", command="no-such-program")
    recipe = merge.recipe(("m0", "m1"), (0.0, 1.0), *opened(folders))
    soup, own = load(merge.write(merge.plan(recipe, aligned(merge, folders)), tmp_path / "soup")), load(folders["m1"])
    assert all(same_bits(soup[name], own[name]) for name in own)
    pair = merge.plan(merge.recipe(("m0", "m1"), (0.5, 0.5), *opened(folders)), aligned(merge, folders))
    with pytest.raises(UserError, match=r"merge\.command=no-such-program is not a program"):
        merge.write(pair, tmp_path / "other")


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear", "della", "della_linear", "arcee_fusion"])
def test_a_method_that_draws_has_its_seed_in_the_recipe(method: str, tmp_path: Path) -> None:
    folders = family(tmp_path / "pool", 3)
    base = str(folders.pop("m2"))
    pools = [MergekitMerge(method=method, base=base, seed=seed).open(folders) for seed in (0, 7)]
    recipes = [pool.recipe({"m0": 0.5, "m1": 0.5}) for pool in pools]
    assert [recipe.settings["seed"] for recipe in recipes] == [0, 7]
    assert recipes[0].id != recipes[1].id
    assert "seed" not in MergekitMerge(method="ties", base=base).open(folders).recipe({"m0": 0.5, "m1": 0.5}).settings


@pytest.mark.parametrize("fields", [{"vocab": "union"}, {"parameters": {"a": "b"}}, {"seed": None}])
def test_settings_of_the_backend(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"MergekitMerge\({next(iter(fields))}="):
        MergekitMerge(**fields)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("model_stock", {}, "no export"),
        ("linear", {"overrides": [["a", [1, 0]]]}, r"merge\.overrides"),
        ("task_arithmetic", {}, r"merge\.base"),
    ],
)
def test_what_cannot_be_exported_is_said(method: str, settings: dict[str, Any], message: str) -> None:
    recipe = Recipe(
        ingredients=("a", "b"), fingerprints=("x", "y"), weights=(0.5, 0.5), dtype="", method=method, settings=settings
    )
    with pytest.raises(UserError, match=message):
        to_yaml(recipe, {"a": "a", "b": "b"})
