"""Evaluation by a command of the user's: its logs become records, and nothing that came is lost."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.core.types import Item, UserError
from souping.evaluate.command import CommandEvaluator
from souping.testing import check_evaluator
from tests.conftest import ROOT, Cli, pool_of

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
        command=script(folder, *lines), timeout=timeout, dir=str(folder / "kept")
    )


def answers(kept: str = "") -> str:
    return ANSWER.replace("{kept}", kept)


def test_it_conforms(model: Any, tmp_path: Path) -> None:
    one = evaluator(tmp_path, answers())
    check_evaluator(one, model, ITEMS)
    assert one.needs() == []
    assert list((tmp_path / "kept").iterdir()) == []
    assert [record.output for record in one.evaluate(model, ITEMS)] == ["done"] * 4


def test_what_is_written_wrong() -> None:
    with pytest.raises(UserError, match=r"\{model\} and \{out\}"):
        CommandEvaluator(command="eval.sh")
    assert CommandEvaluator(command="no-such-program {model} {out}").needs()


@pytest.mark.parametrize(
    ("lines", "timeout", "words"),
    [
        (
            [answers("2"), "sys.exit('no GPU')"],
            60,
            ["failed (status 1)", "evaluating 4 items | no GPU", "2 of 4"],
        ),
        (
            [
                "(out / 'log.csv').write_text('item,category,score\\ni0,c,1\\ni1,c,0\\ni2,c,0.7')",
                "sys.exit(2)",
            ],
            60,
            ["failed (status 2)", "2 of 4"],
        ),
        (
            ["(out / 'log.csv').write_text('item,category,score\\ni0,c,1\\ni1,c,')"],
            60,
            ["3 of 4 items", "1 of 4"],
        ),
        ([answers("3")], 60, ["1 of 4 items (i3)", "3 of 4 answers"]),
        (
            [answers("2"), "(model.parent / 'hangs').touch()", "import time; time.sleep(600)"],
            60,
            ["evaluator.timeout=60", "2 of 4"],
        ),
        (["(out / 'log.csv').write_text('a,b\\n1,2')"], 60, ["no column item", "0 of 4"]),
        ([], 60, ["left no log in", "0 of 4"]),
    ],
    ids=[
        "it fails",
        "a line is cut off",
        "no score",
        "items are missing",
        "it hangs",
        "another table",
        "no log",
    ],
)
def test_what_came_of_a_command_that_failed_is_kept(
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
    timeout: float,
    words: list[str],
) -> None:
    """The time of the command that hangs is over once it does, and that of the others never."""
    hangs = tmp_path / "hangs"
    clock = SimpleNamespace(monotonic=lambda: 1e9 * hangs.exists(), sleep=time.sleep)
    monkeypatch.setattr("souping.evaluate.servers.process.time", clock)
    with pytest.raises(UserError) as refused:
        evaluator(tmp_path, *lines, timeout=timeout).evaluate(model, ITEMS)
    for word in words:
        assert word in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2
    assert [r.item for r in evaluator(tmp_path, answers()).evaluate(model, ITEMS)] == [
        item.id for item in ITEMS
    ]
    calls = (tmp_path / "calls.txt").read_text().split()
    kept = int(str(refused.value).splitlines()[1].split()[0])
    assert calls == ["4", str(4 - kept)]
    assert list((tmp_path / "kept").iterdir()) == []


def test_answers_to_other_items_of_the_same_name_do_not_count(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        evaluator(tmp_path, answers("2")).evaluate(model, ITEMS)
    changed = [Item(id=item.id, category="c", prompt="another", answer="") for item in ITEMS]
    evaluator(tmp_path, answers()).evaluate(model, changed)
    assert (tmp_path / "calls.txt").read_text().split() == ["4", "4"]


def test_a_log_of_lm_eval(model: Any, tmp_path: Path) -> None:
    data = ROOT / "tests" / "data" / "logs" / "lm_eval" / "python_cook"
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


@pytest.mark.slow
def test_a_whole_run(souping: Cli, family: Path, tmp_path: Path) -> None:
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
    checked = souping(*words, "check=true")
    assert checked.code == 0, checked.err
    done = souping(*words)
    assert done.code == 0, done.err
    again = souping(*words)  # in run_3
    assert again.code == 0, again.err
    report = json.loads((tmp_path / "run_3" / "report.json").read_text())
    assert report["cost"]["evaluated_items"] == 0
