"""The end of a run on standard output: the rows, where everything is, and what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path

from souping.core.files import nearby
from souping.core.text import safe
from souping.pipeline.settings import MergeSettings
from souping.report.analyses import analysis_sections
from souping.report.content import Report
from souping.report.render import also_table, output_console, report_table, show_sheet
from souping.report.samples import SAMPLES_FILE
from souping.report.tables import nonempty

SHOWN_FILES = (
    "report.html",
    "report.md",
    "report.json",
    "selection.json",
    "trials.csv",
    "analyses.json",
    SAMPLES_FILE,
    "recipe.json",
    "plan.json",
    "config.yaml",
)


def show_end(settings: MergeSettings, report: Report, soup: Path | None) -> None:
    """The end of a run on standard output: the rows, where everything is, and what to do next."""
    run_dir = settings.run_dir
    if "soup" not in report.others:
        _tables(report)
    for name in SHOWN_FILES:
        if (run_dir / name).exists():
            print(f"  {name:16} {safe(nearby(run_dir / name))}")
    if soup is not None:
        print(f"  {'soup':16} {safe(nearby(soup))}")
        if (soup / "recipe.json").exists():
            print(f"  {'rebuild':16} {safe(settings.rebuild_command)}")
    if settings.tracker.hint:
        print(f"  {'tracker':16} {safe(settings.tracker.hint)}")
    if (run_dir / "report.html").exists():
        print(f"open {safe(shlex.quote(nearby(run_dir / 'report.html')))}")


def _tables(report: Report) -> None:
    out = output_console()
    out.print(report_table(report))
    # A report has its analyses on its page.
    if report.rows is None:
        show_sheet(nonempty(analysis_sections(report)), out)
    if report.also:
        out.print(also_table(report))
