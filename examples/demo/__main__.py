"""Train the demo's models, write its items, or train a run to average: `python -m examples.demo [WHAT]`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from examples import exit_status
from examples.demo import items
from souping import demo
from souping.core.arguments import positive

WHAT = ("models", "items", "trajectory")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return exit_status(
        {"items": _items, "models": _models, "trajectory": _trajectory}[options.what], options
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("what", nargs="?", choices=WHAT, default="models", help="default: models")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/demo"), help="folder (default: outputs/demo)"
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=1,
        help="threads of torch (default: 1, about ten minutes)",
    )
    parser.add_argument(
        "--steps", type=positive, help="at most this many steps per model, to try the script out"
    )
    parser.add_argument(
        "--dev", type=positive, default=60, help="development items per category (default: 60)"
    )
    parser.add_argument(
        "--base",
        default=str(demo.path(demo.BASE)),
        help="trajectory: model (default: base)",
    )
    parser.add_argument(
        "--seed", type=int, default=11, help="trajectory: seed of the data (default: 11)"
    )
    return parser


def _items(options: argparse.Namespace) -> None:
    target = options.out / "items.jsonl"
    print(f"{items.write_items(target)} items in {target}")


def _models(options: argparse.Namespace) -> None:
    import torch

    from examples.demo.stages import STAGES
    from examples.demo.train import train_family

    torch.set_num_threads(options.threads)
    limit = options.steps
    stages = [
        dataclasses.replace(stage, steps=min(stage.steps, limit or stage.steps)) for stage in STAGES
    ]
    train_family(options.out, stages, options.dev)
    print(f"the demo is in {options.out}")


def _trajectory(options: argparse.Namespace) -> None:
    import torch

    from examples.demo.trajectory import STEPS, make

    torch.set_num_threads(options.threads)
    print(make(options.base, options.out, options.steps or STEPS, options.seed))


if __name__ == "__main__":
    sys.exit(main())
