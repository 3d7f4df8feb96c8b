"""The paper, redone (`analysis=paper`): its tables and figures from published figures, and on this run's own soups.

Published figures are those beside this file, or a leaderboard given by path; nothing of them comes from the run. What
the paper counts on its soups (Figure 5) is counted on the soups of the run too: other models, so only a likeness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from souping.analysis import Analysis, NotEstimableError, RunScores, RunSoups
from souping.analysis.consistency import Consistency
from souping.analysis.correlation import pearson
from souping.analysis.parents import Parents
from souping.analysis.shapley import Shapley
from souping.analysis.wins import Wins
from souping.core.scores import ScoreMatrix
from souping.core.types import Json, Recipe, elements, entries, number, part, texts
from souping.examples.paper.findings import CORRUPT, Finding, directions, findings, flores
from souping.examples.paper.published import TABLES, leaderboard
from souping.examples.paper.readings import selections
from souping.report.format import percent

PAPER = "arXiv 2511.13254v1"
MANY = 20 / 36
"""Figure 5 counts soups that are above in more than 20 of 36 directions."""


@dataclass(frozen=True, kw_only=True)
class PaperFigures(Analysis):
    """What the paper prints beside what comes out; `leaderboard`: the CSV of Figure 1, null for the shipped rows."""

    leaderboard: str | None = None

    def asks(self, soups: RunSoups) -> tuple[Recipe, ...]:
        return Shapley().asks(soups)

    def analyse(self, run: RunScores) -> dict[str, Json]:
        board = leaderboard(self.leaderboard)
        found = [*findings(board), *_likenesses(run)]
        count = Counter(one.verdict for one in found)
        whole = count["agrees"] + count["differs"]
        return {
            "headline": f"{count['agrees']} of {whole} figures of {PAPER} come out of its own published figures again.",
            "sentences": _sentences(),
            "findings": [one.as_dict() for one in found],
            "figure1": _figure1(board),
            "selections": [selections(table) for table in TABLES],
            "flores": _flores(),
        }


def _sentences() -> list[Json]:
    return [
        "Of the selections that of 8B alone is the stated rule's (|rho| < 0.2 by Pearson, ties to the better overall): "
        "at 70B the rule adds a fourth expert, on MGSM it finds one expert for everything.",
        "Nothing here needed a model of the paper. The sections below are the same analyses on the soups of this run: "
        "other, tiny models on items of their own, so that they show the method and not the paper's numbers.",
    ]


def _figure1(board: ScoreMatrix) -> dict[str, Json]:
    found = pearson(board.values)
    tables = {"matrix": found.rho, "low": found.low, "high": found.high}
    return {
        "models": list(board.models),
        "categories": list(board.categories),
        **{key: [[None if np.isnan(v) else float(v) for v in row] for row in table] for key, table in tables.items()},
    }


def _flores() -> list[Json]:
    """The soup and every candidate, direction by direction; the corrupt column is marked."""
    scores = flores()
    return [
        {
            "direction": name,
            "soce": float(scores["SoCE"][i]),
            "candidates": [float(values[i]) for model, values in scores.items() if model != "SoCE"],
            "corrupt": name == CORRUPT,
        }
        for i, name in enumerate(directions())
    ]


Likeness = Callable[[RunScores], tuple[str, str]]
"""(what comes out on the run's soups, a remark)."""


def _likenesses(run: RunScores) -> Iterator[Finding]:
    """What the paper shows of its soups, on those of the run."""
    for (of, what, paper), told in LIKENESSES.items():
        try:
            ours, note = told(run)
        except NotEstimableError as error:
            ours, note = "", str(error)
        yield Finding(of=of, what=what, paper=paper, ours=ours, verdict="other models", note=note)


def _consistency(run: RunScores) -> tuple[str, str]:
    told = Consistency().analyse(run)
    before, after, null = (number(part(told, key).get("mean")) or 0.0 for key in ("before", "after", "null"))
    return f"{before:.2f} before, {after:.2f} after", f"mere mixing of the parents' scores gives {null:.2f}"


def _landscape(run: RunScores) -> tuple[str, str]:
    size = len(run.mixtures())
    return f"{size} soups on the whole search fold", "the section on the landscape; by category: gained and lost"


def _parents(run: RunScores) -> tuple[str, str]:
    told = Parents().analyse(run)
    soups, size = entries(told, "soups"), len(elements(told, "categories"))
    above = {key: sum((number(soup[key]) or 0) > MANY * size for soup in soups) for key in ("beats_one", "beats_all")}
    ours = f"{above['beats_one']} of {len(soups)} above at least one, {above['beats_all']} above all"
    return ours, f"more than 5 of 9 of the {size} categories; the paper does not say whether one parent or all"


def _shapley(run: RunScores) -> tuple[str, str]:
    (level, *_) = entries(Shapley().analyse(run), "levels")
    players = entries(level, "players")
    values = [f"{' + '.join(texts(row, 'members'))} {percent(row.get('value'), sign=True)}" for row in players]
    return ", ".join(values), "points; the section on Shapley values has pairs, triplets and intervals"


def _wins(run: RunScores) -> tuple[str, str]:
    told = Wins().analyse(run)
    shares = [f"{percent(part(row, 'kept').get('share'))} of {row.get('name')}" for row in entries(told, "kept")]
    return ", ".join(shares), "percent of what an ingredient solves"


def _rescued(run: RunScores) -> tuple[str, str]:
    fails = entries(Wins().analyse(run), "by_failures")
    one, every = fails[1], fails[-1]
    ours = f"{percent(every.get('share'))} % where all fail, {percent(one.get('share'))} % where exactly one does"
    return (
        ours,
        f"{number(every.get('items')) or 0:.0f} items that all fail; examples: the section on what the soup keeps",
    )


LIKENESSES: Mapping[tuple[str, str, str], Likeness] = {
    ("Figure 2", "mean |rho| between categories, before and after souping", "rises"): _consistency,
    ("Figure 3", "the soup by category, and by weights", ""): _landscape,
    ("Figure 5", "soups above their parents in more than 20 of 36 categories", "35 of 37"): _parents,
    ("Figure 6", "Shapley values of single models", ""): _shapley,
    ("Appendix B", "share of each ingredient's solved items that the soup keeps", "97.2, 97.1, 97.1 %"): _wins,
    ("Appendices B, D", "items solved though ingredients fail", "32 of 380 (8.4 %); 93.0 % where one fails"): _rescued,
}
"""{(where in the paper, what, what it prints): the same on a run's soups}."""
