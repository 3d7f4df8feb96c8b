"""Answers that are cut off or missing: how many, why, and whether they are too many for a claim."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from souping.core.types import ItemScores
from souping.report.content import AnswerEnds, ModelEnds
from souping.statistics.scores import ItemTable

WARN = 0.02
"""Share of a model's answers that are cut off or missing from which on there is a warning."""
REFUSE = 0.2
"""Share above which nothing is claimed."""
SEE_WHY = (
    "see why answers are missing (python -m souping show RUN_DIR): "
    "prompts longer than the context leave no room"
)


def outcomes(scores: ItemScores, table: ItemTable) -> ModelEnds:
    """How a model's answers ended: shares that were cut off (`truncated`) or are missing (`unanswered`), and why."""
    categories = {}
    for number, name in enumerate(table.names):
        categories[name] = _ends(scores, table.categories == number)
    return _model_ends(scores, categories)


def _model_ends(scores: ItemScores, categories: Mapping[str, AnswerEnds]) -> ModelEnds:
    ends = _ends(scores, slice(None))
    return ModelEnds(**vars(ends), reasons=dict(scores.reasons), categories=categories)


def _ends(scores: ItemScores, which: slice | NDArray[np.bool_]) -> AnswerEnds:
    truncated = scores.truncated[which]
    unanswered = scores.unanswered[which]
    return AnswerEnds(
        items=len(truncated),
        truncated=float(truncated.mean()),
        unanswered=float(unanswered.mean()),
    )


def unmeasured(ends: Mapping[str, ModelEnds], length_key: str = "") -> str:
    """The model with the most answers cut off or missing, if they are too many for a claim; else empty."""
    worst = max(ends, key=lambda name: _lost(ends[name]))
    if _lost(ends[worst]) <= REFUSE:
        return ""
    return (
        f"{_describe(worst, ends[worst])}; nothing is claimed where such answers are more than "
        f"{100 * REFUSE:.0f} %. Before the next run {_remedy(ends[worst], length_key)}."
    )


def lost_answers(scores: Mapping[str, ItemScores], where: str, length_key: str = "") -> list[str]:
    """A warning if 2 % or more of a model's answers in a stage are cut off or missing; {model: scores}."""
    ends = {name: _model_ends(answers, {}) for name, answers in scores.items()}
    affected = [name for name in ends if _lost(ends[name]) >= WARN]
    if not affected:
        return []
    worst = max(affected, key=lambda name: _lost(ends[name]))
    return [
        f"{where}: answers of {len(affected)} of {len(ends)} models are cut off or missing: "
        f"{_describe(worst, ends[worst])}: {_remedy(ends[worst], length_key)}"
    ]


def _lost(ends: AnswerEnds) -> float:
    return (ends.truncated or 0.0) + (ends.unanswered or 0.0)


def _describe(name: str, ends: ModelEnds) -> str:
    """`math 34.0 % cut off, 2.0 % missing (prompt does not fit: 12)`."""
    words = []
    if ends.truncated:
        words.append(f"{100 * ends.truncated:.1f} % cut off")
    if ends.unanswered:
        words.append(f"{100 * ends.unanswered:.1f} % missing{_reason(ends.reasons)}")
    return f"{name} {', '.join(words)}"


def _reason(reasons: Mapping[str, int | None]) -> str:
    """The most frequent reason."""
    if not reasons:
        return ""
    reason = max(reasons, key=lambda name: reasons[name] or 0)
    return f" ({reason}: {reasons[reason]:,})"


def _remedy(ends: AnswerEnds, length_key: str) -> str:
    """What to do about the answers of a model that are cut off or missing."""
    remedies = []
    if ends.truncated:
        where = f" ({length_key})" if length_key else ""
        remedies.append(f"raise the limit of tokens{where}")
    if ends.unanswered:
        remedies.append(SEE_WHY)
    return " and ".join(remedies)
