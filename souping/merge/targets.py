"""Where in a live module each tensor of a checkpoint goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.merge.kernels import Raw
from souping.merge.layout import PlannedTensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Target:
    """A parameter or buffer; `flat` are its bytes where it lies in CPU memory in one piece, else None."""

    tensor: torch.Tensor
    pointer: int
    dtype: str
    flat: Raw | None


TAGS = {
    "float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


TORCH_DTYPES = {tag: name for name, tag in TAGS.items()}


class Targets:
    """A module's parameters and persistent buffers by the names that checkpoints use."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._found: dict[str, Target] = {}

    def match(self, tensors: Iterable[PlannedTensor]) -> dict[str, Target] | None:
        """{tensor name: target}, each storage once (tied parameters share one).

        Tensors the module has no use for are left out, as loading does. None where names or shapes do not cover the
        module, as for mixtures of experts, whose experts transformers stacks when it loads them.
        """
        named = self._named()
        found: dict[str, Target] = {}
        taken: set[int] = set()
        for tensor in tensors:
            place = self._lookup(tensor.name, named)
            if place is None:
                continue
            if tuple(place.shape) != tensor.shape:
                return None
            target = self._target(tensor.name, place)
            if target.pointer not in taken or not tensor.nbytes:
                taken.add(target.pointer)
                found[tensor.name] = target
        return found if self._covered(named, taken) else None

    def resize(self, tensors: Iterable[PlannedTensor]) -> None:
        """Give the module's embeddings the soup's number of rows, where they differ."""
        embeddings = getattr(self._module, "get_input_embeddings", lambda: None)()
        weight: Any = getattr(embeddings, "weight", None)
        if weight is None:
            return
        named = self._named()
        for tensor in tensors:
            place = self._lookup(tensor.name, named)
            if place is not None and place is weight:
                if tensor.shape[0] != place.shape[0]:
                    self._module.resize_token_embeddings(tensor.shape[0], mean_resizing=False)
                return

    def _named(self) -> Mapping[str, torch.Tensor]:
        state: Mapping[str, torch.Tensor] = self._module.state_dict(keep_vars=True)
        return state

    def _lookup(self, name: str, named: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """By its own name; with the base model's prefix added, or taken off, as transformers does."""
        prefix = f"{getattr(self._module, 'base_model_prefix', '')}."
        for key in (name, prefix + name, name.removeprefix(prefix)):
            if key in named:
                return named[key]
        return None

    def _target(self, name: str, tensor: torch.Tensor) -> Target:
        """Remembered between pours, as long as the storage stays where it is."""
        pointer = tensor.data_ptr()
        known = self._found.get(name)
        if known is None or known.pointer != pointer or known.tensor is not tensor:
            known = Target(tensor, pointer, TAGS.get(str(tensor.dtype).removeprefix("torch."), ""), _flat(tensor))
            self._found[name] = known
        return known

    def _covered(self, named: Mapping[str, torch.Tensor], taken: set[int]) -> bool:
        """Whether every parameter is filled."""
        own = [named[name] for name, _ in self._module.named_parameters() if name in named]
        return all(tensor.data_ptr() in taken for tensor in own)


def _flat(tensor: torch.Tensor) -> Raw | None:
    """The tensor's own bytes as numpy, or None off the CPU or where it is not contiguous."""
    import torch

    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.numel() == 0:
        return None
    view: Raw = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return np.asarray(view)
