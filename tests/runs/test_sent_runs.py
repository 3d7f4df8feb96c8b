"""Run folders that somebody sent: links, edited files, copies, and settings that are not those of the run."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from souping.core import files
from souping.report.samples import SAMPLES_FILE
from souping.runs import open_soups
from souping.runs.open_soups import asked_soups
from tests.conftest import Cli, Outcome, command_line
from tests.support.asking import Lab


@pytest.fixture(scope="module")
def started(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has two open soups."""
    place = tmp_path_factory.mktemp("started")

    def souping(*words: str) -> Outcome:
        with redirect_stdout(io.StringIO()) as out:
            return Outcome(command_line(place, *words), out.getvalue(), "")

    Lab(souping, family, place).start("executor.max_open=2").ok()
    return place


@pytest.fixture
def lab(souping: Cli, family: Path, tmp_path: Path, started: Path) -> Lab:
    """A copy of that run."""
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    return Lab(souping, family, tmp_path)


def state_of(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


LINKED = (
    "run.log",
    "order.jsonl",
    "config.yaml",
    "asked",
    "asked/1",
    "asked/1/failed",
    "asked/1/request.json",
    "asked/1/.lock",
    "plots",
)


@pytest.mark.parametrize("name", LINKED)
def test_nothing_is_written_through_a_link(lab: Lab, name: str) -> None:
    place = lab.run / name
    outside = lab.place / "outside"
    outside.mkdir()
    target = outside / place.name
    if place.exists():
        place.rename(target)
    else:
        target.write_text("mine")
    place.symlink_to(target)
    before = state_of(outside)
    lab.ask().refused(name)
    lab.tell("1=failed").refused(name)
    lab.souping("analyse", "run", "analysis=[item_wins]").refused(name)
    assert state_of(outside) == before


@pytest.mark.parametrize("name", ["run.log", "order.jsonl", "asked/1/request.json"])
def test_a_file_that_has_another_name_elsewhere_stays_as_it_is(lab: Lab, name: str) -> None:
    outside = lab.place / "outside"
    os.link(lab.run / name, outside)
    before = outside.read_bytes()
    lab.ask().refused(name)
    lab.tell("1=failed").refused(name)
    assert outside.read_bytes() == before


@pytest.mark.parametrize("name", ["answers.jsonl", "request.json", "recipe.json"])
def test_a_pipe_is_refused_before_anything_waits_for_it(lab: Lab, name: str) -> None:
    place = lab.soup(1) / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    lab.ask().refused(name)
    lab.tell("2=failed").refused(name)


def test_only_numbers_name_soups_and_a_copy_under_another_number_is_refused(lab: Lab) -> None:
    for name in ("1 copy", "1.bak", "01", "-1", "0", "9" * 20, "\u00b2"):
        shutil.copytree(lab.soup(1), lab.run / "asked" / name)
    lab.ask(2).ok()
    assert list(asked_soups(lab.run)) == [1, 2]
    shutil.copytree(lab.soup(1), lab.soup(99))
    lab.ask(2).refused("run/asked", "copy")


def edited(lab: Lab, **changes: object) -> None:
    """Answers of the first soup, of which each line has these `changes`."""
    lines = []
    for item in open_soups.asked_soup(lab.soup(1))["items"]:
        line = {"item": item, "score": 1.0, "output": "", "prompt_key": "", "reason": ""}
        lines.append(json.dumps({**line, "outcome": "finished", **changes}) + "\n")
    (lab.soup(1) / "answers.jsonl").write_text("".join(lines))


@pytest.mark.parametrize(
    "changes",
    [
        {"score": 5},
        {"score": -0.5},
        {"score": float("nan")},
        {"score": 10**400},
        {"score": "x"},
        {"score": True},
        {"item": "another"},
        {"outcome": "another"},
        {"more": 1},
        {"output": [[]] * 200},
    ],
    ids=str,
)
def test_edited_answers_are_refused(lab: Lab, changes: dict[str, object]) -> None:
    edited(lab, **changes)
    store = (lab.place / "run.sqlite").read_bytes()
    lab.ask().refused("asked/1/answers.jsonl")
    assert (lab.place / "run.sqlite").read_bytes() == store


def test_answers_as_tell_writes_them_are_taken(lab: Lab) -> None:
    edited(lab)
    lab.ask(2).ok()
    assert 1 not in lab.open


@pytest.mark.parametrize(
    "text",
    [
        '"..\n',
        "5\n",
        "null\n",
        "{}\n",
        "\n",
        "{\n",
        "\udcff\n",
        '{"home": "\\u0000"}\n',
        "[" * 9999 + "\n",
    ],
)
def test_an_edited_order_is_refused(lab: Lab, text: str) -> None:
    (lab.run / "order.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    lab.ask().refused("order.jsonl")


@pytest.mark.parametrize(
    "line", ["5", "null", "", "[1]", '[1, "ask", 1, "x"]', '["a", "ask", true, "x"]']
)
def test_an_edited_event_is_refused(lab: Lab, line: str) -> None:
    with (lab.run / "order.jsonl").open("a") as file:
        file.write(line + "\n")
    lab.ask().refused("order.jsonl")


@pytest.mark.parametrize("text", ["", '["..", "'])
def test_an_order_whose_first_line_was_not_written_is_begun_again(lab: Lab, text: str) -> None:
    before = (lab.run / "order.jsonl").read_text()
    (lab.run / "order.jsonl").write_text(text)
    lab.ask(2).ok()
    assert (lab.run / "order.jsonl").read_text() == before


@pytest.mark.parametrize("home", ["nowhere", "a\0b", "$(touch made)"])
def test_a_home_that_is_no_folder_is_refused(lab: Lab, home: str) -> None:
    path = lab.run / "order.jsonl"
    _, content = json.loads(path.read_text())
    path.write_text(json.dumps([home, content]) + "\n")
    lab.ask().refused(home.replace("\0", "\\x00"))


@pytest.mark.parametrize(
    "word", ["min_gain=7", "selector.k=3", "seed=2", "dry_run=3", "guard=5", "analysis=[item_wins]"]
)
def test_ask_goes_on_with_the_settings_of_the_run_alone(lab: Lab, word: str) -> None:
    before = state_of(lab.run / "asked")
    lab.ask(2, word).refused("order.jsonl")
    assert state_of(lab.run / "asked") == before


def test_a_run_goes_on_with_its_store_elsewhere(lab: Lab) -> None:
    (lab.place / "run.sqlite").rename(lab.place / "moved.sqlite")
    lab.ask(2, "store=moved.sqlite", "--allow-code").ok()


@pytest.mark.parametrize(
    "text", ["", "null", "# nothing", "[]", "5", "store: 5", "store: {}", "analysis: null"]
)
def test_a_configuration_of_another_form_is_refused(lab: Lab, text: str) -> None:
    (lab.run / "config.yaml").write_text(text)
    lab.ask().refused("config.yaml")


@pytest.mark.parametrize("value", ["[a]", "{a: b}", "[[]]", "5"])
def test_a_target_that_is_no_text_is_refused(lab: Lab, value: str) -> None:
    path = lab.run / "config.yaml"
    path.write_text(path.read_text().replace("souping.selection.TopK", value, 1))
    assert value in path.read_text()
    lab.ask().refused("config.yaml", "_target_")


@pytest.mark.parametrize(
    ("column", "code"), [("category", 0), ("task", 2)], ids=["another category", "another task"]
)
def test_scores_of_other_tasks_under_the_same_ids_do_not_count(
    lab: Lab, column: str, code: int
) -> None:
    lines = []
    for text in (lab.soup(1) / "items.jsonl").read_text().splitlines():
        item = json.loads(text)
        row = {"item": item["id"], "category": item["category"], "score": 1}
        lines += [row, {**row, column: "of another benchmark", "score": 0}]
    log = lab.place / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = lab.tell(f"1={log}")
    assert outcome.code == code
    if code == 0:
        answers = open_soups.answers(lab.soup(1), open_soups.asked_soup(lab.soup(1))["items"])
        assert {record.score for record in answers} == {1.0}


def test_answers_that_unpack_to_too_much_are_refused(
    souping: Cli, finished_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finished_copy / SAMPLES_FILE
    monkeypatch.setattr(files, "UNPACKED_BYTES", 1 << 20)
    souping("show", "run", "--split", "search", "-n", "1").ok()
    # One line, then many.
    for content in (b"a" * 10_000_000, b'{"models": {}}\n' * 1_000_000):
        path.write_bytes(gzip.compress(content))
        souping("show", "run").refused(SAMPLES_FILE)
        souping("compare", "a=run", "b=run:uniform_all").refused(SAMPLES_FILE)


def test_half_a_character_in_a_sent_run_is_refused(souping: Cli, finished_copy: Path) -> None:
    path = finished_copy / SAMPLES_FILE
    before = path.read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(before).splitlines()]
    lines = [json.dumps({**row, "prompt_hash": "\ud800"}) + "\n" for row in rows]
    path.write_bytes(gzip.compress("".join(lines).encode()))
    souping("show", "run").refused(SAMPLES_FILE)
    path.write_bytes(before)
    report = json.loads((finished_copy / "report.json").read_text())
    report["recipe"]["id"] = "\ud800"
    (finished_copy / "report.json").write_text(json.dumps(report))
    souping("show", "run").refused("store=")


@pytest.mark.parametrize("name", ["report.json", "config.yaml", "trials.csv", "selection.json"])
def test_a_file_of_a_sent_run_that_is_larger_than_any_is_not_read(
    souping: Cli, finished_copy: Path, name: str
) -> None:
    os.truncate(finished_copy / name, 3 << 30)
    if name == "selection.json":
        (finished_copy / "report.json").unlink()
        souping("show", "run").refused(name)
    else:
        souping("analyse", "run", "analysis=[item_wins]").refused(name)
    souping("list", ".").ok()
