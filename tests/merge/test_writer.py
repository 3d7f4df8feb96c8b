"""A soup's folder appears whole or not at all: full disks, kills, targets that are there already."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from souping.core.types import UserError
from souping.merge import plan as merge_plan
from souping.merge import writer
from souping.merge.__main__ import main
from souping.merge.alignment import plan
from souping.merge.plan import MergePlan
from souping.merge.writer import write_checkpoint
from tests.conftest import ROOT
from tests.support.checkpoints import family, load, random_tensors, save, simple


@pytest.fixture
def made(tmp_path: Path) -> MergePlan:
    folders = family(tmp_path / "pool", 2)
    (folders["m0"] / "tokenizer.json").write_text("{}")
    (folders["m0"] / "chat_template.jinja").write_text("hi")
    (folders["m0"] / "generation_config.json").write_text("{}")
    (folders["m0"] / "secrets.txt").write_text("no")
    return plan(simple(folders, (0.5, 0.5)), folders)


def left(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.name != "pool")


def test_what_is_carried(made: MergePlan, tmp_path: Path) -> None:
    out = write_checkpoint(made, tmp_path / "deep" / "er" / "soup", extra_files={"README.md": "# card"})
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "recipe.json", "tokenizer.json",
    ]  # fmt: skip
    assert json.loads((out / "recipe.json").read_text())["weights"] == [0.5, 0.5]
    assert (out / "config.json").read_bytes() == Path(made.ingredients[0].folder, "config.json").read_bytes()


def test_an_extra_file_may_not_replace_the_model(made: MergePlan, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json would replace"):
        write_checkpoint(made, tmp_path / "soup", extra_files={"config.json": "{}"})
    assert left(tmp_path) == []


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    tensors = {f"model.layers.{i}.w": random_tensors(i)["model.norm.weight"] for i in range(40)}
    folders = {name: save(tmp_path / "pool" / name, tensors, shards=40) for name in ("m0", "m1")}
    made = plan(simple(folders, (0.5, 0.5)), folders, max_shard_size=66)
    assert len(made.shards) == 40
    free = write_checkpoint(made, tmp_path / "free")
    made.save(tmp_path / "plan.json")
    tight = f"ulimit -Sn 64; exec {sys.executable} -m souping.merge {tmp_path}/plan.json {tmp_path}/tight"
    done = subprocess.run(["bash", "-c", tight], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for path in free.iterdir():
        assert path.read_bytes() == (tmp_path / "tight" / path.name).read_bytes()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_target_that_is_there_is_kept(made: MergePlan, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "soup"
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder":
        out.mkdir()
        (out / "mine").write_text("mine")
    else:
        out.symlink_to(tmp_path / "pool")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        write_checkpoint(made, out)
    assert left(tmp_path) == ["soup"]


@pytest.mark.parametrize("where", ["reserve", "write"])
def test_a_full_disk_leaves_nothing(
    made: MergePlan, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate" if where == "reserve" else "pwrite", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint(made, tmp_path / "new" / "soup")
    assert left(tmp_path) == []


def test_file_systems_that_cannot_reserve(made: MergePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable)
    (tmp_path / "soup").mkdir()  # an empty target is filled
    seen: list[tuple[int, int]] = []
    write_checkpoint(made, tmp_path / "soup", progress=lambda done, total: seen.append((done, total)))
    assert len(load(tmp_path / "soup")) == 7
    assert seen[-1] == (made.nbytes, made.nbytes)


def test_an_interrupt_leaves_nothing(made: MergePlan, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(made, tmp_path / "soup", progress=stop)
    assert left(tmp_path) == []


def test_a_killed_run_leaves_the_target_absent_and_the_next_cleans_up(made: MergePlan, tmp_path: Path) -> None:
    made.save(tmp_path / "pool" / "plan.json")
    script = f"""
        import os, pathlib, signal
        from souping.merge.writer import write_checkpoint
        from souping.merge.alignment import load_plan
        plan = load_plan(pathlib.Path({str(tmp_path / "pool" / "plan.json")!r}))
        out = pathlib.Path({str(tmp_path / "soup")!r})
        write_checkpoint(plan, out, progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert [name.split("-")[0] for name in left(tmp_path)] == [".soup.lock", ".soup.part"]
    write_checkpoint(made, tmp_path / "soup")
    assert left(tmp_path) == ["soup"]


def test_ingredients_that_end_early_are_named(made: MergePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer.os, "preadv", lambda *_: 0)
    with pytest.raises(UserError, match=r"the file ends early in tensor .*m0/model\.safetensors"):
        write_checkpoint(made, tmp_path / "soup")
    assert left(tmp_path) == []


def test_a_saved_plan_is_cooked_alone(made: MergePlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made.save(tmp_path / "pool" / "plan.json")
    assert main([str(path), str(tmp_path / "soup")]) == 0
    assert "0.5 x m0 + 0.5 x m1" in capsys.readouterr().out
    assert main([str(path), str(tmp_path / "soup")]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert main([str(tmp_path / "none.json"), str(tmp_path / "x")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_a_plain_merge_imports_neither_torch_nor_transformers(made: MergePlan, tmp_path: Path) -> None:
    path = made.save(tmp_path / "pool" / "plan.json")
    script = (
        "import sys; from souping.merge.__main__ import main; "
        f"assert main([{str(path)!r}, {str(tmp_path / 'soup')!r}]) == 0; "
        "print(sorted({'torch', 'transformers', 'hydra', 'numba', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("count", [2, 8, 40])
def test_buffers_do_not_grow_with_the_number_of_models(count: int, tmp_path: Path) -> None:
    tensors = {"w": random_tensors(0)["model.norm.weight"]}
    folders = {str(i): save(tmp_path / str(i), tensors) for i in range(count)}
    chunk = merge_plan.chunks(plan(simple(folders, (1 / count,) * count), folders))[0]
    block = next(merge_plan.blocks(replace(chunk, count=1 << 30)))
    assert block.count * count <= merge_plan.ROWS


@pytest.mark.parametrize("lost", ["folder", "config.json"])
def test_a_carrier_that_went_away_is_named(made: MergePlan, tmp_path: Path, lost: str) -> None:
    carrier = Path(made.ingredients[0].folder)
    if lost == "folder":
        carrier.rename(tmp_path / "pool" / "elsewhere")
    else:
        (carrier / lost).unlink()
    with pytest.raises(UserError, match=r"m0.* has changed since it was opened"):
        write_checkpoint(made, tmp_path / "soup")
    assert left(tmp_path) == []
