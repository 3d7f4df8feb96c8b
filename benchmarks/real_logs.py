"""`souping compare` on real BFCL logs: what grouping, several runs and BFCL's own formula change.

    python benchmarks/real_logs.py RESULTS

RESULTS is the folder `results/` of the GitHub repository bbrowning/bfcl-vllm-results (commit f98223a): BFCL v4 of
gpt-oss-120b under five builds of vLLM. The two harmony-fixes builds should be equal; they are the runs of one model.
Files that are absent (long context, in a shallow copy) are taken from BFCL's own table.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import souping
from souping.comparison.pooled import pool, task_weights
from souping.logs.answer_tables import LogSource
from souping.logs.bfcl_average import coefficients_of, overall
from souping.logs.match import matched
from souping.logs.records import Log
from souping.logs.sources import read_logs
from souping.statistics.comparison import split_variance

MODEL = "openai_gpt-oss-120b"
BUILDS = ("v0.10.2", "v0.11.0", "2025-11-12-main")
FIXES = ("2025-11-12-harmony-fixes", "2025-11-12-harmony-fixes-2")
LONG_CONTEXT = "multi_turn_long_context"


def standard_error(logs: dict[str, list[Log]], average: str) -> float:
    """Of the difference of the average, in points."""
    common = matched(logs)
    weights = task_weights(common, average)
    pooled = pool({task: common.metrics[task][0] for task in weights}, weights).scored
    a, b = logs
    return 100 * math.sqrt(split_variance(pooled, a, b).total)


def grouping(folder: Path) -> None:
    logs = {name: [read_logs(f"{folder / name}:{MODEL}")[0]] for name in ("v0.11.0", FIXES[1])}
    alone = {name: [replace(log, shared={})] for name, (log,) in logs.items()}
    for average in ("task", "item"):
        before = standard_error(alone, average)
        after = standard_error(logs, average)
        print(f"standard error, --average {average}: {before:.2f} without groups, {after:.2f} with")


def own_overall(folder: Path, build: str) -> tuple[float, float]:
    """(BFCL's overall accuracy in its table, the same from our reading of the logs), in percent."""
    with (folder / build / "score" / "data_overall.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    row = next(row for row in rows if "120b" in row["Model"])
    (log,) = read_logs(f"{folder / build}:{MODEL}")
    accuracies = {}
    for name, task in log.tasks.items():
        answers = task.metrics["accuracy"].answers
        accuracies[name] = 100 * sum(answer.score for answer in answers) / len(answers)
    accuracies.setdefault(LONG_CONTEXT, float(row["Multi Turn Long Context"].rstrip("%")))
    agentic = dict.fromkeys(("web_search_base", "memory_kv"), 0.0)
    shares = coefficients_of(overall("v4"), {**accuracies, **agentic})
    ours = sum(share * accuracies.get(name, 0.0) for name, share in shares.items())
    return float(row["Overall Acc"].rstrip("%")), ours


def verdicts(folder: Path, runs: Sequence[str], average: str) -> None:
    fixes: list[LogSource] = [f"{folder / name}:{MODEL}" for name in runs]
    for build in BUILDS:
        logs: dict[str, LogSource | list[LogSource]] = {
            build: f"{folder / build}:{MODEL}",
            "fixes": fixes,
        }
        result = souping.compare(logs, margin=2, average=average)
        row = result.average_row("fixes")
        powers = [row.detectable, row.detectable_one_more_run, row.detectable_twice_items]
        power = ", ".join("-" if value is None else f"{100 * value:.1f}" for value in powers)
        print(
            f"| {average} | {build} | {len(runs)} | {row.verdict} | {100 * row.difference:+.1f} "
            f"[{100 * row.low:+.1f}, {100 * row.high:+.1f}] | {power} |"
        )
    for noise in result.runs:
        print(f"flipped {100 * noise.flipped:.1f} %, averages differ by {100 * noise.spread:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    folder = parser.parse_args().results
    grouping(folder)
    for build in (*BUILDS, *FIXES):
        table, ours = own_overall(folder, build)
        print(f"{build}: BFCL's overall {table:.2f}, from the logs {ours:.2f}")
    print(
        "| average | build | runs of fixes | verdict | difference | power: now, a run more, twice the items |"
    )
    for average in ("task", "bfcl"):
        verdicts(folder, FIXES[1:], average)
        verdicts(folder, FIXES, average)


if __name__ == "__main__":
    main()
