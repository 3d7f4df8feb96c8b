"""Tiny base models for adapters that PEFT trains, and how close numbers have to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

IDS = torch.tensor([[5, 17, 33, 60, 2, 9, 41]])


def small_config(kind: str, tie: bool) -> transformers.PreTrainedConfig:
    if kind == "gpt2":
        return transformers.GPT2Config(
            vocab_size=71, n_embd=24, n_layer=2, n_head=3, n_positions=16
        )
    shape = {"vocab_size": 71, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape["num_key_value_heads"] = 2
    if kind == "mixtral":
        return transformers.MixtralConfig.from_dict(
            {**shape, "intermediate_size": 16, "num_local_experts": 3}
        )
    if kind == "qwen3_moe":
        experts = {"moe_intermediate_size": 12, "num_experts": 3, "num_experts_per_tok": 2}
        return transformers.Qwen3MoeConfig.from_dict(shape | experts | {"head_dim": 8})
    if kind == "gpt_oss":
        experts = {"intermediate_size": 16, "num_local_experts": 3, "num_experts_per_tok": 2}
        return transformers.GptOssConfig.from_dict(shape | experts | {"head_dim": 8})
    if kind == "llama4":
        experts = {"intermediate_size": 16, "intermediate_size_mlp": 16, "num_local_experts": 3}
        return transformers.Llama4TextConfig.from_dict(shape | experts | {"head_dim": 8})
    return transformers.LlamaConfig.from_dict(
        {**shape, "intermediate_size": 40, "tie_word_embeddings": tie}
    )


def save_base(
    folder: Path, kind: str = "llama", tie: bool = False, dtype: torch.dtype = torch.float32
) -> Path:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(small_config(kind, tie))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.to(dtype).save_pretrained(folder)
    return folder


def load_base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def forward(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits
    return logits.double()


def close(a: torch.Tensor, b: torch.Tensor, rounding: float = 2**-21) -> None:
    assert (a.double() - b.double()).abs().max() <= rounding * b.double().abs().max()
