"""Checkpoints that real trainers wrote (`tests/data/trainers`), and what they hold."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.folder import Like
from souping.checkpoints.reader import WeightReader

ARCHIVES = Path(__file__).parents[1] / "data" / "trainers"
TOOLS = sorted(path.name.removesuffix(".tar.xz") for path in ARCHIVES.glob("*.tar.xz"))


def unpacked(folder: Path, *names: str) -> Path:
    for name in names:
        with tarfile.open(ARCHIVES / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    return folder


def step_of(case: Path) -> Path:
    """The folder of the checkpoint; beside it are config.json, export.json and logits.safetensors."""
    return next(path for path in case.iterdir() if path.is_dir())


def opened_case(case: Path) -> Checkpoint:
    return Checkpoint.open(step_of(case), allow_pickle=True, like=Like(case))


def tensors_of(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """The tensors of a checkpoint in float32."""
    arrays = {}
    with WeightReader(checkpoint) as reader:
        for name, tensor in checkpoint.tensors.items():
            raw = np.empty(tensor.nbytes, np.uint8)
            reader.read(checkpoint.file_number(tensor), raw, tensor.offset)
            arrays[name] = raw.view(np.float32).reshape(tensor.shape)
    return arrays
