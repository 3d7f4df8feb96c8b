"""Published figures of arXiv 2511.13254v1, and those that follow from them."""

from __future__ import annotations

import csv
from pathlib import Path

DATA = Path(__file__).resolve().parent


def published(name: str) -> list[dict[str, str]]:
    """The rows of a CSV of published figures."""
    with (DATA / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def results(benchmark: str, scale: str) -> dict[str, dict[str, str]]:
    """{row: its line of results.csv}."""
    rows = published("results.csv")
    return {row["row"]: row for row in rows if (row["benchmark"], row["scale"]) == (benchmark, scale)}


def totals(benchmark: str, scale: str) -> dict[str, float]:
    """{row: percent} of a benchmark in results.csv, with its `best candidate`."""
    rows = results(benchmark, scale)
    single = [float(row["score"]) for row in rows.values() if row["role"] in ("ingredient", "candidate")]
    return {**{name: float(row["score"]) for name, row in rows.items()}, "best candidate": max(single)}
