"""Commands: words in front of the overrides that they stand for, in help, errors and completion."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from souping.cli.choice_files import choices, groups
from souping.cli.commands import COMMANDS, PLANNED, ROOTS, as_overrides, has_parser, root_of
from souping.cli.config_keys import is_merge
from souping.cli.help import completed
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
        "merge.name_rules=none.json"
    )
    assert not (tmp_path / "soup").exists()


def test_a_plan_is_of_a_run_a_merge_or_a_multirun(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    souping("plan", *pool_of(family, "ant", "bee"), "selector=all", "out=big").ok()
    assert len(list(tmp_path.glob("outputs/fam/plan_*.json"))) == 1
    words = (pool(family), "optimiser.weights=[0.5,0.5]", "out=soup")
    souping("plan", "merge", *words).ok()
    assert len(list(tmp_path.glob("outputs/merge/plan_*.json"))) == 1
    souping("plan", "-m", "+experiment=merge", *words, "merge.dtype=float32,bfloat16").ok()
    assert len(list(tmp_path.glob("outputs/merge/plan_*.json"))) == 3
    assert not (tmp_path / "big").exists()
    assert not (tmp_path / "soup").exists()


@pytest.mark.parametrize("names", ["bfcl,merge", "merge,bfcl"])
def test_a_multirun_is_of_runs_or_of_merges(names: str) -> None:
    assert root_of(["+experiment=merge,rebuild"]) == "merge"
    assert root_of(["+experiment=bfcl,mgsm"]) == "config"
    with pytest.raises(UserError, match=f"experiment={names}"):
        root_of([f"+experiment={names}"])


@pytest.mark.parametrize("name", ROOTS)
def test_an_experiment_that_only_averages_has_the_keys_of_a_merge(name: str) -> None:
    more = {
        "merge": ["pool.candidates=[a,b]", "optimiser.weights=[0.5,0.5]"],
        "rebuild": ["action.recipe=r.json"],
    }
    plain = compose([f"+experiment={name}", *more.get(name, [])])
    components = {"pool", "optimiser", "merge", "tracker"}
    values = {"name", "seed", "out", "action", "upload", "store"}
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
    ],
)
def test_a_merge_has_no_key_of_an_evaluation(family: Path, souping: Cli, word: str) -> None:
    done = souping("merge", pool(family), "optimiser.weights=[0.5,0.5]", word)
    done.refused(word, "+experiment=merge")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("word", ["run=x", "plan=true", "check=true"])
def test_a_command_that_is_typed_as_a_key_is_explained(
    family: Path, souping: Cli, word: str
) -> None:
    souping(*pool_of(family), word).refused(f"{word.partition('=')[0]} is a command")


@pytest.mark.parametrize("word", ["recipe=x", "allow_code=true", "debug=true", "limit=3"])
def test_other_words_that_are_no_keys_are_refused(family: Path, souping: Cli, word: str) -> None:
    souping(*pool_of(family), word).refused(word.partition("=")[0], "is not a key")


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
    files = ("report.content", "report.plots", "report.render", "runs.run", "soups.upload")
    assert loaded & {f"souping.{name}" for name in files} == set()
    assert loaded & {"torch", "transformers", "matplotlib", "wandb", "scipy", "rich"} == set()


def test_a_comparison_of_tables_loads_only_what_it_needs(tmp_path: Path) -> None:
    """At most 45 files of the package: no plots, no store, and no reader of another format."""
    rows = "item,category,score\n" + "".join(f"{n},c,{n % 2}\n" for n in range(20))
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(rows, encoding="utf-8")
    code = """import sys
sys.argv = ["souping", "compare", "a=a.csv", "b=b.csv", "--out", "pages"]
from souping.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code
print("|".join(sys.modules))"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert (tmp_path / "pages" / "report.html").is_file()
    loaded = set(done.stdout.splitlines()[-1].split("|"))
    rooms = {"analysis", "answers", "checkpoints", "evaluate", "merge", "runs", "search", "soups"}
    assert loaded & {f"souping.{room}" for room in rooms} == set()
    absent = ("report.plots", "report.content", "report.sections", "logs.runs", "logs.inspect")
    assert loaded & {f"souping.{name}" for name in absent} == set()
    assert "matplotlib" not in loaded
    packages = {name.rpartition(".")[0] for name in loaded}
    files = [name for name in loaded - packages if name.startswith("souping.")]
    assert len(files) <= 45


@pytest.mark.parametrize("name", [*COMMANDS, "help"])
def test_a_command_in_the_wrong_place_is_explained(
    name: str, souping: Cli, finished_copy: Path
) -> None:
    souping("name=x", name).refused(f"{name} is a command", f"souping {name}")


def test_a_folder_whose_name_has_line_ends_stays_on_one_line(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    (tmp_path / "odd").mkdir()
    for name in ("ant", "bee"):
        (tmp_path / "odd" / f"{name}\nsecond\rthird").symlink_to(family / name)
    folders = ",".join(f"'{folder}'" for folder in (tmp_path / "odd").iterdir())
    words = [f"pool.candidates=[{folders}]", "optimiser=uniform"]
    for command in (["names"], ["plan", "merge"]):
        out = souping(*command, *words).ok().out
        assert "ant\\nsecond\\rthird" in out
        assert not [line for line in out.split("\n") if line.startswith("second") or "\r" in line]


def test_one_experiment_at_a_time(souping: Cli) -> None:
    souping("merge", "+experiment=bfcl").refused("merge", "+experiment=bfcl")
    souping("rebuild", "r.json", "+experiment=bfcl").refused("rebuild", "+experiment=bfcl")
    assert as_overrides("merge", ["+experiment=merge"]) == ["+experiment=merge"]
    assert as_overrides("names", ["+experiment=bfcl"]) == ["+experiment=bfcl", "action.names=true"]
    with pytest.raises(UserError):
        as_overrides("merge", ["+experiment=rebuild"])


def test_help_of_a_command_names_the_choices_of_a_group_of_its_name(souping: Cli) -> None:
    out = souping("help", "merge").ok().out
    for name in choices("merge"):
        assert f"merge={name}" in out
        assert souping("help", f"merge={name}").ok().out.startswith(f"merge={name}\n")
    assert all(name in souping("help", "plan").ok().out for name in PLANNED)


@pytest.mark.parametrize("word", ["--x", "-m", "selector.k", "nothing", "a=b=c"])
def test_help_on_what_has_none_is_refused(word: str, souping: Cli) -> None:
    souping("help", word).refused(f"={word.partition('=')[0]} is not one of")


@pytest.mark.parametrize("name", ["ask", "analyse"])
def test_a_command_without_its_run_needs_nothing_else(name: str, souping: Cli) -> None:
    done = souping(name)
    done.refused("RUN", f"souping {name} --help")
    assert "KEY=VALUE" not in done.err


def test_the_example_of_each_composed_command_composes() -> None:
    for name, command in COMMANDS.items():
        if not has_parser(name) and name != "rebuild":
            compose(as_overrides(name, shlex.split(command.example)))


def test_a_traceback_is_shown_if_the_environment_says_so(
    souping: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUPING_DEBUG", "1")
    with pytest.raises(UserError):
        souping("list", "nowhere")


@pytest.mark.parametrize(
    ("line", "words", "done", "passed_on"),
    [
        ("souping ", {*COMMANDS, "help"}, False, "souping "),
        ("souping pl", {"plan"}, False, "souping pl"),
        ("souping sel", set(), False, "souping sel"),
        ("souping plan ev", set(), False, "souping action.plan=true ev"),
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
