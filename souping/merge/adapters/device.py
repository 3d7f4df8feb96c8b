"""Products of adapters where a live module is: the sum of `Product.added`, done by a GPU.

Not run on a GPU by the project's tests, which give it CPU tensors: there its numbers equal the CPU path's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from souping.merge.adapters.factors import Product
from souping.merge.kernels import Float32

if TYPE_CHECKING:
    import torch


class DeviceProduct:
    """A product held on `device` in fp64, which CUDA has and which keeps the sum independent of its order."""

    def __init__(self, made: Product, device: Any) -> None:
        import torch

        self._left = torch.tensor(made.left, dtype=torch.float64, device=device)
        self._right = torch.tensor(made.right, dtype=torch.float64, device=device)

    def added(self, base: Float32, start: int) -> torch.Tensor:
        """`base` [n, columns] (rows from `start` of the weight) plus the product, rounded to fp32, on the device."""
        import torch

        rows = torch.tensor(base, device=self._left.device).double()
        return rows.addmm_(self._left[start : start + len(base)], self._right).float()
