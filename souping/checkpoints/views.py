"""Tensors that are stored in pieces: boxes of a tensor in several files, and views that move its elements.

Sharded checkpoints store a tensor as boxes, each row-major in some file. A model's tensor is a view of the elements of
stored tensors. Both are read by range, so memory stays small.
"""

from __future__ import annotations

import itertools
import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import add, attrgetter, lt, mul, sub
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from souping.checkpoints.header import Tensor, size_of
from souping.core.types import IntArray

Shape: TypeAlias = tuple[int, ...]
Raw = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Fetch = Callable[[str, Raw, int], None]
"""fetch(file, buffer to fill, byte offset)"""
SCRATCH = 8 << 20
"""Bytes that are read at once, at most, to pick elements from."""
MAX_VIEW_PARTS = 1 << 16
FEW_PARTS = 16
"""Parts of a tensor up to which looking at each of them is as fast as an index."""


class Scratch(threading.local):
    """Memory of each thread, {use: bytes}."""

    def __init__(self) -> None:
        self.buffers: dict[str, Raw] = {}


SCRATCH_OF_THREAD = Scratch()


@dataclass(frozen=True)
class View:
    """Tensor made of the elements of stored ones, the `sources`.

    An axis is (size, step in a source, jump from source to source): element (i, j, ..) of the axes is element
    `offset` + i * axes[0][1] + j * axes[1][1] + .. of source number i * axes[0][2] + .., each source being row-major.
    """

    shape: Shape
    sources: tuple[str, ...]
    offset: int
    axes: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, source: str, shape: Shape, offset: int = 0, full: Shape | None = None) -> View:
        """A stored tensor as it is; or of one of shape `full`, the box of this `shape` from element `offset` on."""
        steps = row_major(full or shape)
        axes = tuple((n, step, 0) for n, step in zip(shape, steps, strict=True))
        return cls(shape, (source,), offset, axes)

    @cached_property
    def sizes(self) -> Shape:
        return tuple(size for size, _, _ in self.axes)

    @cached_property
    def steps(self) -> Shape:
        """Elements in a source from one index of each axis to the next."""
        return tuple(step for _, step, _ in self.axes)

    @cached_property
    def contiguous(self) -> bool:
        """Whether the view's elements follow each other in one source."""
        return len(self.sources) == 1 and is_contiguous(self.sizes, self.steps)

    def read(
        self, start: int, into: Raw, stored: Mapping[str, StoredTensor], fetch: Fetch
    ) -> list[Tile]:
        """Fill `into` with the elements from `start` on; returns tiles, as `StoredTensor.read`."""
        first = stored[self.sources[0]]
        if self.contiguous:
            return first.read(self.offset + start, into, fetch)
        for low, high in boxes(self.sizes, start, len(into) // first.size):
            sizes = tuple(map(sub, high, low))
            nbytes = math.prod(sizes) * first.size
            box = elements(into[:nbytes], first.size).reshape(sizes)
            self._read_box(low, box, stored, fetch)
            into = into[nbytes:]
        return []

    def _read_box(
        self, low: Shape, out: NDArray[Any], stored: Mapping[str, StoredTensor], fetch: Fetch
    ) -> None:
        """Fill `out` with the box of the axes that begins at `low`, source by source."""
        jumps = tuple(jump for _, _, jump in self.axes)
        # Each index of an axis with a jump is in another source and is read alone; the other axes are read whole.
        ranges = list[range]()
        for first, count, jump in zip(low, out.shape, jumps, strict=True):
            ranges.append(range(first, first + count if jump else first + 1))

        # `index` is where in the view each gathered box begins.
        for index in itertools.product(*ranges):
            source = self.sources[dot(index, jumps)]
            begin = self.offset + dot(index, self.steps)
            place = list[slice]()
            for i, first, jump in zip(index, low, jumps, strict=True):
                place.append(slice(i - first, i - first + 1) if jump else slice(None))
            gather(stored[source], begin, self.steps, out[tuple(place)], fetch)


@dataclass(frozen=True)
class Part:
    """Box of a stored tensor, from `start` of the tensor on and of `sizes`; row-major at byte `offset` of `file`."""

    file: str
    offset: int
    start: Shape
    sizes: Shape

    @property
    def count(self) -> int:
        return math.prod(self.sizes)


@dataclass(frozen=True)
class Box:
    """Part of a tensor whose dimensions are joined: indexes `low` to `high`, not included.

    Element (i, ..) of the tensor is at byte `origin` + i * steps[0] + .. of `file`.
    """

    low: Shape
    high: Shape
    file: str
    origin: int
    steps: Shape


class Tile(NamedTuple):
    """Box that was read part by part: its elements are in the order of the parts, for `arrange`.

    `at` is its first element in what was read, `cuts` are (place in the box, sizes) of each part.
    """

    at: int
    sizes: Shape
    cuts: list[tuple[Shape, Shape]]


@lru_cache(maxsize=1 << 12)
def row_major(shape: Shape) -> Shape:
    """The strides of a contiguous array, in elements."""
    if not shape:
        return ()
    return tuple(itertools.accumulate(reversed(shape[1:]), mul, initial=1))[::-1]


def dot(index: Shape, steps: Shape) -> int:
    """Elements, or bytes, from the start to an index of an array with these steps."""
    return sum(map(mul, index, steps))


def is_contiguous(shape: Shape, steps: Shape) -> bool:
    """Whether steps through an array are those of a contiguous one."""
    return all(n == 1 or a == b for n, a, b in zip(shape, steps, row_major(shape), strict=True))


@lru_cache(maxsize=1 << 8)  # all ingredients of a soup are read in the same blocks
def boxes(shape: Shape, start: int, count: int) -> list[tuple[Shape, Shape]]:
    """Elements `start .. start + count` of a row-major array as boxes (low, high), in order.

    Each is one index in the leading dimensions, a range in one, and everything in the others.
    """
    ranges = []
    steps = row_major(shape)
    end = start + count
    while start < end:
        # The outermost dimension of which a whole index begins here and fits; as many indexes as fit.
        level = next(d for d, step in enumerate(steps) if start % step == 0 and end - start >= step)
        low = [start // step % size for step, size in zip(steps, shape, strict=True)]
        indexes = min((end - start) // steps[level], shape[level] - low[level])
        sizes = [1] * level + [indexes, *shape[level + 1 :]]
        ranges.append((tuple(low), tuple(map(add, low, sizes))))
        start += indexes * steps[level]
    return ranges


class StoredTensor:
    """Tensor as a training program stored it: boxes that tile it, in any number of files."""

    def __init__(self, dtype: str, shape: Shape, parts: Sequence[Part]) -> None:
        """Raises ValueError if the parts leave a hole, overlap, or are outside of the shape."""
        self.dtype = dtype
        self.shape = shape
        self.size = size_of(dtype)
        self.parts = tuple(part for part in parts if part.count)
        # A scalar is one element of one dimension.
        sizes = shape or (1,)
        for part in self.parts:
            _check_inside(part, sizes)
        # A dimension that no part cuts is joined to the one before: then most tensors have one dimension, or two.
        edges = [0]
        for d in range(1, len(sizes)):
            if any(part.sizes[d] != sizes[d] for part in self.parts):
                edges.append(d)
        groups = list(itertools.pairwise([*edges, len(sizes)]))
        self._shape = tuple(math.prod(sizes[a:b]) for a, b in groups)
        self._boxes = [self._box(part, sizes, groups) for part in self.parts]
        # Parts that are whole rows are then read in the order of the tensor.
        self._boxes.sort(key=attrgetter("low"))
        self._check_cover()

    def _box(self, part: Part, sizes: Shape, groups: Sequence[tuple[int, int]]) -> Box:
        """A part in the joined dimensions of a tensor of `sizes`; a group (a, b) is the dimensions a .. b - 1."""
        start = part.start or (0,)
        # In the other dimensions of a group, which no part cuts, every part begins at 0.
        low = tuple(start[a] * math.prod(sizes[a + 1 : b]) for a, b in groups)
        counts = tuple(math.prod((part.sizes or (1,))[a:b]) for a, b in groups)
        steps = tuple(step * self.size for step in row_major(counts))
        origin = part.offset - dot(low, steps)
        return Box(low, tuple(map(add, low, counts)), part.file, origin, steps)

    @classmethod
    def of(cls, tensor: Tensor) -> StoredTensor:
        """A tensor that is whole in one file."""
        part = Part(tensor.file, tensor.offset, (0,) * len(tensor.shape), tensor.shape)
        return cls(tensor.dtype, tensor.shape, [part])

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def _check_cover(self) -> None:
        """Raises ValueError unless every element is in one part: their counts sum to all, and no two overlap."""
        if sum(part.count for part in self.parts) != self.count:
            raise ValueError("its parts leave a hole, or overlap")
        if len(self.parts) > MAX_VIEW_PARTS:
            raise ValueError("it has too many parts")
        for low, high in zip(*self._edges, strict=True):
            # Every box overlaps itself.
            if len(self._overlapping(low, high)) > 1:
                raise ValueError("its parts overlap")

    @cached_property
    def _edges(self) -> tuple[IntArray, IntArray]:
        """(`low`, `high`) of all boxes [boxes, dimensions]."""
        shape = (-1, len(self._shape))
        low = np.array([box.low for box in self._boxes], np.int64)
        high = np.array([box.high for box in self._boxes], np.int64)
        return low.reshape(shape), high.reshape(shape)

    def _overlapping(self, low: Shape | IntArray, high: Shape | IntArray) -> list[int]:
        """The indexes in `_boxes` of those that have elements in common with the box from `low` to `high`."""
        lows, highs = self._edges
        common = ((lows < high) & (highs > low)).all(axis=1)
        numbers: list[int] = np.flatnonzero(common).tolist()
        return numbers

    def read(self, start: int, into: Raw, fetch: Fetch) -> list[Tile]:
        """Fill `into` with the elements from `start` on, and return the tiles that are still to be arranged.

        Elements outside of the tiles are in place.
        """
        tiles = list[Tile]()
        at = 0
        for low, high in boxes(self._shape, start, len(into) // self.size):
            sizes = tuple(map(sub, high, low))
            count = math.prod(sizes)
            cuts = self._read_box(low, high, into[at * self.size : (at + count) * self.size], fetch)
            # Parts that are not rows of the box follow each other in another order than its elements.
            if any(part_sizes[1:] != sizes[1:] for _, part_sizes in cuts):
                tiles.append(Tile(at, sizes, cuts))
            at += count
        return tiles

    def _read_box(
        self, low: Shape, high: Shape, into: Raw, fetch: Fetch
    ) -> list[tuple[Shape, Shape]]:
        """Fill `into` with a box of `boxes`, part by part; returns (place in the box, sizes) of each part's share.

        The share is contiguous in the part's file: one index, then a range, then all that the part has.
        """
        cuts = []
        candidates = self._boxes
        if len(candidates) > FEW_PARTS:
            candidates = [self._boxes[number] for number in self._overlapping(low, high)]
        for box in candidates:
            first = tuple(map(max, box.low, low))
            last = tuple(map(min, box.high, high))
            if not all(map(lt, first, last)):
                continue
            sizes = tuple(map(sub, last, first))
            nbytes = math.prod(sizes) * self.size
            fetch(box.file, into[:nbytes], box.origin + dot(first, box.steps))
            into = into[nbytes:]
            cuts.append((tuple(map(sub, first, low)), sizes))
        return cuts


def _check_inside(part: Part, sizes: Shape) -> None:
    """Raises ValueError for a part that is not inside a tensor of these sizes."""
    start = part.start or (0,)
    if len(start) != len(sizes):
        raise ValueError("a part of it is outside of its shape")
    for first, count, size in zip(start, part.sizes or (1,), sizes, strict=True):
        if first < 0 or first + count > size:
            raise ValueError("a part of it is outside of its shape")


def arrange(raw: Raw, size: int, tiles: Sequence[Tile]) -> None:
    """Put the elements (of `size` bytes) of tiles into the order of their tensor, in place."""
    for begin, sizes, cuts in tiles:
        flat = elements(raw, size)[begin : begin + math.prod(sizes)]
        in_parts = elements(scratch_of("tile", flat.nbytes), size)
        in_parts[:] = flat
        tile = flat.reshape(sizes)
        at = 0
        for low, part_sizes in cuts:
            count = math.prod(part_sizes)
            place = tuple(map(slice, low, map(add, low, part_sizes)))
            tile[place] = in_parts[at : at + count].reshape(part_sizes)
            at += count


def gather(source: StoredTensor, first: int, steps: Shape, out: NDArray[Any], fetch: Fetch) -> None:
    """Fill `out`, whose element (i, ..) is element first + i * steps[0] + .. of the stored tensor."""
    # `read` leaves some elements in the order of their parts; `arrange` puts them in order.
    if out.flags.c_contiguous and is_contiguous(out.shape, steps):
        raw = out.reshape(-1).view(np.uint8)
        arrange(raw, source.size, source.read(first, raw, fetch))
        return
    # `span` elements of the stored tensor lie between the first and the last of the array.
    distances = [(n - 1) * step for n, step in zip(out.shape, steps, strict=True)]
    span = sum(distances) + 1
    if span * source.size <= SCRATCH:
        scratch = scratch_of("view", span * source.size)
        arrange(scratch, source.size, source.read(first, scratch, fetch))
        strides = tuple(step * source.size for step in steps)
        out[...] = as_strided(elements(scratch, source.size), out.shape, strides)
        return
    # Too many to read at once: one half of the axis that spans the most elements, then the other half.
    widest = distances.index(max(distances))
    half = out.shape[widest] // 2
    for begin, end in ((0, half), (half, out.shape[widest])):
        place = (*[slice(None)] * widest, slice(begin, end))
        gather(source, first + begin * steps[widest], steps, out[place], fetch)


def scratch_of(use: str, nbytes: int) -> Raw:
    """Memory of this thread for one use; the next call for the same use gets the same memory."""
    buffers = SCRATCH_OF_THREAD.buffers
    if len(buffers.get(use, ())) < nbytes:
        buffers[use] = np.empty(nbytes, np.uint8)
    return buffers[use][:nbytes]


def elements(raw: Raw, size: int) -> NDArray[Any]:
    """Bytes as elements of `size` bytes each."""
    return raw.view(f"u{size}")


def widen(raw: Raw, dtype: str) -> Float32:
    """Bytes [count * itemsize] of `dtype` as fp32 [count], exactly."""
    if dtype == "F32":
        return raw.view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


@dataclass(frozen=True)
class Assembly:
    """Tensors of a model that are views of stored ones, with consecutive places, as if they were in one file."""

    stored: Mapping[str, StoredTensor]
    tensors: Sequence[Tensor]
    views: Mapping[str, View]

    @classmethod
    def of(cls, stored: Mapping[str, StoredTensor], views: Mapping[str, View]) -> Assembly:
        """The tensors of `views` in the order of their names."""
        tensors = []
        offset = 0
        for name in sorted(views):
            dtype = stored[views[name].sources[0]].dtype
            shape = views[name].shape
            nbytes = math.prod(shape) * size_of(dtype)
            tensors.append(Tensor(name, dtype, shape, "", offset, nbytes))
            offset += nbytes
        return cls(stored, tuple(tensors), views)

    @cached_property
    def _places(self) -> list[int]:
        return [tensor.offset for tensor in self.tensors]

    def fetch(self, into: Raw, offset: int, fetch: Fetch, tiles: list[Tile] | None = None) -> None:
        """Fill `into` with the bytes from `offset` on.

        With a list for `tiles`, the elements of tiles stay in the order of their parts, and the tiles, with places in
        `into`, are added to the list.
        """
        number = bisect_right(self._places, offset) - 1
        at = 0  # elements of `into` that are filled
        while len(into):
            tensor = self.tensors[number]
            first = offset - tensor.offset
            size = size_of(tensor.dtype)
            piece = into[: tensor.nbytes - first]
            view = self.views[tensor.name]
            piece_tiles = view.read(first // size, piece, self.stored, fetch)
            if tiles is None:
                arrange(piece, size, piece_tiles)
            else:
                tiles += [Tile(at + begin, sizes, cuts) for begin, sizes, cuts in piece_tiles]
            offset = offset + len(piece)
            into = into[len(piece) :]
            number = number + 1
            at = at + len(piece) // size
