"""Soup of adapters: its factors A and B, the weights that they make, and both as folders.

A soup of adapters i with weights w_i is sum_i w_i s_i B_i A_i. It is kept as one pair of factors of rank sum_i r_i:
A = [A_1; A_2; ...] and B = [w_1 s_1 B_1, w_2 s_2 B_2, ...], so the product of the pair is that sum. Averaging A and B
themselves would add products of different adapters, B_i A_j, which were never trained. With `merge.rank` = r below that
rank, the pair is the best one of rank r for the same product.

Fused experts have such a pair each: then A is [experts, rank, in] and B is [experts, out, rank] here. PEFT stores A as
[experts * rank, in] and B as [out, rank * experts], so the columns of one expert's B do not follow each other.

With `merge.adapters=keep` the pair is written as an adapter that PEFT loads, with `merge` as a full model:
base + sum_i w_i s_i B_i A_i, rounded once to the output dtype.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from souping.checkpoints.checkpoint import Checkpoints
from souping.checkpoints.header import Tensor, size_of
from souping.checkpoints.lora import FactorPair
from souping.checkpoints.views import Float32, widen
from souping.core.text import shown
from souping.core.types import FloatArray, UserError
from souping.merge import Nonfinite
from souping.merge.rounding import narrow

log = logging.getLogger(__name__)
# of a weight that are worked on at once: memory does not grow with the model
FACTOR_BLOCK_ELEMENTS = 1 << 20
FULL = "F32"
"""Dtype of the factors whose product a full model gets."""
AdapterShare = tuple[str, FactorPair, float]
"""(name of an adapter, its factors in a module, its weight in the soup)."""
AdapterShares = Mapping[str, Sequence[AdapterShare]]
"""{module: shares of the adapters that change it}, in the recipe's order."""


class TensorReader:
    """fp32 values of open checkpoints' tensors. NaN and infinity are refused, or reported once (`nonfinite=warn`)."""

    def __init__(self, checkpoints: Checkpoints, nonfinite: Nonfinite = "warn") -> None:
        self._checkpoints = checkpoints
        self._nonfinite = nonfinite
        self._reported: set[str] = set()

    def rows(self, name: str, tensor: Tensor, start: int = 0, count: int | None = None) -> Float32:
        """`count` rows from row `start` (default: all) of a tensor of the checkpoint called `name`.

        Raises:
            UserError: the file ends early, or a value is not finite.
        """
        path = self._checkpoints[name].folder / tensor.file
        size = math.prod(tensor.shape[1:]) * size_of(tensor.dtype)
        length = (tensor.shape[0] if count is None else count) * size
        with path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), length, tensor.offset + start * size)
        raw = np.frombuffer(data, np.uint8)
        if len(raw) != length:
            raise UserError(
                f"{path}, tensor {shown(tensor.name)}: the file ends early. Start again."
            )
        values = widen(raw, tensor.dtype).reshape(-1, *tensor.shape[1:])
        self._check(values, f"NaN or infinity in tensor {shown(tensor.name)} in {path}")
        return values

    def check_soup(self, values: Float32, tensor: str) -> None:
        """Check values of the soup: its parts were finite, so infinity is an overflow."""
        self._check(values, f"overflow to infinity in tensor {shown(tensor)} of the soup")

    def _check(self, values: Float32, what: str) -> None:
        """Refuse NaN and infinity, or warn once; `what` is the message."""
        if what in self._reported or np.isfinite(values).all():
            return
        if self._nonfinite == "error":
            raise UserError(f"{what}. Set merge.nonfinite=warn to let it through.")
        self._reported.add(what)
        log.warning("%s", what)


def blocks_of(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of each block of a weight: about FACTOR_BLOCK_ELEMENTS, at least one row."""
    step = max(1, FACTOR_BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(step, shape[0] - start)


def join(
    reader: TensorReader, shares: Sequence[AdapterShare], rank: int
) -> tuple[Float32, Float32]:
    """The soup's A [rank, in] and B [out, rank] of a module, or of each of its experts.

    A `rank` above the sum of the adapters' ranks adds zeros, one below it truncates the product.
    """
    a, b = concatenated(reader, shares)
    if rank < a.shape[-2]:
        a, b = truncated(a, b, rank)
    zeros = rank - a.shape[-2]
    before = [(0, 0)] * (a.ndim - 2)
    a = np.pad(a, (*before, (0, zeros), (0, 0)))
    b = np.pad(b, (*before, (0, 0), (0, zeros)))
    return a, b


def unpacked(pair: FactorPair, a: Float32, b: Float32) -> tuple[Float32, Float32]:
    """A [experts * rank, in] and B [out, rank * experts], or rows of it, by expert; others as they are."""
    if pair.experts is None:
        return a, b
    by_expert = b.reshape(len(b), -1, pair.experts)
    return a.reshape(pair.experts, -1, a.shape[1]), np.moveaxis(by_expert, -1, 0)


def concatenated(reader: TensorReader, shares: Sequence[AdapterShare]) -> tuple[Float32, Float32]:
    """A = [A_1; A_2; ...] and B = [w_1 s_1 B_1, w_2 s_2 B_2, ...] of a module, or of each of its experts."""
    a = list[Float32]()
    b = list[Float32]()
    for name, pair, weight in shares:
        own_a, own_b = unpacked(pair, reader.rows(name, pair.a), reader.rows(name, pair.b))
        a.append(own_a)
        # Overflows are found when the soup's values are checked.
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = own_b.astype(np.float64) * (weight * pair.scaling)
            b.append(scaled.astype(np.float32))
    return np.concatenate(a, axis=-2), np.concatenate(b, axis=-1)


@dataclass(frozen=True)
class ProductSvd:
    """Singular value decomposition of B A = U diag(S) V: U [out, R], S [R], V [R, in]; of experts, one each."""

    u: FloatArray
    values: FloatArray
    v: FloatArray

    @classmethod
    def of(cls, a: Float32, b: Float32) -> ProductSvd:
        """By QR: with B = Q_b R_b and A' = Q_a R_a, B A = Q_b (R_b R_a') Q_a'. B A itself is never made."""
        q_b, r_b = np.linalg.qr(b.astype(np.float64))
        q_a, r_a = np.linalg.qr(a.mT.astype(np.float64))
        u, values, v = np.linalg.svd(r_b @ r_a.mT)
        return cls(q_b @ u, values, v @ q_a.mT)


def truncated(a: Float32, b: Float32, rank: int) -> tuple[Float32, Float32]:
    """(A, B) of this rank whose product is nearest to B A in the Frobenius norm (Eckart and Young 1936)."""
    svd = ProductSvd.of(a, b)
    root = np.sqrt(svd.values[..., :rank])
    left = svd.u[..., :rank] * root[..., None, :]
    right = root[..., None] * svd.v[..., :rank, :]
    return right.astype(np.float32), left.astype(np.float32)


def truncation_error(reader: TensorReader, shares: AdapterShares, rank: int) -> float:
    """|truncated - sum| / |sum| of a soup that is truncated to `rank`, over all modules together (Frobenius norms)."""
    # Squared Frobenius norms: sums of squared singular values.
    lost = 0.0
    total = 0.0
    for module_shares in shares.values():
        squares = ProductSvd.of(*concatenated(reader, module_shares)).values ** 2
        lost += float(squares[..., rank:].sum())
        total += float(squares.sum())
    return math.sqrt(lost / total) if total else 0.0


class Product:
    """Soup's product at one site, as rows of the weight it is added to. A row of fused experts is one expert.

    `a` [rank, in] and `b` [out, rank] are fp32. A weight stored [in, out] gets the product transposed.
    """

    def __init__(self, a: Float32, b: Float32, transposed: bool) -> None:
        self.left: Float32 = a.mT if transposed else b
        self.right: FloatArray = (b.mT if transposed else a).astype(np.float64)

    def total(self, base: Float32, start: int) -> FloatArray:
        """`base` [n, columns], the rows of the weight from `start` on, plus the product, in fp64.

        fp64 keeps the sum independent of how a matrix library splits the work, so that loading and writing agree.
        """
        rows = slice(start, start + len(base))
        right = self.right if self.right.ndim == 2 else self.right[rows]
        total: FloatArray = self.left[rows].astype(np.float64) @ right
        total += base
        return total


def product(
    reader: TensorReader,
    shares: Sequence[AdapterShare],
    dtype: str,
    transposed: bool,
    limit: int | None = None,
) -> Product:
    """The product of one module's soup, whose factors are rounded to `dtype` and have at most the rank `limit`."""
    rank = min(rank_of(shares), limit or rank_of(shares))
    a, b = join(reader, shares, rank)
    return Product(rounded(a, dtype), rounded(b, dtype), transposed)


def rounded(values: FloatArray | Float32, dtype: str) -> Float32:
    """Values as a file of `dtype` holds them."""
    raw = narrow(values.astype(np.float32).reshape(-1), dtype)
    return widen(raw, dtype).reshape(values.shape)


def rank_of(shares: Sequence[AdapterShare]) -> int:
    """The sum of the adapters' ranks in a module."""
    return sum(pair.rank for _, pair, _ in shares)


def soup_rank(shares: AdapterShares, limit: int | None) -> int:
    """The rank of all modules: the largest, but not above `limit`. Not all servers read PEFT's `rank_pattern`."""
    largest = max(map(rank_of, shares.values()), default=1)
    return min(largest, limit or largest)
