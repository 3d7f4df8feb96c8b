"""The demo as it ships, and made again: its items from the generator, its models by training."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from examples.demo import items, train
from examples.demo.__main__ import main
from examples.demo.stages import STAGES, TrainingStage
from examples.demo.tasks import CATEGORIES
from souping import demo
from souping.core.types import SPLITS
from souping.evaluate import benchmark as splits
from souping.evaluate.benchmark import Benchmark
from souping.evaluate.scoring import score
from tests.conftest import ROOT, Cli

SHIPPED = Benchmark(path=str(demo.path("items"))).items()
MODELS = (demo.BASE, *demo.CANDIDATES)


def test_every_category_is_well_filled_in_every_split() -> None:
    cut = splits.make_splits(SHIPPED)
    assert cut.notes == ()
    for split, least in zip(SPLITS, (160, 160, 400), strict=True):
        counts = Counter(item.category for item in cut.items[split])
        assert len(cut.items[split]) >= least
        assert set(counts) == set(CATEGORIES)
        assert min(counts.values()) >= 20


def test_ids_prompts_and_groups() -> None:
    assert (
        len({item.id for item in SHIPPED}) == len({item.prompt for item in SHIPPED}) == len(SHIPPED)
    )
    groups = Counter(item.group for item in SHIPPED)
    assert len(groups) >= 300
    assert max(groups.values()) <= 12
    docs = {(item.group, str(item.prompt).split("Question:")[0]) for item in SHIPPED}
    assert len(docs) == len(groups)  # a group is one set of function docs, and the other way round


def test_plain_transformers_loads_the_models() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in MODELS:
        model = AutoModelForCausalLM.from_pretrained(demo.path(name))
        assert type(model).__name__ == "LlamaForCausalLM"
        assert model.dtype in (torch.bfloat16, torch.float16)
        assert model.config.tie_word_embeddings
        assert 480_000 <= model.num_parameters() <= 560_000
        tokens = AutoTokenizer.from_pretrained(demo.path(name))
        assert len(tokens) == model.config.vocab_size
        known = (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id)
        assert known == (tokens.pad_token_id, tokens.bos_token_id, tokens.eos_token_id)


def test_the_first_line_says_that_the_models_are_bundled(souping: Cli) -> None:
    first = "bundled tiny models with BFCL-style questions (not BFCL)"
    for words in (
        ["plan", "+experiment=bfcl"],
        ["+experiment=bfcl", "store=/proc/nothing/s"],
    ):
        assert souping(*words).out.splitlines()[0] == first
    assert "leave +experiment=bfcl out" in souping("+experiment=bfcl", "benchmark.path=x.jsonl").out


TASKS = items.make(items.SEED, items.PER_CATEGORY)
SMALL = (
    TrainingStage(name="base", seed=1, steps=3, rate=1e-2, batch=4, mix={"others": 1.0}),
    TrainingStage(
        name="tuned_java",
        parent="base",
        seed=2,
        steps=2,
        rate=1e-2,
        batch=4,
        mix={"simple_java": 1.0},
    ),
)


def test_the_script_writes_the_shipped_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["items", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "items.jsonl").read_bytes() == demo.path("items").read_bytes()
    assert "1024 items" in capsys.readouterr().out


def test_the_gold_answer_is_right_and_another_is_wrong() -> None:
    for item, task, other in zip(SHIPPED, TASKS, TASKS[1:] + TASKS[:1], strict=True):
        assert score(item, task.gold) == 1.0
        if other.group != task.group and (task.answer or other.answer):
            assert score(item, other.gold) == 0.0


def test_training_and_development_never_meet_the_shipped_items() -> None:
    shipped = {task.key for task in TASKS}
    development = {task.key for task in items.development(20)}
    assert len(development) == 20 * len(CATEGORIES)
    assert not shipped & development
    stage = TrainingStage(name="x", seed=3, steps=1, rate=0.1, batch=200, mix={"others": 1.0})
    drawn = {task.key for step in range(5) for task in train.draw(stage, step, frozenset(shipped))}
    assert not shipped & drawn

    # what a step would draw is replaced if it is held out
    free = train.draw(stage, 0, frozenset())
    bound = train.draw(stage, 0, frozenset(task.key for task in free))
    assert len(bound) == 200
    assert not {task.key for task in free} & {task.key for task in bound}


def test_the_record_of_the_shipped_models_matches_the_stages() -> None:
    record = json.loads((ROOT / "examples" / "demo" / "scores.json").read_text())
    assert "not BFCL" in record["note"]
    assert record["stages"] == json.loads(
        json.dumps([dataclasses.asdict(stage) for stage in STAGES])
    )
    assert list(record["scores"]) == [demo.BASE, *demo.CANDIDATES]
    assert all(set(scores) == set(CATEGORIES) for scores in record["scores"].values())


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_stopped_training_continues_to_the_same_models(tmp_path: Path) -> None:
    lines: list[str] = []
    train.train_family(tmp_path / "whole", SMALL, dev=1, say=lines.append)
    assert any("% on development items" in line for line in lines)

    def stop(line: str) -> None:
        if line.startswith("tuned_java"):
            raise KeyboardInterrupt

    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        train.train_family(killed, SMALL, dev=1, say=stop)
    assert [path.name for path in (killed / "models").iterdir()] == ["base"]
    later: list[str] = []
    train.train_family(killed, SMALL, dev=1, say=later.append)
    assert not any(line.startswith("base: step") for line in later)
    for stage in SMALL:
        folders = [tmp_path / run / "models" / stage.name for run in ("whole", "killed")]
        assert weights(folders[0]) == weights(folders[1])
    assert weights(folders[0]) != weights(tmp_path / "whole" / "models" / "base")
