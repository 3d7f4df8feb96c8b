"""Processes that end with the run, and HTTP requests that always end."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil

from souping.checkpoints.hub import cached_name
from souping.core.child import end_with
from souping.core.files import folder_at
from souping.core.reading import read
from souping.core.text import listed, safe
from souping.core.types import Json, JsonObject, frozen

if TYPE_CHECKING:
    import httpx

HOST = "127.0.0.1"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
LONGEST_ANSWER_BYTES = 1 << 23
"""Bytes of a server's answer, and of a log, that are read."""
SERVER_GRACE_S = 10.0
"""Seconds between SIGTERM and SIGKILL."""
ORPHAN_GRACE_S = 3.0
"""Seconds between SIGTERM and SIGKILL once the run is gone; `end_with` waits no longer than 4 s."""
ENDED = re.compile(r"ended by itself with status (\S+)")
"""Line that the guard of a process writes under its output."""
SET_CHILD_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2)."""

# Processes


class Process:
    """Command that runs in its own process group, below a guard process.

    The guard ends the group at `stop`, at the end of this interpreter, or when this process is killed, whichever comes
    first; on Linux also what the command detached (`setsid`, a double fork). The command's output goes to `log`, and
    Ctrl-C on the terminal does not reach it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            # The file may already have lines of an earlier process.
            self._begin = out.tell()
            self._guard = _start_guard("run_command", command, environment, out.fileno())
        self._stopped = False
        atexit.register(self.stop)

    @property
    def group(self) -> int:
        """Number of the process group of the guard, the command and all that it starts."""
        return self._guard.pid

    @property
    def alive(self) -> bool:
        """Whether the guard, and so the command, still runs."""
        if self._stopped:
            return False
        # The guard is not reaped before `stop`, so that no other group gets its number.
        return os.waitid(os.P_PID, self.group, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def stop(self) -> None:
        """Let the guard end the whole group, and kill what is alive afterwards. Returns when it is gone."""
        if self._stopped:
            return
        # Not `self._guard.terminate()`, which may reap the guard.
        os.kill(self.group, signal.SIGTERM)
        try:
            # A second more than the guard waits.
            end = time.monotonic() + SERVER_GRACE_S + 1
            while self.alive and time.monotonic() < end:
                time.sleep(0.02)
        finally:
            # The group is only left if the guard itself was killed.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.group, signal.SIGKILL)
            self._guard.wait()
            self._stopped = True
            atexit.unregister(self.stop)

    def ends_in(self, seconds: float, sign: Path | None = None) -> bool:
        """Whether the command ends by itself within this time; otherwise it is stopped.

        The time starts again whenever the file `sign`, a sign of life, has grown.
        """
        size = 0
        since = time.monotonic()
        try:
            while self.alive and time.monotonic() - since < seconds:
                time.sleep(0.05)
                if sign is not None and (now := sign.stat().st_size) != size:
                    size = now
                    since = time.monotonic()
            return not self.alive
        finally:
            self.stop()

    def tail(self, nbytes: int = LONGEST_ANSWER_BYTES) -> str:
        """The last `nbytes` bytes of the command's output."""
        with self.log.open("rb") as log:
            # Not lines of an earlier process.
            log.seek(max(self._begin, log.seek(0, os.SEEK_END) - nbytes))
            return log.read(nbytes).decode("utf-8", errors="replace")

    def reason(self) -> str:
        """The last line of the output that names an error, else the last line."""
        lines = list[str]()
        errors = list[str]()
        for printed in self.tail().splitlines():
            # Libraries print boxes around errors.
            line = printed.strip(" │|")
            if not line or re.fullmatch(r"[─╭╰╮╯=\-]+", line):
                continue
            lines.append(line)
            if re.search(r"\b\w*(Error|Exception)\b.*:|(?i:error):|^usage:", line):
                errors.append(line)
        return safe((errors or lines or ["its log is empty"])[-1][:300])


class PidGuard:
    """Guard that ends processes and their children once this process is gone, or at `stop`."""

    def __init__(self, pids: Sequence[int]) -> None:
        # Children are listed now: once a process is gone, its children have another parent.
        roots = _running(pids)
        self._processes = list(roots)
        for root in roots:
            self._processes += root.children(recursive=True)
        numbers = [str(process.pid) for process in self._processes]
        self._guard = _start_guard("watch", numbers, os.environ, subprocess.DEVNULL)

    def stop(self) -> None:
        """End the processes now; returns when they are gone."""
        # Killed, so that the guard does not end the processes too.
        self._guard.kill()
        self._guard.wait()
        _end(self._processes)


def _running(pids: Iterable[int]) -> list[psutil.Process]:
    """The processes with these ids that still exist."""
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def _end(processes: Sequence[psutil.Process]) -> None:
    """Terminate these processes, then kill those that are left.

    psutil does not touch another process that has got the number of one of them.
    """
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                end(process)
        _, processes = psutil.wait_procs(processes, ORPHAN_GRACE_S)


def _start_guard(
    task: str, words: Sequence[str], environment: Mapping[str, str], out: int
) -> subprocess.Popen[bytes]:
    """Start a guard, a process of its own group that runs the function `task` of this file with arguments.

    `out` is the descriptor of its output.
    """
    # It finds this package by a path that its own children do not inherit.
    module = "souping.evaluate.servers.server_process"
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {task}; {task}()"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(os.getpid()), *words],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        env=dict(environment),
        start_new_session=True,
    )


def run_command() -> None:
    """The guard of `Process`: run the command until it ends or the run is gone, then end the whole group.

    The arguments of this process are the run's process id and the command.
    """
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        # What the command detaches becomes a child of the guard instead of a child of init.
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = subprocess.Popen(sys.argv[2:])
    # SIGTERM comes from `Process.stop`, and from `end_with` if the run is gone.
    with suppress(SystemExit):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        end_with(parent)
        print(f"ended by itself with status {_status(child)}", flush=True)
    # This guard is in the group too, and must survive the signal.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    _signal_children(signal.SIGTERM)
    # Processes that outlive this time are killed below.
    with suppress(subprocess.TimeoutExpired):
        child.wait(SERVER_GRACE_S if os.getppid() == parent else ORPHAN_GRACE_S)
        # For processes that the command started.
        time.sleep(0.1)
    # A process that was not seen may have started another meanwhile.
    for _ in range(5):
        psutil.wait_procs(_signal_children(signal.SIGKILL), 0.1)
    os.killpg(0, signal.SIGKILL)


def _status(child: subprocess.Popen[bytes]) -> int:
    """Wait for the command to end, and return its exit status."""
    while True:
        # This also reaps detached processes, which are now children of the guard.
        pid, status = os.wait()
        if pid == child.pid:
            # So that `child.wait` does not wait for it again.
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode


def _signal_children(number: signal.Signals) -> list[psutil.Process]:
    """Send a signal to all processes that this one and its children have started, and return them."""
    processes: list[psutil.Process] = psutil.Process().children(recursive=True)
    for process in processes:
        # It may have ended, or belong to another user.
        with suppress(psutil.Error):
            process.send_signal(number)
    return processes


def watch() -> None:
    """The guard of `PidGuard`: wait until the run is gone, then end the processes.

    The arguments of this process are the ids of the run and of the processes.
    """
    processes = _running(map(int, sys.argv[2:]))
    # SIGTERM comes from `end_with` if the run is gone.
    with suppress(SystemExit):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        end_with(int(sys.argv[1]))
        signal.pause()
    _end(processes)


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


# Requests


class ServerError(Exception):
    """The server did not answer, or answered with an error (`status` is then its HTTP status)."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(safe(" ".join(message.split()))[:300])
        self.status = status


def post(url: str, body: Json = None, timeout: float = 10.0, key: str = "") -> str:
    """The text of a server's response to a POST of JSON, or to a GET without a `body`; `key` is a bearer token.

    Redirects are not followed, so that the key goes nowhere else.

    Raises:
        ServerError: no connection, no complete response in `timeout` seconds, one that is too long, or a status of 300
            and above.
    """
    timeout_error = ServerError(f"no whole answer after {timeout:g} s")
    responses: list[str | ServerError] = []
    # In a thread, because the client's own time limit starts again with every byte that arrives.
    thread = threading.Thread(
        target=lambda: responses.append(_response(url, body, timeout, key, timeout_error)),
        daemon=True,
    )
    thread.start()
    thread.join(timeout)
    response = responses[0] if responses else timeout_error
    if isinstance(response, ServerError):
        raise response
    return response


@lru_cache(maxsize=2)
def _client(local: bool) -> httpx.Client:
    """HTTP client that keeps connections; a `local` one, for requests to this machine, bypasses any proxy."""
    import httpx

    return httpx.Client(trust_env=not local, limits=httpx.Limits(max_connections=None))


def _response(
    url: str, body: Json, timeout: float, key: str, timeout_error: ServerError
) -> str | ServerError:
    """The text that `post` returns or the error that it raises; `timeout_error` after `timeout` seconds.

    The time limit also ends the thread of a request that `post` no longer waits for.
    """
    import httpx

    end = time.monotonic() + timeout
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    method = "GET"
    content = None
    if body is not None:
        method = "POST"
        content = json.dumps(body).encode()
    try:
        client = _client(urlsplit(url).hostname in LOCAL_HOSTS)
        with client.stream(
            method, url, content=content, headers=headers, timeout=timeout
        ) as response:
            data = bytearray()
            for piece in response.iter_bytes():
                data += piece
                if time.monotonic() > end:
                    return timeout_error
                if len(data) > LONGEST_ANSWER_BYTES:
                    return ServerError(f"its answer is longer than {LONGEST_ANSWER_BYTES >> 20} MB")
    except httpx.TimeoutException:
        return timeout_error
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return ServerError(f"no answer ({type(error).__name__}: {error})")
    text = data.decode("utf-8", errors="replace")
    if response.is_success:
        return text
    return ServerError(_reason(response, text), response.status_code)


def _reason(response: httpx.Response, text: str) -> str:
    """Why a response is no success: where it redirects to, or the message in its text, which may be JSON."""
    if response.is_redirect:
        return f"it redirects to {response.headers.get('Location', 'another address'):.100}, which is not followed"
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()[:200] or f"status {response.status_code}"
    # {"error": {"message": ...}}, {"message": ...} or {"detail": ...}
    for key in ("error", "message", "detail"):
        message = message.get(key, message) if isinstance(message, dict) else message
    return str(message)[:200]


def parsed(text: str) -> JsonObject:
    """The JSON object in a server's response.

    Raises:
        ServerError: the text is not such an object.
    """
    with suppress(ValueError, RecursionError):
        table = json.loads(text)
        if isinstance(table, dict):
            return table
    raise ServerError("what answers there is no OpenAI-compatible server")


@frozen
class ServedModel:
    """Model that a server lists, by its `id`; `root` may be the path that it was loaded from."""

    id: str
    root: str


@frozen
class ModelList:
    """Response of an OpenAI-compatible server on its models."""

    data: tuple[ServedModel, ...] | None = None


def models_at(address: str, timeout: float = 10.0) -> list[ServedModel]:
    """The models that a server lists (ServerError if it does not answer, or is not OpenAI-compatible)."""
    models = read(ModelList, parsed(post(f"{address}/v1/models", timeout=timeout))).data
    if models is None:
        raise ServerError("what answers there is no OpenAI-compatible server")
    return [model for model in models if model.id]


def served(address: str, folder: Path) -> str:
    """The id under which a server lists the model in `folder`.

    Raises:
        ServerError: it does not answer, or it serves other models.
    """
    models = models_at(address, timeout=5.0)
    for model in models:
        if _is_same(model.id, folder) or _is_same(model.root, folder):
            return model.id
    raise ServerError(f"it serves {listed((model.id for model in models), 3) or 'no model'}")


def _is_same(path: str, folder: Path) -> bool:
    """Whether a server's name of a model is this folder: its path, or the name `org/model` that it was fetched by."""
    if not path.startswith(("/", "~", ".")):
        name = cached_name(folder.resolve())
        return name is not None and name.partition("@")[0] == path
    return (folder_at(path) or Path(path)) == folder.resolve()
