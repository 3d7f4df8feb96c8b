"""Registry of the sections that show a report's analyses.

A module of `souping/report/analyses/` registers the section of one analysis; nothing else names it. An analysis without
one is shown by the `sentences` and `tables` of its data.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from souping.core.types import elements, entries, part, texts
from souping.report import analyses
from souping.report.drawing import Drawing
from souping.report.format import clean
from souping.report.tables import Report, Row, Section, grid, known

MakeSection = Callable[[Row], Section | None]
Draw = Callable[[Row], Drawing | None]
MakeFiles = Callable[[Row], Mapping[str, str]]
"""All get the data of one analysis, as it stands in the report."""


@dataclass(frozen=True)
class Display:
    """How one analysis is shown."""

    section: MakeSection
    draws: tuple[Draw, ...]
    files: MakeFiles
    place: int
    folded: bool
    within: str


MORE = "More analyses"
DISPLAYS: dict[str, Display] = {}
"""{name of an analysis: how it is shown}."""


def register(
    name: str,
    section: MakeSection,
    draw: Draw = lambda data: None,
    files: MakeFiles = lambda data: {},
    *,
    draws: tuple[Draw, ...] = (),
    place: int = 9,
    folded: bool = False,
    within: str = "",
) -> None:
    """Show the analysis of this name so: sections stand by `place`, those to be `folded` away behind all others.

    `draws` are further pictures. `within` names a section of the run that the analysis leads instead of one of its own,
    where the run has it.
    """
    DISPLAYS[name] = Display(section, (draw, *draws), files, place, folded, within)


def displays() -> dict[str, Display]:
    """All that are registered, those of this package included."""
    for module in pkgutil.iter_modules(analyses.__path__):
        importlib.import_module(f"{analyses.__name__}.{module.name}")
    return DISPLAYS


def analysed(report: Report) -> list[str]:
    """Names of the report's analyses by their place; those without a section of their own come last."""
    made = displays()
    return sorted(part(report, "analyses"), key=lambda name: (made[name].place if name in made else 99, name))


def section_of(report: Report, name: str) -> Section | None:
    """The section of one analysis; None where the report has nothing of it."""
    data = part(part(report, "analyses"), name)
    if not data:
        return None
    display = displays().get(name)
    if _missing(data):
        return Section(clean(name).replace("_", " ").capitalize(), (_missing(data),))
    return display.section(data) if display else _plain(name, data)


def _missing(data: Row) -> str:
    """Why there is nothing of an analysis; empty where there is."""
    told = {"not estimable": data.get("not_estimable"), "it failed": data.get("failed")}
    return next((f"{kind}: {clean(why)}" for kind, why in told.items() if why), "")


def analysis_sections(report: Report) -> dict[str, Section]:
    """{name: section} of all analyses but the leading one."""
    names = [name for name in analysed(report) if name != leading(report)[0]]
    return {name: section for name in names if (section := section_of(report, name)) is not None}


def led(report: Report, run: Mapping[str, Section | None]) -> tuple[dict[str, Section | None], set[str]]:
    """(sections of the run, names of the analyses that lead one): these give it first words and picture, its own are
    folded. An analysis whose section the run has not keeps one of its own.
    """
    made, sections, placed = displays(), dict(run), set[str]()
    for name in analysed(report):
        where = made[name].within if name in made else ""
        base, own = sections.get(where), section_of(report, name)
        if base is None or own is None or _missing(part(part(report, "analyses"), name)):
            continue
        asked = Section("The soups that were asked", (), base.picture, base.grids)
        more = known((Section(own.title, own.lines[1:]), asked, *own.folded, *base.folded))
        sections[where] = Section(base.title, (*base.lines, *own.lines[:1]), own.picture, own.grids, more)
        placed.add(name)
    return sections, placed


def shown_sections(report: Report, placed: Collection[str]) -> list[Section]:
    """The same as a page shows them, without those that were `placed` within the run's: those that the verdict does not
    need are folded into one, which says too what was not to be had.
    """
    made, shown, away = displays(), list[Section](), list[Section]()
    for name, section in analysis_sections(report).items():
        if name in placed:
            continue
        hidden = _missing(part(part(report, "analyses"), name)) or (name in made and made[name].folded)
        (away if hidden else shown).append(section)
    return [*shown, Section(MORE, folded=tuple(away))] if away else shown


def drawings(report: Report) -> list[Drawing]:
    """The pictures of all analyses that could be made."""
    made, shown = displays(), part(report, "analyses")
    told = [(made[name], part(shown, name)) for name in analysed(report) if name in made]
    fine = [(display, data) for display, data in told if not _missing(data)]
    drawn = [draw(data) for display, data in fine for draw in display.draws]
    return [drawing for drawing in drawn if drawing is not None]


def files(report: Report) -> dict[str, str]:
    """{name: text} of the files that analyses leave beside the report."""
    shown, left = part(report, "analyses"), dict[str, str]()
    for name in analysed(report):
        data, display = part(shown, name), displays().get(name)
        if display is not None and not _missing(data):
            left |= display.files(data)
    return left


def leading(report: Report) -> tuple[str, Row]:
    """(name, data) of the analysis that the page is about: one that has a `headline`; else empty.

    It may have `cites`, {name of a section: {`title`, `lines`}}: what the page shows after it, under that title; all
    else of the run is folded away.
    """
    shown = part(report, "analyses")
    return next(((name, part(shown, name)) for name in analysed(report) if part(shown, name).get("headline")), ("", {}))


def _plain(name: str, data: Row) -> Section:
    """An analysis that has no section of its own: its sentences, then its tables."""
    title = clean(data.get("title")) or clean(name).replace("_", " ").capitalize()
    tables = [
        grid(texts(table, "header"), [map(clean, row) for row in elements(table, "rows") if isinstance(row, Sequence)])
        for table in entries(data, "tables")
    ]
    return Section(title, tuple(clean(line) for line in texts(data, "sentences")), grids=tuple(tables))
