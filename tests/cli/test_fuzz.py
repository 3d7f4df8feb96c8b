"""Odd values for every key of every group: refused in a line, or a setting that the parts can say what they make of.

Keys are those of the YAML files and of the signatures that they feed; nothing runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from souping.cli import config as cli_config
from souping.cli.job import EXPECTED, _settings, format_error, settings_of
from souping.core.text import safe
from souping.core.types import UserError
from souping.pipeline.settings import MergeSettings, RunSettings

ODD: tuple[Any, ...] = (
    -1,
    0,
    1.5,
    1e20,
    99999999999999999999,
    float("nan"),
    float("-inf"),
    None,
    "",
    "x\x1b[31m\u202e=1",
    [[], "a", -1],
    {"a": {"a": None}},
    {"_target_": "os.getcwd"},
    True,
)
GIVEN = {
    "pool.candidates": ["a", "b", "c"],
    "scores.path": "board.csv",
    "objective.tree": {"a": ["x", "y"]},
    "objective.weights": {"x": 1.0},
    "optimiser.weights": [0.5, 0.2, 0.3],
    "evaluator.tasks": ["t"],
}
"""What has no default."""
ENTRIES: tuple[dict[str, Any], ...] = (
    {"name": "n", "benchmark": {"_target_": "souping.evaluate.benchmark.Benchmark", "path": "items.jsonl"}},
    {"name": "n", "tasks": ["t"], "limit": 3, "objective": {"_target_": "souping.core.scores.Mean"}},
)
WHOLE: dict[str, Any] = {
    "upload": {"repo": "org/name", "private": True},
    "expected": {"a": {"x": 0.5}},
    "also": list(ENTRIES),
}
HOLDERS = {"correlation": ("selector=soce",), "engine": ("evaluator=local",), "server": ("evaluator=bfcl",)}
CHOICES = sorted(
    (path.parent.name, path.stem)
    for path in cli_config.folder().glob("*/*.yaml")
    if path.parent.name not in ("experiment", "hydra")
)


def composed(*words: str) -> DictConfig:
    cli_config.register()
    with initialize_config_dir(config_dir=str(cli_config.folder()), version_base="1.3"):
        cfg = compose("config", list(words))
    for key, value in GIVEN.items():
        group, name = key.split(".")
        if OmegaConf.is_missing(cfg[group], name):
            OmegaConf.update(cfg, key, value)
    return cfg


def keys(node: Any, path: str) -> Iterator[str]:
    """Every key at or below a node: those that are written, and the parameters of what it makes."""
    if isinstance(node, Mapping):
        names = [str(key) for key in node]
        if "_target_" in node:
            parameters = inspect.signature(get_object(str(node["_target_"]))).parameters
            names += [key for key in parameters if key not in names]
        for name in names:
            yield f"{path}.{name}"
            yield from keys(node.get(name), f"{path}.{name}")
    elif isinstance(node, list):
        for number, inner in enumerate(node):
            yield f"{path}.{number}"
            yield from keys(inner, f"{path}.{number}")


def with_value(plain: Any, path: str, value: Any) -> Any:
    """A copy with one value changed."""
    if not path:
        return value
    name, _, rest = path.partition(".")
    if isinstance(plain, list):
        return [with_value(inner, rest, value) if str(i) == name else inner for i, inner in enumerate(plain)]
    return {**plain, name: with_value(plain.get(name), rest, value)}


def outcome(plain: Mapping[str, Any], where: Path) -> str:
    """`taken`, or the words of the refusal."""
    refused: UserError | None = None
    try:
        talk(settings_of(plain, where))
    except UserError as error:
        refused = error
    return "taken" if refused is None else words_of(refused)


def words_of(refused: Exception) -> str:
    """What is told of a refusal: a few lines that command no terminal, of no library's own exception."""
    assert refused.__cause__ is None or isinstance(refused.__cause__, EXPECTED), refused.__cause__
    words, code = format_error(refused)
    assert (code, words) == (2, safe(words))
    assert 1 <= len(words.splitlines()) <= 4, words
    return words


def talk(run: MergeSettings) -> None:
    """What parts say of themselves before any work."""
    _ = run.optimiser.describe(3), run.optimiser.count(3), run.optimiser.known_points(3)
    if not isinstance(run, RunSettings):
        return
    run.selector.check(4, 3, 3)
    _ = run.selector.sizes(3), run.selector.label, run.selector.cut
    _ = run.evaluator.settings, run.evaluator.title, run.evaluator.module_settings(), run.evaluator.host
    _ = run.evaluator.answers, run.evaluator.answer_tokens, run.benchmark.title, run.objective.name


def odd_ones_taken(plain: dict[str, Any], top: str, where: Path) -> list[tuple[str, Any]]:
    """(key, value) of what is not refused at and below a key, of values that could be refused."""
    found = []
    for path in [top, *keys(at(plain, top), top)]:
        for value in ODD:
            if outcome(with_value(plain, path, value), where) == "taken":
                found.append((path, value))
    return found


def at(plain: Any, path: str) -> Any:
    for name in path.split("."):
        plain = plain[name]
    return plain


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda value: value)
@pytest.mark.slow
def test_odd_values_of_a_group(group: str, choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if choice == "lm_eval":
        pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    calm = () if group == "optimiser" else ("optimiser=uniform",)
    plain = cli_config.resolved(composed(*HOLDERS.get(group, ()), *calm, f"{group}={choice}"))
    assert outcome(plain, tmp_path) == "taken"
    holder = {"correlation": "selector.", "engine": "evaluator.", "server": "evaluator."}.get(group, "")
    taken = odd_ones_taken(plain, f"{holder}{group}", tmp_path)
    assert [f"{key}={value!r}" for key, value in taken if absurd(value)] == []


def absurd(value: Any) -> bool:
    """Whether no setting can be this: a negative number, or none that is finite and of use."""
    return isinstance(value, int | float) and not 0 <= value < 2**53


@pytest.mark.parametrize("key", ["upload", "expected", "also", "gate"])
def test_odd_values_of_a_root_key(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.jsonl").touch()
    plain = {**cli_config.resolved(composed("optimiser=uniform")), **WHOLE}
    assert outcome(plain, tmp_path) == "taken"
    taken = odd_ones_taken(plain, key, tmp_path)
    assert [f"{key}={value!r}" for key, value in taken if absurd(value)] == []


@pytest.mark.slow
def test_every_root_key_by_way_of_omegaconf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Hydra's schema converts and refuses first."""
    monkeypatch.chdir(tmp_path)
    cfg = composed("optimiser=uniform")
    refused = [one for key in cfg for value in ODD if (one := refusal(cfg, str(key), value, tmp_path)) is not None]
    assert len([words_of(one) for one in refused]) > 100


def refusal(cfg: DictConfig, key: str, value: Any, where: Path) -> Exception | None:
    changed = cfg.copy()
    try:
        OmegaConf.update(changed, key, value, merge=False)
        talk(_settings(changed, where, "sweep"))
    except EXPECTED as error:
        return error
    return None
