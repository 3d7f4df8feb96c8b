"""Odd values for every key of YAML files and signatures: refused in a line, or a setting that can be described."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from souping.cli import config_keys
from souping.cli.errors import EXPECTED, format_error
from souping.cli.settings_from_config import run_settings
from souping.core.system import conf_folder
from souping.core.text import safe
from souping.core.types import UserError
from souping.runs.evidence import evaluator_name

ODD: tuple[Any, ...] = (
    -1, 0, 1.5, 1e20, 99999999999999999999, float("nan"), float("-inf"), None, "", "x\x1b[31m\u202e=1", [[], "a", -1],
    {"a": {"a": None}}, {"_target_": "os.getcwd"}, True,
)  # fmt: skip
GIVEN = {
    "pool.candidates": ["a", "b", "c"],
    "pool.path": "runs",
    "scores.path": "board.csv",
    "objective.tree": {"a": ["x", "y"]},
    "objective.category_weights": {"x": 1.0},
    "optimiser.weights": [0.5, 0.2, 0.3],
    "evaluator.tasks": ["t"],
    "evaluator.command": "true {model} {items} {out}",
}
ROOT_KEYS: dict[str, Any] = {
    "upload": {"repo": "org/name", "private": True},
    "expected": {"a": {"x": 0.5}},
    "extra_benchmarks": [{"name": "n", "tasks": ["t"], "limit": 3}],
    "expected_mismatch": "error",
}
HOLDERS = {
    "correlation": ("selector", "soce"),
    "engine": ("evaluator", "local"),
    "server": ("evaluator", "bfcl"),
}
CHOICES = sorted(
    (path.parent.name, path.stem)
    for path in conf_folder().glob("*/*.yaml")
    if path.parent.name != "experiment"
)


def composed(*words: str) -> dict[str, Any]:
    """The configuration of these words, with the values that a user has to give."""
    config_keys.register()
    with hydra.initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        cfg = hydra.compose("config", list(words))
    logs = {"scores.path": {"a": "a", "b": "b", "c": "c"}} if "scores=logs" in words else {}
    for key, value in {**GIVEN, **logs}.items():
        if OmegaConf.is_missing(cfg[key.split(".")[0]], key.split(".")[1]):
            OmegaConf.update(cfg, key, value)
    return config_keys.resolved(cfg)


def keys(node: Any, path: str) -> Iterator[str]:
    """The path of the node and of all below it, and of the parameters of a component that are not set."""
    yield path
    names: Iterable[str | int] = ()
    if isinstance(node, Mapping):
        names = list(node)
    elif isinstance(node, list):
        names = range(len(node))
    yield from (key for name in names for key in keys(node[name], f"{path}.{name}"))
    if isinstance(node, Mapping) and "_target_" in node:
        parameters = inspect.signature(get_object(str(node["_target_"]))).parameters
        yield from (f"{path}.{name}" for name in parameters if name not in node)


def with_value(plain: Any, path: str, value: Any) -> Any:
    """A copy of the configuration with the value at a path."""
    if not path:
        return value
    name, _, rest = path.partition(".")
    if isinstance(plain, list):
        return [
            with_value(inner, rest, value) if str(i) == name else inner
            for i, inner in enumerate(plain)
        ]
    return {**plain, name: with_value(plain.get(name), rest, value)}


def taken(plain: Mapping[str, Any], where: Path) -> bool:
    """Whether a run takes this configuration; a refusal takes few lines, which command no terminal."""
    refused: UserError | None = None
    try:
        run = run_settings(plain, where)
        _ = run.optimiser.describe(3), run.optimiser.count(3), run.optimiser.known_points(3)
        run.selector.check(4, 3, 3)
        _ = (
            run.selector.sizes(3),
            run.selector.label,
            run.evaluator.settings,
            evaluator_name(run.evaluator),
        )
        _ = (
            run.evaluator.hosting.host,
            run.evaluator.sampling.answers_per_item,
            run.benchmark.title,
            run.objective.name,
        )
    except UserError as error:
        refused = error
    if refused is not None:
        assert refused.__cause__ is None or isinstance(refused.__cause__, EXPECTED), (
            refused.__cause__
        )
        words, code = format_error(refused)
        assert (code, words) == (2, safe(words))
        assert 1 <= len(words.splitlines()) <= 4, words
    return refused is None


def check_odd_values(plain: dict[str, Any], top: str, where: Path) -> None:
    """No negative number, and none that is not finite or beyond use, is taken at a key or below it."""
    assert taken(plain, where)
    node: Any = plain
    for name in top.split("."):
        node = node[name]
    found = [
        (key, value)
        for key in keys(node, top)
        for value in ODD
        if taken(with_value(plain, key, value), where)
    ]
    assert [
        one for one in found if isinstance(one[1], int | float) and not 0 <= one[1] < 2**53
    ] == []


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda value: value)
@pytest.mark.slow
def test_odd_values_of_a_group(
    group: str, choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if choice == "lm_eval":
        pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    holder = HOLDERS.get(group)
    words = ["=".join(holder)] if holder else []
    if group != "optimiser":
        words.append("optimiser=uniform")
    top = f"{holder[0]}.{group}" if holder else group
    if group == "analysis":
        # The only group of which several may be chosen.
        words.append(f"analysis=[{choice}]")
        top = f"analysis.{choice}"
    else:
        words.append(f"{group}={choice}")
    check_odd_values(composed(*words), top, tmp_path)


@pytest.mark.parametrize("key", ROOT_KEYS)
def test_odd_values_of_a_root_key(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_odd_values({**composed("optimiser=uniform"), **ROOT_KEYS}, key, tmp_path)
