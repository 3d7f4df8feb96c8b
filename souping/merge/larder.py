"""Ingredients at hand between pours: mapped from their files, or kept in memory."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence

import numpy as np

from souping.core import UserError
from souping.merge.checkpoint import Checkpoint
from souping.merge.header import BITS
from souping.merge.kernels import Raw
from souping.merge.layout import Source

RESIDENT = ("none", "cpu", "device")


class Larder:
    """Bytes of the checkpoints' files: memory maps (`none`), or copies in memory (`cpu`, `device`)."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint], resident: str = "none") -> None:
        self._checkpoints, self._resident = dict(checkpoints), resident
        self._files: dict[tuple[str, str], Raw] = {}

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
        if key not in self._files:
            path = self._checkpoints[name].folder / file
            try:
                with path.open("rb") as handle:
                    mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
                data: Raw = np.frombuffer(mapped, np.uint8)
                self._files[key] = data if self._resident == "none" else data.copy()
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be mapped: {error}") from None
        return self._files[key]
