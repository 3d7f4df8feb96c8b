"""Files that souping needs of a repository at one commit, and their download into the Hub's cache.

Needed are weights as safetensors, config, tokenizer and chat template; never code. What a server sends is not trusted:
a file must have the size and the hash of the listing (SHA-256 for large files, git's hash for small ones). `look` and
`download_files` use the network and run in a child process (`hub.ask`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from souping.checkpoints.checkpoint import INDEX, MAX_SIDE, NOT_SIDE, PICKLED, PICKLED_INDEX, SIDE_FILES, SINGLE, small
from souping.checkpoints.header import parse_json
from souping.checkpoints.hub.client import COMMIT, HubName, endpoint, told, unreachable
from souping.checkpoints.lora import CONFIG, PICKLED_WEIGHTS, WEIGHTS
from souping.core.files import expanded, put
from souping.core.text import first_line, shown
from souping.core.types import UserError, digest

if TYPE_CHECKING:
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

    def check(self, path: Path) -> bool:
        """Whether the file at `path` has the listed hash."""
        start = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: start).hexdigest() == self.blob


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
        ending = Path(index.name.removesuffix(".index.json")).suffix
        lost = next((name for name in names if name not in self.files or not name.endswith(ending)), None)
        if not names or lost is not None:
            raise UserError(f"{self.name}: {index.name} lists {shown(lost or 'nothing')}, which is not there")
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
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:  # of what the server said
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

    return expanded(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


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
PATIENCE = 120.0
"""Seconds that a download may take to get going."""
SLOWEST = 50_000
"""Bytes per second below which a download is given up."""
POLL = 0.2
Report = Callable[[int, int], None]
Job = tuple[HubName, RemoteFile]


def here(name: HubName, file: RemoteFile) -> bool:
    """Whether the cache has a file of a pinned name, whole."""
    path = storage(name.repo) / "snapshots" / name.revision / file.path
    return path.is_file() and (file.sha256 is None or path.stat().st_size == file.size)


def blob_of(name: HubName, file: RemoteFile) -> Path:
    return storage(name.repo) / "blobs" / file.blob


def part_of(name: HubName, file: RemoteFile) -> Path:
    """Where this process writes a file until it is whole."""
    mark = f"{os.getpid()}-{digest(file.path)[:8]}"  # two files of a repository may have the same bytes
    return storage(name.repo) / "blobs" / f"{file.blob}.{mark}.souping.incomplete"


def held(name: HubName, file: RemoteFile) -> int:
    """Bytes of a file that are in the cache so far."""
    paths = (blob_of(name, file), part_of(name, file)) if file.blob else ()
    for path in paths:
        with suppress(FileNotFoundError):
            return path.stat().st_size
    return 0


def download_files(jobs: Sequence[Job], report: Report | None = None) -> None:
    """Fetch files of pinned names, several at a time.

    Raises:
        UserError: one could not be had. Files that are whole stay and are not fetched again.
    """
    total, start = sum(file.size for _, file in jobs), time.monotonic()
    pool = ThreadPoolExecutor(WORKERS)
    running = {pool.submit(_one, name, file) for name, file in jobs}
    try:
        left = running
        while left:
            over, left = wait(left, POLL, FIRST_EXCEPTION)
            for future in over:
                future.result()
            done = _progress(jobs, time.monotonic() - start)
            if report is not None:
                report(min(done, total), total)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for job in jobs:
            part_of(*job).unlink(missing_ok=True)
        raise


def _progress(jobs: Sequence[Job], seconds: float) -> int:
    """Bytes that have come; refuses a server that sends more than it listed, or next to nothing."""
    sizes = [held(name, file) for name, file in jobs]
    for (name, file), size in zip(jobs, sizes, strict=True):
        if size > file.size:
            raise UserError(f"{name}, {file.path}: the server sends more than the {file.size} bytes that it listed")
    if sum(sizes) < (seconds - PATIENCE) * SLOWEST:
        raise UserError(
            f"the Hub ({endpoint()}) sent {sum(sizes) / 1e6:.1f} MB in {seconds:.0f} s, which would take too long: "
            "try again later; files that are whole are kept"
        )
    return sum(sizes)


def _one(name: HubName, file: RemoteFile) -> None:
    """One file: its blob, then its place in the snapshot; what plain HTTP does not bring is left to huggingface_hub."""
    from huggingface_hub import hf_hub_download

    if not file.blob:
        raise UserError(f"{name}, {file.path}: the Hub lists no hash to check its bytes against")
    with told(name), _line(name), _disk(name):
        if file.sha256 is None or (file.size <= LARGEST and not os.environ.get("HF_XET_HIGH_PERFORMANCE")):
            _blob(name, file)
            _place(storage(name.repo), name.revision, file)
        else:
            hf_hub_download(name.repo, file.path, revision=name.revision)


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


def _blob(name: HubName, file: RemoteFile) -> None:
    """`blobs/<hash>`, which gets this name once its bytes are checked."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    blob, part = blob_of(name, file), part_of(name, file)
    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(name.repo, file.path, revision=name.revision)
    with part.open("wb") as target:
        http_get(url, target, headers=build_hf_headers(), expected_size=file.size)
        target.flush()
        os.fsync(target.fileno())
    if not file.check(part):
        part.unlink()
        raise UserError(f"{name}, {file.path}: what came is not what the Hub promised (its hash); run this again")
    os.replace(part, blob)


@contextmanager
def _line(name: HubName) -> Iterator[None]:
    """A line that went dead in the middle, and stayed so."""
    try:
        yield
    except Exception as error:
        if not unreachable(error):
            raise
        raise UserError(f"{name}: the download stopped ({first_line(error)}): run this again") from error


@contextmanager
def _disk(name: HubName) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None and type(error) is not OSError:
            raise
        if error.errno is None:  # a length that is not the promised one
            raise UserError(f"{name}: {first_line(error)}: run this again") from error
        raise UserError(f"{name}: cannot write to the Hub's cache: {error.strerror}: {error.filename or ''}") from error
