"""The command that makes a soup again, and what to know beside it."""

from __future__ import annotations

import re
import shlex
from typing import Any

from souping.report import texts
from souping.report.tables import Report, part

REBUILD = (
    "This command makes the same bytes again, and refuses where an ingredient's content differs. "
    "In the directory where the run was started leave `pool.candidates` out: its store knows the folders. "
    "Elsewhere write each ingredient's folder there."
)


def rebuild(report: Report, folder: str = "soup/") -> str:
    """The command that makes the soup again from the recipe.json in its `folder`, or the report's own `rebuild`.

    Empty where one candidate was selected: then no soup was written. What came from the Hub is found there by itself.
    """
    if report.get("rebuild"):
        return texts.clean(report["rebuild"])
    chosen, names = part(report, "selection").get("ingredients") or [], part(report, "recipe").get("ingredients") or []
    if len(names) < 2 and len(chosen) == 1:
        return ""
    here = _not_on_the_hub(report)
    pool = shlex.quote(f"pool.candidates=[{','.join(map(quoted, here))}]") + " " if here else ""
    return f"python -m souping +experiment=rebuild recipe={folder}recipe.json {pool}out=rebuilt"


def how_to_rebuild(report: Report) -> str:
    """What to know beside the command."""
    if _not_on_the_hub(report):
        return REBUILD
    return (
        "This command makes the same bytes again: it fetches the ingredients from the Hub at the commits of the recipe "
        "and refuses where one's content differs."
    )


def _not_on_the_hub(report: Report) -> list[str]:
    recipe = part(report, "recipe")
    return [name for name in recipe.get("ingredients") or [] if name not in (recipe.get("sources") or {})]


def quoted(name: Any) -> str:
    """A name as Hydra's grammar takes it: bare where it can be, else in double quotes.

    Inside quotes, Hydra reads a backslash as an escape only in front of a quote, the closing one included.
    """
    text = texts.clean(name)
    if text and all(c.isalnum() or c in "/-_.@+" for c in text):
        return text
    return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (m[2] and '\\"'), text) + '"'
