"""Commands: words in front of the overrides that they stand for, in help, errors and completion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from souping.cli.commands import COMMANDS, ROOTS, STANDS_FOR, as_overrides
from souping.cli.config import is_merge
from souping.cli.help import choices, completed, groups
from souping.core.types import UserError
from tests.conftest import Cli, pool_of
from tests.support.composition import compose


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
    souping("names", pool(family), "merge.name_rules=none.json").refused(
        "merge.name_rules=show:none.json"
    )
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


@pytest.mark.parametrize("name", ROOTS)
def test_an_experiment_that_only_averages_has_the_keys_of_a_merge(name: str) -> None:
    more = {
        "merge": ["pool.candidates=[a,b]", "optimiser.weights=[0.5,0.5]"],
        "rebuild": ["recipe=r.json"],
    }
    plain = compose([f"+experiment={name}", *more.get(name, [])])
    components = {"pool", "optimiser", "merge", "tracker"}
    values = {"name", "seed", "out", "recipe", "plan", "upload", "store", "allow_code", "debug"}
    assert plain.keys() == components | values
    assert is_merge(plain)
    assert plain["name"] == name


@pytest.mark.parametrize(
    "word",
    [
        "benchmark.path=x",
        "selector=topk",
        "+selector.k=2",
        "~expected_mismatch",
        "dry_run=3",
        "check=true",
    ],
)
def test_a_merge_has_no_key_of_an_evaluation(family: Path, souping: Cli, word: str) -> None:
    done = souping("merge", pool(family), "optimiser.weights=[0.5,0.5]", word)
    done.refused(word, "plan=true", "+experiment=merge")
    assert len(done.err.splitlines()) == 1


def test_a_run_has_no_recipe(family: Path, souping: Cli) -> None:
    souping(*pool_of(family), "recipe=r.json").refused("recipe", "+experiment=rebuild")


def test_a_merge_loads_only_what_a_merge_needs(family: Path, tmp_path: Path) -> None:
    """Nothing of evaluation, reports, uploads and runs, and no heavy library beside Hydra's."""
    words = ["merge", pool(family), "optimiser.weights=[0.5,0.5]", "out=soup"]
    code = f"""import sys
sys.argv = ["souping", *{words!r}]
from souping.cli.main import main
main()
print("|".join(sys.modules))"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    loaded = set(done.stdout.splitlines()[-1].split("|"))
    assert "souping.merge.writer" in loaded
    rooms = {"analysis", "comparison", "evaluate", "logs", "paper", "plan", "selection"}
    assert loaded & {f"souping.{room}" for room in rooms} == set()
    files = ("report.content", "report.plots", "report.render", "pipeline.run", "pipeline.upload")
    assert loaded & {f"souping.{name}" for name in files} == set()
    assert loaded & {"torch", "transformers", "matplotlib", "wandb", "scipy", "rich"} == set()


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
        souping(name, "run=run", "analysis=item_wins").refused("run=", "cannot be combined")
    assert as_overrides("merge", ["+experiment=merge"]) == ["+experiment=merge"]
    assert as_overrides("names", ["+experiment=bfcl"]) == [
        "merge.name_rules=show",
        "+experiment=bfcl",
    ]
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
