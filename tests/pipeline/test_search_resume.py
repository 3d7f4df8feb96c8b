"""Searches that ask parts of the fold go on: killed at any time, with a larger budget, and from the store alone."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli, pool_of
from tests.pipeline.test_run import report_of, rows_in


def call(family: Path, *more: str) -> list[str]:
    quick = ["selector=topk", "selector.k=3", "optimiser=adaptive", "optimiser.stop=never", "evaluator.batch_size=8"]
    return [*pool_of(family), *quick, *more]


def twice(store: Path) -> int:
    """Answers that one soup gave to one item in one way of asking and one block more than once."""
    query = (
        "SELECT COUNT(*) FROM (SELECT 1 FROM answers GROUP BY soup, evaluator, item, block, replicate "
        "HAVING COUNT(*) > 1)"
    )
    with closing(sqlite3.connect(store)) as db:
        return int(db.execute(query).fetchone()[0])


@pytest.mark.parametrize("rows", [150, 420])
@pytest.mark.slow
def test_a_killed_search_ends_as_one_that_was_not(family: Path, souping: Cli, tmp_path: Path, rows: int) -> None:
    words = call(family, "optimiser.budget=500")
    victim = subprocess.Popen(
        [sys.executable, "-m", "souping", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    store = tmp_path / "outputs/store.sqlite"
    while victim.poll() is None and rows_in(store) < rows:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    kept = rows_in(store)
    assert souping(*words, "hydra.run.dir=resumed").code == 0
    assert souping(*words, "store.path=fresh.sqlite", "hydra.run.dir=fresh").code == 0
    resumed, fresh = report_of(tmp_path / "resumed"), report_of(tmp_path / "fresh")
    assert resumed["recipe"] == fresh["recipe"]
    assert resumed["rows"] == fresh["rows"]
    assert twice(store) == 0
    assert fresh["cost"]["evaluated_items"] - resumed["cost"]["evaluated_items"] == kept


@pytest.mark.slow
def test_a_larger_budget_goes_on_and_a_repetition_asks_nothing(family: Path, souping: Cli, tmp_path: Path) -> None:
    for name, budget in (("small", 300), ("large", 600), ("again", 600)):
        done = souping(*call(family, f"optimiser.budget={budget}"), f"hydra.run.dir={name}")
        assert done.code == 0, done.err
    small, large, again = (report_of(tmp_path / name)["cost"] for name in ("small", "large", "again"))
    assert small["search"]["items"] <= 300 < large["search"]["items"] <= 600
    assert large["search"]["evaluated"] < large["search"]["items"]
    assert again["evaluated_items"] == 0
    assert again["search"]["items"] == large["search"]["items"]
    assert (tmp_path / "again/trials.csv").read_text().count("\n") == (tmp_path / "large/trials.csv").read_text().count(
        "\n"
    )
