"""Factors A and B of a soup of adapters, and the weights they make, on the CPU or on a GPU.

A soup of adapters i with weights w_i is sum_i w_i s_i B_i A_i. It is kept as one pair of factors of rank sum_i r_i:
A = [A_1; A_2; ...] and B = [w_1 s_1 B_1, w_2 s_2 B_2, ...], so the product of the pair is that sum. Averaging A and B
themselves would add products of unlike adapters, B_i A_j, which nobody trained.

The form for GPUs was not run on one by the project's tests, which give it CPU tensors: there its numbers equal the CPU
path's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.dtypes import size_of
from souping.checkpoints.header import Tensor
from souping.checkpoints.lora import FactorPair
from souping.core.text import shown
from souping.core.types import UserError
from souping.merge.kernels.gpu import add_product
from souping.merge.kernels.reference import Float32, Raw, narrow, widen

if TYPE_CHECKING:
    import torch

Float64 = NDArray[np.float64]
Rows = tuple[int, int]
Read = Callable[[str, Tensor, int, int], Raw]
"""read(checkpoint's name, tensor, first element, number of elements) -> their bytes"""
Share = tuple[str, FactorPair, float]
"""An adapter's name, its part of a module, and its weight."""
Check = Callable[[Float32, str, Tensor], None]
"""check(values, name, tensor) judges NaN and infinity in what was read"""
ELEMENTS = 1 << 20  # of a weight that are worked on at once: memory does not grow with the model


class FileReader:
    """Reader of tensors of opened checkpoints from their files, whole or a UserError."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._checkpoints, self._stack = dict(checkpoints), ExitStack()
        self._open: dict[Path, int] = {}

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, name: str, tensor: Tensor, start: int, count: int) -> Raw:
        size = size_of(tensor.dtype)
        path = self._checkpoints[name].folder / tensor.file
        raw = os.pread(self._descriptor(path), count * size, tensor.offset + start * size)
        if len(raw) != count * size:
            raise UserError(f"{path}, tensor {shown(tensor.name)}: the file ends early: it has changed, start again")
        return np.frombuffer(raw, np.uint8)

    def _descriptor(self, path: Path) -> int:
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))  # the system's
            self._stack.callback(os.close, self._open[path])
        return self._open[path]


def blocks_of(rows: int, columns: int) -> Iterator[Rows]:
    """(first row, number of rows) pieces of a weight."""
    step = max(1, ELEMENTS // max(columns, 1))
    for start in range(0, rows, step):
        yield start, min(step, rows - start)


def join(read: Read, shares: Sequence[Share], dtype: str, check: Check) -> list[Raw]:
    """The soup's A [sum of ranks, in] and B [out, sum of ranks] as bytes of `dtype`, each element rounded once.

    `check(values, name, tensor)` judges NaN and infinity in what was read.
    """
    left: list[Float32] = []
    right: list[Float32] = []
    for name, part, weight in shares:
        a, b = (_load(read, name, tensor, check) for tensor in (part.a, part.b))
        with np.errstate(over="ignore", invalid="ignore"):
            right.append((b.astype(np.float64) * (weight * part.scaling)).astype(np.float32))
        left.append(a)
    return [narrow(np.concatenate(left, 0).reshape(-1), dtype), narrow(np.concatenate(right, 1).reshape(-1), dtype)]


def _load(read: Read, name: str, tensor: Tensor, check: Check) -> Float32:
    values = widen(read(name, tensor, 0, tensor.count), tensor.dtype).reshape(tensor.shape)
    check(values, name, tensor)
    return values


class Product:
    """Soup's product at one site, as rows of the weight it is added to.

    `a` [rank, in] and `b` [out, rank] are fp32. A weight stored [in, out] gets the product transposed.
    """

    def __init__(self, a: Float32, b: Float32, transposed: bool) -> None:
        self.left: Float32 = a.T if transposed else b
        self.right: Float64 = (b.T if transposed else a).astype(np.float64)

    def added(self, base: Float32, start: int) -> Float32:
        """`base` [n, columns] (rows from `start` of the weight) plus the product, summed in fp64, rounded to fp32.

        fp64 keeps the sum independent of how a matrix library splits the work, so that pouring and writing agree.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            total = self.left[start : start + len(base)].astype(np.float64) @ self.right
            total += base
            return total.astype(np.float32)


def product(read: Read, shares: Sequence[Share], dtype: str, transposed: bool, check: Check) -> Product:
    """The product of shares whose soup is stored in `dtype`."""
    a, b = join(read, shares, dtype, check)
    rank = sum(part.rank for _, part, _ in shares)
    return Product(widen(a, dtype).reshape(rank, -1), widen(b, dtype).reshape(-1, rank), transposed)


log = logging.getLogger(__name__)


class Guard:
    """`nonfinite=error` refuses, `warn` lets through and says so once a tensor."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint], nonfinite: str) -> None:
        self._checkpoints, self._nonfinite = dict(checkpoints), nonfinite
        self._warned: set[str] = set()

    def __call__(self, values: Float32, name: str, tensor: Tensor) -> None:
        """Judge values that were read from a checkpoint."""
        if not np.isfinite(values).all():
            path = self._checkpoints[name].folder / tensor.file
            self._complain(f"NaN or infinity in tensor {shown(tensor.name)} in {path}")

    def soup(self, values: Float32, tensor: str) -> None:
        """Judge values of the soup whose parts were finite."""
        if not np.isfinite(values).all():
            self._complain(f"overflow to infinity in tensor {shown(tensor)} of the soup")

    def _complain(self, what: str) -> None:
        if self._nonfinite == "error":
            raise UserError(f"{what}. Set merge.nonfinite=warn to let it through.")
        if what not in self._warned:
            self._warned.add(what)
            log.warning("%s", what)


class DeviceProduct:
    """Product held on `device` in fp64, which CUDA has and which keeps the sum independent of its order."""

    def __init__(self, made: Product, device: torch.device) -> None:
        import torch

        self._left = torch.tensor(made.left, dtype=torch.float64, device=device)
        self._right = torch.tensor(made.right, dtype=torch.float64, device=device)

    def added(self, base: Float32, start: int) -> torch.Tensor:
        """`base` [n, columns] (rows from `start` of the weight) plus the product, rounded to fp32, on the device."""
        return add_product(base, self._left[start : start + len(base)], self._right)
