"""Tables of the report as plain cells, so that Markdown, HTML, W&B and the terminal show the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from souping.core.types import Json, elements, entries, number, part, texts
from souping.report.format import (
    DASH,
    brackets,
    clean,
    count,
    in_order,
    in_words,
    interval,
    kind_label,
    level,
    minus,
    p_of,
    p_value,
    percent,
    rho,
    seconds,
    share,
    weight,
)

Report = Mapping[str, Json]
"""`report.json`, or what is known of it so far."""
Row = Mapping[str, Json]
"""An object inside a report: a row, a comparison, a trial."""
FIGURES = ("difference", "95 % interval", "p", "p (Holm)")


@dataclass(frozen=True)
class TableCell:
    """Text of a cell; `sub` is the smaller print beside it."""

    text: str
    sub: str = ""


@dataclass(frozen=True)
class TableGrid:
    """Table: `rows` hold a cell a column, `strong` are the indices of rows to stress, `left` of left-set columns."""

    header: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    strong: frozenset[int] = frozenset()
    left: frozenset[int] = frozenset({0})


def grid(
    header: Sequence[str],
    rows: Iterable[Iterable[str | TableCell]],
    left: Sequence[int] = (0,),
    strong: Iterable[int] = (),
) -> TableGrid:
    """A table of plain strings or cells."""
    cells = tuple(tuple(c if isinstance(c, TableCell) else TableCell(c) for c in row) for row in rows)
    return TableGrid(header=tuple(header), rows=cells, left=frozenset(left), strong=frozenset(strong))


def where(rows: Iterable[Row], key: str, value: str) -> list[int]:
    """Numbers of the rows of which it is true."""
    return [i for i, row in enumerate(rows) if row.get(key) == value]


def categories(report: Report) -> list[str]:
    """Category names in the benchmark's order: that of the rows, with what only the selection knows after them."""
    names = [name for row in entries(report, "rows") for name in part(row, "scores")]
    known = texts(part(part(report, "selection"), "correlation"), "categories")
    order = {name: i for i, name in enumerate(known)}
    return sorted(dict.fromkeys(names), key=lambda name: order.get(name, len(order))) or known


def scores(report: Report) -> TableGrid:
    """A line a row: objective and every category, percent with 95 % intervals."""
    names, rows = categories(report), in_order(entries(report, "rows"))
    lines = [
        (_model(row), _score(row.get("objective")), *(_score(part(row, "scores").get(name)) for name in names))
        for row in rows
    ]
    return grid(("model", "objective", *map(clean, names)), lines, strong=where(rows, "kind", "soup"))


def _model(row: Row) -> TableCell:
    """Name and role; a row that is named after its role says it once."""
    name, role = clean(row.get("name")), kind_label(row.get("kind"))
    return TableCell(name, role if role != name else "")


def _score(score: Json) -> TableCell:
    given = score if isinstance(score, Mapping) else {"mean": score}
    return TableCell(percent(given.get("mean")), interval(given.get("low"), given.get("high")))


def sizes(report: Report) -> TableGrid:
    """Items of each category on the report fold."""
    row = next(iter(entries(report, "rows")), {})
    lines = [(clean(name), count(part(part(row, "scores"), name).get("n"))) for name in categories(report)]
    return grid(("category", "items on the report fold"), lines)


def opponent(report: Report, comparison: Row) -> str:
    """The role of what the soup is compared with: the comparison's own `kind`, else every role its name plays."""
    if comparison.get("kind"):
        return kind_label(comparison["kind"])
    name = comparison.get("b")
    kinds = [kind_label(r.get("kind")) for r in in_order(entries(report, "rows")) if r.get("name") == name]
    roles = [kind for kind in dict.fromkeys(kinds) if kind != clean(name)]
    return ", ".join(roles)


def comparisons(report: Report) -> TableGrid:
    """The paired difference of the soup to each other row, points with 95 % interval and p-value."""
    lines: list[tuple[str | TableCell, ...]] = [
        (
            TableCell(f"soup {minus('-')} {clean(c.get('b'))}", opponent(report, c)),
            percent(c.get("difference"), sign=True),
            interval(c.get("low"), c.get("high"), sign=True),
            p_of(c),
            *_adjusted(report, c),
            clean(c.get("test")).replace("_", " "),
            f"{count(c.get('n'))} / {count(c.get('groups'))}",
        )
        for c in entries(report, "comparisons")
    ]
    middle = ("p (Holm)",) if _has_adjusted(report) else ()
    looks = number(part(report, "verdict").get("opened")) or 1
    p = f"p (look {count(looks)})" if looks > 1 else "p"
    around = f"{level(next(iter(entries(report, 'comparisons')), {}))} interval"
    header = ("pair", "difference", around, p, *middle, "test", "items / groups")
    return grid(header, lines, left=(0, len(header) - 2))


def _has_adjusted(report: Report) -> bool:
    return any(number(c.get("p_holm")) is not None for c in entries(report, "comparisons"))


def _adjusted(report: Report, comparison: Row) -> tuple[str, ...]:
    return (p_value(comparison.get("p_holm")),) if _has_adjusted(report) else ()


def losses(report: Report) -> TableGrid:
    """The soup's paired difference to the best single, category by category; what is lost beyond chance is stressed."""
    found = entries(part(report, "losses"), "categories")
    lines = [(clean(pair.get("category")), *_figures(pair), clean(pair.get("verdict"))) for pair in found]
    around = f"{level(next(iter(found), {}))} interval"
    return grid(
        ("category", FIGURES[0], around, *FIGURES[2:], "the soup is"), lines, (0, 5), where(found, "verdict", "lower")
    )


def experts(report: Report) -> TableGrid:
    """Which candidate is the expert of which low-correlation category."""
    chosen, again = part(part(report, "selection"), "experts"), part(part(report, "stability"), "experts")
    tied = part(part(report, "selection"), "tied")
    lines = [
        (
            clean(category),
            TableCell(
                clean(name),
                f"as good: {in_words(rest)}" if (rest := [n for n in texts(tied, category) if n != name]) else "",
            ),
            share(part(again, category).get(str(name))),
        )
        for category, name in chosen.items()
    ]
    return grid(("low-correlation category", "expert", "picked again"), lines, left=(0, 1))


def recipe(report: Report) -> TableGrid:
    """Ingredients, weights, the fingerprints of their content, and where on the Hub they are."""
    known = part(report, "recipe")
    names, weights, sources = texts(known, "ingredients"), elements(known, "weights"), part(known, "sources")
    prints = elements(known, "fingerprints") + [""] * len(names)
    lines = [
        [clean(name), weight(value), clean(mark)[:16] or DASH]
        for name, value, mark in zip(names, weights, prints, strict=False)
    ]
    header = ["ingredient", "weight", "content (SHA-256, first 16)"]
    if sources:
        header.append("on the Hub")
        lines = [[*line, clean(sources.get(n)) or DASH] for n, line in zip(names, lines, strict=False)]
    return grid(header, lines, left=(0, 2, 3))


def folds(report: Report) -> TableGrid:
    """Items of each fold and what it is for."""
    use = {
        "select": "correlations and experts",
        "search": "weights and the best single",
        "report": "the numbers of this page, opened once for this recipe",
    }
    known = part(report, "folds")
    lines = [(fold, count(known[fold]), text) for fold, text in use.items() if fold in known]
    return grid(("fold", "items", "used for"), lines, left=(0, 2))


def cost(report: Report) -> TableGrid:
    """Counts of the run's work, and its time."""
    spent = part(report, "cost")
    names = {
        "evaluated_items": "items evaluated",
        "reused_items": "items taken from the store",
        "trials": "soups tried",
    }
    lines = [(label, count(spent[key])) for key, label in names.items() if key in spent]
    if "seconds" in spent:
        lines.append(("time", seconds(spent["seconds"])))
    lines += [
        (clean(key).replace("_", " "), clean(value))
        for key, value in spent.items()
        if key not in {*names, "seconds"} and not isinstance(value, Mapping | list)
    ]
    return grid(("cost", ""), lines)


def trials(report: Report, tried: Sequence[Row], limit: int = 10) -> TableGrid:
    """The best trials of the search, by objective on the search fold."""
    names = ingredients(report, tried)
    best = sorted(tried, key=lambda t: -(number(t.get("objective")) or 0.0))[:limit]
    lines = [
        (
            count(trial.get("number")),
            percent(trial.get("objective"), digits=2),
            *(weight(part(trial, "weights").get(name, 0.0)) for name in names),
        )
        for trial in best
    ]
    return grid(("trial", "search objective", *(clean(n) for n in names)), lines, left=())


def ingredients(report: Report, tried: Sequence[Row]) -> list[str]:
    """The axes of the search: the selection's ingredients, or what the trials weigh."""
    chosen = texts(part(report, "selection"), "ingredients")
    weighed = [name for trial in tried for name in part(trial, "weights")]
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
    missed = [i for i, check in enumerate(checks) if check.get("verdict") != "as expected"]
    return grid(header, lines, left=(0, 1, 6), strong=missed)


def overview(report: Report) -> TableGrid:
    """A line a model, a column a benchmark: the objective with its interval, the soup last."""
    measured = entries(report, "also")
    names = list(dict.fromkeys(clean(row.get("name")) for entry in measured for row in entries(entry, "rows")))
    lines: list[tuple[str | TableCell, ...]] = [
        (name, *(_score(_objective_of(entry, name)) for entry in measured)) for name in names
    ]
    soups = [names.index("soup")] if "soup" in names else []
    return grid(("model", *(clean(entry.get("name")) for entry in measured)), lines, strong=soups)


def _objective_of(entry: Row, name: str) -> Json:
    return next((row.get("objective") for row in entries(entry, "rows") if clean(row.get("name")) == name), None)


def differences(report: Report) -> TableGrid:
    """The soup's paired difference to each ingredient on each benchmark; what the soup lost is stressed."""
    measured = [(entry, pair) for entry in entries(report, "also") for pair in entries(entry, "comparisons")]
    lines = [
        (
            clean(entry.get("name")),
            f"soup {minus('-')} {clean(pair.get('b'))}",
            *_figures(pair),
            f"{count(pair.get('n'))} / {count(pair.get('groups'))}",
            clean(pair.get("verdict")),
        )
        for entry, pair in measured
    ]
    lost = where((pair for _, pair in measured), "verdict", "lower")
    return grid(("benchmark", "pair", *FIGURES, "items / groups", "the soup is"), lines, (0, 1, 7), lost)


def _figures(pair: Row) -> tuple[str, ...]:
    return (
        percent(pair.get("difference"), sign=True),
        interval(pair.get("low"), pair.get("high"), sign=True),
        p_value(pair.get("p_value")),
        p_value(pair.get("p_holm")),
    )


def narrow(report: Report) -> TableGrid:
    """The same for a terminal: a line a model and benchmark, as the table of the run's own benchmark has them."""
    lines: list[tuple[str, ...]] = []
    strong: list[int] = []
    for entry in entries(report, "also"):
        compared = {pair.get("b"): pair for pair in entries(entry, "comparisons")}
        for row in reversed(entries(entry, "rows")):
            pair, soup = compared.get(row.get("name")), row.get("kind") == "soup"
            strong += [len(lines)] if soup else []
            against = ("", "") if soup or pair is None else (brackets(pair, sign=True), p_value(pair.get("p_holm")))
            name = clean(entry.get("name")) if soup else ""
            lines.append((name, clean(row.get("name")), brackets(row.get("objective")), *against))
    return grid(("also", "model", "score %", "soup minus it", "p (Holm)"), lines, (0, 1), strong)


def by_category(entry: Row) -> TableGrid:
    """One benchmark category by category: every model's mean, then the soup's difference to each ingredient."""
    rows, names = entries(entry, "rows"), list(part(entry, "coefficients"))
    compared = {(pair.get("category"), pair.get("b")): pair for pair in entries(entry, "categories")}
    others = list(dict.fromkeys(pair.get("b") for pair in entries(entry, "categories")))
    lines: list[tuple[str | TableCell, ...]] = [
        (
            clean(name),
            *(_score(part(row, "scores").get(name)) for row in rows),
            *(_difference(compared.get((name, other), {})) for other in others),
        )
        for name in names
    ]
    heads = [clean(row.get("name")) for row in rows]
    heads += [f"soup {minus('-')} {clean(other)}" for other in others]
    return grid(("category", *heads), lines)


def _difference(pair: Row) -> TableCell:
    verdict = clean(pair.get("verdict"))
    mark = f"; {verdict}" if verdict in ("lower", "higher") else ""
    return TableCell(_change(pair), f"{interval(pair.get('low'), pair.get('high'), sign=True)}{mark}")


def sentences(report: Report) -> Iterator[str]:
    """Losses of the soup, benchmark by benchmark; where nothing is shown, how much it may have lost all the same."""
    for entry in entries(report, "also"):
        name = clean(entry.get("name"))
        if entry.get("shared"):
            seen = f"{count(entry['shared'])} of its {count(entry.get('items'))} prompts"
            yield f"{name}: {seen} stand in the run's own benchmark too, where the weights were chosen."
        compared = entries(entry, "comparisons")
        lost = [pair for pair in compared if pair.get("verdict") == "lower"]
        for pair in lost:
            yield f"{name}: the soup is below {clean(pair.get('b'))} by {_points(pair)}."
        worst = min(compared, key=lambda pair: number(pair.get("low")) or 0.0, default=None)
        if not lost and worst is not None:
            least = percent(worst.get("low"), sign=True)
            yield f"{name}: no regression shown; the intervals reach down to {least} points ({clean(worst.get('b'))})."
        parts = [pair for pair in entries(entry, "categories") if pair.get("verdict") == "lower"]
        if parts and len(part(entry, "coefficients")) > 1:
            names = in_words([f"{pair.get('category')} ({pair.get('b')}, {_change(pair)})" for pair in parts])
            yield f"{name}: single categories in which the soup is below an ingredient: {names}."


def _points(pair: Row) -> str:
    limits = interval(pair.get("low"), pair.get("high"), sign=True)
    size = percent(-(number(pair.get("difference")) or 0.0))
    return f"{size} points (95 % interval of the difference {limits}, p {p_value(pair.get('p_holm'))})"


def _change(pair: Row) -> str:
    return percent(pair.get("difference"), sign=True)


def picks(report: Report) -> TableGrid:
    """Share of bootstrap draws in which a category is of low correlation, and in which each candidate is its expert."""
    stability, chosen = part(report, "stability"), part(part(report, "selection"), "experts")
    drawn, low = part(stability, "experts"), part(stability, "low_correlation")
    names = sorted({name for category in drawn for name in part(drawn, category)})
    rows: list[tuple[str | TableCell, ...]] = [
        (
            _marked(category, chosen.get(category)),
            share(low.get(category)),
            *(share(part(drawn, category).get(name)) for name in names),
        )
        for category in drawn
    ]
    return grid(("category", "is of low correlation", *map(clean, names)), rows)


def _marked(category: str, chosen: Json) -> TableCell:
    return TableCell(clean(category), f"chose {clean(chosen)}" if chosen else "")


def shares(report: Report) -> TableGrid:
    """Share of draws in which a candidate is an ingredient, and in which there are K of them."""
    drawn = part(report, "stability")
    rows = [(f"{clean(name)} is an ingredient", share(v)) for name, v in part(drawn, "ingredients").items()]
    rows += [(f"K = {clean(size)}", share(v)) for size, v in part(drawn, "sizes").items()]
    return grid(("event", "share of draws"), rows)


def thresholds(report: Report) -> TableGrid:
    """The selection by other thresholds."""
    stability = part(report, "stability")
    own = number(stability.get("threshold"))
    rows = []
    for entry in entries(stability, "thresholds"):
        value = number(entry.get("threshold"))
        used = " (used)" if value is not None and own is not None and abs(value - own) < 1e-9 else ""
        rows.append((f"{weight(value)}{used}", *_outcome(entry)))
    return grid(("threshold", "ingredients", "low-correlation categories"), rows, left=(0, 1, 2))


def jackknife(report: Report) -> TableGrid:
    """The selection without one model."""
    left_out = entries(part(report, "stability"), "jackknife")
    rows = [(clean(entry.get("left_out")), *_outcome(entry)) for entry in left_out]
    return grid(("left out", "ingredients", "low-correlation categories"), rows, left=(0, 1, 2))


def _outcome(entry: Row) -> tuple[str, str]:
    if entry.get("error"):
        return clean(entry["error"]), ""
    low = ", ".join(map(clean, elements(entry, "low_correlation")))
    return in_words(elements(entry, "ingredients")) or DASH, low or DASH


def pairs(report: Report) -> TableGrid:
    """Every correlation with its intervals: from the bootstrap of items where known, and over models."""
    known = entries(part(report, "stability"), "correlations") or matrix_pairs(report)
    extra = any(number(pair.get("bootstrap_low")) is not None for pair in known)
    rows = []
    for pair in known:
        line = [clean(pair.get("a")), clean(pair.get("b")), rho(pair.get("rho"))]
        line.append(around(pair.get("low"), pair.get("high")))
        if extra:
            line += [around(pair.get("bootstrap_low"), pair.get("bootstrap_high")), rho(pair.get("disattenuated"))]
        rows.append(line)
    tail = ("95 %, resampled items", "without noise") if extra else ()
    return grid(("category", "category", "rho", "95 %, over models", *tail), rows, left=(0, 1))


def around(low: Json, high: Json) -> str:
    if number(low) is None or number(high) is None:
        return "not estimable"
    return f"{rho(low)} to {rho(high)}"


def matrix_pairs(report: Report) -> list[Row]:
    """[{a, b, rho, low, high}] of the correlation matrix's upper triangle."""
    correlation = part(part(report, "selection"), "correlation")
    names = elements(correlation, "categories")
    keys = {"rho": "matrix", "low": "low", "high": "high"}
    return [
        {"a": names[i], "b": names[j], **{key: at(correlation.get(source), i, j) for key, source in keys.items()}}
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]


def at(matrix: Json, i: int, j: int) -> Json:
    """matrix[i][j], or None where there is none."""
    row = matrix[i] if isinstance(matrix, Sequence) and i < len(matrix) else None
    return row[j] if isinstance(row, Sequence) and j < len(row) else None


def notes(report: Report) -> list[str]:
    """Sentences about the bootstrap itself."""
    stability = part(report, "stability")
    lines = [clean(note) for note in elements(stability, "notes")]
    if stability.get("draws"):
        method = f" ({clean(stability['method'])})" if stability.get("method") else ""
        lines.append(f"{count(stability['draws'])} draws{method}; {_failed(stability)}.")
    models = part(stability, "models")
    if models.get("status"):
        reason = f": {clean(models['reason'])}" if models.get("reason") else ""
        lines.append(f"Resampling models: {clean(models['status']).replace('_', ' ')}{reason}")
    noisy = [f"{clean(name)} {rho(value)}" for name, value in part(stability, "reliability").items()]
    if noisy:
        lines.append(f"Reliability of the category scores: {', '.join(noisy)}")
    return lines


def _failed(stability: Row) -> str:
    """Number of draws that gave no selection, and why."""
    missing = number(stability.get("not_estimable"))
    if not missing:
        return "a selection came out of each"
    why = "; ".join(f"{clean(reason)} ({count(n)})" for reason, n in part(stability, "reasons").items())
    return f"no selection came out of {count(missing)}{f': {why}' if why else ''}"
