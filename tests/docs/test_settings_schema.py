"""The JSON schema of settings files: what it accepts and refuses, souping does too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from souping.cli.choice_files import choices, groups
from souping.cli.config_keys import GROUPS, SETTABLE
from tests.conftest import ROOT, Cli
from tests.support.pages import DOCS, blocks

SCHEMA = json.loads((ROOT / "conf" / "settings.schema.json").read_text())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
LINE = "# yaml-language-server: $schema="


def files() -> Iterator[Any]:
    """Every settings file of the examples and pages: those with the line that editors read."""
    for path in sorted((ROOT / "examples").rglob("*.yaml")):
        yield pytest.param(path.read_text(), path.parent, id=str(path.relative_to(ROOT)))
    for name in DOCS:
        for block in blocks(ROOT / name, "yaml"):
            if "run.yaml" in block:
                yield pytest.param(block, None, id=name)


FILES = list(files())


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert len(FILES) >= 2


@pytest.mark.parametrize(("text", "folder"), FILES)
def test_settings_files_of_examples_and_pages_fit_it(text: str, folder: Path | None) -> None:
    (line,) = [line for line in text.splitlines() if line.startswith(LINE)]
    if folder is not None:
        path = (folder / line.removeprefix(LINE)).resolve()
        assert path == ROOT / "conf" / "settings.schema.json"
    VALIDATOR.validate(yaml.safe_load(text))


def test_every_key_and_choice_is_there_with_its_meaning() -> None:
    assert {*SETTABLE, "+experiment"} <= SCHEMA["properties"].keys()
    assert SCHEMA["properties"]["+experiment"]["enum"] == choices("experiment")
    for group in GROUPS:
        assert SCHEMA["definitions"][group]["enum"] == choices(group)
    for key, definition in SCHEMA["definitions"].items():
        if key not in (*groups(), "interpolation"):
            assert definition["description"], key


@pytest.mark.parametrize(
    "text",
    [
        "seed: ${dry_run}\ndry_run: 3",
        "optimiser: {step: 0.2}\nevaluator.args.a.b: 1",
        "analysis: []",
        "analysis: {shapley: {max_models: 4}}",
        "analysis: {shapley.max_models: 4}",
        "guard: 3",
        "guard.tokens: +10%",
        "expected: {Llama-3.1: 2, b: {x: 0.5}}",
        "pareto: {math: 1, code: 2}",
        "pareto: [math, code]",
        "min_gain: null",
        "merge.tensor_weights: {'*.mlp.*': [1.3, -0.3]}",
        "optimiser: fixed\noptimiser.weights: [1.3, -0.3]",
        "pool.candidates: [{name: a, path: b}, c]",
        "extra_benchmarks: [gsm8k, {name: x}]",
        "upload: {repo: me/soup, private: true}",
        "name: gr\u00fcn",
    ],
)
def test_what_souping_takes_fits(text: str) -> None:
    VALIDATOR.validate(yaml.safe_load(text))


WRONG = {
    "optimizer: grid": "optimizer",
    "optimiser: gird": "optimiser",
    "optimiser.stepp: 0.1": "stepp",
    "pool: {candidate: [a]}": "candidate",
    "seed: -1": "seed",
    "seed: one": "seed",
    "stop_after: train": "stop_after",
    "evaluator.batch_size: 2.5": "batch_size",
    "evaluator: {device: gpu}": "device",
    "evaluator.temperature: 101": "temperature",
    "pool.candidates: runs/a": "pool.candidates",
    "analysis: [shaply]": "analysis",
    "analysis.shapley.over: models": "over",
    "merge: {dtype: fp16}": "dtype",
    "server.url: localhost": "server.url",
    "expected_mismatch: ignore": "expected_mismatch",
    "dry_run: 0": "dry_run",
    "action: {plan: true}": "action",
    "hydra.run.dir: x": "hydra",
    "optimiser: {_target_: a.B}": "_target_",
}


@pytest.mark.parametrize(("text", "key"), WRONG.items(), ids=WRONG)
def test_what_souping_refuses_does_not_fit(
    souping: Cli, family: Path, tmp_path: Path, text: str, key: str
) -> None:
    assert list(VALIDATOR.iter_errors(yaml.safe_load(text)))
    (tmp_path / "run.yaml").write_text(text)
    words = [f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"]
    if text.startswith("pool"):
        words = []
    if "shapley.over" in text:
        words.append("analysis=[shapley]")
    benchmark = f"benchmark.path={family / 'items.jsonl'}"
    done = souping("plan", "run.yaml", *words, benchmark)
    assert done.code == 2, done.out
    assert key in done.err


def test_the_help_prints_it(souping: Cli) -> None:
    assert json.loads(souping("help", "--schema").ok().out) == SCHEMA
