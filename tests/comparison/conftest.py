"""Logs that several files compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from souping.logs.bfcl_items import MULTI_TURN
from tests.support.bfcl_logs import calls, variants, write_project
from tests.support.logs import write_csv


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., Path]:
    return lambda name, rows: write_csv(tmp_path / f"{name}.csv", rows)


@pytest.fixture
def bfcl_logs(tmp_path: Path) -> dict[str, Path]:
    """Two projects of version 4 without agentic files."""
    files = {
        **variants(MULTI_TURN[:3], 30),
        "simple_python": calls("simple_python", [f"f{n % 10}" for n in range(40)]),
        "live_simple": calls("live_simple", [f"g{n}" for n in range(20)]),
        "live_multiple": calls("live_multiple", [f"g{n}" for n in range(60)]),
        "live_relevance": calls("live_relevance", [f"h{n}" for n in range(5)]),
    }
    failed: dict[str, list[str]] = {"base": [], "cand": []}
    for seed, failures in enumerate(failed.values()):
        for entries in files.values():
            luck = np.random.default_rng(seed).random(len(entries))
            failures.extend(item for item, u in zip(entries, luck, strict=True) if u < 0.4)
    return {name: write_project(tmp_path / name, files, items) for name, items in failed.items()}
