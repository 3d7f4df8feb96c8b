"""Evidence: contenders on the report fold, with intervals, paired differences, losses and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from souping.analysis.grouped import GroupedScores, design
from souping.analysis.intervals import ItemTable, rate
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
from souping.core.protocols import Objective
from souping.core.scores import Mean
from souping.core.types import FloatArray, IntArray, Item, ItemScores, Recipe
from souping.core.unit import MARGIN, Unit
from souping.evaluate.identity import title
from souping.pipeline.lost_answers import outcomes, unmeasured
from souping.pipeline.state import SINGLE_KINDS, Contender, ExtraBenchmark
from souping.report.content import (
    CategoryDifference,
    CategoryLosses,
    ExtraResult,
    JudgedDifference,
    ModelEnds,
    ModelRow,
    ObjectiveVariance,
    RowDifference,
    ScoreInterval,
    VerdictSummary,
)
from souping.search.loop import SearchResult

UNDECIDED = "no difference shown"


@dataclass(frozen=True, kw_only=True)
class FamilyScores:
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
    `missing` are the shares [I] of both models' answers that were never received, `truncated` those of answers that
    were cut off at the limit of tokens.
    """

    soup: str
    other: str
    soup_scores: FloatArray
    other_scores: FloatArray
    table: ItemTable
    same_model: bool
    looks: int = 1
    tests: float = 1.0
    missing: Sequence[FloatArray] = ()
    truncated: Sequence[FloatArray] = ()

    @classmethod
    def of(
        cls,
        soup: Contender,
        other: Contender,
        scores: Mapping[str, ItemScores],
        table: ItemTable,
        looks: int = 1,
        family: FamilyScores | None = None,
    ) -> Pair:
        """The pair of two rows from {recipe id: scores}.

        From the second look on, `family` says among how many comparisons this one may have been picked.
        """
        a = scores[soup.recipe.id]
        b = scores[other.recipe.id]
        same_model = soup.recipe.id == other.recipe.id
        tests = 1.0
        if looks > 1 and family is not None and not same_model:
            tests = family.tests(a.values, b.values, table, looks)
        return cls(
            soup=soup.name,
            other=other.name,
            soup_scores=a.values,
            other_scores=b.values,
            table=table,
            same_model=same_model,
            looks=looks,
            tests=tests,
            missing=(a.unanswered, b.unanswered),
            truncated=(a.truncated, b.truncated),
        )

    def compare(self) -> Comparison:
        """The comparison on the objective, with a p-value and a level that hold for all `tests`."""
        comparison = compare_on_table(
            (self.soup, self.other),
            self.soup_scores,
            self.other_scores,
            self.table,
            looks=self.looks,
            tests=self.tests,
            same_model=self.same_model,
            missing=self.missing,
        )
        return replace(
            comparison,
            level=1 - ALPHA / penalty(self.looks),
            p_value=min(1.0, self.tests * comparison.p_value),
        )

    def corners(self) -> list[tuple[FloatArray, FloatArray]]:
        """Scores of both models as they were counted and, if answers are missing, what bounds them."""
        return corners(self.soup_scores, self.other_scores, self.missing)

    def sensitivity(self, unit: Unit) -> str | None:
        """The interval if cut answers might be right or wrong as missing ones may; None if none was cut."""
        if self.same_model or not any(shares.any() for shares in self.truncated):
            return None
        # A cut answer counts as wrong, and as one that may have been right.
        soup_truncated, other_truncated = self.truncated
        pair = replace(
            self,
            soup_scores=np.maximum(self.soup_scores - soup_truncated, 0.0),
            other_scores=np.maximum(self.other_scores - other_truncated, 0.0),
            missing=[a + b for a, b in zip(self.missing, self.truncated, strict=True)],
        )
        bounds = pair.compare()
        raw = unit.raw_table(vars(bounds))
        limits = unit.limits(raw["low"], raw["high"], bounds.level)
        return (
            "Answers cut off at the limit of tokens are scored as they are. If they might be right for one model and "
            f"wrong for the other, {self.soup} minus {self.other} would have the interval {limits}."
        )


@dataclass(frozen=True, kw_only=True)
class CategoryScores:
    """Scores [I] of a pair's soup (a) and of its other model (b) on the items of one category."""

    pair: Pair
    category: str
    a: FloatArray
    b: FloatArray
    groups: IntArray

    def differences(self) -> GroupedScores:
        return design(self.a - self.b, 0 * self.groups, self.groups, np.ones(1))


@dataclass(frozen=True, kw_only=True)
class CategoryComparison:
    """`least` is the smallest difference in a category that is beyond chance."""

    category: str
    comparison: Comparison
    least: float


def by_category(unit: Unit, pairs: Sequence[Pair]) -> tuple[CategoryDifference, ...]:
    """Every pair of models in every category, with limits and p-values that hold for all at once (max-T).

    `verdict` is about the soup, `least` the smallest difference that is beyond chance.
    """
    pairs = [pair for pair in pairs if not pair.same_model]
    if not pairs:
        return ()
    corner_pairs = [pair.corners() for pair in pairs]
    families = []
    for corner in range(max(len(scores) for scores in corner_pairs)):
        # A pair without missing answers has one corner, which stands for all.
        scores = [known[min(corner, len(known) - 1)] for known in corner_pairs]
        families.append(_compare_in_categories(_category_scores(pairs, scores)))

    differences = []
    for at_corners in zip(*families, strict=True):
        comparison = bounded([corner.comparison for corner in at_corners])
        difference = CategoryDifference(
            **comparison.raw(unit),
            category=at_corners[0].category,
            least=unit.size(at_corners[0].least),
            verdict=_sign_verdict((comparison.low > 0) - (comparison.high < 0)),
        )
        differences.append(difference)
    return tuple(differences)


def _sign_verdict(sign: float) -> str:
    """The verdict on the soup; `sign` is that of a difference, 0 if none is shown."""
    if not sign:
        return UNDECIDED
    return "higher" if sign > 0 else "lower"


def _category_scores(
    pairs: Sequence[Pair], scores: Sequence[tuple[FloatArray, FloatArray]]
) -> list[CategoryScores]:
    """`scores` of both models of every pair, cut by the pair's categories."""
    cells = []
    for pair, (a, b) in zip(pairs, scores, strict=True):
        for number, category in enumerate(pair.table.names):
            items = pair.table.categories == number
            groups = pair.table.groups[items]
            cells.append(
                CategoryScores(pair=pair, category=category, a=a[items], b=b[items], groups=groups)
            )
    return cells


def _compare_in_categories(cells: Sequence[CategoryScores]) -> list[CategoryComparison]:
    """All pairs and categories as one max-T family."""
    level = ALPHA / penalty(cells[0].pair.looks)
    tests = max(cell.pair.tests for cell in cells)
    alpha = level / tests
    differences = [cell.differences() for cell in cells]
    members = [np.unique(cell.groups) for cell in cells]
    bounds = []
    for cell, difference in zip(cells, differences, strict=True):
        bounds.append(bound_of(difference, cell.a, cell.b))
    family = MaxT.of(differences, members, bounds, alpha)
    if np.isfinite(bounds).all():
        least = family.least
    else:
        least = family.critical * family.errors

    comparisons = []
    for f, cell in enumerate(cells):
        interval = family.intervals[f]
        low, high = interval.limits(alpha)
        comparison = Comparison(
            a=cell.pair.soup,
            b=cell.pair.other,
            difference=differences[f].objective,
            low=low,
            high=high,
            level=1 - level,
            p_value=min(1.0, tests * interval.p_value()),
            test=MAX_T,
            n=len(cell.a),
            groups=len(members[f]),
            discordant=float((np.abs(cell.a - cell.b) > ZERO_DIFFERENCE).mean()),
        )
        comparisons.append(
            CategoryComparison(category=cell.category, comparison=comparison, least=float(least[f]))
        )
    return comparisons


def judged(
    unit: Unit, comparisons: Sequence[Comparison], looks: int = 1
) -> tuple[JudgedDifference, ...]:
    """Comparisons with Holm's p-value and the verdict on the soup."""
    adjusted = holm([over_looks(c.p_value, looks) for c in comparisons])
    differences = []
    for comparison, p_holm in zip(comparisons, adjusted, strict=True):
        verdict = _sign_verdict(comparison.difference if p_holm < ALPHA else 0)
        differences.append(JudgedDifference(**comparison.raw(unit), p_holm=p_holm, verdict=verdict))
    return tuple(differences)


def row(unit: Unit, contender: Contender, scores: ItemScores, table: ItemTable) -> ModelRow:
    """Rates of each category and the objective, with 95 % intervals."""
    values = scores.values
    by_category = {}
    for number, name in enumerate(table.names):
        mask = table.categories == number
        interval = rate(values[mask], table.groups[mask])
        by_category[name] = ScoreInterval(**interval.raw(unit))
    return ModelRow(
        name=contender.name,
        kind=contender.kind,
        recipe_id=contender.recipe.id,
        scores=by_category,
        objective=ScoreInterval(**table.interval(values).raw(unit)),
    )


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a report says of its contenders, in fields of `Report`."""

    rows: tuple[ModelRow, ...]
    comparisons: tuple[RowDifference, ...]
    losses: CategoryLosses | None
    outcomes: Mapping[str, ModelEnds]
    variance: Mapping[str, ObjectiveVariance]
    verdict: VerdictSummary


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
    family: FamilyScores | None = None,
) -> Evidence:
    """What the scores {recipe id: scores on the report fold} say.

    The soup is the last contender; `opened` is the number of looks at these items, `margin` the gain (of inner scores)
    below which a single model is kept; `length_key` the setting to raise where answers were cut off; `mixture` the
    comparison of the best mixture with a single model that the search keeps, `family` the models that are tested
    together with the soup.
    """
    *others, soup = contenders
    table = ItemTable.of(scores[soup.recipe.id].items, objective)
    compared = []
    for other in others:
        pair = Pair.of(soup, other, scores, table, opened, family)
        compared.append((other, pair.compare()))
        if other.kind == "best_single":
            best = other
            against_best = pair
    singles = [c for c in contenders if c.kind in ("ingredient", "candidate")]
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
    return Evidence(
        rows=tuple(row(unit, c, scores[c.recipe.id], table) for c in contenders),
        comparisons=_with_holm(unit, compared, opened),
        losses=losses(unit, against_best),
        outcomes=ends,
        variance=_variances(unit, [*singles, soup], scores, table),
        verdict=VerdictSummary(
            **vars(result),
            opened=opened,
            margin=unit.size(margin),
            sensitivity=against_best.sensitivity(unit),
        ),
    )


def _variances(
    unit: Unit, models: Sequence[Contender], scores: Mapping[str, ItemScores], table: ItemTable
) -> dict[str, ObjectiveVariance]:
    """{model: variance of its objective}, where it can be had."""
    variances = {}
    for model in models:
        parts = variance(unit, scores[model.recipe.id], table)
        if parts is not None:
            variances[model.name] = parts
    return variances


def compare_on(
    benchmark: ExtraBenchmark,
    soup: Recipe,
    ingredients: Mapping[str, Recipe],
    measured: Mapping[str, ItemScores],
    looks: int = 1,
    family: FamilyScores | None = None,
    shared: int = 0,
) -> ExtraResult:
    """Rows on another benchmark, and the soup's paired differences to each ingredient, also by category.

    `measured` is {recipe id: scores}; the run uses `shared` of the items too. Holm's correction is over the ingredients
    for the whole benchmark; limits and p-values of single categories hold for all pairs of ingredient and category at
    once.
    """
    unit = benchmark.evaluator.unit
    singles = []
    for name, recipe in ingredients.items():
        singles.append(Contender(name=name, kind="ingredient", recipe=recipe))
    contenders = [*singles, Contender(name="soup", kind="soup", recipe=soup)]
    table = ItemTable.of(benchmark.items, Mean())
    pairs = [Pair.of(contenders[-1], c, measured, table, looks, family) for c in singles]
    coefficients = {}
    if table.value is None:
        coefficients = dict(zip(table.names, table.coefficients.tolist(), strict=True))
    return ExtraResult(
        name=benchmark.name,
        evaluator=title(benchmark.evaluator),
        unit=unit,
        items=len(benchmark.items),
        groups=len(np.unique(table.groups)),
        coefficients=coefficients,
        rows=tuple(row(unit, c, measured[c.recipe.id], table) for c in contenders),
        outcomes={c.name: outcomes(measured[c.recipe.id], table) for c in contenders},
        opened=looks,
        comparisons=judged(unit, [pair.compare() for pair in pairs], looks),
        categories=by_category(unit, pairs),
        shared=shared,
    )


def best_mixture(
    outcome: SearchResult, items: Sequence[Item], objective: Objective
) -> Comparison | None:
    """The best mixture minus the single model that the search keeps, on the search items that the mixture answered.

    Of the mixtures that answered most; None if a mixture won, or none answered items of every category.
    """
    if len(outcome.recipe.ingredients) > 1:
        return None
    mixtures = []
    for trial in outcome.trials:
        if len(trial.recipe.ingredients) > 1 and np.isfinite(trial.result.objective):
            mixtures.append(trial)
    if not mixtures:
        return None
    best = max(mixtures, key=lambda trial: (trial.result.items, trial.result.objective))
    answered = np.flatnonzero(np.isfinite(best.result.values))
    table = ItemTable.of([items[place] for place in answered], objective)
    names = ("the best mixture", outcome.recipe.ingredients[0])
    return compare_on_table(
        names, best.result.values[answered], outcome.result.values[answered], table
    )


def dry_verdict(verdict: VerdictSummary, limit: int) -> VerdictSummary:
    """What a verdict on a few items that are not the report fold's says: nothing."""
    sentence = f"Dry run on at most {limit} items a category and fold, none of the report fold's: nothing is claimed."
    return replace(verdict, claim="dry_run", sentence=sentence, p_value=None)


def _with_holm(
    unit: Unit, pairs: Sequence[tuple[Contender, Comparison]], opened: int
) -> tuple[RowDifference, ...]:
    """Comparisons, `p_look` corrected for the looks. The candidates' p-values serve the intersection-union claim and
    need no other correction; those with the baselines are secondary and carry Holm's too. One soup under two names is
    one test."""
    baselines = {}
    for other, comparison in pairs:
        if other.kind not in SINGLE_KINDS:
            baselines[other.recipe.id] = over_looks(comparison.p_value, opened)
    adjusted = dict(zip(baselines, holm(list(baselines.values())), strict=True))
    rows = []
    for other, comparison in pairs:
        raw = comparison.raw(unit)
        p_look = over_looks(comparison.p_value, opened)
        p_holm = None if other.kind in SINGLE_KINDS else adjusted[other.recipe.id]
        rows.append(RowDifference(**raw, kind=other.kind, p_look=p_look, p_holm=p_holm))
    return tuple(rows)


def losses(unit: Unit, pair: Pair) -> CategoryLosses | None:
    """The soup against the best single by category; None if they are one model or there is one category."""
    if pair.same_model or len(pair.table.names) < 2:
        return None
    categories = by_category(unit, [pair])
    signs = [int(np.sign(round(unit.gain(c.difference), 12))) for c in categories]
    return CategoryLosses(
        against=pair.other,
        above=signs.count(1),
        below=signs.count(-1),
        level=signs.count(0),
        categories=categories,
    )


def variance(unit: Unit, scores: ItemScores, table: ItemTable) -> ObjectiveVariance | None:
    """Variance of a linear objective, split into the draw of the items and that of their answers; else None.

    An item's score is the mean of its answers, so the variance between items holds that of the answers too. `flips` is
    the share of items whose answers did not all score alike.
    """
    if not np.isfinite(scores.noise).all() or table.value is not None:
        return None
    # An item's weight in the objective [I]: its category's coefficient over the category's items.
    sizes = np.bincount(table.categories, minlength=len(table.names))
    weights = (table.coefficients / sizes)[table.categories]
    grouped = design(scores.values, table.categories, table.groups, table.coefficients)
    total = float(grouped.variances.sum())
    answers = min(total, float((weights**2 * scores.noise).sum()))
    square = unit.factor**2
    return ObjectiveVariance(
        objective=total / square,
        items=(total - answers) / square,
        answers=answers / square,
        flips=float(np.mean(scores.noise > 0)),
    )
