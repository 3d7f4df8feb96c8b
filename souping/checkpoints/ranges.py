"""Weight files on `s3://` and `gs://`, read by range through fsspec: a small pointer file is in their place here."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from huggingface_hub import constants

from souping.core.fields import Bounds, Form, component
from souping.core.files import expanded, write_atomically
from souping.core.parsing import read_json
from souping.core.text import first_line, install
from souping.core.types import UserError, digest

POINTER_MARK = b"souping: a weight file that is read by range\n"
LONGEST_POINTER_BYTES = 4096
"""Bytes of a pointer at most."""
RANGE_BYTES = 8 << 20
"""Bytes of a block, which is one request."""
AHEAD = 1
"""Blocks that are requested before they are needed."""
BLOCKS_IN_MEMORY = 3
"""Blocks of a model that are in memory at once: two threads may read on the two sides of an edge, and one arrives."""


@component
class Pointer:
    """File in a bucket as it was listed: its URL, bytes, and the tag that changes with its content."""

    url: Annotated[str, Form(r"(s3|gs)://[^/]+/.+", "an s3:// or gs:// URL")]
    size: Annotated[int, Bounds(ge=0, lt=2**62)]
    tag: str

    def write(self, path: Path) -> None:
        """Write the pointer as a file in place of the weights."""
        write_atomically(path, POINTER_MARK + json.dumps(asdict(self)).encode())

    def fetch(self, start: int, end: int) -> bytes:
        """Bytes `start .. end` of the file. Raises UserError if they cannot be read."""
        with explained(self.url):
            data: bytes = filesystem(self.url).cat_file(self.url, start=start, end=end)
        if len(data) != end - start:
            raise moved(self.url)
        return data


def cache_of(url: str) -> Path:
    """The folder on this machine for a folder in a bucket, by a digest of its URL."""
    return expanded(constants.HF_HOME) / "souping" / digest(url)[:16]


def pointer_in(path: Path) -> Pointer | None:
    """The pointer in a file; None if the file itself holds the weights.

    Raises:
        UserError: a pointer is damaged, or it is not in the cache of the folder in the bucket that it names: anybody
            can write such a file into a model's folder.
    """
    with path.open("rb") as file:
        if file.read(len(POINTER_MARK)) != POINTER_MARK:
            return None
        text = file.read(LONGEST_POINTER_BYTES)
    place = path.resolve()
    # A damaged pointer is not JSON, has other keys, or values out of range.
    with suppress(ValueError, TypeError, UserError):
        pointer = Pointer(**read_json(text))
        cache = cache_of(pointer.url.removesuffix(f"/{place.name}")).resolve()
        if place.parent.parent == cache / "snapshots":
            return pointer
    raise UserError(
        f"{path} is a placeholder for a file in a bucket, damaged or outside of souping's cache of that bucket: remove "
        f"{path.parent}, and give the model's s3:// or gs:// URL"
    )


@contextmanager
def pointed_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """(file open for reading, size in bytes): the file itself, or the file in a bucket that it points to."""
    pointer = pointer_in(path)
    if pointer is None:
        with path.open("rb") as file:
            yield file, path.stat().st_size
        return
    # Only headers are read in this way, from the start on.
    with explained(pointer.url):
        file = filesystem(pointer.url).open(
            pointer.url, "rb", block_size=1 << 20, cache_type="readahead"
        )
    with file:
        yield file, pointer.size


def check_pointers(paths: Iterable[Path]) -> None:
    """Raises UserError if one of these weight files is a pointer to a file in a bucket that has changed."""
    # {folder in a bucket: its files now}, listed once.
    files_in = dict[str, dict[str, Pointer]]()
    for path in paths:
        pointer = pointer_in(path)
        if pointer is None:
            continue
        folder, _, name = pointer.url.rpartition("/")
        if folder not in files_in:
            files_in[folder] = listed_files(folder)
        if files_in[folder].get(name) != pointer:
            raise moved(pointer.url)


def listed_files(folder: str, below: str = "") -> dict[str, Pointer]:
    """{name: file} of a folder in a bucket, and of the folder `below` it, if that is there."""
    with explained(folder):
        rows = list(filesystem(folder).ls(folder, detail=True, refresh=True))
        if below and any(str(row["name"]).endswith(f"/{below}") for row in rows):
            rows += filesystem(folder).ls(f"{folder}/{below}", detail=True, refresh=True)
    files = dict[str, Pointer]()
    for row in rows:
        if row["type"] != "file":
            continue
        name = str(row["name"]).removeprefix(folder.partition("://")[2]).strip("/")
        # The services name it differently.
        tag = row.get("ETag") or row.get("etag") or row.get("md5Hash") or row.get("LastModified")
        files[name] = Pointer(url=f"{folder}/{name}", size=int(row["size"]), tag=str(tag))
    return files


class RangeReader:
    """Reader of one model's files in a bucket, by blocks that are fetched ahead and shared by all threads."""

    def __init__(self) -> None:
        # {(url, number): block}, the oldest first.
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1 + AHEAD, thread_name_prefix="souping-ranges")

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, remote: Pointer, view: memoryview, offset: int) -> int:
        """Fill the start of `view`; returns how many bytes, 0 at the end of the file."""
        if offset >= remote.size:
            return 0
        # Up to the end of the block in which `offset` is.
        number = offset // RANGE_BYTES
        piece = self._block(remote, number)[offset - number * RANGE_BYTES :][: len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def _block(self, remote: Pointer, number: int) -> bytes:
        """Block `number` of a file, once it is there. The next blocks are requested too, and the oldest forgotten."""
        with self._lock:
            last = min(number + AHEAD, (remote.size - 1) // RANGE_BYTES)
            for n in range(number, last + 1):
                if (remote.url, n) not in self._blocks:
                    start = n * RANGE_BYTES
                    end = min(start + RANGE_BYTES, remote.size)
                    self._blocks[remote.url, n] = self._pool.submit(remote.fetch, start, end)
            requested = self._blocks[remote.url, number]
            while len(self._blocks) > BLOCKS_IN_MEMORY:
                self._blocks.popitem(last=False)
        return requested.result()


def filesystem(url: str) -> Any:
    """fsspec's file system for a URL (fsspec caches it).

    Raises:
        UserError: a package is missing.
    """
    scheme = url.partition(":")[0]
    try:
        import fsspec

        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise UserError(
            f"{scheme}:// needs a package ({first_line(error)})", fix=install("remote")
        ) from None


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Raises UserError, one line with the URL, for any error of a bucket's client."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{url} is not there, or your credentials do not show it") from None
    except Exception as error:  # every service's client has errors of its own
        raise UserError(f"{url} cannot be read: {first_line(error)}") from error


def moved(url: str) -> UserError:
    """The error for a file in a bucket that has changed."""
    return UserError(
        f"{url} has changed since it was listed: start again when nothing writes there"
    )
