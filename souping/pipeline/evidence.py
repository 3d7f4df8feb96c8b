"""Evidence: what a report says of expected scores, contenders and extra benchmarks.

Contenders are compared on the report fold, with intervals, paired differences, losses and a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from souping.analysis.correlation import few_models
from souping.analysis.grouped import design
from souping.analysis.intervals import Z95, ItemTable, rate, span
from souping.analysis.max_t import MAX_T, MaxT
from souping.analysis.nested import ZERO_DIFFERENCE
from souping.analysis.shown import picked_tests
from souping.analysis.sign_flip import ALPHA
from souping.analysis.significance import (
    Comparison,
    bound_of,
    bounded,
    compare_on_table,
    corners,
    holm,
    over_looks,
    penalty,
    verdict,
)
from souping.checkpoints.pool import RowKind
from souping.core.protocols import Evaluator, Objective
from souping.core.scores import Mean
from souping.core.types import (
    FloatArray,
    Fold,
    Item,
    ItemScores,
    Recipe,
    ScoreMatrix,
    Selection,
)
from souping.core.unit import MARGIN, Unit
from souping.pipeline.settings import Expectation, RunSettings
from souping.report.files import selection_dict, write_selection
from souping.report.progress import Progress
from souping.search.loop import SearchResult

UNDECIDED = "no difference shown"
ContenderKind = (
    Literal[
        "ingredient",
        "candidate",
        "best_single",
        "uniform_all",
        "uniform_selected",
        "uniform_topk",
        "router",
        "soup",
        "last",
        "scrambled",
    ]
    | RowKind
)
SINGLE_KINDS = ("ingredient", "candidate", "best_single", "last")
FALSE_ALARM = 0.01
"""Chance that a gate of any size stops a run whose candidates all score as published (Bonferroni over its checks)."""
CAUSES = "the chat template, prompt handler, evaluator.stop and max_new_tokens"
WARN, REFUSE = 0.02, 0.2
"""Shares of a model's answers that are cut off or missing: from the first on there is a warning, above the second
nothing is claimed."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Row of the report: a recipe and the role it plays. A model that plays two roles is two contenders."""

    name: str
    kind: ContenderKind
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class ExtraBenchmark:
    """Benchmark (`also`) of which all items are answered once the recipe is frozen. Nothing is chosen on it."""

    name: str
    evaluator: Evaluator
    items: tuple[Item, ...]


# ------------------------------------------------------------ expected scores


def check_expected(
    unit: Unit,
    expected: Sequence[Expectation],
    scores: Mapping[str, ItemScores],
    objective: Objective,
    mode: str,
    fold: Fold,
) -> dict[str, Any]:
    """`gate` of report.json: each expectation with what was measured; `scores` are {candidate: scores on `fold`}.

    A wrong chat template, stop text or token limit moves a candidate far from its published score. A check fails if the
    expected score is outside the interval of the measured one, and all intervals hold at once.
    """
    checks = [
        _check(unit, one, scores[one.candidate], objective, len(expected)) for one in expected
    ]
    passed = all(check["verdict"] == "as expected" for check in checks)
    return {
        "mode": mode,
        "fold": fold,
        "false_alarm": FALSE_ALARM,
        "passed": passed,
        "checks": checks,
    }


def _check(
    unit: Unit, one: Expectation, scores: ItemScores, objective: Objective, count: int
) -> dict[str, Any]:
    table = ItemTable.of(scores.items, objective)
    if one.category is None:
        interval = table.interval(scores.values)
    else:
        mask = table.categories == table.names.index(one.category)
        interval = rate(scores.values[mask], table.groups[mask])
    # both arms, from 95 % to one of `count` checks
    factor = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * count)) / Z95
    bottom, top = span(scores.values)
    low = max(bottom, interval.mean - factor * (interval.mean - interval.low))
    high = min(top, interval.mean + factor * (interval.high - interval.mean))
    found = unit.raw_table({"mean": interval.mean, "low": low, "high": high})
    return {
        "candidate": one.candidate,
        "category": one.category,
        "expected": one.score,
        "measured": found["mean"],
        "low": found["low"],
        "high": found["high"],
        "n": interval.n,
        "groups": interval.groups,
        "verdict": _off(one.score, found["low"], found["high"]),
    }


def _off(expected: float, low: float, high: float) -> str:
    return "too low" if expected > high else "too high" if expected < low else "as expected"


def gate_sentence(gate: Mapping[str, Any]) -> str:
    """Outcome of the gate in one line."""
    failed = [check["candidate"] for check in gate["checks"] if check["verdict"] != "as expected"]
    names = list(dict.fromkeys(failed))
    if not names:
        return f"gate: {len(gate['checks'])} scores as expected on the {gate['fold']} fold"
    verb = "does" if len(names) == 1 else "do"
    return f"gate: {', '.join(names)} {verb} not score as expected on the {gate['fold']} fold: check {CAUSES}"


# ------------------------------------------------------------ selection


def choose(settings: RunSettings, scores: ScoreMatrix, progress: Progress) -> Selection:
    """Pick the ingredients, print them with what a reader must know of the choice, and write selection.json."""
    progress.stage("select: ingredients")
    selection = settings.selector.select_checked(scores)
    few = few_models(len(scores.models)) if selection.correlations is not None else ""
    selection = replace(selection, notes=(*selection.notes, few) if few else selection.notes)
    progress.say(f"selected {', '.join(selection.ingredients)}")
    for note in selection.notes:
        progress.say(f"note: {note}")
    limit = {} if settings.limit is None else {"limit": settings.limit}
    unit = settings.evaluator.unit
    table = selection_dict(unit, selection, scores) | limit
    write_selection(unit, table, settings.run_dir / "selection.json")
    return selection


# ------------------------------------------------------------ comparisons


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Models that are tested together with the soup, because their scores on the items may have been known.

    `missing` of them have no stored answers: each counts as an independent test.
    """

    scores: FloatArray  # [M, I]
    missing: int = 0

    def tests(self, soup: FloatArray, other: FloatArray, table: ItemTable, looks: int) -> float:
        """Number of independent tests for which the comparison of the soup with another model stands."""
        models = np.vstack([soup, *self.scores, other])
        last = len(models) - 1
        pairs = [(model, last) for model in range(last)]
        return self.missing + picked_tests(models, pairs, table, ALPHA / penalty(looks))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Scores [I] of the soup and of another model on the same items.

    `looks` counts the looks at these items, `tests` the comparisons among which this one may have been picked.
    `missing` are the shares [I] of both models' answers that were never received, `cut` those of answers that were cut
    off at the limit of tokens.
    """

    soup: str
    other: str
    ours: FloatArray
    theirs: FloatArray
    table: ItemTable
    same: bool
    looks: int = 1
    tests: float = 1.0
    missing: Sequence[FloatArray] = ()
    cut: Sequence[FloatArray] = ()

    @classmethod
    def of(
        cls,
        soup: Contender,
        other: Contender,
        scores: Mapping[str, ItemScores],
        table: ItemTable,
        looks: int = 1,
        shown: Shown | None = None,
    ) -> Pair:
        """`scores` by recipe id."""
        ours = scores[soup.recipe.id]
        theirs = scores[other.recipe.id]
        same = soup.recipe.id == other.recipe.id
        tests = 1.0
        if looks > 1 and shown is not None and not same:
            tests = shown.tests(ours.values, theirs.values, table, looks)
        return cls(
            soup=soup.name,
            other=other.name,
            ours=ours.values,
            theirs=theirs.values,
            table=table,
            same=same,
            looks=looks,
            tests=tests,
            missing=(ours.unanswered, theirs.unanswered),
            cut=(ours.truncated, theirs.truncated),
        )

    def whole(self) -> Comparison:
        """The comparison on the objective, with a p-value and a level that hold for all `tests`."""
        comparison = compare_on_table(
            (self.soup, self.other),
            self.ours,
            self.theirs,
            self.table,
            looks=self.looks,
            tests=self.tests,
            same_model=self.same,
            missing=self.missing,
        )
        return replace(
            comparison,
            level=1 - ALPHA / penalty(self.looks),
            p_value=min(1.0, self.tests * comparison.p_value),
        )

    def corners(self) -> list[tuple[FloatArray, FloatArray]]:
        return corners(self.ours, self.theirs, self.missing)

    def sensitivity(self, unit: Unit) -> str:
        """The interval if cut answers might be right or wrong as missing ones may; empty if none was cut."""
        if self.same or not any(shares.any() for shares in self.cut):
            return ""
        ours, theirs = (
            np.maximum(scores - shares, 0.0)
            for scores, shares in zip((self.ours, self.theirs), self.cut, strict=True)
        )
        missing = [lost + shares for lost, shares in zip(self.missing, self.cut, strict=True)]
        bounds = replace(self, ours=ours, theirs=theirs, missing=missing).whole()
        raw = unit.raw_table(vars(bounds))
        limits = unit.limits(raw["low"], raw["high"], bounds.level)
        return (
            "Answers cut off at the limit of tokens are scored as they are. If they might be right for one model and "
            f"wrong for the other, {self.soup} minus {self.other} would have the interval {limits}."
        )


def by_category(unit: Unit, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Every pair of models in every category as JSON, with limits and p-values that hold for all at once (max-T).

    `verdict` is about the soup, `least` the smallest difference that is beyond chance.
    """
    pairs = [pair for pair in pairs if not pair.same]
    if not pairs:
        return []
    corner_pairs = [pair.corners() for pair in pairs]
    families = []
    for corner in range(max(len(scores) for scores in corner_pairs)):
        scores = [known[min(corner, len(known) - 1)] for known in corner_pairs]
        families.append(_category_family(pairs, scores))

    tables = []
    for found in zip(*families, strict=True):
        shown = bounded([comparison for _, comparison, _ in found])
        category, _, least = found[0]
        verdict = "higher" if shown.low > 0 else "lower" if shown.high < 0 else UNDECIDED
        words = {"least": unit.size(least), "verdict": verdict}
        tables.append({"category": category, **shown.as_dict(unit), **words})
    return tables


def _category_family(
    pairs: Sequence[Pair], scores: Sequence[tuple[FloatArray, FloatArray]]
) -> list[tuple[str, Comparison, float]]:
    """(category, comparison, smallest difference that is beyond chance) of every pair, with these scores of both."""
    cells = []
    for pair, (ours, theirs) in zip(pairs, scores, strict=True):
        for number, name in enumerate(pair.table.names):
            place = pair.table.categories == number
            cells.append((pair, name, ours[place], theirs[place], pair.table.groups[place]))
    differences = [design(a - b, 0 * groups, groups, np.ones(1)) for _, _, a, b, groups in cells]
    bounds = [
        bound_of(difference, a, b)
        for difference, (_, _, a, b, _) in zip(differences, cells, strict=True)
    ]
    level = ALPHA / penalty(pairs[0].looks)
    picked = max(pair.tests for pair in pairs)
    alpha = level / picked
    members = [np.unique(groups) for _, _, _, _, groups in cells]
    family = MaxT.of(differences, members, bounds, alpha)
    least = family.least if np.isfinite(bounds).all() else family.critical * family.errors

    rows = []
    for f, (pair, name, a, b, _) in enumerate(cells):
        low, high = family.intervals[f].limits(alpha)
        comparison = Comparison(
            a=pair.soup,
            b=pair.other,
            difference=differences[f].objective,
            low=low,
            high=high,
            level=1 - level,
            p_value=min(1.0, picked * family.intervals[f].p_value()),
            test=MAX_T,
            n=len(a),
            groups=len(members[f]),
            discordant=float((np.abs(a - b) > ZERO_DIFFERENCE).mean()),
        )
        rows.append((name, comparison, float(least[f])))
    return rows


def judged(unit: Unit, comparisons: Sequence[Comparison], looks: int = 1) -> list[dict[str, Any]]:
    """Comparisons as JSON with Holm's p-value and the verdict on the soup."""
    adjusted = holm([over_looks(c.p_value, looks) for c in comparisons])
    words = {1: "higher", -1: "lower"}
    return [
        {
            **c.as_dict(unit),
            "p_holm": p,
            "verdict": words[int(np.sign(c.difference))]
            if p < ALPHA and c.difference
            else UNDECIDED,
        }
        for c, p in zip(comparisons, adjusted, strict=True)
    ]


def row(unit: Unit, contender: Contender, scores: ItemScores, table: ItemTable) -> dict[str, Any]:
    """One row of `report.json`: rates of each category and the objective, with 95 % intervals."""
    values = scores.values
    by_category = {}
    for number, name in enumerate(table.names):
        mask = table.categories == number
        by_category[name] = rate(values[mask], table.groups[mask]).as_dict(unit)
    total = table.interval(values)
    return {
        "name": contender.name,
        "kind": contender.kind,
        "recipe_id": contender.recipe.id,
        "scores": by_category,
        "objective": total.as_dict(unit),
    }


def gather(
    unit: Unit,
    contenders: Sequence[Contender],
    scores: Mapping[str, ItemScores],
    objective: Objective,
    selected: Sequence[str],
    opened: int,
    margin: float = MARGIN,
    length_key: str = "",
    mixture: Comparison | None = None,
    shown: Shown | None = None,
) -> dict[str, Any]:
    """`rows`, `comparisons`, `losses`, `outcomes`, `variance` and `verdict` of the report.

    The soup is the last contender; `opened` is the number of looks at these items, `margin` the gain (of inner scores)
    below which a single model is kept; `length_key` the setting to raise where answers were cut off; `mixture` the
    comparison of the best mixture with a single model that the search keeps, `shown` the models that are tested
    together with the soup.
    """
    soup, others = contenders[-1], contenders[:-1]
    table = ItemTable.of(scores[soup.recipe.id].items, objective)
    pairs = {
        other.kind + other.name: Pair.of(soup, other, scores, table, opened, shown)
        for other in others
    }
    compared = [(other, pairs[other.kind + other.name].whole()) for other in others]
    singles = [other for other in others if other.kind in ("ingredient", "candidate")]
    best = next(other for other in others if other.kind == "best_single")
    ends = {c.name: outcomes(scores[c.recipe.id], table) for c in contenders}
    result = verdict(
        unit,
        soup.name,
        [comparison for other, comparison in compared if other in singles],
        candidates=[single.name for single in singles],
        best_single=best.name,
        selected=selected,
        recipe=soup.recipe.ingredients,
        opened=opened,
        margin=margin,
        unmeasured=unmeasured({c.name: ends[c.name] for c in [*singles, best, soup]}, length_key),
        mixture=mixture,
    )
    sensitivity = pairs[best.kind + best.name].sensitivity(unit)
    return {
        "rows": [row(unit, c, scores[c.recipe.id], table) for c in contenders],
        "comparisons": _with_holm(unit, compared, opened),
        "losses": losses(unit, pairs[best.kind + best.name]),
        "outcomes": ends,
        "variance": {
            c.name: v for c in [*singles, soup] if (v := variance(unit, scores[c.recipe.id], table))
        },
        "verdict": {
            **asdict(result),
            "opened": opened,
            "margin": unit.size(margin),
            **({"sensitivity": sensitivity} if sensitivity else {}),
        },
    }


def compare_on(
    benchmark: ExtraBenchmark,
    soup: Recipe,
    ingredients: Mapping[str, Recipe],
    measured: Mapping[str, ItemScores],
    looks: int = 1,
    shown: Shown | None = None,
) -> dict[str, Any]:
    """Entry of `also` in the report: rows, and the soup's paired differences to each ingredient, also by category.

    `measured` is {recipe id: scores}. Holm's correction is over the ingredients for the whole benchmark; limits and
    p-values of single categories hold for all pairs of ingredient and category at once.
    """
    unit = benchmark.evaluator.unit
    singles = [
        Contender(name=name, kind="ingredient", recipe=recipe)
        for name, recipe in ingredients.items()
    ]
    rows = [*singles, Contender(name="soup", kind="soup", recipe=soup)]
    table = ItemTable.of(benchmark.items, Mean())
    pairs = [Pair.of(rows[-1], c, measured, table, looks, shown) for c in singles]
    return {
        "name": benchmark.name,
        "evaluator": benchmark.evaluator.title,
        "unit": asdict(unit),
        "items": len(benchmark.items),
        "groups": len(np.unique(table.groups)),
        "coefficients": {}
        if table.value
        else dict(zip(table.names, table.coefficients.tolist(), strict=True)),
        "rows": [row(unit, c, measured[c.recipe.id], table) for c in rows],
        "outcomes": {c.name: outcomes(measured[c.recipe.id], table) for c in rows},
        "opened": looks,
        "comparisons": judged(unit, [pair.whole() for pair in pairs], looks),
        "categories": by_category(unit, pairs),
    }


def best_mixture(
    outcome: SearchResult, items: Sequence[Item], objective: Objective
) -> Comparison | None:
    """The best mixture minus the single model that the search keeps, on the search items that the mixture answered.

    Of the mixtures that answered most; None if a mixture won, or none answered items of every category.
    """
    mixed = [
        t
        for t in outcome.trials
        if len(t.recipe.ingredients) > 1 and np.isfinite(t.result.objective)
    ]
    if len(outcome.recipe.ingredients) > 1 or not mixed:
        return None
    best = max(mixed, key=lambda trial: (trial.result.items, trial.result.objective))
    place = np.flatnonzero(np.isfinite(best.result.values))
    table = ItemTable.of([items[n] for n in place], objective)
    ours, theirs = best.result.values[place], outcome.result.values[place]
    names = ("the best mixture", outcome.recipe.ingredients[0])
    return compare_on_table(names, ours, theirs, table)


def dry_verdict(limit: int | None) -> dict[str, Any]:
    """What a verdict on a few items that are not the report fold's says: nothing."""
    sentence = f"Dry run on at most {limit} items a category and fold, none of the report fold's: nothing is claimed."
    return {"claim": "dry_run", "sentence": sentence, "p_value": None}


def _with_holm(
    unit: Unit, pairs: Sequence[tuple[Contender, Comparison]], opened: int
) -> list[dict[str, Any]]:
    """Comparisons as JSON, `p_look` corrected for the looks. The candidates' p-values serve the intersection-union
    claim and need no other correction; those with the baselines are secondary and carry Holm's too. One soup under two
    names is one test."""
    corrected = [over_looks(comparison.p_value, opened) for _, comparison in pairs]
    baselines = {
        c.recipe.id: corrected[n] for n, (c, _) in enumerate(pairs) if c.kind not in SINGLE_KINDS
    }
    adjusted = dict(zip(baselines, holm(list(baselines.values())), strict=True))
    rows = []
    for (c, comparison), p_look in zip(pairs, corrected, strict=True):
        p_holm = None if c.kind in SINGLE_KINDS else adjusted[c.recipe.id]
        rows.append(
            {**comparison.as_dict(unit), "kind": c.kind, "p_look": p_look, "p_holm": p_holm}
        )
    return rows


def losses(unit: Unit, pair: Pair) -> dict[str, Any] | None:
    """The soup against the best single by category; None if they are one model or there is one category."""
    if pair.same or len(pair.table.names) < 2:
        return None
    tables = by_category(unit, [pair])
    signs = [int(np.sign(round(unit.gain(table["difference"]), 12))) for table in tables]
    counts = {"above": signs.count(1), "below": signs.count(-1), "level": signs.count(0)}
    return {"against": pair.other, **counts, "categories": tables}


def outcomes(scores: ItemScores, table: ItemTable) -> dict[str, Any]:
    """How a model's answers ended: shares that were cut off (`truncated`) or are missing (`unanswered`), and why."""
    masks = {name: table.categories == number for number, name in enumerate(table.names)}
    return {
        **_ends(scores, slice(None)),
        "reasons": dict(scores.reasons),
        "categories": {name: _ends(scores, mask) for name, mask in masks.items()},
    }


def _ends(scores: ItemScores, which: slice | NDArray[np.bool_]) -> dict[str, Any]:
    cut, missing = scores.truncated[which], scores.unanswered[which]
    return {"items": len(cut), "truncated": float(cut.mean()), "unanswered": float(missing.mean())}


def unmeasured(ends: Mapping[str, Mapping[str, Any]], length_key: str = "") -> str:
    """The model with the most answers cut off or missing, if they are too many for a claim; else empty."""
    worst = max(ends, key=lambda name: _lost(ends[name]))
    if _lost(ends[worst]) <= REFUSE:
        return ""
    return (
        f"{_describe(worst, ends[worst])}; such answers count as wrong, so nothing is claimed where they are more than "
        f"{100 * REFUSE:.0f} %. Before the next run {_remedy(ends[worst], length_key)}."
    )


def lost_answers(scores: Mapping[str, ItemScores], where: str, length_key: str = "") -> list[str]:
    """A warning if 2 % or more of a model's answers in a stage are cut off or missing; {model: scores}."""
    ends = {
        name: {**_ends(own, slice(None)), "reasons": own.reasons} for name, own in scores.items()
    }
    hit = [name for name in ends if _lost(ends[name]) >= WARN]
    if not hit:
        return []
    worst = max(hit, key=lambda name: _lost(ends[name]))
    return [
        f"{where}: answers of {len(hit)} of {len(ends)} models are cut off or missing and count as wrong: "
        f"{_describe(worst, ends[worst])}: {_remedy(ends[worst], length_key)}"
    ]


def _lost(ends: Mapping[str, Any]) -> float:
    return float(ends["truncated"] + ends["unanswered"])


def _describe(name: str, ends: Mapping[str, Any]) -> str:
    """`math 34.0 % cut off, 2.0 % missing (prompt does not fit: 12)`."""
    why = max(ends["reasons"], key=ends["reasons"].get, default="")
    reason = f" ({why}: {ends['reasons'][why]:,})" if why else ""
    cut, missing = (100 * ends[key] for key in ("truncated", "unanswered"))
    return f"{name} " + ", ".join(
        [f"{cut:.1f} % cut off"] * (cut > 0) + [f"{missing:.1f} % missing{reason}"] * (missing > 0)
    )


def _remedy(ends: Mapping[str, Any], length_key: str) -> str:
    """What to do about the answers of a model that are cut off or missing."""
    longer = "raise the limit of tokens" + (f" ({length_key})" if length_key else "")
    look = "see why answers are missing (python -m souping show RUN_DIR): prompts longer than the context leave no room"
    return " and ".join([longer] * (ends["truncated"] > 0) + [look] * (ends["unanswered"] > 0))


def variance(unit: Unit, scores: ItemScores, table: ItemTable) -> dict[str, float] | None:
    """Variance of a linear objective, split into the draw of the items and that of their answers; else None.

    An item's score is the mean of its answers, so the variance between items holds that of the answers too. `flips` is
    the share of items whose answers did not all score alike.
    """
    if not np.isfinite(scores.noise).all() or table.value is not None:
        return None
    share = (table.coefficients / np.bincount(table.categories, minlength=len(table.names)))[
        table.categories
    ]
    total = float(
        design(scores.values, table.categories, table.groups, table.coefficients).variances().sum()
    )
    answers = min(total, float((share**2 * scores.noise).sum()))
    parts = {"objective": total, "items": total - answers, "answers": answers}
    flips = float(np.mean(scores.noise > 0))
    return {**{name: value / unit.factor**2 for name, value in parts.items()}, "flips": flips}
