"""Tables of the report as plain cells: Markdown, HTML, W&B and the terminal print the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Any

from souping.core.text import DASH, confidence
from souping.core.types import frozen
from souping.core.unit import Unit
from souping.core.weight_similarity import PoolSimilarity, Rounding
from souping.report.cells import Section, TableCell, TableGrid, grid
from souping.report.content import (
    CategoryDifference,
    ExpectedSummary,
    ExtraResult,
    JudgedDifference,
    MaybeFloat,
    ModelRow,
    OtherChoice,
    PairedDifference,
    Report,
    RowDifference,
    RunCost,
    ScoreInterval,
    SelectionStability,
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
    seconds_text,
    share,
    verdict_word,
)


def categories(report: Report) -> list[str]:
    """Names of the scored categories, or else of the selection's, in the selection's order; others come last."""
    scored = dict[str, None]()
    for row in report.rows or ():
        scored |= dict.fromkeys(row.scores)
    selected = list[str]()
    if report.selection and report.selection.correlation:
        selected += report.selection.correlation.categories
    order = {name: place for place, name in enumerate(selected)}
    return sorted(scored, key=lambda name: order.get(name, len(order))) or selected


# ---------------------------------------------------------------- models and differences

UNIFORM = "uniform, "
"""How the names of uniform soups begin."""


@frozen
class ShownModel:
    """A model of the report with all its roles."""

    row: ModelRow  # of its first role
    roles: tuple[str, ...]  # kinds of its rows
    labels: tuple[str, ...]  # words for its roles
    price: str = ""  # what it takes to serve if that is more than one model

    @property
    def name(self) -> str:
        """The candidate's name. A soup or a router, whose row is named after its kind, is called by its first role."""
        return self.labels[0] if self.row.name == self.row.kind else clean(self.row.name)

    @property
    def role(self) -> str:
        """The roles that the name does not say, and what the model takes to serve if that is more than one model."""
        roles = [*self.labels]
        if self.row.name == self.row.kind:
            # The first role is the name.
            roles = [f"same as {label.removeprefix(UNIFORM)}" for label in self.labels[1:]]
        return ", ".join(filter(None, (*roles, self.price)))

    @property
    def cell(self) -> TableCell:
        """The name, with the roles in small print."""
        return TableCell(self.name, self.role)


def shown_models(report: Report) -> list[ShownModel]:
    """The models of a report, each once, in the order of `ROW_KINDS`. Rows with one recipe id are one model."""
    order = {kind: place for place, kind in enumerate(ROW_KINDS)}
    rows = sorted(report.rows or (), key=lambda row: order.get(row.kind, len(order)))
    by_recipe = dict[str, list[ModelRow]]()
    for row in rows:
        by_recipe.setdefault(row.recipe_id or row.name, []).append(row)
    models = []
    for model_rows in by_recipe.values():
        kinds = tuple(row.kind for row in model_rows)
        labels = tuple(_label(report, kind) for kind in dict.fromkeys(kinds))
        price = router_cost(report) if "router" in kinds else ""
        models.append(ShownModel(row=model_rows[0], roles=kinds, labels=labels, price=price))
    return models


def _label(report: Report, kind: str) -> str:
    """The words for a kind of row: `uniform, 3 ingredients`, `router`."""
    selection = report.selection
    if selection is None or not kind.startswith("uniform"):
        return ROW_KINDS.get(kind, clean(kind))
    selected = count(len(selection.ingredients))
    sizes = {
        "uniform_selected": f"{selected} ingredients",
        "uniform_topk": f"{selected} best candidates",
        "uniform_all": f"all {count(len(selection.candidates))} candidates",
    }
    return f"{UNIFORM}{sizes[kind]}"


def router_cost(report: Report) -> str:
    """What the router takes to serve; empty if it is one model."""
    models = report.router.models if report.router else None
    if models is None or models <= 1:
        return ""
    return f"{count(models)} models in memory, needs the category"


def scores(report: Report) -> TableGrid:
    """One line per model: objective and every category with 95 % intervals."""
    names = categories(report)
    models = shown_models(report)
    lines = list[tuple[TableCell, ...]]()
    for model in models:
        cells = [_score(report.unit, model.row.scores.get(name)) for name in names]
        lines.append((model.cell, _score(report.unit, model.row.objective), *cells))
    return grid(("model", "overall score", *map(clean, names)), lines, strong=_soup(models))


def _score(unit: Unit, score: ScoreInterval | None) -> TableCell:
    """A mean, with its interval in small print; a dash for None."""
    if score is None:
        return TableCell(DASH)
    return TableCell(unit.score(score.mean), unit.interval(score.low, score.high))


def _soup(models: Sequence[ShownModel]) -> list[int]:
    """The index of the soup, to stress its row; empty if it is not among the models."""
    return [place for place, model in enumerate(models) if model.row.kind == "soup"]


def compared(report: Report) -> list[tuple[ShownModel, RowDifference]]:
    """(model, the soup's difference to it) of every model that the soup was compared with."""
    pairs = []
    for model in shown_models(report):
        differences = [pair for pair in report.comparisons or () if _is_of(pair, model)]
        if differences and "soup" not in model.roles:
            # Of a model's roles, one may be among those that Holm's method corrects.
            corrected = [pair for pair in differences if pair.p_holm is not None]
            pairs.append((model, (corrected or differences)[0]))
    return pairs


def _is_of(pair: RowDifference, model: ShownModel) -> bool:
    """Whether a comparison is with this model: by its name, or by a role that the comparison is named after."""
    return pair.b == model.row.name or (pair.b == pair.kind and pair.b in model.roles)


def whiskers(unit: Unit, pair: PairedDifference) -> str:
    """Interval of a difference: `+0.4 to +6.6`."""
    return unit.interval(pair.low, pair.high, sign=True)


def confidence_of(pairs: Sequence[PairedDifference]) -> str:
    """Confidence level of the intervals of differences, `95 %`: all differences have the level of the first."""
    return confidence(pairs[0].level if pairs else None)


def _p_heading(look: int | None) -> str:
    """Title of the p-values that are corrected for this look and those before."""
    return f"p (look {count(look)})" if look and look > 1 else "p"


def comparisons(report: Report) -> TableGrid:
    """One line per other model: the soup's paired difference to it, with interval and p-values."""
    pairs = compared(report)
    interval = f"{confidence_of([pair for _, pair in pairs])} interval"
    holm = any(pair.p_holm is not None for _, pair in pairs)
    header = ["soup minus", "difference", interval, _p_heading(look_of(report))]
    if holm:
        header.append("p (Holm)")

    lines = list[tuple[str | TableCell, ...]]()
    for model, pair in pairs:
        difference = report.unit.score(pair.difference, sign=True)
        p_values = [p_value(pair.p_shown)]
        if holm:
            p_values.append(p_value(pair.p_holm))
        numbers = (difference, whiskers(report.unit, pair), *p_values, percent(pair.discordant))
        lines.append((model.cell, *numbers))
    return grid([*header, "answered differently %"], lines)


def summary_table(report: Report) -> TableGrid:
    """Every model's objective with the soup's paired difference to it, in the narrow form of a terminal."""
    unit = report.unit
    models = shown_models(report)
    pairs = {model.row.name: pair for model, pair in compared(report)}
    lines = list[tuple[str | TableCell, ...]]()
    for model in models:
        score = model.row.objective
        pair = pairs.get(model.row.name)
        difference = ("", "")
        if pair is not None:
            limits = unit.brackets(pair.difference, pair.low, pair.high, sign=True)
            difference = (limits, p_value(pair.p_shown))
        shown = unit.brackets(score.mean, score.low, score.high)
        lines.append((model.name, model.role, shown, *difference))
    level = confidence_of(list(pairs.values()))
    minus_it = "soup minus it" if level == "95 %" else f"soup minus it ({level})"
    header = ("model", "role", unit.heading("score"), minus_it, "p")
    return grid(header, lines, left=(0, 1), strong=_soup(models))


def tested(report: Report) -> str:
    """A sentence on the test of the comparisons and its numbers of items and groups, which all share."""
    pairs = compared(report)
    if not pairs or not clean(pairs[0][1].test):
        return ""
    _, pair = pairs[0]
    test = clean(pair.test).replace("_", " ")
    return f"Test: {test}, {count(pair.n)} items in {count(pair.groups)} groups."


def look_of(report: Report) -> int:
    """Number of the look at the test items; without a number in the report, it is a first look."""
    return (report.verdict.look if report.verdict else None) or 1


def loss_table(report: Report, pairs: Sequence[CategoryDifference]) -> TableGrid:
    """The soup's paired difference to another model, category by category; what is lost beyond chance is stressed."""
    unit = report.unit
    header = (
        "category",
        "items",
        "difference",
        f"{confidence_of(pairs)} interval, all at once",
        "p, corrected",
        "smallest difference that would show",
        "the soup is",
    )
    lines = []
    for pair in pairs:
        line = (
            clean(pair.category),
            count(pair.n),
            unit.score(pair.difference, sign=True),
            whiskers(unit, pair),
            p_value(pair.p_at(look_of(report))),
            unit.score(pair.least),
            verdict_word(pair.verdict),
        )
        lines.append(line)
    return grid(header, lines, left=(0, 6), strong=lost(pairs))


def lost(pairs: Sequence[CategoryDifference | JudgedDifference]) -> list[int]:
    """Indices of the differences in which the soup is worse."""
    return [place for place, pair in enumerate(pairs) if pair.verdict == "lower"]


# ---------------------------------------------------------------- selection and recipe


def similarity(pool: PoolSimilarity | None) -> Section | None:
    """How similar the weights of the candidates are; None if that was not measured."""
    if pool is None:
        return None
    header = ["candidate", "cosine", "distance"]
    has_task_vectors = any(model.task_cosine is not None for model in pool.models.values())
    if has_task_vectors:
        header += ["cosine of task vectors", "distance of task vectors"]
    rows = []
    for name, model in pool.models.items():
        numbers = [model.cosine, model.distance]
        if has_task_vectors:
            numbers += [model.task_cosine, model.task_distance]
        rows.append((clean(name), *map(rho, numbers)))
    lines = [
        "Cosine and relative distance of each candidate's weights to the mean of the others, "
        f"from {count(pool.blocks)} sampled blocks."
    ]
    if len(pool.groups) == 1:
        lines.append("The weights of all candidates are related.")
    elif pool.groups:
        lines.append(f"The candidates fall into {len(pool.groups)} groups of related weights.")
    else:
        lines.append(
            "Adapters share the weights of their base. Their task vectors are what they add to it."
        )
    if pool.rounding is not None:
        lines.append(_rounding(pool.rounding))
    if pool.truncation is not None:
        moved = share(pool.truncation)
        lines.append(
            f"Truncation to `merge.rank` moves the soup by {moved} of what it adds to the base."
        )
    return Section("How similar the weights are", tuple(lines), grids=(grid(header, rows),))


def _rounding(rounding: Rounding) -> str:
    """A sentence on what rounding to the dtype of storage does to the soup."""
    changes = []
    if rounding.overflows:
        changes.append("makes some weights infinite")
    if rounding.error is not None:
        changes.append(
            f"moves it by {share(rounding.error)} of its distance to the nearest ingredient"
        )
    if rounding.kept is not None:
        changes.append(f"keeps {share(rounding.kept)} of its change from the base model")
    return f"Rounding the soup to {rounding.dtype} {' and '.join(changes) or 'changes nothing'}."


def experts(report: Report) -> TableGrid:
    """One line per ingredient: its weight, its categories, and the share of bootstrap draws that select it again."""
    recipe = report.recipe
    # In an edited file, the lists may differ in length.
    weights = dict(zip(recipe.ingredients, recipe.weights, strict=False)) if recipe else {}
    reselected = (report.stability.ingredients if report.stability else None) or {}
    lines = []
    for name in report.selection.ingredients if report.selection else ():
        weight = DASH
        if recipe:
            # A recipe leaves out ingredients of weight 0.
            weight = four_digits(weights.get(name, 0.0))
        expert_of = ", ".join(_expert_of(report, name)) or DASH
        lines.append((clean(name), weight, expert_of, share(reselected.get(name))))
    header = ("ingredient", "weight", "expert of (picked again)", "chosen again")
    return grid(header, lines, left=(0, 2))


def _expert_of(report: Report, name: str) -> list[str]:
    """`parallel (92 %)`: the categories of an expert, with the share of bootstrap draws that pick it again."""
    if report.selection is None:
        return []
    selection = report.selection
    draws = (report.stability.experts if report.stability else None) or {}
    categories = []
    for category, expert in selection.experts.items():
        experts = [expert]
        # With `ties=all`, candidates with the same score are experts too.
        if selection.ties == "all":
            experts += selection.tied.get(category, ())
        if name not in experts:
            continue
        text = clean(category)
        share_of_draws = draws.get(category, {}).get(name)
        if share_of_draws is not None:
            text += f" ({share(share_of_draws)})"
        categories.append(text)
    return categories


def correlation_table(stability: SelectionStability) -> TableGrid:
    """Every correlation with its intervals: over models, and over resampled items if the items were resampled."""
    header = ["category", "category", "rho", "95 %, over models"]
    resampled = any(pair.bootstrap_low is not None for pair in stability.correlations)
    if resampled:
        header += ["95 %, resampled items", "without noise"]
    lines = []
    for pair in stability.correlations:
        line = [clean(pair.a), clean(pair.b), rho(pair.rho), around(pair.low, pair.high)]
        if resampled:
            line.append(around(pair.bootstrap_low, pair.bootstrap_high))
            line.append(rho(pair.disattenuated))
        lines.append(line)
    return grid(header, lines, left=(0, 1))


def around(low: MaybeFloat, high: MaybeFloat) -> str:
    """Interval of a correlation: `0.12 to 0.80`."""
    if low is None or high is None:
        return "not estimable"
    return f"{rho(low)} to {rho(high)}"


def thresholds(stability: SelectionStability) -> TableGrid:
    """The selection by other thresholds, one line per range with the same ingredients or the same error.

    The range of the threshold that was used is stressed.
    """
    used = stability.threshold
    lines = list[tuple[str, str]]()
    strong = []
    # The thresholds ascend; neighbours with the same ingredients, or the same error, form a range.
    for outcome, choices in groupby(stability.thresholds, lambda choice: _outcome(choice)[0]):
        values = [choice.threshold or 0.0 for choice in choices]
        if used is not None and values[0] <= used <= values[-1]:
            strong.append(len(lines))
        # A range of one threshold shows it once.
        ends = dict.fromkeys((four_digits(values[0]), four_digits(values[-1])))
        lines.append((" to ".join(ends), outcome))
    return grid(("threshold", "ingredients"), lines, left=(0, 1), strong=strong)


def jackknife_table(stability: SelectionStability) -> TableGrid:
    """The selection without each model in turn, one line per model that is left out."""
    lines = [(clean(choice.left_out), *_outcome(choice)) for choice in stability.jackknife]
    return grid(("left out", "ingredients", "low-correlation categories"), lines, left=(0, 1, 2))


def _outcome(choice: OtherChoice) -> tuple[str, str]:
    """(ingredients, low-correlation categories) as text; (the error, "") if nothing was selected."""
    if choice.error:
        return clean(choice.error), ""
    low = ", ".join(map(clean, choice.low_correlation or ()))
    return in_words(choice.ingredients or ()) or DASH, low or DASH


# ---------------------------------------------------------------- search and cost


def cost(cost: RunCost) -> TableGrid:
    """Counts of the run's work, and its time."""
    amounts: dict[str, Any] = {
        "answers generated": cost.evaluated_items,
        "answers taken from the store": cost.reused_items,
        "trials (soups and single models)": cost.trials,
        "wall time": cost.seconds,
        "lost workers": cost.lost_workers,
    }
    amounts |= {clean(key).replace("_", " "): amount for key, amount in cost.others.items()}
    if cost.search is not None:
        amounts["search: answers"] = cost.search.items
        amounts["search: time of answering"] = cost.search.seconds
    times = ("wall time", "search: time of answering")
    lines = []
    for name, amount in amounts.items():
        # What is not known, and what a file holds beside numbers.
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            continue
        show = seconds_text if name in times else count
        lines.append((name, show(amount)))
    return grid(("cost", "amount"), lines)


def trials(report: Report, tried: Sequence[TrialRow], limit: int = 8) -> TableGrid:
    """The `limit` best trials of the search, by objective on the search split; the chosen soup is stressed."""
    unit = report.unit
    names = ingredients(report, tried)
    scored = [trial for trial in tried if trial.objective is not None]
    best = sorted(scored, key=lambda trial: -unit.gain(trial.objective))[:limit]
    lines = []
    for trial in best:
        weights = [four_digits(trial.weights.get(name, 0.0)) for name in names]
        lines.append((count(trial.number), unit.score(trial.objective, more=1), *weights))
    header = ("best trials", unit.heading("overall score"), *map(clean, names))
    soup = report.recipe.id if report.recipe else None
    strong = [place for place, trial in enumerate(best) if trial.recipe_id == soup]
    return grid(header, lines, left=(), strong=strong)


def ingredients(report: Report, tried: Sequence[TrialRow]) -> list[str]:
    """The models whose weights the search varied: the selected ones first, then others that a trial weighs.

    Without trials, the selected ones.
    """
    selected = report.selection.ingredients if report.selection else ()
    weighed = list[str]()
    for trial in tried:
        weighed += trial.weights
    axes = [name for name in selected if name in weighed] or selected
    return list(dict.fromkeys([*axes, *weighed]))


# ---------------------------------------------------------------- checks and other benchmarks


def expected_scores(unit: Unit, expected_check: ExpectedSummary) -> TableGrid:
    """One line per score that was expected of a candidate; those that were missed are stressed."""
    header = (
        "candidate",
        "of",
        unit.heading("expected"),
        unit.heading("measured"),
        "allowed",
        "items",
        "verdict",
    )
    lines = []
    missed = []
    for place, check in enumerate(expected_check.checks):
        scores = (unit.score(check.expected), unit.score(check.measured))
        allowed = unit.interval(check.low, check.high)
        model = (clean(check.candidate), clean(check.category) or "overall score")
        lines.append((*model, *scores, allowed, count(check.n), clean(check.verdict)))
        if check.verdict != "as expected":
            missed.append(place)
    return grid(header, lines, left=(0, 1, 6), strong=missed)


def overview_table(report: Report) -> TableGrid:
    """One line per model, one column per benchmark: the objective with its interval."""
    benchmarks = report.extra_benchmarks or ()
    # Per benchmark {model: cell}. A model may be missing on one of them.
    columns = []
    for entry in benchmarks:
        columns.append({clean(row.name): _score(entry.unit, row.objective) for row in entry.rows})
    names = list(dict.fromkeys(chain.from_iterable(columns)))
    lines = []
    for name in names:
        cells = [column.get(name, TableCell(DASH)) for column in columns]
        lines.append((TableCell(name), *cells))
    titles = [entry.unit.heading(clean(entry.name)) for entry in benchmarks]
    strong = [place for place, name in enumerate(names) if name == "soup"]
    return grid(("model", *titles), lines, strong=strong)


def differences(entry: ExtraResult) -> TableGrid:
    """The soup's paired difference to each ingredient on one benchmark, then by category; losses are stressed."""
    unit = entry.unit
    pairs: list[JudgedDifference | CategoryDifference] = [*entry.comparisons]
    # A single category would repeat the whole.
    if len(entry.coefficients) > 1:
        pairs += entry.categories
    lines = []
    for pair in pairs:
        category = "all"
        # The p-values of categories hold for all of them already.
        p_holm = None
        if isinstance(pair, CategoryDifference):
            category = clean(pair.category)
        else:
            p_holm = pair.p_holm
        difference = unit.score(pair.difference, sign=True)
        p_values = (p_value(pair.p_at(entry.look)), p_value(p_holm))
        numbers = (difference, whiskers(unit, pair), *p_values)
        items = f"{count(pair.n)} / {count(pair.groups)}"
        lines.append((clean(pair.b), category, *numbers, items, verdict_word(pair.verdict)))
    header = (
        "soup minus",
        "category",
        "difference",
        f"{confidence_of(pairs)} interval",
        _p_heading(entry.look),
        "p (Holm)",
        "items / groups",
        "the soup is",
    )
    return grid(header, lines, left=(0, 1, 7), strong=lost(pairs))


def sentences(report: Report) -> Iterator[str]:
    """Sentences on the soup's losses on each extra benchmark, or on how much it may have lost without showing it."""
    for entry in report.extra_benchmarks or ():
        yield from _sentences(entry)


def _sentences(entry: ExtraResult) -> Iterator[str]:
    """Sentences on one benchmark: prompts that the run shares with it, and losses overall and in single categories."""
    unit = entry.unit
    name = clean(entry.name)
    if entry.shared:
        prompts = f"{count(entry.shared)} of its {count(entry.items)} prompts"
        yield f"{name}: {prompts} stand in the run's own benchmark too, where the weights were chosen."

    losses = [pair for pair in entry.comparisons if pair.verdict == "lower"]
    for loss in losses:
        size = unit.points(abs(loss.difference or 0.0))
        interval = f"{confidence(loss.level)} interval of the difference {whiskers(unit, loss)}"
        yield (
            f"{name}: the soup is worse than {clean(loss.b)} by {size} "
            f"({interval}, p {p_value(loss.p_holm)})."
        )
    if entry.comparisons and not losses:
        worst = min(entry.comparisons, key=lambda pair: unit.gain(_worst_limit(unit, pair)))
        least = unit.points(_worst_limit(unit, worst), sign=True)
        yield f"{name}: no regression shown; the intervals reach to {least} ({clean(worst.b)})."

    categories = []
    for pair in entry.categories:
        # A single category would repeat the whole.
        if pair.verdict == "lower" and len(entry.coefficients) > 1:
            change = unit.score(pair.difference, sign=True)
            categories.append(f"{pair.category} ({pair.b}, {change})")
    if categories:
        yield (
            f"{name}: single categories in which the soup is worse than an ingredient: "
            f"{in_words(categories)}."
        )


def _worst_limit(unit: Unit, pair: PairedDifference) -> float | None:
    """The limit of a difference at which the soup is worst."""
    return min((pair.low, pair.high), key=unit.gain)
