"""Analysis `paper`: the paper's tables and figures, recomputed from published figures and compared with its numbers.

The published figures are the CSV files of this package, or a leaderboard given by path. What the paper counts on its
soups (as in Figure 5) is also counted on the soups of the run; these are other models, so the numbers differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from souping.analysis import Analysis, NotEstimableError, RunScores, RunSoups
from souping.analysis.consistency import Consistency
from souping.analysis.correlation import pearson
from souping.analysis.parents import Parents
from souping.analysis.shapley import Shapley
from souping.analysis.wins import Wins
from souping.core.types import Json, Recipe, ScoreMatrix, elements, entries, number, part, texts
from souping.paper.findings import CORRUPT, Finding, findings
from souping.paper.published import TABLES, leaderboard, published
from souping.paper.readings import selections
from souping.report.format import percent

PAPER = "arXiv 2511.13254v1"
MGSM = "7 of 10 languages (MGSM)"
KEPT, RESCUED = "97.2, 97.1, 97.1 %", "32 of 380 (8.4 %); 93.0 % where one fails"
SENTENCES = (
    "Of the paper's selections, only that of 8B follows from the stated rule (|rho| < 0.2 by Pearson, ties to the "
    "better overall). At 70B the rule adds a fourth expert; on MGSM it picks one expert for everything.",
    "No model of the paper was needed. The sections below run the same analyses on the soups of this run. Its models "
    "and items are others, so they illustrate the method and do not check the paper's numbers.",
)
MANY = 20 / 36
"""Figure 5 counts soups that are above in more than 20 of 36 directions."""


@dataclass(frozen=True, kw_only=True)
class PaperFigures(Analysis):
    """The paper's numbers beside ours. `leaderboard` is the CSV of Figure 1; null takes the rows that ship."""

    leaderboard: str | None = None

    def asks(self, soups: RunSoups) -> tuple[Recipe, ...]:
        return Shapley().asks(soups)

    def analyse(self, run: RunScores) -> dict[str, Json]:
        board = leaderboard(self.leaderboard)
        found = [*findings(board), *_likenesses(run)]
        count = Counter(one.verdict for one in found)
        whole = count["agrees"] + count["differs"]
        return {
            "headline": f"{count['agrees']} of {whole} figures of {PAPER} follow from its published figures.",
            "sentences": list(SENTENCES),
            "findings": [asdict(one) for one in found],
            "figure1": _figure1(board),
            "selections": [selections(table) for table in TABLES],
            "gains": {of: _gaps(*files) for of, files in GAINS.items()},
            "cites": _cites(found),
        }


def _figure1(board: ScoreMatrix) -> dict[str, Json]:
    found = pearson(board.values)
    tables = {"matrix": found.rho, "low": found.low, "high": found.high}
    return {
        "models": list(board.models),
        "categories": list(board.categories),
        **{key: [[None if np.isnan(v) else float(v) for v in row] for row in table] for key, table in tables.items()},
    }


def _gaps(singles: str, soup: str) -> list[Json]:
    """The soup and every candidate of two published tables, column by column; the corrupt column is left out."""
    (soce,), candidates = published(soup), published(singles)
    return [
        {"category": name, "soce": float(value), "candidates": [float(row[name]) for row in candidates]}
        for name, value in soce.items()
        if name not in ("model", CORRUPT)
    ]


GAINS = {"Table 5": ("flores36.csv", "flores36_soce.csv"), "Figure 3b": ("mgsm.csv", "mgsm_soce.csv")}
"""{where in the paper: the tables of the candidates and of the soup}."""


def _cites(found: Sequence[Finding]) -> dict[str, Json]:
    """{section of the run: title and lines that compare the paper's number with the run's}."""
    cites: dict[str, Json] = {}
    for one in (one for one in found if one.section):
        paper = f"the paper {one.paper}" if one.paper else "the paper prints no number that is at hand"
        line = f"{one.what[:1].upper()}{one.what[1:]}: {paper}; here {one.ours or 'not estimable'} ({one.note})."
        before = part(cites, one.section)
        cites[one.section] = {"title": one.of, "lines": [*elements(before, "lines"), line]}
    return cites


Likeness = Callable[[RunScores], tuple[str, str]]
"""(what comes out on the run's soups, a remark)."""


def _likenesses(run: RunScores) -> Iterator[Finding]:
    """What the paper shows of its soups, computed for the soups of the run."""
    for (section, of, what, paper), compute in LIKENESSES.items():
        try:
            ours, note = compute(run)
        except NotEstimableError as error:
            ours, note = "", str(error)
        yield Finding(of=of, what=what, paper=paper, ours=ours, verdict="other models", note=note, section=section)


def _consistency(run: RunScores) -> tuple[str, str]:
    data = Consistency().analyse(run)
    means = {**part(data, "nulls"), **data}
    before, after, drawn, shared, exact = (
        f"{number(part(means, key).get('mean')) or 0.0:.2f}"
        for key in ("before", "after", "independent", "shared", "exact")
    )
    note = f"mixing alone gives {drawn} (independent draws), {shared} (one draw per group) or {exact} (exact)"
    return f"{before} before, {after} after", note


def _categories(run: RunScores) -> tuple[str, str]:
    singles = [run.report[r.id].by_category() for r in run.soups.candidates.values() if r.id in run.report]
    soup = run.report[run.soups.soup.id].by_category()
    above = sum(all(soup[name].mean() > single[name].mean() for single in singles) for name in soup)
    return (
        f"{above} of {len(soup)} categories",
        "our reading; of the figure only part b, MGSM, is at hand: folded above",
    )


def _parents(run: RunScores) -> tuple[str, str]:
    data = Parents().analyse(run)
    soups, size = entries(data, "soups"), len(elements(data, "categories"))
    above = {key: sum((number(soup[key]) or 0) > MANY * size for soup in soups) for key in ("beats_one", "beats_all")}
    ours = f"{above['beats_one']} of {len(soups)} above at least one, {above['beats_all']} above all"
    return ours, f"more than 5 of 9 of the {size} categories; the paper does not say whether one parent or all"


def _shapley(run: RunScores) -> tuple[str, str]:
    (level, *_) = entries(Shapley().analyse(run), "levels")
    players = entries(level, "players")
    values = [f"{' + '.join(texts(row, 'members'))} {percent(row.get('value'), sign=True)}" for row in players]
    return ", ".join(values), "points; our reading: nothing of the figure is at hand"


def _wins(run: RunScores) -> tuple[str, str]:
    kept = entries(Wins().analyse(run), "kept")
    shares = [f"{percent(part(row, 'kept').get('share'))} of {row.get('name')}" for row in kept]
    return ", ".join(shares), "percent of what an ingredient solves"


def _rescued(run: RunScores) -> tuple[str, str]:
    fails = entries(Wins().analyse(run), "by_failures")
    one, every = fails[1], fails[-1]
    ours = f"{percent(every.get('share'))} % where all fail, {percent(one.get('share'))} % where exactly one does"
    return ours, f"{number(every.get('items')) or 0:.0f} items that all fail"


LIKENESSES: Mapping[tuple[str, str, str, str], Likeness] = {
    ("consistency", "Figure 2", "mean |rho| between categories, before and after souping", "rises"): _consistency,
    ("gains", "Figure 3", "categories in which the soup is above every candidate", MGSM): _categories,
    ("parents", "Figure 5", "soups above their parents in more than 20 of 36 categories", "35 of 37"): _parents,
    ("shapley", "Figure 6", "Shapley values of single models", ""): _shapley,
    ("wins", "Appendices B and D", "share of each ingredient's solved items that the soup keeps", KEPT): _wins,
    ("wins", "Appendices B and D", "items solved though ingredients fail", RESCUED): _rescued,
}
"""{(section, where in the paper, what, what it prints): the same on a run's soups}."""
