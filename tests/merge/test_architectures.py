"""Any architecture goes by tensor name: tiny random models, soup equals naive arithmetic, and the result generates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from souping.checkpoints.checkpoint import Checkpoint, fingerprint
from souping.checkpoints.compatibility import preflight
from souping.merge.local import LocalMerge
from tests.support.checkpoints import aligned

SMALL = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, num_local_experts=4)),
    "qwen2_moe": lambda: transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(**SMALL, **EXPERTS, shared_expert_intermediate_size=24)
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SMALL, **EXPERTS, head_dim=8)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
        )
    ),
    "gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(**SMALL, head_dim=8)),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    ),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=99, hidden_size=32, state_size=8, num_hidden_layers=2)
    ),
}  # fmt: skip
WEIGHTS = (0.25, 0.75)


@pytest.mark.parametrize("name", MODELS)
def test_soup_is_the_arithmetic_and_generates(name: str, tmp_path: Path) -> None:
    folders = {str(seed): tmp_path / str(seed) for seed in range(2)}
    for seed, folder in folders.items():
        torch.manual_seed(int(seed))
        MODELS[name]().to(torch.bfloat16).save_pretrained(folder)
    checkpoints = {seed: Checkpoint.open(folder) for seed, folder in folders.items()}
    merge = LocalMerge()
    recipe = merge.recipe(("0", "1"), WEIGHTS, checkpoints, {seed: fingerprint(f) for seed, f in folders.items()})
    assert preflight(checkpoints) == []
    out = merge.write(merge.plan(recipe, aligned(merge, folders)), tmp_path / "soup")

    parts = [load_file(folder / "model.safetensors") for folder in folders.values()]
    soup = load_file(out / "model.safetensors")
    assert set(soup) == set(parts[0])
    for key, tensor in soup.items():
        total = torch.zeros(tensor.shape)
        for part, weight in zip(parts, WEIGHTS, strict=True):
            total.add_(part[key].float(), alpha=weight)
        assert torch.equal(tensor, total.to(tensor.dtype)), key

    kind = type(MODELS[name]())
    written = kind.from_pretrained(out, dtype=torch.float32).eval()
    live = kind.from_pretrained(folders["0"], dtype=torch.float32).eval()
    merge.live(merge.align(checkpoints), live).pour(recipe)
    assert all(torch.equal(tensor, written.state_dict()[key]) for key, tensor in live.state_dict().items())
    prompt = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    answers = [model.generate(prompt, **settings) for model in (written, live)]
    assert answers[0].shape[1] > 1
    assert torch.equal(answers[0], answers[1])
