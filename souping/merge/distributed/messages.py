"""Messages between the ranks and the process that started them: JSON lines, and errors that survive the way."""

from __future__ import annotations

import json
import logging
import re
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from souping.core.types import UserError

Failure = dict[str, Any]
LOGGER = "souping"


class LostError(RuntimeError):
    """The ranks cannot talk any more: one of them died, hangs, or cannot be reached."""


def line(message: dict[str, Any]) -> bytes:
    """A message as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def parse(raw: bytes) -> dict[str, Any] | None:
    """The message of a line; None where a library wrote something else."""
    try:
        message = json.loads(raw)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def pack(error: BaseException) -> Failure:
    """An error as plain data."""
    if isinstance(error, UserError):
        return {"kind": "user", "text": str(error)}
    if isinstance(error, OSError) and error.errno is not None:
        return {"kind": "os", "errno": error.errno, "text": error.strerror or str(error), "file": error.filename}
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of the device
        return {"kind": "user", "text": f"the GPU's memory is full: {str(error).splitlines()[0]}"}
    return {"kind": "bug", "text": "".join(traceback.format_exception(error))}


def unpack(failure: Failure) -> Exception:
    """The error of `pack`: user errors as they were, file errors with their number, anything else a RuntimeError."""
    if failure["kind"] == "user":
        return UserError(failure["text"])
    if failure["kind"] == "os":
        return OSError(failure["errno"], failure["text"], failure["file"])
    return RuntimeError(f"a rank failed:\n{failure['text']}")


@contextmanager
def overheard() -> Iterator[list[str]]:
    """Warnings of the engine as a list that grows, instead of on standard error."""
    heard: list[str] = []
    logger, handler = logging.getLogger(LOGGER), _Listener(heard)
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


class _Listener(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(record.getMessage())


def diagnosis(log: str) -> str:
    """Why a group of ranks ended, from what its launcher and the ranks wrote on standard error.

    torch's launcher lists the ranks that failed with their exit codes. A rank that a signal ended is the cause, unless
    it is SIGTERM, which the launcher sends to the others.
    """
    ended = [(int(r), int(c)) for r, c in re.findall(r"rank\s*: (\d+) \(local_rank.*?\n\s*exitcode\s*: (-?\d+)", log)]
    ended += [(0, -int(number)) for number in re.findall(r"died with <Signals\.\w+: (\d+)>", log)]
    causes = [pair for pair in ended if pair[1] != -signal.SIGTERM] or ended
    for rank, code in causes:
        if code < 0:
            return f"rank {rank} ended with signal {-code}{' (out of memory?)' if code == -signal.SIGKILL else ''}"
    said = _last_error(log)
    who = f"rank {causes[0][0]} ended with status {causes[0][1]}" if causes else "the ranks ended"
    return f"{who}: {said}" if said else who


def _last_error(log: str) -> str:
    """The last line that reads like an exception of a rank, or the last line at all."""
    lines = [text.split("]:", 1)[-1].strip() for text in log.splitlines() if text.strip()]
    launcher = ("ChildFailedError", "CalledProcessError", "SignalException")
    errors = [text for text in lines if re.match(r"[\w.]*(Error|Exception)\b", text)]
    errors = [text for text in errors if not any(name in text.split(":")[0] for name in launcher)]
    return (errors or lines or [""])[-1][:300]
