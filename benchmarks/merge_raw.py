"""Part of `merge.py --size`: the reads and writes of a merge without anything else.

    python benchmarks/merge_raw.py OUT WEIGHTS MODEL ..

Two threads read every model block by block, in the order of the files, and write the blocks of the first model; the
output is flushed to the disk. The weights are ignored.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BLOCK_BYTES = 1 << 20
THREADS = 2


class Copy:
    """Files of the models and of the output, and the blocks that are still to be copied."""

    def __init__(self, out: Path, models: list[Path]) -> None:
        out.mkdir()
        self._blocks = self._all_blocks(out, models)
        self._lock = threading.Lock()
        self.written: list[int] = []

    def _all_blocks(
        self, out: Path, models: list[Path]
    ) -> Iterator[tuple[list[int], int, int, int]]:
        """(descriptors of the models' files, descriptor of the output, offset, bytes) of each block."""
        for path in sorted(models[0].glob("*.safetensors")):
            sources = [os.open(model / path.name, os.O_RDONLY) for model in models]
            size = os.fstat(sources[0]).st_size
            target = os.open(out / path.name, os.O_WRONLY | os.O_CREAT)
            os.posix_fallocate(target, 0, size)
            self.written.append(target)
            for offset in range(0, size, BLOCK_BYTES):
                yield sources, target, offset, min(BLOCK_BYTES, size - offset)

    def run(self) -> None:
        buffer = np.empty(BLOCK_BYTES, np.uint8)
        while True:
            with self._lock:
                block = next(self._blocks, None)
            if block is None:
                return
            sources, target, offset, size = block
            # The first model last: its block is what is written.
            for source in reversed(sources):
                os.preadv(source, [buffer[:size].data], offset)
            os.pwrite(target, buffer[:size].data, offset)


def main() -> None:
    out, _, *models = sys.argv[1:]
    copy = Copy(Path(out), [Path(model) for model in models])
    threads = [threading.Thread(target=copy.run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for descriptor in copy.written:
        os.fsync(descriptor)


if __name__ == "__main__":
    main()
