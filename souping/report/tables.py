"""The report's tables as plain cells, so that Markdown, HTML and W&B show the same ones.

What stands beside the report's own numbers: the baseline gate, and the benchmarks that nothing was optimised for.

Tables about how far the selection can be trusted: bootstrap of items, threshold sweep, jackknife, intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from souping.report import format
from souping.report.format import (
    DASH,
    brackets,
    clean,
    count,
    interval,
    listed,
    minus,
    number,
    p_value,
    percent,
    rho,
    share,
    weight,
)

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """What stands in a cell; `sub` is the smaller print beside it."""

    text: str
    sub: str = ""


@dataclass(frozen=True)
class TableGrid:
    """A table: `rows` hold a cell a column, `strong` are the indices of rows to stress, `left` of left-set columns."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: frozenset[int] = frozenset()
    left: frozenset[int] = frozenset({0})
    note: str = ""


def grid(header: Sequence[str], rows: Iterable[Iterable[str | Cell]], left: Sequence[int] = (0,)) -> TableGrid:
    """A table of plain strings or cells, without stressed rows."""
    cells = tuple(tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows)
    return TableGrid(header=tuple(header), rows=cells, left=frozenset(left))


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


def scores(report: Report) -> TableGrid:
    """A line a row: objective and every category, percent with 95 % intervals."""
    names = categories(report)
    rows = format.in_order(entries(report, "rows"))
    lines = [
        (
            _model(row),
            _score(row.get("objective")),
            *(_score((row.get("scores") or {}).get(name)) for name in names),
        )
        for row in rows
    ]
    soups = frozenset(i for i, row in enumerate(rows) if row.get("kind") == "soup")
    return TableGrid(header=("model", "objective", *map(format.clean, names)), rows=tuple(lines), strong=soups)


def _model(row: Mapping[str, Any]) -> Cell:
    """Name and role; a row that is named after its role says it once."""
    name, role = format.clean(row.get("name")), format.kind_label(row.get("kind"))
    return Cell(name, role if role != name else "")


def _score(score: Any) -> Cell:
    found = score if isinstance(score, Mapping) else {"mean": score}
    return Cell(format.percent(found.get("mean")), format.interval(found.get("low"), found.get("high")))


def sizes(report: Report) -> TableGrid:
    """How many items each category has on the report fold."""
    row = next(iter(entries(report, "rows")), {})
    found = {name: score.get("n") for name, score in (row.get("scores") or {}).items() if isinstance(score, Mapping)}
    lines = [(format.clean(name), format.count(found.get(name))) for name in categories(report)]
    return grid(("category", "items on the report fold"), lines)


def opponent(report: Report, comparison: Mapping[str, Any]) -> str:
    """The role of what the soup is compared with: the comparison's own `kind`, else every role its name plays."""
    if comparison.get("kind"):
        return format.kind_label(comparison["kind"])
    name = comparison.get("b")
    kinds = [
        format.kind_label(r.get("kind")) for r in format.in_order(entries(report, "rows")) if r.get("name") == name
    ]
    roles = [kind for kind in dict.fromkeys(kinds) if kind != format.clean(name)]
    return ", ".join(roles)


def comparisons(report: Report) -> TableGrid:
    """The paired difference of the soup to each other row, points with 95 % interval and p-value."""
    lines: list[tuple[str | Cell, ...]] = [
        (
            Cell(f"soup {format.minus('-')} {format.clean(c.get('b'))}", opponent(report, c)),
            format.percent(c.get("difference"), sign=True),
            format.interval(c.get("low"), c.get("high"), sign=True),
            format.p_value(c.get("p_value")),
            *_adjusted(report, c),
            format.clean(c.get("test")).replace("_", " "),
            f"{format.count(c.get('n'))} / {format.count(c.get('groups'))}",
        )
        for c in entries(report, "comparisons")
    ]
    middle = ("p (Holm)",) if _has_adjusted(report) else ()
    header = ("pair", "difference", "95 % interval", "p", *middle, "test", "items / groups")
    return grid(header, lines, left=(0, len(header) - 2))


def _has_adjusted(report: Report) -> bool:
    return any("p_adjusted" in c for c in entries(report, "comparisons"))


def _adjusted(report: Report, comparison: Mapping[str, Any]) -> tuple[str, ...]:
    return (format.p_value(comparison.get("p_adjusted")),) if _has_adjusted(report) else ()


def experts(report: Report) -> TableGrid:
    """Which candidate is the expert of which low-correlation category."""
    found = part(part(report, "selection"), "experts")
    shares = part(part(report, "stability"), "experts")
    lines = [
        (format.clean(category), format.clean(name), format.share(part(shares, category).get(name)))
        for category, name in found.items()
    ]
    return grid(("low-correlation category", "expert", "picked again"), lines, left=(0, 1))


def recipe(report: Report) -> TableGrid:
    """Ingredients, weights, the fingerprints of their content, and where on the Hub they are."""
    found = part(report, "recipe")
    names, weights = found.get("ingredients") or [], found.get("weights") or []
    prints = list(found.get("fingerprints") or []) + [""] * len(names)
    lines = [
        [format.clean(name), format.weight(weight), format.clean(mark)[:16] or format.DASH]
        for name, weight, mark in zip(names, weights, prints, strict=False)
    ]
    header, sources = ["ingredient", "weight", "content (SHA-256, first 16)"], found.get("sources") or {}
    if sources:
        header.append("on the Hub")
        lines = [[*line, format.clean(sources.get(n)) or format.DASH] for n, line in zip(names, lines, strict=False)]
    return grid(header, lines, left=(0, 2, 3))


def folds(report: Report) -> TableGrid:
    """Items of each fold and what it is for."""
    use = {
        "select": "correlations and experts",
        "search": "weights and the best single",
        "report": "the numbers of this page, opened once for this recipe",
    }
    found = part(report, "folds")
    lines = [(fold, format.count(found[fold]), text) for fold, text in use.items() if fold in found]
    return grid(("fold", "items", "used for"), lines, left=(0, 2))


def cost(report: Report) -> TableGrid:
    """What the run did and how long it took."""
    found = part(report, "cost")
    names = {
        "evaluated_items": "items evaluated",
        "reused_items": "items taken from the store",
        "trials": "soups tried",
    }
    lines = [(label, format.count(found[key])) for key, label in names.items() if key in found]
    if "seconds" in found:
        lines.append(("time", format.seconds(found["seconds"])))
    lines += [
        (format.clean(key).replace("_", " "), format.clean(value))
        for key, value in found.items()
        if key not in {*names, "seconds"} and not isinstance(value, Mapping | list)
    ]
    return grid(("cost", ""), lines)


def trials(report: Report, found: Sequence[Mapping[str, Any]], limit: int = 10) -> TableGrid:
    """The best trials of the search, by objective on the search fold."""
    names = ingredients(report, found)
    best = sorted(found, key=lambda t: -(format.number(t.get("objective")) or 0.0))[:limit]
    lines = [
        (
            format.count(trial.get("number")),
            format.percent(trial.get("objective"), digits=2),
            *(format.weight(part(trial, "weights").get(name, 0.0)) for name in names),
        )
        for trial in best
    ]
    return grid(("trial", "search objective", *(format.clean(n) for n in names)), lines, left=())


def ingredients(report: Report, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The axes of the search: the selection's ingredients, or what the trials weigh."""
    chosen = list(part(report, "selection").get("ingredients") or [])
    weighed = [name for trial in found for name in part(trial, "weights")]
    known = [name for name in chosen if name in weighed] or chosen
    return list(dict.fromkeys([*known, *weighed]))


def gate(report: Report) -> TableGrid:
    """A line a figure that was expected of a single model, those that missed stressed."""
    checks = entries(part(report, "gate"), "checks")
    lines = [
        (
            clean(check.get("candidate")),
            clean(check.get("category")) or "objective",
            percent(check.get("expected")),
            percent(check.get("measured")),
            interval(check.get("low"), check.get("high")),
            count(check.get("n")),
            clean(check.get("verdict")),
        )
        for check in checks
    ]
    header = ("candidate", "of", "expected %", "measured %", "allowed", "items", "verdict")
    made = grid(header, lines, left=(0, 1, 6))
    missed = frozenset(i for i, check in enumerate(checks) if check.get("verdict") != "as expected")
    return TableGrid(header=made.header, rows=made.rows, left=made.left, strong=missed)


def overview(report: Report) -> TableGrid:
    """A line a model, a column a benchmark: the objective with its interval, the soup last."""
    found = entries(report, "also")
    names = list(dict.fromkeys(clean(row.get("name")) for entry in found for row in entries(entry, "rows")))
    lines: list[tuple[str | Cell, ...]] = [(name, *(_side_score(entry, name) for entry in found)) for name in names]
    made = grid(("model", *(clean(entry.get("name")) for entry in found)), lines)
    return TableGrid(
        header=made.header, rows=made.rows, strong=frozenset({names.index("soup")} if "soup" in names else ())
    )


def _side_score(entry: Mapping[str, Any], name: str) -> Cell:
    score = next((row.get("objective") for row in entries(entry, "rows") if clean(row.get("name")) == name), None)
    found = score if isinstance(score, Mapping) else {}
    return Cell(percent(found.get("mean")), interval(found.get("low"), found.get("high")))


def differences(report: Report) -> TableGrid:
    """The soup's paired difference to each ingredient on each benchmark; what the soup lost is stressed."""
    pairs = [(entry, found) for entry in entries(report, "also") for found in entries(entry, "comparisons")]
    lines = [
        (
            clean(entry.get("name")),
            f"soup {minus('-')} {clean(found.get('b'))}",
            *_figures(found),
            f"{count(found.get('n'))} / {count(found.get('groups'))}",
            clean(found.get("verdict")),
        )
        for entry, found in pairs
    ]
    made = grid(("benchmark", "pair", *FIGURES, "items / groups", "the soup is"), lines, left=(0, 1, 7))
    lost = frozenset(i for i, (_, found) in enumerate(pairs) if found.get("verdict") == "lower")
    return TableGrid(header=made.header, rows=made.rows, left=made.left, strong=lost)


FIGURES = ("difference", "95 % interval", "p", "p (Holm)")


def _figures(found: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        percent(found.get("difference"), sign=True),
        interval(found.get("low"), found.get("high"), sign=True),
        p_value(found.get("p_value")),
        p_value(found.get("p_holm")),
    )


def narrow(report: Report) -> TableGrid:
    """The same for a terminal: a line a model and benchmark, as the table of the run's own benchmark has them."""
    lines: list[tuple[str, ...]] = []
    strong: set[int] = set()
    for entry in entries(report, "also"):
        pairs = {found.get("b"): found for found in entries(entry, "comparisons")}
        for row in reversed(entries(entry, "rows")):
            found, soup = pairs.get(row.get("name")), row.get("kind") == "soup"
            strong |= {len(lines)} if soup else set()
            against = ("", "") if soup or found is None else _against(found)
            name = clean(entry.get("name")) if soup else ""
            lines.append((name, clean(row.get("name")), brackets(row.get("objective")), *against))
    made = grid(("also", "model", "score %", "soup minus it", "p (Holm)"), lines, left=(0, 1))
    return TableGrid(header=made.header, rows=made.rows, left=made.left, strong=frozenset(strong))


def _against(found: Mapping[str, Any]) -> tuple[str, str]:
    return brackets(found, sign=True), p_value(found.get("p_holm"))


def by_category(entry: Mapping[str, Any]) -> TableGrid:
    """One benchmark category by category: every model's mean, then the soup's difference to each ingredient."""
    rows, names = entries(entry, "rows"), list(part(entry, "coefficients"))
    pairs = {(found.get("category"), found.get("b")): found for found in entries(entry, "categories")}
    others = list(dict.fromkeys(found.get("b") for found in entries(entry, "categories")))
    lines: list[tuple[str | Cell, ...]] = [
        (
            clean(name),
            *(_mean(part(row, "scores").get(name)) for row in rows),
            *(_difference(pairs.get((name, other), {})) for other in others),
        )
        for name in names
    ]
    heads = [clean(row.get("name")) for row in rows]
    heads += [f"soup {minus('-')} {clean(other)}" for other in others]
    return grid(("category", *heads), lines)


def _mean(score: Any) -> Cell:
    found = score if isinstance(score, Mapping) else {}
    return Cell(percent(found.get("mean")), interval(found.get("low"), found.get("high")))


def _difference(found: Mapping[str, Any]) -> Cell:
    verdict = clean(found.get("verdict"))
    mark = f"; {verdict}" if verdict in ("lower", "higher") else ""
    around = interval(found.get("low"), found.get("high"), sign=True)
    return Cell(percent(found.get("difference"), sign=True), f"{around}{mark}")


def sentences(report: Report) -> Iterator[str]:
    """What the soup lost, benchmark by benchmark; where nothing is shown, how much it may have lost all the same."""
    for entry in entries(report, "also"):
        name = clean(entry.get("name"))
        if entry.get("shared"):
            seen = f"{count(entry['shared'])} of its {count(entry.get('items'))} prompts"
            yield f"{name}: {seen} stand in the run's own benchmark too, where the weights were chosen."
        lost = [found for found in entries(entry, "comparisons") if found.get("verdict") == "lower"]
        for found in lost:
            yield f"{name}: the soup is below {clean(found.get('b'))} by {_points(found)}."
        worst = min(entries(entry, "comparisons"), key=lambda found: found.get("low") or 0.0, default=None)
        if not lost and worst is not None:
            least = percent(worst.get("low"), sign=True)
            yield f"{name}: no regression shown; the intervals reach down to {least} points ({worst.get('b')})."
        parts = [found for found in entries(entry, "categories") if found.get("verdict") == "lower"]
        if parts and len(part(entry, "coefficients")) > 1:
            names = listed([f"{f.get('category')} ({f.get('b')}, {_change(f)})" for f in parts])
            yield f"{name}: single categories in which the soup is below an ingredient: {names}."


def _points(found: Mapping[str, Any]) -> str:
    around = interval(found.get("low"), found.get("high"), sign=True)
    size = percent(-(found.get("difference") or 0.0))
    return f"{size} points (95 % interval of the difference {around}, p {p_value(found.get('p_holm'))})"


def _change(found: Mapping[str, Any]) -> str:
    return percent(found.get("difference"), sign=True)


def picks(report: Report) -> TableGrid:
    """How often a category is of low correlation under the bootstrap of items, and then each candidate its expert."""
    stability, chosen = part(report, "stability"), part(part(report, "selection"), "experts")
    found, low = part(stability, "experts"), part(stability, "low_correlation")
    names = sorted({name for shares in found.values() if isinstance(shares, Mapping) for name in shares})
    rows: list[tuple[str | Cell, ...]] = [
        (
            _marked(category, chosen.get(category)),
            share(low.get(category)),
            *(share(part(found, category).get(name)) for name in names),
        )
        for category in found
    ]
    return grid(("category", "is of low correlation", *map(clean, names)), rows)


def _marked(category: str, chosen: Any) -> Cell:
    return Cell(clean(category), f"chose {clean(chosen)}" if chosen else "")


def shares(report: Report) -> TableGrid:
    """Share of draws in which a candidate is an ingredient, and in which there are K of them."""
    found = part(report, "stability")
    rows = [(f"{clean(name)} is an ingredient", share(v)) for name, v in part(found, "ingredients").items()]
    rows += [(f"K = {clean(size)}", share(v)) for size, v in part(found, "sizes").items()]
    return grid(("event", "share of draws"), rows)


def thresholds(report: Report) -> TableGrid:
    """What other thresholds would select."""
    stability = part(report, "stability")
    own = number(stability.get("threshold"))
    rows = []
    for entry in stability.get("thresholds") or []:
        value = number(entry.get("threshold"))
        used = " (used)" if value is not None and own is not None and abs(value - own) < 1e-9 else ""
        rows.append((f"{weight(value)}{used}", *_outcome(entry)))
    return grid(("threshold", "ingredients", "low-correlation categories"), rows, left=(0, 1, 2))


def jackknife(report: Report) -> TableGrid:
    """What the selection becomes when one model is left out."""
    found = part(report, "stability").get("jackknife") or []
    rows = [(clean(entry.get("left_out")), *_outcome(entry)) for entry in found]
    return grid(("left out", "ingredients", "low-correlation categories"), rows, left=(0, 1, 2))


def _outcome(entry: Mapping[str, Any]) -> tuple[str, str]:
    if entry.get("error"):
        return clean(entry["error"]), ""
    low = entry.get("low_correlation") or []
    return listed(entry.get("ingredients") or []) or DASH, ", ".join(map(clean, low)) or DASH


def pairs(report: Report) -> TableGrid:
    """Every correlation with its intervals: from the bootstrap of items where known, and over models."""
    known = part(report, "stability").get("correlations") or matrix_pairs(report)
    extra = any(number(pair.get("bootstrap_low")) is not None for pair in known)
    rows = []
    for pair in known:
        line = [clean(pair.get("a")), clean(pair.get("b")), rho(pair.get("rho"))]
        line.append(around(pair.get("low"), pair.get("high")))
        if extra:
            line += [
                around(pair.get("bootstrap_low"), pair.get("bootstrap_high")),
                rho(pair.get("disattenuated")),
            ]
        rows.append(line)
    tail = ("95 %, resampled items", "without noise") if extra else ()
    return grid(("category", "category", "rho", "95 %, over models", *tail), rows, left=(0, 1))


def around(low: Any, high: Any) -> str:
    if number(low) is None or number(high) is None:
        return "not estimable"
    return f"{rho(low)} to {rho(high)}"


def matrix_pairs(report: Report) -> list[dict[str, Any]]:
    """[{a, b, rho, low, high}] of the correlation matrix's upper triangle."""
    found = part(part(report, "selection"), "correlation")
    names = found.get("categories") or []
    keys = {"rho": "matrix", "low": "low", "high": "high"}
    return [
        {"a": names[i], "b": names[j], **{key: at(found.get(source), i, j) for key, source in keys.items()}}
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]


def at(matrix: Any, i: int, j: int) -> Any:
    """matrix[i][j], or None where there is none."""
    try:
        return matrix[i][j]
    except (IndexError, TypeError):
        return None


def notes(report: Report) -> list[str]:
    """Sentences about the bootstrap itself."""
    found = part(report, "stability")
    lines = [clean(note) for note in found.get("notes") or []]
    if found.get("draws"):
        method = f" ({clean(found['method'])})" if found.get("method") else ""
        lines.append(f"{count(found['draws'])} draws{method}; {_failed(found)}.")
    models = part(found, "models")
    if models.get("status"):
        reason = f": {clean(models['reason'])}" if models.get("reason") else ""
        lines.append(f"Resampling models: {clean(models['status']).replace('_', ' ')}{reason}")
    noisy = [f"{clean(name)} {rho(value)}" for name, value in part(found, "reliability").items()]
    if noisy:
        lines.append(f"Reliability of the category scores: {', '.join(noisy)}")
    return lines


def _failed(found: Mapping[str, Any]) -> str:
    """How many draws gave no selection, and why."""
    missing = number(found.get("not_estimable"))
    if not missing:
        return "a selection came out of each"
    why = "; ".join(f"{clean(reason)} ({count(n)})" for reason, n in part(found, "reasons").items())
    return f"no selection came out of {count(missing)}{f': {why}' if why else ''}"
