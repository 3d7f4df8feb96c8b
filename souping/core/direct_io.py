"""Reads and writes past the page cache (`O_DIRECT`), for files that the memory cannot hold anyway.

The disk then moves whole pages, at multiples of a page in the file and in memory, so that bytes pass through a buffer
of each thread. macOS lacks `O_DIRECT`, and so do some file systems.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading

import numpy as np
from numpy.typing import NDArray

from souping.core.open_files import write_at

PAGE = mmap.PAGESIZE
BUFFER_BYTES = 4 << 20
"""Most bytes that one read or write moves."""


class PageBuffer(threading.local):
    """Memory of each thread that begins at a page."""

    def __init__(self) -> None:
        self.memory: NDArray[np.uint8] = np.frombuffer(mmap.mmap(-1, BUFFER_BYTES), np.uint8)


_buffer = PageBuffer()


def make_direct(descriptor: int) -> bool:
    """Switch an open file to direct reads and writes; False where it cannot be."""
    if not hasattr(os, "O_DIRECT"):
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        # Some file systems accept the flag, but refuse to read.
        os.preadv(descriptor, [_buffer.memory[:PAGE].data], 0)
    except OSError:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        return False
    return True


def read_direct(descriptor: int, into: NDArray[np.uint8], offset: int) -> int:
    """Read into an array from an offset of a file that is direct. Returns the bytes read, at most a buffer's."""
    # Whole pages are read: `skipped` bytes before the wanted ones, and some after them.
    skipped = offset % PAGE
    end = offset + len(into)
    pages = _buffer.memory[: skipped + len(into) + -end % PAGE]
    count = os.preadv(descriptor, [pages.data], offset - skipped)
    piece = pages[skipped:count][: len(into)]
    np.copyto(into[: len(piece)], piece)
    return len(piece)


def write_direct(direct: int, cached: int, data: NDArray[np.uint8], offset: int) -> None:
    """Write an array at an offset of a file that is open twice: `direct`, and `cached` for parts of pages.

    The page at either end may belong to another array too, which also writes its part through the cache: a page that is
    written in both ways could lose one of them.
    """
    # Whole pages from `first_page` to `pages_end`, as places in the array.
    first_page = min(-offset % PAGE, len(data))
    pages_end = max(len(data) - (offset + len(data)) % PAGE, first_page)
    write_at(cached, data[:first_page].data, offset)
    for start in range(first_page, pages_end, BUFFER_BYTES):
        pages = _buffer.memory[: pages_end - start]
        np.copyto(pages, data[start : start + len(pages)])
        write_at(direct, pages.data, offset + start)
    write_at(cached, data[pages_end:].data, offset + pages_end)
