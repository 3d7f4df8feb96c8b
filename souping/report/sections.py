"""Words of the report, section by section; `render` only sets them. With the command that makes a soup again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from souping.core.types import elements, entries, number, part
from souping.report import outcomes, tables
from souping.report.format import clean, count, in_words, interval, limits, p_of, percent, weight
from souping.report.tables import Report, Row, TableGrid, by_category, differences, gate, overview, sentences

REBUILD = (
    "It makes the same bytes again, from the folders that the store has seen or from the Hub at the commits of the "
    "recipe, and refuses where an ingredient's content differs."
)


@dataclass(frozen=True)
class Section:
    """Heading with sentences, at most one picture (by its name), tables to show and tables to fold away."""

    title: str
    lines: tuple[str, ...] = ()
    picture: str = ""
    grids: tuple[TableGrid, ...] = ()
    folded: tuple[tuple[str, TableGrid], ...] = ()
    code: str = ""


def headline(report: Report) -> str:
    """The verdict's sentence, or what can be said of a run that ended before the report fold."""
    sentence = clean(part(report, "verdict").get("sentence"))
    if sentence:
        return sentence
    if report.get("soup") and not part(report, "selection"):
        return "The soup is written."
    chosen = elements(part(report, "selection"), "ingredients")
    if not part(report, "recipe"):
        return f"Selected {in_words(chosen)}; the run ended before the search." if chosen else "Nothing was selected."
    if len(chosen) == 1:
        return f"Nothing to soup: {clean(chosen[0])} is the only ingredient."
    return "The search is done; the report fold was not opened."


def benchmark(report: Report) -> str:
    """`pantry: BFCL-shaped, not BFCL`, as far as it is known."""
    told = report.get("benchmark")
    if not isinstance(told, Mapping):
        return clean(told)
    name, note = clean(told.get("name")), clean(told.get("note"))
    return f"{name} ({note})" if name and note and name not in note else note or name


def kicker(report: Report) -> str:
    """Experiment and benchmark, above the headline."""
    shown = [clean(report.get("experiment")), benchmark(report)]
    return " \N{MIDDLE DOT} ".join(text for text in shown if text)


def figures(report: Report) -> list[tuple[str, str, str]]:
    """(label, number, small print) of the few numbers that matter most."""
    rows = {row.get("kind"): row for row in reversed(entries(report, "rows"))}
    shown = []
    for kind, label in (("soup", "soup"), ("best_single", "best single"), ("uniform_all", "uniform over all")):
        if kind in rows:
            score = part(rows[kind], "objective")
            name = clean(rows[kind].get("name")) if kind == "best_single" else ""
            small = "; ".join(t for t in (name, interval(score.get("low"), score.get("high"))) if t)
            shown.append((label, f"{percent(score.get('mean'))} %", small))
    deployed = rows.get("best_single", {}).get("name")
    for pair in entries(report, "comparisons"):
        if deployed is not None and pair.get("b") == deployed and pair.get("kind", "best_single") == "best_single":
            small = f"{limits(pair)}; p {p_of(pair)}"
            shown.append(("soup minus best single", percent(pair.get("difference"), sign=True), small))
            break
    return shown


def sections(report: Report, trials: Sequence[Row]) -> list[Section]:
    """All sections that have something to show."""
    built = [
        _scores(report),
        _differences(report),
        _losses(report),
        _bars(report),
        _outcomes(report),
        _also(report),
        _gate(report),
        _selection(report),
        _search(report, trials),
        _stability(report),
        _recipe(report),
        _cost(report),
    ]
    return [section for section in built if section is not None]


def _scores(report: Report) -> Section | None:
    if not entries(report, "rows"):
        return None
    lines = ("Percent correct on the report fold with 95 % intervals. Search and selection never saw these items.",)
    return Section(
        "Scores", lines, grids=(tables.scores(report),), folded=(("Items a category", tables.sizes(report)),)
    )


def _differences(report: Report) -> Section | None:
    if not entries(report, "comparisons"):
        return None
    lines = ("Every model answered the same items, so differences are paired; items that share content are one group.",)
    return Section("Is the soup better?", lines, "forest", (tables.comparisons(report),))


def _losses(report: Report) -> Section | None:
    told = losses(report)
    return Section("What did the soup lose?", tuple(told), grids=(tables.losses(report),)) if told else None


def losses(report: Report) -> list[str]:
    """Categories in which the soup is below the best single, which of them beyond chance, and the worst of them."""
    told = part(report, "losses")
    found = entries(told, "categories")
    if not found:
        return []
    parts = [f"{verb} in {count(told.get(key))}" for verb, key in (("below", "below"), ("level", "level"))]
    where = f"above in {count(told.get('above'))} of {count(len(found))} categories, {' and '.join(parts)}"
    head = f"Against {clean(told.get('against'))}, the best single, the soup is {where}."
    worst = min(found, key=lambda pair: number(pair.get("difference")) or 0.0)
    if not number(told.get("below")):
        return [head]
    beyond = [pair.get("category") for pair in found if pair.get("verdict") == "lower"]
    lost = f"It lost {in_words(beyond)} beyond chance" if beyond else "No loss is beyond chance"
    size = f"{percent(worst.get('difference'), sign=True)} points ({limits(worst)})"
    largest = f"the largest is {clean(worst.get('category'))}, {size}"
    return [f"{head} {lost} (Holm over {count(len(found))} categories); {largest}."]


def _outcomes(report: Report) -> Section | None:
    told = outcomes.sentences(report)
    if not told:
        return None
    grids = tuple(grid for grid in (outcomes.models(report), outcomes.variance(report)) if grid.rows)
    more = (("Why there is no answer", outcomes.reasons(report)), ("By category", outcomes.categories(report)))
    return Section("Answers", tuple(told), grids=grids, folded=tuple((t, grid) for t, grid in more if grid.rows))


def _bars(report: Report) -> Section | None:
    return Section("Category by category", picture="bars") if entries(report, "rows") else None


def _also(report: Report) -> Section | None:
    measured = entries(report, "also")
    if not measured:
        return None
    lines = (
        "Evaluated once the recipe was frozen, on all items; nothing was chosen on them.",
        *sentences(report),
    )
    folded = tuple(
        (f"{clean(entry.get('name'))} by category", by_category(entry))
        for entry in measured
        if len(part(entry, "coefficients")) > 1
    )
    return Section("Other benchmarks", lines, "", (overview(report), differences(report)), folded)


def _gate(report: Report) -> Section | None:
    checked = part(report, "gate")
    if not checked:
        return None
    line = (
        f"What single models were expected to score, beside what they scored on the {clean(checked.get('fold'))} "
        f"fold before the search. If all are as expected, one or more fall outside with a chance of at most "
        f"{percent(checked.get('false_alarm'), 0)} %."
    )
    return Section("Were the single models as expected?", (line,), grids=(gate(report),))


def _selection(report: Report) -> Section | None:
    selection = part(report, "selection")
    if not selection:
        return None
    lines = [_chosen(selection)]
    if selection.get("published"):
        lines.append("Selection used published scores: whatever they were measured on, selection has seen.")
    lines += [clean(note) for note in elements(selection, "notes")]
    grids = (tables.experts(report),) if selection.get("experts") else ()
    pairs = tables.pairs(report)
    folded = (("Every correlation with its interval", pairs),) if pairs.rows else ()
    return Section("Selection", tuple(lines), "heatmap", grids, folded)


def _chosen(selection: Row) -> str:
    """`soce chose a, b and c: experts of ... (pearson, threshold 0.2).`"""
    who = clean(selection.get("selector")) or "The selector"
    rule = [clean(selection.get("metric"))]
    if number(selection.get("threshold")) is not None:
        rule.append(f"threshold {weight(selection['threshold'])}")
    rule += [f"{key} {clean(selection[key])}" for key in ("sign", "ties") if selection.get(key)]
    how = ", ".join(text for text in rule if text)
    low = elements(selection, "low_correlation")
    where = f" Low-correlation categories: {in_words(low)}." if low else ""
    names = in_words(elements(selection, "ingredients")) or "nothing"
    return f"{who} chose {names}{f' ({how})' if how else ''}.{where}"


def _search(report: Report, trials: Sequence[Row]) -> Section | None:
    if not trials:
        return None
    reached = number(part(report, "objective").get("search"))
    best = f" The chosen recipe reached {percent(reached, 2)} % there." if reached is not None else ""
    lines = (
        f"{count(len(trials))} soups were evaluated on the search fold.{best} "
        "The best of many noisy scores flatters itself; the report fold, whose items differ, has the fair number.",
    )
    grid = tables.trials(report, trials)
    return Section("Search", lines, "landscape", (), (("The best trials (all are in trials.csv)", grid),))


def _stability(report: Report) -> Section | None:
    stability = part(report, "stability")
    if not stability:
        return None
    drawn = "How often the same choice is made when the items of the select fold are drawn again with replacement."
    lines = (drawn,) if stability.get("draws") else ()
    built = (tables.picks(report), tables.shares(report))
    more = (("Other thresholds", tables.thresholds(report)), ("One model left out", tables.jackknife(report)))
    return Section(
        "Stability of the selection",
        (*lines, *tables.notes(report)),
        grids=tuple(grid for grid in built if grid.rows),
        folded=tuple((title, grid) for title, grid in more if grid.rows),
    )


def _recipe(report: Report) -> Section | None:
    recipe = part(report, "recipe")
    if not recipe:
        return None
    line = f"Recipe {clean(recipe.get('id'))}: {clean(recipe.get('method'))}, {clean(recipe.get('dtype'))}."
    command = clean(report.get("rebuild"))
    again = f"Run this where the run was started. {REBUILD}" if command else "No soup was written: none to rebuild."
    return Section("Recipe, and how to rebuild it", (line, again), grids=(tables.recipe(report),), code=command)


def _cost(report: Report) -> Section | None:
    grids = tuple(grid for grid in (tables.folds(report), tables.cost(report)) if grid.rows)
    return Section("Folds and cost", grids=grids) if grids else None


def quoted(name: str) -> str:
    """A name as Hydra's grammar takes it: bare where it can be, else in double quotes.

    Inside quotes, Hydra reads a backslash as an escape only in front of a quote, the closing one included.
    """
    text = clean(name)
    if text and all(c.isalnum() or c in "/-_.@+" for c in text):
        return text
    return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (m[2] and '\\"'), text).replace("${", "\\${") + '"'
