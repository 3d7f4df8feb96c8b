"""Evaluation by a command of the user's: its logs become records, and nothing that came is lost."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from souping.core.protocols import evaluator_fingerprint
from souping.core.types import Item, UserError
from souping.evaluate.command import CommandEvaluator
from souping.testing import check_evaluator
from tests.conftest import ROOT, Cli, pool_of
from tests.support.choices import slow_unless

ITEMS = tuple(Item(id=f"i{n}", category="c", prompt=f"say {n}", answer=str(n)) for n in range(4))
SCRIPT = """
import json, sys
from pathlib import Path
model, items, out = map(Path, sys.argv[1:4])
asked = [json.loads(line) for line in items.read_text().splitlines()]
assert (model / "config.json").is_file()
with open(model.parent / "calls.txt", "a") as calls:
    calls.write(str(len(asked)) + "\\n")
print("evaluating", len(asked), "items")
"""
ANSWER = """
rows = [f"{item['id']},{item['category']},{len(item['id']) % 2},done,stop" for item in asked]
(out / "log.csv").write_text("\\n".join(["item,category,score,output,stop_reason", *rows[:{kept}]]) + "\\n")
"""


@pytest.fixture
def model(tmp_path: Path) -> Any:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return SimpleNamespace(folder=folder, soup="soup", eos_token_ids=())


def script(folder: Path, *lines: str) -> str:
    path = folder / "eval.py"
    path.write_text(SCRIPT + "\n".join(lines) + "\n")
    return f"{sys.executable} {path} {{model}} {{items}} {{out}}"


def evaluator(folder: Path, *lines: str, timeout: float = 600) -> CommandEvaluator:
    return CommandEvaluator(
        command=script(folder, *lines), timeout=timeout, scratch=str(folder / "kept")
    )


def answers(kept: str = "") -> str:
    return ANSWER.replace("{kept}", kept)


def test_an_evaluator_by_command_conforms(model: Any, tmp_path: Path) -> None:
    one = evaluator(tmp_path, answers())
    check_evaluator(one, model, ITEMS)
    assert one.needs() == []
    one.hosting.release("soup", ITEMS)
    assert list((tmp_path / "kept").iterdir()) == []
    assert [record.output for record in one.evaluate(model, ITEMS)] == ["done"] * 4


def test_a_command_names_the_model_and_the_output_and_exists() -> None:
    with pytest.raises(UserError, match=r"\{model\} and \{out\}"):
        CommandEvaluator(command="eval.sh")
    assert CommandEvaluator(command="no-such-program {model} {out}").needs()


FAILURES = {
    "the command fails": (
        [answers("2"), "sys.exit('no GPU')"],
        60,
        ["failed (status 1)", "evaluating 4 items | no GPU", "2 of 4"],
    ),
    "a line is cut off": (
        [
            "(out / 'log.csv').write_text('item,category,score\\ni0,c,1\\ni1,c,0\\ni2,c,0.7')",
            "sys.exit(2)",
        ],
        60,
        ["failed (status 2)", "2 of 4"],
    ),
    "no score": (
        ["(out / 'log.csv').write_text('item,category,score\\ni0,c,1\\ni1,c,')"],
        60,
        ["3 of 4 items", "1 of 4"],
    ),
    "items are missing": ([answers("3")], 60, ["1 of 4 items (i3)", "3 of 4 answers"]),
    "the command hangs": (
        [answers("2"), "(model.parent / 'hangs').touch()", "import time; time.sleep(600)"],
        60,
        ["evaluator.timeout=60", "2 of 4"],
    ),
    "another table": (
        ["(out / 'log.csv').write_text('a,b\\n1,2')"],
        60,
        ["no column item", "0 of 4"],
    ),
    "two runs": (
        ["(out / 'log.csv').write_text('item,category,score,run\\ni0,c,1,a\\ni0,c,1,b')"],
        60,
        ["a log of 2 runs", "0 of 4"],
    ),
    "no log": ([], 60, ["left no log in", "0 of 4"]),
}


@pytest.mark.parametrize(
    "name",
    slow_unless({"the command fails", "items are missing", "the command hangs"}, FAILURES),
)
def test_the_output_of_a_command_that_failed_is_kept(
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """The time of the command that hangs is over once it does, and that of the others never."""
    lines, timeout, words = FAILURES[name]
    hangs = tmp_path / "hangs"
    clock = SimpleNamespace(monotonic=lambda: 1e9 * hangs.exists(), sleep=time.sleep)
    monkeypatch.setattr("souping.evaluate.servers.server_process.time", clock)
    with pytest.raises(UserError) as refused:
        evaluator(tmp_path, *lines, timeout=timeout).evaluate(model, ITEMS)
    for word in words:
        assert word in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2
    repeated = evaluator(tmp_path, answers())
    assert [r.item for r in repeated.evaluate(model, ITEMS)] == [item.id for item in ITEMS]
    repeated.hosting.release("soup", ITEMS)
    kept = int(str(refused.value).splitlines()[1].split()[0])
    assert calls(tmp_path) == ["4", str(4 - kept)]
    assert list((tmp_path / "kept").iterdir()) == []


def test_answers_to_other_items_of_the_same_name_do_not_count(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        evaluator(tmp_path, answers("2")).evaluate(model, ITEMS)
    changed = [Item(id=item.id, category="c", prompt="another", answer="") for item in ITEMS]
    evaluator(tmp_path, answers()).evaluate(model, changed)
    assert (tmp_path / "calls.txt").read_text().split() == ["4", "4"]


def test_a_log_of_lm_eval(model: Any, tmp_path: Path) -> None:
    data = ROOT / "tests" / "data" / "logs" / "lm_eval" / "tuned_python"
    items = [Item(id=f"pick/{n}", category="pick", prompt="", answer=None) for n in range(8)]
    one = evaluator(
        tmp_path, f"import shutil; shutil.copytree({str(data)!r}, out, dirs_exist_ok=True)"
    )
    records = one.evaluate(model, items)
    samples = [
        json.loads(line)
        for path in data.rglob("samples_pick_*")
        for line in path.read_text().splitlines()
    ]
    assert [record.score for record in records] == [sample["acc"] for sample in samples]


def calls(folder: Path) -> list[str]:
    return (folder / "calls.txt").read_text().split()


def test_logs_stay_until_their_answers_are_stored(model: Any, tmp_path: Path) -> None:
    first = evaluator(tmp_path, answers())
    first.evaluate(model, ITEMS)
    first.close()  # the store could not be written
    again = evaluator(tmp_path, answers())
    assert len(again.evaluate(model, ITEMS)) == 4
    assert calls(tmp_path) == ["4"]
    again.hosting.release("soup", ITEMS)
    assert list((tmp_path / "kept").iterdir()) == []


def test_logs_of_items_that_are_not_stored_stay(model: Any, tmp_path: Path) -> None:
    first = evaluator(tmp_path, answers())
    first.evaluate(model, ITEMS)
    first.close()
    second = evaluator(tmp_path, answers())
    second.evaluate(model, ITEMS[:1])
    second.hosting.release("soup", ITEMS[:1])
    assert len(evaluator(tmp_path, answers()).evaluate(model, ITEMS)) == 4
    assert calls(tmp_path) == ["4"]


def test_two_runs_leave_each_others_attempts_alone(model: Any, tmp_path: Path) -> None:
    runs = [evaluator(tmp_path, answers()) for _ in range(2)]
    for run in runs:
        run.evaluate(model, ITEMS)
    assert calls(tmp_path) == ["4", "4"]
    runs[0].hosting.release("soup", ITEMS)
    (attempt,) = (tmp_path / "kept").iterdir()
    assert (attempt / "out" / "log.csv").is_file()
    runs[1].hosting.release("soup", ITEMS)
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_score_in_percent_is_refused_and_its_log_can_be_corrected(
    model: Any, tmp_path: Path
) -> None:
    line = "(out / 'log.csv').write_text('item,category,score\\n' + ''.join(f'i{n},c,50\\n' for n in range(4)))"
    for _ in range(2):
        with pytest.raises(UserError, match="fraction of 1"):
            evaluator(tmp_path, line).evaluate(model, ITEMS)
    (log,) = (tmp_path / "kept").rglob("log.csv")
    log.write_text(log.read_text().replace("50", "0.5"))
    assert [r.score for r in evaluator(tmp_path, line).evaluate(model, ITEMS)] == [0.5] * 4
    assert calls(tmp_path) == ["4"]


RATES = """
keys = ("results", "configs", "higher_is_better", "versions", "n-shot", "n-samples")
table = {key: {} for key in keys}
same = {"doc": {}, "metrics": ["m"], "m": 0.25, "resps": [["o"]], "arguments": {"g": {"a": "p"}}}
for task, higher in {"t": False, "u": OTHER}.items():
    ids = [item["id"] for item in asked if item["id"].startswith(task)]
    rows = [json.dumps({**same, "doc_id": name[2:], "doc_hash": name}) for name in ids]
    (out / f"samples_{task}_1.jsonl").write_text("\\n".join(rows))
    table["results"][task], table["configs"][task] = {"m,none": 0.25}, {}
    table["higher_is_better"][task] = {"m": higher}
(out / "results_1.json").write_text(json.dumps(table))
"""
RATED = tuple(
    Item(id=f"{task}/{n}", category=task, prompt="", answer="") for task in "tu" for n in range(2)
)


def test_the_direction_of_a_log_is_honoured_or_refused_with_the_setting(
    model: Any, tmp_path: Path
) -> None:
    lower = evaluator(tmp_path, RATES.replace("OTHER", "False"))
    with pytest.raises(UserError, match=r"add evaluator\.higher_is_better=false"):
        lower.evaluate(model, RATED)
    turned = replace(lower, higher_is_better=False)
    assert [record.score for record in turned.evaluate(model, RATED)] == [0.25] * 4
    assert calls(tmp_path) == ["4"]
    assert turned.unit.inner(0.1) > turned.unit.inner(0.2)
    assert evaluator_fingerprint(turned) != evaluator_fingerprint(lower)


def test_a_log_of_both_directions_is_refused_with_either_setting(
    model: Any, tmp_path: Path
) -> None:
    both = evaluator(tmp_path, RATES.replace("OTHER", "True"))
    for higher in (True, False):
        with pytest.raises(UserError, match="in a run of its own"):
            replace(both, higher_is_better=higher).evaluate(model, RATED)


def test_a_table_states_no_direction(model: Any, tmp_path: Path) -> None:
    rates = replace(evaluator(tmp_path, answers()), higher_is_better=False)
    assert len(rates.evaluate(model, ITEMS)) == 4


DETACH = """
import os, time
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    (model.parent / "detached.txt").write_text(str(os.getpid()))
    time.sleep(600)
while not (model.parent / "detached.txt").is_file() or not (model.parent / "detached.txt").read_text():
    time.sleep(0.01)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has child subreapers")
@pytest.mark.parametrize(
    "end", [answers(), "sys.exit(3)"], ids=["the command ends well", "the command fails"]
)
def test_a_process_that_a_command_detaches_ends_with_it(
    model: Any, tmp_path: Path, end: str
) -> None:
    with suppress(UserError):
        evaluator(tmp_path, DETACH, end).evaluate(model, ITEMS)
    assert not psutil.pid_exists(int((tmp_path / "detached.txt").read_text()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has child subreapers")
def test_a_process_that_a_command_detaches_ends_at_the_timeout(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="timeout"):
        evaluator(tmp_path, DETACH, "time.sleep(600)", timeout=10).evaluate(model, ITEMS)
    assert not psutil.pid_exists(int((tmp_path / "detached.txt").read_text()))


def test_of_a_flood_of_output_the_last_lines_are_shown(model: Any, tmp_path: Path) -> None:
    flood = "sys.stdout.flush(); os.ftruncate(1, 1 << 40); sys.exit('no GPU')"
    with pytest.raises(UserError, match="no GPU"):
        evaluator(tmp_path, "import os", flood).evaluate(model, ITEMS)


def test_a_pipe_is_not_a_log(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a pipe"):
        evaluator(tmp_path, "import os; os.mkfifo(out / 'log.jsonl')").evaluate(model, ITEMS)


@pytest.mark.slow
def test_a_run_with_a_command_is_measured_and_reported(
    souping: Cli, family: Path, tmp_path: Path
) -> None:
    line = "rows = [f\"{item['id']},{item['category']},{len(str(item)) % 2}\" for item in asked]"
    write = "(out / 'log.csv').write_text('\\n'.join(['item,category,score', *rows]))"
    command = f"evaluator.command='{script(tmp_path, line, write)}'"
    words = [word for word in pool_of(family, "ant", "bee") if not word.startswith("evaluator.")]
    words += [
        "evaluator=command",
        command,
        "selector=all",
        "optimiser=uniform",
        "hydra.run.dir=run",
    ]
    checked = souping("check", *words)
    assert checked.code == 0, checked.err
    speed = json.loads(next(tmp_path.glob("outputs/*/check_*.json")).read_text())["speeds"][
        "benchmark"
    ]
    assert (speed["basis"], speed["batch"]) == ("measured", 0)
    assert speed["per_call"] > 0
    done = souping(*words)
    assert done.code == 0, done.err
    assert list((tmp_path / "outputs" / "command").iterdir()) == []
    again = souping(*words)  # in run_2
    assert again.code == 0, again.err
    report = json.loads((tmp_path / "run_2" / "report.json").read_text())
    assert report["cost"]["evaluated_items"] == 0
