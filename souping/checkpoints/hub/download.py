"""Files that souping needs of a repository at one commit, and their download into the Hub's cache.

Needed are weights as safetensors, config, tokenizer and chat template; never code. Nothing that a server says is
believed: a file has the size and the hash of the listing (SHA-256 of large files, git's hash of small ones), or it is
none. A file that was cut off goes on at its last byte: huggingface_hub keeps nothing of a download that was killed, so
files come through its own HTTP function into a part file beside their place, which survives; whatever finds the
finished blob there, huggingface_hub included, uses it as its own.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from souping.checkpoints.checkpoint import INDEX, MAX_SIDE, NOT_SIDE, PICKLED, PICKLED_INDEX, SIDE_FILES, SINGLE, small
from souping.checkpoints.header import parse_json
from souping.checkpoints.hub.client import COMMIT, HubName, told, unreachable
from souping.checkpoints.lora import CONFIG, PICKLED_WEIGHTS, WEIGHTS
from souping.core.files import put
from souping.core.system import lock
from souping.core.text import first_line, shown
from souping.core.types import UserError

if TYPE_CHECKING:
    from hashlib import _Hash as Hasher

    from _typeshed import ReadableBuffer
    from huggingface_hub.hf_api import RepoSibling


@dataclass(frozen=True)
class RemoteFile:
    """File of a repository: `size` in bytes, `sha256` where the Hub keeps it as a large file, else git's hash."""

    path: str
    size: int
    sha256: str | None = None
    git: str | None = None

    @property
    def blob(self) -> str:
        """The name of its bytes in the cache, empty where the Hub told no hash."""
        return self.sha256 or self.git or ""

    def hasher(self) -> Hasher:
        """The empty hash whose end is `blob`."""
        return hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True)
class Listing:
    """Files of a repository at a commit; `name` is pinned to that commit."""

    name: HubName
    files: Mapping[str, RemoteFile]

    def main_weights(self, allow_pickle: bool) -> tuple[str, bool]:
        """`wanted.weights`, or an error that says what is there instead."""
        main, index = weight_files(self.files, allow_pickle)
        if main:
            return main, index
        kind = foreign(self.files)
        if kind == "pickled weights":
            raise UserError(
                f"{self.name} has no safetensors but pickled weights, which can run code when opened. Name a revision "
                "that has safetensors, or set merge.allow_pickle=true."
            )
        raise UserError(f"{self.name} has no safetensors weights to soup{f', only {kind}' if kind else ''}")

    def side(self, main: str) -> list[RemoteFile]:
        """Config, tokenizer and templates, and the index where the weights lie in shards."""
        names = without_adapter(side_files(self.files), main)
        names += [main] if main in (INDEX, PICKLED_INDEX) else []
        large = next((name for name in names if self.files[name].size > MAX_SIDE), None)
        if large is not None:
            raise UserError(f"{self.name}, {large}: larger than {MAX_SIDE} bytes, which no such file is")
        return [self.files[name] for name in names]

    def shards(self, index: Path) -> list[RemoteFile]:
        """The weight files that an index (already here) lists."""
        table = parse_json(index, small(index))
        places = table.get("weight_map") if isinstance(table, dict) else None
        names = sorted({str(v) for v in places.values()}) if isinstance(places, dict) else []
        lost = next((name for name in names if name not in self.files), None)
        if not names or lost is not None:
            raise UserError(
                f"{self.name}: {index.name} lists {shown(lost or 'nothing')}, which the repository does not have"
            )
        return [self.files[name] for name in names]


def look(name: HubName) -> Listing:
    """Ask the Hub: the revision becomes a commit here, once.

    Raises:
        UserError: it is missing, private, gated without leave, has no such revision, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        with told(name):
            info = api.model_info(name.repo, revision=name.revision, files_metadata=True)
            if info.gated:
                api.auth_check(name.repo)
        files = {s.rfilename: _file(s) for s in info.siblings or [] if _safe(s.rfilename)}
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:  # of what the server said
        raise UserError(f"{name}: the Hub's answer cannot be understood: {shown(first_line(error))}") from None
    if not COMMIT.fullmatch(str(info.sha)):
        raise UserError(f"{name}: the Hub names no commit for it")
    remember(name, str(info.sha))
    return Listing(name.at(str(info.sha)), files)


def _file(sibling: RepoSibling) -> RemoteFile:
    """A file as it is listed; a hash that is none names no file of the cache."""
    path, lfs = sibling.rfilename, sibling.lfs
    size = int(sibling.size or (lfs.size if lfs else 0) or 0)
    if not 0 <= size < 1 << 62:
        raise ValueError(f"the size of {path}")
    if lfs is None:
        return RemoteFile(path, size, git=_hash(sibling.blob_id, 40))
    return RemoteFile(path, size, _hash(lfs.sha256, 64))


def _hash(value: str | None, digits: int) -> str | None:
    return value if value and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value) else None


def _safe(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not path.startswith("/") and "\\" not in path and path.isprintable()


def storage(repo: str) -> Path:
    """The folder of a repository in the Hub's cache, which every tool that uses the Hub shares."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repo.replace('/', '--')}"


def remember(name: HubName, commit: str) -> None:
    """Write the cache's own note of what a branch or tag stands at, so that HF_HUB_OFFLINE=1 finds it."""
    path = storage(name.repo) / "refs" / name.revision
    if name.pinned or (path.is_file() and path.read_text() == commit):
        return
    put(path, commit.encode())


def snapshot(name: HubName) -> tuple[HubName, Path] | None:
    """(pinned name, folder) of what the cache holds of a revision, complete or not."""
    note = storage(name.repo) / "refs" / name.revision
    commit = name.revision if name.pinned else note.read_text().strip() if note.is_file() else ""
    folder = storage(name.repo) / "snapshots" / commit
    return (name.at(commit), folder) if COMMIT.fullmatch(commit) and folder.is_dir() else None


TEMPLATES = "additional_chat_templates/*.jinja"


def side_files(names: Iterable[str]) -> list[str]:
    """Config, tokenizer and chat templates among a repository's files: what `side_files` finds in a folder."""
    patterns = [*SIDE_FILES, CONFIG]
    root = [n for n in names if "/" not in n and not n.endswith(NOT_SIDE)]
    chosen = [n for n in root if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    return sorted({*chosen, *(n for n in names if fnmatch.fnmatchcase(n, TEMPLATES) and n.count("/") == 1)})


def weight_files(names: Iterable[str], allow_pickle: bool) -> tuple[str, bool]:
    """(the file that holds the weights, or the index of their shards; whether it is an index). Empty where none is.

    The order is that in which a folder is read: one file before an index, safetensors before pickles, a full model
    before an adapter.
    """
    have = set(names)
    order = [(SINGLE, False), (INDEX, True), (WEIGHTS, False)]
    if allow_pickle:
        order[2:2] = [(PICKLED, False), (PICKLED_INDEX, True)]
        order.append((PICKLED_WEIGHTS, False))
    return next(((name, index) for name, index in order if name in have), ("", False))


def without_adapter(chosen: list[str], main: str) -> list[str]:
    """Side files for these weights: a repository that holds a full model and an adapter beside it is the model."""
    adapter = main in (WEIGHTS, PICKLED_WEIGHTS)
    return [name for name in chosen if adapter or name != CONFIG]


def foreign(names: Iterable[str]) -> str:
    """Weights of a kind that souping does not read, for an error's sake."""
    kinds = {".gguf": "GGUF", ".bin": "pickled weights", ".pt": "pickled weights", ".pth": "pickled weights"}
    kinds |= {".onnx": "ONNX", ".h5": "TensorFlow weights", ".msgpack": "Flax weights"}
    there = [kind for ending, kind in kinds.items() if any(name.endswith(ending) for name in names)]
    return there[0] if there else ""


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
    """File that hashes what is appended to it, and what it held already; it takes no byte more than was promised."""

    def __init__(self, path: Path, file: RemoteFile, tally: Tally) -> None:
        super().__init__(path, "a+b")
        lock(self.fileno())
        self.digest, self._file, self._tally = file.hasher(), file, tally
        self.seek(0)
        while block := self.read(CHUNK):
            self.digest.update(block)
            tally.add(len(block))
        self.held = self.tell()

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data)
        if os.fstat(self.fileno()).st_size + len(view) > self._file.size:
            raise UserError(f"{self._file.path}: the server sends more than the {self._file.size} bytes that it named")
        done = 0
        while done < len(view):
            done += super().write(view[done:]) or 0
        self.digest.update(view)
        self._tally.add(len(view))
        return done

    def truncate(self, size: int | None = None) -> int:
        """The server began again: so does the hash."""
        self._tally.add(-os.fstat(self.fileno()).st_size)
        self.digest, self.held = self._file.hasher(), 0
        return super().truncate(size)


def here(name: HubName, file: RemoteFile) -> bool:
    """Whether the cache has a file of a pinned name, whole."""
    path = storage(name.repo) / "snapshots" / name.revision / file.path
    return path.is_file() and (file.sha256 is None or path.stat().st_size == file.size)


def missing_bytes(jobs: Iterable[Job]) -> int:
    """Bytes that these downloads still have to write."""
    return sum(max(0, file.size - _held(name, file)) for name, file in jobs)


def _held(name: HubName, file: RemoteFile) -> int:
    if not file.blob:
        return 0
    blob = storage(name.repo) / "blobs" / file.blob
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
    """One file: its blob, then its place in the snapshot; what plain HTTP does not bring is left to huggingface_hub."""
    from huggingface_hub import hf_hub_download

    if tally.stop.is_set():
        raise Stopped
    if not file.blob:
        raise UserError(f"{name}, {file.path}: the Hub names no hash that its bytes could be proven by")
    with told(name), _line(name), _disk(name):
        if file.sha256 is None or (file.size <= LARGEST and not os.environ.get("HF_XET_HIGH_PERFORMANCE")):
            _blob(name, file, tally)
            _place(storage(name.repo), name.revision, file)
        else:
            hf_hub_download(name.repo, file.path, revision=name.revision)
            tally.add(file.size)


def _place(home: Path, commit: str, file: RemoteFile) -> None:
    """The link of a snapshot to a blob, or the blob itself where there are no links."""
    blob, place = home / "blobs" / file.blob, home / "snapshots" / commit / file.path
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except FileExistsError:
        if not place.is_file():  # a link whose blob was removed
            place.unlink()
            place.symlink_to(os.path.relpath(blob, place.parent))
    except OSError:
        os.replace(blob, place)


def _blob(name: HubName, file: RemoteFile, tally: Tally) -> None:
    """`blobs/<hash>`, gone on with where it was cut off; nobody else writes it meanwhile."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    blob = storage(name.repo) / "blobs" / file.blob
    blob.parent.mkdir(parents=True, exist_ok=True)
    if blob.exists():
        return tally.add(file.size)
    part = part_of(blob)
    with Proven(part, file, tally) as target:
        if blob.exists():  # another process finished it while this one waited
            part.unlink(missing_ok=True)
            return
        if target.held > file.size:
            target.truncate(0)
        url = hf_hub_url(name.repo, file.path, revision=name.revision)
        http_get(url, target, resume_size=target.held, headers=build_hf_headers(), expected_size=file.size)
        length = os.fstat(target.fileno()).st_size  # longer where a file system's locks hold nobody off
        if target.digest.hexdigest() != file.blob or length != file.size:
            part.unlink()
            raise UserError(f"{name}, {file.path}: what came is not what the Hub promised (its hash); run this again")
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
