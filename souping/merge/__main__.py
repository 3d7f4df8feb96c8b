"""`python -m souping.merge PLAN.json OUT` cooks a saved plan alone.

`accelerate launch --multi_gpu --num_processes N -m souping.merge PLAN.json OUT` cooks it with N ranks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from souping.core import UserError
from souping.merge.cook import Shares, cook
from souping.merge.layout import MergePlan


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one or two lines on standard error."""
    parser = argparse.ArgumentParser(prog="python -m souping.merge", description=__doc__)
    parser.add_argument("plan", type=Path, help="a plan saved by MergePlan.save")
    parser.add_argument("out", type=Path, help="the folder to write: absent, or empty")
    parser.add_argument("--num-processes", type=int, help="with accelerate launch: refuse another number of ranks")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a rank may be silent")
    options = parser.parse_args(arguments)
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:  # accelerate launch sets it
        return cook_plan(options.plan, options.out)
    from souping.merge.accelerate_launch import together

    return together(partial(cook_plan, options.plan, options.out), options.num_processes, options.timeout)


def cook_plan(path: Path, out: Path, shares: Shares | None = None) -> int:
    """Exit status of cooking a saved plan, alone or by `shares`."""
    try:
        plan = MergePlan.load(path)
        print(plan.describe(), flush=True)
        start = time.perf_counter()
        cook(plan, out, progress=meter(plan.read_bytes + plan.nbytes), shares=shares)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
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


if __name__ == "__main__":
    raise SystemExit(main())
