"""The report's tables as plain cells, so that Markdown, HTML and W&B show the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from souping.report import texts

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """What stands in a cell; `sub` is the smaller print beside it."""

    text: str
    sub: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: `rows` hold a cell a column, `strong` are the indices of rows to stress, `left` of left-set columns."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: frozenset[int] = frozenset()
    left: frozenset[int] = frozenset({0})
    note: str = ""


def grid(header: Sequence[str], rows: Iterable[Iterable[str | Cell]], left: Sequence[int] = (0,)) -> Grid:
    """A table of plain strings or cells, without stressed rows."""
    cells = tuple(tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows)
    return Grid(header=tuple(header), rows=cells, left=frozenset(left))


def part(report: Report, key: str) -> Mapping[str, Any]:
    """A section of the report, empty where the run did not get that far."""
    found = report.get(key)
    return found if isinstance(found, Mapping) else {}


def entries(report: Report, key: str) -> list[Mapping[str, Any]]:
    """A list of a report's section, empty where there is none."""
    return [entry for entry in report.get(key) or [] if isinstance(entry, Mapping)]


def categories(report: Report) -> list[str]:
    """Category names in the benchmark's order: that of the rows, with what only the selection knows after them."""
    names = [name for row in entries(report, "rows") for name in row.get("scores") or {}]
    known = list(part(part(report, "selection"), "correlation").get("categories") or [])
    order = {name: i for i, name in enumerate(known)}
    return sorted(dict.fromkeys(names), key=lambda name: order.get(name, len(order))) or known


def scores(report: Report) -> Grid:
    """A line a row: objective and every category, percent with 95 % intervals."""
    names = categories(report)
    rows = texts.in_order(entries(report, "rows"))
    lines = [
        (
            _model(row),
            _score(row.get("objective")),
            *(_score((row.get("scores") or {}).get(name)) for name in names),
        )
        for row in rows
    ]
    soups = frozenset(i for i, row in enumerate(rows) if row.get("kind") == "soup")
    return Grid(header=("model", "objective", *map(texts.clean, names)), rows=tuple(lines), strong=soups)


def _model(row: Mapping[str, Any]) -> Cell:
    """Name and role; a row that is named after its role says it once."""
    name, role = texts.clean(row.get("name")), texts.kind_label(row.get("kind"))
    return Cell(name, role if role != name else "")


def _score(score: Any) -> Cell:
    found = score if isinstance(score, Mapping) else {"mean": score}
    return Cell(texts.percent(found.get("mean")), texts.interval(found.get("low"), found.get("high")))


def sizes(report: Report) -> Grid:
    """How many items each category has on the report fold."""
    row = next(iter(entries(report, "rows")), {})
    found = {name: score.get("n") for name, score in (row.get("scores") or {}).items() if isinstance(score, Mapping)}
    lines = [(texts.clean(name), texts.count(found.get(name))) for name in categories(report)]
    return grid(("category", "items on the report fold"), lines)


def opponent(report: Report, comparison: Mapping[str, Any]) -> str:
    """The role of what the soup is compared with: the comparison's own `kind`, else every role its name plays."""
    if comparison.get("kind"):
        return texts.kind_label(comparison["kind"])
    name = comparison.get("b")
    kinds = [texts.kind_label(r.get("kind")) for r in texts.in_order(entries(report, "rows")) if r.get("name") == name]
    roles = [kind for kind in dict.fromkeys(kinds) if kind != texts.clean(name)]
    return ", ".join(roles)


def comparisons(report: Report) -> Grid:
    """The paired difference of the soup to each other row, points with 95 % interval and p-value."""
    lines: list[tuple[str | Cell, ...]] = [
        (
            Cell(f"soup {texts.minus('-')} {texts.clean(c.get('b'))}", opponent(report, c)),
            texts.percent(c.get("difference"), sign=True),
            texts.interval(c.get("low"), c.get("high"), sign=True),
            texts.p_value(c.get("p_value")),
            *_adjusted(report, c),
            texts.clean(c.get("test")).replace("_", " "),
            f"{texts.count(c.get('n'))} / {texts.count(c.get('groups'))}",
        )
        for c in entries(report, "comparisons")
    ]
    middle = ("p (Holm)",) if _has_adjusted(report) else ()
    header = ("pair", "difference", "95 % interval", "p", *middle, "test", "items / groups")
    return grid(header, lines, left=(0, len(header) - 2))


def _has_adjusted(report: Report) -> bool:
    return any("p_adjusted" in c for c in entries(report, "comparisons"))


def _adjusted(report: Report, comparison: Mapping[str, Any]) -> tuple[str, ...]:
    return (texts.p_value(comparison.get("p_adjusted")),) if _has_adjusted(report) else ()


def experts(report: Report) -> Grid:
    """Which candidate is the expert of which low-correlation category."""
    found = part(part(report, "selection"), "experts")
    shares = part(part(report, "stability"), "experts")
    lines = [
        (texts.clean(category), texts.clean(name), texts.share(part(shares, category).get(name)))
        for category, name in found.items()
    ]
    return grid(("low-correlation category", "expert", "picked again"), lines, left=(0, 1))


def recipe(report: Report) -> Grid:
    """Ingredients, weights, the fingerprints of their content, and where on the Hub they are."""
    found = part(report, "recipe")
    names, weights = found.get("ingredients") or [], found.get("weights") or []
    prints = list(found.get("fingerprints") or []) + [""] * len(names)
    lines = [
        [texts.clean(name), texts.weight(weight), texts.clean(mark)[:16] or texts.DASH]
        for name, weight, mark in zip(names, weights, prints, strict=False)
    ]
    header, sources = ["ingredient", "weight", "content (SHA-256, first 16)"], found.get("sources") or {}
    if sources:
        header.append("on the Hub")
        lines = [[*line, texts.clean(sources.get(n)) or texts.DASH] for n, line in zip(names, lines, strict=False)]
    return grid(header, lines, left=(0, 2, 3))


def folds(report: Report) -> Grid:
    """Items of each fold and what it is for."""
    use = {
        "select": "correlations and experts",
        "search": "weights and the best single",
        "report": "the numbers of this page, opened once for this recipe",
    }
    found = part(report, "folds")
    lines = [(fold, texts.count(found[fold]), text) for fold, text in use.items() if fold in found]
    return grid(("fold", "items", "used for"), lines, left=(0, 2))


def cost(report: Report) -> Grid:
    """What the run did and how long it took."""
    found = part(report, "cost")
    names = {
        "evaluated_items": "items evaluated",
        "reused_items": "items taken from the store",
        "trials": "soups tried",
    }
    lines = [(label, texts.count(found[key])) for key, label in names.items() if key in found]
    if "seconds" in found:
        lines.append(("time", texts.seconds(found["seconds"])))
    lines += [
        (texts.clean(key).replace("_", " "), texts.clean(value))
        for key, value in found.items()
        if key not in {*names, "seconds"} and not isinstance(value, Mapping | list)
    ]
    return grid(("cost", ""), lines)


def trials(report: Report, found: Sequence[Mapping[str, Any]], limit: int = 10) -> Grid:
    """The best trials of the search, by objective on the search fold."""
    names = ingredients(report, found)
    best = sorted(found, key=lambda t: -(texts.number(t.get("objective")) or 0.0))[:limit]
    lines = [
        (
            texts.count(trial.get("number")),
            texts.percent(trial.get("objective"), digits=2),
            *(texts.weight(part(trial, "weights").get(name, 0.0)) for name in names),
        )
        for trial in best
    ]
    return grid(("trial", "search objective", *(texts.clean(n) for n in names)), lines, left=())


def ingredients(report: Report, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The axes of the search: the selection's ingredients, or what the trials weigh."""
    chosen = list(part(report, "selection").get("ingredients") or [])
    weighed = [name for trial in found for name in part(trial, "weights")]
    known = [name for name in chosen if name in weighed] or chosen
    return list(dict.fromkeys([*known, *weighed]))
