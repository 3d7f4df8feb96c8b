"""Runs one after another on one store: what counts as a look, what is left out, what is asked anew."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, pool_of

FIXED = ("selector=all", "optimiser=fixed", "optimiser.weights=[0.5,0.2,0.3]")
Change = Callable[[int, dict[str, Any]], Mapping[str, Any]]


@pytest.fixture
def run(family: Path, souping: Cli, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run once and return the report; items may be written anew under another name."""
    count = iter(range(100))

    def one(*arguments: str, items: Path | None = None) -> dict[str, Any]:
        place = f"outputs/{next(count)}"
        base = [a for a in pool_of(family, "ant", "bee", "cat") if items is None or not a.startswith("benchmark.")]
        own = [] if items is None else [f"benchmark.path={items}"]
        done = souping(*base, *own, *FIXED, *arguments, f"hydra.run.dir={place}")
        assert done.code == 0, done.err
        report: dict[str, Any] = json.loads((tmp_path / place / "report.json").read_text())
        return report

    return one


def rewritten(family: Path, target: Path, change: Change) -> Path:
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    target.write_text("\n".join(json.dumps(change(n, row)) for n, row in enumerate(rows)))
    return target


@pytest.mark.slow
def test_a_recipe_is_not_reported_on_what_an_earlier_run_chose_it_on(
    run: Callable[..., dict[str, Any]], family: Path, tmp_path: Path
) -> None:
    groups = rewritten(family, tmp_path / "b.jsonl", lambda n, row: {**row, "group": f"renamed {row.get('group', n)}"})
    whole = run()
    assert "left_out" not in whole["folds"]
    again = run(items=groups)
    assert again["folds"]["left_out"] > 0
    assert again["rows"][-1]["objective"]["n"] == again["folds"]["report"]
    assert any("report items are left out" in warning for warning in again["warnings"])
    other = run("optimiser.weights=[0.2,0.2,0.6]", items=groups)  # whatever the weights
    assert other["folds"]["report"] == again["folds"]["report"]


@pytest.mark.slow
def test_sampled_answers_are_kept_one_by_one(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    sampled = ("evaluator.temperature=0.8", "evaluator.aggregate=pass")
    first = run(*sampled, "evaluator.samples=2")
    more = run(*sampled, "evaluator.samples=4")
    assert more["cost"]["evaluated_items"] == first["cost"]["evaluated_items"]
    assert more["verdict"]["opened"] == 3  # the same soup, of two that were shown
    assert run(*sampled, "evaluator.samples=3")["cost"]["evaluated_items"] == 0
    means = [report["rows"][-1]["objective"]["mean"] for report in (first, more)]
    assert means[0] <= means[1]  # more tries, more passes
    with closing(sqlite3.connect(tmp_path / "outputs" / "store.sqlite")) as db:
        assert db.execute("SELECT DISTINCT replicate FROM scores ORDER BY 1").fetchall() == [(0,), (1,), (2,), (3,)]


@pytest.mark.slow
def test_a_greedy_replicate_shows_flips_and_changes_no_first_answer(run: Callable[..., dict[str, Any]]) -> None:
    once, twice = run(), run("evaluator.replicates=2")
    assert twice["cost"]["evaluated_items"] == once["cost"]["evaluated_items"]
    assert once["rows"][-1]["objective"]["mean"] == pytest.approx(twice["rows"][-1]["objective"]["mean"], abs=0.05)


def test_the_order_of_the_pool_changes_no_answer(family: Path, souping: Cli, tmp_path: Path) -> None:
    """The first candidate's generation_config used to decode every model."""
    shutil.copytree(family / "ant", tmp_path / "ant")
    config = tmp_path / "ant" / "generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "repetition_penalty": 1.9}))
    base = [a for a in pool_of(family) if not a.startswith("pool.")]
    rows = []
    for number, order in enumerate(((tmp_path / "ant", family / "bee"), (family / "bee", tmp_path / "ant"))):
        pool = f"pool.candidates=[{order[0]},{order[1]}]"
        search = ("selector=all", "optimiser=uniform", "stop_after=search", f"store.path={number}.sqlite")
        done = souping(*base, pool, *search)
        assert done.code == 0, done.err
        assert "ant: its generation_config sets repetition_penalty=1.9; not used" in done.out
        rows.append(answers(tmp_path / f"{number}.sqlite"))
    common = rows[0].keys() & rows[1].keys()
    assert len(common) > 30
    assert all(rows[0][key] == rows[1][key] for key in common)


def answers(store: Path) -> dict[tuple[str, str], str]:
    query = (
        "SELECT soups.fingerprint, items.fingerprint, output FROM scores "
        "JOIN soups ON soups.id = soup JOIN items ON items.id = item"
    )
    with closing(sqlite3.connect(store)) as db:
        return {(soup, item): output for soup, item, output in db.execute(query)}
