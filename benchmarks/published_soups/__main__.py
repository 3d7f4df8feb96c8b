"""What two published collections of models and their soups say about when a soup helps.

    python -m benchmarks.published_soups RESULTS.csv CLIP_FOLDER [--out PAGE.md] [--data FOLDER]

`RESULTS.csv` is the file that merge_to_learn.py names, `CLIP_FOLDER` holds the five that clip_soups.py names, each with
its repository, commit and licence. `--out` gets what is printed, `--data` two CSV files to draw from.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.published_soups.clip_soups import ClipSoups, read_clip
from benchmarks.published_soups.gains import Gains, gains, sparse_merges, transfers
from benchmarks.published_soups.merge_to_learn import (
    LADDERS,
    METHODS,
    Row,
    merge_path,
    merge_paths,
    read_models,
    with_compliance,
)
from benchmarks.published_soups.page import SAFETY, Results, page
from benchmarks.published_soups.recorded_search import (
    SearchedPath,
    searched_cliffs,
    searched_paths,
)
from souping.core.types import UserError

ITEMS = (100, 400)
DRAWS = 4
CLIFFS = 40


def measured(
    models: Mapping[str, Row], clip: ClipSoups, items: Sequence[int], draws: int, date: str
) -> Results:
    """Everything on the page."""
    paths = list(merge_paths(models))
    (safety,) = [ladder for ladder in LADDERS if ladder.name == SAFETY]
    compliance = [
        gains(merge_path(models, safety, amount, method, with_compliance))
        for amount in safety.amounts
        for method in METHODS
    ]
    searched: list[SearchedPath] = []
    for count in items:
        searched.extend(searched_paths(paths, count, draws))
    return Results(
        gains=[gains(path) for path in paths],
        compliance=compliance,
        transfers=transfers(models),
        sparse=sparse_merges(models),
        searched=searched,
        cliffs={count: searched_cliffs(count, CLIFFS) for count in items},
        clip=clip,
        draws=draws,
        date=date,
    )


def write_gains(path: Path, found: Iterable[Gains]) -> None:
    """One line per path: ladder, amount, method and the gains."""
    header = [
        "ladder",
        "amount",
        "method",
        "best_weight",
        "best",
        "by_neighbours",
        "half",
        "router",
    ]
    rows = []
    for gain in found:
        numbers = (gain.best_weight, gain.best, gain.by_neighbours, gain.half, gain.router)
        names = [gain.path.ladder.name, gain.path.amount, gain.path.method.name]
        rows.append([*names, *(round(number, 3) for number in numbers)])
    _write(path, [header, *rows])


def write_clip(path: Path, clip: ClipSoups) -> None:
    """Mean over the tests of each model and soup, by kind."""
    rows: list[list[object]] = [["kind", "name", "mean"]]
    for number, model in enumerate(clip.models):
        rows.append(["model", f"model_{number}", round(float(model.mean()), 3)])
    rows.append(["router", "router", round(float(clip.router.mean()), 3)])
    for name, soup in clip.soups.items():
        rows.append(["soup", name, round(float(soup.mean()), 3)])
    _write(path, rows)


def _write(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published_soups",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, metavar="RESULTS.csv")
    parser.add_argument("clip", type=Path, metavar="CLIP_FOLDER")
    parser.add_argument(
        "--items", type=int, nargs="*", default=ITEMS, help="items of a category; none: no searches"
    )
    parser.add_argument("--draws", type=int, default=DRAWS, help="searches of each path")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--date", default=str(datetime.date.today()))
    given = parser.parse_args(words)
    start = time.process_time()
    try:
        models = read_models(given.results)
        clip = read_clip(given.clip)
        results = measured(models, clip, given.items, given.draws, given.date)
    except (UserError, OSError) as error:
        parser.error(str(error))
    text = page(results)
    print(text, end="")
    print(f"{time.process_time() - start:.0f} CPU seconds")
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    if given.data:
        given.data.mkdir(parents=True, exist_ok=True)
        write_gains(given.data / "published-soups-gains.csv", results.gains)
        write_clip(given.data / "published-soups-clip.csv", results.clip)


if __name__ == "__main__":
    main()
