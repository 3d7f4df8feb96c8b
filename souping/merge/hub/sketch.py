"""A checkpoint of the Hub as it will lie here, before its weights are fetched: headers read by ranges, holes for data.

A sketch is a folder with the real side files and weight files that have the real header and size but take no room, so
that everything that judges a folder by its headers judges a repository before gigabytes of it travel.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from souping.core import UserError
from souping.merge.header import MAX_HEADER
from souping.merge.hub.errors import told
from souping.merge.hub.listing import RemoteFile
from souping.merge.hub.names import HubName
from souping.merge.hub.transfer import WORKERS

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
