"""What the report says, section by section; `render` prints it as HTML or Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from souping.core.types import SPLITS
from souping.core.unit import Unit
from souping.report import checkpoint_sections, tables
from souping.report.analysis_results import analysis_sections
from souping.report.cells import Section, TableGrid, grid, nonempty, table
from souping.report.content import (
    CategoryDifference,
    ModelEnds,
    MoreAnswersSummary,
    Report,
    RowDifference,
    SearchSummary,
    SelectionStability,
    SelectionSummary,
    TrialRow,
)
from souping.report.format import (
    ROW_KINDS,
    clean,
    count,
    four_digits,
    in_words,
    p_value,
    percent,
    rho,
    share,
)
from souping.report.recipe import REBUILD, recipe_table

LOST = "models are truncated or missing"
"""Part of every warning about lost answers."""

NEXT = {
    "better_than_every_candidate": "deploy the soup if no loss matters, or the router if it is better and fits",
    "better_than_best_candidate": "deploy the soup if no loss matters; do not claim that it beats every candidate",
    "keep_candidate": "deploy that candidate",
    "no_difference_shown": "add test items, or keep the best candidate",
    "nothing_to_soup": "deploy the ingredient, or select more (selector=all)",
}
"""{claim: what to do with it}"""
FIGURES = {
    "soup": "soup",
    "best_candidate": "best candidate",
    "uniform_all": "uniform over all",
}
"""{role: label} of the models whose scores stand at the top."""


def headline(report: Report) -> str:
    """The verdict's sentence, or what can be said of a run that ended before the test split."""
    if report.verdict and clean(report.verdict.sentence):
        versus_last = checkpoint_sections.versus_last(report) if _measured(report) else ""
        return f"{clean(report.verdict.sentence)} {versus_last}".strip()
    ingredients = report.selection.ingredients if report.selection else ()
    if report.recipe is None:
        if not ingredients:
            return "Nothing was selected."
        return f"Selected {in_words(ingredients)}; the run ended before the search."
    if len(ingredients) == 1:
        return f"Nothing to soup: {clean(ingredients[0])} is the only ingredient."
    return "The search is done; the test split was not opened."


def summary(report: Report) -> list[str]:
    """The sentences below the headline: what to do next, losses, what a score is, the soup and how to load it."""
    lines = report_findings(report)
    claim = report.verdict.claim if report.verdict else ""
    if claim in NEXT:
        better = [_named(pair) for pair in _secondary(report) if _is_better(report, pair)]
        other = f"; or deploy the {in_words(better)}, which scored higher" if better else ""
        lines.insert(0, f"Next ({claim}): {NEXT[claim]}{other}.")
    soup = report.row("soup")
    if soup is not None and soup.scores:
        items = sum(interval.n or 0 for interval in soup.scores.values())
        split = "" if report.dry_run else "test "
        lines.append(
            f"The score is the {_kind(report, len(soup.scores))}, on {count(items)} {split}items."
        )
    recipe = report.recipe
    # Only the command `souping rebuild 'SOUP/recipe.json'` has the soup's folder.
    place = re.search(r"rebuild '?(.+?)/recipe\.json", clean(report.rebuild))
    if place and recipe is not None:
        # In an edited file, the lists may differ in length.
        pairs = zip(recipe.weights, recipe.ingredients, strict=False)
        mixture = " + ".join(f"{four_digits(share)} {clean(name)}" for share, name in pairs)
        lines.append(
            f'The soup is in {place[1]}: {mixture}. Load it with from_pretrained("{place[1]}") of the class that its '
            "README.md names."
        )
    return lines


def _kind(report: Report, categories: int) -> str:
    """What the score is: `mean over 3 categories of percent correct`."""
    meaning = report.unit.meaning
    objective = report.objective
    # An objective that is not a mean, such as the worst category.
    if objective is not None and not objective.coefficients:
        name = clean(objective.name).replace("_", " ")
        return f"{name} of {count(categories)} categories, in {meaning}"
    mean = "mean"
    if objective is not None and len(set(objective.coefficients.values())) > 1:
        mean = "weighted mean"
    return f"{mean} over {count(categories)} categories of {meaning}"


def benchmark(report: Report) -> str:
    """The benchmark's name and note, `demo (BFCL-style questions, not BFCL)`; empty if it is not known."""
    if report.benchmark is None:
        return ""
    name = clean(report.benchmark.name)
    note = clean(report.benchmark.note)
    if name and note and name not in note:
        return f"{name} ({note})"
    return note or name


def kicker(report: Report) -> str:
    """The line above the headline: the run's name, the benchmark, and in a dry run its size."""
    texts = [clean(report.name), benchmark(report)]
    if report.dry_run:
        texts.append(f"dry_run={count(report.dry_run)}")
    return " \N{MIDDLE DOT} ".join(filter(None, texts))


def figures(report: Report) -> list[tuple[str, str, str]]:
    """(label, number, small print) of the numbers at the top: scores of the models in `FIGURES` and the soup's gain."""
    unit = report.unit
    boxes = []
    for kind, label in FIGURES.items():
        row = report.row(kind)
        if row is None:
            continue
        small = unit.interval(row.objective.low, row.objective.high)
        if kind == "best_candidate":
            small = "; ".join(filter(None, (clean(row.name), small)))
        boxes.append((label, f"{unit.score(row.objective.mean)} {unit.symbol}", small))
    pair = report.against("best_candidate")
    if pair is not None:
        small = f"{unit.limits(pair.low, pair.high, pair.level)}; p {p_value(pair.p_shown)}"
        boxes.append(("soup minus best candidate", unit.score(pair.difference, sign=True), small))
    return boxes


def sections(report: Report, trials: Sequence[TrialRow]) -> tuple[Section, ...]:
    """All sections of the report that have something to show, in their order on a page."""
    further = nonempty((tables.similarity(report.similarity), _cost(report)))
    return nonempty(
        (
            _verdict(report),
            *checkpoint_sections.of_checkpoints(report),
            _gains(report),
            _also(report),
            _landscape(report, trials),
            _alternatives(report),
            _experts(report),
            _expected_scores(report),
            *analysis_sections(report, further),
            _provenance(report),
        )
    )


def _verdict(report: Report) -> Section | None:
    """Differences of the soup to the other models and every model's scores; None without a test split."""
    if not report.rows:
        return None
    meaning = report.unit.meaning[0].upper() + report.unit.meaning[1:]
    numbers = (
        f"{meaning} on the test split, which search and selection never saw, with 95 % intervals."
    )
    if report.dry_run:
        numbers = f"{meaning} on a few items of the other splits: a dry run, of which no number means anything."
    if not tables.compared(report):
        return Section("Scores", (numbers,), grids=(tables.scores(report),))
    paired = f"Differences are paired: all models answered the same items. {tables.tested(report)}".strip()
    lines = [paired]
    if not report.dry_run:
        lines.append(_look(report))
    compared = table("The differences in numbers", tables.comparisons(report))
    scores = table("Every model, category by category", tables.scores(report), numbers)
    folded = nonempty((compared, scores))
    return Section("Is the soup better?", tuple(lines), picture="forest", folded=folded)


def _look(report: Report) -> str:
    """A sentence on how often numbers of these items were shown."""
    number = tables.look_of(report)
    look = "First look" if number == 1 else f"Look {count(number)}"
    return f"{look} at these test items in this store. Other stores and reworded items are not counted."


def _gains(report: Report) -> Section | None:
    """The soup against the best candidate in each category; None if they were not compared."""
    pairs = report.losses.categories if report.losses else ()
    if not pairs:
        return None
    line = f"Intervals and p-values hold for all {count(len(pairs))} categories at once (max-T)."
    numbers = table("The same in numbers", tables.loss_table(report, pairs))
    return Section("Gained and lost", (line,), picture="categories", folded=nonempty((numbers,)))


def _least(unit: Unit, pairs: Sequence[CategoryDifference]) -> str:
    """A sentence: how large a loss must be to be detected, in the categories that need least and most."""
    sizes = [(pair.least, clean(pair.category)) for pair in pairs if pair.least is not None]
    if not sizes:
        return ""
    ends = [f"{unit.points(size)} ({name})" for size, name in (min(sizes), max(sizes))]
    return f"The smallest loss that these items can show is {' to '.join(ends)}."


def losses(report: Report) -> list[str]:
    """A sentence on the categories in which the soup is below the best candidate, and which of these losses are
    significant; none if there is nothing to claim."""
    if report.losses is None or not report.losses.categories or not _measured(report):
        return []
    unit = report.unit
    counts = report.losses
    pairs = counts.categories
    worse = [pair for pair in pairs if pair.verdict == "lower"]
    head = (
        f"Of {count(len(pairs))} categories, the soup is ahead of {clean(counts.against)}, the best candidate, "
        f"in {count(counts.above)} and behind in {count(counts.below)}"
    )
    if worse:
        categories = "One category is"
        if len(worse) > 1:
            categories = f"{count(len(worse))} categories are"
        head += f". {categories} worse: {in_words([_loss(unit, pair) for pair in worse])}"
    elif counts.below:
        worst = min(pairs, key=lambda pair: unit.gain(pair.difference))
        head += f", but no loss is larger than chance explains: the largest is {_loss(unit, worst)}"
    return [f"{head}. {_least(unit, pairs)}".strip()]


def _measured(report: Report) -> bool:
    """Whether the run reached the test split with enough answers for a claim."""
    return report.verdict is not None and report.verdict.claim != "not_measured"


def report_findings(report: Report) -> list[str]:
    """The sentences below the headline wherever it is shown: on losses, the router and better uniform soups."""
    sentences = losses(report)
    for pair in _secondary(report):
        # That the soup is better than a uniform one is no news.
        if pair.kind == "router" or _is_better(report, pair):
            sentences.append(_versus(report, pair))
    return sentences


def _secondary(report: Report) -> list[RowDifference]:
    """The soup minus the router and the uniform soups, each once, if one of the two is shown to be better."""
    if not _measured(report) or report.dry_run:
        return []
    # Imported late: a soup's card has no comparisons, and needs no statistics.
    from souping.statistics.corrections import ALPHA

    pairs: dict[str, RowDifference] = {}
    for pair in report.comparisons or ():
        # A router that is one model is no router.
        is_router = pair.kind == "router" and bool(tables.router_cost(report))
        if not is_router and not pair.kind.startswith("uniform"):
            continue
        if pair.p_holm is not None and pair.p_holm < ALPHA:
            pairs.setdefault(pair.b, pair)
    return list(pairs.values())


def _is_better(report: Report, pair: RowDifference) -> bool:
    """Whether the other model of a pair scored higher than the soup."""
    return report.unit.gain(pair.difference) < 0


def _named(pair: RowDifference) -> str:
    """`router`, or `soup that is uniform over the ingredients`."""
    if pair.kind == "router":
        return pair.kind
    return f"soup that is {ROW_KINDS.get(pair.kind, clean(pair.kind))}"


def _versus(report: Report, pair: RowDifference) -> str:
    """A sentence on the router, with its price, or on a uniform soup against the soup."""
    unit = report.unit
    comparison = "better" if _is_better(report, pair) else "worse"
    name = f"The {_named(pair)}"
    other = "it"
    if pair.kind == "router":
        other = pair.kind
        price = tables.router_cost(report)
        name = f"A router over the ingredients by category ({price} of each request)"
    return (
        f"{name} is {comparison} than the soup: soup minus {other} is {unit.points(pair.difference, sign=True)} "
        f"({unit.limits(pair.low, pair.high, pair.level)}, Holm-corrected p {p_value(pair.p_holm)})."
    )


def _loss(unit: Unit, pair: CategoryDifference) -> str:
    """`java, -4.0 points (95 % interval -7.1 to -0.9, for all categories at once)`"""
    size = unit.points(pair.difference, sign=True)
    limits = unit.limits(pair.low, pair.high, pair.level)
    return f"{clean(pair.category)}, {size} ({limits}, for all categories at once)"


def warnings(report: Report) -> list[str]:
    """The run's warnings. Each step may warn of lost answers: only the first of these warnings is kept, with the number
    of the others if there are several."""
    lost_answers = [line for line in report.warnings or () if LOST in line]
    repeated = ""
    if len(lost_answers) > 2:
        repeated = f" (the same in {count(len(lost_answers) - 1)} later steps)"

    lines = []
    for line in report.warnings or ():
        if LOST not in line:
            lines.append(line)
        elif not any(LOST in earlier for earlier in lines):
            lines.append(f"{line}{repeated}")
    return lines


def endings(report: Report) -> list[str]:
    """Sentences on answers that were truncated or are missing, and on the variance of answers."""
    lines = list[str]()
    incomplete = _incomplete(report)
    if incomplete:
        shares = []
        for name, ends in incomplete.items():
            # In an edited file, one of the two may be missing.
            share_lost = (ends.truncated or 0.0) + (ends.unanswered or 0.0)
            shares.append(f"{clean(name)} {percent(share_lost)} %")
        lines.append(
            f"Answers that were truncated or are missing: {in_words(shares)}. Missing answers count as wrong; "
            "truncated ones are scored as they stand. In differences a missing answer may be right for one model alone."
        )
        if report.verdict and report.verdict.sensitivity:
            lines.append(clean(report.verdict.sensitivity))
    elif report.outcomes:
        lines.append("Every answer ended by itself: none was truncated, none is missing.")
    if report.variance:
        lines.append(
            "Each item was answered several times: the table splits the variance into answers and items."
        )
    if report.power and report.power.more:
        lines.append(
            f"As planned before the test, {more_in_words(report.power.more, report.unit)}."
        )
    return lines


def more_in_words(more: MoreAnswersSummary, unit: Unit) -> str:
    """The gain that is shown with one more answer to each item, and with as many answers to new items."""
    answers, items = unit.score(more.answers_gain), unit.score(more.items_gain)
    return (
        f"one more answer to each item would show a gain of {answers} {unit.name}, as many answers to "
        f"{count(more.items)} more items one of {items}"
    )


def _incomplete(report: Report) -> dict[str, ModelEnds]:
    """{model with answers truncated or missing: how its answers ended}"""
    outcomes = report.outcomes or {}
    return {name: ends for name, ends in outcomes.items() if ends.truncated or ends.unanswered}


def _outcomes(report: Report) -> Iterator[Section | None]:
    """Answers that are truncated or missing by model, and the variance of answers."""
    lines = []
    for name, ends in _incomplete(report).items():
        shares = (percent(ends.truncated), percent(ends.unanswered))
        lines.append((clean(name), *shares, count(ends.items), ", ".join(_reasons(ends.reasons))))
    header = ("model", "truncated %", "missing %", "items", "why missing")
    yield table("Answers by model", grid(header, lines, left=(0, 4)))
    yield table("Answers against items", _variance(report))


def _reasons(reasons: Mapping[str, int | None]) -> list[str]:
    """`reason (12)` of each in {reason: how often}."""
    return [f"{clean(reason)} ({count(number)})" for reason, number in reasons.items()]


def _variance(report: Report) -> TableGrid:
    """A row per model: its objective's standard error, and how much of the variance comes from the draw of answers."""
    unit = report.unit
    lines = []
    for name, variance in (report.variance or {}).items():
        # No variance if it is missing in an edited file.
        total = variance.objective or 0.0
        answers_share = 0.0
        if total:
            answers_share = (variance.answers or 0.0) / total
        error = unit.text(math.sqrt(total), more=1)
        lines.append((clean(name), error, percent(answers_share), percent(variance.flips)))
    header = (
        "model",
        f"standard error, {unit.name}",
        "of the variance by answers %",
        "items whose answers score unlike %",
    )
    return grid(header, lines)


def _experts(report: Report) -> Section | None:
    """Why the ingredients were selected; correlations and the selection's stability are folded away."""
    selection = report.selection
    if selection is None:
        return None
    lines = [_chosen(selection)]
    if selection.published:
        lines.append(
            "Selection used published scores: whatever they were measured on, selection has seen."
        )
    lines += map(clean, selection.notes)
    folded = list[Section | None]()
    if selection.correlation is not None and selection.correlation.matrix:
        folded.append(Section("How categories correlate", picture="heatmap"))
    stability = report.stability
    if stability is not None:
        folded += [
            table("Every correlation with its interval", tables.correlation_table(stability)),
            Section("Chosen again?", tuple(_stability(stability))),
            table("Other thresholds, in steps of 0.01", tables.thresholds(stability)),
            table("One model left out", tables.jackknife_table(stability)),
        ]
    return Section(
        "Why these experts",
        tuple(lines),
        grids=(tables.experts(report),),
        folded=nonempty(folded),
    )


def _chosen(selection: SelectionSummary) -> str:
    """`soce chose a, b and c (pearson, threshold 0.2, ...). Low-correlation categories: ...`"""
    rule = [clean(selection.metric)]
    if selection.threshold is not None:
        rule.append(f"threshold {four_digits(selection.threshold)}")
    if selection.sign:
        rule.append(f"sign {clean(selection.sign)}")
    if selection.ties:
        rule.append(f"ties {clean(selection.ties)}")
    selector = clean(selection.selector) or "The selector"
    names = in_words(selection.ingredients) or "nothing"
    sentence = f"{selector} chose {names}"
    details = ", ".join(filter(None, rule))
    if details:
        sentence += f" ({details})"
    if not selection.low_correlation:
        return f"{sentence}."

    # Names of all categories would say no more than their number.
    categories = len(selection.correlation.categories) if selection.correlation else 0
    low = in_words(selection.low_correlation)
    if len(selection.low_correlation) == categories:
        low = f"all {count(categories)}"
    return f"{sentence}. Low-correlation categories: {low}."


def _stability(stability: SelectionStability) -> list[str]:
    """Sentences on the bootstrap of the selection: its draws, their numbers of ingredients, and reliability."""
    lines = [clean(note) for note in stability.notes]
    if stability.draws:
        failed = "every draw produced a selection"
        if stability.not_estimable:
            failed = f"{count(stability.not_estimable)} produced no selection"
            reasons = "; ".join(_reasons(stability.reasons))
            if reasons:
                failed += f": {reasons}"
        method = f" ({clean(stability.method)})" if stability.method else ""
        lines.append(f"{count(stability.draws)} draws{method}; {failed}.")
    if stability.sizes:
        sizes = [f"{clean(size)} in {share(draws)}" for size, draws in stability.sizes.items()]
        lines.append(f"Ingredients: {', '.join(sizes)} of draws.")
    if stability.reliability:
        values = [f"{clean(name)} {rho(value)}" for name, value in stability.reliability.items()]
        lines.append(f"Reliability of the category scores: {', '.join(values)}.")
    return lines


def _also(report: Report) -> Section | None:
    """The extra benchmarks: every model's score, and differences by benchmark; None without extra benchmarks."""
    if not report.extra_benchmarks:
        return None
    line = "Evaluated once the weights were fixed, on all items; nothing was chosen on them."
    folded = []
    for entry in report.extra_benchmarks:
        folded.append(table(f"{clean(entry.name)}: differences", tables.differences(entry)))
    lines = (line, *tables.sentences(report))
    grids = (tables.overview_table(report),)
    return Section("Other benchmarks", lines, grids=grids, folded=nonempty(folded))


def _expected_scores(report: Report) -> Section | None:
    """Expected scores beside the measured ones, folded away if all are as expected; None if none was expected."""
    expected_check = report.expected_check
    if expected_check is None:
        return None
    title = "Did the candidates score as expected?"
    scores = tables.expected_scores(report.unit, expected_check)
    alarm = percent(expected_check.false_alarm, 0)
    line = (
        f"Scores on the {clean(expected_check.split)} split. "
        f"With correct models, one falls outside in at most {alarm} % of runs."
    )
    if not expected_check.passed:
        return Section(title, (line,), grids=(scores,))
    folded = nonempty((table("Expected and measured", scores, line),))
    return Section(title, ("All of them did.",), folded=folded)


def _landscape(report: Report, trials: Sequence[TrialRow]) -> Section | None:
    """The search: its trials, and why it stopped; None without trials."""
    if not trials:
        return None
    scored = sum(trial.objective is not None for trial in trials)
    sentences = [f"Trials (soups and single models) on the whole search split: {count(scored)}."]
    if scored < len(trials):
        sentences.append(f"Trials on a part of it: {count(len(trials) - scored)}.")
    if report.objective and report.objective.search is not None:
        reached = report.unit.level(report.objective.search, more=1)
        sentences.append(f"The chosen recipe reached {reached} there.")
    sentences.append("The best of many scores is optimistic.")

    lines = [" ".join(sentences)]
    search = report.search
    if search is not None and search.indistinguishable_count is not None:
        number = clean(search.indistinguishable_count)
        lines.append(
            f"Other soups that may be as good, judging by the items the search evaluated: {number}."
        )
    if search is not None and search.stopped:
        lines.append(f"Search: stopped; {clean(search.stopped)}.")
    grids = (tables.trials(report, trials),)
    return Section("Landscape of weights", tuple(lines), picture="landscape", grids=grids)


def _cost(report: Report) -> Section | None:
    """What the run took: items, answers and time; answers that are truncated or missing are folded away."""
    lines = []
    if report.splits is not None:
        sizes = [(split, vars(report.splits)[split]) for split in SPLITS]
        splits = [f"{split} {count(size)}" for split, size in sizes if size is not None]
        lines.append(f"Items: {', '.join(splits)}.")
    lines += endings(report)
    grids = list[TableGrid]()
    if report.cost:
        amounts = tables.cost(report.cost)
        if amounts.rows:
            grids.append(amounts)
    return Section("Cost", tuple(lines), grids=tuple(grids), folded=nonempty(_outcomes(report)))


def _provenance(report: Report) -> Section | None:
    """The recipe, and the command that makes the soup again; None if the run ended before there was one."""
    recipe = report.recipe
    if recipe is None:
        return None
    line = f"Recipe {clean(recipe.id)}: {clean(recipe.method)}, {clean(recipe.dtype)}."
    command = clean(report.rebuild)
    rebuild = "No soup was written: none to rebuild."
    if command:
        rebuild = f"Run this where the run was started. {REBUILD}"
    lines = [f"{line} {rebuild}"]
    if report.engine:
        lines.append(f"Engine: {clean(report.engine)}.")
    unchecked = report.cost.unchecked_weights if report.cost else None
    for left_out in unchecked or ():
        lines.append(f"Weights in the engine that were not checked: {clean(left_out)}.")
    proofs = table("Ingredients, and what proves that they are the same", recipe_table(recipe))
    return Section("Provenance", tuple(lines), code=command, folded=nonempty((proofs,)))


def ended(search: SearchSummary) -> str:
    """The line of a log on why a search ended; empty if the search does not say."""
    if not search.stopped:
        return ""
    return f"search: stopped; {clean(search.stopped)}"


def _alternatives(report: Report) -> Section | None:
    """Selection bias, and what a router and the upper bound score; None without a test split."""
    unit = report.unit
    router = report.router
    upper_bound = report.upper_bound
    if router is None or upper_bound is None:
        return None
    bias = unit.points(report.selection_bias, sign=True)
    lines = (
        f"Selection bias: the soup's score on the search split minus that on the test split is {bias}.",
        f"Router: {unit.score(router.score)} {unit.symbol}. Each request goes to the ingredient that had the best "
        f"score of its category when the ingredients were selected. It takes {count(router.models)} models in memory, "
        "and the category must be known.",
        f"Upper bound: {unit.score(upper_bound.score)} {unit.symbol}, if each item counts as the best of the "
        "ingredients answers it.",
    )
    return Section("What the soup is up against", lines)
