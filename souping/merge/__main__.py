"""`python -m souping.merge PLAN.json OUT` writes the soup of a saved plan alone.

`accelerate launch --multi_gpu --num_processes N -m souping.merge PLAN.json OUT` writes it with N ranks, on one machine
or several.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from souping.core.files import said
from souping.core.protocols import Progress
from souping.core.text import positive, safe, seconds
from souping.core.types import UserError
from souping.merge.distributed.messages import LostError
from souping.merge.distributed.worker import LINGER, Team, fill, serve
from souping.merge.plan import MergePlan
from souping.merge.writer import Shares, write_checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one or two lines on standard error."""
    parser = argparse.ArgumentParser(prog="python -m souping.merge", description=__doc__)
    parser.add_argument("plan", type=Path, help="a plan saved by MergePlan.save")
    parser.add_argument("out", type=Path, help="the folder to write: absent, or empty")
    parser.add_argument("--num-processes", type=positive, help="with accelerate launch: refuse another number of ranks")
    parser.add_argument("--timeout", type=seconds, default=600.0, help="seconds that a rank may be silent")
    options = parser.parse_args(arguments)
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:  # accelerate launch sets it
        return write_plan(options.plan, options.out)
    return together(partial(write_plan, options.plan, options.out), options.num_processes, options.timeout)


def write_plan(path: Path, out: Path, shares: Shares | None = None) -> int:
    """Exit status of writing a saved plan, alone or by `shares`."""
    try:
        plan = MergePlan.load(path)
        print(plan.describe(), flush=True)
        start = time.perf_counter()
        write_checkpoint(plan, out, progress=meter(plan.read_bytes + plan.nbytes), shares=shares)
    except (UserError, OSError) as error:
        return _say(error)
    print(f"{out} written in {time.perf_counter() - start:.2f} s")
    return 0


def meter(moved: int) -> Callable[[int, int], None] | None:
    """A progress line in GB/s (read and written) on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return None
    start = time.perf_counter()
    last = [start]

    def show(done: int, total: int) -> None:
        now = time.perf_counter()
        if done < total and now - last[0] < 0.1:
            return
        last[0] = now
        rate = moved * done / max(total, 1) / max(now - start, 1e-9) / 1e9
        end = "\n" if done >= total else ""
        print(f"\r{100 * done / max(total, 1):5.1f} %  {rate:5.2f} GB/s", end=end, file=sys.stderr, flush=True)

    return show


log = logging.getLogger("souping.merge")


def together(job: Callable[[Shares], int], asked: int | None, timeout: float) -> int:
    """Every rank calls this; rank 0 does `job`, whose shares all fill. Returns the exit status of this rank: that of
    `job` on rank 0 and 0 on the others, so that rank 0's error comes first; 2 on all that lost a rank.
    """
    try:
        team = Team.join(asked, timeout)
    except (UserError, OSError) as error:
        return _say(error) if int(os.environ.get("RANK", 0)) == 0 else 0
    try:
        if team.rank != 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a trace: rank 0 says what is to be said
        status = _first(team, job) if team.rank == 0 else serve(team)
        team.leave()
        return status
    except LostError as error:
        if team.rank == 0:
            _say(error, "; nothing was written")
        sys.stderr.flush()
        time.sleep(LINGER)
        return 2


def _first(team: Team, job: Callable[[Shares], int]) -> int:
    """Rank 0: fill the shards with the others, tell them that it is over."""
    for member in team.introduce():
        if member["note"]:
            log.warning("%s", member["note"])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _clear)

    def shares(plan: MergePlan, stage: Path, progress: Progress | None) -> None:
        team.tell({"verb": "fill", "plan": plan.to_json(), "stage": str(stage)})
        try:
            fill(team, plan, stage, progress, log.warning, lambda: False)
        except LostError:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends the ranks now: clear away first
            raise

    try:
        status = job(shares)
    except Exception as error:
        if not isinstance(error, LostError):
            team.tell({"verb": "end"})
        raise
    team.tell({"verb": "end"})
    return status


def _clear(number: int, _: FrameType | None) -> NoReturn:
    """A launcher that is stopped, or has lost another rank, stops its ranks: leave through the clean-up."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    print("stopped by the launcher; nothing was written", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def _say(error: Exception, more: str = "") -> int:
    print(f"{safe(said(error))}{more}", file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
