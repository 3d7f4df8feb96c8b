"""Child processes that end with their parent, and function calls in one with a total deadline and a memory limit.

Use `call` for work on data that somebody else controls, such as a server's answers: whatever the data does to the
child, the caller gets a result or an exception in time, and Ctrl-C ends the child at once. The child also ends when the
caller is killed, because it watches its standard input.
"""

from __future__ import annotations

import errno
import os
import pickle
import queue
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO, Any, TypeVar

from souping.core.system import limit_memory, package_environment
from souping.core.types import UserError

T = TypeVar("T")
Report = Callable[[int, int], None]
GRACE = 2.0
"""Seconds that a child gets to clean up."""
MEMORY = 2 << 30


def call(
    function: Callable[..., T],
    arguments: tuple[object, ...],
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    report: Report | None = None,
) -> T:
    """The result of a module-level function, run in a process of its own.

    Function, arguments and result are pickled. With `report`, the function gets a callback of that name, whose calls
    arrive here. `environment` is added to this process's own.

    Raises:
        TimeoutError: it did not return within `seconds`.
        MemoryError: it needed more than `MEMORY` bytes of address space (not enforced on macOS), or was killed.
        UserError: the function raised it.
        RuntimeError: any other exception of the function, as text.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "souping.core.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**package_environment(), "MALLOC_ARENA_MAX": "2", **(environment or {})},
        start_new_session=True,  # an interrupt from the keyboard is this process's to handle
    )
    assert process.stdin is not None
    assert process.stdout is not None
    end = time.monotonic() + seconds
    messages: queue.Queue[tuple[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(process.stdout, messages), daemon=True).start()
    try:
        pickle.dump((function, arguments, report is not None), process.stdin)
        process.stdin.flush()
        while True:
            kind, value = messages.get(timeout=max(0.0, end - time.monotonic()))
            if kind == "raise":
                raise value
            if kind == "result" or report is None:
                result: T = value
                return result
            report(*value)
    except queue.Empty:
        raise TimeoutError from None
    finally:
        try:
            process.communicate(timeout=GRACE)  # closes its standard input
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listen(stream: IO[bytes], messages: queue.Queue[tuple[str, Any]]) -> None:
    with suppress(EOFError, pickle.UnpicklingError, ValueError):
        while True:
            messages.put(pickle.load(stream))
    messages.put(("raise", MemoryError()))


LAUNCHER = "SOUPING_LAUNCHER"
"""Variable that names the process number of a launcher to the processes that it starts."""
BEAT = 0.3


def end_with(parent: int) -> None:
    """Make this process end once its parent is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(BEAT)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher ends its ranks, and clears up
        time.sleep(2 * GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def launch(parent: int) -> None:
    """Run the module and arguments on the command line as a launcher that ends with its parent."""
    end_with(parent)
    os.environ[LAUNCHER] = str(os.getpid())
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def main() -> None:
    """The child: one request on standard input, messages on what was standard output."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function, arguments, reports = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_watch, daemon=True).start()
    limit_memory(MEMORY)

    def send(*message: str | T) -> None:
        pickle.dump(message, out)
        out.flush()

    options = {"report": lambda *counts: send("report", counts)} if reports else {}
    try:
        send("result", function(*arguments, **options))
    except UserError as error:
        send("raise", UserError(str(error)))
    except Exception as error:
        full = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        send("raise", MemoryError() if full else RuntimeError(traceback.format_exc()))
    except KeyboardInterrupt:
        pass
    os._exit(0)  # whatever threads still wait for


def _watch() -> None:
    """Interrupt the main thread once the caller has closed the pipe or is gone."""
    while os.read(0, 1):
        pass
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    time.sleep(2 * GRACE)
    os._exit(1)


if __name__ == "__main__":
    if len(sys.argv) > 2:  # PARENT MODULE ARGUMENTS...
        sys.argv, number = sys.argv[2:], int(sys.argv[1])
        launch(number)
    else:
        main()
