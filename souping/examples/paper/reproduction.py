"""The paper, redone (`analysis=paper`): its tables and figures from published figures, and on this run's own soups.

Published figures are those beside this file, or a leaderboard given by path; nothing of them comes from the run. What
the paper counts on its soups (Figure 5) is counted on the soups of the run too: other models, so only a likeness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from souping.analysis import Analysis, NotEstimableError, RunScores
from souping.analysis.correlation import pearson
from souping.analysis.parents import Parents
from souping.core.scores import ScoreMatrix
from souping.core.types import Json, entries, number
from souping.examples.paper.findings import CORRUPT, Finding, directions, findings, flores
from souping.examples.paper.published import TABLES, leaderboard
from souping.examples.paper.readings import selections

PAPER = "arXiv 2511.13254v1"
MANY = 20 / 36
"""Figure 5 counts soups that are above in more than 20 of 36 directions."""


@dataclass(frozen=True, kw_only=True)
class PaperFigures(Analysis):
    """What the paper prints beside what comes out; `leaderboard`: the CSV of Figure 1, null for the shipped rows."""

    leaderboard: str | None = None

    def analyse(self, run: RunScores) -> dict[str, Json]:
        board = leaderboard(self.leaderboard)
        found = [*findings(board), *_parents(run)]
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


def _parents(run: RunScores) -> Iterator[Finding]:
    """Figure 5 on the run's soups."""
    what = "soups above their parents in more than 20 of 36 categories"
    try:
        told = Parents().analyse(run)
    except NotEstimableError as error:
        yield Finding(of="Figure 5", what=what, paper="35 of 37", ours="", verdict="other models", note=str(error))
        return
    soups, size = entries(told, "soups"), len(_list(told["categories"]))
    above = {key: sum((number(soup[key]) or 0) > MANY * size for soup in soups) for key in ("beats_one", "beats_all")}
    yield Finding(
        of="Figure 5",
        what=what,
        paper="35 of 37",
        ours=f"{above['beats_one']} of {len(soups)} above at least one, {above['beats_all']} above all",
        verdict="other models",
        note=f"more than 5 of 9 of the {size} categories; the paper does not say whether one parent or all are meant",
    )


def _list(value: Json) -> Sequence[Json]:
    return value if isinstance(value, Sequence) else ()
