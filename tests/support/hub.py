"""A small Hub on 127.0.0.1: the HTTP that huggingface_hub's own client speaks, for reading and for writing models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LARGE = 4096
"""Bytes from which a file is stored as a large file (LFS); the real Hub decides by name and size."""
CHUNK = 65536


@dataclass
class Repo:
    """A model: {revision: commit}, {commit: {path: bytes}}, and who may see it."""

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

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    @property
    def head(self) -> dict[str, bytes]:
        return self.commits.get(self.refs.get("main", ""), {})


@dataclass
class User:
    """Who holds a token: its role, and the organisations with the role there."""

    name: str
    role: str = "write"
    orgs: dict[str, str] = field(default_factory=dict)


class Hub:
    """The server and what it holds. `log` is every request: (method, path, Range).

    With `stall` a body stops at that byte until `awake` is set, with `cut` the line is closed there.
    `down` answers 503; without `ranges` it sends all. What a hostile one does: `lies` replaces what is listed of a
    path, `garbage` the whole listing, `swapped` the bytes of a path; `endless` bodies never end, nor do
    listings that `drip` or `flood`; files are sent from
    `elsewhere`. `tokens` are those that were shown to it.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.users: dict[str, User] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str, str]] = []
        self.down = False
        self.stall: int | None = None
        self.ranges = True
        self.awake = threading.Event()
        self.cut: int | None = None
        self.lies: dict[str, dict[str, Any]] = {}
        self.garbage: Any = None
        self.swapped: dict[str, bytes] = {}
        self.endless = False
        self.drip = self.flood = False
        self.elsewhere = ""
        self.tokens: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
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
        found = [path for method, path, _ in self.log if method == "GET" and "/resolve/" in path]
        return [path for path in found if path.endswith(ending)]

    def ranges_of(self, ending: str) -> list[str]:
        return [asked for method, path, asked in self.log if method == "GET" and path.endswith(ending)]


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sibling(path: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": _blob_id(data)}
    if len(data) >= LARGE:
        found["lfs"] = {"sha256": _sha256(data), "size": len(data), "pointerSize": 134}
    return found


def _card_data(files: dict[str, bytes]) -> dict[str, Any]:
    import yaml

    found = re.match(r"---\n(.*?)\n---", files.get("README.md", b"").decode(), re.DOTALL)
    return dict(yaml.safe_load(found[1])) if found else {}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Answers):
        server_hub = hub

    return Handler


class _Plumbing(BaseHTTPRequestHandler):
    """Requests in, answers out."""

    protocol_version = "HTTP/1.1"
    server_hub: Hub
    user: User | None = None

    def log_message(self, *_: object) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_GET(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.query = parse_qs(parts.query)
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        self.body = self._chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server_hub.log.append((method, path, self.headers.get("Range", "")))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = self.server_hub.users.get(token)
        self.server_hub.tokens |= {token} - {""}
        if self.server_hub.down:
            return self.send(503, {"error": "down for maintenance"})
        if token and self.user is None:
            message = "Invalid credentials in Authorization header"
            return self.send(401, {"error": message}, {"X-Error-Message": message})
        for pattern, action in ROUTES:
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                getattr(self, action)(**found.groupdict())
                return None
        return self.send(404, {"error": f"no such route: {method} {path}"})

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def send(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, code: int, kind: str, message: str, commit: str = "") -> None:
        headers = {"X-Error-Code": kind, "X-Error-Message": message}
        self.send(code, {"error": message}, headers | ({"X-Repo-Commit": commit} if commit else {}))

    def send_file(self, data: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server_hub.ranges else None
        start = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1, len(data)) if asked and asked[2] else len(data)
        if self.server_hub.endless:
            return self.pour_out(headers)
        self.send_response(206 if asked else 200)
        headers = headers | ({"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"} if asked else {})
        for key, value in {**headers, "Content-Length": str(end - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        try:
            for place in range(start, end if self.command == "GET" else start, CHUNK):
                if self.server_hub.cut is not None and place >= self.server_hub.cut:
                    self.close_connection = True
                    return
                if self.server_hub.stall is not None and place >= self.server_hub.stall:
                    self.wfile.flush()
                    self.server_hub.awake.wait(600)
                self.wfile.write(data[place : min(place + CHUNK, end)])
        except ConnectionError:  # the client has seen enough
            self.close_connection = True

    def never_end(self, piece: bytes) -> None:
        """JSON without an end, until the client hangs up: 20 pieces a second, or as many as it takes."""
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):
            while True:
                self.wfile.write(piece)
                self.wfile.flush()
                self.server_hub.awake.wait(0.05 if len(piece) == 1 else 0)

    def pour_out(self, headers: dict[str, str]) -> None:
        """A body without an end, until the client hangs up."""
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.close_connection = True
        try:
            while self.command == "GET":
                self.wfile.write(b"x" * CHUNK)
        except ConnectionError:
            return


class _Answers(_Plumbing):
    """What each route says."""

    def _repo(self, name: str) -> Repo | None:
        """The repository if the caller may know of it; else the answer is given."""
        repo = self.server_hub.repos.get(name)
        if repo is None or (repo.private and not self._reads(repo) and not self._writes(name)):
            self.refuse(404 if self.user else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _open(self, name: str) -> Repo | None:
        """The repository if the caller may read its files."""
        repo = self._repo(name)
        if repo is not None and repo.gated and not self._reads(repo):
            self.refuse(403 if self.user else 401, "GatedRepo", f"Access to model {name} is restricted")
            return None
        return repo

    def _reads(self, repo: Repo) -> bool:
        return self.user is not None and self.user.name in repo.readers

    def _writes(self, name: str) -> bool:
        space, user = name.split("/")[0], self.user
        if user is None or user.role not in ("write", "admin"):
            return False
        return space == user.name or user.orgs.get(space) in ("write", "admin", "contributor")

    def _commit_of(self, repo: Repo | None, revision: str) -> str | None:
        oid = repo.find(revision) if repo else None
        if repo is not None and oid is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    def info(self, name: str, revision: str = "main") -> None:
        repo = self._repo(name)
        new = repo is not None and not repo.commits and revision == "main"
        oid = "0" * 40 if new else self._commit_of(repo, revision)
        if repo is None or oid is None:
            return
        if self.server_hub.drip or self.server_hub.flood:
            return self.never_end(b" " if self.server_hub.drip else b" " * (1 << 20))
        if self.server_hub.garbage is not None:
            return self.send(200, self.server_hub.garbage)
        files = repo.commits.get(oid, {})
        detailed = "blobs" in self.query
        lies = self.server_hub.lies
        table = {
            "id": name,
            "modelId": name,
            "sha": oid,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "tags": [],
            "siblings": [
                {**_sibling(p, d), **lies.get(p, {})} if detailed else {"rfilename": p}
                for p, d in sorted(files.items())
            ],
            "cardData": _card_data(files),
        }
        self.send(200, table)

    def tree(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        oid = self._commit_of(repo, revision)
        if repo is None or oid is None:
            return
        rows = [_sibling(path, data) for path, data in sorted(repo.commits[oid].items())]
        for row in rows:
            row |= {"type": "file", "path": row.pop("rfilename"), "oid": row.pop("blobId")}
            if "lfs" in row:
                row["lfs"]["oid"] = row["lfs"].pop("sha256")
        self.send(200, rows)

    def refs(self, name: str) -> None:
        repo = self._repo(name)
        if repo is not None:
            rows = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.refs.items()]
            self.send(200, {"branches": rows, "tags": [], "converts": []})

    def auth(self, name: str) -> None:
        if self._open(name) is not None:
            self.send(200, {})

    def auth_write(self, name: str) -> None:
        if self._repo(name) is None:
            return
        if self._writes(name):
            self.send(200, {})
        else:
            self.refuse(403, "Forbidden", "You have no write access")

    def resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._open(name)
        oid = self._commit_of(repo, revision)
        if repo is None or oid is None:
            return
        data = repo.commits[oid].get(file)
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", oid)
        if self.server_hub.elsewhere:
            return self.send(302, {}, {"Location": f"{self.server_hub.elsewhere}{self.path}"})
        etag = _sha256(data) if len(data) >= LARGE else _blob_id(data)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if len(data) >= LARGE:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        self.send_file(self.server_hub.swapped.get(file, data), headers)

    def whoami(self) -> None:
        if self.user is None:
            return self.send(401, {"error": "Invalid username or password."})
        orgs = [{"name": n, "roleInOrg": role, "type": "org"} for n, role in self.user.orgs.items()]
        token = {"displayName": "t", "role": self.user.role}
        self.send(200, {"type": "user", "name": self.user.name, "orgs": orgs, "auth": {"accessToken": token}})

    def create(self) -> None:
        wish = json.loads(self.body)
        name = f"{wish.get('organization') or (self.user.name if self.user else '')}/{wish['name']}"
        if not self._writes(name):
            return self.refuse(403, "Forbidden", f"You don't have the rights to create a model under {name}")
        if name in self.server_hub.repos:
            url = f"{self.server_hub.url}/{name}"
            return self.send(409, {"error": "You already created this model repo", "url": url})
        self.server_hub.repos[name] = Repo(private=wish.get("visibility") == "private" or bool(wish.get("private")))
        self.send(200, {"url": f"{self.server_hub.url}/{name}", "name": name})

    def validate_yaml(self) -> None:
        self.send(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        if not self._writes(name):
            return self.refuse(403, "Forbidden", f"no write access to {name} at {revision}")
        rows = [
            {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LARGE else "regular", "shouldIgnore": False}
            for f in json.loads(self.body)["files"]
        ]
        self.send(200, {"files": [{**row, "oid": None} for row in rows]})

    def batch(self, name: str) -> None:
        if not self._writes(name):
            return self.refuse(403, "Forbidden", "no write access")
        known, url = self.server_hub.large, self.server_hub.url
        rows = json.loads(self.body)["objects"]
        for row in rows:
            if row["oid"] not in known:
                row["actions"] = {"upload": {"href": f"{url}/large/{row['oid']}"}}
        self.send(200, {"transfer": "basic", "objects": rows})

    def put_large(self, oid: str) -> None:
        if _sha256(self.body) != oid:
            return self.send(400, {"error": "not what was announced"})
        self.server_hub.large[oid] = self.body
        self.send(200, {})

    def commit(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        if not self._writes(name):
            return self.refuse(403, "Forbidden", "no write access")
        files = dict(repo.head)
        for line in self.body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.server_hub.large[value["oid"]]
            elif row["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(files, revision)
        url = f"{self.server_hub.url}/{name}/commit/{oid}"
        self.send(200, {"success": True, "commitOid": oid, "commitUrl": url})


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (rf"GET /api/models/{NAME}", "info"),
    (rf"GET /api/models/{NAME}/revision/(?P<revision>.+)", "info"),
    (rf"GET /api/models/{NAME}/tree/(?P<revision>[^/]+)/?", "tree"),
    (rf"GET /api/models/{NAME}/refs", "refs"),
    (rf"GET /api/models/{NAME}/auth-check", "auth"),
    (rf"GET /api/models/{NAME}/auth-check/write", "auth_write"),
    (rf"POST /api/models/{NAME}/preupload/(?P<revision>.+)", "preupload"),
    (rf"POST /api/models/{NAME}/commit/(?P<revision>.+)", "commit"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /large/(?P<oid>[0-9a-f]{64})", "put_large"),
    (rf"(?:GET|HEAD) /{NAME}/resolve/(?P<revision>[0-9a-f]{{40}}|refs/pr/\d+|[^/]+)/(?P<file>.+)", "resolve"),
]


def files_of(folder: Path) -> dict[str, bytes]:
    """{path: bytes} of a folder, for `Hub.add`."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings.items():
            patch.setattr(constants, key, value)
        for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_XET_HIGH_PERFORMANCE"):
            patch.delenv(key, raising=False)
        try:
            yield hub
        finally:
            hub.close()
