"""A soup by all ranks of a team: each cooks its share of the bytes, and all hear how the others do."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from souping.merge.accelerate_messages import Failure, overheard, pack, unpack
from souping.merge.accelerate_team import Team
from souping.merge.average import THREADS, Kitchen, Progress
from souping.merge.layout import MergePlan

BEAT = 0.25  # seconds between two exchanges while all are at work
Warn = Callable[[str], None]


def fill(
    team: Team, plan: MergePlan, stage: Path, progress: Progress | None, warn: Warn, leave: Callable[[], bool]
) -> None:
    """Fill the prepared shards in `stage`. Every rank calls this with the same plan; all return, or raise, together.

    Each rank works in a thread while the ranks exchange how far they are, so a failure ends the others within a beat.
    `progress`, `warn` and `leave` (asked whether to give up) are those of rank 0.

    Raises:
        UserError, OSError, RuntimeError: of the first rank that failed, on every rank.
        LostError: a rank died or hangs.
    """
    with overheard() as warnings:
        share = _Share(team, plan, stage)
        try:
            while not _beat(team, share, warnings, plan.nbytes, progress, warn, leave):
                pass
        finally:
            share.stop()


def _beat(
    team: Team,
    share: _Share,
    warnings: list[str],
    total: int,
    progress: Progress | None,
    warn: Warn,
    leave: Callable[[], bool],
) -> bool:
    """One exchange; returns whether all shares are cooked."""
    over = share.wait(BEAT)
    news, warnings[:] = list(warnings), []
    mine = {"over": over, "done": share.done, "failure": share.failure, "news": news, "leave": leave()}
    states: list[dict[str, Any]] = team.gather(mine)
    if team.rank == 0:
        for text in dict.fromkeys(text for state in states for text in state["news"]):
            warn(text)
        if progress is not None:
            progress(sum(state["done"] for state in states), total)
    failures = [state["failure"] for state in states if state["failure"]]
    if failures:
        raise unpack(failures[0])
    if any(state["leave"] for state in states):
        raise InterruptedError("the process that asked for the soup is gone")
    return all(state["over"] for state in states)


class _Share:
    """This rank's share, cooked in a thread of its own."""

    def __init__(self, team: Team, plan: MergePlan, stage: Path) -> None:
        self.done = 0
        self.failure: Failure | None = None
        self._team, self._plan, self._stage = team, plan, stage
        self._over, self._stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="souping-share", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether the share is cooked, or failed, within that time."""
        return self._over.wait(seconds)

    def stop(self) -> None:
        """Give up at the next block, if it is not done; returns when the files are closed."""
        self._stopped = True
        self._thread.join()

    def _run(self) -> None:
        team = self._team
        try:
            with kitchen(team, self._plan, self._stage) as opened:
                opened.cook(team.rank, team.ranks, _threads(team), self._advance)
            if team.spread:  # another machine's flush does not reach what this one holds back
                _flush(self._stage, self._plan.shards)
        except BaseException as error:
            self.failure = _placed(team, pack(error))
        finally:
            self._over.set()

    def _advance(self, done: int, _: int) -> None:
        if self._stopped:
            raise InterruptedError("stopped")
        self.done = done


def kitchen(team: Team, plan: MergePlan, stage: Path) -> Kitchen:
    """The engine on the rank's device."""
    if team.gpu is None:
        return Kitchen(plan, stage)
    from souping.merge.accelerate_cuda import CudaKitchen

    return CudaKitchen(plan, stage, team.gpu)


def _threads(team: Team) -> int:
    """The machine's cores shared among its ranks; files are read by more threads where a GPU does the arithmetic."""
    from souping.merge.accelerate_cuda import THREADS as READERS

    cores = len(os.sched_getaffinity(0)) // team.local
    return max(1, min(cores, THREADS if team.gpu is None else READERS))


def _placed(team: Team, failure: Failure) -> Failure:
    """With the rank's machine named where there are several: each may see other files."""
    if team.spread and failure["kind"] == "user":
        failure["text"] += f" (rank {team.rank} on {socket.gethostname()}; all machines must see the same folders)"
    return failure


def _flush(stage: Path, names: tuple[str, ...]) -> None:
    for name in names:
        descriptor = os.open(stage / name, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
