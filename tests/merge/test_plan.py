"""Plans: layout, dtypes, NaN, methods, shares of ranks; each against the arithmetic written out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.merge_inputs import sparse_70b
from souping.checkpoints import Checkpoint
from souping.core.types import UserError
from souping.merge import plan as merge_plan
from souping.merge.__main__ import main
from souping.merge.alignment import load_plan, plan
from souping.merge.kernels import METHODS, Float32, Method
from souping.merge.writer import ShardWriter, prepare, write_checkpoint
from tests.support.checkpoints import (
    expected,
    family,
    load,
    random_tensors,
    same_bits,
    save,
    simple,
    soup_of,
)


@pytest.mark.parametrize("size", ["200", "0.5KB", "5GB"])
def test_any_layout_in_any_size_out(tmp_path: Path, size: str) -> None:
    folders = family(tmp_path, 2)
    save(folders["m1"], random_tensors(1), shards=3)
    (folders["m1"] / "model.safetensors").unlink()
    soup = soup_of(folders, tmp_path / "soup", (0.3, 0.7), max_shard_size=size)
    parts = [random_tensors(0), random_tensors(1)]
    for name in parts[0]:
        assert same_bits(soup[name], expected([p[name] for p in parts], (0.3, 0.7), torch.bfloat16)), name
    index = tmp_path / "soup" / "model.safetensors.index.json"
    assert index.exists() == (size != "5GB")
    if index.exists():
        table = json.loads(index.read_text())
        assert set(table["weight_map"]) == set(soup)
        assert table["metadata"]["total_size"] == sum(t.nbytes for t in soup.values())
        assert {p.name for p in (tmp_path / "soup").glob("*.safetensors")} == set(table["weight_map"].values())
    assert set(Checkpoint.open(tmp_path / "soup").tensors) == set(soup)


def test_same_plan_same_bytes(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    made = plan(simple(folders, (0.3, 0.7)), folders)
    again = load_plan(made.save(tmp_path / "plan.json"))
    assert again == made
    write_checkpoint(made, tmp_path / "a")
    write_checkpoint(again, tmp_path / "b")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_corrupt_plans_never_escape(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Replace a value somewhere in a saved plan: it is written, or an error for the user comes and nothing is."""
    root = tmp_path_factory.mktemp("plan")
    folders = family(root / "pool", 2)
    path = plan(simple(folders, (0.5, 0.5)), folders, max_shard_size=300).save(root / "pool" / "plan.json")
    table = json.loads(path.read_text())
    place: Any = table
    while isinstance(place, (dict, list)) and place:
        holder, key = place, data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        place = holder[key]
        if data.draw(st.integers(0, 5)) == 0:
            break
    odd = st.sampled_from([-1, 0, 3, 2**70, 1.5, "x", "../x", None, True, [], {}, [[]], float("nan"), "BF16", "copy"])
    holder[key] = data.draw(odd)
    path.write_text(json.dumps(table))
    refused = None
    try:
        write_checkpoint(load_plan(path), root / "soup")
    except (UserError, OSError) as error:
        refused = error
    assert (refused is None) == (root / "soup").exists()
    assert sorted(path.name for path in root.iterdir()) == (["pool"] if refused else ["pool", "soup"])


def test_zero_weights_are_not_read(tmp_path: Path) -> None:
    folders = family(tmp_path, 3)
    made = plan(simple(folders, (0.5, 0.0, 0.5)), folders)
    assert [i.name for i in made.ingredients] == ["m0", "m2"]
    assert made.read_bytes == 2 * made.nbytes
    folders["m1"] = tmp_path / "nowhere"
    write_checkpoint(plan(simple(folders, (0.5, 0.0, 0.5)), folders), tmp_path / "soup")


def test_plans_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, and nothing is written."""
    folders = family(tmp_path / "pool", 2)
    path = plan(simple(folders, (0.5, 0.5)), folders).save(tmp_path / "plan.json")
    table = json.loads(path.read_text())
    (tmp_path / "loop").symlink_to("loop")
    texts = {
        "not text": "\ud800" * 3,
        "deep": "[" * 100_000,
        **{text: text for text in ("", "{}", "[]", '{"version": 1}', '{"version": 9}', "null")},
    }
    changes: dict[str, dict[str, Any]] = {
        "folder": {"folders": {**table["folders"], "m1": "\0"}},
        "loop": {"folders": {**table["folders"], "m1": str(tmp_path / "loop")}},
        "lost": {"folders": {"m0": table["folders"]["m0"]}},
        "file": {"files": {**table["files"], "m1": {"../../../etc/passwd": 5}}},
        "size": {"files": {**table["files"], "m1": {"model.safetensors": 1 << 61}}},
        "carry": {"carry": "m7"},
        "recipe": {"recipe": {**table["recipe"], "weights": ["x", 1]}},
    }
    texts |= {name: json.dumps({**table, **change}) for name, change in changes.items()}
    for name, text in texts.items():
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert main([str(path), str(tmp_path / "soup")]) == 2, name
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert sorted(each.name for each in tmp_path.iterdir()) == ["loop", "plan.json", "pool"], name


@pytest.mark.parametrize(
    ("types", "asked", "got"),
    [
        ((torch.bfloat16, torch.bfloat16), None, torch.bfloat16),
        ((torch.float16, torch.float16), None, torch.float16),
        ((torch.float32, torch.float32), None, torch.float32),
        ((torch.bfloat16, torch.float32), None, torch.float32),
        ((torch.bfloat16, torch.float16), None, torch.float32),
        ((torch.float32, torch.float32), "bfloat16", torch.bfloat16),
        ((torch.bfloat16, torch.float16), "float16", torch.float16),
    ],
)
def test_dtypes(tmp_path: Path, types: tuple[torch.dtype, torch.dtype], asked: str | None, got: torch.dtype) -> None:
    folders = {str(i): save(tmp_path / str(i), random_tensors(i, dtype)) for i, dtype in enumerate(types)}
    soup = soup_of(folders, tmp_path / "soup", (0.35, 0.65), dtype=asked)
    parts = [random_tensors(i, dtype) for i, dtype in enumerate(types)]
    for name in soup:
        assert same_bits(soup[name], expected([p[name] for p in parts], (0.35, 0.65), got)), name
    config = json.loads((tmp_path / "soup" / "config.json").read_text())
    assert config["torch_dtype"] == str(got).removeprefix("torch.")


def test_a_model_that_mixes_dtypes_keeps_them(tmp_path: Path) -> None:
    folders = {}
    for i in range(2):
        tensors = {**random_tensors(i), "model.norm.weight": torch.randn(33)}
        folders[str(i)] = save(tmp_path / str(i), tensors)
    soup = soup_of(folders, tmp_path / "soup", (0.5, 0.5))
    assert soup["model.norm.weight"].dtype == torch.float32
    assert soup["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_name_file_and_tensor(tmp_path: Path, bad: float, caplog: pytest.LogCaptureFixture) -> None:
    folders = family(tmp_path, 2)
    tensors = random_tensors(1)
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = bad
    save(folders["m1"], tensors)
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight in .*m1/model\.safetensors"):
        soup_of(folders, tmp_path / "soup", (0.5, 0.5))
    assert not (tmp_path / "soup").exists()
    soup = soup_of(folders, tmp_path / "soup", (0.5, 0.5), nonfinite="warn")
    assert not torch.isfinite(soup["model.layers.1.mlp.up_proj.weight"]).all()
    assert sum("NaN or infinity in tensor" in record.message for record in caplog.records) == 1
    with pytest.raises(UserError, match="NaN or infinity"):
        soup_of(folders, tmp_path / "single", (0.0, 1.0))


def test_overflow_of_a_narrow_dtype_is_found(tmp_path: Path) -> None:
    folders = {str(i): save(tmp_path / str(i), {"w": torch.full((9,), 7e4)}) for i in range(2)}
    with pytest.raises(UserError, match=r"overflow to infinity, or NaN from merge.method, in tensor w"):
        soup_of(folders, tmp_path / "soup", (0.5, 0.5), dtype="float16")


@pytest.mark.parametrize("method", ["slerp", "model_stock", "task_arithmetic"])
def test_files_get_what_the_method_gives_on_whole_tensors(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_plan, "STEP", 16)
    monkeypatch.setattr(merge_plan, "BLOCK", 16)
    folders, based = family(tmp_path, 3), method != "slerp"
    fields = {"base": str(folders["m2"])} if based else {}
    pair = {name: folders[name] for name in ("m0", "m1")}
    soup = soup_of(pair, tmp_path / "soup", (0.35, 0.65), method=method, **fields)
    parts = [random_tensors(i) for i in ((2, 0, 1) if based else (0, 1))]
    weights = (0.0, 0.35, 0.65) if based else (0.35, 0.65)
    for name, tensor in soup.items():
        whole = METHODS[method]([p[name].float().numpy() for p in parts], weights)
        want = torch.from_numpy(whole).bfloat16()
        assert torch.allclose(tensor.float(), want.float(), rtol=2**-7, atol=1e-6), name
        assert (tensor != want).float().mean() < 0.05, name


def test_a_whole_tensor_method_is_never_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def middle(tensors: Sequence[Float32], weights: Sequence[float]) -> Float32:
        seen.append(len(tensors[0]))
        return np.asarray(np.median(np.stack(tensors), axis=0), np.float32)

    monkeypatch.setattr(merge_plan, "BLOCK", 16)
    monkeypatch.setitem(METHODS, "middle", Method(function=middle, whole=True))
    folders = family(tmp_path, 3)
    soup = soup_of(folders, tmp_path / "soup", (0.2, 0.3, 0.5), method="middle")
    assert sorted(seen) == sorted(tensor.numel() for tensor in soup.values())
    parts = [random_tensors(i)["lm_head.weight"] for i in range(3)]
    assert torch.equal(soup["lm_head.weight"], torch.stack(parts).median(dim=0).values)


def test_a_pool_of_70b_is_planned_from_headers_alone(tmp_path: Path) -> None:
    """The files are holes of the right size: a plan that read weights would take minutes and give other errors."""
    folders = {name: sparse_70b(tmp_path / name) for name in "abcd"}
    made = plan(simple(folders, (0.1, 0.2, 0.3, 0.4)), folders, max_shard_size="10GB")
    assert made.nbytes == 141_107_412_992
    assert made.read_bytes == 4 * made.nbytes
    assert len(made.tensors) == 723
    assert load_plan(made.save(tmp_path / "plan.json")) == made


@settings(max_examples=25, deadline=None)
@given(ranks=st.integers(1, 7), block=st.sampled_from([8, 64, 1 << 18]))
def test_shares_of_ranks_cover_the_output_once(
    tmp_path_factory: pytest.TempPathFactory, ranks: int, block: int
) -> None:
    root = tmp_path_factory.mktemp("ranks")
    folders = family(root, 2)
    made = plan(simple(folders, (0.3, 0.7)), folders, max_shard_size=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_plan, "BLOCK", block)
        shares = [merge_plan.share_of_rank(merge_plan.chunks(made), rank, ranks) for rank in range(ranks)]
        assert sum(chunk.count for share in shares for chunk in share) == sum(
            chunk.count for chunk in merge_plan.chunks(made)
        )
        stage = root / "stage"
        stage.mkdir()
        prepare(made, stage)
        with ShardWriter(made, stage) as writer:
            for rank in reversed(range(ranks)):
                writer.fill(rank, ranks)
    whole = load(write_checkpoint(made, root / "whole"))
    assert all(same_bits(tensor, whole[name]) for name, tensor in load(stage).items())
