"""Downloads into the Hub's cache. A large file that was cut off goes on at its last byte, and its SHA-256 is proven.

huggingface_hub keeps nothing of a file whose download was killed. Large files therefore come through its own HTTP
function into a part file beside their place, which survives; whatever finds the finished blob there, huggingface_hub
included, uses it as its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from souping.core import UserError
from souping.merge.hub.errors import first_line, told, unreachable
from souping.merge.hub.listing import RemoteFile, storage
from souping.merge.hub.names import HubName

WORKERS = 8  # huggingface_hub's own number of files at a time
LARGEST = 50_000_000_000  # bytes of a file that the Hub serves over plain HTTP
CHUNK = 1 << 24
Report = Callable[[int, int], None]
Job = tuple[HubName, RemoteFile]


class Stopped(Exception):
    """Another download failed or the user interrupted: this one ends where it is."""


class Tally:
    """Bytes of several downloads together, told to `report(done, total)`; `stop` ends them all."""

    def __init__(self, total: int, report: Report | None) -> None:
        self.stop = threading.Event()
        self._total, self._done, self._report, self._lock = total, 0, report, threading.Lock()

    def add(self, count: int) -> None:
        if self.stop.is_set():
            raise Stopped
        with self._lock:
            self._done += count
            if self._report is not None:
                self._report(self._done, self._total)


class Proven(io.FileIO):
    """A file that hashes what is appended to it, and what it held already."""

    def __init__(self, path: Path, tally: Tally) -> None:
        super().__init__(path, "a+b")
        fcntl.flock(self.fileno(), fcntl.LOCK_EX)
        self.digest, self._tally = hashlib.sha256(), tally
        self.seek(0)
        while block := self.read(CHUNK):
            self.digest.update(block)
            tally.add(len(block))
        self.held = self.tell()

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        done = 0
        while done < len(view):
            done += super().write(view[done:]) or 0
        self.digest.update(view)
        self._tally.add(len(view))
        return done

    def truncate(self, size: int | None = None) -> int:
        """The server began again: so does the hash."""
        self._tally.add(-os.fstat(self.fileno()).st_size)
        self.digest, self.held = hashlib.sha256(), 0
        return super().truncate(size)


def here(name: HubName, file: RemoteFile) -> bool:
    """Whether the cache has a file of a pinned name, whole."""
    path = storage(name.repo) / "snapshots" / name.revision / file.path
    return path.is_file() and (file.sha256 is None or path.stat().st_size == file.size)


def missing_bytes(jobs: Iterable[Job]) -> int:
    """Bytes that these downloads still have to write."""
    return sum(max(0, file.size - _held(name, file)) for name, file in jobs)


def _held(name: HubName, file: RemoteFile) -> int:
    if file.sha256 is None:
        return 0
    blob = storage(name.repo) / "blobs" / file.sha256
    return next((path.stat().st_size for path in (blob, part_of(blob)) if path.is_file()), 0)


def part_of(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.souping.incomplete")


def download(jobs: Iterable[Job], report: Report | None = None) -> None:
    """Fetch files of pinned names, several at a time.

    Raises:
        UserError: one could not be had. What came of the others stays and is not fetched again.
    """
    todo = [job for job in jobs if not here(*job)]
    tally = Tally(sum(file.size for _, file in todo), report)
    with _quiet(), ThreadPoolExecutor(WORKERS) as pool:
        running = [pool.submit(_one, name, file, tally) for name, file in todo]
        try:
            for future in as_completed(running):
                future.result()
        except BaseException:
            tally.stop.set()
            for future in running:
                future.cancel()
            raise


def _one(name: HubName, file: RemoteFile, tally: Tally) -> None:
    """One file: its blob by ranges where it is large, then its place in the snapshot by huggingface_hub."""
    from huggingface_hub import hf_hub_download

    if tally.stop.is_set():
        raise Stopped
    with told(name), _line(name), _disk(name):
        resumed = file.sha256 is not None and file.size <= LARGEST and not os.environ.get("HF_XET_HIGH_PERFORMANCE")
        if resumed:
            _blob(name, file, tally)
        hf_hub_download(name.repo, file.path, revision=name.revision)
        if not resumed:
            tally.add(file.size)


def _blob(name: HubName, file: RemoteFile, tally: Tally) -> None:
    """`blobs/<SHA-256>`, gone on with where it was cut off; nobody else writes it meanwhile."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    blob = storage(name.repo) / "blobs" / str(file.sha256)
    blob.parent.mkdir(parents=True, exist_ok=True)
    if blob.exists():
        return tally.add(file.size)
    part = part_of(blob)
    with Proven(part, tally) as target:
        if blob.exists():  # another process finished it while this one waited
            part.unlink(missing_ok=True)
            return
        if target.held > file.size:
            target.truncate(0)
        url = hf_hub_url(name.repo, file.path, revision=name.revision)
        http_get(url, target, resume_size=target.held, headers=build_hf_headers(), expected_size=file.size)
        length = os.fstat(target.fileno()).st_size  # longer where a file system's locks hold nobody off
        if target.digest.hexdigest() != file.sha256 or length != file.size:
            part.unlink()
            raise UserError(f"{name}, {file.path}: what came is not what the Hub promised (SHA-256); run this again")
        os.fsync(target.fileno())
        os.replace(part, blob)


@contextmanager
def _line(name: HubName) -> Iterator[None]:
    """A line that went dead in the middle, and stayed so."""
    try:
        yield
    except Exception as error:
        if not unreachable(error):
            raise
        raise UserError(
            f"{name}: the download stopped ({first_line(error)}); what came stays, the same command goes on from there"
        ) from error


@contextmanager
def _disk(name: HubName) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None and type(error) is not OSError:
            raise
        if error.errno is None:  # a length that is not the promised one
            raise UserError(f"{name}: {str(error).splitlines()[0]} Run this again: it goes on from there") from error
        raise UserError(f"{name}: cannot write to the Hub's cache: {error.strerror}: {error.filename or ''}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no advice of huggingface_hub between ours."""
    import logging as levels

    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    loud, level = not are_progress_bars_disabled(), logging.get_verbosity()
    logging.set_verbosity(levels.ERROR)
    if loud:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if loud:
            enable_progress_bars()
