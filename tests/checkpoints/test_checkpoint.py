"""Checkpoints from strangers: whatever the bytes are, a checkpoint opens or one clear UserError comes."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from souping.checkpoints import (
    Checkpoint,
    eos_token_ids,
    fingerprint,
    fingerprint_of,
    stored_names,
    stores_head,
)
from souping.checkpoints.header import read_header
from souping.core.types import UserError
from souping.merge.alignment import plan
from souping.merge.local import LocalMerge
from tests.support.checkpoints import family, random_tensors, raw_file, save, simple

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LIES: dict[str, tuple[Any, bytes, str]] = {
    "overlap": ({"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}, bytes(12), "overlap"),
    "overrun": ({"a": ONE, "b": {**ONE, "data_offsets": [8, 16]}}, bytes(12), "truncated"),
    "hole": ({"a": ONE, "b": {**ONE, "data_offsets": [12, 20]}}, bytes(20), "a hole before them"),
    "rest": ({"a": ONE}, bytes(9), "or with a rest"),
    "shape": ({"a": {**ONE, "shape": [3]}}, bytes(8), "not the size of"),
    "huge shape": ({"a": {**ONE, "shape": [2**40, 2**40]}}, bytes(8), "not the size of"),
    "many sizes": ({"a": {**ONE, "shape": [2] * 100}}, bytes(8), "short list"),
    "negative": ({"a": {**ONE, "shape": [-2]}}, bytes(8), "whole numbers"),
    "boolean": ({"a": {**ONE, "shape": [True]}}, bytes(8), "whole numbers"),
    "backwards": ({"a": {**ONE, "data_offsets": [8, 0]}}, bytes(8), "not the size of"),
    "dtype": ({"a": {**ONE, "dtype": "F12"}}, bytes(8), "unknown dtype F12"),
    "incomplete": ({"a": {"dtype": "F32"}}, bytes(8), "its header is wrong"),
    "duplicate": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', bytes(1), "a is there twice"),
    "surrogate": (b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', bytes(1), "its header is wrong"),
    "list": (b"[1]", b"", "its header is wrong"),
    "not utf-8": (b'{"\xff":1}', b"", "not valid JSON"),
    "deep": (b'{"a":' + b"[" * 100_000, b"", "nested too deeply|not valid JSON"),
    "long number": (b'{"a":' + b"9" * 10_000 + b"}", b"", "not valid JSON"),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie_are_refused_by_name(lie: str, tmp_path: Path) -> None:
    header, data, message = LIES[lie]
    path = raw_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(UserError, match=message) as error:
        read_header(path)
    assert str(path) in str(error.value)
    assert str(error.value).count("\n") <= 1


@pytest.mark.parametrize("length", [2**63, 100_000_001, 200])
def test_absurd_header_lengths_allocate_nothing(length: int, tmp_path: Path) -> None:
    path = raw_file(tmp_path / "model.safetensors", {"a": ONE}, bytes(8), length)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="its header claims"):
        read_header(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


OUTSIDE = ["../outside.safetensors", "/etc/passwd", "a/../../x.safetensors", "x\0y", "", "\ud800", "x" * 5000]


@pytest.mark.parametrize("name", OUTSIDE, ids=range(len(OUTSIDE)))
def test_shards_outside_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", random_tensors(0))
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises((UserError, OSError), match=r"leaves the folder|cannot be followed|File name too long"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_symlinks_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", random_tensors(0))
    (folder / "tokenizer.json").write_text("{}")
    (folder / name).rename(tmp_path / name)
    for target, message in ((tmp_path / name, "symlink that leads out"), (Path(name), "cannot be followed")):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        with pytest.raises(UserError, match=message):
            Checkpoint.open(folder)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", random_tensors(0), shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    places = index["weight_map"]
    moved = {**places, "model.norm.weight": next(f for f in places.values() if f != places["model.norm.weight"])}
    for wrong, message in (
        ({k: v for k, v in places.items() if k != "model.norm.weight"}, "does not place it here"),
        ({**places, "ghost": places["model.norm.weight"]}, "ghost"),
        (moved, r"model\.norm\.weight"),
        ({**places, "model.norm.weight": "model-9.safetensors"}, "is missing"),
        ({}, "weight_map"),
    ):
        path.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(UserError, match=message):
            Checkpoint.open(folder)


def test_missing_parts_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        Checkpoint.open(tmp_path / "nowhere")
    folder = save(tmp_path / "m", random_tensors(0))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        Checkpoint.open(folder)
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has no config\.json.*adapter"):
        Checkpoint.open(folder)


def test_pickled_weights_need_a_yes_and_then_stream(tmp_path: Path) -> None:
    tensors = random_tensors(0)
    folder = save(tmp_path / "m", tensors)
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, "tied": tensors["lm_head.weight"]}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"merge\.allow_pickle=true"):
        Checkpoint.open(folder)
    checkpoint = Checkpoint.open(folder, allow_pickle=True)
    for name, tensor in tensors.items():
        place = checkpoint.tensors[name]
        data = (folder / place.file).read_bytes()[place.offset : place.offset + place.nbytes]
        assert data == tensor.contiguous().view(torch.uint8).numpy().tobytes()


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def test_pickles_that_run_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path / "m", random_tensors(0))
    (folder / "model.safetensors").unlink()
    torch.save({"a": _Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="more than plain tensors"):
        Checkpoint.open(folder, allow_pickle=True)
    (folder / "pytorch_model.bin").write_bytes(b"not a zip")
    with pytest.raises(UserError, match="or is broken"):
        Checkpoint.open(folder, allow_pickle=True)
    assert not (tmp_path / "pwned").exists()


def test_fingerprint_is_content(tmp_path: Path) -> None:
    cache: dict[str, str] = {}
    a, b = save(tmp_path / "a", random_tensors(0)), save(tmp_path / "b", random_tensors(0))
    assert fingerprint(a, cache) == fingerprint(b) == fingerprint(a, cache)
    assert any("model.safetensors" in key for key in cache)
    (b / "tokenizer.json").write_text("{}")
    assert fingerprint(a) != fingerprint(b)
    save(a, random_tensors(1))
    assert fingerprint(a, cache) != fingerprint(save(tmp_path / "c", random_tensors(0)))


def test_a_file_that_changed_in_place_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Size and modification time are as before; the time of the entry is not, and only a clock ahead of it is heard."""
    cache: dict[str, str] = {}
    folder = save(tmp_path / "a", random_tensors(0))
    opened, path = Checkpoint.open(folder), folder / "model.safetensors"
    before, stat = fingerprint(folder, cache), path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(folder, cache) == fingerprint(folder) != before
    with pytest.raises(UserError, match="has changed since it was opened"):
        fingerprint_of(opened)
    cache.clear()
    monkeypatch.setattr("souping.checkpoints.time.time_ns", lambda: stat.st_ctime_ns - 10**9)
    fingerprint(folder, cache)
    assert not cache


def test_links_that_lead_nowhere_or_round_are_told(tmp_path: Path) -> None:
    for name, target in {"round": "tokenizer.json", "nowhere": "absent.json"}.items():
        folder = save(tmp_path / name, random_tensors(0))
        (folder / "other").symlink_to(".")
        assert Checkpoint.open(folder).side == ("config.json",)
        (folder / "tokenizer.json").symlink_to(target)
        with pytest.raises((UserError, FileNotFoundError), match=r"cannot be followed|tokenizer.json"):
            Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": 3}, {"eos_token_id": 4}, (3,)),
        ({"eos_token_id": [5, 3, 5]}, {}, (3, 5)),
        ({"eos_token_id": None}, {"eos_token_id": [4]}, (4,)),
        (None, {"text_config": {"eos_token_id": 6}}, (6,)),
        (None, {"eos_token_id": -1}, ()),
        (None, {}, ()),
    ],
)
def test_eos_token_ids_of_a_folder(
    tmp_path: Path, generation: dict[str, Any] | None, config: dict[str, Any], ends: tuple[int, ...]
) -> None:
    folder = save(tmp_path / "m", random_tensors(0), config)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert eos_token_ids(folder) == ends


@pytest.mark.parametrize("text", ["[1]", "{", '{"eos_token_id": "</s>"}', '{"eos_token_id": [1.5]}'])
def test_a_generation_config_that_is_none(tmp_path: Path, text: str) -> None:
    (save(tmp_path / "m", random_tensors(0)) / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"m/generation_config\.json: "):
        eos_token_ids(tmp_path / "m")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_corrupt_bytes_never_escape(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Flip, cut or insert bytes in headers, indexes and configs: a soup or a UserError, and never half a folder."""
    root = tmp_path_factory.mktemp("corrupt")
    folders = family(root, 2)
    save(folders["m1"], random_tensors(1), shards=2)
    (folders["m1"] / "model.safetensors").unlink()
    victims = [p for f in folders.values() for p in sorted(f.iterdir())]
    victim = data.draw(st.sampled_from(victims))
    raw = bytearray(victim.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        _corrupt(raw, data)
    victim.write_bytes(bytes(raw))
    out = root / "soup"
    refused = _soup_or_refusal(folders, out)
    assert (refused is None) == out.exists()
    if refused is None:
        Checkpoint.open(out)
    else:
        assert str(refused).count("\n") <= 3
    assert not list(root.glob(".*"))


def _soup_or_refusal(folders: dict[str, Path], out: Path) -> UserError | None:
    """Anything but a soup and a UserError fails the test."""
    try:
        LocalMerge().write(plan(simple(folders, (0.5, 0.5)), folders), out)
    except UserError as error:
        return error
    return None


def _corrupt(raw: bytearray, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "head"]))
    at = data.draw(st.integers(0, max(len(raw) - 1, 0)))
    if kind == "flip" and raw:
        raw[at] ^= data.draw(st.integers(1, 255))
    elif kind == "head" and raw:
        raw[min(at % 200, len(raw) - 1)] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del raw[at:]
    else:
        raw[at:at] = data.draw(st.binary(max_size=20))


def test_stored_names_are_read_from_headers_that_are_checked(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", {"a": torch.ones(2), "lm_head.weight": torch.ones(2)})
    assert stored_names(folder) == {"a", "lm_head.weight"}
    assert stores_head(folder)
    assert not stores_head(save(tmp_path / "tied", {"embed": torch.ones(2)}))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        stored_names(folder)
