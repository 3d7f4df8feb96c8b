"""Contexts run once for all their continuations: the scores of whole sequences, on unlike architectures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.evaluate.engines.transformers import load_module, load_tokenizer
from souping.evaluate.lm_eval.evaluator import HarnessEvaluator
from souping.evaluate.lm_eval.shared_prefix import Request, fits, score, split
from tests.support import lm_eval_tasks

pytest.importorskip("lm_eval")

SMALL = {
    "vocab_size": 100,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0}


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> HarnessEvaluator:
    folder = lm_eval_tasks.make(tmp_path_factory.mktemp("tasks"))
    return HarnessEvaluator(
        tasks=["picks", "shots"], include_path=str(folder), threads=1, device="cpu", shared_prefix=True
    )


def lively(module: Any) -> Any:
    """Weights far from zero, so that positions and padding matter."""
    import torch

    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return module.eval()


def build(kind: str) -> Any:
    """A tiny model of an architecture, in float32."""
    import transformers as t

    if kind == "mamba":
        return lively(t.MambaForCausalLM(t.MambaConfig(**MAMBA)))
    if kind == "gpt2":
        changes = {"n_embd": 24, "n_layer": 2, "n_head": 2, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
        return lively(t.GPT2LMHeadModel(t.GPT2Config(**changes)))
    if kind == "sliding":
        return lively(t.MistralForCausalLM(t.MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=6)))
    if kind == "bloom":
        return lively(t.BloomForCausalLM(t.BloomConfig(vocab_size=100, hidden_size=24, n_layer=2, n_head=2)))
    return lively(t.LlamaForCausalLM(t.LlamaConfig(**SMALL, num_key_value_heads=1)))


def likelihoods(evaluator: HarnessEvaluator, served: Any) -> list[list[float]]:
    return [json.loads(r.output) for r in evaluator.evaluate(served, evaluator.benchmark.items())]


@pytest.mark.parametrize(
    ("kind", "shared"), [("llama", True), ("gpt2", True), ("sliding", True), ("mamba", False), ("bloom", False)]
)
def test_shared_contexts_give_the_scores_of_whole_sequences(
    kind: str, shared: bool, evaluator: HarnessEvaluator, family: Path
) -> None:
    """A model whose cache cannot be shared (a recurrent state, no positions) is scored the harness's way."""
    served = SimpleNamespace(module=build(kind), tokenizer=load_tokenizer(family / "ant"), ends=())
    with evaluator._model.model(served, evaluator, {}, 0) as lm:  # type: ignore[arg-type]
        assert fits(lm) == shared
    ours = likelihoods(evaluator, served)
    theirs = likelihoods(replace(evaluator, shared_prefix=False), served)
    assert any(len(set(row)) > 1 for row in theirs)
    for mine, whole in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(whole, abs=2e-4)


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"batch_size": 3}, {"batch_size": 64}, {"max_length": 40}])
def test_batches_and_contexts_that_are_cut(change: dict[str, int], evaluator: HarnessEvaluator, family: Path) -> None:
    """Fewer rows than choices, all in one, and questions too long for the model, which are cut on the left."""
    served = SimpleNamespace(
        module=load_module(family / "ant", evaluator.module_settings()),
        tokenizer=load_tokenizer(family / "ant"),
        ends=(),
    )
    ours = likelihoods(replace(evaluator, **change), served)  # type: ignore[arg-type]
    theirs = likelihoods(replace(evaluator, shared_prefix=False, **change), served)  # type: ignore[arg-type]
    for mine, whole in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(whole, abs=2e-4)


def test_greedy_answers_are_known_as_such(evaluator: HarnessEvaluator, family: Path) -> None:
    """`is_greedy` of the harness: whether the continuation is what the model would write itself."""
    import torch

    served = SimpleNamespace(
        module=load_module(family / "ant", evaluator.module_settings()),
        tokenizer=load_tokenizer(family / "ant"),
        ends=(),
    )
    context = served.tokenizer("red 12:")["input_ids"]
    with torch.no_grad():
        own = served.module.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False)[0, len(context) :]
    wrong = [*own.tolist()[:2], (int(own[2]) + 1) % 90]
    requests: list[Request] = [("", context, own.tolist()), ("", context, wrong), ("", context, [int(own[0])])]
    with evaluator._model.model(served, evaluator, {}, 0) as lm:  # type: ignore[arg-type]
        found = score(lm, requests, lambda rest: [])
        whole = replace(evaluator, shared_prefix=False)
    with whole._model.model(served, whole, {}, 0) as lm:  # type: ignore[arg-type]
        theirs = lm._loglikelihood_tokens(requests)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in theirs] == [True, False, True]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in theirs], abs=2e-4)


def test_requests_are_split_by_context() -> None:
    requests: list[Request] = [
        ("", [1, 2], [3]),
        ("", [1, 2, 3], [4]),
        ("", [1, 2], [5, 6]),
        ("", [1, 2, 3, 4, 5], [6]),
        ("", [1, 2, 3, 4, 5], [6, 7]),
    ]
    groups, rest = split(requests, longest=5)
    assert [(g.context, g.members) for g in groups] == [((1, 2), (0, 2))]
    assert rest == [1, 3, 4]  # alone, or alone once the longer one must be cut
