"""Analysis `paper`: the paper's tables and figures, recomputed from published figures and compared with its numbers.

The published figures are the CSV files of this package. What the paper shows of its soups, the other analyses show of
the run's: other models, so the numbers differ.
"""

from __future__ import annotations

from collections import Counter

from souping.analysis import Analysis, RunScores
from souping.analysis.correlation import pearson
from souping.core.reading import read
from souping.core.text import DASH
from souping.core.types import Names, ScoreMatrix, frozen
from souping.core.unit import Unit
from souping.paper.findings import Finding, findings
from souping.paper.published import PAPER_TABLES, leaderboard
from souping.paper.readings import selections
from souping.report.analysis_results import AnalysisResult
from souping.report.cells import Section, TableGrid, grid, nonempty, table
from souping.report.content import Matrix, MaybeFloat
from souping.report.format import clean, count, in_words
from souping.report.plots import Drawing, correlations
from souping.report.tables import around

PAPER_SENTENCES = (
    "Of the paper's selections, only that of 8B follows from the stated rule (|rho| < 0.2 by Pearson, ties to the "
    "better overall). At 70B the rule adds a fourth expert; on MGSM it picks one expert for everything.",
    "Figures 2, 3, 5 and 6 and Appendices B and D need the paper's soups. The sections on categories, gains, wins, "
    "Shapley values and ingredients show the same for the soups of this run, which are other models.",
)


@frozen
class PaperFigures(Analysis):
    """The paper's numbers beside ours."""

    def analyse(self, run: RunScores) -> PaperResult:
        figures = findings()
        verdicts = Counter(figure.verdict for figure in figures)
        recomputed = verdicts["agrees"] + verdicts["differs"]
        head = f"{verdicts['agrees']} of {recomputed} figures of arXiv 2511.13254v1 follow from its published figures."
        tables = [read(PaperSelection, selections(table)) for table in PAPER_TABLES]
        return PaperResult(
            sentences=(head, *PAPER_SENTENCES),
            findings=tuple(figures),
            figure1=_figure1(leaderboard()),
            selections=tuple(tables),
        )


def _figure1(board: ScoreMatrix) -> Board:
    """The correlations of the leaderboard's categories, Figure 1 of the paper."""
    rho = pearson(board.values).rho.tolist()
    matrix = tuple(map(tuple, rho))
    return Board(models=board.models, categories=board.categories, matrix=matrix)


# How it is shown: what disagrees, then every table and figure, folded away.


@frozen
class Board:
    """Correlations over the leaderboard."""

    models: Names
    """models"""
    categories: Names
    """categories"""
    matrix: Matrix
    """correlation of every two categories"""


@frozen
class Choice:
    """A selection beside the paper's."""

    ingredients: Names
    """selected candidates"""
    beside: str
    """how it differs from the paper's"""

    def cells(self) -> tuple[str, str]:
        """(ingredients, how they differ from the paper's) as text."""
        return in_words(self.ingredients) or DASH, clean(self.beside) or DASH


@frozen
class RuleChoice(Choice):
    """What some readings of the rule select."""

    rules: Names
    """readings"""


@frozen
class ThresholdChoice(Choice):
    """What a range of thresholds selects."""

    above: MaybeFloat
    """the thresholds are above this"""
    to: MaybeFloat
    """and at most this"""


@frozen
class PaperSelection:
    """Selections from a table of the paper."""

    title: str
    """table"""
    paper: Names
    """what the paper chose"""
    stated: Names
    """what the stated rule chooses"""
    beside: str
    """how these differ"""
    readings: tuple[RuleChoice, ...]
    """readings of the rule"""
    thresholds: tuple[ThresholdChoice, ...]
    """ranges of thresholds"""
    notes: Names
    """remarks"""
    command: str
    """command that selects from the table"""

    def section(self) -> Section:
        """The selections of a table by each reading of the rule, and by each range of thresholds."""
        first = "The paper does not say what it chose."
        if self.paper:
            first = f"The paper chose {in_words(self.paper)}."
        stated = f"The stated rule chooses {in_words(self.stated)}."
        readings = [("; ".join(row.rules), *row.cells()) for row in self.readings]
        spans = [(around(row.above, row.to), *row.cells()) for row in self.thresholds]
        header = ("ingredients", "beside the paper")
        by_reading = grid(("reading", *header), readings, left=(0, 1, 2))
        by_threshold = grid(("|rho| below", *header), spans, left=(0, 1, 2))
        return Section(
            f"{clean(self.title)}: selection",
            (first, stated, *map(clean, self.notes)),
            grids=(by_reading,),
            folded=nonempty((table("Thresholds", by_threshold),)),
            code=clean(self.command),
        )


@frozen
class PaperResult(AnalysisResult):
    """The paper's numbers beside ours."""

    sentences: Names
    """what was found"""
    findings: tuple[Finding, ...]
    """numbers of the paper"""
    figure1: Board
    """Figure 1"""
    selections: tuple[PaperSelection, ...]
    """selections, table by table"""

    def section(self, unit: Unit) -> Section:
        models = self.figure1.models
        who = in_words(models) if len(models) < 12 else f"{count(len(models))} models"
        categories = count(len(self.figure1.categories))
        first = f"Pearson correlation of {categories} categories over {who}."
        folded = (
            table("What agrees", self._findings("agrees")),
            table("What cannot be redone here", self._findings("cannot be redone")),
            Section("Figure 1: categories of the leaderboard", (first,), "figure1"),
            *(selection.section() for selection in self.selections),
        )
        lines = tuple(map(clean, self.sentences))
        grids = (self._findings("differs"),)
        title = "The paper: what disagrees"
        return Section(title, lines, grids=grids, folded=nonempty(folded))

    def _findings(self, verdict: str) -> TableGrid:
        """A row per finding with this verdict."""
        rows = []
        for finding in self.findings:
            if finding.verdict == verdict:
                where = f"{clean(finding.of)}: {clean(finding.what)}"
                texts = map(clean, (finding.paper, finding.ours, finding.note))
                rows.append((where, *(text or DASH for text in texts)))
        return grid(("where", "the paper", "here", "remark"), rows, left=range(4))

    def drawings(self, unit: Unit) -> tuple[Drawing | None, ...]:
        board = self.figure1
        return (correlations("figure1", board.categories, board.matrix, (), ""),)
