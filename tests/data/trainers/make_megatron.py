"""Checkpoints of Megatron-Core 0.16.1 into which weights of Hugging Face were poured, on two processes without a GPU.

pip install --no-deps megatron-core==0.16.1 psutil
torchrun --nproc_per_node 2 make_megatron.py llama_pp llama_split qwen2_tp qwen3_moe_ep
"""

from __future__ import annotations

import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe import moe_utils
from reference import SIZES, TOKENS, fill, packed, write
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

PADDED = 64
SIZES_OF: dict[str, dict[str, int | torch.dtype]] = {
    "llama_pp": {"pipeline_model_parallel_size": 2, "pipeline_dtype": torch.float32},
    "llama_split": {"tensor_model_parallel_size": 2},
    "qwen2_tp": {"tensor_model_parallel_size": 2},
    "qwen3_moe_ep": {"expert_model_parallel_size": 2},
}
HUB: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3_moe": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True, "decoder_sparse_step": 1,
    },
}  # fmt: skip


def no_gpu() -> None:
    """CUDA calls on Megatron's way that do nothing without a GPU."""
    stand_ins = {
        "synchronize": lambda *_: None,
        "current_device": lambda: torch.device("cpu"),
        "Stream": type("Stream", (), {}),
    }
    vars(torch.cuda).update(stand_ins)
    moe_utils.te_general_gemm = None  # a name that 0.16.1 defines with Transformer Engine alone
    CudaRNGStatesTracker.fork = lambda *_, **__: nullcontext()


def model_of(name: str, sizes: dict[str, int | torch.dtype]) -> GPTModel:
    moe = name.startswith("qwen3_moe")
    experts = {
        "num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 16, "moe_grouped_gemm": False,
        "moe_token_dispatcher_type": "allgather", "moe_router_load_balancing_type": "none",
    } if moe else {}  # fmt: skip
    config = TransformerConfig(
        num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, kv_channels=8, ffn_hidden_size=24,
        use_cpu_initialization=True, normalization="RMSNorm", layernorm_epsilon=1e-5, gated_linear_unit=True,
        activation_func=torch.nn.functional.silu, add_bias_linear=False, bias_dropout_fusion=False,
        bias_activation_fusion=False, hidden_dropout=0.0, attention_dropout=0.0, masked_softmax_fusion=False,
        gradient_accumulation_fusion=False, qk_layernorm=moe, apply_rope_fusion=False,
        add_qkv_bias=name.startswith("qwen2"), **experts, **sizes,
    )  # fmt: skip
    spec = get_gpt_layer_local_spec(
        num_experts=4 if moe else None,
        moe_grouped_gemm=False,
        qk_layernorm=moe,
        normalization="RMSNorm",
    )
    return GPTModel(
        config, spec, vocab_size=PADDED, max_sequence_length=64, position_embedding_type="rope", rotary_base=10000,
        share_embeddings_and_output_weights=name.startswith("qwen2"),
        pre_process=parallel_state.is_pipeline_first_stage(), post_process=parallel_state.is_pipeline_last_stage(),
    ).eval()  # fmt: skip


def pour(model: GPTModel, hub: torch.nn.Module, name: str) -> None:
    """Weights of Hugging Face into the part of the model that this process holds."""
    weights = hub.state_dict()
    tp, rank = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    state = dict(model.named_parameters())

    def put(key: str, value: torch.Tensor, dim: int | None = None) -> None:
        if key in state:
            with torch.no_grad():
                state.pop(key).copy_(value if dim is None else value.chunk(tp, dim)[rank])

    def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.cat([gate.chunk(tp)[r], up.chunk(tp)[r]]) for r in range(tp)])

    def padded(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value, torch.full((PADDED - len(value), 32), 9.0)])

    put("embedding.word_embeddings.weight", padded(weights["model.embed_tokens.weight"]), 0)
    if not name.startswith("qwen2"):
        put("output_layer.weight", padded(weights["lm_head.weight"]), 0)
    put("decoder.final_layernorm.weight", weights["model.norm.weight"])
    offset = parallel_state.get_pipeline_model_parallel_rank()
    for layer in range(len(model.decoder.layers)):
        to, at = f"decoder.layers.{layer}.", f"model.layers.{layer + offset}."
        for kind in ("weight", "bias")[: 1 + name.startswith("qwen2")]:
            q, k, v = (weights[f"{at}self_attn.{part}_proj.{kind}"] for part in "qkv")
            groups = [
                torch.cat([q[16 * g :][:16], k[8 * g :][:8], v[8 * g :][:8]]) for g in range(2)
            ]
            put(f"{to}self_attention.linear_qkv.{kind}", torch.cat(groups), 0)
        put(f"{to}self_attention.linear_proj.weight", weights[f"{at}self_attn.o_proj.weight"], 1)
        put(f"{to}input_layernorm.weight", weights[f"{at}input_layernorm.weight"])
        put(f"{to}pre_mlp_layernorm.weight", weights[f"{at}post_attention_layernorm.weight"])
        if not name.startswith("qwen3_moe"):
            fc1 = gated(weights[f"{at}mlp.gate_proj.weight"], weights[f"{at}mlp.up_proj.weight"])
            put(f"{to}mlp.linear_fc1.weight", fc1, 0)
            put(f"{to}mlp.linear_fc2.weight", weights[f"{at}mlp.down_proj.weight"], 1)
            continue
        put(f"{to}self_attention.q_layernorm.weight", weights[f"{at}self_attn.q_norm.weight"])
        put(f"{to}self_attention.k_layernorm.weight", weights[f"{at}self_attn.k_norm.weight"])
        put(f"{to}mlp.router.weight", weights[f"{at}mlp.gate.weight"])
        for local in range(2):
            expert = local + 2 * parallel_state.get_expert_model_parallel_rank()
            put(
                f"{to}mlp.experts.local_experts.{local}.linear_fc1.weight",
                weights[f"{at}mlp.experts.gate_up_proj"][expert],
            )
            put(
                f"{to}mlp.experts.local_experts.{local}.linear_fc2.weight",
                weights[f"{at}mlp.experts.down_proj"][expert],
            )
    assert not state, f"not poured: {sorted(state)}"


def logits_of(model: GPTModel, name: str) -> torch.Tensor:
    """The model's own logits, of this process's part of the vocabulary or of the pipeline's last stage gathered."""
    length = TOKENS.shape[1]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)
    positions = torch.arange(length)[None]
    if name == "llama_pp":
        hidden = torch.empty(length, 1, 32)
        if dist.get_rank() == 1:
            dist.recv(hidden, 0)
            model.set_input_tensor(hidden)
        out: torch.Tensor = model(TOKENS, positions, mask)
        if dist.get_rank() == 0:
            dist.send(out.contiguous(), 1)
            out = torch.empty(1, length, PADDED)
        dist.broadcast(out := out.contiguous(), 1)
        return out
    out = model(TOKENS, positions, mask).contiguous()
    parts = [
        torch.empty_like(out) for _ in range(parallel_state.get_tensor_model_parallel_world_size())
    ]
    dist.all_gather(parts, out, group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, -1)


def make(name: str, folder: Path) -> None:
    sizes = SIZES_OF[name]
    parallel_state.initialize_model_parallel(
        **{key: size for key, size in sizes.items() if key.endswith("_size")}
    )
    kind = HUB[name.rpartition("_")[0]]
    hub = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SIZES | kind))
    fill(dict(hub.named_parameters()))
    hub.tie_weights()
    model = model_of(name, sizes)
    pour(model, hub, name)
    with torch.no_grad():
        logits = logits_of(model, name)[..., : SIZES["vocab_size"]]
    target = folder / "iter_0000010"
    if dist.get_rank() == 0:
        target.mkdir()
        hub.save_pretrained(folder / "hub")
        write(folder, kind, load_file(folder / "hub" / "model.safetensors"), logits)
        shutil.rmtree(folder / "hub")
        (folder / "latest_checkpointed_iteration.txt").write_text("10")
    dist.barrier()
    metadata = {"singleton_local_shards": True} if name == "llama_split" else None
    state = {
        "model": model.sharded_state_dict(metadata=metadata),
        "iteration": 10,
        "checkpoint_version": 3.0,
    }
    dist_checkpointing.save(state, str(target), ("torch_dist", 1))
    parallel_state.destroy_model_parallel()


if __name__ == "__main__":
    no_gpu()
    dist.init_process_group("gloo")
    for name in sys.argv[1:]:
        with packed(f"megatron_{name}") as folder:
            make(name, folder)
    dist.destroy_process_group()
