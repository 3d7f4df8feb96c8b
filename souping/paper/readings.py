"""Readings of the paper's selection rule, compared with what the paper selected.

The stated rule is Algorithm 1: |rho| < 0.2 by Pearson, ties to the better overall. The paper's prose leaves the other
readings open: signed correlations, other ties, wider thresholds, one expert per cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from souping.analysis.correlation import pearson
from souping.core.scores import Mean
from souping.core.types import Json, ScoreMatrix, Selection, UserError
from souping.paper.published import PaperTable, totals
from souping.selection import SoCE, SoCECluster, ranking

Sign = Literal["absolute", "signed"]
Ties = Literal["overall", "all", "first"]
SAME = "the paper's"
CLUSTERS = "an expert a cluster (the abstract; selector=soce_cluster)"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to read the rule; the defaults are Algorithm 1."""

    threshold: float = 0.2
    sign: Sign = "absolute"
    ties: Ties = "overall"

    def select(self, scores: ScoreMatrix) -> Selection:
        rule = SoCE(
            correlation=pearson, objective=Mean(), threshold=self.threshold, sign=self.sign, ties=self.ties,
            otherwise="error",
        )  # fmt: skip
        return rule.select(scores)

    def __str__(self) -> str:
        bars = "|rho|" if self.sign == "absolute" else "rho"
        return f"{bars} < {self.threshold:g}, ties={self.ties}"


STATED = Reading()
READINGS = (
    STATED,
    Reading(ties="all"),
    Reading(ties="first"),
    Reading(threshold=0.3),
    Reading(threshold=0.3, ties="all"),
    Reading(threshold=0.5),
    Reading(sign="signed"),
    Reading(sign="signed", ties="all"),
)


def difference(found: Sequence[str], chosen: Sequence[str]) -> str:
    """How a selection differs from the paper's, in words; empty if the paper names none."""
    if not chosen:
        return ""
    more = [f"adds {name}" for name in found if name not in chosen]
    less = [f"lacks {name}" for name in chosen if name not in found]
    return ", ".join(more + less) or SAME


def spans(scores: ScoreMatrix, sign: Sign, ties: Ties) -> list[tuple[float, float, tuple[str, ...]]]:
    """(above, up to, ingredients) of every threshold; the selection changes only at the value of a correlation."""
    rho = pearson(scores.values).rho[np.triu_indices(len(scores.categories), 1)]
    edges = [float(v) for v in np.unique(np.abs(rho) if sign == "absolute" else rho)]
    found: list[tuple[float, float, tuple[str, ...]]] = []
    for low, high in zip(edges, [*edges[1:], 1.0], strict=True):
        if high <= low:
            continue
        names = Reading(threshold=(low + high) / 2, sign=sign, ties=ties).select(scores).ingredients
        if found and found[-1][2] == names:
            found[-1] = (found[-1][0], high, names)
        else:
            found.append((low, high, names))
    return found


def selections(table: PaperTable) -> dict[str, Json]:
    """Selection of every reading from one table, compared with the paper's own choice."""
    scores, chosen = table.scores, table.chosen
    stated = STATED.select(scores)
    return {
        "title": table.title,
        "paper": list(chosen),
        "stated": list(stated.ingredients),
        "beside": difference(stated.ingredients, chosen),
        "readings": _readings(table),
        "thresholds": [
            {"above": low, "to": high, "ingredients": list(names), "beside": difference(names, chosen)}
            for low, high, names in spans(scores, "absolute", "overall")
        ],
        "notes": [*_notes(stated, chosen), *([_where(scores, chosen)] if chosen else [])],
        "command": table.command,
    }


def _readings(table: PaperTable) -> list[Json]:
    """One row for all readings that select the same ingredients."""
    scores, rules = table.scores, dict[tuple[str, ...], list[str]]()
    found = {str(reading): _selected(reading, scores) for reading in READINGS}
    found[CLUSTERS] = SoCECluster(correlation=pearson, objective=Mean()).select(scores).ingredients
    for rule, names in {**found, **_tops(table)}.items():
        rules.setdefault(names, []).append(rule)
    return [
        {
            "ingredients": list(names),
            "beside": difference(names, table.chosen) if names else "no category is below the threshold",
            "rules": list(same),
        }
        for names, same in rules.items()
    ]


def _selected(reading: Reading, scores: ScoreMatrix) -> tuple[str, ...]:
    """Ingredients by a reading; none if no category is below its threshold."""
    try:
        return reading.select(scores).ingredients
    except UserError:
        return ()


def _tops(table: PaperTable) -> dict[str, tuple[str, ...]]:
    """The best K by overall score, which need no correlation."""
    if not table.chosen:
        return {}
    size, total = len(table.chosen), totals(table.benchmark, table.scale)
    return {
        f"top {size} by mean of the columns": tuple(ranking(table.scores, Mean())[:size]),
        f"top {size} by published total": tuple(sorted(table.scores.models, key=lambda name: -total[name])[:size]),
    }


def _notes(stated: Selection, chosen: Sequence[str]) -> list[str]:
    """Remarks on the selection by the stated rule."""
    low, names = stated.low_correlation, stated.ingredients
    says = []
    for name in names if chosen else ():
        won = [category for category, expert in stated.experts.items() if expert == name]
        if name not in chosen:
            says.append(f"{name} is the best candidate in {', '.join(won)}.")
    if len(names) == 1:
        says.append(f"One expert for all low-correlation categories ({', '.join(low)}): nothing to soup.")
    if len(low) == len(stated.categories):
        says.append("Every category counts as low-correlation, so the rule takes the winner of each.")
    return says


def _where(scores: ScoreMatrix, chosen: tuple[str, ...]) -> str:
    """Readings and thresholds that give the paper's own selection, in words."""
    found = [
        f"{sign}, ties={ties}: {low:.3f} < threshold <= {high:.3f}"
        for sign in get_args(Sign)
        for ties in get_args(Ties)
        for low, high, names in spans(scores, sign, ties)
        if set(names) == set(chosen)
    ]
    if not found:
        return "No threshold of any reading (absolute or signed, ties overall, all or first) gives the paper's choice."
    return "The paper's choice comes from " + "; ".join(found) + "."
