"""Child processes that end with their parent.

Use a child for work on data that somebody else controls, such as a server's answers or a model's template: whatever
the data does to the child, the caller gets a result or an exception in time, and Ctrl-C ends the child at once. The
child also ends when the caller is killed (`end_with`).
"""

from __future__ import annotations

import errno
import os
import pickle
import queue
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import is_dataclass
from pathlib import PurePath
from typing import IO, Any

from souping.core.system import package_environment
from souping.core.types import ProgressCallback, T, UserError

CHILD_GRACE_S = 2.0
"""Seconds that a child gets to clean up."""
CHILD_MEMORY_BYTES = 2 << 30
ERRORS = (("builtins", "MemoryError"), ("builtins", "RuntimeError"))
"""(module, name) of the errors that a child may send, besides those of this package."""
WATCH = 0.2
"""Seconds between two looks at the memory of a child that has not answered yet."""


def limit_file_size(nbytes: int) -> None:
    """Limit the files that this process writes: more raises OSError (EFBIG)."""
    limit_resource(resource.RLIMIT_FSIZE, nbytes)


def limit_resource(number: int, value: int) -> None:
    """Set the soft limit `number` (`resource.RLIMIT_*`) of this process to a value, at most the hard limit."""
    _, hard = resource.getrlimit(number)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    # Not every system knows every limit: the work goes on without it.
    with suppress(OSError, ValueError):
        resource.setrlimit(number, (value, hard))


class Child:
    """Process that calls module-level functions, one after another. It starts with the first call.

    Functions, arguments and results are pickled. The process may take `memory` bytes of address space (of resident
    memory on macOS, which does not limit address space) and has the variables of `environment` alone.
    """

    def __init__(
        self, environment: Callable[[], Mapping[str, str]], memory: int = CHILD_MEMORY_BYTES
    ) -> None:
        self._environment = environment
        self.memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._lock = threading.Lock()

    def call(
        self,
        function: Callable[..., T],
        arguments: tuple[object, ...],
        seconds: float,
        report: ProgressCallback | None = None,
    ) -> T:
        """The result of the function in the child.

        If there is a `report`, the function gets a callback as its argument `report`; what it passes to the callback,
        `report` gets here. After a call that had to be stopped, the next one starts another process.

        Raises:
            TimeoutError: it did not return within `seconds`, or the child's own alarm (SIGALRM) went off.
            MemoryError: it needed too much memory, or was killed.
            UserError: the function raised it.
            RuntimeError: any other exception of the function, as text.
        """
        with self._lock:
            try:
                process = self._process or self._start()
                assert process.stdin is not None
                # If the child has ended, `_answer` says how.
                with suppress(BrokenPipeError):
                    pickle.dump((function, arguments, report is not None), process.stdin)
                    process.stdin.flush()
                kind, value = self._answer(process, time.monotonic() + seconds, report)
                # Raised here rather than below: a child whose memory is full is ended.
                if isinstance(value, MemoryError):
                    raise value
            except BaseException:
                # Also after an interrupt: a late answer would be taken for that of the next call.
                self._end()
                raise
        if kind == "raise":
            raise value
        result: T = value
        return result

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the process, and a thread that puts its messages into a new queue."""
        process = subprocess.Popen(
            [sys.executable, "-m", "souping.core.child", str(os.getpid()), str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(self._environment()),
            start_new_session=True,  # an interrupt from the keyboard is this process's to handle
        )
        assert process.stdout is not None
        self._process = process
        self._messages = queue.Queue()
        threading.Thread(target=_listen, args=(process.stdout, self._messages), daemon=True).start()
        return process

    def _answer(
        self, process: subprocess.Popen[bytes], end: float, report: ProgressCallback | None
    ) -> tuple[str, Any]:
        """(`result`, the result) or (`raise`, the error) of the call in progress; `end` is the time to give up.

        Raises:
            TimeoutError: the time is over, or the child was ended by its own alarm.
            MemoryError: the child takes more than its memory, or ended or broke without an answer.
        """
        import psutil

        while True:
            remaining = end - time.monotonic()
            try:
                kind, value = self._messages.get(timeout=max(0.0, min(WATCH, remaining)))
            except queue.Empty:
                if remaining <= 0:
                    raise TimeoutError from None
                with suppress(psutil.Error):  # it may have ended since
                    if psutil.Process(process.pid).memory_info().rss > self.memory:
                        raise MemoryError from None
                continue
            if kind == "end":
                # The child still runs if it sent something that is not a message.
                with suppress(subprocess.TimeoutExpired):
                    if process.wait(CHILD_GRACE_S) == -signal.SIGALRM:
                        raise TimeoutError
                # Without a word of its own, the system ended it, as a rule because of its memory.
                raise MemoryError
            if kind != "report":
                return kind, value
            if report is not None:
                report(*value)

    def close(self) -> None:
        """End the process; a later call starts another."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        """Terminate the process, if there is one."""
        process = self._process
        self._process = None
        if process is None:
            return
        assert process.stdin is not None
        process.terminate()
        wait_or_kill(process, CHILD_GRACE_S)
        with suppress(OSError):  # closing writes what is buffered, and the process is gone
            process.stdin.close()


def wait_or_kill(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for a process that was told to end; kill it if it takes longer."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def call(
    function: Callable[..., T],
    arguments: tuple[object, ...],
    *,
    seconds: float,
    memory: int = CHILD_MEMORY_BYTES,
    environment: Mapping[str, str] | None = None,
    report: ProgressCallback | None = None,
) -> T:
    """`Child.call` in a process for this call alone; `environment` is added to this process's own."""
    # Without a limit, glibc reserves address space for each thread, which counts as memory.
    settings = {**package_environment(), "MALLOC_ARENA_MAX": "2", **(environment or {})}
    with closing(Child(lambda: settings, memory)) as child:
        return child.call(function, arguments, seconds, report)


class Message(pickle.Unpickler):
    """Message of a child: plain data, paths, and data classes and errors of this package. The data that a child works
    on may have taken it over, so nothing else that a pickle can name is made here."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name, if a message may hold it (UnpicklingError if not)."""
        if module.split(".")[0] in ("souping", "pathlib") or (module, name) in ERRORS:
            member = super().find_class(module, name)
            if isinstance(member, type) and (
                is_dataclass(member) or issubclass(member, (Exception, PurePath))
            ):
                return member
        raise pickle.UnpicklingError(f"{module}.{name}")


def _listen(stream: IO[bytes], messages: queue.Queue[tuple[str, Any]]) -> None:
    """Put the messages of a child into a queue, and `("end", None)` once it ends or sends anything else."""
    # Any error means the end of the stream, or something that is not a message.
    with stream, suppress(Exception):
        while True:
            messages.put(Message(stream).load())
    messages.put(("end", None))


LAUNCHER = "SOUPING_LAUNCHER"
"""Variable with the process number of a launcher, the module that this file runs as a program: the processes that it
starts watch the launcher, and end with it."""
BEAT = 0.3
"""Seconds between two looks at the parent."""


def end_with(parent: int) -> None:
    """Make this process end once its parent is gone, through its handler of SIGTERM."""

    def watch() -> None:
        """Wait until this process has another parent, then end it."""
        while os.getppid() == parent:
            time.sleep(BEAT)
        # Send it to the main thread, which alone handles signals and may be waiting for a socket.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        # If the handler takes too long, the process ends without it.
        time.sleep(2 * CHILD_GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def serve(memory: int) -> None:
    """The child: read requests from standard input, and write messages to what was standard output."""
    # What functions print goes to standard error instead.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Functions clean up as they do at an interrupt.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Beyond the limit, a MemoryError is raised. macOS does not enforce it.
    limit_resource(resource.RLIMIT_AS, memory)

    def send(*message: str | T) -> None:
        """Write a message (kind, value); the kinds are `report`, `result` and `raise`."""
        pickle.dump(message, out)
        out.flush()

    # Until the parent closes the pipe, or tells this process to end.
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            function, arguments, has_report = pickle.load(sys.stdin.buffer)
            options = {"report": lambda *counts: send("report", counts)} if has_report else {}
            try:
                send("result", function(*arguments, **options))
            except UserError as error:
                send("raise", UserError(str(error)))
            except Exception as error:
                memory_is_full = isinstance(error, OSError) and error.errno == errno.ENOMEM
                if memory_is_full or isinstance(error, MemoryError):
                    send("raise", MemoryError())
                else:
                    send("raise", RuntimeError(traceback.format_exc()))
    # Do not wait for threads.
    os._exit(0)


# Arguments: PARENT MEMORY for a child, or PARENT MODULE ARGUMENTS... for a launcher.
if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    if sys.argv[0].isdigit():
        serve(int(sys.argv[0]))
    else:
        os.environ[LAUNCHER] = str(os.getpid())
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
