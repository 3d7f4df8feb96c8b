"""When does a soup help? Families of tiny models, trained, merged and tested.

    python -m benchmarks.soup_families train exploratory
    python -m benchmarks.soup_families train confirmatory   # only as benchmarks/preregistration.md says
    python -m benchmarks.soup_families train larger
    python -m benchmarks.soup_families report

Training takes one core, skips families that have a file, and may be stopped at any time. The report is computed from
these files.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.leaderboard_data import Board, bfcl_v1, mmlu_pro, paper_boards
from benchmarks.soup_families.design import Family, confirmatory, exploratory, larger
from benchmarks.soup_families.matrices import FOLDER, path_of, save
from benchmarks.soup_families.preregistration import registered
from souping.core.types import UserError

if TYPE_CHECKING:
    from benchmarks.soup_families.study import Row

LEADERBOARDS = ("mmlu-pro", "bfcl-v1")


def train(families: Sequence[Family], folder: Path) -> None:
    """Make the files of families that have none."""
    from benchmarks.soup_families.family import made

    for family in families:
        if path_of(family.name, folder).exists():
            continue
        print(f"{time.strftime('%H:%M:%S')} {family.name}: trains", flush=True)
        matrix = made(family)
        path = save(matrix, folder)
        facts = matrix.facts
        print(
            f"{time.strftime('%H:%M:%S')} {family.name}: trained in {facts.train_seconds:.0f} CPU seconds, "
            f"{len(matrix.answers)} models scored in {facts.score_seconds:.0f}, {path.stat().st_size:,} bytes",
            flush=True,
        )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("part", choices=("exploratory", "confirmatory", "larger"))
    reporting = commands.add_parser("report")
    reporting.add_argument("--out", type=Path, help="also write the report to this file")
    reporting.add_argument("--figures", type=Path, help="also draw pictures into this folder")
    reporting.add_argument("--date", default=str(datetime.date.today()))
    for board in LEADERBOARDS:
        reporting.add_argument(f"--{board}", type=Path, help="as for benchmarks.leaderboards")
    for command in (training, reporting):
        command.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args(words)
    try:
        if args.command == "train":
            train(families_of(args.part), args.folder)
        else:
            all_rows = families_of_folder(args.folder)
            show(all_rows, args.date, args.out, leaderboards(args.mmlu_pro, args.bfcl_v1))
            if args.figures is not None:
                draw(all_rows, args.figures)
    except UserError as error:
        parser.error(str(error))


def families_of(part: str) -> list[Family]:
    """The families of a part.

    Raises:
        UserError: they need the preregistration, and it is not committed as it is.
    """
    if part == "exploratory":
        return exploratory()
    page = registered()
    if part == "confirmatory":
        return confirmatory(page)
    return larger(page)


def leaderboards(mmlu_pro_path: Path | None, bfcl_v1_path: Path | None) -> list[Board]:
    """The paper's tables, and the leaderboards whose data are here."""
    boards = paper_boards()
    if mmlu_pro_path is not None:
        boards.append(mmlu_pro(mmlu_pro_path)[0])
    if bfcl_v1_path is not None:
        boards.append(bfcl_v1(bfcl_v1_path)[0])
    return boards


def families_of_folder(folder: Path) -> list[Row]:
    """Values of all families that have a file.

    Raises:
        UserError: there is none.
    """
    from benchmarks.soup_families.study import rows

    all_rows = rows(folder)
    if not all_rows:
        raise UserError(f"{folder} has no families: train some")
    return all_rows


def show(all_rows: Sequence[Row], date: str, out: Path | None, boards: Sequence[Board]) -> None:
    """Print the report, and write it to `out` if that is given."""
    from benchmarks.soup_families.report import page

    text = page(all_rows, boards, date)
    print(text, end="")
    if out is not None:
        out.write_text(text, encoding="utf-8")


def draw(all_rows: Sequence[Row], folder: Path) -> None:
    """Write the pictures of the confirmatory families as PNG.

    Raises:
        UserError: some of these families have no file yet.
    """
    from benchmarks.soup_families.figures import drawings
    from benchmarks.soup_families.report import CONFIRMATORY
    from benchmarks.soup_families.study import usable

    if sum(row.part == "confirmatory" for row in all_rows) < CONFIRMATORY:
        raise UserError(f"--figures needs all {CONFIRMATORY} confirmatory families")
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in drawings(usable(all_rows, "confirmatory")):
        (folder / f"evidence-{drawing.name}.png").write_bytes(drawing.png())


if __name__ == "__main__":
    main()
