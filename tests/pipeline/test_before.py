"""Nothing that decides what is found again has changed since before the house: a store of that time still answers."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from souping.examples import pantry
from tests.conftest import Cli

BEFORE = Path(__file__).with_name("before")
CALL = (
    "+experiment=bfcl",
    "name=house",
    f"benchmark.path={BEFORE / 'items.jsonl'}",
    "benchmark.name=items",
    "optimiser.trials=6",
    "evaluator.device=cpu",
    "store.path=store.sqlite",
)


def read(name: str) -> Any:
    return json.loads((BEFORE / name).read_text())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(BEFORE / "store.sqlite", tmp_path)
    return tmp_path


def hashes(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_the_same_command_evaluates_nothing_and_says_the_same(here: Path, souping: Cli) -> None:
    assert souping(*CALL, "hydra.run.dir=again").code == 0
    report, before = json.loads((here / "again" / "report.json").read_text()), read("report.json")
    assert report["cost"]["evaluated_items"] == 0
    assert report["cost"]["trials"] == before["cost"]["trials"]
    assert {key: report[key] for key in before if key != "cost"} == {
        key: value for key, value in before.items() if key != "cost"
    }
    soup = read("soup.json")
    assert hashes(here / "again" / "soup", list(soup)) == soup


def test_rebuild_gives_the_same_bytes(here: Path, souping: Cli) -> None:
    names = ",".join(f"{{name: {name}, path: {pantry.path(name)}}}" for name in pantry.CANDIDATES)
    call = ("+experiment=rebuild", f"recipe={BEFORE / 'recipe.json'}", f"pool.candidates=[{names}]", "out=soup")
    assert souping(*call, "store.path=store.sqlite", "hydra.run.dir=rebuilt").code == 0
    soup = read("soup.json")
    assert hashes(here / "soup", list(soup)) == soup


def test_a_plan_counts_what_it_counted(here: Path, souping: Cli) -> None:
    """Digests of the models are in no store yet: once the run has hashed them, all its answers are found."""
    assert souping(*CALL, "hydra.run.dir=first", "stop_after=search").code == 0
    assert souping(*CALL, "hydra.run.dir=plan", "plan=true").code == 0
    plan, before = json.loads((here / "plan" / "plan.json").read_text()), read("plan.json")
    notes = before.pop("notes")  # a plan now warns of what the run warns of
    assert not notes
    assert any("fewer than 20 items" in note for note in plan["notes"])
    assert {key: plan[key] for key in before} == before
