"""Plan into a complete model folder: shards, config, tokenizer, chat template, recipe.

Blocks of the ingredients stream from their files through the method into the shards. Two threads each read N rows
at their places, mix them and write the block; numpy and the kernels release the interpreter's lock. Memory is a few
blocks a thread, whatever the size or the number of models.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import resource
import threading
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from souping.checkpoints import (
    GENERATION,
    HASHED_PIECE_BYTES,
    Checkpoint,
    WeightReader,
    eos_token_ids,
    fingerprint_of,
    hashed_files,
    hashed_groups,
    keep_digest,
    tensors_key,
)
from souping.checkpoints.folder import INDEX
from souping.checkpoints.header import TORCH_NAMES, Tensor, inside, parse_json, size_of, small
from souping.checkpoints.quantised import plain_config
from souping.checkpoints.views import Raw, Tile, arrange
from souping.core.folders import STAGING_MARK, staged, write_files
from souping.core.open_files import reserve, start_writing, write_at
from souping.core.types import Recipe, UserError
from souping.merge import Extra, OptionalProgress
from souping.merge.kernels import COMPILED_METHODS, get_method, linear
from souping.merge.plan import (
    Chunk,
    MergePlan,
    ThreadTask,
    blocks,
    check_ingredients,
    chunks,
    complaint,
    final_weights,
    mixed,
    run_tasks,
    share_of_rank,
)

CARD, RECIPE = "README.md", "recipe.json"
HASHED = 64 << 20
"""Bytes of the largest file whose digest recipe.json has."""
WRITER_THREADS = 2
RESERVE = 100  # files that libraries and the command line hold open
# bytes of a line of the cache, at which rows begin, each one further: else they would share a set of it
LINE = 64
LARGE = 4 << 20  # bytes from which numpy asks for large pages, in which copies are faster
WINDOW = 16 << 20  # bytes of a shard that go to the disk at once, behind the mixing


# Digests of files that are taken while the files are averaged, so that nothing is read twice. A recipe names its
# ingredients by their content. For a file without a known digest, a stand-in is used until averaging has read the file;
# the recipe that is written has the digests. A plan reads nothing and keeps stand-ins.


class StandIns(ChainMap[str, str]):
    """Known digests, and stand-ins for files that were not hashed yet; `pending` tells whether there are any."""

    pending = False

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        self.pending = True
        return f"not read yet: {key}"


@dataclass(frozen=True)
class Late:
    """What is written only once the ingredients were read: digests go to `known`, `files` are those of the recipe."""

    known: MutableMapping[str, str]
    files: Callable[[Recipe], Mapping[str, str]]


class PassingDigest:
    """SHA-256 of the tensors of one file from blocks that several threads feed in the order of the file; missing blocks
    are read."""

    def __init__(self, checkpoint: Checkpoint, group: Sequence[Tensor]) -> None:
        """Start before the first of the tensors, which are in the order of their bytes."""
        self._checkpoint = checkpoint
        self._group = group
        self._number = checkpoint.file_number(group[0])
        self._files = hashed_files(checkpoint, self._number)
        self._hashes = [hashlib.sha256() for _ in group]
        filled = [tensor for tensor in group if tensor.nbytes]
        self._next = {a.offset + a.nbytes: b.offset for a, b in itertools.pairwise(filled)}
        self._tensor = 0
        self._at = filled[0].offset if filled else 0
        self._promised = self._at
        self._broken = False
        self._turn = threading.Condition()

    def promise(self, offset: int, size: int) -> bool:
        """Whether a block continues what is promised so far. If so, the caller has to `feed` it, or to `abandon` all.

        All files' blocks are promised in one order, so threads never wait for each other in a circle.
        """
        follows = offset == self._promised
        if follows:
            self._promised = self._next.get(offset + size, offset + size)
        return follows

    def feed(self, offset: int, block: Raw) -> None:
        """Hash a promised block once those before it are hashed."""
        with self._turn:
            self._turn.wait_for(lambda: self._broken or offset == self._at)
            if self._broken:
                return
        at = self._hash(block)
        with self._turn:
            self._at = at
            self._turn.notify_all()

    def _hash(self, piece: Raw) -> int:
        """Hash what comes next; where that ends, or the next tensor begins."""
        at = self._at
        while len(piece):
            taken = min(len(piece), self._end(at) - at)
            self._hashes[self._tensor].update(piece[:taken].data)
            piece = piece[taken:]
            at = at + taken
        return self._next.get(at, at)

    def _end(self, at: int) -> int:
        """Where the tensor ends that comes next at a place."""
        while (end := self._group[self._tensor].offset + self._group[self._tensor].nbytes) <= at:
            self._tensor += 1
        return end

    def abandon(self) -> None:
        """Release the threads that wait for one that failed."""
        with self._turn:
            self._broken = True
            self._turn.notify_all()

    def finish(self) -> None:
        """Read and hash what was not fed."""
        with WeightReader(self._checkpoint) as reader:
            while self._at < self._group[-1].offset + self._group[-1].nbytes:
                piece = np.empty(min(HASHED_PIECE_BYTES, self._end(self._at) - self._at), np.uint8)
                reader.read(self._number, piece, self._at)
                self._at = self._hash(piece)

    def keep(self, known: MutableMapping[str, str]) -> None:
        """Add the finished digests to the known ones. Raises UserError where the file has changed."""
        values = " ".join(hashing.hexdigest() for hashing in self._hashes)
        keep_digest(tensors_key(self._checkpoint, self._files), self._files, values, known)


Digests = Mapping[tuple[int, int], PassingDigest]
"""By number of ingredient and of its file."""


def passing(plan: MergePlan, known: Mapping[str, str]) -> Digests:
    """A digest for every file of the plan that is not hashed yet, to be fed with what is read of it."""
    digests: dict[tuple[int, int], PassingDigest] = {}
    for place, each in enumerate(plan.ingredients):
        stored = each.checkpoint.quantised or each.checkpoint
        for group in hashed_groups(stored):
            number = stored.file_number(group[0])
            shared = any(a.offset + a.nbytes > b.offset for a, b in itertools.pairwise(group))
            if tensors_key(stored, hashed_files(stored, number)) not in known and not shared:
                # nothing is fed what was dequantised
                fed = number if stored is each.checkpoint else ~number
                digests[place, fed] = PassingDigest(stored, group)
    return digests


def with_contents(plan: MergePlan, known: MutableMapping[str, str]) -> MergePlan:
    """The plan with its ingredients' fingerprints, whose files have been hashed."""
    prints = {each.name: fingerprint_of(each.checkpoint, known) for each in plan.ingredients}
    recipe = replace(
        plan.recipe, fingerprints=tuple(prints[name] for name in plan.recipe.ingredients)
    )
    return replace(plan, recipe=recipe)


# Shards


class ShardWriter:
    """Plan with its files open: fills any share of shards that exist already (`prepare`)."""

    def __init__(self, plan: MergePlan, folder: Path, digests: Digests | None = None) -> None:
        """Open the files; `digests` are fed with what is read."""
        self.plan = plan
        self.method = get_method(plan.method)
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._done = 0
        self._warned: set[str] = set()
        self._digests: Digests = digests or {}
        raise_file_limit(
            sum(len(ingredient.files) for ingredient in plan.ingredients) + len(plan.shards)
        )
        try:
            self._inputs = [
                self._stack.enter_context(WeightReader(each.checkpoint))
                for each in plan.ingredients
            ]
            self._outputs = [self._open(folder / name) for name in plan.shards]
        except BaseException:
            self._stack.close()
            raise
        self._starts = [len(plan.header(shard)) for shard in range(len(plan.shards))]

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def fill(
        self,
        rank: int = 0,
        ranks: int = 1,
        threads: int = WRITER_THREADS,
        progress: OptionalProgress = None,
    ) -> None:
        """Write the blocks of one share.

        Raises:
            UserError: an ingredient ended early, a value is not finite, or the disk is full.
        """
        work = share_of_rank(chunks(self.plan), rank, ranks)
        self._done = 0
        run_tasks(self._tasks(work, sum(chunk.nbytes for chunk in work), progress), threads)

    def _tasks(
        self, work: list[Chunk], total: int, progress: OptionalProgress
    ) -> Iterator[ThreadTask]:
        """Blocks in order; an indivisible chunk gets its weights from its statistics first, then streams too."""
        for chunk in work:
            whole = chunk.indivisible and self.method.whole
            for block in (
                [chunk] if whole else self._cut(final_weights(self.method, chunk, self.read))
            ):
                hashed = [
                    number for number in range(len(block.sources)) if self._hashed(block, number)
                ]
                yield partial(self._fill_block, block, hashed, total, progress)

    def _cut(self, chunk: Chunk) -> Iterable[Chunk]:
        return blocks(chunk)

    def _fill_block(
        self, block: Chunk, hashed: Sequence[int], total: int, progress: OptionalProgress
    ) -> None:
        """Mix and write a block; its sources in `hashed` are hashed as they pass."""
        try:
            self._block(block, vars(self._thread).setdefault("buffers", Buffers()), hashed)
            with self._lock:
                self._done += block.nbytes
                if progress is not None:
                    progress(self._done, total)
        except BaseException:
            for digest in self._digests.values():
                digest.abandon()
            raise

    def _hashed(self, chunk: Chunk, number: int) -> bool:
        source = chunk.sources[number]
        digest = self._digests.get((source.ingredient, source.file))
        return digest is not None and digest.promise(
            source.offset, chunk.count * size_of(source.dtype)
        )

    def read(self, chunk: Chunk, number: int, into: Raw, tiles: list[Tile] | None = None) -> None:
        """The bytes of a chunk's source `number`, whole or a UserError."""
        source = chunk.sources[number]
        try:
            self._inputs[source.ingredient].read(source.file, into, source.offset, tiles)
        except EOFError:
            raise complaint(self.plan, chunk, "the file ends early", source) from None

    def _block(self, chunk: Chunk, buffers: Buffers, hashed: Sequence[int] = ()) -> None:
        *rows, out = buffers.rows(
            [*(chunk.count * size_of(s.dtype) for s in chunk.sources), chunk.nbytes]
        )
        tiles = self._read_rows(chunk, rows, in_order=bool(hashed))
        soup = mixed(self.plan, chunk, rows, out, chunk.dtype, self._warned)
        arrange(soup, size_of(chunk.dtype), tiles)
        self._write(chunk, soup)
        for number in hashed:
            source = chunk.sources[number]
            self._digests[source.ingredient, source.file].feed(source.offset, rows[number])

    def _read_rows(self, chunk: Chunk, rows: Sequence[Raw], in_order: bool) -> list[Tile]:
        """Fill the rows of a block. If all are stored in the same parts, they are left in that order: the soup alone is
        arranged then."""
        function = self.method.function if chunk.op == "mix" else linear
        found = [
            None if in_order or function not in COMPILED_METHODS else list[Tile]() for _ in rows
        ]
        for number, row in enumerate(rows):
            self.read(chunk, number, row, found[number])
        tiles = [each or [] for each in found]
        if all(each == tiles[0] for each in tiles):
            return tiles[0]
        for source, row, each in zip(chunk.sources, rows, tiles, strict=True):
            arrange(row, size_of(source.dtype), each)
        return []

    def _write(self, chunk: Chunk, out: Raw) -> None:
        offset = self._starts[chunk.shard] + chunk.offset
        window = offset // WINDOW
        descriptor = self._outputs[chunk.shard]
        if window != (offset + len(out)) // WINDOW:
            start_writing(descriptor, (window - 1) * WINDOW, WINDOW)
        write_at(descriptor, out.data, offset)


def raise_file_limit(count: int) -> None:
    """Let this process open so many more files, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count + RESERVE > soft:
        most = count + RESERVE if hard == resource.RLIM_INFINITY else min(count + RESERVE, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Buffers:
    """Thread's memory, made once and cut anew for every block."""

    def __init__(self) -> None:
        self._slab: Raw = np.empty(0, np.uint8)

    def rows(self, sizes: Sequence[int]) -> list[Raw]:
        """Arrays of so many bytes, one behind the other; those of the block before are gone."""
        starts = [0, *itertools.accumulate((-(-size // LINE) + 1) * LINE for size in sizes)]
        if starts[-1] > len(self._slab):
            self._slab = np.empty(max(starts[-1], LARGE), np.uint8)
        return [
            self._slab[start : start + size] for start, size in zip(starts, sizes, strict=False)
        ]


def prepare(plan: MergePlan, folder: Path) -> None:
    """Make the shards at their full size with their headers; a disk that is too full says so here.

    Raises:
        OSError: no space, or no right to write.
    """
    if plan.frame is not None:
        plan.frame.prepare(folder)
        return
    for shard, name in enumerate(plan.shards):
        header = plan.header(shard)
        size = len(header) + sum(tensor.nbytes for tensor in plan.tensors if tensor.shard == shard)
        with (folder / name).open("xb") as file:
            file.write(header)
            file.flush()
            reserve(file.fileno(), size)


FillShards = Callable[[MergePlan, Path, OptionalProgress], None]
"""Fills the prepared shards in a staging folder, as ranks do that each take a share."""


def write_checkpoint(
    plan: MergePlan,
    out: Path,
    *,
    progress: OptionalProgress = None,
    extra_files: Extra = None,
    shares: FillShards | None = None,
    late: Late | None = None,
) -> Path:
    """Write the soup of a plan to `out` and return it: shards, index, config, tokenizer, recipe.json, `extra_files`.

    The folder appears whole or not at all. Its bytes follow from the plan and the ingredients alone. With `late`, the
    ingredients are hashed as they are read, and the recipe's fingerprints and the extra files follow from that.

    Raises:
        UserError: `out` is there already, an ingredient is broken or changes before the soup is there, or the disk is
            full.
    """
    check_ingredients(plan.ingredients)
    files = _files(plan, late.files(plan.recipe) if late else extra_files)
    with staged(out) as stage:
        prepare(plan, stage)
        digests = passing(plan, late.known) if late else {}
        if shares is not None:
            shares(plan, stage, progress)
        else:
            with ShardWriter(plan, stage, digests) as writer:
                writer.fill(progress=progress)
        if plan.frame is not None:
            plan.frame.finish(stage)
        if late:
            run_tasks([each.finish for each in digests.values()], WRITER_THREADS)
            for each in digests.values():
                each.keep(late.known)
            plan = with_contents(plan, late.known)
            files = _files(plan, late.files(plan.recipe))
        write_soup_files(stage, files)
        check_ingredients(plan.ingredients)
    return Path(out)


def write_soup_files(stage: Path, files: Mapping[str, str | bytes]) -> None:
    """Write the files beside a soup's weights. recipe.json lists them all but itself and the card."""
    write_files(stage, files)
    names = {str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file()}
    listed = {
        name: file_mark(stage / name) for name in sorted(names - {RECIPE, CARD, STAGING_MARK})
    }
    recipe = json.dumps({**json.loads(files[RECIPE]), "files": listed}, indent=2) + "\n"
    write_files(stage, {RECIPE: recipe})


def file_mark(path: Path) -> str:
    """SHA-256 (hex) of a file; of one that takes long to hash, its size."""
    size = path.stat().st_size
    if size > HASHED:
        return f"{size} bytes"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(plan: MergePlan, extra: Extra) -> dict[str, str | bytes]:
    return with_extra(companion_files(plan), plan.shards, extra)


def with_extra(
    files: Mapping[str, str | bytes], weights: Iterable[str], extra: Extra
) -> dict[str, str | bytes]:
    """The model's files and the extra ones, which must not replace any of them (UserError)."""
    if own := {*files, *weights} & {*(extra or {})}:
        raise UserError(f"the extra file {min(own)} would replace a file of the model")
    return {**files, **(extra or {})}


def companion_files(plan: MergePlan) -> dict[str, bytes]:
    """Files by name: the side files of the plan's carrier with the config corrected, `recipe.json` and the index."""
    carrier = plan.ingredients[plan.carry]
    same = plan.frame is not None
    recipe = recipe_text(
        plan.recipe, carrier.name, plan.nonfinite, plan.max_shard_size, same
    ).encode()
    if same:
        return {RECIPE: recipe}
    folder = carrier.checkpoint.home
    files = {name: small(inside(folder, name)) for name in carrier.checkpoint.side}
    if "config.json" not in files:
        raise UserError(f"{folder} has lost its config.json since the plan was made: plan again")
    mixed = [one.checkpoint.home for one in plan.ingredients[: len(plan.recipe.ingredients)]]
    files |= generation_config(folder, mixed, plan.vocab_size)
    files["config.json"] = _config(plan, folder, files["config.json"])
    files[RECIPE] = recipe
    index = plan.index()
    return {**files, INDEX: index} if index is not None else files


def generation_config(
    folder: Path, ingredients: Iterable[Path], rows: int | None = None
) -> dict[str, bytes]:
    """generation_config.json of `folder` with the end tokens of all ingredients; empty if it has them already.

    Tokens beyond the soup's `rows` are left out.
    """
    named = {token for ingredient in ingredients for token in eos_token_ids(ingredient)}
    ends = sorted(token for token in named if rows is None or token < rows)
    if not ends or tuple(ends) == eos_token_ids(folder):
        return {}
    path = inside(folder, GENERATION)
    if path.is_file():
        table: dict[str, Any] = parse_json(path, small(path))
    else:
        config = parse_json(folder / "config.json", small(folder / "config.json"))
        table = {key: config[key] for key in ("bos_token_id", "pad_token_id") if key in config}
    table["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return {GENERATION: (json.dumps(table, indent=2) + "\n").encode()}


def recipe_text(
    recipe: Recipe,
    carrier: str,
    nonfinite: str,
    max_shard_size: int | None = None,
    same: bool = False,
) -> str:
    """The recipe's JSON form, with what else decides the bytes of the folder."""
    table = {**recipe.as_dict(), "carried_from": carrier}
    if max_shard_size is not None:
        table["max_shard_size"] = max_shard_size
    if same:
        table["format"] = "same"
    if nonfinite != "error":
        table["nonfinite"] = nonfinite
    return json.dumps(table, indent=2) + "\n"


def _config(plan: MergePlan, folder: Path, raw: bytes) -> bytes:
    """config.json with the soup's dtype and vocabulary, not quantised; its very bytes where all are right already."""
    before: dict[str, Any] = parse_json(folder / "config.json", raw)
    after = copy.deepcopy(plain_config(before))
    inner = after.get("text_config")
    # as the config names it
    keys = [key for key in ("dtype", "torch_dtype") if key in after] or ["torch_dtype"]
    for part in (after, inner) if isinstance(inner, dict) else (after,):
        if plan.dtype in TORCH_NAMES:
            part |= {key: plan.dtype for key in keys if part is after or key in part}
        if plan.vocab_size is not None and "vocab_size" in part:
            part["vocab_size"] = plan.vocab_size
    return raw if after == before else (json.dumps(after, indent=2) + "\n").encode()
