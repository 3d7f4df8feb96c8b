"""A training run whose checkpoints are sharded, from its folder to a soup, a report, more analyses and a rebuild."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from souping import pantry
from tests.conftest import Cli
from tests.support.checkpoints import load, same_bits
from tests.support.sharded import save_step
from tests.support.texts import write

pytestmark = pytest.mark.slow
HOME = pantry.path("base_cook")


@pytest.mark.filterwarnings("ignore")
def test_a_run_of_torchtitan_becomes_a_soup_that_can_be_rebuilt(souping: Cli, tmp_path: Path) -> None:
    whole = load(HOME)
    for step in (10, 20, 30):
        noise = torch.Generator().manual_seed(step)
        moved = {n: t + 0.1 * t.float().std() * torch.randn(t.shape, generator=noise) for n, t in whole.items()}
        save_step(tmp_path / "train" / f"step-{step}", {n: t.bfloat16() for n, t in moved.items()}, heads=4, kv_heads=2)
    texts = write(tmp_path / "texts.jsonl")
    words = [f"benchmark.path={texts}", "evaluator.device=cpu", "evaluator.threads=1", "hydra.run.dir=run"]
    source = ["pool.path=train", f"pool.like={HOME}"]
    souping("+experiment=trajectory", source[0], *words).refused("pool.like=")
    done = souping("+experiment=trajectory", *source, *words)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [one["step"] for one in report["trajectory"]["members"]] == [10, 20, 30]
    soup = load(tmp_path / "run" / "soup")
    assert {name: tensor.shape for name, tensor in soup.items()} == {n: t.shape for n, t in whole.items()}
    more = souping("run=run", "analysis=[parents]")
    assert more.code == 0, more.err
    again = souping("+experiment=rebuild", "recipe=run/soup/recipe.json", f"pool.like={HOME}", "out=again")
    assert again.code == 0, again.err
    rebuilt = load(tmp_path / "again")
    assert all(same_bits(rebuilt[name], tensor) for name, tensor in soup.items())
