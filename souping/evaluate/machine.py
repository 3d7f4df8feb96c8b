"""The machine that answers: how a live module is loaded, and in which batches and threads it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.folder import has_weights, read_model_config, setting
from souping.core.fields import Precision
from souping.core.protocols import ModuleSettings
from souping.core.system import cores
from souping.core.types import Item, Items, frozen

SMALL_MODEL_PARAMETERS = 50_000_000
"""Parameters below which one thread is the default."""


@frozen
class MachineSettings:
    """Settings of a live module. They are part of the fingerprint, because they change logits in the last digits.

    Inputs are computed in batches of `batch_size`, which `workers` threads of Python share. Each of them uses `threads`
    torch threads. `dtype` and `threads` are None for the default.
    """

    batch_size: int
    dtype: str | None
    device: str
    threads: int | None
    trust_remote_code: bool
    workers: int = 1

    @property
    def resolved_dtype(self) -> str:
        """Dtype that the module computes in; `auto` is the checkpoint's own, which is not known here."""
        if self.dtype is not None:
            return self.dtype
        return "float32" if self.resolved_device == "cpu" else "auto"

    @property
    def resolved_threads(self) -> int:
        """Torch threads of each worker; by default one per core, at most 8."""
        return self.threads or min(cores(), 8)

    @property
    def resolved_device(self) -> str:
        """The device; `auto` is the GPU if this machine has one, else the CPU."""
        if self.device != "auto":
            return self.device
        # Without a driver torch is not imported, as it may not be installed.
        if not Path("/dev/nvidiactl").exists():
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def module_settings(self) -> ModuleSettings:
        return ModuleSettings(
            device=self.resolved_device,
            dtype=self.resolved_dtype,
            trust_remote_code=self.trust_remote_code,
        )


def dtype_of(architecture_folder: Path) -> Precision | None:
    """Dtype that a module of these candidates computes in on a GPU: the dtype of the folder's weights, or that of its
    config if the folder has no weights; None if the config names a dtype that is not a `Precision`.
    """
    if has_weights(architecture_folder):
        return compute_dtype(open_headers(architecture_folder))
    dtype = setting(read_model_config(architecture_folder), "dtype") or "float32"
    return next((name for name in get_args(Precision) if name == dtype), None)


def are_small(architecture_folder: Path) -> bool:
    """Whether the candidates are so small that one thread is enough; False if the folder has no weights to count."""
    if not has_weights(architecture_folder):
        return False
    return open_headers(architecture_folder).parameters < SMALL_MODEL_PARAMETERS


def open_headers(folder: Path) -> Checkpoint:
    """The tensors' names, dtypes and shapes in a folder of the pool. The pool has opened it before with the user's
    `merge.allow_pickle`, so a pickle is not refused again.
    """
    return Checkpoint.open(folder, allow_pickle=True)


def compute_dtype(model: Checkpoint) -> Precision:
    """The checkpoint's dtype by torch's name: the narrowest if it has several, float32 if torch computes in none."""
    dtypes: list[Precision] = ["float32"]
    # The checkpoint names its dtypes from the widest to the narrowest.
    for name in model.dtype.split("+"):
        dtypes += [precision for precision in get_args(Precision) if precision == name]
    return dtypes[-1]


def batches(items: Sequence[Item], size: int) -> list[Items]:
    """Items in batches of this size, in their order."""
    return [tuple(items[begin : begin + size]) for begin in range(0, len(items), size)]


def cut_by_length(items: Sequence[Item], length: Callable[[Item], int], size: int) -> list[Items]:
    """Batches of `size` items of similar `length` (little padding), in an order that depends on the items alone."""
    return batches(sorted(items, key=lambda item: (length(item), item.id)), size)


def repeat_size(size: int, sampled: bool, repeat: int) -> int:
    """Batch size for one of several answers to the same items; `repeat` counts these answers from 0 on.

    Repeated greedy answers differ by rounding alone, so they get batches of another size, with other neighbours.
    """
    if sampled or not repeat:
        return size
    return size // 2 if size > 1 else 2
