"""The fine-tunes: each sees mostly one slice of the training questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from souping.smollm.items import CHARACTERS, Choice, Material
from souping.smollm.questions import KIND, Function

SLICES: dict[str, dict[str, float]] = {
    "smol_python": {"simple": 0.7, "multiple": 0.2, "irrelevance": 0.1},
    "smol_chooser": {"multiple": 0.6, "live_multiple": 0.3, "irrelevance": 0.1},
    "smol_live": {"live_simple": 0.5, "live_multiple": 0.35, "irrelevance": 0.15},
    "smol_sceptic": {"irrelevance": 0.6, "simple": 0.2, "live_simple": 0.2},
    "smol_script": {"java": 0.55, "javascript": 0.3, "irrelevance": 0.15},
}
"""{fine-tune: {category: share of its training questions}}."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a fine-tune is taught: batches of fresh items, by seed and step alone."""

    name: str
    seed: int
    shares: Mapping[str, float]
    material: Material

    def batch(self, step: int, size: int) -> list[Choice]:
        """The items of a step. Questions come in shuffled rounds; distractors and order are new each time."""
        return [self._item(step * size + i) for i in range(size)]

    def _item(self, number: int) -> Choice:
        dice = Random(f"{self.name} {self.seed} {number}")
        category = dice.choices(list(self.shares), list(self.shares.values()))[0]
        pool = [q for q in self.material.questions["train"] if q.category == category]
        bank = taught(self.material)
        while True:
            made = self.material.choice(pool[dice.randrange(len(pool))], bank, dice)
            if len(made.prompt) <= CHARACTERS:
                return made


def taught(material: Material) -> dict[str, tuple[Function, ...]]:
    """{kind: functions of training questions}: distractors in training are met nowhere else."""
    found: dict[str, dict[str, Function]] = {}
    for question in material.questions["train"]:
        found.setdefault(KIND[question.category], {}).update({f.name: f for f in question.functions})
    return {kind: tuple(functions.values()) for kind, functions in found.items()}
