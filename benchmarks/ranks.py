"""Wall time of a soup by `merge=accelerate` beside `merge=local`, the start of the ranks included.

    python -m benchmarks.ranks [--size 0.3] [--models 4] [--ranks 2] [--rounds 5]

Prints medians; ratios hold within one run. Inputs are generated below --work and are in the page cache. On one machine
without GPUs the ranks have the same cores as the threads of `merge=local`, so the difference is what the ranks cost.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.merge_inputs import generate
from souping.checkpoints.checkpoint import Checkpoint
from souping.core.types import Recipe
from souping.merge.accelerate import AccelerateMerge
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", default="0.3", choices=["0.3", "1.2", "2.4"], help="GB of a model"
    )
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "souping-accelerate"
    )
    options = parser.parse_args()
    folders = {f"m{i}": options.work / f"{options.size}-{i}" for i in range(options.models)}
    for seed, folder in enumerate(folders.values()):
        if not (folder / "config.json").exists():
            generate(folder, options.size, seed)
    names = tuple(folders)
    recipe = Recipe(
        ingredients=names,
        fingerprints=names,
        weights=(1 / len(names),) * len(names),
        dtype="bfloat16",
    )
    merge = LocalMerge()
    plan = merge.plan(
        recipe, merge.align({name: Checkpoint.open(folder) for name, folder in folders.items()})
    )
    report(measure(plan, options.work / "soup", options.ranks, options.rounds), plan, options.ranks)


def measure(plan: MergePlan, out: Path, ranks: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind, in interleaved rounds after one that is thrown away."""
    backends = {
        "merge=local": LocalMerge(),
        "merge=accelerate": AccelerateMerge(num_processes=ranks),
    }
    times: dict[str, list[float]] = {name: [] for name in backends}
    for number in range(rounds + 1):
        for name, merge in backends.items():
            seconds = soup(merge, plan, out)
            if number:
                times[name].append(seconds)
    return times


def soup(merge: LocalMerge, plan: MergePlan, out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    start = time.perf_counter()
    merge.write(plan, out)
    return time.perf_counter() - start


def report(times: dict[str, list[float]], plan: MergePlan, ranks: int) -> None:
    moved = (plan.read_bytes + plan.nbytes) / 1e9
    size = f"{plan.nbytes / 1e9:.2f} GB written, {moved:.2f} GB moved"
    print(f"{len(plan.ingredients)} models, {size}, {ranks} ranks, fsync included")
    print("| what | median s | GB/s |\n|---|---|---|")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.2f} | {moved / median:.2f} |")


if __name__ == "__main__":
    main()
