"""Digests of files that are taken while the files are averaged, so that nothing is read twice.

A recipe names its ingredients by their content. For a file without a known digest, a stand-in is used until averaging
has read the file; the recipe that is written has the digests. A plan reads nothing and keeps stand-ins.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.fingerprints import (
    HASHED_PIECE_BYTES,
    fingerprint_of,
    hashed_files,
    hashed_groups,
    keep_digest,
    tensors_key,
)
from souping.checkpoints.header import Tensor, size_of
from souping.checkpoints.reader import WeightReader
from souping.checkpoints.views import Raw
from souping.merge.mixing import Chunk, run_tasks
from souping.merge.plan import MergePlan

HASHING_THREADS = 2


class StandIns(ChainMap[str, str]):
    """Known digests, with stand-ins for files that are not hashed yet; `pending`: whether a stand-in was given out.

    It seems to hold every digest, so that `fingerprint_of` reads no file.
    """

    pending = False

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        self.pending = True
        return f"not read yet: {key}"


class PassingDigest:
    """SHA-256 of the tensors of one file, from the blocks that several threads read of it.

    Blocks are hashed in the order of the file, in which they are promised; what was not fed is read at the end.
    """

    def __init__(self, checkpoint: Checkpoint, group: Sequence[Tensor]) -> None:
        """Start at the first of the tensors of a `group`, which are in the order of their bytes."""
        self._checkpoint = checkpoint
        self._group = group
        self._number = checkpoint.file_number(group[0])
        self._files = hashed_files(checkpoint, self._number)
        self._hashes = [hashlib.sha256() for _ in group]
        filled = [tensor for tensor in group if tensor.nbytes]
        # {byte at which a tensor ends: byte at which the next one begins}
        self._next = {a.end: b.offset for a, b in itertools.pairwise(filled)}
        # The tensor that is hashed now, and the bytes of the file up to which blocks are hashed, and promised.
        self._tensor = 0
        self._at = filled[0].offset if filled else 0
        self._promised = self._at
        # Whether a thread has failed.
        self._broken = False
        self._turn = threading.Condition()

    def promise(self, offset: int, size: int) -> bool:
        """Whether a block is the next one to hash. If so, the caller has promised to `feed` it, or to `abandon` all.

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
        """Hash the next bytes of the file; returns where the byte after them is, in this tensor or the next one."""
        at = self._at
        while len(piece):
            count = min(len(piece), self._end(at) - at)
            self._hashes[self._tensor].update(piece[:count].data)
            piece = piece[count:]
            at = at + count
        return self._next.get(at, at)

    def _end(self, at: int) -> int:
        """The end of the tensor that byte `at` belongs to, which is now the one that is hashed."""
        while self._group[self._tensor].end <= at:
            self._tensor += 1
        return self._group[self._tensor].end

    def abandon(self) -> None:
        """Release the threads that wait for one that failed."""
        with self._turn:
            self._broken = True
            self._turn.notify_all()

    def finish(self) -> None:
        """Read and hash what was not fed."""
        with WeightReader(self._checkpoint) as reader:
            while self._at < self._group[-1].end:
                nbytes = min(HASHED_PIECE_BYTES, self._end(self._at) - self._at)
                piece = np.empty(nbytes, np.uint8)
                reader.read(self._number, piece, self._at)
                self._at = self._hash(piece)

    def keep(self, known: MutableMapping[str, str]) -> None:
        """Add the finished digests to the known ones. Raises UserError where the file has changed."""
        values = " ".join(hashing.hexdigest() for hashing in self._hashes)
        keep_digest(tensors_key(self._checkpoint, self._files), self._files, values, known)


class Digests(dict[tuple[int, int], PassingDigest]):
    """{(number of an ingredient, number of its file): digest}, to be fed with the blocks that are read."""

    def promised(self, block: Chunk) -> list[int]:
        """The numbers of the block's sources that are promised: the caller has to `feed` them once it has read them."""
        numbers = list[int]()
        for number, source in enumerate(block.sources):
            digest = self.get((source.ingredient, source.file))
            nbytes = block.count * size_of(source.dtype)
            if digest is not None and digest.promise(source.offset, nbytes):
                numbers.append(number)
        return numbers

    def feed(self, block: Chunk, promised: Sequence[int], rows: Sequence[Raw]) -> None:
        """Hash the rows of a block whose numbers are `promised`."""
        for number in promised:
            source = block.sources[number]
            self[source.ingredient, source.file].feed(source.offset, rows[number])

    def abandon(self) -> None:
        """Release the threads that wait for one that failed."""
        for digest in self.values():
            digest.abandon()

    def keep(self, known: MutableMapping[str, str]) -> None:
        """Hash what was not fed, and add all digests to the known ones."""
        run_tasks([digest.finish for digest in self.values()], HASHING_THREADS)
        for digest in self.values():
            digest.keep(known)


def unknown_digests(plan: MergePlan, known: Mapping[str, str]) -> Digests:
    """The digests of the files of a plan that are not hashed yet."""
    digests = Digests()
    for place, ingredient in enumerate(plan.ingredients):
        stored = ingredient.checkpoint.quantised or ingredient.checkpoint
        for group in hashed_groups(stored):
            number = stored.file_number(group[0])
            # Blocks of tensors that share bytes do not come in the order of the file.
            overlapping = any(a.end > b.offset for a, b in itertools.pairwise(group))
            if overlapping or tensors_key(stored, hashed_files(stored, number)) in known:
                continue
            # FP8 weights are hashed as they are stored, and blocks are dequantised: under a number that no source has,
            # they are not fed, and `finish` reads the file.
            key = number if stored is ingredient.checkpoint else ~number
            digests[place, key] = PassingDigest(stored, group)
    return digests


def with_contents(plan: MergePlan, known: MutableMapping[str, str]) -> MergePlan:
    """The plan with the fingerprints of its ingredients in the recipe, once their files are hashed."""
    # A base model comes after the ingredients of the recipe, which do not name it.
    ingredients = plan.ingredients[: len(plan.recipe.ingredients)]
    fingerprints = tuple(fingerprint_of(i.checkpoint, known) for i in ingredients)
    return replace(plan, recipe=replace(plan.recipe, fingerprints=fingerprints))
