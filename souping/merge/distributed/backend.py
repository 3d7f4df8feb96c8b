"""`merge=accelerate`: weighted averaging by several ranks, each with its share of the output's bytes.

The process that asks starts the ranks by one `accelerate launch` and writes them a line for each soup.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import IO, Annotated, Any

from annotated_types import Interval

from souping.core.fields import Seconds, Threads, component
from souping.core.protocols import Progress
from souping.core.system import package_environment
from souping.core.types import Missing, UserError
from souping.merge.distributed.messages import diagnosis, line, parse, unpack
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan

CPU_RANKS = 2


@component
class AccelerateMerge(LocalMerge):
    """`LocalMerge` whose soups are written by ranks that Accelerate starts, each on its own GPU where there is one.

    The ranks start with the first soup that is written and stay until `close`. The bytes are those of `LocalMerge`.
    `num_processes` is None for one rank a GPU (two on a machine without). `main_process_port` is where they meet (0:
    any free port); `start_timeout` and `timeout` bound, in seconds, how long they may take to be ready and how long
    they may be silent.

    Raises:
        UserError: a value is out of its range; the message names `merge.<key>`.
    """

    num_processes: Threads | None = None
    main_process_port: Annotated[int, Interval(ge=0, lt=2**16)] = 0
    start_timeout: Seconds = 120.0
    timeout: Seconds = 600.0
    _ranks: list[Ranks] = field(default_factory=list, init=False, repr=False, compare=False)

    def _check_processes(self) -> None:
        """Any number will do here."""

    def write(
        self, plan: MergePlan, out: Path, progress: Progress | None = None, extra_files: Mapping[str, str] | None = None
    ) -> Path:
        """As `LocalMerge.write`, by the ranks.

        Raises:
            UserError: as there; a rank failed or died, fewer started than asked for, or they are silent too long.
        """
        from souping.merge.writer import write_checkpoint

        return write_checkpoint(plan, out, progress=progress, extra_files=extra_files, shares=self._fill)

    def _fill(self, plan: MergePlan, stage: Path, progress: Progress | None) -> None:
        if not self._ranks or not self._ranks[-1].alive:
            self.close()
            count = rank_count(self.num_processes)
            started = Ranks(count, port=self.main_process_port, start=self.start_timeout, timeout=self.timeout)
            self._ranks.append(started)
        self._ranks[-1].fill(plan, stage, progress)

    def needs(self) -> list[Missing]:
        there = find_spec("accelerate") is not None
        return (
            [] if there else [Missing(what="the package accelerate is not installed", mends="pip install accelerate")]
        )

    def close(self) -> None:
        """End the ranks. The next `write` starts others."""
        while self._ranks:
            self._ranks.pop().close()


def rank_count(asked: int | None) -> int:
    """How many ranks to start on this machine.

    Raises:
        UserError: there are fewer GPUs than ranks were asked for.
    """
    import torch

    gpus = torch.cuda.device_count()
    if asked is None:
        return gpus or CPU_RANKS
    if 0 < gpus < asked:
        raise UserError(
            f"merge.num_processes={asked}, but {gpus} GPU{'s' * (gpus > 1)} can be seen and each rank has its own. "
            f"Set it to at most {gpus}, or hide the GPUs (CUDA_VISIBLE_DEVICES=) for ranks on the CPU."
        )
    return asked


log = logging.getLogger(__name__)
WORKER = "souping.merge.distributed.worker"
PATIENCE = 5.0  # seconds for a group to end by itself
LAST = 2.0  # seconds for a launcher to end its ranks when told to
FOREIGN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


class Ranks:
    """`count` ranks that wait for plans; `fill` makes them write one, `close` ends them.

    They end too when this process does, however it does: they watch the launcher, which watches it. `port` is the
    ranks' meeting point on this machine (0: any free one), `start` and `timeout` are seconds: to be ready, and without
    a sign of life.

    Raises:
        UserError: they did not start, or fewer than asked for did.
    """

    def __init__(self, count: int, *, port: int = 0, start: float = 120.0, timeout: float = 600.0) -> None:
        self._timeout, self.pids = timeout, list[int]()
        hear, speak = os.pipe()
        self._orders = FileIO(speak, "w")
        self._process = subprocess.Popen(
            command(count, port, timeout),
            stdin=hear,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            start_new_session=True,  # an interrupt from the keyboard is this process's to handle
        )
        os.close(hear)
        self._kept = weakref.finalize(self, _end, self._process, self._orders, self.pids, True)
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._said: deque[str] = deque(maxlen=2000)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        threading.Thread(target=_listen, args=(self._process.stdout, self._messages), daemon=True).start()
        self._notes = threading.Thread(target=_note, args=(self._process.stderr, self._said), daemon=True)
        self._notes.start()
        self._meet(count, start)

    @property
    def alive(self) -> bool:
        """Whether another plan can be given to them."""
        return self._kept.alive and self._process.poll() is None

    def fill(self, plan: MergePlan, stage: Path, progress: Progress | None = None) -> None:
        """Fill the prepared shards in `stage`. After an error of the merge itself the ranks can take another plan.

        Raises:
            UserError, OSError: what went wrong in the first rank that failed; a rank died; they are silent.
        """
        try:
            order = line({"plan": plan.to_json(), "stage": str(Path(stage).absolute())})
            threading.Thread(target=_write, args=(self._orders, order), daemon=True).start()
            failure = self._follow(progress)
        except BaseException:
            self._kill()
            raise
        if failure is not None:
            raise unpack(failure)

    def close(self) -> None:
        """End the ranks and wait for them."""
        self._kept()

    def _kill(self) -> None:
        if self._kept.detach() is not None:
            _end(self._process, self._orders, self.pids, False)

    def _meet(self, count: int, seconds: float) -> None:
        try:
            message = self._hear(seconds, "the ranks were not ready")
            if "failed" in message:
                raise unpack(message["failed"])
            if message.get("ready") != count:
                raise UserError(f"merge=accelerate: {count} ranks were asked for, {message.get('ready')} came")
            self.pids.extend(message["pids"])
            log.debug("ranks on %s", message["devices"])
        except BaseException:
            self._kill()
            raise

    def _follow(self, progress: Progress | None) -> dict[str, Any] | None:
        """Pass on what the ranks report until the soup is there (None) or has failed."""
        while True:
            message = self._hear(self._timeout, "the ranks gave no sign of life")
            if "progress" in message and progress is not None:
                progress(*message["progress"])
            elif "warning" in message:
                logging.getLogger("souping.merge").warning("%s", message["warning"])
            elif "done" in message or "failed" in message:
                return message.get("failed")

    def _hear(self, seconds: float, complaint: str) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            try:
                message = self._messages.get(timeout=min(1.0, max(0.0, end - time.monotonic())))
            except queue.Empty:
                if self._process.poll() is not None:  # its ranks still hold the pipe
                    raise self._death() from None
                if time.monotonic() < end:
                    continue
                raise UserError(
                    f"merge=accelerate: {complaint} within {seconds:g} s; they were ended and nothing was written. "
                    "Where that is too short, raise merge.start_timeout or merge.timeout."
                ) from None
            if message is None:
                raise self._death()
            return message

    def _death(self) -> UserError:
        """Why the launcher ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self._kill()
        self._notes.join(PATIENCE)
        return UserError(f"merge=accelerate: {diagnosis(''.join(self._said))}; nothing was written")


def command(count: int, port: int, timeout: float) -> list[str]:
    """The command line that starts `count` ranks of this Python on this machine, whatever the user's own settings."""
    flags = ["--multi_gpu", "--gpu_ids", "all"] if count > 1 else []  # without GPUs it starts gloo ranks on the CPU
    fixed = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    watched = [sys.executable, "-m", "souping.core.child", str(os.getpid())]
    launch = [*watched, "accelerate.commands.launch", *flags, *fixed]
    where = ["--num_processes", str(count), "--main_process_port", str(port)]
    return [*launch, *where, "-m", WORKER, "--ranks", str(count), "--timeout", str(timeout)]


def environment() -> dict[str, str]:
    """This process's, with this very package importable and no trace of another group it may itself belong to."""
    return {key: value for key, value in package_environment().items() if key not in FOREIGN}


def _listen(stream: IO[bytes], messages: queue.Queue[dict[str, Any] | None]) -> None:
    for raw in stream:
        message = parse(raw)
        if message is not None:
            messages.put(message)
    messages.put(None)


def _note(stream: IO[bytes], said: deque[str]) -> None:
    for raw in stream:
        said.append(raw.decode(errors="replace"))


def _write(stream: FileIO, text: bytes) -> None:
    """In a thread, for ranks that hang do not read. An end of the ranks is seen on their output."""
    view = memoryview(text)
    with suppress(OSError, ValueError):
        while view:
            view = view[stream.write(view) :]


def _end(process: subprocess.Popen[bytes], orders: FileIO, pids: list[int], polite: bool) -> None:
    """End of input ends ranks that listen; the launcher is told to end those that do not; the rest is killed: a rank
    that is stopped cannot watch its launcher."""
    orders.close()
    if polite and _ended(process, PATIENCE):
        return
    process.terminate()
    if not _ended(process, LAST):
        process.kill()
        process.wait()
    if process.returncode == -signal.SIGKILL:
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
