"""Seconds of `souping compare` as a command, for two CSV logs of 15,000 items: `python benchmarks/compare.py`.

Several kinds of scores: right or wrong in few or many tasks, and fractions. User time of the process tells it apart
from other work on the machine.
"""

from __future__ import annotations

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ITEMS = 15_000


def write(path: Path, tasks: int, fractions: bool, seed: int) -> None:
    """A log whose items are as hard as those of every other seed."""
    hard, own = np.random.default_rng(0).random(ITEMS), np.random.default_rng(seed).random(ITEMS)
    level = 0.7 * hard + 0.3 * own
    scores = level if fractions else (level < 0.5).astype(int)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("item", "category", "score", "tokens", "stop_reason"))
        tokens = np.random.default_rng(seed).poisson(120, ITEMS)
        table.writerows((n, f"task{n % tasks}", scores[n], tokens[n], "stop") for n in range(ITEMS))


def seconds(folder: Path, models: int) -> tuple[float, float]:
    """(wall time, processor time) of the command."""
    logs = [f"m{n}={folder / f'm{n}.csv'}" for n in range(models)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "souping", "compare", *logs], check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| logs | wall s | processor s |\n|---|---:|---:|")
    cases = (("2 models, 5 tasks", 2, 5, False), ("2 models, 58 tasks", 2, 58, False),
             ("5 models, 5 tasks", 5, 5, False), ("2 models, 5 tasks, fractions", 2, 5, True))  # fmt: skip
    for name, models, tasks, fractions in cases:
        with tempfile.TemporaryDirectory() as folder:
            for n in range(models):
                write(Path(folder) / f"m{n}.csv", tasks, fractions, n + 1)
            wall, processor = min(seconds(Path(folder), models) for _ in range(3))
            print(f"| {name} | {wall:.1f} | {processor:.1f} |", flush=True)


if __name__ == "__main__":
    main()
