"""Nobody's string can break a report's files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from souping.report.files import write_report, write_trials
from souping.report.format import escape_markdown
from tests.support.html import outline
from tests.support.report import sample

HOSTILE = '<script>alert("x")</script>|`*_a_*[x](http://y)$&\n\x00\ud800'


def hostile(value: Any) -> Any:
    """The same report with a hostile text after every string."""
    if isinstance(value, dict):
        return {(key if key in KEYS else key + HOSTILE): hostile(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return value + HOSTILE if isinstance(value, str) and value not in KEYS else value


def keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


NAMED = {"pantry-java", "simple_python", "simple_java"}
KINDS = {"soup", "best_single", "uniform_all", "uniform_selected", "uniform_topk", "ingredient", "candidate"}
KEYS = (keys(list(sample(columns=2, models=4))) | KINDS) - NAMED


def test_no_string_of_the_users_becomes_markup(tmp_path: Path) -> None:
    report, trials = (hostile(part) for part in sample(columns=2, models=4))
    write_report(report, trials, tmp_path)
    write_trials(trials, report, tmp_path / "trials.csv")
    html = (tmp_path / "report.html").read_text()
    parsed = outline(html)
    assert "script" not in parsed.tags
    assert "\x00" not in html
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in parsed.references)
    text = (tmp_path / "report.md").read_text()
    assert "<script" not in re.sub(r"```+bash.*?```+", "", text, flags=re.DOTALL)
    rows = [line for line in text.splitlines() if line.startswith("| pantry-java")]
    heads = [line for line in text.splitlines() if line.startswith("| model")]
    assert heads
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in [*heads, rows[0]]}
    assert len(columns) == 1


@given(st.text(max_size=40))
def test_an_escaped_cell_stays_one_cell_of_one_line(text: str) -> None:
    shown = escape_markdown(text)
    assert "\n" not in shown
    assert "<" not in shown
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", shown)
