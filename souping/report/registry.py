"""How analyses are shown: each registers its section and pictures in its own module.

An analysis that registers none is shown by the `sentences` and `tables` of its data.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from souping.core.types import elements, entries, part, texts
from souping.report.drawing import Drawing
from souping.report.format import clean
from souping.report.tables import Report, Row, Section, grid, known

MODULES = (
    "souping.analysis.consistency",
    "souping.analysis.parents",
    "souping.analysis.shapley",
    "souping.analysis.surface",
    "souping.analysis.wins",
    "souping.paper.display",
)
"""Modules of this package that register a display."""
MORE = "More analyses"


@dataclass(frozen=True)
class Display:
    """How an analysis is shown; every function takes its data as it is in the report.

    Sections are ordered by `place`, those to be `folded` after all others. `within` names a section of the run that the
    analysis leads, if the run has it, instead of one of its own. `files` are {name: text} beside the report.
    """

    section: Callable[[Row], Section | None]
    draws: Sequence[Callable[[Row], Drawing | None]] = ()
    files: Callable[[Row], Mapping[str, str]] = lambda data: {}
    place: int = 9
    folded: bool = False
    within: str = ""


DISPLAYS: dict[str, Display] = {}
"""{name of an analysis: how it is shown}."""


def register(
    name: str,
    section: Callable[[Row], Section | None],
    draws: Sequence[Callable[[Row], Drawing | None]] = (),
    files: Callable[[Row], Mapping[str, str]] = lambda data: {},
    *,
    place: int = 9,
    folded: bool = False,
    within: str = "",
) -> None:
    """Show the analysis of this name so (see `Display`)."""
    DISPLAYS[name] = Display(section, draws, files, place, folded, within)


def displays() -> dict[str, Display]:
    """All that are registered, those of this package included."""
    for module in MODULES:
        importlib.import_module(module)
    return DISPLAYS


def _shown(report: Report) -> list[tuple[str, Row, Display | None]]:
    """(name, data, display) of the report's analyses by their place; those without a display come last."""
    made, data = displays(), part(report, "analyses")
    names = sorted(data, key=lambda name: (made[name].place if name in made else 99, name))
    return [(name, part(data, name), made.get(name)) for name in names]


def section_of(report: Report, name: str) -> Section | None:
    """The section of one analysis; None if the report has nothing of it."""
    data = part(part(report, "analyses"), name)
    if not data:
        return None
    display = displays().get(name)
    if why := _missing(data):
        return Section(_title(name), (why,))
    return display.section(data) if display else _plain(name, data)


def _missing(data: Row) -> str:
    """Why an analysis has no result; empty if it has one."""
    reasons = {"not estimable": data.get("not_estimable"), "it failed": data.get("failed")}
    return next((f"{kind}: {clean(why)}" for kind, why in reasons.items() if why), "")


def analysis_sections(report: Report) -> dict[str, Section]:
    """{name: section} of all analyses but the leading one."""
    first = leading(report)[0]
    sections = {name: section_of(report, name) for name, _, _ in _shown(report) if name != first}
    return {name: section for name, section in sections.items() if section is not None}


def led(report: Report, run: Mapping[str, Section | None]) -> tuple[dict[str, Section | None], set[str]]:
    """(sections of the run, names of the analyses that lead one): these give it first words and picture, and its own
    are folded. An analysis whose section the run lacks keeps one of its own.
    """
    sections, placed = dict(run), set[str]()
    for name, data, display in _shown(report):
        where = display.within if display else ""
        base, own = sections.get(where), section_of(report, name)
        if base is None or own is None or _missing(data):
            continue
        scored = Section("The soups that were evaluated", (), base.picture, base.grids)
        more = known((Section(own.title, own.lines[1:]), scored, *own.folded, *base.folded))
        sections[where] = Section(base.title, (*base.lines, *own.lines[:1]), own.picture, own.grids, more)
        placed.add(name)
    return sections, placed


def shown_sections(report: Report, placed: Collection[str]) -> list[Section]:
    """Sections of the analyses that are not `placed` within the run's: what the verdict does not need, or has no
    result, is folded into one.
    """
    sections, shown, away = analysis_sections(report), list[Section](), list[Section]()
    for name, data, display in _shown(report):
        if name in sections and name not in placed:
            hidden = _missing(data) or (display is not None and display.folded)
            (away if hidden else shown).append(sections[name])
    return [*shown, Section(MORE, folded=tuple(away))] if away else shown


def drawings(report: Report) -> list[Drawing]:
    """The pictures of all analyses that have a result."""
    drawn = [draw(data) for data, display in _results(report) for draw in display.draws]
    return [drawing for drawing in drawn if drawing is not None]


def files(report: Report) -> dict[str, str]:
    """{name: text} of the files that analyses leave beside the report."""
    return {name: text for data, display in _results(report) for name, text in display.files(data).items()}


def _results(report: Report) -> list[tuple[Row, Display]]:
    return [(data, display) for _, data, display in _shown(report) if display and not _missing(data)]


def leading(report: Report) -> tuple[str, Row]:
    """(name, data) of the analysis that the page is about: one that has a `headline`; else empty.

    It may have `cites`, {name of a section: {`title`, `lines`}}: what the page shows after it, under that title; all
    else of the run is folded away.
    """
    return next(((name, data) for name, data, _ in _shown(report) if data.get("headline")), ("", {}))


def _plain(name: str, data: Row) -> Section:
    """An analysis without a display: its sentences, then its tables."""
    tables = [
        grid(texts(table, "header"), [map(clean, row) for row in elements(table, "rows") if isinstance(row, Sequence)])
        for table in entries(data, "tables")
    ]
    lines = tuple(clean(line) for line in texts(data, "sentences"))
    return Section(clean(data.get("title")) or _title(name), lines, grids=tuple(tables))


def _title(name: str) -> str:
    return clean(name).replace("_", " ").capitalize()
