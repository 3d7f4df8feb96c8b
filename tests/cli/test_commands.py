"""Commands: words in front of the overrides that they stand for, in help, errors and completion."""

from __future__ import annotations

from pathlib import Path

import pytest

from souping.cli.commands import COMMANDS, STANDS_FOR, as_overrides
from souping.cli.help import choices, completed, groups
from souping.core.types import UserError
from tests.conftest import Cli, pool_of


def pool(family: Path) -> str:
    return f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"


def test_merge_and_its_overrides_write_the_same_soup(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = (pool(family), "optimiser.weights=[0.5,0.5]")
    souping("merge", *words, "out=short").ok()
    souping(*words, "out=long", "+experiment=merge").ok()
    assert [(tmp_path / name / "model.safetensors").read_bytes() for name in ("short", "long")] == [
        (tmp_path / "long/model.safetensors").read_bytes()
    ] * 2


def test_names_needs_no_weights_and_takes_rules_of_the_user(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    out = souping("names", pool(family), "out=soup").ok().out
    assert "ant:" in out
    assert "bee: as ant" in out
    weighted = souping("names", pool(family), "optimiser.weights=[0.1,0.9]", "out=soup")
    assert weighted.ok().out == out
    souping("names", pool(family), "merge.names=none.json").refused("merge.names=show:none.json")
    assert not (tmp_path / "soup").exists()


def test_plan_is_plan_true_also_of_a_merge_and_of_a_multirun(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    souping("plan", *pool_of(family, "ant", "bee"), "selector=all", "hydra.run.dir=planned").ok()
    assert (tmp_path / "planned/plan.json").is_file()
    words = (pool(family), "optimiser.weights=[0.5,0.5]", "out=soup")
    souping("merge", *words, "plan=true", "hydra.run.dir=merged").ok()
    assert (tmp_path / "merged/plan.json").is_file()
    souping("plan", "-m", "+experiment=merge", *words, "merge.dtype=float32,bfloat16").ok()
    assert len(list(tmp_path.glob("outputs/merge/sweep/*/*/plan.json"))) == 2
    assert not (tmp_path / "soup").exists()


@pytest.mark.parametrize("name", [*COMMANDS, "help"])
def test_a_command_in_the_wrong_place_is_explained(
    name: str, souping: Cli, finished_copy: Path
) -> None:
    souping("name=x", name).refused(f"python -m souping {name}", *STANDS_FOR.get(name, ()))
    if name != "help":
        souping("run=run", name).refused(f"python -m souping {name}")


def test_one_experiment_at_a_time(souping: Cli, finished_copy: Path) -> None:
    souping("merge", "+experiment=bfcl").refused("merge", "+experiment=bfcl")
    for name in ("merge", "names"):
        souping(name, "run=run", "analysis=wins").refused("run=", "cannot be combined")
    assert as_overrides("merge", ["+experiment=merge"]) == ["+experiment=merge"]
    assert as_overrides("names", ["+experiment=bfcl"]) == ["merge.names=show", "+experiment=bfcl"]
    with pytest.raises(UserError):
        as_overrides("merge", ["+experiment=rebuild"])


def test_help_shows_what_a_command_stands_for_and_the_group_of_its_name(souping: Cli) -> None:
    for name, overrides in STANDS_FOR.items():
        assert " ".join(overrides) in souping("help", name).ok().out
    out = souping("help", "merge").out
    assert all(f"merge={name}\n" in out for name in choices("merge"))


@pytest.mark.parametrize(
    ("line", "words", "done", "passed_on"),
    [
        ("souping ", {*COMMANDS, "help"}, False, "souping "),
        ("souping pl", {"plan"}, False, "souping pl"),
        ("souping sel", set(), False, "souping sel"),
        ("souping plan ev", set(), False, "souping plan=true ev"),
        ("souping merge ", set(), False, "souping +experiment=merge "),
        ("souping name=x pl", set(), False, "souping name=x pl"),
        ("souping show out", set(), True, "souping show out"),
        ("souping help ", {*COMMANDS, *groups()}, True, "souping help "),
    ],
)
def test_a_shell_completes_commands(
    line: str,
    words: set[str],
    done: bool,
    passed_on: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = {"COMP_LINE": line}
    monkeypatch.setattr("souping.cli.help.os.environ", environment)
    assert completed() == done
    assert set(capsys.readouterr().out.split()) == words
    assert environment["COMP_LINE"] == passed_on
