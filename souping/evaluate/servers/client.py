"""What is asked of an OpenAI-compatible server over HTTP, with the standard library."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from souping.core import UserError

LOCAL = ("127.0.0.1", "localhost", "::1")


class ServerError(Exception):
    """The server did not answer, or answered with an error (`status` is then its HTTP status)."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def base(url: str) -> str:
    """`http://host:port` of any way to write the address.

    Raises:
        UserError: it is no address of a server.
    """
    found = re.fullmatch(r"(https?://[^/\s]+)(/v1)?/?", url)
    if not found or not urlsplit(found.group(1)).hostname:
        raise UserError(f"server.url={url} must be the address of a server, as http://127.0.0.1:8000")
    return found.group(1)


def place(address: str) -> tuple[str, int]:
    """(host, port) of `http://host:port`; the scheme's own port where none is given."""
    parts = urlsplit(address)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def ask(url: str, body: Any = None, timeout: float = 10.0) -> str:
    """The text that a server answers: GET, or POST where there is a `body` (sent as JSON).

    Raises:
        ServerError: no connection, no answer in `timeout` seconds, or a status of 400 and above.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    local = urlsplit(url).hostname in LOCAL  # no proxy stands before this machine's own servers
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
    try:
        with opener.open(request, timeout=timeout) as answer:
            text: str = answer.read().decode("utf-8", errors="replace")
            return text
    except urllib.error.HTTPError as error:
        raise ServerError(_detail(error), error.code) from error
    except (OSError, ValueError) as error:
        raise ServerError(str(getattr(error, "reason", error))) from error


def _detail(error: urllib.error.HTTPError) -> str:
    """What the server says is wrong."""
    text = error.read().decode("utf-8", errors="replace")
    try:
        told = json.loads(text)
    except ValueError:
        return text.strip()[:200] or f"status {error.code}"
    for key in ("error", "message", "detail"):
        told = told.get(key, told) if isinstance(told, dict) else told
    return str(told)[:200]


def models(address: str, timeout: float = 10.0) -> list[dict[str, Any]]:
    """The models that a server lists.

    Raises:
        ServerError: it does not answer, or not as an OpenAI-compatible server does.
    """
    text = ask(f"{address}/v1/models", timeout=timeout)
    try:
        return [dict(model) for model in json.loads(text)["data"] if "id" in model]
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError("what answers there is no OpenAI-compatible server") from error
