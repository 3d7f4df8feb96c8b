"""Inputs for `benchmarks/merge.py`: Llama checkpoints of a given size with random bf16 weights, several shards each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

SIZES = {"0.3": (1024, 2816, 7, 32000), "1.2": (2048, 5632, 9, 32000), "2.4": (2048, 5632, 21, 32000)}
"""GB: (hidden, intermediate, layers, vocabulary)"""


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a Llama of about `size` GB in bf16."""
    hidden, inner, layers, vocab = SIZES[size]
    table: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        name = f"model.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            table[f"{name}self_attn.{part}.weight"] = (hidden, hidden)
        table[f"{name}mlp.gate_proj.weight"] = table[f"{name}mlp.up_proj.weight"] = (inner, hidden)
        table[f"{name}mlp.down_proj.weight"] = (hidden, inner)
        table[f"{name}input_layernorm.weight"] = table[f"{name}post_attention_layernorm.weight"] = (hidden,)
    table["model.norm.weight"] = (hidden,)
    table["lm_head.weight"] = (vocab, hidden)
    return table


def generate(folder: Path, size: str, seed: int, shards: int = 4) -> Path:
    """Write one checkpoint; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    table, places = shapes(size), {}
    names, rng = list(table), np.random.default_rng(seed)
    for number in range(shards):
        part = names[len(names) * number // shards : len(names) * (number + 1) // shards]
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        places.update(dict.fromkeys(part, file))
        _write(folder / file, {name: table[name] for name in part}, rng)
    total = sum(2 * int(np.prod(shape)) for shape in table.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(size), indent=2))
    return folder


def config(size: str) -> dict[str, object]:
    hidden, inner, layers, vocab = SIZES[size]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "torch_dtype": "bfloat16",
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 16, "vocab_size": vocab,
        "num_key_value_heads": 16, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip


def _write(path: Path, table: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """A shard of normal values of standard deviation 0.02, cut to bf16."""
    entries, offset = {}, 0
    for name, shape in table.items():
        nbytes = 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for shape in table.values():
            values = rng.standard_normal(int(np.prod(shape)), np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes())
