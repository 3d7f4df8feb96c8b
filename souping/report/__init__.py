"""What a run leaves behind for people: report.json, report.md, report.html, plots, the soup's card, the end table."""

from __future__ import annotations

from souping.report.cards import card
from souping.report.files import as_json, draw, put, write, write_selection, write_trials
from souping.report.progress import Progress
from souping.report.terminal import table

__all__ = ["Progress", "as_json", "card", "draw", "put", "table", "write", "write_selection", "write_trials"]
