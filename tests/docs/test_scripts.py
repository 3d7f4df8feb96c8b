"""The paper's scripts and the notebooks run, and print what they show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, Cli
from tests.support.scripts import script

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
    text = script.read_text() + (
        (FOLDER / "table1b.sh").read_text() if script.stem == "table3" else ""
    )
    (experiment,) = re.findall(r"^experiment=(\w+)$", text, re.MULTILINE)
    plain = yaml.safe_load((ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text())
    candidates = plain.get("pool", {}).get("candidates", [])
    given = {c["name"]: c["path"] for c in candidates if isinstance(c, dict)}
    given |= {c.rpartition("/")[2]: c for c in candidates if isinstance(c, str)}
    assert dict(re.findall(r"^    ([^=\s]+)=(\S+/\S+)$", text, re.MULTILINE)) == given


@pytest.mark.slow
def test_what_a_script_refuses(tmp_path: Path) -> None:
    assert (
        "download, plan, run, collect" in run_script(FOLDER / "table1b.sh", tmp_path, "bake").stderr
    )
    assert "run first" in run_script(FOLDER / "table1b.sh", tmp_path, "collect", TINY="1").stderr
    unpublished = run_script(FOLDER / "table2b.sh", tmp_path, "plan")
    assert (unpublished.returncode, "POOL='[A,B,C]' names your own" in unpublished.stderr) == (
        2,
        True,
    )


nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
NOTEBOOKS = ("tour", "own_models", "paper", "reading")


def kept(name: str) -> Any:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(cell: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def check(name: str, folder: Path, before: list[Any], after: list[Any]) -> None:
    """Published figures are as they are kept; a run is whole, and its soup came out again from the recipe."""
    count = {"paper": len(after), "tour": 5}.get(name, 0)
    assert [text(cell) for cell in after[:count]] == [text(cell) for cell in before[:count]]
    if name == "tour":
        (run,) = (folder / "tmp").glob("*/run")
        assert json.loads((run / "report.json").read_text())["verdict"]["sentence"] in text(
            after[8]
        )
        first, again = re.findall(r"^(?:soup|again) +([0-9a-f]{16})$", text(after[9]), re.MULTILINE)
        assert first == again
    if name == "reading":
        (line,) = re.findall(r"sum ([\d.]+) = v\(all\) - baseline ([\d.]+)", text(after[2]))
        assert line[0] == line[1]
    if name == "own_models":
        assert not any(cell.outputs or cell.source.startswith(("!", "%")) for cell in before)
        assert "model.safetensors" in str(after[-1].outputs)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "paper" else pytest.mark.slow) for n in NOTEBOOKS]
)
def test_a_notebook_runs_and_prints_what_it_carries(name: str, tmp_path: Path) -> None:
    before = cells(kept(name))
    notebook = kept(name)
    for cell in cells(notebook):
        cell.outputs = []
    after = cells(script(ROOT / "notebooks" / "refresh.py").execute(notebook, tmp_path))
    assert list((tmp_path / "start").iterdir()) == []
    if name != "own_models":
        assert [pictures(cell) for cell in after] == [pictures(cell) for cell in before]
    check(name, tmp_path, before, after)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_small_and_names_no_machine(name: str) -> None:
    notebook = kept(name)
    raw = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
    assert len(raw) < 250_000
    plain = re.sub(r'"image/png": "[^"]*"', "", raw)
    assert [
        trace
        for trace in ("/" + "work", "/tmp", "/home", "/root", "site-packages", "../")
        if trace in plain
    ] == []
    assert not any("execution_count" in cell and cell.execution_count for cell in cells(notebook))
    assert not any(
        output.output_type == "error" for cell in cells(notebook) for output in cell.outputs
    )
    assert all(cell.outputs for cell in cells(notebook)) == (name != "own_models")
    if name == "tour":
        digest = script(ROOT / "notebooks" / "refresh.py").models_digest()
        assert notebook.metadata["souping"]["models"] == digest, "run: python notebooks/refresh.py"


@pytest.mark.slow
def test_the_example_of_compare_is_what_its_command_prints(souping: Cli, tmp_path: Path) -> None:
    words = ("optimiser=uniform", "analysis=[]", "hydra.run.dir=run")
    souping("+experiment=bfcl", *words).ok()
    example = script(ROOT / "docs" / "make_compare_example.py").example(tmp_path / "run")
    assert f"```text\n{example}```" in (ROOT / "docs" / "compare.md").read_text()


def gpu_benchmark(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *words]
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
    small = ("--hidden", "64", "--vocabulary", "1000", "--rounds", "1", "--items", "8")
    done = gpu_benchmark("--device", "cpu", *small)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", done.stdout, re.MULTILINE)
    assert {name for name, _ in rows} >= {"merge=local", "merge=accelerate", "tuned_python"}
    assert [batch for name, batch in rows if name == "tuned_python"] == ["1", "8", "64"]
    assert re.search(r"^load of .*: median [\d.]+ ms$", done.stdout, re.MULTILINE)
    assert re.search(r"^search: .* for \d+ items$", done.stdout, re.MULTILINE)
