"""Files of `torch.save` as candidates: their table is read as data, and a wrong one is refused in one line."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from souping.checkpoints.archives import Archive
from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.fingerprints import fingerprint
from souping.checkpoints.folder import Like
from souping.checkpoints.pickles import unpickle
from souping.core.types import UserError
from souping.merge.local import LocalMerge
from souping.merge.mergekit import MergekitMerge
from souping.merge.stored import load_plan
from tests.conftest import Cli
from tests.support.checkpoints import random_tensors, save

TRAINER = {
    "best": np.float64(0.3),
    "losses": np.zeros(3),
    "arguments": argparse.Namespace(lr=0.1),
    "epoch": 3,
    "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []},
}
"""What trainers put beside the weights."""


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    return random_tensors(seed, torch.float32)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def changed(path: Path, change: Callable[[str, bytes], tuple[str, bytes]]) -> Path:
    """The archive with other entries."""
    out = path.with_name(f"changed-{path.name}")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w") as other:
        for name in archive.namelist():
            other.writestr(*change(name, archive.read(name)))
    return out


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (weights(), ""),
        ({"state_dict": weights(), **TRAINER}, ""),
        ({"model": weights(), **TRAINER}, ""),
        ({"model_state_dict": weights(), **TRAINER}, ""),
        ({"model": {"state_dict": weights(), "arguments": {"width": 3}}}, ""),
        ({"ema": weights(), "state_dict": weights(1)}, "#ema"),
        ({"ema": {"state_dict": weights()}, "state_dict": weights(1)}, "#ema"),
        ({"averages": {"ema.slow": 1, "slow": weights()}}, "#averages.slow"),
        ({"ema.slow": weights()}, "#ema.slow"),
    ],
)
@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.pth.tar", "a.bin"])
def test_the_weights_are_found_where_trainers_put_them(
    tmp_path: Path, content: Any, key: str, name: str
) -> None:
    path = saved(tmp_path / name, content)
    checkpoint = Checkpoint.open(Path(f"{path}{key}"))
    assert {n: t.shape for n, t in checkpoint.tensors.items()} == {
        n: tuple(t.shape) for n, t in weights().items()
    }
    plain = saved(tmp_path / "plain.pt", weights())
    assert fingerprint(Path(f"{path}{key}")) == fingerprint(plain)


def test_two_tables_of_one_archive_are_two_models(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"ema": weights(), "state_dict": weights(1)})
    cache = dict[str, str]()
    first = fingerprint(Path(f"{path}#ema"), cache)
    second = fingerprint(path, cache)
    assert first != second
    assert fingerprint(Path(f"{path}#ema"), cache) == first


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("code-was-run",)


def huge(name: str, data: bytes) -> tuple[str, bytes]:
    """A tensor that claims 2^31 rows and columns."""
    side = b"J\xff\xff\xff\x7f"
    return name, data.replace(b"K\x04K\x05\x86", side + side + b"\x86")


def elsewhere(name: str, data: bytes) -> tuple[str, bytes]:
    """Storages outside the archive's folder, which are named in the pickle too."""
    data = data.replace(b"X\x01\x00\x00\x000", b"X\x06\x00\x00\x00../../")
    return name.replace("data/0", "data/../../x"), data


def nested(levels: int = 60) -> Any:
    """A small pickle whose text would have 2^60 parts."""
    value: Any = ("x",)
    for _ in range(levels):
        value = (value, value)
    return value


LOOP: dict[str, Any] = {}
LOOP["model"] = LOOP


@pytest.mark.parametrize(
    ("content", "change", "message"),
    [
        ({"state_dict": {"w": torch.ones(4, 5)}, "x": Code()}, None, "mkdir, which no checkpoint"),
        (torch.nn.Linear(2, 2), None, "Linear, which no checkpoint"),
        ({"model": {"w": torch.ones(4, 5)}}, huge, "larger than any tensor"),
        ({"model": {"w": torch.ones(4, 5)}}, elsewhere, "no contiguous tensor"),
        ({"model": {"w": torch.ones(4, 5).t()}}, None, "not in order"),
        ({"model": {"w": torch.ones(4, 5), "epoch": 3}}, None, "it is a int"),
        ({"model": {3: torch.ones(4, 5)}}, None, "a name is not a text"),
        (LOOP, None, "has no tensors"),
        ({"ema": {"w": torch.ones(4, 5)}, "epoch": 3}, None, r"FILE#KEY \(tables in it: ema\)"),
        ([torch.ones(2)], None, "save a state_dict"),
        ({}, None, "save a state_dict"),
    ],
)
def test_a_wrong_archive_is_refused_in_one_line_and_runs_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: Any,
    change: Callable[[str, bytes], tuple[str, bytes]] | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "a.pt", content)
    path = path if change is None else changed(path, change)
    with pytest.raises(UserError, match=message) as refused:
        Checkpoint.open(path)
    assert "\n" not in str(refused.value)
    assert not Path("code-was-run").exists()


def test_names_that_are_no_text_end_in_time(tmp_path: Path) -> None:
    """Their text has 2^60 parts: a storage, an attribute and a key of that name."""
    plain = saved(tmp_path / "a.pt", {"w": torch.ones(2)})
    value = pickle.dumps(nested(), protocol=2)[2:-1]
    storage = b"X\x01\x00\x00\x000"

    def named(name: str, data: bytes) -> tuple[str, bytes]:
        return name, data.replace(storage, value) if name.endswith("data.pkl") else data

    def attribute(name: str, data: bytes) -> tuple[str, bytes]:
        call = b"\x80\x02c__builtin__\ngetattr\nctorch\nSize\n" + value + b"\x86R."
        return name, call if name.endswith("data.pkl") else data

    for change, message in ((named, "its storage has no name"), (attribute, "its pickle is wrong")):
        with pytest.raises(UserError, match=message):
            Checkpoint.open(changed(plain, change))


KEYS = [2**61 - 1, -(2**31), True, 0.5, None, b"x", ("x",)]
"""Those of a dict that may collide, or take long to hash."""
TEXT = b"X\x00\x00\x10\x00" + b"A" * (1 << 20) + b"q\x05"
"""A text of 1 MB, which one more byte names again."""
STORAGE = b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0ct"
ENDLESS = {
    "joined": TEXT + b"c__builtin__\ngetattr\n(ctorch\nSize\n" + b"h\x05" * 99 + b"tR",
    "storage": TEXT + b"h\x05Q" * 99,
    "class": b"ctorch\n" + b"A" * 999 + b"Storage\n",
    "items of a call": b"ccollections\nOrderedDict\n((X\x01\x00\x00\x00wK\x01tttR",
}


def pickle_of(path: Path, data: bytes) -> Path:
    """An archive with this pickle and a storage."""
    plain = saved(path.with_name("plain.pt"), {"w": torch.arange(12.0)})
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(path, "w") as other:
        for name in archive.namelist():
            other.writestr(name, data if name.endswith("data.pkl") else archive.read(name))
    return path


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_a_pickle_are_texts_or_small_whole_numbers(tmp_path: Path, key: Any) -> None:
    good = pickle.dumps({"x": 1, 2**31 - 1: 2}, protocol=2)
    assert unpickle(good, tmp_path) == {"x": 1, 2**31 - 1: 2}
    with pytest.raises(UserError):
        unpickle(pickle.dumps({key: 1}, protocol=3), tmp_path)


@pytest.mark.parametrize("kind", ENDLESS)
def test_no_text_of_a_pickle_is_copied_without_end(tmp_path: Path, kind: str) -> None:
    path = pickle_of(tmp_path / "a.pt", b"\x80\x02" + ENDLESS[kind] + b".")
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            Checkpoint.open(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def tensor_pickle(first: bytes, rest: bytes = b"", state: bytes = b"") -> bytes:
    """The pickle of a table of one tensor, 2 x 4, that begins at `first` of a storage of 12."""
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage" + STORAGE + b"Q"
    tensor += first + b"K\x02K\x04\x86K\x04K\x01\x86\x89}" + rest + b"tR" + state
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."


def test_a_tensor_begins_at_a_whole_number_and_is_used_as_it_is_stored(tmp_path: Path) -> None:
    path = pickle_of(tmp_path / "a.pt", tensor_pickle(b"K\x01"))
    assert Checkpoint.open(path).tensors["w"].shape == (2, 4)
    half = b"G" + struct.pack(">d", 0.5)
    whole = b"G" + struct.pack(">d", 1.0)
    negative = b"J" + struct.pack("<i", -1)
    wrong = [tensor_pickle(first) for first in (half, whole, negative, b"\x88", b"N")]
    wrong.append(tensor_pickle(b"K\x01", rest=b"}X\x03\x00\x00\x00neg\x88s"))
    wrong.append(tensor_pickle(b"K\x01", state=b"(K\x01tb"))
    for data in wrong:
        with pytest.raises(UserError, match="tensor w"):
            Checkpoint.open(pickle_of(tmp_path / "b.pt", data))
    torch.save({"w": torch._neg_view(torch.ones(3, 4))}, path)
    with pytest.raises(UserError, match="tensor w"):
        Checkpoint.open(path)


@pytest.mark.parametrize("name", ["a/data/0", "a/DATA/0", "other/data/0", "a/data.pkl"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_there_twice_is_refused(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.ones(3, 4)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, bytes(48))
    with pytest.raises(UserError, match="twice"):
        Checkpoint.open(path)


@pytest.mark.parametrize("name", ["__metadata__", "\ud800", "n" * 5000])
def test_a_name_that_safetensors_cannot_hold_is_refused_before_anything_is_written(
    souping: Cli, tmp_path: Path, name: str
) -> None:
    for file in ("a.pt", "b.pt"):
        plain = saved(tmp_path / f"plain-{file}", {"w": torch.ones(3, 4)})
        text = name.encode("utf-8", "surrogatepass")
        key = b"X" + struct.pack("<I", len(text)) + text
        with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(tmp_path / file, "w") as other:
            for entry in archive.namelist():
                data = archive.read(entry)
                other.writestr(entry, data.replace(b"X\x01\x00\x00\x00w", key))
    words = ("pool.candidates=[a.pt,b.pt]", "optimiser.weights=[0.5,0.5]", "out=soup")
    souping("+experiment=merge", *words).refused("a.pt")
    assert not (tmp_path / "soup").exists()


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."])
def test_bytes_that_are_no_archive_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"no archive of torch\.save"):
        Checkpoint.open(path)


def test_a_key_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"ema": weights(), "epoch": 3})
    with pytest.raises(UserError, match=r"no key \.\..*tables in it: ema"):
        Checkpoint.open(Path(f"{path}#.."))


def test_a_config_may_be_lent(tmp_path: Path) -> None:
    like = save(tmp_path / "like", weights(3))
    path = saved(tmp_path / "a.pt", weights())
    checkpoint = Checkpoint.open(path, like=Like(like))
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.side == ("config.json",)


def test_archives_are_merged_by_their_tensors_names(souping: Cli, tmp_path: Path) -> None:
    # What is beside the archives is not theirs.
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    a = saved(tmp_path / "a.pth.tar", {"model": {"state_dict": weights(1)}})
    b = saved(tmp_path / "b.pt", {"ema": weights(2), "state_dict": weights(3)})
    words = (f"pool.candidates=['{a}','{b}#ema']", "optimiser.weights=[0.25,0.75]")
    souping("+experiment=merge", *words, "out=soup").ok()
    assert {path.name for path in (tmp_path / "soup").iterdir()} == {
        "README.md",
        "model.safetensors",
        "recipe.json",
    }
    soup = load_file(tmp_path / "soup" / "model.safetensors")
    assert set(soup) == set(weights())
    for name, tensor in soup.items():
        torch.testing.assert_close(tensor, 0.25 * weights(1)[name] + 0.75 * weights(2)[name])

    again = ("rebuild", "soup/recipe.json", "out=again")
    souping(*again).ok()
    written = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "soup" / "model.safetensors").read_bytes()


def test_a_saved_plan_finds_its_archives(tmp_path: Path) -> None:
    a = saved(tmp_path / "a.pt", {"ema": weights(1)})
    b = saved(tmp_path / "b.pt", weights(2))
    folders = {"a": Path(f"{a}#ema"), "b": b}
    with closing(LocalMerge().open(folders)) as pool:
        plan = pool.plan(pool.recipe({"a": 0.5, "b": 0.5}))
    path = plan.save(tmp_path / "plan.json")
    assert path is not None
    assert load_plan(path) == plan


def test_archives_are_refused_where_a_folder_is_needed(tmp_path: Path) -> None:
    folders = {name: saved(tmp_path / f"{name}.pt", weights(2)) for name in "ab"}
    for merge, message in (
        (LocalMerge(format="same"), "merge.format=same needs"),
        (MergekitMerge(method="linear"), "mergekit cannot read a"),
    ):
        with closing(merge.open(folders)) as pool, pytest.raises(UserError, match=message):
            pool.plan(pool.recipe({"a": 0.5, "b": 0.5}))
    with closing(LocalMerge().open(folders)) as pool, pytest.raises(UserError, match="merged only"):
        pool.check_tokenizers()


def test_changed_storages_are_signed_whatever_their_order(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for key in ("10", "1"):
            archive.writestr(f"archive/data/{key}", f"old {key}")
    path.write_bytes(path.read_bytes().replace(b"old ", b"new "))
    with path.open("r+b") as file:
        Archive.open(path, file).sign()
    with zipfile.ZipFile(path) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "archive/data/10": b"new 10",
            "archive/data/1": b"new 1",
        }
