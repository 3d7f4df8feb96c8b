"""Digests of files that are taken while the files are averaged, so that nothing is read twice.

A recipe names its ingredients by their content. For a file without a known digest, a stand-in is used until averaging
has read the file; the recipe that is written has the digests. A plan reads nothing and keeps stand-ins.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path

from souping.checkpoints.checkpoint import digest_key, file_digest, settled
from souping.core.types import Recipe, digest
from souping.merge.kernels import Raw
from souping.merge.plan import Ingredient, MergePlan

PIECE = 1 << 20


class StandIns(MutableMapping[str, str]):
    """Known digests, and stand-ins for files that were not hashed yet; `pending` tells whether there are any."""

    def __init__(self, known: MutableMapping[str, str]) -> None:
        self.known, self.pending = known, False

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: str) -> str:
        found = self.known.get(key)
        self.pending |= found is None
        return found or f"not read yet: {key}"

    def __setitem__(self, key: str, value: str) -> None:
        self.known[key] = value

    def __delitem__(self, key: str) -> None:
        del self.known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


@dataclass(frozen=True)
class Late:
    """What is written only once the ingredients were read: digests go to `known`, `files` are those of the recipe."""

    known: MutableMapping[str, str]
    files: Callable[[Recipe], Mapping[str, str]]


class PassingDigest:
    """SHA-256 of one file from pieces that several threads feed in the order of the file; missing pieces are read."""

    def __init__(self, path: Path, start: int) -> None:
        """Hash the first `start` bytes, the header, which no piece covers."""
        self._path, self._stamp = path, settled(path)
        self._hash, self._at, self._promised, self._broken = hashlib.sha256(), 0, start, False
        self._turn = threading.Condition()
        self._read(start)

    def promise(self, offset: int, size: int) -> bool:
        """Whether a piece continues what is promised so far. If so, the caller has to `feed` it, or to `abandon` all.

        All files' pieces are promised in one order, so threads never wait for each other in a circle.
        """
        follows = offset == self._promised
        self._promised += size if follows else 0
        return follows

    def feed(self, offset: int, piece: Raw) -> None:
        """Hash a promised piece once those before it are hashed."""
        with self._turn:
            self._turn.wait_for(lambda: self._broken or offset == self._at)
            if self._broken:
                return
        self._hash.update(piece.data)
        with self._turn:
            self._at += len(piece)
            self._turn.notify_all()

    def abandon(self) -> None:
        """Release the threads that wait for one that failed."""
        with self._turn:
            self._broken = True
            self._turn.notify_all()

    def finish(self) -> None:
        """Read and hash what was not fed."""
        self._read(None)

    def keep(self, known: MutableMapping[str, str]) -> None:
        """Add the finished digest to the known ones, unless the file has changed."""
        if settled(self._path) == self._stamp and time.time_ns() > self._stamp[2]:
            known[digest_key(self._path, self._stamp)] = self._hash.hexdigest()

    def _read(self, end: int | None) -> None:
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._at)
            while piece := file.read(PIECE if end is None else min(PIECE, end - self._at)):
                self._hash.update(piece)
                self._at += len(piece)


Digests = Mapping[tuple[int, int], PassingDigest]
"""By number of ingredient and of its file."""


def passing(plan: MergePlan, known: Mapping[str, str]) -> Digests:
    """A digest for every file of the plan that is not hashed yet, to be fed with what is read of it."""
    starts: dict[tuple[int, int], int] = {}
    for source in (s for tensor in plan.tensors for piece in tensor.pieces for s in piece.sources):
        place = (source.ingredient, source.file)
        starts[place] = min(source.offset, starts.get(place, source.offset))
    files = {place: _path(plan.ingredients[place[0]], place[1]) for place in starts}
    return {
        place: PassingDigest(path, starts[place])
        for place, path in files.items()
        if digest_key(path, settled(path)) not in known
    }


def _path(ingredient: Ingredient, file: int) -> Path:
    return Path(os.path.join(ingredient.folder, ingredient.files[file][0]))


def with_contents(plan: MergePlan, known: MutableMapping[str, str]) -> MergePlan:
    """The plan with its ingredients' fingerprints, whose files have been hashed."""
    prints = {
        each.name: digest({name: file_digest(Path(each.folder) / name, known) for name in each.stamps})
        for each in plan.ingredients
    }
    recipe = replace(plan.recipe, fingerprints=tuple(prints[name] for name in plan.recipe.ingredients))
    return replace(plan, recipe=recipe)
