"""`merge=accelerate`: weighted averaging by several ranks, each of which writes its share of the soup's bytes.

For every soup, the run prepares the shards and starts `accelerate launch -m souping.merge PLAN FOLDER --fill`, which
takes 3 to 5 s before the first byte. Ranks exchange no weights; they only wait for each other at the end.

`CudaMixer` mixes a rank's share on its GPU. Several threads work at once, each on a CUDA stream of its own, so
that one reads files while the blocks of others are copied and mixed. Tensors that are only copied, and methods without
a form in torch, are mixed on the CPU.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from souping.checkpoints.header import FLOATS, size_of
from souping.checkpoints.views import Raw
from souping.core.child import wait_or_kill
from souping.core.fields import Seconds, Threads, component
from souping.core.files import error_text
from souping.core.system import cores, package_environment
from souping.core.text import first_line, missing, stripped_lines
from souping.core.types import Missing, UserError, frozen
from souping.merge import ERROR_PREFIX, RANK_PREFIX, WARNING_PREFIX, OptionalProgress
from souping.merge.local import LocalMerge
from souping.merge.methods import COMPILED_METHODS, Combine, mix_block, torch_dtype
from souping.merge.mixing import (
    BlockMixer,
    Chunk,
    ReadTiles,
    blocks,
    check_finite,
    chunks,
    function_of,
    share_of_rank,
)
from souping.merge.plan import MergePlan
from souping.merge.rounding import NAN
from souping.merge.writer import WRITER_THREADS, fill_shards
from souping.report.progress import say

if TYPE_CHECKING:
    import torch

log = logging.getLogger("souping.merge")
CPU_RANKS = 2
"""Ranks on a machine without GPUs."""
GPU_THREADS = 8
"""Threads that keep a GPU busy at most."""
LAUNCHER_TIMEOUT_S = 40.0
"""Seconds for a launcher to end its ranks; torch kills those that do not react after 30."""
FAILED_RANK = re.compile(r"rank +: (\d+) \(.*\n +exitcode +: -(\d+)")
"""Rank and signal in torch's table of failed ranks, of which two lines are

  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 4242)
"""
OTHER_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which a launcher places a process in its group. A run may itself have been started by one."""


@component
class AccelerateMerge(LocalMerge):
    """`LocalMerge` whose soups are written by ranks on this machine, each on its own GPU if there are GPUs.

    The bytes are those of `LocalMerge`. With `num_processes=None` there is one rank per GPU, or two without GPUs; a
    single rank works inside the run. `timeout` is how long, in seconds, a rank waits for the others at the start and at
    the end.

    Raises:
        UserError: a value is out of its range; the message names `merge.<key>`.
    """

    num_processes: Threads | None = None
    timeout: Seconds = 600.0

    @property
    def hashes_while_reading(self) -> bool:
        return False  # the files are read by ranks, each its share

    def fill(self, plan: MergePlan, stage: Path, progress: OptionalProgress) -> None:
        """As `LocalMerge.fill`; with several ranks, progress is reported once, at the end.

        Raises:
            UserError: as `LocalMerge.fill`, or a rank died, or fewer ranks started than asked for, or one is silent.
        """
        count = rank_count(self.num_processes)
        # One rank works in this process.
        if count == 1:
            rank = Rank(gpu=usable_gpu(0))
            rank.fill(plan, stage, progress)
            say(f"merge=accelerate: 1 rank, on {rank.device}")
            return
        with tempfile.TemporaryDirectory(prefix="souping-") as folder:
            saved = plan.save(Path(folder) / "plan.json")
            work = [
                str(saved),
                str(stage),
                "--fill",
                "--num-processes",
                str(count),
                "--timeout",
                str(self.timeout),
            ]
            text, status = launch([*launcher(count), *work], Path(folder) / "log")
        # Each warning once, even if several ranks give it.
        for warning in dict.fromkeys(re.findall(f"^{WARNING_PREFIX}(.*)$", text, re.MULTILINE)):
            log.warning("%s", warning)
        if status:
            raise UserError(cause(text))
        devices = Counter(re.findall(rf"^{RANK_PREFIX}\d+ on (.*)$", text, re.MULTILINE))
        places = [f"{number} on {device}" for device, number in sorted(devices.items())]
        say(f"merge=accelerate: {count} ranks, {', '.join(places)}")
        if progress is not None:
            progress(plan.nbytes, plan.nbytes)

    def needs(self) -> list[Missing]:
        return missing("accelerate", "pip install accelerate")


def rank_count(requested: int | None) -> int:
    """How many ranks to start on this machine: as `requested`, else one for each GPU, or CPU_RANKS.

    Raises:
        UserError: there are fewer GPUs than ranks were asked for.
    """
    import torch

    gpus = torch.cuda.device_count()
    if requested is None:
        return gpus or CPU_RANKS
    if 0 < gpus < requested:
        advice = "lower it, or hide them (CUDA_VISIBLE_DEVICES=) for ranks on the CPU"
        raise UserError(
            f"merge.num_processes={requested} is more than the number of GPUs, {gpus}: {advice}"
        )
    return requested


def launcher(count: int) -> list[str]:
    """The start of a command line that runs `souping.merge` in `count` ranks, whatever the user's own settings."""
    # `souping.core.child` ends the launcher when this process is gone, and the ranks watch the launcher.
    watched = [
        sys.executable,
        "-m",
        "souping.core.child",
        str(os.getpid()),
        "accelerate.commands.launch",
    ]
    # `--multi_gpu` on CPUs too: without GPUs it starts ranks on them.
    ranks = ["--multi_gpu", "--gpu_ids", "all", "--num_processes", str(count)]
    fixed = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    # Port 0: any that is free.
    return [*watched, *ranks, *fixed, "--main_process_port", "0", "-m", "souping.merge"]


def launch(command: list[str], log_file: Path) -> tuple[str, int]:
    """(standard error, exit status) of a command that does not outlive this process."""
    environment = dict(package_environment())
    for key in OTHER_GROUP:
        environment.pop(key, None)
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
            wait_or_kill(process, LAUNCHER_TIMEOUT_S)
            raise
    return log_file.read_text(encoding="utf-8", errors="replace"), status


def cause(text: str) -> str:
    """Why the ranks ended, from what they and their launcher wrote on standard error.

    A signal that ended a rank comes first: errors of other ranks follow from it. Not SIGTERM, by which the launcher
    ends the others.
    """
    for rank, code in FAILED_RANK.findall(text):
        number = int(code)
        if number == signal.SIGTERM:
            continue
        memory = " (out of memory?)" if number == signal.SIGKILL else ""
        return (
            f"merge=accelerate: rank {rank} ended with signal {number}{memory}; nothing was written"
        )
    error = re.search(f"^{ERROR_PREFIX}(.*)$", text, re.MULTILINE)
    if error:
        return error[1]
    # `rank 0 on cuda:0`, with which each rank starts, says nothing about the end.
    lines = [line for line in stripped_lines(text) if not line.startswith(RANK_PREFIX)]
    last_line = "".join(lines[-1:])
    return f"merge=accelerate: the ranks ended: {last_line[:300] or 'no reason given'}; nothing was written"


@frozen
class Rank:
    """Rank `number` of `count`, of which `local` run on this machine. `gpu` does its arithmetic; None: the CPU."""

    number: int = 0
    count: int = 1
    local: int = 1
    gpu: torch.device | None = None

    @classmethod
    def join(cls, requested: int | None, timeout: float) -> Rank:
        """Meet the other ranks that `accelerate launch` started, within `timeout` seconds.

        Raises:
            UserError: there are not `requested` ranks (every rank raises it), or another rank does not come.
        """
        from accelerate import PartialState

        # By gloo (`cpu`) even if there are GPUs: no weights travel between ranks.
        with waiting_for_ranks():
            state = PartialState(cpu=True, timeout=timedelta(seconds=timeout))
        # --num_machines that do not divide the number start fewer.
        if requested not in (None, state.num_processes):
            raise UserError(
                f"{requested} ranks were asked for and accelerate started {state.num_processes}: launch with "
                "--multi_gpu (on CPUs too) and a --num_processes that --num_machines divides"
            )
        local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        gpu = usable_gpu(state.local_process_index)
        return cls(number=state.process_index, count=state.num_processes, local=local, gpu=gpu)

    @property
    def device(self) -> str:
        """Where it does its arithmetic."""
        return "the CPU" if self.gpu is None else str(self.gpu)

    def broadcast(self, text: str) -> str:
        """Rank 0's `text`, for all ranks; the texts of the others do not count."""
        from accelerate.utils import broadcast_object_list

        with waiting_for_ranks():
            texts: list[str] = broadcast_object_list([text])
        return texts[0]

    def fill(self, plan: MergePlan, stage: Path, progress: OptionalProgress = None) -> None:
        """Write this rank's share into the prepared shards in `stage`, and wait until all ranks are done.

        Raises:
            UserError: what went wrong (with several machines also where: each may see other files), or another rank
                died or did not finish within the timeout after this rank's end.
        """
        most_threads = WRITER_THREADS
        mixer = BlockMixer(plan)
        if self.gpu is not None:
            most_threads = GPU_THREADS
            mixer = CudaMixer(plan, self.gpu)
        threads = max(1, min(cores() // self.local, most_threads))
        share = share_of_rank(chunks(plan), self.number, self.count)
        try:
            fill_shards(plan, stage, progress, work=share, mixer=mixer, threads=threads)
        except (UserError, OSError) as error:
            # All ranks are on this machine, and see the same files.
            if self.local == self.count:
                raise
            place = f"rank {self.number} on {socket.gethostname()}; all machines must see the same folders"
            raise UserError(f"{error_text(error)} ({place})") from None
        if self.count > 1:
            from accelerate import PartialState

            with waiting_for_ranks():
                PartialState().wait_for_everyone()


@contextmanager
def waiting_for_ranks() -> Iterator[None]:
    """Around a call that waits for other ranks: torch's errors become UserError."""
    try:
        yield
    except RuntimeError as error:
        what = f"another rank died or did not answer in time ({first_line(error)})"
        raise UserError(f"{what}; if it was only slow, raise the timeout") from None


def usable_gpu(number: int) -> torch.device | None:
    """The GPU of that number; None without GPUs, if ACCELERATE_USE_CPU is true, or if it rounds in another way."""
    import torch

    if not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return None
    device = torch.device("cuda", number)
    if device_agrees(device):
        return device
    log.warning("%s does not round as specified: its rank works on the CPU", device)
    return None


# The arithmetic of `methods` in torch: `add_(x, alpha=w)` is one fused multiply-add on fp32, in
# the plan's order; roundings are IEEE's. `device_agrees` tries whether a device really does that.

SAMPLE = 20_011
"""Elements on which a device is compared with the kernels; no multiple of a vector's length."""


def blend(
    function: Combine,
    rows: Sequence[torch.Tensor],
    dtypes: Sequence[str],
    weights: Sequence[float],
    dtype: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(soup's bytes in `dtype`, whether all is finite []) of rows [K] of bytes [count * itemsize] of `dtypes`.

    `function` is one of `COMPILED_METHODS`. If it sums differences, the first row is the base.
    """
    import torch

    base = None
    first = 0
    if COMPILED_METHODS[function]:
        base = _wide(rows[0], dtypes[0])
        first = 1
    count = rows[0].numel() // size_of(dtypes[0])
    total = torch.zeros(count, dtype=torch.float32, device=rows[0].device)
    for row, tag, weight in zip(rows[first:], dtypes[first:], weights[first:], strict=True):
        value = _wide(row, tag)
        total.add_(value if base is None else value - base, alpha=float(np.float32(weight)))
    if base is not None:
        total.add_(base)
    return _torch_rounded(total, dtype)


def _wide(row: torch.Tensor, dtype: str) -> torch.Tensor:
    """Bytes of `dtype` as fp32."""
    import torch

    return row.view(torch_dtype(dtype)).to(torch.float32)


def _torch_rounded(total: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(bytes, whether all is finite []) of fp32 sums rounded once to `dtype`; every NaN becomes the quiet one."""
    import torch

    soup = total.to(torch_dtype(dtype))
    bits = soup.view(torch.int32 if size_of(dtype) == 4 else torch.int16)
    bits.masked_fill_(torch.isnan(soup), NAN[dtype])
    return bits.view(torch.uint8), torch.isfinite(soup).all()


def device_agrees(device: torch.device) -> bool:
    """Whether the device's bits are those of the kernels on a sample of random bits."""
    import torch

    rng = np.random.default_rng(0)
    weights = (0.15, 0.85, 1 / 3)
    for function, dtype in itertools.product(COMPILED_METHODS, FLOATS):
        rows = list[Raw]()
        for _ in weights:
            data = rng.bytes(SAMPLE * size_of(dtype))
            rows.append(np.frombuffer(data, np.uint8).copy())
        specified = np.empty_like(rows[0])
        tags = [dtype] * len(rows)
        mix_block(function, rows, tags, weights, dtype, specified, dtype)
        device_rows = [torch.from_numpy(row).to(device) for row in rows]
        soup, _ = blend(function, device_rows, tags, weights, dtype)
        if not np.array_equal(soup.cpu().numpy(), specified):
            return False
    return True


DEVICE_BLOCK_ELEMENTS = 1 << 23
"""Elements of all ingredients in a block: a thread pins at most 32 MiB for them, and as much on the device."""
LARGEST_BLOCK_ELEMENTS = 1 << 22
"""Elements of the soup in a block."""


class CudaMixer(BlockMixer):
    """`BlockMixer` whose sums run on a GPU; the bytes are the same."""

    def __init__(self, plan: MergePlan, device: torch.device) -> None:
        super().__init__(plan)
        self._device = device
        self._thread = threading.local()

    def blocks(self, chunk: Chunk) -> Iterator[Chunk]:
        """Larger blocks than on the CPU: each copy to the device has a fixed cost."""
        return blocks(chunk, most=LARGEST_BLOCK_ELEMENTS, most_read=DEVICE_BLOCK_ELEMENTS)

    def mix(self, block: Chunk, read: ReadTiles, in_order: bool) -> tuple[Sequence[Raw], Raw]:
        """As `BlockMixer.mix`; rows are always in the order of the tensor. Copies are left to the CPU."""
        import torch

        function = function_of(self.plan, block)
        if block.op not in ("mix", "linear") or function not in COMPILED_METHODS:
            return super().mix(block, read, in_order)
        stream, pinned = self._lane()
        sizes = [block.count * size_of(source.dtype) for source in block.sources]
        # Copies from and to pinned memory run beside the work of other threads.
        pinned_rows = [_pinned(pinned, number, size) for number, size in enumerate(sizes)]
        out = _pinned(pinned, len(sizes), block.nbytes)
        rows: list[Raw] = [row.numpy() for row in pinned_rows]
        for number, row in enumerate(rows):
            read(block, number, row, None)
        with torch.cuda.device(self._device), torch.cuda.stream(stream), torch.no_grad():
            device_rows = [row.to(self._device, non_blocking=True) for row in pinned_rows]
            tags = [source.dtype for source in block.sources]
            soup, finite = blend(function, device_rows, tags, block.weights, block.dtype)
            out.copy_(soup, non_blocking=True)
            good = bool(finite)  # waits for the stream, and so for the copy
        check_finite(self.plan, block, good, rows, self.warned)
        return rows, out.numpy()

    def _lane(self) -> tuple[torch.cuda.Stream, dict[int, torch.Tensor]]:
        """(CUDA stream, {number: pinned row}) of this thread, made at its first block."""
        import torch

        if "lane" not in vars(self._thread):
            self._thread.lane = (torch.cuda.Stream(self._device), dict[int, torch.Tensor]())
        lane: tuple[torch.cuda.Stream, dict[int, torch.Tensor]] = self._thread.lane
        return lane


def _pinned(rows: dict[int, torch.Tensor], number: int, nbytes: int) -> torch.Tensor:
    """The first bytes of the pinned row `number`, which is replaced in `rows` if it is too short."""
    import torch

    if number not in rows or rows[number].numel() < nbytes:
        rows[number] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    return rows[number][:nbytes]
