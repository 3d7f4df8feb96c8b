"""Locks, reads and writes of open files. macOS lacks `posix_fallocate`, `posix_fadvise` and `preadv`."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress

UNABLE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""Errors of a file system that cannot reserve space."""


def lock(descriptor: int, wait: bool = True) -> None:
    """Lock an open file until it is closed or its process ends.

    Raises:
        BlockingIOError: without `wait`, if another process holds it.
    """
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Read into `view` from an offset of the file. Returns the number of bytes read."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    piece = os.pread(descriptor, len(view), offset)
    view[: len(piece)] = piece
    return len(piece)


def write_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of `view` at an offset of the file."""
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset = offset + count


def reserve(descriptor: int, size: int) -> None:
    """Give a file its size. If the disk is too full, this fails early on systems that can reserve space.

    Raises:
        OSError: no space, or no permission to write.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
            return
    except OSError as error:
        if error.errno not in UNABLE:
            raise
    os.ftruncate(descriptor, size)


def start_writing(descriptor: int, offset: int, size: int) -> None:
    """Start writing part of a file to the disk, so that the last flush is short; nothing at a negative offset.

    `POSIX_FADV_DONTNEED` on dirty pages starts their writing; they stay in the cache until then.
    """
    if offset >= 0 and hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # only speed depends on it
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)
