"""Models of the Hub, fetched into folders here once headers and sizes have told what they can.

The check sees a sketch of each repository: a folder with the real side files, and weight files that have the real
header and size but take no room, so that everything that judges a folder by its headers judges it before gigabytes of
it travel.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from souping.checkpoints.header import MAX_HEADER
from souping.checkpoints.hub.client import HubName, not_cached, offline, parse, told, unreachable
from souping.checkpoints.hub.download import (
    WORKERS,
    Listing,
    RemoteFile,
    Report,
    download,
    here,
    look,
    missing_bytes,
    side_files,
    snapshot,
    storage,
    weight_files,
    without_adapter,
)
from souping.core.types import UserError

Check = Callable[[Mapping[str, Path]], None]
SPARE = 100_000_000  # bytes left free beside a download


@dataclass(frozen=True)
class Fetched:
    """Model of the Hub that lies here: `name` is pinned to its commit, `note` is for the report."""

    name: HubName
    folder: Path
    note: str = ""


@dataclass(frozen=True)
class FetchOrder:
    """Files that are needed of a repository: `side` lies here already, `weights` may not."""

    name: HubName
    side: tuple[RemoteFile, ...]
    weights: tuple[RemoteFile, ...]

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
            cannot be reached, HF_HUB_OFFLINE=1 and it is not cached, the disk is too small, or `check` refused.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        known = dict(
            zip(names, pool.map(lambda name: _cached_or_listing(name, allow_pickle), names.values()), strict=True)
        )
    ready = {key: value for key, value in known.items() if isinstance(value, Fetched)}
    orders = {key: order(value, allow_pickle) for key, value in known.items() if isinstance(value, Listing)}
    jobs = [(o.name, file) for o in orders.values() for file in o.weights if not here(o.name, file)]
    if jobs:
        _check_disk(missing_bytes(jobs))
        if check is not None and not any(o.pickled for o in orders.values()):
            _rehearse(orders, ready, check)
        download(jobs, report)
    return {key: ready.get(key) or Fetched(orders[key].name, orders[key].folder) for key in names}


def fetch_one(name: HubName, allow_pickle: bool = False, report: Report | None = None) -> Fetched:
    """One model, as `fetch`."""
    return fetch({name.name: name}, allow_pickle, None, report)[name.name]


def order(listing: Listing, allow_pickle: bool = False, side_too: bool = True) -> FetchOrder:
    """What of a listing is needed. Fetches the side files, which are small, and reads the index among them.

    Without `side_too`, of all files the index alone is fetched.
    """
    main, index = listing.main_weights(allow_pickle)
    side = listing.side(main)
    download([(listing.name, file) for file in side if side_too or (index and file.path == main)])
    folder = storage(listing.name.repo) / "snapshots" / listing.name.revision
    weights = listing.shards(folder / main) if index else [listing.files[main]]
    return FetchOrder(listing.name, tuple(side), tuple(weights))


def sizes(name: HubName | str, allow_pickle: bool = False) -> dict[str, int]:
    """{file: bytes} of what souping needs of a model; an index of shards alone is fetched, and the cache answers where
    it has all.

    Raises:
        UserError: as `fetch`.
    """
    source = _cached_or_listing(_named(name), allow_pickle)
    if isinstance(source, Fetched):
        return {file: (source.folder / file).stat().st_size for file in _local_files(source.folder, allow_pickle)}
    wish = order(source, allow_pickle, side_too=False)
    return {file.path: file.size for file in (*wish.side, *wish.weights)}


def cached(name: HubName | str, allow_pickle: bool = False) -> Path | None:
    """The folder in the Hub's cache where a model lies whole, or None. Asks no server."""
    held = snapshot(_named(name))
    return held[1] if held and _local_files(held[1], allow_pickle) else None


def _named(name: HubName | str) -> HubName:
    parsed = name if isinstance(name, HubName) else parse(name)
    if parsed is None:
        raise UserError(f"{name} is not a name on the Hub: org/name, or org/name@revision")
    return parsed


def _cached_or_listing(name: HubName, allow_pickle: bool) -> Fetched | Listing:
    """What lies here whole, where the Hub need not (a commit) or cannot be asked; else what the Hub says."""
    held = snapshot(name)
    files = _local_files(held[1], allow_pickle) if held else []
    whole = bool(files)
    complete = name.pinned and any(file.startswith(("tokenizer", "vocab", "spiece")) for file in files)
    if held is not None and whole and (complete or offline()):
        return Fetched(held[0], held[1])
    if offline():
        raise not_cached(name, "only in part" if held else "")
    try:
        return look(name)
    except UserError as error:
        cause = error.__context__
        if held is None or not whole or cause is None or not unreachable(cause):
            raise
        note = f"{held[0].repo} is taken from the cache at {held[0].revision[:12]}: the Hub cannot be reached"
        return Fetched(held[0], held[1], note)


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

    place = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    parent = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if need + SPARE > free:
        raise UserError(
            f"the pool needs {need / 1e9:.1f} GB more in the Hub's cache ({place}), the disk has {free / 1e9:.1f} GB "
            "free: make room, or set HF_HOME to a larger disk"
        )


def _rehearse(orders: Mapping[str, FetchOrder], ready: Mapping[str, Fetched], check: Check) -> None:
    """Let `check` judge hollow copies of the models; what it says names the models, not the copies."""
    shown: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="souping-headers-") as scratch:
        folders = {key: value.folder for key, value in ready.items()}
        for number, (key, wish) in enumerate(orders.items()):
            out = Path(scratch) / str(number) / wish.name.name
            out.mkdir(parents=True)
            shown[str(out)] = str(wish.name)
            try:
                folders[key] = sketch(wish.name, wish.folder, wish.side, wish.weights, out)
            except OSError:  # a file system that keeps no holes: the check after the download has to do
                return
        try:
            check(folders)
        except UserError as error:
            text = str(error)
            for path, name in shown.items():
                text = text.replace(path, name)
            raise UserError(text) from None


__all__ = ["Fetched", "cached", "fetch", "fetch_one", "order", "sizes"]


FIRST = 100_000  # bytes of the first read: most headers fit


def sketch(name: HubName, snapshot: Path, side: Iterable[RemoteFile], weights: Iterable[RemoteFile], out: Path) -> Path:
    """The folder `out` with the side files of a snapshot and a hollow copy of each weight file."""
    for file in side:
        (out / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot / file.path, out / file.path)
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda file: _hollow(name, snapshot, file, out / file.path), weights))
    return out


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
        raise UserError(
            f"{name}, {file.path}: its header claims {length} bytes, the file has {file.size}: it is broken"
        )
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
