"""Start a server on a free port, wait until it answers for the model, and say in a line why it does not."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from souping.core import UserError
from souping.evaluate.servers import client
from souping.evaluate.servers.process import Process

HOST = "127.0.0.1"
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


@dataclass(kw_only=True)
class Running:
    """A server that answers for one model. `url` ends with /v1; `model` is the id that requests name."""

    url: str
    host: str
    port: int
    model: str
    process: Process | None = None
    end: Callable[[], None] = field(default=lambda: None, repr=False)

    def stop(self) -> None:
        """End the server and all of its processes, if it is this run's own. A second call does nothing."""
        self.end()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to start: `command(port)`, for the model in `folder`, that is called `name`; `title` names the server."""

    title: str
    folder: Path
    name: str
    command: Callable[[int], Sequence[str]]
    port: int | None
    timeout: float


def launch(order: Order, log_dir: Path | None, say: Say | None) -> Running:
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


def _launch(order: Order, port: int, folder: Path, temporary: Path | None, say: Say) -> Running:
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

    return Running(url=f"http://{HOST}:{port}/v1", host=HOST, port=port, model=model, process=process, end=end)


def _wait(order: Order, port: int, process: Process, say: Say) -> str:
    """The id under which the server lists the model, as soon as it does."""
    start = told = time.monotonic()
    pause = 0.1
    while process.alive:
        with suppress(client.ServerError):
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
    request for that path, the path (older servers list none but the Hub's models).

    Raises:
        client.ServerError: it does not answer, or it serves others.
    """
    models = client.models(address, timeout=5.0)
    for model in models:
        if any(same(str(model.get(key, "")), folder) for key in ("id", "root")):
            return str(model["id"])
    try:
        client.ask(f"{address}/v1/completions", {"model": str(folder), "prompt": "a", "max_tokens": 1}, timeout=120.0)
    except client.ServerError as error:
        raise client.ServerError(f"it serves {', '.join(str(m['id']) for m in models) or 'no model'}") from error
    return str(folder)


def same(path: str, folder: Path) -> bool:
    """Whether a served path is this folder."""
    return path.startswith(("/", "~", ".")) and Path(path).expanduser().resolve() == folder.resolve()


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
