"""`python -m souping compare base=LOG cand=LOG`: an honest verdict for any two evaluation logs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

from souping.cli.commands import parser_of
from souping.cli.process import stop
from souping.comparison.api import AVERAGES, compare
from souping.comparison.row_verdict import FAIL_ON, WORDS, Word
from souping.core.arguments import Arguments, points, positive
from souping.core.fields import pick
from souping.core.files import error_text, expanded
from souping.core.folders import write_files
from souping.core.parsing import read_json
from souping.core.reading import read
from souping.core.text import one_line, safe
from souping.core.types import UserError, frozen
from souping.logs.answer_tables import LogSource

PAGES = ("report.html", "report.md")
TABLE = "compare.json"
STAGES = ".souping-compare-*"
"""Folders in which the files are written before they take their places."""
MORE = """\
A LOG is a run of souping, an output folder of lm_eval, a BFCL project, a log of inspect_ai, a file of Every Eval Ever,
NeMo Evaluator, NeMo Gym or verifiers, or CSV, JSONL or parquet with the columns item, category, score, or with those
that --item, --category and --score name. NAME=LOG,LOG are runs of one model, or trainings of one recipe.
exit status: 0; 1 if a deciding row has a verdict of --fail-on; 2 if logs are damaged or may not be compared
"""


@frozen
class PageDigests:
    """The digests of the pages in the folder of a compare.json, as it has them: {page: digest}."""

    pages: Mapping[str, str]


def compare_logs(arguments: Sequence[str]) -> int:
    """The exit status of the comparison. Errors are reported here, as hydra may not be installed."""
    try:
        return _compare(vars(_parser().parse_args(arguments)))
    except (UserError, OSError) as error:
        stop(safe(error_text(error)), 2)


def _compare(settings: dict[str, Any]) -> int:
    """Compare, print and write; the exit status. `settings` are {option: value} of the command line."""
    from souping.comparison.result import comparison_page, comparison_sections, comparison_title
    from souping.report.render import sheet_markdown, show_sheet

    logs = settings.pop("logs")
    flips = settings.pop("show")
    as_json = settings.pop("json")
    out = settings.pop("out")
    if out == "":
        raise UserError("--out is empty (an unset shell variable?): leave it out, or name a folder")
    folder = expanded(out, "--out") if out else None
    if folder:
        _check_folder(folder)
    result = compare(_logs(logs), **settings)
    sheet = comparison_sections(result, flips)
    if as_json:
        print(result.to_json(flips), end="")
    else:
        show_sheet(sheet)
    text = sheet_markdown(comparison_title(result), sheet)
    if folder:
        texts = {"report.html": comparison_page(result, flips), "report.md": text}
        files = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
        pages = {name: _digest(content) for name, content in files.items()}
        _write(folder, {**files, TABLE: replace(result, pages=pages).to_json(flips).encode()})
    # GitHub shows what is in this file on the page of the job.
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text + "\n")
    return result.status


def _check_folder(folder: Path) -> None:
    """Refuse a folder with other files than an earlier comparison wrote there, or with changed ones (UserError).

    A comparison that was killed may have replaced some of the files: its stage has the table of the others.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    stages = list(folder.glob(STAGES))
    tables = [_pages_of(place / TABLE) for place in (folder, *stages)]
    for name in PAGES:
        # A page may be missing after a comparison that was killed.
        unchanged = bool(stages)
        if (folder / name).is_file():
            digest = _digest((folder / name).read_bytes())
            unchanged = digest in [pages.get(name) for pages in tables]
        if not unchanged:
            raise UserError(
                f"--out {folder}: not empty, and not as an earlier compare --out left it: name another folder"
            )


def _pages_of(table: Path) -> Mapping[str, str]:
    """{page: its digest} as a compare.json says; empty if that cannot be read."""
    try:
        return read(PageDigests, read_json(table.read_bytes())).pages
    except (OSError, ValueError):
        return {}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write {name: content} into a folder of their own, then move the files to `folder`.

    So an error while writing leaves what was there before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Folders of comparisons that were killed.
    for stage_folder in folder.glob(STAGES):
        rmtree(stage_folder)
    with TemporaryDirectory(prefix=STAGES.rstrip("*"), dir=folder) as stage:
        write_files(Path(stage), files)
        # compare.json, which has the digests of the others, is the last one.
        for name in files:
            os.replace(Path(stage) / name, folder / name)


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def _logs(words: Sequence[str]) -> dict[str, list[LogSource]]:
    """{name: paths of its logs} from words NAME=LOG or NAME=LOG,LOG (UserError for other words)."""
    logs: dict[str, list[LogSource]] = {}
    for word in words:
        name, _, sources = word.partition("=")
        if not name or not sources:
            raise UserError(f"{one_line(word)}: write NAME=LOG")
        if name in logs:
            raise UserError(
                f"{one_line(name)}= is given twice: several runs of one model are NAME=LOG,LOG"
            )
        # The name of a file may have a comma.
        if Path(sources).exists():
            logs[name] = [sources]
        else:
            logs[name] = list(filter(None, sources.split(",")))
    return logs


def _words(text: str) -> list[Word]:
    """The verdicts in the value of --fail-on, in their order; empty for `none` (UserError for other words)."""
    words = [pick(word, (*WORDS, "none"), "--fail-on") for word in text.replace(",", " ").split()]
    return [word for word in WORDS if word in words]


def _parser() -> Arguments:
    parser = parser_of("compare", MORE)
    add = parser.add_argument
    add("logs", nargs="+", metavar="NAME=LOG", help="two or more models; the first is the baseline")
    add("--baseline", metavar="NAME", help="the baseline, if it is not the first")
    add("--margin", type=points, metavar="POINTS", help="a loss that does not matter")
    add(
        "--policy",
        metavar="FILE",
        help="TOML: margin, and [tasks.NAME] with margin and required = true",
    )
    add(
        "--fail-on",
        type=_words,
        default=list(FAIL_ON),
        metavar="WORDS",
        help="default: worse,much-worse; or none",
    )
    add(
        "--average",
        default="task",
        metavar="HOW",
        help=f"{', '.join(AVERAGES)}, or a JSON file {{task: weight}}",
    )
    add(
        "--group", default="", metavar="FIELD", help="field of documents or column that items share"
    )
    add("--category", default="", metavar="FIELD", help="field or column that splits the one task")
    add("--item", default="", metavar="FIELD", help="field that identifies an item of a table")
    add("--score", default="", metavar="FIELD", help="field of a table with the score")
    add("--repeat", default="", metavar="FIELD", help="field that numbers the answers to one item")
    add(
        "--look",
        type=positive,
        default=1,
        metavar="K",
        help="this is the K-th comparison on these items",
    )
    add("--pass-at", type=positive, metavar="K", help="score an item by pass@K")
    add(
        "--same-prompts",
        action="store_true",
        help="refuse logs whose prompts, as they were sent, differ",
    )
    add(
        "--lower-is-better",
        action="append",
        default=[],
        metavar="TASK",
        help="a task of a table in which a lower score is better; may be repeated",
    )
    add("--store", metavar="FILE", help="results store of runs of souping, where it is not found")
    add("--show", type=positive, default=0, metavar="N", help="show N items that flipped")
    add("--json", action="store_true", help="print compare.json instead of tables")
    add("--out", metavar="DIR", help="write report.html, report.md and compare.json")
    return parser
