"""A run directory is data: its configuration names only what souping ships, and its files are read with care."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from souping.cli.finished import code_in, read_config, refuse_code
from souping.core.types import UserError
from souping.report.files import read_report, read_trials
from souping.report.render import read_samples
from tests.conftest import Cli, pool_of
from tests.support.composition import compose

SOCE = "souping.selection.SoCE"
CODE: dict[str, tuple[dict[str, Any], str]] = {
    "class": ({"selector": {"_target_": "evil.Evil"}}, "selector._target_"),
    "way through a module of ours": ({"selector": {"_target_": "souping.core.files.os.system"}}, "selector._target_"),
    "class in a list": ({"also": [{"evaluator": {"_target_": "evil.Evil"}}]}, "also[0].evaluator._target_"),
    "scorer": ({"benchmark": {"_target_": SOCE, "scorers": {"mine": "evil.f"}}}, "benchmark.scorers"),
    "command": ({"merge": {"_target_": SOCE, "command": "./evil"}}, "merge.command"),
    "interpreter": ({"server": {"_target_": SOCE, "python": "./evil"}}, "server.python"),
    "trust": ({"evaluator": {"_target_": SOCE, "trust_remote_code": True}}, "evaluator.trust_remote_code"),
    "task, inline": ({"evaluator": {"_target_": SOCE, "tasks": [{"dataset_path": "evil.py"}]}}, "evaluator.tasks"),
    "cluster": ({"executor": {"_target_": SOCE, "address": "ray://evil"}}, "executor.address"),
    "environment": ({"server": {"url": "http://evil/${oc.env:HF_TOKEN}"}}, "server.url"),
}
DATA = {
    "shipped": {"selector": {"_target_": SOCE, "threshold": 0.2}},
    "switched off": {"evaluator": {"_target_": SOCE, "allow_code": False, "tasks": ["a"], "dir": None}},
    "a category of that name": {"objective": {"_target_": SOCE, "weights": {"python": 1.0, "command": 2.0}}},
    "text of a folder": {"name": "\\${x}"},
}


@pytest.mark.parametrize("name", CODE)
def test_what_would_run_code_is_found_and_refused_with_file_and_key(name: str) -> None:
    table, key = CODE[name]
    assert [found for found, _ in code_in(table)] == [key]
    config = OmegaConf.create(table)
    with pytest.raises(UserError, match=r"run/config\.yaml: .*\n.*allow_code=true") as caught:
        refuse_code(config, Path("run/config.yaml"), ["allow_code=false"])
    assert key in str(caught.value)
    refuse_code(config, Path("run/config.yaml"), ["allow_code=true"])
    refuse_code(config, Path("run/config.yaml"), [f"{key}=mine"])


@pytest.mark.parametrize("name", DATA)
def test_data_is_none(name: str) -> None:
    assert list(code_in(DATA[name])) == []


@pytest.mark.parametrize("words", [["+experiment=bfcl"], ["+experiment=bfcl", "selector=topk", "merge=mergekit"]])
def test_no_shipped_choice_is_refused(words: list[str]) -> None:
    assert list(code_in(compose(words))) == []


def test_a_run_directory_of_somebody_else_imports_nothing(
    souping: Cli, tmp_path: Path, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w').close()\n")
    config = OmegaConf.create(compose(pool_of(family)))
    for key, value in (("selector._target_", "evil.Evil"), ("allow_code", True)):
        OmegaConf.update(config, key, value)
    (tmp_path / "got").mkdir()
    OmegaConf.save(config, tmp_path / "got" / "config.yaml")
    souping("run=got").refused("got/config.yaml", "selector._target_=evil.Evil", "allow_code=true")
    assert not (tmp_path / "RAN").exists()
    assert souping("run=got", "allow_code=true").code == 2  # and is no part
    assert (tmp_path / "RAN").exists()


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [BOMB.encode(), b"name: \xe9\xff\n", b"[" * 100_000, b"- a\n", b"a: [\n", b"a: \x00\n", b"x" * 2_000_000],
    ids=["aliases", "latin-1", "nested", "a list", "cut", "NUL", "large"],
)
def test_a_damaged_configuration_is_told_with_its_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml") as caught:
        read_config(tmp_path / "config.yaml")
    assert len(str(caught.value).splitlines()) == 1


TRIALS = "number,recipe_id,objective,weight:a,score:c,items\n1,f,0.5,1.0,0.5,3\n"
DEEP = "[" * 100_000
DAMAGED: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "trials.csv": (read_trials, [TRIALS.replace(",", ";"), TRIALS.replace("0.5,3", "0.5,3,1"), TRIALS + '"x', ""]),
    "report.json": (read_report, [DEEP, "[]", '{"a": ', ""]),
    "samples.jsonl.gz": (lambda path: list(read_samples(path)), [DEEP, "x"]),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_a_run_is_told_with_its_name(name: str, tmp_path: Path) -> None:
    path, (read, contents) = tmp_path / name, DAMAGED[name]
    for content in contents:
        data = content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        with pytest.raises(UserError, match=re.escape(name)):
            read(path)
    (tmp_path / "trials.csv").write_text(TRIALS)
    assert read_trials(tmp_path / "trials.csv")[0]["weights"] == {"a": 1.0}
