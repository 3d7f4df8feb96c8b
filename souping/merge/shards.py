"""Places in the output: which shard a tensor goes to, and where in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from souping.merge.checkpoint import SINGLE
from souping.merge.header import BITS
from souping.merge.layout import Piece, PlannedTensor
from souping.merge.slots import Slot


@dataclass(frozen=True)
class Draft:
    """A tensor of the soup before it has a place."""

    slot: Slot
    dtype: str
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        count = 1
        for size in self.slot.shape:
            count *= size
        return count * BITS[self.dtype] // 8


def place(drafts: Sequence[Draft], limit: int) -> tuple[tuple[PlannedTensor, ...], tuple[str, ...]]:
    """Fill shards in order up to `limit` bytes; inside a shard wide dtypes come first, so that all stay aligned."""
    groups: list[list[Draft]] = [[]]
    filled = 0
    for draft in drafts:
        if groups[-1] and filled + draft.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(draft)
        filled += draft.nbytes
    count = len(groups)
    names = (SINGLE,) if count == 1 else tuple(f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count))
    placed = []
    for shard, group in enumerate(groups):
        offset = 0
        for draft in sorted(group, key=lambda d: -BITS[d.dtype]):
            placed.append(
                PlannedTensor(draft.slot.name, draft.dtype, draft.slot.shape, shard, offset, draft.nbytes, draft.pieces)
            )
            offset += draft.nbytes
    return tuple(placed), names
