"""Reading a run's offline wandb log back, and trials to log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from souping.core.types import Recipe, Result, Trial
from souping.report.content import TrialRow


def trial_of(row: TrialRow, best: float) -> Trial:
    """The trial of a row without gaps, and the best objective until then."""
    assert row.number is not None
    assert row.objective is not None
    assert row.items is not None
    assert row.reused is not None
    shares = numbers(row.weights)
    weights = tuple(shares.values())
    names = tuple(shares)
    recipe = Recipe(ingredients=names, fingerprints=names, weights=weights, dtype="float32")
    result = Result(objective=row.objective, categories=numbers(row.categories), items=row.items)
    return Trial(
        number=row.number,
        recipe=recipe,
        weights=weights,
        result=result,
        reused=row.reused,
        best=best,
    )


def numbers(table: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in table.items() if value is not None}


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    """The records of the one offline run below `run_dir`."""
    (path,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return [json.loads(line) for line in shown.stdout.splitlines()]


def of_type(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


def tables_of(run_dir: Path) -> dict[str, dict[str, Any]]:
    found = (run_dir / "wandb").glob("offline-run-*/files/media/table/*.json")
    return {path.name.split("_")[0]: json.loads(path.read_text()) for path in found}
