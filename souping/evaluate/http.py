"""Requests to servers: no redirect is followed, and time and length of an answer are bounded as a whole."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from souping.core.text import safe
from souping.core.types import Json

LOCAL = ("127.0.0.1", "localhost", "::1")
LONGEST = 1 << 23
"""Bytes of a server's answer, and of a log, that are read."""


class ServerError(Exception):
    """The server did not answer, or answered with an error (`status` is then its HTTP status)."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(safe(" ".join(message.split()))[:300])
        self.status = status


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What was sent to one address goes to no other: a redirect is an answer like any error."""

    def redirect_request(self, *_: object) -> None:
        return None


def ask(url: str, body: Json = None, timeout: float = 10.0, key: str = "") -> str:
    """The text that a server answers: GET, or POST where there is a `body` (sent as JSON), with `key` as bearer token.

    Raises:
        ServerError: no connection, no whole answer in `timeout` seconds, one that is too long, or a status of 300 and
            above.
    """
    told: list[str | ServerError] = []
    thread = threading.Thread(target=lambda: told.append(_answer(url, body, timeout, key)), daemon=True)
    thread.start()
    thread.join(timeout + 1.0)  # a socket's own limit begins anew with every byte that trickles in
    answer = told[0] if told else ServerError(f"no answer after {timeout:g} s")
    if isinstance(answer, ServerError):
        raise answer
    return answer


def _answer(url: str, body: Json, timeout: float, key: str) -> str | ServerError:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url, data, headers)
    local = urlsplit(url).hostname in LOCAL  # no proxy stands before this machine's own servers
    opener = urllib.request.build_opener(_NoRedirects, *([urllib.request.ProxyHandler({})] if local else []))
    end = time.monotonic() + timeout
    try:
        with opener.open(request, timeout=timeout) as answer:
            return _read(answer.read1, end)
    except urllib.error.HTTPError as error:
        with suppress(OSError, ValueError, http.client.HTTPException, ServerError):
            return ServerError(_detail(error, _read(error.read, end)), error.code)
        return ServerError(f"status {error.code}", error.code)
    except ServerError as error:
        return error
    except http.client.HTTPException as error:
        return ServerError(f"no answer by HTTP ({type(error).__name__})")
    except (OSError, ValueError) as error:
        return ServerError(str(getattr(error, "reason", error)))  # urllib's


def _read(more: Callable[[int], bytes], end: float) -> str:
    """A body, as far as it comes in time and is not too long."""
    pieces, size = [], 0
    while piece := more(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > LONGEST:
            raise ServerError(f"its answer is longer than {LONGEST >> 20} MB")
        if time.monotonic() > end:
            raise ServerError("its answer does not end in time")
    return b"".join(pieces).decode("utf-8", errors="replace")


def _detail(error: urllib.error.HTTPError, text: str) -> str:
    """What the server says is wrong."""
    if error.code < 400:
        return f"it redirects to {error.headers.get('Location', 'another address')!s:.100}, which is not followed"
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()[:200] or f"status {error.code}"
    for key in ("error", "message", "detail"):
        told = told.get(key, told) if isinstance(told, dict) else told
    return str(told)[:200]


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
