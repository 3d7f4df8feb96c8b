"""`merge=accelerate`: weighted averaging by several ranks, each of which writes its share of the soup's bytes.

For every soup, the run prepares the shards and starts `accelerate launch -m souping.merge PLAN FOLDER --fill`, which
takes 3 to 5 s before the first byte. Ranks exchange no weights; they only wait for each other at the end.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Interval

from souping.core.child import wait_or_kill
from souping.core.fields import Seconds, Threads, component
from souping.core.files import error_text
from souping.core.protocols import Progress
from souping.core.system import cores, package_environment
from souping.core.text import first_line
from souping.core.types import Missing, UserError
from souping.merge import ERROR, WARNING
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan
from souping.merge.writer import THREADS, ShardWriter, write_checkpoint

if TYPE_CHECKING:
    import torch

log = logging.getLogger("souping.merge")
CPU_RANKS = 2
"""Ranks on a machine without GPUs."""
PATIENCE = 40.0
"""Seconds for a launcher to end its ranks; torch kills those that do not react after 30."""
OTHER_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which a launcher places a process in its group. A run may itself have been started by one."""


@component
class AccelerateMerge(LocalMerge):
    """`LocalMerge` whose soups are written by ranks on this machine, each on its own GPU if there are GPUs.

    The bytes are those of `LocalMerge`. With `num_processes=None` there is one rank per GPU, or two without GPUs; a
    single rank works inside the run. `main_process_port` is where the ranks meet (0: any free port). `timeout` is how
    long, in seconds, a rank waits for the others at the start and at the end.

    Raises:
        UserError: a value is out of its range; the message names `merge.<key>`.
    """

    num_processes: Threads | None = None
    main_process_port: Annotated[int, Interval(ge=0, lt=2**16)] = 0
    timeout: Seconds = 600.0

    def _check_processes(self) -> None:
        """Any number is allowed."""

    def write(
        self, plan: MergePlan, out: Path, progress: Progress | None = None, extra_files: Mapping[str, str] | None = None
    ) -> Path:
        """Write as `LocalMerge.write` does; with several ranks, progress is reported once, at the end.

        Raises:
            UserError: as `LocalMerge.write`, or a rank died, or fewer ranks started than asked for, or one is silent.
        """
        return write_checkpoint(plan, out, progress=progress, extra_files=extra_files, shares=self._fill)

    def _fill(self, plan: MergePlan, stage: Path, progress: Progress | None) -> None:
        count = rank_count(self.num_processes)
        if count == 1:
            Rank(gpu=usable_gpu(0)).fill(plan, stage, progress)
            return
        with tempfile.TemporaryDirectory(prefix="souping-") as folder:
            saved = plan.save(Path(folder) / "plan.json")
            work = [str(saved), str(stage), "--fill", "--num-processes", str(count), "--timeout", str(self.timeout)]
            text, status = launch([*launcher(count, self.main_process_port), *work], Path(folder) / "log")
        for warning in dict.fromkeys(re.findall(f"^{WARNING}(.*)$", text, re.MULTILINE)):
            log.warning("%s", warning)
        if status:
            raise UserError(cause(text))
        if progress is not None:
            progress(plan.nbytes, plan.nbytes)

    def needs(self) -> list[Missing]:
        if find_spec("accelerate") is not None:
            return []
        return [Missing(what="the package accelerate is not installed", fix="pip install accelerate")]


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


def launcher(count: int, port: int) -> list[str]:
    """The start of a command line that runs `souping.merge` in `count` ranks, whatever the user's own settings.

    `souping.core.child` ends the launcher when this process is gone, and the ranks watch the launcher.
    """
    watched = [sys.executable, "-m", "souping.core.child", str(os.getpid()), "accelerate.commands.launch"]
    ranks = ["--multi_gpu", "--gpu_ids", "all", "--num_processes", str(count)]  # on CPUs too: it starts gloo ranks
    fixed = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*watched, *ranks, *fixed, "--main_process_port", str(port), "-m", "souping.merge"]


def launch(command: list[str], log_file: Path) -> tuple[str, int]:
    """(standard error, exit status) of a command that does not outlive this process."""
    environment = {key: value for key, value in package_environment().items() if key not in OTHER_GROUP}
    with log_file.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env=environment,
            start_new_session=True,  # an interrupt from the keyboard is this process's to handle
        )
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            wait_or_kill(process, PATIENCE)
            raise
    return log_file.read_text(encoding="utf-8", errors="replace"), status


def cause(text: str) -> str:
    """Why the ranks ended, from what they and their launcher wrote on standard error.

    torch lists the ranks that failed, the first one last. If a signal ended that rank, what the others say about it
    is no news. SIGTERM is what the launcher itself sends.
    """
    ended = re.findall(r"rank +: (\d+) \(.*\n +exitcode +: (-?\d+)", text)[-1:]
    signals = [(rank, -int(code)) for rank, code in ended if int(code) < 0 and -int(code) != signal.SIGTERM]
    for rank, number in signals:
        memory = " (out of memory?)" if number == signal.SIGKILL else ""
        return f"merge=accelerate: rank {rank} ended with signal {number}{memory}; nothing was written"
    if errors := re.findall(f"^{ERROR}(.*)$", text, re.MULTILINE):
        return str(errors[0])
    last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
    return f"merge=accelerate: the ranks ended: {''.join(last)[:300] or 'no reason given'}; nothing was written"


class LostError(UserError):
    """Another rank died, hangs, or cannot be reached."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One of `count` ranks, of which `local` run on this machine. `gpu` does the arithmetic; None is the CPU."""

    number: int = 0
    count: int = 1
    local: int = 1
    gpu: torch.device | None = None

    @classmethod
    def join(cls, asked: int | None, timeout: float) -> Rank:
        """Meet the other ranks that `accelerate launch` started, within `timeout` seconds.

        Raises:
            UserError: there are not `asked` ranks; every rank raises it.
            LostError: another rank does not come.
        """
        from accelerate import PartialState

        with together():  # over gloo even if there are GPUs: no weights travel between ranks
            state = PartialState(cpu=True, timeout=timedelta(seconds=timeout))
        check_count(asked, state.num_processes)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        gpu = usable_gpu(state.local_process_index)
        return cls(number=state.process_index, count=state.num_processes, local=local, gpu=gpu)

    def broadcast(self, text: str) -> str:
        """Rank 0's text, for all ranks."""
        from accelerate.utils import broadcast_object_list

        with together():
            box: list[str] = broadcast_object_list([text])
        return box[0]

    def fill(self, plan: MergePlan, stage: Path, progress: Progress | None = None) -> None:
        """Write this rank's share into the prepared shards in `stage`, and wait until all ranks have.

        Raises:
            UserError: what went wrong. If there are several machines it names this one: each may see other files.
            LostError: another rank died, or did not finish within the timeout of this one's end.
        """
        try:
            with self._writer(plan, stage) as writer:
                most = THREADS if self.gpu is None else 2 * THREADS  # a GPU keeps more readers busy
                writer.fill(self.number, self.count, max(1, min(cores() // self.local, most)), progress)
            if self.local < self.count:
                _flush(stage, plan.shards)
        except (UserError, OSError) as error:
            if self.local == self.count:
                raise
            place = f"rank {self.number} on {socket.gethostname()}; all machines must see the same folders"
            raise UserError(f"{error_text(error)} ({place})") from None
        if self.count > 1:
            from accelerate import PartialState

            with together():
                PartialState().wait_for_everyone()

    def _writer(self, plan: MergePlan, stage: Path) -> ShardWriter:
        if self.gpu is None:
            return ShardWriter(plan, stage)
        from souping.merge.gpu import CudaShardWriter

        return CudaShardWriter(plan, stage, self.gpu)


@contextmanager
def together() -> Iterator[None]:
    """Raises LostError for torch's errors of ranks that talk to each other."""
    try:
        yield
    except RuntimeError as error:
        raise LostError(
            f"another rank died or did not answer in time ({first_line(error)}); if it was only slow, raise the timeout"
        ) from None


def check_count(asked: int | None, count: int) -> None:
    """Refuse fewer ranks than were asked for.

    Without a number, a launch that meant several ranks and started one is recognised by the address it has prepared.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if count == asked or (asked is None and not (count == 1 and launched)):
        return
    raise UserError(
        f"{asked or 'several'} ranks were asked for and accelerate started {count}: launch with --multi_gpu "
        "(on CPUs too) and a --num_processes that --num_machines divides"
    )


def usable_gpu(number: int) -> torch.device | None:
    """The GPU of that number; None without GPUs, or if its rounding is not that of the specification."""
    import torch

    if not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return None
    from souping.merge.gpu import agrees

    device = torch.device("cuda", number)
    if agrees(device):
        return device
    log.warning("%s does not round as specified: its rank works on the CPU", device)
    return None


def _flush(stage: Path, names: tuple[str, ...]) -> None:
    """Send this machine's writes to the disk: rank 0's flush reaches only its own machine's."""
    for name in names:
        descriptor = os.open(stage / name, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
