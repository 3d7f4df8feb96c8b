"""Models of the Hub, fetched into folders here once headers and sizes have told what they can.

The check sees a sketch of each repository: a folder with the real side files, and weight files that have the real
header and size but take no room, so that everything that judges a folder by its headers judges it before gigabytes of
it travel.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from souping.checkpoints.header import MAX_HEADER
from souping.checkpoints.hub.client import HubName, endpoint, is_repo, not_cached, offline, parse, told, unreachable
from souping.checkpoints.hub.download import (
    PATIENCE,
    SLOWEST,
    WORKERS,
    Job,
    Listing,
    RemoteFile,
    Report,
    download_files,
    held,
    here,
    look,
    side_files,
    snapshot,
    storage,
    weight_files,
    without_adapter,
)
from souping.core.child import MEMORY, call
from souping.core.files import expanded
from souping.core.types import UserError

__all__ = [
    "Fetched",
    "HubName",
    "cached",
    "endpoint",
    "fetch",
    "fetch_one",
    "is_repo",
    "offline",
    "parse",
    "sizes",
    "unreachable",
]

Check = Callable[[Mapping[str, Path]], None]
T = TypeVar("T")
SPARE = 100_000_000  # bytes left free beside a download
PREPARE = 600.0
"""Seconds in which the Hub must have sent all listings, small files and headers of a pool."""


@dataclass(frozen=True)
class Fetched:
    """Model of the Hub that lies here: `name` is pinned to its commit, `note` is for the report."""

    name: HubName
    folder: Path
    note: str = ""


@dataclass(frozen=True)
class FetchOrder:
    """Files that are needed of a repository: `side` lies here already, `weights` may not; `sketch` is a hollow copy."""

    name: HubName
    side: tuple[RemoteFile, ...]
    weights: tuple[RemoteFile, ...]
    sketch: Path | None = None

    @property
    def missing(self) -> list[Job]:
        return [(self.name, file) for file in self.weights if not here(self.name, file)]

    @property
    def folder(self) -> Path:
        return storage(self.name.repo) / "snapshots" / self.name.revision

    @property
    def pickled(self) -> bool:
        return any(not file.path.endswith(".safetensors") for file in self.weights)


def fetch(
    names: Mapping[str, HubName], allow_pickle: bool = False, check: Check | None = None, report: Report | None = None
) -> dict[str, Fetched]:
    """Bring models of the Hub here, {candidate: name} to {candidate: folder}; what is cached is not fetched again.

    `check` gets {candidate: folder} of hollow copies with the real headers before a weight is downloaded, and may
    raise; it is not called for pickles, whose headers no range can give. `report(done, total)` counts bytes.

    Raises:
        UserError: a model is missing, private, gated, has no such revision or no weights that souping reads, the Hub
            cannot be reached or is too slow, HF_HUB_OFFLINE=1 and it is not cached, the disk is too small, or `check`
            refused.
    """
    with tempfile.TemporaryDirectory(prefix="souping-headers-") as scratch:
        known = _prepared(names, allow_pickle, None if check is None else Path(scratch))
        orders = {key: value for key, value in known.items() if isinstance(value, FetchOrder)}
        jobs = [job for order in orders.values() for job in order.missing]
        if jobs:
            _check_disk(sum(max(0, file.size - held(name, file)) for name, file in jobs))
            if check is not None and all(order.sketch for order in orders.values()):
                _rehearse(known, check)
    if jobs:
        longest = PATIENCE + sum(file.size for _, file in jobs) / SLOWEST
        ask(download_files, (jobs,), seconds=longest + PATIENCE, report=report)
    return {key: one if isinstance(one, Fetched) else Fetched(one.name, one.folder) for key, one in known.items()}


def fetch_one(name: HubName, allow_pickle: bool = False, report: Report | None = None) -> Fetched:
    """One model, as `fetch`."""
    return fetch({name.name: name}, allow_pickle, None, report)[name.name]


def ask(
    function: Callable[..., T], arguments: tuple[object, ...], seconds: float = PREPARE, report: Report | None = None
) -> T:
    """The result of a function that talks to the Hub, run in a child process.

    Raises:
        UserError: of the function, or its answer takes too long or too much memory.
    """
    from huggingface_hub import constants

    settings = {"HF_ENDPOINT": constants.ENDPOINT, "HF_HUB_CACHE": constants.HF_HUB_CACHE}
    settings |= {"HF_TOKEN_PATH": constants.HF_TOKEN_PATH, "HF_HUB_OFFLINE": str(int(constants.HF_HUB_OFFLINE))}
    try:
        return call(function, arguments, seconds=seconds, environment=settings, report=report)
    except TimeoutError:
        raise UserError(f"the Hub ({endpoint()}) did not finish its answer within {seconds:.0f} s") from None
    except MemoryError:
        raise UserError(f"the Hub ({endpoint()}): its answer took over {MEMORY >> 30} GiB of memory") from None


def _prepared(
    names: Mapping[str, HubName], allow_pickle: bool, scratch: Path | None = None, side_too: bool = True
) -> dict[str, Fetched | FetchOrder]:
    """For each model what lies here whole, where the Hub need not be asked (a commit, offline), else `prepare`."""
    known = {key: _local(name, allow_pickle) for key, name in names.items()}
    unknown = [name for key, name in names.items() if known[key] is None]
    prepared = iter(ask(prepare, (unknown, allow_pickle, scratch, side_too)) if unknown else ())
    return {key: local or next(prepared) for key, local in known.items()}


def prepare(
    names: Sequence[HubName], allow_pickle: bool, scratch: Path | None, side_too: bool
) -> list[Fetched | FetchOrder]:
    """What is needed of each model, or a whole copy in the cache if the Hub cannot be reached.

    Fetches the small files (without `side_too`, only indexes of shards) and, given a folder for `scratch`, the headers
    of the weights.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        listed = list(pool.map(lambda name: _listing(name, allow_pickle), names))
    known = [order(one, allow_pickle, side_too) if isinstance(one, Listing) else one for one in listed]
    orders = [one for one in known if isinstance(one, FetchOrder)]
    if scratch is None or any(one.pickled for one in orders) or not any(one.missing for one in orders):
        return list(known)
    with suppress(OSError):  # a file system that keeps no holes: the check after the download has to do
        return [sketch(one, scratch / str(n)) if isinstance(one, FetchOrder) else one for n, one in enumerate(known)]
    return list(known)


def order(listing: Listing, allow_pickle: bool, side_too: bool) -> FetchOrder:
    main, index = listing.main_weights(allow_pickle)
    side = listing.side(main)
    small = [(listing.name, file) for file in side if side_too or (index and file.path == main)]
    download_files([job for job in small if not here(*job)])
    folder = storage(listing.name.repo) / "snapshots" / listing.name.revision
    weights = listing.shards(folder / main) if index else [listing.files[main]]
    return FetchOrder(listing.name, tuple(side), tuple(weights))


def sizes(name: HubName | str, allow_pickle: bool = False) -> dict[str, int]:
    """{file: bytes} of what souping needs of a model; an index of shards alone is fetched, and the cache answers where
    it has all.

    Raises:
        UserError: as `fetch`.
    """
    source = _prepared({"": _named(name)}, allow_pickle, side_too=False)[""]
    if isinstance(source, Fetched):
        return {file: (source.folder / file).stat().st_size for file in _local_files(source.folder, allow_pickle)}
    return {file.path: file.size for file in (*source.side, *source.weights)}


def cached(name: HubName | str, allow_pickle: bool = False) -> Path | None:
    """The folder in the Hub's cache where a model lies whole, or None. Asks no server."""
    held = snapshot(_named(name))
    return held[1] if held and _local_files(held[1], allow_pickle) else None


def _named(name: HubName | str) -> HubName:
    parsed = name if isinstance(name, HubName) else parse(name)
    if parsed is None:
        raise UserError(f"{name} is not a name on the Hub: org/name, or org/name@revision")
    return parsed


def _local(name: HubName, allow_pickle: bool) -> Fetched | None:
    found = snapshot(name)
    files = _local_files(found[1], allow_pickle) if found else []
    complete = name.pinned and any(file.startswith(("tokenizer", "vocab", "spiece")) for file in files)
    if found is not None and files and (complete or offline()):
        return Fetched(*found)
    if offline():
        raise not_cached(name, "only in part" if found else "")
    return None


def _listing(name: HubName, allow_pickle: bool) -> Fetched | Listing:
    try:
        return look(name)
    except UserError as error:
        found, cause = snapshot(name), error.__context__
        if not found or not _local_files(found[1], allow_pickle) or cause is None or not unreachable(cause):
            raise
        note = f"{found[0].repo} is taken from the cache at {found[0].revision[:12]}: the Hub cannot be reached"
        return Fetched(*found, note)


def _local_files(folder: Path, allow_pickle: bool) -> list[str]:
    """What souping needs of a snapshot, empty where a part is missing."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    main, index = weight_files(names, allow_pickle)
    side = without_adapter(side_files(names), main)
    if not main or not {"config.json", "adapter_config.json"} & set(side):
        return []
    if not index:
        return [*side, main]
    listing = Listing(HubName("cache/cache"), {n: RemoteFile(n, 0) for n in names})
    with suppress(UserError):
        return [*side, main, *(shard.path for shard in listing.shards(folder / main))]
    return []


def _check_disk(need: int) -> None:
    from huggingface_hub import constants

    place = expanded(constants.HF_HUB_CACHE).absolute()
    parent = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if need + SPARE > free:
        raise UserError(
            f"the pool needs {need / 1e9:.1f} GB more in the Hub's cache ({place}), the disk has {free / 1e9:.1f} GB "
            "free: make room, or set HF_HOME to a larger disk"
        )


def _rehearse(known: Mapping[str, Fetched | FetchOrder], check: Check) -> None:
    """Let `check` judge hollow copies of the models; what it says names the models, not the copies."""
    try:
        check({key: one.folder if isinstance(one, Fetched) else one.sketch or one.folder for key, one in known.items()})
    except UserError as error:
        text = str(error)
        for one in known.values():
            if isinstance(one, FetchOrder):
                text = text.replace(str(one.sketch), str(one.name))
        raise UserError(text) from None


FIRST = 100_000  # bytes of the first read: most headers fit


def sketch(order: FetchOrder, place: Path) -> FetchOrder:
    """The order with a folder in `place` that has the side files, and a hollow copy of each weight file."""
    out = place / order.name.name
    out.mkdir(parents=True)
    for file in order.side:
        (out / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(order.folder / file.path, out / file.path)
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda file: _hollow(order.name, order.folder, file, out / file.path), order.weights))
    return replace(order, sketch=out)


def _hollow(name: HubName, snapshot: Path, file: RemoteFile, path: Path) -> None:
    here = snapshot / file.path
    with path.open("wb") as target:
        target.write(_local_header(here) if here.is_file() else _remote_header(name, file))
        target.truncate(file.size)


def _local_header(path: Path) -> bytes:
    with path.open("rb") as source:
        head = source.read(8)
        return head + source.read(min(_length(head), MAX_HEADER))


def _remote_header(name: HubName, file: RemoteFile) -> bytes:
    """The first bytes of a file on the Hub, to the end of its header."""
    head = _range(name, file, 0, min(FIRST, file.size))
    length = 8 + _length(head)
    if length > min(file.size, MAX_HEADER):
        raise UserError(f"{name}, {file.path}: its header claims {length} bytes, the file has {file.size}")
    return (head + _range(name, file, len(head), length) if length > len(head) else head)[:length]


def _length(head: bytes) -> int:
    return int(struct.unpack("<Q", head[:8])[0]) if len(head) >= 8 else 0


def _range(name: HubName, file: RemoteFile, start: int, end: int) -> bytes:
    """Bytes [start, end) of a file."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(name.repo, file.path, revision=name.revision)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    with told(name), get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as answer:
        hf_raise_for_status(answer)
        data = bytearray()
        skip = start if answer.status_code == 200 else 0  # a server without ranges sends all
        for block in answer.iter_bytes():
            data += block
            if len(data) >= skip + end - start:
                break
        return bytes(data[skip : skip + end - start])
