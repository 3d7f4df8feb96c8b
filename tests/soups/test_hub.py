"""Soups and the Hub: candidates, adapters and bases that come from it; cards; soups that are sent and come back."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from souping.checkpoints.fingerprints import fingerprint
from souping.checkpoints.folder import SINGLE
from souping.checkpoints.hub import fetch_one, parse_name
from souping.core.types import UserError
from souping.report.analysis_results import read_content
from souping.runs.run_report import card
from souping.soups import upload
from souping.soups.settings import Target
from tests.conftest import ROOT, Cli, command_line, pool_of
from tests.support.adapters import save_adapter
from tests.support.family import NAMES
from tests.support.hub import Hub, User, files_of, serving
from tests.support.report import sample

LICENCES = {"ant": "mit", "bee": "apache-2.0", "cat": "llama3.1", "dog": "cc-by-nc-4.0"}
WRITER = "hf_" + "w" * 20
READER = "hf_" + "r" * 20
STRANGER = "hf_" + "s" * 20
MERGE = ["+experiment=merge", "optimiser.weights=[0.4,0.6]"]
PAIR = [*MERGE, "pool.candidates=[org/ant,org/bee]", "out=soup"]
REBUILD = ["rebuild", "soup/recipe.json", "out=again", "store=fresh.sqlite"]


@pytest.fixture
def hub(tmp_path: Path, family: Path) -> Iterator[Hub]:
    """A Hub with the family, each member under its own licence, and two people."""
    with serving(tmp_path / "hub") as server:
        for name in NAMES:
            readme = f"---\nlicense: {LICENCES[name]}\n---\n".encode()
            server.add(f"org/{name}", {**files_of(family / name), "README.md": readme})
        server.users[WRITER] = User("me", orgs={"team": "write", "club": "read"})
        server.users[READER] = User("me", role="read")
        yield server


@pytest.fixture
def writer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return hub


def quick(family: Path, names: str = "org/ant,org/bee,org/cat,org/dog") -> list[str]:
    search = ["selector=topk", "selector.k=2", "hydra.run.dir=run"]
    return [*pool_of(family)[1:], *search, f"pool.candidates=[{names}]"]


def front(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n", 2)[1]))


# ------------------------------------------------------------ models from the Hub


@pytest.mark.slow
def test_a_run_by_names_makes_the_soup_of_the_folders(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    souping(*quick(family)).ok()
    recipe = json.loads((tmp_path / "run/soup/recipe.json").read_text())
    assert recipe["sources"] == {
        n: f"org/{n}@{hub.repos[f'org/{n}'].refs['main']}" for n in recipe["ingredients"]
    }
    assert (
        json.loads((tmp_path / "run/report.json").read_text())["recipe"]["sources"]
        == recipe["sources"]
    )
    folders = ",".join(str(family / name) for name in NAMES)
    souping(*quick(family, folders), "hydra.run.dir=local").ok()
    assert json.loads((tmp_path / "local/report.json").read_text())["cost"]["evaluated_items"] == 0
    assert (tmp_path / "local/soup" / SINGLE).read_bytes() == (
        tmp_path / "run/soup" / SINGLE
    ).read_bytes()


@pytest.mark.slow
def test_a_recipe_finds_its_ingredients_on_the_hub(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    souping(*PAIR).ok()
    hub.add("org/ant", files_of(family / "cat"))  # main has moved on: the recipe holds the commit
    souping(*REBUILD).ok()
    assert files_of(tmp_path / "again") == files_of(tmp_path / "soup")
    other = [
        "rebuild",
        "soup/recipe.json",
        "out=other",
        "pool.candidates=[org/ant]",
    ]
    souping(*other).refused("ingredient ant", ", the recipe ")  # another revision has other content


def test_tables_and_faults_need_no_request(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    rows = ["model,red,green,blue", "ant,80,60,30", "bee,50,70,30", "cat,40,30,80", "dog,20,50,20"]
    (tmp_path / "board.csv").write_text("\n".join(rows))
    names = "pool.candidates=[org/ant,org/bee@v1,org/cat,org/dog]"
    souping("scores=table", "scores.path=board.csv", "stop_after=select", names).ok()
    for change in ("benchmark.path=nowhere.jsonl", "selector.k=9"):
        souping(*quick(family), change).refused(change.partition("=")[0])
    assert not hub.log


def test_a_model_without_a_tokenizer_is_refused_before_its_weights_travel(
    hub: Hub, family: Path, souping: Cli
) -> None:
    for name, source in {"mute": "ant", "bare": "bee"}.items():
        files = files_of(family / source)
        hub.add(f"org/{name}", {part: files[part] for part in ("config.json", SINGLE)})
    souping(*quick(family, "org/mute,org/bare")).refused(
        "candidate mute: org/mute@", "has no tokenizer"
    )
    assert all(asked.startswith("bytes=0-") for asked in hub.ranges_of(SINGLE))


@pytest.mark.slow
def test_a_process_of_its_own_reads_hf_endpoint_and_the_offline_switch(
    hub: Hub, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
    }
    environment["HF_HOME"] = str(tmp_path / "home")

    def run(offline: str, *words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "souping", *MERGE, *words]
        env = {**environment, "HF_HUB_OFFLINE": offline}
        return subprocess.run(
            line, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    first = run("0", "pool.candidates=[org/ant,org/bee]", "out=one")
    assert first.returncode == 0, first.stderr
    assert "download: " in first.stdout
    asked = len(hub.log)
    second = run("1", "pool.candidates=[org/ant,org/bee]", "out=two")
    assert second.returncode == 0, second.stderr
    assert len(hub.log) == asked
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    third = run("1", "pool.candidates=[org/ant,org/cat]", "out=three")
    assert (third.returncode, third.stderr.count("\n")) == (2, 1)
    assert "org/cat is neither a folder here nor complete in the Hub's cache" in third.stderr


@pytest.mark.slow
def test_adapters_bring_their_base_and_its_licence(
    writer: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    for seed, name in enumerate(("one", "two")):
        modules = {"model.layers.0.self_attn.q_proj": 2, "model.layers.1.mlp.up_proj": 4}
        save_adapter(
            tmp_path / name, family / "base", modules, seed, base_model_name_or_path="org/base"
        )
        writer.add(f"org/{name}", {**files_of(tmp_path / name), "adapter_model.bin": b"p"})
    online = [*MERGE, "pool.candidates=[org/one,org/two]"]
    souping(*online, "out=no").refused("the adapters' base model org/base")
    writer.add(
        "org/base", {**files_of(family / "base"), "README.md": b"---\nlicense: llama3.1\n---\n"}
    )
    souping(*online, "out=soup", "upload=me/Llama-adapter").ok()
    sent = writer.repos["me/Llama-adapter"].head
    assert "adapter_model.safetensors" in sent
    assert b"the base model (llama3.1)" in sent["README.md"]
    local = [
        f"pool.candidates=[{tmp_path / 'one'},{tmp_path / 'two'}]",
        f"merge.base_model={family / 'base'}",
    ]
    souping(*MERGE, *local, "out=local").ok()
    soups = [
        (tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("soup", "local")
    ]
    assert soups[0] == soups[1]
    souping(*REBUILD).ok()
    assert files_of(tmp_path / "again") == files_of(tmp_path / "soup")


# ------------------------------------------------------------ cards


def parts(**changes: Any) -> dict[str, Any]:
    report, _ = sample(columns=3)
    keys = ("name", "benchmark", "selection", "recipe", "objective", "splits")
    return {**{key: report[key] for key in keys}, **changes}


def test_a_card_before_the_report_names_parents_and_no_number() -> None:
    text = card(read_content(parts()))
    recipe = parts()["recipe"]
    assert front(text) == {
        "base_model": recipe["ingredients"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "souping"],
    }
    assert "search split" not in text
    for name, weight, mark in zip(
        recipe["ingredients"], recipe["weights"], recipe["fingerprints"], strict=True
    ):
        assert f"| {name} | {weight:.4g} | {mark[:16]} |" in text
    assert "A copy of one model" in card(
        read_content({"recipe": sample(k=1, columns=3)[0]["recipe"]})
    )


def test_a_card_after_the_report_has_the_numbers_of_the_report_split() -> None:
    from huggingface_hub import ModelCard

    report, _ = sample(columns=3)
    text = card(read_content(report))
    soup = next(row for row in report["rows"] if row["kind"] == "soup")
    for score in (soup["objective"], *soup["scores"].values()):
        assert f"{100 * score['low']:.1f} to {100 * score['high']:.1f}" in text
    assert report["verdict"]["sentence"] in text
    assert f"in {report['losses']['above']} and behind in {report['losses']['below']}" in text
    assert str(report["objective"]["search"]) not in text
    assert ModelCard(text).data.get("base_model") == report["recipe"]["ingredients"]


@pytest.mark.parametrize(
    ("settings", "name"),
    [({}, "AutoModelForCausalLM"), ({"adapters": "keep"}, "AutoPeftModelForCausalLM")],
)
def test_a_card_has_code_that_runs_and_no_path_of_the_machine(
    settings: dict[str, str], name: str
) -> None:
    recipe = parts()["recipe"] | {
        "ingredients": ["/home/me/models/a", "C:\\models\\b", "org/c"],
        "settings": settings,
    }
    recipe |= {"weights": [0.2, 0.3, 0.5], "fingerprints": ["1", "2", "3"]}
    there = "souping rebuild /home/me/soup/recipe.json out=rebuilt store=/home/me/s"
    rebuild = f"{there} merge.command=/home/me/mergekit-yaml merge._target_=mine.Median"
    text = card(read_content(parts(recipe=recipe, rebuild=rebuild)))
    assert "/home" not in text
    assert "models\\" not in text
    assert front(text).get("base_model", ["a", "b", "org/c"]) == ["a", "b", "org/c"]
    assert " rebuild soup/recipe.json out=soup-rebuilt merge._target_=mine.Median\n" in text
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert f"model = {name}.from_pretrained(folder)" in code


@pytest.mark.parametrize("name", ['a: "b"', "<b>", "x\ny", "yes", "x\x1b[31m\u202ey"])
def test_awkward_names_keep_a_cards_yaml_valid(name: str) -> None:
    report, _ = sample(columns=3)
    recipe = report["recipe"] | {
        "ingredients": [name, "plain"],
        "weights": [0.5, 0.5],
        "fingerprints": ["1", "2"],
    }
    text = card(read_content({**report, "recipe": recipe, "benchmark": {"name": name, "note": ""}}))
    assert "plain" in front(text)["base_model"]
    assert "<b>" not in text.split("---\n", 2)[2].split("```")[0]
    assert not {"\x1b", "\u202e"} & set(text)


# ------------------------------------------------------------ uploads


@pytest.mark.slow
def test_a_soup_that_is_sent_comes_back_the_same(
    writer: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    done = souping(*quick(family), "selector.k=4", "optimiser=uniform", "upload=team/soup").ok()
    assert f"{writer.url}/team/soup/commit/" in done.out
    repo = writer.repos["team/soup"]
    local = files_of(tmp_path / "run/soup")
    assert len(repo.commits) == 1
    assert repo.head | {"README.md": b""} == local | {"README.md": b""}
    name = parse_name("team/soup")
    assert name is not None
    assert fingerprint(fetch_one(name).folder) == fingerprint(tmp_path / "run/soup")

    text = repo.head["README.md"].decode()
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert front(text)["base_model"] == [f"org/{name}" for name in NAMES]
    assert all(f"{name} ({licence})" in text for name, licence in LICENCES.items())
    soup = next(row for row in report["rows"] if row["kind"] == "soup")
    assert f"{100 * soup['objective']['mean']:.1f}" in text
    assert f"org/ant@{writer.repos['org/ant'].refs['main']}" in text


@pytest.mark.parametrize(
    ("token", "goal", "needles"),
    [
        ("", "me/soup", ["you are not logged in", "hf auth login"]),
        (READER, "me/soup", ["your token may not write", "settings/tokens"]),
        (STRANGER, "me/soup", ["token is not valid"]),
        (WRITER, "org/soup", ["me may not write to org, only to me, team"]),
        (WRITER, "me/model", ["holds a model that is not a soup", "nothing is replaced"]),
        (WRITER, "soup", ["must be org/name"]),
    ],
)
def test_a_forbidden_upload_is_refused_before_a_model_is_fetched(
    hub: Hub,
    souping: Cli,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    goal: str,
    needles: list[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.add("me/model", {"model.safetensors": b"precious"})
    souping(*PAIR, f"upload={goal}").refused("upload=", *needles)
    assert not hub.bodies()


@pytest.mark.slow
def test_a_new_soup_takes_the_place_of_the_old_one_whole(
    writer: Hub, souping: Cli, tmp_path: Path
) -> None:
    souping(*PAIR, "upload={repo: me/soup, private: true}", "merge.max_shard_size=20KB").ok()
    repo = writer.repos["me/soup"]
    assert repo.private
    assert len([name for name in repo.head if name.endswith(".safetensors")]) > 1
    souping(*PAIR, "upload=me/soup", "out=whole").ok()
    assert [name for name in repo.head if "safetensors" in name] == [SINGLE]
    assert len(repo.commits) == 2
    with pytest.raises(UserError, match="not a soup's folder"):
        upload.push(Target(repo="me/other"), tmp_path)
    assert "me/other" not in writer.repos


@pytest.mark.slow
def test_a_hub_that_fails_at_the_end_costs_nothing(
    writer: Hub, family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("the line went dead")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.HfApi.create_commit", broken)
        souping(*quick(family), "optimiser=uniform", "upload=me/soup").refused(
            "the line went dead", "upload=me/soup"
        )
    folder = tmp_path / "run/soup"
    assert (tmp_path / "run/report.json").is_file()
    assert not writer.repos["me/soup"].commits
    upload.push(Target(repo="me/soup"), folder)
    assert b"## Result" in writer.repos["me/soup"].head["README.md"]
    assert writer.repos["me/soup"].head[SINGLE] == (folder / SINGLE).read_bytes()


def soup(souping: Cli, tmp_path: Path) -> Path:
    souping(*PAIR, "merge.max_shard_size=20KB").ok()
    return tmp_path / "soup"


@pytest.fixture(scope="module")
def merged(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a soup of two models in two shards, of which a test takes a copy."""
    place = tmp_path_factory.mktemp("merged")
    folders = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    assert command_line(place, *MERGE, folders, "out=soup", "merge.max_shard_size=20KB") == 0
    return place / "soup"


def replaced_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


STRANGERS: dict[str, Callable[[Path], object]] = {
    ".env": lambda path: path.write_text("KEY=1"),
    "model.safetensors.bak": lambda path: path.write_text("x"),
    "logs/train.log": lambda path: path.write_text("x"),
    "tokenizer.md": lambda path: path.symlink_to("/etc/hostname"),
    "README.md": replaced_by_link,
    "config.json": lambda path: path.write_text("{}"),
    "tokenizer.json": lambda path: path.unlink(),
    "model-00001-of-00002.safetensors": lambda path: path.write_bytes(b"x"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_folder_with_other_files_than_the_soups_is_not_sent(
    writer: Hub, merged: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "soup"
    shutil.copytree(merged, folder)
    (folder / "logs").mkdir()
    STRANGERS[name](folder / name)
    with pytest.raises(UserError, match=rf"soup .*{re.escape(name)}"):
        upload.push(Target(repo="me/soup"), folder)
    with pytest.raises(UserError, match=re.escape(name)):
        upload.check_target(Target(repo="me/soup"), folder)
    assert "me/soup" not in writer.repos


def test_an_edited_card_is_sent_with_the_files_of_the_soup_alone(
    writer: Hub, souping: Cli, tmp_path: Path
) -> None:
    folder = soup(souping, tmp_path)
    files = json.loads((folder / "recipe.json").read_text())["files"]
    with (folder / "README.md").open("a") as card:
        card.write("Mine.\n")
    upload.push(Target(repo="me/soup"), folder)
    sent = writer.repos["me/soup"].head
    assert sent.keys() == {*files, "README.md", "recipe.json"}
    assert b"Mine." in sent["README.md"]
    assert b'folder = "me/soup"' in sent["README.md"]
    assert str(tmp_path).encode() not in sent["README.md"]
    (folder / ".env").touch()
    with pytest.raises(UserError, match=r"\.env"):
        upload.push(Target(repo="me/soup"), folder)


@pytest.mark.slow
def test_large_files_are_marked_by_their_size(
    writer: Hub, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("souping.merge.soup_files.HASHED", 500)
    folder = soup(souping, tmp_path)
    marks = json.loads((folder / "recipe.json").read_text())["files"]
    sizes = {name: (folder / name).stat().st_size for name in marks}
    for name, size in sizes.items():
        assert (marks[name] == f"{size} bytes") == (size > 500)
    upload.push(Target(repo="me/soup"), folder)
