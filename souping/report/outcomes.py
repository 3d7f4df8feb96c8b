"""How answers ended, and how much their draw matters: sentences and tables of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping

from souping.core.types import number, part, texts
from souping.report.format import clean, count, in_words, percent
from souping.report.tables import Report, Row, TableGrid, grid

LOST = "cut off or missing and count as wrong"
WARN = 0.02
"""Share of lost answers from which a run warns (souping/pipeline/evidence.py)."""


def warnings(report: Report) -> list[str]:
    """The run's warnings; that answers were cut off or are missing stands once, not for every stage."""
    told = texts(report, "warnings")
    lost = [line for line in told if LOST in line]
    more = f" (the same in {count(len(lost) - 1)} later stages)" if len(lost) > 2 else ""
    return [f"{line}{more}" if line in lost else line for line in told if line not in lost[1:]]


def sentences(report: Report) -> list[str]:
    """Whose answers were cut off or are missing, and what part of the variance is the draw of the answers."""
    lost = hit(report)
    told = []
    if lost:
        who = in_words([f"{clean(name)} {percent(_lost(ends))} %" for name, ends in lost.items()])
        told.append(f"Answers that were cut off at the limit of tokens, or are missing, count as wrong: {who}.")
    elif part(report, "outcomes"):
        told.append("Every answer ended by itself: none was cut off, none is missing.")
    if part(report, "variance"):
        told.append(
            "Each item was answered several times; its score is the mean. What other answers to the same items, and "
            "what other items, would change is told apart by model."
        )
    return told


def few(report: Report) -> bool:
    """Whether next to nothing is to be told: no model lost as many answers as a run warns of, each item has one."""
    return not part(report, "variance") and all(_lost(ends) < WARN for ends in hit(report).values())


def models(report: Report) -> TableGrid:
    """A line a model that has answers cut off or missing."""
    lines = [
        (clean(name), percent(ends.get("truncated")), percent(ends.get("unanswered")), count(ends.get("items")))
        for name, ends in hit(report).items()
    ]
    return grid(("model", "cut off %", "missing %", "items"), lines)


def categories(report: Report) -> TableGrid:
    """The same, category by category."""
    lines = [
        (
            clean(name),
            clean(category),
            percent(own.get("truncated")),
            percent(own.get("unanswered")),
            count(own.get("items")),
        )
        for name, ends in hit(report).items()
        for category, own in _parts(ends, "categories")
        if _lost(own)
    ]
    return grid(("model", "category", "cut off %", "missing %", "items"), lines, left=(0, 1))


def reasons(report: Report) -> TableGrid:
    """Why answers are missing."""
    lines = [
        (clean(name), clean(why), count(n))
        for name, ends in hit(report).items()
        for why, n in part(ends, "reasons").items()
    ]
    return grid(("model", "reason", "answers"), lines, left=(0, 1))


def variance(report: Report) -> TableGrid:
    """The objective's standard error, and how much of its variance is the draw of the answers."""
    lines = []
    for name, split in _parts(report, "variance"):
        whole, answers = number(split.get("objective")) or 0.0, number(split.get("answers")) or 0.0
        of_answers = percent(answers / whole if whole else 0.0)
        lines.append((clean(name), f"{100 * math.sqrt(whole):.2f}", of_answers, percent(split.get("flips"))))
    heads = ("model", "standard error, points", "of the variance by answers %", "items whose answers score unlike %")
    return grid(heads, lines)


def hit(report: Report) -> dict[str, Row]:
    """How the answers ended of the models that have some cut off or missing."""
    return {name: ends for name, ends in _parts(report, "outcomes") if _lost(ends)}


def _parts(table: Row, key: str) -> list[tuple[str, Row]]:
    """The objects of an object, with their names."""
    return [(name, inner) for name, inner in part(table, key).items() if isinstance(inner, Mapping)]


def _lost(ends: Row) -> float:
    return (number(ends.get("truncated")) or 0.0) + (number(ends.get("unanswered")) or 0.0)
