"""Tensors that lie in pieces: boxes of a tensor in several files, and views that move its elements.

Sharded checkpoints store a tensor as boxes, each row-major in some file. A model's tensor is a list of views of stored
tensors whose elements, one after the other, are the wanted ones. Both are read by range, so memory stays small.
"""

from __future__ import annotations

import itertools
import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from souping.checkpoints.header import Tensor, size_of

Shape: TypeAlias = tuple[int, ...]
Raw: TypeAlias = "NDArray[np.uint8]"
Fetch = Callable[[str, Raw, int], None]
"""fetch(file, buffer to fill, byte offset)"""
SCRATCH = 8 << 20
"""Bytes that are read at once, at most, to pick elements from."""
WASTE = 16
"""Elements that may be read for one that is wanted, before a view is read in smaller pieces."""
SMALL = 1 << 15
"""Bytes that are as quickly read as a second request is made."""
MAX_CELLS = 1 << 22
FEW = 16
"""Parts of a tensor that are as quickly looked through one by one."""
KEPT = threading.local()


@dataclass(frozen=True)
class View:
    """Elements of a stored tensor in another order.

    All numbers are in elements of the row-major `source`: element (i, j, ..) is at offset + i * strides[0] + ...
    """

    source: str
    offset: int
    shape: Shape
    strides: Shape

    @classmethod
    def of(cls, source: str, shape: Shape) -> View:
        """A whole tensor as it is."""
        return cls(source, 0, shape, row_major(shape))

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def contiguous(self) -> bool:
        return all(n == 1 or a == b for n, a, b in zip(self.shape, self.strides, row_major(self.shape), strict=True))


@dataclass(frozen=True)
class Part:
    """Box of a stored tensor, row-major at byte `offset` of `file`; it begins at `start` of the tensor."""

    file: str
    offset: int
    start: Shape
    sizes: Shape

    @property
    def count(self) -> int:
        return math.prod(self.sizes)


def row_major(shape: Shape) -> Shape:
    """The strides of a contiguous array, in elements."""
    return tuple(itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[::-1] if shape else ()


def boxes(shape: Shape, start: int, count: int) -> Iterator[tuple[Shape, Shape]]:
    """Elements `start .. start + count` of a row-major array as boxes (low, high), in order.

    Each is one index in the leading dimensions, a range in one, and everything in the others.
    """
    steps, end = row_major(shape), start + count
    while start < end:
        level = next(d for d, step in enumerate(steps) if start % step == 0 and end - start >= step)
        low = [start // step % size for step, size in zip(steps, shape, strict=True)]
        taken = min((end - start) // steps[level], shape[level] - low[level])
        sizes = [1] * level + [taken, *shape[level + 1 :]]
        yield tuple(low), tuple(a + n for a, n in zip(low, sizes, strict=True))
        start += taken * steps[level]


class StoredTensor:
    """Tensor as a training program stored it: boxes that tile it, in any number of files.

    Raises:
        ValueError: they leave a hole, overlap or stand out.
    """

    def __init__(self, dtype: str, shape: Shape, parts: Sequence[Part]) -> None:
        self.dtype, self.shape, self.size = dtype, shape, size_of(dtype)
        self.parts = tuple(part for part in parts if part.count)
        self._shape = shape or (1,)
        self._boxes = [(part.start or (0,), part.sizes or (1,)) for part in self.parts]
        if any(len(low) != len(self._shape) or len(sizes) != len(self._shape) for low, sizes in self._boxes):
            raise ValueError("a part of it has another number of dimensions")
        self._low = np.array([low for low, _ in self._boxes], np.int64).reshape(-1, len(self._shape))
        self._high = self._low + np.array([s for _, s in self._boxes], np.int64).reshape(-1, len(self._shape))
        self._check_cover()
        self._runs = self._contiguous()
        self._starts = [run[0] for run in self._runs]

    @classmethod
    def of(cls, tensor: Tensor) -> StoredTensor:
        """A tensor that is whole in one file."""
        return cls(
            tensor.dtype, tensor.shape, [Part(tensor.file, tensor.offset, (0,) * len(tensor.shape), tensor.shape)]
        )

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def files(self) -> set[str]:
        return {part.file for part in self.parts}

    def _check_cover(self) -> None:
        if any((self._low < 0).ravel()) or any((self._high > np.array(self._shape)).ravel()):
            raise ValueError("a part of it lies outside its shape")
        if sum(part.count for part in self.parts) != self.count:
            raise ValueError("its parts leave a hole, or overlap")
        if len(self.parts) < 2:
            return
        edges = [np.unique(np.concatenate([self._low[:, d], self._high[:, d]])) for d in range(len(self._shape))]
        if math.prod(len(edge) - 1 for edge in edges) > MAX_CELLS:
            raise ValueError("its parts form no grid")
        seen = np.zeros([len(edge) - 1 for edge in edges], np.uint8)
        for low, high in zip(self._low, self._high, strict=True):
            places = (slice(*np.searchsorted(edge, (a, b))) for edge, a, b in zip(edges, low, high, strict=True))
            cell = seen[tuple(places)]
            if cell.any():
                raise ValueError("its parts overlap")
            cell[...] = 1

    def _contiguous(self) -> list[tuple[int, int, str, int]]:
        """The parts as runs (first element, end, file, byte offset) in order; empty unless all are contiguous."""
        runs = []
        steps = row_major(self._shape)
        for part, (low, sizes) in zip(self.parts, self._boxes, strict=True):
            split = next((d for d, size in enumerate(sizes) if size > 1), len(sizes) - 1)
            if sizes[split + 1 :] != self._shape[split + 1 :]:
                return []
            first = sum(a * step for a, step in zip(low, steps, strict=True))
            runs.append((first, first + part.count, part.file, part.offset))
        return sorted(runs)

    def read(self, start: int, into: Raw, fetch: Fetch) -> None:
        """Fill `into` with the elements from `start` on."""
        if self._runs:
            self._read_runs(start, into, fetch)
            return
        for low, high in boxes(self._shape, start, len(into) // self.size):
            taken = math.prod(b - a for a, b in zip(low, high, strict=True)) * self.size
            self._read_box(low, high, into[:taken], fetch)
            into = into[taken:]

    def _read_runs(self, start: int, into: Raw, fetch: Fetch) -> None:
        number = bisect_right(self._starts, start) - 1
        while len(into):
            first, end, file, offset = self._runs[number]
            taken = min(len(into), (end - start) * self.size)
            fetch(file, into[:taken], offset + (start - first) * self.size)
            start, into, number = end, into[taken:], number + 1

    def _read_box(self, low: Shape, high: Shape, into: Raw, fetch: Fetch) -> None:
        """A box of `boxes`: what a part has of it is contiguous in the part's file."""
        whole = elements(into, self.size).reshape([b - a for a, b in zip(low, high, strict=True)])
        for part, begin, sizes in self._meeting(low, high):
            first = [max(a, b) for a, b in zip(begin, low, strict=True)]
            last = [min(a + n, b) for a, n, b in zip(begin, sizes, high, strict=True)]
            steps = zip(first, begin, row_major(sizes), strict=True)
            offset = part.offset + sum((a - b) * step for a, b, step in steps) * self.size
            target = whole[tuple(slice(a - c, b - c) for a, b, c in zip(first, last, low, strict=True))]
            if target.flags.c_contiguous:
                fetch(part.file, target.reshape(-1).view(np.uint8), offset)
                continue
            scratch = scratch_of("box", target.size * self.size)
            fetch(part.file, scratch, offset)
            target[...] = elements(scratch, self.size).reshape(target.shape)

    def _meeting(self, low: Shape, high: Shape) -> Iterator[tuple[Part, Shape, Shape]]:
        """(part, its start, its sizes) of those that have something of a box."""
        numbers: Iterable[int] = range(len(self.parts))
        if len(self.parts) > FEW:
            numbers = np.flatnonzero(((self._low < high) & (self._high > low)).all(axis=1)).tolist()
        for number in numbers:
            begin, sizes = self._boxes[number]
            if all(a < h and a + n > b for a, n, b, h in zip(begin, sizes, low, high, strict=True)):
                yield self.parts[number], begin, sizes


def scratch_of(use: str, nbytes: int) -> Raw:
    """Memory of this thread for one use, which the next use of that kind overwrites."""
    kept: dict[str, Raw] = vars(KEPT)
    if use not in kept or len(kept[use]) < nbytes:
        kept[use] = np.empty(nbytes, np.uint8)
    return kept[use][:nbytes]


def elements(raw: Raw, size: int) -> NDArray[Any]:
    """Bytes as elements of so many bytes."""
    return raw.view(f"u{size}") if size <= 8 else raw.view("V16")


def widen(raw: Raw, dtype: str) -> NDArray[np.float32]:
    """Bytes [count * itemsize] of `dtype` as fp32 [count], exactly."""
    if dtype == "F32":
        return raw.view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


@dataclass(frozen=True)
class Assembly:
    """Model's tensors made of views of stored ones, one behind the other as if they were in one file."""

    stored: Mapping[str, StoredTensor]
    tensors: Sequence[Tensor]
    views: Mapping[str, Sequence[View]]

    @classmethod
    def of(
        cls, stored: Mapping[str, StoredTensor], views: Mapping[str, Sequence[View]], shapes: Mapping[str, Shape]
    ) -> Assembly:
        """The tensors of `views` in the order of their names.

        Raises:
            ValueError: a view reads beyond its tensor, mixes dtypes, or the elements are not as many as the shape's.
        """
        tensors, offset = [], 0
        for name in sorted(views):
            dtype = check_views(views[name], stored, shapes[name])
            nbytes = math.prod(shapes[name]) * size_of(dtype)
            tensors.append(Tensor(name, dtype, shapes[name], "", offset, nbytes))
            offset += nbytes
        return cls(stored, tuple(tensors), views)

    @property
    def nbytes(self) -> int:
        return self.tensors[-1].offset + self.tensors[-1].nbytes if self.tensors else 0

    @cached_property
    def _places(self) -> list[int]:
        return [tensor.offset for tensor in self.tensors]

    @cached_property
    def _as_stored(self) -> list[tuple[StoredTensor, int] | None]:
        """For each tensor, where its elements are in a row: a stored tensor, and an element of that."""
        views = (self.views[tensor.name] for tensor in self.tensors)
        alone = [own[0] if len(own) == 1 and own[0].contiguous else None for own in views]
        return [None if view is None else (self.stored[view.source], view.offset) for view in alone]

    def fetch(self, into: Raw, offset: int, fetch: Fetch) -> None:
        """Fill `into` with the bytes from `offset` on."""
        number = bisect_right(self._places, offset) - 1
        while len(into):
            tensor, row = self.tensors[number], self._as_stored[number]
            first = offset - tensor.offset
            taken = min(len(into), tensor.nbytes - first)
            start = first // size_of(tensor.dtype)
            if row is not None:
                row[0].read(row[1] + start, into[:taken], fetch)
            else:
                read(self.views[tensor.name], start, into[:taken], self.stored, fetch)
            offset, into, number = offset + taken, into[taken:], number + 1


def check_views(views: Sequence[View], stored: Mapping[str, StoredTensor], shape: Shape) -> str:
    """The dtype of a tensor made of views (ValueError: they do not fit the stored tensors, or the shape)."""
    for view in views:
        if view.source not in stored:
            raise ValueError(f"there is no tensor {view.source}")
        last = view.offset + sum((n - 1) * step for n, step in zip(view.shape, view.strides, strict=True))
        if min((view.offset, *view.shape, *view.strides)) < 0 or (view.count and last >= stored[view.source].count):
            raise ValueError(f"{view.source} {list(stored[view.source].shape)} is too small for it")
    dtypes = {stored[view.source].dtype for view in views}
    if len(dtypes) != 1:
        raise ValueError(f"it would mix {' and '.join(sorted(dtypes)) or 'nothing'}")
    if sum(view.count for view in views) != math.prod(shape):
        raise ValueError(f"{sum(view.count for view in views)} elements are not those of the shape {list(shape)}")
    return dtypes.pop()


def read(views: Sequence[View], start: int, into: Raw, stored: Mapping[str, StoredTensor], fetch: Fetch) -> None:
    """Fill `into` with the elements from `start` on of the views, taken one after the other."""
    for view in views:
        source = stored[view.source]
        taken = min(max(view.count - start, 0), len(into) // source.size)
        if taken:
            _read_view(view, source, start, into[: taken * source.size], fetch)
            into = into[taken * source.size :]
        start = max(start - view.count, 0)


def _read_view(view: View, source: StoredTensor, start: int, into: Raw, fetch: Fetch) -> None:
    if view.contiguous:
        source.read(view.offset + start, into, fetch)
        return
    for low, high in boxes(view.shape, start, len(into) // source.size):
        sizes = [b - a for a, b in zip(low, high, strict=True)]
        taken = math.prod(sizes) * source.size
        first = view.offset + sum(a * step for a, step in zip(low, view.strides, strict=True))
        _gather(source, first, view.strides, elements(into[:taken], source.size).reshape(sizes), fetch)
        into = into[taken:]


def _gather(source: StoredTensor, first: int, strides: Shape, out: NDArray[Any], fetch: Fetch) -> None:
    """Fill an array whose element (i, ..) is at first + i * strides[0] + .. of the stored tensor."""
    reach = [(n - 1) * step for n, step in zip(out.shape, strides, strict=True)]
    span = sum(reach) + 1
    if span * source.size <= SCRATCH and (span <= WASTE * out.size or span * source.size <= SMALL):
        scratch = scratch_of("view", span * source.size)
        source.read(first, scratch, fetch)
        steps = tuple(step * source.size for step in strides)
        out[...] = as_strided(elements(scratch, source.size), out.shape, steps)
        return
    widest = reach.index(max(reach))
    half = out.shape[widest] // 2
    for begin, end in ((0, half), (half, out.shape[widest])):
        place = (*[slice(None)] * widest, slice(begin, end))
        _gather(source, first + begin * strides[widest], strides, out[place], fetch)
