"""Ingredients at hand between pours: mapped from their files, or kept in memory."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from souping.core import UserError
from souping.merge.checkpoint import Checkpoint
from souping.merge.header import BITS
from souping.merge.kernels import Raw
from souping.merge.layout import Source


class Larder:
    """Bytes of the checkpoints' files: memory maps, or copies in memory (`cpu`)."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint], resident: str = "none") -> None:
        self._checkpoints, self._resident = dict(checkpoints), resident
        self._files: dict[tuple[str, str], Raw] = {}
        self._lock = threading.Lock()

    def row(self, names: Sequence[str], source: Source, count: int) -> Raw:
        """The bytes of `count` elements from a source of a plan whose ingredients are `names`. No copy.

        Raises:
            UserError: the file has become shorter.
        """
        name = names[source.ingredient]
        data = self._file(name, self._checkpoints[name].files[source.file])
        return data[source.offset : source.offset + count * BITS[source.dtype] // 8]

    def _file(self, name: str, file: str) -> Raw:
        key = (name, file)
        with self._lock:
            if key not in self._files:
                self._files[key] = self._open(self._checkpoints[name].folder / file)
            return self._files[key]

    def _open(self, path: Path) -> Raw:
        try:
            with path.open("rb") as handle:
                mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be mapped: {error}") from None
        data: Raw = np.frombuffer(mapped, np.uint8)
        return data.copy() if self._resident == "cpu" else data
