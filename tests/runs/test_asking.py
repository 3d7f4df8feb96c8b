"""executor=files: soups that a lab evaluates, told in any order, by jobs that die, fail and answer twice."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.analysis import Analysis
from souping.core.system import program
from souping.core.types import UserError
from souping.runs import asking, open_soups
from souping.runs.analyses import analyse
from souping.soups.serving import write_soup
from tests.conftest import ROOT, Cli, Outcome, command_line, pool_of, report_of
from tests.support.asking import OWN, Lab, told


@pytest.fixture
def lab(souping: Cli, family: Path, tmp_path: Path) -> Lab:
    return Lab(souping, family, tmp_path)


@pytest.fixture(scope="module")
def started(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has two open soups, with their models."""
    place = tmp_path_factory.mktemp("started")

    def souping(*words: str) -> Outcome:
        with redirect_stdout(io.StringIO()) as out:
            return Outcome(command_line(place, *words), out.getvalue(), "")

    Lab(souping, family, place).start("executor.max_open=2", "executor.write_models=true").ok()
    return place


@pytest.fixture
def two(lab: Lab, started: Path) -> Lab:
    """A copy of that run."""
    shutil.copytree(started, lab.place, dirs_exist_ok=True, symlinks=True)
    return lab


@pytest.mark.parametrize(
    "search",
    [["optimiser=uniform"], ["optimiser=adaptive"]],
    ids=lambda words: words[0],
)
@pytest.mark.slow
def test_one_open_soup_at_a_time_takes_the_path_of_an_ordinary_run(
    lab: Lab, search: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ordinary run finds every answer under its own key: its command would fail."""
    lab.words += search
    assert f"tell {lab.run} 1 " in lab.start().ok().out
    assert lab.open == [1]
    report = lab.finish(number=1)
    program = lab.place / "no-such-program"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(lab.place), prepend=":")
    lab.souping(*lab.words, "hydra.run.dir=plain").ok()
    plain = report_of(lab.place / "plain")
    assert plain["cost"]["evaluated_items"] == 0
    assert {key: value for key, value in plain.items() if key not in OWN} == report
    trials = [(folder / "trials.csv").read_text() for folder in (lab.run, lab.place / "plain")]
    assert trials[0] == trials[1]


@pytest.mark.slow
def test_a_job_of_a_search_has_the_least_number_of_items_or_the_whole_split(lab: Lab) -> None:
    lab.start("stop_after=search", min_items=25).ok()
    sizes = []
    while lab.open:
        lab.answer(*lab.open)
        for line in lab.ask(4, "--json").ok().out.splitlines():
            soup = json.loads(line)
            if soup["step"].startswith("search"):
                sizes.append(sum(soup["categories"].values()))
    # A category has 17 or 18 items: two leave fewer than 25 of the third.
    assert set(sizes) == {52}


def test_open_soups_as_json(two: Lab) -> None:
    """Standard output has nothing else, and nothing once there is a report."""
    soups = [json.loads(line) for line in two.ask(2, "--json").ok().out.splitlines()]
    assert [soup["id"] for soup in soups] == two.open == [1, 2]
    for soup in soups:
        folder = two.soup(soup["id"]).resolve()
        lines = Path(soup["items"]).read_text().splitlines()
        names = [json.loads(line)["category"] for line in lines]
        assert soup["categories"] == Counter(names)
        places = {key: folder / name for key, name in PLACES.items()}
        assert {key: Path(soup[key]).resolve() for key in PLACES} == places
        assert soup["state"] == "open"
        assert soup["step"].startswith("score")
        words = ["no-such-program", soup["model"], soup["items"], soup["out"]]
        assert soup["evaluate"] == words
        # The model is written.
        assert soup["make"] == []


PLACES = {"recipe": "recipe.json", "model": "model", "items": "items.jsonl", "out": "out"}


def test_without_models_json_has_the_command_that_makes_one(lab: Lab) -> None:
    lab.start().ok()
    soup = json.loads(lab.ask(1, "--json").ok().out)
    words = [soup["recipe"], f"out={soup['model']}"]
    store = f"store={lab.place / 'run.sqlite'}"
    assert soup["make"] == [*program().split(), "rebuild", *words, store]


def test_the_wall_time_counts_from_the_start_of_the_run(lab: Lab) -> None:
    lab.words.append("optimiser=uniform")
    lab.start("executor.max_open=8").ok()
    os.utime(lab.run / "config.yaml", (0, 0))
    lab.finish()
    assert report_of(lab.run)["cost"]["seconds"] > 1e9
    assert lab.ask(8, "--json").ok().out == ""


@pytest.mark.slow
def test_items_of_the_report_count_as_shown_when_they_are_handed_out(lab: Lab) -> None:
    """Whoever evaluates them can read the scores, and report another soup instead."""

    def looks() -> int:
        with closing(sqlite3.connect(lab.place / "run.sqlite")) as db:
            (count,) = db.execute("SELECT COUNT(*) FROM counted_looks").fetchone()
        return int(count)

    lab.words.append("optimiser=uniform")
    asked = lab.start().ok()
    while "the test needs" not in asked.out:
        assert looks() == 0
        lab.answer(*lab.open)
        asked = lab.ask(8).ok()
    assert looks() == 1
    # All models of the report at once, not one after the other.
    assert len(lab.open) > 1
    lab.finish()
    assert looks() == 1


@pytest.mark.slow
def test_eight_workers_that_end_in_any_order_die_fail_and_answer_twice(lab: Lab) -> None:
    dice = random.Random(1)
    lab.start("executor.max_open=8").ok()
    seen = set[str]()
    while not lab.done:
        for number in dice.sample(lab.open, len(lab.open)):
            fate = dice.choice(["answers", "answers", "twice", "dies", "fails"])
            seen.add(fate)
            if fate == "fails":
                lab.tell(f"{number}=failed").ok()
            elif fate != "dies":
                lab.answer(number)
            if fate == "twice":
                before = (lab.soup(number) / "answers.jsonl").read_bytes()
                assert "nothing changes" in lab.answer(number).out
                assert (lab.soup(number) / "answers.jsonl").read_bytes() == before
        was_open = lab.open
        listed = lab.ask(8).ok().out
        assert lab.done or (set(was_open) <= set(lab.open) and len(lab.open) <= 8)
        if not lab.done:
            # Asked again, it lists the same soups and writes none.
            again = lab.ask(8).ok().out
            assert ids(again) == ids(listed) == lab.open
            assert " new " not in again
    assert seen == {"answers", "twice", "dies", "fails"}
    assert report_of(lab.run)["verdict"]["sentence"]


def ids(text: str) -> list[int]:
    words = [line.split() for line in text.splitlines() if line.strip()]
    return [int(line[0]) for line in words if line[0].isdigit() and line[1] in STATES]


STATES = ("new", "open", "again")


@pytest.mark.slow
def test_the_order_of_results_between_two_asks_changes_nothing(
    lab: Lab, souping: Cli, family: Path, tmp_path: Path
) -> None:
    other = Lab(souping, family, tmp_path, run="other")
    for number, run in enumerate((lab, other)):
        run.start("executor.max_open=4").ok()
        while not run.done:
            for name in run.open if number else run.open[::-1]:
                run.answer(name)
            run.ask(4).ok()
    assert (lab.run / "order.jsonl").read_text() == (other.run / "order.jsonl").read_text()
    reports = [report_of(run.run) for run in (lab, other)]
    assert reports[0]["rows"] == reports[1]["rows"]
    assert reports[0]["search"] == reports[1]["search"]


@pytest.mark.slow
def test_a_repeated_search_takes_results_in_the_order_of_the_first(lab: Lab) -> None:
    """With four open soups told one by one, the optimiser saw the results in an order of its own."""
    lab.start("executor.max_open=4").ok()
    while not lab.done:
        lab.answer(lab.open[-1])
        lab.ask(4).ok()
    events = [json.loads(line) for line in (lab.run / "order.jsonl").read_text().splitlines()[1:]]
    order = [number for _, verb, number, _ in events if verb == "tell"]
    assert order != sorted(order)
    report = report_of(lab.run)
    (lab.run / "report.json").unlink()
    lab.ask(4).ok()
    assert [report_of(lab.run)[key] for key in ("rows", "search")] == [
        report[key] for key in ("rows", "search")
    ]
    assert report_of(lab.run)["cost"]["evaluated_items"] == 0


# ------------------------------------------------------------ what is killed

SEAMS: tuple[tuple[Any, str], ...] = (
    (Path, "rename"),
    (open_soups, "item_line"),
    (os, "fsync"),
)
"""Where a soup appears, where its items are written, and where the order of a search is."""


class Killed(BaseException):
    """Stands for SIGKILL at a seam."""


def dies_at(call: int, function: Callable[..., Any], after: bool) -> Callable[..., Any]:
    """The function, which is the process's last at its n-th call."""
    calls = 0

    def last(*arguments: Any, **options: Any) -> Any:
        """Fail before this call of the function, or after it."""
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        result = function(*arguments, **options)
        if calls == call:
            raise Killed
        return result

    return last


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_killed_ask_loses_nothing(lab: Lab, call: int, after: bool) -> None:
    lab.words.append("stop_after=search")
    lab.start("executor.max_open=3").ok()
    killed = 0
    for place, name in SEAMS * 2:
        if not lab.open:
            break
        lab.answer(*lab.open)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, dies_at(call, getattr(place, name), after))
            try:
                lab.ask(3)
            except Killed:
                killed += 1
        lab.ask(3).ok()
        assert len(lab.open) <= 3
        assert not list((lab.run / "asked").glob(".*"))
    assert killed > 1


@pytest.mark.parametrize(
    ("place", "name"), [(open_soups, "write_atomically"), (open_soups, "free")]
)
@pytest.mark.parametrize("after", [False, True])
def test_a_killed_tell_loses_nothing(two: Lab, place: Any, name: str, after: bool) -> None:
    lab = two
    lab.log(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, dies_at(1, getattr(place, name), after))
        with pytest.raises(Killed):
            lab.tell("1")
    lab.tell("1").ok()
    assert told(lab.soup(1))
    assert not (lab.soup(1) / "model").exists()


def test_half_a_line_of_the_order_is_left_out_and_another_order_is_refused(lab: Lab) -> None:
    lab.start("executor.max_open=8", "stop_after=search").ok()
    while len((lab.run / "order.jsonl").read_text().splitlines()) < 4:
        lab.answer(*lab.open)
        lab.ask(8).ok()
    before = (lab.run / "order.jsonl").read_text()
    with (lab.run / "order.jsonl").open("a") as file:
        file.write('["a", "te')
    assert ids(lab.ask(8).ok().out) == lab.open
    assert (lab.run / "order.jsonl").read_text() == before
    with (lab.run / "order.jsonl").open("a") as file:
        file.write(json.dumps([json.loads(before.splitlines()[-1])[0], "ask", 99, "x"]) + "\n")
    lab.ask(8).refused("order.jsonl", "other soups than before")


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 4])
def test_asks_and_tells_that_are_killed_by_the_system(lab: Lab, call: int) -> None:
    """Every process ends by SIGKILL at its n-th flush or rename, until it gets by with fewer."""
    program = (
        "import os, signal, sys; from pathlib import Path; from souping.cli.main import main\n"
        "calls = 0\n"
        "def counted(function):\n"
        "    def call(*arguments, **options):\n"
        "        global calls; calls += 1\n"
        f"        if calls == {call}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return function(*arguments, **options)\n"
        "    return call\n"
        "os.fsync = counted(os.fsync); Path.rename = counted(Path.rename); os.replace = counted(os.replace)\n"
        "main()\n"
    )
    lab.start("executor.max_open=3").ok()
    killed = 0
    for _ in range(6):
        if lab.done:
            break
        for number in lab.open:
            lab.log(number)
        for words in (["tell", "run", *map(str, lab.open)], ["ask", "run", "-n", "3"]):
            if len(words) > 2:
                command = [sys.executable, "-c", program, *words]
                killed += subprocess.run(command, cwd=lab.place, check=False).returncode == -9
        if lab.open:
            lab.answer(*lab.open)
        lab.ask(3).ok()
    assert killed
    lab.finish(3)


# ------------------------------------------------------------ two at once, and the disk


def test_two_tells_at_once(two: Lab) -> None:
    """One of two results is told whole, and the other is refused."""
    lab = two
    logs = [lab.log(1, "a.csv"), lab.log(1, "b.csv")]
    logs[1].write_text(logs[1].read_text().replace("1.0", "0.0"))
    outcomes: dict[Path, str] = {}
    barrier = threading.Barrier(2)

    def job(log: Path) -> None:
        barrier.wait()
        try:
            outcomes[log] = open_soups.tell(lab.soup(1), str(log))
        except UserError:
            outcomes[log] = "refused"

    threads = [threading.Thread(target=job, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes.values()) == ["refused", "told"]
    (winner,) = [log for log, said in outcomes.items() if said == "told"]
    scores = [record.score for record in told(lab.soup(1))]
    rows = winner.read_text().splitlines()[1:]
    assert scores == [float(row.rsplit(",", 1)[1]) for row in rows]


def test_another_result_is_refused_and_a_late_failure_changes_nothing(two: Lab) -> None:
    lab = two
    lab.answer(1)
    before = (lab.soup(1) / "answers.jsonl").read_bytes()
    log = lab.log(1)
    log.write_text(log.read_text().replace("1.0", "0.0"))
    lab.tell("1").refused("1: another result", "stays")
    assert "stays" in lab.tell("1=failed").ok().out
    # Also once it is stored.
    lab.ask(1).ok()
    lab.tell("1").refused("1: another result", "stays")
    assert (lab.soup(1) / "answers.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("how", ["free space", "quota"])
def test_as_many_models_are_written_as_the_disk_allows(
    lab: Lab, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space for two soups; a candidate is made of links."""
    write = write_soup
    most = 0

    def models() -> int:
        return len(list(lab.run.glob("asked/*/model/recipe.json")))

    def limited(pool: Any, recipe: Any, folder: Path) -> None:
        if how == "quota" and models() >= 2 and len(recipe.ingredients) > 1:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", str(folder))
        write(pool, recipe, folder)

    monkeypatch.setattr(asking, "write_soup", limited)
    if how == "free space":
        size = 10**6
        monkeypatch.setattr(asking, "disk_space", lambda _: ((2 - models()) * size, 0))
        monkeypatch.setattr("souping.merge.local.FullModelPool.soup_bytes", size)
    lab.start("executor.max_open=8", "executor.write_models=true", "stop_after=search").ok()
    later = False
    while lab.open:
        for number in lab.open:
            assert (lab.soup(number) / "model" / "config.json").is_file()
        assert ids(lab.ask(8, "--write-models").ok().out) == lab.open
        most = max(most, models())
        lab.answer(*lab.open)
        assert models() == 0
        later |= "the disk is full" in lab.ask(8, "--write-models").ok().out
    assert later
    assert most == 2


def test_a_disk_without_space_for_one_soup_is_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.start("optimiser=uniform", "executor.max_open=8").ok()
    lab.answer(*lab.open)
    monkeypatch.setattr(asking, "disk_space", lambda _: (0, 0))
    refused = False
    for _ in range(4):
        outcome = lab.ask(8, "--write-models")
        if outcome.code:
            outcome.refused("0 B free", "--write-models")
            refused = True
            break
        lab.answer(*lab.open)
    assert refused
    lab.ask(8).ok()


def test_a_run_that_the_disk_refuses_at_its_first_soup_leaves_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(pool: Any, recipe: Any, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(asking, "write_soup", full)
    lab.start("executor.write_models=true").refused("No space left on device")
    assert not lab.run.exists()


def test_a_failed_job_is_listed_again_with_its_model(two: Lab) -> None:
    lab = two
    assert (lab.soup(1) / "model" / "config.json").is_file()
    assert "failed" in lab.tell("1=failed").ok().out
    assert not (lab.soup(1) / "model").exists()
    assert "    1  again" in lab.ask(1, "--write-models").ok().out
    assert (lab.soup(1) / "model" / "config.json").is_file()
    assert "    1  open" in lab.ask(1, "--write-models").ok().out


# ------------------------------------------------------------ wrong logs and places


def without_an_item(log: Path) -> None:
    log.write_text("\n".join(log.read_text().splitlines()[:-1]) + "\n")


def of_other_items(log: Path) -> None:
    header, *rows = log.read_text().splitlines()
    log.write_text("\n".join([header, *(f"other-{row}" for row in rows)]) + "\n")


def lower_is_better(log: Path) -> None:
    header, *rows = log.read_text().splitlines()
    log.write_text(
        "\n".join([f"{header},higher_is_better", *(f"{row},false" for row in rows)]) + "\n"
    )


def with_nan(log: Path) -> None:
    log.write_text(log.read_text().replace(",1.0", ",nan", 1))


def without_a_score(log: Path) -> None:
    log.write_text(log.read_text().replace(",1.0", ",", 1))


def in_percent(log: Path) -> None:
    log.write_text(log.read_text().replace(",1.0", ",100"))


def of_two_runs(log: Path) -> None:
    header, *rows = log.read_text().splitlines()
    table = [f"{header},run", *(f"{row},a" for row in rows), *(f"{row},b" for row in rows)]
    log.write_text("\n".join(table) + "\n")


def cut_off(log: Path) -> None:
    log.write_text(log.read_text()[:-7])


def gone(log: Path) -> None:
    log.unlink()


WRONG: dict[Callable[[Path], None], tuple[str, ...]] = {
    without_an_item: ("no score for 1 of", "failed"),
    of_other_items: ("no score for", "items.jsonl"),
    lower_is_better: ("better when it is lower", "evaluator.higher_is_better=false"),
    with_nan: ("score=nan", "write a number"),
    without_a_score: ("no score for 1 of", "failed"),
    in_percent: ("fraction of 1", "tell it again"),
    of_two_runs: ("2 runs", "a log of its own"),
    cut_off: ("1:",),
    gone: ("no log in", "out"),
}


@pytest.mark.parametrize("fault", WRONG, ids=lambda fault: fault.__name__)
def test_a_wrong_log_is_refused_and_nothing_is_told(
    two: Lab, fault: Callable[[Path], None]
) -> None:
    lab = two
    before = sorted(path.name for path in lab.soup(1).iterdir())
    fault(lab.log(1))
    lab.log(2)
    outcome = lab.tell("1", "2")
    outcome.refused(*WRONG[fault])
    assert len(outcome.err.splitlines()) <= 2
    # The other result is taken.
    assert lab.open == [1]
    assert sorted(path.name for path in lab.soup(1).iterdir()) == before
    lab.answer(1)


def test_other_harnesses_tell_by_task_and_id(tmp_path: Path) -> None:
    data = ROOT / "tests" / "data" / "logs" / "lm_eval" / "tuned_python"
    soup = tmp_path / "asked" / "1"
    soup.mkdir(parents=True)
    items = [f"pick/{number}" for number in range(8)]
    content = {"key": "k", "items": items, "categories": ["pick"] * 8, "higher_is_better": True}
    (soup / "request.json").write_text(json.dumps(content))
    assert open_soups.tell(soup, str(data)) == "told"
    assert [record.item for record in told(soup)] == items
    # A folder that holds nothing else stands for its content.
    shutil.copytree(data, soup / "out" / "log")
    assert "nothing changes" in open_soups.tell(soup, "")


def test_a_run_without_open_soups_is_refused(lab: Lab, family: Path, finished_copy: Path) -> None:
    lab.souping("ask", "run").refused("executor=files")
    lab.souping("tell", "run", "1=failed").refused("executor=files")
    lab.souping(*pool_of(family), "executor=files", "hydra.run.dir=local").refused(
        "executor=files", "LocalEvaluator", "evaluator=command"
    )
    assert not (lab.place / "local").exists()


@pytest.mark.slow
def test_ask_and_tell_work_from_any_folder(lab: Lab) -> None:
    lab.start().ok()
    lab.tell("7").refused("ID=7", "1")
    elsewhere = lab.place / "else" / "where"
    elsewhere.mkdir(parents=True)
    log = lab.log(1).rename(elsewhere / "log.csv")
    link = lab.place / "else" / "link"
    link.symlink_to(lab.run)
    for words in (["tell", "../../run", "1=log.csv"], ["ask", str(link), "-n", "2"]):
        command = [sys.executable, "-m", "souping", *words]
        subprocess.run(command, cwd=elsewhere, check=True)
    assert lab.open == [2, 3]
    assert list(elsewhere.iterdir()) == [log]


@pytest.mark.slow
def test_a_run_whose_answers_are_stored_asks_for_nothing(lab: Lab) -> None:
    lab.words.append("optimiser=uniform")
    lab.start("executor.max_open=8").ok()
    lab.finish()
    assert "report.html" in lab.ask(1).ok().out
    (lab.run / "report.json").unlink()
    lab.ask(1, "store=none.sqlite").refused("store=none.sqlite")
    lab.run = lab.place / "again"
    lab.start().ok()
    assert lab.done
    assert not (lab.run / "asked").exists()


@pytest.mark.slow
def test_an_analysis_that_is_added_waits_for_its_soups(lab: Lab) -> None:
    lab.words += ["optimiser=uniform", "selector.k=3"]
    lab.start("executor.max_open=8").ok()
    lab.finish()
    words = ("analyse", "run", "analysis=[shapley]", "--allow-code")
    assert ids(lab.souping(*words).ok().out) == lab.open
    assert "analyses" not in report_of(lab.run) or "shapley" not in report_of(lab.run)["analyses"]
    while lab.open:
        lab.answer(*lab.open)
        lab.souping(*words).ok()
    assert report_of(lab.run)["analyses"]["shapley"]


def test_an_analysis_that_searches_waits_too() -> None:
    """What it raises is not a fault of the analysis."""

    class Searches(Analysis):
        def analyse(self, scores: Any) -> Any:
            raise asking.Waiting([], "1 open")

    with pytest.raises(asking.Waiting):
        analyse(Searches(), SimpleNamespace())  # type: ignore[arg-type]
