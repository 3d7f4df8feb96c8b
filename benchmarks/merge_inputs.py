"""Inputs for `benchmarks/merge.py`: Llama checkpoints of a given size with random weights, several shards each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

SIZES = {
    "0.3": (1024, 2816, 7, 32000),
    "1.2": (2048, 5632, 9, 32000),
    "2.4": (2048, 5632, 21, 32000),
    "6": (3072, 8192, 25, 32000),
    "12": (4096, 11008, 28, 32000),
}
"""GB: (hidden, intermediate, layers, vocabulary)"""
DRAWN = 1 << 20
"""Values of a tensor that are drawn; larger tensors repeat them."""


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
        table[f"{name}input_layernorm.weight"] = table[f"{name}post_attention_layernorm.weight"] = (
            hidden,
        )
    table["model.norm.weight"] = (hidden,)
    table["lm_head.weight"] = (vocab, hidden)
    return table


def generate(folder: Path, size: str, seed: int, shards: int = 4) -> Path:
    """Write one checkpoint; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    table = shapes(size)
    places = {}
    names = list(table)
    rng = np.random.default_rng(seed)
    for number in range(shards):
        # Libraries write the tensors of a file in the order of their names.
        part = sorted(names[len(names) * number // shards : len(names) * (number + 1) // shards])
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        places.update(dict.fromkeys(part, file))
        _write(folder / file, {name: table[name] for name in part}, rng)
    total = sum(2 * int(np.prod(shape)) for shape in table.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(size), indent=2))
    return folder


def in_fp8(folder: Path, out: Path) -> Path:
    """The checkpoint with its projections in FP8, in blocks of 128 x 128 as DeepSeek stores them."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    out.mkdir(parents=True)
    places = dict[str, str]()
    for path in sorted(folder.glob("*.safetensors")):
        part = {}
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                value = part[name] = file.get_tensor(name)
                if "_proj" in name:  # sizes are whole blocks
                    rows = value.shape[0] // 128
                    columns = value.shape[1] // 128
                    blocks = value.float().reshape(rows, 128, columns, 128)
                    scale = blocks.abs().amax((1, 3)) / 448
                    part[name] = (
                        (blocks / scale[:, None, :, None])
                        .reshape(value.shape)
                        .to(torch.float8_e4m3fn)
                    )
                    part[f"{name}_scale_inv"] = scale
        save_file(part, out / path.name, {"format": "pt"})
        places |= dict.fromkeys(part, path.name)
    (out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    table = json.loads((folder / "config.json").read_text())
    scheme = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (out / "config.json").write_text(json.dumps({**table, "quantization_config": scheme}))
    return out


def config(size: str) -> dict[str, object]:
    hidden, inner, layers, vocab = SIZES[size]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "torch_dtype": "bfloat16",
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 16, "vocab_size": vocab,
        "num_key_value_heads": 16, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip


def _header(table: dict[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """(length and header of a safetensors file with these bf16 tensors, bytes of data)."""
    entries = {}
    offset = 0
    for name, shape in table.items():
        nbytes = 2 * int(np.prod(shape))
        entries[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offset


def _write(path: Path, table: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """A shard of normal values of standard deviation 0.02, cut to bf16."""
    with path.open("wb") as file:
        file.write(_header(table)[0])
        for shape in table.values():
            count = int(np.prod(shape))
            values = rng.standard_normal(min(count, DRAWN), np.float32) * np.float32(0.02)
            bits = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
            file.write(np.resize(bits, count).data)


def sparse_70b(folder: Path) -> Path:
    """A checkpoint with the tensors of Llama-3-70B in 5 GB shards whose files are holes behind true headers."""
    shapes_70b: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (128256, 8192)}
    for layer in range(80):
        name = f"model.layers.{layer}."
        shapes_70b |= {
            f"{name}self_attn.{p}_proj.weight": (8192 if p in "qo" else 1024, 8192) for p in "qkvo"
        }
        shapes_70b |= {f"{name}mlp.{p}_proj.weight": (28672, 8192) for p in ("gate", "up")}
        shapes_70b[f"{name}mlp.down_proj.weight"] = (8192, 28672)
        shapes_70b |= {f"{name}{p}_layernorm.weight": (8192,) for p in ("input", "post_attention")}
    shapes_70b |= {"model.norm.weight": (8192,), "lm_head.weight": (128256, 8192)}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config("1.2")))
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes_70b.items():
        if sum(2 * int(np.prod(s)) for s in (*groups[-1].values(), shape)) > 5_000_000_000:
            groups.append({})
        groups[-1][name] = shape
    places = {}
    for number, group in enumerate(groups):
        file = f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
        places.update(dict.fromkeys(group, file))
        header, size = _header(group)
        with (folder / file).open("wb") as handle:
            handle.write(header)
            handle.truncate(len(header) + size)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder
