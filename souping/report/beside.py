"""What stands beside the report's own numbers: the baseline gate, and the benchmarks that nothing was optimised for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from souping.report import texts
from souping.report.tables import Cell, Grid, Report, entries, grid, part


def gate(report: Report) -> Grid:
    """A line a figure that was expected of a single model, those that missed stressed."""
    checks = entries(part(report, "gate"), "checks")
    lines = [
        (
            texts.clean(check.get("candidate")),
            texts.clean(check.get("category")) or "objective",
            texts.percent(check.get("expected")),
            texts.percent(check.get("measured")),
            texts.interval(check.get("low"), check.get("high")),
            texts.count(check.get("n")),
            texts.clean(check.get("verdict")),
        )
        for check in checks
    ]
    header = ("candidate", "of", "expected %", "measured %", "allowed", "items", "verdict")
    made = grid(header, lines, left=(0, 1, 6))
    missed = frozenset(i for i, check in enumerate(checks) if check.get("verdict") != "as expected")
    return Grid(header=made.header, rows=made.rows, left=made.left, strong=missed)


def overview(report: Report) -> Grid:
    """A line a model, a column a benchmark: the objective with its interval, the soup last."""
    found = entries(report, "also")
    names = list(dict.fromkeys(texts.clean(row.get("name")) for entry in found for row in entries(entry, "rows")))
    lines: list[tuple[str | Cell, ...]] = [(name, *(_score(entry, name) for entry in found)) for name in names]
    made = grid(("model", *(texts.clean(entry.get("name")) for entry in found)), lines)
    return Grid(header=made.header, rows=made.rows, strong=frozenset({names.index("soup")} if "soup" in names else ()))


def _score(entry: Mapping[str, Any], name: str) -> Cell:
    score = next((row.get("objective") for row in entries(entry, "rows") if texts.clean(row.get("name")) == name), None)
    found = score if isinstance(score, Mapping) else {}
    return Cell(texts.percent(found.get("mean")), texts.interval(found.get("low"), found.get("high")))


def differences(report: Report) -> Grid:
    """The soup's paired difference to each ingredient on each benchmark; what the soup lost is stressed."""
    pairs = [(entry, found) for entry in entries(report, "also") for found in entries(entry, "comparisons")]
    lines = [
        (
            texts.clean(entry.get("name")),
            f"soup {texts.minus('-')} {texts.clean(found.get('b'))}",
            *_figures(found),
            f"{texts.count(found.get('n'))} / {texts.count(found.get('groups'))}",
            texts.clean(found.get("verdict")),
        )
        for entry, found in pairs
    ]
    made = grid(("benchmark", "pair", *FIGURES, "items / groups", "the soup is"), lines, left=(0, 1, 7))
    lost = frozenset(i for i, (_, found) in enumerate(pairs) if found.get("verdict") == "lower")
    return Grid(header=made.header, rows=made.rows, left=made.left, strong=lost)


FIGURES = ("difference", "95 % interval", "p", "p (Holm)")


def _figures(found: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        texts.percent(found.get("difference"), sign=True),
        texts.interval(found.get("low"), found.get("high"), sign=True),
        texts.p_value(found.get("p_value")),
        texts.p_value(found.get("p_holm")),
    )


def narrow(report: Report) -> Grid:
    """The same for a terminal: a line a model and benchmark, as the table of the run's own benchmark has them."""
    lines: list[tuple[str, ...]] = []
    strong: set[int] = set()
    for entry in entries(report, "also"):
        pairs = {found.get("b"): found for found in entries(entry, "comparisons")}
        for row in reversed(entries(entry, "rows")):
            found, soup = pairs.get(row.get("name")), row.get("kind") == "soup"
            strong |= {len(lines)} if soup else set()
            against = ("", "") if soup or found is None else _against(found)
            name = texts.clean(entry.get("name")) if soup else ""
            lines.append((name, texts.clean(row.get("name")), texts.brackets(row.get("objective")), *against))
    made = grid(("also", "model", "score %", "soup minus it", "p (Holm)"), lines, left=(0, 1))
    return Grid(header=made.header, rows=made.rows, left=made.left, strong=frozenset(strong))


def _against(found: Mapping[str, Any]) -> tuple[str, str]:
    return texts.brackets(found, sign=True), texts.p_value(found.get("p_holm"))


def by_category(entry: Mapping[str, Any]) -> Grid:
    """One benchmark category by category: every model's mean, then the soup's difference to each ingredient."""
    rows, names = entries(entry, "rows"), list(part(entry, "coefficients"))
    pairs = {(found.get("category"), found.get("b")): found for found in entries(entry, "categories")}
    others = list(dict.fromkeys(found.get("b") for found in entries(entry, "categories")))
    lines: list[tuple[str | Cell, ...]] = [
        (
            texts.clean(name),
            *(_mean(part(row, "scores").get(name)) for row in rows),
            *(_difference(pairs.get((name, other), {})) for other in others),
        )
        for name in names
    ]
    heads = [texts.clean(row.get("name")) for row in rows]
    heads += [f"soup {texts.minus('-')} {texts.clean(other)}" for other in others]
    return grid(("category", *heads), lines)


def _mean(score: Any) -> Cell:
    found = score if isinstance(score, Mapping) else {}
    return Cell(texts.percent(found.get("mean")), texts.interval(found.get("low"), found.get("high")))


def _difference(found: Mapping[str, Any]) -> Cell:
    verdict = texts.clean(found.get("verdict"))
    mark = f"; {verdict}" if verdict in ("lower", "higher") else ""
    around = texts.interval(found.get("low"), found.get("high"), sign=True)
    return Cell(texts.percent(found.get("difference"), sign=True), f"{around}{mark}")


def sentences(report: Report) -> Iterator[str]:
    """What the soup lost, benchmark by benchmark; where nothing is shown, how much it may have lost all the same."""
    for entry in entries(report, "also"):
        name = texts.clean(entry.get("name"))
        if entry.get("shared"):
            seen = f"{texts.count(entry['shared'])} of its {texts.count(entry.get('items'))} prompts"
            yield f"{name}: {seen} stand in the run's own benchmark too, where the weights were chosen."
        lost = [found for found in entries(entry, "comparisons") if found.get("verdict") == "lower"]
        for found in lost:
            yield f"{name}: the soup is below {texts.clean(found.get('b'))} by {_points(found)}."
        worst = min(entries(entry, "comparisons"), key=lambda found: found.get("low") or 0.0, default=None)
        if not lost and worst is not None:
            least = texts.percent(worst.get("low"), sign=True)
            yield f"{name}: no regression shown; the intervals reach down to {least} points ({worst.get('b')})."
        parts = [found for found in entries(entry, "categories") if found.get("verdict") == "lower"]
        if parts and len(part(entry, "coefficients")) > 1:
            names = texts.listed([f"{f.get('category')} ({f.get('b')}, {_change(f)})" for f in parts])
            yield f"{name}: single categories in which the soup is below an ingredient: {names}."


def _points(found: Mapping[str, Any]) -> str:
    around = texts.interval(found.get("low"), found.get("high"), sign=True)
    size = texts.percent(-(found.get("difference") or 0.0))
    return f"{size} points (95 % interval of the difference {around}, p {texts.p_value(found.get('p_holm'))})"


def _change(found: Mapping[str, Any]) -> str:
    return texts.percent(found.get("difference"), sign=True)
