"""OpenAI-compatible servers that a run starts, uses and stops, or finds: `server={transformers,vllm}`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from souping.core.fields import Port, Seconds, component
from souping.core.files import expanded
from souping.core.protocols import ModelHost
from souping.core.types import Json, Missing, UserError
from souping.evaluate.servers.process import LaunchSpec, RunningServer, Say, ServerError, base, launch, models_at


@component
class Server(ABC):
    """Settings of a server, checked at composition; `start` makes it serve one model.

    `url` is one that somebody else runs; else it is started on `port` (a free one by default) by `python` (the
    interpreter of another environment; this one by default), which has `timeout` seconds to load a model. `extra_args`
    go to its command line as they are.
    """

    title: ClassVar[str]
    draws: ClassVar[bool] = False
    """Whether a request's own seed, and nothing else, decides the answer that is drawn for it."""

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

    def common(self, name: str, version: int) -> dict[str, Json]:
        """The settings, common to all servers, that can change answers. Of a found server only its address is known."""
        if self.url is not None:
            return {"name": name, "version": version, "url": base(self.url)}
        return {"name": name, "version": version, "extra_args": list(self.extra_args)}

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Json]:
        """Everything that can change an answer beside the model and the request."""

    @property
    @abstractmethod
    def host(self) -> ModelHost:
        """Where the model is held, as far as plans and checks ask."""

    @property
    def request(self) -> Mapping[str, Json]:
        """Fields of every request that leave nothing of the decoding to the defaults of server or folder."""
        return {}

    def needs(self) -> list[Missing]:
        """What `check` refuses, as something that can be mended."""
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

    def start(self, folder: Path, name: str, log_dir: Path | None = None, say: Say | None = None) -> RunningServer:
        """A running server for the model in `folder`, called `name` in messages; `say` hears how long it loads.

        Its log goes to `log_dir`, else to a temporary folder that stays only where it fails. The caller calls `stop()`;
        the server ends in any case when the caller's process does.

        Raises:
            UserError: as `check`, or the model does not load.
        """
        self.check()
        folder = folder.absolute()
        if self.url is not None:
            return self.take(base(self.url), folder, name)
        order = LaunchSpec(
            title=self.title,
            folder=folder,
            name=name,
            command=lambda port: self.command(folder, port),
            port=self.port,
            timeout=self.timeout,
        )
        return launch(order, log_dir, say)

    @abstractmethod
    def check_installed(self) -> None:
        """Refuse an interpreter that cannot start this server (UserError)."""

    @abstractmethod
    def command(self, folder: Path, port: int) -> list[str]:
        """The command line."""

    @abstractmethod
    def take(self, address: str, folder: Path, name: str) -> RunningServer:
        """A server that is there already, with the model in `folder` in it (UserError where it does not take it)."""


@lru_cache(maxsize=16)
def check_packages(server: str, interpreter: str, packages: tuple[str, ...], own: str, other: str) -> None:
    """Refuse an interpreter without these packages; `own` is the command that mends this one, `other` what to install
    into that one.

    Raises:
        UserError: packages are absent, or the interpreter cannot be run.
    """
    if interpreter == sys.executable:
        absent = [name for name in packages if importlib.util.find_spec(name) is None]
    else:
        absent = _absent_there(interpreter, packages)
    if not absent:
        return
    who = f"server={server}" if interpreter == sys.executable else interpreter
    how = own if interpreter == sys.executable else f'{interpreter} -m pip install "{other}"'
    raise UserError(f"{who} has no {' and no '.join(absent)}: {how}")


def _absent_there(interpreter: str, packages: Sequence[str]) -> list[str]:
    code = (
        "import importlib.util, sys\n"
        "print(' '.join(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))"
    )
    try:
        done = subprocess.run([interpreter, "-c", code, *packages], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"server.python={interpreter} cannot be run: {error}") from error
    if done.returncode:
        raise UserError(f"server.python={interpreter} is no Python interpreter: it ended with {done.returncode}")
    return done.stdout.split()
