"""The pantry as shipped: items, tokenizer, models, size; and its script, alive and resumable."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from souping.core.types import FOLDS, Item, UserError
from souping.evaluate import folds
from souping.evaluate.benchmark import Benchmark
from souping.evaluate.scoring import score
from souping.examples import pantry
from souping.examples.pantry import items, train
from souping.examples.pantry.__main__ import main
from souping.examples.pantry.recipes import STAGES, TrainingStage
from souping.examples.pantry.tasks import CATEGORIES, MAKERS, REFUSAL
from tests.conftest import Cli

SHIPPED = Benchmark(path=str(pantry.path("items"))).items()
TASKS = items.make(items.SEED, items.PER_CATEGORY)
MODELS = (pantry.BASE, *pantry.CANDIDATES)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pantry.path(pantry.BASE))


class TestItems:
    def test_the_script_writes_them_identically(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["items", "--out", str(tmp_path)]) == 0
        assert (tmp_path / "items.jsonl").read_bytes() == pantry.path("items").read_bytes()
        assert "1024 items" in capsys.readouterr().out

    def test_every_category_is_well_filled_in_every_fold(self) -> None:
        split = folds.split_folds(SHIPPED)
        assert split.notes == ()
        for fold, least in zip(FOLDS, (160, 160, 400), strict=True):
            counts = Counter(item.category for item in split.items[fold])
            assert len(split.items[fold]) >= least
            assert set(counts) == set(CATEGORIES)
            assert min(counts.values()) >= 20

    def test_ids_prompts_and_groups(self) -> None:
        assert len({item.id for item in SHIPPED}) == len({item.prompt for item in SHIPPED}) == len(SHIPPED)
        groups = Counter(item.group for item in SHIPPED)
        assert len(groups) >= 300
        assert max(groups.values()) <= 12
        docs = {(item.group, str(item.prompt).split("Question:")[0]) for item in SHIPPED}
        assert len(docs) == len(groups)  # a group is one set of function docs, and the other way round

    def test_the_gold_answer_is_right_and_another_is_wrong(self) -> None:
        for item, task, other in zip(SHIPPED, TASKS, TASKS[1:] + TASKS[:1], strict=True):
            assert score(item, task.gold) == 1.0
            if other.group != task.group and (task.answer or other.answer):
                assert score(item, other.gold) == 0.0

    def test_a_refusal_is_wrong_elsewhere(self) -> None:
        right = Counter(item.category for item in SHIPPED if score(item, REFUSAL) == 1.0)
        assert right == {"irrelevance": items.PER_CATEGORY}

    def test_training_and_development_never_meet_them(self) -> None:
        shipped = {task.key for task in TASKS}
        development = {task.key for task in items.development(20)}
        assert len(development) == 20 * len(CATEGORIES)
        assert not shipped & development
        stage = TrainingStage(name="x", seed=3, steps=1, rate=0.1, batch=200, mix={"others": 1.0})
        drawn = {task.key for step in range(5) for task in train.draw(stage, step, frozenset(shipped))}
        assert not shipped & drawn

    def test_exclusion_is_by_content(self) -> None:
        """What a step would draw is skipped once it is held out, and replaced."""
        stage = TrainingStage(name="x", seed=3, steps=1, rate=0.1, batch=20, mix={"others": 1.0})
        free = train.draw(stage, 0, frozenset())
        bound = train.draw(stage, 0, frozenset(task.key for task in free))
        assert len(bound) == 20
        assert not {task.key for task in free} & {task.key for task in bound}


@pytest.mark.parametrize("category", CATEGORIES)
def test_calls_parse_and_languages_differ(category: str) -> None:
    for number in range(40):
        task = MAKERS[category](Random(number), Random(number + 1))
        assert task.language == {"simple_java": "java", "simple_javascript": "javascript"}.get(category, "python")
        row = Item(
            id="x", category=category, prompt=task.prompt, answer=task.answer, scorer="call", language=task.language
        )
        assert score(row, task.gold) == 1.0
        assert score(row, task.gold.rstrip(")]")) == 0.0 or category == "irrelevance"


class TestTokenizer:
    def test_gold_answers_and_prompts_come_back_exactly(self, tokenizer: Any) -> None:
        for task in TASKS[::9]:
            for text in (task.prompt, task.gold):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert tokenizer.decode(ids) == text

    @settings(max_examples=100, deadline=None)
    @given(text=st.text())
    def test_any_text_has_tokens_and_comes_back(self, tokenizer: Any, text: str) -> None:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        if not set(text) & {"\ue000", "\ue001"} and all(
            token not in text for token in ("<pad>", "<s>", "</s>", "<unk>")
        ):
            assert tokenizer.decode(ids, skip_special_tokens=True) == text

    def test_special_tokens(self, tokenizer: Any) -> None:
        assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
        assert tokenizer.padding_side == "left"

    def test_prompts_and_answers_are_short(self, tokenizer: Any) -> None:
        assert max(len(tokenizer(str(item.prompt))["input_ids"]) for item in SHIPPED) <= 90
        assert max(len(tokenizer(task.gold)["input_ids"]) for task in TASKS) <= 46


class TestModels:
    def test_the_whole_pantry_is_small(self) -> None:
        size = sum(f.stat().st_size for f in pantry.HERE.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
        assert size <= 8_000_000

    @pytest.mark.parametrize("name", MODELS)
    def test_plain_transformers_loads_it(self, name: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(pantry.path(name))
        assert type(model).__name__ == "LlamaForCausalLM"
        assert model.dtype in (torch.bfloat16, torch.float16)
        assert model.config.tie_word_embeddings
        assert 480_000 <= model.num_parameters() <= 560_000
        tokens = AutoTokenizer.from_pretrained(pantry.path(name))
        assert len(tokens) == model.config.vocab_size
        known = (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id)
        assert known == (tokens.pad_token_id, tokens.bos_token_id, tokens.eos_token_id)

    def test_candidates_differ_from_the_base_and_each_other(self) -> None:
        contents = {(pantry.path(name) / "model.safetensors").read_bytes() for name in MODELS}
        assert len(contents) == len(MODELS)

    def test_scores_beside_the_weights(self) -> None:
        record = json.loads((pantry.HERE / "scores.json").read_text())
        assert "not BFCL" in record["note"]
        assert [stage["name"] for stage in record["stages"]] == list(MODELS)
        assert record["stages"] == json.loads(json.dumps([dataclasses.asdict(stage) for stage in STAGES]))
        assert all(set(record["scores"][name]) == set(CATEGORIES) for name in MODELS)
        card = (pantry.HERE / "README.md").read_text()
        assert "pantry, BFCL-shaped, not BFCL" in card
        assert all(name in card for name in (*MODELS, *CATEGORIES))


def test_paths() -> None:
    assert pantry.path("items").is_file()
    assert all((pantry.path(name) / "config.json").is_file() for name in MODELS)
    with pytest.raises(UserError, match="did you mean 'java_cook'"):
        pantry.path("jav_cook")


@pytest.mark.parametrize("name", ["demo", "bfcl"])
def test_the_first_line_says_what_it_is(name: str, souping: Cli) -> None:
    """A plan's, a run's; other items under the same overlay are told that it is not for them."""
    first = "this is the pantry, an embedded family of tiny models with items of its own: BFCL-shaped, not BFCL"
    said = [
        souping(f"+experiment={name}", *more).out for more in (["plan=true"], ["expected={python_cook: 1}", "out=/"])
    ]
    assert [text.splitlines()[0] for text in said] == [first, first]
    assert "leave +experiment=demo or bfcl out" in souping(f"+experiment={name}", "benchmark.path=x.jsonl").out


def test_importing_the_pantry_loads_no_torch() -> None:
    code = "import sys, souping.examples.pantry; sys.exit(int('torch' in sys.modules or 'transformers' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


SMALL = (
    TrainingStage(name="base_cook", seed=1, steps=3, rate=1e-2, batch=4, mix={"others": 1.0}),
    TrainingStage(name="java_cook", parent="base_cook", seed=2, steps=2, rate=1e-2, batch=4, mix={"simple_java": 1.0}),
)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_killed_training_continues_to_the_same_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    train.train_family(tmp_path / "whole", SMALL, dev=1, say=lines.append)
    monkeypatch.setattr(train, "EVERY", 1)

    def die(line: str) -> None:
        if line.startswith("base_cook: step 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train_family(tmp_path / "killed", SMALL, dev=1, say=die)
    assert not (tmp_path / "killed" / "models").exists()
    later: list[str] = []
    train.train_family(tmp_path / "killed", SMALL, dev=1, say=later.append)
    assert later[0].startswith("base_cook: step 3 of 3")
    assert any("% on development items" in line for line in lines)
    for stage in SMALL:
        folders = [tmp_path / run / "models" / stage.name for run in ("whole", "killed")]
        assert weights(folders[0]) == weights(folders[1])
    assert weights(folders[0]) != weights(tmp_path / "whole" / "models" / "base_cook")
    assert not (tmp_path / "killed" / ".cooking").exists()


def test_training_lowers_the_loss() -> None:
    stage = TrainingStage(name="x", seed=4, steps=12, rate=1e-2, warmup=2, batch=8, mix={"irrelevance": 1.0})
    tokens = train.vocabulary()
    model = train.fresh(0, len(tokens))
    import torch

    optimiser = torch.optim.AdamW(model.parameters())
    losses = [
        train.learn(
            model, optimiser, *train.encode(tokens, train.draw(stage, step, frozenset())), train.rate_at(stage, step)
        )
        for step in range(stage.steps)
    ]
    assert losses[-1] < losses[0] / 2


def test_the_command_retrains_a_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("souping.examples.pantry.recipes.STAGES", SMALL)
    assert main(["--out", str(tmp_path), "--steps", "1", "--dev", "1", "--threads", "1"]) == 0
    record = json.loads((tmp_path / "scores.json").read_text())
    assert [stage["steps"] for stage in record["stages"]] == [1, 1]
    assert "| java_cook | base_cook | 2 | 1 |" in (tmp_path / "README.md").read_text()
    assert sorted(folder.name for folder in (tmp_path / "models").iterdir()) == ["base_cook", "java_cook"]


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_family", interrupt)
    assert main(["--out", str(tmp_path)]) == 130
    assert "continues" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--steps", "-1"], ["nothing"]])
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err
