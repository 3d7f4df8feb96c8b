"""The content of a report as values. report.json is its written form (`core.reading.to_json`).

Scores are in the report's `unit`, as in the file. A number is None if it cannot be computed, or if somebody edited the
file. The text below a field is its meaning in the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any, Self

from souping.core.reading import NULL, rest, to_json
from souping.core.system import Provenance
from souping.core.types import Names, frozen
from souping.core.unit import POINTS, Unit
from souping.core.weight_similarity import PoolSimilarity
from souping.report.recipe import RecipeSummary
from souping.statistics.comparison import Comparison
from souping.statistics.corrections import Level
from souping.statistics.intervals import Interval

SCHEMA = 1
"""Version of the keys of report.json."""
MaybeFloat = float | None
MaybeInt = int | None
NamedNumbers = Mapping[str, MaybeFloat]
Matrix = tuple[tuple[MaybeFloat, ...], ...]

# ---------------------------------------------------------------- scores and differences


@frozen
class ScoreInterval:
    """Mean score with its 95 % interval."""

    mean: MaybeFloat
    """mean score"""
    low: MaybeFloat
    """lower limit of the 95 % interval"""
    high: MaybeFloat
    """upper limit"""
    n: MaybeInt
    """items"""
    groups: MaybeInt
    """groups of items"""
    effective_n: MaybeFloat
    """number of independent items with the same information"""

    @classmethod
    def of(cls, interval: Interval, unit: Unit) -> Self:
        mean, low, high = unit.raw_estimate(interval.estimate)
        return cls(
            mean=mean,
            low=low,
            high=high,
            n=interval.n,
            groups=interval.groups,
            effective_n=interval.effective_n,
        )


@frozen
class ModelRow:
    """A model on the test split, in one of its roles."""

    name: str
    """model on the test split"""
    kind: str
    """`soup`, `ingredient`, `candidate`, `best_candidate` (best on the search split), `uniform_all`,
    `uniform_selected`, `uniform_topk` or `router` (the stored answers of the ingredient that `router.routes` names
    for an item's category; with one ingredient there is none); of a training run also `last`, `trainer_best`,
    `trainer_average`, `decayed` and `shuffled` (the soup's weights on other checkpoints)"""
    recipe_id: str
    """rows with the same id are the same model; a router's stands for its routes, unless all lead to one model"""
    scores: Mapping[str, ScoreInterval]
    """{category: mean with its interval}"""
    objective: ScoreInterval
    """the same for the objective"""


@frozen
class PairedDifference:
    """The soup minus another model, paired by item."""

    a: str
    """always the soup"""
    b: str
    """the other model"""
    difference: MaybeFloat
    """soup minus the other, paired by item"""
    low: MaybeFloat
    """lower limit at `level`"""
    high: MaybeFloat
    """upper limit at `level`"""
    level: MaybeFloat
    """0.95 at the first look, higher at later looks"""
    p_value: MaybeFloat
    """two-sided p-value, not corrected for looks"""
    test: str
    """name of the test"""
    n: MaybeInt
    """items"""
    groups: MaybeInt
    """groups of items"""
    discordant: MaybeFloat
    """share of items on which the two models differ"""

    @classmethod
    def of(cls, comparison: Comparison, unit: Unit) -> Self:
        """The fields that all differences share; a subclass fills its own.

        Limits and p-value take into account the tests among which this one may have been picked. The looks at the items
        only widen the limits: the p-value is corrected for them where it is shown (`p_at`, `p_look`).
        """
        difference, low, high = unit.raw_estimate(comparison.estimate)
        return cls(
            a=comparison.a,
            b=comparison.b,
            difference=difference,
            low=low,
            high=high,
            level=comparison.level.joint_confidence,
            p_value=comparison.p_family,
            test=comparison.test,
            n=comparison.n,
            groups=comparison.groups,
            discordant=comparison.discordant,
        )

    def p_at(self, look: int | None) -> MaybeFloat:
        """`p_value` corrected for the looks at the items, which a page shows."""
        if self.p_value is None:
            return None
        return Level(looks=look or 1).corrected(self.p_value)


@frozen
class LookDifference(PairedDifference):
    """A difference whose p-value is corrected for the looks at its items."""

    p_look: MaybeFloat = field(default=None, metadata=NULL)
    """corrected for the number of looks; this one is shown"""

    @classmethod
    def of(cls, comparison: Comparison, unit: Unit) -> Self:
        return replace(super().of(comparison, unit), p_look=comparison.p_look)

    @property
    def p_shown(self) -> MaybeFloat:
        """The corrected p-value; in an edited file that lacks it, the other one."""
        return self.p_value if self.p_look is None else self.p_look


@frozen
class RowDifference(LookDifference):
    """The soup minus the model of a row."""

    kind: str = ""
    """role of the other model"""
    p_holm: MaybeFloat = field(default=None, metadata=NULL)
    """corrected by Holm over the uniform soups and the router, `null` for single models"""
    tests: MaybeFloat = None
    """comparisons among which this one may have been picked at a later look"""


@frozen
class JudgedDifference(PairedDifference):
    """The soup minus an ingredient on an extra benchmark."""

    p_holm: MaybeFloat = field(default=None, metadata=NULL)
    """corrected by Holm over the ingredients"""
    verdict: str = ""
    """`higher` (the soup is better), `lower` or `no difference shown`"""


@frozen
class CategoryDifference(PairedDifference):
    """A difference in one category. Its limits and p-value hold for all categories at once."""

    category: str = ""
    """category"""
    least: MaybeFloat = field(default=None, metadata=NULL)
    """smallest detectable difference"""
    verdict: str = ""
    """`higher` (the soup is better), `lower` or `no difference shown`"""


@frozen
class CategoryLosses:
    """The soup against the best candidate, category by category."""

    against: str
    """the best candidate"""
    above: MaybeInt
    """number of categories in which the soup is better"""
    below: MaybeInt
    """number of categories in which it is worse"""
    same: MaybeInt
    """number of categories without a difference"""
    categories: tuple[CategoryDifference, ...]
    """per category a comparison that holds for all categories at once, as `comparisons`"""


@frozen
class AnswerEnds:
    """How answers ended."""

    items: MaybeInt
    """items"""
    truncated: MaybeFloat
    """share of truncated answers"""
    unanswered: MaybeFloat
    """share of answers missing"""


@frozen
class ModelEnds(AnswerEnds):
    """How a model's answers ended."""

    reasons: Mapping[str, MaybeInt]
    """{why an answer is missing: answers}"""
    categories: Mapping[str, AnswerEnds]
    """{category: the same shares}"""


@frozen
class ObjectiveVariance:
    """Variance of the objective if each item has several answers."""

    objective: MaybeFloat
    """variance of the objective"""
    items: MaybeFloat
    """part that comes from the items"""
    answers: MaybeFloat
    """part that comes from the answers"""
    flips: MaybeFloat
    """share of items whose answers disagree"""


@frozen
class VerdictSummary:
    """The strongest claim that holds."""

    claim: str
    """`better_than_every_candidate`, `better_than_best_candidate`, `no_difference_shown`, `keep_candidate`,
    `nothing_to_soup`, `not_measured` or `dry_run`"""
    sentence: str
    """the verdict in words"""
    p_value: MaybeFloat
    """p-value of the claim, corrected for looks"""
    look: MaybeInt
    """number of the look at these items"""
    min_gain: MaybeFloat
    """`min_gain`, a fraction of 1 or in the `unit`"""
    sensitivity: str | None = None
    """what the interval of the soup minus the best candidate would be if answers cut at the token limit were
    bounded as missing ones are, if any was cut"""


@frozen
class MoreAnswersSummary:
    """What as many more answers as the test split has items can do."""

    repeats: MaybeInt
    """answers to each item"""
    answers_gain: MaybeFloat
    """`power.gain` with one more answer to each item"""
    items: MaybeInt
    """items that the same number of answers would be to instead"""
    items_gain: MaybeFloat
    """`power.gain` with these items in addition"""


@frozen
class PowerSummary:
    """What the test split can show."""

    gain: MaybeFloat
    """true gain over the best candidate that is shown in 80 % of runs"""
    items: MaybeInt
    """items in the test split"""
    min_gain: MaybeFloat
    """`min_gain`, a fraction of 1 or in the `unit`"""
    needed: MaybeInt
    """items that a gain of `min_gain` needs (100,001 means more than 100,000)"""
    assumed: bool
    """true if no answers of the candidates were known"""
    more: MoreAnswersSummary | None = None
    """what more answers can do, if each item has several"""


# ---------------------------------------------------------------- choices


@frozen
class BenchmarkLabel:
    """The benchmark of a run."""

    name: str
    """name of the benchmark"""
    note: str
    """what its items are not"""


@frozen
class ObjectiveSummary:
    """What the search maximised."""

    name: str
    """`mean`, `weighted`, `tree`, `worst` or `bfcl`"""
    coefficients: NamedNumbers
    """weight of each category; they sum to 1. Empty for `worst`"""
    search: MaybeFloat
    """the soup's score on the search split, which is optimistic because it chose the weights"""


@frozen
class CorrelationTable:
    """Correlation of every two categories over models, with 95 % limits."""

    categories: Names
    """names of the rows and columns"""
    matrix: Matrix
    """correlations"""
    low: Matrix
    """lower limits"""
    high: Matrix
    """upper limits"""


@frozen
class SelectionSummary:
    """The selected candidates, and why."""

    ingredients: Names
    """selected candidates"""
    experts: Mapping[str, str]
    """{low-correlation category: its best candidate}"""
    low_correlation: Names
    """categories that correlate weakly with some other category"""
    low_by_chance: MaybeFloat
    """mean number of them if each category's scores are dealt to the models at random, `null` if there are none"""
    selector: str
    """the rule that selected"""
    metric: str | None
    """name of the correlation"""
    threshold: MaybeFloat
    """threshold of the selector, `null` if it has none"""
    sign: str | None
    """`absolute` or `signed`"""
    ties: str | None
    """how ties were broken"""
    tied: Mapping[str, Names]
    """{category: equally good candidates}"""
    correlation: CorrelationTable | None
    """categories, matrix, and the interval of every coefficient"""
    clusters: tuple[Names, ...] | None = None
    """`selector=soce_cluster`: categories that share an expert"""
    notes: Names
    """how ties were resolved, and what the correlations cannot tell"""
    published: bool
    """true if the scores came from a table"""
    candidates: Names
    """models that could be selected"""
    scores: Mapping[str, NamedNumbers]
    """scores that the selector saw: {model: {category: fraction}}"""


@frozen
class SelectionFile(SelectionSummary):
    """selection.json"""

    dry_run: MaybeInt = None
    """in a dry run, its `dry_run`: the most items of a category and split"""
    unit: Unit = POINTS
    """unit of the scores"""


@frozen
class SplitSizes:
    """Numbers of items."""

    select: MaybeInt
    """items on which the ingredients were chosen"""
    search: MaybeInt
    """items on which the weights were chosen"""
    test: MaybeInt
    """held-out items"""
    left_out: MaybeInt = None
    """items of the test split on which earlier runs chose"""
    shown: MaybeInt = None
    """items of the test split that earlier reports showed, left out because the others show more without them"""


@frozen
class SearchSummary:
    """What the optimiser says of its search. One of the user's may say other things."""

    stopped: str | None = None
    """why the search ended"""
    indistinguishable: Matrix | None = None
    """weights of soups that may be as good as the winner, the best first"""
    indistinguishable_count: MaybeInt = None
    """number of such soups"""
    finishing_gain: MaybeFloat = None
    """expected gain of more answers, as it is shown"""
    without_guards: MaybeFloat = None
    """expected score of the best soup without guards"""
    others: Mapping[str, Any] = rest()


@frozen
class TrialRow:
    """A row of trials.csv."""

    number: MaybeInt
    """number of the trial"""
    recipe_id: str
    """id of the soup's recipe"""
    weights: NamedNumbers
    """{ingredient: weight}"""
    objective: MaybeFloat
    """objective on the search split, None if the soup did not answer all of it"""
    categories: NamedNumbers
    """{category: score}"""
    items: MaybeInt
    """items that the soup answered"""
    reused: MaybeInt
    """answers that were stored before"""


@frozen
class SearchUse:
    """What the search used."""

    items: MaybeInt
    """items that were answered"""
    evaluated: MaybeInt
    """items of these that were not stored before"""
    prefilled_tokens: MaybeInt
    """tokens of prompts"""
    generated_tokens: MaybeInt
    """tokens of answers"""
    seconds: MaybeFloat
    """time of the answers"""
    soups: MaybeInt
    """trials: soups and single models"""
    others: Mapping[str, Any] = rest()


@frozen
class RunCost:
    """What the run took."""

    evaluated_items: MaybeInt
    """answers generated in this run"""
    reused_items: MaybeInt
    """answers found in the store"""
    trials: MaybeInt
    """trials: soups and single models"""
    search: SearchUse | None = None
    """what the search used"""
    seconds: MaybeFloat
    """wall-clock time"""
    lost_workers: MaybeInt = None
    """Ray actors that died"""
    unchecked_weights: Names | None = None
    """what was loaded into the engine and not compared with the recipes; nothing if all was"""
    others: Mapping[str, Any] = rest()


# ---------------------------------------------------------------- checks and alternatives


@frozen
class Router:
    """An ingredient per category, chosen on the select split."""

    score: MaybeFloat
    """score on the test split"""
    routes: Mapping[str, str]
    """{category: ingredient}"""
    models: MaybeInt
    """models in memory"""
    answers: MaybeInt
    """answers per request"""


@frozen
class Route:
    """Candidate that answers a category."""

    model: str
    """name of the candidate"""
    fingerprint: str
    """digest of its weights, config and tokenizer, as in `recipe.json`"""
    score: MaybeFloat
    """its score in the category on the select split; `null` if scores were published or the split lacks the category"""
    n: MaybeInt
    """items of this score"""


@frozen
class RouterFile:
    """router.json"""

    routes: Mapping[str, Route]
    """{category: candidate that answers it}"""
    dry_run: MaybeInt = None
    """in a dry run, its `dry_run`: the most items of a category and split"""
    unit: Unit = POINTS
    """unit of the scores"""


@frozen
class UpperBound:
    """The best answer of all ingredients to each item."""

    score: MaybeFloat
    """score on the test split"""
    models: MaybeInt
    """models in memory"""
    answers: MaybeInt
    """answers per request"""


@frozen
class ExpectedCheck:
    """A score that was expected of a candidate."""

    candidate: str
    """candidate"""
    category: str | None
    """category, `null` for the objective"""
    expected: MaybeFloat
    """expected score"""
    measured: MaybeFloat
    """measured score"""
    low: MaybeFloat
    """lower limit"""
    high: MaybeFloat
    """upper limit"""
    n: MaybeInt
    """items"""
    groups: MaybeInt
    """groups of items"""
    verdict: str
    """`as expected`, `too low` or `too high`"""


@frozen
class ExpectedSummary:
    """Expected scores of the candidates beside the measured ones."""

    mode: str
    """`error` or `warn`"""
    split: str
    """split of the items"""
    false_alarm: MaybeFloat
    """share of runs with correct models that fail"""
    passed: bool
    """true if all scores are as expected"""
    checks: tuple[ExpectedCheck, ...]
    """one per expected score"""


@frozen
class ExtraResult:
    """The frozen soup and its ingredients on another benchmark."""

    name: str
    """name of the benchmark"""
    evaluator: str
    """what evaluated it"""
    unit: Unit = POINTS
    """unit of its scores"""
    items: MaybeInt
    """items"""
    groups: MaybeInt
    """groups of items"""
    coefficients: NamedNumbers
    """weight of each category"""
    rows: tuple[ModelRow, ...]
    """ingredients and soup, as `rows`"""
    outcomes: Mapping[str, ModelEnds]
    """{model: how its answers ended}"""
    comparisons: tuple[JudgedDifference, ...]
    """the soup minus each ingredient, as `comparisons`"""
    categories: tuple[CategoryDifference, ...]
    """the same per category, as `losses.categories`"""
    shared: MaybeInt
    """items that the run also uses"""
    look: MaybeInt = None
    """number of the look at these items"""


@frozen
class CorrelationPair:
    """Correlation of two categories."""

    a: str
    """category"""
    b: str
    """category"""
    rho: MaybeFloat
    """correlation over models"""
    low: MaybeFloat
    """lower limit over models"""
    high: MaybeFloat
    """upper limit over models"""
    bootstrap_low: MaybeFloat
    """lower limit over items"""
    bootstrap_high: MaybeFloat
    """upper limit over items"""
    disattenuated: MaybeFloat
    """corrected for item noise"""


@frozen
class OtherChoice:
    """What the selector picks with another threshold, or without a model."""

    threshold: MaybeFloat = None
    """another threshold"""
    left_out: str | None = None
    """the model that is left out"""
    ingredients: Names | None
    """selected candidates"""
    low_correlation: Names | None
    """categories of low correlation"""
    error: str | None
    """why nothing was selected"""


@frozen
class SelectionStability:
    """Whether the selector would choose again."""

    method: str
    """how stability was measured"""
    draws: MaybeInt
    """bootstrap draws of the select split's items"""
    not_estimable: MaybeInt
    """draws that gave no selection"""
    reasons: Mapping[str, MaybeInt]
    """{why: draws}"""
    experts: Mapping[str, NamedNumbers] | None
    """{category: {candidate: share of draws in which it is the expert}}"""
    ingredients: NamedNumbers | None
    """{candidate: share of draws that select it}"""
    low_correlation: NamedNumbers | None
    """{category: share of draws}"""
    sizes: NamedNumbers | None
    """{number of ingredients: share of draws}"""
    correlations: tuple[CorrelationPair, ...]
    """coefficients with intervals over models and items, and corrected for item noise"""
    reliability: NamedNumbers | None
    """{category: share of its variance between models that is not noise}"""
    threshold: MaybeFloat
    """the threshold that was used"""
    thresholds: tuple[OtherChoice, ...]
    """what other thresholds select"""
    jackknife: tuple[OtherChoice, ...]
    """what the selector picks without each model in turn"""
    notes: Names
    """remarks"""


# ---------------------------------------------------------------- a training run


@frozen
class CheckpointRow:
    """A checkpoint of the training run."""

    name: str
    """name"""
    step: MaybeInt
    """training step"""
    rate: MaybeFloat
    """learning rate"""
    tokens: MaybeFloat
    """tokens seen"""
    weight: MaybeFloat
    """weight in the soup"""
    search: MaybeFloat
    """objective on the search split"""
    test: MaybeFloat
    """objective on the test split"""


@frozen
class WindowRow:
    """An average of the last checkpoints, on the search split."""

    kind: str
    """form of the average"""
    alpha: MaybeFloat
    """decay of a moving average"""
    count: MaybeInt
    """checkpoints averaged"""
    steps: MaybeInt
    """length in steps"""
    tokens: MaybeFloat
    """length in tokens"""
    objective: MaybeFloat
    """objective"""
    last: LookDifference
    """minus the last checkpoint, as `comparisons`"""
    checkpoints_mean: LookDifference
    """minus the mean of the checkpoints, as `comparisons`"""


@frozen
class NeighbourSpread:
    """Standard deviation of the objective between the last checkpoints."""

    count: MaybeInt
    """number of checkpoints"""
    search: MaybeFloat
    """on the search split"""
    test: MaybeFloat
    """on the test split"""


@frozen
class FurtherRuns:
    """The soup's weights on further training runs."""

    differences: tuple[MaybeFloat, ...]
    """difference to the last checkpoint of each"""
    claim: LookDifference | None = None
    """difference over two or more runs, as `comparisons`"""


@frozen
class TrajectoryResult:
    """The chosen average of a training run beside its checkpoints."""

    sentences: Names
    """what was found, and at which learning rate"""
    checkpoints: tuple[CheckpointRow, ...]
    """checkpoints, the oldest first"""
    windows: tuple[WindowRow, ...]
    """averages on the search split, the shortest first"""
    last: LookDifference
    """the soup minus the last checkpoint on the test split, as `comparisons`"""
    checkpoints_mean: LookDifference
    """the soup minus the mean score of its checkpoints, by its weights, on the test split"""
    categories: tuple[CategoryDifference, ...]
    """the soup minus the last checkpoint in each category, as `losses.categories`"""
    spread: NeighbourSpread
    """standard deviation of the objective between the last checkpoints"""
    runs: FurtherRuns
    """the soup's weights on further training runs"""


# ---------------------------------------------------------------- the report


@frozen
class Report:
    """report.json, or as much of it as is known: the result of a step is None before the step."""

    schema: int = SCHEMA
    """version of these keys"""
    name: str
    """name of the run"""
    unit: Unit = POINTS
    """unit and direction of the scores: `name`, `higher_is_better`, and how they are shown (`scale`, `digits`,
    `symbol`, `meaning`, `min_gain`)"""
    benchmark: BenchmarkLabel | None = None
    """the benchmark"""
    warnings: Names | None = None
    """what a reader must know"""
    dry_run: MaybeInt = None
    """in a dry run, its `dry_run`: the most items of a category and split"""
    objective: ObjectiveSummary | None = None
    """what the search maximised"""
    selection: SelectionSummary | None = None
    """the ingredients, and why"""
    recipe: RecipeSummary | None = None
    """everything that decides the soup's bytes"""
    splits: SplitSizes | None = None
    """numbers of items"""
    items: str | None = None
    """SHA-256 of the items in the splits; another set of items is refused when analyses are computed again"""
    search: SearchSummary | None = None
    """why the search stopped, soups as good as the winner, and the expected gain of more answers"""
    rows: tuple[ModelRow, ...] | None = None
    """models on the test split"""
    comparisons: tuple[RowDifference, ...] | None = None
    """the soup minus each other model"""
    verdict: VerdictSummary | None = None
    """the strongest claim that holds"""
    power: PowerSummary | None = None
    """what the test split can show"""
    losses: CategoryLosses | None = field(default=None, metadata=NULL)
    """the soup against the best candidate by category; `null` for one model or one category"""
    similarity: PoolSimilarity | None = None
    """how similar the weights of the candidates are; nothing for adapters"""
    outcomes: Mapping[str, ModelEnds] | None = None
    """{model: how its answers ended}"""
    variance: Mapping[str, ObjectiveVariance] | None = None
    """{model: variance of the objective, if each item has several answers}"""
    engine: str | None = None
    """name and version of the engine that answers, such as `vllm 0.32.0`; nothing if an evaluator does not say"""
    rebuild: str | None = None
    """command that makes the soup again"""
    trajectory: TrajectoryResult | None = None
    """`pool=trajectory`: the average beside the checkpoints"""
    selection_bias: MaybeFloat = None
    """the soup's score on the search split minus its score on the test split"""
    router: Router | None = None
    """an ingredient per category, chosen on the select split"""
    upper_bound: UpperBound | None = None
    """the best answer of all ingredients to each item"""
    expected_check: ExpectedSummary | None = None
    """expected scores of the candidates beside the measured ones"""
    extra_benchmarks: tuple[ExtraResult, ...] | None = None
    """extra benchmarks"""
    stability: SelectionStability | None = None
    """whether the selector would choose again"""
    analyses: Mapping[str, Any] | None = None
    """{analysis: what it found}"""
    cost: RunCost | None = None
    """what the run took"""
    provenance: Provenance | None = None
    """what made the report"""
    others: Mapping[str, Any] = rest()

    def to_json(self) -> dict[str, Any]:
        """The content of report.json."""
        content = to_json(self)
        assert isinstance(content, dict)
        return content

    def row(self, kind: str) -> ModelRow | None:
        """The first model with this role (see `ModelRow.kind`), None if no model has it."""
        for row in self.rows or ():
            if row.kind == kind:
                return row
        return None

    def against(self, kind: str) -> RowDifference | None:
        """The soup minus the first model of a role, None if they were not compared."""
        other = self.row(kind)
        for pair in self.comparisons or ():
            # A model may have several roles. In an edited file, a comparison may lack its kind.
            if other and pair.b == other.name and pair.kind in (kind, ""):
                return pair
        return None
