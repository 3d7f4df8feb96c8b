"""Averages that trainers keep themselves: which are found, and what is left out, in one line each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from souping.checkpoints.sharded import has_average
from souping.checkpoints.trainers import TRAINERS
from souping.trajectory import TrajectoryPool
from tests.support.trainers import ARCHIVES, unpacked

NEWEST = "checkpoint-1000"


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(str(folder / name))


def run_in(root: Path, layout: str = "checkpoint-{}", *names: str) -> Path:
    for step in (300, 600, 1000):
        write(root / layout.format(step), *(names or ("model.safetensors",)))
    return root


def averages(pool: TrajectoryPool) -> dict[str, Path]:
    return {one.name: one.path for kind, one in pool.trajectory.rows if kind == "trainer_average"}


def remarks(pool: TrajectoryPool) -> list[str]:
    return [note for note in pool.trajectory.notes if "not compared" in note]


FOUND = {
    "ema": "ema",
    "SWA": "SWA",
    "average": "average",
    "model_ema": "model_ema",
    "the last step": "ema-1000",
    "a rate": "ema-0.999",
    "a small number": "swa_last4",
    "a suffix": f"{NEWEST}-ema",
    "inside the last checkpoint": f"{NEWEST}/ema",
}


@pytest.mark.parametrize("case", FOUND)
def test_an_average_is_found_by_its_name_and_is_not_a_candidate(case: str, tmp_path: Path) -> None:
    run_in(tmp_path)
    write(tmp_path / FOUND[case], "model.safetensors")
    pool = TrajectoryPool(path=str(tmp_path))
    assert averages(pool) == {FOUND[case].replace("/", "-"): tmp_path / FOUND[case]}
    assert remarks(pool) == []
    steps = [f"checkpoint-{step}" for step in (300, 600, 1000)]
    assert [one.name for one in pool.resolve()] == steps


def test_olmo_cores_merged_folder_is_an_average_of_its_step(tmp_path: Path) -> None:
    files = (".metadata", "__0_0.distcp")
    run_in(tmp_path, "step{}/model_and_optim", *files)
    for step in (600, 1000):
        write(tmp_path / f"step{step}-merged" / "model_and_optim", *files)
    pool = TrajectoryPool(path=str(tmp_path))
    assert averages(pool) == {"step1000-merged": tmp_path / "step1000-merged"}
    (remark,) = remarks(pool)
    assert "step600-merged: not compared" in remark
    earlier = TrajectoryPool(path=str(tmp_path), until=600)
    assert averages(earlier) == {"step600-merged": tmp_path / "step600-merged"}
    assert [one.name for one in pool.resolve()] == ["step300", "step600", "step1000"]


LEFT_OUT: dict[str, tuple[str, tuple[str, ...], dict[str, Any], str]] = {
    "no weights": ("ema", ("config.json",), {}, "no weights"),
    "half-written": ("ema", ("__0_0.distcp",), {}, "no .metadata"),
    "another step": ("ema-600", ("model.safetensors",), {}, "of step 600, and .* of step 1000"),
    "a step that is not there": ("ema_step800", ("model.safetensors",), {}, "of step 800"),
    "the end of training": ("ema", ("model.safetensors",), {"until": 600}, "of step 1000"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_an_average_that_cannot_be_compared_is_left_out_in_one_line(
    case: str, tmp_path: Path
) -> None:
    name, files, settings, reason = LEFT_OUT[case]
    run_in(tmp_path)
    write(tmp_path / name, *files)
    pool = TrajectoryPool(path=str(tmp_path), **settings)
    assert averages(pool) == {}
    (remark,) = remarks(pool)
    assert remark.startswith(f"{tmp_path}: {name}: not compared")
    assert "\n" not in remark
    assert re.search(reason, remark), remark


@pytest.mark.parametrize(
    "name", ["merged", f"{NEWEST}-merged", "schema", "swap", "emanuel", f"{NEWEST}/unet_ema"]
)
def test_other_folders_are_not_averages(name: str, tmp_path: Path) -> None:
    run_in(tmp_path)
    write(tmp_path / name, "model.safetensors")
    pool = TrajectoryPool(path=str(tmp_path))
    assert averages(pool) == {}
    assert remarks(pool) == []


def test_an_average_of_another_size_is_left_out_in_one_line(tmp_path: Path) -> None:
    run_in(tmp_path)
    (tmp_path / "ema").mkdir()
    (tmp_path / "swa").mkdir()
    config = json.dumps({"model_type": "llama"})
    for name, rows in ((NEWEST, 4), ("ema", 5), ("swa", 4)):
        save_file({"w": torch.full((rows, 2), 0.5)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(config)
    pool = TrajectoryPool(path=str(tmp_path))
    assert averages(pool) == {"swa": tmp_path / "swa"}
    (remark,) = remarks(pool)
    assert "ema: not compared" in remark
    assert "[5, 2]" in remark


MODEL = {"w": torch.full((4, 2), 0.5)}


def model(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))


UNLIKE: dict[str, tuple[dict[str, torch.Tensor], dict[str, str | None], str]] = {
    "no tensor in common": ({"module.w": MODEL["w"]}, {}, "ema lacks w"),
    "a tensor more": ({**MODEL, "n_averaged": torch.ones(1)}, {}, "n_averaged"),
    "no config": (MODEL, {"config.json": None}, "no config.json"),
    "a broken config": (MODEL, {"config.json": "{"}, "not valid JSON"),
    "another architecture": (MODEL, {"config.json": '{"model_type": "gpt2"}'}, "model_type"),
    "no tokenizer": (MODEL, {"tokenizer.json": None}, "no tokenizer"),
    "another tokenizer": (
        MODEL,
        {"tokenizer.json": '{"model": {"vocab": {"a": 1, "b": 0}}}'},
        "tokenizers",
    ),
    "garbage": (MODEL, {"model.safetensors": "garbage" * 9}, "no safetensors file"),
    "an empty file": (MODEL, {"model.safetensors": ""}, "truncated"),
}


@pytest.mark.parametrize("case", UNLIKE)
@pytest.mark.parametrize("place", [".", NEWEST])
def test_an_average_that_is_no_such_model_never_stops_the_run(
    case: str, place: str, tmp_path: Path
) -> None:
    run_in(tmp_path)
    model(tmp_path / NEWEST, MODEL)
    tensors, files, reason = UNLIKE[case]
    ema = tmp_path / place / "ema"
    model(ema, tensors)
    for name, text in files.items():
        if text is None:
            (ema / name).unlink()
        else:
            (ema / name).write_text(text)
    pool = TrajectoryPool(path=str(tmp_path))
    assert averages(pool) == {}
    (remark,) = remarks(pool)
    assert reason in remark
    assert "\n" not in remark


def test_a_folder_that_may_not_be_read_is_left_out_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in(tmp_path)
    model(tmp_path / NEWEST, MODEL)
    model(tmp_path / "ema", MODEL)
    is_file = Path.is_file

    # The tests may run as root, who may read everything.
    def refused(self: Path) -> bool:
        if self.parent == tmp_path / "ema":
            raise PermissionError(13, "Permission denied", str(self))
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", refused)
    pool = TrajectoryPool(path=str(tmp_path))
    assert averages(pool) == {}
    (remark,) = remarks(pool)
    assert "Permission denied" in remark


def test_an_adapter_is_no_average_of_full_models(tmp_path: Path) -> None:
    run_in(tmp_path)
    model(tmp_path / NEWEST, MODEL)
    write(tmp_path / "ema", "adapter_config.json", "adapter_model.safetensors")
    pool = TrajectoryPool(path=str(tmp_path))
    assert averages(pool) == {}
    (remark,) = remarks(pool)
    assert "adapter" in remark


def test_the_plan_names_the_average_that_the_report_scores(tmp_path: Path) -> None:
    run_in(tmp_path)
    model(tmp_path / NEWEST, MODEL)
    assert "own average" not in " ".join(TrajectoryPool(path=str(tmp_path)).trajectory.sentences)
    model(tmp_path / "ema", MODEL)
    assert "own average too: ema" in " ".join(
        TrajectoryPool(path=str(tmp_path)).trajectory.sentences
    )


def test_files_and_dead_links_are_no_averages(tmp_path: Path) -> None:
    run_in(tmp_path)
    write(tmp_path, "ema")
    write(tmp_path / NEWEST, "swa")
    (tmp_path / "average").symlink_to(tmp_path / "nowhere")
    (tmp_path / "swa").symlink_to("swa")
    pool = TrajectoryPool(path=str(tmp_path))
    assert averages(pool) == {}
    assert remarks(pool) == []


def test_the_average_in_torchtitans_optimiser_state_is_found(tmp_path: Path) -> None:
    kinds = [path.name.split(".")[0] for path in ARCHIVES.glob("torchtitan_*.tar.xz")]
    for kind in kinds:
        folder = unpacked(tmp_path, kind) / kind
        pool = TrajectoryPool(path=str(folder))
        expected = {"step-10#ema": folder / "step-10#ema"} if "ema" in kind else {}
        assert averages(pool) == expected
        assert has_average(folder / "step-10") is bool(expected)


@pytest.mark.parametrize("text", ["optim", "optim.state.x", "other"])
def test_a_metadata_of_repeated_words_is_searched_in_one_pass(tmp_path: Path, text: str) -> None:
    (tmp_path / ".metadata").write_text(text * 200_000)
    assert not has_average(tmp_path)
    (state,) = [re.compile(each.average_state) for each in TRAINERS if each.average_state]
    assert state.fullmatch(text * 200_000) is None
    assert state.fullmatch(f"ema_{text}.state." * 50_000) is None
