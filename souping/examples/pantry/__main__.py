"""`python -m souping.examples.pantry`: train the family again, or write its items again."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from souping.core.text import positive
from souping.core.types import UserError
from souping.examples.pantry import HERE, items


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _items(options) if options.what == "items" else _models(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m souping.examples.pantry", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("models", "items"), default="models", help="default: models")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: the package's own)")
    parser.add_argument("--threads", type=positive, default=1, help="threads of torch (default: 1, about ten minutes)")
    parser.add_argument("--steps", type=positive, help="stop each stage after so many steps, to try the script out")
    parser.add_argument("--dev", type=positive, default=60, help="development items a category (default: 60)")
    return parser


def _items(options: argparse.Namespace) -> int:
    target = options.out / "items.jsonl"
    print(f"{items.write_items(target)} items in {target}")
    return 0


def _models(options: argparse.Namespace) -> int:
    import torch

    from souping.examples.pantry.recipes import STAGES
    from souping.examples.pantry.train import train_family

    torch.set_num_threads(options.threads)
    limit = options.steps
    stages = [dataclasses.replace(s, steps=min(s.steps, limit or s.steps)) for s in STAGES]
    train_family(options.out, stages, options.dev)
    print(f"the pantry is in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
