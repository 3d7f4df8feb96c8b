"""The tensors of a poured module as a checkpoint has them, in chunks that fit a buffer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Named = tuple[str, "torch.Tensor"]


def stored_names(folder: Path) -> frozenset[str]:
    """The tensor names of a folder's safetensors files, from their headers."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return frozenset(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names.update(opened.keys())
    return frozenset(names)


def tied(folder: Path) -> bool:
    """Whether a checkpoint holds no head of its own: its embeddings are the head too."""
    return not any(name.endswith("lm_head.weight") for name in stored_names(folder))


def checkpoint_tensors(module: Any, stored: frozenset[str]) -> list[Named] | None:
    """(name, tensor) of everything that a checkpoint holds of this module; a tied weight once, under a stored name.

    None where the module's names are not the checkpoint's, as for experts that transformers stacks when it loads them.
    """
    groups: dict[tuple[int, tuple[int, ...]], list[Named]] = {}
    for name, tensor in module.state_dict().items():
        groups.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append((name, tensor))
    found: list[Named] = []
    for group in groups.values():
        known = [(name, tensor) for name, tensor in group if name in stored]
        if not known:
            return None
        found.append(known[0])
    return found


def chunks(tensors: Iterable[Named], size: int) -> Iterator[list[Named]]:
    """Runs of tensors of one dtype (so that each starts where its dtype may) of at most `size` bytes together; a
    larger tensor is a run by itself.
    """
    run: list[Named] = []
    total = 0
    for name, tensor in tensors:
        if run and (total + tensor.nbytes > size or tensor.dtype != run[0][1].dtype):
            yield run
            run, total = [], 0
        run.append((name, tensor))
        total += tensor.nbytes
    if run:
        yield run


def pack(run: Iterable[Named], buffer: torch.Tensor) -> list[int]:
    """Copy the tensors one after another into a buffer of bytes; the sizes in bytes."""
    import torch

    sizes: list[int] = []
    start = 0
    for _, tensor in run:
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        buffer[start : start + flat.numel()].copy_(flat)
        start += flat.numel()
        sizes.append(flat.numel())
    return sizes
