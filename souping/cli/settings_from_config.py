"""Settings of a run or a merge from its configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from souping.cli.commands import command_line
from souping.cli.config_keys import not_set
from souping.cli.parts import build
from souping.core.files import expanded
from souping.runs.settings import RunSettings, expectations
from souping.soups.settings import MergeSettings, target


def unresolved(node: Any) -> dict[str, Any]:
    """A node of a configuration as plain data, `${...}` as it stands."""
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def run_settings(plain: Mapping[str, Any], run_dir: Path) -> RunSettings:
    """The components and settings of a run by its configuration as plain data, checked and built."""
    from souping.analysis.guards import read_guards

    parts = build(plain)
    keys = (
        "stop_after",
        "dry_run",
        "throughput",
        "min_gain",
        "expected_mismatch",
        "guard_baseline",
    )
    return RunSettings(
        **parts,
        **_shared(plain, run_dir),
        **{key: plain[key] for key in keys},
        expected=expectations(plain["expected"], parts["evaluator"].unit.scale),
        guard=read_guards(plain["guard"]),
        pareto=plain["pareto"] or (),
    )


def merge_settings(
    plain: Mapping[str, Any], run_dir: Path, numbered: bool = False
) -> MergeSettings:
    """The components and settings of a merge by its configuration as plain data, checked and built.

    A merge writes its model to `out` itself; the `numbered` jobs of a multirun write it to their folder's `soup`.
    """
    action = plain["action"]
    if not (plain["out"] or numbered or action["plan"] or action["names"]):
        raise not_set("out")
    path = action["recipe"]
    recipe = expanded(path, "recipe") if path else None
    shared = _shared(plain, run_dir)
    if not numbered:
        shared["out"] = expanded(run_dir, "out")
    return MergeSettings(**build(plain), **shared, recipe=recipe)


def _shared(plain: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """{field: value} of the settings that runs and merges share."""
    return {
        **{key: plain[key] for key in ("name", "seed")},
        "plan": plain["action"]["plan"],
        "upload": None if plain["upload"] is None else target(plain["upload"]),
        "out": run_dir / "soup",
        "store_path": expanded(plain["store"], "store"),
        "run_dir": run_dir,
        "config": {key: value for key, value in plain.items() if key != "action"},
        "command": command_line(),
    }


def as_yaml(config: Mapping[str, Any]) -> str:
    """A resolved configuration as a file that Hydra reads again: what looks like an interpolation is escaped."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(config)))


def _escaped(value: Any) -> Any:
    """Plain data in whose texts `${` is escaped, and the backslashes before it are doubled."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(inner) for inner in value]
    return value
