"""What can be refused before work is refused by run and plan alike, in the same words; warnings are in both."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, Outcome, pool_of

ALL = ("selector=all",)
CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "budget": (("optimiser.budget=3",), "optimiser.budget=3 "),
    "grid": ((*ALL, "optimiser=grid", "optimiser.step=0.5"), "optimiser=grid has no point for 4 ingredients"),
    "expected": (("expected={antt:50}",), "expected: candidate=antt"),
    "k": (("selector=topk", "selector.k=9"), "selector.k=9 is more than the 4 candidates"),
    "slerp": ((*ALL, "merge.method=slerp"), "exactly 2 ingredients"),
    "overrides": ((*ALL, "merge.overrides={foo.*:[0.1,0.2,0.3,0.4]}"), "matches no tensor"),
    "weights": ((*ALL, "optimiser=fixed", "optimiser.weights=[0.5,0.5]"), "optimiser.weights has 2 weights"),
    "objective": (("objective=weighted", "objective.weights={reed:1}"), "objective: category=reed"),
    "also": (("also=[hellaswag,hellaswag]",), "two entries are called 'hellaswag'"),
}
MESSAGES = [{"role": "user", "content": "hello"}]
ITEMS: dict[str, tuple[Mapping[str, Any], str]] = {
    "one category": ({"category": "red"}, "needs at least 2 categories"),
    "no chat template": ({"prompt": MESSAGES}, "chat messages need a chat template"),
}


def items_file(folder: Path, family: Path, **changes: Any) -> str:
    lines = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    (folder / "some.jsonl").write_text("".join(json.dumps({**line, **changes}) + "\n" for line in lines))
    return f"benchmark.path={folder / 'some.jsonl'}"


def answers(store: Path) -> int:
    if not store.exists():
        return 0
    return int(sqlite3.connect(store).execute("SELECT COUNT(*) FROM scores").fetchone()[0])


def both(souping: Cli, *overrides: str) -> tuple[Outcome, Outcome]:
    """(the run, its plan) of the same settings."""
    return souping(*overrides, "store.path=s.sqlite"), souping(*overrides, "store.path=p.sqlite", "plan=true")


def check_refused(souping: Cli, tmp_path: Path, needle: str, *overrides: str) -> None:
    ran, planned = both(souping, *overrides)
    ran.refused(needle)
    assert answers(tmp_path / "s.sqlite") == 0
    assert planned.code == 2
    assert needle in planned.err.split("this run cannot start here: ")[1]
    assert ran.err.splitlines()[0] in planned.err


@pytest.mark.parametrize("name", CASES)
def test_settings_are_refused_before_work(name: str, family: Path, souping: Cli, tmp_path: Path) -> None:
    overrides, needle = CASES[name]
    check_refused(souping, tmp_path, needle, *pool_of(family), *overrides)


@pytest.mark.parametrize("name", ITEMS)
def test_items_are_refused_before_work(name: str, family: Path, souping: Cli, tmp_path: Path) -> None:
    changes, needle = ITEMS[name]
    check_refused(souping, tmp_path, needle, *pool_of(family), items_file(tmp_path, family, **changes))


def test_pools_are_refused_before_work_and_the_plan_is_saved(family: Path, souping: Cli, tmp_path: Path) -> None:
    from tests.support.family import save_model

    check_refused(souping, tmp_path, "needs at least 3; there are 2", *pool_of(family, "ant", "bee"))
    save_model(tmp_path / "large", 9, hidden_size=32)
    pool = [f"pool.candidates=[{family / 'ant'},{tmp_path / 'large'}]", *pool_of(family)[1:]]
    planned = souping(*pool, "selector=all", "plan=true", "hydra.run.dir=planned")
    assert planned.code == 2
    assert "this run cannot start here" in planned.err
    assert not json.loads((tmp_path / "planned" / "plan.json").read_text())["can_go_on"]
    assert "# Plan of fam" in (tmp_path / "planned" / "plan.md").read_text()


def test_an_absent_server_and_an_unknown_handler(family: Path, souping: Cli, tmp_path: Path, bfcl: object) -> None:
    pool = [word for word in pool_of(family) if word.startswith("pool.")]
    call = [*pool, "evaluator=bfcl", "evaluator.categories=[simple_java,simple_javascript]", "selector=all"]
    for more, needle in (
        (["server.url=http://127.0.0.1:9"], "server.url=http://127.0.0.1:9 does not answer"),
        (["server=transformers", "evaluator.handler=no-such-model"], "no-such-model"),
    ):
        ran, planned = both(souping, *call, *more)
        ran.refused(needle)
        assert answers(tmp_path / "s.sqlite") == 0
        assert needle in planned.out + planned.err
        assert "this run cannot start here" in planned.out + planned.err


def test_a_category_that_all_fail_is_a_warning_of_both(family: Path, souping: Cli, tmp_path: Path) -> None:
    path = tmp_path / "hard.jsonl"
    lines = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    hard = [{**line, "answer": "never said"} if line["category"] == "red" else line for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in hard))
    call = [*pool_of(family), f"benchmark.path={path}", "selector=all", "optimiser=uniform", "store.path=s.sqlite"]
    warning = "category red: every model fails all of it"
    ran = souping(*call, "stop_after=search")
    assert ran.code == 0, ran.err
    assert warning in ran.out + ran.err
    planned = souping(*call, "plan=true", "hydra.run.dir=planned")
    assert planned.code == 0, planned.err
    assert any(warning in note for note in json.loads((tmp_path / "planned" / "plan.json").read_text())["notes"])
