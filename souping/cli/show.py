"""`souping show`: answers of a run's models side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

from souping.cli.commands import parser_of
from souping.cli.listing import named_runs, runs_below
from souping.core.arguments import Arguments, positive
from souping.core.fields import pick
from souping.core.reading import read
from souping.core.text import safe
from souping.core.types import SPLITS, UserError
from souping.core.unit import POINTS, Unit
from souping.report.content import Report
from souping.report.render import output_console
from souping.report.run_files import read_report, read_selection
from souping.report.samples import SAMPLES_FILE, Sample, changed_items, read_samples, show_sample

SHOW_HELP = """Without --fixed or --broke every item of the split counts. The items of the test split that are
printed are recorded in its store."""


def show(arguments: Sequence[str]) -> None:
    """Print the answers of a run side by side. Answers to test items count as viewed in the run's store."""
    options = _parser().parse_args(arguments)
    run_dir = _run_with_answers(options.run_dir)
    samples = [read(Sample, row) for row in read_samples(run_dir / SAMPLES_FILE)]
    report = None
    if (run_dir / "report.json").is_file():
        report = read_report(run_dir / "report.json")
        unit = report.unit
    else:
        unit = _unit_of_selection(run_dir / "selection.json")
    split = options.split or _reached(samples)
    rows = [sample for sample in samples if sample.split == split]
    if options.item:
        pick(options.item, [row.item for row in rows], "--item")
        rows = [row for row in rows if row.item == options.item]
    if options.category:
        pick(options.category, dict.fromkeys(row.category for row in rows), "--category")
        rows = [row for row in rows if row.category == options.category]
    names = _names(options.models, rows, report)
    what = "items"
    if options.fixed or options.broke:
        if len(names) < 2:
            raise UserError("--fixed and --broke compare two models: name them, --models A,B")
        rows = list(changed_items(unit, rows, names[0], names[-1], better=options.fixed))
        comparison = "better" if options.fixed else "worse"
        what = f"items that {names[-1]} answers {comparison} than {names[0]}"
    if split == "test" and report and not report.dry_run:
        _note(run_dir, options.store, report, rows[: options.n])
    _show_samples(unit, rows, names, options.n, what)


def _unit_of_selection(path: Path) -> Unit:
    """The unit of a run that ended before its report; points if it has no selection.json either."""
    if not path.is_file():
        return POINTS
    return read_selection(path).unit


def _run_with_answers(named: Sequence[str]) -> Path:
    """The last of the named runs, or of all below outputs/, that has answers; the last one if none has any."""
    folders = [*chain.from_iterable(map(named_runs, named))] or runs_below()
    # Without any answers, reading those of the last run fails with an error.
    run_dir = folders[-1]
    for folder in folders:
        if (folder / SAMPLES_FILE).is_file():
            run_dir = folder
    if len(folders) > 1:
        print(f"{run_dir}: the last of {len(folders)} folders that has answers")
    return run_dir


def _reached(samples: Sequence[Sample]) -> str:
    """The last split with a score. Later ones may have answers without scores, which other runs left in the store."""
    scored = set()
    for sample in samples:
        if any(answers.score is not None for answers in sample.models.values()):
            scored.add(sample.split)
    return next((split for split in reversed(SPLITS) if split in scored), "select")


def _parser() -> Arguments:
    parser = parser_of("show", SHOW_HELP)
    parser.add_argument(
        "run_dir",
        nargs="*",
        metavar="RUN",
        help="folder or name in `souping list`; of several (outputs/mine/*) the last with answers; "
        "without one the newest below outputs/",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--fixed",
        action="store_true",
        help="items that the soup answers better than the best candidate",
    )
    which.add_argument("--broke", action="store_true", help="items that it answers worse")
    parser.add_argument("--category", metavar="C", help="items of this category")
    parser.add_argument("--item", metavar="ID", help="this item")
    parser.add_argument(
        "--models", metavar="A,B", help="these models; the last stands for the soup"
    )
    parser.add_argument(
        "--split",
        choices=("select", "search", "test"),
        help="default: the last one that was scored",
    )
    parser.add_argument(
        "-n", type=positive, default=10, metavar="N", help="at most so many items (10)"
    )
    parser.add_argument(
        "--store", metavar="FILE", help="the run's results store, where it is not found"
    )
    return parser


def _names(models: str | None, samples: Sequence[Sample], report: Report | None) -> list[str]:
    """Models that are shown: the named ones or, if none is named, the best candidate and the soup, or else all."""
    known = dict[str, None]()
    for sample in samples:
        known |= dict.fromkeys(sample.models)
    if models:
        return [pick(name.strip(), known, "--models") for name in models.split(",")]
    best = report.row("best_candidate") if report else None
    if best and "soup" in known:
        return [best.name, "soup"]
    return list(known)


def _note(run_dir: Path, store: str | None, report: Report, samples: Sequence[Sample]) -> None:
    """Write to the store that answers to these items of the test split were looked at."""
    from souping.answers.counted_looks import CountedLooks
    from souping.answers.store import Store
    from souping.comparison.counted_claims import stores_of

    prompts = [sample.prompt_hash for sample in samples]
    paths = stores_of(run_dir, store)
    if not paths:
        print(
            "warning: the run's store is not here (--store FILE): this look is noted nowhere",
            file=sys.stderr,
        )
    elif prompts:
        recipe = report.recipe.id if report.recipe else ""
        with Store(paths[0]) as results:
            CountedLooks(results).note_view(recipe, prompts)


def _show_samples(
    unit: Unit, samples: Sequence[Sample], names: Sequence[str], limit: int, what: str
) -> None:
    """Print at most `limit` of the samples, then the number of all; `what` is the plural of what they are."""
    console = output_console()
    for sample in islice(samples, limit):
        show_sample(unit, console, sample, names)
    line = f"{len(samples):,} {what}"
    if limit < len(samples):
        line += f", {limit} shown (-n N)"
    console.print(safe(line), markup=False)
