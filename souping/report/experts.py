"""Why these ingredients: what the selection saw, and how much of it is luck."""

from __future__ import annotations

from souping.core.types import Json, elements, entries, number, part, texts
from souping.report.format import DASH, clean, count, in_words, rho, share, weight
from souping.report.tables import Report, Row, Section, TableCell, TableGrid, grid, nonempty, table


def why(report: Report) -> Section | None:
    """The ingredients and what each is the expert of; correlations and all that is luck are folded away."""
    selection = part(report, "selection")
    if not selection:
        return None
    lines = [_chosen(selection), *([steady] if (steady := _steady(report)) else [])]
    if selection.get("published"):
        lines.append("Selection used published scores: whatever they were measured on, selection has seen.")
    lines += [clean(note) for note in elements(selection, "notes")]
    correlation = part(selection, "correlation")
    folded = nonempty(
        (
            Section("How categories correlate", picture="heatmap") if correlation.get("matrix") else None,
            table("Every correlation with its interval", pairs(report)),
            _again(report),
            table("Other thresholds", thresholds(report), "In steps of 0.01; a range gives one selection throughout."),
            table("One model left out", jackknife(report)),
        )
    )
    return Section("Why these experts", tuple(lines), grids=(experts(report),), folded=folded)


def _chosen(selection: Row) -> str:
    """`soce chose a, b and c (pearson, threshold 0.2, ...); categories of low correlation: ...`"""
    who = clean(selection.get("selector")) or "The selector"
    rule = [clean(selection.get("metric"))]
    if number(selection.get("threshold")) is not None:
        rule.append(f"threshold {weight(selection['threshold'])}")
    rule += [f"{key} {clean(selection[key])}" for key in ("sign", "ties") if selection.get(key)]
    how = ", ".join(text for text in rule if text)
    low = elements(selection, "low_correlation")
    whole = len(elements(part(selection, "correlation"), "categories"))
    where = (
        f" Low-correlation categories: {'all ' + count(whole) if len(low) == whole else in_words(low)}." if low else ""
    )
    names = in_words(elements(selection, "ingredients")) or "nothing"
    return f"{who} chose {names}{f' ({how})' if how else ''}.{where}"


def _steady(report: Report) -> str:
    """Which thresholds around the one that was used select the same."""
    used = number(part(report, "stability").get("threshold"))
    for low, high, entry in spans(report):
        if used is not None and low <= used <= high and not entry.get("error"):
            return f"Every threshold from {weight(low)} to {weight(high)} selects the same."
    return ""


def _again(report: Report) -> Section | None:
    """Luck of the items: what other draws of them would have selected."""
    if not part(report, "stability"):
        return None
    shown = picks(report)
    return Section("Chosen again?", tuple(notes(report)), grids=(shown,) if shown.rows else ())


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
    return grid(("ingredient", "weight", "expert of (picked again)", "chosen again"), lines, left=(0, 2))


def _expert_of(report: Report, name: str) -> list[str]:
    """`parallel (92 %)`: the categories of an expert, with the share of redraws of the items that pick it again."""
    selection, drawn = part(report, "selection"), part(part(report, "stability"), "experts")
    tied = part(selection, "tied")
    shared = selection.get("ties") == "all"
    found = [
        c for c, expert in part(selection, "experts").items() if name in (expert, *(texts(tied, c) if shared else ()))
    ]
    return [f"{clean(c)}{f' ({share(seen)})' if (seen := part(drawn, c).get(name)) is not None else ''}" for c in found]


def picks(report: Report) -> TableGrid:
    """Share of bootstrap draws in which a category is of low correlation, and in which each candidate is its expert."""
    stability, chosen = part(report, "stability"), part(part(report, "selection"), "experts")
    drawn, low = part(stability, "experts"), part(stability, "low_correlation")
    names = sorted({name for category in drawn for name in part(drawn, category)})
    rows: list[tuple[str | TableCell, ...]] = []
    for category in drawn:
        head = TableCell(clean(category), f"chose {clean(chosen[category])}" if chosen.get(category) else "")
        rows.append((head, share(low.get(category)), *(share(part(drawn, category).get(name)) for name in names)))
    return grid(("category", "is of low correlation", *map(clean, names)), rows)


def spans(report: Report) -> list[tuple[float, float, Row]]:
    """(from, to, outcome) of neighbouring thresholds that select the same ingredients, or fail alike."""
    found: list[tuple[float, float, Row]] = []
    for entry in entries(part(report, "stability"), "thresholds"):
        value = number(entry.get("threshold")) or 0.0
        if found and all(found[-1][2].get(key) == entry.get(key) for key in ("ingredients", "error")):
            found[-1] = (found[-1][0], value, found[-1][2])
        else:
            found.append((value, value, entry))
    return found


def thresholds(report: Report) -> TableGrid:
    """The selection by other thresholds, one line per range."""
    cut = number(part(report, "stability").get("threshold"))
    used = [i for i, (low, high, _) in enumerate(spans(report)) if cut is not None and low <= cut <= high]
    lines = [
        (weight(low) if low == high else f"{weight(low)} to {weight(high)}", _outcome(entry)[0])
        for low, high, entry in spans(report)
    ]
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


def pairs(report: Report) -> TableGrid:
    """Every correlation with its intervals: over models, and by the bootstrap of items if there is one."""
    found = entries(part(report, "stability"), "correlations")
    drawn = any(number(pair.get("bootstrap_low")) is not None for pair in found)
    rows = []
    for pair in found:
        line = [clean(pair.get("a")), clean(pair.get("b")), rho(pair.get("rho"))]
        line.append(around(pair.get("low"), pair.get("high")))
        more = [around(pair.get("bootstrap_low"), pair.get("bootstrap_high")), rho(pair.get("disattenuated"))]
        rows.append([*line, *(more if drawn else [])])
    tail = ("95 %, resampled items", "without noise") if drawn else ()
    return grid(("category", "category", "rho", "95 %, over models", *tail), rows, left=(0, 1))


def around(low: Json, high: Json) -> str:
    if number(low) is None or number(high) is None:
        return "not estimable"
    return f"{rho(low)} to {rho(high)}"


def notes(report: Report) -> list[str]:
    """Sentences about the bootstrap itself."""
    stability = part(report, "stability")
    lines = [clean(note) for note in elements(stability, "notes")]
    if stability.get("draws"):
        method = f" ({clean(stability['method'])})" if stability.get("method") else ""
        why = "; ".join(f"{clean(reason)} ({count(n)})" for reason, n in part(stability, "reasons").items())
        none = f"no selection came out of {count(stability.get('not_estimable'))}{f': {why}' if why else ''}"
        failed = none if number(stability.get("not_estimable")) else "a selection came out of each"
        lines.append(f"{count(stability['draws'])} draws{method}; {failed}.")
    if sizes := part(stability, "sizes"):
        lines.append(f"Ingredients: {', '.join(f'{clean(size)} in {share(v)}' for size, v in sizes.items())} of draws.")
    noisy = [f"{clean(name)} {rho(value)}" for name, value in part(stability, "reliability").items()]
    if noisy:
        lines.append(f"Reliability of the category scores: {', '.join(noisy)}.")
    return lines
