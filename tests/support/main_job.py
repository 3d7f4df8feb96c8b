"""Differences of a run of the main job to the figures kept in `tests/data/main_job`.

    python -m tests.support.main_job RUN_DIR [STORE]

Compares what no refactoring may change: recipe, selection, splits, rows, comparisons, verdict and, with STORE, every
score of every model. What a run costs, what its search says and its analyses are left out. Exit status 1: they differ.
"""

from __future__ import annotations

import gzip
import json
import math
import sqlite3
import sys
from pathlib import Path
from typing import Any

KEPT = Path(__file__).resolve().parents[1] / "data" / "main_job"
PARTS = (
    "recipe",
    "selection",
    "splits",
    "items",
    "objective",
    "rows",
    "comparisons",
    "losses",
    "verdict",
    "variance",
)


def same(a: Any, b: Any) -> bool:
    """Equality with numbers within 1e-9, since sums may be taken in another order."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, abs_tol=1e-9)
    return bool(a == b)


def scores(store: Path) -> dict[tuple[str, str], float]:
    """{(recipe's id, item): score}."""
    query = (
        "SELECT substr(soups.fingerprint, 1, 12), items.name, score FROM scores "
        "JOIN soups ON soups.id = soup JOIN items ON items.id = item"
    )
    with sqlite3.connect(f"file:{store.absolute()}?mode=ro", uri=True) as db:
        return {(recipe, item): score for recipe, item, score in db.execute(query)}


def kept_scores() -> dict[tuple[str, str], float]:
    with gzip.open(KEPT / "store.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    return {(row["recipe"], row["item"]): row["score"] for row in rows}


def main() -> int:
    kept = json.loads((KEPT / "report.json").read_text())
    found = json.loads((Path(sys.argv[1]) / "report.json").read_text())
    faults = [part for part in PARTS if not same(kept.get(part), found.get(part))]
    for part in PARTS:
        print("DIFFERS" if part in faults else "equal  ", part)
    if len(sys.argv) > 2:
        wanted = kept_scores()
        there = scores(Path(sys.argv[2]))
        common = wanted.keys() & there.keys()
        unlike = sum(wanted[key] != there[key] for key in common)
        print(
            f"{len(common):,} scores in common ({len(wanted):,} kept, {len(there):,} found), {unlike} differ"
        )
        faults += ["scores"] * bool(unlike)
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
