"""Process of an OpenAI-compatible server: started on a free port, asked over HTTP, and certain to end."""

from __future__ import annotations

import atexit
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from souping.core.files import folder_at
from souping.core.text import listed, safe
from souping.core.types import Json, UserError, entries
from souping.evaluate import guard
from souping.evaluate.guard import GRACE

HOST = "127.0.0.1"
LOCAL = ("127.0.0.1", "localhost", "::1")
LONGEST = 1 << 23
"""Bytes of a server's answer, and of a log, that are read."""
SAY_EVERY = 15.0
"""Seconds between two lines on how long a model has been loading."""
QUIET = {
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONUNBUFFERED": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
log = logging.getLogger("souping.evaluate.servers")
Say = Callable[[str], None]


class Process:
    """Command in a process group of its own, which ends with `stop`, with this interpreter, or when this process is
    killed, whichever comes first (see `guard`). Its output goes to `log`, nothing goes to the terminal, and a Ctrl-C
    there reaches the run alone.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self._begin = out.tell()  # what stands before is of an earlier server
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
        """The process group that holds the server and all that it starts."""
        return self._guard.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs. One that has ended is left unreaped until `stop`: its group's number stays ours."""
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
            _ended(self._guard.pid, GRACE + 5)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._guard.pid, signal.SIGKILL)  # what is left, if the guard itself was killed
            self._guard.wait()
            self._over = True
            atexit.unregister(self.stop)

    def said(self) -> str:
        """What this process wrote to its log, of much the end."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._begin, log.seek(0, os.SEEK_END) - LONGEST))
                return log.read(LONGEST).decode("utf-8", errors="replace")
        except OSError:
            return ""

    def reason(self) -> str:
        """The line of the log that tells most: the last that names an error, else the last."""
        lines = [line.strip(" │|") for line in self.said().splitlines()]
        lines = [line for line in lines if line and not re.fullmatch(r"[─╭╰╮╯=\-]+", line)]
        errors = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b.*:|(?i:error):|^usage:", line)]
        return safe((errors or lines or ["it said nothing"])[-1][:300])


def _ended(pid: int, seconds: float) -> bool:
    """Wait for a child's end without reaping it; whether it came."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.02)
    return False


@dataclass(kw_only=True)
class RunningServer:
    """Server that answers for one model. `url` ends with /v1; `model` is the id that requests name."""

    url: str
    host: str
    port: int
    model: str
    process: Process | None = None
    end: Callable[[], None] = field(default=lambda: None, repr=False)

    def stop(self) -> None:
        """End the server and all of its processes, if it is this run's own. A second call does nothing."""
        self.end()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()


@dataclass(frozen=True, kw_only=True)
class LaunchSpec:
    """Order to start a server: `command(port)`, for the model in `folder`, called `name`; `title` names the server."""

    title: str
    folder: Path
    name: str
    command: Callable[[int], Sequence[str]]
    port: int | None
    timeout: float


def launch(order: LaunchSpec, log_dir: Path | None, say: Say | None) -> RunningServer:
    """The running server, once it lists its model. Its log goes to `log_dir` (kept there), else to a temporary folder
    that stays only if the server fails.

    Raises:
        UserError: the port is taken, the program ends, or the model is not there after `timeout` seconds.
    """
    if order.port is not None and not free(order.port):
        raise UserError(f"server.port={order.port} is taken: leave it out for a free one, or name another")
    folder = log_dir or Path(tempfile.mkdtemp(prefix="souping-server-"))
    for last in (False, False, True):
        port = order.port or free_port()
        try:
            return _launch(order, port, folder, None if log_dir else folder, say or log.info)
        except PortTakenError as error:  # between our look and the server's
            if order.port is not None or last:
                raise UserError(f"{order.title}: port {port} was taken while it started; try again") from error
    raise AssertionError


class PortTakenError(Exception):
    """Another process took the port first."""


def _launch(order: LaunchSpec, port: int, folder: Path, temporary: Path | None, say: Say) -> RunningServer:
    folder.mkdir(parents=True, exist_ok=True)
    process = Process(order.command(port), _environment(os.environ), folder / f"{_plain(order.name)}.log")
    try:
        model = _wait(order, port, process, say)
    except BaseException as error:
        process.stop()
        if temporary is not None and not isinstance(error, Exception):  # a Ctrl-C: nobody will read the log
            shutil.rmtree(temporary, ignore_errors=True)
        raise

    def end() -> None:
        process.stop()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)

    return RunningServer(url=f"http://{HOST}:{port}/v1", host=HOST, port=port, model=model, process=process, end=end)


def _wait(order: LaunchSpec, port: int, process: Process, say: Say) -> str:
    """The id under which the server lists the model, as soon as it does."""
    start = told = time.monotonic()
    pause = 0.1
    while process.alive:
        with suppress(ServerError):
            return served(f"http://{HOST}:{port}", order.folder)
        now = time.monotonic()
        if now - start > order.timeout:
            raise UserError(
                f"{order.title} has not loaded {order.name} after {order.timeout:g} s: raise server.timeout\n"
                f"its last word: {process.reason()} (all of it: {process.log})"
            )
        if now - told > SAY_EVERY:
            told = now
            say(f"{order.title} loads {order.name}: {now - start:.0f} s")
        time.sleep(pause)
        pause = min(1.0, pause * 1.2)
    reason = process.reason()
    if "address already in use" in process.said().lower():
        raise PortTakenError(reason)
    raise UserError(f"{order.title} cannot serve {order.name}: {reason}\nits log: {process.log}")


def served(address: str, folder: Path) -> str:
    """The id under which a server answers for the model in `folder`: as it lists it, or else, where it answers a
    request for that path and none for another, the path (older servers list none but the Hub's models).

    Raises:
        client.ServerError: it does not answer, or it serves others.
    """
    models = models_at(address, timeout=5.0)
    for model in models:
        if any(same(str(model.get(key, "")), folder) for key in ("id", "root")):
            return str(model["id"])
    if not _completes(address, str(folder)) or _completes(address, f"{folder}-which-is-not-there"):
        raise ServerError(f"it serves {listed((str(m['id']) for m in models), 3) or 'no model'}")
    return str(folder)


def _completes(address: str, model: str) -> bool:
    """Whether a server answers for a model of that name."""
    try:
        body: Json = {"model": model, "prompt": "a", "max_tokens": 1}
        return bool(entries(parsed(ask(f"{address}/v1/completions", body, timeout=120.0)), "choices"))
    except ServerError:
        return False


def same(path: str, folder: Path) -> bool:
    """Whether a served path is this folder."""
    return path.startswith(("/", "~", ".")) and (folder_at(path) or Path(path)) == folder.resolve()


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    return {**QUIET, **own}


def _plain(name: str) -> str:
    """A name that is a file's."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:80] or "server"


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
    try:
        if address and urlsplit(address.group(1)).hostname and urlsplit(address.group(1)).port != 0:
            return address.group(1)
    except ValueError:  # a port that is none, brackets that are not closed
        pass
    raise UserError(f"server.url={url} must be the address of a server, as http://127.0.0.1:8000")


def host_and_port(address: str) -> tuple[str, int]:
    """(host, port) of `http://host:port`; the scheme's own port where none is given."""
    parts = urlsplit(address)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


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


def models_at(address: str, timeout: float = 10.0) -> list[Mapping[str, Json]]:
    """The models that a server lists.

    Raises:
        ServerError: it does not answer, or not as an OpenAI-compatible server does.
    """
    table = parsed(ask(f"{address}/v1/models", timeout=timeout))
    if not isinstance(table.get("data"), list):
        raise ServerError("what answers there is no OpenAI-compatible server")
    return [model for model in entries(table, "data") if isinstance(model.get("id"), str)]
