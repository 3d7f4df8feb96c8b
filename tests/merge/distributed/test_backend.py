"""`merge=accelerate` with two real gloo ranks: the bytes of `merge=local`, and one clear error whatever goes wrong."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from souping.core.types import UserError
from souping.merge.chunks import chunks, share_of_rank
from souping.merge.distributed.backend import AccelerateMerge, rank_count
from souping.merge.local import LocalMerge
from tests.conftest import Cli, pool_of
from tests.support.ranks import (
    Siblings,
    audible,
    contents,
    nothing_left,
    planned,
    siblings,
    spoil,
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Siblings:
    return siblings(tmp_path_factory.mktemp("pool"), torch.bfloat16)


@pytest.fixture(scope="module")
def group() -> Iterator[AccelerateMerge]:
    """One group of two ranks for all tests that leave it whole."""
    merge = AccelerateMerge(num_processes=2, start_timeout=600)
    yield merge
    merge.close()


def pids(merge: AccelerateMerge) -> list[int]:
    return merge._ranks[-1].pids if merge._ranks else []


BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bf16": ({"dtypes": (BF16,)}, {}),
    "fp16 in shards to shards": ({"dtypes": (F16,), "shards": 3}, {"max_shard_size": "300KB"}),
    "fp32": ({"dtypes": (F32,)}, {}),
    "mixed dtypes": ({"dtypes": (BF16, F16, F32)}, {}),
    "another dtype": ({"dtypes": (BF16,)}, {"dtype": "float32"}),
    "overrides": ({"dtypes": (BF16,)}, {"overrides": {"*.mlp.*": [0.1, 0.1, 0.8]}}),
    "vocabulary union": ({"dtypes": (BF16,), "rows": (12, 15, 13)}, {"vocab": "union"}),
    "zero weight": ({"dtypes": (BF16,)}, {"weights": (0.25, 0.0, 0.75)}),
    "one alone": ({"dtypes": (BF16,)}, {"weights": (0.0, 1.0, 0.0)}),
    "slerp": ({"dtypes": (BF16,)}, {"weights": (0.25, 0.0, 0.75), "method": "slerp"}),
    "task arithmetic": ({"dtypes": (BF16,)}, {"method": "task_arithmetic", "scale": 0.7}),
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_those_of_local(group: AccelerateMerge, tmp_path: Path, case: str) -> None:
    files, fields = CASES[case]
    folders = siblings(tmp_path, *files["dtypes"], **{k: v for k, v in files.items() if k != "dtypes"})
    if fields.get("method") == "task_arithmetic":
        fields = {**fields, "base": str(folders["a"])}
    plan = planned(folders, **fields)
    cooked: list[int] = []
    before = pids(group)
    out = group.write(plan, tmp_path / "ranks", lambda done, total: cooked.append(done), {"README.md": "card"})
    local = LocalMerge().write(plan, tmp_path / "local", extra_files={"README.md": "card"})
    assert contents(out) == contents(local)
    assert cooked[-1] == plan.nbytes
    assert len(pids(group)) == 2
    assert before in ([], pids(group)), "the ranks were started again"


def test_both_ranks_have_work(pool: Siblings) -> None:
    work = chunks(planned(pool))
    sizes = [sum(chunk.nbytes for chunk in share_of_rank(work, rank, 2)) for rank in (0, 1)]
    assert min(sizes) > 100_000  # shares are cut at whole blocks


def test_llamas(group: AccelerateMerge, family: Path, tmp_path: Path) -> None:
    plan = planned({name: family / name for name in ("ant", "bee", "cat")}, max_shard_size="9KB")
    assert contents(group.write(plan, tmp_path / "ranks")) == contents(LocalMerge().write(plan, tmp_path / "local"))


def test_what_rank_1_finds_is_one_error(group: AccelerateMerge, tmp_path: Path) -> None:
    folders = siblings(tmp_path / "pool", torch.bfloat16)
    spoil(folders, float("nan"))
    with pytest.raises(UserError) as caught:
        group.write(planned(folders), tmp_path / "soup")
    with pytest.raises(UserError) as local:
        LocalMerge().write(planned(folders), tmp_path / "soup")
    assert str(caught.value) == str(local.value)
    assert "NaN or infinity in tensor model.z.weight" in str(caught.value)
    assert nothing_left(tmp_path / "soup")
    before = pids(group)
    group.write(planned(folders, (0.5, 0.0, 0.5)), tmp_path / "soup")
    assert pids(group) == before, "a merge that fails does not cost the ranks"


def test_warnings_come_back(group: AccelerateMerge, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = siblings(tmp_path / "pool", torch.bfloat16)
    spoil(folders, float("inf"))
    plan = planned(folders, nonfinite="warn")
    audible()
    with caplog.at_level(logging.WARNING):
        out = group.write(plan, tmp_path / "ranks")
    assert "model.z.weight" in caplog.text
    assert contents(out) == contents(LocalMerge().write(plan, tmp_path / "local"))


def test_an_ingredient_that_has_changed(group: AccelerateMerge, tmp_path: Path) -> None:
    folders = siblings(tmp_path / "pool", torch.bfloat16)
    plan = planned(folders)
    os.truncate(folders["c"] / "model.safetensors", 5000)
    with pytest.raises(UserError, match="has changed since it was opened"):
        group.write(plan, tmp_path / "soup")
    assert nothing_left(tmp_path / "soup")


@pytest.mark.slow
def test_a_whole_run(family: Path, souping: Cli, tmp_path: Path) -> None:
    run = [*pool_of(family), "selector=topk", "selector.k=2", "optimiser=uniform"]
    for merge, extra in (("accelerate", ["merge.num_processes=2"]), ("local", [])):
        done = souping(*run, f"merge={merge}", *extra, f"hydra.run.dir=outputs/fam/{merge}")
        assert done.code == 0, done.err
    one, two = (tmp_path / "outputs/fam" / name for name in ("accelerate", "local"))
    soups = [{k: v for k, v in contents(folder / "soup").items() if k != "README.md"} for folder in (one, two)]
    assert soups[0] == soups[1]
    reports = [json.loads((folder / "report.json").read_text()) for folder in (one, two)]
    assert reports[1]["cost"]["evaluated_items"] == 0
    assert reports[0]["recipe"] == reports[1]["recipe"]


@pytest.mark.parametrize(
    ("fields", "needle"),
    [
        ({"num_processes": 0}, "num_processes=0"),
        ({"main_process_port": 70000}, "main_process_port=70000"),
        ({"timeout": 0.0}, "timeout=0.0"),
        ({"start_timeout": -1.0}, "start_timeout=-1.0"),
        ({"method": "liner"}, "did you mean linear"),
    ],
)
def test_settings_out_of_range(fields: dict[str, Any], needle: str) -> None:
    with pytest.raises(UserError) as caught:
        AccelerateMerge(**fields)
    assert needle in str(caught.value)


def test_how_many_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert (rank_count(None), rank_count(3)) == (2, 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert (rank_count(None), rank_count(3)) == (4, 3)
    with pytest.raises(UserError, match=r"merge\.num_processes=5, but 4 GPUs can be seen"):
        rank_count(5)
