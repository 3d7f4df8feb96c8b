"""Fine-tunes: the same bytes from the same seed, loss on the answer alone, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.smollm.data import Material, gather, read_questions, spare
from examples.smollm.train import (
    RECORD,
    SLICES,
    Lesson,
    TrainingSettings,
    tune,
    write_base,
)
from souping.core.types import UserError
from tests.conftest import ROOT
from tests.support import smollm_kit

QUICK = TrainingSettings(steps=2, batch=2, rate=1e-2, warmup=1)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    data = smollm_kit.write(tmp_path_factory.mktemp("bfcl") / "data")
    return gather(read_questions(data), spare(data))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    smollm_kit.model(folder / "raw")
    return write_base(str(folder / "raw"), folder / "base")


def lesson(material: Material, name: str = "smol_live", seed: int = 0) -> Lesson:
    return Lesson(name=name, seed=seed, shares=SLICES[name], material=material)


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def silent(text: str) -> None:
    pass


def test_the_same_seed_gives_the_same_bytes_and_only_the_upper_layers_learn(
    material: Material, start: Path, tmp_path: Path
) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        tune(lesson(material, seed=seed), dataclasses.replace(QUICK, seed=seed), start, tmp_path / name, silent)
    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other
    before, after = weights(start), weights(tmp_path / "one")
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all(name.startswith("model.layers.1.") for name in changed)


def test_what_is_there_stays_unless_it_is_half_made(material: Material, start: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "made", list[str]()
    (tmp_path / ".made.part").mkdir()
    (tmp_path / ".made.part" / "model.safetensors").write_text("half")
    tune(lesson(material), QUICK, start, out, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    record = json.loads((out / RECORD).read_text())
    assert len(record["losses"]) == QUICK.steps
    tune(lesson(material), QUICK, start, out, lines.append)
    assert lines == ["smol_live: there already"]
    with pytest.raises(UserError, match="made with other settings"):
        tune(lesson(material), dataclasses.replace(QUICK, steps=3), start, out, silent)
    assert json.loads((out / RECORD).read_text()) == record
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is no fine-tune of this command"):
        tune(lesson(material), QUICK, start, tmp_path / "other", lines.append)
    assert len(lines) == 1  # before any training


@pytest.mark.slow
def test_a_killed_command_leaves_nothing_that_trains_on(start: Path, tmp_path: Path) -> None:
    data = smollm_kit.write(tmp_path / "data")
    command = [sys.executable, "-m", "examples.smollm", "--base", str(start), "--bfcl", str(data), "--jobs", "1"]
    command += ["--out", str(tmp_path / "out"), "--only", "smol_live", "--steps", "100000", "--batch", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        while "step 10/" not in running.stdout.readline():
            assert running.poll() is None
        running.kill()
        assert "done" not in running.stdout.read()  # ends when the last process that holds the pipe has ended
    assert [path.name for path in (tmp_path / "out" / "models").iterdir()] == ["base"]
