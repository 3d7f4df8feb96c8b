"""`python -m souping.merge PLAN.json OUT` writes the soup of a saved plan.

`accelerate launch --multi_gpu --num_processes N -m souping.merge PLAN.json OUT` writes it with N ranks, on one machine
or several.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from souping.core.arguments import positive, seconds
from souping.core.child import LAUNCHER, end_with
from souping.core.files import error_text
from souping.core.text import first_line, safe
from souping.core.types import UserError
from souping.merge import ERROR_PREFIX, RANK_PREFIX, WARNING_PREFIX, OptionalProgress
from souping.merge.plan import MergePlan
from souping.merge.soup_files import soup_files
from souping.merge.stored import load_plan
from souping.merge.writer import FillShards, fill_shards, write_checkpoint


def merge_plan(arguments: Sequence[str] | None = None) -> int:
    """Write a soup as a command line says; returns the exit status.

    2 means one line on standard error, and before it the traceback of a fault in souping.
    """
    parser = argparse.ArgumentParser(prog="python -m souping.merge", description=__doc__)
    parser.add_argument("plan", type=Path, help="a plan saved by `souping plan merge`")
    parser.add_argument("out", type=Path, help="the folder to write: absent, or empty")
    parser.add_argument(
        "--num-processes",
        type=positive,
        help="with accelerate launch: refuse another number of ranks",
    )
    parser.add_argument(
        "--timeout", type=seconds, default=600.0, help="seconds that the ranks wait for each other"
    )
    parser.add_argument(
        "--fill", action="store_true", help="OUT holds the shards at full size: fill them, no more"
    )
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot show must not raise an error.
        sys.stdout.reconfigure(errors="replace")
    logging.basicConfig(format=f"{WARNING_PREFIX}%(message)s")
    try:
        # `accelerate launch` sets the variable.
        if options.fill or "ACCELERATE_MIXED_PRECISION" in os.environ:
            write_together(options)
        else:
            write_plan(options.plan, options.out)
    except Exception as error:
        text = error_text(error)
        if not isinstance(error, UserError | OSError):
            traceback.print_exc()
            text = f"{type(error).__name__}: {first_line(error)}"
        # in one piece: ranks share the stream
        sys.stderr.write(f"{ERROR_PREFIX}{safe(text)}".replace("\n", " ") + "\n")
        return 2
    return 0


def write_plan(path: Path, out: Path, fill: FillShards = fill_shards) -> None:
    """Write the soup of a saved plan, and print the plan and the time; `fill` writes the weights."""
    plan = load_plan(path)
    print(plan.describe(), flush=True)
    start = time.perf_counter()
    write_checkpoint(plan, out, soup_files(plan), fill=fill)
    print(f"{out} written in {time.perf_counter() - start:.2f} s")


def write_together(options: argparse.Namespace) -> None:
    """Write a soup with other ranks: each fills its share of the shards.

    Without `--fill`, rank 0 also prepares the folder, tells the others where it is, and completes it.
    """
    from souping.merge.accelerate import Rank

    # `souping.core.child` started the launcher: this rank ends when the launcher does.
    if LAUNCHER in os.environ:
        end_with(int(os.environ[LAUNCHER]))
    rank = Rank.join(options.num_processes, options.timeout)
    # in one piece: ranks share the stream
    sys.stderr.write(f"{RANK_PREFIX}{rank.number} on {rank.device}\n")

    def lead(plan: MergePlan, stage: Path, progress: OptionalProgress) -> None:
        """Tell the other ranks where the shards are, and fill this rank's share."""
        rank.broadcast(str(stage))
        rank.fill(plan, stage, progress)

    if rank.number == 0 and not options.fill:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        write_plan(options.plan, options.out, lead)
        return
    # End without a traceback: rank 0 reports the error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Only the text of rank 0 counts.
    stage = options.out if options.fill else Path(rank.broadcast(""))
    rank.fill(load_plan(options.plan), stage)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    """Handler of the signal with which the launcher stops its ranks: exit, so that the staged folder is removed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("stopped by the launcher; nothing was written", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    raise SystemExit(merge_plan())
