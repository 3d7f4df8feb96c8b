"""One open wandb run, fenced off: whatever fails becomes one warning, and nothing waits for a network without end."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


@dataclass
class Session:
    """What a tracker keeps between its calls. `run` is wandb's, None while closed."""

    run: Any = None
    failed: bool = False
    warned: bool = False
    best: float | None = None
    trials: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, str | None] = field(default_factory=dict)

    def reset(self) -> None:
        """As new, for another run."""
        self.close(exit_code=1)
        self.failed, self.warned, self.best, self.trials = False, False, None, []

    def attempt(self, action: Callable[[], None]) -> None:
        """Do it; after a first failure, do nothing."""
        if self.failed:
            return
        try:
            action()
        except Exception as error:  # any failure of a tracker is a warning, by contract
            self.failed = True
            self.warn(f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}")

    def warn(self, message: str) -> None:
        """One line on stderr, once a session."""
        if not self.warned:
            self.warned = True
            print(f"warning: wandb: {message}; the run goes on", file=sys.stderr)

    def enter(self, run_dir: Path) -> None:
        """Keep wandb quiet and inside the run's directory: it reads these variables, not its settings."""
        home = run_dir / "wandb"
        home.mkdir(parents=True, exist_ok=True)
        wanted = {
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DATA_DIR": str(home / "data"),
            "WANDB_CACHE_DIR": str(home / "cache"),
        }
        self.kept = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)

    def leave(self) -> None:
        """Give the environment back as it was."""
        for name, value in self.kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self.kept = {}

    def close(self, exit_code: int) -> None:
        """Finish the run, which waits no longer than the settings' `finish_timeout`, even after a failure."""
        run, self.run = self.run, None
        try:
            if run is not None:
                run.finish(exit_code=exit_code)
        except Exception as error:
            self.warn(f"the end was not recorded ({type(error).__name__})")
        finally:
            self.leave()


def chosen_mode(mode: str | None, session: Session, timeout: float) -> Any:
    """`online` only where there is a key and the server answers; offline, with a warning, where it does not.

    Without this, `wandb.init` asks a terminal for a key, or retries a dead network for a minute and a half.
    """
    wanted = mode or os.environ.get("WANDB_MODE") or "online"
    if wanted != "online":
        return wanted
    import wandb

    address = wandb.Settings().base_url
    if not any(os.environ.get(name) for name in PROXIES) and not reachable(address, timeout):
        session.warn(f"{address} does not answer, so the run is recorded offline (`wandb sync` sends it later)")
        return "offline"
    if not wandb.login(prompt=False):
        session.warn("no API key (`wandb login`), so the run is recorded offline (`wandb sync` sends it later)")
        return "offline"
    return wanted


def reachable(address: str, timeout: float) -> bool:
    """Whether the server's port opens within `timeout` seconds, the look-up of its name included."""
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    answers: list[bool] = []

    def knock() -> None:
        with suppress(OSError), socket.create_connection((parts.hostname or "", port), timeout=timeout):
            answers.append(True)

    # A name server that does not answer blocks far beyond any socket timeout; the thread is left to it.
    thread = Thread(target=knock, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(answers)


def opened(
    settings: Mapping[str, Any], config: Mapping[str, Any], run_dir: Path, session: Session, timeout: float
) -> Any:
    """A new wandb run in `run_dir`; where the server refuses it or is not there, an offline one."""
    try:
        mode = chosen_mode(settings.get("mode"), session, min(timeout, 3.0))
        return _init(settings, mode, config, run_dir, timeout)
    except Exception as error:
        if (settings.get("mode") or os.environ.get("WANDB_MODE") or "online") != "online":
            raise
        session.warn(f"{type(error).__name__}, so the run is recorded offline (`wandb sync` sends it later)")
        return _init(settings, "offline", config, run_dir, timeout)


def _init(settings: Mapping[str, Any], mode: Any, config: Mapping[str, Any], run_dir: Path, timeout: float) -> Any:
    """No console capture, no git, no machine statistics, bounded waits."""
    import wandb

    quiet = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        init_timeout=timeout,
        finish_timeout=timeout,
    )
    known = {key: value for key, value in settings.items() if key != "mode" and value is not None}
    return wandb.init(
        **known, mode=mode, dir=str(run_dir), config=dict(config), settings=quiet, reinit="finish_previous"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A wandb table; lists and mappings, which its cells cannot hold, as text."""
    import wandb

    plain = [
        [value if value is None or isinstance(value, str | int | float) else str(value) for value in row]
        for row in rows
    ]
    return wandb.Table(columns=list(columns), data=plain, allow_mixed_types=True)
