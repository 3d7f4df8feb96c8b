"""`bfcl_8b` from end to end with tiny checkpoints, a few real questions and a server that is really there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from souping.evaluate.bfcl import Environment
from tests.cli.test_experiments import CHOSEN, composed
from tests.conftest import Cli
from tests.evaluate.bfcl.test_evaluator import address, served, shortest  # noqa: F401
from tests.support.experiments import checkpoints, pool


@served
@pytest.mark.slow
def test_bfcl_8b(
    bfcl: Environment,
    address: Iterator[str],  # noqa: F811
    souping: Cli,
    tmp_path: Path,
) -> None:
    names = [candidate["name"] for candidate in composed("bfcl_8b")["pool"]["candidates"]]
    checkpoints(tmp_path / "models", names, max_position_embeddings=16384)
    asked = shortest(bfcl, ("simple_python", "irrelevance"), 6)
    words = [
        "+experiment=bfcl_8b",
        pool(tmp_path / "models", names),
        "server=transformers",
        f"server.url={address}",
        f"evaluator.dir={bfcl.folder}",
        "evaluator.categories=[simple_python,irrelevance]",
        f"evaluator.ids=[{','.join(item.id for item in asked)}]",
        "evaluator.max_tokens=4",
        "evaluator.threads=2",
        "optimiser.trials=1",
        "gate=warn",  # nothing that is tiny calls functions
    ]
    done = souping(*words)
    assert done.code == 0, done.err
    report = json.loads(max(tmp_path.rglob("report.json"), key=lambda path: path.stat().st_mtime_ns).read_text())
    assert report["selection"]["ingredients"] == CHOSEN["bfcl_8b"]
    assert report["gate"]["checks"]
    assert {row["name"] for row in report["rows"]} >= {*names, "soup"}
    assert report["objective"]["coefficients"] == {"simple_python": 0.5, "irrelevance": 0.5}
    assert any("published scores" in warning for warning in report["warnings"])
