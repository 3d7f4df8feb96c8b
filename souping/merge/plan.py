"""Merge plan: plain data that says where every byte of the soup comes from and where it goes; and its work in chunks.

A tensor is cut into bands of rows that the same ingredients have (one, unless vocabularies differ). Bands that follow
each other in all files are joined to a chunk: contiguous bytes, which ranks share. A chunk is mixed block by block, a
block being what a thread holds at once. A saved plan holds the recipe, the folders and the sizes of their files;
`stored.load_plan` works it out again.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypedDict

import numpy as np
from annotated_types import Interval

from souping.checkpoints import Checkpoint
from souping.checkpoints.folder import INDEX, SINGLE
from souping.checkpoints.header import header_bytes, size_of
from souping.checkpoints.views import Raw, widen
from souping.core.text import safe, shown
from souping.core.types import FloatArray, Names, Recipe, UserError, frozen
from souping.merge import Format, Nonfinite, SoupPlan
from souping.merge.kernels import (
    BLOCK_ELEMENTS,
    Method,
    finite,
    get_method,
    gram,
    linear,
    mix_block,
    write_as,
)

log = logging.getLogger(__name__)

HUGE = 1e30  # no weight is larger; fp32 holds its products
MOST_INGREDIENTS = 1000
"""Ingredients of one soup at most."""
UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
Operation = Literal["mix", "linear", "copy", "same"]


class PlanFile(TypedDict):
    """Saved plan. A base model is the folder that is not an ingredient; `files` are {model: {file: bytes}}."""

    version: Literal[1]
    recipe: dict[str, Any]
    folders: dict[str, str]
    files: dict[str, dict[str, int]]
    carry: str
    like: str | None
    names: str | None
    format: Format
    max_shard_size: Annotated[int, Interval(ge=1, lt=2**62)]
    nonfinite: Nonfinite


@dataclass(frozen=True)
class Source:
    """Place of a band in one ingredient: indexes into the plan's ingredients and that one's files, in bytes."""

    ingredient: int
    file: int
    offset: int
    dtype: str


@dataclass(frozen=True)
class PlannedBand:
    """Elements `start .. start + count` of a tensor.

    `op` is mix (the plan's method), linear, copy (one source, same dtype) or
    same (not floats: all sources must agree).
    """

    op: Operation
    start: int
    count: int
    sources: tuple[Source, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class PlannedTensor:
    """Tensor of the soup: its place is `offset` bytes into the data of shard number `shard`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int
    bands: tuple[PlannedBand, ...]


@dataclass(frozen=True)
class Ingredient:
    """Checkpoint that is read, under its name in the recipe."""

    name: str
    checkpoint: Checkpoint

    @property
    def folder(self) -> str:
        return str(self.checkpoint.folder.resolve())

    @property
    def files(self) -> dict[str, int]:
        """{weight file: its size in bytes}"""
        return {name: self.checkpoint.stamps[name][0] for name in self.checkpoint.files}


class SoupFiles(Protocol):
    """Files around a soup's weights where they are not those of Hugging Face."""

    def prepare(self, stage: Path) -> None:
        """Make the files at their full size, with all but the weights in them."""
        ...

    def finish(self, stage: Path) -> None:
        """Write what depends on the weights, and what has to be written last."""
        ...


@frozen
class MergePlan(SoupPlan):
    """Recipe worked out to the byte. With a base model, that is the last ingredient.

    With a `frame` the shards are its files, and the places of tensors count from their start.
    """

    recipe: Recipe
    method: str
    dtype: str
    nonfinite: str
    carry: int
    vocab_size: int | None
    max_shard_size: int
    ingredients: tuple[Ingredient, ...]
    shards: Names
    tensors: tuple[PlannedTensor, ...]
    frame: SoupFiles | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of weights that are written."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that are read."""
        bands = (band for tensor in self.tensors for band in tensor.bands)
        return sum(band.count * size_of(source.dtype) for band in bands for source in band.sources)

    def header(self, shard: int) -> bytes:
        """The safetensors header of a shard with its length in front, padded to 8 bytes; empty in a frame."""
        if self.frame is not None:
            return b""
        return header_bytes(
            (t.name, t.dtype, t.shape, t.offset, t.nbytes) for t in self.tensors if t.shard == shard
        )

    def index(self) -> bytes | None:
        """`model.safetensors.index.json`, or None for a single file or a frame."""
        if self.shards == (SINGLE,) or self.frame is not None:
            return None
        places = {
            tensor.name: self.shards[tensor.shard]
            for tensor in sorted(self.tensors, key=lambda t: t.name)
        }
        return (
            json.dumps({"metadata": {"total_size": self.nbytes}, "weight_map": places}, indent=2)
            + "\n"
        ).encode()

    @property
    def carrier(self) -> str:
        """The ingredient whose config and tokenizer the soup gets."""
        return self.ingredients[self.carry].name

    def describe(self) -> str:
        """The plan in a few lines, for people."""
        lines = [
            f"{w:.6g} x {i.name}"
            for w, i in zip(self.recipe.weights, self.ingredients, strict=False)
        ]
        place = SINGLE if len(self.shards) == 1 else f"{len(self.shards)} shards and {INDEX}"
        if self.frame is not None:
            place = f"{len(self.shards)} files in the layout of {self.carrier}"
        read = human(self.read_bytes)
        written = human(self.nbytes)
        return safe(
            f"{self.method} soup {self.recipe.id}: {' + '.join(lines)}\n"
            f"{len(self.tensors)} tensors, {self.dtype}, reads {read}, writes {written} to {place}"
        )

    def save(self, path: Path) -> Path:
        table: PlanFile = {
            "version": 1,
            "recipe": self.recipe.as_dict(),
            "folders": {each.name: each.folder for each in self.ingredients},
            "files": {each.name: each.files for each in self.ingredients},
            "carry": self.carrier,
            "like": next(
                (str(one.resolve()) for each in self.ingredients if (one := each.checkpoint.like)),
                None,
            ),
            "names": next(
                (str(one.resolve()) for each in self.ingredients if (one := each.checkpoint.rules)),
                None,
            ),
            "format": "hf" if self.frame is None else "same",
            "max_shard_size": self.max_shard_size,
            "nonfinite": "warn" if self.nonfinite == "warn" else "error",
        }
        path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        return path


def check_ingredients(ingredients: Iterable[Ingredient]) -> None:
    """Raises UserError where a file of one of them is not the one that was opened."""
    for ingredient in ingredients:
        ingredient.checkpoint.check_unchanged()


def carried(carry: str | None, recipe: Recipe) -> str | None:
    """The ingredient that `merge.carry` names, where the recipe has it."""
    return carry if carry in recipe.ingredients else None


def base_name(names: Iterable[str]) -> str:
    """A name for the base model that none of the candidates has."""
    taken = set(names)
    name = "base"
    while name in taken:
        name += " model"
    return name


def human(nbytes: int) -> str:
    """Bytes in the decimal unit that reads best."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} B"


def parse_size(size: int | str) -> int:
    """Bytes in a size such as 5GB, 500MB or 1GiB; a bare number is bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(size), re.IGNORECASE)
    unit = match.group(2).upper() if match else "?"
    unit = unit if unit in UNITS else f"{unit}B"
    value = float(match.group(1)) * UNITS[unit] if match and unit in UNITS else 0
    if not 1 <= value < 1 << 62 or (unit == "" and value % 1):
        raise UserError(f"merge.max_shard_size={size} must be a positive size such as 5GB or 500MB")
    return int(value)


# ------------------------------------------------------------ chunks

WARNING_LOCK = threading.Lock()
# elements of all ingredients that a thread holds at once: memory does not grow with their number
THREAD_ELEMENTS = 1 << 21
# elements of a sum of inner products; a fixed step gives the same sums in every rank and pour
PRODUCT_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Chunk:
    """`count` elements of a shard from byte `offset` of its data, mixed by one rule from contiguous bytes.

    An `indivisible` chunk is a whole band that the method needs at once, so ranks do not share it.
    """

    op: str
    shard: int
    offset: int
    count: int
    dtype: str
    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    indivisible: bool = False

    @property
    def nbytes(self) -> int:
        return self.count * size_of(self.dtype)

    def part(self, start: int, count: int) -> Chunk:
        """Elements `start .. start + count` of this chunk."""
        if count == self.count:
            return self
        moved = tuple(replace(s, offset=s.offset + start * size_of(s.dtype)) for s in self.sources)
        offset = self.offset + start * size_of(self.dtype)
        return replace(self, offset=offset, count=count, sources=moved)


def chunks(plan: MergePlan) -> list[Chunk]:
    """The plan's bands in the order of the output, neighbours joined where nothing but the name changes."""
    joined: list[Chunk] = []
    for tensor in plan.tensors:
        for chunk in tensor_chunks(plan, tensor):
            if joined and _follows(joined[-1], chunk):
                joined[-1] = replace(joined[-1], count=joined[-1].count + chunk.count)
            else:
                joined.append(chunk)
    return joined


def tensor_chunks(plan: MergePlan, tensor: PlannedTensor) -> list[Chunk]:
    """One tensor's bands as chunks; empty ones are left out."""
    method = get_method(plan.method)
    made = []
    for band in (band for band in tensor.bands if band.count):
        whole = (method.whole or method.coefficients is not None) and band.op == "mix"
        offset = tensor.offset + band.start * size_of(tensor.dtype)
        made.append(
            Chunk(
                band.op,
                tensor.shard,
                offset,
                band.count,
                tensor.dtype,
                band.sources,
                band.weights,
                whole,
            )
        )
    return made


def _follows(a: Chunk, b: Chunk) -> bool:
    """Whether `b` continues `a` in the output and in every ingredient."""
    if (
        a.indivisible
        or b.indivisible
        or (a.op, a.shard, a.dtype, a.weights) != (b.op, b.shard, b.dtype, b.weights)
    ):
        return False
    return (
        a.offset + a.nbytes == b.offset
        and len(a.sources) == len(b.sources)
        and all(
            (s.ingredient, s.file, s.dtype) == (t.ingredient, t.file, t.dtype)
            and s.offset + a.count * size_of(s.dtype) == t.offset
            for s, t in zip(a.sources, b.sources, strict=True)
        )
    )


def share_of_rank(work: Sequence[Chunk], rank: int, ranks: int) -> list[Chunk]:
    """The chunks of one rank: as many bytes for each, cut at whole blocks (indivisible chunks stay whole)."""
    total = sum(chunk.nbytes for chunk in work)
    low = total * rank // ranks
    high = total * (rank + 1) // ranks
    share = []
    passed = 0
    for chunk in work:
        size = size_of(chunk.dtype)
        first, last = (_cut(chunk, edge - passed, size) for edge in (low, high))
        if last > first:
            share.append(chunk.part(first, last - first))
        passed += chunk.nbytes
    return share


def _cut(chunk: Chunk, nbytes: int, size: int) -> int:
    """The element at which a chunk is cut so that about `nbytes` come before."""
    if chunk.indivisible:
        return chunk.count if nbytes >= chunk.nbytes // 2 + 1 else 0
    return max(0, min(chunk.count, -(-max(nbytes, 0) // (size * BLOCK_ELEMENTS)) * BLOCK_ELEMENTS))


def blocks(chunk: Chunk, most: int | None = None, rows: int = THREAD_ELEMENTS) -> Iterator[Chunk]:
    """A chunk in blocks of at most `most` elements (default: BLOCK_ELEMENTS), fewer if all ingredients together would
    hold more than `rows`."""
    size = max(1 << 12, min(most or BLOCK_ELEMENTS, rows // max(1, len(chunk.sources)) & ~0xFFF))
    for start in range(0, chunk.count, size):
        yield chunk.part(start, min(size, chunk.count - start))


def name_at(plan: MergePlan, shard: int, offset: int) -> str:
    """The tensor that owns a byte of the output."""
    return next(
        t.name
        for t in plan.tensors
        if t.shard == shard and t.offset <= offset < t.offset + max(t.nbytes, 1)
    )


def complaint(plan: MergePlan, chunk: Chunk, what: str, source: Source | None) -> UserError:
    """An error that names the tensor and, if one is the cause, the ingredient's file."""
    name = shown(name_at(plan, chunk.shard, chunk.offset))
    where = ""
    if source is not None:
        owner = plan.ingredients[source.ingredient]
        file = (
            ""
            if owner.checkpoint.assembly is not None
            else f"/{owner.checkpoint.files[source.file]}"
        )
        where = f" in {owner.folder}{file}"
    return UserError(f"{what} in tensor {name}{where}")


def check_equal(plan: MergePlan, chunk: Chunk, rows: Sequence[Raw]) -> None:
    """Refuse values that are not floats and differ between the ingredients."""
    for source, row in zip(chunk.sources, rows, strict=True):
        if not np.array_equal(row, rows[0]):
            what = f"{chunk.dtype} values, copied only where all ingredients agree, differ"
            raise complaint(plan, chunk, what, source)


def check_finite(
    plan: MergePlan, chunk: Chunk, good: bool, rows: Sequence[Raw], warned: set[str]
) -> None:
    """NaN or infinity in a block of the soup: an error, or with `nonfinite=warn` one warning a tensor.

    `warned` holds the tensors that were warned of.
    """
    if good:
        return
    first = _first_bad(chunk, rows)
    guilty = None if first is None else chunk.sources[first[0]]
    at = chunk if first is None else chunk.part(first[1], 1)
    made = "overflow to infinity, or NaN from merge.method,"
    error = complaint(plan, at, made if guilty is None else "NaN or infinity", guilty)
    if plan.nonfinite == "error":
        raise UserError(f"{error}. Set merge.nonfinite=warn to let it through.")
    with WARNING_LOCK:
        if str(error) not in warned:
            warned.add(str(error))
            log.warning("%s", error)


def _first_bad(chunk: Chunk, rows: Sequence[Raw]) -> tuple[int, int] | None:
    """(source, element) of the first value that is not finite."""
    for number, (source, row) in enumerate(zip(chunk.sources, rows, strict=True)):
        bad = np.flatnonzero(~np.isfinite(widen(row, source.dtype)))
        if len(bad):
            return number, int(bad[0])
    return None


Read = Callable[[Chunk, int, Raw], None]
"""read(chunk, number of the source, buffer to fill)"""


def final_weights(method: Method, chunk: Chunk, read: Read) -> Chunk:
    """The chunk with its final weights, which may need statistics of the whole band."""
    if not chunk.indivisible:
        return chunk
    return replace(chunk, weights=method.weigh(chunk_gram(chunk, method.base, read), chunk.weights))


def mixed(
    plan: MergePlan, chunk: Chunk, rows: Sequence[Raw], out: Raw, out_dtype: str, warned: set[str]
) -> Raw:
    """The soup's bytes of a block from its sources' rows, as `out_dtype`: `out`, or the first row if it is a copy.

    Raises:
        UserError: values that have to agree differ, or one is NaN or infinite (or one warning a tensor).
    """
    if chunk.op == "same":
        check_equal(plan, chunk, rows)
        return rows[0]
    if chunk.op == "copy" and out_dtype == chunk.dtype:
        check_finite(plan, chunk, finite(rows[0], chunk.dtype), rows, warned)
        return rows[0]
    if chunk.op == "copy":
        good = write_as(rows[0], chunk.dtype, out, out_dtype)
    else:
        function = get_method(plan.method).function if chunk.op == "mix" else linear
        tags = [source.dtype for source in chunk.sources]
        good = mix_block(function, rows, tags, chunk.weights, chunk.dtype, out, out_dtype)
    check_finite(plan, chunk, good, rows, warned)
    return out


def chunk_gram(chunk: Chunk, base: bool, read: Read) -> FloatArray:
    """`kernels.gram` of the chunk's sources, summed block by block in fp64, so that they are never all in memory."""
    size = len(chunk.sources) - base
    total: FloatArray = np.zeros((size, size))
    for start in range(0, chunk.count, PRODUCT_ELEMENTS):
        part = chunk.part(start, min(PRODUCT_ELEMENTS, chunk.count - start))
        rows = [np.empty(part.count * size_of(s.dtype), np.uint8) for s in part.sources]
        for number, row in enumerate(rows):
            read(part, number, row)
        total += gram(
            [widen(row, s.dtype) for row, s in zip(rows, part.sources, strict=True)], base
        )
    return total


ThreadTask = Callable[[], None]


def run_tasks(tasks: Iterable[ThreadTask], threads: int) -> None:
    """Do all tasks, taken in order by so many threads. Raises what the first of them that failed raised."""
    queue, failures = iter(enumerate(tasks)), dict[int, BaseException]()
    lock = threading.Lock()

    def drain() -> None:
        while True:
            with lock:
                number, task = next(queue, (-1, None)) if not failures else (-1, None)
            if task is None:
                return
            try:
                task()
            except BaseException as error:
                failures[number] = error

    if threads == 1:
        drain()
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="souping") as pool:
            try:
                for done in [pool.submit(drain) for _ in range(threads)]:
                    done.result()
            except BaseException as error:  # an interrupt: the threads end at their next task
                failures[-1] = error
                raise
    if failures:
        raise failures[min(failures)]
