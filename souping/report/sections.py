"""What the report says, section by section, and how analyses are shown; `render` prints it as HTML or Markdown."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from souping.core.types import FOLDS, elements, entries, number, part, texts
from souping.core.unit import gain, unit
from souping.report import tables, trajectory
from souping.report.format import (
    clean,
    count,
    in_words,
    interval,
    limits,
    p_of,
    percent,
    points,
    rho,
    score,
    share,
    weight,
)
from souping.report.plots import Drawing
from souping.report.tables import (
    Columns,
    Report,
    Row,
    Section,
    TableGrid,
    grid,
    listing,
    nonempty,
    of,
    table,
)

REBUILD = "It writes the same bytes again, and stops if an ingredient's content differs."
LOOKS = "Looks are counted in the run's store by exact prompt: a new store, or reworded items, would not be counted."
LOST = "cut off or missing and count as wrong"


def headline(report: Report) -> str:
    """The verdict's sentence, or what can be said of a run that ended before the report fold."""
    sentence = clean(part(report, "verdict").get("sentence"))
    if sentence:
        return sentence
    if report.get("soup") and not part(report, "selection"):
        return "The soup is written."
    chosen = elements(part(report, "selection"), "ingredients")
    if not part(report, "recipe"):
        return (
            f"Selected {in_words(chosen)}; the run ended before the search."
            if chosen
            else "Nothing was selected."
        )
    if len(chosen) == 1:
        return f"Nothing to soup: {clean(chosen[0])} is the only ingredient."
    return "The search is done; the report fold was not opened."


def summary(report: Report) -> list[str]:
    """What stands below the headline: losses, what a score is, the soup's weights and how it is loaded."""
    scores = next(
        (part(row, "scores") for row in entries(report, "rows") if row.get("kind") == "soup"), {}
    )
    lines, recipe = losses(report), part(report, "recipe")
    if scores:
        objective = part(report, "objective")
        equal = len(set(part(objective, "coefficients").values())) < 2
        kind = f"{'mean' if equal else 'weighted mean'} over {count(len(scores))} categories of {unit().meaning}"
        if objective and not part(objective, "coefficients"):
            kind = f"{clean(objective.get('name'))} of {count(len(scores))} categories, in {unit().meaning}"
        items = sum(number(part(scores, name).get("n")) or 0 for name in scores)
        lines.append(
            f"The score is the {kind}, on {count(items)} {'' if report.get('limit') else 'report '}items."
        )
    if place := re.search(r'recipe="?(.+?)/recipe\.json', clean(report.get("rebuild"))):
        pairs = zip(elements(recipe, "weights"), texts(recipe, "ingredients"), strict=False)
        mixed = " + ".join(f"{weight(share)} {clean(name)}" for share, name in pairs)
        kind = (
            "AutoPeftModel" if part(recipe, "settings").get("adapters") == "keep" else "AutoModel"
        )
        lines.append(
            f'The soup is in {place[1]}: {mixed}. Load it: {kind}ForCausalLM.from_pretrained("{place[1]}")'
        )
    return lines


def benchmark(report: Report) -> str:
    """`pantry: BFCL-shaped, not BFCL`, if it has a note."""
    named = report.get("benchmark")
    if not isinstance(named, Mapping):
        return clean(named)
    name, note = clean(named.get("name")), clean(named.get("note"))
    return f"{name} ({note})" if name and note and name not in note else note or name


def kicker(report: Report) -> str:
    """Experiment and benchmark, above the headline."""
    dry = f"dry run, limit={count(report['limit'])}" if report.get("limit") else ""
    shown = [clean(report.get("experiment")), benchmark(report), dry]
    return " \N{MIDDLE DOT} ".join(text for text in shown if text)


def figures(report: Report) -> list[tuple[str, str, str]]:
    """(label, number, small print) of the few numbers that matter most."""
    rows = {row.get("kind"): row for row in reversed(entries(report, "rows"))}
    shown = []
    for kind, label in (
        ("soup", "soup"),
        ("best_single", "best single"),
        ("uniform_all", "uniform over all"),
    ):
        if kind in rows:
            found = part(rows[kind], "objective")
            name = clean(rows[kind].get("name")) if kind == "best_single" else ""
            small = "; ".join(t for t in (name, interval(found.get("low"), found.get("high"))) if t)
            shown.append((label, f"{score(found.get('mean'))} {unit().symbol}", small))
    single = rows.get("best_single", {}).get("name") or ""
    pairs = [pair for pair in entries(report, "comparisons") if pair.get("b") == single]
    for pair in [pair for pair in pairs if pair.get("kind", "best_single") == "best_single"][:1]:
        small = f"{limits(pair)}; p {p_of(pair)}"
        shown.append(("soup minus best single", score(pair.get("difference"), sign=True), small))
    return shown


def sections(report: Report, trials: Sequence[Row]) -> tuple[Section, ...]:
    """All sections that have something to show."""
    run = (
        _verdict(report),
        *trajectory.sections(report),
        _gains(report),
        _also(report),
        _landscape(report, trials),
        _alternatives(report),
    )
    last = (_gate(report), _cost(report), _provenance(report))
    return nonempty((*run, _experts(report), *analysis_sections(report), *last))


def _verdict(report: Report) -> Section | None:
    """Everything that the headline rests on."""
    if not entries(report, "rows"):
        return None
    dry = bool(report.get("limit"))
    meaning = unit().meaning[0].upper() + unit().meaning[1:]
    numbers = (
        f"{meaning} on the report fold, which search and selection never saw, with 95 % intervals."
    )
    if dry:
        numbers = f"{meaning} on a few items of the other folds: a dry run, of which no number means anything."
    if not tables.compared(report):
        return Section("Scores", (numbers,), grids=(tables.scores(report),))
    paired = f"Differences are paired: all models answered the same items. {tables.tested(report)}".strip()
    lines = tuple(filter(None, (paired, "" if dry else LOOKS)))
    compared = table("The differences in numbers", tables.comparisons(report))
    scores = table("Every model, category by category", tables.scores(report), numbers)
    return Section("Is the soup better?", lines, "forest", folded=nonempty((compared, scores)))


def _gains(report: Report) -> Section | None:
    """The categories, whose gains and losses the page's first lines sum up."""
    found = entries(part(report, "losses"), "categories")
    if not found:
        return None
    line = f"Intervals and p-values hold for all {count(len(found))} categories at once (max-T)."
    shown = table("The same in numbers", tables.losses(report))
    return Section("Gained and lost", (line,), "categories", folded=nonempty((shown,)))


def _least(found: Sequence[Row]) -> str:
    """How large a loss must be to be detected, in the categories that need least and most."""
    sizes = [
        (size, clean(pair.get("category")))
        for pair in found
        if (size := number(pair.get("least"))) is not None
    ]
    if not sizes:
        return ""
    low, high = (f"{points(size)} ({name})" for size, name in (min(sizes), max(sizes)))
    return f"The smallest loss that these items can show is {low} to {high}."


def losses(report: Report) -> list[str]:
    """Categories in which the soup is below the best single, and which of these losses chance does not explain."""
    lost = part(report, "losses")
    pairs = entries(lost, "categories")
    if not pairs:
        return []
    head = (
        f"Against {clean(lost.get('against'))}, the best single, the soup is better in {count(lost.get('above'))} of "
        f"{count(len(pairs))} categories, worse in {count(lost.get('below'))} and level in {count(lost.get('level'))}."
    )
    if not number(lost.get("below")):
        return [f"{head} {_least(pairs)}".strip()]
    worst = min(pairs, key=lambda pair: gain(pair.get("difference")))
    names = [pair.get("category") for pair in pairs if pair.get("verdict") == "lower"]
    who = f"The loss in {in_words(names)}" if names else "No loss"
    size = f"{points(worst.get('difference'), sign=True)} ({limits(worst)}, for all categories at once)"
    beyond = f"{who} is larger than chance explains; the largest is in {clean(worst.get('category'))}, {size}."
    return [f"{head} {beyond} {_least(pairs)}".strip()]


def warnings(report: Report) -> list[str]:
    """The run's warnings; lost answers are reported once, not for every stage."""
    every = texts(report, "warnings")
    lost = [line for line in every if LOST in line]
    more = f" (the same in {count(len(lost) - 1)} later stages)" if len(lost) > 2 else ""
    return [f"{line}{more}" if line in lost else line for line in every if line not in lost[1:]]


def endings(report: Report) -> list[str]:
    """Models with answers cut off or missing, and what the variance is split into."""
    lines = list[str]()
    if lost := _incomplete(report):
        shares = [
            sum(number(row.get(key)) or 0.0 for key in ("truncated", "unanswered")) for row in lost
        ]
        who = [
            f"{clean(row['name'])} {percent(share)} %"
            for row, share in zip(lost, shares, strict=True)
        ]
        lines.append(
            f"Answers that were cut off or are missing count as wrong in scores: {in_words(who)}. "
            "Missing ones may be right for one model and wrong for the other in differences."
        )
        if sensitivity := clean(part(report, "verdict").get("sensitivity")):
            lines.append(sensitivity)
    elif part(report, "outcomes"):
        lines.append("Every answer ended by itself: none was cut off, none is missing.")
    if part(report, "variance"):
        lines.append(
            "Each item was answered several times: the table splits the variance into answers and items."
        )
    return lines


def _incomplete(report: Report) -> list[Row]:
    """How the answers ended of the models with answers cut off or missing."""
    outcomes = part(report, "outcomes")
    every = [{**part(outcomes, name), "name": name} for name in outcomes]
    return [row for row in every if row.get("truncated") or row.get("unanswered")]


def _outcomes(report: Report) -> Iterator[Section | None]:
    """Answers that are cut off or missing by model, and the variance of answers."""
    columns: Columns = {
        "model": of("name"),
        "cut off %": of("truncated", percent),
        "missing %": of("unanswered", percent),
        "items": of("items", count),
        "why missing": lambda row: ", ".join(
            f"{clean(why)} ({count(n)})" for why, n in part(row, "reasons").items()
        ),
    }
    yield table("Answers by model", listing(_incomplete(report), columns, left=(0, 4)))
    yield table("Answers against items", _variance(report))


def _variance(report: Report) -> TableGrid:
    """The objective's standard error, and how much of its variance comes from the draw of the answers."""
    lines, variance = [], part(report, "variance")
    for name, split in ((name, part(variance, name)) for name in variance):
        whole, answers = number(split.get("objective")) or 0.0, number(split.get("answers")) or 0.0
        of_answers = percent(answers / whole if whole else 0.0)
        lines.append(
            (
                clean(name),
                unit().text(math.sqrt(whole), more=1),
                of_answers,
                percent(split.get("flips")),
            )
        )
    error = f"standard error, {unit().name}"
    heads = ("model", error, "of the variance by answers %", "items whose answers score unlike %")
    return grid(heads, lines)


def _experts(report: Report) -> Section | None:
    """The ingredients and what each is the expert of; correlations and all that is luck are folded away."""
    selection = part(report, "selection")
    if not selection:
        return None
    lines = [_chosen(selection)]
    if selection.get("published"):
        lines.append(
            "Selection used published scores: whatever they were measured on, selection has seen."
        )
    lines += [clean(note) for note in elements(selection, "notes")]
    correlation = part(selection, "correlation")
    folded = nonempty(
        (
            Section("How categories correlate", picture="heatmap")
            if correlation.get("matrix")
            else None,
            table("Every correlation with its interval", tables.pairs(report)),
            Section("Chosen again?", tuple(_stability(report))),
            table("Other thresholds, in steps of 0.01", tables.thresholds(report)),
            table("One model left out", tables.jackknife(report)),
        )
    )
    return Section(
        "Why these experts", tuple(lines), grids=(tables.experts(report),), folded=folded
    )


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
    shown = f"all {count(whole)}" if len(low) == whole else in_words(low)
    where = f" Low-correlation categories: {shown}." if low else ""
    names = in_words(elements(selection, "ingredients")) or "nothing"
    return f"{who} chose {names}{f' ({how})' if how else ''}.{where}"


def _stability(report: Report) -> list[str]:
    """Sentences about the bootstrap itself."""
    stability = part(report, "stability")
    lines = [clean(note) for note in elements(stability, "notes")]
    if stability.get("draws"):
        method = f" ({clean(stability['method'])})" if stability.get("method") else ""
        why = "; ".join(
            f"{clean(reason)} ({count(n)})" for reason, n in part(stability, "reasons").items()
        )
        none = f"no selection came out of {count(stability.get('not_estimable'))}{f': {why}' if why else ''}"
        failed = none if number(stability.get("not_estimable")) else "a selection came out of each"
        lines.append(f"{count(stability['draws'])} draws{method}; {failed}.")
    if sizes := part(stability, "sizes"):
        lines.append(
            f"Ingredients: {', '.join(f'{clean(size)} in {share(v)}' for size, v in sizes.items())} of draws."
        )
    noisy = [
        f"{clean(name)} {rho(value)}" for name, value in part(stability, "reliability").items()
    ]
    if noisy:
        lines.append(f"Reliability of the category scores: {', '.join(noisy)}.")
    return lines


def _also(report: Report) -> Section | None:
    measured = entries(report, "also")
    if not measured:
        return None
    line = "Evaluated once the recipe was frozen, on all items; nothing was chosen on them."
    folded = [
        table(f"{clean(entry.get('name'))}: differences", tables.differences(entry))
        for entry in measured
    ]
    lines, grids = (line, *tables.sentences(report)), (tables.overview(report),)
    return Section("Other benchmarks", lines, grids=grids, folded=nonempty(folded))


def _gate(report: Report) -> Section | None:
    checked = part(report, "gate")
    if not checked:
        return None
    title, shown = "Were the single models as expected?", tables.gate(report)
    fold, alarm = clean(checked.get("fold")), percent(checked.get("false_alarm"), 0)
    line = f"Scores on the {fold} fold. With correct models, one falls outside in at most {alarm} % of runs."
    if not checked.get("passed"):
        return Section(title, (line,), grids=(shown,))
    return Section(
        title,
        ("All of them were.",),
        folded=nonempty((table("Expected and measured", shown, line),)),
    )


def _landscape(report: Report, trials: Sequence[Row]) -> Section | None:
    if not trials:
        return None
    reached = number(part(report, "objective").get("search"))
    best = (
        f" The chosen recipe reached {unit().level(reached, more=1)} there."
        if reached is not None
        else ""
    )
    search = part(report, "search")
    alike = clean(search.get("indistinguishable_count"))
    whole = sum(number(trial.get("objective")) is not None for trial in trials)
    rest = (
        f" A part of the fold was enough for {count(len(trials) - whole)} more."
        if whole < len(trials)
        else ""
    )
    lines = (
        f"Soups evaluated on the whole search fold: {count(whole)}.{rest}{best} The best of many scores is optimistic.",
        f"Other soups that may be as good, judging by the items the search evaluated: {alike}."
        if alike
        else "",
        f"It ended: {clean(stopped)}." if (stopped := search.get("stopped")) else "",
    )
    shown = (tables.trials(report, trials),)
    return Section("Landscape of weights", tuple(filter(None, lines)), "landscape", grids=shown)


def _cost(report: Report) -> Section | None:
    """What the run took, and the answers that it did not get."""
    sizes = part(report, "folds")
    items = (
        [f"Items: {', '.join(f'{fold} {count(sizes[fold])}' for fold in FOLDS if fold in sizes)}."]
        if sizes
        else []
    )
    grids = (shown,) if (shown := tables.cost(report)).rows else ()
    return Section(
        "Cost", (*items, *endings(report)), grids=grids, folded=nonempty(_outcomes(report))
    )


def _provenance(report: Report) -> Section | None:
    recipe = part(report, "recipe")
    if not recipe:
        return None
    line = f"Recipe {clean(recipe.get('id'))}: {clean(recipe.get('method'))}, {clean(recipe.get('dtype'))}."
    command = clean(report.get("rebuild"))
    again = (
        f"Run this where the run was started. {REBUILD}"
        if command
        else "No soup was written: none to rebuild."
    )
    folded = nonempty(
        (table("Ingredients, and what proves that they are the same", tables.recipe(report)),)
    )
    return Section("Provenance", (f"{line} {again}",), code=command, folded=folded)


def ended(search: Row) -> str:
    """Why a search ended, in a line; empty where it says nothing."""
    return f"the search ended: {clean(search.get('stopped'))}" if search.get("stopped") else ""


def _alternatives(report: Report) -> Section | None:
    """Score and cost at serving time of the soup, a router and an oracle; None without a report fold."""
    row = next((row for row in entries(report, "rows") if row.get("kind") == "soup"), {})
    soup = number(part(row, "objective").get("mean"))
    found = {name: part(report, name) for name in ("router", "oracle")}
    if soup is None or not found["router"]:
        return None
    labels = {
        "router": "the best ingredient of each category",
        "oracle": "the best answer to each item",
    }
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


# Analyses: each registers how it is shown in its own module.

MODULES = (
    "souping.analysis.consistency",
    "souping.analysis.wins",
    "souping.analysis.shapley",
    "souping.analysis.surface",
    "souping.analysis.guards",
    "souping.analysis.front",
    "souping.analysis.size",
    "souping.paper.reproduction",
)
"""Modules of this package that register a display."""


@dataclass(frozen=True)
class Display:
    """How an analysis is shown, by functions of its data in the report.

    Sections are ordered by `place`; `folded` ones come last, in one section.
    """

    section: Callable[[Row], Section]
    drawings: Sequence[Callable[[Row], Drawing | None]] = ()
    place: int = 9
    folded: bool = False


DISPLAYS: dict[str, Display] = {}
"""{name of an analysis: how it is shown}. Without a display, the `sentences` and `tables` of its data are shown."""


def displays() -> dict[str, Display]:
    """All displays, those of this package included."""
    for module in MODULES:
        importlib.import_module(module)
    return DISPLAYS


def _analyses(report: Report) -> list[tuple[str, Row, Display]]:
    """(name, data, display) of the report's analyses that have data, in the order in which they are shown."""
    data, known = part(report, "analyses"), displays()
    every = [(name, part(data, name), known.get(name) or Display(_plain)) for name in sorted(data)]
    return sorted((one for one in every if one[1]), key=lambda one: one[2].place)


def analysis_sections(report: Report) -> tuple[Section, ...]:
    """A section of each analysis; those without a result are folded away."""
    shown, folded = list[Section](), list[Section]()
    for name, data, display in _analyses(report):
        if reason := _missing(data):
            folded.append(Section(_titled(name), (reason,)))
        else:
            one = display.section(data)
            one = one if one.title else Section(_titled(name), one.lines, grids=one.grids)
            (folded if display.folded else shown).append(one)
    return (*shown, Section("More analyses", folded=tuple(folded)))


def drawings(report: Report) -> list[Drawing]:
    """The pictures of all analyses that have a result."""
    found = [
        (draw, data)
        for _, data, display in _analyses(report)
        if not _missing(data)
        for draw in display.drawings
    ]
    return [drawing for draw, data in found if (drawing := draw(data)) is not None]


def _missing(data: Row) -> str:
    """Why an analysis has no result; empty if it has one."""
    reasons = {"not estimable": data.get("not_estimable"), "it failed": data.get("failed")}
    return next((f"{kind}: {clean(reason)}" for kind, reason in reasons.items() if reason), "")


def _plain(data: Row) -> Section:
    """An analysis without a display."""
    grids = [
        grid(
            texts(shown, "header"),
            [map(clean, row) for row in elements(shown, "rows") if isinstance(row, Sequence)],
        )
        for shown in entries(data, "tables")
    ]
    return Section(
        clean(data.get("title")), tuple(map(clean, texts(data, "sentences"))), grids=tuple(grids)
    )


def _titled(name: str) -> str:
    return clean(name).replace("_", " ").capitalize()
