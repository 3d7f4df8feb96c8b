"""The report's table of what a soup is up against."""

from __future__ import annotations

from souping.core.types import entries, number, part
from souping.core.unit import unit
from souping.report.format import count, points, score
from souping.report.tables import Report, Section, grid


def alternatives(report: Report) -> Section | None:
    """Score and cost at serving time of the soup, a router and an oracle; None without a report fold."""
    rows_of_soup = [row for row in entries(report, "rows") if row.get("kind") == "soup"]
    soup = number(part(rows_of_soup[0], "objective").get("mean")) if rows_of_soup else None
    found = {name: part(report, name) for name in ("router", "oracle")}
    if soup is None or not found["router"]:
        return None
    labels = {"router": "the best ingredient of each category", "oracle": "the best answer to each item"}
    rows = [["soup", score(soup), "1", "1"]]
    for name, one in found.items():
        cost = [count(one.get("models")), count(one.get("answers"))]
        rows.append([f"{name}: {labels[name]}", score(one.get("score")), *cost])
    optimism = points(report.get("optimism"), sign=True)
    lines = (
        f"The soup's optimism, its score on the search fold minus that on the report fold, is {optimism}.",
        "The router chose its models on the select fold. The oracle knows the right answers, so it is only a bound.",
    )
    header = ("", unit().heading("score"), "models in memory", "answers per request")
    return Section("What the soup is up against", lines, grids=(grid(header, rows),))
