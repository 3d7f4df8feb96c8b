"""Tables of the report as plain cells: Markdown, HTML, W&B and the terminal print the same ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from souping.core.types import Json, elements, entries, number, part, texts
from souping.core.unit import gain, scores_in, unit, unit_of
from souping.report.format import (
    DASH,
    KINDS,
    brackets,
    clean,
    count,
    in_words,
    interval,
    level,
    p_of,
    p_value,
    percent,
    points,
    rho,
    score,
    seconds,
    share,
    verdict,
    weight,
    worst_limit,
)

Report = Mapping[str, Json]
"""`report.json`, or as much of it as there is so far."""
Row = Mapping[str, Json]
"""An object inside a report: a row, a comparison, a trial."""


@dataclass(frozen=True)
class TableCell:
    """Text of a cell; `sub` is the smaller print beside it."""

    text: str
    sub: str = ""


@dataclass(frozen=True)
class TableGrid:
    """Table: `strong` are the indices of rows to stress, `left` those of left-aligned columns."""

    header: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    strong: frozenset[int] = frozenset()
    left: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Section:
    """Heading with sentences, a picture (by its name), tables, a command, and sections that are folded away."""

    title: str
    lines: tuple[str, ...] = ()
    picture: str = ""
    grids: tuple[TableGrid, ...] = ()
    folded: tuple[Section, ...] = ()
    code: str = ""

    @property
    def anchor(self) -> str:
        """What links to the heading, as GitHub makes it."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


def nonempty(sections: Iterable[Section | None]) -> tuple[Section, ...]:
    """Sections that have anything to show."""
    return tuple(
        one
        for one in sections
        if one is not None and (one.lines or one.picture or one.grids or one.folded)
    )


def table(title: str, shown: TableGrid, *lines: str) -> Section | None:
    """A section of one table; None if the table has no rows."""
    return Section(title, lines, grids=(shown,)) if shown.rows else None


def grid(
    header: Sequence[str],
    rows: Iterable[Iterable[str | TableCell]],
    left: Sequence[int] = (0,),
    strong: Iterable[int] = (),
) -> TableGrid:
    """A table of plain strings or cells."""
    cells = tuple(
        tuple(c if isinstance(c, TableCell) else TableCell(c) for c in row) for row in rows
    )
    return TableGrid(
        header=tuple(header), rows=cells, left=frozenset(left), strong=frozenset(strong)
    )


Columns = dict[str, Callable[[Row], str | TableCell]]
"""{heading: what a row has below it}"""


def listing(
    rows: Iterable[Row], columns: Columns, left: Sequence[int] = (0,), strong: Iterable[int] = ()
) -> TableGrid:
    """A table of one line per row."""
    return grid(
        list(columns), [[show(row) for show in columns.values()] for row in rows], left, strong
    )


def of(key: str, show: Callable[[Json], str] = clean) -> Callable[[Row], str]:
    """A column of the values of a key."""
    return lambda row: show(row.get(key))


def difference(pair: Row) -> str:
    return score(pair.get("difference"), sign=True)


def whiskers(pair: Row) -> str:
    """Interval of a difference."""
    return interval(pair.get("low"), pair.get("high"), sign=True)


FIGURES: Columns = {
    "difference": difference,
    "95 % interval": whiskers,
    "p": of("p_value", p_value),
    "p (Holm)": of("p_holm", p_value),
}


def where(rows: Iterable[Row], key: str, value: str) -> list[int]:
    """Indices of the rows that have this value."""
    return [i for i, row in enumerate(rows) if row.get(key) == value]


def categories(report: Report) -> list[str]:
    """Category names in the selection's order."""
    names = dict.fromkeys(name for row in entries(report, "rows") for name in part(row, "scores"))
    selected = texts(part(part(report, "selection"), "correlation"), "categories")
    order = {name: i for i, name in enumerate(selected)}
    return sorted(names, key=lambda name: order.get(name, len(order))) or selected


def once(report: Report) -> list[Row]:
    """Rows in the order of their roles, each model once: `roles` has all its kinds."""
    found, order = dict[Json, dict[str, Json]](), {kind: place for place, kind in enumerate(KINDS)}
    for row in sorted(
        entries(report, "rows"), key=lambda row: order.get(str(row.get("kind")), len(order))
    ):
        key = row.get("recipe_id") or row.get("name")
        first = found.setdefault(key, {**row, "roles": []})
        first["roles"] = [*elements(first, "roles"), row.get("kind")]
    return list(found.values())


def named(row: Row) -> TableCell:
    """A model's name with its roles."""
    name = clean(row.get("name"))
    labels = [
        KINDS.get(kind, clean(kind))
        for kind in dict.fromkeys(texts(row, "roles") or [str(row.get("kind"))])
    ]
    if row.get("name") == row.get("kind"):
        return TableCell(labels[0], ", ".join(labels[1:]))
    return TableCell(name, ", ".join(labels))


def scores(report: Report) -> TableGrid:
    """One line per model: objective and every category, percent with 95 % intervals."""
    names, rows = categories(report), once(report)
    lines = [
        (
            named(row),
            _score(row.get("objective")),
            *(_score(part(row, "scores").get(name)) for name in names),
        )
        for row in rows
    ]
    return grid(
        ("model", "objective", *map(clean, names)), lines, strong=where(rows, "kind", "soup")
    )


def compared(report: Report) -> list[Row]:
    """The soup's comparisons, one per other model, with the `row` of that model."""
    pairs = entries(report, "comparisons")
    found: list[Row] = []
    for row in once(report):
        roles, same = texts(row, "roles"), [pair for pair in pairs if _is_of(pair, row)]
        if same and "soup" not in roles:
            pair = next((pair for pair in same if number(pair.get("p_holm")) is not None), same[0])
            found.append({**pair, "row": row})
    return found


def _is_of(pair: Row, row: Row) -> bool:
    """Whether a comparison is with this model: by name, and by its role where two rows may share the name."""
    return pair.get("b") == row.get("name") or (
        pair.get("b") == pair.get("kind") and pair["b"] in texts(row, "roles")
    )


def comparisons(report: Report) -> TableGrid:
    """The paired difference of the soup to each other model, points with interval and p-value."""
    pairs = compared(report)
    looks = number(part(report, "verdict").get("opened")) or 1
    columns: Columns = {
        "soup minus": lambda pair: named(part(pair, "row")),
        "difference": difference,
        f"{level(next(iter(pairs), {}))} interval": whiskers,
        f"p (look {count(looks)})" if looks > 1 else "p": p_of,
        "p (Holm)": of("p_holm", p_value),
        "answered differently %": of("discordant", percent),
    }
    if all(number(pair.get("p_holm")) is None for pair in pairs):
        del columns["p (Holm)"]
    return listing(pairs, columns)


def summary(report: Report) -> TableGrid:
    """Every model's objective with the soup's paired difference to it, in the narrow form of a terminal."""
    pairs = {part(pair, "row").get("name"): pair for pair in compared(report)}
    around, rows = level(next(iter(pairs.values()), {})), once(report)
    lines: list[tuple[str | TableCell, ...]] = []
    for row in rows:
        pair = pairs.get(row.get("name"))
        against = ("", "") if pair is None else (brackets(pair, sign=True), p_of(pair))
        lines.append((named(row), brackets(row.get("objective")), *against))
    minus_it = "soup minus it" if around == "95 %" else f"soup minus it ({around})"
    return grid(
        ("model", unit().heading("score"), minus_it, "p"), lines, strong=where(rows, "kind", "soup")
    )


def tested(report: Report) -> str:
    """The test of the comparisons and its number of items and groups."""
    pair = next(iter(compared(report)), {})
    test = clean(pair.get("test")).replace("_", " ")
    return (
        f"Test: {test}, {count(pair.get('n'))} items in {count(pair.get('groups'))} groups."
        if test
        else ""
    )


def _score(given: Json) -> TableCell:
    found = given if isinstance(given, Mapping) else {"mean": given}
    return TableCell(score(found.get("mean")), interval(found.get("low"), found.get("high")))


def losses(report: Report) -> TableGrid:
    """The soup's paired difference to the best single, category by category; what is lost beyond chance is stressed."""
    found = entries(part(report, "losses"), "categories")
    columns: Columns = {
        "category": of("category"),
        "items": of("n", count),
        "difference": difference,
        f"{level(next(iter(found), {}))} interval, all at once": whiskers,
        "p, corrected": of("p_value", p_value),
        "smallest difference that would show": of("least", score),
        "the soup is": verdict,
    }
    return listing(found, columns, (0, 6), where(found, "verdict", "lower"))


def recipe(report: Report) -> TableGrid:
    """Ingredients, weights, the fingerprints of their content, and where on the Hub they are."""
    found = part(report, "recipe")
    names, sources = texts(found, "ingredients"), part(found, "sources")
    prints = elements(found, "fingerprints") or [""] * len(names)
    lines = [
        [
            clean(name),
            weight(share),
            clean(mark)[:16] or DASH,
            *([clean(sources.get(name)) or DASH] if sources else []),
        ]
        for name, share, mark in zip(names, elements(found, "weights"), prints, strict=False)
    ]
    header = [
        "ingredient",
        "weight",
        "content (SHA-256, first 16)",
        *(["on the Hub"] if sources else []),
    ]
    return grid(header, lines, left=(0, 2, 3))


def experts(report: Report) -> TableGrid:
    """One line per ingredient: its weight, its categories, and how often it is chosen again."""
    selection, again = part(report, "selection"), part(part(report, "stability"), "ingredients")
    recipe = part(report, "recipe")
    weights = dict(zip(texts(recipe, "ingredients"), elements(recipe, "weights"), strict=False))
    lines: list[tuple[str | TableCell, ...]] = [
        (
            clean(name),
            weight(weights.get(name, 0.0)) if recipe else DASH,
            ", ".join(_expert_of(report, name)) or DASH,
            share(again.get(name)),
        )
        for name in texts(selection, "ingredients")
    ]
    return grid(
        ("ingredient", "weight", "expert of (picked again)", "chosen again"), lines, left=(0, 2)
    )


def _expert_of(report: Report, name: str) -> list[str]:
    """`parallel (92 %)`: the categories of an expert, with the share of redraws of the items that pick it again."""
    selection, drawn = part(report, "selection"), part(part(report, "stability"), "experts")
    tied = part(selection, "tied")
    shared = selection.get("ties") == "all"
    chosen = part(selection, "experts")
    found = [c for c in chosen if name in (chosen[c], *(texts(tied, c) if shared else ()))]
    return [
        f"{clean(c)}{f' ({share(seen)})' if (seen := part(drawn, c).get(name)) is not None else ''}"
        for c in found
    ]


def pairs(report: Report) -> TableGrid:
    """Every correlation with its intervals: over models, and by the bootstrap of items if there is one."""
    found = entries(part(report, "stability"), "correlations")
    drawn = any(number(pair.get("bootstrap_low")) is not None for pair in found)
    rows = []
    for pair in found:
        line = [clean(pair.get("a")), clean(pair.get("b")), rho(pair.get("rho"))]
        line.append(around(pair.get("low"), pair.get("high")))
        more = [
            around(pair.get("bootstrap_low"), pair.get("bootstrap_high")),
            rho(pair.get("disattenuated")),
        ]
        rows.append([*line, *(more if drawn else [])])
    tail = ("95 %, resampled items", "without noise") if drawn else ()
    return grid(("category", "category", "rho", "95 %, over models", *tail), rows, left=(0, 1))


def around(low: Json, high: Json) -> str:
    if number(low) is None or number(high) is None:
        return "not estimable"
    return f"{rho(low)} to {rho(high)}"


def thresholds(report: Report) -> TableGrid:
    """The selection by other thresholds, one line per range that selects the same ingredients or fails alike."""
    stability = part(report, "stability")
    lines, used, cut = list[tuple[str, str]](), list[int](), number(stability.get("threshold"))
    for shown, same in groupby(entries(stability, "thresholds"), lambda entry: _outcome(entry)[0]):
        values = [number(entry.get("threshold")) or 0.0 for entry in same]
        if cut is not None and values[0] <= cut <= values[-1]:
            used.append(len(lines))
        lines.append((" to ".join(dict.fromkeys(map(weight, (values[0], values[-1])))), shown))
    return grid(("threshold", "ingredients"), lines, left=(0, 1), strong=used)


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


COSTS = {
    "evaluated_items": "items evaluated",
    "reused_items": "items taken from the store",
    "trials": "soups tried",
    "seconds": "wall time",
}
SEARCHED = {"soups": "soups", "items": "items answered", "seconds": "time of answering"}


def cost(report: Report) -> TableGrid:
    """Counts of the run's work, and its time."""
    spent = part(report, "cost")
    names = {
        key: COSTS.get(key) or clean(key).replace("_", " ")
        for key in dict.fromkeys([*COSTS, *spent])
    }
    rows = [(name, key, spent.get(key)) for key, name in names.items()]
    rows += [
        (f"search: {name}", key, part(spent, "search").get(key)) for key, name in SEARCHED.items()
    ]
    lines = [
        (name, seconds(n) if key == "seconds" else count(n))
        for name, key, n in rows
        if number(n) is not None
    ]
    return grid(("cost", "amount"), lines)


def trials(report: Report, tried: Sequence[Row], limit: int = 8) -> TableGrid:
    """The best trials of the search, by objective on the search fold; the chosen soup is stressed."""
    names = ingredients(report, tried)
    tried = [trial for trial in tried if number(trial.get("objective")) is not None]
    best = sorted(tried, key=lambda t: -gain(t.get("objective")))[:limit]
    lines = [
        (
            count(trial.get("number")),
            score(trial.get("objective"), more=1),
            *(weight(part(trial, "weights").get(name, 0.0)) for name in names),
        )
        for trial in best
    ]
    chosen = where(best, "recipe_id", str(part(report, "recipe").get("id")))
    return grid(
        ("best trials", unit().heading("objective"), *(clean(n) for n in names)),
        lines,
        left=(),
        strong=chosen,
    )


def ingredients(report: Report, tried: Sequence[Row]) -> list[str]:
    """The axes of the search: the selection's ingredients, or what the trials weigh."""
    chosen = texts(part(report, "selection"), "ingredients")
    weighed = [name for trial in tried for name in part(trial, "weights")]
    axes = [name for name in chosen if name in weighed] or chosen
    return list(dict.fromkeys([*axes, *weighed]))


def gate(report: Report) -> TableGrid:
    """One line per score that was expected of a candidate; those that were missed are stressed."""
    checks = entries(part(report, "gate"), "checks")
    columns: Columns = {
        "candidate": of("candidate"),
        "of": lambda check: clean(check.get("category")) or "objective",
        unit().heading("expected"): of("expected", score),
        unit().heading("measured"): of("measured", score),
        "allowed": lambda check: interval(check.get("low"), check.get("high")),
        "items": of("n", count),
        "verdict": of("verdict"),
    }
    missed = [i for i, check in enumerate(checks) if check.get("verdict") != "as expected"]
    return listing(checks, columns, (0, 1, 6), missed)


def overview(report: Report) -> TableGrid:
    """One line per model, one column per benchmark: the objective with its interval."""
    measured = entries(report, "also")
    scores = [_objectives(entry) for entry in measured]
    names = list(dict.fromkeys(name for one in scores for name in one))
    lines = [
        (TableCell(name), *(one.get(name, TableCell(DASH)) for one in scores)) for name in names
    ]
    titles = [unit_of(entry).heading(clean(entry.get("name"))) for entry in measured]
    return grid(
        ("model", *titles), lines, strong=[i for i, name in enumerate(names) if name == "soup"]
    )


def _objectives(entry: Row) -> dict[str, TableCell]:
    with scores_in(unit_of(entry)):
        return {
            clean(row.get("name")): _score(row.get("objective")) for row in entries(entry, "rows")
        }


def differences(entry: Row) -> TableGrid:
    """The soup's paired difference to each ingredient on one benchmark, then by category; losses are stressed."""
    with scores_in(unit_of(entry)):
        pairs = entries(entry, "comparisons")
        pairs += entries(entry, "categories") if len(part(entry, "coefficients")) > 1 else []
        columns: Columns = {
            "soup minus": of("b"),
            "category": lambda pair: clean(pair.get("category")) or "all",
            **FIGURES,
            "items / groups": lambda pair: f"{count(pair.get('n'))} / {count(pair.get('groups'))}",
            "the soup is": verdict,
        }
        return listing(pairs, columns, (0, 1, 7), where(pairs, "verdict", "lower"))


def sentences(report: Report) -> Iterator[str]:
    """Losses of the soup by benchmark; without any, how much it may have lost all the same."""
    for entry in entries(report, "also"):
        with scores_in(unit_of(entry)):
            lines = list(_sentences(entry))
        yield from lines


def _sentences(entry: Row) -> Iterator[str]:
    """What `sentences` says of one benchmark."""
    name = clean(entry.get("name"))
    if entry.get("shared"):
        seen = f"{count(entry['shared'])} of its {count(entry.get('items'))} prompts"
        yield f"{name}: {seen} stand in the run's own benchmark too, where the weights were chosen."
    compared = entries(entry, "comparisons")
    lost = [pair for pair in compared if pair.get("verdict") == "lower"]
    for pair in lost:
        yield f"{name}: the soup is worse than {clean(pair.get('b'))} by {_points(pair)}."
    worst = min(compared, key=lambda pair: gain(worst_limit(pair)), default=None)
    if not lost and worst is not None:
        least = points(worst_limit(worst), sign=True)
        yield f"{name}: no regression shown; the intervals reach to {least} ({clean(worst.get('b'))})."
    parts = [pair for pair in entries(entry, "categories") if pair.get("verdict") == "lower"]
    if parts and len(part(entry, "coefficients")) > 1:
        changes = [score(pair.get("difference"), sign=True) for pair in parts]
        names = in_words(
            [
                f"{p.get('category')} ({p.get('b')}, {c})"
                for p, c in zip(parts, changes, strict=True)
            ]
        )
        yield f"{name}: single categories in which the soup is worse than an ingredient: {names}."


def _points(pair: Row) -> str:
    size = points(abs(number(pair.get("difference")) or 0.0))
    return f"{size} (95 % interval of the difference {whiskers(pair)}, p {p_value(pair.get('p_holm'))})"
