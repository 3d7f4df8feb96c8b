"""Guard of chat templates: code of a candidate's, in jinja's sandbox, that neither fills memory nor runs forever."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

LONGEST = 50_000_000
"""Characters, or entries of a list, that a product in a template may have."""
SECONDS = 30.0
"""Time that a template has for one item."""


class TemplateStoppedError(Exception):
    """A template went on for too long, or made too much."""

    def __init__(self, message: str = f"it did not end in {SECONDS:g} s") -> None:
        super().__init__(message)


def check_length(text: str) -> None:
    """Refuse a text that no tokenizer ends with."""
    if len(text) > LONGEST:
        raise TemplateStoppedError(f"it makes a text of {len(text):.0e} characters")


@lru_cache(maxsize=1)
def guard_templates() -> None:
    """Let jinja's sandbox, which chat templates run in, ask before it multiplies: a text times 3e9 fills the memory.

    For this process, once: transformers makes the environment itself, and the sandbox has no other door.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment as Sandbox

    plain = Sandbox.call_binop

    def careful(self: Sandbox, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, str | list | tuple) else side for side in (left, right)]
        whole = all(isinstance(size, int) for size in sizes)
        if operator == "*" and whole and sizes != [left, right] and sizes[0] * sizes[1] > LONGEST:
            raise TemplateStoppedError(f"it makes a text of {sizes[0] * sizes[1]:.0e} characters")
        if operator == "**" and whole and abs(sizes[0]) > 1 and sizes[1] > 1000:
            raise TemplateStoppedError("it makes a number of thousands of digits")
        return plain(self, context, operator, left, right)

    Sandbox.call_binop = careful  # type: ignore[method-assign,assignment]
    Sandbox.intercepted_binops = Sandbox.intercepted_binops | {"*", "**"}


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise TemplateStoppedError in this thread once it was in here for `SECONDS`."""
    thread, lock, done = threading.get_ident(), threading.Lock(), False

    def stop() -> None:
        with lock:
            if not done:
                raised = ctypes.py_object(TemplateStoppedError)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)

    timer = threading.Timer(SECONDS, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            done = True
        timer.cancel()
