"""`python -m souping show RUN_DIR`: answers of a run's models side by side, from its samples.jsonl.gz.

Without --fixed or --broke every item of the fold is shown. Looking at items of the report fold
is recorded in the ledger of its store.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from souping.core.fields import pick
from souping.core.files import expanded
from souping.core.text import positive, safe
from souping.core.types import FOLDS, Json, UserError, entries, part
from souping.report.files import read_report
from souping.report.render import changed, read_samples, score_of, show_sample
from souping.report.tables import Row

FILE = "samples.jsonl.gz"


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    folders = [expanded(folder) for folder in options.run_dir]
    run_dir = next((folder for folder in reversed(folders) if (folder / FILE).is_file()), folders[-1])
    if len(folders) > 1:
        print(f"{run_dir}: the last of {len(folders)} folders that has answers")
    samples = list(read_samples(run_dir / FILE))
    report = read_report(run_dir / "report.json") if (run_dir / "report.json").is_file() else {}
    fold = options.fold or _reached(samples)
    rows = [sample for sample in samples if sample.get("fold") == fold]
    for key in ("item", "category"):
        if wanted := vars(options)[key]:
            pick(wanted, dict.fromkeys(str(row.get(key)) for row in rows), f"--{key}")
            rows = [row for row in rows if row.get(key) == wanted]
    names, what = _names(options.models, rows, report), "items"
    if options.fixed or options.broke:
        if len(names) < 2:
            raise UserError("--fixed and --broke compare two models: name them, --models A,B")
        rows = list(changed(rows, names[0], names[-1], better=options.fixed))
        what = f"items that {names[-1]} answers {'better' if options.fixed else 'worse'} than {names[0]}"
    if fold == "report" and report and not report.get("limit"):
        _note(run_dir, options.store, report, rows)
    _show(rows, names, options.limit, what)


def _reached(samples: Sequence[Row]) -> str:
    """The last fold that the run scored; other runs may have left answers to later ones."""
    scored = {
        str(sample.get("fold"))
        for sample in samples
        if any(score_of(sample, name) is not None for name in part(sample, "models"))
    }
    return next((fold for fold in reversed(FOLDS) if fold in scored), "select")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m souping show", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "run_dir", nargs="+", metavar="RUN_DIR", help="of several (outputs/mine/*) the last with answers"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--fixed", action="store_true", help="items that the soup answers better than the best candidate"
    )
    which.add_argument("--broke", action="store_true", help="items that it answers worse")
    parser.add_argument("--category", metavar="C", help="items of this category")
    parser.add_argument("--item", metavar="ID", help="this item")
    parser.add_argument("--models", metavar="A,B", help="these models; the last stands for the soup")
    parser.add_argument("--fold", choices=("select", "search", "report"), help="default: the last one that was scored")
    parser.add_argument("--limit", type=positive, default=10, metavar="N", help="at most so many items (10)")
    parser.add_argument("--store", metavar="FILE", help="the run's results store, where it is not found")
    return parser


def _names(given: str | None, samples: Sequence[Row], report: Mapping[str, Json]) -> list[str]:
    """Models that are shown: those that were named, else the best candidate and the soup, else all."""
    known = list(dict.fromkeys(name for sample in samples for name in part(sample, "models")))
    if given:
        return [pick(name.strip(), known, "--models") for name in given.split(",")]
    best = [str(row.get("name")) for row in entries(report, "rows") if row.get("kind") == "best_single"]
    return [*best[:1], "soup"] if best and "soup" in known else known


def _note(run_dir: Path, store: str | None, report: Mapping[str, Json], samples: Sequence[Row]) -> None:
    """Write to the ledger that answers to these items of the report fold were looked at."""
    from souping.pipeline.ledger import Ledger
    from souping.pipeline.store import Store

    shown = [str(sample.get("prompt_hash")) for sample in samples]
    path = Path(store) if store else _store(run_dir)
    if store and path is not None and not path.is_file():
        raise UserError(f"--store {store}: there is no such file")
    if path is None:
        print("warning: the run's store is not here (--store FILE): this look is noted nowhere", file=sys.stderr)
    elif shown:
        with Store(path) as ledger:
            Ledger(ledger).note_view(str(part(report, "recipe").get("id")), shown)


def _store(run_dir: Path) -> Path | None:
    """The run's store: where its configuration says, seen from here or from a folder above the run's."""
    from souping.cli.finished import read_config

    config = run_dir / "config.yaml"
    if not config.is_file():
        return None
    path = expanded(str(read_config(config).store.path), f"{config}: store.path")
    places = [path, *(folder / path for folder in run_dir.absolute().parents)]
    return next((place for place in places if place.is_file()), None)


def _show(samples: Sequence[Row], names: Sequence[str], limit: int, what: str) -> None:
    from souping.report.render import output_console

    console = output_console()
    for sample in islice(samples, limit):
        show_sample(console, sample, names)
    shown = min(limit, len(samples))
    more = "" if shown == len(samples) else f", {shown} shown (--limit N)"
    console.print(safe(f"{len(samples):,} {what}{more}"), markup=False)
