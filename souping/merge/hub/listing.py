"""What a repository holds at one commit: its files with their sizes and, for large ones, their SHA-256."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from souping.core import UserError
from souping.merge.checkpoint import INDEX, MAX_SIDE, PICKLED_INDEX, small
from souping.merge.header import parse_json
from souping.merge.hub import wanted
from souping.merge.hub.errors import told
from souping.merge.hub.names import COMMIT, HubName


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: `size` in bytes, `sha256` where the Hub keeps it as a large file."""

    path: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit; `name` is pinned to that commit."""

    name: HubName
    files: Mapping[str, RemoteFile]

    def main_weights(self, allow_pickle: bool) -> tuple[str, bool]:
        """`wanted.weights`, or an error that says what is there instead."""
        main, index = wanted.weights(self.files, allow_pickle)
        if main:
            return main, index
        kind = wanted.foreign(self.files)
        if kind == "pickled weights":
            raise UserError(
                f"{self.name} has no safetensors but pickled weights, which can run code when opened. Name a revision "
                "that has safetensors, or set merge.allow_pickle=true."
            )
        raise UserError(f"{self.name} has no safetensors weights to soup{f', only {kind}' if kind else ''}")

    def side(self, main: str) -> list[RemoteFile]:
        """Config, tokenizer and templates, and the index where the weights lie in shards."""
        names = wanted.without_adapter(wanted.side(self.files), main)
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
            raise UserError(f"{self.name}: {index.name} lists {lost or 'nothing'}, which the repository does not have")
        return [self.files[name] for name in names]


def look(name: HubName) -> Listing:
    """Ask the Hub: the revision becomes a commit here, once.

    Raises:
        UserError: it is missing, private, gated without leave, has no such revision, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with told(name):
        info = api.model_info(name.repo, revision=name.revision, files_metadata=True)
        if getattr(info, "gated", False):
            api.auth_check(name.repo)
    if not COMMIT.fullmatch(str(info.sha)):
        raise UserError(f"{name}: the Hub names no commit for it")
    files = {s.rfilename: _file(s.rfilename, s.size, s.lfs) for s in info.siblings or [] if _safe(s.rfilename)}
    remember(name, str(info.sha))
    return Listing(name.at(str(info.sha)), files)


def _file(path: str, size: int | None, lfs: object) -> RemoteFile:
    sha256 = getattr(lfs, "sha256", None)
    return RemoteFile(path, int(size or getattr(lfs, "size", 0) or 0), str(sha256) if sha256 else None)


def _safe(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not path.startswith("/") and "\\" not in path and "\0" not in path


def storage(repo: str) -> Path:
    """The folder of a repository in the Hub's cache, which every tool that uses the Hub shares."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repo.replace('/', '--')}"


def remember(name: HubName, commit: str) -> None:
    """Write the cache's own note of what a branch or tag stands at, so that HF_HUB_OFFLINE=1 finds it."""
    path = storage(name.repo) / "refs" / name.revision
    if name.pinned or (path.is_file() and path.read_text() == commit):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as file:
        file.write(commit)
    os.replace(beside, path)


def snapshot(name: HubName) -> tuple[HubName, Path] | None:
    """(pinned name, folder) of what the cache holds of a revision, complete or not."""
    note = storage(name.repo) / "refs" / name.revision
    commit = name.revision if name.pinned else note.read_text().strip() if note.is_file() else ""
    folder = storage(name.repo) / "snapshots" / commit
    return (name.at(commit), folder) if COMMIT.fullmatch(commit) and folder.is_dir() else None
