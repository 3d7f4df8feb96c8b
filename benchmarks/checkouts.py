"""Whether two checkouts write the same files: `python benchmarks/checkouts.py BEFORE AFTER`.

Each job below runs with both packages in fresh folders, and every file that it writes is compared
line by line. Times, paths of the two folders and the version may differ, and so may the lines that
`--ignore REGEX` matches. Weights are compared byte by byte. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import difflib
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

QUICK = ("evaluator.max_new_tokens=24", "evaluator.threads=1", "selector.count=3")
SCORED = ("pool.candidates=[a,b,c]", "benchmark.path=items.jsonl", *QUICK[:2], "selector=all")
TOOLS = "[tuned_python,tuned_java,tuned_parallel]"
# {job: the commands of one folder}. RUN is the folder that the job's last run made.
JOBS: dict[str, tuple[tuple[str, ...], ...]] = {
    "main": (("+experiment=bfcl",),),
    "worst category": (("+experiment=bfcl", "objective=worst_category"),),
    "guard": (("+experiment=bfcl", "guard={live: 3}"),),
    "front": (("+experiment=bfcl", "pareto={live: 1, multiple: 2}"),),
    "extra": ((*SCORED, "name=extra", "optimiser=uniform", "extra_benchmarks=[other.jsonl]"),),
    "bits per byte": (("+experiment=trajectory", "pool.path=run", "benchmark.path=texts.jsonl"),),
    "merge": (
        (
            "+experiment=merge",
            "pool.candidates=[a,b]",
            "optimiser.weights=[0.25,0.75]",
            "out=merged",
        ),
        ("rebuild", "merged/recipe.json", "out=rebuilt"),
    ),
    "analyses": (
        ("plan", *SCORED, "name=planned"),
        (*SCORED, "name=later", "optimiser=grid", "optimiser.step=0.25"),
        ("analyse", "RUN", "analysis=[surface,shapley]"),
        ("show", "RUN", "-n", "5"),
        ("compare", "a=RUN:a", "b=RUN:b", "--out", "compared"),
    ),
    "multirun": (("-m", *SCORED, "name=sweep", "optimiser=uniform,grid"),),
    "compare": (
        ("compare", "a=a.csv", "b=b.csv", "c=c.csv", "--out", "tables"),
        ("compare", "a=lm_a", "b=lm_b", "--out", "harness"),
    ),
}
# What differs between equal runs: durations, dates and process ids.
DATE = re.compile(r"\d{4}-\d\d-\d\d[_ T]\d\d[:-]\d\d[:-]\d\d([.,]\d+)?")
VARYING = (
    (re.compile(r"\d+(\.\d+)? (s|min|ms)\b"), "TIME"),
    (re.compile(r'"(seconds|items_per_second|started|date|machine|version|commit)": .*'), r'"\1"'),
    (DATE, "DATE"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d"), "DATE"),
    (re.compile(r"^\d\d:\d\d:\d\d "), ""),
)
# Lines of progress, of which there are more or fewer, and of the space that is left on a disk.
PROGRESS = re.compile(r"(items|answers)/s|\d+ (items|answers)$|GB/s|the disk for|\"have\":")
WEIGHTS = {".safetensors", ".bin", ".pt"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="empty folder for both results")
    parser.add_argument("--job", action="append", choices=JOBS, help="only these jobs")
    parser.add_argument("--ignore", action="append", default=[], help="lines that may differ")
    options = parser.parse_args()
    ignored = [re.compile(pattern) for pattern in options.ignore]
    differing = 0
    for job in options.job or JOBS:
        before = result_of(job, options.before.resolve(), options.work / "before")
        after = result_of(job, options.after.resolve(), options.work / "after")
        differences = list(compare_results(before, after, ignored))
        differing += len(differences)
        print(f"{job}: {'equal' if not differences else f'{len(differences)} files differ'}")
        for difference in differences:
            print(difference)
    sys.exit(differing > 0)


def result_of(job: str, checkout: Path, work: Path) -> Result:
    folder = work / job.replace(" ", "_")
    run_job(job, checkout, folder)
    return Result(folder, checkout)


def run_job(job: str, checkout: Path, folder: Path) -> None:
    """Run a job's commands with the package of a checkout; their output goes to numbered files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }
    make_inputs(folder)
    for number, words in enumerate(JOBS[job]):
        runs = sorted(folder.glob("outputs/*/*"), key=lambda path: path.stat().st_mtime)
        last = str(runs[-1].relative_to(folder)) if runs else ""
        command = [word.replace("RUN", last) if last else word for word in words]
        done = subprocess.run(
            [sys.executable, "-m", "souping", *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        (folder / f"{number}.out").write_text(done.stdout)
        (folder / f"{number}.err").write_text(f"exit {done.returncode}\n{done.stderr}")
        if done.returncode > 1:
            raise SystemExit(f"{checkout}, {job}, {' '.join(command)}:\n{done.stderr[-2000:]}")


# ---------------------------------------------------------------- inputs


def make_inputs(folder: Path) -> None:
    """Candidates, items, a training run and logs that the jobs read."""
    from souping import demo

    for name, candidate in zip("abc", demo.CANDIDATES, strict=False):
        shutil.copytree(demo.path(candidate), folder / name)
    steps = zip((100, 200, 300, 400), demo.CANDIDATES, strict=False)
    for step, candidate in steps:
        shutil.copytree(demo.path(candidate), folder / "run" / f"checkpoint-{step}")
    rows = [json.loads(line) for line in demo.path("items").read_text().splitlines()]
    write_lines(folder / "items.jsonl", rows[::4])
    write_lines(folder / "other.jsonl", rows[1::16])
    texts = []
    for number, row in enumerate(rows[:240]):
        texts.append(
            {"id": str(number), "category": "abc"[number % 3], "text": f"{row['prompt']} " * 2}
        )
    write_lines(folder / "texts.jsonl", texts)
    for place, name in enumerate("abc"):
        write_logs(folder, name, place)


def write_lines(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def right(model: int, item: int) -> int:
    """Whether a made model solves an item: 55, 60 or 65 %, by a hash."""
    digest = hashlib.sha256(f"{model}/{item}".encode()).digest()
    return int(digest[0] < 256 * (0.55 + 0.05 * model))


def write_logs(folder: Path, name: str, model: int) -> None:
    """A CSV table and an lm_eval log of a made model."""
    lines = ["item,category,group,score"]
    for item in range(300):
        lines.append(f"{item},{'xyz'[item % 3]},{item // 6},{right(model, item)}")
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")

    log = folder / f"lm_{name}"
    log.mkdir()
    stamp = "2026-01-01T00-00-00.000000"
    results: dict[str, dict[str, object]] = {}
    for task in ("t1", "t2"):
        scores = [right(model, item + 1000 * int(task[1])) for item in range(200)]
        samples = []
        for item, score in enumerate(scores):
            samples.append(
                {
                    "doc_id": item,
                    "doc_hash": f"{task}{item}",
                    "filter": "none",
                    "metrics": ["acc"],
                    "acc": float(score),
                    "doc": {},
                    "resps": [["x"]],
                    "arguments": {"gen_args_0": {"arg_0": f"p{item}", "arg_1": "c"}},
                }
            )
        write_lines(log / f"samples_{task}_{stamp}.jsonl", samples)
        results[task] = {"acc,none": sum(scores) / len(scores)}
    summary = {
        "results": results,
        "configs": {task: {} for task in results},
        "higher_is_better": {task: {"acc": True} for task in results},
        "versions": dict.fromkeys(results, 1),
        "n-shot": dict.fromkeys(results, 0),
        "n-samples": {task: {"effective": 200, "original": 200} for task in results},
        "group_subtasks": {},
        "model_name": name,
    }
    (log / f"results_{stamp}.json").write_text(json.dumps(summary))


# ---------------------------------------------------------------- comparison


class Result(NamedTuple):
    """What a checkout wrote into a folder."""

    folder: Path
    checkout: Path

    def files(self) -> dict[str, Path]:
        """{place below the folder, without dates: file}"""
        files = {}
        for path in self.folder.rglob("*"):
            if path.is_file():
                files[DATE.sub("DATE", str(path.relative_to(self.folder)))] = path
        return files

    def lines(self, path: Path, ignored: Sequence[re.Pattern[str]]) -> list[str]:
        """The lines of a text file, without what varies between equal runs."""
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        text = data.decode("utf-8", "replace")
        text = text.replace(str(self.folder), "FOLDER").replace(str(self.checkout), "CHECKOUT")
        if path.suffix == ".html":
            text = text.replace("><", ">\n<")
        lines = []
        for line in text.splitlines():
            if any(pattern.search(line) for pattern in (PROGRESS, *ignored)):
                continue
            for pattern, word in VARYING:
                line = pattern.sub(word, line)
            lines.append(line)
        return lines


def compare_results(
    before: Result, after: Result, ignored: Sequence[re.Pattern[str]]
) -> Iterator[str]:
    """A few lines on each file that differs."""
    first = before.files()
    second = after.files()
    for name in sorted(first.keys() ^ second.keys()):
        yield f"  {name}: only {'before' if name in first else 'after'}"
    for name in sorted(first.keys() & second.keys()):
        suffix = first[name].suffix
        if suffix == ".png" or "sqlite" in name:
            continue
        if suffix in WEIGHTS:
            if first[name].read_bytes() != second[name].read_bytes():
                yield f"  {name}: other bytes"
            continue
        lines = before.lines(first[name], ignored)
        others = after.lines(second[name], ignored)
        if lines != others:
            diff = list(difflib.unified_diff(lines, others, lineterm="", n=0))[2:14]
            yield "\n".join([f"  {name}:", *(f"    {line[:200]}" for line in diff)])


if __name__ == "__main__":
    main()
