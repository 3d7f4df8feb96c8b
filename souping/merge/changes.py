"""What a soup of adapters makes of one parameter of its base, kind by kind.

With weights w_i, a parameter W of the base becomes W + sum_i w_i d_i, where d_i is
  factors            s B A, for fused experts one product each
  DoRA               m * (W + s B A) / |W + s B A| - W, with a length for each output of the layer
  `lora_bias`        s b
  a trained tensor   T - W (`modules_to_save`, `bias`), or only in its rows (`trainable_token_indices`)

All but DoRA are linear in what an adapter stores, so a soup that is one of them in each parameter can stay an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from souping.checkpoints.header import Tensor
from souping.checkpoints.lora import Adapter, FactorPair, TrainedTensor
from souping.checkpoints.views import Float32
from souping.core.types import FloatArray
from souping.merge.factors import (
    FULL,
    AdapterShare,
    Product,
    TensorReader,
    blocks_of,
    product,
    rounded,
)
from souping.merge.sites import Site

TrainedShare = tuple[str, TrainedTensor, float]
"""(name of an adapter, its tensor, its weight in the soup)."""


@dataclass(frozen=True)
class Change:
    """Shares of the adapters that change one parameter, in the recipe's order."""

    site: Site
    pairs: list[AdapterShare] = field(default_factory=list)
    trained: list[TrainedShare] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """The ways in which the parameter is changed. One of them but DoRA can be kept in an adapter."""
        kinds = {part.setting for _, part, _ in self.trained}
        for _, pair, _ in self.pairs:
            if pair.target:
                kinds.add(PARAMETERS)
            else:
                kinds.add(FACTORS if pair.magnitude is None else DORA)
        return sorted(kinds)

    @property
    def rows(self) -> list[int]:
        """The rows that adapters replace, if they replace rows only."""
        rows = set[int]()
        for _, part, _ in self.trained:
            rows.update(part.rows or ())
        return sorted(rows)


FACTORS = "factors"
DORA = "use_dora"
PARAMETERS = "target_parameters"
Changes = Mapping[str, Change]
"""{parameter: its change}"""


def changes_of(
    sites: Mapping[str, Site], adapters: Mapping[str, Adapter], weights: Mapping[str, float]
) -> dict[str, Change]:
    """{parameter: what the adapters with a weight make of it}."""
    changes = dict[str, Change]()
    for name, weight in weights.items():
        for pair in adapters[name].parts.values():
            key = pair.parameter
            changes.setdefault(key, Change(sites[key])).pairs.append((name, pair, weight))
        for part in adapters[name].trained:
            key = part.parameter
            changes.setdefault(key, Change(sites[key])).trained.append((name, part, weight))
    return changes


class Update:
    """The soup's values of one parameter. `base` is the name of the base in the `reader`.

    If the soup stays an adapter, its tensors are rounded to `dtype`, and its rank is at most `limit`.
    """

    def __init__(
        self,
        change: Change,
        reader: TensorReader,
        base: str,
        dtype: str = FULL,
        limit: int | None = None,
    ) -> None:
        self._change = change
        self._reader = reader
        self._base = base
        self._dtype = dtype
        transposed = change.site.transposed
        linear = [share for share in change.pairs if share[1].magnitude is None]
        self._product: Product | None = None
        if linear:
            self._product = product(reader, linear, dtype, transposed, limit)
        self._doras = list[tuple[float, _Dora]]()
        for name, pair, weight in change.pairs:
            if pair.magnitude is not None:
                self._doras.append((weight, _Dora(reader, name, pair, change.site, self.base_rows)))

    def blocks(self) -> Iterator[tuple[int, Float32]]:
        """(first row, the soup's rows from there on) of all blocks of the parameter."""
        for start, count in blocks_of(self._change.site.tensor.shape):
            yield start, self.added(self.base_rows(start, count), start)

    def stored_blocks(self) -> Iterator[tuple[Tensor, Float32]]:
        """(tensor of the base's files, the soup's next rows of it) of all blocks, tensor by tensor."""
        site = self._change.site
        for start, block in self.blocks():
            if not site.pieces:
                yield site.tensor, block
                continue
            pieces = site.pieces_of(start, len(block))
            yield from zip(pieces, block.reshape(len(pieces), *pieces[0].shape), strict=True)

    def base_rows(self, start: int, count: int) -> Float32:
        """`count` rows of the parameter in the base from row `start` on; zeros if the base has none."""
        site = self._change.site
        shape = (count, *site.tensor.shape[1:])
        if site.absent:
            return np.zeros(shape, np.float32)
        if site.pieces:
            pieces = site.pieces_of(start, count)
            rows = [self._reader.rows(self._base, piece) for piece in pieces]
            return np.concatenate(rows).reshape(shape)
        return self._reader.rows(self._base, site.tensor, start, count)

    def added(self, base: Float32, start: int) -> Float32:
        """`base` [n, ...], rows of the parameter from `start` on, with all changes: fp64, rounded to fp32."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            total = base.astype(np.float64)
            if self._product is not None:
                total = self._product.total(base, start)
            for weight, dora in self._doras:
                total += weight * (dora.rows(base, start) - base)
            total += self._rounded_trained(base, start)
            return total.astype(np.float32)

    def _rounded_trained(self, base: Float32, start: int) -> FloatArray:
        """`_exact_trained`, rounded as a kept adapter in `dtype` stores it: as T, or if it is added to W as T - W."""
        exact = self._exact_trained(base, start)
        if self._dtype == FULL or not self._change.trained:
            return exact
        # A kept adapter changes a parameter in one way.
        adds = self._change.trained[0][1].adds
        origin = 0 if adds else base
        change = rounded(exact + origin, self._dtype).astype(np.float64) - origin
        rows = self._change.rows
        if rows:
            # The other rows are the base's, unrounded.
            others = np.setdiff1d(np.arange(start, start + len(base)), rows)
            change[others - start] = 0
        return change

    def _exact_trained(self, base: Float32, start: int) -> FloatArray:
        """sum_i w_i d_i of the tensors without factors, in fp64."""
        total = np.zeros(base.shape)
        for name, part, weight in self._change.trained:
            if part.rows is None:
                at = np.arange(len(base))
                values = self._reader.rows(name, part.tensor, start, len(base))
            else:
                rows = np.array(part.rows)
                inside = (rows >= start) & (rows < start + len(base))
                at = rows[inside] - start
                values = self._reader.rows(name, part.tensor)[inside]
            own = part.scaling * values.astype(np.float64)
            total[at] += weight * (own if part.adds else own - base[at])
        return total

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of what a kept adapter stores for tensors without factors."""
        shape = self._change.site.tensor.shape
        rows = self._change.rows
        return (len(rows), *shape[1:]) if rows else shape

    def stored(self) -> Iterator[Float32]:
        """What a kept adapter stores for tensors without factors, in blocks: the soup's values, or what is added."""
        if self._change.trained[0][1].adds:
            nothing = np.zeros(self.stored_shape, np.float32)
            yield self._exact_trained(nothing, 0).astype(np.float32)
        elif self._change.rows:
            for row in self._change.rows:
                yield self.added(self.base_rows(row, 1), row)
        else:
            for _, block in self.blocks():
                yield block


class _Dora:
    """One adapter's weight by DoRA: the sum of the base and s B A, each output scaled to the length `magnitude`.

    The weight is a matrix: PEFT trains no DoRA on fused experts.
    """

    def __init__(
        self,
        reader: TensorReader,
        name: str,
        pair: FactorPair,
        site: Site,
        base_rows: Callable[[int, int], Float32],
    ) -> None:
        """`base_rows` gives rows of the base's weight, by the first and their number."""
        assert pair.magnitude is not None
        self._magnitude = reader.rows(name, pair.magnitude).astype(np.float64)
        self._product = product(reader, [(name, pair, 1.0)], FULL, site.transposed)
        self._squares: FloatArray | None = None
        if site.transposed:
            # Outputs are columns, whose lengths need all rows.
            self._squares = np.zeros(len(self._magnitude))
            for start, count in blocks_of(site.tensor.shape):
                rows = self._product.total(base_rows(start, count), start)
                self._squares += np.square(rows).sum(axis=0)

    def rows(self, base: Float32, start: int) -> FloatArray:
        """Rows of that weight from row `start` on; `base` [n, columns] are the base's."""
        total = self._product.total(base, start)
        if self._squares is not None:
            total *= self._magnitude / np.sqrt(self._squares)
            return total
        lengths = np.sqrt(np.square(total).sum(axis=1))
        total *= (self._magnitude[start : start + len(base)] / lengths)[:, None]
        return total
