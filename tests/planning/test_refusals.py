"""What can be refused before work is refused by run and plan alike, in the same words; what is warned of, by both."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cli, Outcome, pool_of

Overrides = Callable[[Path, Path], list[str]]
"""overrides(family, an empty folder)"""


def items_file(folder: Path, family: Path, keep: Callable[[dict[str, object]], bool], **changes: object) -> str:
    lines = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    path = folder / "some.jsonl"
    path.write_text("".join(json.dumps({**line, **changes}) + "\n" for line in lines if keep(line)))
    return f"benchmark.path={path}"


def two_candidates(family: Path, folder: Path) -> list[str]:
    return pool_of(family, "ant", "bee")


def one_category(family: Path, folder: Path) -> list[str]:
    return [*pool_of(family), items_file(folder, family, lambda line: line["category"] == "red")]


def too_few_items(family: Path, folder: Path) -> list[str]:
    def keep(line: dict[str, object]) -> bool:
        return line["category"] != "blue" or str(line["id"]).endswith("-0")

    return [*pool_of(family), items_file(folder, family, keep)]


def no_chat_template(family: Path, folder: Path) -> list[str]:
    messages = [{"role": "user", "content": "hello"}]
    return [*pool_of(family), items_file(folder, family, lambda line: True, prompt=messages)]


def small_budget(family: Path, folder: Path) -> list[str]:
    return [*pool_of(family), "optimiser.budget=3"]


def unknown_expected(family: Path, folder: Path) -> list[str]:
    return [*pool_of(family), "expected={antt:50}"]


def more_than_there_are(family: Path, folder: Path) -> list[str]:
    return [*pool_of(family), "selector=topk", "selector.k=9"]


def unknown_category(family: Path, folder: Path) -> list[str]:
    return [*pool_of(family), "objective=weighted", "objective.weights={reed:1}"]


def slerp_of_four(family: Path, folder: Path) -> list[str]:
    return [*pool_of(family), "selector=all", "merge.method=slerp"]


def overrides_of_nothing(family: Path, folder: Path) -> list[str]:
    return [*pool_of(family), "selector=all", "merge.overrides={foo.*:[0.1,0.2,0.3,0.4]}"]


def two_weights_for_four(family: Path, folder: Path) -> list[str]:
    return [*pool_of(family), "selector=all", "optimiser=fixed", "optimiser.weights=[0.5,0.5]"]


def coarse_grid(family: Path, folder: Path) -> list[str]:
    return [*pool_of(family), "selector=all", "optimiser=grid", "optimiser.step=0.5"]


CASES: dict[str, tuple[Overrides, str]] = {
    "two candidates": (two_candidates, "needs at least 3; there are 2"),
    "one category": (one_category, "needs at least 2 categories"),
    "too few items": (too_few_items, "category 'blue' has no items in fold"),
    "no chat template": (no_chat_template, "chat messages need a chat template"),
    "budget": (small_budget, "optimiser.budget=3 "),
    "grid": (coarse_grid, "optimiser=grid has no point for 4 ingredients"),
    "expected": (unknown_expected, "expected: candidate=antt"),
    "k": (more_than_there_are, "selector.k=9 is more than the 4 candidates"),
    "slerp": (slerp_of_four, "exactly 2 ingredients"),
    "overrides": (overrides_of_nothing, "matches no tensor"),
    "weights": (two_weights_for_four, "optimiser.weights has 2 weights"),
    "objective": (unknown_category, "objective: category=reed"),
}


def answers(store: Path) -> int:
    if not store.exists():
        return 0
    return int(sqlite3.connect(store).execute("SELECT COUNT(*) FROM scores").fetchone()[0])


def both(souping: Cli, *overrides: str) -> tuple[Outcome, Outcome]:
    """(the run, its plan) of the same settings."""
    return souping(*overrides, "store.path=s.sqlite"), souping(*overrides, "store.path=p.sqlite", "plan=true")


@pytest.mark.parametrize("name", CASES)
def test_refused_before_work(name: str, family: Path, souping: Cli, tmp_path: Path) -> None:
    overrides, needle = CASES[name]
    ran, planned = both(souping, *overrides(family, tmp_path))
    ran.refused(needle)
    assert answers(tmp_path / "s.sqlite") == 0
    assert planned.code == 2
    last = [line for line in planned.err.splitlines() if "this run cannot go on here: " in line]
    assert needle in planned.err[planned.err.index(last[0]) :]
    assert ran.err.splitlines()[0] in planned.err


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
        assert "this run cannot go on here" in planned.out + planned.err


def test_a_category_that_all_fail_is_warned_of_by_both(family: Path, souping: Cli, tmp_path: Path) -> None:
    path = tmp_path / "hard.jsonl"
    lines = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    hard = [{**line, "answer": "never said"} if line["category"] == "red" else line for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in hard))
    call = [*pool_of(family), f"benchmark.path={path}", "selector=all", "optimiser.trials=5", "store.path=s.sqlite"]
    warning = "category red: every model fails all of it"
    ran = souping(*call, "stop_after=search")
    assert ran.code == 0, ran.err
    assert warning in ran.out + ran.err
    planned = souping(*call, "plan=true", "hydra.run.dir=planned")
    assert planned.code == 0, planned.err
    assert any(warning in note for note in json.loads((tmp_path / "planned" / "plan.json").read_text())["notes"])


def test_a_run_performs_the_stages_that_its_plan_counts(family: Path, souping: Cli, tmp_path: Path) -> None:
    call = [
        *pool_of(family),
        "selector=topk",
        "selector.k=2",
        "store.path=s.sqlite",
        "expected={ant:{red:50}}",
        "gate=warn",
    ]
    assert souping(*call, "plan=true", "hydra.run.dir=planned").code == 0
    names = [stage["name"] for stage in json.loads((tmp_path / "planned" / "plan.json").read_text())["stages"]]
    ran = souping(*call)
    assert ran.code == 0, ran.err
    told = [line for line in (ran.out + ran.err).splitlines() if line.startswith(tuple(names))]
    assert list(dict.fromkeys(next(n for n in names if line.startswith(n)) for line in told)) == names
