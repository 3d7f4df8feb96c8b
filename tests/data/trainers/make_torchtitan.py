"""Checkpoints of torchtitan 0.3.0, sharded by FSDP2 on two processes.

pip install --no-deps torchtitan==0.3.0 spmd_types tyro torchdata torch_checkpointing einops triton
torchrun --nproc_per_node 2 make_torchtitan.py llama qwen3_moe
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from reference import TOKENS, fill, packed, write
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.attention.flex_attention import flex_attention
from torchtitan.components.checkpoint import ModelWrapper
from torchtitan.models import llama3, qwen3
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import FlexAttention

INIT = {"weight": torch.nn.init.ones_}
SHAPE = {"n_layers": 2, "dim": 32, "n_heads": 4, "n_kv_heads": 2, "attn_backend": "flex"}
ENDS = {
    "dim": 32,
    "vocab_size": 51,
    "tok_embeddings": Embedding.Config(num_embeddings=51, embedding_dim=32, param_init=INIT),
    "norm": RMSNorm.Config(normalized_shape=32, param_init=INIT, eps=1e-5),
    "lm_head": Linear.Config(in_features=32, out_features=51, param_init=INIT),
}


def llama() -> tuple[Any, Any, dict[str, Any]]:
    rope = ComplexRoPE.Config(dim=8, max_seq_len=64, theta=10000.0)
    layers = llama3._build_llama3_layers(hidden_dim=24, rope=rope, **SHAPE)
    config = llama3.Llama3Model.Config(layers=layers, **ENDS)
    return (
        config,
        llama3.Llama3StateDictAdapter,
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    )


def qwen3_moe() -> tuple[Any, Any, dict[str, Any]]:
    rope = CosSinRoPE.Config(dim=8, max_seq_len=64, theta=10000.0)
    layers = qwen3._build_qwen3_moe_layers(
        head_dim=8,
        moe_hidden_dim=16,
        num_experts=4,
        top_k=2,
        rope=rope,
        moe_comm_backend="standard",
        **SHAPE,
    )
    config = qwen3.Qwen3Model.Config(layers=layers, **ENDS)
    kind = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4}
    moe = {
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-6,
    }
    return config, qwen3.Qwen3StateDictAdapter, kind | moe


def make(name: str, folder: Path) -> None:
    config, adapter, hub = globals()[name]()
    model = config.build()
    fill(dict(model.named_parameters()))
    if dist.get_rank() == 0:
        positions = torch.arange(TOKENS.shape[1])[None]
        with torch.no_grad():
            logits = model(TOKENS, positions, model.get_attention_masks(positions))
        write(folder, hub, adapter(config, None).to_hf(dict(model.state_dict())), logits)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.layers.values():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    dcp.save(ModelWrapper(model).state_dict(), checkpoint_id=folder / "step-10")


if __name__ == "__main__":
    FlexAttention._compiled_flex_attn = flex_attention  # needs no compiler
    dist.init_process_group("gloo")
    for name in sys.argv[1:]:
        with packed(f"torchtitan_{name}") as folder:
            make(name, folder)
    dist.destroy_process_group()
