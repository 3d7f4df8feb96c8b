"""`+experiment=smollm_tools`: it composes, runs small on stand-ins, and a killed run continues."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from examples.smollm.data import FILES, gather, read_questions, spare, write_tasks
from examples.smollm.train import SLICES
from tests.conftest import ROOT, Cli
from tests.support import smollm_kit

pytest.importorskip("lm_eval")
A_CATEGORY = 8
EXPERIMENT = ["--config-dir", str(ROOT / "examples" / "smollm"), "+experiment=smollm_tools"]
QUICK = [*EXPERIMENT, "optimiser=grid", "optimiser.trials=2", "selector=all", "evaluator.threads=1"]
"""Correlations of random models over three items a category are a matter of chance: all are ingredients."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `python -m examples.smollm --out outputs/smollm` leaves it, with tiny models."""
    folder = tmp_path_factory.mktemp("smollm") / "outputs" / "smollm"
    data = smollm_kit.write(folder / "bfcl")
    material = gather(read_questions(data), spare(data))
    asked = material.asked("test")
    few = [item for c in FILES for item in [i for i in asked if i.category == c][:A_CATEGORY]]
    write_tasks(few, folder / "tasks")
    for seed, name in enumerate(("base", *SLICES)):
        smollm_kit.model(folder / "models" / name, seed)
    return folder.parents[1]


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "smollm").symlink_to(made / "outputs" / "smollm")
    return tmp_path


def report_of(where: Path) -> dict[str, Any]:
    path = sorted(where.glob("outputs/smollm_tools/*/report.json"))[-1]
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def evaluated(store: Path) -> int:
    if not store.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
            count: int = connection.execute("select count(*) from scores").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
    return count


@pytest.mark.slow
def test_it_runs_small_from_selection_to_report(here: Path, souping: Cli) -> None:
    done = souping(*QUICK)
    assert done.code == 0, done.err
    report = report_of(here)
    assert report["experiment"] == "smollm_tools"
    assert set(report["objective"]["coefficients"]) == set(FILES)
    assert set(report["selection"]["candidates"]) == {"base", *SLICES}
    assert report["cost"]["trials"] == 2
    assert report["verdict"]


def test_without_the_script_the_run_says_what_is_missing(souping: Cli) -> None:
    souping(*EXPERIMENT).refused("outputs/smollm")


def test_a_replaced_optimiser_keeps_what_it_leaves_open(souping: Cli) -> None:
    job = souping(*EXPERIMENT, "optimiser=grid", "--cfg", "job", "--package", "optimiser")
    assert "trials: 12" in job.out


@pytest.mark.slow
def test_a_killed_run_goes_on(here: Path) -> None:
    command = [sys.executable, "-m", "souping", *QUICK]
    running = subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = here / "outputs" / "store.sqlite"
    while running.poll() is None and not evaluated(store):
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    kept = evaluated(store)
    assert kept > 0
    subprocess.run(command, cwd=here, check=True, capture_output=True)
    cost = report_of(here)["cost"]
    assert cost["reused_items"] >= kept
    assert cost["evaluated_items"] == evaluated(store) - kept
