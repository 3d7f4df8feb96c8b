"""Ends of a run: messages, exit statuses, what stays on the disk; help, version, commands and completion."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from souping import __version__
from souping.cli.choice_files import choices, groups
from souping.cli.commands import COMMANDS
from souping.cli.config_keys import GROUPS, Config
from souping.cli.job import split_options
from souping.cli.process import REPLACE
from souping.core.reading import read
from souping.core.system import conf_folder, program
from souping.core.types import Json, UserError
from souping.core.unit import POINTS
from souping.report.cells import grid
from souping.report.render import plain_table
from souping.report.samples import Sample, show_sample
from souping.runs import execute
from tests.conftest import ROOT, Cli, command_line, pool_of
from tests.support.composition import compose
from tests.support.hub import files_of


def quick(family: Path, *more: str) -> list[str]:
    return [*pool_of(family, "ant", "bee"), "selector=all", "optimiser=uniform", *more]


def merging(family: Path, *more: str) -> list[str]:
    pool = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    return ["+experiment=merge", pool, "optimiser.weights=[0.5,0.5]", *more]


def test_a_late_error_leaves_the_soup(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("souping.report.run_files.write_report", full)
    souping(*quick(family, "hydra.run.dir=run")).refused("the soup is written: run/soup")
    assert all(
        (tmp_path / "run" / name).is_file()
        for name in ("soup/model.safetensors", "trials.csv", "config.yaml")
    )


def test_a_refused_run_leaves_nothing_that_it_made(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    for words in (quick(family), merging(family, "out=soup")):
        souping(*words, "merge.tokenizer_from=nosuch", "store=deep/er/st.sqlite").refused(
            "merge.tokenizer_from=nosuch"
        )
    assert [path.name for path in tmp_path.iterdir()] == []
    (tmp_path / "p/q/r").mkdir(parents=True)
    souping(*quick(family, "seed=-1", "hydra.run.dir=p/q/r")).refused("seed=-1")
    souping(*quick(family, "seed=-1", "hydra.run.dir=p/new/deep/run")).refused("seed=-1")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "p",
        "p/q",
        "p/q/r",
    ]
    souping(*quick(family, "stop_after=search")).ok()
    before = (tmp_path / "outputs/store.sqlite").stat().st_ino
    souping(*quick(family, "merge.tokenizer_from=nosuch")).refused("merge.tokenizer_from=nosuch")
    assert (tmp_path / "outputs/store.sqlite").stat().st_ino == before


def test_a_fault_of_souping_is_one_apology_with_a_traceback_on_the_disk(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "check_settings", lambda run: int("x"))
    monkeypatch.setattr(
        "souping.cli.errors._is_library", lambda file: "runs/execute.py" not in str(file)
    )
    done = souping(*quick(family))
    assert (done.code, len(done.err.splitlines())) == (1, 2)
    assert done.err.startswith("sorry, this is a fault in souping: ValueError: invalid literal")
    (place,) = tmp_path.glob("outputs/fam/*/traceback.txt")
    assert str(place.relative_to(tmp_path)) in done.err
    assert "Traceback" in place.read_text()


def test_names_that_look_like_interpolations(family: Path, tmp_path: Path) -> None:
    place = tmp_path / "w${x}"
    shutil.copytree(family / "ant", place / "m${x}")
    words = [
        "+experiment=merge",
        f'pool.candidates=["m\\${{x}}",{family / "bee"}]',
        "optimiser.weights=[0.5,0.5]",
    ]
    assert command_line(place, *words, "out=soup") == 0
    assert json.loads((place / "soup/recipe.json").read_text())["ingredients"] == ["m${x}", "bee"]
    assert compose(words)["pool"]["candidates"][0] == "m${x}"


def command(place: Path, *words: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}
    line = [sys.executable, "-m", "souping", *words]
    return subprocess.run(line, cwd=place, env=environment, text=True, check=False, **kept)


@pytest.mark.slow
def test_streams_that_are_full_or_closed_do_not_end_the_run(family: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = command(tmp_path, *merging(family, "out=soup"), stdout=full)
    assert done.returncode == 2
    assert done.stderr == "standard output: No space left on device; the run goes on without it\n"
    assert (tmp_path / "soup/recipe.json").is_file()
    done = command(
        tmp_path, *merging(family, "out=other"), stderr=None, preexec_fn=lambda: os.close(2)
    )
    assert done.returncode == 0
    assert (tmp_path / "other/recipe.json").is_file()


@pytest.mark.parametrize(
    ("module", "number"), [("souping.cli", signal.SIGINT), ("hydra", signal.SIGTERM)]
)
def test_a_signal_at_any_import_prints_no_traceback(
    tmp_path: Path, module: str, number: int
) -> None:
    """The child sends it to itself when it looks for that module: nothing waits for a clock."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nclass Finder:\n    @staticmethod\n    def find_spec(name, *_):\n"
        f"        if name == {module!r}:\n            os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder)\n"
    )
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    done = command(tmp_path, "+experiment=merge", preexec_fn=heard)
    assert done.returncode in (130, -number)
    assert len(done.stderr.splitlines()) <= 1


CALLED_SOUPING = (("souping",), ("-m", "tools.souping"), ("-m", "tools", "souping"))
"""Command lines of other programs, whose imports of souping begin while `sys.argv[0]` is the first word."""


@pytest.mark.parametrize("words", CALLED_SOUPING, ids=" ".join)
def test_a_program_that_imports_souping_keeps_its_interrupts(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    check = "import signal, souping\nprint(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    (tmp_path / "tools").mkdir()
    for name in ("souping", "tools/__init__.py", "tools/__main__.py", "tools/souping.py"):
        (tmp_path / name).write_text(check)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, *words]
    if words == ("souping",):
        line = [sys.executable, str(tmp_path / "souping")]
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    done = subprocess.run(
        line, cwd=tmp_path, env=environment, text=True, capture_output=True, preexec_fn=heard
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"True"}


PRINTS = r"""
import sys
from souping.cli.process import open_streams
open_streams()
for stream in (sys.stdout, sys.stderr):
    print("\u2212 \u0436 \udcff \ud800 a", file=stream)
"""


@pytest.mark.parametrize(
    "encoding", ["ascii", "latin-1", "ascii:surrogateescape", "ascii:strict", "utf-8:strict"]
)
def test_characters_that_a_stream_cannot_show_are_replaced(encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-c", PRINTS], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = "\u2212 \u0436" if encoding.startswith("utf-8") else "- ?"
    assert done.stdout == f"{shown} ? ? a\n".encode()
    assert done.stderr.endswith(b" a\n")


def test_a_minus_stays_a_minus() -> None:
    assert "\u22121.5 \u00b7 \u00e9".encode("ascii", REPLACE) == b"-1.5 ? ?"


@pytest.mark.slow
def test_a_run_and_its_commands_end_well_on_a_terminal_without_unicode(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    words = quick(family)
    for more in (["hydra.run.dir=run"], ["-m", "stop_after=search", "seed=0,1"]):
        done = command(tmp_path, *words, *more)
        assert (done.returncode, done.stderr) == (0, ""), more
    for name in ("check", "plan"):
        assert command(tmp_path, name, *words).returncode == 0
    assert command(tmp_path, "show", "run", "-n", "1").returncode == 0


PLUGINS = {
    "SyntaxError": "x = (",
    "AttributeError": "import os\nos.no_such_name",
    "ValueError": "raise ValueError('mutable default')",
    "OSError": "open('/no/such/file')",
}


@pytest.mark.parametrize(
    ("kind", "installed"),
    [
        *(pytest.param(kind, False, marks=pytest.mark.slow) for kind in PLUGINS),
        ("ValueError", True),
    ],
)
def test_a_plugin_of_hydra_that_is_broken_is_named(
    kind: str, installed: bool, tmp_path: Path
) -> None:
    package = tmp_path / "hydra_plugins/broken"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PLUGINS[kind])
    if installed:
        about = tmp_path / "hydra_broken_sweeper-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: hydra-broken-sweeper\n")
        (about / "RECORD").write_text("hydra_plugins/broken/__init__.py,,\n")
    done = command(tmp_path, "--cfg", "job")
    assert done.returncode == 2
    assert "hydra_plugins.broken" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    remedy = "pip uninstall hydra-broken-sweeper" if installed else f"{tmp_path}/hydra_plugins"
    assert remedy in done.stderr


def test_a_plugin_of_hydra_that_lacks_a_package_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)  # what Hydra says is a warning
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins/broken.py").write_text("import no_such_package")
    done = command(tmp_path, "--cfg", "job")
    assert done.returncode == 0
    assert "hydra_plugins.broken" in done.stderr


@pytest.mark.parametrize(
    ("words", "ordered"),
    [
        ("a=b --multirun c=d", "--multirun a=b c=d"),
        ("a=b -m c=d", "-m a=b c=d"),
        ("--cfg job a=b -p selector c=d", "--cfg job -p selector a=b c=d"),
        ("a=b --config-dir=x c=d", "--config-dir=x a=b c=d"),
        ("a=b c=d", "a=b c=d"),
    ],
)
def test_options_of_hydra_stand_anywhere(words: str, ordered: str) -> None:
    options, overrides = split_options(words.split())
    assert [*options, *overrides] == ordered.split()


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("a=b --bogus c=d", "write bogus=c=d"),
        ("--seed 3", "write seed="),
        ("-x", "--hydra-help"),
        ("a=b --cfg", "--hydra-help"),
        ("--info a=b", "--hydra-help"),
        ("a=b -cn", "--hydra-help"),
    ],
)
def test_an_option_that_hydra_does_not_have_or_that_lacks_its_value_is_one_line(
    words: str, advice: str
) -> None:
    with pytest.raises(UserError) as refused:
        split_options(words.split())
    assert advice in str(refused.value)
    assert "\n" not in str(refused.value)


def test_options_between_overrides_are_taken(souping: Cli) -> None:
    done = souping("name=x", "--cfg", "job", "seed=3").ok()
    assert {"name: x", "seed: 3"} <= set(done.out.splitlines())
    souping("name=x", "--bogus", "seed=3").refused("--bogus")
    souping("name=x", "check").refused("check is a command")


@pytest.mark.parametrize("word", ["pareto=[red,green]", "guard=3", "dry_run=2"])
def test_a_merge_refuses_what_needs_items(family: Path, souping: Cli, word: str) -> None:
    souping(*merging(family, "out=soup"), word).refused(
        word.partition("=")[0], word, "+experiment=merge"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.slow
def test_a_run_that_is_ended_from_outside_clears_up(
    family: Path, tmp_path: Path, number: int, code: int
) -> None:
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
    done = subprocess.run(
        line, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(
        f"ended by {signal.Signals(number).name}: what was evaluated is in the store"
    )
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "run.log"}


TEMPLATE = (
    "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
QUICK = ("selector=all", "optimiser=uniform", "analysis=[]")


def chat_family(family: Path, folder: Path, template: str) -> list[str]:
    """Words of a run on models with this chat template; `chat.jsonl` in the folder has the items as chats."""
    for name in ("ant", "bee", "cat"):
        shutil.copytree(family / name, folder / name)
        (folder / name / "chat_template.jinja").write_text(template)
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    chat = [
        json.dumps({**row, "prompt": [{"role": "user", "content": row["prompt"]}]}) for row in rows
    ]
    (folder / "chat.jsonl").write_text("\n".join(chat))
    return [*pool_of(folder, "ant", "bee", "cat"), f"benchmark.path={family / 'items.jsonl'}"]


def test_a_folder_that_holds_anything_stays_as_it_is(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    for number in (2, 3):
        done = souping(*pool_of(family, "ant", "bee"), *QUICK, "out=run").ok()
        assert f"run_{number}" in done.err
        assert (tmp_path / f"run_{number}/report.json").is_file()
        assert (tmp_path / f"run_{number}/soup/recipe.json").is_file()
    assert files_of(tmp_path / "run") == {"notes.txt": b"mine"}


def test_a_merge_is_its_folder_and_leaves_nothing_else(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    souping(*merging(family, "out=soup")).ok()
    assert "config.yaml" not in files_of(tmp_path / "soup")
    souping(*merging(family, "out=soup")).refused("out=soup", "not an empty folder")
    souping(*merging(family)).refused("out is not set")
    assert {path.name for path in tmp_path.iterdir()} <= {"soup", "outputs"}
    assert [path.name for path in tmp_path.glob("outputs/*") if path.is_dir()] == []


def test_a_multirun_has_one_folder(family: Path, souping: Cli, tmp_path: Path) -> None:
    words = (*pool_of(family, "ant", "bee"), *QUICK, "stop_after=search", "seed=0,1")
    souping("-m", *words, "out=a,b").refused("out=a,b", "out=DIR")
    souping("-m", *words, "out=sweep").ok()
    assert (tmp_path / "sweep/sweep.csv").is_file()
    assert (tmp_path / "sweep/1/config.yaml").is_file()
    souping("-m", *words, "out=sweep").ok()
    assert (tmp_path / "sweep_2/sweep.csv").is_file()


def test_the_folder_may_stand_in_a_file_of_settings(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    table = {
        "pool.candidates": [str(family / "ant"), str(family / "bee")],
        "benchmark.path": str(family / "items.jsonl"),
        "evaluator.max_new_tokens": 4,
        "selector": "all",
        "optimiser": "uniform",
        "analysis": [],
        "out": "mine",
        "seed": 3,
    }
    (tmp_path / "run.yaml").write_text(json.dumps(table))
    souping("run.yaml", "seed=4", "stop_after=search").ok()
    settings = OmegaConf.load(tmp_path / "mine/config.yaml")
    assert settings.seed == 4
    assert settings.optimiser._target_.endswith("Uniform")
    souping("mine/config.yaml").refused("mine/config.yaml", "names a class")
    souping("plan", "run.yaml").ok()
    for text, needle in (
        ("hydra.run.dir: x", "hydra.run.dir"),
        ("[1]", "KEY: VALUE"),
        ("{", "YAML"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        souping("bad.yaml").refused("bad.yaml", needle)
    souping("none.yaml").refused("none.yaml")


def test_plain_prompts_are_noted_in_plan_and_check(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    own = chat_family(family, tmp_path, TEMPLATE)
    for name in ("plan", "check"):
        assert "180 of 180 prompts are plain texts" in " ".join(souping(name, *own).out.split())
    (tmp_path / "cat/chat_template.jinja").unlink()
    souping(*own, "benchmark.path=chat.jsonl").refused("candidate cat", "chat template")


def test_help_names_every_group_choice_command_root_key_and_pages_that_exist(souping: Cli) -> None:
    out = souping("--help").out
    assert souping("help").out == out
    assert set(groups()) == {*GROUPS, "experiment", "analysis"}
    for group in groups():
        assert f"{group}: {', '.join(choices(group))}" in out
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert [name for name in COMMANDS if [name, COMMANDS[name].does] not in lines] == []
    listed = out.split("Root keys:")[1].split("(")[0].split()
    assert {field.name for field in fields(Config)} - {*GROUPS, "action"} <= {*listed}
    pages = re.findall(r"[\w./-]+\.md", out)
    assert pages
    assert [page for page in pages if not (ROOT / page).is_file()] == []
    assert "$" not in out
    assert "Groups and their choices" in souping("--help", "+experiment=merge").out
    assert souping("--version").out == f"souping {__version__}\n"


SCREEN = 45
"""Lines of the longest help, that of compare."""


def test_every_command_has_help_that_fits_a_screen(souping: Cli) -> None:
    for name in COMMANDS:
        for words in ((name, "--help"), (name, "-h"), ("--help", name), ("help", name)):
            done = souping(*words)
            assert (done.code, done.err) == (0, "")
            assert done.out.startswith(f"usage: {program()} {name}")
            assert "example: " in done.out
            assert len(done.out.splitlines()) <= SCREEN


def test_help_of_a_group_has_every_key(souping: Cli) -> None:
    for group in groups():
        for name in choices(group):
            out = souping("--help", f"{group}={name}").out
            assert f"{group}={name}\n" in out
            lines = (conf_folder() / group / f"{name}.yaml").read_text().splitlines()
            assert all(line in out for line in lines if line[:1].isalpha())
        assert "  _target_" not in out
    assert souping("help", "selector").out == souping("--help", "selector").out


def test_words_that_are_no_command_or_group_are_refused(souping: Cli) -> None:
    souping("--help", "selectr").refused("selectr", "did you mean selector?")
    souping("help", "shwo").refused("shwo", "show")
    souping("shows").refused("shows", "did you mean show?", "KEY=VALUE")
    souping().refused("pool.candidates is not set", "+experiment=bfcl", "souping help")


def test_a_shell_completes_choices_and_a_reader_may_leave(tmp_path: Path) -> None:
    assert "souping -sc install=bash" in (ROOT / "docs/reference.md").read_text()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = {**environment, "COMP_LINE": "souping selector=", "COMP_POINT": "17"}
    words = [sys.executable, "-m", "souping", "-sc", "query=bash"]
    done = subprocess.run(
        words, capture_output=True, text=True, env=asked, check=True, cwd=tmp_path
    )
    assert {f"selector={name}" for name in choices("selector")} <= set(done.stdout.split())
    line = f"{sys.executable} -m souping --help evaluator | head -1"
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, env=environment, check=True, cwd=tmp_path
    )
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


@pytest.mark.parametrize("width", [44, 60, 80])
def test_tables_and_answers_fit(width: int) -> None:
    terminal = io.StringIO()
    console = Console(width=width, file=terminal)
    words = ("ingredients", "evaluations", "known by then", "simple_python_category")
    console.print(
        plain_table(
            grid(words, [("scoring the ingredients", "1,234", "56", "seven words or more of text")])
        )
    )
    answer: Json = {
        "score": 1.0,
        "outcome": "finished",
        "filtered_resps": ["long " * 40 + "x" * 90],
    }
    sample: Json = {
        "item": "one",
        "category": "c",
        "split": "test",
        "target": {"calls": ["x"]},
        "arguments": [["word " * 60, {}]],
        "models": {"a": answer, "b": answer},
    }
    show_sample(POINTS, console, read(Sample, sample), ["a", "b"])
    text = terminal.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert text.count("long") == 80
