"""Run, plan and check refuse the same before any work; check=true answers a few items and stores none of them."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.evaluate.benchmark import Benchmark, split_folds
from souping.pipeline.checks import Gpu
from tests.conftest import Cli, Outcome, pool_of
from tests.support.evaluators import Sink


def table(tmp_path: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((tmp_path / "run" / "check.json").read_text())
    return made


def dump(store: Path) -> list[str]:
    with closing(sqlite3.connect(store)) as db:
        return list(db.iterdump())


def test_one_candidate_answers_five_items_per_category_outside_the_report_fold(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from souping.evaluate.engines import transformers as engines

    loaded: list[Path] = []
    load = engines.load_module
    monkeypatch.setattr(
        engines, "load_module", lambda folder, settings: loaded.append(folder) or load(folder, settings)
    )
    done = souping("check", *pool_of(family), "selector=topk", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert len(loaded) == 1
    for category in ("red", "green", "blue"):
        assert f"({category}, fold select)" in done.out
    for word in ("prompt: red ", "reference: ", "ant: ", "prompt tokens", "answer tokens", "items/s"):
        assert word in done.out
    assert "answers were cut off or are missing" in done.out
    assert "repeat the command without `check`" in done.out.splitlines()[-1]
    made = table(tmp_path)
    assert made["items_per_second"] > 0
    assert made["seconds"]["evaluate"][1] >= made["evaluations"]["todo"][1] / made["items_per_second"] * 0.999
    for sample in made["samples"]:
        assert sample["models"]["ant"].keys() >= {"resps", "score", "outcome", "tokens", "prompt_tokens"}
    folds = split_folds(Benchmark(path=str(family / "items.jsonl")).items()).items
    wanted = [i.id for c in ("red", "green", "blue") for i in [i for i in folds["select"] if i.category == c][:5]]
    assert sorted(sample["item"] for sample in made["samples"]) == sorted(wanted)
    assert not (tmp_path / "outputs").exists()


def test_the_store_of_a_run_is_not_touched(family: Path, souping: Cli, tmp_path: Path) -> None:
    base = [*pool_of(family, "ant", "bee"), "selector=all", "optimiser=uniform", "stop_after=search"]
    done = souping(*base, "hydra.run.dir=whole")
    assert done.code == 0, done.err
    before = dump(tmp_path / "outputs/store.sqlite")
    assert souping(*base, "check=true", "hydra.run.dir=again").code == 0
    assert dump(tmp_path / "outputs/store.sqlite") == before


def test_what_a_run_would_refuse_it_refuses(family: Path, souping: Cli, tmp_path: Path) -> None:
    souping("check", *pool_of(family), "merge.carry=cow").refused("merge.carry=cow", "this run cannot start here")
    souping("check", *pool_of(family), "optimiser=fixed", "optimiser.weights=[1]", "selector=all").refused("weights")
    wrong = souping("check", *pool_of(family), "evaluator.engine=vllm")
    wrong.refused("evaluator.engine=vllm is a choice of the group engine: write engine=vllm")
    pool = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    souping("check", "+experiment=merge", pool, "optimiser.weights=[0.5,0.5]", "out=soup").refused("use plan=true")
    assert not (tmp_path / "soup").exists()


def test_a_scorer_of_the_users_is_called(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "half_scorer.py").write_text("def half(item, output):\n    return 0.5\n")
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({**row, "scorer": "half"}) + "\n" for row in rows))
    own = [word for word in pool_of(family) if not word.startswith("benchmark.")]
    own += ["benchmark.path=items.jsonl", "benchmark.scorers={half: half_scorer.half}", "selector=topk"]
    assert souping("check", *own, "hydra.run.dir=run").code == 0
    assert {sample["models"]["ant"]["score"] for sample in table(tmp_path)["samples"]} == {0.5}


def test_the_start_of_vllm_is_no_answering(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the engine; the whole command before and after it."""
    started: list[Sink] = []
    clock = [0.0]
    monkeypatch.setattr("souping.plan.planner.time", SimpleNamespace(monotonic=lambda: time.monotonic() + clock[0]))

    def start(folder: Path, settings: dict[str, Any], transfer: bool) -> Sink:
        clock[0] += 1e6
        started.append(Sink(folder))
        return started[-1]

    monkeypatch.setattr("souping.evaluate.engines.vllm.Vllm", start)
    monkeypatch.setattr("souping.evaluate.engines.vllm.find_spec", lambda name: name)
    monkeypatch.setattr("souping.pipeline.checks.gpus", lambda: (Gpu(name="G", total=2**34),))
    done = souping("check", *pool_of(family), "selector=topk", "engine=vllm", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert [sink.closed for sink in started] == [True]
    assert table(tmp_path)["items_per_second"] > 1e-3  # the time of starting would make it less


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
