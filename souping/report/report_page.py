"""The report of a run as report.html, as report.md, and as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from souping.core.system import Provenance
from souping.report import tables
from souping.report.cells import Section
from souping.report.content import Report, TrialRow
from souping.report.format import clean, escape_html, escape_markdown
from souping.report.plots import Drawing
from souping.report.render import document, plain_table, section_html, section_markdown
from souping.report.sections import (
    figures,
    headline,
    kicker,
    report_findings,
    sections,
    summary,
    warnings,
)

if TYPE_CHECKING:
    from rich.table import Table

FOOT = (
    "Percentages are fractions of 1 in report.json; every key is in docs/reference-files.md."
    '<span class="print">What is folded away on the screen is left out here: open it before printing.</span>'
)


def page(report: Report, trials: Sequence[TrialRow], drawings: Sequence[Drawing]) -> str:
    """report.html. Every string of the user's is escaped; there is no script and no link to another file."""
    pictures = {drawing.name: _figure(drawing) for drawing in drawings}
    title = f"souping: {kicker(report)}"
    all_sections = sections(report, trials)
    body = [
        _headline_html(report),
        _figures_html(report),
        _warnings_html(report),
        _contents_html(all_sections),
    ]
    body += [section_html(section, pictures) for section in all_sections]
    body.append(f"<footer>{FOOT}{_provenance_html(report.provenance)}</footer>")
    return document(title, body)


def _provenance_html(made_by: Provenance | None) -> str:
    """Command, date, version and machine as an HTML paragraph for the footer."""
    if made_by is None:
        return ""
    machine = [made_by.platform, f"{clean(made_by.cpus)} cores", *made_by.gpus]
    words = [made_by.command, made_by.date, f"souping {made_by.version}", *machine]
    line = " \N{MIDDLE DOT} ".join(filter(None, map(clean, words)))
    return f"<p>{escape_html(line)}</p>"


def _headline_html(report: Report) -> str:
    """HTML of the headline, with the run's name above and the summary below it."""
    below = "".join(f"\n<p>{escape_html(line)}</p>" for line in summary(report))
    return f'<p class="kicker">{escape_html(kicker(report))}</p>\n<h1>{escape_html(headline(report))}</h1>{below}'


def _figures_html(report: Report) -> str:
    """HTML of the few numbers at the top, a box each."""
    boxes = []
    for label, value, small in figures(report):
        mark = " class=soup" if label == "soup" else ""
        boxes.append(
            f"<div{mark}><span>{escape_html(label)}</span><b>{escape_html(value)}</b>"
            f"<small>{escape_html(small)}</small></div>"
        )
    if not boxes:
        return ""
    return f'<div class="figures">{"".join(boxes)}</div>'


def _warnings_html(report: Report) -> str:
    """HTML of the list of warnings; empty without warnings."""
    lines = "".join(f"<li>{escape_html(warning)}</li>" for warning in warnings(report))
    if not lines:
        return ""
    return f'<div class="warnings" role="note"><b>Warnings</b><ul>{lines}</ul></div>'


def _contents_html(sections: Sequence[Section]) -> str:
    """HTML of a list of links to the sections; empty for a single section."""
    if len(sections) < 2:
        return ""
    links = "".join(
        f'<li><a href="#{section.anchor}">{escape_html(section.title)}</a></li>'
        for section in sections
    )
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _figure(drawing: Drawing) -> str:
    caption = f"<figcaption>{escape_html(drawing.caption)}</figcaption>" if drawing.caption else ""
    return f'<figure><div class="scroll" tabindex="0">{drawing.svg()}</div>{caption}</figure>'


def markdown(report: Report, trials: Sequence[TrialRow]) -> str:
    """The report as GitHub-flavoured Markdown."""
    blocks = [f"# {escape_markdown(headline(report))}", *map(escape_markdown, summary(report))]
    if kicker(report):
        blocks.append(escape_markdown(kicker(report)))
    numbers = [_markdown_figure(*figure) for figure in figures(report)]
    if numbers:
        blocks.append("\n".join(numbers))
    blocks += [f"> Warning: {escape_markdown(warning)}" for warning in warnings(report)]
    all_sections = sections(report, trials)
    if len(all_sections) > 1:
        blocks.append(
            "\n".join(f"- [{section.title}](#{section.anchor})" for section in all_sections)
        )
    for section in all_sections:
        blocks += section_markdown(section)
    return "\n\n".join(blocks) + "\n"


def _markdown_figure(label: str, number: str, small: str) -> str:
    """`- label: **number** (small print)`"""
    line = f"- {escape_markdown(label)}: **{escape_markdown(number)}**"
    if small:
        line += f" ({escape_markdown(small)})"
    return line


def report_table(report: Report) -> Table:
    """Models with scores and the soup's paired differences; before the test step, the selection. The verdict is
    below."""
    lines = [headline(report), *report_findings(report)]
    return plain_table(
        tables.summary_table(report) if report.rows else tables.experts(report), lines
    )


def also_table(report: Report) -> Table:
    """The other benchmarks: every model's score, and below them what the soup lost."""
    return plain_table(tables.overview_table(report), list(tables.sentences(report)))
