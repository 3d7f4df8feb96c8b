"""Evidence: contenders on the test split, with intervals, paired differences, losses and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from souping.checkpoints.pool import MeasuredSoup, PoolRow
from souping.core.protocols import Evaluator, Objective
from souping.core.reading import to_json
from souping.core.scores import Mean
from souping.core.types import OWN_BENCHMARK, FloatArray, Item, ItemScores, Json, Recipe, frozen
from souping.core.unit import MARGIN, Unit
from souping.report.content import (
    AnswerEnds,
    CategoryDifference,
    CategoryLosses,
    ExtraResult,
    JudgedDifference,
    ModelEnds,
    ModelRow,
    ObjectiveVariance,
    Report,
    RowDifference,
    ScoreInterval,
    VerdictSummary,
)
from souping.runs.state import SINGLE_KINDS, Contender, ExtraBenchmark, Reported
from souping.runs.steps import Steps
from souping.runs.verdict import verdict
from souping.search.loop import SearchResult
from souping.statistics.comparison import Comparison, answer_variance, contrast, same_model
from souping.statistics.corrections import ALPHA, FIRST_LOOK, Level, holm
from souping.statistics.intervals import objective_interval, rate
from souping.statistics.joint import compare_in_categories, picked_tests
from souping.statistics.score_table import MOST_LOST, WARN_LOST, ItemTable, ModelScores, ScoreTable

SEE_WHY = (
    "see why answers are missing (souping show RUN): prompts longer than the context leave no room"
)
UNDECIDED = "no difference shown"


@frozen
class KnownScores:
    """Models that are tested together with the soup, because their scores on the items may have been known.

    `missing` of them have no stored answers: each counts as an independent test.
    """

    scores: FloatArray  # [M, I]
    missing: int = 0

    def tests(self, soup: FloatArray, other: FloatArray, table: ItemTable, looks: int) -> float:
        """Number of independent tests that the comparison of the soup with another model counts as.

        The scores of `soup` and `other` are [I], and `looks` is the number of this look at the items. The soup and
        every known model may have been picked for the comparison with `other`.
        """
        models = np.vstack([soup, *self.scores, other])
        last = len(models) - 1
        pairs = [(model, last) for model in range(last)]
        # The chance of a false claim that all tests of this look share.
        alpha = Level(looks).family
        # How far models without answers agree with others is not known: each adds a whole test.
        return self.missing + picked_tests(models, pairs, table, alpha)


@frozen
class Pair:
    """Scores of the soup and another model on the same items.

    `level` has the number of the look at these items, and of the tests among which this comparison may have been
    picked. `cut` are the same scores with truncated answers counted as missing, None if no answer was truncated.
    """

    soup: str
    other: str
    scores: ScoreTable
    same_model: bool = False
    level: Level = FIRST_LOOK
    cut: ScoreTable | None = None

    def compare(self) -> Comparison:
        """The comparison on the objective."""
        if self.same_model:
            return same_model(self.scores.items, self.soup, self.other, self.level)
        return contrast(self.scores, self.soup, self.other, self.level)

    def sensitivity(self, unit: Unit) -> str | None:
        """Sentence with the interval that holds however truncated answers would have ended; None if none was."""
        if self.cut is None:
            return None
        bounds = replace(self, scores=self.cut).compare()
        _, low, high = unit.raw_estimate(bounds.estimate)
        limits = unit.limits(low, high, bounds.level.joint_confidence)
        return (
            "Answers truncated at the limit of tokens are scored as they are. If they might be right for one model and "
            f"wrong for the other, {self.soup} minus {self.other} would have the interval {limits}."
        )


@frozen
class ContenderScores:
    """Rows of a report, the soup and `others`, with {recipe id: scores on the same items} in inner scores.

    `look` is the number of this look at the items, and `known` are the models that are tested together with the soup.
    """

    unit: Unit
    soup: Contender
    others: Sequence[Contender]
    scores: Mapping[str, ItemScores]
    objective: Objective
    look: int
    known: KnownScores | None = None

    @property
    def contenders(self) -> tuple[Contender, ...]:
        return (*self.others, self.soup)

    @cached_property
    def table(self) -> ItemTable:
        return ItemTable.of(self.of(self.soup).items, self.objective)

    @cached_property
    def pairs(self) -> list[Pair]:
        """The soup with each of the others."""
        return [self._pair(other) for other in self.others]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The soup minus each of the others."""
        return [pair.compare() for pair in self.pairs]

    def of(self, contender: Contender) -> ItemScores:
        return self.scores[contender.recipe.id]

    def rows(self) -> tuple[ModelRow, ...]:
        return tuple(self._row(contender) for contender in self.contenders)

    def outcomes(self) -> dict[str, ModelEnds]:
        """{name: how the model's answers ended}"""
        return {c.name: outcomes(self.of(c), self.table) for c in self.contenders}

    def _row(self, contender: Contender) -> ModelRow:
        """Rates of each category and the objective, with 95 % intervals."""
        model = ModelScores(items=self.table, values=self.of(contender).values)
        by_category = {}
        for number, name in enumerate(self.table.names):
            by_category[name] = ScoreInterval.of(rate(model.alone(number)), self.unit)
        return ModelRow(
            name=contender.name,
            kind=contender.kind,
            recipe_id=contender.recipe.id,
            scores=by_category,
            objective=ScoreInterval.of(objective_interval(model), self.unit),
        )

    def _pair(self, other: Contender) -> Pair:
        """The soup with another row. From the second look on, `known` says among how many comparisons this one may
        have been picked."""
        a = self.of(self.soup)
        b = self.of(other)
        is_same = self.soup.recipe.id == other.recipe.id
        # At the first look no score was known that could guide the choice.
        tests = 1.0
        if self.look > 1 and self.known is not None and not is_same:
            tests = self.known.tests(a.values, b.values, self.table, self.look)
        models = {self.soup.name: a, other.name: b}
        # Truncated answers count as missing.
        cut = None
        if not is_same and (a.truncated.any() or b.truncated.any()):
            cut = ScoreTable.measured(self.table, models, truncated=True)
        return Pair(
            soup=self.soup.name,
            other=other.name,
            scores=ScoreTable.measured(self.table, models),
            same_model=is_same,
            level=Level(self.look, tests),
            cut=cut,
        )


def by_category(unit: Unit, pairs: Sequence[Pair]) -> tuple[CategoryDifference, ...]:
    """Every pair of models in every category, with limits and p-values that hold for all at once (max-T).

    `verdict` is about the soup, `least` the smallest difference that is beyond chance.
    """
    tested = [pair for pair in pairs if not pair.same_model]
    if not tested:
        return ()
    # One level for all pairs, that of the pair with the most tests to pick from.
    level = Level(tested[0].level.looks, max(pair.level.tests for pair in tested))
    models = [(pair.scores, pair.soup, pair.other) for pair in tested]
    differences = []
    for category, comparison in compare_in_categories(models, level):
        # 1 if the interval is above zero, -1 if it is below.
        sign = (comparison.low > 0) - (comparison.high < 0)
        difference = replace(
            CategoryDifference.of(comparison, unit),
            category=category,
            least=unit.size(comparison.least),
            verdict=_sign_verdict(sign),
        )
        differences.append(difference)
    return tuple(differences)


def _sign_verdict(sign: float) -> str:
    """The verdict on the soup; `sign` is that of a difference, 0 if none is shown."""
    if not sign:
        return UNDECIDED
    return "higher" if sign > 0 else "lower"


def judged(unit: Unit, comparisons: Sequence[Comparison]) -> tuple[JudgedDifference, ...]:
    """Comparisons with the soup, with Holm's p-value over all of them and the verdict on the soup."""
    adjusted = holm([comparison.p_look for comparison in comparisons])
    differences = []
    for comparison, p_holm in zip(comparisons, adjusted, strict=True):
        verdict = _sign_verdict(comparison.difference if p_holm < ALPHA else 0)
        difference = JudgedDifference.of(comparison, unit)
        differences.append(replace(difference, p_holm=p_holm, verdict=verdict))
    return tuple(differences)


@frozen
class VerdictTerms:
    """What a verdict depends on besides scores.

    `selected` are the selection's ingredients, and `margin` is the gain (of inner scores) below which a single model is
    kept. `mixture` is the comparison of the best mixture with a single model that the search keeps, and `length_key`
    the setting to raise if answers were truncated.
    """

    selected: Sequence[str]
    margin: float = MARGIN
    mixture: Comparison | None = None
    length_key: str = ""


def gather_evidence(report: Report, models: ContenderScores, terms: VerdictTerms) -> Report:
    """The report with what the scores on the test split say."""
    unit = models.unit
    soup = models.soup
    # Every candidate is one of these once.
    singles = [c for c in models.others if c.kind in ("ingredient", "candidate")]
    # Every report has one such row.
    best = [other.kind for other in models.others].index("best_candidate")
    against_best = models.pairs[best]
    ends = models.outcomes()
    deciding = [c.name for c in (*singles, models.others[best], soup)]
    claim, sentence, p_value = verdict(
        unit,
        soup.name,
        models.comparisons,
        candidates=[single.name for single in singles],
        best_candidate=against_best.other,
        selected=terms.selected,
        recipe=soup.recipe.ingredients,
        margin=terms.margin,
        unmeasured=unmeasured({name: ends[name] for name in deciding}, terms.length_key),
        mixture=terms.mixture,
    )
    return replace(
        report,
        rows=models.rows(),
        comparisons=_with_holm(models),
        losses=category_losses(unit, against_best),
        outcomes=ends,
        variance=_variances(models, [*singles, soup]),
        verdict=VerdictSummary(
            claim=claim,
            sentence=sentence,
            p_value=p_value,
            look=models.look,
            min_gain=unit.size(terms.margin),
            sensitivity=against_best.sensitivity(unit),
        ),
    )


def _variances(
    models: ContenderScores, contenders: Sequence[Contender]
) -> dict[str, ObjectiveVariance]:
    """{model: variance of its objective} of those of the contenders for which `_variance` has one."""
    variances = {}
    for contender in contenders:
        objective_variance = _variance(models, models.of(contender))
        if objective_variance is not None:
            variances[contender.name] = objective_variance
    return variances


def compare_on(
    benchmark: ExtraBenchmark,
    soup: Recipe,
    ingredients: Mapping[str, Recipe],
    measured: Mapping[str, ItemScores],
    look: int = 1,
    known: KnownScores | None = None,
    shared: int = 0,
) -> ExtraResult:
    """Rows on another benchmark, and the soup's paired differences to each ingredient, also by category.

    `measured` is {recipe id: scores}; `look` is the number of this look at the items, `known` are the models that are
    tested together with the soup, and the run uses `shared` of the items too. Holm's correction is over the ingredients
    for the whole benchmark; limits and p-values of single categories hold for all pairs of ingredient and category at
    once.
    """
    unit = benchmark.evaluator.unit
    singles = []
    for name, recipe in ingredients.items():
        singles.append(Contender(name=name, kind="ingredient", recipe=recipe))
    models = ContenderScores(
        unit=unit,
        soup=Contender(name="soup", kind="soup", recipe=soup),
        others=singles,
        scores=measured,
        objective=Mean(),
        look=look,
        known=known,
    )
    table = models.table
    coefficients = {}
    # `table.value` is an objective that is no weighted mean.
    if table.value is None:
        coefficients = dict(zip(table.names, table.coefficients.tolist(), strict=True))
    return ExtraResult(
        name=benchmark.name,
        evaluator=evaluator_name(benchmark.evaluator),
        unit=unit,
        items=len(benchmark.items),
        groups=len(np.unique(table.groups)),
        coefficients=coefficients,
        rows=models.rows(),
        outcomes=models.outcomes(),
        look=look,
        comparisons=judged(unit, models.comparisons),
        categories=by_category(unit, models.pairs),
        shared=shared,
    )


def evaluator_name(evaluator: Evaluator) -> str:
    """Name of an evaluator in reports."""
    settings = evaluator.settings
    return str(settings.get("evaluator") or settings.get("name") or type(evaluator).__name__)


def best_mixture(
    outcome: SearchResult, items: Sequence[Item], objective: Objective
) -> Comparison | None:
    """The best mixture minus the single model that the search keeps, on the search items that the mixture answered.

    It is the best of the mixtures that answered the most items. None if a mixture won the search, or if no mixture
    answered items of every category.
    """
    if len(outcome.recipe.ingredients) > 1:
        return None
    mixtures = []
    for trial in outcome.trials:
        # Without an answer in some category, the objective is nan.
        if len(trial.recipe.ingredients) > 1 and np.isfinite(trial.result.objective):
            mixtures.append(trial)
    if not mixtures:
        return None
    best = max(mixtures, key=lambda trial: (trial.result.items, trial.result.objective))
    answered = np.flatnonzero(np.isfinite(best.result.values))
    table = ItemTable.of([items[place] for place in answered.tolist()], objective)
    mixture = "the best mixture"
    single = outcome.recipe.ingredients[0]
    values = {
        mixture: best.result.values[answered],
        single: outcome.result.values[answered],
    }
    return contrast(ScoreTable.complete(table, values), mixture, single)


def dry_verdict(verdict: VerdictSummary, limit: int) -> VerdictSummary:
    """The verdict of a dry run, which claims nothing: its few items are those of the select and search splits."""
    sentence = f"Dry run on at most {limit} items a category and split, none of the test split's: nothing is claimed."
    return replace(verdict, claim="dry_run", sentence=sentence, p_value=None)


def _with_holm(models: ContenderScores) -> tuple[RowDifference, ...]:
    """The comparisons of the soup with each row.

    P-values against single models serve the intersection-union claim and need no other correction. Those against
    uniform soups and the router are secondary and have Holm's correction too; one recipe under two names is one test.
    """
    # {recipe id: p-value}
    secondary = {}
    for other, comparison in zip(models.others, models.comparisons, strict=True):
        if other.kind not in SINGLE_KINDS:
            secondary[other.recipe.id] = comparison.p_look
    adjusted = dict(zip(secondary, holm(list(secondary.values())), strict=True))
    differences = []
    for other, comparison in zip(models.others, models.comparisons, strict=True):
        p_holm = None
        if other.kind not in SINGLE_KINDS:
            p_holm = adjusted[other.recipe.id]
        difference = replace(
            RowDifference.of(comparison, models.unit),
            kind=other.kind,
            p_holm=p_holm,
            tests=comparison.level.tests,
        )
        differences.append(difference)
    return tuple(differences)


def category_losses(unit: Unit, pair: Pair) -> CategoryLosses | None:
    """The soup against the best candidate by category; None if both are the same model, or there is one category."""
    if pair.same_model or len(pair.scores.items.names) < 2:
        return None
    categories = by_category(unit, [pair])
    # Differences that only rounding keeps from zero have no sign.
    signs = [int(np.sign(round(unit.gain(c.difference), 12))) for c in categories]
    return CategoryLosses(
        against=pair.other,
        above=signs.count(1),
        below=signs.count(-1),
        same=signs.count(0),
        categories=categories,
    )


def _variance(models: ContenderScores, scores: ItemScores) -> ObjectiveVariance | None:
    """Variance of a linear objective, split into the draw of the items and that of their answers.

    None without repeated answers, or for an objective that is no weighted mean. An item's score is the mean of its
    answers, so the variance between items holds that of the answers too. `flips` is the share of items whose answers
    did not all score alike.
    """
    model = "model"
    table = models.table
    total = float(table.grouped(scores.values).variances.sum())
    measured = ScoreTable.measured(table, {model: scores})
    answers = answer_variance(measured, total, model)
    if answers is None or table.value is not None:
        return None
    square = models.unit.factor**2
    return ObjectiveVariance(
        objective=total / square,
        items=(total - answers) / square,
        answers=answers / square,
        flips=float(np.mean(scores.noise > 0)),
    )


def measured_soup(steps: Steps, state: Reported) -> MeasuredSoup:
    """What the pool's own part of the report is made of."""
    objective = steps.settings.objective
    unit = steps.settings.evaluator.unit
    look = state.look.number
    # {recipe id: scores on the test split}
    measured = state.measured[OWN_BENCHMARK]
    winner = state.searched.winner
    scores = measured[winner.recipe.id]

    def test(weights: Mapping[str, float]) -> ItemScores:
        return measured[steps.pool.recipe(weights).id]

    def versus(name: str, row: PoolRow) -> Json:
        """The soup, called `name`, minus the model of `row` in each category."""
        recipe = steps.pool.recipe(row.weights)
        models = ContenderScores(
            unit=unit,
            soup=Contender(name=name, kind="soup", recipe=winner.recipe),
            others=[Contender(name=row.name, kind=row.kind, recipe=recipe)],
            scores=measured,
            objective=objective,
            look=look,
        )
        return to_json(by_category(unit, models.pairs))

    return MeasuredSoup(
        unit=unit,
        objective=objective,
        weights=steps.weights_of(winner.recipe),
        trials=winner.trials,
        search=state.frozen.singles,
        soup=scores,
        test=test,
        by_category=versus,
        look=look,
    )


def outcomes(scores: ItemScores, table: ItemTable) -> ModelEnds:
    """How a model's answers ended: shares that were truncated (`truncated`) or are missing (`unanswered`), and why."""
    categories = {}
    for number, name in enumerate(table.names):
        categories[name] = _ends(scores, table.categories == number)
    return _model_ends(scores, categories)


def _model_ends(scores: ItemScores, categories: Mapping[str, AnswerEnds]) -> ModelEnds:
    ends = _ends(scores, slice(None))
    return ModelEnds(
        items=ends.items,
        truncated=ends.truncated,
        unanswered=ends.unanswered,
        reasons=dict(scores.reasons),
        categories=categories,
    )


def _ends(scores: ItemScores, places: slice | NDArray[np.bool_]) -> AnswerEnds:
    """How the answers to the items at these places ended: mean shares that were truncated or are missing."""
    truncated = scores.truncated[places]
    unanswered = scores.unanswered[places]
    return AnswerEnds(
        items=len(truncated),
        truncated=float(truncated.mean()),
        unanswered=float(unanswered.mean()),
    )


def unmeasured(ends: Mapping[str, ModelEnds], length_key: str = "") -> str:
    """Why nothing may be claimed: too many answers of a model were truncated or are missing. Empty if there is no such
    model. `ends` are {model: how its answers ended}."""
    worst = max(ends, key=lambda name: _lost(ends[name]))
    if _lost(ends[worst]) <= MOST_LOST:
        return ""
    return (
        f"{_describe(worst, ends[worst])}; nothing is claimed where such answers are more than "
        f"{100 * MOST_LOST:.0f} %. Before the next run {_remedy(ends[worst], length_key)}."
    )


def lost_answers(scores: Mapping[str, ItemScores], where: str, length_key: str = "") -> list[str]:
    """A warning if WARN_LOST or more of a model's answers in a stage are truncated or missing, else none.

    `scores` are {model: scores}, and `where` is the stage.
    """
    ends = {name: _model_ends(answers, {}) for name, answers in scores.items()}
    affected = [name for name in ends if _lost(ends[name]) >= WARN_LOST]
    if not affected:
        return []
    worst = max(affected, key=lambda name: _lost(ends[name]))
    return [
        f"{where}: answers of {len(affected)} of {len(ends)} models are truncated or missing: "
        f"{_describe(worst, ends[worst])}: {_remedy(ends[worst], length_key)}"
    ]


def _lost(ends: AnswerEnds) -> float:
    """The share of answers that were truncated or are missing."""
    return (ends.truncated or 0.0) + (ends.unanswered or 0.0)


def _describe(name: str, ends: ModelEnds) -> str:
    """`math 34.0 % truncated, 2.0 % missing (prompt does not fit: 12)`."""
    words = []
    if ends.truncated:
        words.append(f"{100 * ends.truncated:.1f} % truncated")
    if ends.unanswered:
        words.append(f"{100 * ends.unanswered:.1f} % missing{_reason(ends.reasons)}")
    return f"{name} {', '.join(words)}"


def _reason(reasons: Mapping[str, int | None]) -> str:
    """The most frequent reason with its count, in brackets; `reasons` are {reason: count}."""
    if not reasons:
        return ""
    reason = max(reasons, key=lambda name: reasons[name] or 0)
    return f" ({reason}: {reasons[reason]:,})"


def _remedy(ends: AnswerEnds, length_key: str) -> str:
    """What to do about the answers of a model that are truncated or missing."""
    remedies = []
    if ends.truncated:
        setting = f" ({length_key})" if length_key else ""
        remedies.append(
            f"raise the limit of tokens{setting}, unless these answers repeat themselves (souping show RUN)"
        )
    if ends.unanswered:
        remedies.append(SEE_WHY)
    return " and ".join(remedies)
