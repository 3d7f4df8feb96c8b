"""Values at fixed positions of a torch module's tensors."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from souping.checkpoints.header import TORCH_NAMES
from souping.core.protocols import WeightSamples

if TYPE_CHECKING:
    import torch

SAMPLED_VALUES = 256
"""Values of a tensor, at most: of a change to one element in twenty, they miss one in 500,000."""


def sample_weights(named: Iterable[tuple[str, torch.Tensor]]) -> WeightSamples:
    """Values at equal distances in each tensor of floats; others are unchecked."""
    import torch

    tensors = list[tuple[str, str, int]]()
    values = list[torch.Tensor]()
    unchecked = list[str]()
    for name, tensor in named:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in TORCH_NAMES or not tensor.numel():
            unchecked.append(name)
            continue
        positions = _positions(tensor.numel(), str(tensor.device))
        tensors.append((name, dtype, len(positions)))
        values.append(tensor.detach().take(positions).float())
    # One copy from the device.
    flat = torch.cat(values).cpu().numpy() if values else np.empty(0, np.float32)
    return WeightSamples(tensors=tuple(tensors), values=flat, unchecked=tuple(unchecked))


@lru_cache(maxsize=1024)
def _positions(count: int, device: str) -> torch.Tensor:
    import torch

    samples = min(count, SAMPLED_VALUES)
    positions = torch.arange(samples) * (count - 1) // max(1, samples - 1)
    return positions.to(device)
