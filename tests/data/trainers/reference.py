"""What the `make_*.py` scripts pack with a checkpoint: config, digests of the tool's own export, the tool's logits."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

SIZES = {
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24,
    "num_hidden_layers": 2, "vocab_size": 51, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
    "tie_word_embeddings": False, "hidden_act": "silu", "dtype": "float32",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
TOKENS = torch.tensor([[3, 50, 7, 7, 0, 12, 41]])


@contextmanager
def packed(name: str) -> Iterator[Path]:
    """A folder for all processes, which becomes `NAME.tar.xz` beside this file."""
    folder = Path(tempfile.gettempdir()) / name
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    dist.barrier()
    yield folder
    dist.barrier()
    if dist.get_rank() == 0:
        with tarfile.open(Path(__file__).with_name(f"{name}.tar.xz"), "w:xz", preset=9) as archive:
            archive.add(folder, name)
        shutil.rmtree(folder)


def fill(parameters: Mapping[str, torch.Tensor], seed: int = 0) -> None:
    """Weights that differ everywhere, norms too; rounded so that they can be compressed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(parameters.items()):
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        with torch.no_grad():
            parameter.copy_(
                (noise + 1 if "norm" in name and parameter.dim() == 1 else noise).bfloat16()
            )


def write(
    folder: Path,
    config: Mapping[str, Any],
    export: Mapping[str, torch.Tensor],
    logits: torch.Tensor,
) -> None:
    """`export` are the tensors under Hugging Face names as the tool itself converts them."""
    (folder / "config.json").write_text(json.dumps(SIZES | dict(config), indent=1) + "\n")
    digests(folder / "export.json", export)
    save_file(
        {"tokens": TOKENS, "logits": logits.detach().float().contiguous()},
        folder / "logits.safetensors",
    )


def digests(path: Path, export: Mapping[str, torch.Tensor]) -> None:
    """{name: [shape, digest]} of tensors under Hugging Face names."""
    table = {
        name: [
            list(tensor.shape),
            hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest(),
        ]
        for name, tensor in sorted(export.items())
    }
    path.write_text(json.dumps(table, indent=1) + "\n")
