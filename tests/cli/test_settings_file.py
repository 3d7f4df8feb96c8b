"""Files of settings: keys dotted or nested, values as YAML has them, and a line for what no file can hold."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, strategies as st
from omegaconf import OmegaConf

from souping.cli.commands import OVERLAY, SETTINGS_FILES
from souping.cli.job import opened
from souping.cli.settings_file import with_file
from souping.core.types import UserError
from souping.report.format import quoted
from tests.conftest import Cli, pool_of
from tests.support.composition import unchecked

START = "+experiment: bfcl\n"


def from_file(folder: Path, text: str, *words: str) -> dict[str, Any]:
    """What a file of settings and typed words are composed to."""
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return unchecked(with_file([str(folder / "run.yaml"), *words]))


def refused_line(folder: Path, text: str) -> str:
    """The error of a file of settings, without the name of its folder."""
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        with_file([str(folder / "run.yaml")])
    assert "\n" not in str(refused.value)
    return str(refused.value).removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    "text",
    [
        "pool.candidates: [a, b]\nbenchmark.path: x.jsonl\noptimiser: grid\noptimiser.step: 0.2\n",
        "pool:\n  candidates: [a, b]\nbenchmark: {path: x.jsonl}\noptimiser: grid\noptimiser.step: 0.2\n",
        "pool:\n  candidates:\n  - a\n  - b\nbenchmark.path: x.jsonl\noptimiser.step: 0.2\noptimiser: grid\n",
    ],
)
def test_nested_keys_are_the_dotted_ones_and_choices_stay_scalars(
    tmp_path: Path, text: str
) -> None:
    words = [
        "pool.candidates=[a,b]",
        "benchmark.path=x.jsonl",
        "optimiser=grid",
        "optimiser.step=0.2",
    ]
    assert from_file(tmp_path, text) == unchecked(words)


def test_a_nested_analysis_is_set_below_its_name(tmp_path: Path) -> None:
    text = "analysis: [shapley]\nanalysis.shapley:\n  max_models: 4\n"
    assert from_file(tmp_path, START + text)["analysis"]["shapley"]["max_models"] == 4


def test_names_below_a_key_keep_their_dots(tmp_path: Path) -> None:
    text = "expected:\n  Llama-3.1: 2\nexpected.other: 3\n"
    assert from_file(tmp_path, START + text)["expected"] == {"Llama-3.1": 2, "other": 3}


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WORDS = ("\n", " x ", "1", "null", "true", "1e3", "007", "\u00e9", "\u65e5\u672c", "a,b", "it's")
SIGNS = ("a\\", '"', "a: b", "[", "=", "<<", "a.b")
ODD = st.sampled_from((*WORDS, *SIGNS))
PLAIN = st.one_of(
    ODD, TEXTS, st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(-1e9, 1e9)
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD | TEXTS, inner, max_size=3),
    max_leaves=6,
).filter(lambda value: "${" not in str(value))


@given(value=st.dictionaries(ODD | TEXTS, VALUES, min_size=1, max_size=3))
def test_a_value_of_a_settings_file_arrives_as_yaml_has_it(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]
) -> None:
    from hydra.core.config_store import ConfigStore

    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(yaml.safe_dump({"guard": value}, allow_unicode=True), encoding="utf-8")
    if "_target_" in str(value):
        return
    assert with_file([str(file)]) == [OVERLAY]
    stored = ConfigStore.instance().load(OVERLAY.lstrip("+").replace("=", "/") + ".yaml").node
    container = OmegaConf.to_container(stored)
    assert isinstance(container, dict)
    assert container["guard"] == yaml.safe_load(file.read_text("utf-8"))["guard"]


@pytest.mark.parametrize("text", ["\n", "a\tb", " x ", "1", "null", "true", "1e3", "\u00e9", "a\\"])
def test_a_text_of_a_file_reaches_the_configuration(tmp_path: Path, text: str) -> None:
    plain = from_file(tmp_path, START + yaml.safe_dump({"evaluator": {"stop": [text]}}))
    assert plain["evaluator"]["stop"] == [text]


def test_dates_are_texts_and_interpolations_are_resolved(tmp_path: Path) -> None:
    text = "name: 2026-12-02\nout: x/${name}\nstore: a\\${b}\n"
    plain = from_file(tmp_path, START + text)
    assert (plain["name"], plain["out"], plain["store"]) == ("2026-12-02", "x/2026-12-02", "a${b}")


@given(text=ODD | st.text(alphabet="\\\"'${}a ,:[]\n\t=()~#1e.+-_/nulltrue"))
def test_a_quoted_text_is_the_same_text_on_the_command_line(text: str) -> None:
    assert OmegaConf.to_container(
        OmegaConf.create({"x": parsed(f"x={quoted(text)}")}), resolve=True
    ) == {"x": text}


def parsed(word: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides([word])
    return override.value()


@pytest.mark.parametrize(
    ("text", "start", "needle"),
    [
        ("seed: 1\nname: a\nseed: 2\n", "run.yaml:3: seed", "line 1"),
        ("pool:\n  candidates: [a]\npool.candidates: [b]\n", "run.yaml:3: pool.candidates", "line 2"),
        ("guard: {x: 1,\n  x: 2}\n", "run.yaml:2: x", "line 1"),
        ("expected.a: 1\n\nexpected: 2\n", "run.yaml:3: expected", "line 1"),
        ("optimiser: grid\noptimiser:\n  step: 0.2\n", "run.yaml:2: optimiser", "line 1"),
        ("selector:\n  threshold:\n    _target_: x\n", "run.yaml:3: _target_", "GROUP"),
        ("pool.candidates:\n- {name: a,\n   _target_: x}\n", "run.yaml:3: _target_", ""),
        ("seed: 1\nhydra:\n  run: {dir: x}\n", "run.yaml:3: hydra.run.dir", "command line"),
        ("hydra/launcher: x\n", "run.yaml:1: hydra/launcher", ""),
        ("action.plan: true\n", "run.yaml:1: action.plan", "plan"),
        ("seed: 1\naction:\n  recipe: x\n", "run.yaml:3: action.recipe", ""),
        ("--config-dir: x\n", "run.yaml:1: --config-dir", ""),
        ("-cd: x\n", "run.yaml:1: -cd", ""),
        ("~tracker: null\n", "run.yaml:1: ~tracker", ""),
        ("seed: 1\nnonsense: 1\n", "run.yaml:2: nonsense", "not a key"),
        ("seed: 1\na: [1\nb: 2\n", "run.yaml:3: not YAML", ""),
        ("seed: 1\nname: a: b\n", "run.yaml:2: not YAML", ""),
        ("seed: 1\nname: \x07\n", "run.yaml:2: not YAML", ""),
        ("name: &a x\nout: *a\n", "run.yaml:2: ", "aliases"),
        ("name: !thing x\n", "run.yaml:1: ", "!thing"),
        ("? [a]\n: 1\n", "run.yaml:1: ", "a key"),
        ("seed: 1\nstore: 'a${'\n", "run.yaml:2: store", "\\${"),
        ("guard: {null: 1}\n", "run.yaml:1: guard.None", ""),
        ("just a text", "run.yaml: ", "KEY: VALUE"),
        ("", "run.yaml: ", "KEY: VALUE"),
    ],
)  # fmt: skip
def test_a_setting_that_no_file_can_hold_is_refused_with_its_line(
    tmp_path: Path, text: str, start: str, needle: str
) -> None:
    line = refused_line(tmp_path, text)
    assert line.startswith(start)
    assert needle in line


def test_typed_keys_replace_those_of_the_file(tmp_path: Path) -> None:
    text = START + "seed: 3\nname: mine\nselector: topk\nselector.k: 2\nguard: {x: 1}\n"
    plain = from_file(tmp_path, text, "seed=4", "guard={y: 2}")
    assert (plain["seed"], plain["name"], plain["guard"]) == (4, "mine", {"y": 2})
    # The choice of the file replaces that of an experiment, whose settings for it go.
    plain = from_file(tmp_path, text.replace("bfcl", "mgsm"))
    assert plain["selector"]["k"] == 2
    assert "sign" not in plain["selector"]


@pytest.mark.parametrize(
    "word",
    [
        "evaluator.gen_kwargs={temperature: 0.6}",
        "evaluator.gen_kwargs.temperature=0.6",
        "expected={mine: 0.6}",
        "expected.mine=0.6",
        "evaluator.args={temperature: 0.6}",
        "evaluator.metric={a: 0.6}",
        "guard.x=0.6",
        "pareto={x: 0.6}",
    ],
)
def test_a_mapping_takes_entries_beside_those_that_it_has(word: str) -> None:
    before = unchecked(["+experiment=mgsm"])
    plain = unchecked(["+experiment=mgsm", opened(word)])
    key, _, _ = word.partition("=")
    names = key.split(".")[: 2 if key.startswith("evaluator") else 1]
    for name in names:
        before = before[name]
        plain = plain[name]
    assert 0.6 in plain.values()
    # Null, or the name of the one metric of all tasks.
    if isinstance(before, dict):
        assert before.items() <= plain.items()


def test_only_mappings_and_entries_below_a_key_are_opened() -> None:
    stay = ["seed=1", "seed.x=1", "name={a: 1}", "selector={a: 1}", "hydra.run.dir=x"]
    for word in (*stay, "action.plan=true", "+a.b.c=1"):
        assert opened(word) == word
    for word in ("engine.args={a: 1}", "engine.args.a=1", "guard={x: 1}", "guard.x=1"):
        assert opened(word) == f"++{word}"


def test_a_file_and_options_stand_in_any_order(souping: Cli, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("pool: demo\nbenchmark: demo\nseed: 3\n")
    for words in (
        ["run.yaml", "--cfg", "job", "name=x"],
        ["--cfg", "job", "run.yaml", "name=x"],
        ["name=x", "run.yaml", "--cfg", "job"],
        ["run", "name=x", "--cfg", "job", "run.yaml"],
    ):
        assert {"name: x", "seed: 3"} <= set(souping(*words).ok().out.splitlines())
    souping("run.yaml", "seed=3", "other.yml").refused("run.yaml", "other.yml")
    (tmp_path / "run.yaml").write_text("+--cfg: job\n")
    souping("run.yaml").refused("+--cfg")
    # Keys of a run in the file of a merge.
    (tmp_path / "run.yaml").write_text("merge.method: slerp\nevaluator.seed: 1\n")
    souping("merge", "run.yaml", "out=x").refused("evaluator", "merge")
    (tmp_path / "run.yaml").write_text("pool: demo\noptimiser.weights: [0.5, 0.5]\n")
    souping("names", "run.yaml").ok()


def test_wrong_values_of_a_file_are_one_line_that_names_the_key(
    souping: Cli, tmp_path: Path
) -> None:
    for text, key in (
        ("seed: x", "seed="),
        ("name: [x]", "name="),
        ("dry_run: {a: 1}", "dry_run"),
        ("selector.threshold: 1e-1", "alone, 0.1"),
        ("pool: {candidats: [a]}", "pool.candidats"),
        ("analysis.shapley.max_models: 4", "analysis.shapley"),
    ):
        (tmp_path / "run.yaml").write_text(f"{START}{text}\n")
        done = souping("run.yaml", "evaluator.threads=1")
        done.refused(key)
        assert len(done.err.splitlines()) == 1, done.err


@pytest.mark.slow
def test_a_multirun_of_a_file_ends_with_a_command_that_names_the_file(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = [
        *pool_of(family),
        "selector=topk",
        "optimiser=uniform",
        "stop_after=search",
        "out=sweep",
    ]
    table = {
        key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(table))
    done = souping("-m", "run.yaml", "selector.k=2,3").ok()
    command = shlex.split(done.out.splitlines()[-1])
    assert command[:2] == ["souping", "run.yaml"]
    souping(*command[1:], "out=test").ok()
    report = json.loads((tmp_path / "test/report.json").read_text())
    assert len(report["recipe"]["ingredients"]) in (2, 3)
    assert SETTINGS_FILES[0].name == "run.yaml"


def test_the_configuration_of_a_run_is_refused_with_the_command_that_repeats_it(
    souping: Cli, finished_copy: Path
) -> None:
    log = (finished_copy / "run.log").read_text()
    (command,) = [
        line.partition("command")[2].strip() for line in log.splitlines() if " command " in line
    ]
    souping("run/config.yaml").refused("run/config.yaml", command)
