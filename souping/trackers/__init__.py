"""Trackers follow a run elsewhere: nowhere (the default), W&B or trackio. A tracker that fails warns once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from souping.core.protocols import Tracker
from souping.core.types import Json, Trial


@dataclass(frozen=True, kw_only=True)
class NoTracker(Tracker):
    """Tracker of nothing: all that a run leaves lies in its directory."""

    def start(self, config: Mapping[str, Json], run_dir: Path) -> None: ...

    def log(self, trial: Trial) -> None: ...

    def finish(self, report: Mapping[str, Json] | None, run_dir: Path, soup: Path | None = None) -> None: ...


def point_of(trial: Trial, best: float | None) -> dict[str, Json]:
    """A trial as numbers: objective, best so far, categories, weights.

    A soup that was dropped early has no score: the means of a few items are not to be compared.
    """
    result = trial.result
    point: dict[str, Json] = {"trial": trial.number}
    if trial.whole:
        point |= {"objective": result.objective, "best": best}
        point |= {f"category/{name}": value for name, value in result.categories.items()}
    weights = dict(zip(trial.recipe.ingredients, trial.recipe.weights, strict=True))
    point |= {f"weight/{name}": weight for name, weight in weights.items()}
    return point | {"items": result.items, "reused": trial.reused}
