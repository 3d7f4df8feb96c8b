"""Seconds of `souping compare` as a command, for logs of 15,000 items.

    python benchmarks/compare.py [--inspect] [--leaderboard mmlu_pro.npz]

`--leaderboard` compares only five and all models of a file with `models`, `categories`, `category` [I], `item` [I] and
`score` [M, I] (1 right, 0 wrong, 2 without a score), written as CSV. For MMLU-Pro, compute it from the answer files
in `eval_results/` of the GitHub repository TIGER-AI-Lab/MMLU-Pro.

CSV with several kinds of scores (right or wrong in few or many tasks, fractions), logs of lm_eval, and with `--inspect`
logs that inspect_ai writes. User time of the process tells it apart from other work
on the machine. Modules are compiled once, as they are where a package is installed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

ITEMS = 15_000


def scores_of(seed: int, fractions: bool = False) -> np.ndarray:
    """Scores of items that are as hard as those of every other seed."""
    hard = np.random.default_rng(0).random(ITEMS)
    own = np.random.default_rng(seed).random(ITEMS)
    level = 0.7 * hard + 0.3 * own
    return level if fractions else (level < 0.5).astype(int)


def write_csv(path: Path, seed: int, tasks: int, fractions: bool = False) -> None:
    scores = scores_of(seed, fractions)
    tokens = np.random.default_rng(seed).poisson(120, ITEMS)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("item", "category", "score", "tokens", "stop_reason"))
        table.writerows((n, f"task{n % tasks}", scores[n], tokens[n], "stop") for n in range(ITEMS))


def write_lm_eval(path: Path, seed: int, tasks: int) -> None:
    path.mkdir()
    scores = scores_of(seed)
    stamp = "2026-01-01T00-00-00"
    names = [f"task{n}" for n in range(tasks)]
    for task, name in enumerate(names):
        with (path / f"samples_{name}_{stamp}.jsonl").open("w") as file:
            for n in range(task, ITEMS, tasks):
                prompt = f"Question {n}: " + "a long passage with what the question is about. " * 20
                sample = {
                    "doc_id": n, "doc": {"question": prompt}, "doc_hash": f"{n:064x}", "prompt_hash": f"{n:064x}",
                    "target": "4", "target_hash": "", "filter": "none", "metrics": ["acc"], "acc": int(scores[n]),
                    "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n"]}}},
                    "resps": [["the answer is 4"]], "filtered_resps": ["4"],
                }  # fmt: skip
                file.write(json.dumps(sample) + "\n")
    results = {name: {"acc,none": float(scores[n::tasks].mean())} for n, name in enumerate(names)}
    table = {
        "results": results, "configs": {name: {} for name in names}, "versions": dict.fromkeys(names, 1),
        "n-shot": dict.fromkeys(names, 0), "higher_is_better": {name: {"acc": True} for name in names},
        "model_name": f"m{seed}",
    }  # fmt: skip
    (path / f"results_{stamp}.json").write_text(json.dumps(table))


def write_inspect(path: Path, seed: int) -> None:
    """A wrong and a right sample that inspect_ai evaluates, under the names of all items."""
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import match
    from inspect_ai.solver import Generate, Solver, TaskState, solver

    def answer() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            state.output = ModelOutput.from_content("mockllm/model", str(state.sample_id))
            return state

        return solve

    samples = [
        Sample(id=n, input="a long passage with what the question is about. " * 20, target="1")
        for n in (0, 1)
    ]
    task = Task(name="sums", dataset=samples, solver=solver(answer)(), scorer=match())
    path.mkdir()
    eval(task, model="mockllm/model", log_dir=str(path), display="none")
    (file,) = path.iterdir()
    with zipfile.ZipFile(file) as log:
        entries = {name: log.read(name) for name in log.namelist()}
    two = sorted(json.loads(entries["summaries.json"]), key=lambda summary: summary["id"])
    many = [{**two[score], "id": n} for n, score in enumerate(scores_of(seed))]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as log:
        for name, content in {**entries, "summaries.json": json.dumps(many).encode()}.items():
            log.writestr(name, content)


def write_leaderboard(source: Path, folder: Path) -> list[str]:
    """A CSV per model of a leaderboard; its files."""
    table = np.load(source)
    categories = table["categories"][table["category"]].tolist()
    items = table["item"].tolist()
    names = []
    for number, scores in enumerate(table["score"].tolist()):
        shown = ["" if score == 2 else score for score in scores]
        names.append(f"m{number}.csv")
        with (folder / names[-1]).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("item", "category", "score"))
            writer.writerows(zip(items, categories, shown, strict=True))
    return names


def time_leaderboard(source: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        logs = write_leaderboard(source, Path(folder))
        for number in (5, len(logs)):
            wall, processor = seconds(Path(folder), logs[:number])
            print(f"| {number} of {source.stem} | {wall:.1f} | {processor:.2f} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"\nPeak memory of the largest: {peak / 1024:.0f} MiB")


def seconds(folder: Path, logs: list[str]) -> tuple[float, float]:
    """(wall time, processor time) of the command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "souping",
        "compare",
        *(f"{log.partition('.')[0]}={folder / log}" for log in logs),
    ]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    ended = subprocess.run(command, capture_output=True, env=env)
    # 1 is the verdict that a model is worse
    if ended.returncode not in (0, 1):
        raise SystemExit(ended.stderr.decode())
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inspect", action="store_true", help="also logs of inspect_ai")
    parser.add_argument("--leaderboard", type=Path, metavar="NPZ")
    options = parser.parse_args()
    print("| logs | wall s | processor s |\n|---|---:|---:|")
    if options.leaderboard:
        time_leaderboard(options.leaderboard)
        return
    cases: dict[str, tuple[int, str, Callable[[Path, int], None]]] = {
        "2 CSV, 5 tasks": (2, ".csv", partial(write_csv, tasks=5)),
        "2 CSV, 58 tasks": (2, ".csv", partial(write_csv, tasks=58)),
        "5 CSV, 5 tasks": (5, ".csv", partial(write_csv, tasks=5)),
        "2 CSV, 5 tasks, fractions": (2, ".csv", partial(write_csv, tasks=5, fractions=True)),
        "2 of lm_eval, 5 tasks": (2, "", partial(write_lm_eval, tasks=5)),
    }
    if options.inspect:
        cases["2 of inspect_ai, 1 task"] = (2, "", write_inspect)
    for name, (models, suffix, write) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            logs = [f"m{n}{suffix}" for n in range(models)]
            for n, log in enumerate(logs):
                write(Path(folder) / log, n + 1)
            wall, processor = min(seconds(Path(folder), logs) for _ in range(3))
            print(f"| {name} | {wall:.1f} | {processor:.2f} |", flush=True)


if __name__ == "__main__":
    main()
