"""What a run leaves behind for people: report.json, report.md, report.html, plots, the soup's card, the end table."""

from __future__ import annotations

from souping.report.cards import card
from souping.report.files import as_json, draw, put, write, write_selection, write_trials
from souping.report.progress import Progress
from souping.report.terminal import also_table, gate_table, sheet_markdown, show_sheet, table

__all__ = [
    "Progress",
    "also_table",
    "as_json",
    "card",
    "draw",
    "gate_table",
    "put",
    "sheet_markdown",
    "show_sheet",
    "table",
    "write",
    "write_selection",
    "write_trials",
]
