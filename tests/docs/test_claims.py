"""Every number that the documentation claims is in benchmarks/claims.csv, with the test, script or source for it."""

from __future__ import annotations

import csv
import re

import pytest

from tests.conftest import ROOT

with (ROOT / "benchmarks" / "claims.csv").open(encoding="utf-8", newline="") as _file:
    CLAIMS = list(csv.DictReader(_file))
DOCS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "benchmarks/README.md", *DOCS]
PAGES.remove("docs/reference.md")  # generated from conf/, whose numbers are defaults
UNITS = r"%|x|m?s|min|minutes|hours|px|[kMG]i?B|times|points?|items?|tokens?|models|searches|runs|repetitions|questions"
NUMBER = re.compile(rf"(?<![\w.])\d[\d,.]*(?: to \d[\d,.]*)? ?(?:{UNITS})(?![\w])|(?<![\w.])\d*\.\d+(?![\w.])")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)


def flat(text: str) -> str:
    return " ".join(text.split())


def blocks(text: str) -> list[str]:
    """Outputs of commands, paragraphs, list items and table rows. Code is left out."""
    outputs = [output for language, output in FENCE.findall(text) if language in ("text", "console")]
    return [flat(part) for part in [*outputs, *re.split(r"\n\s*\n|\n(?=\||- |\d+\. )", FENCE.sub("\n", text))]]


def prose(block: str) -> str:
    """A block without inline code, the targets of links and the number of the paper."""
    return re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv [\d.]+", "", block)


@pytest.mark.parametrize("page", PAGES)
def test_each_number_of_a_page_has_a_row(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    excerpts = [row["claim"] for row in CLAIMS if row["file"] == page]
    assert [excerpt for excerpt in excerpts if flat(text).count(excerpt) != 1] == []
    bare = [block for block in blocks(text) if NUMBER.search(prose(block)) and not any(e in block for e in excerpts)]
    assert bare == []


def test_each_row_names_what_shows_it() -> None:
    assert {row["file"] for row in CLAIMS} <= set(PAGES)
    assert {row["how"] for row in CLAIMS} <= {"test", "script", "source", "format"}
    for row in CLAIMS:
        path, _, function = row["shown_by"].split(" ")[0].partition("::")
        assert bool(path) == (row["how"] != "format"), row
        if row["how"] in ("test", "script"):
            assert (ROOT / path).is_file(), row
            assert not function or f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), row
