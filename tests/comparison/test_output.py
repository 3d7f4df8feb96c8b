"""What `souping compare` prints, writes and shows: tables, pages, JSON, notebooks."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import souping as library
from souping.comparison.result import (
    CompareResult,
    Flip,
    RowVerdict,
    comparison_page,
    comparison_sections,
)
from souping.core.folders import write_files
from souping.core.types import UserError
from souping.logs.bfcl_items import MULTI_TURN
from souping.report.render import sheet_markdown, show_sheet
from tests.conftest import ROOT, Cli
from tests.support.compare import Rows, answers, compared
from tests.support.logs import write_csv

NASTY = "<script>alert(1)</script> | `x` \x1b[31m \u202e"


# Tables


def varied(key: str, values: list[str]) -> list[Rows]:
    """Answers of two models; the items have these values of a key in turns."""
    models = []
    for seed in (1, 2):
        rows = zip(answers(0.5, seed), cycle(values), strict=False)
        models.append([row | {key: value} for row, value in rows])
    return models


def test_names_are_broken_after_a_part_and_not_in_mid_word(bfcl_logs: dict[str, Path]) -> None:
    text = repr(library.compare(bfcl_logs, margin=1))
    for name in (*MULTI_TURN[:3], "live_relevance"):
        assert f"  {name} " in text
    names = [f"{'a_long_part_of_a_name/' * 3}{n}" for n in range(2)]
    rows = varied("category", names)
    lines = [line.split()[0] for line in repr(compared(*rows)).splitlines() if "a_long" in line]
    assert lines
    assert all(line[-1] in "_/" for line in lines), lines


def test_a_metric_that_is_the_same_in_all_rows_is_said_once(bfcl_logs: dict[str, Path]) -> None:
    text = repr(library.compare(bfcl_logs))
    assert text.count("accuracy") == 2  # and BFCL's overall accuracy in the notes
    rows = varied("metric", ["f1", "rouge"])
    text = repr(compared(*rows))
    assert "metric" in text
    assert "rouge" in text


def test_differences_have_the_digits_that_their_interval_deserves() -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 0.05, (2, 400))
    rows = []
    for shifts in noise:
        row = [
            {"item": f"i{n}", "category": "loss", "score": 2.5 + shift, "higher_is_better": "false"}
            for n, shift in enumerate(shifts)
        ]
        rows.append(row)
    found = compared(*rows)
    head = found.average_row("cand")
    width = head.high - head.low
    assert 0.01 < width < 0.1
    shown = next(line for line in repr(found).splitlines() if "Difference" in line)
    digits = {len(part) for part in re.findall(r"\d\.(\d+)", shown.partition(", p")[0])}
    assert digits == {3}, shown


def test_a_policy_for_tokens_names_the_row_of_characters(tmp_path: Path) -> None:
    policy = tmp_path / "gate.toml"
    policy.write_text('[tasks.tokens]\nmargin = "10%"\n')
    with pytest.raises(UserError, match=r"\[tasks\.characters\]"):
        compared(answers(0.5, 1, output="abc"), answers(0.5, 2, output="abcd"), policy=policy)


def test_a_task_is_split_by_a_field(tmp_path: Path) -> None:
    rows = varied("subject", ["law", "law", "math", "math"])
    found = {row.name: row.items for row in compared(*rows, category="subject").verdicts}
    assert found == {"average": 400, "law": 200, "math": 200}
    for table in rows:
        for row in table:
            del row["category"]
    logs = [write_csv(tmp_path / f"{n}.csv", table) for n, table in enumerate(rows)]
    result = library.compare({"a": logs[0], "b": logs[1]}, category="subject")
    assert [row.name for row in result.verdicts] == ["average", "law", "math"]
    with pytest.raises(UserError, match="subjekt"):
        library.compare({"a": logs[0], "b": logs[1]}, category="subjekt")


def test_the_task_of_lm_eval_is_split_by_a_field_of_its_documents(tmp_path: Path) -> None:
    logs = {}
    for name in ("tuned_python", "tuned_java"):
        source = ROOT / "tests" / "data" / "logs" / "lm_eval" / name
        with pytest.raises(UserError, match="--category splits one task"):
            library.compare({"a": source, "b": source}, category="passage")
        logs[name] = shutil.copytree(source, tmp_path / name)
        (file,) = logs[name].rglob("results_*.json")
        table = json.loads(file.read_text())
        table["configs"] = {"pick": table["configs"]["pick"]}
        table["group_subtasks"] = {}
        file.write_text(json.dumps(table))
    split = library.compare(logs, category="passage")
    head = split.average_row("tuned_java")
    assert head.mean == pytest.approx(library.compare(logs).average_row("tuned_java").mean)
    parts = [row for row in split.verdicts if row.kind == "task"]
    assert sum(row.items for row in parts) == head.items
    assert len(parts) > 1
    with pytest.raises(UserError, match="lacks 'nothing'"):
        library.compare(logs, category="nothing")


def test_a_frame_without_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        compared(answers(0.5, 1), answers(0.5, 2)).frame()


def test_several_models_share_a_correction() -> None:
    result = compared(answers(0.5, 1), answers(0.5, 2), answers(0.5, 3), answers(0.7, 4))
    assert result.average_row("most").verdict == "better"
    assert (
        result.average_row("cand").level
        > compared(answers(0.5, 1), answers(0.5, 2)).average_row("cand").level
    )
    assert result.best == ("most",)
    assert {model: list(row) for model, row in result.pairs.items()} == {
        "base": ["cand", "more", "most"],
        "cand": ["more", "most"],
        "more": ["most"],
    }
    assert compared(answers(0.5, 1), answers(0.5, 2)).best == ()


def test_the_baseline_can_be_named() -> None:
    forth = compared(answers(0.5, 1), answers(0.6, 2))
    back = compared(answers(0.5, 1), answers(0.6, 2), baseline="cand")
    assert back.models == ("cand", "base")
    assert back.average_row("base").difference == -forth.average_row("cand").difference
    assert back.average_row("base").p_value == forth.average_row("cand").p_value


# Output


def nasty() -> CompareResult:
    texts = {"prompt": NASTY, "output": NASTY, "category": NASTY}
    base = [row | texts for row in answers(0.5, 1)]
    cand = [row | texts for row in answers(0.6, 2)]
    return compared(base, cand)


def test_nothing_from_a_log_commands_a_page() -> None:
    result = nasty()
    written = sheet_markdown("x", comparison_sections(result, flips=5))
    shown = StringIO()
    show_sheet(comparison_sections(result, flips=5), Console(file=shown))
    for text in (repr(result), shown.getvalue(), written, comparison_page(result, flips=5)):
        assert not {"\x1b", "\u202e"} & set(text)
    assert "<script" not in comparison_page(result, flips=5)
    assert "<script" not in written
    rows = [line for line in written.splitlines() if line.startswith("|")]
    assert len({line.count("|") - line.count("\\|") for line in rows}) == 1


def test_the_pages_of_a_comparison(
    souping: Cli, log: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("before\n")
    log("base", answers(0.5, 1, prompt="What is 1 + 1?", output="two"))
    log("cand", answers(0.6, 2, prompt="What is 1 + 1?", output="three"))
    ended = souping(
        "compare",
        "base=base.csv",
        "cand=cand.csv",
        "--out",
        "gate",
        "--show",
        "2",
        "--margin",
        "1.5",
    )
    assert ended.code == 0
    assert ended.out.count("three") == 2
    html = (tmp_path / "gate" / "report.html").read_text()
    assert html.count("<svg") == 1
    assert "://" not in html
    assert (tmp_path / "gate" / "report.md").read_text() in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "summary.md").read_text().startswith("before\n")
    assert len(json.loads((tmp_path / "gate" / "compare.json").read_text())["flips"]) == 2


def test_out_replaces_its_own_files_and_no_others(
    souping: Cli, log: Callable[..., Path], tmp_path: Path
) -> None:
    log("base", answers(0.5, 1))
    log("cand", answers(0.6, 2))
    words = ("compare", "base=base.csv", "cand=cand.csv", "--out", "gate")
    gate = tmp_path / "gate"
    names = {"report.html", "report.md", "compare.json"}
    for margin in ("2", "3"):
        assert souping(*words, "--margin", margin).code == 0
        assert {path.name for path in gate.iterdir()} == names
        assert (
            json.loads((gate / "compare.json").read_text())["verdicts"][0]["margin"]
            == float(margin) / 100
        )

    (gate / "report.md").write_text("my notes\n")
    souping(*words).refused("--out")
    assert (gate / "report.md").read_text() == "my notes\n"


@pytest.mark.parametrize("name", ["report.md", "compare.json", "notes.txt", "report.json"])
def test_out_leaves_folders_of_others_alone(
    souping: Cli, log: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    log("base", answers(0.5, 1))
    log("cand", answers(0.6, 2))
    table = souping("compare", "base=base.csv", "cand=cand.csv", "--json").out
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / name).write_text(table)
    souping("compare", "base=base.csv", "cand=cand.csv", "--out", "own").refused("--out")
    souping("compare", "base=base.csv", "cand=cand.csv", "--out", "").refused("--out is empty")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, table)]


def test_out_writes_all_or_nothing(
    souping: Cli, log: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log("base", answers(0.5, 1))
    log("cand", answers(0.6, 2))
    words = ("compare", "base=base.csv", "cand=cand.csv", "--out", "gate")
    assert souping(*words).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "gate").iterdir()}

    def full(stage: Path, files: dict[str, bytes]) -> None:
        (stage / "report.html").write_text("half")
        raise OSError(28, "No space left on device", str(stage))

    monkeypatch.setattr("souping.cli.compare.write_files", full)
    souping(*words, "--margin", "5").refused("No space left")
    assert {path.name: path.read_bytes() for path in (tmp_path / "gate").iterdir()} == before


@pytest.mark.parametrize("replaced", [0, 1, 2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_out_goes_on_where_it_was_killed_between_its_files(
    souping: Cli,
    log: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replaced: int,
    first: bool,
) -> None:
    log("base", answers(0.5, 1))
    log("cand", answers(0.6, 2))
    words = ("compare", "base=base.csv", "cand=cand.csv", "--out", "gate")
    gate = tmp_path / "gate"
    if not first:
        assert souping(*words).code == 0
    # A killed process leaves its stage and the files that it has replaced.
    written: dict[str, str | bytes] = {}

    def killed(stage: Path, files: dict[str, bytes]) -> None:
        written.update(files)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("souping.cli.compare.write_files", killed)
        with suppress(KeyboardInterrupt):
            souping(*words, "--margin", "5")
    stage = gate / ".souping-compare-killed"
    write_files(stage, written)
    for name in list(written)[:replaced]:
        (stage / name).replace(gate / name)

    if replaced:
        page = (gate / "report.html").read_bytes()
        (gate / "report.html").write_text("my notes")
        souping(*words).refused("--out")
        assert (gate / "report.html").read_text() == "my notes"
        (gate / "report.html").write_bytes(page)
    assert souping(*words).code == 0
    assert {path.name for path in gate.iterdir()} == {"report.html", "report.md", "compare.json"}


def test_the_json_is_the_schema() -> None:
    result = compared(*(answers(0.5, s) for s in (1, 2, 3)))
    table = json.loads(result.to_json())
    for kind, rows in ((RowVerdict, "verdicts"), (Flip, "flips")):
        names = [field.name for field in fields(kind)]
        assert all(list(row) == names for row in table[rows])
    assert list(table) == [field.name for field in fields(CompareResult)]


def test_a_result_shows_itself_in_a_notebook_and_as_a_frame() -> None:
    result = compared(answers(0.5, 1), answers(0.6, 2))
    assert "cand is better than base" in repr(result)
    assert "<table" in result._repr_html_()
    pytest.importorskip("pandas")
    assert list(result.frame()["name"]) == [row.name for row in result.verdicts]


def test_flips_name_the_items_and_their_answers() -> None:
    result = compared(answers(0.5, 1, output="a"), answers(0.5, 2, output="b"))
    head = result.average_row("cand")
    assert len(result.flips) == round(head.discordant * head.items)
    assert {(flip.baseline_output, flip.output) for flip in result.flips} == {("a", "b")}
    assert sum(
        flip.score - flip.baseline_score for flip in result.flips
    ) / head.items == pytest.approx(head.difference)
