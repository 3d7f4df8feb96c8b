"""check=true: the plan's checks, then a few answers of one candidate, of which the store keeps nothing."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.evaluate.benchmark import Benchmark
from souping.evaluate.folds import split_folds
from souping.pipeline.requirements import Gpu
from tests.conftest import Cli, pool_of
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
    from souping.evaluate import engines

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


@pytest.mark.slow
def test_lm_eval_answers_by_its_own_prompts(family: Path, souping: Cli, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from tests.support.lm_eval_tasks import from_family

    from_family(tmp_path / "tasks", family / "items.jsonl")
    tasks = ["evaluator=lm_eval", "evaluator.tasks=[red_green_blue]", f"evaluator.include_path={tmp_path / 'tasks'}"]
    tasks += ["evaluator.category=column:category", "evaluator.group=column:group", "evaluator.threads=1"]
    pool = ",".join(str(family / name) for name in ("ant", "bee", "cat"))
    done = souping("check", f"pool.candidates=[{pool}]", *tasks, "selector=topk", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert all(sample["arguments"][0][0] for sample in table(tmp_path)["samples"])


def test_the_start_of_vllm_is_no_answering(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the engine; the whole command before and after it."""
    started: list[Sink] = []
    clock = [0.0]
    monkeypatch.setattr("souping.plan.check.time", SimpleNamespace(monotonic=lambda: time.monotonic() + clock[0]))

    def start(folder: Path, settings: dict[str, Any], transfer: bool) -> Sink:
        clock[0] += 1e6
        started.append(Sink(folder))
        return started[-1]

    monkeypatch.setattr("souping.evaluate.engines.vllm.Vllm", start)
    monkeypatch.setattr("souping.evaluate.engines.vllm.find_spec", lambda name: name)
    monkeypatch.setattr("souping.pipeline.requirements.gpus", lambda: (Gpu(name="G", total=2**34, free=2**34),))
    done = souping("check", *pool_of(family), "selector=topk", "engine=vllm", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert [sink.closed for sink in started] == [True]
    assert table(tmp_path)["items_per_second"] > 1e-3  # the time of starting would make it less
