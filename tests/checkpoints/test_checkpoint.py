"""Checkpoints from strangers: one opens and fits the others, or one clear UserError comes; what is odd is a warning."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from souping.checkpoints import ranges
from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.compatibility import preflight
from souping.checkpoints.fingerprints import fingerprint, fingerprint_of
from souping.checkpoints.header import inside, read_header
from souping.core.types import UserError
from souping.merge.local import LocalMerge
from tests.support.checkpoints import (
    family,
    opened,
    plan,
    random_tensors,
    raw_file,
    save,
    simple,
    soup_of,
)

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LIES: dict[str, tuple[Any, bytes, str]] = {
    "overlap": ({"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}, bytes(12), "overlap"),
    "overrun": ({"a": ONE, "b": {**ONE, "data_offsets": [8, 16]}}, bytes(12), "truncated"),
    "hole": ({"a": ONE, "b": {**ONE, "data_offsets": [12, 20]}}, bytes(20), "a hole before them"),
    "rest": ({"a": ONE}, bytes(9), "or with a rest"),
    "huge shape": ({"a": {**ONE, "shape": [2**40, 2**40]}}, bytes(8), "not the size of"),
    "many sizes": ({"a": {**ONE, "shape": [2] * 100}}, bytes(8), "short list"),
    "negative": ({"a": {**ONE, "shape": [-2]}}, bytes(8), "whole numbers"),
    "dtype": ({"a": {**ONE, "dtype": "F12"}}, bytes(8), "unknown dtype F12"),
    "incomplete": ({"a": {"dtype": "F32"}}, bytes(8), "its header is wrong"),
    "duplicate": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}',
        bytes(1),
        "a is there twice",
    ),
    "surrogate": (
        b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        bytes(1),
        "its header is wrong",
    ),
    "not utf-8": (b'{"\xff":1}', b"", "not valid JSON"),
    "deep": (b'{"a":' + b"[" * 100_000, b"", "nested too deeply|not valid JSON"),
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


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "x\0y", "\ud800", "x" * 5000], ids=len
)
def test_shards_outside_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", random_tensors(0))
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        (UserError, OSError), match=r"leaves the folder|cannot be followed|File name too long"
    ):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_symlinks_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", random_tensors(0))
    (folder / "tokenizer.json").write_text("{}")
    (folder / name).rename(tmp_path / name)
    for target, message in (
        (tmp_path / name, "symlink that leads out"),
        (Path(name), "cannot be followed"),
    ):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        with pytest.raises(UserError, match=message):
            Checkpoint.open(folder)


def test_links_in_a_circle_are_no_path_and_a_missing_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "file").touch()
    for folder, name in ((tmp_path, "circle"), (tmp_path, "circle/x"), (tmp_path / "circle", "x")):
        with pytest.raises(UserError, match="cannot be followed"):
            inside(folder, name)
    for name in ("nothing", "nothing/x", "dangling", "file", "file/x"):
        assert inside(tmp_path, name) == tmp_path / name


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", random_tensors(0), shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    places = index["weight_map"]
    moved = {
        **places,
        "model.norm.weight": next(f for f in places.values() if f != places["model.norm.weight"]),
    }
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
    with pytest.raises(UserError, match="do not trust it"):
        Checkpoint.open(folder, allow_pickle=True)
    (folder / "pytorch_model.bin").write_bytes(b"not a zip")
    with pytest.raises(UserError, match="no archive"):
        Checkpoint.open(folder, allow_pickle=True)
    assert not (tmp_path / "pwned").exists()


def test_a_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    cache: dict[str, str] = {}
    a = save(tmp_path / "a", random_tensors(0))
    b = save(tmp_path / "b", random_tensors(0))
    assert fingerprint(a, cache) == fingerprint(b) == fingerprint(a, cache)
    assert any("model.safetensors" in key for key in cache)
    (b / "tokenizer.json").write_text("{}")
    assert fingerprint(a) != fingerprint(b)
    save(a, random_tensors(1))
    assert fingerprint(a, cache) != fingerprint(save(tmp_path / "c", random_tensors(0)))


def test_a_file_that_changed_in_place_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and modification time are as before; the time of the entry is not, and only a clock ahead of it is heard."""
    cache: dict[str, str] = {}
    folder = save(tmp_path / "a", random_tensors(0))
    opened = Checkpoint.open(folder)
    path = folder / "model.safetensors"
    before = fingerprint(folder, cache)
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(folder, cache) == fingerprint(folder) != before
    with pytest.raises(UserError, match="has changed since it was opened"):
        fingerprint_of(opened)
    cache.clear()
    monkeypatch.setattr(
        "souping.checkpoints.checkpoint.time.time_ns", lambda: stat.st_ctime_ns - 10**9
    )
    fingerprint(folder, cache)
    assert not cache


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_corrupt_bytes_never_escape(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
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
    refused = ""
    try:
        Checkpoint.open(LocalMerge().write(plan(simple(folders, (0.5, 0.5)), folders), out))
    except UserError as error:
        refused = str(error)
    assert refused.count("\n") <= 3
    assert out.exists() != bool(refused)
    assert not list(root.glob(".*"))


def _corrupt(raw: bytearray, data: st.DataObject) -> None:
    """Flip some bits of a byte, cut the end, or insert up to 20 bytes; `head` flips within the first 200."""
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "head"]))
    at = data.draw(st.integers(0, max(len(raw) - 1, 0)))
    if kind in ("flip", "head") and raw:
        raw[at if kind == "flip" else min(at % 200, len(raw) - 1)] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del raw[at:]
    else:
        raw[at:at] = data.draw(st.binary(max_size=20))


VOCAB = {f"w{i}": i for i in range(12)}


def check(folders: dict[str, Path], vocab: str = "error") -> list[str]:
    return preflight(opened(folders)[0], vocab)


def tokenizer(folder: Path, vocab: dict[str, int] | None = None, **parts: Any) -> None:
    table = {
        "model": {"type": "WordLevel", "vocab": vocab or VOCAB, "unk_token": "w0"},
        "added_tokens": [],
        **parts,
    }
    (folder / "tokenizer.json").write_text(json.dumps(table))


def test_missing_and_extra_tensors_by_name_then_a_count(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    tensors = random_tensors(1)
    del tensors["model.norm.weight"]
    save(folders["m1"], {**tensors, **{f"extra.{i:02}": torch.zeros(1) for i in range(13)}})
    with pytest.raises(UserError, match=r"m1 lacks model\.norm\.weight(.|\n)*extra\.09 and 3 more"):
        check(folders)


OTHER: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "shape": (
        {"model.norm.weight": torch.zeros(34)},
        {},
        r"model\.norm\.weight is \[33\] in m0 and \[34\] in m1",
    ),
    "float64": ({"odd.weight": torch.ones(3).double()}, {}, r"odd\.weight as F64"),
    "model_type": ({}, {"model_type": "gemma"}, "m0 and m1 differ in model_type: llama and gemma"),
    "quantised": ({}, {"quantization_config": {"bits": 4}}, "m1 is quantised"),
    "heads": ({}, {"num_attention_heads": 8}, "num_attention_heads: 4 and 8"),
}


@pytest.mark.parametrize("case", OTHER)
def test_a_tensor_or_setting_that_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    tensors, config, message = OTHER[case]
    folders = family(tmp_path, 2)
    extra = {name: tensor for name, tensor in tensors.items() if "odd" in name}
    save(folders["m0"], {**random_tensors(0), **extra}, {"num_attention_heads": 4})
    save(folders["m1"], {**random_tensors(1), **tensors}, config)
    with pytest.raises(UserError, match=message):
        check(folders)


def test_tensors_that_are_not_floats_are_copied_when_equal_else_refused(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    for seed, path in enumerate(folders.values()):
        save(
            path,
            {**random_tensors(seed), "ids": torch.arange(5), "mask": torch.tensor([True, False])},
        )
    assert check(folders) == []
    soup = soup_of(folders, tmp_path / "soup", (0.5, 0.5))
    assert torch.equal(soup["ids"], torch.arange(5))
    assert torch.equal(soup["mask"], torch.tensor([True, False]))
    save(
        folders["m1"],
        {**random_tensors(1), "ids": torch.arange(5) + 1, "mask": torch.tensor([True, False])},
    )
    with pytest.raises(UserError, match=r"I64 values.*differ.*tensor ids.*m1"):
        soup_of(folders, tmp_path / "other", (0.5, 0.5))
    assert not (tmp_path / "other").exists()


def test_rope_and_config_drift_are_warnings(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    save(
        folders["m1"],
        random_tensors(1),
        {"rope_theta": 5e5, "max_position_embeddings": 9, "_name_or_path": "x"},
    )
    warnings = check(folders)
    assert any("RoPE" in text and "rope_theta" in text for text in warnings)
    assert any("max_position_embeddings" in text for text in warnings)
    assert len(warnings) == 2


def tied(folder: Path, head: str) -> None:
    """A model whose config says that the head is the embedding: `head` is the same, another one, or not in the file."""
    tensors = random_tensors(3)
    heads = {
        "same": tensors["model.embed_tokens.weight"].clone(),
        "other": torch.zeros(12, 7, dtype=torch.bfloat16),
    }
    kept = {
        name: heads.get(head) if name == "lm_head.weight" else tensor
        for name, tensor in tensors.items()
    }
    save(folder, {n: t for n, t in kept.items() if t is not None}, {"tie_word_embeddings": True})


def test_tied_heads_stored_on_one_side_only(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    tied(folders["m0"], "none")
    tied(folders["m1"], "same")
    assert any("lm_head.weight" in text and "left out" in text for text in check(folders))
    assert "lm_head.weight" not in soup_of(folders, tmp_path / "soup", (0.5, 0.5))
    tied(folders["m1"], "other")
    with pytest.raises(UserError, match="tied embeddings on one side only"):
        check(folders)
    save(folders["m1"], random_tensors(1), {"tie_word_embeddings": False})
    with pytest.raises(UserError, match=r"tied embeddings on one side only.*lm_head\.weight"):
        check(folders)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"vocab": {**VOCAB, "w3": 4, "w4": 3}}, r"other ids for w3, w4"),
        ({"vocab": {**VOCAB, "x": 12}}, r"only one has x.*merge\.vocab=union"),
        ({"added_tokens": [{"id": "x"}]}, "cannot be read"),
    ],
)
def test_tokenizers_that_give_other_ids_are_refused(
    tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    folders = family(tmp_path, 2)
    tokenizer(folders["m0"])
    tokenizer(folders["m1"], **parts)
    with pytest.raises(UserError, match=message):
        check(folders)


def test_tokenizers_are_compared_by_content_not_by_formatting(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    for path in folders.values():
        tokenizer(path)
    table = json.loads((folders["m1"] / "tokenizer.json").read_text())
    (folders["m1"] / "tokenizer.json").write_text(json.dumps(table, indent=4, sort_keys=True))
    (folders["m0"] / "tokenizer_config.json").write_text(json.dumps({"chat_template": "hello"}))
    (folders["m1"] / "chat_template.jinja").write_text("hello\n")
    assert check(folders) == []
    (folders["m1"] / "chat_template.jinja").write_text("bye")
    assert any("chat template of m1 differs" in text for text in check(folders))
    (folders["m1"] / "chat_template.jinja").unlink()
    assert any("m0 has a chat template, m1 has none" in text for text in check(folders))
    (folders["m1"] / "tokenizer.json").unlink()
    assert any("m0 has a tokenizer, m1 has none" in text for text in check(folders))


def pointer(url: object, **changes: object) -> bytes:
    table = {"url": url, "size": 10, "tag": "x", **changes}
    return ranges.POINTER_MARK + json.dumps(table).encode()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "s3://bucket/model/model.safetensors",
        "https://host/m/model.safetensors",
    ],
)
def test_a_pointer_in_a_models_folder_is_refused(tmp_path: Path, url: str) -> None:
    (folder,) = family(tmp_path, 1).values()
    (folder / "model.safetensors").write_bytes(pointer(url))
    with pytest.raises(UserError, match=r"m0.model\.safetensors is a placeholder"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "content",
    [
        pointer("s3://b/m/model.safetensors", size=-1),
        pointer("s3://b/m/model.safetensors", size="big"),
        pointer("s3://b/m/model.safetensors", size=2**70),
        pointer("s3://b/m/model.safetensors", size=True),
        pointer("s3://b/m/model.safetensors", more=1),
        pointer("s3://b/m/model.safetensors", tag=None),
        pointer("s3://b/m/../model.safetensors"),
        pointer("s3://b/other/model.safetensors"),
        pointer("s3://b/m/other.safetensors"),
        pointer("file://b/m/model.safetensors"),
        pointer(3),
        ranges.POINTER_MARK,
        ranges.POINTER_MARK + b"[1]",
        ranges.POINTER_MARK + b"\xff{",
        ranges.POINTER_MARK + b"[" * 4000,
    ],
)
def test_a_damaged_pointer_in_the_cache_of_buckets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    folder = ranges.cache_of("s3://b/m") / "snapshots" / "1"
    folder.mkdir(parents=True)
    path = folder / "model.safetensors"
    path.write_bytes(pointer("s3://b/m/model.safetensors"))
    assert ranges.pointer_in(path) == ranges.Pointer(
        url="s3://b/m/model.safetensors", size=10, tag="x"
    )
    path.write_bytes(content)
    with pytest.raises(UserError, match="placeholder"):
        ranges.pointer_in(path)
