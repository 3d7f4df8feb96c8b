"""check: the plan's checks and a rehearsal that shows what a model sees and says, and leaves nothing in the store."""

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


@pytest.mark.parametrize("words", [["check"], ["check=true"]])
def test_it_shows_prompt_answer_score_and_tokens_and_says_how_long(
    words: list[str], family: Path, souping: Cli, tmp_path: Path
) -> None:
    command = words if words == ["check"] else []
    extra = [] if command else words
    done = souping(*command, *pool_of(family), "selector=topk", "hydra.run.dir=run", *extra)
    assert done.code == 0, done.err
    for category in ("red", "green", "blue"):
        assert f"({category}, fold select)" in done.out
    assert "prompt: red " in done.out
    for word in (
        "reference: ",
        "ant: ",
        "prompt tokens",
        "answer tokens",
        "items/s, as ant answered",
        "the plan's checks pass",
    ):
        assert word in done.out
    assert "this run can go on, in at most about" in done.out.splitlines()[-1]
    made = table(tmp_path)
    assert made["items_per_second"] > 0
    assert made["seconds"]["evaluate"][1] >= made["evaluations"]["todo"][1] / made["items_per_second"] * 0.999
    for sample in made["samples"]:
        assert sample["models"]["ant"].keys() >= {"resps", "score", "outcome", "tokens", "prompt_tokens"}


def test_it_asks_five_items_a_category_and_none_of_the_report_fold(family: Path, souping: Cli, tmp_path: Path) -> None:
    assert souping("check", *pool_of(family), "selector=topk", "hydra.run.dir=run").code == 0
    asked = [sample["item"] for sample in table(tmp_path)["samples"]]
    folds = split_folds(Benchmark(path=str(family / "items.jsonl")).items()).items
    wanted = [i.id for c in ("red", "green", "blue") for i in [i for i in folds["select"] if i.category == c][:5]]
    assert sorted(asked) == sorted(wanted)
    assert not (tmp_path / "outputs").exists()  # no store: its answers are nobody else's


def test_a_run_after_it_is_as_if_it_had_not_been(family: Path, souping: Cli, tmp_path: Path) -> None:
    base = [*pool_of(family, "ant", "bee"), "selector=all", "optimiser=uniform", "stop_after=search"]
    souping("check", *base, "hydra.run.dir=run")
    done = souping(*base, "hydra.run.dir=whole")
    assert done.code == 0, done.err
    before = dump(tmp_path / "outputs/store.sqlite")
    souping("check", *base, "hydra.run.dir=again")
    assert dump(tmp_path / "outputs/store.sqlite") == before


def test_only_one_candidate_is_loaded(family: Path, souping: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from souping.evaluate.engines import transformers

    loaded: list[Path] = []
    plain = transformers.load_module
    monkeypatch.setattr(
        transformers, "load_module", lambda folder, settings: loaded.append(folder) or plain(folder, settings)
    )
    assert souping("check", *pool_of(family), "selector=topk").code == 0
    assert len(loaded) == 1


def test_what_a_run_would_refuse_it_refuses(family: Path, souping: Cli, tmp_path: Path) -> None:
    souping("check", *pool_of(family), "merge.carry=cow").refused("merge.carry=cow", "this run cannot go on here")
    souping("check", *pool_of(family), "optimiser=fixed", "optimiser.weights=[1]", "selector=all").refused("weights")
    pool = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    merging = ["+experiment=merge", pool, "optimiser.weights=[0.5,0.5]", "out=soup"]
    souping("check", *merging).refused("use plan=true")
    assert not (tmp_path / "soup").exists()


def test_answers_that_are_cut_are_pointed_at(family: Path, souping: Cli) -> None:
    said = souping("check", *pool_of(family), "selector=topk").out
    assert "answers were cut or are missing: look at them first" in said


def test_an_own_scorer_is_rehearsed_too(
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
def test_lm_eval_is_rehearsed_by_its_own_prompts(family: Path, souping: Cli, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from tests.support.lm_eval_tasks import from_family

    from_family(tmp_path / "tasks", family / "items.jsonl")
    tasks = ["evaluator=lm_eval", "evaluator.tasks=[red_green_blue]", f"evaluator.include_path={tmp_path / 'tasks'}"]
    pool = ",".join(str(family / name) for name in ("ant", "bee", "cat"))
    done = souping(
        "check",
        f"pool.candidates=[{pool}]",
        *tasks,
        "evaluator.category=column:category",
        "evaluator.group=column:group",
        "evaluator.threads=1",
        "selector=topk",
        "hydra.run.dir=run",
    )
    assert done.code == 0, done.err
    assert "as ant answered" in " ".join(done.out.split())
    assert all(sample["arguments"][0][0] for sample in table(tmp_path)["samples"])


def test_vllm_is_rehearsed_and_its_start_is_no_answering(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the engine; the whole command before and behind it."""
    started: list[Sink] = []
    clock = [0.0]
    passing = SimpleNamespace(monotonic=lambda: time.monotonic() + clock[0])
    monkeypatch.setattr("souping.planning.rehearsal.time", passing)

    def start(folder: Path, settings: dict[str, Any], transfer: bool) -> Sink:
        clock[0] += 1e6
        started.append(Sink(folder))
        return started[-1]

    monkeypatch.setattr("souping.evaluate.engines.vllm.Vllm", start)
    monkeypatch.setattr("souping.evaluate.engines.vllm.find_spec", lambda name: name)
    monkeypatch.setattr("souping.pipeline.requirements.gpus", lambda: (Gpu(name="G", total=2**34, free=2**34),))
    done = souping("check", *pool_of(family), "selector=topk", "engine=vllm", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert "GPU memory" not in done.err
    assert [sink.closed for sink in started] == [True]
    assert table(tmp_path)["items_per_second"] > 1e-3  # the time of starting would make it less
    assert "ant: " in done.out


def test_an_engine_is_a_group(family: Path, souping: Cli) -> None:
    wrong = souping("check", *pool_of(family), "evaluator.engine=vllm")
    wrong.refused("evaluator.engine=vllm is a choice of the group engine: write engine=vllm")
