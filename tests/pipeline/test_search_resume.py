"""Searches that ask parts of the fold go on: killed at any time, with a larger budget, and from the store alone."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import Cli, pool_of
from tests.pipeline.test_run import killed_at, report_of, timeless


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


@pytest.mark.parametrize("rows", [20, 150, 420])
@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(family: Path, souping: Cli, tmp_path: Path, rows: int) -> None:
    words = call(family, "optimiser.budget=500")
    kept = killed_at(rows, words, tmp_path)
    assert souping(*words, "hydra.run.dir=outputs/resumed").code == 0
    assert souping(*words, "store.path=fresh.sqlite", "hydra.run.dir=outputs/fresh").code == 0
    resumed, fresh = (report_of(tmp_path / "outputs" / name) for name in ("resumed", "fresh"))
    named = json.dumps(timeless(resumed)).replace("outputs/resumed", "outputs/fresh")  # in a command
    assert json.loads(named) == timeless(fresh)
    assert twice(tmp_path / "outputs/store.sqlite") == 0
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
