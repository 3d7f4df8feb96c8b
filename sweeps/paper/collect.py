"""A run beside the paper's table: `python collect.py REPORT_JSON BENCHMARK SCALE`, or `... table3` or `... flores36`.

Markdown on standard output: the printed score, the run's with its 95 % interval, and whether the interval holds the
printed one. Rows of the run that the paper does not print have a dash, and the other way round.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from souping.core.json_fields import entries, finite_number, part
from souping.core.text import DASH
from souping.core.types import Json
from souping.core.unit import POINTS
from souping.paper.published import published, totals
from souping.report.format import clean, percent
from souping.report.render import markdown_table
from souping.report.tables import TableGrid, grid

ROLES = {"soup": "soce", "uniform_all": "uniform_all", "uniform_selected": "uniform_selected"}
"""{a row's kind: its name in the paper's tables}."""


def totals_table(report: Mapping[str, Json], printed: Mapping[str, float]) -> TableGrid:
    """Every model by its objective on the test split."""
    lines = []
    for row in (row for row in entries(report, "rows") if row.get("kind") != "best_candidate"):
        key = ROLES.get(str(row.get("kind")), str(row.get("name")))
        lines.append((clean(row.get("name")), *beside(printed.get(key), part(row, "objective"))))
    shown = {line[0] for line in lines} | {"soce"}
    lines += [
        (name, f"{value:.2f}", DASH, DASH) for name, value in printed.items() if name not in shown
    ]
    return grid(("model", "the paper %", "here % (95 %)", "the paper's lies"), lines, left=(0, 3))


def beside(printed: float | None, score: Mapping[str, Json]) -> tuple[str, str, str]:
    low, high = finite_number(score.get("low")), finite_number(score.get("high"))
    around = f"{percent(score.get('mean'), 2)} ({POINTS.interval(low, high)})"
    if printed is None or low is None or high is None:
        return DASH, around, DASH
    where = (
        "inside" if low <= printed / 100 <= high else "below" if printed / 100 < low else "above"
    )
    return f"{printed:.2f}", around, where


def categories_table(report: Mapping[str, Json], rows: Sequence[Mapping[str, str]]) -> TableGrid:
    """The soup's categories beside the paper's soup, where both have them."""
    (paper,) = rows
    soup = next(row for row in entries(report, "rows") if row.get("kind") == "soup")
    lines = [
        (
            clean(name),
            *beside(
                float(paper[name]) if name in paper else None, part(part(soup, "scores"), name)
            ),
        )
        for name in part(soup, "scores")
    ]
    return grid(
        ("direction", "SoCE of the paper", "here (95 %)", "the paper's lies"), lines, left=(0, 3)
    )


def others_table(report: Mapping[str, Json]) -> TableGrid:
    """The other benchmarks, a line a model: the run's, below them the paper's; a dash where one has no score."""
    measured = entries(report, "extra_benchmarks")
    names = dict.fromkeys(
        clean(row.get("name")) for entry in measured for row in entries(entry, "rows")
    )
    by_name = {clean(entry.get("name")): entry for entry in measured}
    paper = published("table3.csv")
    columns = [key for key in paper[0] if key not in ("model", "bfcl_v3")]
    benchmarks = tuple(dict.fromkeys([*(clean(entry.get("name")) for entry in measured), *columns]))
    theirs = [
        (f"the paper's {row['model']}", *(row.get(name, DASH) for name in benchmarks))
        for row in paper
    ]
    ours = [
        (name, *(_of(by_name.get(benchmark, {}), name) for benchmark in benchmarks))
        for name in names
    ]
    return grid(("model", *benchmarks), [*ours, *theirs])


def _of(entry: Mapping[str, Json], name: str) -> str:
    row = next((row for row in entries(entry, "rows") if clean(row.get("name")) == name), {})
    return percent(part(row, "objective").get("mean"), 2)


def main(report_json: str, table: Sequence[str]) -> str:
    report = json.loads(Path(report_json).read_text(encoding="utf-8"))
    if table == ["table3"]:
        return markdown_table(others_table(report))
    if table == ["flores36"]:
        return markdown_table(categories_table(report, published("flores36_soce.csv")))
    benchmark, scale = table
    printed = {
        name: value for name, value in totals(benchmark, scale).items() if name != "best candidate"
    }
    return markdown_table(totals_table(report, printed))


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2:]))
