"""The paper's scripts and the benchmark of GPUs run, and print what they show."""

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
    "table3": (
        "| model | others | hellaswag | ifeval | bbh |",
        "| the paper's 8b-m1 | – | 78.92 | 51.68 | 44.80 |",
    ),
    "table5": ("| direction | SoCE of the paper |", "| irrelevance | – |"),
}
"""What the collected tables show: the paper's figures beside the run's."""


def run_script(
    script: Path, folder: Path, *words: str, **variables: str
) -> subprocess.CompletedProcess[str]:
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
def test_a_script_runs_small(script: Path, place: Path) -> None:
    before = {*place.glob("outputs/*/plan_*.json")}
    done = run_script(script, place, TINY="1")
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.findall(r"^== \w+: (\w+)$", done.stdout, re.MULTILINE) == [
        "download",
        "plan",
        "run",
        "collect",
    ]
    folder = place / "outputs" / "paper" / f"{script.stem}-tiny"
    table = (folder / "table.md").read_text()
    assert table in done.stdout
    assert "its scores compare nothing" in done.stdout
    assert "not the demo's items" not in done.stderr + done.stdout
    for row in ROWS[script.stem]:
        assert row in table
    assert (folder / "soup" / "model.safetensors").exists()
    assert len({*place.glob("outputs/*/plan_*.json")} - before) == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_models_of_a_script_are_those_of_the_experiment(script: Path) -> None:
    text = script.read_text()
    if script.stem == "table3":
        # It sources table1b.sh, which names the models.
        text += (FOLDER / "table1b.sh").read_text()
    (experiment,) = re.findall(r"^experiment=(\w+)$", text, re.MULTILINE)
    plain = yaml.safe_load((ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text())
    candidates = plain.get("pool", {}).get("candidates", [])
    given = {c["name"]: c["path"] for c in candidates if isinstance(c, dict)}
    given |= {c.rpartition("/")[2]: c for c in candidates if isinstance(c, str)}
    assert dict(re.findall(r"^    ([^=\s]+)=(\S+/\S+)$", text, re.MULTILINE)) == given


@pytest.mark.slow
def test_a_script_refuses_an_unknown_step_a_missing_run_and_an_unpublished_pool(
    tmp_path: Path,
) -> None:
    assert (
        "download, plan, run, collect" in run_script(FOLDER / "table1b.sh", tmp_path, "bake").stderr
    )
    assert "run first" in run_script(FOLDER / "table1b.sh", tmp_path, "collect", TINY="1").stderr
    unpublished = run_script(FOLDER / "table2b.sh", tmp_path, "plan")
    assert (unpublished.returncode, "POOL='[A,B,C]' names your own" in unpublished.stderr) == (
        2,
        True,
    )


def gpu_benchmark(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=variables, capture_output=True, text=True)


@pytest.mark.slow
def test_the_benchmark_of_gpus_says_in_one_line_that_there_is_none() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = gpu_benchmark()
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_the_benchmark_of_gpus_measures_all_four() -> None:
    small = ("--hidden", "64", "--vocabulary", "1000", "--rounds", "1", "--items", "24")
    done = gpu_benchmark("--device", "cpu", *small)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", done.stdout, re.MULTILINE)
    assert {name for name, _ in rows} >= {"merge=local", "merge=accelerate", "tuned_python"}
    assert [batch for name, batch in rows if name == "tuned_python"] == ["1", "8", "64"]
    assert re.search(r"^load of .*: median [\d.]+ ms$", done.stdout, re.MULTILINE)
    assert re.search(r"^search: .* for \d+ items$", done.stdout, re.MULTILINE)
