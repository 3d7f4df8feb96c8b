"""Print the example of docs/compare.md: `python docs/make_compare_example.py RUN_DIR`.

RUN_DIR is a finished run of `+experiment=bfcl`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

COLUMNS = ("item", "category", "score", "stop_reason", "prompt", "output")
STOP_REASONS = {"finished": "stop", "truncated": "length"}
LOGS = {"python": "tuned_python", "parallel": "tuned_parallel"}
CATEGORIES = ("simple_javascript", "multiple", "parallel_multiple")
"""Few, so that the output is short."""
WIDTH = 100
"""Columns of the page's code blocks."""


def write_logs(run: Path, folder: Path) -> None:
    """A CSV per model with its answers to the report items of a run."""
    folder.mkdir()
    with gzip.open(run / "samples.jsonl.gz", "rt", encoding="utf-8") as lines:
        samples = [json.loads(line) for line in lines]
    for model in LOGS.values():
        with (folder / f"{model}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for sample in samples:
                if sample["split"] != "test" or sample["category"] not in CATEGORIES:
                    continue
                answer = sample["models"][model]
                prompt = sample["arguments"][0][0]
                stop_reason = STOP_REASONS.get(answer["outcome"], answer["outcome"])
                row = [sample["item"], sample["category"], answer["score"], stop_reason]
                table.writerow([*row, prompt, answer["resps"][0][0]])


def example(run: Path) -> str:
    """What the page's command prints."""
    words = [f"{name}=evals/{model}.csv" for name, model in LOGS.items()]
    command = [sys.executable, "-m", "souping", "compare", *words, "--margin", "3"]
    with TemporaryDirectory() as folder:
        write_logs(run, Path(folder) / "evals")
        env = {**os.environ, "COLUMNS": str(WIDTH), "PYTHONIOENCODING": "utf-8"}
        ended = subprocess.run(
            command, cwd=folder, env=env, check=True, capture_output=True, encoding="utf-8"
        )
    return "\n".join(line.rstrip() for line in ended.stdout.strip().splitlines()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    print(example(parser.parse_args().run), end="")


if __name__ == "__main__":
    main()
