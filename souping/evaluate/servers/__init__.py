"""OpenAI-compatible servers that a run starts, uses and stops, or finds: `server={transformers,vllm}`."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from souping.core.fields import Port, Seconds, component
from souping.core.files import expanded
from souping.core.protocols import ModelHost
from souping.core.types import Json, Missing, UserError
from souping.evaluate.servers.process import (
    HOST,
    Process,
    ServerError,
    base,
    free_port,
    models_at,
    served,
)

SAY_EVERY = 15.0
"""Seconds between two lines on how long a model has been loading."""
QUIET = {
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONUNBUFFERED": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
log = logging.getLogger("souping.evaluate.servers")


@dataclass(kw_only=True)
class RunningServer:
    """Server that answers for one model. `url` ends with /v1; `model` is the id that requests name."""

    url: str
    model: str
    process: Process | None = None
    end: Callable[[], None] = field(default=lambda: None, repr=False)

    def stop(self) -> None:
        """End the server and all of its processes, if this run started it. A second call does nothing."""
        self.end()


@component
class Server(ABC):
    """Settings of a server; `start` makes it serve one model.

    `url` is a server that somebody else runs. Without it, one is started on `port` (default: a free one) by `python`
    (the interpreter of another environment; default: this one), which has `timeout` seconds to load a model.
    `extra_args` go to its command line unchanged.
    """

    title: ClassVar[str]
    kind: ClassVar[str]
    version: ClassVar[int]
    """Raise when the same settings would give other answers."""
    decisive: ClassVar[tuple[str, ...]]
    """Fields of a server of ours that can change an answer."""
    how_to_start: ClassVar[str]
    """How somebody must have started a server for `url`."""
    draws: ClassVar[bool] = False
    """Whether a drawn answer depends on the request's own seed alone."""

    url: str | None = None
    port: Port | None = None
    timeout: Seconds = 1800.0
    python: str | None = None
    extra_args: list[str] = field(default_factory=list)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.url is not None:
            base(self.url)

    @property
    def interpreter(self) -> str:
        return str(expanded(self.python, "server.python")) if self.python else sys.executable

    @property
    def settings(self) -> Mapping[str, Json]:
        """Everything that can change an answer besides model and request. Of a found server only the address is
        known."""
        known: dict[str, Json] = {"name": self.kind, "version": self.version}
        if self.url is not None:
            return {**known, "url": base(self.url)}
        return {**known, "extra_args": list(self.extra_args), **{name: vars(self)[name] for name in self.decisive}}

    @property
    @abstractmethod
    def host(self) -> ModelHost:
        """Where the model is held, as far as plans and checks ask."""

    @property
    def request(self) -> Mapping[str, Json]:
        """Fields of every request that leave nothing of the decoding to the defaults of server or folder."""
        return {}

    def needs(self) -> list[Missing]:
        """What `check` refuses, with its fix."""
        try:
            self.check()
        except UserError as error:
            return [Missing.from_error(error)]
        return []

    def check(self) -> None:
        """Refuse, before any work, what cannot start here.

        Raises:
            UserError: packages are absent, or the found server does not answer.
        """
        if self.url is None:
            self.check_installed()
            return
        try:
            models_at(base(self.url))
        except ServerError as error:
            raise UserError(f"server.url={self.url} does not answer: {error}") from error

    def start(self, folder: Path, name: str) -> RunningServer:
        """A running server for the model in `folder`, called `name` in messages.

        Its log is in a temporary folder, which stays only if the server fails. The caller calls `stop()`; the server
        ends in any case when the caller's process does.

        Raises:
            UserError: as `check`, the port is taken, or the model does not load.
        """
        self.check()
        folder = folder.absolute()
        if self.url is not None:
            try:
                return self.take(base(self.url), folder)
            except ServerError as error:
                raise UserError(
                    f"server.url={self.url} cannot serve {name} ({folder}): {error}\n"
                    f"start it {self.how_to_start}, or leave server.url out"
                ) from error
        try:
            port = free_port(self.port or 0)
        except OSError:
            raise UserError(f"server.port={self.port} is taken: leave it out for a free one, or name another") from None
        logs = Path(tempfile.mkdtemp(prefix="souping-server-"))
        plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:80] or "server"
        process = Process(self.command(folder, port), {**QUIET, **os.environ}, logs / f"{plain}.log")

        def end() -> None:
            process.stop()
            shutil.rmtree(logs, ignore_errors=True)

        try:
            model = self._wait(folder, name, f"http://{HOST}:{port}", process)
        except Exception:
            process.stop()
            raise
        except BaseException:  # after Ctrl-C nobody reads the log
            end()
            raise
        return RunningServer(url=f"http://{HOST}:{port}/v1", model=model, process=process, end=end)

    def _wait(self, folder: Path, name: str, address: str, process: Process) -> str:
        """The id under which the server lists the model, as soon as it does."""
        start = reported = time.monotonic()
        while process.alive:
            with suppress(ServerError):
                return served(address, folder)
            now = time.monotonic()
            if now - start > self.timeout:
                raise UserError(
                    f"{self.title} has not loaded {name} after {self.timeout:g} s: raise server.timeout\n"
                    f"the last line of its log {process.log}: {process.reason()}"
                )
            if now - reported > SAY_EVERY:
                reported = now
                log.info(f"{self.title} loads {name}: {now - start:.0f} s")
            time.sleep(min(1.0, 0.1 + (now - start) / 10))
        raise UserError(f"{self.title} cannot serve {name}: {process.reason()}\nits log: {process.log}")

    @abstractmethod
    def check_installed(self) -> None:
        """Refuse an interpreter that cannot start this server (UserError)."""

    @abstractmethod
    def command(self, folder: Path, port: int) -> list[str]:
        """The command line."""

    @abstractmethod
    def take(self, address: str, folder: Path) -> RunningServer:
        """A found server, with the model in `folder` in it.

        Raises:
            ServerError: it does not load the model.
        """


@lru_cache(maxsize=16)
def check_packages(server: str, interpreter: str, packages: tuple[str, ...], own: str, other: str) -> None:
    """Refuse an interpreter without these packages. `own` is the command that installs them for this interpreter,
    `other` what to install for another.

    Raises:
        UserError: packages are absent, or the interpreter cannot be run.
    """
    code = "import importlib.util as u, sys; print(*(name for name in sys.argv[1:] if u.find_spec(name) is None))"
    words = [interpreter, "-c", code, *packages]
    try:
        absent = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"server.python={interpreter} cannot be run: {error}") from error
    if absent:
        here = interpreter == sys.executable
        who, how = (f"server={server}", own) if here else (interpreter, f'{interpreter} -m pip install "{other}"')
        raise UserError(f"{who} has no {' and no '.join(absent)}: {how}")
