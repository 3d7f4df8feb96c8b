"""Models of the Hub as candidates, through huggingface_hub's own client and a server of the test's own."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from souping.checkpoints import hub as online
from souping.checkpoints.checkpoint import INDEX, SINGLE, Checkpoint, fingerprint
from souping.checkpoints.hub.client import HubName, parse
from souping.checkpoints.hub.download import RemoteFile, download_files, storage
from souping.core.child import call
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
    """Requests without the child process that bounds them in time and memory; pickled as for the child."""

    def at_once(
        function: Callable[..., Any], arguments: tuple[object, ...], report: Callable[[int, int], None] | None, **_: Any
    ) -> Any:
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))
        return pickle.loads(pickle.dumps(function(*arguments, **({"report": report} if report else {}))))

    monkeypatch.setattr(online, "call", at_once)


@pytest.fixture
def ant(hub: Hub, family: Path) -> dict[str, bytes]:
    """The files of org/ant, which is on the server with much that nobody needs."""
    files = files_of(family / "ant")
    hub.add("org/ant", {**files, **CODE, **HEAVY})
    return files


def fetch(name: str = "org/ant") -> online.Fetched:
    found = parse(name)
    assert found is not None
    return online.fetch_one(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubName("org/name", "main")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/na.me-2_b@refs/pr/3", HubName("org/na.me-2_b", "refs/pr/3")),
        ("name", None),
        ("a/b/c", None),
        ("/org/name", None),
        ("./org/name", None),
        ("../name", None),
        ("~/name", None),
        ("org/name@", None),
        ("org/name@/etc/hostname", None),
        ("org/..", None),
        ("org/a--b", None),
    ],
)
def test_what_a_name_on_the_hub_is(text: str, expected: HubName | None) -> None:
    assert parse(text) == expected


def test_a_folder_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse("org/name") is None


class TestFetch:
    @pytest.mark.usefixtures("in_process")
    def test_only_what_souping_needs_comes(self, hub: Hub, ant: dict[str, bytes]) -> None:
        folder = fetch().folder
        assert files_of(folder) == ant
        assert set(hub.bodies()) == {f"/org/ant/resolve/{folder.name}/{name}" for name in ant}

    @pytest.mark.usefixtures("in_process")
    def test_the_revision_is_a_commit_once_it_is_fetched(self, hub: Hub, ant: dict[str, bytes]) -> None:
        first = hub.repos["org/ant"].refs["main"]
        second = hub.add("org/ant", {**ant, "generation_config.json": b"{}"})
        assert str(fetch().name) == f"org/ant@{second}"
        old = fetch(f"org/ant@{first}")
        assert str(old.name) == f"org/ant@{first}"
        assert (old.folder / "generation_config.json").read_bytes() == ant["generation_config.json"]

    @pytest.mark.usefixtures("in_process")
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

    @pytest.mark.usefixtures("in_process")
    def test_shards_come_by_their_index(self, hub: Hub, family: Path, tmp_path: Path) -> None:
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM.from_pretrained(family / "bee")
        model.save_pretrained(tmp_path / "bee", max_shard_size="10KB")
        files = files_of(tmp_path / "bee")
        assert INDEX in files
        hub.add("org/bee", {**files, "model-extra.safetensors": b"x" * LARGE})
        assert online.sizes("org/bee") == {name: len(data) for name, data in files.items()}
        assert [path.rpartition("/")[2] for path in hub.bodies()] == [INDEX]
        assert files_of(fetch("org/bee").folder) == files

    @pytest.mark.usefixtures("in_process")
    def test_a_second_time_nothing_is_sent(self, hub: Hub, ant: dict[str, bytes]) -> None:
        fetch()
        hub.log.clear()
        fetch()
        assert not hub.bodies()
        assert len([path for _, path, _ in hub.log if path.startswith("/api/models/")]) == 1

    @pytest.mark.usefixtures("in_process")
    def test_pickles_come_where_they_are_allowed(self, hub: Hub) -> None:
        hub.add("org/old", {"config.json": b"{}", "pytorch_model.bin": b"p" * LARGE})
        folder = online.fetch_one(HubName("org/old"), allow_pickle=True).folder
        assert set(files_of(folder)) == {"config.json", "pytorch_model.bin"}

    @pytest.mark.usefixtures("in_process")
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

    def test_progress_counts_every_byte(self, ant: dict[str, bytes], hub: Hub) -> None:
        told: list[tuple[int, int]] = []
        found = parse("org/ant")
        assert found is not None
        online.fetch({"ant": found}, report=lambda done, total: told.append((done, total)))
        size = len(ant[SINGLE])
        assert told[-1] == (size, size)


class TestBrokenOff:
    """A download that ends early leaves whole files and no others."""

    DATA = bytes(range(256)) * 131072  # 32 MiB; huggingface_hub hands 10 MB on at a time

    def started(self, hub: Hub, tmp_path: Path) -> subprocess.Popen[bytes]:
        """A process that downloads org/big, whose weights stop coming in the middle."""
        hub.add("org/big", {"config.json": b"{}", SINGLE: self.DATA})
        hub.stall = 25_000_000
        code = "from souping.checkpoints import hub; hub.fetch_one(hub.parse('org/big'))"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        environment |= {
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "600",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        while process.poll() is None and sum(p.stat().st_size for p in self.parts()) < 20_000_000:
            time.sleep(0.02)
        assert process.poll() is None
        return process

    def parts(self) -> list[Path]:
        return list((storage("org/big") / "blobs").glob("*.incomplete"))

    @pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
    def test_an_end_by_a_signal_leaves_no_part(self, hub: Hub, tmp_path: Path, number: int) -> None:
        process = self.started(hub, tmp_path)
        process.send_signal(number)
        process.wait()
        while self.parts():  # a killed run cannot wait for its child, which notices it
            time.sleep(0.02)
        hub.stall = None
        hub.awake.set()
        assert fetch("org/big").folder.joinpath(SINGLE).read_bytes() == self.DATA

    def test_a_line_that_goes_dead_is_one_line(self, hub: Hub) -> None:
        data = bytes(range(256)) * 4096
        hub.add("org/big", {"config.json": b"{}", SINGLE: data})
        hub.cut = 655_360
        with pytest.raises(UserError, match=r"the download stopped .* run this again"):
            fetch("org/big")
        assert not self.parts()
        hub.cut = None
        assert fetch("org/big").folder.joinpath(SINGLE).read_bytes() == data

    def test_two_at_once_get_the_same(self, hub: Hub, ant: dict[str, bytes]) -> None:
        threads = [threading.Thread(target=fetch) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert files_of(fetch().folder) == ant

    @pytest.mark.usefixtures("in_process")
    def test_two_files_with_the_same_bytes(self, hub: Hub) -> None:
        files = {"config.json": b"{}", "added_tokens.json": b"{}", SINGLE: b"r" * LARGE}
        hub.add("org/twins", files)
        assert files_of(fetch("org/twins").folder) == files


class TestSlow:
    def test_a_listing_that_never_ends(self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        hub.drip = True
        with pytest.raises(UserError, match=hub.url):
            online.ask(online.prepare, ([HubName("org/ant")], False, None, True), seconds=3.0)

    @pytest.mark.slow
    def test_a_listing_that_fills_the_memory(self, hub: Hub, ant: dict[str, bytes]) -> None:
        hub.flood = True
        with pytest.raises(UserError, match=f"{hub.url}.* memory"):
            fetch()

    def test_a_download_below_the_slowest_rate(
        self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In this process, as if it had begun an hour ago."""
        monkeypatch.setattr("souping.checkpoints.hub.download.PATIENCE", -3600.0)
        name = HubName("org/ant", hub.repos["org/ant"].refs["main"])
        hub.stall = 2
        file = RemoteFile(SINGLE, len(ant[SINGLE]), hashlib.sha256(ant[SINGLE]).hexdigest())
        with pytest.raises(UserError, match="too long"):
            download_files([(name, file)])
        hub.awake.set()


@pytest.mark.usefixtures("in_process")
class TestRefusals:
    """One line each, and the login command where it helps."""

    def refused(self, name: str, *needles: str) -> None:
        with pytest.raises(UserError) as caught:
            fetch(name)
        text = str(caught.value)
        assert text.count("\n") <= 1
        for needle in needles:
            assert needle in text, text

    def test_missing(self, hub: Hub) -> None:
        self.refused("org/nobody", "org/nobody is neither a folder here nor a public model", "hf auth login")

    def test_private(self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        hub.repos["org/ant"].private = True
        self.refused("org/ant", "if it is private", "hf auth login")
        hub.users[TOKEN] = User("me")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        self.refused("org/ant", "your account may see")
        hub.repos["org/ant"].readers.add("me")
        assert fetch().folder.is_dir()

    def test_gated(self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        hub.repos["org/ant"].gated = True
        self.refused("org/ant", "gated", f"{hub.url}/org/ant", "hf auth login")
        hub.users[TOKEN] = User("me")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        self.refused("org/ant", "your account has no access", f"{hub.url}/org/ant")
        assert not hub.bodies()

    def test_a_token_that_nobody_knows(self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        self.refused("org/ant", "does not know your token", "hf auth login")

    def test_no_such_revision(self, hub: Hub, ant: dict[str, bytes]) -> None:
        hub.add("org/ant", ant, "v1")
        self.refused("org/ant@v9", "no revision v9", "it has main, v1")

    def test_no_network(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        self.refused("org/ant", "org/ant is no folder here, and the Hub (http://127.0.0.1:9) cannot be reached")

    def test_the_hub_is_down(self, hub: Hub, ant: dict[str, bytes]) -> None:
        hub.down = True
        self.refused("org/ant", "answered 503", "try again later")

    def test_a_disk_too_small(self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5 * 10**7))  # type: ignore[attr-defined]
        self.refused("org/ant", "0.1 GB free", "HF_HOME")
        assert not hub.bodies(".safetensors")

    @pytest.mark.parametrize(
        ("files", "needle"),
        [
            ({"model.gguf": b"g"}, "only GGUF"),
            ({"pytorch_model.bin": b"p"}, "merge.allow_pickle=true"),
            ({}, "no safetensors weights"),
            ({INDEX: b'{"weight_map": {"a": "gone.safetensors"}}'}, "lists gone.safetensors"),
            ({INDEX: b'{"weight_map": {"a": "../../x"}}'}, "lists ../../x"),
            ({INDEX: b'{"weight_map": {"a": "evil.py"}}', "evil.py": b"import os"}, "lists evil.py"),
            ({INDEX: b"[1"}, "not valid JSON"),
        ],
    )
    def test_nothing_to_soup_in_it(self, hub: Hub, files: dict[str, bytes], needle: str) -> None:
        hub.add("org/odd", {"config.json": b"{}", **files})
        self.refused("org/odd", needle)


@pytest.mark.usefixtures("in_process")
class TestHostile:
    """A server that lies: one line, and nothing outside the cache."""

    @pytest.fixture
    def evil(self, hub: Hub, family: Path) -> Hub:
        files = files_of(family / "ant")
        names = (
            "../../evil.json",
            "/tmp/tokenizer.json",
            "tokenizer/../../x.json",
            "tokenizer\x1b[2J.json",
            "a\\..\\b",
        )
        hub.add("org/evil", {**files, **dict.fromkeys(names, b"{}")})
        return hub

    def refused(self, match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            fetch("org/evil")
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)

    def outside(self, cache: Path) -> list[Path]:
        return [path for path in cache.parent.rglob("*") if "evil" in path.name and not path.is_relative_to(cache)]

    def test_names_that_leave_the_folder_are_not_seen(self, evil: Hub, family: Path, tmp_path: Path) -> None:
        assert files_of(fetch("org/evil").folder) == files_of(family / "ant")
        assert self.outside(tmp_path / "hub") == []

    @pytest.mark.parametrize("name", ["config.json", SINGLE])
    def test_a_hash_that_is_a_path_names_nothing(self, evil: Hub, name: str, tmp_path: Path) -> None:
        path = "../../../../evil"
        lfs = {"lfs": {"sha256": path, "size": 10, "pointerSize": 1}} if name == SINGLE else {}
        evil.lies[name] = {"blobId": path, **lfs}
        self.refused("no hash")
        assert self.outside(tmp_path / "hub") == []

    @pytest.mark.parametrize("name", ["config.json", SINGLE])
    def test_other_bytes_than_those_listed(self, evil: Hub, name: str, tmp_path: Path) -> None:
        data = bytearray(evil.repos["org/evil"].head[name])
        data[-1] ^= 1
        evil.swapped[name] = bytes(data)
        self.refused("not what the Hub promised")
        evil.swapped.clear()
        assert fetch("org/evil").folder.is_dir()

    def test_bodies_that_never_end(self, evil: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a child process: threads of this one would read on after the refusal."""
        monkeypatch.setattr(online, "call", call)
        evil.endless = True
        self.refused("sends more than the .* bytes that it listed")
        assert sum(path.stat().st_size for path in (tmp_path / "hub").rglob("*") if path.is_file()) < 100_000

    @pytest.mark.parametrize(
        "listing",
        [
            [],
            {"id": "org/evil"},
            {"id": 5, "sha": "x", "siblings": 7},
            "text",
            {"id": "x", "siblings": [{"rfilename": 5}]},
        ],
        ids=str,
    )
    def test_listings_that_are_none(self, evil: Hub, listing: object) -> None:
        evil.garbage = listing
        self.refused("org/evil")

    @pytest.mark.parametrize("size", [-1, "many", 1 << 80, [1], float("inf"), float("nan")])
    def test_sizes_that_are_none(self, evil: Hub, size: object) -> None:
        evil.lies[SINGLE] = {"size": size}
        self.refused("cannot be understood|GB free")

    def test_a_redirect_carries_no_token_to_another_host(
        self, evil: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        evil.users[TOKEN] = User("me")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        found = parse("org/evil")
        assert found is not None
        other = Hub()
        try:
            other.repos = evil.repos
            evil.elsewhere = other.url
            online.fetch({"evil": found}, check=lambda folders: None)  # ranges of headers, then whole files
        finally:
            other.close()
        assert TOKEN in evil.tokens
        assert len(other.bodies()) > 2
        assert not other.tokens


@pytest.mark.usefixtures("in_process")
class TestOffline:
    def unplug(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def test_the_cache_answers(self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        first = fetch()
        self.unplug(monkeypatch)
        hub.log.clear()
        assert fetch() == first
        assert fetch(str(first.name)) == first
        assert online.sizes("org/ant") == {name: len(data) for name, data in ant.items()}
        assert online.cached("org/ant") == first.folder
        assert not hub.log

    def test_what_is_not_cached_is_one_line(
        self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.unplug(monkeypatch)
        for ask in (fetch, online.sizes):
            with pytest.raises(
                UserError, match=r"org/ant@v1 is neither .* cache .*`hf download org/ant --revision v1`"
            ):
                ask("org/ant@v1")
        assert online.cached("org/ant") is None

    def test_a_part_is_not_the_whole(self, hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        folder = fetch().folder
        (folder / SINGLE).unlink()
        assert online.cached("org/ant") is None
        self.unplug(monkeypatch)
        with pytest.raises(UserError, match="only in part"):
            fetch()

    def test_without_a_network_the_cache_does_with_a_note(
        self, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = fetch()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        again = fetch()
        assert again.folder == first.folder
        assert "cannot be reached" in again.note

    def test_sizes_ask_for_no_file(self, hub: Hub, ant: dict[str, bytes]) -> None:
        assert online.sizes("org/ant") == {name: len(data) for name, data in ant.items()}
        assert not hub.bodies()
        assert online.cached("org/ant") is None


@pytest.mark.usefixtures("in_process")
class TestRehearsal:
    def test_candidates_that_do_not_fit_are_refused_before_their_weights_travel(
        self, hub: Hub, ant: dict[str, bytes], tmp_path: Path
    ) -> None:
        from tests.support.family import save_model

        save_model(tmp_path / "wide", 9, intermediate_size=48)
        hub.add("org/wide", files_of(tmp_path / "wide"))
        names = {name: parse(f"org/{name}") for name in ("ant", "wide")}
        seen: list[dict[str, object]] = []

        def check(folders: dict[str, Path]) -> None:
            opened = {name: Checkpoint.open(folder) for name, folder in folders.items()}
            seen.append({name: c.tensors for name, c in opened.items()})
            raise UserError("no")

        with pytest.raises(UserError, match="no"):
            online.fetch(names, check=check)  # type: ignore[arg-type]
        assert seen[0]["wide"] == Checkpoint.open(tmp_path / "wide").tensors
        asked = hub.ranges_of(SINGLE)
        assert len(asked) == 2
        assert all(r.startswith("bytes=0-") for r in asked)

    def test_a_refusal_names_the_model_and_not_a_scratch_folder(self, hub: Hub) -> None:
        from souping.core.types import Candidate
        from souping.merge.local import LocalMerge
        from souping.pipeline.models import fetch_candidates

        hub.add("org/bad", {"config.json": b"{}", SINGLE: b"\xff" * LARGE})
        with pytest.raises(UserError, match="org/bad@") as caught:
            fetch_candidates([Candidate(name="bad", path=Path("org/bad"))], LocalMerge())
        assert "/tmp" not in str(caught.value)
