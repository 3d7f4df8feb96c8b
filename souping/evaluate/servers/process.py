"""Process of an OpenAI-compatible server, and requests to one over HTTP, both certain to end."""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from souping.core.files import folder_at
from souping.core.text import listed, safe
from souping.core.types import Json, UserError, entries
from souping.evaluate import guard
from souping.evaluate.guard import GRACE

if TYPE_CHECKING:
    import httpx

HOST = "127.0.0.1"
LOCAL = ("127.0.0.1", "localhost", "::1")
LONGEST = 1 << 23
"""Bytes of a server's answer, and of a log, that are read."""

# Processes


class Process:
    """Command in its own process group, which ends with `stop`, with this interpreter, or when this process is killed,
    whichever comes first (see `guard`). Its output goes to `log`, and Ctrl-C on the terminal does not reach it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self._begin = out.tell()  # an earlier server may have written the lines above
            self._guard = subprocess.Popen(
                [sys.executable, guard.__file__, str(GRACE), "run", *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        self._over = False
        atexit.register(self.stop)

    @property
    def group(self) -> int:
        """The process group of the server and all that it starts."""
        return self._guard.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs. One that has ended is not reaped before `stop`, so that its group's number stays
        ours."""
        if self._over:
            return False
        return os.waitid(os.P_PID, self._guard.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def stop(self) -> None:
        """End the whole group; returns when it is gone."""
        if self._over:
            return
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            end = time.monotonic() + GRACE + 5
            while self.alive and time.monotonic() < end:
                time.sleep(0.02)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._guard.pid, signal.SIGKILL)  # the rest, if the guard itself was killed
            self._guard.wait()
            self._over = True
            atexit.unregister(self.stop)

    def reason(self) -> str:
        """The last line of the log that names an error, else the last line."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._begin, log.seek(0, os.SEEK_END) - LONGEST))
                text = log.read(LONGEST).decode("utf-8", errors="replace")
        except OSError:
            text = ""
        lines = [line.strip(" │|") for line in text.splitlines()]
        lines = [line for line in lines if line and not re.fullmatch(r"[─╭╰╮╯=\-]+", line)]
        errors = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b.*:|(?i:error):|^usage:", line)]
        return safe((errors or lines or ["its log is empty"])[-1][:300])


def free_port(port: int = 0) -> int:
    """A port that is free (a given one, if it is).

    Raises:
        OSError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])


# Requests


class ServerError(Exception):
    """The server did not answer, or answered with an error (`status` is then its HTTP status)."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(safe(" ".join(message.split()))[:300])
        self.status = status


def base(url: str) -> str:
    """`http://host:port` of any way to write the address.

    Raises:
        UserError: it is no address of a server.
    """
    address = re.fullmatch(r"(https?://[^/\s@?#]+)(/v1)?/?", url)
    with suppress(ValueError):  # an impossible port, brackets that are not closed
        if address and urlsplit(address.group(1)).hostname and urlsplit(address.group(1)).port != 0:
            return address.group(1)
    raise UserError(f"server.url={url} must be the address of a server, as http://127.0.0.1:8000")


def ask(url: str, body: Json = None, timeout: float = 10.0, key: str = "") -> str:
    """The text that a server answers: GET, or POST if there is a `body` (sent as JSON), with `key` as bearer token.

    Raises:
        ServerError: no connection, no whole answer in `timeout` seconds, one that is too long, or a status of 300 and
            above. Redirects are not followed: what was sent to one address goes to no other.
    """
    answers: list[str | ServerError] = []
    thread = threading.Thread(target=lambda: answers.append(_answer(url, body, timeout, key)), daemon=True)
    thread.start()
    thread.join(timeout)  # the client's own limit starts again with every byte that arrives
    answer = answers[0] if answers else ServerError(f"no whole answer after {timeout:g} s")
    if isinstance(answer, ServerError):
        raise answer
    return answer


@lru_cache(maxsize=2)
def _client(local: bool) -> httpx.Client:
    """Client that keeps connections. This machine's own servers are not asked through a proxy."""
    import httpx

    return httpx.Client(trust_env=not local, limits=httpx.Limits(max_connections=None))


def _answer(url: str, body: Json, timeout: float, key: str) -> str | ServerError:
    import httpx

    end = time.monotonic() + timeout
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    method, sent = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
    try:
        client = _client(urlsplit(url).hostname in LOCAL)
        with client.stream(method, url, content=sent, headers=headers, timeout=timeout) as answer:
            data = bytearray()
            for piece in answer.iter_bytes():
                data += piece
                if len(data) > LONGEST:
                    return ServerError(f"its answer is longer than {LONGEST >> 20} MB")
                if time.monotonic() > end:  # nobody waits any more
                    return ServerError("late")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return ServerError(f"no answer ({type(error).__name__}: {error})")
    text = data.decode("utf-8", errors="replace")
    if answer.is_success:
        return text
    return ServerError(_detail(answer, text), answer.status_code)


def _detail(answer: httpx.Response, text: str) -> str:
    """The server's error message."""
    if answer.is_redirect:
        return f"it redirects to {answer.headers.get('Location', 'another address'):.100}, which is not followed"
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()[:200] or f"status {answer.status_code}"
    for key in ("error", "message", "detail"):
        message = message.get(key, message) if isinstance(message, dict) else message
    return str(message)[:200]


def parsed(text: str) -> dict[str, Json]:
    """The JSON object that a server answers.

    Raises:
        ServerError: it is none.
    """
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise ServerError("what answers there is no OpenAI-compatible server")
    return table


def models_at(address: str, timeout: float = 10.0) -> list[Mapping[str, Json]]:
    """The models that a server lists.

    Raises:
        ServerError: it does not answer, or not as an OpenAI-compatible server does.
    """
    table = parsed(ask(f"{address}/v1/models", timeout=timeout))
    if not isinstance(table.get("data"), list):
        raise ServerError("what answers there is no OpenAI-compatible server")
    return [model for model in entries(table, "data") if isinstance(model.get("id"), str)]


def served(address: str, folder: Path) -> str:
    """The id under which a server answers for the model in `folder`: as it lists it, or the path, if it answers a
    request for that path and for no other (older servers list only the Hub's models).

    Raises:
        ServerError: it does not answer, or it serves other models.
    """
    models = models_at(address, timeout=5.0)
    for model in models:
        if any(_same(str(model.get(key, "")), folder) for key in ("id", "root")):
            return str(model["id"])
    if not _completes(address, str(folder)) or _completes(address, f"{folder}-which-is-not-there"):
        raise ServerError(f"it serves {listed((str(m['id']) for m in models), 3) or 'no model'}")
    return str(folder)


def _completes(address: str, model: str) -> bool:
    """Whether a server answers for a model of that name."""
    with suppress(ServerError):
        body: Json = {"model": model, "prompt": "a", "max_tokens": 1}
        return bool(entries(parsed(ask(f"{address}/v1/completions", body, timeout=120.0)), "choices"))
    return False


def _same(path: str, folder: Path) -> bool:
    """Whether a served path is this folder."""
    return path.startswith(("/", "~", ".")) and (folder_at(path) or Path(path)) == folder.resolve()
