"""The pantry as it ships: items, tokenizer, models, size, and what a run says of it."""

from __future__ import annotations

from collections import Counter

import pytest

from souping import pantry
from souping.core.types import FOLDS
from souping.evaluate import benchmark as folds
from souping.evaluate.benchmark import Benchmark
from tests.conftest import Cli

SHIPPED = Benchmark(path=str(pantry.path("items"))).items()
CATEGORIES = {item.category for item in SHIPPED}
MODELS = (pantry.BASE, *pantry.CANDIDATES)


def test_every_category_is_well_filled_in_every_fold() -> None:
    split = folds.split_folds(SHIPPED)
    assert split.notes == ()
    for fold, least in zip(FOLDS, (160, 160, 400), strict=True):
        counts = Counter(item.category for item in split.items[fold])
        assert len(split.items[fold]) >= least
        assert set(counts) == CATEGORIES
        assert min(counts.values()) >= 20


def test_ids_prompts_and_groups() -> None:
    assert len({item.id for item in SHIPPED}) == len({item.prompt for item in SHIPPED}) == len(SHIPPED)
    groups = Counter(item.group for item in SHIPPED)
    assert len(groups) >= 300
    assert max(groups.values()) <= 12
    docs = {(item.group, str(item.prompt).split("Question:")[0]) for item in SHIPPED}
    assert len(docs) == len(groups)  # a group is one set of function docs, and the other way round


def test_plain_transformers_loads_them() -> None:
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


@pytest.mark.parametrize("name", ["demo", pytest.param("bfcl", marks=pytest.mark.slow)])
def test_the_first_line_says_what_it_is(name: str, souping: Cli) -> None:
    first = "this is the pantry, an embedded family of tiny models with items of its own: BFCL-shaped, not BFCL"
    for more in (["plan=true"], ["expected={python_cook: 1}", "out=/"]):
        assert souping(f"+experiment={name}", *more).out.splitlines()[0] == first
    assert "leave +experiment=demo or bfcl out" in souping(f"+experiment={name}", "benchmark.path=x.jsonl").out
