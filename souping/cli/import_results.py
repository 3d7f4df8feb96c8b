"""`python -m souping.cli.import_results PATH... [OVERRIDE...]`: take answers of single models into the store.

PATH is what `lm_eval --log_samples --output_path` wrote, or a result folder of BFCL (its score folder may lie beside
it). The overrides are those of the run that shall find the answers: `+experiment=mgsm pool.candidates='[A,B]'`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from souping.cli.config import build, build_also, check, compose
from souping.cli.errors import composition, tell
from souping.core.files import expanded
from souping.core.protocols import Evaluator
from souping.core.text import nearest, safe
from souping.core.types import UserError
from souping.pipeline.import_results import AskedBenchmark, ImportRow, Request, adopt, totals
from souping.pipeline.models import OpenPool
from souping.pipeline.settings import items_of
from souping.pipeline.side_benchmarks import sides
from souping.pipeline.store import Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 (a fault of ours), or 2 where something was refused, or nothing was there to take."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        paths, overrides = split(options.words)
        rows = run(options, paths, overrides)
    except Exception as error:  # one place knows what is whose
        told, code = tell(error)
        print(told, file=sys.stderr)
        return code
    show(rows, written=not options.dry_run)
    count = totals(rows)
    return 2 if count["refused"] or not count["adopted"] + count["present"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m souping.cli.import_results", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="PATH | OVERRIDE", help="files or folders, and the run's overrides")
    parser.add_argument(
        "--candidate", action="append", default=[], metavar="NAME=MODEL", help="what the files call MODEL is NAME"
    )
    parser.add_argument("--store", metavar="FILE", help="the results store (as store.path=FILE)")
    parser.add_argument(
        "--accept", action="append", default=[], metavar="KEY", help="take answers in spite of this mild difference"
    )
    parser.add_argument("--dry-run", action="store_true", help="check and show, write nothing")
    return parser


def split(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(paths, overrides): an override has a `=` or begins with `~`, and is no file.

    Raises:
        UserError: no path is there.
    """
    paths: list[Path] = []
    overrides: list[str] = []
    for word in words:
        here = Path(os.path.expanduser(word))  # `~key` takes a key out of the configuration
        is_override = re.match(r"(\+{0,2}[\w.@/-]+=|~\w)", word) and not here.exists()
        if is_override:
            overrides.append(word)
        else:
            paths.append(here)
    if not paths:
        raise UserError("no PATH: give what lm_eval --log_samples --output_path wrote, or a result folder of BFCL")
    return paths, overrides


def run(options: argparse.Namespace, paths: Sequence[Path], overrides: Sequence[str]) -> list[ImportRow]:
    """Compose the run as the command line would, and hold the files against it."""
    try:
        plain = compose(overrides)
    except Exception as error:
        raise composition(error) from error
    if options.store is not None:
        plain["store"]["path"] = options.store
        check(plain)
    parts = build(plain)
    own = _benchmarks(plain, parts)
    with Store(expanded(plain["store"]["path"], "store.path")) as store:
        pool = OpenPool(parts["pool"].resolve(), parts["merge"], store)
        request = Request(
            paths=paths,
            called=_called(options.candidate, pool.names),
            accept=frozenset(options.accept),
            write=not options.dry_run,
        )
        return adopt(pool, store, own, request)


def _benchmarks(plain: Mapping[str, Any], parts: Mapping[str, Any]) -> list[AskedBenchmark]:
    """The run's benchmark, and those of `also`, as far as their evaluators' tools leave files."""
    evaluator: Evaluator = parts["evaluator"]
    asked = [AskedBenchmark(evaluator=side.evaluator, items=side.items) for side in sides(build_also(plain), evaluator)]
    if evaluator.reads_results:
        benchmark = items_of(evaluator, parts["benchmark"])
        asked.insert(0, AskedBenchmark(evaluator=evaluator, items=benchmark.items()))
    asked = [one for one in asked if one.evaluator.reads_results]
    if not asked:
        raise UserError("evaluator=lm_eval and evaluator=bfcl leave files to adopt; this run has neither")
    return asked


def _called(pairs: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """{name in the files: candidate}."""
    called = {}
    for pair in pairs:
        name, sign, model = pair.partition("=")
        if not sign or not model:
            raise UserError(f"--candidate {pair}: write NAME=MODEL, MODEL as the files call it")
        if name not in names:
            raise UserError(f"--candidate {pair}: {name} is not a candidate ({', '.join(names)}){nearest(name, names)}")
        called[model] = name
    return called


def show(rows: Sequence[ImportRow], written: bool) -> None:
    """The table of what was taken, and the lines of what was not."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from souping.report.terminal import output_console, print_table

    console = output_console()
    table = Table(box=SIMPLE_HEAD)
    for name in ("candidate", "task", "adopted" if written else "adoptable", "there already", "skipped"):
        table.add_column(name, justify="right" if name in ("adopted", "adoptable", "there already") else "left")
    for row in rows:
        why = "refused" if row.refused else ", ".join(f"{count} {reason}" for reason, count in row.skipped.items())
        cells = (row.candidate, row.task, str(row.adopted), str(row.present), why)
        table.add_row(*(Text(safe(cell)) for cell in cells))
    print_table(console, table)
    for note in dict.fromkeys(note for row in rows for note in row.unchecked):
        console.print(safe(f"  not checked: {note}"), markup=False, soft_wrap=True)
    for key in sorted({key for row in rows for key in row.accepted}):
        console.print(safe(f"  accepted: {key} differs"), markup=False)
    for line in refusals(rows):
        print(safe(line), file=sys.stderr)


def refusals(rows: Sequence[ImportRow]) -> list[str]:
    """One line for each reason and place, however many tasks it holds for."""
    places: dict[tuple[Path, str], list[str]] = {}
    for row in rows:
        if row.refused:
            own = row.refused.replace(f" of {row.task} ", " of the task ")
            places.setdefault((row.source.parent, own), []).append(row.task)
    lines = []
    for (place, why), tasks in places.items():
        which = (
            f"{', '.join(tasks[:3])}{f' and {len(tasks) - 3} more' if len(tasks) > 3 else ''}: "
            if tasks != ["-"]
            else ""
        )
        lines.append(f"{place}: {which}{why}")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
