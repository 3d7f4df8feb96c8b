"""System calls with their replacements on macOS, and versions of the software.

macOS lacks `posix_fallocate`, `posix_fadvise`, `preadv`, `sched_getaffinity` and `/dev/shm`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import resource
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__version__ = "0.1.0"
MAIN = ("numpy", "torch", "transformers", "hydra-core", "safetensors", "scipy", "nevergrad", "huggingface-hub")
OPTIONAL = ("accelerate", "lm_eval", "mergekit", "peft", "trackio", "vllm", "wandb")
SHARED_MEMORY = Path("/dev/shm")
"""File system in memory. Absent on macOS."""
UNABLE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # the system's
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_environment() -> dict[str, str]:
    """Environment for a child process that runs a module of this package from any folder."""
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def limit_memory(nbytes: int) -> None:
    """Limit this process's address space: more raises MemoryError. macOS does not enforce it."""
    _limit(resource.RLIMIT_AS, nbytes)


def limit_file_size(nbytes: int) -> None:
    """Limit the files that this process writes: more raises OSError (EFBIG)."""
    _limit(resource.RLIMIT_FSIZE, nbytes)


def _limit(number: int, value: int) -> None:
    hard = resource.getrlimit(number)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(number, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def lock(descriptor: int, wait: bool = True) -> None:
    """Lock an open file until it is closed or its process ends.

    Raises:
        BlockingIOError: without `wait`, if another process holds it.
    """
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Read into `view` from an offset of the file; the number of bytes."""
    if hasattr(os, "preadv"):  # the system's
        return os.preadv(descriptor, [view], offset)
    piece = os.pread(descriptor, len(view), offset)
    view[: len(piece)] = piece
    return len(piece)


def write_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of `view` at an offset of the file."""
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def reserve(descriptor: int, size: int) -> None:
    """Give a file its size. If the disk is too full, this fails early on systems that can reserve space.

    Raises:
        OSError: no space, or no permission to write.
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
    """Start writing part of a file to the disk, so that the last flush is short.

    `POSIX_FADV_DONTNEED` on dirty pages starts their writing; they stay in the cache until then.
    """
    if offset >= 0 and hasattr(os, "posix_fadvise"):  # the system's
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def versions() -> dict[str, str]:
    """{package: its installed version}, souping and Python first; absent packages are left out."""
    found = {"souping": __version__, "python": platform.python_version()}
    for name in (*MAIN, *OPTIONAL):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
