"""What only some systems have, each with what does its work elsewhere: file locks, reads at a place, room for a file.

Linux has all of it; macOS lacks `posix_fallocate`, `posix_fadvise`, `sched_getaffinity` and `/dev/shm`.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
    import resource
except ImportError:
    fcntl = resource = None  # type: ignore[assignment]

SHARED_MEMORY = Path("/dev/shm")
"""A file system in memory: what is written there is read at the speed of memory. Absent on macOS."""
UNABLE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # the system's
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_environment() -> dict[str, str]:
    """This process's environment for a child that runs a module of this very package, from whatever folder."""
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def limit_memory(nbytes: int) -> None:
    """Limit this process's address space: more raises MemoryError. macOS does not enforce it."""
    _limit("RLIMIT_AS", nbytes)


def limit_file_size(nbytes: int) -> None:
    """Limit the files that this process writes: more raises OSError (EFBIG)."""
    _limit("RLIMIT_FSIZE", nbytes)


def _limit(name: str, value: int) -> None:
    if resource is not None:
        number = vars(resource)[name]
        hard = resource.getrlimit(number)[1]
        with suppress(OSError, ValueError):
            resource.setrlimit(number, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def lock(descriptor: int, wait: bool = True) -> bool:
    """Lock an open file until it is closed, however its process ends; False where the system has no such locks.

    Raises:
        BlockingIOError: without `wait`, somebody else holds it.
    """
    if fcntl is None:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Read into `view` from a place of the file; how many bytes came."""
    if hasattr(os, "preadv"):  # the system's
        return os.preadv(descriptor, [view], offset)
    piece = os.pread(descriptor, len(view), offset)
    view[: len(piece)] = piece
    return len(piece)


def write_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of `view` at a place of the file."""
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def reserve(descriptor: int, size: int) -> None:
    """Make a file so large; a disk that is too full says so here, where the system can.

    Raises:
        OSError: no space, or no right to write.
    """
    try:
        if hasattr(os, "posix_fallocate"):  # the system's
            os.posix_fallocate(descriptor, 0, size)
            return
    except OSError as error:
        if error.errno not in UNABLE:
            raise
    os.ftruncate(descriptor, size)


def start_writing(descriptor: int, offset: int, size: int) -> None:
    """Send part of a file to the disk while others are made, so that the last flush is short.

    Advice on dirty pages starts their writing (they stay in the cache until then); elsewhere nothing is done.
    """
    if offset >= 0 and hasattr(os, "posix_fadvise"):  # the system's
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)
