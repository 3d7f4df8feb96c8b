"""Comparisons of a run by loss: its models are compared in bits per byte, of which fewer are better."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import souping
from souping.comparison.result import comparison_page
from souping.core.unit import BITS_PER_BYTE

SOURCES = ("books", "wiki")
MEANS = {"high": 0.9, "low": 0.6, "soup": 0.5}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run leaves of three models on 120 texts, all of them below one bit per byte."""
    draw = np.random.default_rng(0)
    lines = []
    scores = {name: mean + 0.05 * draw.standard_normal((2, 60)) for name, mean in MEANS.items()}
    for place, source in enumerate(SOURCES):
        for item in range(60):
            models = {
                name: {"score": float(own[place, item]), "outcome": "finished", "resps": [[""]]}
                for name, own in scores.items()
            }
            doc = {"id": f"{source} {item}", "group": f"{source} {item}", "scorer": "loss"}
            lines.append(
                {"split": "test", "category": source, "item": doc["id"], "doc": doc, "arguments": [["text", {}]],
                 "prompt_hash": f"{source} {item}", "models": models}
            )  # fmt: skip
    with gzip.open(tmp_path / "samples.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    rows = []
    for name, values in scores.items():
        means = dict(zip(SOURCES, values.mean(axis=1).tolist(), strict=True))
        means_of = {source: {"mean": mean} for source, mean in means.items()}
        rows.append({"name": name, "recipe_id": name, "scores": means_of})
    (tmp_path / "report.json").write_text(
        json.dumps({"schema": 1, "unit": asdict(BITS_PER_BYTE), "rows": rows})
    )
    return tmp_path


@pytest.mark.parametrize("candidate", ["low", "soup"])
def test_a_lower_loss_is_better(run: Path, candidate: str) -> None:
    result = souping.compare({"base": f"{run}:high", "cand": f"{run}:{candidate}"}, margin=0.005)
    head, *rest = result.verdicts
    assert (head.metric, head.higher_is_better, head.fraction) == ("bits per byte", False, False)
    assert (head.verdict, head.margin, result.status) == ("better", 0.005, 0)
    assert head.difference == pytest.approx(MEANS[candidate] - MEANS["high"], abs=0.02)
    assert head.low < head.difference < head.high < 0
    assert {row.name for row in rest if row.kind == "task"} == set(SOURCES)
    shown = repr(result) + comparison_page(result)
    assert "bits per byte" in shown
    assert " points" not in shown


def test_a_higher_loss_is_worse_and_three_models_are_ranked(run: Path) -> None:
    logs = {"base": f"{run}:low", "cand": f"{run}:high", "soup": f"{run}:soup"}
    result = souping.compare(logs, margin=0.005)
    assert [result.average_row(name).verdict for name in ("cand", "soup")] == [
        "much-worse",
        "better",
    ]
    assert result.status == 1
    assert result.best == ("soup",)
    assert "in bits per byte" in repr(result)
