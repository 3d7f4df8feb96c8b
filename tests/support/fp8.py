"""FP8 models written by compressed-tensors itself: `python -m tests.support.fp8 OUT` (needs compressed-tensors).

A tiny Llama whose sizes leave short blocks at the edges, in FP8 by blocks, by rows and by tensors. `expected.json` has
the SHA-256 of each weight as compressed-tensors dequantises it to bf16.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.conftest import ROOT

SIZES = {"vocab_size": 13, "hidden_size": 16, "intermediate_size": 200, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 36}
LAYOUTS = {
    "block-0": "FP8_BLOCK",
    "block-1": "FP8_BLOCK",
    "row-0": "FP8_DYNAMIC",
    "tensor-1": "FP8",
}


def write(out: Path, preset: str, seed: int) -> dict[str, str]:
    """Write one model; the digests of its weights as they are dequantised."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig.from_dict({**SIZES, **HEADS, "max_position_embeddings": 32})
    model = LlamaForCausalLM(config).bfloat16()
    groups = {"g": preset_name_to_scheme(preset, ["Linear"])}
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
    for module in model.modules():
        calibrate(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(str(out))
    compressor.decompress_model(model)
    return {
        name: digest(value)
        for name, value in model.state_dict().items()
        if not name.endswith("_scale")
    }


def calibrate(module: torch.nn.Module) -> None:
    """Fill the scales of a module's weight from the weight itself."""
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme: Any = getattr(module, "quantization_scheme", None)
    if scheme is None:
        return
    weight = module.get_parameter("weight").detach().float()
    scale = module.get_parameter("weight_scale")
    rows, columns = scheme.weights.block_structure or (1, weight.shape[1])
    if scheme.weights.strategy == "tensor":
        rows, columns = weight.shape
    # Smallest and largest weight of each block.
    low = []
    high = []
    for i in range(0, weight.shape[0], rows):
        starts = range(0, weight.shape[1], columns)
        blocks = [weight[i : i + rows, j : j + columns] for j in starts]
        low.append([block.min() for block in blocks])
        high.append([block.max() for block in blocks])
    scales, _ = calculate_qparams(torch.tensor(low), torch.tensor(high), scheme.weights)
    scale.data = scales.reshape(scale.shape).to(scale.dtype)
    if getattr(module, "input_scale", None) is not None:
        module.get_parameter("input_scale").data.fill_(1.0)


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(
        tensor.detach().to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()
    ).hexdigest()


if __name__ == "__main__":
    root = Path(sys.argv[1])
    table = {name: write(root / name, preset, int(name[-1])) for name, preset in LAYOUTS.items()}
    (root / "expected.json").write_text(json.dumps(table, indent=1) + "\n")


DATA = ROOT / "tests" / "data" / "fp8"
