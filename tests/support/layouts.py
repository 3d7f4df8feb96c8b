"""Layouts of checkpoints that no tool wrote here, and where the model has each element, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from souping.core.types import JsonObject

Array = NDArray[np.float32]
Shape = tuple[int, ...]
SIZES: JsonObject = {
    "model_type": "llama", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "intermediate_size": 6, "num_hidden_layers": 1, "vocab_size": 5,
}  # fmt: skip
MOE: JsonObject = {"num_experts": 3, "moe_intermediate_size": 6}
LAYER = "model.layers.0."


def halves(rows: Array, heads: int) -> Array:
    """Rows of pairs as rotary embeddings of transformers have them: first halves, then second halves of each head."""
    return rows.reshape(heads, 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def groups(fused: Array) -> Array:
    return fused.reshape(2, 4, 4, 8)


def transposed_experts(arrays: Mapping[str, Array], part: str) -> Array:
    return np.stack([arrays[f"{SPLIT}{expert}.{part}_proj.weight"].T for expert in range(2)])


Made = Callable[[Mapping[str, Array]], Mapping[str, Array]]
TITAN: dict[str, Shape] = {"tok_embeddings.weight": (5, 8)}
QKV = "layers.0.attention.qkv_linear.wqkv.weight"
EMBEDDED: dict[str, Shape] = {"model.embed_tokens.weight": (5, 8)}
EXPERTS = f"{LAYER}mlp.experts."
SPLIT = f"{LAYER}feed_forward.experts."
LAYOUTS: dict[str, tuple[JsonObject, dict[str, Shape], Made]] = {
    "torchtitan 0.2": (
        {},
        {**TITAN, "layers.0.attention.wk.weight": (8, 8), "output.weight": (5, 8)},
        lambda a: {
            f"{LAYER}self_attn.k_proj.weight": halves(a["layers.0.attention.wk.weight"], 2),
            "lm_head.weight": a["output.weight"],
        },
    ),
    "torchtitan, fused attention, llama": (
        {},
        {**TITAN, QKV: (32, 8)},
        lambda a: {
            f"{LAYER}self_attn.q_proj.weight": halves(groups(a[QKV])[:, :2].reshape(16, 8), 4),
            f"{LAYER}self_attn.k_proj.weight": halves(groups(a[QKV])[:, 2].reshape(8, 8), 2),
            f"{LAYER}self_attn.v_proj.weight": groups(a[QKV])[:, 3].reshape(8, 8),
        },
    ),
    "torchtitan, fused attention, qwen3": (
        {"model_type": "qwen3"},
        {**TITAN, QKV: (32, 8)},
        lambda a: {f"{LAYER}self_attn.q_proj.weight": groups(a[QKV])[:, :2].reshape(16, 8)},
    ),
    "torchtitan, deepseek": (
        {"model_type": "deepseek_v3", "n_routed_experts": 3, **MOE},
        {**TITAN, "layers.0.moe.experts.w1": (3, 6, 8), "layers.0.moe.expert_bias": (3,)},
        lambda a: {
            f"{EXPERTS}2.gate_proj.weight": a["layers.0.moe.experts.w1"][2],
            f"{LAYER}mlp.gate.e_score_correction_bias": a["layers.0.moe.expert_bias"],
        },
    ),
    "torchtitan, gpt-oss": (
        {"model_type": "gpt_oss", **MOE},
        {**TITAN, "layers.0.moe.routed_experts.inner_experts.mlp1_weight_EGD": (3, 12, 8)},
        lambda a: {f"{EXPERTS}gate_up_proj": a[list(a)[-1]].swapaxes(1, 2)},
    ),
    "OLMo-core, experts on rows": (
        {"model_type": "flex_olmo", **MOE},
        {
            "embeddings.weight": (7, 8),
            "blocks.0.feed_forward_moe.experts.mlp.w1": (24, 6),
            "blocks.0.feed_forward_moe.experts.mlp.w2": (18, 8),
            "blocks.0.feed_forward_moe.router.weight": (24,),
        },
        lambda a: {
            "model.embed_tokens.weight": a["embeddings.weight"][:5],
            f"{EXPERTS}1.gate_proj.weight": a["blocks.0.feed_forward_moe.experts.mlp.w1"][8:16].T,
            f"{EXPERTS}1.down_proj.weight": a["blocks.0.feed_forward_moe.experts.mlp.w2"][6:12].T,
            f"{LAYER}mlp.gate.weight": a["blocks.0.feed_forward_moe.router.weight"].reshape(3, 8),
        },
    ),
    "Megatron-Core, mixtral": (
        {"model_type": "mixtral", "num_local_experts": 3},
        {
            "model.embedding.word_embeddings.weight": (8, 8),
            "model.decoder.layers.mlp.experts.experts.linear_fc1.weight": (1, 3, 12, 8),
        },
        lambda a: {
            f"{LAYER}block_sparse_moe.experts.1.w3.weight": a[
                "model.decoder.layers.mlp.experts.experts.linear_fc1.weight"
            ][0, 1, 6:]
        },
    ),
    "transformers in memory": (
        {"model_type": "qwen3_moe", **MOE},
        {**EMBEDDED, f"{EXPERTS}gate_up_proj": (3, 12, 8), f"{EXPERTS}down_proj": (3, 8, 6)},
        lambda a: {
            f"{EXPERTS}0.up_proj.weight": a[f"{EXPERTS}gate_up_proj"][0, 6:],
            f"{EXPERTS}2.down_proj.weight": a[f"{EXPERTS}down_proj"][2],
        },
    ),
    "llama4, listed": (
        {"model_type": "llama4_text", "num_local_experts": 2},
        {
            **EMBEDDED,
            **{f"{SPLIT}{e}.gate_proj.weight": (6, 8) for e in range(2)},
            **{f"{SPLIT}{e}.up_proj.weight": (6, 8) for e in range(2)},
            **{f"{SPLIT}{e}.down_proj.weight": (8, 6) for e in range(2)},
        },
        lambda a: {
            f"{SPLIT}gate_up_proj": np.concatenate(
                [transposed_experts(a, "gate"), transposed_experts(a, "up")], axis=2
            ),
            f"{SPLIT}down_proj": transposed_experts(a, "down"),
        },
    ),
    "gpt-oss, listed": (
        {"model_type": "gpt_oss", "num_local_experts": 2},
        {
            **EMBEDDED,
            **{f"{EXPERTS}gate_up_projs.{e}.weight": (12, 8) for e in range(2)},
            **{f"{EXPERTS}gate_up_projs.{e}.bias": (12,) for e in range(2)},
        },
        lambda a: {
            f"{EXPERTS}gate_up_proj": np.stack(
                [a[f"{EXPERTS}gate_up_projs.{e}.weight"].T for e in range(2)]
            ),
            f"{EXPERTS}gate_up_proj_bias": np.stack(
                [a[f"{EXPERTS}gate_up_projs.{e}.bias"] for e in range(2)]
            ),
        },
    ),
}
PLAIN: dict[str, Shape] = {
    "model.embed_tokens.weight": (5, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 6),
    "model.norm.weight": (8,),
    "lm_head.weight": (5, 8),
}
MEGATRON: dict[str, Shape] = {
    "embedding.word_embeddings.weight": (8, 8),
    "decoder.layers.mlp.linear_fc1.weight": (1, 12, 8),
    "decoder.layers.self_attention.linear_proj.weight": (1, 8, 16),
}
