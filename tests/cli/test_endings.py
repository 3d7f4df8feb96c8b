"""Ends of a run: what is told, by which exit status, and what stays on the disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from souping.core.types import Item, Record
from souping.evaluate.generate import LocalEvaluator
from souping.pipeline import execute
from tests.conftest import ROOT, Cli, pool_of
from tests.support.composition import compose


def fails(error: Exception) -> Any:
    def failing(*_: Any) -> Any:
        raise error

    return failing


def quick(family: Path, *more: str) -> list[str]:
    return [*pool_of(family, "ant", "bee"), "selector=all", "optimiser=uniform", *more]


def merging(family: Path, *more: str) -> list[str]:
    pool = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    return ["+experiment=merge", pool, "optimiser.weights=[0.5,0.5]", *more]


def test_a_late_error_leaves_the_soup_and_the_trials(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("souping.report.files.write_report", fails(OSError(28, "No space left on device")))
    souping(*quick(family, "hydra.run.dir=run")).refused("the soup is written: run/soup")
    assert (tmp_path / "run/soup/model.safetensors").is_file()
    assert (tmp_path / "run/trials.csv").is_file()
    assert (tmp_path / "run/config.yaml").is_file()


def test_a_store_in_the_directory_of_a_refused_run_stays(family: Path, souping: Cli, tmp_path: Path) -> None:
    souping(*quick(family, "hydra.run.dir=exp", "store.path=exp/store.sqlite", "expected={ant: 99.0}")).refused("gate")
    assert (tmp_path / "exp/store.sqlite").is_file()


def test_a_refused_run_leaves_nothing_that_it_made(family: Path, souping: Cli, tmp_path: Path) -> None:
    for place in ("outputs/store.sqlite", "deep/er/st.sqlite"):
        souping(*quick(family, "merge.carry=nosuch", f"store.path={place}")).refused("merge.carry=nosuch")
        souping(*merging(family, "merge.carry=nosuch", f"store.path={place}")).refused("merge.carry=nosuch")
    assert [path.name for path in tmp_path.iterdir()] == []
    (tmp_path / "p/q/r").mkdir(parents=True)
    souping(*quick(family, "seed=-1", "hydra.run.dir=p/q/r")).refused("seed=-1")
    souping(*quick(family, "seed=-1", "hydra.run.dir=p/new/deep/run")).refused("seed=-1")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["p", "p/q", "p/q/r"]
    assert souping(*quick(family, "stop_after=search")).code == 0
    before = (tmp_path / "outputs/store.sqlite").stat().st_ino
    souping(*quick(family, "merge.carry=nosuch")).refused("merge.carry=nosuch")
    assert (tmp_path / "outputs/store.sqlite").stat().st_ino == before


def test_a_fault_of_ours_is_one_apology_with_a_traceback_on_the_disk(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "check_settings", lambda run: int("x"))
    monkeypatch.setattr("souping.cli.job._is_library", lambda file: "pipeline/execute.py" not in str(file))
    done = souping(*quick(family))
    assert done.code == 1
    assert done.err.startswith("sorry, this is a fault in souping: ValueError: invalid literal")
    assert len(done.err.splitlines()) == 2
    (place,) = tmp_path.glob("outputs/fam/*/traceback.txt")
    assert str(place.relative_to(tmp_path)) in done.err
    assert "Traceback" in place.read_text()


def test_a_store_that_is_removed_during_the_run_is_told(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = LocalEvaluator.evaluate

    def evaluate(self: LocalEvaluator, model: Any, items: Sequence[Item], *more: int) -> list[Record]:
        for file in tmp_path.glob("st.sqlite*"):
            file.unlink()
        return before(self, model, items, *more)

    monkeypatch.setattr(LocalEvaluator, "evaluate", evaluate)
    souping(*quick(family, "stop_after=search", "store.path=st.sqlite")).refused("st.sqlite", "was removed or replaced")


def test_names_that_look_like_interpolations(family: Path, tmp_path: Path) -> None:
    place = tmp_path / "w${x}"
    shutil.copytree(family / "ant", place / "m${x}")
    words = ["+experiment=merge", f'pool.candidates=["m\\${{x}}",{family / "bee"}]', "optimiser.weights=[0.5,0.5]"]
    done = command(place, *words, "hydra.run.dir=run", "out=soup")
    assert done.returncode == 0, done.stderr
    assert json.loads((place / "soup/recipe.json").read_text())["ingredients"] == ["m${x}", "bee"]
    assert "m\\${x}" in (place / "run/config.yaml").read_text()
    assert compose(words)["pool"]["candidates"][0] == "m${x}"


def command(place: Path, *words: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "souping", *words]
    return subprocess.run(line, cwd=place, env=environment, text=True, check=False, **kept)


def test_streams_that_are_full_or_closed_do_not_end_the_run(family: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = command(tmp_path, *merging(family, "out=soup"), stdout=full)
    assert done.returncode == 2
    assert done.stderr == "standard output: No space left on device; the run goes on without it\n"
    assert (tmp_path / "soup/recipe.json").is_file()
    done = command(tmp_path, *merging(family, "out=other"), stderr=None, preexec_fn=lambda: os.close(2))
    assert done.returncode == 0
    assert (tmp_path / "other/recipe.json").is_file()


@pytest.mark.parametrize("key", ["out", "store.path"])
def test_paths_that_lead_nowhere(family: Path, souping: Cli, key: str) -> None:
    souping(*merging(family), f"{key}=~nosuchuser/x").refused(f"{key}=")


def test_half_a_character_in_an_item_is_refused(family: Path, souping: Cli, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    rows[3]["prompt"] += "\ud800"
    (tmp_path / "half.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    souping(*quick(family, "benchmark.path=half.jsonl")).refused("red-3", "ud800")
    assert not (tmp_path / "outputs/fam").exists()


@pytest.mark.parametrize(("module", "number"), [("souping.cli", signal.SIGINT), ("hydra", signal.SIGTERM)])
def test_a_signal_at_any_import_prints_no_traceback(tmp_path: Path, module: str, number: int) -> None:
    """The child sends it to itself when it looks for that module: nothing waits for a clock."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nclass Finder:\n    @staticmethod\n    def find_spec(name, *_):\n"
        f"        if name == {module!r}:\n            os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "souping", "+experiment=merge"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode in (130, -number)
    assert len(done.stderr.splitlines()) <= 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.slow
def test_a_run_that_is_ended_from_outside_clears_up(family: Path, tmp_path: Path, number: int, code: int) -> None:
    """The child ends itself at its first batch: nothing waits for a clock."""
    script = (
        "import signal, sys, time\n"
        "from souping.evaluate.generate import LocalEvaluator\n"
        "from souping.cli.main import main\n"
        f"LocalEvaluator.evaluate = lambda *_: (signal.raise_signal({int(number)}), time.sleep(9))\n"
        "main()\n"
    )
    words = [*quick(family), "hydra.run.dir=run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", script, *words]
    done = subprocess.run(line, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(f"ended by {signal.Signals(number).name}: what was evaluated is in the store")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "run.log"}
