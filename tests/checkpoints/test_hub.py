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
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from souping.checkpoints import hub as online
from souping.checkpoints.fingerprints import fingerprint
from souping.checkpoints.folder import INDEX, SINGLE
from souping.checkpoints.hub import HubName, parse_name
from souping.checkpoints.pool import base_of, weigh
from souping.core.types import Candidate, UserError
from tests.conftest import ROOT
from tests.support.adapters import save_adapter
from tests.support.hub import LARGE, Hub, User, files_of, serving

TOKEN = "hf_" + "a" * 20


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as server:
        yield server


@pytest.fixture(autouse=True)
def in_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests without the child process that bounds them, but for tests named after it; pickled as for the child."""
    if request.node.name.startswith("test_child"):
        return

    def at_once(
        function: Callable[..., Any],
        arguments: tuple[object, ...],
        report: Callable[[int, int], None] | None,
        **_: Any,
    ) -> Any:
        """The child as a function call, with what would pass between the processes pickled."""
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))
        return pickle.loads(
            pickle.dumps(function(*arguments, **({"report": report} if report else {})))
        )

    monkeypatch.setattr(online, "call", at_once)
    monkeypatch.setattr(online, "limit_file_size", lambda nbytes: None)


@pytest.fixture
def ant(hub: Hub, family: Path) -> dict[str, bytes]:
    """The files of org/ant, which is on the server with much that nobody needs."""
    files = files_of(family / "ant")
    code = {"modeling_ant.py": b"import os", "README.md": b"---\nlicense: mit\n---\n"}
    heavy = {
        "pytorch_model.bin": b"p" * LARGE,
        "consolidated.safetensors": b"c" * LARGE,
        "onnx/m.onnx": b"o",
    }
    hub.add("org/ant", {**files, **code, **heavy})
    return files


def named(text: str) -> HubName:
    name = parse_name(text)
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
        *(
            (text, None)
            for text in (
                "name",
                "a/b/c",
                "/org/name",
                "./org/name",
                "org/name@",
                "org/name@/etc/x",
                "org/..",
            )
        ),
    ],
)
def test_a_name_on_the_hub_is_two_words_and_a_revision(
    text: str, expected: HubName | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_name(text) == expected
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse_name("org/name") is None  # a folder goes before the Hub


def test_only_what_souping_needs_comes_and_only_once(hub: Hub, ant: dict[str, bytes]) -> None:
    folder = fetch().folder
    assert files_of(folder) == ant
    assert set(hub.bodies()) == {f"/org/ant/resolve/{folder.name}/{name}" for name in ant}
    hub.log.clear()
    assert online.download_sizes(HubName("org/ant")) == {
        name: len(data) for name, data in ant.items()
    }
    assert fetch().folder == folder
    assert not hub.bodies()


def test_a_blob_is_known_by_its_bytes_not_by_its_name(ant: dict[str, bytes], family: Path) -> None:
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


def test_shards_come_by_their_index(hub: Hub, family: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(family / "bee")
    model.save_pretrained(tmp_path / "bee", max_shard_size="10KB")
    files = files_of(tmp_path / "bee")
    assert INDEX in files
    hub.add("org/bee", {**files, "model-extra.safetensors": b"x" * LARGE})
    assert online.download_sizes(HubName("org/bee")) == {
        name: len(data) for name, data in files.items()
    }
    assert [path.rpartition("/")[2] for path in hub.bodies()] == [INDEX]
    assert files_of(fetch("org/bee").folder) == files


DATA = bytes(range(256)) * 131072  # 32 MiB; huggingface_hub hands 10 MB on at a time


def parts() -> list[Path]:
    return list((HubName("org/big").cache / "blobs").glob("*.incomplete"))


def received() -> int:
    """Bytes of the parts; one that the child renames or removes meanwhile counts no longer."""
    total = 0
    for part in parts():
        with suppress(FileNotFoundError):
            total += part.stat().st_size
    return total


def test_child_fetches_weights_larger_than_small_files(hub: Hub, ant: dict[str, bytes]) -> None:
    import safetensors.numpy

    data = safetensors.numpy.save({"w": np.zeros(6 << 20, np.uint8)})
    hub.add("org/big", {**ant, SINGLE: data})
    seen: dict[str, int] = {}

    def check(folders: Any) -> None:
        seen.update({name: (folder / SINGLE).stat().st_size for name, folder in folders.items()})

    folder = online.fetch({"big": named("org/big")}, check=check)["big"].folder
    assert seen["big"] > 6 << 20
    assert (folder / SINGLE).read_bytes() == data


@pytest.fixture
def xet(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """org/big on the Hub, for clients that have the stand-in for Xet."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests' / 'support' / 'xet'}:{ROOT}")
    hub.add("org/big", {"config.json": b"{}", SINGLE: DATA})
    hub.xet = True
    hub.stall = 25_000_000
    return hub


def test_child_counts_what_xet_has_written_and_not_the_holes(xet: Hub) -> None:
    seen: list[int] = []

    def report(done: int, total: int) -> None:
        assert total == len(DATA)
        if done:
            seen.append(done)
            xet.awake.set()

    folder = online.fetch_one(named("org/big"), report=report).folder
    assert (folder / SINGLE).read_bytes() == DATA
    assert not xet.bodies(SINGLE)  # it came by Xet
    assert seen[0] < 2 << 20  # the last MiB is there, the rest is a hole
    assert seen[-1] == len(DATA)


@pytest.mark.parametrize(
    ("by_xet", "number"),
    [
        pytest.param(True, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(False, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(True, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(False, signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_child_that_ends_by_a_signal_leaves_no_part(
    xet: Hub, family: Path, tmp_path: Path, by_xet: bool, number: int
) -> None:
    """The signal goes to the process group, as a terminal sends it. The weights never end."""
    xet.xet = by_xet
    environment = {**os.environ, "HF_ENDPOINT": xet.url, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DOWNLOAD_TIMEOUT": "600"}
    pool = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    merge = ["+experiment=merge", pool, "optimiser.weights=[0.5,0.5]", "out=soup"]
    merge += ["merge.method=task_arithmetic", "merge.base_model=org/big"]
    process = subprocess.Popen(
        [sys.executable, "-m", "souping", *merge],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and received() < 20_000_000:
        time.sleep(0.02)
    assert process.poll() is None
    os.killpg(process.pid, number)
    assert process.wait() == (130 if number == signal.SIGINT else -signal.SIGKILL)
    while parts():  # a killed run cannot wait for its child, which notices it
        time.sleep(0.02)
    assert not (tmp_path / "soup").exists()
    xet.stall = None
    xet.awake.set()
    assert fetch("org/big").folder.joinpath(SINGLE).read_bytes() == DATA


def test_child_ends_bodies_that_never_end(hub: Hub, ant: dict[str, bytes], tmp_path: Path) -> None:
    hub.endless = True
    refused("org/ant", "more bytes than it listed")
    assert not list(tmp_path.rglob("*.incomplete"))


@pytest.mark.slow
def test_child_ends_a_listing_that_never_ends(
    hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is over as soon as the Hub has been asked."""
    clock = SimpleNamespace(monotonic=lambda: 1e9 * bool(hub.log))
    monkeypatch.setattr("souping.core.child.time", clock)
    hub.drip = True
    refused("org/ant", hub.url, f"{online.LISTING:.0f} s")


@pytest.mark.slow
def test_child_ends_a_listing_that_fills_the_memory(hub: Hub, ant: dict[str, bytes]) -> None:
    hub.flood = True
    refused("org/ant", hub.url, "memory")


@pytest.mark.parametrize(
    ("name", "token", "needles"),
    [
        ("org/nobody", "", ["neither a folder here nor a model on the Hub", "hf auth login"]),
        ("org/ant", TOKEN, ["token is not valid", "hf auth login"]),
        ("org/ant@v9", "", ["no revision v9", "/org/ant"]),
    ],
)
@pytest.mark.usefixtures("ant")
def test_an_unknown_model_token_or_revision_is_refused_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, name: str, token: str, needles: list[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    refused(name, *needles)


@pytest.mark.usefixtures("ant")
def test_a_hub_that_is_down_or_cannot_be_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.down = True
    refused("org/ant", "answered 503")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused("org/ant", "is not a folder here", "http://127.0.0.1:9", "reached")


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_a_private_or_gated_model_is_refused_without_access_to_it(
    hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    repo = hub.repos["org/ant"]
    repo.private = kind == "private"
    repo.gated = kind == "gated"
    for token in ("", TOKEN):
        monkeypatch.setenv("HF_TOKEN", token)
        hub.users = {token: User("me")} if token else {}
        refused(
            "org/ant",
            "org/ant",
            kind,
            "hf auth login",
            *([f"{hub.url}/org/ant"] if repo.gated else []),
        )
    assert not hub.bodies()
    repo.readers.add("me")
    assert fetch().folder.is_dir()


def test_a_disk_too_small(hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5 * 10**7)
    )  # type: ignore[attr-defined]
    refused("org/ant", "0.1 GB free", "HF_HOME")
    assert not hub.bodies(".safetensors")


@pytest.mark.parametrize(
    ("files", "needle"),
    [
        ({"model.gguf": b"g"}, "no safetensors weights; it has .gguf"),
        ({"pytorch_model.bin": b"p"}, "merge.allow_pickle=true"),
        ({INDEX: b'{"weight_map": {"a": "gone.safetensors"}}'}, "lists gone.safetensors"),
        ({INDEX: b'{"weight_map": {"a": "evil.py"}}', "evil.py": b"import os"}, "lists evil.py"),
        ({INDEX: b"[1"}, "not valid JSON"),
    ],
)
def test_a_model_with_nothing_to_soup(hub: Hub, files: dict[str, bytes], needle: str) -> None:
    hub.add("org/odd", {"config.json": b"{}", **files})
    refused("org/odd", needle)
    assert not hub.bodies(".py")


@pytest.fixture
def evil(hub: Hub, family: Path) -> Hub:
    """A model whose file names leave its folder, or command a terminal."""
    names = (
        "../../evil.json",
        "/tmp/tokenizer.json",
        "tokenizer/../../x.json",
        "tokenizer\x1b[2J.json",
        "a\\..\\b",
    )
    hub.add("org/evil", {**files_of(family / "ant"), **dict.fromkeys(names, b"{}")})
    return hub


def test_names_that_leave_the_folder_are_not_seen(evil: Hub, family: Path, tmp_path: Path) -> None:
    assert files_of(fetch("org/evil").folder) == files_of(family / "ant")
    cache = tmp_path / "hub"
    assert [path for path in tmp_path.rglob("*evil*") if not path.is_relative_to(cache)] == []


@pytest.mark.parametrize(
    "listing", [[], {"id": 5, "sha": "x", "siblings": 7}, {"siblings": [{"rfilename": 5}]}], ids=str
)
def test_listings_that_are_none(evil: Hub, listing: object) -> None:
    evil.lies[SINGLE] = {"size": -1}
    refused("org/evil", "cannot be used")
    evil.garbage = listing
    refused("org/evil", "org/evil")


def test_a_model_in_the_cache_is_found_without_the_hub(
    hub: Hub, ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(online, "limit_file_size", pytest.fail)  # this is the run's own process
    hub.log.clear()
    assert fetch() == first
    assert fetch(str(first.name)) == first
    assert online.cached(HubName("org/ant")) == first.folder
    assert not hub.log


def test_without_a_network_the_cache_does_with_a_note(
    ant: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    again = fetch()
    assert again.folder == first.folder
    assert "cannot be reached" in again.note


@pytest.mark.parametrize("name", ["me/soup.git", "me/a--b", "me/a..b", "me/a b", "me/", "me/a\n"])
def test_a_name_that_the_hub_refuses_is_no_repository(name: str) -> None:
    assert not online.is_repo(name)
    assert online.is_repo("me/soup")


def test_an_adapter_in_the_cache_is_measured_and_names_its_base(
    hub: Hub, family: Path, tmp_path: Path
) -> None:
    modules = {"model.layers.0.self_attn.q_proj": 2}
    base: dict[str, Any] = {"base_model_name_or_path": "org/base", "revision": "v1"}
    save_adapter(tmp_path / "one", family / "base", modules, seed=0, **base)
    hub.add("org/one", files_of(tmp_path / "one"))
    fetch("org/one")
    size = weigh(Candidate(name="one", path=Path("org/one")))
    assert (size.path, size.basis, size.trouble) == ("org/one", "headers", "")
    assert base_of([size], merge_base=None) == "org/base@v1"
    assert base_of([size], merge_base="org/other") == "org/other"
