"""Settings of the family: the shape of its models and the training of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from examples.demo.tasks import CATEGORIES
from souping.demo import BASE

SHAPE: dict[str, float | bool] = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}
"""Settings of LlamaConfig; about 0.49 M parameters, the embedding counted once."""
VOCABULARY_SEED = 7
VOCABULARY_TASKS = 4000
"""The tokenizer's words are the pieces of this many tasks."""
CLIP = 1.0
BETAS = (0.9, 0.98)
DECAY = 0.01


@dataclass(frozen=True, kw_only=True)
class TrainingStage:
    """Training of one model. `mix` weighs the categories; the rate rises over `warmup` steps, then falls linearly
    to `last` of its peak. A stage without a `parent` starts from random weights."""

    name: str
    seed: int
    steps: int
    rate: float
    parent: str = ""
    batch: int = 64
    warmup: int = 10
    last: float = 0.05
    mix: Mapping[str, float] = field(default_factory=dict)

    def weights(self) -> list[float]:
        """Weight of each category, in the order of CATEGORIES."""
        return [self.mix.get(name, self.mix.get("others", 0.0)) for name in CATEGORIES]


STAGES: tuple[TrainingStage, ...] = (
    TrainingStage(
        name=BASE, seed=5, steps=620, rate=3e-3, warmup=60, last=0.3, mix={"others": 1.0}
    ),
    TrainingStage(
        name="tuned_python",
        parent=BASE,
        seed=101,
        steps=700,
        rate=1.5e-3,
        mix={
            "simple_python": 1.0,
            "multiple": 1.0,
            "live": 1.0,
            "irrelevance": 0.06,
            "others": 0.03,
        },
    ),
    TrainingStage(
        name="tuned_java",
        parent=BASE,
        seed=102,
        steps=400,
        rate=1.5e-3,
        mix={
            "simple_java": 1.0,
            "simple_javascript": 1.0,
            "simple_python": 0.0,
            "live": 0.0,
            "others": 0.02,
        },
    ),
    TrainingStage(
        name="tuned_parallel",
        parent=BASE,
        seed=103,
        steps=450,
        rate=1.5e-3,
        mix={"parallel": 1.0, "parallel_multiple": 1.0, "irrelevance": 0.7, "others": 0.02},
    ),
    TrainingStage(
        name="tuned_javascript",
        parent=BASE,
        seed=104,
        steps=40,
        rate=1e-3,
        mix={"simple_javascript": 1.0, "irrelevance": 0.0, "others": 0.03},
    ),
    TrainingStage(
        name="tuned_live",
        parent=BASE,
        seed=105,
        steps=40,
        rate=1e-3,
        mix={"live": 1.0, "simple_python": 0.5, "others": 0.03},
    ),
    TrainingStage(
        name="tuned_mixed",
        parent=BASE,
        seed=106,
        steps=40,
        rate=1e-3,
        mix={"parallel": 0.0, "irrelevance": 0.0, "others": 1.0},
    ),
)
"""In the order of training: the base, three specialists, then three that were trained for a short time."""
