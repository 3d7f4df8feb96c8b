"""Reading a run's offline wandb log back, and trials to log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from souping.core.types import Recipe, Result, Trial
from souping.report.content import TrialRow


def made(row: TrialRow) -> Trial:
    weights = tuple(row.weights.values())
    names = tuple(row.weights)
    recipe = Recipe(ingredients=names, fingerprints=names, weights=weights, dtype="float32")
    result = Result(objective=row.objective, categories=row.categories, items=row.items)
    return Trial(
        number=row.number, recipe=recipe, weights=weights, result=result, reused=row.reused
    )


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
