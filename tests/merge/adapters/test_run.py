"""Pools of adapters through the command line: search, soup, report; soups by hand; rebuilds; mixed pools."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from souping.merge.local import LocalMerge, open_pool
from tests.conftest import Cli
from tests.support.adapters import deltas, save_adapter, weighted
from tests.support.family import answers, save_model, save_tokenizer

ODDS = {"red": (5, 1, 2), "green": (1, 5, 2)}
"""How often each adapter is right in each category."""
MODULES = {
    "ant": {f"model.layers.{i}.self_attn.{name}_proj": 4 for i in (0, 1) for name in "qv"},
    "bee": {f"model.layers.{i}.mlp.{name}_proj": 2 for i in (0, 1) for name in ("up", "down")},
    "cat": {"model.layers.0.self_attn.q_proj": 3, "model.layers.1.mlp.up_proj": 5},
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three adapters over it (the last with a tokenizer of its own), and items they answer."""
    folder = tmp_path_factory.mktemp("adapters")
    base = folder / "base"
    save_model(base, seed=0)
    for seed, (name, modules) in enumerate(MODULES.items()):
        save_adapter(folder / name, base, modules, seed, base_model_name_or_path="org/base", lora_alpha=4)
    save_tokenizer(folder / "cat")
    dice = random.Random(3)
    rows: list[dict[str, Any]] = [
        {"id": f"{c}-{i}", "category": c, "group": f"{c}-{i // 2}", "prompt": f"{c} {dice.randrange(10**6)}:"}
        for c in ODDS
        for i in range(60)
    ]
    said = {name: answers(_merged(folder, name), [row["prompt"] for row in rows]) for name in MODULES}
    for i, row in enumerate(rows):
        row["answer"] = said[dice.choices(list(MODULES), ODDS[row["category"]])[0]][i] or "?"
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _merged(folder: Path, name: str) -> Path:
    pool = open_pool({name: folder / name}, LocalMerge(adapters="merge", base=str(folder / "base")))
    return pool.write(pool.recipe({name: 1.0}), folder / "full" / name)


def pool_of(folder: Path, *names: str) -> list[str]:
    folders = ",".join(str(folder / name) for name in names or MODULES)
    return [f"pool.candidates=[{folders}]", f"merge.base={folder / 'base'}", "name=fam"]


def run(folder: Path) -> list[str]:
    items = ["evaluator.max_new_tokens=4", "evaluator.threads=1", f"benchmark.path={folder / 'items.jsonl'}"]
    return [*pool_of(folder), *items, "selector=topk", "selector.k=2", "analysis=[]"]


@pytest.mark.parametrize("mode", ["keep", pytest.param("merge", marks=pytest.mark.slow)])
def test_a_run_on_adapters(adapters: Path, souping: Cli, tmp_path: Path, mode: str) -> None:
    done = souping(*run(adapters), f"merge.adapters={mode}", "hydra.run.dir=outputs/fam/one")
    assert done.code == 0, done.err
    one = tmp_path / "outputs/fam/one"
    report = json.loads((one / "report.json").read_text())
    assert len({row["objective"]["mean"] for row in report["rows"]}) > 1
    recipe = json.loads((one / "soup/recipe.json").read_text())
    assert recipe["settings"]["adapters"] == mode
    assert report["recipe"]["id"] == recipe["id"]
    weights = {adapters / n: w for n, w in zip(recipe["ingredients"], recipe["weights"], strict=True)}
    names = {p.name for p in (one / "soup").iterdir()}
    assert "README.md" in names
    if mode == "keep":
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names
        assert set(deltas(one / "soup")) == set(weighted(weights))
    else:
        soup, before = (load_file(f / "model.safetensors") for f in (one / "soup", adapters / "base"))
        for module, delta in weighted(weights).items():
            exact = before[f"{module}.weight"].double() + delta
            assert (soup[f"{module}.weight"].double() - exact).abs().max() <= exact.abs().max() * 2**-8
    again = souping(*run(adapters), f"merge.adapters={mode}", "hydra.run.dir=outputs/fam/two")
    assert again.code == 0, again.err
    second = json.loads((tmp_path / "outputs/fam/two/report.json").read_text())
    assert second["cost"]["evaluated_items"] == 0
    for file in (one / "soup").iterdir():
        again_there = (tmp_path / "outputs/fam/two/soup" / file.name).read_bytes()
        assert file.read_bytes() == again_there.replace(b"outputs/fam/two", b"outputs/fam/one"), file.name


@pytest.mark.parametrize("mode", ["keep", "merge"])
def test_a_soup_by_hand_is_rebuilt_bit_for_bit(adapters: Path, souping: Cli, tmp_path: Path, mode: str) -> None:
    settings = [f"merge.adapters={mode}", "merge.carry=cat", "merge.max_shard_size=20KB"]
    hand = ["+experiment=merge", "optimiser.weights=[0.5,0.2,0.3]", *pool_of(adapters)[:2], "out=soup"]
    done = souping(*hand, *settings)
    assert done.code == 0, done.err
    assert (tmp_path / "soup/tokenizer.json").read_bytes() == (adapters / "cat/tokenizer.json").read_bytes()
    done = souping("+experiment=rebuild", "recipe=soup/recipe.json", "out=again")
    assert done.code == 0, done.err
    assert sorted(p.name for p in (tmp_path / "soup").iterdir()) == sorted(
        p.name for p in (tmp_path / "again").iterdir()
    )
    for file in (tmp_path / "soup").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_a_rebuild_refuses_an_adapter_that_changed(adapters: Path, souping: Cli, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    save_adapter(mine, adapters / "base", MODULES["cat"], 9)
    pool = [f"pool.candidates=[{mine},{{name: base2, path: {mine}2}}]"]
    save_adapter(tmp_path / "mine2", adapters / "base", MODULES["ant"], 10)
    assert souping("+experiment=merge", "optimiser=uniform", *pool, "out=soup").code == 0
    path = mine / "adapter_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    souping("+experiment=rebuild", "recipe=soup/recipe.json", "out=again").refused("ingredient mine", "content")


def test_a_pool_of_adapters_needs_no_torch_to_be_written(adapters: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom pathlib import Path\nfrom souping.merge.local import open_pool\n"
        "from souping.merge.local import LocalMerge\nroot = Path(sys.argv[1])\n"
        "pool = open_pool({n: root / n for n in ('ant', 'bee')}, LocalMerge(base=str(root / 'base')))\n"
        "pool.write(pool.recipe({'ant': 0.5, 'bee': 0.5}), Path(sys.argv[2]))\n"
        "assert not {'torch', 'peft', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(adapters), str(tmp_path / "soup")], check=True)
    assert torch.isfinite(load_file(tmp_path / "soup/adapter_model.safetensors").popitem()[1]).all()
