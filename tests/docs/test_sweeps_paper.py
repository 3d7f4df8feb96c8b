"""sweeps/paper: every table's script goes through its steps on the embedded models."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "sweeps" / "paper"
SCRIPTS = sorted(FOLDER.glob("table*.sh"))
ROWS = {
    "table1a": ("| soup | 80.68 |", "| xLAM-2-70b-fc-r | 78.56 |", "| uniform_all | 68.33 |"),
    "table1b": ("| soup | 76.50 |", "| ToolACE-2-8B | 68.73 |", "| uniform_selected | 74.01 |"),
    "table2a": ("| soup | 51.70 |", "| MetaMathOctopus-7B | 41.90 |"),
    "table2b": ("| soup | 28.00 |", "| uniform_selected | 27.85 |"),
    "table3": ("| model | others | hellaswag | ifeval | bbh |", "| the paper's 8b-m1 | – | 78.92 | 51.68 | 44.80 |"),
    "table5": ("| direction | SoCE of the paper |", "| irrelevance | – |"),
}
"""What the collected tables show: the paper's figures beside the run's."""


def run(script: Path, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    own = {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1", **variables}
    clean = {key: value for key, value in os.environ.items() if key not in ("TINY", "POOL", "OUT")}
    command = ["bash", str(script), *words]
    return subprocess.run(command, cwd=folder, env={**clean, **own}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all scripts: table 3 finds the answers of table 1b in the store."""
    return tmp_path_factory.mktemp("paper")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.slow
def test_it_runs_small(script: Path, place: Path) -> None:
    done = run(script, place, TINY="1")
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.findall(r"^== \w+: (\w+)$", done.stdout, re.MULTILINE) == ["download", "plan", "run", "collect"]
    folder = place / "outputs" / "paper" / f"{script.stem}-tiny"
    table = (folder / "table.md").read_text()
    assert table in done.stdout
    assert "its scores compare nothing" in done.stdout
    assert "not the pantry's items" not in done.stderr + done.stdout
    for row in ROWS[script.stem]:
        assert row in table
    assert (folder / "soup" / "model.safetensors").exists()
    assert (folder.with_name(f"{folder.name}-plan") / "plan.md").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_its_models_are_the_experiments(script: Path) -> None:
    text = script.read_text() + ((FOLDER / "table1b.sh").read_text() if script.stem == "table3" else "")
    (experiment,) = re.findall(r"^experiment=(\w+)$", text, re.MULTILINE)
    plain = yaml.safe_load((ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text())
    candidates = plain.get("pool", {}).get("candidates", [])
    given = {c["name"]: c["path"] for c in candidates if isinstance(c, dict)}
    given |= {c.rpartition("/")[2]: c for c in candidates if isinstance(c, str)}
    assert dict(re.findall(r"^    ([^=\s]+)=(\S+/\S+)$", text, re.MULTILINE)) == given


def test_what_was_never_published_is_asked_for(tmp_path: Path) -> None:
    done = run(FOLDER / "table2b.sh", tmp_path, "plan")
    assert done.returncode == 2
    assert "POOL='[A,B,C]' names your own" in done.stderr


def test_steps_are_named_and_collecting_needs_a_run(tmp_path: Path) -> None:
    assert "download, plan, run, collect" in run(FOLDER / "table1b.sh", tmp_path, "cook").stderr
    done = run(FOLDER / "table1b.sh", tmp_path, "collect", TINY="1")
    assert done.returncode == 2
    assert "run first" in done.stderr
