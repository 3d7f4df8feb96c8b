"""Dry runs: few items, none of the report fold's, and marked wherever their numbers stand."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from souping.core.types import Item
from souping.evaluate.benchmark import Benchmark
from souping.evaluate.folds import limit_folds, split_folds
from tests.conftest import Cli, make_items, pool_of

FIXED = ("selector=all", "optimiser=fixed", "optimiser.weights=[0.5,0.5]")


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 10**6])
def test_no_item_of_the_report_fold_is_touched(two: bool, limit: int) -> None:
    whole = split_folds(make_items(60), two=two)
    dry = limit_folds(whole, limit)
    hidden = {item.id for item in whole.items["report"]}
    for fold, items in dry.items.items():
        assert not hidden & {item.id for item in items}
        assert all(count <= limit for count in Counter(item.category for item in items).values())
        assert {item.category for item in items} == ({"w", "x"} if fold != "select" or not two else set())
    assert "the report fold stays closed" in dry.notes[0]


def test_its_report_has_groups_of_its_own_while_there_are_some() -> None:
    dry = limit_folds(split_folds(make_items(100)), 3)
    taken = {item.group for fold in ("select", "search") for item in dry.items[fold]}
    assert not taken & {item.group for item in dry.items["report"]}
    assert "very items" not in dry.notes[0]


def test_a_category_without_more_is_reported_on_what_it_searched_and_that_is_said() -> None:
    items = [Item(id=str(n), category="c", group=str(n), prompt=f"p{n}", answer="a") for n in range(8)]
    dry = limit_folds(split_folds(items), 10)
    assert dry.items["report"] == dry.items["search"]
    assert "(of c: the very items of the search)" in dry.notes[0]


@pytest.fixture
def arguments(family: Path) -> list[str]:
    return [*pool_of(family, "ant", "bee"), *FIXED, "limit=2", "hydra.run.dir=run"]


def test_a_dry_run_is_marked_everywhere_and_looks_at_nothing(
    family: Path, arguments: list[str], souping: Cli, tmp_path: Path
) -> None:
    done = souping(*arguments, f"also=[{family / 'items.jsonl'}]")
    assert done.code == 0, done.err
    assert "limit=2: a dry run" in done.out + done.err
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert (report["limit"], report["verdict"]["claim"], report["folds"]) == (
        2, "dry_run", {"select": 6, "search": 6, "report": 6},
    )  # fmt: skip
    assert report["also"][0]["items"] == 6
    assert any("limit=2" in warning for warning in report["warnings"])
    assert json.loads((tmp_path / "run/selection.json").read_text())["limit"] == 2
    page, card = ((tmp_path / "run" / name).read_text() for name in ("report.html", "soup/README.md"))
    assert "dry run, limit=2" in page
    assert "%" not in card.split("---", 2)[2].split("## Usage")[0].split("## Result")[1]
    with closing(sqlite3.connect(tmp_path / "outputs/store.sqlite")) as db:
        assert db.execute("SELECT COUNT(*) FROM looks").fetchone() == (0,)


def test_the_report_fold_is_never_asked_and_a_run_after_it_is_the_first_look(
    family: Path, arguments: list[str], souping: Cli, tmp_path: Path
) -> None:
    assert souping(*arguments).code == 0
    with closing(sqlite3.connect(tmp_path / "outputs/store.sqlite")) as db:
        asked = {name for (name,) in db.execute("SELECT name FROM items")}
    hidden = split_folds(Benchmark(path=str(family / "items.jsonl")).items()).items["report"]
    assert asked
    assert not {item.id for item in hidden} & asked
    assert souping(*pool_of(family, "ant", "bee"), *FIXED, "hydra.run.dir=whole").code == 0
    report = json.loads((tmp_path / "whole/report.json").read_text())
    assert report["verdict"]["opened"] == 1
    assert "limit" not in report
    assert "left_out" not in report["folds"]


@pytest.mark.slow
def test_a_sweep_has_a_column(family: Path, souping: Cli, tmp_path: Path) -> None:
    base = [*pool_of(family, "ant", "bee"), "selector=all", "optimiser=uniform", "stop_after=search"]
    done = souping("-m", *base, "limit=2,3", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / "sweep/sweep.csv").open()))
    assert [row["limit"] for row in rows] == ["2", "3"]
    assert "(dry run, limit=3)" in done.out


def test_a_plan_counts_the_few(arguments: list[str], souping: Cli, tmp_path: Path) -> None:
    assert souping(*arguments, "plan=true").code == 0
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert plan["folds"] == {"select": 6, "search": 6, "report": 6}
    assert plan["power"] is None


def test_what_a_dry_run_cannot_be_is_refused(family: Path, arguments: list[str], souping: Cli) -> None:
    souping(*arguments, "upload=me/soup").refused("limit=2 is a dry run", "leave upload out")
    souping("+experiment=merge", *arguments[:1], "optimiser.weights=[0.5,0.5]", "limit=2").refused("leave it out")
    souping(*arguments, "limit=0").refused("limit=0 must be")


@pytest.mark.slow
def test_excluded_categories_are_not_used_and_dropped_ones_stay(family: Path, souping: Cli, tmp_path: Path) -> None:
    base = [*pool_of(family), "selector.threshold=1.0", "limit=5", "optimiser=uniform", "hydra.run.dir=run"]
    done = souping(*base, "benchmark.exclude=[red]", "selector=topk", "selector.drop=[blue]", "selector.k=2")
    assert done.code == 2  # threshold is no key of topk
    base.remove("selector.threshold=1.0")
    done = souping(*base, "benchmark.exclude=[red]", "selector=topk", "selector.drop=[blue]", "selector.k=2")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["objective"]["coefficients"] == {"green": 0.5, "blue": 0.5}
    souping(*base, "benchmark.exclude=[rad]").refused("benchmark.exclude=rad", "did you mean red?")
    souping(*base, "selector=topk", "selector.drop=[blu]").refused("selector.drop", "did you mean blue?")
