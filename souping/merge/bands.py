"""Pieces of a tensor: bands of rows that the same ingredients have (one band, unless vocabularies differ)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from souping.merge.header import BITS
from souping.merge.layout import Piece, Source
from souping.merge.methods import Method
from souping.merge.slots import Slot


@dataclass(frozen=True)
class Mix:
    """How this tensor is mixed: `weights` are the models' (a base model is one more source, the last, without one)."""

    method: Method
    weights: tuple[float, ...]
    dtype: str
    divisor: float | None


def bands(slot: Slot, sources: Sequence[Source], mix: Mix) -> tuple[Piece, ...]:
    """The pieces of a float tensor in row order."""
    width = 1
    for size in slot.shape[1:]:
        width *= size
    rows = [part.shape[0] if part.shape else 1 for part in slot.parts]
    top = slot.shape[0] if slot.shape else 1
    edges = sorted({min(r, top) for r in rows} | {top}) if slot.uneven else [top]
    pieces, start = [], 0
    for edge in edges:
        have = [i for i, r in enumerate(rows) if r >= edge]
        moved = {i: _shift(sources[i], start * width) for i in have}
        pieces.append(_band(start * width, (edge - start) * width, moved, mix))
        start = edge
    return tuple(pieces)


def _band(start: int, count: int, have: dict[int, Source], mix: Mix) -> Piece:
    """The piece of the ingredients in `have`. Where a model lacks these rows the others' weights keep the same sum."""
    base = len(mix.weights) if mix.method.base and len(mix.weights) in have else None
    weights = {i: mix.weights[i] for i in have if i != base and mix.weights[i] != 0}
    if not weights:  # rows that no weighted model has: as the base, or the first that has them, stores them
        weights = {base if base is not None else min(have): 1.0}
        base = None
    elif len(weights) < sum(w != 0 for w in mix.weights):
        scale = sum(mix.weights) / sum(weights.values())
        weights = {i: w * scale for i, w in weights.items()}
    parts, values = [have[i] for i in weights], tuple(weights.values())
    if values == (1.0,) and mix.divisor is None:
        same = parts[0].dtype == mix.dtype
        return Piece("copy" if same else "linear", start, count, tuple(parts), values)
    if mix.method.base and base is None:
        total = sum(values)
        return Piece("linear", start, count, tuple(parts), tuple(v / total for v in values))
    if base is not None:
        parts, values = [have[base], *parts], (0.0, *values)
    return Piece("mix", start, count, tuple(parts), values)


def _shift(source: Source, elements: int) -> Source:
    return replace(source, offset=source.offset + elements * BITS[source.dtype] // 8) if elements else source
