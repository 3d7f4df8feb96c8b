"""`merge=accelerate`: weighted averaging by several ranks, each with its share of the output's bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from souping.core import UserError
from souping.merge.accelerate_ranks import Ranks
from souping.merge.average import Progress
from souping.merge.backends import LocalMerge
from souping.merge.layout import MergePlan

CPU_RANKS = 2


@dataclass(frozen=True, kw_only=True)
class AccelerateMerge(LocalMerge):
    """`LocalMerge` whose soups are written by ranks that Accelerate starts, each on its own GPU where there is one.

    The ranks start with the first soup that is written and stay until `close`. The bytes are those of `LocalMerge`.
    `num_processes` is None for one rank a GPU (two on a machine without). `main_process_port` is where they meet (0:
    any free port); `start_timeout` and `timeout` bound, in seconds, how long they may take to be ready and how long
    they may be silent.

    Raises:
        UserError: a value is out of its range; the message names `merge.<key>`.
    """

    num_processes: int | None = None
    main_process_port: int = 0
    start_timeout: float = 120.0
    timeout: float = 600.0
    _ranks: list[Ranks] = field(default_factory=list, init=False, repr=False, compare=False)

    def _check_processes(self) -> None:
        count = self.num_processes
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise UserError(f"merge.num_processes={count} must be a whole number from 1, or null for one a GPU")
        if not 0 <= self.main_process_port < 1 << 16:
            raise UserError(f"merge.main_process_port={self.main_process_port} must be from 0 (any free one) to 65535")
        for key in ("start_timeout", "timeout"):
            if not 0 < getattr(self, key) < 1e6:
                raise UserError(f"merge.{key}={getattr(self, key)} must be a number of seconds above 0 and below 1e6")

    def write(
        self, plan: MergePlan, out: Path, progress: Any = None, extra_files: Mapping[str, str] | None = None
    ) -> Path:
        """As `LocalMerge.write`, by the ranks.

        Raises:
            UserError: as there; a rank failed or died, fewer started than asked for, or they are silent too long.
        """
        from souping.merge.cook import cook

        return cook(plan, out, progress=progress, extra_files=extra_files, shares=self._fill)

    def _fill(self, plan: MergePlan, stage: Path, progress: Progress | None) -> None:
        if not self._ranks or not self._ranks[-1].alive:
            self.close()
            count = rank_count(self.num_processes)
            started = Ranks(count, port=self.main_process_port, start=self.start_timeout, timeout=self.timeout)
            self._ranks.append(started)
        self._ranks[-1].fill(plan, stage, progress)

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
