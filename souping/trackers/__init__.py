"""Trackers follow a run elsewhere: nowhere (the default), or Weights & Biases. A tracker that fails warns once."""

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

    def finish(self, report: Mapping[str, Json] | None, run_dir: Path) -> None: ...
