"""Models of the Hub as candidates, through huggingface_hub's own client and a server of the test's own."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from souping.checkpoints import Checkpoint, fingerprint
from souping.checkpoints import hub as online
from souping.checkpoints.folder import INDEX, SINGLE
from souping.checkpoints.hub import HubName, parse
from souping.core.types import UserError
from tests.conftest import ROOT
from tests.support.hub import LARGE, Hub, User, files_of, serving

CODE = {"modeling_ant.py": b"import os", "tokenizer_ant.py": b"import os", "README.md": b"---\nlicense: mit\n---\n"}
HEAVY = {
    "pytorch_model.bin": b"p" * LARGE,
    "consolidated.safetensors": b"c" * LARGE,
    "model.gguf": b"g",
    "onnx/m.onnx": b"o",
}
TOKEN = "hf_" + "a" * 20


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests without the child process that bounds them in time, memory and size; pickled as for the child."""

    def at_once(
        function: Callable[..., Any], arguments: tuple[object, ...], report: Callable[[int, int], None] | None, **_: Any
    ) -> Any:
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))
        return pickle.loads(pickle.dumps(function(*arguments, **({"report": report} if report else {}))))

    monkeypatch.setattr(online, "call", at_once)
    monkeypatch.setattr(online, "limit_file_size", lambda nbytes: None)


@pytest.fixture
def ant(hub: Hub, family: Path) -> dict[str, bytes]:
    """The files of org/ant, which is on the server with much that nobody needs."""
    files = files_of(family / "ant")
    hub.add("org/ant", {**files, **CODE, **HEAVY})
    return files


def named(text: str) -> HubName:
    name = parse(text)
    assert name is not None
    return name


def fetch(name: str = "org/ant") -> online.Fetched:
    return online.fetch_one(named(name))


def refused(name: str, *needles: str) -> None:
    """One line, which has the needles and no control characters."""
    with pytest.raises(UserError) as caught:
        fetch(name)
    text = str(caught.value)
    assert text.isprintable(), text
    assert [needle for needle in needles if needle not in text] == [], text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubName("org/name", "main")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/na.me-2_b@refs/pr/3", HubName("org/na.me-2_b", "refs/pr/3")),
        *((text, None) for text in ("name", "a/b/c", "/org/name", "./org/name", "../name", "~/name", "org/name@")),
        *((text, None) for text in ("org/name@/etc/hostname", "org/..", "org/a--b")),
    ],
)
def test_what_a_name_on_the_hub_is(text: str, expected: HubName | None) -> None:
    assert parse(text) == expected


def test_a_folder_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse("org/name") is None


@pytest.mark.usefixtures("in_process")
class TestFetch:
    def test_only_what_souping_needs_comes_and_only_once(self, hub: Hub, ant: dict[str, bytes]) -> None:
        folder = fetch().folder
        assert files_of(folder) == ant
        assert set(hub.bodies()) == {f"/org/ant/resolve/{folder.name}/{name}" for name in ant}
        hub.log.clear()
        assert fetch().folder == folder
        assert not hub.bodies()

    def test_the_revision_is_a_commit_once_it_is_fetched(self, hub: Hub, ant: dict[str, bytes]) -> None:
        first = hub.repos["org/ant"].refs["main"]
        second = hub.add("org/ant", {**ant, "generation_config.json": b"{}"})
        assert str(fetch().name) == f"org/ant@{second}"
        old = fetch(f"org/ant@{first}")
        assert str(old.name) == f"org/ant@{first}"
        assert (old.folder / "generation_config.json").read_bytes() == ant["generation_config.json"]

    def test_a_blob_is_known_by_its_bytes_not_by_its_name(self, ant: dict[str, bytes], family: Path) -> None:
        folder = fetch().folder
        expected = fingerprint(family / "ant")
        seen: dict[str, str] = {}
        assert fingerprint(folder, seen) == expected
        assert len(seen) == len(ant)  # every file was read, once
        blob = (folder / SINGLE).resolve()
        assert len(blob.name) == 64
        data = bytearray(blob.read_bytes())
        data[-1] ^= 1
        blob.write_bytes(bytes(data))
        assert fingerprint(folder, seen) == fingerprint(folder) != expected

    def test_shards_come_by_their_index(self, hub: Hub, family: Path, tmp_path: Path) -> None:
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM.from_pretrained(family / "bee")
        model.save_pretrained(tmp_path / "bee", max_shard_size="10KB")
        files = files_of(tmp_path / "bee")
        assert INDEX in files
        hub.add("org/bee", {**files, "model-extra.safetensors": b"x" * LARGE})
        assert online.sizes(HubName("org/bee")) == {name: len(data) for name, data in files.items()}
        assert [path.rpartition("/")[2] for path in hub.bodies()] == [INDEX]
        assert files_of(fetch("org/bee").folder) == files

    def test_sizes_ask_for_no_file(self, hub: Hub, ant: dict[str, bytes]) -> None:
        assert online.sizes(HubName("org/ant")) == {name: len(data) for name, data in ant.items()}
        assert not hub.bodies()
        assert online.cached(HubName("org/ant")) is None

    def test_blobs_that_models_share_are_inside_the_cache(self, ant: dict[str, bytes], family: Path) -> None:
        """huggingface_hub may keep a model's blob as a link to one store for all models."""
        folder = fetch().folder
        blob = (folder / SINGLE).resolve()
        shared = blob.parents[2] / "blobs" / "ab" / ("ab" * 32)
        shared.parent.mkdir(parents=True)
        blob.rename(shared)
        blob.symlink_to(shared)
        assert Checkpoint.open(folder).tensors == Checkpoint.open(family / "ant").tensors
        assert fingerprint(folder) == fingerprint(family / "ant")


class TestChild:
    """Downloads in the child process, which ends with the run and leaves whole files and no others."""

    DATA = bytes(range(256)) * 131072  # 32 MiB; huggingface_hub hands 10 MB on at a time

    def parts(self) -> list[Path]:
        return list((HubName("org/big").cache / "blobs").glob("*.incomplete"))

    def test_weights_are_larger_than_the_small_files(self, hub: Hub, ant: dict[str, bytes]) -> None:
        import safetensors.numpy

        data = safetensors.numpy.save({"w": np.zeros(6 << 20, np.uint8)})
        hub.add("org/big", {**ant, SINGLE: data})
        seen: dict[str, int] = {}

        def check(folders: Any) -> None:
            seen.update({name: (folder / SINGLE).stat().st_size for name, folder in folders.items()})

        folder = online.fetch({"big": named("org/big")}, check=check)["big"].folder
        assert seen["big"] > 6 << 20
        assert (folder / SINGLE).read_bytes() == data

    @pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
    def test_an_end_by_a_signal_leaves_no_part(self, hub: Hub, tmp_path: Path, number: int) -> None:
        hub.add("org/big", {"config.json": b"{}", SINGLE: self.DATA})
        hub.stall = 25_000_000
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DOWNLOAD_TIMEOUT": "600"}
        process = subprocess.Popen(
            [sys.executable, "-c", "from souping.checkpoints import hub; hub.fetch_one(hub.parse('org/big'))"],
            env=environment,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        while process.poll() is None and sum(p.stat().st_size for p in self.parts()) < 20_000_000:
            time.sleep(0.02)
        assert process.poll() is None
        process.send_signal(number)
        process.wait()
        while self.parts():  # a killed run cannot wait for its child, which notices it
            time.sleep(0.02)
        hub.stall = None
        hub.awake.set()
        assert fetch("org/big").folder.joinpath(SINGLE).read_bytes() == self.DATA

    def test_bodies_that_never_end(self, hub: Hub, ant: dict[str, bytes], tmp_path: Path) -> None:
        hub.endless = True
        refused("org/ant", "more bytes than it listed")
        assert not list(tmp_path.rglob("*.incomplete"))

    def test_a_listing_that_never_ends(self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(online, "LISTING", 3.0)
        hub.drip = True
        refused("org/ant", hub.url)

    @pytest.mark.slow
    def test_a_listing_that_fills_the_memory(self, hub: Hub, ant: dict[str, bytes]) -> None:
        hub.flood = True
        refused("org/ant", hub.url, "memory")


@pytest.mark.usefixtures("in_process")
class TestRefusals:
    """One line each, and the login command where it helps."""

    @pytest.mark.parametrize(
        ("name", "setting", "needles"),
        [
            ("org/nobody", {}, ["neither a folder here nor a model on the Hub", "hf auth login"]),
            ("org/ant", {"HF_TOKEN": TOKEN}, ["token is not valid", "hf auth login"]),
            ("org/ant@v9", {}, ["no revision v9", "/org/ant"]),
            ("org/ant", {"ENDPOINT": "http://127.0.0.1:9"}, ["is no folder here", "http://127.0.0.1:9", "reached"]),
            ("org/ant", {"down": True}, ["answered 503"]),
        ],
        ids=["missing", "token", "revision", "network", "down"],
    )
    def test_what_the_hub_refuses(
        self,
        hub: Hub,
        ant: dict[str, bytes],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        setting: dict[str, Any],
        needles: list[str],
    ) -> None:
        for key, value in setting.items():
            if key == "HF_TOKEN":
                monkeypatch.setenv(key, value)
            elif key == "ENDPOINT":
                monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", value)
            else:
                hub.down = value
        refused(name, *needles)

    @pytest.mark.parametrize("kind", ["private", "gated"])
    def test_private_and_gated(
        self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        repo = hub.repos["org/ant"]
        repo.private, repo.gated = kind == "private", kind == "gated"
        for token in ("", TOKEN):
            monkeypatch.setenv("HF_TOKEN", token)
            hub.users = {token: User("me")} if token else {}
            refused("org/ant", "org/ant", kind, "hf auth login", *([f"{hub.url}/org/ant"] if repo.gated else []))
        assert not hub.bodies()
        repo.readers.add("me")
        assert fetch().folder.is_dir()

    def test_a_disk_too_small(self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5 * 10**7))  # type: ignore[attr-defined]
        refused("org/ant", "0.1 GB free", "HF_HOME")
        assert not hub.bodies(".safetensors")

    @pytest.mark.parametrize(
        ("files", "needle"),
        [
            ({"model.gguf": b"g"}, "no safetensors weights; it has .gguf"),
            ({"pytorch_model.bin": b"p"}, "merge.allow_pickle=true"),
            ({}, "no safetensors weights"),
            ({INDEX: b'{"weight_map": {"a": "gone.safetensors"}}'}, "lists gone.safetensors"),
            ({INDEX: b'{"weight_map": {"a": "evil.py"}}', "evil.py": b"import os"}, "lists evil.py"),
            ({INDEX: b"[1"}, "not valid JSON"),
        ],
    )
    def test_nothing_to_soup_in_it(self, hub: Hub, files: dict[str, bytes], needle: str) -> None:
        hub.add("org/odd", {"config.json": b"{}", **files})
        refused("org/odd", needle)
        assert not hub.bodies(".py")


@pytest.mark.usefixtures("in_process")
class TestHostile:
    """A server that lies: one line, and nothing outside the cache."""

    @pytest.fixture
    def evil(self, hub: Hub, family: Path) -> Hub:
        names = (
            "../../evil.json",
            "/tmp/tokenizer.json",
            "tokenizer/../../x.json",
            "tokenizer\x1b[2J.json",
            "a\\..\\b",
        )
        hub.add("org/evil", {**files_of(family / "ant"), **dict.fromkeys(names, b"{}")})
        return hub

    def test_names_that_leave_the_folder_are_not_seen(self, evil: Hub, family: Path, tmp_path: Path) -> None:
        assert files_of(fetch("org/evil").folder) == files_of(family / "ant")
        cache = tmp_path / "hub"
        assert [path for path in tmp_path.rglob("*evil*") if not path.is_relative_to(cache)] == []

    @pytest.mark.parametrize(
        "listing",
        [[], {"id": "x"}, {"id": 5, "sha": "x", "siblings": 7}, "text", {"siblings": [{"rfilename": 5}]}],
        ids=str,
    )
    def test_listings_that_are_none(self, evil: Hub, listing: object) -> None:
        evil.garbage = listing
        refused("org/evil", "org/evil")

    @pytest.mark.parametrize("size", [-1, "many", 1 << 80, [1], float("inf"), float("nan")])
    def test_sizes_that_are_none(self, evil: Hub, size: object) -> None:
        evil.lies[SINGLE] = {"size": size}
        refused("org/evil", "cannot be used")


@pytest.mark.usefixtures("in_process")
class TestOffline:
    def unplug(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def test_the_cache_answers(self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        first = fetch()
        self.unplug(monkeypatch)
        monkeypatch.setattr(online, "limit_file_size", pytest.fail)  # this is the run's own process
        hub.log.clear()
        assert fetch() == first
        assert fetch(str(first.name)) == first
        assert online.cached(HubName("org/ant")) == first.folder
        assert not hub.log

    def test_what_is_not_cached_is_one_line(
        self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.unplug(monkeypatch)
        refused("org/ant@v1", "HF_HUB_OFFLINE=1", "`hf download org/ant`")
        with pytest.raises(UserError, match="HF_HUB_OFFLINE=1"):
            online.sizes(HubName("org/ant", "v1"))

    def test_without_a_network_the_cache_does_with_a_note(
        self, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = fetch()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        again = fetch()
        assert again.folder == first.folder
        assert "cannot be reached" in again.note


@pytest.mark.usefixtures("in_process")
class TestHeaders:
    def test_candidates_that_do_not_fit_are_refused_before_their_weights_travel(
        self, hub: Hub, ant: dict[str, bytes], tmp_path: Path
    ) -> None:
        from tests.support.family import save_model

        save_model(tmp_path / "wide", 9, intermediate_size=48)
        hub.add("org/wide", files_of(tmp_path / "wide"))
        seen: dict[str, Checkpoint] = {}

        def check(folders: Any) -> None:
            seen.update({name: Checkpoint.open(folder) for name, folder in folders.items()})
            raise UserError(f"{folders['wide']} does not fit")

        with pytest.raises(UserError, match=r"^org/wide@[0-9a-f]{40} does not fit$"):
            online.fetch({name: named(f"org/{name}") for name in ("ant", "wide")}, check=check)
        wide, local = seen["wide"].tensors, Checkpoint.open(tmp_path / "wide").tensors
        assert {name: (t.dtype, t.shape) for name, t in wide.items()} == {
            n: (t.dtype, t.shape) for n, t in local.items()
        }
        assert len(hub.ranges_of(SINGLE)) == 2
        assert all(sent.startswith("bytes=0-") for sent in hub.ranges_of(SINGLE))

    def test_a_small_file_that_is_huge_is_refused_unseen(self, hub: Hub, ant: dict[str, bytes]) -> None:
        hub.lies["tokenizer.json"] = {"size": 1 << 40}
        refused("org/ant", "tokenizer.json is larger than")

    def test_a_broken_header_is_one_line_that_names_the_model(self, hub: Hub) -> None:
        hub.add("org/bad", {"config.json": b"{}", SINGLE: b"\xff" * LARGE})
        with pytest.raises(UserError, match=r"^org/bad@") as caught:
            online.fetch({"bad": named("org/bad")}, check=lambda folders: None)
        assert "\n" not in str(caught.value)
