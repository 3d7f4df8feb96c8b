"""Made projects of bfcl-eval: result and score files with the traits of real ones."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

Entries = Mapping[str, Mapping[str, Any]]
"""{id: the item in BFCL's data}."""


def variants(files: Collection[str], scenarios: int) -> dict[str, Entries]:
    """Multi-turn files that tell the same scenarios, each in its variant."""
    tables: dict[str, Entries] = {}
    for name in files:
        entries = {}
        for number in range(scenarios):
            turns = [[{"role": "user", "content": f"scenario {number} as {name}"}]]
            entries[f"{name}_{number}"] = {"question": turns, "initial_config": {"room": number}}
        tables[name] = entries
    return tables


def calls(name: str, docs: Collection[str]) -> Entries:
    """Single-turn items, each with one function document."""
    return {f"{name}_{n}": {"function": [{"name": doc}]} for n, doc in enumerate(docs)}


def write_project(
    folder: Path, files: Mapping[str, Entries], failed: Collection[str], version: str = "v4"
) -> Path:
    """A project of one model; as in real ones, only the lines of failures have the item."""
    for name, entries in files.items():
        result = folder / "result" / "served" / f"BFCL_{version}_{name}_result.json"
        score = folder / "score" / "served" / f"BFCL_{version}_{name}_score.json"
        failures = [item for item in entries if item in failed]
        right = len(entries) - len(failures)
        totals = {
            "accuracy": right / len(entries),
            "correct_count": right,
            "total_count": len(entries),
        }
        _write(result, [{"id": item, "result": "[f()]"} for item in entries])
        lines = [{"id": item, "prompt": {"id": item, **entries[item]}} for item in failures]
        _write(score, [totals, *lines])
    return folder


def _write(path: Path, rows: Collection[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
