"""A soup goes to the Hub and comes back: who may send, what is sent, the card, the licence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from souping.checkpoints import fingerprint
from souping.checkpoints.folder import SINGLE
from souping.checkpoints.hub import fetch_one, parse
from souping.core.types import UserError
from souping.pipeline import upload
from tests.conftest import Cli
from tests.support.adapters import change_config, save_adapter
from tests.support.family import NAMES
from tests.support.hub import Hub, User, files_of, serving

LICENCES = {"ant": "mit", "bee": "apache-2.0", "cat": "llama3.1"}
WRITER, READER, STRANGER = ("hf_" + letter * 20 for letter in "wrs")


@pytest.fixture
def hub(tmp_path: Path, family: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with the family, each member under its own licence, and three people."""
    with serving(tmp_path / "hub") as server:
        for name, licence in zip(NAMES, (*LICENCES.values(), "cc-by-nc-4.0"), strict=True):
            card = f"---\nlicense: {licence}\n---\n".encode()
            server.add(f"org/{name}", {**files_of(family / name), "README.md": card})
        server.users[WRITER] = User("me", orgs={"team": "write", "club": "read"})
        server.users[READER] = User("me", role="read")
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield server


def run(family: Path, goal: str, *more: str) -> list[str]:
    return [
        "pool.candidates=[org/ant,org/bee,org/cat]",
        f"benchmark.path={family / 'items.jsonl'}",
        "evaluator.max_new_tokens=4",
        "evaluator.threads=1",
        "selector=all",
        "optimiser=uniform",
        "name=fam",
        "analysis=[]",
        "hydra.run.dir=run",
        f"upload={goal}",
        *more,
    ]


def merge(*more: str) -> list[str]:
    return ["+experiment=merge", "pool.candidates=[org/ant,org/bee]", "optimiser.weights=[0.4,0.6]", "out=soup", *more]


def front(text: str | bytes) -> dict[str, Any]:
    plain = text.decode() if isinstance(text, bytes) else text
    return dict(yaml.safe_load(plain.split("---\n", 2)[1]))


@pytest.mark.slow
def test_a_run_sends_its_soup_with_the_reports_numbers_and_it_comes_back_the_same(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    done = souping(*run(family, "team/Llama-soup"))
    assert done.code == 0, done.err
    assert f"{hub.url}/team/Llama-soup/commit/" in done.out
    repo = hub.repos["team/Llama-soup"]
    assert len(repo.commits) == 1
    local = files_of(tmp_path / "run/soup")
    assert {n: d for n, d in repo.head.items() if n != "README.md"} == {
        n: d for n, d in local.items() if n != "README.md"
    }
    name = parse("team/Llama-soup")
    assert name is not None
    back = fetch_one(name).folder
    assert (back / SINGLE).read_bytes() == local[SINGLE]
    assert fingerprint(back) == fingerprint(tmp_path / "run/soup")

    text = hub.repos["team/Llama-soup"].head["README.md"].decode()
    matter, report = front(text), json.loads((tmp_path / "run/report.json").read_text())
    assert matter["base_model"] == ["org/ant", "org/bee", "org/cat"]
    assert all(f"{name} ({licence})" in text for name, licence in LICENCES.items())
    soup = next(row for row in report["rows"] if row["kind"] == "soup")
    assert f"{100 * soup['objective']['mean']:.1f}" in text
    assert report["verdict"]["sentence"].split(",")[0].split("(")[0].strip() in text
    assert f"org/ant@{hub.repos['org/ant'].refs['main']}" in text


class TestWhoMayNot:
    """Everyone learns it before a model is loaded or fetched."""

    @pytest.mark.parametrize(
        ("token", "goal", "needles"),
        [
            ("", "me/soup", ["you are not logged in", "hf auth login"]),
            (READER, "me/soup", ["your token may not write", "settings/tokens", "hf auth login"]),
            (STRANGER, "me/soup", ["token is not valid", "hf auth login"]),
            (WRITER, "org/soup", ["me may not write to org, only to me, team"]),
            (WRITER, "club/soup", ["me may not write to club"]),
            (WRITER, "me/model", ["holds a model that is no soup", "nothing is replaced"]),
            *((WRITER, goal, ["must be org/name"]) for goal in ("soup", "a/b/c", "me/soup@v1", "3", "[me/soup]")),
            (WRITER, "{repo: me/soup, privat: true}", ["must be org/name"]),
        ],
    )
    def test_an_account_a_name_or_a_repository(
        self, hub: Hub, souping: Cli, monkeypatch: pytest.MonkeyPatch, token: str, goal: str, needles: list[str]
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", token)
        hub.add("me/model", {"model.safetensors": b"precious"})
        souping(*merge(f"upload={goal}")).refused("upload=", *needles)
        assert not hub.bodies()

    @pytest.mark.parametrize(
        ("name", "value", "needle"),
        [("HF_HUB_OFFLINE", True, "HF_HUB_OFFLINE=1"), ("ENDPOINT", "http://127.0.0.1:9", "cannot be reached")],
    )
    def test_no_network(
        self, hub: Hub, souping: Cli, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, needle: str
    ) -> None:
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        souping(*merge("upload=me/soup")).refused("upload=me/soup", needle)

    @pytest.mark.parametrize(
        ("scopes", "may"),
        [
            ([{"entity": {"name": "me"}, "permissions": ["repo.content.read", "repo.write"]}], True),
            ([{"entity": {"name": "me"}, "permissions": ["repo.content.read"]}], False),
        ],
    )
    def test_fine_grained_tokens(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch, scopes: list[dict[str, Any]], may: bool
    ) -> None:
        token = {"role": "fineGrained", "fineGrained": {"scoped": scopes}}
        who = {"name": "me", "orgs": [], "auth": {"accessToken": token}}
        monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: who)
        with nullcontext() if may else pytest.raises(UserError, match="may not write"):
            upload.check(upload.Target("me/soup"))


def test_a_private_one(hub: Hub, souping: Cli) -> None:
    assert souping(*merge("upload={repo: me/soup, private: true}")).code == 0
    assert hub.repos["me/soup"].private


def test_a_new_soup_takes_the_place_of_the_old_one_whole(hub: Hub, souping: Cli, tmp_path: Path) -> None:
    assert souping(*merge("upload=me/soup", "merge.max_shard_size=20KB")).code == 0
    assert len([n for n in hub.repos["me/soup"].head if n.endswith(".safetensors")]) > 1
    assert souping(*merge("upload=me/soup", "out=whole")).code == 0
    head = hub.repos["me/soup"].head
    assert [n for n in head if "safetensors" in n] == [SINGLE]
    assert len(hub.repos["me/soup"].commits) == 2


@pytest.mark.slow
def test_a_hub_that_fails_at_the_end_costs_nothing(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("the line went dead")

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "create_commit", broken)
        souping(*[a for a in run(family, "me/soup") if "run.dir" not in a]).refused(
            "the line went dead", "hf upload me/soup"
        )
    (folder,) = (tmp_path / "outputs/fam").glob("*/soup")
    assert (folder.parent / "report.json").is_file()
    assert not hub.repos["me/soup"].commits
    upload.push(upload.Target("me/soup"), folder)
    assert b"## Result" in hub.repos["me/soup"].head["README.md"]
    assert hub.repos["me/soup"].head[SINGLE] == (folder / SINGLE).read_bytes()


@pytest.mark.slow
def test_a_soup_sent_later_keeps_its_card_and_gets_the_licences(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    for name, data in files_of(family / "dog").items():
        (tmp_path / "mine" / name).write_bytes(data)
    (tmp_path / "mine/README.md").write_text("---\nlicense: gpl-3.0\n---\n# mine\n")
    made = ["+experiment=merge", "optimiser.weights=[0.4,0.6]", "pool.candidates=[org/bee,mine]", "out=soup"]
    assert souping(*made).code == 0
    upload.push(upload.Target("me/soup"), tmp_path / "soup", tmp_path / "outputs/store.sqlite")
    card = hub.repos["me/soup"].head["README.md"]
    assert card.startswith((tmp_path / "soup/README.md").read_bytes().rstrip())
    assert b"bee (apache-2.0), mine (gpl-3.0)" in card


@pytest.mark.slow
def test_the_licence_of_the_base_of_adapters_is_listed(hub: Hub, family: Path, souping: Cli, tmp_path: Path) -> None:
    base = b"---\nlicense: llama3.1\n---\n"
    hub.add("org/base", {**files_of(family / "base"), "README.md": base})
    for seed, name in enumerate(("one", "two")):
        save_adapter(tmp_path / name, family / "base", {"model.layers.0.mlp.up_proj": 2}, seed)
        change_config(tmp_path / name, base_model_name_or_path="org/base")
        hub.add(f"org/{name}", {**files_of(tmp_path / name), "README.md": b"---\nlicense: mit\n---\n"})
    made = ["+experiment=merge", "optimiser.weights=[0.4,0.6]", "pool.candidates=[org/one,org/two]", "out=soup"]
    done = souping(*made, "upload=me/Llama-adapter")
    assert done.code == 0, done.err
    repo = hub.repos["me/Llama-adapter"].head
    assert "adapter_model.safetensors" in repo
    assert b"the base model (llama3.1)" in repo["README.md"]


def test_a_folder_that_is_no_soup(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a soup's folder"):
        upload.push(upload.Target("me/soup"), tmp_path)
    assert "me/soup" not in hub.repos
