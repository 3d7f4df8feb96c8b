"""`souping list`, and `souping show` without a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import Cli

RUNS = {"stopped", "damaged", "whole"}


@pytest.fixture
def outputs(finished: Path, tmp_path: Path) -> Path:
    """A run with a report, an older one that has none, and one whose report is damaged."""
    folder = tmp_path / "outputs"
    shutil.copytree(finished / "run", folder / "mine" / "whole")
    for number, name in enumerate(("stopped", "damaged")):
        run = folder / "mine" / name
        run.mkdir()
        (run / "config.yaml").write_text("name: mine\n")
        os.utime(run / "config.yaml", (1e9 + number, 1e9 + number))
    (folder / "mine" / "damaged" / "report.json").write_text("{")
    return folder


def rows_of(text: str) -> list[list[str]]:
    lines = [line.split() for line in text.splitlines()]
    return [words for words in lines if words and words[0].startswith("mine/")]


def test_runs_are_listed_the_newest_last(outputs: Path, souping: Cli) -> None:
    rows = rows_of(souping("list").ok().out)
    assert [row[0] for row in rows] == ["mine/stopped", "mine/damaged", "mine/whole"]
    # Date, verdict and look; sizes are those of the files.
    assert rows[2][-2] == "1"
    assert "damaged" in rows[1]
    assert rows[0][1].startswith("2001-09-09")


def test_sizes_are_those_of_the_files(outputs: Path, souping: Cli) -> None:
    (outputs / "mine" / "stopped" / "weights.bin").write_bytes(bytes(3_000_000))
    assert rows_of(souping("list").ok().out)[0][-1] == "3"


def test_a_file_that_is_removed_meanwhile_is_left_out(
    outputs: Path, souping: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outputs / "mine" / "stopped" / "stage.bin").write_bytes(bytes(3_000_000))
    lstat = os.lstat

    def vanished(path: str) -> os.stat_result:
        if path.endswith("stage.bin"):
            raise FileNotFoundError(path)
        return lstat(path)

    monkeypatch.setattr(os, "lstat", vanished)
    assert rows_of(souping("list").ok().out)[0][-1] == "0"


def test_links_are_not_followed(outputs: Path, souping: Cli, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.yaml").write_text("")
    (outputs / "mine" / "link").symlink_to(tmp_path / "elsewhere")
    assert len(rows_of(souping("list").ok().out)) == 3


def test_a_folder_without_runs_is_an_error(souping: Cli, tmp_path: Path) -> None:
    souping("list").refused("outputs")
    for name in ("empty", "outputs"):
        (tmp_path / name).mkdir()
        souping("list", name).refused(name)
    for words in ([], ["empty"], ["nowhere"]):
        done = souping("show", *words)
        done.refused(*(words or ["outputs", "souping +experiment=bfcl"]))
        assert "did you mean" not in done.err


def test_every_command_finds_a_listed_run_by_its_name(outputs: Path, souping: Cli) -> None:
    (name,) = [row[0] for row in rows_of(souping("list").ok().out) if row[0].endswith("whole")]
    shown = souping("show", f"outputs/{name}").ok().out
    assert souping("show", name).ok().out == shown
    # The name of several runs stands for the last of them that has answers.
    assert souping("show", "mine").ok().out.endswith(shown)
    souping("analyse", name).refused("store=outputs/store.sqlite does not exist")
    souping("show", "mine/whol").refused("mine/whol", "did you mean outputs/mine/whole?")
    souping("upload", "mine/stopped", "me/soup").refused("mine/stopped", "has no soup")
    souping("ask", "mine/stopped").refused("mine/stopped is not a run with open soups")


def test_answers_of_the_newest_run_are_shown_without_its_name(outputs: Path, souping: Cli) -> None:
    named = souping("show", "outputs/mine/whole").ok().out
    assert souping("show").ok().out.endswith(named)


def test_one_run_with_odd_files_hides_no_other(outputs: Path, souping: Cli) -> None:
    def add(name: str, content: str) -> Path:
        run = outputs / "mine" / name
        run.mkdir()
        (run / "config.yaml").write_text("name: mine\n")
        (run / "report.json").write_text(content)
        return run

    report = json.loads((outputs / "mine" / "whole" / "report.json").read_text())
    report["verdict"] |= {"look": 10**300, "claim": "x" * 10**6}
    os.utime(add("far", json.dumps(report)) / "config.yaml", (1e17, 1e17))
    with (add("large", "{}") / "report.json").open("r+") as file:
        file.truncate(3 * 10**9)
    (add("folder", "") / "report.json").unlink()
    (outputs / "mine" / "folder" / "report.json").mkdir()
    out = souping("list").ok().out
    rows = {row[0]: row for row in rows_of(out)}
    assert rows.keys() == {f"mine/{name}" for name in RUNS | {"far", "large", "folder"}}
    assert rows["mine/whole"][-2] == "1"
    assert "damaged" in rows["mine/large"]
    # A line for each run, besides the heading.
    assert len(out.strip().splitlines()) == 2 + len(rows)
