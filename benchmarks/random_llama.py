"""A Llama with random weights and heads of 64, and a running vLLM for it. The benchmarks of engines share them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from souping.core.fields import Precision
from souping.core.protocols import AdapterShape
from souping.evaluate.engines.vllm import Vllm, VllmEngine, llm_arguments
from souping.evaluate.generate import LocalEvaluator


def random_llama(
    hidden: int, layers: int, intermediate: int = 0, vocabulary: int = 4096
) -> LlamaForCausalLM:
    """Matrices of standard deviation 0.05. Seed torch first."""
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate or hidden * 2, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, vocab_size=vocabulary,
        max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.05)
    return model


def start_vllm(
    folder: Path,
    ranks: int = 1,
    dtype: Precision | None = None,
    adapters: AdapterShape | None = None,
    max_loras: int = 1,
) -> Vllm:
    """vLLM without graphs and tokenizer, for contexts of 512 tokens; `max_loras` adapters serve a batch."""
    if not Path("/dev/nvidiactl").exists():
        # vLLM's build for CPUs: memory for its cache in GB, and a core for each rank.
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, range(ranks))))
    args = {"enforce_eager": True, "max_model_len": 512, "gpu_memory_utilization": 0.3}
    settings = VllmEngine(tensor_parallel_size=ranks, args=args)
    machine = LocalEvaluator(dtype=dtype).machine
    arguments = {
        **llm_arguments(folder, settings, machine, adapters),
        "skip_tokenizer_init": True,
    }
    if adapters is not None:
        arguments["max_loras"] = max_loras
    return Vllm(folder, arguments)
