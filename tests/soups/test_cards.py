"""Cards by the Hub's conventions, and uploads that are planned: what would be sent, without any network."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from souping.core.text import human
from souping.soups import upload
from souping.soups.settings import Target
from tests.conftest import Cli, pool_of
from tests.support.adapters import change_config, save_adapter
from tests.support.hub import Hub, User, files_of, serving

WRITER = "hf_" + "w" * 20
MODULES = {"model.layers.0.self_attn.q_proj": 2, "model.layers.1.mlp.up_proj": 4}
ADAPTERS = ["merge", "pool.candidates=[one,two]", "optimiser.weights=[0.4,0.6]", "out=soup"]


def refuse_sockets(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan used the network")

    patch.setattr(socket.socket, "connect", refuse)
    patch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_sockets(monkeypatch)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as server:
        server.users[WRITER] = User("me")
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield server


def full_models(family: Path, place: Path, **licences: str) -> list[str]:
    """Arguments of a merge of copies of two models, each with its own licence."""
    for name in ("ant", "bee"):
        shutil.copytree(family / name, place / name)
        card = f"---\n{licences.get(name, 'license: mit')}\n---\n"
        (place / name / "README.md").write_text(card)
    return ["merge", "pool.candidates=[ant,bee]", "optimiser.weights=[0.4,0.6]", "out=soup"]


def adapters(family: Path, place: Path, base_name: str | None = None) -> list[str]:
    """Arguments of a merge of two adapters, which name their base by this name or else by its folder."""
    shutil.copytree(family / "base", place / "private" / "base")
    base = place / "private" / "base"
    for seed, name in enumerate(("one", "two")):
        save_adapter(place / name, base, MODULES, seed)
        if base_name:
            change_config(place / name, base_model_name_or_path=base_name)
    return [*ADAPTERS, f"merge.base_model={base}"]


def data_of(text: str) -> dict[str, Any]:
    """The card's data as huggingface_hub reads it, the same after it wrote it again."""
    written = ModelCard(text).data.to_yaml()
    again = ModelCard(f"---\n{written}\n---\n")
    assert again.data.to_yaml() == written
    data: dict[str, Any] = yaml.safe_load(written)
    return data


def planned_sizes(printed: str) -> dict[str, str]:
    """{file: size} of the table of a planned upload."""
    table = printed.split("Upload\n")[1].split("\n---\n")[0]
    # A long name is broken into two lines.
    rows = re.findall(r"^ *(\S+) +([\d.]+ k?M?B) *$(?:\n +(\S+) *$)?", table, flags=re.MULTILINE)
    return {start + end: size for start, size, end in rows}


# ------------------------------------------------------------ front matter


def test_the_card_of_a_merge_round_trips_through_the_hubs_own_class(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    souping(*full_models(family, tmp_path)).ok()
    assert data_of((tmp_path / "soup/README.md").read_text()) == {
        "base_model": ["ant", "bee"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "souping"],
    }


@pytest.mark.parametrize("named_by", ["adapters", "config", "nothing"])
def test_the_card_of_adapters_names_their_base_as_the_hub_knows_it(
    family: Path, souping: Cli, tmp_path: Path, named_by: str
) -> None:
    words = adapters(family, tmp_path, "org/base" if named_by == "adapters" else None)
    if named_by == "config":
        path = tmp_path / "private/base/config.json"
        config = json.loads(path.read_text()) | {"_name_or_path": "org/base"}
        path.write_text(json.dumps(config))
    souping(*words).ok()
    text = (tmp_path / "soup/README.md").read_text()
    data = data_of(text)
    assert data.pop("base_model", None) == (None if named_by == "nothing" else ["org/base"])
    assert data == {
        "base_model_relation": "adapter",
        "library_name": "peft",
        "tags": ["lora", "merge", "souping"],
    }
    # An upload replaces the rebuild line.
    assert "private" not in text.partition("## Rebuild")[0]
    souping(*words, "merge.adapters=merge", "out=full").ok()
    full = data_of((tmp_path / "full/README.md").read_text())
    assert (full["base_model_relation"], full["library_name"]) == ("merge", "transformers")
    assert full["base_model"] == ["one", "two"]


@pytest.mark.parametrize(
    ("bee", "expected"),
    [
        ("license: mit", {"license": "mit"}),
        ("license: apache-2.0", {}),
        ("license: [mit, apache-2.0]", {}),
        ("license: other\nlicense_name: mine", {}),
        ("tags: [x]", {}),
    ],
)
def test_a_sent_card_has_a_licence_only_if_all_ingredients_have_the_same(
    hub: Hub,
    family: Path,
    souping: Cli,
    tmp_path: Path,
    bee: str,
    expected: dict[str, str],
) -> None:
    souping(*full_models(family, tmp_path, bee=bee), "upload=me/soup").ok()
    text = hub.repos["me/soup"].head["README.md"].decode()
    assert str(tmp_path) not in text
    assert "rebuild soup/recipe.json out=soup-rebuilt" in text
    data = data_of(text)
    assert {key: data[key] for key in data if key.startswith("license")} == expected
    assert text.count("## Licence") == 1
    assert "ant (mit)" in text


def test_the_licence_of_an_unknown_ingredient_is_not_that_of_the_folder_where_one_stands(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    souping(*full_models(family, tmp_path)).ok()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    upload.push(Target(repo="me/soup"), tmp_path / "soup")
    text = hub.repos["me/soup"].head["README.md"].decode()
    assert "license" not in data_of(text)
    assert "ant (unknown)" in text


ALIASES = "\n".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(8))
FRONTS = {
    f"---\na0: &a0 [x]\n{ALIASES}\nlicense: *a8\n---\n": "unknown",
    f"---\nlicense: {'[' * 20_000}\n---\n": "unknown",
    f"---\nlicense: {'m' * 2000}\n---\n": "unknown",
    f"---\nx: {'x' * 100_000}\nlicense: mit\n---\n": "unknown",
    "---\nlicense: [mit, x]\n---\n": "unknown",
    "---\n" * 50_000: "unknown",
    "\ufeff---\r\nlicense: mit\r\n---\r\n": "mit",
    "---\nlicense: other\nlicense_name: mine\n---\n": "other: mine",
}
"""{card: the licence that is shown}"""


@pytest.mark.parametrize(("card", "licence"), FRONTS.items(), ids=range(len(FRONTS)))
def test_the_licence_of_a_card_is_a_short_text_or_unknown(
    offline: None, family: Path, souping: Cli, tmp_path: Path, card: str, licence: str
) -> None:
    words = full_models(family, tmp_path)
    (tmp_path / "ant/README.md").write_bytes(card.encode())
    shown = souping("plan", *words, "upload=me/soup").ok().out
    assert f"ant ({licence})" in shown


# ------------------------------------------------------------ planned uploads


@pytest.mark.parametrize("kind", ["full", "adapters"])
def test_a_planned_merge_shows_the_files_that_are_sent_and_uses_no_network(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path, kind: str
) -> None:
    make = full_models if kind == "full" else adapters
    words = [*make(family, tmp_path), "merge.max_shard_size=20KB"]
    with pytest.MonkeyPatch.context() as patch:
        refuse_sockets(patch)
        shown = souping("plan", *words[1:], "+experiment=merge", "upload=me/soup").ok().out
    assert not hub.log
    assert not (tmp_path / "soup").exists()
    souping(*words, "upload=me/soup").ok()
    sent = hub.repos["me/soup"].head
    sizes = {name: human(len(content)) for name, content in sent.items()}
    assert planned_sizes(shown) == sizes | {"total": human(sum(map(len, sent.values())))}
    assert sent["README.md"].decode() in shown
    assert "me/soup: public" in shown


def test_a_plan_says_whether_the_repository_will_be_private(
    offline: None, family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = full_models(family, tmp_path)
    shown = souping("plan", *words, "upload={repo: me/soup, private: true}").ok().out
    assert "me/soup: private" in shown
    souping("plan", *words, "upload=soup").refused("upload=soup", "org/name")


def test_no_path_of_this_machine_is_sent_with_an_adapter(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = adapters(family, tmp_path)
    shown = souping("plan", *words, "upload=me/soup").ok().out
    assert "base_model is left out" in shown
    souping(*words).ok()
    soup = tmp_path / "soup"
    upload.push(Target(repo="me/soup"), soup)
    sent = hub.repos["me/soup"].head
    assert str(tmp_path).encode() not in b"".join(sent.values())
    assert json.loads(sent["adapter_config.json"])["base_model_name_or_path"] == "base"
    # Without its card it is no other.
    card = (soup / "README.md").read_text()
    (soup / "README.md").unlink()
    upload.push(Target(repo="me/soup"), soup)
    sent = hub.repos["me/soup"].head
    assert str(tmp_path).encode() not in b"".join(sent.values())
    assert data_of(sent["README.md"].decode())["library_name"] == "peft"
    (soup / "README.md").write_text(card)
    # A name that the user adds is in both files.
    text = (soup / "README.md").read_text().replace("---\n", "---\nbase_model: org/base\n", 1)
    (soup / "README.md").write_text(text)
    upload.push(Target(repo="me/soup"), soup)
    sent = hub.repos["me/soup"].head
    assert json.loads(sent["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    # What was sent is a whole soup again.
    copy = tmp_path / "copy"
    for name, content in sent.items():
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(content)
    assert upload.files_by_recipe(copy).keys() == sent.keys()


INSIDE = ["see /home/alice/q", "in (~/secret)", "it's at C:/secret", "from file:///secret"]
NO_PLACES = [
    "https://host.org/home/alice/q",
    "/v1/chat/completions",
    "POST to /v1/models/x",
    "<tool></tool></tools>",
    "1/2 and/or 3",
    "profile:x, file: y",
    "~1/2",
    "org/name",
]
PLACES = [
    *INSIDE,
    "/home/me/x",
    "file:///x",
    "~/x",
    "~me/x",
    r"C:\x",
    "D:/x",
    r"\\host\x",
    "../x",
    "./x",
]


def test_no_path_of_this_machine_is_sent_with_a_config(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = full_models(family, tmp_path)
    for name in ("ant", "bee"):
        path = tmp_path / name / "config.json"
        table = json.loads(path.read_text())
        table |= {"_name_or_path": "runs/secret", "inner": {"name_or_path": "secret", "n": 1}}
        table |= {"places": PLACES, "/home/me/secret": 1, "vision": "org/clip"}
        table |= {"places inside": [["x", place] for place in INSIDE]}
        table |= {f"place {number}": place for number, place in enumerate(PLACES)}
        table |= {f"no place {number}": text for number, text in enumerate(NO_PLACES)}
        table |= {"chat_template": "Files are in '/mnt/data'."}
        path.write_text(json.dumps(table))
    souping(*words, "upload=me/soup").ok()
    sent = hub.repos["me/soup"].head
    config = json.loads(sent["config.json"])
    before = json.loads((tmp_path / "ant/config.json").read_text())
    kept = before.keys() - {key for key in before if key.startswith(("_name", "place", "/"))}
    assert config.keys() == kept
    assert config["inner"] == {"n": 1}
    assert config["vision"] == "org/clip"
    assert [config[f"no place {number}"] for number in range(len(NO_PLACES))] == NO_PLACES
    assert config["chat_template"] == "Files are in '/mnt/data'."
    copy = tmp_path / "copy"
    for name, content in sent.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    assert upload.files_by_recipe(copy).keys() == sent.keys()


def test_no_path_of_this_machine_is_sent_as_the_name_of_an_ingredient(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = full_models(family, tmp_path)
    pool = "pool.candidates=[{name: /home/alice/q, path: ant}, {name: '~/z', path: bee}]"
    words = [pool if word.startswith("pool.candidates") else word for word in words]
    souping(*words, "upload=me/soup").ok()
    sent = hub.repos["me/soup"].head
    assert b"alice" not in b"".join(sent.values())
    recipe = json.loads(sent["recipe.json"])
    assert (recipe["ingredients"], recipe["carried_from"]) == (["q", "z"], "q")
    local = json.loads((tmp_path / "soup/recipe.json").read_text())
    assert recipe["id"] == local["id"]


EDITS: dict[str, tuple[bytes, bytes]] = {
    "a path": (
        b"# Mine\nMade in /home/alice/q, see https://x.org/home/y.\n",
        b"Made in q, see https:",
    ),
    "an open quote": (
        b"# Mine\n```bash\ncd x && souping rebuild it's\n```\n",
        b"hf download me/soup",
    ),
    "another command": (b"# Mine\n```bash\ncd x && ls\n```\n", b"cd x && ls"),
    "a line that begins with cd": (
        b"# Mine\ncd first.\n```bash\nls\n```\n",
        b"cd first.\n```bash\nls",
    ),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_card_is_sent_as_it_is_without_paths(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path, case: str
) -> None:
    souping(*full_models(family, tmp_path)).ok()
    edited, sent = EDITS[case]
    (tmp_path / "soup/README.md").write_bytes(edited)
    upload.push(Target(repo="me/soup"), tmp_path / "soup")
    card = hub.repos["me/soup"].head["README.md"]
    assert sent in card
    assert b"alice" not in card


def test_a_card_that_is_no_text_is_named(
    offline: None, family: Path, souping: Cli, tmp_path: Path
) -> None:
    souping(*full_models(family, tmp_path)).ok()
    card = tmp_path / "soup/README.md"
    card.write_bytes("Mod\u00e8le".encode("latin-1"))
    souping("plan", "upload", "soup", "me/soup").refused("soup/README.md")
    os.truncate(card, 3 << 30)
    souping("plan", "upload", "soup", "me/soup").refused("soup/README.md")


def test_a_planned_run_shows_a_card_without_what_the_run_decides(
    offline: None, family: Path, souping: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*pool_of(family, "ant", "bee"), "selector=all"]
    souping("plan", *words, "upload=me/soup").refused("login")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    shown = souping("plan", *words, "upload=me/soup").ok().out
    assert {"README.md", "model.safetensors", "recipe.json"} <= planned_sizes(shown).keys()
    assert "# Soup to be found" in shown
    assert "| ant | – | – |" in shown
    assert "Upload" in shown
    assert "base_model_relation: merge" in shown
    assert "Upload" not in souping("plan", *words).ok().out


@pytest.mark.slow
def test_the_soup_of_a_finished_run_is_planned_then_sent(
    hub: Hub, finished_copy: Path, souping: Cli
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        refuse_sockets(patch)
        shown = souping("plan", "upload", "run", "me/soup").ok().out
    assert not hub.log
    assert "## Result" in shown
    done = souping("upload", "run", "me/soup").ok()
    assert f"{hub.url}/me/soup/commit/" in done.out
    sent = hub.repos["me/soup"].head
    assert planned_sizes(shown).keys() == {*sent, "total"}
    assert sent["README.md"].decode() in shown
    shutil.rmtree(finished_copy / "soup")
    souping("plan", "upload", "run", "me/soup").refused("run", "has no soup")


def test_the_soup_of_a_finished_merge_is_planned_from_its_folder(
    offline: None, family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = full_models(family, tmp_path)
    souping(*words).ok()
    shown = souping("plan", "upload", "soup", "me/soup").ok().out
    assert planned_sizes(shown).keys() == {*files_of(tmp_path / "soup"), "total"}
    (tmp_path / "soup/config.json").write_text("{}")
    souping("plan", "upload", "soup", "me/soup").refused("config.json")


# ------------------------------------------------------------ rebuilt soups


@pytest.mark.parametrize("beside", ["card", "other page", "nothing"])
def test_a_rebuilt_soup_has_a_card_about_itself(
    family: Path, souping: Cli, tmp_path: Path, beside: str
) -> None:
    souping(*full_models(family, tmp_path)).ok()
    card = tmp_path / "soup/README.md"
    if beside == "card":
        card.write_text(card.read_text() + "Mine.\n")
    elif beside == "other page":
        card.write_text("# My project\n")
    else:
        card.unlink()
    old = card.read_text() if card.exists() else ""
    souping("rebuild", "soup/recipe.json", "out=again").ok()
    text = (tmp_path / "again/README.md").read_text()
    assert (text == old) == (beside == "card")
    assert data_of(text)["base_model"] == ["ant", "bee"]
    soup = json.loads((tmp_path / "again/recipe.json").read_text())["id"]
    assert f"# Soup {soup}" in text


def test_a_soup_that_comes_back_and_is_sent_again_lists_its_licences_once(
    hub: Hub, family: Path, souping: Cli, tmp_path: Path
) -> None:
    souping(*full_models(family, tmp_path), "upload=me/soup").ok()
    sent = hub.repos["me/soup"].head["README.md"]
    (tmp_path / "soup/README.md").write_bytes(sent)
    upload.push(Target(repo="me/soup"), tmp_path / "soup", tmp_path / "outputs/store.sqlite")
    assert hub.repos["me/soup"].head["README.md"] == sent
