"""The SmolLM2 family: its material, its fine-tunes (the same bytes from the same seed, or none at all), its run."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.smollm.data import (
    FILES,
    NONE,
    ChoiceItem,
    Material,
    families,
    gather,
    parts,
    read_questions,
    spare,
    write_tasks,
)
from examples.smollm.train import (
    RECORD,
    SLICES,
    Lesson,
    TrainingSettings,
    tune,
    write_base,
)
from souping.core.types import UserError
from tests.conftest import ROOT, Cli
from tests.support import smollm_kit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm_kit.write(tmp_path_factory.mktemp("bfcl") / "data")


@pytest.fixture(scope="module")
def material(data: Path) -> Material:
    return gather(read_questions(data), spare(data))


def test_a_family_plays_one_part(data: Path) -> None:
    asked = read_questions(data)
    part = parts(asked)
    family = families(asked)
    assert len({(family[q.id], part[q.id]) for q in asked}) == len(set(family.values()))
    assert set(part.values()) == {"test", "development", "spare", "train"}


def test_nothing_of_training_is_asked(material: Material) -> None:
    taught = {f.name for q in material.questions["train"] for f in q.functions}
    for part in ("test", "development"):
        shown = {name for item in material.asked(part) for name in item.choices} - {NONE}
        assert shown
        assert not shown & taught
    test = {item.group for item in material.asked("test")}
    development = {item.group for item in material.asked("development")}
    assert not test & development


@pytest.mark.slow
def test_the_example_runs_small_from_selection_to_report(
    souping: Cli, tmp_path: Path, material: Material
) -> None:
    """In a folder as `python -m examples.smollm --out outputs/smollm` leaves it, with tiny models."""
    pytest.importorskip("lm_eval")
    command = [
        str(ROOT / "examples" / "smollm" / "run.yaml"),
        "optimiser=grid",
    ]
    assert "max_trials: 12" in souping(*command, "--cfg", "job", "--package", "optimiser").out
    souping(*command).refused("outputs/smollm")
    folder = tmp_path / "outputs" / "smollm"
    some = list[ChoiceItem]()
    for category in dict.fromkeys(item.category for item in material.asked("test")):
        of_category = [item for item in material.asked("test") if item.category == category]
        some.extend(of_category[:8])
    write_tasks(some, folder / "tasks")
    for seed, name in enumerate(("base", *SLICES)):
        smollm_kit.model(folder / "models" / name, seed)
    done = souping(
        *command,
        "optimiser.max_trials=2",
        "selector=all",
        "evaluator.threads=1",
        "hydra.run.dir=run",
    )
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["objective"]["coefficients"]) == set(FILES)
    assert set(report["selection"]["candidates"]) == {"base", *SLICES}
    assert (report["cost"]["trials"], bool(report["verdict"])) == (2, True)


QUICK = TrainingSettings(steps=2, batch=2, rate=1e-2, warmup=1)


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


def test_the_same_seed_gives_the_same_bytes(
    material: Material, start: Path, tmp_path: Path
) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        tune(
            lesson(material, seed=seed),
            dataclasses.replace(QUICK, seed=seed),
            start,
            tmp_path / name,
            print,
        )
    model = (tmp_path / "one" / "model.safetensors").read_bytes()
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == model
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != model
    before = weights(start)
    after = weights(tmp_path / "one")
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all(name.startswith("model.layers.1.") for name in changed)


def test_a_fine_tune_that_is_there_stays_unless_it_is_half_made(
    material: Material, start: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made"
    lines = list[str]()
    (tmp_path / ".made.part").mkdir()
    (tmp_path / ".made.part" / "model.safetensors").write_text("half")
    tune(lesson(material), QUICK, start, out, print)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    record = json.loads((out / RECORD).read_text())
    assert len(record["losses"]) == QUICK.steps
    tune(lesson(material), QUICK, start, out, lines.append)
    assert lines == ["smol_live: there already"]
    with pytest.raises(UserError, match="made with other settings"):
        tune(lesson(material), dataclasses.replace(QUICK, steps=3), start, out, print)
    assert json.loads((out / RECORD).read_text()) == record
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a fine-tune of this command"):
        tune(lesson(material), QUICK, start, tmp_path / "other", lines.append)
    assert len(lines) == 1  # before any training


@pytest.mark.slow
def test_a_killed_command_leaves_nothing_that_trains_on(
    start: Path, data: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "examples.smollm",
        "--base",
        str(start),
        "--bfcl",
        str(data),
        "--jobs",
        "1",
    ]
    command += [
        "--out",
        str(tmp_path / "out"),
        "--only",
        "smol_live",
        "--steps",
        "100000",
        "--batch",
        "1",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        while "step 10/" not in running.stdout.readline():
            assert running.poll() is None
        running.kill()
        # ends when the last process that holds the pipe has ended
        assert "done" not in running.stdout.read()
    assert [path.name for path in (tmp_path / "out" / "models").iterdir()] == ["base"]
