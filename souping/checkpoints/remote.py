"""Models on `s3://` and `gs://`, in a cache beside the Hub's.

Small files are fetched. Weights are read by range where they are needed once, to merge; a run that evaluates reads them
for every soup, so it fetches them. A folder of the cache belongs to one listing of names, sizes and tags: what changed
in the bucket is another folder.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from souping.checkpoints.hub import ADAPTERS, FETCHED_FILE, WORKERS, HubName, Listing, weight_file
from souping.checkpoints.ranges import RANGE_BYTES, Pointer, cache_of, listed_files
from souping.core.open_files import reserve
from souping.core.types import UserError, digest

URL = re.compile(r"(s3|gs):/+([^/].*?)/*")
TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class RemoteName(HubName):
    """Folder in a bucket, used like a Hub repository: `repo` is the URL, the revision a digest of the folder's list."""

    @property
    def cache(self) -> Path:
        return cache_of(self.repo)

    def __str__(self) -> str:
        return self.repo


def parse_url(path: str | Path) -> str | None:
    """The URL in a path; None for any other path. `Path` turns `s3://` into `s3:/`."""
    match = URL.fullmatch(str(path))
    return f"{match[1]}://{match[2]}" if match else None


def remote_folder(url: str, allow_pickle: bool = False, weights: bool = False) -> Path:
    """The local folder of a model in a bucket: its small files, and pointers to its weights, or with `weights` these.

    Raises:
        UserError: it is not there or has no weights that are read from buckets, or a package is missing.
    """
    pointers = listed_files(url, TEMPLATES)
    pointers = {name: file for name, file in pointers.items() if FETCHED_FILE.fullmatch(name)}
    main = weight_file(pointers, allow_pickle)
    if not main:
        raise UserError(
            f"{url} has no safetensors of Hugging Face: copy other layouts to a folder here first"
        )
    files = [pointers[name] for name in sorted(pointers)]
    revision = digest([[file.url, file.size, file.tag] for file in files])
    sizes = {name: file.size for name, file in pointers.items()}
    listing = Listing(RemoteName(url, revision), sizes, main)
    folder = listing.folder
    # First the small files: an index of shards is one of them, and `absent_weights` reads it.
    for name in listing.absent(listing.side):
        copy(pointers[name], folder / name)
    # Pickles and adapters are small or read whole, so they are fetched.
    by_range = main.endswith((".safetensors", ".safetensors.index.json")) and main not in ADAPTERS
    if weights or not by_range:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda name: copy(pointers[name], folder / name), listing.absent_weights))
    for name in listing.absent_weights:
        # A pointer counts as absent, as it is smaller than the weights. One that is there keeps its stamp, under
        # which its digest may be known.
        if not (folder / name).exists():
            pointers[name].write(folder / name)
    return folder


def copy(remote: Pointer, path: Path) -> None:
    """Fetch a file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            reserve(file.fileno(), remote.size)
            for start in range(0, remote.size, RANGE_BYTES):
                file.write(remote.fetch(start, min(start + RANGE_BYTES, remote.size)))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
