"""Soups of adapters in a vLLM server that somebody else runs, by its routes `/v1/(un)load_lora_adapter`."""

from __future__ import annotations

import logging
import os
import re
import socket
from contextlib import suppress
from functools import lru_cache
from itertools import count
from pathlib import Path

import psutil

from souping.core.types import digest
from souping.evaluate.servers.server_process import ServerError, models_at, post, served

NUMBERS = count()
"""Numbers of this process's adapters."""
log = logging.getLogger("souping.evaluate.servers")


def load_adapter(address: str, folder: Path, base: Path, timeout: float) -> str:
    """Let a server of the model in `base` load the adapter in `folder`, and return the adapter's name there.

    Adapters that killed runs of this machine left there are unloaded first.

    Raises:
        ServerError: it serves another model, or does not load the adapter; then none of that name is left there.
    """
    served(address, base)
    for model in models_at(address):
        if is_abandoned(model.id):
            unload_adapter(address, model.id)
    pid = os.getpid()
    name = f"{_machine()}-{pid}-{_start_of(pid)}-{next(NUMBERS)}"
    try:
        adapter = {"lora_name": name, "lora_path": str(folder)}
        post(f"{address}/v1/load_lora_adapter", adapter, timeout=timeout)
        if name not in [model.id for model in models_at(address)]:
            raise ServerError("it does not list the adapter that it was to load")
    except BaseException:
        # An interrupt comes here too, and the server may have it already.
        unload_adapter(address, name)
        raise
    return name


def unload_adapter(address: str, name: str) -> None:
    """Let a server forget an adapter; if it has none of that name, nothing happens."""
    try:
        post(f"{address}/v1/unload_lora_adapter", {"lora_name": name})
    except ServerError as error:
        if error.status != 404:
            log.warning("%s may still list the adapter %s: %s", address, name, error)


def is_abandoned(name: str) -> bool:
    """Whether this is the name of an adapter whose process ran on this machine, and has ended."""
    parts = re.fullmatch(rf"{re.escape(_machine())}-(\d{{1,9}})-(\d{{1,15}})-\d+", name)
    if parts is None:
        return False
    pid = int(parts[1])
    try:
        os.kill(pid, 0)
        return _start_of(pid) != int(parts[2])
    except (ProcessLookupError, psutil.NoSuchProcess):
        return True
    # Another user's process, which may be the one.
    except (PermissionError, psutil.AccessDenied):
        return False


@lru_cache(maxsize=1)
def _machine() -> str:
    """The beginning of the names of this machine's adapters."""
    # Machines and containers may have the same name, but neither process can see the other's.
    ids = list[str]()
    with suppress(OSError):  # macOS has none
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        ids = [boot, os.readlink("/proc/self/ns/pid")]
    return f"souping-{socket.gethostname()}-{digest(ids)[:8]}"


def _start_of(pid: int) -> int:
    """When a process started, in hundredths of a second since the machine did: changes of the clock do not count.

    Raises:
        psutil.Error: there is none, or it has ended and is only waited for.
    """
    boot = psutil.boot_time()
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(pid)
    seconds: float = process.create_time() - boot
    return round(100 * seconds)
