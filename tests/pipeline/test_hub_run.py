"""Runs whose candidates are on the Hub: recipe, report, rebuild, adapters and their base."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from souping.checkpoints import fingerprint
from souping.checkpoints.folder import SINGLE
from tests.conftest import ROOT, Cli
from tests.support.adapters import save_adapter
from tests.support.family import NAMES
from tests.support.hub import Hub, files_of, serving


@pytest.fixture
def hub(tmp_path: Path, family: Path) -> Iterator[Hub]:
    """A Hub that has the family as org/ant, org/bee, ..."""
    with serving(tmp_path / "hub") as server:
        for name in NAMES:
            server.add(f"org/{name}", {**files_of(family / name), "README.md": b"---\nlicense: apache-2.0\n---\n"})
        yield server


def quick(family: Path, names: str = "org/ant,org/bee,org/cat,org/dog") -> list[str]:
    return [
        f"pool.candidates=[{names}]",
        f"benchmark.path={family / 'items.jsonl'}",
        "evaluator.max_new_tokens=4",
        "evaluator.threads=1",
        "selector=topk",
        "selector.k=2",
        "name=fam",
        "analysis=[]",
        "hydra.run.dir=run",
    ]


@pytest.mark.slow
def test_a_run_by_names_makes_the_soup_of_the_folders_and_says_where_it_came_from(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    done = souping(*quick(family))
    assert done.code == 0, done.err
    recipe = json.loads((tmp_path / "run/soup/recipe.json").read_text())
    assert recipe["sources"] == {n: f"org/{n}@{hub.repos[f'org/{n}'].refs['main']}" for n in recipe["ingredients"]}
    assert json.loads((tmp_path / "run/report.json").read_text())["recipe"]["sources"] == recipe["sources"]
    folders = ",".join(str(family / name) for name in NAMES)
    again = souping(*quick(family, folders)[:-1], "hydra.run.dir=local")
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "local/report.json").read_text())["cost"]["evaluated_items"] == 0
    assert (tmp_path / "local/soup" / SINGLE).read_bytes() == (tmp_path / "run/soup" / SINGLE).read_bytes()


@pytest.mark.slow
def test_a_recipe_finds_its_ingredients_on_the_hub(hub: Hub, family: Path, souping: Cli, tmp_path: Path) -> None:
    made = ["+experiment=merge", "pool.candidates=[org/ant,org/bee]", "optimiser.weights=[0.4,0.6]", "out=soup"]
    assert souping(*made).code == 0
    hub.add("org/ant", files_of(family / "cat"))  # main has moved on: the recipe holds the commit
    done = souping("+experiment=rebuild", "recipe=soup/recipe.json", "out=again", "store.path=fresh.sqlite")
    assert done.code == 0, done.err
    assert files_of(tmp_path / "again") == files_of(tmp_path / "soup")
    other = ["+experiment=rebuild", "recipe=soup/recipe.json", "out=other", "pool.candidates=[org/ant]"]
    souping(*other).refused("ingredient ant", ", the recipe ")  # another revision has other content


def test_selection_from_a_table_asks_the_hub_for_nothing(hub: Hub, souping: Cli, tmp_path: Path) -> None:
    rows = ["model,red,green,blue", "ant,80,60,30", "bee,50,70,30", "cat,40,30,80", "dog,20,50,20"]
    (tmp_path / "board.csv").write_text("\n".join(rows))
    names = "pool.candidates=[org/ant,org/bee@v1,org/cat,org/dog]"
    done = souping("scores=table", "scores.path=board.csv", "stop_after=select", names)
    assert done.code == 0, done.err
    assert not hub.log


@pytest.mark.parametrize("change", ["benchmark.path=nowhere.jsonl", "selector.k=9"])
def test_what_is_wrong_here_is_told_before_a_download(hub: Hub, family: Path, souping: Cli, change: str) -> None:
    souping(*quick(family), change).refused(change.partition("=")[0])
    assert not hub.log


@pytest.mark.slow
def test_a_pool_that_does_not_fit_is_told_before_its_weights_travel(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    from tests.support.family import save_model

    save_model(tmp_path / "wide", 9, intermediate_size=48)
    hub.add("org/wide", files_of(tmp_path / "wide"))
    souping(*quick(family, "org/ant,org/wide")).refused("wide", "ant")
    assert all(asked.startswith("bytes=0-") for asked in hub.ranges_of(SINGLE))


def test_a_missing_model_is_one_line(hub: Hub, family: Path, souping: Cli) -> None:
    souping(*quick(family, "org/ant,org/nobody")).refused("org/nobody", "hf auth login")


def test_a_model_without_a_tokenizer_is_told_before_its_weights_travel(hub: Hub, family: Path, souping: Cli) -> None:
    files = files_of(family / "ant")
    hub.add("org/mute", {name: files[name] for name in ("config.json", SINGLE)})
    bare = {"org/bee": hub.repos["org/bee"].head}
    hub.add("org/bare", {n: d for n, d in bare["org/bee"].items() if n in ("config.json", SINGLE)})
    souping(*quick(family, "org/mute,org/bare")).refused("candidate mute: org/mute@", "has no tokenizer")
    assert all(asked.startswith("bytes=0-") for asked in hub.ranges_of(SINGLE))


@pytest.mark.slow
def test_a_process_of_its_own_reads_hf_endpoint_and_the_offline_switch(hub: Hub, tmp_path: Path) -> None:
    """Nothing is patched here: the variables that people set."""
    weights = ["optimiser.weights=[0.5,0.5]", "pool.candidates=[org/ant,org/bee]"]
    command = [sys.executable, "-m", "souping", "+experiment=merge", *weights]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    online = {**environment, "HF_HUB_OFFLINE": "0"}
    first = subprocess.run([*command, "out=one"], cwd=tmp_path, env=online, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "download: " in first.stdout
    asked = len(hub.log)
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    second = subprocess.run([*command, "out=two"], cwd=tmp_path, env=offline, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert len(hub.log) == asked
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    other = [*command[:-1], "pool.candidates=[org/ant,org/cat]", "out=three"]
    third = subprocess.run(other, cwd=tmp_path, env=offline, capture_output=True, text=True)
    assert third.returncode == 2
    assert third.stderr.count("\n") == 1
    assert "org/cat is neither a folder here nor complete in the Hub's cache" in third.stderr


@pytest.mark.slow
def test_adapters_bring_their_base_from_the_hub(hub: Hub, family: Path, souping: Cli, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        modules = {"model.layers.0.self_attn.q_proj": 2, "model.layers.1.mlp.up_proj": 4}
        save_adapter(tmp_path / name, family / "base", modules, seed, base_model_name_or_path="org/base")
        hub.add(f"org/{name}", {**files_of(tmp_path / name), "adapter_model.bin": b"p"})
    made = ["+experiment=merge", "optimiser.weights=[0.4,0.6]"]
    souping(*made, "pool.candidates=[org/one,org/two]", "out=no").refused("the adapters' base model org/base")
    hub.add("org/base", files_of(family / "base"))
    assert souping(*made, "pool.candidates=[org/one,org/two]", "out=soup").code == 0
    local = [f"pool.candidates=[{tmp_path / 'one'},{tmp_path / 'two'}]", f"merge.base={family / 'base'}"]
    assert souping(*made, *local, "out=local").code == 0
    soups = [(tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("soup", "local")]
    assert soups[0] == soups[1]
    again = ["+experiment=rebuild", "recipe=soup/recipe.json", "out=again", "store.path=fresh.sqlite"]
    done = souping(*again)
    assert done.code == 0, done.err
    assert files_of(tmp_path / "again") == files_of(tmp_path / "soup")
