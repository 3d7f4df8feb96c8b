"""Training runs of tiny models around the bottom of a bowl, and an evaluator that measures the distance from it."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from souping.core.protocols import Evaluator, LoadedModel
from souping.core.types import Item, Json, Record
from souping.core.unit import BITS_PER_BYTE, Unit
from tests.support.family import save_model, save_tokenizer

STEPS = tuple(range(100, 900, 100))
BOTTOM = 0.5
CURVE = 4.0
"""Value of the first parameter at the bottom, and what a unit of distance costs."""


@dataclass(frozen=True, kw_only=True)
class Bowl(Evaluator):
    """Bits per byte that grow with the square of the distance, more on some items than on others."""

    unit: Unit = BITS_PER_BYTE

    @property
    def settings(self) -> dict[str, Json]:
        return {"name": "bowl"}

    def batches(self, items: Sequence[Item], repeat: int = 0) -> list[tuple[Item, ...]]:
        return [tuple(items)]

    def evaluate(self, model: LoadedModel, items: Sequence[Item], repeat: int = 0) -> list[Record]:
        away = float(next(iter(model.module.parameters())).detach().flatten()[0]) - BOTTOM
        loss = {
            item.id: 1 + CURVE * (0.5 + random.Random(item.id).random()) * away**2 for item in items
        }
        return [Record(item=item.id, score=loss[item.id], output="") for item in items]


def save_items(path: Path, each: int = 120) -> None:
    rows = [
        {"id": f"{source}-{i}", "category": source, "prompt": f"{source} {i}", "answer": ""}
        for source in ("web", "code")
        for i in range(each)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder: Path, seed: int) -> Path:
    """Checkpoints that oscillate around the bottom at a constant rate, as transformers' Trainer saves them."""
    dice = random.Random(seed)
    log = list[dict[str, float]]()
    for step in STEPS:
        save_at(
            folder / f"checkpoint-{step}", BOTTOM + dice.choice((-1, 1)) * dice.uniform(0.2, 0.3)
        )
        log.append({"step": step, "learning_rate": 1e-3, "num_input_tokens_seen": 1000.0 * step})
        state = {
            "global_step": step,
            "log_history": log,
            "best_model_checkpoint": str(folder / "checkpoint-300"),
        }
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    return folder


@cache
def tiny_model() -> Any:
    """One model for all checkpoints, which differ in a single parameter."""
    with tempfile.TemporaryDirectory() as folder:
        return save_model(Path(folder), seed=0)


def save_at(folder: Path, place: float) -> None:
    """A tiny model whose first parameter has the value `place`."""
    import torch

    model = tiny_model()
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] = place
    model.save_pretrained(folder)
    save_tokenizer(folder)
