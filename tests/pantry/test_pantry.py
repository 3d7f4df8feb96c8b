"""The pantry as it ships: items, tokenizer, models, size, and what a run says of it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from souping import pantry
from souping.core.types import FOLDS, UserError
from souping.evaluate import folds
from souping.evaluate.benchmark import Benchmark
from souping.evaluate.scoring import score
from tests.conftest import Cli

SHIPPED = Benchmark(path=str(pantry.path("items"))).items()
CATEGORIES = {item.category for item in SHIPPED}
MODELS = (pantry.BASE, *pantry.CANDIDATES)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pantry.path(pantry.BASE))


class TestItems:
    def test_every_category_is_well_filled_in_every_fold(self) -> None:
        split = folds.split_folds(SHIPPED)
        assert split.notes == ()
        for fold, least in zip(FOLDS, (160, 160, 400), strict=True):
            counts = Counter(item.category for item in split.items[fold])
            assert len(split.items[fold]) >= least
            assert set(counts) == CATEGORIES
            assert min(counts.values()) >= 20

    def test_ids_prompts_and_groups(self) -> None:
        assert len({item.id for item in SHIPPED}) == len({item.prompt for item in SHIPPED}) == len(SHIPPED)
        groups = Counter(item.group for item in SHIPPED)
        assert len(groups) >= 300
        assert max(groups.values()) <= 12
        docs = {(item.group, str(item.prompt).split("Question:")[0]) for item in SHIPPED}
        assert len(docs) == len(groups)  # a group is one set of function docs, and the other way round

    def test_a_refusal_is_wrong_elsewhere(self) -> None:
        right = Counter(item.category for item in SHIPPED if score(item, "No function fits.") == 1.0)
        assert right == {"irrelevance": 128}


class TestTokenizer:
    @settings(max_examples=100, deadline=None)
    @given(text=st.text())
    def test_any_text_has_tokens_and_comes_back(self, tokenizer: Any, text: str) -> None:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        if not set(text) & {"\ue000", "\ue001"} and all(
            token not in text for token in ("<pad>", "<s>", "</s>", "<unk>")
        ):
            assert tokenizer.decode(ids, skip_special_tokens=True) == text

    def test_special_tokens_and_short_prompts(self, tokenizer: Any) -> None:
        assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
        assert tokenizer.padding_side == "left"
        assert max(len(tokenizer(str(item.prompt))["input_ids"]) for item in SHIPPED) <= 90


class TestModels:
    def test_the_whole_pantry_is_small(self) -> None:
        size = sum(f.stat().st_size for f in pantry.HERE.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
        assert size <= 8_000_000

    def test_plain_transformers_loads_them(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        for name in MODELS:
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

    def test_the_card_names_models_and_categories(self) -> None:
        card = (pantry.HERE / "README.md").read_text()
        assert "pantry, BFCL-shaped, not BFCL" in card
        assert all(name in card for name in (*MODELS, *CATEGORIES))


def test_paths() -> None:
    assert pantry.path("items").is_file()
    assert all((pantry.path(name) / "config.json").is_file() for name in MODELS)
    with pytest.raises(UserError, match="did you mean java_cook"):
        pantry.path("jav_cook")


def test_the_pool_holds_the_candidates(souping: Cli) -> None:
    job = souping("pool=pantry", "--cfg", "job", "--resolve", "--package", "pool").out
    assert [line.split("/")[-1] for line in job.splitlines() if line.startswith("- ")] == [*pantry.CANDIDATES]


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
    code = "import sys, souping.pantry; sys.exit(int('torch' in sys.modules or 'transformers' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
