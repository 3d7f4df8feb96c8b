"""Adapter folders as PEFT writes them, made without PEFT, and the arithmetic they stand for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PREFIX = "base_model.model."
Modules = Mapping[str, int]
"""{module: rank}"""


def save_adapter(
    folder: Path,
    base: Path,
    modules: Modules,
    seed: int,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """A random adapter on linear layers of the model in `base`; `config` overrides the keys of its config."""
    weights = load_file(base / "model.safetensors")
    dice = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, rank in modules.items():
        rows, columns = weights[f"{module}.weight"].shape
        tensors[f"{PREFIX}{module}.lora_A.weight"] = (
            torch.randn(rank, columns, generator=dice).to(dtype) / 4
        )
        tensors[f"{PREFIX}{module}.lora_B.weight"] = (
            torch.randn(rows, rank, generator=dice).to(dtype) / 4
        )
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    top = max(modules.values())
    table = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": top,
        "lora_alpha": 2 * top, "bias": "none", "target_modules": sorted({name.split(".")[-1] for name in modules}),
        "rank_pattern": {name: rank for name, rank in modules.items() if rank != top}, "alpha_pattern": {},
        "use_rslora": False, "use_dora": False, "modules_to_save": None, "init_lora_weights": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**table, **config}))
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def deltas(folder: Path, alpha: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
    """{module: scaling * B @ A} in fp64, scaling from `alpha` by module or the config's plain keys."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {
        name: tensor.double()
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    found = {}
    for key, a in tensors.items():
        if key.endswith("lora_A.weight"):
            module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            b = tensors[key.replace("lora_A", "lora_B")]
            rank = math.sqrt(len(a)) if config["use_rslora"] else len(a)
            scale = (alpha or {}).get(module, config["lora_alpha"]) / rank
            found[module] = scale * b @ a
    return found


def weighted(folders: Mapping[Path, float]) -> dict[str, torch.Tensor]:
    """{module: sum of weights x products} in fp64."""
    total: dict[str, torch.Tensor] = {}
    for folder, weight in folders.items():
        for module, delta in deltas(folder).items():
            total[module] = total.get(module, torch.zeros_like(delta)) + weight * delta
    return total
