"""A small Hub on 127.0.0.1: the HTTP that huggingface_hub's own client and `datasets` speak, for reading and for
writing models, and for reading data sets."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LARGE = 4096
"""Bytes from which a file is stored as a large file (LFS); the real Hub decides by name and size."""
CHUNK = 65536


@dataclass
class Repo:
    """A model or data set: {revision: commit}, {commit: {path: bytes}}, and who may see it."""

    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)

    def commit(self, files: dict[str, bytes], revision: str = "main") -> str:
        order = f"{len(self.commits)}|{sorted(files)}"
        oid = hashlib.sha1(order.encode() + b"".join(files[n] for n in sorted(files))).hexdigest()
        self.commits[oid] = files
        self.refs[revision] = oid
        return oid

    @property
    def head(self) -> dict[str, bytes]:
        return self.commits.get(self.refs.get("main", ""), {})


@dataclass
class User:
    """Owner of a token: its role, and the organisations with the role there."""

    name: str
    role: str = "write"
    orgs: dict[str, str] = field(default_factory=dict)

    def writes(self, repo: str) -> bool:
        space = repo.split("/")[0]
        return self.role in ("write", "admin") and (
            space == self.name or self.orgs.get(space) in ("write", "admin")
        )


class Hub:
    """The server and what it holds. `log` is every request: (method, path, Range).

    With `stall` a body stops after so many bytes until `awake` is set; `down` answers 503. With `xet` large files are
    offered to the stand-in for Xet too (`tests/support/xet`). Hostile: `lies` replaces what is listed of a path,
    `garbage` the whole list; bodies that are `endless`, lists that `drip` or `flood`.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.users: dict[str, User] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str, str]] = []
        self.stall: int | None = None
        self.awake = threading.Event()
        self.down = self.endless = self.drip = self.flood = self.xet = False
        self.lies: dict[str, dict[str, Any]] = {}
        self.garbage: Any = None
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self})
        )
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, files: dict[str, bytes], revision: str = "main") -> str:
        return self.repos.setdefault(name, Repo()).commit(files, revision)

    def bodies(self, ending: str = "") -> list[str]:
        """Paths of the files of which something was sent."""
        return [
            p
            for method, p, _ in self.log
            if method == "GET" and "/resolve/" in p and p.endswith(ending)
        ]

    def ranges_of(self, ending: str) -> list[str]:
        return [
            asked for method, path, asked in self.log if method == "GET" and path.endswith(ending)
        ]


def _hash(data: bytes) -> str:
    """The hash under which a file is listed: SHA-256 of a large file, else git's."""
    return hashlib.sha256(data).hexdigest() if len(data) >= LARGE else _git(data)


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _rows(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """The files and folders of a commit, as they are listed."""
    rows: list[dict[str, Any]] = []
    for path, data in sorted(files.items()):
        rows.append({"type": "file", "path": path, "size": len(data), "oid": _git(data)})
        if len(data) >= LARGE:
            rows[-1]["lfs"] = {"oid": _hash(data), "size": len(data), "pointerSize": 134}
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    return rows + [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)]


def _card_data(files: dict[str, bytes]) -> dict[str, Any]:
    import yaml

    found = re.match(r"---\n(.*?)\n---", files.get("README.md", b"").decode(), re.DOTALL)
    return dict(yaml.safe_load(found[1])) if found else {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        """Refuse what the hub or the token refuses, else call the method of the first route that fits."""
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.query = parse_qs(parts.query)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = self._chunks()
        else:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.log.append((self.command, path, self.headers.get("Range", "")))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = self.hub.users.get(token)
        if self.hub.down:
            return self.send(503, {"error": "down for maintenance"})
        if token and self.user is None:
            message = "Invalid credentials in Authorization header"
            return self.send(401, {"error": message}, {"X-Error-Message": message})
        for pattern, action in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                getattr(self, action)(**found.groupdict())
                return None
        return self.send(404, {"error": f"no such route: {self.command} {path}"})

    do_HEAD = do_POST = do_PUT = do_GET

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def send(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self._begin(
            code,
            {
                "Content-Type": "application/json",
                **(headers or {}),
                "Content-Length": str(len(data)),
            },
        )
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, code: int, kind: str, message: str, commit: str = "") -> None:
        headers = {"X-Error-Code": kind, "X-Error-Message": message}
        self.send(code, {"error": message}, headers | ({"X-Repo-Commit": commit} if commit else {}))

    def _begin(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _send_file(self, data: bytes, headers: dict[str, str]) -> None:
        """The file, or the range of it that the request names; it stops on the way if the hub is to `stall`."""
        start = 0
        end = len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
            if asked[2]:
                end = min(int(asked[2]) + 1, len(data))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self._begin(206 if asked else 200, {**headers, "Content-Length": str(end - start)})
        with suppress(ConnectionError):  # the client has seen enough
            for place in range(start, end if self.command == "GET" else start, CHUNK):
                if self.hub.stall is not None and place - start >= self.hub.stall:
                    self.wfile.flush()
                    self.hub.awake.wait(600)
                self.wfile.write(data[place : min(place + CHUNK, end)])

    def _never_end(self, piece: bytes, pause: float = 0.0) -> None:
        """A body without an end, until the client hangs up."""
        self.close_connection = True
        with suppress(OSError):
            while self.command == "GET":
                self.wfile.write(piece)
                self.wfile.flush()
                self.hub.awake.wait(pause)

    def _repo(self, name: str) -> Repo | None:
        """The repository if the caller may know of it; else the refusal is sent."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._reads(repo) and not self._writes(name)):
            self.refuse(404 if self.user else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _open(self, name: str) -> Repo | None:
        """The repository if the caller may read its files."""
        repo = self._repo(name)
        if repo is not None and repo.gated and not self._reads(repo):
            self.refuse(
                403 if self.user else 401, "GatedRepo", f"Access to model {name} is restricted"
            )
            return None
        return repo

    def _reads(self, repo: Repo) -> bool:
        return self.user is not None and self.user.name in repo.readers

    def _writes(self, name: str) -> bool:
        return self.user is not None and self.user.writes(name)

    def _may_write(self, name: str) -> bool:
        if not self._writes(name):
            self.refuse(403, "Forbidden", f"no write access to {name}")
        return self._writes(name)

    def _commit_of(self, repo: Repo | None, revision: str) -> str | None:
        if repo is None:
            return None
        if revision in repo.refs:
            return repo.refs[revision]
        if revision in repo.commits:
            return revision
        self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def info(self, name: str, revision: str = "main") -> None:
        """What is known of a revision, with sizes and hashes of its files if the query asks for `blobs`."""
        repo = self._repo(name)
        # A repository without a commit is listed, empty.
        new = repo is not None and not repo.commits and revision == "main"
        oid = "0" * 40 if new else self._commit_of(repo, revision)
        if repo is None or oid is None:
            return None
        if self.hub.drip or self.hub.flood:
            self._begin(200, {})
            piece, pause = (b" ", 0.05) if self.hub.drip else (b" " * (1 << 20), 0.0)
            return self._never_end(piece, pause)
        if self.hub.garbage is not None:
            return self.send(200, self.hub.garbage)
        files = repo.commits.get(oid, {})
        rows: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(files)]
        for row in rows if "blobs" in self.query else ():
            data = files[row["rfilename"]]
            row |= {"size": len(data), "blobId": _git(data)}
            if len(data) >= LARGE:
                row["lfs"] = {"sha256": _hash(data), "size": len(data), "pointerSize": 134}
            row |= self.hub.lies.get(row["rfilename"], {})
        table = {
            "id": name,
            "sha": oid,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "tags": [],
            "siblings": rows,
        }
        return self.send(200, {**table, "cardData": _card_data(files)})

    def tree(self, name: str, revision: str, folder: str = "") -> None:
        repo = self._repo(name)
        oid = self._commit_of(repo, revision)
        if repo is None or oid is None:
            return
        prefix = f"{folder}/" if folder else ""
        self.send(200, [r for r in _rows(repo.commits[oid]) if r["path"].startswith(prefix)])

    def paths_info(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        oid = self._commit_of(repo, revision)
        if repo is None or oid is None:
            return
        wanted = parse_qs(self.body.decode()).get("paths", [])
        if self.body.startswith(b"{"):
            wanted = json.loads(self.body)["paths"]
        self.send(200, [row for row in _rows(repo.commits[oid]) if row["path"] in wanted])

    def auth(self, name: str) -> None:
        if self._open(name) is not None:
            self.send(200, {})

    def resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._open(name)
        oid = self._commit_of(repo, revision)
        if repo is None or oid is None:
            return None
        data = repo.commits[oid].get(file)
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", oid)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_hash(data)}"', "Accept-Ranges": "bytes"}
        if len(data) >= LARGE:
            headers |= {"X-Linked-Etag": f'"{_hash(data)}"', "X-Linked-Size": str(len(data))}
            if self.hub.xet:
                route = f"{self.hub.url}/api/models/{name}/xet-read-token/{oid}"
                headers |= {"X-Xet-Hash": _hash(data), "X-Xet-Refresh-Route": route}
        if self.hub.endless and self.command == "GET":
            self._begin(200, headers)
            return self._never_end(b"x" * CHUNK)
        return self._send_file(data, headers)

    def xet_token(self, name: str) -> None:
        token = {"X-Xet-Cas-Url": self.hub.url, "X-Xet-Access-Token": "t"}
        self.send(200, {}, {**token, "X-Xet-Token-Expiration": str(1 << 40)})

    def xet_file(self, oid: str) -> None:
        for repo in self.hub.repos.values():
            for data in repo.head.values():
                if _hash(data) == oid:
                    return self._send_file(data, {})
        return self.send(404, {})

    def whoami(self) -> None:
        if self.user is None:
            return self.send(401, {"error": "Invalid username or password."})
        orgs = [{"name": n, "roleInOrg": role, "type": "org"} for n, role in self.user.orgs.items()]
        token = {"displayName": "t", "role": self.user.role}
        return self.send(
            200,
            {"type": "user", "name": self.user.name, "orgs": orgs, "auth": {"accessToken": token}},
        )

    def create(self) -> None:
        wish = json.loads(self.body)
        name = f"{wish.get('organization') or (self.user.name if self.user else '')}/{wish['name']}"
        if not self._may_write(name):
            return
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repos:
            return self.send(409, {"error": "You already created this model repo", "url": url})
        self.hub.repos[name] = Repo(
            private=wish.get("visibility") == "private" or bool(wish.get("private"))
        )
        self.send(200, {"url": url, "name": name})

    def validate_yaml(self) -> None:
        self.send(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        if self._may_write(name):
            modes = [
                (f["path"], "lfs" if f["size"] >= LARGE else "regular")
                for f in json.loads(self.body)["files"]
            ]
            rows = [
                {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for path, mode in modes
            ]
            self.send(200, {"files": rows})

    def batch(self, name: str) -> None:
        if not self._may_write(name):
            return
        rows = json.loads(self.body)["objects"]
        for row in rows:
            if row["oid"] not in self.hub.large:
                row["actions"] = {"upload": {"href": f"{self.hub.url}/large/{row['oid']}"}}
        self.send(200, {"transfer": "basic", "objects": rows})

    def put_large(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.send(400, {"error": "not what was announced"})
        self.hub.large[oid] = self.body
        return self.send(200, {})

    def commit(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        if repo is None or not self._may_write(name):
            return
        files = dict(repo.head)
        for line in self.body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif row["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(files, revision)
        self.send(
            200,
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"},
        )


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
API = "/api/(?:models|datasets)"
ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (rf"GET {API}/{NAME}", "info"),
    (rf"GET {API}/{NAME}/revision/(?P<revision>.+)", "info"),
    (rf"GET {API}/{NAME}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", "tree"),
    (rf"POST {API}/{NAME}/paths-info/(?P<revision>.+)", "paths_info"),
    (rf"GET /api/models/{NAME}/auth-check", "auth"),
    (rf"GET /api/models/{NAME}/xet-read-token/.+", "xet_token"),
    (r"GET /xet/(?P<oid>[0-9a-f]{64})", "xet_file"),
    (rf"POST /api/models/{NAME}/preupload/(?P<revision>.+)", "preupload"),
    (rf"POST /api/models/{NAME}/commit/(?P<revision>.+)", "commit"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /large/(?P<oid>[0-9a-f]{64})", "put_large"),
    (
        rf"(?:GET|HEAD) (?:/datasets)?/{NAME}/resolve/(?P<revision>[0-9a-f]{{40}}|refs/pr/\d+|[^/]+)/(?P<file>.+)",
        "resolve",
    ),
]


def files_of(folder: Path) -> dict[str, bytes]:
    """{path: bytes} of a folder, for `Hub.add`."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def serve_data_sets(patch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Point the library `datasets` to this Hub too, if it is loaded here."""
    if "datasets" not in sys.modules:
        return
    from datasets import config

    patch.setattr(config, "HF_ENDPOINT", url)
    patch.setattr(config, "HF_HUB_OFFLINE", False)
    patch.setattr(config, "HF_DATASETS_CACHE", cache)
    patch.setattr(config, "DOWNLOADED_DATASETS_PATH", cache / "downloads")


@contextmanager
def serving(cache: Path) -> Iterator[Hub]:
    """A Hub that huggingface_hub's client in this process talks to, with a cache of its own and nobody logged in."""
    from huggingface_hub import constants

    hub = Hub()
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(cache.parent / "token"),
        "HF_HUB_ETAG_TIMEOUT": 600,
        "HF_HUB_DOWNLOAD_TIMEOUT": 600,
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings.items():
            patch.setattr(constants, key, value)
        serve_data_sets(patch, hub.url, cache.parent / "datasets")
        for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_DISABLE_XET"):
            patch.delenv(key, raising=False)
        try:
            yield hub
        finally:
            hub.close()
