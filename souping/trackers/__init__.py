"""Trackers follow a run elsewhere: nowhere (the default), or Weights & Biases. A tracker that fails warns once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from souping.core.types import Trial
from souping.trackers.wandb import WandbTracker, summarise

__all__ = ["NoTracker", "WandbTracker", "summarise"]


@dataclass(frozen=True, kw_only=True)
class NoTracker:
    """Follows nothing: all that a run leaves lies in its directory."""

    def start(self, config: Mapping[str, Any], run_dir: Path) -> None: ...

    def log(self, trial: Trial) -> None: ...

    def finish(self, report: Mapping[str, Any] | None, run_dir: Path) -> None: ...
