"""What the report says, section by section; `render` sets it as HTML or Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from souping.core.types import elements, entries, number, part, texts
from souping.report import tables
from souping.report.alternatives import alternatives
from souping.report.experts import why
from souping.report.format import clean, count, in_words, interval, limits, p_of, percent, weight
from souping.report.registry import analysis_sections, leading, led, section_of, shown_sections
from souping.report.tables import (
    Report,
    Row,
    Section,
    TableGrid,
    by_category,
    differences,
    gate,
    grid,
    known,
    overview,
    sentences,
    table,
)

REBUILD = (
    "It writes the same bytes again, from the folders recorded in the store or from the Hub at the recipe's commits, "
    "and stops if an ingredient's content differs."
)
LOOKS = "Looks are counted in the run's store by exact prompt: a new store, or reworded items, would not be counted."
LOST = "cut off or missing and count as wrong"
WARN = 0.02
"""Share of lost answers from which a run warns (souping/pipeline/evidence.py)."""


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


def opening(report: Report) -> tuple[str, list[str]]:
    """The page's headline and what stands below it: the verdict with the losses, or what the leading analysis says."""
    told = leading(report)[1]
    return (clean(told["headline"]), []) if told else (headline(report), [*losses(report), *_result(report)])


def _result(report: Report) -> list[str]:
    """What a score is; the soup's weights, where it is, and how it is loaded."""
    scores = next((part(row, "scores") for row in entries(report, "rows") if row.get("kind") == "soup"), {})
    lines, recipe = list[str](), part(report, "recipe")
    if scores:
        even = len(set(part(part(report, "objective"), "coefficients").values())) < 2
        items = sum(number(part(scores, name).get("n")) or 0 for name in scores)
        lines.append(
            f"The score is the {'mean' if even else 'weighted mean'} over {count(len(scores))} categories of percent "
            f"correct, on {count(items)} items{'' if report.get('limit') else ' of the report fold'}."
        )
    if place := re.search(r'recipe="?(.+?)/recipe\.json', clean(report.get("rebuild"))):
        pairs = zip(elements(recipe, "weights"), texts(recipe, "ingredients"), strict=False)
        mixed = " + ".join(f"{weight(share)} {clean(name)}" for share, name in pairs)
        kind = "AutoPeftModel" if part(recipe, "settings").get("adapters") == "keep" else "AutoModel"
        lines.append(f'The soup is in {place[1]}: {mixed}. Load it: {kind}ForCausalLM.from_pretrained("{place[1]}")')
    return lines


def benchmark(report: Report) -> str:
    """`pantry: BFCL-shaped, not BFCL`, as far as it is known."""
    told = report.get("benchmark")
    if not isinstance(told, Mapping):
        return clean(told)
    name, note = clean(told.get("name")), clean(told.get("note"))
    return f"{name} ({note})" if name and note and name not in note else note or name


def kicker(report: Report) -> str:
    """Experiment and benchmark, above the headline."""
    dry = f"dry run, limit={count(report['limit'])}" if report.get("limit") else ""
    shown = [clean(report.get("experiment")), benchmark(report), dry]
    return " \N{MIDDLE DOT} ".join(text for text in shown if text)


def figures(report: Report) -> list[tuple[str, str, str]]:
    """(label, number, small print) of the few numbers that matter most; none where an analysis leads."""
    if leading(report)[0]:
        return []
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


def sections(report: Report, trials: Sequence[Row]) -> tuple[Section, ...]:
    """All sections that have something to show."""
    first = {
        "verdict": _verdict(report),
        "gains": _gains(report),
        "outcomes": None if few_lost(report) else _outcomes(report),
        "also": _also(report),
        "landscape": _landscape(report, trials),
        "alternatives": alternatives(report),
        "why": why(report),
    }
    last = {"gate": _gate(report), "cost": _cost(report), "provenance": _provenance(report)}
    if not leading(report)[0]:
        run, placed = led(report, first)
        return known((*run.values(), *shown_sections(report, placed), *last.values()))
    return _led(report, {**first, **analysis_sections(report), **last})


def _led(report: Report, run: dict[str, Section | None]) -> tuple[Section, ...]:
    """The page of an analysis that leads: its own section, those of the run that it cites, and the rest folded away."""
    name, told = leading(report)
    cited = [_cited(cite, run.pop(key, None)) for key, cite in part(told, "cites").items() if isinstance(cite, Mapping)]
    rest = Section("The run of these soups", (headline(report), *losses(report)), folded=known(run.values()))
    return known((section_of(report, name), *cited, rest))


def _cited(cite: Row, section: Section | None) -> Section:
    """A section under the title by which it is cited; its own words are folded away. None: it was not made."""
    title, lines = clean(cite.get("title")), tuple(texts(cite, "lines"))
    if section is None:
        return Section(title, lines)
    whole = Section("In full", section.lines, grids=section.grids)
    return Section(f"{title}: {section.title}", lines, section.picture, folded=(whole, *section.folded))


def _verdict(report: Report) -> Section | None:
    """Everything that the headline rests on."""
    if not entries(report, "rows"):
        return None
    dry = bool(report.get("limit"))
    numbers = "Percent correct on the report fold, which search and selection never saw, with 95 % intervals."
    if dry:
        numbers = "Percent correct on a few items of the other folds: a dry run, of which no number means anything."
    sizes = table("Items per category", tables.sizes(report))
    if not tables.compared(report):
        return Section("Scores", (numbers,), grids=(tables.scores(report),), folded=known((sizes,)))
    paired = (
        f"Every model answered the same items{'' if dry else ' of the report fold'}, so differences are paired; items "
        f"that share content are one group. {tables.tested(report)}".strip()
    )
    lines = tuple(filter(None, (paired, tables.widened(report), "" if dry else LOOKS)))
    compared = table("The differences in numbers", tables.comparisons(report))
    scores = table("Every model, category by category", tables.scores(report), numbers)
    return Section("Is the soup better?", lines, "forest", folded=known((compared, scores, sizes)))


def _gains(report: Report) -> Section | None:
    found = entries(part(report, "losses"), "categories")
    if not found:
        return None
    shown = table("The same in numbers", tables.losses(report))
    return Section("Gained and lost", (_beyond(report, found),), "categories", folded=known((shown,)))


def _beyond(report: Report, found: Sequence[Row]) -> str:
    """What is beyond chance, each way."""
    parts = []
    for verb, verdict in (("gained", "higher"), ("lost", "lower")):
        pairs = [pair for pair in found if pair.get("verdict") == verdict]
        names = [f"{pair.get('category')} ({percent(pair.get('difference'), sign=True)})" for pair in pairs]
        parts += [f"{verb} {in_words(names)}"] if names else []
    what = " and ".join(parts) or "neither gained nor lost a category"
    against = clean(part(report, "losses").get("against"))
    return (
        f"Against {against}, the soup {what} beyond chance. Intervals and p-values hold for all {count(len(found))} "
        f"categories at once (max-T). {_least(found)}".strip()
    )


def _least(found: Sequence[Row]) -> str:
    """How large a loss must be to be seen, from the category where least is enough to that where most is needed."""
    sizes = [(size, clean(pair.get("category"))) for pair in found if (size := number(pair.get("least"))) is not None]
    if not sizes:
        return ""
    low, high = (f"{percent(size)} points ({name})" for size, name in (min(sizes), max(sizes)))
    return f"The smallest loss that these items can tell from chance is {low} to {high}."


def losses(report: Report) -> list[str]:
    """Categories in which the soup is below the best single, which of them beyond chance, and the worst of them."""
    lost = part(report, "losses")
    pairs = entries(lost, "categories")
    if not pairs:
        return []
    head = (
        f"Against {clean(lost.get('against'))}, the best single, the soup is above in {count(lost.get('above'))} of "
        f"{count(len(pairs))} categories, below in {count(lost.get('below'))} and level in {count(lost.get('level'))}."
    )
    if not number(lost.get("below")):
        return [f"{head} {_least(pairs)}".strip()]
    worst = min(pairs, key=lambda pair: number(pair.get("difference")) or 0.0)
    names = [pair.get("category") for pair in pairs if pair.get("verdict") == "lower"]
    beyond = f"It lost {in_words(names)} beyond chance" if names else "No loss is beyond chance"
    size = f"{percent(worst.get('difference'), sign=True)} points ({limits(worst)})"
    return [
        f"{head} {beyond}, with limits for {count(len(pairs))} categories at once; "
        f"the largest is {clean(worst.get('category'))}, {size}. {_least(pairs)}".strip()
    ]


def warnings(report: Report) -> list[str]:
    """The run's warnings; lost answers are reported once, not for every stage."""
    every = texts(report, "warnings")
    lost = [line for line in every if LOST in line]
    more = f" (the same in {count(len(lost) - 1)} later stages)" if len(lost) > 2 else ""
    return [f"{line}{more}" if line in lost else line for line in every if line not in lost[1:]]


def endings(report: Report) -> list[str]:
    """Models with answers cut off or missing, and what part of the variance comes from the draw of the answers."""
    lost, lines = _hit(report), list[str]()
    if lost:
        who = in_words([f"{clean(name)} {percent(_lost(ends))} %" for name, ends in lost.items()])
        lines.append(f"Answers that were cut off at the limit of tokens, or are missing, count as wrong: {who}.")
    elif part(report, "outcomes"):
        lines.append("Every answer ended by itself: none was cut off, none is missing.")
    if part(report, "variance"):
        lines.append(
            "Each item was answered several times; its score is the mean. The table splits each model's variance into "
            "that of the answers and that of the items."
        )
    return lines


def few_lost(report: Report) -> bool:
    """Whether no model lost as many answers as a run warns of, and each item was answered once."""
    return not part(report, "variance") and all(_lost(ends) < WARN for ends in _hit(report).values())


def _hit(report: Report) -> dict[str, Row]:
    """{model: how its answers ended}, of the models with answers cut off or missing."""
    outcomes = part(report, "outcomes")
    return {name: part(outcomes, name) for name in outcomes if _lost(part(outcomes, name))}


def _lost(ends: Row) -> float:
    return (number(ends.get("truncated")) or 0.0) + (number(ends.get("unanswered")) or 0.0)


def _outcomes(report: Report) -> Section | None:
    """How answers ended, unless all ended by themselves."""
    hit = _hit(report)
    if not hit and not part(report, "variance"):
        return None
    heads, missing = ("cut off %", "missing %", "items"), ("model", "reason", "answers")
    models = [(clean(name), *_ends(ends)) for name, ends in hit.items()]
    reasons = [(clean(n), clean(why), count(k)) for n, ends in hit.items() for why, k in part(ends, "reasons").items()]
    categories = [
        (clean(name), clean(category), *_ends(part(part(ends, "categories"), category)))
        for name, ends in hit.items()
        for category in part(ends, "categories")
        if _lost(part(part(ends, "categories"), category))
    ]
    more = (
        table("Answers by model", grid(("model", *heads), models)),
        table("Answers against items", _variance(report)),
        table("Why there is no answer", grid(missing, reasons, left=(0, 1))),
        table("Answers cut off or missing, by category", grid(("model", "category", *heads), categories, left=(0, 1))),
    )
    return Section("Answers", tuple(endings(report)), folded=known(more))


def _ends(ends: Row) -> tuple[str, ...]:
    return percent(ends.get("truncated")), percent(ends.get("unanswered")), count(ends.get("items"))


def _variance(report: Report) -> TableGrid:
    """The objective's standard error, and how much of its variance comes from the draw of the answers."""
    lines, variance = [], part(report, "variance")
    for name, split in ((name, part(variance, name)) for name in variance):
        whole, answers = number(split.get("objective")) or 0.0, number(split.get("answers")) or 0.0
        of_answers = percent(answers / whole if whole else 0.0)
        lines.append((clean(name), f"{100 * math.sqrt(whole):.2f}", of_answers, percent(split.get("flips"))))
    heads = ("model", "standard error, points", "of the variance by answers %", "items whose answers score unlike %")
    return grid(heads, lines)


def _also(report: Report) -> Section | None:
    measured = entries(report, "also")
    if not measured:
        return None
    lines = (
        "Evaluated once the recipe was frozen, on all items; nothing was chosen on them.",
        *sentences(report),
    )
    folded = [
        table(f"{clean(entry.get('name'))} by category", by_category(entry))
        for entry in measured
        if len(part(entry, "coefficients")) > 1
    ]
    grids = (overview(report),)
    return Section(
        "Other benchmarks", lines, grids=grids, folded=known((table("Differences", differences(report)), *folded))
    )


def _gate(report: Report) -> Section | None:
    checked = part(report, "gate")
    if not checked:
        return None
    title, line = (
        "Were the single models as expected?",
        (
            f"What single models were expected to score, beside what they scored on the {clean(checked.get('fold'))} "
            f"fold before the search. If all are as expected, one or more fall outside with a chance of at most "
            f"{percent(checked.get('false_alarm'), 0)} %."
        ),
    )
    if not checked.get("passed"):
        return Section(title, (line,), grids=(gate(report),))
    return Section(title, ("All of them were.",), folded=known((table("Expected and measured", gate(report), line),)))


def _landscape(report: Report, trials: Sequence[Row]) -> Section | None:
    if not trials:
        return None
    reached = number(part(report, "objective").get("search"))
    best = f" The chosen recipe reached {percent(reached, 2)} % there." if reached is not None else ""
    dropped = sum(number(trial.get("objective")) is None for trial in trials)
    evaluated = len(trials) - dropped
    verb = "soup was" if evaluated == 1 else "soups were"
    was, has = ("was", "has") if dropped == 1 else ("were", "have")
    gone = f" {count(dropped)} more {was} dropped early, after a part of it, and {has} no score here."
    early = gone if dropped else ""
    lines = (
        f"{count(evaluated)} {verb} evaluated on the search fold.{early}{best} "
        "The best of many noisy scores is optimistic; the report fold has other items and gives the unbiased number.",
        " ".join(searched(part(report, "search"))),
    )
    return Section(
        "Landscape of weights", tuple(filter(None, lines)), "landscape", grids=(tables.trials(report, trials),)
    )


def _cost(report: Report) -> Section | None:
    """What the run took, with the answers where they need no section of their own."""
    whole = tables.search_cost(report)
    brief = replace(whole, rows=(*whole.rows[:2], *whole.rows[2:][-1:]))
    grids = tuple(grid for grid in (tables.folds(report), tables.cost(report), brief) if grid.rows)
    few = few_lost(report)
    ended = tuple(endings(report)[:1]) if few else ()
    more = table("The search in detail", whole) if len(whole.rows) > len(brief.rows) else None
    folded = known((more, _outcomes(report) if few else None))
    return Section("Cost", ended, grids=grids, folded=folded) if grids else None


def _provenance(report: Report) -> Section | None:
    recipe = part(report, "recipe")
    if not recipe:
        return None
    line = f"Recipe {clean(recipe.get('id'))}: {clean(recipe.get('method'))}, {clean(recipe.get('dtype'))}."
    command = clean(report.get("rebuild"))
    again = f"Run this where the run was started. {REBUILD}" if command else "No soup was written: none to rebuild."
    folded = known((table("Ingredients, and what proves that they are the same", tables.recipe(report)),))
    return Section("Provenance", (f"{line} {again}",), code=command, folded=folded)


def ended(told: Row) -> str:
    """Why a search ended, in a line; empty where it says nothing."""
    return f"the search ended: {clean(told.get('stopped'))}" if told.get("stopped") else ""


def searched(told: Row) -> list[str]:
    """What a search says of itself."""
    lines = []
    others = number(told.get("indistinguishable_count"))
    if others is not None:
        lines.append(f"Other soups that may be as good, judging by the items the search evaluated: {count(others)}.")
    if told.get("stopped"):
        lines.append(f"It ended: {clean(told.get('stopped'))}.")
    return lines
