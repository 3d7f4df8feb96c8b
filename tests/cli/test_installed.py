"""Parts that installed packages bring: choices, readers of logs, trainers' layouts; and packages that are broken."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
import torch.distributed.checkpoint as checkpoint
from safetensors.torch import load_file

import souping as library
from souping.checkpoints import layouts as rules
from souping.cli import choice_files
from souping.cli.finished import code_in
from souping.core import installed
from souping.core.types import UserError
from souping.logs import layouts as logs
from souping.testing import check_log_layout, check_trainer
from souping.trajectory import TrajectoryPool
from tests.conftest import ROOT, Cli
from tests.support.installed import CHOICE, install

CACHES = (
    installed.entry_points,
    choice_files._folders,
    logs.installed_layouts,
    rules.installed_trainers,
)
ALL = {"conf": "{0}.conf", "logs": "{0}.logs:LOGS", "layouts": "{0}.trainer:TRAINER"}


def forget() -> None:
    for cached in CACHES:
        cached.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of installed packages, which is forgotten after the test."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    before = {*sys.modules}
    forget()
    yield place
    forget()
    for name in {*sys.modules} - before:
        if name.partition(".")[0].startswith("lab"):
            del sys.modules[name]


def lab(site: Path, name: str = "lab", **changes: str) -> None:
    """Install a package with all parts; `changes` are {group: value}."""
    entries = {group: value.format(name) for group, value in ALL.items()}
    install(site, name, {**entries, **changes})


def imported(name: str = "lab") -> bool:
    return any(module.partition(".")[0] == name for module in sys.modules)


def write_logs(folder: Path) -> tuple[Path, Path]:
    for name, right in {"a": [1, 1, 0, 1, 0, 1], "b": [1, 1, 1, 1, 1, 1]}.items():
        (folder / f"{name}.json").write_text(json.dumps({"right": right}))
    return folder / "a.json", folder / "b.json"


def pool(family: Path) -> str:
    return f"pool.candidates=[{','.join(str(family / name) for name in ('ant', 'bee', 'cat'))}]"


SCORES = "model,w,x\nant,0.9,0.1\nbee,0.5,0.5\ncat,0.1,0.2\n"


def test_a_choice_is_listed_and_chosen_and_no_other_command_imports_its_package(
    site: Path, souping: Cli, tmp_path: Path
) -> None:
    lab(site)
    listed = souping("help", "selector").ok().out
    assert "# of the package lab\nselector=lab_median\n" in listed
    souping("--help").ok()
    schema = jsonschema.Draft7Validator(json.loads(souping("help", "--schema").ok().out))
    assert schema.is_valid({"selector": "lab_median", "selector.of_lab": 1})
    assert not schema.is_valid({"objective": "lab_median"})
    (tmp_path / "scores.csv").write_text(SCORES)
    words = ("scores=table", f"scores.path={tmp_path / 'scores.csv'}", "stop_after=select")
    souping(*words, "selector=all").ok()
    assert not imported()
    assert "ant and bee" in " ".join(souping(*words, "selector=lab_median").ok().out.split())


def test_a_reader_is_used_by_the_command_and_by_the_library(
    site: Path, souping: Cli, tmp_path: Path
) -> None:
    a, b = write_logs(tmp_path)
    souping("compare", f"a={a}", f"b={b}").refused("a.json")
    lab(site)
    forget()
    souping("compare", f"a={a}", f"b={b}").ok()
    row = library.compare({"a": str(a), "b": str(b)}).average_row("b")
    assert row.items == 6
    assert row.difference == pytest.approx(2 / 6)


def test_a_table_is_known_by_its_keys(site: Path, tmp_path: Path) -> None:
    lab(site, logs="lab.logs:TABLES")
    for name, right in {"a": [1, 0, 0, 1], "b": [1, 1, 0, 1]}.items():
        lines = [json.dumps({"question": n, "right": score}) for n, score in enumerate(right)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (layout,) = logs.installed_layouts()
    check_log_layout(layout, [{"question": 1, "right": 0.5}])
    with pytest.raises(AssertionError, match="must give a score"):
        check_log_layout(layout, [{"question": 1, "right": None}])
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in "ab"}
    assert library.compare(paths).average_row("b").difference == pytest.approx(0.25)


def lab_checkpoints(folder: Path) -> list[Path]:
    """Two checkpoints of the lab's trainer: a tensor under its own name, and a config beside it."""
    for step in (10, 20):
        state = folder / f"lab-{step}" / "state"
        state.mkdir(parents=True)
        tensors = {"emb": torch.full((4, 2), float(step))}
        checkpoint.save(tensors, storage_writer=checkpoint.FileSystemWriter(state), no_dist=True)
        config = {"model_type": "llama", "hidden_size": 2, "vocab_size": 4}
        (folder / f"lab-{step}" / "config.json").write_text(json.dumps(config))
    return [folder / "lab-10", folder / "lab-20"]


def test_checkpoints_of_a_trainer_are_found_and_averaged(
    site: Path, souping: Cli, tmp_path: Path
) -> None:
    paths = lab_checkpoints(tmp_path / "run")
    with pytest.raises(UserError, match="holds no checkpoints"):
        TrajectoryPool(path=str(tmp_path / "run")).resolve()
    lab(site)
    forget()
    found = TrajectoryPool(path=str(tmp_path / "run"))
    assert [one.path for one in found.resolve()] == paths
    assert found.trajectory.runs[0].trainer == "lab"
    (trainer,) = rules.installed_trainers()
    check_trainer(trainer, tmp_path / "run")
    with pytest.raises(AssertionError, match="hold no weights"):
        check_trainer(replace(trainer, weights=()), tmp_path / "run")
    candidates = f"pool.candidates=[{paths[0]},{paths[1]}]"
    souping("merge", candidates, "optimiser=uniform", f"out={tmp_path / 'soup'}").ok()
    library.soup(paths, out=tmp_path / "again")
    for folder in ("soup", "again"):
        tensors = load_file(tmp_path / folder / "model.safetensors")
        assert tensors["model.embed_tokens.weight"].tolist() == [[15.0, 15.0]] * 4


def test_a_choice_of_our_name_is_refused_with_package_and_choice(
    site: Path, souping: Cli, tmp_path: Path
) -> None:
    install(site, "lab", {"conf": "lab.conf"}, {"conf/selector/topk.yaml": CHOICE.format("lab")})
    souping("selector=topk").refused("selector=topk", "lab", "pip uninstall lab")
    assert "# refused: selector=topk" in souping("help", "selector").ok().out
    (tmp_path / "scores.csv").write_text(SCORES)
    words = ("scores=table", f"scores.path={tmp_path / 'scores.csv'}", "stop_after=select")
    souping(*words, "selector=all").ok()


def test_a_choice_of_two_packages_is_refused_with_both(site: Path, souping: Cli) -> None:
    for name in ("lab_a", "lab_b"):
        install(site, name, {"conf": f"{name}.conf"}, {"conf/selector/ours.yaml": "_target_: x"})
    souping("selector=ours").refused("selector=ours", "lab_a", "pip uninstall lab_b")
    assert not imported("lab_a")


BROKEN = {
    "a module that is not there": {"logs": "lab.nothing:LOGS"},
    "no such object": {"logs": "lab.logs:NOTHING"},
    "not a reader": {"logs": "lab.selector:AboveMedian"},
    "not an entry point": {"logs": "not a module"},
    "a module that ends the process": {"logs": "lab.ends:LOGS"},
    "a module that fails": {"logs": "lab.fails:LOGS"},
    "a name of ours": {"logs": "lab.ours:LOGS"},
    "a reader that raises": {"logs": "lab.raises:LOGS"},
}
MODULES = {
    "ends.py": "raise SystemExit('no')",
    "fails.py": "1 / 0",
    "ours.py": "from souping.logs.layouts import LogLayout\nLOGS = LogLayout(name='verifiers')",
    "raises.py": "from souping.logs.layouts import LogLayout\n"
    "LOGS = LogLayout(name='lab', rows=lambda path: 1 / 0)",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_reader_is_named_with_its_package_and_in_nobodys_way(
    site: Path, souping: Cli, tmp_path: Path, fault: str
) -> None:
    install(site, "lab", BROKEN[fault], MODULES)
    a, b = write_logs(tmp_path)
    done = souping("compare", f"a={a}", f"b={b}")
    done.refused("pip uninstall lab")
    (line,) = {line for line in done.err.splitlines() if "pip uninstall lab" in line}
    assert "lab" in line
    # Another package reads the log nevertheless.
    lab(site, "lab_whole")
    forget()
    souping("compare", f"a={a}", f"b={b}").ok()


@pytest.mark.parametrize("text", ["{", '{"rules": [["a"]]}', '{"extends": "nothing"}', None])
def test_a_malformed_file_of_rules_is_named_with_its_package(
    site: Path, text: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lab_checkpoints(tmp_path / "run")
    install(site, "lab", {"layouts": "lab.trainer:TRAINER"}, {"rules.json": text or ""})
    if text is None:
        (site / "lab" / "rules.json").unlink()
    with pytest.raises(UserError, match="holds no checkpoints"):
        TrajectoryPool(path=str(tmp_path / "run")).resolve()
    (line,) = caplog.messages
    assert "rules.json" in line
    assert line.endswith("pip uninstall lab")


@pytest.mark.parametrize("value", ["lab.nothing", "labs_of_nobody.conf", "..", "lab:conf"])
def test_a_folder_of_choices_that_is_missing_is_named(site: Path, souping: Cli, value: str) -> None:
    install(site, "lab", {"conf": value})
    assert "pip uninstall lab" in souping("help", "selector").ok().out
    souping("selector=lab_median").refused("selector=lab_median", "pip uninstall lab")


def test_a_choice_whose_module_fails_is_named_with_its_package(
    site: Path, souping: Cli, tmp_path: Path
) -> None:
    install(site, "lab", {"conf": "lab.conf"}, {"selector.py": "1 / 0"})
    (tmp_path / "scores.csv").write_text(SCORES)
    words = ("scores=table", f"scores.path={tmp_path / 'scores.csv'}", "stop_after=select")
    souping(*words, "selector=lab_median").refused("selector._target_", "pip uninstall lab")


def test_a_class_of_a_package_in_a_runs_configuration_is_foreign_code(site: Path) -> None:
    lab(site)
    table = {"selector": {"_target_": "lab.selector.AboveMedian"}}
    assert list(code_in(table)) == [("selector._target_", "lab.selector.AboveMedian")]


def test_a_run_of_another_version_is_refused_with_the_command_to_repeat_it(
    finished_copy: Path, souping: Cli
) -> None:
    run = finished_copy
    config = (run / "config.yaml").read_text()
    old = config.replace("souping.answers.", "souping.pipeline.")
    assert old != config
    (run / "config.yaml").write_text(old)
    for words in (("--allow-code",), ()):
        done = souping("analyse", str(run), "analysis=[item_wins]", *words)
        done.refused("config.yaml", "another version", "repeat the run")
        assert "souping" in done.err.rpartition("are found: ")[2]
        assert len(done.err.splitlines()) == 1
    # Its recipe is found, and with it the answers of its store.
    shutil.rmtree(run / "again", ignore_errors=True)
    souping("plan", "rebuild", str(run / "soup" / "recipe.json"), f"out={run / 'again'}").ok()


def test_the_package_of_the_page_brings_its_parts(site: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```\w+\n# lab/(\S+)\n(.*?)```", page, flags=re.DOTALL)
    files = {name.removeprefix("lab/"): text for name, text in blocks}
    points = tomllib.loads(files["pyproject.toml"])["project"]["entry-points"]
    entries = {group.removeprefix("souping."): value["lab"] for group, value in points.items()}
    install(site, "lab", entries, files)
    for name, scores in {"a": [1, 0, 0, 1], "b": [1, 1, 0, 1]}.items():
        (tmp_path / f"{name}.lab.json").write_text(json.dumps(dict(enumerate(scores))))
    paths = {name: str(tmp_path / f"{name}.lab.json") for name in "ab"}
    assert library.compare(paths).average_row("b").difference == pytest.approx(0.25)
    assert [trainer.name for trainer in rules.installed_trainers()] == ["lab"]
    assert [choice.name for choice in choice_files.installed_choices("selector")] == ["lab_median"]
