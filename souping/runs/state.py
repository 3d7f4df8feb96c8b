"""What a run knows after each of its steps. A state holds the one before it, so that a step only adds.

score, select         search                write                test, analyse
Selected       <---   Searched       <---   Frozen        <---   Reported
  selection             selected              searched             frozen
  scores                winner                soup_folder          measured
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from souping.analysis.alternatives import RoutedAnswers
from souping.analysis.front import FRONT, FrontResult
from souping.analysis.guards import Admission, GuardsResult
from souping.answers.claims import Claim, Look
from souping.answers.report_choices import Choices
from souping.checkpoints.pool import RowKind
from souping.core.protocols import Evaluator
from souping.core.types import Items, ItemScores, Recipe, ScoreMatrix, Selection, frozen
from souping.report.analysis_results import AnalysisResult
from souping.report.content import ExpectedSummary, Report
from souping.search.loop import SearchResult
from souping.statistics.power import Power

ContenderKind = (
    Literal[
        "ingredient",
        "candidate",
        "best_candidate",
        "uniform_all",
        "uniform_selected",
        "uniform_topk",
        "router",
        "soup",
    ]
    | RowKind
)
MIXED_ROWS = ("soup", "uniform_all", "uniform_selected", "uniform_topk", "shuffled")
"""Names of the rows of mixed models: each has its kind for its name."""
SINGLE_KINDS = ("ingredient", "candidate", "best_candidate", "last")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Row of the report: a recipe and the role it plays. A model that plays two roles is two contenders."""

    name: str
    kind: ContenderKind
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class ExtraBenchmark:
    """One of `extra_benchmarks`: all items are answered once the recipe is frozen. Nothing is chosen on it."""

    name: str
    evaluator: Evaluator
    items: Items


@frozen
class Selected:
    """The ingredients. `scores` are those that chose them, None in a plan that lacks them and in a finished run.

    `admission` are the guards of the search, `singles` the candidates' scores on the search split where guards needed
    them: {candidate: scores}.
    """

    selection: Selection
    scores: ScoreMatrix | None = None
    expected_check: ExpectedSummary | None = None
    power: Power | None = None
    admission: Admission | None = None
    singles: Mapping[str, ItemScores] = field(default_factory=dict)


@frozen
class Searched:
    """What the search found: `winner` is the soup that it chose.

    `guards` is what the guards changed, None in a run without guards; `front` the Pareto front of a run with goals.
    """

    selected: Selected
    winner: SearchResult
    guards: GuardsResult | None = None
    front: FrontResult | None = None

    @property
    def analyses(self) -> dict[str, AnalysisResult]:
        return {} if self.front is None else {FRONT: self.front}


@frozen
class Frozen:
    """The written soup; nothing is chosen after this.

    `soup_folder` is None if one ingredient was selected, and in plans and finished runs. `singles` are {candidate:
    scores on the search split}, `choices` are those that the rows of the report need, `card` is the soup's card without
    numbers, and `report` has what was chosen. `claim` is what the report will say; only a run has it.
    """

    searched: Searched
    report: Report
    choices: Choices
    singles: Mapping[str, ItemScores] = field(default_factory=dict)
    soup_folder: Path | None = None
    card: str = ""
    claim: Claim | None = None


@frozen
class Reported:
    """What was measured on the test `items`: `measured` are {benchmark: {recipe id: scores}}, those of the run's own
    benchmark under `core.types.OWN_BENCHMARK`.

    `contenders` are the rows of the report, `look` counts the reports on these items, and `router` has the answers of
    the ingredient that is best in each category. `stored` are {recipe id: scores} as the store has them,
    None before the first analysis. `report` and `analyses` are those of the states before with what is added from here
    on.
    """

    frozen: Frozen
    report: Report
    items: Items
    contenders: tuple[Contender, ...]
    look: Look = field(default_factory=lambda: Look(1, first=False))
    measured: Mapping[str, Mapping[str, ItemScores]] = field(default_factory=dict)
    router: RoutedAnswers | None = None
    stored: Mapping[str, ItemScores] | None = None
    analyses: Mapping[str, AnalysisResult] = field(default_factory=dict)

    @property
    def searched(self) -> Searched:
        return self.frozen.searched


State = Selected | Searched | Frozen | Reported
