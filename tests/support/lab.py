"""A lab that evaluates soups elsewhere: its harness scores an item by a soup's weights, and its jobs tell the logs.

python -m tests.support.lab MODEL ITEMS OUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

SKILLS = {"ant": 0.45, "bee": 0.4, "cat": 0.35, "dog": 0.3}
"""Share of the items that a single model has right; mixtures are better."""


def weights_of(model: Path) -> dict[str, float]:
    """{ingredient: weight} of a recipe, a soup's folder or a candidate's."""
    path = model if model.is_file() else model / "recipe.json"
    if not path.is_file():
        # A candidate's files, or links to them.
        return {(model / "config.json").resolve().parent.name: 1.0}
    recipe = json.loads(path.read_text())
    return dict(zip(recipe["ingredients"], recipe["weights"], strict=True))


def score(weights: Mapping[str, float], item: str) -> float:
    """Whether a soup has an item right: the same items for the same soup, wherever they are evaluated."""
    mixed = 1 - sum(weight**2 for weight in weights.values())
    skill = sum(SKILLS[name] * weight for name, weight in weights.items()) + 0.3 * mixed
    luck = int(sha256(item.encode()).hexdigest(), 16) % 997 / 997
    return float(luck < skill)


def write_log(model: Path, items: Path, log: Path) -> Path:
    weights = weights_of(model)
    rows = ["item,category,score"]
    for line in items.read_text().splitlines():
        item = json.loads(line)
        rows.append(f"{item['id']},{item['category']},{score(weights, item['id'])}")
    log.write_text("\n".join(rows) + "\n")
    return log


if __name__ == "__main__":
    write_log(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) / "log.csv")
