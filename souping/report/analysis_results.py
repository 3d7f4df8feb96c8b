"""What the analyses of a run found, and how it is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from souping.core.reading import read, rest
from souping.core.types import Json, frozen
from souping.core.unit import Unit
from souping.report.cells import Section, grid
from souping.report.content import Report
from souping.report.format import clean
from souping.report.plots import Drawing

FIRST_ANALYSES = ("guards", "front", "paper", "surface", "item_wins", "shapley", "size")
"""Analyses that are shown first, in this order. The others follow by name."""


@frozen
class AnalysisResult(ABC):
    """What an analysis found, and how it is shown. `unit` is that of the run's scores."""

    # whether it is shown at the end, in the folded section of further numbers
    folded: ClassVar[bool] = False
    not_estimable: str | None = None
    """why there is too little data"""
    failed: str | None = None
    """why it failed"""
    others: Mapping[str, Any] = rest()

    @property
    def reason(self) -> str:
        """Why the analysis found nothing; empty if it found something."""
        if self.not_estimable:
            return f"not estimable: {clean(self.not_estimable)}"
        if self.failed:
            return f"it failed: {clean(self.failed)}"
        return ""

    @abstractmethod
    def section(self, unit: Unit) -> Section:
        """The section that shows the result. If it has no title, the report takes the analysis's name."""

    def drawings(self, unit: Unit) -> tuple[Drawing | None, ...]:
        """The pictures of the result, None for one whose numbers are missing."""
        return ()


@frozen
class ResultTable:
    """A table of a user's analysis."""

    header: tuple[Any, ...]
    """headings"""
    rows: tuple[tuple[Any, ...], ...]
    """cells"""


@frozen
class UserResult(AnalysisResult):
    """What a user's analysis found. Only these fields are shown."""

    title: Any = None
    """heading"""
    sentences: tuple[Any, ...] | None = None
    """sentences"""
    tables: tuple[ResultTable, ...] | None = None
    """tables"""

    def section(self, unit: Unit) -> Section:
        grids = []
        for table in self.tables or ():
            rows = [map(clean, row) for row in table.rows]
            grids.append(grid([*map(clean, table.header)], rows))
        lines = tuple(map(clean, self.sentences or ()))
        return Section(clean(self.title), lines, grids=tuple(grids))


NO_RESULTS: Mapping[str, type[AnalysisResult]] = {}
"""Every analysis is shown as one of the user's."""


def read_content(table: Json, results: Mapping[str, type[AnalysisResult]] = NO_RESULTS) -> Report:
    """A report from the JSON of a report.json. `results` are {analysis: class of its result}.

    The result of an analysis that is not among them, or that found nothing, is a `UserResult`.
    """
    report = read(Report, table)
    if report.analyses is None:
        return report
    analyses = dict[str, AnalysisResult]()
    for name, data in report.analyses.items():
        result = read(UserResult, data)
        if name not in results or not data or result.reason:
            analyses[name] = result
        else:
            analyses[name] = read(results[name], data)
    return replace(report, analyses=analyses)


# ---------------------------------------------------------------- all of a report


def _in_order(report: Report) -> list[tuple[str, AnalysisResult]]:
    """(name, result) of the report's analyses that say anything, in the order in which they are shown."""
    analyses = report.analyses or {}
    # An analysis that leaves itself out has an empty result.
    nonempty = sorted(name for name in analyses if analyses[name] != UserResult())
    first = [name for name in FIRST_ANALYSES if name in nonempty]
    return [(name, analyses[name]) for name in dict.fromkeys([*first, *nonempty])]


def analysis_sections(report: Report, further: Sequence[Section] = ()) -> tuple[Section, ...]:
    """A section per analysis. The last one folds away the sections of `further`, and the analyses that found nothing
    or whose result asks for it."""
    sections = list[Section]()
    folded = list[Section]()
    for name, result in _in_order(report):
        title = clean(name).replace("_", " ").capitalize()
        reason = result.reason
        if reason:
            folded.append(Section(title, (reason,)))
            continue
        section = result.section(report.unit)
        if not section.title:
            section = replace(section, title=title)
        if result.folded:
            folded.append(section)
        else:
            sections.append(section)
    return (*sections, Section("Further numbers", folded=(*folded, *further)))


def drawings(report: Report) -> list[Drawing]:
    """The pictures of all analyses that have a result, in the order of their sections."""
    pictures = list[Drawing | None]()
    for _, result in _in_order(report):
        if not result.reason:
            pictures += result.drawings(report.unit)
    return [picture for picture in pictures if picture is not None]
