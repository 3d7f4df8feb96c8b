"""`python -m souping.merge PLAN.json OUT` cooks a saved plan alone."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from souping.core import UserError
from souping.merge.cook import cook
from souping.merge.layout import MergePlan


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one or two lines on standard error."""
    parser = argparse.ArgumentParser(prog="python -m souping.merge", description=__doc__)
    parser.add_argument("plan", type=Path, help="a plan saved by MergePlan.save")
    parser.add_argument("out", type=Path, help="the folder to write: absent, or empty")
    options = parser.parse_args(arguments)
    try:
        plan = MergePlan.load(options.plan)
        print(plan.describe())
        start = time.perf_counter()
        cook(plan, options.out, progress=meter(plan.read_bytes + plan.nbytes))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.out} written in {time.perf_counter() - start:.2f} s")
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
